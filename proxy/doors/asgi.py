"""One request answered by an ASGI app, in the task of its fast connection: pages, health, and apps that are no door.

Nothing of the body is read before the app asks for it, so the kernel holds back a client whose app does not.
"""

from collections.abc import Awaitable, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol
from urllib.parse import unquote

import trio
from attrs import define, field

from proxy.doors.guard import Head, Refused
from proxy.doors.heads import BODILESS, CHUNKED, LAST_CHUNK, chunk, sound_line
from proxy.doors.house import House, contained
from proxy.doors.wire import Gone, Wire

Message = dict[str, Any]
Address = tuple[str, int]

_OURS: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
"""Headers about the connection; an app may say `connection: close`, and it is said for it."""


class AgainstProtocol(Exception):
    """An app sends what no answer can consist of."""


class Exchange(Protocol):
    """What an app's request needs of its connection.

    Attributes:
        house: with the app.
        wire: where bytes go.
        chunks: the client understands chunks.
        closing: the present answer is the last.
    """

    house: House
    wire: Wire
    chunks: bool
    closing: bool

    def opening(self, status: int, *, whole: bool) -> bytes:
        """Give the status line and what the connection itself has to say; `whole`: nothing follows."""
        ...

    def read_body(self) -> Awaitable[bytes | None]:
        """Read some of the body; `b""` at its end, `None` if the client has left in it."""
        ...

    def refuse(self, refused: Refused) -> Awaitable[None]:
        """Answer in the app's place."""
        ...


@define(eq=False)
class AppAnswer:
    """The life of such a request.

    Attributes:
        complete: the whole answer was handed to the kernel.
        begun: some of it was.
    """

    _connection: Exchange
    _head: Head
    _gone: bool = field(default=False, init=False)
    _over: trio.Event = field(factory=trio.Event, init=False)
    """The client is gone, or has all of its answer."""
    _body_over: bool = field(default=False, init=False)
    _start: tuple[int, list[tuple[bytes, bytes]]] | None = field(default=None, init=False)
    _counted: int | None = field(default=None, init=False)
    """Bytes of the answer's body still to come, where its length was announced."""
    _chunked: bool = field(default=False, init=False)
    begun: bool = field(default=False, init=False)
    complete: bool = field(default=False, init=False)

    def hang_up(self) -> None:
        """The client is gone: the app is told when it asks, and what it sends goes nowhere."""
        self._gone = True
        self._over.set()

    async def run(self, scope: Message) -> None:
        """Have the app answer; completes the answer in its place where it did not begin one."""
        house = self._connection.house
        with contained(house.failed):
            await house.app(scope, self._receive, self._send)
        if not self.begun and not self._gone:
            self._connection.closing = True
            self._start, self._counted = (500, []), None
            await self._body(b"", more=False)

    async def _receive(self) -> Message:
        """ASGI's `receive`."""
        if not self._body_over and not self._over.is_set():
            message = await self._next_part()
            if message is not None:
                return message
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _next_part(self) -> Message | None:
        try:
            part = await self._connection.read_body()
        except Refused as refused:
            # whoever is refused for how it sends its body gets no other answer, nor any more of one;
            # said first, for the app may send while the refusal is on its way
            self.hang_up()
            if not self.begun:
                self.begun = True
                with suppress(Gone):
                    await self._connection.refuse(refused)
            return None
        if part is None:
            self.hang_up()
            return None
        self._body_over = part == b""
        return {"type": "http.request", "body": part, "more_body": not self._body_over}

    async def _send(self, message: Message) -> None:
        """ASGI's `send`."""
        kind = message["type"]
        if self._gone:
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.start" and self._start is None:
            self._start = int(message["status"]), _sendable(message.get("headers", ()))
        elif kind == "http.response.body" and self._start is not None and not self.complete:
            await self._body(bytes(message.get("body", b"")), more=message.get("more_body", False))
        else:
            raise AgainstProtocol(kind)

    async def _body(self, data: bytes, *, more: bool) -> None:
        first = b"" if self.begun else self._opening(data, more=more)
        if self._head.method == "HEAD" or (self._start is not None and self._start[0] in BODILESS):
            framed = b""
        elif self._counted is not None:
            self._counted -= len(data)
            if self._counted < 0 or (self._counted and not more):
                raise AgainstProtocol("a body that is not of its announced length")
            framed = data
        elif self._chunked:
            framed = chunk(data) + (b"" if more else LAST_CHUNK)
        else:
            framed = data
        try:
            if first or framed:
                self.begun = True
                await self._connection.wire.send(first + framed)
        except Gone:
            self.hang_up()
            return
        if not more:
            self.complete = True
            self._over.set()

    def _opening(self, data: bytes, *, more: bool) -> bytes:
        assert self._start is not None  # noqa: S101 - for the type checker
        status, headers = self._start
        framing = b""
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length" and status not in BODILESS:
                self._counted = int(value)
            elif lower == b"connection" and b"close" in value.lower():
                self._connection.closing = True
        kept = [
            (name, value)
            for name, value in headers
            if name.lower() not in _OURS and not (status == 204 and name.lower() == b"content-length")
        ]
        if self._counted is None and status not in BODILESS and self._head.method != "HEAD":
            if not more:
                self._counted = len(data)
                framing = b"content-length: %d\r\n" % len(data)
            elif self._connection.chunks:
                self._chunked, framing = True, CHUNKED
        lines = b"".join([b"%b: %b\r\n" % line for line in kept])
        return b"".join((self._connection.opening(status, whole=not more), lines, framing, b"\r\n"))


def _sendable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    found = [(bytes(name), bytes(value).strip()) for name, value in headers]
    for name, value in found:
        if not sound_line(name.lower(), value):
            raise AgainstProtocol("a header that cannot be sent")
    return found


def scope_of(
    head: Head, state: dict[str, Any], *, tls: bool, client: Address | None, server: Address | None
) -> Message:
    """Describe a request as ASGI does."""
    path, _, query = head.target.partition("?")
    return {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": head.version,
        "method": head.method,
        "scheme": "https" if tls else "http",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.fields],
        "client": client,
        "server": server,
        "state": state.copy(),
        "extensions": {},
    }
