"""The soak: everything at once for minutes, while memory and descriptors are looked at; a verdict at the end.

Streams on a timetable, requests at a rate, and clients that hang up in the middle, all well below what the gateway
can do. Memory is flat if the last quarter needs hardly more than the second one did: in the first, buffers and caches
find their size. It breathes by tens of megabytes while the store writes its log into its file, every few minutes; so
it is the lowest tenth of a quarter that counts, and what never comes back stands there, too. Farebox is given little
memory for its store: what DuckDB keeps of the file it has written would else grow for hours before it meets its limit,
and look like a leak, or hide one. Descriptors are judged likewise; and they must be given back when nobody asks any
more, save those of a pool's kept connections: as many as were in use at once. Who does no work needs nothing, too: a
gateway that does not answer, not in time or not in full, or whose process ends, has not passed.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Final

from attrs import frozen

from bench import report
from bench.harness import Figures, Harness, Plan, doubts
from bench.processes import Gone, Used, quiet, used
from bench.rounds import Progress
from bench.shapes import Shape
from bench.targets import Target, placed

TEXT: Final = "streams, requests and hang-ups together for 10 minutes: are memory and descriptors flat?"
SECONDS: Final = 600.0
SAMPLES_MAX: Final = 600

STORE_MEMORY: Final = "64MB"
"""Of Farebox's store: the least that it can be given."""

REQUESTS_PER_SECOND: Final = 200.0
REQUESTS_AT_ONCE: Final = 32
STREAMS: Final = Shape(100, 50_000)
LEAVERS: Final = Shape(1000, 20_000)
GROWTH_SHARE: Final = 0.05
GROWTH_BYTES: Final = 8 * 2**20
"""What memory may grow by from the second quarter to the last: the larger of the two."""

GROWTH_DESCRIPTORS: Final = 2 * REQUESTS_AT_ONCE + 16
"""Likewise, for pools breathe: after a moment in which the disk stood still, all connections that requests may have are
kept for a minute, on both sides."""

SHORT_SECONDS: Final = 480.0
"""Below that, buffers may still be finding their size in the second quarter: the report says so."""

AT_ONCE: Final = 100 + REQUESTS_AT_ONCE
"""Connections that all clients together have to the provider at a time, at most; a pool may keep so many."""

LEAVERS_NAME: Final = "leavers"
NAMES: Final = ("streams", "requests", LEAVERS_NAME)

REST_SECONDS: Final = 20.0
"""Kept connections to the provider are closed after so long at the latest."""


@frozen
class Sample:
    """One look."""

    at: float
    rss_bytes: int
    descriptors: int
    cpu_seconds: float


def run(harness: Harness, target: Target, seconds: float, progress: Progress) -> Figures:
    """Load a target for so long; gives what was seen, with the verdict.

    Raises:
        Gone: its process had ended before all of it began.
    """
    assert target.pid is not None
    expect = STREAMS.events if target.ours else 0  # others answer as they please
    loads = (
        (STREAMS, Plan("loop", 100, seconds, ramp=2.0, warm=0.0, drain=10.0, expect=expect)),
        (Shape(), Plan("open", REQUESTS_AT_ONCE, seconds, warm=2.0, drain=10.0, rate=REQUESTS_PER_SECOND)),
        (LEAVERS, Plan("leave", 5, seconds, warm=2.0, drain=0.0)),
    )
    harness.measure(target, Shape(events=20), Plan("loop", 32, 1.0))
    quiet(target.pid)
    rested = used(target.pid)
    samples: list[Sample] = []
    with ExitStack() as stack:
        clients = [
            stack.enter_context(harness.client(target, target.request(shape), plan)) for shape, plan in loads
        ]
        for client in clients:
            client.mark("begin")
        began = time.monotonic()
        step = max(seconds / SAMPLES_MAX, 0.2)
        while (at := time.monotonic() - began) < seconds:
            try:
                now = used(target.pid)
            except Gone:
                break  # the clients tell what became of their requests
            samples.append(Sample(at, now.rss_bytes, now.descriptors, now.cpu_seconds))
            progress.step(f"soak, {at:.0f} of {seconds:.0f} s, {now.rss_bytes / 2**20:.0f} MB")
            time.sleep(min(step, max(seconds - at, 0.0)))
        for client in clients:
            client.mark("end")
        figures = dict(zip(NAMES, (client.finish() for client in clients), strict=True))
    for one in figures.values():
        one.pop("left")
    asked = harness.provider.stats().get("requests") if harness.provider is not None and target.ours else None
    try:
        after = _at_rest(target.pid, rested.descriptors)
    except Gone:
        after = None
    return {
        "seconds": seconds,
        "target": target.name,
        "on": f"{target.on}; {placed(target.pid)}",
        **figures,
        "rested": {"rss_bytes": rested.rss_bytes, "descriptors": rested.descriptors},
        "after": None if after is None else {"rss_bytes": after.rss_bytes, "descriptors": after.descriptors},
        "samples": [[round(one.at, 2), one.rss_bytes, one.descriptors, one.cpu_seconds] for one in samples],
        "verdict": verdict(samples, rested.descriptors, after.descriptors if after else None, figures, asked),
    }


