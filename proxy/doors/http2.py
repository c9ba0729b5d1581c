"""One HTTP/2 connection: hypercorn's protocol, behind TLS and the same guards as the rest.

Hypercorn and h2 read the frames. What is added here is what they leave open: no error leaves the connection, every
send has a deadline (also one that waits for the client's flow control), an idle connection is closed, requests are
checked as those of HTTP/1.1 are, an app that gives up does not look as if it had ended, and a client cannot have more
requests running than it may have open, however fast it resets them, nor have frames kept that will be refused.
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
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from proxy.doors.apps import Mailbox, Message, Tasks
from proxy.doors.guard import HEADERS_MAX, METHODS, Refused, check_target, joined, refusal_body
from proxy.doors.house import SEND_BYTES, STRAY_SECONDS, App, House, contained
from proxy.doors.wire import Gone, TlsWire

RUNNING_PER_OPEN: Final = 2
"""A stream that was reset counts no longer as open, but what it began takes a moment to end."""
SETTLE_SECONDS: Final = 0.05
"""When the server goes down: between the end of the last answer and the goodbye, for hypercorn marks the end of an
answer after it has reported it, and no longer can once it has said goodbye."""
PREFACE_BYTES: Final = 24


class FrameTooLong(Exception):
    """A client announces more than it was told it may."""


@define(eq=False)
class Frames:
    """Follows the lengths of frames: h2 would collect up to 16 MB of one before it looks at its length."""

    _bytes_max: int
    _skip: int = PREFACE_BYTES
    _head: bytes = b""

    def feed(self, data: bytes) -> None:
        """Look at what was read.

        Raises:
            FrameTooLong: a frame is longer than it may be.
        """
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
            else:
                step = min(9 - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == 9:
                    self._skip, self._head = int.from_bytes(self._head[:3], "big"), b""
                    if self._skip > self._bytes_max:
                        raise FrameTooLong
            at += step


class _Protocol(H2Protocol):
    """Hypercorn's, without its goodbye in the middle of an answer's end."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what an app's stream gives; what it does at the end of a stream is its parent's, minus the goodbye."""
        if isinstance(event, StreamClosed):
            await self._close_stream(event.stream_id)
            await self.send(Updated(idle=self.idle))
        else:
            await super().stream_send(event)

    async def say_goodbye(self) -> None:
        """Tell the client that no further stream will be answered."""
        self.connection.close_connection()
        await self._flush()


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
    _protocol: _Protocol = field(init=False)
    _lock: trio.Lock = field(factory=trio.Lock, init=False)
    _waiting: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _idle: bool = field(default=True, init=False)
    _idle_until: float = field(default=inf, init=False)
    _said_goodbye: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)

    async def serve(self) -> None:
        """Serve the connection to its end."""
        seconds = self.house.settings.write_seconds
        self._wire = TlsWire(self.stream, seconds, lambda: None)
        try:
            # outside of the nursery, which would wrap what is raised if the client is gone
            peer, own = self._wire.sock.getpeername(), self._wire.sock.getsockname()
            async with trio.open_nursery() as nursery:
                self._protocol = self._new_protocol(nursery, peer, own)
                with contained(self.house.failed):
                    await self._protocol.initiate()
                    await self._read()
                self.abort()
                with contained(self.house.failed):
                    await self._protocol.handle(Closed())
        finally:
            self._wire.close()

    def _new_protocol(self, nursery: trio.Nursery, peer: Any, own: Any) -> _Protocol:
        house, family = self.house, self._wire.sock.family
        app: Any = house.app  # called by `_Streams`, with fewer arguments than hypercorn's own wrappers take
        streams: Any = _Streams(house, nursery, self)  # never entered
        return _Protocol(
            app,
            house.hypercorn,
            house.context,
            streams,
            ConnectionState(house.state.copy()),
            True,
            parse_socket_addr(family, peer),
            parse_socket_addr(family, own),
            self._on_event,
        )

    async def _read(self) -> None:
        frames = Frames(self.house.hypercorn.h2_max_inbound_frame_size)
        self._idle_until = trio.current_time() + self.house.settings.header_seconds
        while not self.ended:
            data: bytes | None = None
            with trio.CancelScope(deadline=self._idle_until) as self._waiting:
                data = await self._wire.read()
            if data:
                with suppress(FrameTooLong):
                    frames.feed(data)
                    await self._protocol.handle(RawData(data))
                    continue
            if data is not None or self._said_goodbye:
                return
            self._said_goodbye = True
            self._idle_until = trio.current_time() + STRAY_SECONDS
            await self._protocol.say_goodbye()

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
            self._now_idle(idle=event.idle)

    def _now_idle(self, *, idle: bool) -> None:
        """Note whether requests are under way; bytes that begin none, such as pings, keep no connection open."""
        seconds = inf
        if idle:
            going_down = self.house.going_down
            seconds = SETTLE_SECONDS if going_down else self.house.settings.keep_alive_seconds
        self._idle = idle
        if not self._said_goodbye:
            self._idle_until = self._waiting.deadline = trio.current_time() + seconds

    def stop_if_idle(self) -> None:
        """The server goes down: say so, unless a request is under way."""
        if self._idle:
            self._now_idle(idle=True)

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
        """Start the app of a stream; gives where its messages go."""
        if len(self._nursery.child_tasks) > RUNNING_PER_OPEN * config.h2_max_concurrent_streams:
            self._connection.abort(reset=True)
            return _drop
        return await super().spawn_app(partial(_checked, app), config, scope, send)

    async def _run(
        self, app: App, scope: Any, mailbox: Mailbox, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        await super()._run(app, scope, mailbox, _Answer(self._connection, scope["type"], mailbox, send))


@define(eq=False)
class _Answer:
    """ASGI's `send` of one stream: each message in pieces that a client must take in time, and none left out."""

    _connection: Http2
    _kind: str
    _mailbox: Mailbox
    _send: Callable[[Any], Awaitable[None]]
    _started: bool = False
    _complete: bool = False

    async def __call__(self, message: Message | None) -> None:
        if message is None:
            if self._kind == "http" and not self._complete and not self._mailbox.said_goodbye:
                await self._make_up()
            await self._send_piece(None)
            return
        body = message.get("body", b"")
        for at in range(0, len(body) - SEND_BYTES, SEND_BYTES):
            await self._send_piece({**message, "body": body[at : at + SEND_BYTES], "more_body": True})
        if len(body) > SEND_BYTES:
            message = {**message, "body": body[(len(body) - 1) // SEND_BYTES * SEND_BYTES :]}
        await self._send_piece(message)
        self._started = True
        self._complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def _make_up(self) -> None:
        """The app has returned without an answer, or in the middle of one, which must not look like its end."""
        if self._started:
            self._connection.abort()
            return
        await self._send_piece({"type": "http.response.start", "status": 500, "headers": []})
        await self._send_piece({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, message: Message | None) -> None:
        if self._connection.ended:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(self._connection.house.settings.write_seconds) as deadline:
            await self._send(message)
        if deadline.cancelled_caught:
            self._connection.abort(reset=True)


async def _drop(_message: Message) -> None:
    """Nobody is there to be told."""


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
