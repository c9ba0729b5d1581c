"""Bugs that are planted into production code are found by the worlds: the oracle sees what it claims to see.

The long form says for every bug after how many seeds it is found, which must be less than a thousand. The short one
begins with a seed that is known to find it; which one that is changes when anything else does, so it looks on.
"""

import pytest

from tests.simulation.bugs import BUGS, planted, seeds_until_found
from tests.simulation.world import run

LOOK_ON = range(150)
WITHIN = range(1_000)

KNOWN = {
    "settled_twice_after_sync_error": 10,
    "slice_lost_after_error": 13,
}
"""A seed that finds it, where the first few do not."""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug):
    found = seeds_until_found(bug, (KNOWN.get(bug, 0), *LOOK_ON), run)
    assert found is not None, f"{bug} is in the code, and nothing was wrong in {len(LOOK_ON)} worlds"


@pytest.mark.long
def test_every_planted_bug_is_found_within_a_thousand_seeds():
    said, missed = [], []
    for bug in BUGS:
        found = seeds_until_found(bug, WITHIN, run)
        if found is None:
            missed.append(bug)
            continue
        said.append(f"{bug}: seed {found[0]}: {found[1][:120]}")
    print("", *said, sep="\n")  # noqa: T201 - what the long form is run for
    assert not missed


def test_a_bug_is_gone_when_it_was_planted():
    for bug in BUGS:
        with planted(bug):
            pass
    assert not run(0).wrong
