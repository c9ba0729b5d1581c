"""Connections to each origin: kept ones first, newest first; a bound on all of them, and a fair queue before it.

A *slot* is the right to have one request under way at an origin. Whoever gives a slot up hands it to the first
in the queue, so nobody overtakes, and a waiter who is cancelled either never had one or has it and gives it up.
A new connection is made only by the holder of a slot, and only where none is kept; so connections, in use and
kept, are never more than there are slots. Every step takes the same time however many there are.

The newest kept connection is taken first: the others fall idle and are closed, and the one that is used is the
least likely to have been closed by the other side.
"""

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final

import trio
from attrs import define, field, frozen

from proxy.upstreams.wire import Address, Wire

CONNECTIONS_MAX: Final = 16_384
"""Connections to one origin. How much is under way at once is decided where requests are admitted, and nothing
should queue in front of a provider that is well; this keeps below what ports and descriptors allow."""

KEPT_MAX: Final = 512
"""Idle connections that are kept for the next request, over all origins; each costs a descriptor."""

KEPT_SECONDS: Final = 15.0
"""How long: below the idle time-outs of the load balancers in front of providers, which are 60 s and more."""

Dial = Callable[[Address, float], Awaitable[Wire]]
"""Connects to an address within so many seconds; raises `Unreachable`."""


class NoSlot(Exception):
    """All connections to an origin are in use, and were for as long as one was willing to wait."""


@frozen
class Bounds:
    """How many connections there may be.

    Attributes:
        connections_max: to one origin, in use and kept.
        open_max: to all origins; where there are as many, a kept one is closed for each new one.
        kept_max: idle ones that are kept, over all origins.
        kept_seconds: how long.
    """

    connections_max: int = CONNECTIONS_MAX
    open_max: int = CONNECTIONS_MAX
    kept_max: int = KEPT_MAX
    kept_seconds: float = KEPT_SECONDS


@define(eq=False)
class Connection:
    """One connection: lent to whoever has it, until it is given back by `keep` or `close`.

    Attributes:
        wire: its bytes.
        reused: it has carried an answer before; the other side may have closed it meanwhile.
    """

    wire: Wire
    reused: bool = field(default=False, init=False)
    _origins: "Origins"
    _origin: "_Origin"
    _lent: bool = field(default=True, init=False)
    _open: bool = field(default=True, init=False)
    _kept_at: float = field(default=0.0, init=False)

    def keep(self) -> None:
        """Give it back for the next request: its answer was read to the end and not beyond."""
        if self._lent and self._open:
            self._lent = False
            self._origins._keep(self)  # noqa: SLF001 - one thing in two classes

    def close(self) -> None:
        """Close it, at once and for good, and give its slot up; more than once is the same as once."""
        if self._open:
            self._open = False
            self._origins._forget(self)  # noqa: SLF001
            self.wire.close()


@define(eq=False)
class _Origin:
    address: Address
    slots: trio.Semaphore
    kept: deque[Connection] = field(factory=deque)
    """Oldest first."""


