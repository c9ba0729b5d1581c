"""Anthropic: where a request goes, with which headers, and what comes back of them."""

from typing import Final

from proxy.types import Ask, Headers, Offer, Secret
from proxy.upstreams.providers import common, has

REQUEST_ID: Final = ("request-id", "x-request-id")
"""The answer's header that names the call in the provider's own log."""

ANSWER_HEADERS: Final = ("content-type",)
"""What of the answer's headers a client needs; account limits and cookies are not among them."""

VERSION: Final = "2023-06-01"
"""The API version that is sent when the caller names none; the provider refuses requests without one."""


def url(base_url: str, ask: Ask, _offer: Offer) -> str:
    """Where to send it; Anthropic's base URLs are written with and without `/v1`."""
    base = base_url.rstrip("/").removesuffix("/v1")
    return f"{base}/v1/messages/count_tokens" if ask.free else f"{base}/v1/messages"


def headers(secret: Secret, ask: Ask) -> Headers:
    """The request's headers: the caller's allowed ones, a version, and the operator's credential."""
    usual = common(ask)
    version = () if has(usual, "anthropic-version") else (("anthropic-version", VERSION),)
    credential = (("x-api-key", secret.reveal()),) if secret else ()
    return (*usual, *version, *credential)
