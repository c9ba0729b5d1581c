"""Carries: the attempts that are open at some line of the journal, which the head of a segment repeats.

So a segment tells by itself what was under way when it began, and the older ones may leave.
"""

from collections.abc import Iterator

from attrs import define, field
from msgspec import Struct

from accounting.records import Attempt, Carry, Extension, Job, Progress, Record, UsageRecord, Void
from pricing.money import Pico


class Carried(Struct, frozen=True, gc=False):
    """One open attempt, and the last that was written about it; the fields of a `Carry`."""

    attempt: Attempt
    progress: Progress | None = None
    hold: Pico | None = None
    job: Job | None = None

    def line(self, at_ms: int) -> Carry:
        """What the head of a segment says of it."""
        return Carry(self.attempt, self.progress, at_ms, self.hold, self.job)

    @classmethod
    def of(cls, carry: Carry) -> "Carried":
        """What was said of it."""
        return cls(carry.attempt, carry.progress, carry.hold, carry.job)


@define(eq=False)
class Carries:
    """What is open, as of the last record that was noted; oldest first."""

    _open: dict[tuple[str, int], Carried] = field(factory=dict)

    def note(self, record: Record) -> None:
        """Take in one record, in order of seq."""
        match record:
            case Attempt():
                self._open[record.request, record.number] = Carried(record)
            case UsageRecord() | Void():
                self._open.pop((record.request, record.number), None)
            case Progress() | Extension() | Job():
                known = self._open.get((record.request, record.number))
                if known is not None:
                    self._open[record.request, record.number] = _with(known, record)
            case _:
                pass

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Carried]:
        return iter(self._open.values())

    def copy(self) -> "Carries":
        """The same, to go on by itself."""
        return Carries(dict(self._open))


def _with(known: Carried, news: Progress | Extension | Job) -> Carried:
    match news:
        case Progress():
            return Carried(known.attempt, news, known.hold, known.job)
        case Extension():
            return Carried(known.attempt, known.progress, news.hold, known.job)
        case Job():
            return Carried(known.attempt, known.progress, known.hold, news)
