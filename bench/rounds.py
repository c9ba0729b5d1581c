"""Rounds: every target in turn, in an order that rotates; medians, and ratios to nginx in the same round.

A median of what went wrong would be nothing as long as most rounds went well, so of that it is the worst round that
counts. What a gateway adds is not the difference of its percentiles and direct's, which can be below zero: the client
measures it for each request and each event (`added_first_ms`, `gap_stretch_ms`), and direct's own row says how much of
it is provider and client.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Protocol, Self

from attrs import define, evolve, field

from bench.harness import BUSY, ENDS, Figures, Harness, Plan, was_the_limit
from bench.processes import Gone, quiet
from bench.scenarios import Case
from bench.shapes import Shape
from bench.targets import NotHereError, Target, placed

WARM_UP: Final = Plan("loop", 8, 0.5, warm=0.0, drain=5.0)
"""Before a target is measured: the first requests pay for imports and buffers that later ones find ready."""

CAPACITY: Final = Plan("loop", 64, 2.0, warm=0.5, drain=3.0)
DIRECT: Final = "direct"
NGINX: Final = "nginx"
REFERENCE: Final = ("farebox", "url")
"""Whose capacity sets the pace for those who have none of their own to compare by: direct and nginx."""

TROUBLES: Final = ("failed", "short", "cut", "late")
RATIOS: Final = ("cpu_us_per_answer", "cpu_us_per_event", "answers_per_second", "events_per_second")

NEAR: Final = 0.9
"""From that share on, a rate is as high as what it is compared with."""

HARNESS: Final = "provider and clients were the limit, not the gateway"
OFFERED: Final = "all that was offered came through: how much more it could do is not known"
UNHINDERED: Final = "as fast as without a gateway: how much more it could do is not known"
FULL: Final = "provider and clients had no time left either: it might do more with other ones"
"""Why a rate may not be the gateway's highest. Its CPU time for each event or answer is its own all the same."""

Start = Callable[[], AbstractContextManager[Target]]


class Progress(Protocol):
    """Is told how far things are."""

    def step(self, text: str) -> None:
        """One measurement is about to begin."""
        ...


