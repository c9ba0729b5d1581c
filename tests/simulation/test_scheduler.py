"""What the simulation needs of trio that is not public; when trio changes, this says what to look at."""

import trio
from trio._core import _run
from trio.testing import MockClock

from tests.simulation.scheduler import TICK, run, seeded, ticks


async def _order(tasks):
    """In which order tasks run that could all run."""
    order = []

    async def note(number):
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(note, number)
    return order


def test_trio_still_has_the_switch_and_the_generator_that_make_its_order_follow_from_a_seed():
    where = (
        "trio._core._run has changed: see `_hypothesis_plugin_setup` there for the way that hypothesis takes"
    )
    assert _run._ALLOW_DETERMINISTIC_SCHEDULING in (True, False), where
    assert callable(_run._r.seed), where
    assert callable(_run._r.shuffle), where


def test_trio_still_asks_its_clock_in_the_way_that_is_replaced_here():
    where = "trio.testing.MockClock has changed: see `_clock` in scheduler.py"
    clock = MockClock(autojump_threshold=0)
    assert clock._virtual_base == 0.0, where
    assert callable(clock._autojump), where
    assert callable(clock.current_time), where


def test_the_same_seed_gives_the_same_order():
    assert run("a", _order, 8) == run("a", _order, 8)


def test_other_seeds_give_other_orders():
    assert len({tuple(run(seed, _order, 8)) for seed in range(8)}) > 4


def test_time_jumps_to_what_is_due_and_stands_still_otherwise():
    async def main():
        began = trio.current_time()
        await trio.lowlevel.checkpoint()
        assert trio.current_time() == began
        await trio.sleep(1000.0)
        with trio.move_on_after(5.5):
            await trio.sleep_forever()
        return trio.current_time() - began

    assert run(1, main) == 1005.5


def test_trios_own_randomness_is_given_back_as_it_was():
    before, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    with seeded(7):
        _run._r.random()
    assert _run._ALLOW_DETERMINISTIC_SCHEDULING is before
    assert _run._r.getstate() == state


def test_ticks_are_exact_in_binary():
    assert ticks(0.1) == 3 * TICK
    assert sum([TICK] * 320) == 10.0
