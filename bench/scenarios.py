"""The scenarios and how one is run: alternating rounds, direct and through the gateway, medians of each figure."""

import statistics
from typing import Any, Final

from attrs import frozen
from rich.progress import Progress

from bench.processes import Gateway, finish, gateway, start_load, upstream

GATEWAY_CORE: Final = 0
HARNESS_CORE: Final = 1
WARM_UP_SECONDS: Final = 1.0


@frozen
class Case:
    """One row: what is asked for, by how many at once."""

    label: str
    model: str
    concurrency: int


@frozen
class Scenario:
    """A list of cases under one name."""

    text: str
    cases: tuple[Case, ...]


SCENARIOS: Final = {
    "requests": Scenario(
        "answers that are not streamed, by 1, 32 and 128 clients at once",
        tuple(Case(f"{n} at once", "plain", n) for n in (1, 32, 128)),
    ),
    "streaming": Scenario(
        "streamed answers: as fast as they go, and 100 events/s each for 20 and 200 streams",
        (
            Case("saturated, 32 streams", "stream-2000-0", 32),
            Case("paced, 20 × 100/s", "stream-200-10000", 20),
            Case("paced, 200 × 100/s", "stream-200-10000", 200),
        ),
    ),
}


def run(scenario: Scenario, *, seconds: float, rounds: int, pin: bool) -> dict[str, Any]:
    """Run every case of a scenario and give its figures."""
    ours, theirs = (GATEWAY_CORE, HARNESS_CORE) if pin else (None, None)
    rows = []
    with upstream(theirs) as port, gateway(port, ours) as gate, Progress(transient=True) as progress:
        task = progress.add_task("rounds", total=len(scenario.cases) * rounds)
        # the first requests pay for imports and buffers that later ones find ready
        finish(
            start_load(gate.port, gate.key, "sandbox-chat@plain", 32, WARM_UP_SECONDS, theirs),
            WARM_UP_SECONDS,
        )
        for case in scenario.cases:
            direct, through = [], []
            for _ in range(rounds):
                direct.append(_drive(port, "none", case.model, case.concurrency, seconds, theirs))
                through.append(_through(gate, case, seconds, theirs))
                progress.advance(task)
            rows.append(
                {
                    "case": case.label,
                    "concurrency": case.concurrency,
                    "direct": _median(direct),
                    "gateway": _median(through),
                }
            )
    return {"seconds": seconds, "rounds": rounds, "pinned": pin, "rows": rows}


def _drive(
    port: int, key: str, model: str, concurrency: int, seconds: float, core: int | None
) -> dict[str, Any]:
    return finish(start_load(port, key, model, concurrency, seconds, core), seconds)


def _through(gate: Gateway, case: Case, seconds: float, core: int | None) -> dict[str, Any]:
    """The same through the gateway, with its CPU time and memory."""
    model = f"sandbox-chat@{case.model}"
    rss, cpu = gate.rss_bytes(), gate.cpu_seconds()
    process = start_load(gate.port, gate.key, model, case.concurrency, seconds, core)
    try:
        process.wait(seconds * 0.8)
    except Exception:  # noqa: BLE001 - it is still under way, which is the moment to look at memory
        peak = gate.rss_bytes()
    else:
        peak = gate.rss_bytes()
    figures = finish(process, seconds)
    spent = gate.cpu_seconds() - cpu
    figures["cpu_us_per_answer"] = spent * 1e6 / max(figures["answers"], 1)
    if figures["events"]:
        figures["cpu_us_per_event"] = spent * 1e6 / figures["events"]
    if figures["events"]:
        figures["kb_per_stream"] = max(peak - rss, 0) / case.concurrency / 1024
    figures["cpu_share"] = spent / figures["seconds"]
    return figures


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in rounds[0].items():
        if isinstance(value, dict):
            found[name] = {
                inner: statistics.median(one[name][inner] for one in rounds)
                if all(one[name][inner] is not None for one in rounds)
                else None
                for inner in value
            }
        else:
            found[name] = statistics.median(one[name] for one in rounds)
    return found
