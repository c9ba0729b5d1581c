"""Bytes to and from a provider over one socket, plain or under TLS, without ever blocking.

Everything but connecting is synchronous: a wire takes and gives what is possible now, says when it would block,
and the caller waits for the socket where it likes to. So nothing can be cancelled in the middle of it, and nobody
pays for a wait that is not needed.

TLS runs on buffers in memory and not on the socket: one `recv` brings as many records as there are, where
OpenSSL on a socket makes two system calls for each. With records of the size of one event that is the larger part.
"""

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from math import inf
from typing import Final, NamedTuple, Protocol

import trio
from attrs import define, field

from proxy.readiness import Meanwhile, Watch, readiness

READ_BYTES: Final = 65_536
"""One read takes at most so much."""

RECORD_BYTES: Final = 16_384
"""Content of one TLS record at most; also what is worth copying to save a second system call."""

UNACKNOWLEDGED_MS: Final = 30_000
"""A provider that takes no byte of a request for that long is gone; the kernel then breaks the connection."""


class Address(NamedTuple):
    """Where an origin is; connections to equal addresses may stand in for each other."""

    host: str
    port: int
    tls: bool


class Unreachable(Exception):
    """No connection came about.

    Attributes:
        in_time: whether that was known before the time for it was over.
    """

    def __init__(self, message: str, *, in_time: bool = True) -> None:
        super().__init__(message)
        self.in_time = in_time


class Wire(Protocol):
    """One connection's bytes. What breaks it is an `OSError`; TLS's errors are of that kind too."""

    def receive(self) -> bytes | None:
        """What has arrived, at most `READ_BYTES`; `b""` at the end, `None` if that would block."""
        ...

    def send(self, head: bytes, body: bytes) -> bool:
        """Send both, as far as it does not block; whether all has left. The rest is left to `flush`."""
        ...

    def flush(self) -> bool:
        """Send on, as far as it does not block; whether all has left."""
        ...

    def quiet(self) -> bool:
        """Whether it is open and there is nothing to read: only such a connection may be used again."""
        ...

    def readable(self, until: float = inf, meanwhile: Meanwhile | None = None) -> Awaitable[bool]:
        """Wait until `receive` may give something, and take nothing; false if it was not so in time.

        `meanwhile`: see `readiness.Watch.wait`.
        """
        ...

    def writable(self) -> Awaitable[None]:
        """Wait until `flush` may get on."""
        ...

    def close(self) -> None:
        """Close at once; whoever waits is woken by `trio.ClosedResourceError`."""
        ...


@define(eq=False)
class Plain:
    """A socket that is connected and does not block."""

    _socket: socket.socket
    _fd: int = field(init=False)
    _watch: Watch = field(init=False)
    _left: memoryview = field(default=memoryview(b""), init=False)

    def __attrs_post_init__(self) -> None:
        self._fd = self._socket.fileno()
        self._watch = readiness().watch(self._fd)

    def receive(self) -> bytes | None:
        """See `Wire`."""
        watch = self._watch
        if not watch.readable:
            return None
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            watch.drained()
            return None
        if len(data) < READ_BYTES:
            watch.drained()
        return data

    def send(self, head: bytes, body: bytes) -> bool:
        """See `Wire`."""
        size = len(head) + len(body)
        try:
            sent = (
                self._socket.send(head + body) if size <= RECORD_BYTES else self._socket.sendmsg((head, body))
            )
        except BlockingIOError:
            sent = 0
        if sent == size:
            return True
        # a body may be large: it is not copied unless the head did not fit, which a new buffer has room for
        self._left = (
            memoryview(body)[sent - len(head) :] if sent >= len(head) else memoryview(head + body)[sent:]
        )
        return self.flush()

    def flush(self) -> bool:
        """See `Wire`."""
        try:
            while self._left:
                self._left = self._left[self._socket.send(self._left) :]
        except BlockingIOError:
            return False
        self._left = memoryview(b"")  # lets go of the body
        return True

    def quiet(self) -> bool:
        """See `Wire`. The socket itself is asked: what we were told of it is as old as the loop's last turn."""
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def suspect(self) -> None:
        """Have the next `receive` ask the socket itself: what we were told of it is as old as the loop's last turn."""
        self._watch.readable = True

    def readable(self, until: float = inf, meanwhile: Meanwhile | None = None) -> Awaitable[bool]:
        """See `Wire`."""
        return self._watch.wait(until, meanwhile)

    def writable(self) -> Awaitable[None]:
        """See `Wire`."""
        if self._fd == -1:
            raise trio.ClosedResourceError("this connection was closed")
        return trio.lowlevel.wait_writable(self._fd)  # noqa: ASYNC105 - saves a coroutine per wait

    def close(self) -> None:
        """See `Wire`."""
        if self._fd != -1:
            self._watch.forget()
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1  # the number may soon be another socket's
            self._socket.close()


