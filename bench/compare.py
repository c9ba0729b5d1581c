"""The table of targets: what each kind of work may cost, what it costs nginx and Farebox here, and whether that is met.

All of it is measured in one run, and judged by ratios within it: machines differ, and neighbours come and go.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import evolve, frozen

from bench import report
from bench.harness import Figures, was_asked_otherwise
from bench.rounds import DIRECT, NGINX
from bench.scenarios import SCENARIOS, Case

OURS: Final = "farebox"
URL: Final = "url"
NAME: Final = "compare"
FRESH_ROUNDS_MAX: Final = 3
"""Of cases whose rounds begin with a fresh start: memory hardly varies, and ten thousand streams take their time."""

START_SECONDS: Final = 1.0
LITELLM: Final = "litellm"
TIMES_LITELLM: Final = 20.0
NGINX_REQUEST_US: Final = 12.0
"""What nginx takes for a plain request on the machine that the targets were written on: theirs scales with ours."""


FEW: Final = 0.9
"""With fewer than that share of its connections a case is another one, and says nothing about the target."""

SHOWN: Final = {OURS: "Farebox", URL: "the gateway at --url"}


@frozen
class Line:
    """One line of the table, as it is judged.

    Attributes:
        work, target: as they are called.
        nginx, ours: what was measured, as text.
        ratio: of the two, or `None`.
        met: `None` where it was not measured.
        because: why it is not met, or not measured, where the figures do not say so themselves.
        wanted: whether it is amiss if it was not measured.
    """

    work: str
    target: str
    nginx: str
    ours: str
    ratio: float | None = None
    met: bool | None = None
    because: str = ""
    wanted: bool = True

    @property
    def verdict(self) -> str:
        """For people."""
        word = {True: "yes", False: "**no**", None: "not measured"}[self.met]
        return f"{word}: {self.because}" if self.because else word


CASES: Final[dict[str, Case]] = {
    "saturated": SCENARIOS["saturated"].cases[0],
    "paced_200": SCENARIOS["paced"].cases[0],
    "requests_64": next(case for case in SCENARIOS["requests"].cases if case.label.startswith("64 ")),
    "first": SCENARIOS["first"].cases[0],
    "paced_1000": SCENARIOS["paced"].cases[1],
    "idle": SCENARIOS["idle"].cases[0],
    "hangup": SCENARIOS["hangup"].cases[0],
}
"""What has to be run for it, in this order; the start comes after them."""

WITH_RATIO: Final = frozenset({"idle", "hangup"})
"""Where the ratio to nginx is shown beside a figure that is judged by itself."""

NOT_OF_PEERS: Final = frozenset({"idle"})
"""Ten thousand streams take some peers minutes to refuse, and no target names them there."""

NEEDED: Final = (
    ("requests_64", "answers/s", "answers_per_second", 0),
    ("requests_64", "CPU µs/answer", "cpu_us_per_answer", 1),
    ("saturated", "events/s", "events_per_second", 0),
    ("saturated", "CPU µs/event", "cpu_us_per_event", 1),
    ("paced_200", "CPU µs/event, 200 × 100/s", "cpu_us_per_event", 1),
    ("paced_1000", "CPU µs/event, 1,000 × 20/s", "cpu_us_per_event", 1),
    ("paced_1000", "streams not whole", "cut", 0),
)
"""Beside peers: the case, the column's head, the figure and its digits."""


def names(key: str, all_names: Sequence[str]) -> list[str]:
    """Who is measured in a case."""
    ours = (DIRECT, NGINX, OURS, URL)
    return [name for name in all_names if name in ours or key not in NOT_OF_PEERS]


def lines(figures: Figures) -> list[Line]:
    """Judge what was measured: `figures` has `cases` by the names above, and `start`.

    Whatever failed, came late or was not whole makes that a line is not met: such an answer costs little.
    """
    found = _Found.of(figures)
    return [
        found.by_ratio(
            "saturated", "streaming saturated, CPU per event", "cpu_us_per_event", 2.0, "2 × nginx"
        ),
        found.by_ratio(
            "paced_200", "streaming 200 × 100/s, CPU per event", "cpu_us_per_event", 3.0, "3 × nginx"
        ),
        found.by_ratio(
            "requests_64",
            "plain request, CPU at 64 at once",
            "cpu_us_per_answer",
            150.0 / NGINX_REQUEST_US,
            "150 µs while nginx takes 12",
        ),
        found.at_most(
            "first",
            "added time to first byte, paced at 30 % of capacity, provider's own first token 50 ms, fsync on, "
            "p50 / p99",
            {("added_first_ms", "p50"): 0.5, ("added_first_ms", "p99"): 3.0},
            "0.5 / 3 ms",
            "ms",
        ),
        found.at_most(
            "paced_1000",
            "1,000 streams × 20 events/s: added gap p99",
            {("gap_stretch_ms", "p99"): 10.0},
            "10 ms, nothing dropped",
            "ms",
        ),
        found.at_most("idle", "memory per open stream", {("kb_per_stream",): 20.0}, "20 kB", "kB"),
        found.at_most(
            "hangup",
            "client hangs up → provider's connection closed, p99",
            {("hangup_ms", "p99"): 10.0},
            "10 ms",
            "ms",
        ),
        found.start(figures.get("start")),
        found.against_litellm("requests_64", "requests/s", "answers_per_second"),
        found.against_litellm("saturated", "events/s", "events_per_second"),
    ]


