"""A request of the API, from an ASGI `receive`: its head at once, its body when it is asked for."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from attrs import define, field

from proxy.config import Server
from proxy.doors.house import upload_seconds
from proxy.errors import Kind, Rejected
from proxy.types import Room

Receive = Callable[[], Awaitable[Any]]


@define(eq=False)
class DoorRequest:
    """Implements `proxy.types.Request`.

    Attributes:
        id: ours, unique.
        method, path, query: as they were sent; the path without its query, both still percent-encoded.
        headers: lower-case names; a header that came twice is joined with `, `.
    """

    id: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    _receive: Receive
    _settings: Server
    client_left: Callable[[], None] = field(default=lambda: None, init=False)
    """Called when the client leaves in the middle of its body."""
    body_read: Callable[[], None] = field(default=lambda: None, init=False)
    """Called when the body is complete; from then on somebody may wait on `disconnect`."""
    _received_bytes: int = field(default=0, init=False)

    async def body(self, bytes_max: int, room: Room | None = None) -> bytes:
        """Read the whole body; before that, a client that sent `Expect: 100-continue` has sent none of it.

        Raises:
            Rejected: longer than `bytes_max` (413), too slow (408), compressed (415), or without room (503).
        """
        check_head(self.headers, bytes_max)
        parts: list[bytes] = []
        more, began, taken = True, trio.current_time(), 0
        try:
            while more:
                message = await self._next(began)
                part = message.get("body", b"")
                self._received_bytes += len(part)
                if self._received_bytes > bytes_max:
                    raise too_large(bytes_max)
                parts.append(part)
                more = message.get("more_body", False)
                if more and room is not None:
                    room.take(len(part))
                    taken += len(part)
        finally:
            if room is not None:
                room.give_back(taken)
        self.body_read()
        return b"".join(parts)

    async def disconnect(self) -> None:
        """Return when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self, began: float) -> Any:
        deadline = began + upload_seconds(self._settings, self._received_bytes)
        with trio.CancelScope(deadline=deadline):
            message = await self._receive()
            if message["type"] == "http.request":
                return message
            self.client_left()
            await trio.lowlevel.checkpoint()  # what a hang-up cancels ends here
            raise cut_short()
        raise too_slow()


def check_head(headers: Mapping[str, str], bytes_max: int) -> None:
    """Check what a head says about its body, before any of it is read.

    Raises:
        Rejected: it is too long (413), or compressed (415).
    """
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in ("", "identity"):
        raise Rejected(
            Kind.BAD_REQUEST,
            "Send the body without content-encoding; compressed requests are not read.",
            param="content-encoding",
            status=415,
        )
    if int(headers.get("content-length", "0")) > bytes_max:
        raise too_large(bytes_max)


def too_large(bytes_max: int) -> Rejected:
    """A body goes past its limit."""
    return Rejected(Kind.TOO_LARGE, f"The body is larger than {bytes_max} bytes.")


def too_slow() -> Rejected:
    """A body does not keep its least rate."""
    return Rejected(Kind.BAD_REQUEST, "The body came too slowly.", status=408)


def cut_short() -> Rejected:
    """A client left in the middle of its body."""
    return Rejected(Kind.BAD_REQUEST, "The connection was closed before the body was complete.")
