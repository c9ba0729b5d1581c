"""The fork in front of every answer: to the request path, to an answer that needs none, or on to the app.

Both doors ask here, so a request gets the same answer whichever of them read it.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from attrs import field, frozen

from proxy.doors.routes import Refusal, dialect_of, is_api, route
from proxy.errors import Kind, Rejected
from proxy.gateway import Gateway
from proxy.types import DialectName, Path, Reply, Request

Respond = Callable[[Gateway, Path, Request, Reply], Awaitable[None]]
Log = Callable[..., None]
"""Called with a level, an event's name and fields, such as `Telemetry.log`."""

EXPOSED: Final = (
    "x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry",
    "x-credits-cost-micro", "x-credits-balance-micro", "x-credits-held-micro", "x-credits-model",
    "x-credits-price-version", "x-credits-cache", "x-credits-max-output-tokens",
    "x-credits-max-thinking-tokens", "x-credits-clamped", "x-credits-hold", "x-credits-dropped",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset", "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset",
)  # fmt: skip
"""By name, because `*` is understood by newer browsers only."""

CORS: Final = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": ", ".join(EXPOSED),
}
"""Any origin, never with credentials: a key is sent in a header, by whoever has one."""

PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
    "access-control-max-age": "86400",
}


REQUEST_ID: Final = "farebox.request_id"
"""Where the id stands in the ASGI scope of requests that the app answers."""


@frozen
class Whole:
    """An answer that is known at once; `body` is empty where the status or the method has none."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@frozen
class Door:
    """What every request at this door is answered with.

    Attributes:
        gateway: handed on to `respond`.
        respond: `proxy.serve.respond`, or a test's.
        new_id: makes request ids.
        log: takes a level, an event's name and fields.
        hosts: `Host` values that are answered, in lower case; empty: all.
    """

    gateway: Gateway
    respond: Respond
    new_id: Callable[[], str]
    log: Log
    hosts: frozenset[str] = field()

    @hosts.default
    def _hosts_of_config(self) -> frozenset[str]:
        return frozenset(host.lower() for host in self.gateway.config.listen.allowed_hosts)

    def headers(self, path: str, request_id: str, dialect: DialectName) -> dict[str, str]:
        """The headers that are on every answer."""
        return named(request_id, dialect) | (CORS if is_api(path) else {})

    def knows(self, host: str) -> bool:
        """Whether a `Host` is one that the operator lets through, with its port or without."""
        if not self.hosts:
            return True
        name, _, port = host.lower().rpartition(":")
        return host.lower() in self.hosts or (port.isdecimal() and name in self.hosts)

    def worded(self, refusal: Refusal, asked: Request) -> Whole:
        """Word a refusal in its dialect."""
        wording = self.gateway.dialects[refusal.dialect].error(refusal.failure, asked.id)
        headers = self.headers(asked.path, asked.id, refusal.dialect) | dict(wording.headers)
        if refusal.allow is not None:
            headers["allow"] = refusal.allow
        return Whole(wording.status, headers, wording.body)


def named(request_id: str, dialect: DialectName) -> dict[str, str]:
    """The headers by which an answer can be asked about."""
    if dialect == "anthropic":
        return {"x-request-id": request_id, "request-id": request_id}
    return {"x-request-id": request_id}


def fork(door: Door, asked: Request) -> Path | Whole | None:
    """Say where a request goes: a `Path` to `respond`, a `Whole` back, `None` on to the app."""
    found = route(asked.method, asked.path, asked.query)
    if door.hosts and not door.knows(asked.headers.get("host", "")):
        elsewhere = Rejected(Kind.NOT_ALLOWED, "This host is not served here.", status=421)
        return door.worded(Refusal(dialect_of(asked.path, asked.headers), elsewhere), asked)
    if isinstance(found, Path):
        return found
    if asked.method == "OPTIONS" and is_api(asked.path):
        return _preflight(door, asked)
    if (asked.method, asked.path) == ("HEAD", "/"):  # Claude Code looks whether anybody is there
        return Whole(200, door.headers(asked.path, asked.id, "openai_chat"))
    return door.worded(found, asked) if isinstance(found, Refusal) else found


def dialect_asked(path: str, query: str, headers: Mapping[str, Any]) -> DialectName:
    """Whose error shape a request gets that was refused before anything could be made of it."""
    found = route("POST", path, query)
    return found.dialect if found is not None else dialect_of(path, headers)


def _preflight(door: Door, asked: Request) -> Whole:
    # `*` would not cover authorization, so what is asked for is allowed by name
    allowed = {
        "access-control-allow-headers": asked.headers.get("access-control-request-headers", "*"),
        "vary": "access-control-request-headers",
    }
    return Whole(204, door.headers(asked.path, asked.id, "openai_chat") | PREFLIGHT | allowed)
