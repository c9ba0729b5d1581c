"""Deadlines that are set with every request and hardly ever reached: one task and one heap for all of them.

A cancel scope with a deadline costs 5 µs, and there would be one for each wait. An alarm costs an assignment: it has
one entry in the heap, and when the entry comes up the alarm may have been moved to later, or be off, which is found
out then. Only what comes *before* its entry needs a new one.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Final

import trio
from attrs import define, field

LAPSED_MIN: Final = 1000
"""So many entries are not worth looking through."""

Ring = Callable[[], None]
"""Must be quick and not wait."""


def _nothing() -> None:
    """Do nothing."""


@define(eq=False)
class Alarm:
    """Something that is to happen at a time, unless it is moved or put off before.

    Attributes:
        due: when, on trio's clock; infinite while it is off.
    """

    _alarms: "Alarms"
    due: float = field(default=inf, init=False)
    _ring: Ring = field(default=_nothing, init=False)
    _entry: float = field(default=inf, init=False)
    """When the heap looks at it; never later than `due`."""

    def set(self, due: float, ring: Ring) -> None:
        """Have it ring at a time, in place of whatever it was set to before."""
        self.due, self._ring = due, ring
        if due < self._entry:
            self._entry = due
            self._alarms.enter(self, due)

    def off(self) -> None:
        """Have it not ring; it lets go of whoever set it, for the heap keeps it until its entry comes up."""
        self.due, self._ring = inf, _nothing

    def lapsed(self, entry: float) -> bool:
        """Whether one of its entries can go, since nothing is to ring then."""
        if entry == self._entry and self.due < inf:
            return False
        if entry == self._entry:
            self._entry = inf
        return True

    def come_up(self, entry: float, now: float) -> None:
        """Its entry was reached, or one that another took the place of."""
        if entry != self._entry:
            return
        self._entry = inf
        if self.due <= now:
            ring = self._ring
            self.off()
            ring()
        elif self.due < inf:
            self.set(self.due, self._ring)


@define(eq=False)
class Alarms:
    """All alarms of a server; `failed` is told what a ring raises.

    Attributes:
        now: trio's clock, without the three calls that trio takes to find it.
    """

    _failed: Callable[[Exception], None]
    now: Callable[[], float] = field(factory=lambda: trio.lowlevel.current_clock().current_time, init=False)
    _heap: list[tuple[float, int, Alarm]] = field(factory=list, init=False)
    _numbers: "count[int]" = field(factory=count, init=False)
    _pause: trio.CancelScope | None = field(default=None, init=False)
    _full: int = field(default=LAPSED_MIN, init=False)
    """With so many entries it is time to look which can go."""

    def new(self) -> Alarm:
        """Make an alarm that is off."""
        return Alarm(self)

    def enter(self, alarm: Alarm, due: float) -> None:
        """Have an alarm looked at."""
        if len(self._heap) >= self._full:
            self._tidy()
        heappush(self._heap, (due, next(self._numbers), alarm))
        if self._pause is not None and due < self._pause.deadline:
            self._pause.deadline = due

    def _tidy(self) -> None:
        """Drop entries that lapsed: where clients come and go, those of minutes would gather otherwise."""
        self._heap[:] = [entry for entry in self._heap if not entry[2].lapsed(entry[0])]
        heapify(self._heap)
        self._full = max(2 * len(self._heap), LAPSED_MIN)

    async def run(self) -> None:
        """Ring what falls due, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else inf) as self._pause:
                await trio.sleep_forever()
            self._pause = None
            self._ring_due(trio.current_time())

    def _ring_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            entry, _, alarm = heappop(self._heap)
            try:
                alarm.come_up(entry, now)
            except Exception as error:  # noqa: BLE001 - one ring must not silence the others
                self._failed(error)
