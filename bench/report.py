"""Figures as JSON and as Markdown tables; ratios beside absolute numbers, because machines differ and are busy."""

import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import frozen

RESULTS: Final = Path(__file__).with_name("results")
STOLEN: Final = 0.05
"""From that share on, what neighbours took of the machine is worth a word."""


@frozen
class Column:
    """A column: which figure of a row, how it is shown."""

    head: str
    path: tuple[str, ...]
    digits: int = 0


COLUMNS: Final = (
    Column("answers/s", ("answers_per_second",)),
    Column("events/s", ("events_per_second",)),
    Column("CPU µs/answer", ("cpu_us_per_answer",)),
    Column("× nginx", ("ratio_to_nginx", "cpu_us_per_answer"), 1),
    Column("CPU µs/event", ("cpu_us_per_event",), 1),
    Column("× nginx", ("ratio_to_nginx", "cpu_us_per_event"), 2),
    Column("first byte p50 ms", ("first_byte_ms", "p50"), 2),
    Column("p99", ("first_byte_ms", "p99"), 2),
    Column("added p50", ("added_first_ms", "p50"), 2),
    Column("p95", ("added_first_ms", "p95"), 2),
    Column("p99", ("added_first_ms", "p99"), 2),
    Column("added gap p50 ms", ("gap_stretch_ms", "p50"), 2),
    Column("p95", ("gap_stretch_ms", "p95"), 2),
    Column("p99", ("gap_stretch_ms", "p99"), 2),
    Column("kB/stream", ("kb_per_stream",), 1),
    Column("hang-up p50 ms", ("hangup_ms", "p50"), 2),
    Column("p99", ("hangup_ms", "p99"), 2),
    Column("core used", ("gateway_share",), 2),
)

ANSWERS: Final = ("answers", "events", "streams_begun")
PLAIN_ONLY: Final = ("cpu_us_per_answer",)
STREAM_ONLY: Final = ("cpu_us_per_event", "gap_stretch_ms")
LEGEND: Final = {
    "added_first_ms": "added to the first byte: for each request the time from its sending to its first event, "
    "less the provider's own with its delays",
    "gap_stretch_ms": "added gap: for each event by how much longer than at the provider the gap before it was; "
    "a shorter one counts as 0",
}
"""What figures mean, where their names are too short for it."""


def machine() -> dict[str, str | int]:
    """What it ran on, without naming it."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.release().split("-")[0],
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
    }


def now() -> datetime:
    """The time of a report."""
    return datetime.now(UTC)


def save(name: str, figures: dict[str, Any], text: str, folder: Path = RESULTS) -> Path:
    """Write the figures, and beside them the text that shows them; gives the former's path.

    Raises:
        OSError: that folder may not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{now():%Y%m%dT%H%M%SZ}.json"
    path.write_text(as_json(figures) + "\n")
    path.with_suffix(".md").write_text(text + "\n")
    return path


def newest(name: str, folder: Path = RESULTS) -> Path | None:
    """The last report of a scenario."""
    return max(folder.glob(f"{name}-*.json"), default=None)


def as_json(figures: dict[str, Any], indent: int | None = 1) -> str:
    """Everything that was measured; on one line without an indent."""
    return json.dumps({"machine": machine(), **figures}, indent=indent, ensure_ascii=False)


def unanswered(figures: dict[str, Any]) -> list[str]:
    """In which cases which target gave no answer at all; a stream that has begun is one."""
    cases = figures["cases"]
    if isinstance(cases, dict):  # of a comparison
        cases = list(cases.values())
    return [
        f"{case['case']}, {name}: no answer at all: {row.get('trouble') or 'it was silent'}"
        for case in cases
        for name, row in case["rows"].items()
        if not any(one.get(kind) for one in row["rounds"] for kind in ANSWERS)
    ]


