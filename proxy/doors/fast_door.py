"""One client connection of the fast door: HTTP/1.1 read by llhttp, each request answered in the connection's own task.

Hypercorn starts a task, a channel and an idle timer for each request and sends three times for each answer; that is
nine tenths of its cost. Here a request is a few calls in the task that read it:

- The `Guard` decides what is let in, the same as before the other door, and gives head and body. The next request is
  not looked at before the present answer is complete, so nothing is read ahead but what came in the same read.
- Requests of the API go to `respond`; what the door can say at once, it says; everything else is the ASGI app's.
  Upgrades and HTTP/2 are handed on to the other door's connection, with every byte that was read.
- A client that leaves is noticed by the server's one watcher (`hangups`), which cancels the request's scope or has
  its reply fall mute. A half-close counts as leaving, also where requests were sent ahead of it.
- Deadlines for what a client sends are the connection's one alarm (`alarms`). While an answer is under way no alarm
  is needed for reading, and the reply has it for heartbeats.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import trio
from attrs import define, field
from msgspec import Struct

from proxy.alarms import Alarm
from proxy.doors.asgi import AppAnswer, scope_of
from proxy.doors.connection import Connection
from proxy.doors.fast_reply import FastReply
from proxy.doors.fork import CORS, REQUEST_ID, Door, Whole, fork, named
from proxy.doors.guard import Guard, Head, Refused
from proxy.doors.heads import BODILESS, CLOSE, checked, lines, status_line
from proxy.doors.house import STRAY_SECONDS, House, contained, upload_seconds
from proxy.doors.http2 import speaks_http2
from proxy.doors.request import check_head, cut_short, too_large
from proxy.doors.routes import is_api
from proxy.doors.wire import Gone, Stream, Wire, wire_of
from proxy.errors import Kind, Rejected
from proxy.types import Path, Room

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_SLOW: Final = "The request came too slowly."

CORS_LINES: Final = lines(checked(CORS))
"""On every answer of the API, and a kilobyte long: made once."""
BROKEN: Final = Whole(500, {})
"""Where whoever had to answer failed without a word."""


class FastRequest(Struct, eq=False):
    """Implements `proxy.types.Request`. A struct, as everything that is made for each request and changes little."""

    id: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    _connection: "FastConnection"

    def body(self, bytes_max: int, room: Room | None = None) -> Coroutine[Any, Any, bytes]:
        """Read the whole body; before that, a client that sent `Expect: 100-continue` has sent none of it.

        Raises:
            Rejected: longer than `bytes_max` (413), too slow (408), compressed (415), badly framed (400), or without
                room (503).
        """
        check_head(self.headers, bytes_max)
        return self._connection.whole_body(bytes_max, room)


@define(eq=False)
class FastConnection:
    """One client connection.

    Attributes:
        house: what it shares with all others.
        stream: plain or TLS, as it was accepted.
        wire: its bytes.
        alarm: for what the client has to send, or for the heartbeats of the answer under way.
        closing: the present answer is the last.
        chunks: the client understands chunks.
        now: trio's clock.
    """

    house: House
    stream: Stream
    wire: Wire = field(init=False)
    alarm: Alarm = field(init=False)
    closing: bool = field(default=False, init=False)
    chunks: bool = field(default=True, init=False)
    _guard: Guard = field(init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    now: Callable[[], float] = field(init=False)
    _idle_since: float = field(init=False)
    _answered: int = field(default=0, init=False)
    _reading: bool = field(default=False, init=False)
    """Between answers: whoever goes down may wake us."""
    _shaking_hands: bool = field(default=False, init=False)
    _late: bool = field(default=False, init=False)
    """The alarm rang while we waited for bytes."""
    _body_seconds: float = field(default=0.0, init=False)
    """How long we have waited for the present body."""
    _expected: bool = field(default=False, init=False)
    """The client waits for a 100 before it sends its body."""
    _watched: bool = field(default=False, init=False)
    _gone: bool = field(default=False, init=False)
    _refused: bool = field(default=False, init=False)
    _cut: bool = field(default=False, init=False)
    """An answer was begun, and not ended yet."""
    _hang_up: Callable[[], None] | None = field(default=None, init=False)
    """Whom a disconnect is told, while an answer is under way."""

    def __attrs_post_init__(self) -> None:
        self._guard = Guard(self.house.settings.header_bytes_max)
        self.wire = wire_of(self.stream, self.house.settings.write_seconds, self._let_go)
        self.alarm = self.house.alarms.new()
        self.now = self.house.alarms.now
        self._idle_since = self.now()

    # Its life

    async def run(self) -> None:
        """Serve the connection to its end; raises nothing but cancellation."""
        self.house.connections.add(self)
        try:
            # a connection has one request at a time, and none after a hang-up: one scope does for all of them
            with self._scope, contained(self.house.failed), suppress(Gone):
                if len(self.house.connections) > self.house.limits.connections_max:
                    await self._hand_on(b"")  # it is turned away there
                elif await self._shake_hands():
                    await (self._hand_on(b"") if _speaks_http2(self.stream) else self._serve())
        finally:
            self.house.connections.discard(self)
            self.wire.close(reset=self._looks_whole)

    @property
    def _looks_whole(self) -> bool:
        """An old client would take what it has of a cut answer for all of it, if the connection just closed."""
        return self._cut and not self.chunks

    async def _shake_hands(self) -> bool:
        if not isinstance(self.stream, trio.SSLStream):
            return True
        if self.house.going_down:
            return False
        self._shaking_hands = True
        try:
            with (
                trio.move_on_after(self.house.settings.header_seconds),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await self.stream.do_handshake()
                return True
        finally:
            self._shaking_hands = False
        return False

    async def _serve(self) -> None:
        self._watched = True
        self.house.hangups.add(self.wire.sock, self._left)
        try:
            while head := await self._head():
                if self._guard.stage == "upgrading":
                    await self._hand_on(head)
                    return
                complete = await self._answer()
                self.house.hangups.unwatch(self.wire.sock)
                if not complete or not self._next_request():
                    break
        except Refused as refused:
            await self.refuse(refused)
        if not self._looks_whole:
            await self._linger()
        if not self._cut:
            await self.wire.say_goodbye()

    async def _hand_on(self, read: bytes) -> None:
        """Have the other door's connection go on from here."""
        self._let_go()
        self.wire.hand_on()
        self.house.connections.discard(self)
        await Connection(self.house, self.stream, read + self._guard.rest()).run()

    def stop_if_idle(self) -> None:
        """The server goes down: close, unless a request is under way."""
        if self._reading:
            self.wire.wake()
        elif self._shaking_hands:
            self.cancel()

    def _left(self) -> None:
        """The client has left; what it sent before is still read where no answer is under way."""
        self._gone = True
        if self._hang_up is not None:
            try:
                self._hang_up()
            finally:
                self.wire.close()  # ends what is being read or sent

    def _let_go(self) -> None:
        """Nothing of the server's knows this connection any more."""
        self.alarm.off()
        if self._watched:
            self._watched = False
            self.house.hangups.remove(self.wire.sock)

    # Reading

    async def _head(self) -> bytes:
        """Wait for the head of a request; `b""` if none comes.

        Raises:
            Refused: it is not let in, or comes too slowly.
        """
        guard, settings = self._guard, self.house.settings
        seconds = settings.keep_alive_seconds if self._answered else settings.header_seconds
        due, begun = self._idle_since + seconds, False
        while not (head := guard.take()):
            if not begun and not guard.idle:
                due, begun = self.now() + settings.header_seconds, True
            data = await self._read_between(due)
            if data is None and not guard.idle and not self.house.going_down:
                raise Refused(408, TOO_SLOW)
            if not data:
                return b""
            guard.feed(data)
        return head

    async def _read_between(self, due: float) -> bytes | None:
        """Read outside of an answer; `None` if it is time to stop, or the server goes down."""
        if self.house.going_down:
            return None
        self.alarm.set(due, self.wire.wake)
        self._reading = True
        try:
            return await self.wire.read()
        finally:
            self._reading = False
            self.alarm.off()

    async def whole_body(self, bytes_max: int, room: Room | None) -> bytes:
        """Read the body of the present request.

        Raises:
            Rejected: longer than `bytes_max` (413), too slow (408), badly framed (400), or without room (503).
        """
        guard, taken = self._guard, 0
        try:
            first = guard.take_body() if guard.stage == "body" else b""
            if guard.stage == "read":
                self._watch()
                guard.forget_head()
                if len(first) <= bytes_max:
                    return first  # nearly always: it came with its head
            parts: list[bytes] = []
            received = 0
            part: bytes | None = first
            while part is not None:
                received += len(part)
                if received > bytes_max:
                    raise too_large(bytes_max)
                if part:
                    parts.append(part)
                if guard.body_over:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
                if room is not None:
                    room.take(len(part))
                    taken += len(part)
                part = await self.read_body()
        except Refused as refused:
            self._refused = self.closing = True
            raise Rejected(Kind.BAD_REQUEST, refused.message, status=refused.status) from None
        finally:
            if taken and room is not None:
                room.give_back(taken)
        self._left()
        await trio.lowlevel.checkpoint()  # what a hang-up cancels ends here
        raise cut_short()

    async def read_body(self) -> bytes | None:
        """Read some of the body; `b""` at its end, `None` if the client has left in it.

        Raises:
            Refused: it comes too slowly, or its framing is broken.
        """
        guard = self._guard
        if guard.stage != "body":
            return b""
        part = guard.take_body()
        if guard.pending_bytes and not guard.body_over:
            await trio.lowlevel.checkpoint()  # many small chunks were read at once: others get their turn
        while not part and not guard.body_over:
            data = await self._more_body()
            if not data:
                return None  # cut short
            part = guard.take_body(data)
        if guard.body_over:
            self._watch()
        return part

    async def _more_body(self) -> bytes:
        guard, settings = self._guard, self.house.settings
        if self._expected and not guard.body_bytes and not guard.pending_bytes:
            self._expected = False
            try:
                await self.wire.send(CONTINUE)
            except Gone:
                return b""
        began, self._late = self.now(), False
        due = began + upload_seconds(settings, guard.body_bytes) - self._body_seconds
        self.alarm.set(due, self._ring)
        try:
            data = await self.wire.read(soon=True)
        finally:
            self.alarm.off()
        self._body_seconds += self.now() - began
        if data is None and self._late:
            raise Refused(408, TOO_SLOW)
        return data or b""

    def _ring(self) -> None:
        self._late = True
        self.wire.wake()

    def _watch(self) -> None:
        """Nobody reads for now."""
        if self._watched:
            self.house.hangups.watch(self.wire.sock)

    async def _linger(self) -> None:
        """Read on and drop, so that the client gets to see the answer that ended the connection.

        Closing a socket with unread bytes resets it, and the client might never see what was sent before.
        """
        self.wire.finish()
        guard, limit = self._guard, self.house.limits.body_bytes_max
        # read in any case: if the server goes down, nothing more is
        stray = self.wire.read_now() or guard.pending_bytes or self._refused
        if guard.stage != "body" and not stray:
            return
        seconds = STRAY_SECONDS if self._refused else self.house.settings.body_seconds_min
        due = self.now() + seconds
        while limit > 0 and (data := await self._read_between(due)):
            limit -= len(data)

    # Answering

    def _answer(self) -> Awaitable[bool]:
        """Note what the head that was read says of its answer; gives what answers, true if all of it was sent."""
        guard, self._cut = self._guard, True
        head = guard.head
        assert head is not None  # noqa: S101 - for the type checker
        headers = head.headers
        self.chunks = chunks = head.version == "1.1"
        self.closing = (
            not chunks
            or ("connection" in headers and _says_close(headers["connection"]))
            or self._answered + 1 >= self.house.settings.keep_alive_requests
        )
        self._expected = chunks and "expect" in headers
        self._body_seconds = 0.0
        if guard.stage == "read":
            self._watch()
        return self._fork(head)

    def _next_request(self) -> bool:
        """The answer is complete: make ready for another request; false if none may follow."""
        guard, self._cut = self._guard, False
        if self.closing or self._gone or guard.stage != "read" or self.house.going_down:
            return False
        guard.next_request()
        self._answered += 1
        self._idle_since = self.now()
        return True

    def _fork(self, head: Head) -> Awaitable[bool]:
        """Take the fork; gives what answers, which is true if the whole answer was sent."""
        door = self.house.door
        if door is None:
            return self._let_app_answer(head, None)
        path, _, query = head.target.partition("?")
        asked = FastRequest(door.new_id(), head.method, path, query, head.headers, self)
        found = fork(door, asked)
        if isinstance(found, Path):
            return self._respond(door, found, asked)
        if found is not None:
            return self._send_whole(found, head.method)
        return self._let_app_answer(head, asked.id)

    async def _respond(self, door: Door, path: Path, asked: FastRequest) -> bool:
        constant = CORS_LINES if is_api(asked.path) else b""
        reply = FastReply(self, constant, headers=named(asked.id, path.dialect))
        self._hang_up = reply.hang_up
        if self._gone:
            reply.hang_up()
        try:
            await door.respond(door.gateway, path, asked, reply)
        except Exception as error:  # noqa: BLE001 - its words are in its own log; here it must not get further
            self.house.failed(error)
        finally:
            self._hang_up = None
            self.alarm.off()
        if not reply.started and not self._gone:
            self.closing = True
            return await self._send_whole(BROKEN, asked.method)
        return reply.complete

    async def _let_app_answer(self, head: Head, request_id: str | None) -> bool:
        try:
            client, server = self.wire.sock.getpeername()[:2], self.wire.sock.getsockname()[:2]
        except OSError:  # the client has reset the connection
            raise Gone from None
        tls = isinstance(self.stream, trio.SSLStream)
        scope = scope_of(head, self.house.state, tls=tls, client=client, server=server)
        if request_id is not None:
            scope[REQUEST_ID] = request_id
        answer = AppAnswer(self, head)
        self._hang_up = answer.hang_up
        if self._gone:
            answer.hang_up()
        try:
            await answer.run(scope)
        finally:
            self._hang_up = None
            self.alarm.off()
        return answer.complete

    async def _send_whole(self, whole: Whole, method: str) -> bool:
        length = b"" if whole.status in BODILESS else b"content-length: %d\r\n" % len(whole.body)
        headers = lines(checked(whole.headers))
        body = b"" if method == "HEAD" else whole.body
        await self.wire.send(
            b"".join((self.opening(whole.status, whole=True), headers, length, b"\r\n", body))
        )
        return True

    def opening(self, status: int, *, whole: bool) -> bytes:
        """Give the status line and what the connection itself has to say.

        Args:
            status: of the answer.
            whole: all of it leaves now, so nobody reads on in the request's body.
        """
        if whole and self._guard.stage == "body":
            self._drop_body()
        if self._guard.stage == "body" or self.house.going_down:
            self.closing = True
        return status_line(status) + self.house.dates.line() + (CLOSE if self.closing else b"")

    def _drop_body(self) -> None:
        """Drop a body that nobody asked for, if all of it is here: then the connection can be kept."""
        guard = self._guard
        with suppress(Refused):
            guard.take_body()
            if not guard.body_over and not self._expected and (data := self.wire.read_now()):
                guard.take_body(data)

    async def refuse(self, refused: Refused) -> None:
        """Answer a request that is let go no further."""
        self._refused = self.closing = True
        await self.wire.send(self.house.refusal(refused, self._guard))
        self._cut = False

    def cancel(self) -> None:
        """Cancel the request, and with it the connection."""
        self._scope.cancel()

    def beside(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run something beside the request; its errors stay inside."""

        async def run() -> None:
            with contained(self.house.failed):
                await task()

        if self.house.helpers is not None:
            self.house.helpers.start_soon(run)


def _speaks_http2(stream: Stream) -> bool:
    return isinstance(stream, trio.SSLStream) and speaks_http2(stream)


def _says_close(connection: str) -> bool:
    return "close" in (token.strip() for token in connection.lower().split(","))
