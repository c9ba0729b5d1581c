"""Figures as JSON and as a table; ratios beside absolute numbers, because machines differ and are busy."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attrs import frozen

RESULTS: Final = Path(__file__).with_name("results")


@frozen
class Column:
    """A column: which side, which figure, how it is shown."""

    head: str
    side: str
    path: tuple[str, ...]
    digits: int = 0


COLUMNS: Final = (
    Column("answers/s direct", "direct", ("answers_per_second",)),
    Column("answers/s", "gateway", ("answers_per_second",)),
    Column("events/s direct", "direct", ("events_per_second",)),
    Column("events/s", "gateway", ("events_per_second",)),
    Column("first byte p50 ms direct", "direct", ("first_byte_ms", "p50"), 2),
    Column("first byte p50 ms", "gateway", ("first_byte_ms", "p50"), 2),
    Column("p99 ms", "gateway", ("first_byte_ms", "p99"), 2),
    Column("CPU µs/answer", "gateway", ("cpu_us_per_answer",)),
    Column("CPU µs/event", "gateway", ("cpu_us_per_event",), 1),
    Column("kB/stream", "gateway", ("kb_per_stream",), 1),
    Column("CPU share", "gateway", ("cpu_share",), 2),
    Column("failed", "gateway", ("failed",)),
)


def machine() -> dict[str, str]:
    """What it ran on, without naming it."""
    return {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write the figures under `bench/results`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(as_json(figures) + "\n")
    return path


def as_json(figures: dict[str, Any]) -> str:
    """Everything that was measured."""
    return json.dumps({"machine": machine(), **figures}, indent=1, ensure_ascii=False)


def as_table(name: str, figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    columns = [column for column in COLUMNS if any(_value(row, column) for row in figures["rows"])]
    lines = [
        (
            f"{name}: medians of {figures['rounds']} alternating rounds of {figures['seconds']:g} s; "
            "`direct` is the harness's own ceiling (its provider and client, no gateway)"
        ),
        "",
        "| " + " | ".join(["case", *(column.head for column in columns)]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [
        "| " + " | ".join([row["case"], *(_shown(row, column) for column in columns)]) + " |"
        for row in figures["rows"]
    ]
    return "\n".join(lines)


def _value(row: dict[str, Any], column: Column) -> Any:
    value: Any = row[column.side]
    for name in column.path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _shown(row: dict[str, Any], column: Column) -> str:
    value = _value(row, column)
    return "-" if value is None else f"{value:,.{column.digits}f}"
