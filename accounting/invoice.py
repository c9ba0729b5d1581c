"""I14, what a provider invoices is what was settled: its list of calls against the books, line by line.

Every line must match exactly one settled attempt, by the id that the provider gave the call, at the same cost;
and every attempt that cost something and has such an id must stand in the list, if it lies in its period and is
one of that provider's. What costs nothing may be missing on either side: providers do not list what they refused.

A list is a provider's own, in JSON as the sandbox gives it (usage in buckets), or in two columns, `id` and `cost`.
"""

import csv
import io
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from accounting.audit import SHOWN_MAX, Finding
from pricing.money import Pico, parse, show
from pricing.usage import BUCKETS, Usage

INVARIANT: Final = "I14"


@frozen
class Line:
    """One call, as the provider has it: what it costs, or else what it used.

    Attributes:
        id: the provider's.
        cost: in picos, where the list says so.
        usage: by bucket; only those that the list has.
    """

    id: str
    cost: Pico | None = None
    usage: dict[str, int] = field(factory=dict)

    @property
    def free(self) -> bool:
        """It costs nothing."""
        return not (any(self.usage.values()) if self.cost is None else self.cost)


class Settled(msgspec.Struct, frozen=True):
    """A settled attempt that has an id of the provider's: a row of `accounting.export.INVOICED`."""

    request: str
    number: int
    upstream_id: str
    provider: str
    model: str
    cost: Pico
    started_ms: int
    usage: Usage

    @property
    def where(self) -> str:
        """It, by name."""
        return f"request {self.request}, attempt {self.number}"


def settled(row: dict[str, Any]) -> Settled:
    """A row of `accounting.export.INVOICED` as a page has it."""
    usage = Usage(**{bucket: row.pop(bucket) for bucket in BUCKETS})
    return Settled(**{**row, "cost": parse(row["cost"])}, usage=usage)


def read_lines(data: bytes) -> list[Line]:
    """Read a provider's list.

    Raises:
        ValueError: it is none, or not whole; says where and why.
    """
    if data.lstrip()[:1] in (b"{", b"["):
        return _from_json(data)
    return _from_columns(data)


class _Call(msgspec.Struct):
    id: str
    cost: str | None = None
    usage: dict[str, int] = {}


class _Calls(msgspec.Struct):
    data: list[_Call]
    dropped: int = 0


def _from_json(data: bytes) -> list[Line]:
    try:
        calls = msgspec.json.decode(data, type=_Calls)
    except msgspec.DecodeError as error:
        raise ValueError(f'expected {{"data": [{{"id": …, "usage": …}}]}}: {error}') from None
    if calls.dropped:
        raise ValueError(f"{calls.dropped} calls are left out of it: it cannot be compared")
    lines = []
    for call in calls.data:
        try:
            Usage(**call.usage)
            lines.append(Line(call.id, None if call.cost is None else parse(call.cost), call.usage))
        except (TypeError, ValueError) as error:
            raise ValueError(f"call {call.id}: {error}") from None
    return lines


def _from_columns(data: bytes) -> list[Line]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        if reader.fieldnames is None or not {"id", "cost"} <= set(reader.fieldnames):
            raise ValueError("expected columns named id and cost")
        lines = []
        for row in reader:
            if not row["id"]:
                raise ValueError(f"line {reader.line_num} has no id")
            try:
                lines.append(Line(row["id"], parse(row["cost"] or "")))
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {error}") from None
    return lines


Priced = Callable[[Settled, Usage], Pico | None]
"""What this usage costs by the list price of a settled attempt; `None`: it is not known any more."""


