"""What was counted last, in `bench/baseline.json`, and how far what is counted now may be from it.

Under the versions of Python and trio that it was recorded with the counters hardly vary, and are compared closely: one
call more per event is told. Under others they are compared widely, and not at all where Python counts otherwise.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any, Final

import trio
from attrs import frozen

BASELINE: Final = Path(__file__).with_name("baseline.json")
SOCKETS: Final = "sockets"
OPEN: Final = "open stream"
BESIDE: Final = (SOCKETS, OPEN)
"""Beside the courses: the gateway's connections, and how many of them lack TCP_NODELAY; what is held for one stream."""

Counts = dict[str, float]
Found = dict[str, Counts]


@frozen
class Allowed:
    """How far a counter may be above the baseline, or below before the baseline is worth recording again.

    Attributes:
        share: of what was recorded.
        slack: so much is always allowed, for a share of next to nothing is nothing.
        elsewhere: the share under other versions; `None`: not compared under another Python.
    """

    share: float = 0.0
    slack: float = 0.0
    elsewhere: float | None = 0.0


EXACT: Final = Allowed()
COUNTERS: Final = {
    "sends": EXACT,
    "receives": EXACT,
    "receives in vain": EXACT,
    "decodings": EXACT,
    "journal writes": EXACT,
    "syncs": EXACT,
    # ids and amounts have the same length nearly always
    "journal bytes": Allowed(0.01, 1.0, 0.02),
    # to standard output and error: nothing is logged on the hot path
    "output bytes": EXACT,
    "epoll changes": EXACT,
    "task steps": Allowed(0.01, 0.05, 0.05),
    "loop turns": Allowed(0.01, 0.05, 0.05),
    # a dictionary that grows or a byte that is late makes a few of them
    "Python calls": Allowed(0.01, 0.25, None),
    "C calls": Allowed(0.01, 0.25, None),
    "bytecodes": Allowed(0.01, 4.0, None),
    "allocations": Allowed(0.01, 1.0, None),
    # tables that grow by steps, of which one may fall between two marks or before them
    "blocks kept": Allowed(0.20, 1.0, None),
    # what refers to itself stays until the collector finds it: it costs a search, and memory that is no longer warm
    "cyclic garbage": EXACT,
}
"""All that is counted. The share of another Python, where there is none, is `WIDE` under another trio alone."""

HELD: Final = {"bytes held": Allowed(0.01, 0.0, None)}
"""Of an open stream: one object more for each is told."""

WIDE: Final = 0.15


def save(found: Found, path: Path = BASELINE) -> None:
    """Record what was counted."""
    path.write_text(json.dumps({**_versions(), "counters": found}, indent=1) + "\n")


def _versions() -> dict[str, str]:
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "trio": trio.__version__}


def load(path: Path = BASELINE) -> dict[str, Any]:
    """The record."""
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


def closeness(recorded: dict[str, Any]) -> str:
    """How a record is compared here, for people."""
    then = f"recorded with Python {recorded['python']} and trio {recorded['trio']}"
    if all(recorded[name] == version for name, version in _versions().items()):
        return f"compared closely: {then}, as here"
    return f"compared widely: {then}, here are {platform.python_version()} and {trio.__version__}"


def compare(found: Found, recorded: dict[str, Any]) -> list[str]:
    """What is more than the baseline allows, or so much less that it should be recorded; empty if nothing is."""
    problems = []
    for course, counters in recorded["counters"].items():
        for name, before in counters.items():
            now, most = found[course][name], _most(name, before, recorded)
            if most is not None and abs(now - before) > most + 1e-9:
                word = "more than" if now > before else "less than"
                problems.append(f"{course}: {now:g} {name}, {word} the {before:g} of the baseline")
    return problems


def _most(name: str, before: float, recorded: dict[str, Any]) -> float | None:
    """How far a counter may be off here; `None`: it is not compared."""
    allowed, here = (COUNTERS | HELD).get(name, EXACT), _versions()
    share: float | None = allowed.share
    if recorded["python"] != here["python"]:
        share = allowed.elsewhere
    elif recorded["trio"] != here["trio"]:
        share = WIDE if allowed.elsewhere is None else allowed.elsewhere
    return None if share is None else max(abs(before) * share, allowed.slack)


def as_table(found: Found) -> str:
    """The counters as a Markdown table."""
    courses = {name: counts for name, counts in found.items() if name not in BESIDE}
    lines = [f"| counted | {' | '.join(courses)} |", "|---" * (len(courses) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{counts[name]:,.2f}' for counts in courses.values())} |"
        for name in COUNTERS
    ]
    for course in BESIDE:
        lines += ["", f"{course}: {', '.join(f'{value:,g} {name}' for name, value in found[course].items())}"]
    return "\n".join(lines)
