"""One client connection, from accept to close: hypercorn's protocol behind our own reading and sending.

Hypercorn's `TCPServer` has this seat otherwise. What is different here, and why:

- No error of a connection leaves it. In trio an exception in one task cancels all beside it, and one
  websocket upgrade with a trailing byte was seen to end the whole process that way.
- Sending can be cancelled and has a deadline. Hypercorn shields it: a client that stops reading holds its
  request for ever. A connection whose sending was cut in the middle is of no further use: it is closed.
- Bytes pass the `Guard` first, one request at a time. The reader never stops while an answer is under way, so
  a client that leaves is noticed at once. A half-close counts as leaving, as in nginx and Go.
- The app's mailbox never blocks a goodbye, and forgets what comes after the app has finished. So an answer
  that precedes the end of an upload gets out; then the upload is read and dropped for a while, because
  closing a socket with unread bytes resets it, and the client would never see the answer.
- `Expect: 100-continue` is answered when the app first asks for the body, not before.
- One deadline per wait for the client's bytes, moved as the stage changes, instead of a task per idle period.
"""

from contextlib import suppress
from math import inf
from typing import Any

import trio
from attrs import define, field
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import EndBody, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from proxy.doors.apps import Tasks
from proxy.doors.guard import Guard, Refused
from proxy.doors.house import (
    GRACE_SECONDS,
    READ_BYTES,
    SEND_BYTES,
    STRAY_SECONDS,
    House,
    contained,
    upload_seconds,
)
from proxy.doors.http2 import Http2, speaks_http2
from proxy.doors.wire import Stream, close, say_goodbye


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, with a late 100-continue and an honest `connection: close`."""

    def __init__(self, connection: "Connection", *args: Any) -> None:
        super().__init__(*args)
        self._owner = connection
        self._continue: H11SendableEvent | None = None
        self._body_wanted = False
        self.answering = False
        """The status line of the present request has left."""

    @property
    def withholds_continue(self) -> bool:
        """The client waits for a 100 that the app has not asked for yet."""
        return self._continue is not None and not self._body_wanted

    async def body_wanted(self) -> None:
        """The app asks for the body."""
        self._body_wanted = True
        if self._continue is not None and self.connection.they_are_waiting_for_100_continue:
            await super()._send_h11_event(self._continue)

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the app's stream gives, in h11's framing."""
        if isinstance(event, Response) and event.status_code == 101:
            await super().stream_send(event)
            self._owner.upgraded()
            return
        if isinstance(event, Response):
            self.answering = True
            self._owner.begun()
            if self._owner.last_answer and not any(
                name.lower() == b"connection" for name, _ in event.headers
            ):
                event.headers.append((b"connection", b"close"))
        await super().stream_send(event)
        if isinstance(event, EndBody):
            self._owner.answered()

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # Upstream sends 100 as soon as the head is read, and asks here again until it has been sent.
        if getattr(event, "status_code", None) == 100 and not self._body_wanted:
            self._continue = event
            return
        await super()._send_h11_event(event)

    async def _maybe_recycle(self) -> None:
        self._continue, self._body_wanted, self.answering = None, False, False
        await super()._maybe_recycle()


