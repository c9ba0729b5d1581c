"""The table of targets: what each kind of work may cost, what it costs nginx and Farebox here, and whether that is met.

All of it is measured in one run, and judged by ratios within it: machines differ, and neighbours come and go.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from bench import report
from bench.harness import Figures
from bench.rounds import DIRECT, NGINX
from bench.scenarios import SCENARIOS, Case

OURS: Final = "farebox"
NAME: Final = "compare"
FRESH_ROUNDS_MAX: Final = 3
"""Of cases whose rounds begin with a fresh start: memory hardly varies, and ten thousand streams take their time."""

LITELLM: Final = "litellm"
TIMES_LITELLM: Final = 20.0
NGINX_REQUEST_US: Final = 12.0
"""What nginx takes for a plain request on the machine that the targets were written on: theirs scales with ours."""


@frozen
class Line:
    """One line of the table, as it is judged.

    Attributes:
        work, target: as they are called.
        nginx, ours: what was measured, as text.
        ratio: of the two, or `None`.
        met: `None` where it was not measured.
    """

    work: str
    target: str
    nginx: str
    ours: str
    ratio: float | None
    met: bool | None


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
    ours = (DIRECT, NGINX, OURS)
    return [name for name in all_names if name in ours or key not in NOT_OF_PEERS]


def lines(figures: Figures) -> list[Line]:
    """Judge what was measured: `figures` has `cases` by the names above, and `start`."""
    cases = figures["cases"]
    found = [
        _by_ratio(
            cases, "saturated", "streaming saturated, CPU per event", "cpu_us_per_event", 2.0, "2 × nginx"
        ),
        _by_ratio(
            cases, "paced_200", "streaming 200 × 100/s, CPU per event", "cpu_us_per_event", 3.0, "3 × nginx"
        ),
        _by_ratio(
            cases,
            "requests_64",
            "plain request, CPU at 64 at once",
            "cpu_us_per_answer",
            150.0 / NGINX_REQUEST_US,
            "150 µs while nginx takes 12",
        ),
        _first(cases),
        _gap(cases),
        _at_most(cases, "idle", "memory per open stream", ("kb_per_stream",), 20.0, "kB"),
        _at_most(
            cases,
            "hangup",
            "client hangs up → provider's connection closed, p99",
            ("hangup_ms", "p99"),
            10.0,
            "ms",
        ),
        _start(figures.get("start")),
    ]
    found.append(_against_litellm(cases, "requests_64", "requests/s", "answers_per_second"))
    found.append(_against_litellm(cases, "saturated", "events/s", "events_per_second"))
    return found


def _row(cases: dict[str, Any], key: str, name: str) -> Figures:
    found: Figures = cases.get(key, {}).get("rows", {}).get(name, {})
    return found


def _number(row: Figures, *path: str) -> float | None:
    found = report.value(row, path)
    return None if found is None else float(found)


def _by_ratio(cases: dict[str, Any], key: str, work: str, figure: str, most: float, target: str) -> Line:
    """Judged by the median of the rounds' ratios."""
    ours, floor = _row(cases, key, OURS), _row(cases, key, NGINX)
    ratio = _number(ours, "ratio_to_nginx", figure)
    met = None if ratio is None else ratio <= most and not report.troubled(ours)
    return Line(work, target, _text(floor, figure, "µs"), _text(ours, figure, "µs"), ratio, met)


def _text(row: Figures, figure: str, unit: str) -> str:
    number = _number(row, *figure.split("."))
    return "–" if number is None else f"{number:,.1f} {unit}{report.mark(row)}"


def _first(cases: dict[str, Any]) -> Line:
    work = (
        "added time to first byte, paced at 30 % of capacity, provider's own first token 50 ms, fsync on, "
        "p50 / p99"
    )

    def both(name: str) -> tuple[float | None, float | None, str]:
        row = _row(cases, "first", name)
        p50, p99 = _number(row, "added_first_byte_ms", "p50"), _number(row, "added_first_byte_ms", "p99")
        text = "–" if p50 is None or p99 is None else f"{p50:.2f} / {p99:.2f} ms{report.mark(row)}"
        return p50, p99, text

    (p50, p99, ours), (_, _, floor) = both(OURS), both(NGINX)
    met = None if p50 is None or p99 is None else p50 <= 0.5 and p99 <= 3.0
    return Line(work, "0.5 / 3 ms", floor, ours, None, met)


