"""What it is to ask a provider: a call goes out, an open answer comes back, or it is said how that failed."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

import msgspec

from accounting.records import Ending
from proxy.errors import Kind, UpstreamFailed
from proxy.types import Headers

STALE_SECONDS: Final = 2.0
"""A kept connection that the other side had closed says so within a round trip; later, a request was lost."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One request to a provider; its headers hold a credential, so they are not shown."""

    url: str
    headers: Headers
    body: bytes

    def __repr__(self) -> str:
        return f"Call(url={self.url!r})"


Take = Callable[[bytes], bool]
"""Takes bytes as they came, without waiting; true if it would take more. May run in another task."""


class Exchange(Protocol):
    """A provider's open answer."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names; values of a name that comes twice are joined by commas."""
        ...

    def forget_headers(self) -> None:
        """Let go of the headers: nobody asks for them any more, and a stream may be open for an hour."""
        ...

    def ready(self) -> bytes | None:
        """What has arrived already: bytes as they came, `b""` at the end, `None` if there is nothing yet.

        It is also `None` now and then while there is more, so that others get their turn: `read` then waits that
        turn out.

        Raises:
            StreamBroken: the connection broke off.
        """
        ...

    async def read(self, until: float = inf, take: Take | None = None) -> bytes | None:
        """The next bytes as they came, `b""` at the end, or `None` if there were none in time.

        Whoever is cancelled here has lost none of them.

        Args:
            until: how long to wait; on trio's clock.
            take: may be handed bytes as they come, where this would wait: that spares a change of tasks for each
                event. `None` is also given when it has declined to take more; what it raises is raised here.

        Raises:
            StreamBroken: the connection broke off.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection unless the answer was read to its end; shielded, within milliseconds."""
        ...


class Client(Protocol):
    """Whatever can reach a provider; `HttpClient`, or a fake."""

    async def send(
        self, call: Call, sending: Callable[[], None], until: float = inf, *, fresh: bool = False
    ) -> Exchange:
        """Send a request and wait for the status line.

        Args:
            call: what to send.
            sending: called once, just before the first byte of it leaves; never, if no connection came about.
            until: when the status line has to be here; on trio's clock.
            fresh: on a new connection; those that were kept for that provider are closed, for one was stale.

        Raises:
            NotInTime: it was not.
            UpstreamFailed: it could not be reached, or closed without an answer.
            ConnectionWasStale: the same, on a connection kept from before: the provider may be well.
        """
        ...


class NotInTime(Exception):
    """An answer had not begun when it had to have."""


class ConnectionWasStale(UpstreamFailed):
    """A kept connection turned out to be closed, without a byte of an answer: worth another try there."""


def unreached(message: str, kind: type[UpstreamFailed] = UpstreamFailed) -> UpstreamFailed:
    """A failure before the status line: nothing of an answer was seen, others may be tried."""
    return kind(Kind.UPSTREAM_ERROR, message, try_another=True, ending=Ending.UNREACHED)


def misconfigured() -> UpstreamFailed:
    """A request that cannot be sent as it is: its URL or a header is none."""
    return UpstreamFailed(
        Kind.UPSTREAM_ERROR,
        "The provider is not set up correctly.",
        try_another=True,
        ending=Ending.UNREACHED,
    )
