"""Waiting for credit that others hold: first come, first served, bounded in time and number, nothing lost."""

from contextlib import suppress

import pytest
import trio
import trio.testing

from accounting.refusals import Insufficient
from proxy.waiting import Waiting


class Credit:
    """So much of something that can be taken and given back."""

    def __init__(self, amount, seconds=10.0, most=100):
        self.total = self.left = amount
        self.waiting = Waiting(seconds, most)
        self.log = []

    def take(self, name, amount):
        def take():
            if amount > self.left:
                raise Insufficient("in_flight" if amount <= self.total else "wallet", "w", amount, self.left)
            self.left -= amount
            self.log.append(name)
            return name

        return self.waiting.until_it_fits("w", take)

    def give(self, amount):
        self.left += amount
        self.waiting.wake("w")

    def check(self):
        assert self.waiting.waiting() == 0
        assert self.waiting._queues == {}


async def test_what_fits_is_taken_at_once_and_without_a_checkpoint():
    credit = Credit(10)
    coroutine = credit.take("a", 10)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert credit.log == ["a"]


async def test_without_seconds_to_wait_a_refusal_is_immediate(autojump_clock):
    credit = Credit(10, seconds=0)
    credit.left = 0
    with pytest.raises(Insufficient):
        await credit.take("a", 1)
    credit.check()


async def test_what_can_never_fit_does_not_wait(autojump_clock):
    credit = Credit(10)
    with pytest.raises(Insufficient) as error:
        await credit.take("a", 11)
    assert error.value.limit == "wallet"
    assert trio.current_time() == 0
    credit.check()


async def test_those_who_wait_are_served_in_their_order_and_nobody_overtakes(autojump_clock):
    credit = Credit(10)
    credit.left = 0
    async with trio.open_nursery() as nursery:
        for name, amount in (("large", 9), ("small", 1), ("middle", 5)):
            nursery.start_soon(credit.take, name, amount)
            await trio.testing.wait_all_tasks_blocked()
        credit.give(5)  # would do for the small one, which came later
        await trio.testing.wait_all_tasks_blocked()
        assert credit.log == []
        nursery.start_soon(credit.take, "late", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert credit.log == []
        credit.give(5)
        await trio.testing.wait_all_tasks_blocked()
        assert credit.log == ["large", "small"]
        credit.give(10)
    assert credit.log == ["large", "small", "middle", "late"]
    credit.check()


async def test_waiting_ends_in_time_and_says_what_is_missing(autojump_clock):
    credit = Credit(10, seconds=3)
    credit.left = 4
    with pytest.raises(Insufficient) as error:
        await credit.take("a", 6)
    assert (trio.current_time(), error.value.shortfall) == (3, 2)
    credit.check()


async def test_who_gives_up_lets_the_next_one_have_it(autojump_clock):
    credit = Credit(10, seconds=60)
    credit.left = 2
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_leave_after, scope, 1)
            await credit.take("large", 9)
        assert scope.cancelled_caught
        nursery.start_soon(credit.take, "small", 2)
    assert credit.log == ["small"]
    credit.check()


async def test_a_place_behind_one_that_leaves_is_looked_at_again(autojump_clock):
    credit = Credit(10, seconds=60)
    credit.left = 2
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def large():
            with scope:
                await credit.take("large", 9)

        nursery.start_soon(large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(credit.take, "small", 2)
        await trio.testing.wait_all_tasks_blocked()
        assert credit.log == []
        scope.cancel()
    assert credit.log == ["small"]
    assert trio.current_time() < 1
    credit.check()


async def test_only_so_many_wait(autojump_clock):
    credit = Credit(10, most=2)
    credit.left = 0
    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(credit.take, name, 1)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Insufficient) as error:
            await credit.take("c", 1)
        assert error.value.limit == "in_flight"
        credit.give(10)
    assert credit.log == ["a", "b"]
    credit.check()


async def test_a_hold_that_was_taken_is_not_lost_to_a_cancellation_at_the_same_moment(autojump_clock):
    """What is taken is given back by whoever got it: nothing can be cancelled in between."""
    for delay in (0.0, 1.0, 2.0):
        credit = Credit(10, seconds=1.0)
        credit.left = 0
        got = []

        async def one(credit=credit, got=got):
            got.append(await credit.take("a", 5))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope(deadline=trio.current_time() + 1.0):
                nursery.start_soon(_give_after, credit, delay)
                with suppress(Insufficient):
                    await one()
        assert len(got) == len(credit.log)
        credit.check()


async def _leave_after(scope, seconds):
    await trio.sleep(seconds)
    scope.cancel()


async def _give_after(credit, seconds):
    await trio.sleep(seconds)
    credit.give(5)