@define(eq=False)
class Tls:
    """TLS over a plain wire."""

    _plain: Plain
    _context: ssl.SSLContext
    _host: str
    _received: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _encrypted: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _tls: ssl.SSLObject = field(init=False)
    _left: memoryview = field(default=memoryview(b""), init=False)
    _ended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._tls = self._context.wrap_bio(self._received, self._encrypted, server_hostname=self._host)

    async def handshake(self) -> None:
        """Agree on keys, and see that the other side is who it should be.

        Raises:
            OSError: it is not, or the connection broke.
        """
        done = False
        while not done:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush_encrypted()  # tells the other side what it is that we do not accept
                raise
            while not self._flush_encrypted():
                await self.writable()
            if not done:
                await self.readable()
                self._take()
        if self._tls.selected_alpn_protocol() not in (None, "http/1.1"):
            raise ssl.SSLError("it speaks another protocol than HTTP/1.1")

    def receive(self) -> bytes | None:
        """See `Wire`."""
        if self._ended:
            return b""
        if not self._has_more() and not self._take():
            return None
        parts: list[bytes] = []
        try:
            self._decrypt(parts)
        except ssl.SSLError:
            if not parts:  # else it is found again at the next read
                raise
        if self._encrypted.pending:
            self._flush_encrypted()  # an answer to a message of TLS itself
        if not parts:
            return b"" if self._ended else None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _decrypt(self, parts: list[bytes]) -> None:
        """Decrypt what was received; there is no more of it than of what one read of the socket brings."""
        try:
            while data := self._tls.read(RECORD_BYTES):
                parts.append(data)
                if not self._has_more():
                    return
        except ssl.SSLWantReadError:
            return  # part of a record, or a message of TLS itself
        except ssl.SSLZeroReturnError:
            pass
        self._ended = True  # the other side said so; a connection that is just cut raises

    def _has_more(self) -> int:
        return self._received.pending or self._tls.pending()

    def send(self, head: bytes, body: bytes) -> bool:
        """See `Wire`."""
        if len(head) + len(body) <= RECORD_BYTES:
            self._tls.write(head + body)
        else:
            self._tls.write(head)
            self._left = memoryview(body)
        return self.flush()

    def flush(self) -> bool:
        """See `Wire`."""
        while self._flush_encrypted():
            if not self._left:
                self._left = memoryview(b"")  # lets go of the body
                return True
            # piece by piece: a body is not held a second time in whole
            self._left = self._left[self._tls.write(self._left[:READ_BYTES]) :]
        return False

    def quiet(self) -> bool:
        """See `Wire`. Messages of TLS itself may come at any time; they are taken note of, and are not data."""
        try:
            self._plain.suspect()
            return not self._ended and self.receive() is None
        except OSError:
            return False

    def readable(self, until: float = inf, meanwhile: Meanwhile | None = None) -> Awaitable[bool]:
        """See `Wire`."""
        return self._plain.readable(until, meanwhile)

    def writable(self) -> Awaitable[None]:
        """See `Wire`."""
        return self._plain.writable()

    def close(self) -> None:
        """See `Wire`. The other side is told if the kernel takes that at once; nothing waits for its word."""
        with suppress(OSError):
            self._tls.unwrap()
        with suppress(OSError):
            self._flush_encrypted()
        self._plain.close()

    def _take(self) -> bool:
        """Take what the socket has; whether it had anything, its end included."""
        data = self._plain.receive()
        if data is None:
            return False
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()
        return True

    def _flush_encrypted(self) -> bool:
        if not self._plain.flush():
            return False
        return not self._encrypted.pending or self._plain.send(b"", self._encrypted.read())


async def connect(address: Address, context: ssl.SSLContext, seconds: float) -> Wire:
    """Connect, and agree on keys where there is TLS.

    Args:
        address: of the origin.
        context: for TLS: whom to trust.
        seconds: for name look-up and TCP together, and again for TLS.

    Raises:
        Unreachable: it did not come about.
    """
    try:
        with _within(seconds, "no connection in time"):
            plain = Plain(await _tcp(address.host, address.port))
        return await _tls(plain, context, address.host, seconds) if address.tls else plain
    except (OSError, ValueError) as error:  # ValueError: a name that can be none
        raise Unreachable(str(error)) from error


@contextmanager
def _within(seconds: float, message: str) -> Iterator[None]:
    with trio.move_on_after(seconds) as patience:
        yield
    if patience.cancelled_caught:
        raise Unreachable(message, in_time=False)


async def _tls(plain: Plain, context: ssl.SSLContext, host: str, seconds: float) -> Tls:
    try:
        wire = Tls(plain, context, host)
        with _within(seconds, "no TLS in time"):
            await wire.handshake()
    except BaseException:
        plain.close()
        raise
    return wire


async def _tcp(host: str, port: int) -> socket.socket:
    """A connected socket that does not block; names with several addresses are tried as RFC 6555 says."""
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        family = None
    if family is None:
        stream = await trio.open_tcp_stream(host, port)
        return _ready(socket.socket(fileno=stream.socket.detach()))
    made = _ready(socket.socket(family, socket.SOCK_STREAM))
    try:
        # there is but one address: no tasks that race each other are needed
        if (code := made.connect_ex((host, port))) == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(made)
            code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except BaseException:
        made.close()
        raise
    if code:
        made.close()
        raise OSError(code, os.strerror(code))
    return made


def _ready(made: socket.socket) -> socket.socket:
    """Have it never block, send at once, and notice a provider that is dead or has stopped reading."""
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            if hasattr(socket, name):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except BaseException:
        made.close()
        raise
    return made


_OPTIONS: Final = (
    ("TCP_KEEPIDLE", 30),  # these three for the long silence of a reasoning model
    ("TCP_KEEPINTVL", 10),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS),  # Linux; elsewhere our own deadlines alone decide
    ("TCP_NOTSENT_LOWAT", 0),  # the system's own; trio sets 16 kB, and a body would leave in pieces of that
)
