"""What keys and tasks have spent, hold and may still spend: the windows of caps, and budgets.

Everything here follows from the records (a request counts on the day on which its hold was taken) and is made
anew from them at each start. How many tasks a wallet may have, and when one is forgotten, are rules of the books
and no settings: the same journal must always mean the same.
"""

from collections import OrderedDict
from datetime import date
from typing import Final

from attrs import define, field, frozen

from accounting.records import CapWindow, Key
from accounting.refusals import TooManyTasks, UnknownTask
from pricing.money import Pico

DAY_MS: Final = 86_400_000
DAYS_KEPT: Final = 32
"""Days of a key that are remembered: the longest window, a month, has at most 31."""

TASKS_MAX: Final = 10_000
"""Most tasks with a budget that one wallet may have alive."""

TASK_IDLE_MS: Final = 30 * DAY_MS
"""A task is forgotten when nothing has been asked for it for so long, and nothing is held."""

EMPTY_FREE: Final = "empty_free"
"""The flag on a record whose completion was empty and therefore free."""

_EPOCH: Final = date(1970, 1, 1).toordinal()


def day_of(at_ms: int) -> int:
    """The day in UTC, counted from 1970."""
    return at_ms // DAY_MS


def first_day(window: CapWindow, day: int) -> int:
    """The first day of the window that a day lies in."""
    match window:
        case "lifetime":
            return 0
        case "day":
            return day
        case "week":  # the first of January 1970 was a Thursday
            return day - (day + 3) % 7
        case "month":
            return day - date.fromordinal(_EPOCH + day).day + 1


def window_ends_ms(window: CapWindow, at_ms: int) -> int | None:
    """When the window of a moment is over; `None`: never."""
    day = day_of(at_ms)
    match window:
        case "lifetime":
            return None
        case "day":
            return (day + 1) * DAY_MS
        case "week":
            return (first_day(window, day) + 7) * DAY_MS
        case "month":  # the fourth week is followed by the next month within four days
            return first_day(window, first_day(window, day) + 31) * DAY_MS


@define(eq=False)
class Tally:
    """What was spent and is held on one account: a day of a key, a key, a task."""

    spent: Pico = 0
    held: Pico = 0
    empties: int = 0


@define(eq=False)
class KeySpending:
    """One key: altogether, and by day."""

    lifetime: Tally = field(factory=Tally)
    days: dict[int, Tally] = field(factory=dict)

    def day(self, day: int) -> Tally:
        """The tally of a day, to be added to; days that no window can reach any more are dropped."""
        tally = self.days.get(day)
        if tally is None:
            tally = self.days[day] = Tally()
            if len(self.days) > DAYS_KEPT:
                for old in [
                    one for one, told in self.days.items() if one < day - DAYS_KEPT and not told.held
                ]:
                    del self.days[old]
        return tally

    def within(self, window: CapWindow, day: int) -> tuple[Pico, Pico]:
        """What was spent and is held in the window of a day."""
        if window == "lifetime":
            return self.lifetime.spent, self.lifetime.held
        first = first_day(window, day)
        last = day if window == "day" else first + (6 if window == "week" else 30)
        inside = [
            tally for at, tally in self.days.items() if first <= at <= last and first_day(window, at) == first
        ]
        return sum(tally.spent for tally in inside), sum(tally.held for tally in inside)


@frozen
class Budget:
    """A task as a request names it; `None` as its maximum: the one that it has."""

    id: str
    max: Pico | None = None


@define(eq=False)
class Task:
    """What one task may spend and has spent.

    Attributes:
        max: the least maximum that any of its recorded requests has named.
        last_ms: when it was last asked for.
        open: holds of it.
        recorded: a record names it; until then it goes with its last hold.
    """

    max: Pico
    last_ms: int
    tally: Tally = field(factory=Tally)
    open: int = 0
    recorded: bool = False

    def alive(self, at_ms: int) -> bool:
        """Whether it is still remembered."""
        return self.open > 0 or at_ms - self.last_ms <= TASK_IDLE_MS


@define(eq=False)
class Spending:
    """All keys and tasks. Asked and told by the ledger alone."""

    _keys: dict[str, KeySpending] = field(factory=dict)
    _tasks: dict[str, OrderedDict[str, Task]] = field(factory=dict)
    """By wallet, the longest idle first."""

    def key(self, key: str) -> KeySpending:
        """One key, by its id."""
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = KeySpending()
        return known

    def tallies(self, key: str, at_ms: int) -> tuple[Tally, ...]:
        """Where a hold of a key counts: altogether, and on its day."""
        known = self._keys.get(key) or self.key(key)
        day = at_ms // DAY_MS
        return known.lifetime, known.days.get(day) or known.day(day)

    def within_cap(self, key: Key, at_ms: int) -> tuple[Pico, Pico]:
        """What a key has spent and holds in the window of its cap."""
        return self.key(key.key).within(key.cap_window, day_of(at_ms))

    def empties(self, key: str, at_ms: int) -> int:
        """How many completions of a key were free on that day for being empty."""
        day = self.key(key).days.get(day_of(at_ms))
        return day.empties if day is not None else 0

    def task(self, wallet: str, budget: str, at_ms: int) -> Task | None:
        """A task that is still remembered, or `None`."""
        tasks = self._tasks.get(wallet)
        task = tasks.get(budget) if tasks is not None else None
        return task if task is not None and task.alive(at_ms) else None

    def check_task(self, wallet: str, budget: Budget, at_ms: int) -> None:
        """Refuse a task that cannot begin.

        Raises:
            UnknownTask: it would be new, and has no maximum.
            TooManyTasks: it would be one more than the wallet may have.
        """
        if self.task(wallet, budget.id, at_ms) is not None:
            return
        if budget.max is None:
            raise UnknownTask(budget.id)
        tasks = self._tasks.get(wallet)
        if tasks is not None and len(tasks) >= TASKS_MAX and next(iter(tasks.values())).alive(at_ms):
            raise TooManyTasks(wallet, TASKS_MAX)

    def begin_task(self, wallet: str, budget: Budget, at_ms: int) -> Task:
        """The task that a hold belongs to, made where it is new; it was checked before."""
        tasks = self._tasks.get(wallet)
        if tasks is None:
            tasks = self._tasks[wallet] = OrderedDict()
        task = tasks.get(budget.id)
        if task is None or not task.alive(at_ms):
            task = tasks[budget.id] = Task(budget.max or 0, at_ms)
            while len(tasks) > TASKS_MAX and not next(iter(tasks.values())).alive(at_ms):
                tasks.popitem(last=False)
        task.last_ms = max(task.last_ms, at_ms)
        tasks.move_to_end(budget.id)
        task.open += 1
        return task

    def end_hold(self, wallet: str, budget: str, task: Task) -> None:
        """A hold of a task is over. One that stands in no record is as if it had never been."""
        task.open -= 1
        tasks = self._tasks[wallet]
        if not task.open and not task.recorded and tasks.get(budget) is task:
            del tasks[budget]