def _at_rest(pid: int, descriptors: int) -> Used:
    """The target when it has closed what it keeps for a while."""
    until = time.monotonic() + REST_SECONDS
    while (now := used(pid)).descriptors > descriptors and time.monotonic() < until:
        time.sleep(0.5)
    return now


def verdict(
    samples: list[Sample],
    rested: int,
    after: int | None,
    figures: Mapping[str, Figures],
    asked: int | None = None,
) -> dict[str, Any]:
    """Judge: is it flat, and if not, why not?

    Args:
        samples: in order, at even distances.
        rested: descriptors before all of it.
        after: descriptors afterwards; `None` if its process had ended by then.
        figures: of the clients, by name; all must have been answered.
        asked: how often the provider was; `None` if that is not known.
    """
    if not samples:
        return {"flat": False, "because": ["its process ended at once"], "rss_mb": [], "descriptors": []}
    quarter = max(len(samples) // 4, 1)
    second, last = samples[quarter : 2 * quarter] or samples[:1], samples[-quarter:]
    rss = [_low(one.rss_bytes for one in part) for part in (second, last)]
    count = [_low(one.descriptors for one in part) for part in (second, last)]
    because = []
    if rss[1] - rss[0] > max(GROWTH_SHARE * rss[0], GROWTH_BYTES):
        because.append(f"memory grew from {rss[0] / 2**20:.1f} to {rss[1] / 2**20:.1f} MB")
    if count[1] - count[0] > GROWTH_DESCRIPTORS:
        because.append(f"descriptors grew from {count[0]} to {count[1]}")
    if after is None:
        because.append(f"its process has ended, after {samples[-1].at:.0f} s or later")
    elif after - rested > AT_ONCE + GROWTH_DESCRIPTORS:
        because.append(f"{after - rested} descriptors more were open afterwards than before")
    sums = {name: sum(one.get(name, 0) for one in figures.values()) for name in ("asked", "failed", "cut")}
    because += doubts({**sums, "provider_requests": asked})
    because += [f"{name}: {text}" for name, one in figures.items() for text in _faults(name, one)]
    return {
        "flat": not because,
        "because": because,
        "rss_mb": [value / 2**20 for value in rss],
        "descriptors": count,
    }


def _faults(name: str, figures: Figures) -> list[str]:
    """What went wrong with one client's work."""
    found = [report.trouble(figures)]
    if not figures["answers"] and not figures["events"]:
        found.append("nothing was answered")
    if figures["cut"] and name != LEAVERS_NAME:  # of those some are always under way
        found.append(f"{figures['cut']:,} answers were not whole in time")
    if figures["late"]:
        found.append(f"{figures['late']:,} requests found no connection free")
    return list(filter(None, found))


def _low(values: Iterable[int]) -> int:
    """Where it goes back to: a tenth are below."""
    found = sorted(values)
    return found[len(found) // 10]


def as_table(figures: Figures) -> str:
    """The figures as a Markdown table, and the verdict."""
    found = figures["verdict"]
    after = figures["after"]["descriptors"] if figures["after"] else "it had ended"
    rows = (
        ("streams answered whole", f"{figures['streams']['answers']:,}"),
        ("events", f"{figures['streams']['events']:,}"),
        ("requests answered", f"{figures['requests']['answers']:,}"),
        ("requests that found no connection free", f"{figures['requests']['late']:,}"),
        (
            "memory at its lowest, second quarter and last, MB",
            " → ".join(f"{value:.1f}" for value in found["rss_mb"]),
        ),
        ("descriptors, likewise", " → ".join(map(str, found["descriptors"]))),
        ("descriptors before and after", f"{figures['rested']['descriptors']}, {after}"),
    )
    lines = [f"| soak of {figures['target']}, {figures['seconds']:g} s | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    word = "**flat**" if found["flat"] else "**not flat**: " + "; ".join(found["because"])
    if figures["seconds"] < SHORT_SECONDS:
        word += f" (of little weight: {figures['seconds']:g} s are too few for buffers to find their size)"
    on = [f"- {figures['target']}: {figures['on']}"] if "on" in figures else []
    return "\n".join([*lines, "", f"Verdict: {word}", "", *on])
