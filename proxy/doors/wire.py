"""The bytes of one client: read and sent at once where the kernel lets us, waited for where it does not.

A plain socket is tried first and waited for after, which is what a stream of trio's does with two checkpoints more.
TLS goes through trio's own stream. Above them nobody can tell the two apart.
"""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio
from attrs import define, field

from proxy.doors.house import LINGER_NOT, READ_BYTES, SEND_BYTES
from proxy.readiness import Watch, readiness

AT_ONCE_MAX: Final = 16
"""After so many reads and sends that did not wait, others get their turn (and cancellation is seen)."""

GOODBYE_SECONDS: Final = 1.0
"""A client that has no room for two dozen bytes hears no goodbye."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Gone(Exception):
    """The client has left, or has taken nothing for too long; its connection is closed."""


Bytes = bytes | memoryview


class Wire(Protocol):
    """One client's connection, as bytes; for one task that reads and one that sends.

    Attributes:
        sock: what they come over.
    """

    sock: trio.socket.SocketType

    async def read(self, *, soon: bool = False) -> bytes | None:
        """Wait for bytes; `b""` if the client has gone, `None` if `wake` was called.

        Args:
            soon: more is on its way, so that trying before waiting pays.
        """
        ...

    def read_now(self) -> bytes:
        """Read what is there; `b""` if nothing is, or where that cannot be told without waiting."""
        ...

    def wake(self) -> None:
        """End the present wait for bytes."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of it; cancelled in the middle, the connection is closed with a reset.

        Raises:
            Gone: the client has left, or has taken nothing for `write_seconds`.
        """
        ...

    def send_now(self, data: bytes) -> Bytes:
        """Send what can be sent without waiting; gives the rest, for `send_rest`.

        Whoever sends much in this way lets others have their turn themselves.

        Raises:
            Gone: the client has left.
        """
        ...

    async def send_rest(self, rest: Bytes) -> None:
        """Send what `send_now` could not; as `send`."""
        ...

    def hand_on(self) -> None:
        """Somebody else reads and sends from now on."""
        ...

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        ...

    async def say_goodbye(self) -> None:
        """Close after the end of an answer, and over TLS say so; waits for nobody's goodbye."""
        ...

    def close(self, *, reset: bool = False) -> None:
        """Close at once; with `reset` the kernel forgets what it could not deliver. May be called again."""
        ...


def close(sock: trio.socket.SocketType, *, reset: bool) -> None:
    """Close a socket; synchronous, so that it works in a cancelled task as well."""
    if reset and sock.fileno() != -1:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    sock.close()


