"""Where the answer to one request goes: what has left, who still listens, and when silence has lasted too long.

A client that hangs up cancels its request, or silences its reply, whichever the request path has chosen by
then. Silence writes nothing and keeps nothing. Frames and heartbeats take turns, so that a heartbeat can only
stand between whole frames; one that is being sent is never cancelled, for half a chunk on the wire would end the
connection.

`DoorReply` speaks through ASGI's `send`; the fast door has its own over the same rules.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final

import trio
from attrs import frozen
from msgspec import Struct, field

from proxy.doors.heads import check
from proxy.types import WRITTEN

STREAM_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
"""What a stream is announced as when a heartbeat precedes its start; headers noted by then win."""

Send = Callable[[dict[str, Any]], Awaitable[None]]


@frozen
class Later:
    """Something to await; a coroutine would complain if the task that should is cancelled instead."""

    _run: Callable[[], Awaitable[None]]

    def __await__(self) -> Generator[Any, Any, None]:
        return self._run().__await__()


class Standing(Struct, eq=False, kw_only=True):
    """How an answer stands: the part of `proxy.types.Reply` that moves no bytes.

    A struct, since one is made for each request.

    Attributes:
        headers: what leaves with the status line whatever it is; grows by what is noted.
        started: the status line has left; errors must go in-band from here on.
        client_gone: the client has hung up, or stopped reading past the write deadline.
        silent_since: when something was last written, or heartbeats were last asked for.
    """

    headers: dict[str, str] = {}
    _status: int | None = None
    _own_headers: Mapping[str, str] = {}
    started: bool = False
    _ending: bool = False
    client_gone: bool = False
    _mute: bool = False
    _when_gone: Callable[[], None] | None = None
    silent_since: float = 0.0

    def hang_up(self) -> None:
        """The client is gone; once the end is on its way a disconnect says nothing about the client."""
        if not self.client_gone and not self._ending:
            self.client_gone = True
            self._apply()

    def mute_when_gone(self, mute: bool) -> None:
        """Choose what a hang-up does, also one that has happened."""
        self._mute = mute
        if self.client_gone:
            self._apply()

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once when the client is gone while the reply is to fall mute."""
        self._when_gone = callback
        if self.client_gone:
            self._apply()

    def _apply(self) -> None:
        if not self._mute:
            self._cancel()
        elif self._when_gone is not None:
            callback, self._when_gone = self._when_gone, None
            callback()

    def _cancel(self) -> None:
        raise NotImplementedError

    def note(self, headers: Mapping[str, str]) -> None:
        """Add headers to those that leave with the status line, where they are checked."""
        self.headers.update(headers)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Note status and headers; dropped if a heartbeat has sent the status line already."""
        if not self.started:
            self._status, self._own_headers = status, headers

    def _announce_stream(self) -> None:
        """A heartbeat comes first: only a stream can be what follows."""
        if self._status is None:
            self._status, self._own_headers = 200, {**STREAM_HEADERS, **self.headers}

    def _all_headers(self) -> dict[str, str]:
        """Headers as they leave, checked once for all of them; a bad one leaves the answer where it was.

        The good ones are let go of: they are wanted once, and the rest of the answer may take an hour.

        Raises:
            ValueError: one that could break out of its line.
        """
        headers = {**self.headers, **self._own_headers}
        check(headers)
        self.headers, self._own_headers = {}, {}
        return headers


class DoorReply(Standing, eq=False):
    """Implements `proxy.types.Reply` over ASGI's `send`.

    Args:
        send: ASGI's.
        nursery: the request's; its cancel scope is what a hang-up cancels, heartbeats run in it.
    """

    _send: Send
    nursery: trio.Nursery
    _lock: trio.Lock = field(default_factory=trio.Lock)

    def _cancel(self) -> None:
        self.nursery.cancel_scope.cancel()

    def write(self, chunk: bytes) -> Awaitable[None]:
        """Write whole frames; nothing for `b""` or a client that is gone."""
        return Later(partial(self._write_in_turn, chunk)) if chunk else WRITTEN

    async def _write_in_turn(self, chunk: bytes) -> None:
        if not self.client_gone:
            async with self._lock:
                await self._write(chunk)
        elif not self._mute:
            await trio.lowlevel.checkpoint()  # what a hang-up cancels ends here

    async def _write(self, chunk: bytes) -> None:
        await self._begin()
        if not self.client_gone:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self.silent_since = trio.current_time()

    async def end(self, tail: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Write the withheld end and finish; an answer of which nothing has left gets its length."""
        if self.client_gone:
            return
        async with self._lock:
            self._ending = True
            if not self.started:
                length = {"content-length": str(len(tail))}
                self._own_headers = {**self._own_headers, **(headers or {}), **length}
            await self._begin()
            await self._send({"type": "http.response.body", "body": tail, "more_body": False})

    async def _begin(self) -> None:
        if self.started:
            return
        assert self._status is not None, "an answer starts before it is written"  # noqa: S101 - our own mistake
        headers = self._all_headers()
        self.started = True
        lines = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": self._status, "headers": lines})

    def keep_alive(self, heartbeat: bytes, after_seconds: float) -> "Heartbeats":
        """Within this context, write a heartbeat (and before it status 200) after each such silence."""
        return Heartbeats(self, heartbeat, after_seconds)

    async def beat(self, heartbeat: bytes, wanted: Callable[[], bool] = lambda: True) -> None:
        """Write a heartbeat, and before the first byte of all a stream's status and headers.

        Args:
            heartbeat: what to write.
            wanted: asked when it is our turn: by then the answer may have failed, and its error be on its way.
        """
        async with self._lock:
            if not self._ending and wanted():
                self._announce_stream()
                await self._write(heartbeat)


class Heartbeats(Struct, eq=False):
    """The context of `DoorReply.keep_alive`; without a heartbeat it does nothing."""

    _reply: DoorReply
    _heartbeat: bytes
    _after_seconds: float
    _over: bool = False
    _pause: trio.CancelScope | None = None

    async def __aenter__(self) -> None:
        if self._heartbeat:
            self._reply.silent_since = trio.current_time()
            self._reply.nursery.start_soon(self._run)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        if self._pause is not None:
            self._pause.cancel()

    async def _run(self) -> None:
        while not self._over:
            due = self._reply.silent_since + self._after_seconds
            if trio.current_time() >= due:
                await self._reply.beat(self._heartbeat, lambda: not self._over)
                continue
            # only the pause is cancelled, never a heartbeat that is on its way
            with trio.CancelScope() as self._pause:
                await trio.sleep_until(due)
