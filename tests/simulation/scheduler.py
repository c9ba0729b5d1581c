"""Runs a trio program in virtual time whose every step follows from a seed.

Time stands still while anything can run, and jumps to the next deadline when nothing can. Trio shuffles the tasks
that are due by a random generator of its own; it is seeded here, and told to sort them first. Both are private to
trio (its plugin for hypothesis uses them), so a test looks whether they are still there.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from trio._core import _run
from trio.testing import MockClock

TICK = 1 / 32
"""Everything takes whole ticks: what happens at the same time is shuffled, and goes through the loop together."""


def ticks(seconds):
    """So many seconds, in whole ticks."""
    return round(seconds * 32) / 32


def run(seed, main, *args):
    """Run an async function; the same seed gives the same order of everything."""
    with seeded(seed):
        return trio.run(main, *args, clock=_clock())


def _clock():
    """A mock clock that jumps, without asking the real one or for statistics each time: a tenth of a world's CPU."""
    clock = MockClock(autojump_threshold=0)

    def jump():
        deadline = _run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        if clock._virtual_base < deadline < math.inf:
            clock._virtual_base = deadline

    clock.current_time = lambda: clock._virtual_base
    clock._autojump = jump
    return clock


@contextmanager
def seeded(seed) -> Iterator[None]:
    """Trio's own randomness, made to follow from a seed and given back as it was."""
    before, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before
        _run._r.setstate(state)


def stream(seed, name) -> random.Random:
    """Randomness for one part of a world: what another part asks for does not shift it."""
    return random.Random(f"{seed}/{name}")
