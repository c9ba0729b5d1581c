"""The fast door's reply: bytes straight to the client, one send for each write, no task and no nursery of its own."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Protocol

import trio
from msgspec import Struct

from proxy.alarms import Alarm
from proxy.doors.heads import CHUNKED, LAST_CHUNK, chunk, lines
from proxy.doors.reply import Later, Standing
from proxy.doors.wire import Bytes, Gone, Wire
from proxy.types import WRITTEN


class Carrier(Protocol):
    """What a reply needs of its connection.

    Attributes:
        wire: where bytes go.
        alarm: nobody else's while the answer is under way.
        chunks: the client understands chunks (HTTP/1.1); an older one reads until the connection is closed.
        now: trio's clock.
    """

    wire: Wire
    alarm: Alarm
    chunks: bool
    now: Callable[[], float]

    def cancel(self) -> None:
        """Cancel the request."""
        ...

    def opening(self, status: int, *, whole: bool) -> bytes:
        """Give the status line and what the connection itself has to say; `whole`: nothing follows."""
        ...

    def beside(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run something beside the request; its errors stay inside."""
        ...


class FastReply(Standing, eq=False):
    """Implements `proxy.types.Reply`.

    Args:
        carrier: the connection.
        constant: more headers, as they are sent; nothing else may carry the same names.

    Attributes:
        complete: the whole answer was handed to the kernel.
    """

    _carrier: Carrier
    _constant: bytes = b""
    complete: bool = False
    _sending: bool = False
    _turn: trio.lowlevel.ParkingLot | None = None

    def _cancel(self) -> None:
        self._carrier.cancel()

    def write(self, chunk: bytes) -> Awaitable[None]:
        """Write whole frames; nothing for `b""` or a client that is gone."""
        if not chunk:
            return WRITTEN
        if self._sending:
            return Later(partial(self._write_in_turn, chunk))
        if not self.client_gone:
            try:
                rest = self._carrier.wire.send_now(self._framed(chunk))
            except Gone:
                self.hang_up()
            else:
                self.silent_since = self._carrier.now()
                if not rest:
                    return WRITTEN
                self._sending = True  # nothing comes between
                return Later(partial(self._send_rest, rest))
        # what a hang-up cancels ends here
        return WRITTEN if self._mute else Later(trio.lowlevel.checkpoint)

    async def _write_in_turn(self, chunk: bytes) -> None:
        await self._wait_turn()
        await self.write(chunk)

    async def _send_rest(self, rest: Bytes) -> None:
        await self._sent(self._carrier.wire.send_rest(rest))
        self.silent_since = self._carrier.now()
        if self.client_gone and not self._mute:
            await trio.lowlevel.checkpoint()

    def _framed(self, data: bytes) -> bytes:
        """A part of the body as it is sent; with the head, where that has not left."""
        chunks = self._carrier.chunks
        framed = b"%x\r\n%b\r\n" % (len(data), data) if chunks else data
        return framed if self.started else self._head(CHUNKED if chunks else b"", whole=False) + framed

    async def end(self, tail: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Write the withheld end and finish; an answer of which nothing has left gets its length."""
        if self._sending:
            await self._wait_turn()
        if self.client_gone:
            return
        self._ending = True
        if not self.started:
            if headers:
                self._own_headers = {**self._own_headers, **headers}
            data = self._head(b"content-length: %d\r\n" % len(tail), whole=True) + tail
        elif self._carrier.chunks:
            data = chunk(tail) + LAST_CHUNK
        else:
            data = tail
        self.complete = await self._send(data)

    def _head(self, framing: bytes, *, whole: bool) -> bytes:
        assert self._status is not None, "an answer starts before it is written"  # noqa: S101 - our own mistake
        headers = self._all_headers()
        self.started = True
        opening = self._carrier.opening(self._status, whole=whole)
        return b"".join((opening, self._constant, lines(headers), framing, b"\r\n"))

    def _send(self, data: bytes) -> Awaitable[bool]:
        self._sending = True
        return self._sent(self._carrier.wire.send(data))

    async def _sent(self, sending: Awaitable[None]) -> bool:
        try:
            await sending
        except Gone:
            self.hang_up()
            return False
        finally:
            self._sending = False
            if self._turn is not None:
                self._turn.unpark()
        return True

    async def _wait_turn(self) -> None:
        """Wait until a heartbeat, or what a heartbeat waits for, is on its way as a whole."""
        if self._turn is None:
            self._turn = trio.lowlevel.ParkingLot()
        while self._sending:
            await self._turn.park()

    def keep_alive(self, heartbeat: bytes, after_seconds: float) -> "FastHeartbeats":
        """Within this context, write a heartbeat (and before it status 200) after each such silence."""
        return FastHeartbeats(self, self._carrier, heartbeat, after_seconds)

    async def beat(self, heartbeat: bytes, wanted: Callable[[], bool] = lambda: True) -> None:
        """Write a heartbeat, and before the first byte of all a stream's status and headers.

        Args:
            heartbeat: what to write.
            wanted: asked when it is our turn: by then the answer may have failed, and its error be on its way.
        """
        if self._sending:
            await self._wait_turn()
        if not self._ending and not self.client_gone and wanted():
            self._announce_stream()
            await self._send(self._framed(heartbeat))
            self.silent_since = self._carrier.now()


class FastHeartbeats(Struct, eq=False):
    """The context of `FastReply.keep_alive`: an alarm, and a task only when it rings."""

    _reply: FastReply
    _carrier: Carrier
    _heartbeat: bytes
    _after_seconds: float
    _over: bool = False

    async def __aenter__(self) -> None:
        if self._heartbeat:
            self._reply.silent_since = self._carrier.now()
            self._set()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        if self._heartbeat:
            self._carrier.alarm.off()

    def _set(self) -> None:
        self._carrier.alarm.set(self._reply.silent_since + self._after_seconds, self._ring)

    def _ring(self) -> None:
        if self._over or self._reply.client_gone:
            return
        if self._carrier.now() < self._reply.silent_since + self._after_seconds:
            self._set()  # something was written meanwhile
        else:
            self._carrier.beside(self._beat)

    async def _beat(self) -> None:
        await self._reply.beat(self._heartbeat, lambda: not self._over)
        if not self._over:
            self._set()