def _gap(cases: dict[str, Any]) -> Line:
    def one(name: str) -> tuple[float | None, int, str]:
        row = _row(cases, "paced_1000", name)
        gap = _number(row, "added_gap_ms", "p99")
        dropped = report.troubled(row) + int(row.get("cut") or 0)
        said = f", {dropped} dropped" if dropped else ""
        return gap, dropped, "–" if gap is None else f"{gap:.2f} ms{said}"

    (gap, dropped, ours), (_, _, floor) = one(OURS), one(NGINX)
    met = None if gap is None else gap <= 10.0 and not dropped
    return Line(
        "1,000 streams × 20 events/s: added gap p99", "10 ms, nothing dropped", floor, ours, None, met
    )


def _at_most(
    cases: dict[str, Any], key: str, work: str, path: tuple[str, ...], most: float, unit: str
) -> Line:
    """Judged by itself; how many streams it was is said where it was not what was wanted."""
    ours, floor = (_number(_row(cases, key, name), *path) for name in (OURS, NGINX))
    ratio = ours / floor if ours is not None and floor else None
    met = None if ours is None else ours <= most
    return Line(work, f"{most:g} {unit}", _plain(floor, unit), _plain(ours, unit), ratio, met)


def _plain(number: float | None, unit: str) -> str:
    return "–" if number is None else f"{number:,.1f} {unit}"


def _start(figures: Figures | None) -> Line:
    work, target = "start to first answer", "1.0 s"
    if figures is None:
        return Line(work, target, "–", "–", None, None)
    warm, cold = figures["warm_seconds"], figures["cold_seconds"]
    return Line(work, target, "–", f"{warm:.2f} s, {cold:.2f} s from a cold disk", None, warm <= 1.0)


def _against_litellm(cases: dict[str, Any], key: str, unit: str, rate: str) -> Line:
    """Here the second column is LiteLLM's."""
    ours, theirs = _number(_row(cases, key, OURS), rate), _number(_row(cases, key, LITELLM), rate)
    there = "–" if theirs is None else f"LiteLLM: {theirs:,.0f}"
    here = "–" if ours is None else f"{ours:,.0f}"
    ratio = ours / theirs if ours is not None and theirs else None
    # it may drown, and answer nothing at all: that has no ratio, but it was measured
    met = None if ours is None or theirs is None else ours >= TIMES_LITELLM * theirs
    return Line(f"{unit} against LiteLLM", f"at least {TIMES_LITELLM:g} ×", there, here, ratio, met)


def as_table(figures: Figures) -> str:
    """The table, and below it what was on and what was not."""
    heads = ("work", "at most", "nginx", "Farebox", "ratio", "met")
    rows = [
        (
            one.work,
            one.target,
            one.nginx,
            one.ours,
            "–" if one.ratio is None else f"{one.ratio:.2f}",
            {True: "yes", False: "**no**", None: "not measured"}[one.met],
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
        f"{figures['rounds']} alternating rounds of {figures['seconds']:g} s; {figures['cores']}; "
        f"provider and clients in {figures['programs']}"
    )
    listed = {**figures, "cases": list(figures["cases"].values())}
    return "\n\n".join([head, "\n".join(table), *_beside_peers(figures["cases"]), *report.notes(listed)])


def _beside_peers(cases: dict[str, Any]) -> list[str]:
    """What the same work takes whom, where anybody was there but nginx and us."""
    everybody = list(dict.fromkeys(name for case in cases.values() for name in case["rows"]))
    shown = [name for name in everybody if name != DIRECT]
    if not set(shown) - {NGINX, OURS}:
        return []
    heads = ["", *(head for _, head, _, _ in NEEDED)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in shown:
        rows = ((_row(cases, key, name), figure, digits) for key, _, figure, digits in NEEDED)
        cells = [report.shown(_number(row, figure), digits) for row, figure, digits in rows]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return ["\n".join(lines)]


def met(figures: Figures) -> bool:
    """Whether everything that was measured is met."""
    return all(one.met is not False for one in lines(figures))
