"""Notices clients who leave: one epoll set for all connections, waited on by one task.

A client that closes, resets or half-closes its connection while its request is answered has left; the reading side
would notice only if it read ahead, with a task of its own for each request. The kernel says it anyway (EPOLLRDHUP).

Descriptors are reused: the moment one is closed, the next accepted connection may get its number. So nothing may come
between asking what happened and telling whose connection it happened to: `dispatch` does both in one synchronous
step, and `remove`, synchronous too, comes before each close.
"""

import select
from collections.abc import Callable
from typing import Final, Protocol

import trio
from attrs import define, field

PEEK_SECONDS: Final = 0.25
"""Where the kernel cannot say it: how often to look past bytes that a client has sent ahead."""

Left = Callable[[], None]


class Hangups(Protocol):
    """What connections see of it."""

    def add(self, sock: trio.socket.SocketType, left: Left) -> None:
        """Call `left`, once or several times, synchronously, when the client has left."""
        ...

    def remove(self, sock: trio.socket.SocketType) -> None:
        """Forget a connection that is about to be closed or handed on."""
        ...

    def watch(self, sock: trio.socket.SocketType) -> None:
        """Nobody reads this connection for now."""
        ...

    def unwatch(self, sock: trio.socket.SocketType) -> None:
        """Somebody reads it again, and will notice."""
        ...

    async def run(self) -> None:
        """Notice, until cancelled."""
        ...


@define(eq=False)
class EpollHangups:
    """The one epoll set."""

    _failed: Callable[[Exception], None]
    _epoll: "select.epoll" = field(init=False)
    _left: dict[int, Left] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, sock: trio.socket.SocketType, left: Left) -> None:
        """Call `left` when the client has left."""
        descriptor = sock.fileno()
        # first what the system may refuse: what was not registered cannot be removed
        self._epoll.register(
            descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLET
        )
        self._left[descriptor] = left

    def remove(self, sock: trio.socket.SocketType) -> None:
        """Forget a connection that is about to be closed; what was noticed and not told yet goes with it."""
        if self._left.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def watch(self, sock: trio.socket.SocketType) -> None:
        """It always is watched."""

    def unwatch(self, sock: trio.socket.SocketType) -> None:
        """It always is watched."""

    async def run(self) -> None:
        """Notice, until cancelled."""
        with self._epoll:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self.dispatch()

    def dispatch(self) -> None:
        """Ask what happened and tell whose connection it happened to, without anything in between."""
        for descriptor, _ in self._epoll.poll(0):
            left = self._left.get(descriptor)  # the one before may have closed this one
            if left is not None:
                _tell(left, self._failed)


@define(eq=False)
class PeekingHangups:
    """The same where there is no epoll: a task for each request whose connection nobody reads.

    It cannot see past bytes that a client sent ahead: such a client has left when writing to it fails, or as soon as
    its next request is read.
    """

    _failed: Callable[[Exception], None]
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _left: dict[int, Left] = field(factory=dict, init=False)
    _watching: dict[int, trio.CancelScope] = field(factory=dict, init=False)

    def add(self, sock: trio.socket.SocketType, left: Left) -> None:
        """Call `left` when the client has left while it is watched."""
        self._left[sock.fileno()] = left

    def remove(self, sock: trio.socket.SocketType) -> None:
        """Forget a connection."""
        self.unwatch(sock)
        self._left.pop(sock.fileno(), None)

    def watch(self, sock: trio.socket.SocketType) -> None:
        """Nobody reads this connection for now."""
        if self._nursery is not None and sock.fileno() not in self._watching:
            scope = self._watching[sock.fileno()] = trio.CancelScope()
            self._nursery.start_soon(self._watch, sock, self._left[sock.fileno()], scope)

    def unwatch(self, sock: trio.socket.SocketType) -> None:
        """Somebody reads it again; the watching task lets go of it at once."""
        scope = self._watching.pop(sock.fileno(), None)
        if scope is not None:
            scope.cancel()

    async def run(self) -> None:
        """Hold the watching tasks, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def _watch(self, sock: trio.socket.SocketType, left: Left, scope: trio.CancelScope) -> None:
        with scope:
            while await _is_there(sock):  # noqa: ASYNC110 - only looking again can tell
                await trio.sleep(PEEK_SECONDS)
            if not scope.cancel_called:
                _tell(left, self._failed)


async def _is_there(sock: trio.socket.SocketType) -> bool:
    """Wait for bytes that nobody has read, or for the end; false at the end."""
    try:
        return bool(await sock.recv(1, trio.socket.MSG_PEEK))
    except (OSError, trio.ClosedResourceError):
        return False


def _tell(left: Left, failed: Callable[[Exception], None]) -> None:
    try:
        left()
    except Exception as error:  # noqa: BLE001 - one connection's trouble must not deafen the others
        failed(error)


def hangups(failed: Callable[[Exception], None]) -> Hangups:
    """What this system has."""
    return EpollHangups(failed) if hasattr(select, "epoll") else PeekingHangups(failed)
