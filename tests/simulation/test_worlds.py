"""Worlds from seeds: whatever happens in them, the books are right at every moment and agree with everybody else's.

The short form plays some dozens of worlds, the long one (`-m long`) thousands. A world that fails names its seed;
`python -m tests.simulation SEED --trace` plays it again, step for step.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.world import run

ROOT = Path(__file__).resolve().parents[2]

SHORT = (*range(60), 2698)
"""Of the last, a start died between removing two segments that had never been synced."""
LONG = range(1_000, 5_000)
REPLAYED = range(3)

HAPPENED = (
    "power losses", "recoveries", "graceful stops", "heads", "enospc", "eio fdatasync", "index set back", "status 200",
    "status 402", "status 429", "status 502", "status 503", "status 504", "fault kill", "fault power", "fault trap",
)  # fmt: skip
"""What sixty worlds cannot do without; else they would prove little."""


def play(seeds):
    """Play these worlds; gives what there was in them."""
    counts = Counter()
    for seed in seeds:
        outcome = run(seed)
        assert not outcome.wrong, (
            f"{outcome.wrong[0]}\n    to see it again: python -m tests.simulation {seed} --trace"
        )
        counts.update(outcome.counts)
    return counts


def test_the_books_are_right_in_every_world():
    counts = play(SHORT)
    missing = [what for what in HAPPENED if not counts[what]]
    assert not missing, f"nothing of this has happened: {missing}"


@pytest.mark.long
def test_the_books_are_right_in_thousands_of_worlds():
    counts = play(LONG)
    said = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    print(f"\n{len(LONG)} worlds: {said}")  # noqa: T201 - what the long form is run for


def test_a_seed_plays_the_same_world_again():
    first = [run(seed) for seed in REPLAYED]
    again = [run(seed) for seed in REPLAYED]
    for one, other in zip(first, again, strict=True):
        assert one.events == other.events
        assert one.digest == other.digest, "the same events, and other files"


def test_a_seed_plays_the_same_world_in_another_process_with_other_hashes():
    digests = " ".join(run(seed).digest for seed in REPLAYED)
    script = f"from tests.simulation.world import run\nprint(*(run(s).digest for s in {REPLAYED!r}))"
    for hashes in ("1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.strip() == digests


def test_other_seeds_play_other_worlds():
    assert len({run(seed, 10).digest for seed in range(8)}) == 8
