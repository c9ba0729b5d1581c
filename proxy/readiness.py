"""Waits for bytes: one epoll set for all sockets that are read, and one task that waits on it.

Trio waits for a socket by changing its own epoll set, twice for each wait, and a cancel scope for the deadline costs
as much again: more than the read itself. Here a socket is put into the set once, edge-triggered. What the kernel says
of it later is a flag, which is down again after a read that took less than it might have; so a socket is not asked
for bytes that cannot be there. Deadlines are alarms.

Descriptors are reused: the moment one is closed, the next connection may get its number. So nothing comes between
asking what has happened and telling it, and `Watch.forget`, synchronous too, comes before each close.

Where there is no epoll, trio waits as it always does.
"""

import select
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

import outcome
import trio
from attrs import define, field
from trio.lowlevel import Abort, RaiseCancelT, Task

from proxy.alarms import Alarm, Alarms

Meanwhile = Callable[[], bool]
"""Reads, and does at once what there is to do; true if the wait is to end. Runs in another task, so it may not wait.

To wake a task for every few bytes costs as much as to relay them."""


class Watch(Protocol):
    """One socket, as long as it is open; for one task that reads.

    Attributes:
        readable: a read may find something; true where that is not known.
    """

    readable: bool

    def drained(self) -> None:
        """A read took less than it might have: there is nothing more until the kernel says so."""
        ...

    async def wait(self, until: float = inf, meanwhile: Meanwhile | None = None) -> bool:
        """Wait until a read may find something; false if `until` came before, or `wake` was called.

        Args:
            until: on trio's clock.
            meanwhile: called instead of ending the wait, as soon as a read may find something; what it raises is
                raised here.

        Raises:
            trio.ClosedResourceError: the socket was forgotten meanwhile.
        """
        ...

    def wake(self) -> None:
        """End the present wait."""
        ...

    def forget(self) -> None:
        """The socket is about to be closed, or becomes somebody else's; more than once is the same as once."""
        ...


@define(eq=False)
class _EpollWatch:
    """A socket in the set."""

    _set: "EpollReadiness"
    _descriptor: int
    _alarm: Alarm
    readable: bool = field(default=True, init=False)
    """What came before it was put into the set is not told."""
    _ended: bool = field(default=False, init=False)
    """The other side has closed: whatever is read, the end is still to be read after it."""
    _task: Task | None = field(default=None, init=False)
    _woken: bool = field(default=False, init=False)
    """`wake` was called, perhaps while a task that need not wait had its turn waited out."""
    _meanwhile: Meanwhile | None = field(default=None, init=False)

    def drained(self) -> None:
        """See `Watch`."""
        self.readable = self._ended

    async def wait(self, until: float = inf, meanwhile: Meanwhile | None = None) -> bool:
        """See `Watch`."""
        if self._descriptor < 0:
            raise trio.ClosedResourceError("this socket was forgotten")
        if self.readable:
            self._woken = False
            await trio.lowlevel.checkpoint()
            return not self._woken
        if until != self._alarm.due:  # mostly there is no deadline, and was none
            self._alarm.set(until, self.wake)
        self._meanwhile = meanwhile
        self._task = trio.lowlevel.current_task()
        there: bool = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return there

    def _abort(self, _raise_cancel: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def wake(self) -> None:
        """See `Watch`."""
        self._woken = True
        self._end_wait(outcome.Value(False))

    def happened(self, events: int) -> None:
        """The kernel says that there is something to read."""
        self.readable = True
        if events & _ENDED:
            self._ended = True
        if self._task is None:
            return
        try:
            over = self._meanwhile is None or self._meanwhile()
        except Exception as error:  # noqa: BLE001 - it belongs to the task that waits
            self._end_wait(outcome.Error(error))
        else:
            if over:
                self._end_wait(outcome.Value(True))

    def forget(self) -> None:
        """See `Watch`."""
        if self._descriptor >= 0:
            self._set.remove(self._descriptor)
            self._descriptor = -1
            self.readable = True  # whoever reads on is told by the socket
            self._alarm.off()
            self._end_wait(outcome.Error(trio.ClosedResourceError("this socket was forgotten")))

    def _end_wait(self, how: outcome.Outcome[bool]) -> None:
        task, self._task = self._task, None
        self._meanwhile = None  # it holds on to all that is relayed
        if task is not None:
            trio.lowlevel.reschedule(task, how)


@define(eq=False)
class EpollReadiness:
    """The one epoll set."""

    _alarms: Alarms
    _epoll: "select.epoll" = field(init=False)
    _watches: dict[int, _EpollWatch] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._epoll = select.epoll()

    def watch(self, descriptor: int) -> Watch:
        """Put a socket into the set; whoever has it forgets it before it is closed."""
        watch = _EpollWatch(self, descriptor, self._alarms.new())
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self._watches[descriptor] = watch
        return watch

    def remove(self, descriptor: int) -> None:
        """Take a socket out; what has happened and was not told yet goes with it."""
        del self._watches[descriptor]
        if not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Tell what happens, until cancelled."""
        with self._epoll:
            descriptor = self._epoll.fileno()
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                self.dispatch()

    def dispatch(self) -> None:
        """Ask what has happened and tell it, without anything in between."""
        for descriptor, events in self._epoll.poll(0):
            watch = self._watches.get(descriptor)
            if watch is not None:
                watch.happened(events)


_ENDED: Final = (
    select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR if hasattr(select, "epoll") else 0
)  # each leaves something to be read: the end, or what broke the connection


@define(eq=False)
class _TrioWatch:
    """A socket that trio waits for."""

    _descriptor: int
    readable: bool = field(default=True, init=False)
    _scope: trio.CancelScope | None = field(default=None, init=False)

    def drained(self) -> None:
        """See `Watch`: nobody would say when there is more."""

    async def wait(self, until: float = inf, meanwhile: Meanwhile | None = None) -> bool:  # noqa: ARG002
        """See `Watch`; the task is woken anyway, so nothing is done meanwhile."""
        if self._descriptor < 0:
            raise trio.ClosedResourceError("this socket was forgotten")
        with trio.CancelScope(deadline=until) as self._scope:
            await trio.lowlevel.wait_readable(self._descriptor)
        return not self._scope.cancelled_caught

    def wake(self) -> None:
        """See `Watch`."""
        if self._scope is not None:
            self._scope.cancel()

    def forget(self) -> None:
        """See `Watch`."""
        if self._descriptor >= 0:
            trio.lowlevel.notify_closing(self._descriptor)
            self._descriptor = -1


class TrioReadiness:
    """The same where there is no epoll."""

    def watch(self, descriptor: int) -> Watch:
        """See `EpollReadiness`."""
        return _TrioWatch(descriptor)


Readiness = EpollReadiness | TrioReadiness

_of_this_run: Final[trio.lowlevel.RunVar[Readiness]] = trio.lowlevel.RunVar("readiness")
"""What belongs to a run of trio, as its own epoll set does: it begins with the first socket and ends with the run."""


def readiness() -> Readiness:
    """The set of the present run of trio."""
    try:
        return _of_this_run.get()
    except LookupError:
        made = _begun() if hasattr(select, "epoll") else TrioReadiness()
        _of_this_run.set(made)
        return made


def _begun() -> EpollReadiness:
    alarms = Alarms(_nothing_raises)
    made = EpollReadiness(alarms)
    trio.lowlevel.spawn_system_task(alarms.run)
    trio.lowlevel.spawn_system_task(made.run)
    return made


def _nothing_raises(error: Exception) -> None:
    raise error  # waking somebody cannot fail; if it does, the loop is broken