@define(eq=False)
class Series:
    """Targets that stay up from case to case, and those that will not come up.

    Attributes:
        harness: what measures.
        starts: by name, how each comes up.
        seconds, rounds: of each measurement, and how many.
        connections_max: fewer connections than a case asks for.
        missing: why a target is not there.
        said: what a reader of the figures has to know.
        on: what each does beside relaying, and where it runs.
        found: those that somebody else has started.
    """

    harness: Harness
    starts: Mapping[str, Start]
    seconds: float
    rounds: int
    connections_max: int | None = None
    missing: dict[str, str] = field(factory=dict)
    said: list[str] = field(factory=list)
    on: dict[str, str] = field(factory=dict)
    found: set[str] = field(factory=set)
    _up: dict[str, Target] = field(factory=dict)
    _stack: ExitStack = field(factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Of those that are to be measured."""
        return [name for name in self.starts if name not in self.missing]

    def measured(self, case: Case) -> list[str]:
        """Who is measured in a case: where memory is all that it is about, the provider has none to show."""
        return [name for name in self.names if not (case.fresh and name == DIRECT)]

    def run(
        self, case: Case, progress: Progress, names: Sequence[str] | None = None, rounds: int | None = None
    ) -> dict[str, Any]:
        """Measure a case over all rounds and targets, or over so many rounds and these targets."""
        names = self.measured(case) if names is None else names
        shape, plan, said = case.fitted(self.seconds, self.connections_max)
        if said:
            self.say(said)
        # on a timetable that a gateway can keep everybody has the same rate
        loop = plan.mode == "loop" and (case.saturates or not shape.gap_us)
        offered = plan.connections * 1e6 / shape.gap_us if shape.gap_us else None
        rates = self._rates(case, shape) if case.capacity_share else {}
        found: dict[str, list[Figures]] = {}
        rounds = rounds or self.rounds
        for number in range(rounds):
            for name in rotated([name for name in names if name not in self.missing], number):
                progress.step(f"{case.label}, round {number + 1}, {name}")
                if number and case.fresh and name in self.found:
                    continue  # it still has the memory of the first
                own = evolve(plan, rate=rates[name]) if name in rates else plan
                figures = self._one(name, case, shape, own)
                if figures is not None:
                    found.setdefault(name, []).append(figures)
        return {
            "case": case.label if not said else f"{case.label} (here {plan.connections:,} connections)",
            "connections": plan.connections,
            "saturates": case.saturates,
            "by_capacity": bool(case.capacity_share),
            "rounds": rounds,
            "rows": summed(found, rates=loop, offered=offered),
        }

    def say(self, text: str) -> None:
        """Have it said, once."""
        if text not in self.said:
            self.said.append(text)

    def _one(self, name: str, case: Case, shape: Shape, plan: Plan) -> Figures | None:
        """One measurement; `None` where the target does not come up."""
        try:
            if not case.fresh:
                return self._measure(self._target(name), case, shape, plan)
            with ExitStack() as stack:  # its neighbours may stay up: they do nothing
                return self._measure(self._start(name, stack), case, shape, plan)
        except (NotHereError, Gone) as error:
            self.missing[name] = str(error)
            self.said.append(f"{name} was left out: {error}")
            return None

    def _measure(self, target: Target, case: Case, shape: Shape, plan: Plan) -> Figures | None:
        if not target.ours:
            if plan.mode in ENDS:
                self.say(
                    f"{case.label}, {target.name}: not measured, because the provider behind it is not ours"
                )
                return None
            plan = evolve(plan, expect=0)  # whoever answers does so as they please
        if self.harness.provider is not None:
            self.harness.provider.clear()
        if target.pid is not None:
            quiet(target.pid)
        figures = self.harness.measure(target, shape, plan, case.load)
        if plan.rate:
            figures["rate"] = plan.rate
        return figures

    def _target(self, name: str) -> Target:
        if name not in self._up:
            self._up[name] = self._start(name, self._stack)
        return self._up[name]

    def _start(self, name: str, stack: ExitStack) -> Target:
        target = stack.enter_context(self.starts[name]())
        self.on[name] = target.on if name == DIRECT else f"{target.on}; {placed(target.pid)}"
        if target.found:
            self.found.add(name)
        self.harness.measure(target, Shape(), WARM_UP)
        self.harness.measure(target, Shape(events=20), WARM_UP)
        return target

    def _rates(self, case: Case, shape: Shape) -> dict[str, float]:
        """Requests a second for each target: a share of what it can do without the provider's own time."""
        found: dict[str, float] = {}
        for name in self.names:
            if name in (DIRECT, NGINX) and any(one in self.names for one in REFERENCE):
                continue
            figures = self._one(name, case, evolve(shape, gap_us=0, first_us=0), CAPACITY)
            if figures is not None:
                found[name] = max(case.capacity_share * figures["answers_per_second"], 1.0)
        pace = next((found[name] for name in REFERENCE if name in found), None)
        for name in (DIRECT, NGINX):
            if name in self.names and name not in found and pace is not None:
                found[name] = pace
        return found


def rotated(names: Iterable[str], number: int) -> list[str]:
    """The names in an order that begins with another one each round."""
    ordered = list(names)
    at = number % len(ordered) if ordered else 0
    return ordered[at:] + ordered[:at]


def summed(
    by_name: Mapping[str, list[Figures]], *, rates: bool = False, offered: float | None = None
) -> dict[str, Figures]:
    """By target: medians over the rounds, the worst of its troubles, its ratios to nginx, and the rounds themselves.

    Args:
        by_name: what each round measured.
        rates: whether everybody went as fast as they could, so that it matters what held them back.
        offered: events a second that were on offer.
    """
    direct, nginx = by_name.get(DIRECT, []), by_name.get(NGINX, [])
    rows = {}
    for name, rounds in by_name.items():
        row = median(rounds) | worst(rounds)
        row["ratio_to_nginx"] = {
            figure: statistics.median(found) for figure in RATIOS if (found := _ratios(rounds, nginx, figure))
        }
        pairs = zip(rounds, [*direct, *[None] * len(rounds)], strict=False)
        reasons = [bounded(*pair, rates=rates, offered=offered) for pair in pairs]
        row["limit"] = "" if name == DIRECT else usual(reasons)
        row["rounds"] = rounds
        rows[name] = row
    return rows


def _ratios(rounds: list[Figures], others: list[Figures], figure: str) -> list[float]:
    """Round by round, where both have the figure."""
    pairs = [(one.get(figure), other.get(figure)) for one, other in zip(rounds, others, strict=False)]
    return [value / other for value, other in pairs if value and other]


def worst(rounds: list[Figures]) -> Figures:
    """Of what went wrong the round with most of it: one failure in one round is one too many."""
    found: Figures = {name: max(one.get(name) or 0 for one in rounds) for name in TROUBLES}
    leaving = [one for one in rounds if one.get("hangups")]
    if leaving:
        most = max(leaving, key=lambda one: one["hangups"] - one["hangups_seen"])
        found |= {name: most[name] for name in ("hangups", "hangups_seen")}
    held = [one["held"] for one in rounds if one.get("held") is not None]
    return found | ({"held": min(held)} if held else {})


def usual(reasons: list[str]) -> str:
    """The commonest of them, where most rounds have one."""
    found = list(filter(None, reasons))
    return Counter(found).most_common(1)[0][0] if 2 * len(found) > len(reasons) else ""


def bounded(figures: Figures, direct: Figures | None, *, rates: bool, offered: float | None) -> str:
    """What held a target back beside itself, or nothing.

    Args:
        figures: of one round.
        direct: the same round without a gateway.
        rates: whether everybody went as fast as they could.
        offered: events a second that were on offer.
    """
    if was_the_limit(figures):
        return HARNESS
    if not rates:
        return ""
    rate = "events_per_second" if figures["events"] else "answers_per_second"
    if offered and figures[rate] >= NEAR * offered:
        return OFFERED
    if direct is not None and figures[rate] >= NEAR * direct[rate] > 0:
        return UNHINDERED
    return FULL if figures["harness_share"] >= BUSY else ""


def median(rounds: list[Figures]) -> Figures:
    """Of every figure, nested ones too; of texts the first that says something; nothing where a round has nothing."""
    if not rounds:
        return {}
    result: Figures = {}
    for name in rounds[0]:
        values = [one.get(name) for one in rounds]
        if any(value is None for value in values):
            result[name] = None
        elif isinstance(values[0], dict):
            result[name] = median([one[name] for one in rounds])
        elif isinstance(values[0], int | float):
            result[name] = statistics.median(one[name] for one in rounds)
        else:
            result[name] = next((value for value in values if value), values[0])
    return result
