"""Rounds: every target in turn, in an order that rotates; medians, and what each adds to direct in the same round."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final, Protocol, Self

from attrs import define, evolve, field

from bench.harness import Figures, Harness, Plan, was_the_limit
from bench.processes import quiet
from bench.scenarios import Case
from bench.shapes import Shape
from bench.targets import NotHereError, Target

WARM_UP: Final = Plan("loop", 8, 0.5, warm=0.0, drain=5.0)
"""Before a target is measured: the first requests pay for imports and buffers that later ones find ready."""

CAPACITY: Final = Plan("loop", 64, 2.0, warm=0.5, drain=3.0)
DIRECT: Final = "direct"
NGINX: Final = "nginx"
REFERENCE: Final = ("farebox", "url")
"""Whose capacity sets the pace for those who have none of their own to compare by: direct and nginx."""

ADDED: Final = {
    "first_byte_ms": "added_first_byte_ms",
    "gap_stretch_ms": "added_gap_ms",
    "event_delay_ms": "added_delay_ms",
}
RATIOS: Final = ("cpu_us_per_answer", "cpu_us_per_event", "answers_per_second", "events_per_second")

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
    """

    harness: Harness
    starts: Mapping[str, Start]
    seconds: float
    rounds: int
    connections_max: int | None = None
    missing: dict[str, str] = field(factory=dict)
    said: list[str] = field(factory=list)
    on: dict[str, str] = field(factory=dict)
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
        if self.harness.provider is None:
            plan = evolve(plan, expect=0)  # whoever answers does so as they please
        if said:
            self.said.append(said)
        rates = self._rates(case, shape) if case.capacity_share else {}
        found: dict[str, list[Figures]] = {}
        for number in range(rounds or self.rounds):
            for name in rotated([name for name in names if name not in self.missing], number):
                progress.step(f"{case.label}, round {number + 1}, {name}")
                own = evolve(plan, rate=rates[name]) if name in rates else plan
                figures = self._one(name, case, shape, own)
                if figures is not None:
                    found.setdefault(name, []).append(figures)
        return {
            "case": case.label if not said else f"{case.label} (here {plan.connections:,} connections)",
            "connections": plan.connections,
            "saturates": case.saturates,
            "by_capacity": bool(case.capacity_share),
            "rows": summed(found),
        }

    def _one(self, name: str, case: Case, shape: Shape, plan: Plan) -> Figures | None:
        """One measurement; `None` where the target does not come up."""
        try:
            if not case.fresh:
                return self._measure(self._target(name), case, shape, plan)
            with ExitStack() as stack:  # its neighbours may stay up: they do nothing
                return self._measure(self._start(name, stack), case, shape, plan)
        except NotHereError as error:
            self.missing[name] = str(error)
            self.said.append(f"{name} was left out: {error}")
            return None

    def _measure(self, target: Target, case: Case, shape: Shape, plan: Plan) -> Figures:
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
        self.on[name] = target.on
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


def summed(by_name: Mapping[str, list[Figures]]) -> dict[str, Figures]:
    """By target: medians over the rounds, what it adds to direct, its ratios to nginx, and the rounds themselves."""
    direct, nginx = by_name.get(DIRECT, []), by_name.get(NGINX, [])
    rows = {}
    for name, rounds in by_name.items():
        row = median(rounds)
        if name != DIRECT:
            for figure, added in ADDED.items():
                pairs = zip(rounds, direct, strict=False)
                row[added] = median([_less(one.get(figure), other.get(figure)) for one, other in pairs])
        row["ratio_to_nginx"] = {
            figure: statistics.median(found) for figure in RATIOS if (found := _ratios(rounds, nginx, figure))
        }
        row["harness_was_the_limit"] = name != DIRECT and sum(map(was_the_limit, rounds)) * 2 > len(rounds)
        row["rounds"] = rounds
        rows[name] = row
    return rows


def _ratios(rounds: list[Figures], others: list[Figures], figure: str) -> list[float]:
    """Round by round, where both have the figure."""
    pairs = [(one.get(figure), other.get(figure)) for one, other in zip(rounds, others, strict=False)]
    return [value / other for value, other in pairs if value and other]


def _less(value: Figures | None, other: Figures | None) -> Figures:
    """Percentile by percentile; nothing where either has none."""
    if value is None or other is None:
        return {}
    return {name: value[name] - other[name] for name in ("p50", "p95", "p99") if name in value}


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
