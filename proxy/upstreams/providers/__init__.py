"""What each kind of provider wants: URL and headers, and which of its answer's headers go on; pure."""

from types import ModuleType
from typing import Final

from attrs import define, field

from proxy.types import Ask, Headers, Offer, Secret

USER_AGENT: Final = "farebox"

TRAVELLING: Final = frozenset({"accept", "anthropic-beta", "anthropic-version", "openai-beta"})
"""The caller's headers that go on to a provider. Whatever a dialect let through, nothing else ever does."""

HEADER_BYTES_MAX: Final = 4096
"""Of one header's value; the longest list of beta flags seen is a few hundred."""

URLS_MAX: Final = 1024
"""URLs that are remembered for an account; there is no end to them where callers' parameters stand in models' names."""


@define(eq=False)
class Way:
    """The way to one account: what its kind says of URL and headers, made once where no request changes it.

    Attributes:
        kind: one of the modules here.
        base_url: where the provider is.
        secret: the account's credential.
    """

    kind: ModuleType
    base_url: str
    secret: Secret
    _urls: dict[tuple[str, bool, bool], str] = field(factory=dict, init=False, repr=False)
    _headers: Headers = field(default=(), init=False, repr=False)
    """Where nothing of the caller's travels: with the credential, so never to be shown."""

    def url(self, ask: Ask, offer: Offer) -> str:
        """Where to send it. Raises `Rejected` where there is no such route."""
        at = offer.wire_name, ask.stream, ask.free
        url = self._urls.get(at)
        if url is None:
            if len(self._urls) >= URLS_MAX:
                self._urls.clear()
            url = self._urls[at] = self.kind.url(self.base_url, ask, offer)
        return url

    def headers(self, ask: Ask) -> Headers:
        """The request's headers: one and the same tuple for all requests of which none travels."""
        if ask.headers:
            return self._made(ask)
        if not self._headers:
            self._headers = self._made(ask)
        return self._headers

    def _made(self, ask: Ask) -> Headers:
        headers: Headers = self.kind.headers(self.secret, ask)
        return headers


def common(ask: Ask) -> Headers:
    """The headers that every kind of provider gets.

    Compression is declined: answers are passed on as they come and searched for usage reports.
    """
    travelling = tuple(
        # a list that was joined of several headers may end in a blank, which could not be sent
        (name, value.strip())
        for name, value in ask.headers
        if name in TRAVELLING and _is_plain(value)
    )
    return (
        ("user-agent", USER_AGENT),
        ("accept-encoding", "identity"),
        ("content-type", "application/json"),
        *travelling,
    )


def has(headers: Headers, name: str) -> bool:
    """Whether there is a header of that (lower-case) name."""
    return any(one == name for one, _ in headers)


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= HEADER_BYTES_MAX
