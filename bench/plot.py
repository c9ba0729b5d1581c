"""Plots of reports as SVG: bars for what work costs, lines for what a soak used; readable in light and dark."""

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from bench import report

WIDTH: Final = 760
LEFT: Final = 118
RIGHT: Final = 96
BAR: Final = 18
GAP: Final = 5
GROUP_GAP: Final = 20
TOP: Final = 74
BOTTOM: Final = 36
LOG_FROM: Final = 40.0
"""A larger span than that is drawn on a logarithmic scale, and says so."""

STYLE: Final = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.ground { fill: #ffffff; } .title { fill: #1a1d21; font-size: 16px; font-weight: 600; }
.sub, .axis { fill: #5b636d; font-size: 12px; } .group { fill: #1a1d21; font-size: 13px; font-weight: 600; }
.name, .value { fill: #30363d; font-size: 12px; } .grid { stroke: #e3e6ea; stroke-width: 1; }
.bar { fill: #9aa5b1; } .ours { fill: #0b7a75; } .line { fill: none; stroke: #0b7a75; stroke-width: 1.5; }
.second { stroke: #b35c00; } .secondtext { fill: #b35c00; }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117; } .title, .group { fill: #f0f3f6; } .sub, .axis { fill: #9ea7b3; }
.name, .value { fill: #d4dae1; } .grid { stroke: #2b323b; } .bar { fill: #5d6875; } .ours { fill: #2fb5a8; }
.line { stroke: #2fb5a8; } .second { stroke: #e39a4a; } .secondtext { fill: #e39a4a; }
}
"""


@frozen
class Group:
    """Bars that belong together: what work it is, and what it costs each target."""

    title: str
    bars: tuple[tuple[str, float], ...]


def bars(title: str, sub: str, groups: Sequence[Group], ours: str = "farebox") -> str:
    """Horizontal bars in groups; values stand behind them.

    Args:
        title: above the plot.
        sub: below the title; says unit and what is better.
        groups: from top to bottom; none of them empty.
        ours: the name whose bars stand out.
    """
    values = [value for group in groups for _, value in group.bars if value > 0]
    scale = Scale.over(values or [1.0])
    height = TOP + BOTTOM + sum(GROUP_GAP + 20 + len(group.bars) * (BAR + GAP) for group in groups)
    parts, y = [], TOP
    if scale.log:
        sub += "; logarithmic scale"
    for tick in scale.ticks():
        x = LEFT + scale.at(tick) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}"/>')
        parts.append(_text("axis", x, height - BOTTOM + 18, short(tick), "middle"))
    for group in groups:
        y += GROUP_GAP
        parts.append(_text("group", LEFT, y, group.title))
        y += 10
        for name, value in group.bars:
            width = max(scale.at(value) * (WIDTH - LEFT - RIGHT), 1.0) if value > 0 else 0.0
            kind = "bar ours" if name == ours else "bar"
            parts.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            )
            parts.append(_text("name", LEFT - 8, y + BAR - 5, name, "end"))
            parts.append(_text("value", LEFT + width + 6, y + BAR - 5, short(value)))
            y += BAR + GAP
        y += 10
    return _svg(title, sub, height, parts)


def lines(title: str, sub: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """One or two lines over time, each on a scale of its own from zero; the second one's stands on the right.

    Args:
        title: above the plot.
        sub: below the title.
        series: names, and points in order of time (seconds).
    """
    height, inner_top, inner_bottom = 320, TOP + 14, 320 - BOTTOM - 6
    last = max(at for _, points in series for at, _ in points) or 1.0
    parts = []
    for number, (name, points) in enumerate(series):
        most = _round_up(max(value for _, value in points) or 1.0)
        places = [
            (
                LEFT + at / last * (WIDTH - LEFT - RIGHT),
                inner_bottom - value / most * (inner_bottom - inner_top),
            )
            for at, value in points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line{" second" if number else ""}" points="{path}"/>')
        side, anchor = (WIDTH - RIGHT + 8, "start") if number else (LEFT - 8, "end")
        kind = " secondtext" if number else ""
        for share in (0.0, 0.5, 1.0):
            y = inner_bottom - share * (inner_bottom - inner_top)
            if not number:
                parts.append(
                    f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                )
            parts.append(_text(f"axis{kind}", side, y + 4, short(most * share), anchor))
        end, anchor = (WIDTH - RIGHT, "end") if number else (LEFT, "start")
        parts.append(_text(f"group{kind}", end, TOP, name, anchor))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = LEFT + share * (WIDTH - LEFT - RIGHT)
        parts.append(_text("axis", at, height - BOTTOM + 18, f"{last * share:.0f} s", "middle"))
    return _svg(title, sub, height, parts)


def _svg(title: str, sub: str, height: int, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
            _text("title", 16, 28, title),
            _text("sub", 16, 47, sub),
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def short(number: float) -> str:
    """A number as it stands beside a bar: three digits that say something."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


@frozen
class Scale:
    """Where a value lies between the ends of an axis.

    Attributes:
        low, high: the ends.
        log: whether each step multiplies.
    """

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """One on which all of these have a place; from zero, or from a power of ten."""
        high, low = max(values), min(values)
        if high / low > LOG_FROM:
            return cls(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)), log=True)
        return cls(0.0, _round_up(high), log=False)

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            if value <= self.low:
                return 0.0
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Where lines are drawn."""
        if not self.log:
            return [self.high * share for share in (0, 0.25, 0.5, 0.75, 1)]
        steps = round(math.log10(self.high / self.low))
        return [self.low * 10.0**step for step in range(steps + 1)]


def _round_up(value: float) -> float:
    """The next number of one digit and a half: 1, 2, 4, 6, 8 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


# -- reports ---------------------------------------------------------------------------------------

ON_TOP: Final = "milliseconds, with those of provider and clients (direct); shorter is better"
FIGURES: Final = (
    ("cpu", "CPU per unit of work", "µs of one core per event or per answer; shorter is better", None),
    ("rates", "Work done on one core", "answers or events per second; longer is better", None),
    ("first", "Added time to first byte, p99", ON_TOP, ("added_first_ms", "p99")),
    ("gaps", "Added gap between events, p99", ON_TOP, ("gap_stretch_ms", "p99")),
    ("memory", "Memory per open stream", "kB; shorter is better", ("kb_per_stream",)),
    (
        "hangup",
        "From a client's hang-up to the provider's connection closed, p99",
        "milliseconds; shorter is better",
        ("hangup_ms", "p99"),
    ),
)
"""Plots by name: title, what is below it, and the figure; for the first two the case decides which."""


def plots(figures: dict[str, Any]) -> dict[str, str]:
    """All plots that a report has figures for, as SVG by name."""
    if "samples" in figures:
        return {"soak": _soak(figures)}
    cases = figures.get("cases", [])
    cases = list(cases.values()) if isinstance(cases, dict) else cases
    found = {}
    for name, title, sub, path in FIGURES:
        groups = [group for case in cases if (group := _group(case, name, path)) is not None]
        if groups:
            found[name] = bars(title, sub, groups)
    return found


def _group(case: dict[str, Any], name: str, path: tuple[str, ...] | None) -> Group | None:
    rows = case["rows"]
    stream = any(row.get("events") for row in rows.values())
    if name == "cpu":
        path = ("cpu_us_per_event",) if stream else ("cpu_us_per_answer",)
    elif name == "rates":
        if stream and not case["saturates"]:
            return None  # on a timetable everybody does the same, or fails to
        path = ("events_per_second",) if stream else ("answers_per_second",)
    assert path is not None
    leaving = any(row.get("hangups") for row in rows.values())
    if name in ("cpu", "gaps") and (case.get("by_capacity") or leaving):
        return None  # there the work is in beginning and ending, not in events
    if name in ("first", "gaps") and (case["saturates"] or leaving):
        return None  # what waits in a queue says nothing about the way through
    unit = "event" if stream else "answer"
    titles = {"cpu": f"{case['case']}, per {unit}", "rates": f"{case['case']}, {unit}s per second"}
    found = tuple(
        (target + report.mark(row), float(number))
        for target, row in rows.items()
        if (number := report.value(row, path)) is not None
    )
    return Group(titles.get(name, case["case"]), found) if found else None


def _soak(figures: dict[str, Any]) -> str:
    samples = figures["samples"]
    return lines(
        f"Soak of {figures['target']}",
        "flat" if figures["verdict"]["flat"] else "; ".join(figures["verdict"]["because"]),
        [
            ("memory, MB", [(at, rss / 2**20) for at, rss, _, _ in samples]),
            ("descriptors", [(at, float(count)) for at, _, count, _ in samples]),
        ],
    )


def write(path: Path) -> list[Path]:
    """Draw a report's plots beside it; says which files were written."""
    figures = json.loads(path.read_text())
    written = []
    for name, svg in plots(figures).items():
        file = path.with_name(f"{path.stem}-{name}.svg")
        file.write_text(svg)
        written.append(file)
    return written
