"""Alarms ring when they are due, once, wherever they were moved meanwhile; the heap stays small."""

from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from proxy.alarms import LAPSED_MIN, Alarms


@pytest.fixture
async def alarms(nursery):
    alarms = Alarms(pytest.fail)
    nursery.start_soon(alarms.run)
    return alarms


@pytest.fixture
def rung():
    return []


@pytest.fixture
def ring(rung):
    return lambda name="": rung.append((trio.current_time(), name))


async def test_an_alarm_rings_once_when_it_is_due(autojump_clock, alarms, rung, ring):
    alarms.new().set(5, ring)
    await trio.sleep(100)
    assert rung == [(5, "")]


async def test_an_alarm_that_is_off_does_not_ring(autojump_clock, alarms, rung, ring):
    alarm = alarms.new()
    alarm.set(5, ring)
    alarm.off()
    await trio.sleep(100)
    assert rung == []


async def test_an_alarm_may_be_moved_both_ways(autojump_clock, alarms, rung, ring):
    later, sooner = alarms.new(), alarms.new()
    later.set(5, partial(ring, "later"))
    sooner.set(50, partial(ring, "sooner"))
    await trio.sleep(2)
    later.set(20, partial(ring, "later"))
    sooner.set(10, partial(ring, "sooner"))
    await trio.sleep(100)
    assert rung == [(10, "sooner"), (20, "later")]


async def test_an_alarm_that_is_set_to_the_past_rings_at_once(autojump_clock, alarms, rung, ring):
    await trio.sleep(10)
    alarms.new().set(3, ring)
    await trio.testing.wait_all_tasks_blocked()
    assert rung == [(10, "")]


async def test_a_ring_may_set_its_alarm_again(autojump_clock, alarms, rung, ring):
    alarm = alarms.new()

    def again():
        ring()
        if len(rung) < 3:
            alarm.set(trio.current_time() + 5, again)

    alarm.set(5, again)
    await trio.sleep(100)
    assert [at for at, _ in rung] == [5, 10, 15]


async def test_one_ring_that_fails_silences_no_other(autojump_clock, nursery, rung, ring):
    failed = []
    alarms = Alarms(failed.append)
    nursery.start_soon(alarms.run)

    def fail():
        raise ZeroDivisionError

    alarms.new().set(5, fail)
    alarms.new().set(5, ring)
    alarms.new().set(6, ring)
    await trio.sleep(100)
    assert [at for at, _ in rung] == [5, 6]
    assert [type(error) for error in failed] == [ZeroDivisionError]


async def test_moving_an_alarm_with_each_request_leaves_the_heap_as_it_was(autojump_clock, alarms, ring):
    alarm = alarms.new()
    for _ in range(10_000):
        alarm.set(trio.current_time() + 75, ring)
        alarm.off()
        await trio.sleep(0.01)
    assert len(alarms._heap) <= 1


async def test_an_alarm_that_is_off_keeps_nobody_alive(autojump_clock, alarms):
    class Owner:
        def ring(self):
            """Never."""

    owner = Owner()
    alarm = alarms.new()
    alarm.set(1000, owner.ring)
    alarm.off()
    assert "Owner" not in repr(alarm._ring)


steps = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["set", "off", "wait"]), st.integers(0, 40)), max_size=40
)


@given(steps)
def test_whatever_is_done_to_them_alarms_ring_exactly_when_they_are_due(steps):
    rung, expected = [], []

    async def main():
        alarms = Alarms(pytest.fail)
        some = [alarms.new() for _ in range(4)]
        due = {}

        def settle(now):
            for number, at in sorted(due.items(), key=lambda one: one[1]):
                if at <= now:
                    expected.append((max(at, 0), number))
                    del due[number]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarms.run)
            for number, what, value in [*steps, (0, "wait", 1000)]:
                if what == "set":
                    at = trio.current_time() + value + 0.5
                    due[number] = at
                    some[number].set(at, lambda number=number: rung.append((trio.current_time(), number)))
                elif what == "off":
                    due.pop(number, None)
                    some[number].off()
                else:
                    await trio.sleep(value)
                    settle(trio.current_time())
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert sorted(rung) == sorted(expected)


async def test_alarms_that_are_off_do_not_gather_in_the_heap(autojump_clock, alarms, rung, ring):
    """Each connection has one, and clients come and go by the thousand while the first deadlines are minutes away."""
    lasting = alarms.new()
    lasting.set(200, partial(ring, "lasting"))
    for number in range(50_000):
        alarm = alarms.new()
        alarm.set(100 + number % 7, partial(ring, "gone"))
        alarm.off()
    assert len(alarms._heap) <= LAPSED_MIN
    alarm.set(150, partial(ring, "used again"))
    await trio.sleep(300)
    assert rung == [(150, "used again"), (200, "lasting")]


async def test_alarms_that_are_on_stay_however_many_they_are(autojump_clock, alarms, rung, ring):
    many = [alarms.new() for _ in range(3 * LAPSED_MIN)]
    for number, alarm in enumerate(many):
        alarm.set(1000, partial(ring, number))
        alarm.set(500 - number % 100, partial(ring, number))  # the entry before lapses
    await trio.sleep(2000)
    assert sorted(name for _, name in rung) == list(range(3 * LAPSED_MIN))
    assert all(time == 500 - name % 100 for time, name in rung)