@define(eq=False)
class Origins:
    """All connections of one client.

    Args:
        dial: makes one.
        bounds: how many.

    Attributes:
        now: trio's clock, without the three calls that trio takes to find it.
    """

    _dial: Dial
    bounds: Bounds = field(factory=Bounds)
    now: Callable[[], float] = field(factory=lambda: trio.lowlevel.current_clock().current_time, init=False)
    _origins: dict[Address, _Origin] = field(factory=dict, init=False)
    _kept: OrderedDict[Connection, None] = field(factory=OrderedDict, init=False)
    """Those of all origins, oldest first."""
    _all: set[Connection] = field(factory=set, init=False)
    _dialling: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def open(self) -> int:
        """Connections that are open, in use or kept."""
        return len(self._all)

    @property
    def kept(self) -> int:
        """Connections that are open and idle."""
        return len(self._kept)

    def idle(self) -> bool:
        """Whether nobody has a slot or waits for one."""
        return all(
            origin.slots.value == self.bounds.connections_max and not origin.slots.statistics().tasks_waiting
            for origin in self._origins.values()
        )

    def lend_kept(self, address: Address, now: float) -> Connection | None:
        """Lend a connection that is there, without waiting; `None` if there is none, or a queue."""
        origin = self._origins.get(address)
        if origin is None or not origin.kept:
            return None
        try:
            origin.slots.acquire_nowait()
        except trio.WouldBlock:
            return None
        connection = self._from_kept(origin, now)
        if connection is None:
            self._free(origin)
        return connection

    async def lend(self, address: Address, connect_seconds: float, queue_seconds: float = inf) -> Connection:
        """Lend a connection, kept or new; whoever gets one gives it back by its `keep` or `close`.

        Args:
            address: of the origin.
            connect_seconds: for name look-up and TCP together, and again for TLS.
            queue_seconds: how long to wait where all that may be are in use.

        Raises:
            Unreachable: no connection came about.
            NoSlot: none became free in time.
        """
        origin = await self._slot(address, queue_seconds)
        try:
            connection = self._from_kept(origin, self.now())
            if connection is None:
                self._may_be_used()
                connection = Connection(await self._dialled(address, connect_seconds), self, origin)
                self._all.add(connection)
        except BaseException:
            self._free(origin)
            raise
        if self._closed:
            connection.close()
            self._may_be_used()
        return connection

    def close_kept(self, address: Address) -> None:
        """Close what is kept for one origin: whatever has ended one connection may have ended all of them."""
        origin = self._origins.get(address)
        while origin is not None and origin.kept:
            origin.kept[0].close()

    def expire(self) -> None:
        """Close what was kept for too long; that is done as others are kept, too, but not while nothing is asked."""
        self._expire(self.now())

    def close(self) -> None:
        """Close all connections, those in use as well; whoever reads from one is told that it broke."""
        self._closed = True
        for connection in list(self._all):
            connection.close()

    async def _slot(self, address: Address, seconds: float) -> _Origin:
        self._may_be_used()
        origin = self._origins.get(address)
        if origin is None:
            slots = trio.Semaphore(self.bounds.connections_max, max_value=self.bounds.connections_max)
            origin = self._origins[address] = _Origin(address, slots)
        try:
            origin.slots.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(seconds) as patience:
                await origin.slots.acquire()
            if patience.cancelled_caught:
                raise NoSlot("all connections are in use") from None
        return origin

    async def _dialled(self, address: Address, seconds: float) -> Wire:
        """A new connection; while it comes about it counts as one that is open, for it has its descriptor."""
        if self._kept and len(self._all) + self._dialling >= self.bounds.open_max:
            next(iter(self._kept)).close()
        self._dialling += 1
        try:
            return await self._dial(address, seconds)
        finally:
            self._dialling -= 1

    def _may_be_used(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this client was closed")

    def _from_kept(self, origin: _Origin, now: float) -> Connection | None:
        """The newest kept connection that is still good; those that are not are closed."""
        kept, good_since = origin.kept, now - self.bounds.kept_seconds
        while kept:
            connection = kept.pop()
            del self._kept[connection]
            if connection._kept_at >= good_since and connection.wire.quiet():  # noqa: SLF001
                connection._lent = connection.reused = True  # noqa: SLF001
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        kept = self._kept
        connection._kept_at = now = self.now()  # noqa: SLF001
        origin = connection._origin  # noqa: SLF001
        origin.kept.append(connection)
        kept[connection] = None
        origin.slots.release()
        self._expire(now)

    def _expire(self, now: float) -> None:
        kept, good_since = self._kept, now - self.bounds.kept_seconds
        while kept and (len(kept) > self.bounds.kept_max or next(iter(kept))._kept_at < good_since):  # noqa: SLF001
            next(iter(kept)).close()

    def _forget(self, connection: Connection) -> None:
        """A connection is being closed: take it out wherever it stands."""
        self._all.discard(connection)
        origin = connection._origin  # noqa: SLF001
        if connection._lent:  # noqa: SLF001
            self._free(origin)
        elif connection in self._kept:
            del self._kept[connection]
            # the oldest of all is the oldest of its origin; only closing everything takes another
            origin.kept.remove(connection)
            self._drop_if_unused(origin)

    def _free(self, origin: _Origin) -> None:
        origin.slots.release()
        self._drop_if_unused(origin)

    def _drop_if_unused(self, origin: _Origin) -> None:
        """Addresses may be many; what nobody uses leaves nothing behind."""
        if not origin.kept and origin.slots.value == self.bounds.connections_max:
            self._origins.pop(origin.address, None)
