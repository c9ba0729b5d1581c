"""OpenAI and everything compatible with it: where a request goes, with which headers, and what comes back."""

from typing import Final
from urllib.parse import urlsplit

from proxy.errors import Kind, Rejected
from proxy.types import Ask, Headers, Offer, Secret
from proxy.upstreams.providers import common

REQUEST_ID: Final = ("x-request-id",)
"""The answer's header that names the call in the provider's own log."""

ANSWER_HEADERS: Final = ("content-type",)
"""What of the answer's headers a client needs; account limits and cookies are not among them."""


def url(base_url: str, ask: Ask, _offer: Offer) -> str:
    """Where to send it; a base without any path gets the usual `/v1`, as SDKs' base URLs carry it.

    Raises:
        Rejected: the ask is for counting tokens: there is no such route, and the one that generates costs.
    """
    if ask.free:
        raise Rejected(Kind.UNKNOWN_ROUTE, "Tokens cannot be counted at this provider.")
    base = base_url.rstrip("/")
    if not urlsplit(base).path:
        base += "/v1"
    return f"{base}/chat/completions"


def headers(secret: Secret, ask: Ask) -> Headers:
    """The request's headers: the caller's allowed ones and the operator's credential, if there is one."""
    credential = (("authorization", f"Bearer {secret.reveal()}"),) if secret else ()
    return (*common(ask), *credential)
