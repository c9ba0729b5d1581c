"""One HTTP/2 connection: hypercorn's protocol, behind TLS and the same guards as the rest.

Hypercorn and h2 read the frames. What is added here is what they leave open: no error leaves the connection, every
send has a deadline (also one that waits for the client's flow control), an idle connection is closed, requests are
checked as those of HTTP/1.1 are, and a client cannot have more requests running than it may have open, however fast
it resets them.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

import trio
from attrs import define, field
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.doors.apps import Message, Tasks
from proxy.doors.guard import HEADERS_MAX, METHODS, Refused, check_target, joined, refusal_body
from proxy.doors.house import SEND_BYTES, App, House, contained
from proxy.doors.wire import Gone, TlsWire

RUNNING_PER_OPEN: Final = 2
"""A stream that was reset counts no longer as open, but what it began takes a moment to end."""


@define(eq=False)
class Http2:
    """One client connection after its handshake.

    Attributes:
        house: what it shares with all others.
        stream: TLS, on which h2 was agreed.
    """

    house: House
    stream: trio.SSLStream[trio.SocketStream]
    _wire: TlsWire = field(init=False)
    _protocol: H2Protocol = field(init=False)
    _lock: trio.Lock = field(factory=trio.Lock, init=False)
    _waiting: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _idle: bool = field(default=True, init=False)
    ended: bool = field(default=False, init=False)

    async def serve(self) -> None:
        """Serve the connection to its end."""
        seconds = self.house.settings.write_seconds
        self._wire = TlsWire(self.stream, seconds, lambda: None)
        try:
            async with trio.open_nursery() as nursery:
                self._protocol = self._new_protocol(nursery)
                with contained(self.house.failed):
                    await self._protocol.initiate()
                    await self._read()
                self.abort()
                with contained(self.house.failed):
                    await self._protocol.handle(Closed())
        finally:
            self._wire.close()

    def _new_protocol(self, nursery: trio.Nursery) -> H2Protocol:
        house, sock = self.house, self._wire.sock
        app: Any = house.app  # called by `_Streams`, with fewer arguments than hypercorn's own wrappers take
        streams: Any = _Streams(house, nursery, self)  # never entered
        return H2Protocol(
            app,
            house.hypercorn,
            house.context,
            streams,
            ConnectionState(house.state.copy()),
            True,
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
            self._on_event,
        )

    async def _read(self) -> None:
        since = trio.current_time() + self.house.settings.header_seconds
        while not self.ended:
            data: bytes | None = None
            with trio.CancelScope(deadline=since if self._idle else inf) as self._waiting:
                data = await self._wire.read()
            if not data:
                return
            await self._protocol.handle(RawData(data))
            since = trio.current_time() + self.house.settings.keep_alive_seconds

    async def _on_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            if not self.ended:
                with suppress(Gone):
                    async with self._lock:
                        await self._wire.send(event.data)
                    return
                self.abort()
        elif isinstance(event, Closed):
            self.abort()
        elif isinstance(event, Updated):
            self._idle = event.idle
            seconds = self.house.settings.keep_alive_seconds if event.idle else inf
            self._waiting.deadline = trio.current_time() + seconds
            if event.idle and self.house.going_down:
                self.abort()

    def stop_if_idle(self) -> None:
        """The server goes down: close, unless a request is under way."""
        if self._idle:
            self.abort()

    def abort(self, *, reset: bool = False) -> None:
        """Close at once."""
        self.ended = True
        self._wire.close(reset=reset)
        self._waiting.cancel()

    async def body_wanted(self) -> None:
        """Nobody waits for a 100 here."""


def speaks_http2(stream: trio.SSLStream[trio.SocketStream]) -> bool:
    """Whether the handshake has agreed on it."""
    return bool(stream.selected_alpn_protocol() == "h2")


@define(eq=False)
class _Streams(Tasks):
    """Runs the app of each stream, with what hypercorn gives it checked and what it sends limited in time."""

    _connection: Http2

    async def spawn_app(
        self, app: Any, config: HypercornConfig, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        if len(self._nursery.child_tasks) > RUNNING_PER_OPEN * config.h2_max_concurrent_streams:
            self._connection.abort(reset=True)
        return await super().spawn_app(partial(_checked, app), config, scope, partial(self._send, send))

    async def _send(self, send: Callable[[Any], Awaitable[None]], message: Message | None) -> None:
        body = b"" if message is None else message.get("body", b"")
        for at in range(0, len(body) - SEND_BYTES, SEND_BYTES):
            await self._send_piece(
                send, {**(message or {}), "body": body[at : at + SEND_BYTES], "more_body": True}
            )
        if message is not None and len(body) > SEND_BYTES:
            message = {**message, "body": body[(len(body) - 1) // SEND_BYTES * SEND_BYTES :]}
        await self._send_piece(send, message)

    async def _send_piece(self, send: Callable[[Any], Awaitable[None]], message: Message | None) -> None:
        if self._connection.ended:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(self._house.settings.write_seconds) as deadline:
            await send(message)
        if deadline.cancelled_caught:
            self._connection.abort(reset=True)


async def _checked(app: App, scope: Any, receive: Any, send: Any) -> None:
    """Let in what the `Guard` would let in over HTTP/1.1."""
    try:
        _check(scope)
    except Refused as refused:
        if scope["type"] == "http":
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "http.response.body", "body": refusal_body(refused), "more_body": False})
        return
    await app(scope, receive, send)


def _check(scope: Any) -> None:
    query = scope["query_string"]
    check_target(scope["raw_path"] + (b"?" + query if query else b""))
    if scope.get("method", "GET") not in METHODS:
        raise Refused(400, "This method is not offered.")
    if len(scope["headers"]) > HEADERS_MAX:
        raise Refused(431, f"There may be {HEADERS_MAX} headers.")
    joined([(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]])