@define(eq=False)
class Invoice:
    """A comparison under way: `match` every settled attempt, then `miss` every one once more, then `findings`.

    Twice, since what the list's period is, and whose it is, is only known when all of it has been matched; so
    nothing needs to be remembered but the list.

    Args:
        lines: the list.
        priced: prices a line that says what was used.
        tolerance: a difference in one line that is none.
        period: from and to (exclusive) in ms, where the list's is known; else it spans what was matched.
    """

    lines: Iterable[Line]
    priced: Priced
    tolerance: Pico = 0
    period: tuple[int, int] | None = None
    matched: int = field(default=0, init=False)
    difference: Pico = field(default=0, init=False)
    """What the list asks for beyond what the books say, over all lines that match."""
    off: int = field(default=0, init=False)
    _lines: dict[str, Line] = field(factory=dict, init=False)
    _twice: dict[str, int] = field(factory=dict, init=False)
    _matches: dict[str, list[str]] = field(factory=dict, init=False)
    _providers: set[str] = field(factory=set, init=False)
    _span: tuple[int, int] | None = field(default=None, init=False)
    missed: int = field(default=0, init=False)
    missed_cost: Pico = field(default=0, init=False)
    """Of settled attempts that it should have."""
    _worst: list[tuple[Pico, int, str, str]] = field(factory=list, init=False)
    """A heap of the lines that are off by most."""
    _missed: list[tuple[str, str]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        for line in self.lines:
            if line.id in self._lines:
                self._twice[line.id] = self._twice.get(line.id, 1) + 1
            self._lines[line.id] = line

    def match(self, one: Settled) -> None:
        """Look for the line of a settled attempt."""
        line = self._lines.get(one.upstream_id)
        if line is None:
            return
        self._matches.setdefault(line.id, []).append(one.where)
        if len(self._matches[line.id]) > 1:
            return
        self.matched += 1
        self._providers.add(one.provider)
        first, last = self._span or (one.started_ms, one.started_ms)
        self._span = min(first, one.started_ms), max(last, one.started_ms + 1)
        self._compare(line, one)

    def miss(self, one: Settled) -> None:
        """Note a settled attempt that should stand in the list, and does not."""
        period = self.period or self._span
        if one.upstream_id in self._lines or not one.cost or period is None:
            return
        if one.provider in self._providers and period[0] <= one.started_ms < period[1]:
            self.missed += 1
            self.missed_cost += one.cost
            if self.missed <= SHOWN_MAX:
                what = f"settled as {one.upstream_id} at {show(one.cost)}, is not in it"
                self._missed.append((one.where, what))

    def findings(self) -> tuple[Finding, ...]:
        """Everything that is unmatched, matched twice or off, the worst of each first."""
        nobody = [
            (f"line {line.id}", f"{_asks(line)}, and no settled attempt has this id")
            for line in self._lines.values()
            if line.id not in self._matches and not line.free
        ]
        several = [
            (f"line {name}", f"is settled {len(where)} times: {'; '.join(where[:3])}")
            for name, where in self._matches.items()
            if len(where) > 1
        ]
        twice = [(f"line {name}", f"stands in it {count} times") for name, count in self._twice.items()]
        worst = [(where, what) for _, _, where, what in sorted(self._worst, reverse=True)]
        return tuple(
            finding
            for wrong, count in (
                (twice, len(twice)),
                (nobody, len(nobody)),
                (several, len(several)),
                (self._missed, self.missed),
                (worst, self.off),
            )
            for finding in _named(wrong, count)
        )

    def summary(self) -> dict[str, Any]:
        """What it comes to, for people and scripts."""
        return {
            "lines": len(self._lines),
            "matched": self.matched,
            "free": sum(line.free and line.id not in self._matches for line in self._lines.values()),
            "off": self.off,
            "difference": show(self.difference),
            "not_invoiced": self.missed,
            "not_invoiced_cost": show(self.missed_cost),
        }

    def _compare(self, line: Line, one: Settled) -> None:
        cost = line.cost
        if cost is None:
            ours = {bucket: getattr(one.usage, bucket) for bucket in line.usage}
            if ours == line.usage:
                return
            theirs = Usage(**line.usage)
            cost = self.priced(one, theirs)
            if cost is None or cost == one.cost:
                self._is_off(0, one, f"{_counts(theirs)} invoiced, {_counts(one.usage)} in the books")
                return
        difference = cost - one.cost
        self.difference += difference
        if abs(difference) > self.tolerance:
            self._is_off(difference, one, f"{show(cost)} invoiced, {show(one.cost)} in the books")

    def _is_off(self, difference: Pico, one: Settled, what: str) -> None:
        self.off += 1
        heappush(self._worst, (abs(difference), -self.off, f"{one.where}, line {one.upstream_id}", what))
        if len(self._worst) > SHOWN_MAX:
            heappop(self._worst)


def _asks(line: Line) -> str:
    return _counts(Usage(**line.usage)) if line.cost is None else f"asks for {show(line.cost)}"


def _counts(usage: Usage) -> str:
    return ", ".join(f"{count} {bucket}" for bucket, count in usage.counts().items()) or "nothing"


def _named(wrong: list[tuple[str, str]], count: int) -> list[Finding]:
    found = [Finding(INVARIANT, what, where) for where, what in wrong[:SHOWN_MAX]]
    if count > SHOWN_MAX:
        found.append(Finding(INVARIANT, f"and {count - SHOWN_MAX} more", "…"))
    return found