@frozen
class _Found:
    """What was measured, and whom it is to judge: Farebox, or the gateway that was named in its place."""

    cases: dict[str, Any]
    ours: str

    @classmethod
    def of(cls, figures: Figures) -> "_Found":
        return cls(figures["cases"], judged(figures))

    def row(self, key: str, name: str) -> Figures:
        found: Figures = self.cases.get(key, {}).get("rows", {}).get(name, {})
        return found

    def unmeasured(self, key: str, name: str) -> str:
        """Why a case says nothing about a target, or nothing."""
        row = self.row(key, name)
        if not row:
            return f"{name} was not there"
        case, wanted = self.cases[key], CASES[key].plan(1.0)
        # on a timetable connections are only what may be used, and `late` tells if they were too few
        used = wanted.mode != "open" or row.get("late")
        if used and case["connections"] < FEW * wanted.connections:
            unit = "streams" if CASES[key].shape(1.0).stream else "connections"
            return f"only {case['connections']:,} of {wanted.connections:,} {unit}"
        return ""

    def faults(self, key: str, name: str) -> list[str]:
        """What went wrong with a target in a case: with one of these no line is met."""
        row, case = self.row(key, name), self.cases[key]
        plan = CASES[key].plan(1.0)
        found = [report.trouble(row)]
        # of streams without an end, and of clients that leave, some are always under way
        if row.get("cut") and not case["saturates"] and plan.mode != "leave":
            found.append(f"{row['cut']:,.0f} answers were not whole in time")
        if row.get("late"):
            found.append(f"{row['late']:,.0f} requests found no connection free")
        if row.get("hangups") and row["hangups_seen"] < row["hangups"]:
            found.append(f"{row['hangups'] - row['hangups_seen']:,.0f} hang-ups were never seen")
        if plan.mode == "hold" and row.get("held", case["connections"]) < case["connections"]:
            found.append(f"only {row['held']:,.0f} of {case['connections']:,} streams were open")
        if any(map(was_asked_otherwise, row["rounds"])):
            found.append("the provider was asked another number of times than the gateway")
        # of a gateway that runs already one round tells its memory
        rounds = 1 if CASES[key].fresh and name == URL else case.get("rounds", 0)
        if len(row["rounds"]) < rounds:
            found.append(f"only {len(row['rounds'])} of {rounds} rounds")
        return list(filter(None, found))

    def judge(self, key: str, line: Line, good: bool | None, lacking: str = "") -> Line:
        """The line with its verdict, given how the figures compare, or what is lacking for that."""
        if because := self.unmeasured(key, self.ours):
            return evolve(line, because=because)
        if faults := self.faults(key, self.ours):
            return evolve(line, met=False, because="; ".join(faults))
        if good is None:
            note = self.row(key, self.ours).get("note")
            return evolve(line, because=lacking or note or "there are no such figures")
        return evolve(line, met=good)

    def by_ratio(self, key: str, work: str, figure: str, most: float, target: str) -> Line:
        """Judged by the median of the rounds' ratios."""
        ours, floor = self.row(key, self.ours), self.row(key, NGINX)
        ratio = _number(ours, "ratio_to_nginx", figure)
        line = Line(work, target, _text(floor, [(figure,)], "µs"), _text(ours, [(figure,)], "µs"), ratio)
        lacking = self.unmeasured(key, NGINX) or "; ".join(f"nginx: {one}" for one in self.faults(key, NGINX))
        return self.judge(key, line, None if ratio is None or lacking else ratio <= most, lacking)

    def at_most(
        self, key: str, work: str, limits: Mapping[tuple[str, ...], float], target: str, unit: str
    ) -> Line:
        """Judged by itself."""
        ours, floor = self.row(key, self.ours), self.row(key, NGINX)
        figures = [(_number(ours, *path), most) for path, most in limits.items()]
        good = None
        if all(value is not None and value >= 0 for value, _ in figures):
            good = all(value is not None and value <= most for value, most in figures)
        (first, _), (below, *_) = figures[0], (_number(floor, *path) for path in limits)
        ratio = first / below if key in WITH_RATIO and first is not None and below else None
        line = Line(work, target, _text(floor, limits, unit), _text(ours, limits, unit), ratio)
        return self.judge(key, line, good)

    def start(self, figures: Figures | None) -> Line:
        """Cold and warm are both judged: whoever starts it has not always just done so."""
        line = Line("start to first answer", "1.0 s", "–", "–")
        if figures is None:
            found = self.ours != OURS
            return evolve(
                line, because="it runs already" if found else "Farebox was not there", wanted=not found
            )
        warm, cold = figures["warm_seconds"], figures["cold_seconds"]
        word = {True: "yes", False: "no"}
        return evolve(
            line,
            ours=f"{warm:.2f} s, {cold:.2f} s from a cold disk",
            met=warm <= START_SECONDS and cold <= START_SECONDS,
            because=f"warm {word[warm <= START_SECONDS]}, cold {word[cold <= START_SECONDS]}",
        )

    def against_litellm(self, key: str, unit: str, rate: str) -> Line:
        """Here the second column is LiteLLM's."""
        ours, theirs = self.row(key, self.ours), self.row(key, LITELLM)
        own, other = _number(ours, rate), _number(theirs, rate)
        there = "–" if other is None else f"LiteLLM: {other:,.0f}{report.mark(theirs)}"
        here = "–" if own is None else f"{own:,.0f}{report.mark(ours)}"
        # it may drown, and answer nothing at all: that has no ratio, but it was measured
        ratio = own / other if own is not None and other else None
        line = Line(f"{unit} against LiteLLM", f"at least {TIMES_LITELLM:g} ×", there, here, ratio)
        if other is None:
            return evolve(line, because="LiteLLM was not started", wanted=False)
        return self.judge(key, line, None if own is None else own >= TIMES_LITELLM * other)


