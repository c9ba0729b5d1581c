"""Google Gemini: where a request goes, with which headers, and what comes back of them."""

from typing import Final
from urllib.parse import quote

from proxy.types import Ask, Headers, Offer, Secret
from proxy.upstreams.providers import common

REQUEST_ID: Final = ("x-request-id", "x-goog-request-id", "x-cloud-trace-context")
"""The answer's header that names the call in the provider's own log, where it gives one."""

ANSWER_HEADERS: Final = ("content-type",)
"""What of the answer's headers a client needs; account limits and cookies are not among them."""


def url(base_url: str, ask: Ask, offer: Offer) -> str:
    """Where to send it. Streams are always asked for as events: one JSON array cannot be read as it grows."""
    base = base_url.rstrip("/")
    if not base.endswith(("/v1", "/v1beta", "/v1alpha")):
        base += "/v1beta"
    # no "/" and no ":" of a name may reach the path: they would choose another model or another action
    model = quote(offer.wire_name.removeprefix("models/"), safe="@=,")
    if ask.free:
        return f"{base}/models/{model}:countTokens"
    if ask.stream:
        return f"{base}/models/{model}:streamGenerateContent?alt=sse"
    return f"{base}/models/{model}:generateContent"


def headers(secret: Secret, ask: Ask) -> Headers:
    """The request's headers: the caller's allowed ones and the operator's key; `?key=` would get logged."""
    credential = (("x-goog-api-key", secret.reveal()),) if secret else ()
    return (*common(ask), *credential)
