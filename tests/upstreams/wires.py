"""Wires and connections in memory: what a provider sends is a list of pieces, and what becomes of it is noted."""

from math import inf

import trio
from attrs import define, field


@define(eq=False)
class FakeWire:
    """Gives pieces: bytes, `None` for a moment of silence, an exception to raise; then the end.

    Attributes:
        after: how much must have been sent before anything is there to read.
        room: bytes that it takes before sending would block; each wait for room makes `room_again` more.
    """

    pieces: list
    room: float = float("inf")
    room_again: int = 0
    after: int = 0
    ends: bool = True
    sent: bytes = b""
    left: bytes = b""
    closed: bool = False
    receives: int = 0
    waits: int = 0

    def receive(self):
        assert not self.closed
        self.receives += 1
        if not self.pieces:
            return b"" if self.ends else None
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def send(self, head, body):
        assert not self.left
        self.left = head + body
        return self.flush()

    def flush(self):
        if self.closed:
            raise BrokenPipeError
        size = int(min(self.room, len(self.left)))
        self.sent, self.left, self.room = self.sent + self.left[:size], self.left[size:], self.room - size
        return not self.left

    def quiet(self):
        return not self.pieces and not self.ends and not self.closed

    async def readable(self, until=inf, _meanwhile=None):
        await self._wait()
        while len(self.sent) < self.after:
            await trio.lowlevel.checkpoint()
        if not self.pieces and not self.ends:
            await trio.sleep_until(until)
            return False
        return True

    async def writable(self):
        await self._wait()
        self.room += self.room_again
        if not self.room:
            await trio.sleep_forever()

    async def _wait(self):
        if self.closed:
            raise trio.ClosedResourceError
        self.waits += 1
        await trio.lowlevel.checkpoint()

    def close(self):
        self.closed = True


@define(eq=False)
class FakeConnection:
    wire: FakeWire
    reused: bool = False
    fate: list = field(factory=list)

    def keep(self):
        assert not self.wire.closed
        self.fate.append("kept")

    def close(self):
        if not self.wire.closed:
            self.fate.append("closed")
            self.wire.close()