async def say_goodbye(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Close with TLS's own word for the end, without which an end cannot be told from a cut; waits for no reply."""
    with (
        trio.move_on_after(GOODBYE_SECONDS),
        suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
    ):
        await stream.aclose()


@define(eq=False)
class PlainWire:
    """A plain socket."""

    sock: trio.socket.SocketType
    _write_seconds: float
    _before_close: Callable[[], None]
    _descriptor: int = field(init=False)
    """-1 once it is closed: the number may be somebody else's by then."""
    _watch: Watch = field(init=False)
    _at_once: int = 0

    def __attrs_post_init__(self) -> None:
        self._descriptor = self.sock.fileno()
        self._watch = readiness().watch(self._descriptor)

    async def read(self, *, soon: bool = False) -> bytes | None:
        """Wait for bytes; `b""` if the client has gone, `None` if `wake` was called."""
        watch = self._watch
        if soon and watch.readable and self._at_once < AT_ONCE_MAX and (data := self.read_now()):
            self._at_once += 1
            return data
        try:
            while await watch.wait():
                self._at_once = 0
                try:
                    data = os.read(self._descriptor, READ_BYTES)
                except BlockingIOError:
                    watch.drained()
                else:
                    if len(data) < READ_BYTES:
                        watch.drained()
                    return data
        except (OSError, trio.ClosedResourceError):
            return b""
        return None

    def wake(self) -> None:
        """End the present wait for bytes."""
        self._watch.wake()

    def read_now(self) -> bytes:
        """Read what is there."""
        try:
            return os.read(self._descriptor, READ_BYTES) if self._descriptor >= 0 else b""
        except BlockingIOError:
            self._watch.drained()
        except OSError:
            pass  # the next wait finds it
        return b""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        if self._at_once >= AT_ONCE_MAX:
            self._at_once = 0
            await trio.lowlevel.checkpoint()
        self._at_once += 1
        if rest := self.send_now(data):
            await self.send_rest(rest)

    def send_now(self, data: bytes) -> Bytes:
        """Send what can be sent without waiting."""
        if self._descriptor < 0:
            raise Gone
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            raise Gone from None
        return memoryview(data)[sent:] if sent < len(data) else b""

    async def send_rest(self, rest: Bytes) -> None:
        """Send what the kernel had no room for; the deadline begins anew with each byte that it takes."""
        self._at_once, deadline = 0, trio.CancelScope()
        try:
            while rest:
                with trio.move_on_after(self._write_seconds) as deadline:
                    await trio.lowlevel.wait_writable(self._descriptor)
                if deadline.cancelled_caught or self._descriptor < 0:
                    break
                with suppress(BlockingIOError):
                    rest = rest[os.write(self._descriptor, rest) :]
        except (OSError, trio.ClosedResourceError):
            pass
        except BaseException:
            # cancelled in the middle: whatever would follow could be taken for the rest of this
            self.close(reset=True)
            raise
        if rest:
            self.close(reset=deadline.cancelled_caught)
            raise Gone

    def hand_on(self) -> None:
        """Somebody else reads and sends from now on."""
        self._watch.forget()

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(OSError):
            self.sock.shutdown(trio.socket.SHUT_WR)

    async def say_goodbye(self) -> None:
        """Close after the end of an answer."""
        self.close()

    def close(self, *, reset: bool = False) -> None:
        """Close at once."""
        if self._descriptor >= 0:
            self._before_close()
            self._watch.forget()
            self._descriptor = -1
            close(self.sock, reset=reset)


@define(eq=False)
class TlsWire:
    """Trio's TLS over a socket."""

    _stream: trio.SSLStream[trio.SocketStream]
    _write_seconds: float
    _before_close: Callable[[], None]
    sock: trio.socket.SocketType = field(init=False)
    _waiting: trio.CancelScope | None = None
    _closed: bool = False

    def __attrs_post_init__(self) -> None:
        self.sock = self._stream.transport_stream.socket

    async def read(self, *, soon: bool = False) -> bytes | None:  # noqa: ARG002 - TLS cannot try without waiting
        """Wait for bytes; `b""` if the client has gone, `None` if `wake` was called."""
        try:
            with trio.CancelScope() as self._waiting:
                return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        finally:
            self._waiting = None
        return None

    def wake(self) -> None:
        """End the present wait for bytes."""
        if self._waiting is not None:
            self._waiting.cancel()

    def read_now(self) -> bytes:
        """It cannot be told without waiting."""
        return b""

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await self.send_rest(data)

    def send_now(self, data: bytes) -> Bytes:
        """TLS cannot try without waiting."""
        return data

    async def send_rest(self, data: Bytes) -> None:
        """Send all of it."""
        try:
            for at in range(0, len(data), SEND_BYTES):
                with trio.move_on_after(self._write_seconds) as deadline:
                    await self._stream.send_all(data[at : at + SEND_BYTES])
                if deadline.cancelled_caught:
                    self.close(reset=True)
                    raise Gone
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close()
            raise Gone from None
        except trio.Cancelled:
            self.close(reset=True)
            raise

    def hand_on(self) -> None:
        """Nothing here knows of the socket but its stream."""

    def finish(self) -> None:
        """Said with the goodbye: on this side of TLS nothing can be read any more after it."""

    async def say_goodbye(self) -> None:
        """Close after the end of an answer, and say so."""
        if not self._closed:
            self._before_close()
            self._closed = True
            await say_goodbye(self._stream)

    def close(self, *, reset: bool = False) -> None:
        """Close at once, without TLS's goodbye, as where an answer was cut."""
        if not self._closed:
            self._before_close()
            self._closed = True
            close(self.sock, reset=reset)


def wire_of(stream: Stream, write_seconds: float, before_close: Callable[[], None]) -> Wire:
    """The wire over a stream as it was accepted.

    Args:
        stream: plain or TLS; after its handshake, if it is kept.
        write_seconds: a client that takes no byte for that long is gone.
        before_close: called once, while the socket still has its number.
    """
    if isinstance(stream, trio.SSLStream):
        return TlsWire(stream, write_seconds, before_close)
    return PlainWire(stream.socket, write_seconds, before_close)