@define(eq=False)
class Connection:
    """One client connection.

    Attributes:
        house: what it shares with all others.
        stream: plain or TLS.
        unread: bytes that came from it already.
    """

    house: House
    stream: Stream
    _unread: bytes = b""
    _guard: Guard = field(init=False)
    _protocol: _Http1 = field(init=False)
    _http2: Http2 | None = None
    _send_lock: trio.Lock = field(factory=trio.Lock)
    _ended: bool = False
    """No request is read and no byte sent any more."""
    _refused: bool = False
    _cut: bool = False
    """An answer was begun, and not ended yet."""
    _waiting: trio.CancelScope | None = None
    _woken: bool = False
    _since: float = field(factory=trio.current_time)
    """When the present wait for a head began: accept, the last answer's end, or the head's first byte."""
    _in_head: bool = False
    _body_seconds: float = 0.0
    """How long we have waited for the present body."""
    _answered: int = 0

    def __attrs_post_init__(self) -> None:
        self._guard = Guard(self.house.settings.header_bytes_max)
        self._guard.feed(self._unread)

    @property
    def last_answer(self) -> bool:
        """The connection will not be used for another request."""
        return self._guard.stage == "body" or self.house.context.terminated.is_set()

    @property
    def _looks_whole(self) -> bool:
        """An old client would take what it has of a cut answer for all of it, if the connection just closed."""
        head = self._guard.head
        return self._cut and head is not None and head.version == "1.0"

    @property
    def _socket(self) -> trio.socket.SocketType:
        stream = self.stream
        return stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket

    async def run(self) -> None:
        """Serve the connection to its end; raises nothing but cancellation."""
        self.house.connections.add(self)
        try:
            with (
                contained(self.house.failed),
                suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                if len(self.house.connections) > self.house.limits.connections_max:
                    await self._turn_away()
                elif await self._shake_hands():
                    if isinstance(self.stream, trio.SSLStream) and speaks_http2(self.stream):
                        self._http2 = Http2(self.house, self.stream)
                        await self._http2.serve()
                    else:
                        await self._serve()
        finally:
            self.house.connections.discard(self)
            self.abort()

    async def _turn_away(self) -> None:
        if isinstance(self.stream, trio.SocketStream):  # a handshake costs more than a refusal saves
            await self._transmit(self.house.refusal(Refused(503, "There are too many connections.")))

    async def _shake_hands(self) -> bool:
        if isinstance(self.stream, trio.SocketStream):
            return True
        if self.house.going_down:
            return False
        with trio.move_on_after(self.house.settings.header_seconds) as self._waiting:
            await self.stream.do_handshake()
            return True
        return False

    async def _serve(self) -> None:
        own, peer = self._socket.getsockname(), self._socket.getpeername()
        async with trio.open_nursery() as nursery:
            self._protocol = _Http1(
                self,
                self.house.app,
                self.house.hypercorn,
                self.house.context,
                Tasks(self.house, nursery, self),
                ConnectionState(self.house.state.copy()),
                isinstance(self.stream, trio.SSLStream),
                parse_socket_addr(self._socket.family, peer),
                parse_socket_addr(self._socket.family, own),
                self._on_event,
            )
            with contained(self.house.failed):
                await self._read()
            self._ended = True
            if isinstance(self.stream, trio.SSLStream) and not self._cut:
                await say_goodbye(self.stream)
            self.abort()
            with contained(self.house.failed):
                # the app is told; it may read a provider's answer to its end all the same
                await self._protocol.handle(Closed())

    # Reading

    async def _read(self) -> None:
        while not self._ended:
            try:
                piece = self._guard.take()
            except Refused as refused:
                await self._refuse(refused)
                break
            if piece:
                self._since = trio.current_time()  # after a head: of the wait for a websocket
                await self._protocol.handle(RawData(piece))
                if self._guard.stage == "body" and self._guard.body_bytes and self._guard.pending_bytes:
                    await trio.lowlevel.checkpoint()  # many small chunks were read at once
                continue
            try:
                data = await self._receive(self._deadline())
            except Refused as refused:
                await self._refuse(refused)
                break
            if data == b"":
                return
            if data is not None:
                self._guard.feed(data)
        await self._linger()

    def _deadline(self) -> float:
        """Until when bytes must have come, by where the reading stands."""
        settings, guard = self.house.settings, self._guard
        if guard.stage == "head":
            if guard.idle:
                seconds = settings.keep_alive_seconds if self._answered else settings.header_seconds
                return self._since + seconds
            if not self._in_head:
                self._in_head, self._since = True, trio.current_time()
            return self._since + settings.header_seconds
        if guard.stage == "body" and not self._protocol.withholds_continue:
            allowed = upload_seconds(settings, guard.body_bytes) + GRACE_SECONDS
            return trio.current_time() + allowed - self._body_seconds
        return self._since + settings.header_seconds if guard.stage == "upgrading" else inf

    async def _receive(self, deadline: float) -> bytes | None:
        """Read once; `b""` if the client is gone or idle for too long, `None` if woken to look again.

        Raises:
            Refused: a request has begun, but does not come fast enough.
        """
        began, self._woken = trio.current_time(), False
        with trio.CancelScope(deadline=deadline) as scope:
            self._waiting = scope
            try:
                if self._guard.pending_bytes > READ_BYTES:
                    await trio.sleep_forever()
                return bytes(await self.stream.receive_some(READ_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
            finally:
                self._waiting = None
                if self._guard.stage == "body":
                    self._body_seconds += trio.current_time() - began
        if self._woken:
            return None
        if self._guard.idle:
            return b""
        if self._guard.stage == "upgrading":
            raise Refused(503, "The websocket was not granted in time.")
        raise Refused(408, "The request came too slowly.")

    def _wake(self) -> None:
        """Have the reader look again at where it stands."""
        self._woken = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _refuse(self, refused: Refused) -> None:
        """Answer a request that the app never sees, or no longer: its answer, if one has begun, is cut."""
        answering, self._refused = self._protocol.answering, True
        if not answering and not self._ended:
            async with self._send_lock:
                await self._transmit(self.house.refusal(refused, self._guard))
        self._end()
        await self._protocol.handle(Closed())

    async def _linger(self) -> None:
        """Read on and drop, so that the client gets to see the answer that ended the connection."""
        limit, settings = self.house.limits.body_bytes_max, self.house.settings
        if self._guard.stage != "body" and not self._guard.pending_bytes and not self._refused:
            return
        seconds = STRAY_SECONDS if self._refused else settings.body_seconds_min
        with (
            trio.move_on_after(seconds) as self._waiting,
            suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            while limit > 0 and not self.house.context.terminated.is_set():
                data = await self.stream.receive_some(READ_BYTES)
                if not data:
                    break
                limit -= len(data)
        self._waiting = None

    # Sending, and what the protocol tells

    async def _on_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data and not self._ended and not self._refused:
                async with self._send_lock:
                    await self._transmit(event.data)
        elif isinstance(event, Closed):
            self._end()
        elif isinstance(event, Updated) and event.idle:
            self._answer_complete()

    async def _transmit(self, data: bytes) -> None:
        """Send; a client that is gone or stands still ends the connection and is reported to the app."""
        try:
            for at in range(0, len(data), SEND_BYTES):
                with trio.move_on_after(self.house.settings.write_seconds) as deadline:
                    await self.stream.send_all(data[at : at + SEND_BYTES])
                if deadline.cancelled_caught:
                    self.abort(reset=True)
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.abort()
        except BaseException:
            # cancelled in the middle: whatever would follow could be taken for the rest of this
            self.abort(reset=True)
            raise

    def _answer_complete(self) -> None:
        if self._ended or self._guard.stage != "read":
            return
        self._answered += 1
        self._in_head, self._since, self._body_seconds = False, trio.current_time(), 0.0
        self._guard.next_request()
        self._wake()

    async def body_wanted(self) -> None:
        """The app of the present request asks for its body."""
        if self._protocol.withholds_continue:
            await self._protocol.body_wanted()
            self._wake()  # only now does the body's clock run
        else:
            await self._protocol.body_wanted()

    def begun(self) -> None:
        """The answer's head is about to be sent."""
        self._cut = not self._refused  # after a refusal nothing is sent

    def answered(self) -> None:
        """The answer was sent to its end; one to the wish for a websocket is the connection's last."""
        if not self._refused:
            self._cut = False
        if self._guard.stage == "upgrading":
            self._end()

    def upgraded(self) -> None:
        """The websocket was granted."""
        self._guard.upgrade()
        self._wake()

    def stop_if_idle(self) -> None:
        """The server goes down: close, unless a request is under way."""
        if self._http2 is not None:
            self._http2.stop_if_idle()
        elif self._ended or self._guard.stage == "head":
            self._ended = True
            self._wake()

    def _end(self) -> None:
        """Send nothing more; the reader closes when the client has seen what was sent."""
        if self._ended:
            return
        if self._looks_whole:
            self.abort()
            return
        self._ended = True
        if isinstance(self.stream, trio.SocketStream):
            with suppress(OSError):
                self._socket.shutdown(trio.socket.SHUT_WR)
        self._wake()

    def abort(self, *, reset: bool = False) -> None:
        """Close at once; with `reset` the kernel forgets what it could not deliver.

        Synchronous, so that it works in a cancelled task as well.
        """
        self._ended = True
        close(self._socket, reset=reset or self._looks_whole)
        self._wake()