def as_tables(figures: dict[str, Any]) -> str:
    """A scenario's cases as Markdown tables, and what has to be known about them."""
    head = (
        f"{figures['scenario']}: medians of {figures['rounds']} alternating rounds of {figures['seconds']:g} s; "
        f"{figures['cores']}; provider and clients in {figures['programs']}"
    )
    return "\n\n".join([head, *map(_table, figures["cases"]), *notes(figures)])


def _table(case: dict[str, Any]) -> str:
    rows = case["rows"]
    columns = [column for column in COLUMNS if _fits(column, rows.values())]
    heads = [case["case"], *(column.head for column in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        cells = [name + mark(row), *(shown(value(row, column.path), column.digits) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fits(column: Column, rows: Iterable[dict[str, Any]]) -> bool:
    """Whether any row has such a figure, and it is one that this kind of case is about."""
    found = [row for row in rows if value(row, column.path) is not None]
    streams = any(row.get("events") for row in found)
    about = set(column.path)
    if about & set(PLAIN_ONLY) and streams:
        return False
    if about & set(STREAM_ONLY) and not streams:
        return False
    # a rate of nothing is no figure; a percentile of zero is one
    return any(len(column.path) > 1 or value(row, column.path) for row in found)


def mark(row: dict[str, Any]) -> str:
    """Signs behind a name: `*` where a rate may not be the highest, `!` where answers failed."""
    return ("*" if row.get("limit") else "") + ("!" if troubled(row) else "")


def troubled(row: dict[str, Any]) -> int:
    """How many answers failed or were not whole, in the worst round."""
    return int(row.get("failed") or 0) + int(row.get("short") or 0)


def trouble(row: dict[str, Any]) -> str:
    """What was wrong with them."""
    failed, short = int(row.get("failed") or 0), int(row.get("short") or 0)
    said = [f"{failed:,} answers failed: {row.get('trouble') or 'without a word'}"] if failed else []
    return "; ".join(said + ([f"{short:,} answers had another number of events"] if short else []))


def notes(figures: dict[str, Any]) -> list[str]:
    """What a reader of the tables has to know."""
    lines = [f"- {name}: {on}" for name, on in figures["on"].items()]
    lines += [f"- {text}" for text in figures["said"]]
    rows = [(case, name, row) for case in figures["cases"] for name, row in case["rows"].items()]
    for case, name, row in rows:
        if row.get("limit"):
            lines.append(f"- \\* {case['case']}, {name}: {row['limit']}")
        if troubled(row):
            lines.append(f"- ! {case['case']}, {name}: {trouble(row)}")
        if row.get("note"):
            lines.append(f"- {case['case']}, {name}: {row['note']}")
        if row.get("cut") and not case["saturates"] and row.get("hangups") is None:
            lines.append(f"- {case['case']}, {name}: {row['cut']:.0f} answers were not whole in time")
        if row.get("late"):
            lines.append(f"- {case['case']}, {name}: {row['late']:.0f} requests found no connection free")
        if row.get("hangups") and row["hangups_seen"] < row["hangups"]:
            missed = row["hangups"] - row["hangups_seen"]
            lines.append(
                f"- {case['case']}, {name}: {missed:.0f} of {row['hangups']:.0f} hang-ups were not seen"
            )
    seen = {figure for _, _, row in rows for figure in LEGEND if row.get(figure) is not None}
    if seen:
        told = "; ".join(text for figure, text in LEGEND.items() if figure in seen)
        lines.append(f"- {told}; provider and clients are in it, which is what direct has of it")
    stolen = max((row.get("steal") or 0.0 for _, _, row in rows), default=0.0)
    if stolen > STOLEN:
        lines.append(f"- the hypervisor gave up to {stolen:.0%} of the machine to others meanwhile")
    return ["\n".join(lines)] if lines else []


def value(row: dict[str, Any], path: tuple[str, ...]) -> Any:
    """A figure in a row, or `None`."""
    found: Any = row
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def shown(number: Any, digits: int) -> str:
    """A number for a table; no minus before a zero."""
    if number is None:
        return "–"
    text = f"{number:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text