def judged(figures: Figures) -> str:
    """Whom the table is about: Farebox, unless another gateway was named in its place."""
    there = {name for case in figures["cases"].values() for name in case["rows"]} | set(figures["on"])
    return URL if URL in there and OURS not in there else OURS


def _number(row: Figures, *path: str) -> float | None:
    found = report.value(row, path)
    return None if found is None else float(found)


def _text(row: Figures, paths: Iterable[tuple[str, ...]], unit: str) -> str:
    """Figures of a row as they stand in a cell."""
    numbers = [_number(row, *path) for path in paths]
    if all(number is None for number in numbers):
        return "–"
    digits = 2 if unit == "ms" else 1
    return f"{' / '.join(report.shown(number, digits) for number in numbers)} {unit}{report.mark(row)}"


def as_table(figures: Figures) -> str:
    """The table, and below it what was on and what was not."""
    heads = ("work", "at most", "nginx", SHOWN[judged(figures)], "ratio", "met")
    rows = [
        (
            one.work,
            one.target,
            one.nginx,
            one.ours,
            "–" if one.ratio is None else f"{one.ratio:.2f}",
            one.verdict,
        )
        for one in lines(figures)
    ]
    table = [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    where = figures["machine"] if "machine" in figures else report.machine()
    head = (
        f"{figures['date']}, one gateway core, {where['cores']} cores in all, Python {where['python']}; medians of "
        f"{_rounds(figures)} of {figures['seconds']:g} s; {figures['cores']}; "
        f"provider and clients in {figures['programs']}"
    )
    listed = {**figures, "cases": list(figures["cases"].values())}
    below = [*_beside_peers(figures["cases"]), *_of_the_harness(figures["cases"]), *report.notes(listed)]
    return "\n\n".join([head, "\n".join(table), *below])


def _of_the_harness(cases: dict[str, Any]) -> list[str]:
    """How much of what is taken for the gateway's is that of provider and clients."""
    found = _Found(cases, OURS)
    times = {
        "first byte, p50 / p99": _text(
            found.row("first", DIRECT), [("added_first_ms", "p50"), ("added_first_ms", "p99")], "ms"
        ),
        "gap, p99": _text(found.row("paced_1000", DIRECT), [("gap_stretch_ms", "p99")], "ms"),
    }
    said = [f"{name} {text}" for name, text in times.items() if text != "–"]
    return [f"Added without any gateway, by provider and clients: {'; '.join(said)}"] if said else []


def _rounds(figures: Figures) -> str:
    """How many there were, and of what there were fewer."""
    fewer = {
        "memory": figures["cases"].get("idle", {}).get("rounds"),
        "start": len((figures.get("start") or {}).get("rounds", ())),
    }
    few = [f"{name} {count}" for name, count in fewer.items() if count and count != figures["rounds"]]
    said = f"{figures['rounds']} alternating rounds"
    return f"{said} ({', '.join(few)})" if few else said


def _beside_peers(cases: dict[str, Any]) -> list[str]:
    """What the same work takes whom, where anybody was there but nginx and us."""
    everybody = list(dict.fromkeys(name for case in cases.values() for name in case["rows"]))
    shown = [name for name in everybody if name != DIRECT]
    if not set(shown) - {NGINX, OURS, URL}:
        return []
    found, heads = _Found(cases, OURS), ["", *(head for _, head, _, _ in NEEDED)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in shown:
        rows = ((found.row(key, name), figure, digits) for key, _, figure, digits in NEEDED)
        cells = [report.shown(_number(row, figure), digits) for row, figure, digits in rows]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return ["\n".join(lines)]


def met(figures: Figures) -> bool:
    """Whether everything is met; what should have been measured and was not is not."""
    return all(one.met if one.met is not None else not one.wanted for one in lines(figures))
