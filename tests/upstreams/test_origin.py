"""The pool of connections, on virtual time: bounds, order, the queue, and no slot that is ever lost."""

import random
from collections import Counter

import pytest
import trio
import trio.testing
from attrs import define, field

from proxy.errors import StreamBroken
from proxy.upstreams.http1 import NoAnswer, ask
from proxy.upstreams.origin import Bounds, NoSlot, Origins
from proxy.upstreams.wire import Address, Unreachable
from tests.upstreams.scripted import cancelled_at
from tests.upstreams.wires import FakeWire

HERE, THERE = Address("here", 443, tls=True), Address("there", 80, tls=False)


@define(eq=False)
class Dialled:
    """Makes wires, and remembers them."""

    seconds: float = 0.0
    failing: bool = False
    wires: list = field(factory=list)

    async def __call__(self, address, _seconds):
        await trio.sleep(self.seconds)
        if self.failing:
            raise Unreachable("nobody is there")
        wire = FakeWire([], ends=False)
        self.wires.append((address, wire))
        return wire

    def open(self, address=HERE):
        return [wire for at, wire in self.wires if at == address and not wire.closed]


def pool(**bounds):
    dial = Dialled()
    return dial, Origins(dial, Bounds(**bounds))


def settled(origins):
    return origins.idle() and origins.open == origins.kept


# -- kept connections ------------------------------------------------------------------------------


async def test_a_connection_that_was_kept_is_lent_again():
    dial, origins = pool()
    assert origins.lend_kept(HERE, trio.current_time()) is None
    first = await origins.lend(HERE, 5)
    assert not first.reused
    assert origins.lend_kept(HERE, trio.current_time()) is None
    first.keep()
    assert origins.lend_kept(HERE, trio.current_time()) is first
    assert first.reused
    first.keep()
    assert await origins.lend(HERE, 5) is first
    assert len(dial.wires) == 1


async def test_a_connection_is_lent_to_its_own_origin_alone():
    dial, origins = pool()
    (await origins.lend(HERE, 5)).keep()
    assert origins.lend_kept(THERE, trio.current_time()) is None
    await origins.lend(THERE, 5)
    for other in (Address("here", 444, tls=True), Address("here", 443, tls=False)):
        assert origins.lend_kept(other, trio.current_time()) is None
    assert len(dial.wires) == 2


async def test_the_newest_is_lent_first():
    _, origins = pool()
    lent = [await origins.lend(HERE, 5) for _ in range(3)]
    for connection in lent:
        connection.keep()
    assert [origins.lend_kept(HERE, trio.current_time()) for _ in range(3)] == lent[::-1]


async def test_a_connection_that_is_not_quiet_is_closed_and_the_next_taken():
    dial, origins = pool()
    old, new = [await origins.lend(HERE, 5) for _ in range(2)]
    old.keep()
    new.keep()
    new.wire.pieces.append(b"what nobody asked for")
    assert origins.lend_kept(HERE, trio.current_time()) is old
    assert new.wire.closed
    old.keep()
    old.wire.ends = True
    assert origins.lend_kept(HERE, trio.current_time()) is None
    assert settled(origins)
    assert dial.open() == []


async def test_a_connection_is_kept_for_a_while(autojump_clock):
    dial, origins = pool(kept_seconds=15)
    for seconds, again in ((14.9, True), (15.1, False)):
        connection = await origins.lend(HERE, 5)
        connection.keep()
        await trio.sleep(seconds)
        assert (origins.lend_kept(HERE, trio.current_time()) is connection) == again
        connection.close()
    assert dial.open() == []


async def test_old_connections_of_all_origins_go_when_any_is_kept(autojump_clock):
    dial, origins = pool(kept_seconds=15)
    (await origins.lend(THERE, 5)).keep()
    await trio.sleep(16)
    (await origins.lend(HERE, 5)).keep()
    assert dial.open(THERE) == []
    assert len(dial.open(HERE)) == 1
    assert list(origins._origins) == [HERE]


async def test_old_connections_go_when_somebody_says_so_and_nothing_is_asked(autojump_clock):
    dial, origins = pool(kept_seconds=15)
    for address in (HERE, THERE):
        (await origins.lend(address, 5)).keep()
        await trio.sleep(10)
    origins.expire()
    assert (len(dial.open(HERE)), len(dial.open(THERE))) == (0, 1)


async def test_all_that_is_kept_for_one_origin_can_be_closed():
    dial, origins = pool()
    lent = [await origins.lend(address, 5) for address in (HERE, HERE, HERE, THERE)]
    for connection in lent[1:]:
        connection.keep()
    origins.close_kept(HERE)
    assert dial.open(HERE) == [lent[0].wire]
    assert len(dial.open(THERE)) == 1
    origins.close_kept(Address("nowhere", 80, tls=False))
    assert not (await origins.lend(HERE, 5)).reused


async def test_where_there_may_be_no_more_at_all_the_oldest_kept_goes_for_a_new_one():
    dial, origins = pool(open_max=3)
    for address in (THERE, HERE):
        (await origins.lend(address, 5)).keep()
    third, other = Address("third", 80, tls=False), Address("other", 80, tls=False)
    for address in (third, other):
        await origins.lend(address, 5)
    assert (dial.open(THERE), len(dial.open(HERE)), origins.open) == ([], 1, 3)


async def test_a_connection_that_is_being_made_counts_as_one_that_is_open():
    dial, origins = pool(open_max=4)
    lent = [await origins.lend(THERE, 5) for _ in range(4)]
    for connection in lent:
        connection.keep()
    dial.seconds = 1.0
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(origins.lend, HERE, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert origins.open == 1, "three are on their way"
    assert (origins.open, origins.kept) == (4, 1)
    dial.failing = True
    for _ in range(9):
        with pytest.raises(Unreachable):
            await origins.lend(Address("other", 80, tls=False), 5)
    dial.failing = False
    await origins.lend(HERE, 5)
    assert origins.open == 4, "dials that came to nothing are not counted for ever"


async def test_no_more_are_kept_than_may_be_and_the_oldest_go_first():
    dial, origins = pool(kept_max=3)
    lent = [await origins.lend(address, 5) for address in (THERE, HERE, HERE, THERE, HERE)]
    for connection in lent:
        connection.keep()
    assert [connection.wire.closed for connection in lent] == [True, True, False, False, False]
    assert origins.kept == origins.open == 3
    dial, origins = pool(kept_max=0)
    (await origins.lend(HERE, 5)).keep()
    assert dial.open() == []
    assert settled(origins)


async def test_what_nobody_uses_leaves_nothing_behind():
    dial, origins = pool()
    for port in range(100):
        (await origins.lend(Address("here", port, tls=False), 5)).close()
    dial.failing = True
    with pytest.raises(Unreachable):
        await origins.lend(HERE, 5)
    assert origins._origins == {}


async def test_giving_back_twice_is_giving_back_once():
    _, origins = pool(connections_max=2)
    one, two = [await origins.lend(HERE, 5) for _ in range(2)]
    one.close()
    one.close()
    one.keep()
    two.keep()
    two.keep()
    two.close()
    two.close()
    two.keep()
    assert settled(origins)
    assert origins.open == 0


# -- the bound and the queue -----------------------------------------------------------------------


async def test_there_are_never_more_connections_than_may_be(autojump_clock):
    dial, origins = pool(connections_max=3)
    dial.seconds = 0.1
    seen = []

    async def use():
        connection = await origins.lend(HERE, 5)
        seen.append(len(dial.open()))
        await trio.sleep(1)
        connection.keep()

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(use)
    assert len(seen) == 20
    assert max(seen) == 3
    assert len(dial.wires) == 3
    assert settled(origins)


async def test_who_waits_is_served_in_order_and_not_overtaken(autojump_clock):
    _, origins = pool(connections_max=1)
    first = await origins.lend(HERE, 5)
    order = []

    async def use(name):
        connection = await origins.lend(HERE, 5)
        order.append(name)
        connection.keep()

    async with trio.open_nursery() as nursery:
        for name in range(5):
            nursery.start_soon(use, name)
            await trio.testing.wait_all_tasks_blocked()
        first.keep()
        assert (
            origins.lend_kept(HERE, trio.current_time()) is None
        )  # it is there, but it is the first waiter's
        await use("late")
    assert order == [0, 1, 2, 3, 4, "late"]


@pytest.mark.parametrize("how", ["keep", "close"])
async def test_a_waiter_who_is_cancelled_takes_nothing_along(how, autojump_clock):
    _, origins = pool(connections_max=1)
    first, served = await origins.lend(HERE, 5), []

    async def use(scope):
        with scope:
            connection = await origins.lend(HERE, 5)
            served.append(connection)
            connection.close()

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(use, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()
        getattr(first, how)()  # the first in the queue is cancelled already, and has not noticed
        scopes[1].cancel()  # the slot may be this one's by now
    assert 1 <= len(served) <= 3
    assert settled(origins)


async def test_waiting_for_a_slot_has_its_own_patience(autojump_clock):
    _, origins = pool(connections_max=1)
    first = await origins.lend(HERE, 5)
    began = trio.current_time()
    with pytest.raises(NoSlot):
        await origins.lend(HERE, 5, 2.0)
    assert trio.current_time() - began == 2.0
    first.close()
    assert settled(origins)


async def test_a_failed_connect_gives_its_slot_up(autojump_clock):
    dial, origins = pool(connections_max=1)
    dial.failing, dial.seconds = True, 1
    async with trio.open_nursery() as nursery:

        async def fail():
            with pytest.raises(Unreachable):
                await origins.lend(HERE, 5)

        for _ in range(3):
            nursery.start_soon(fail)
    assert trio.current_time() >= 3  # one after the other
    assert settled(origins)


async def test_cancelled_at_every_checkpoint_a_slot_is_never_lost(autojump_clock):
    for n in range(1, 50):
        dial, origins = pool(connections_max=1)
        dial.seconds = 0.1
        held = await origins.lend(HERE, 5)

        async def work(origins=origins):
            (await origins.lend(HERE, 5)).keep()

        async def give_back(held=held):
            await trio.sleep(0.5)
            held.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back)
            reached = await cancelled_at(n, work)
        assert settled(origins), n
        if not reached:
            assert n > 2
            return
    pytest.fail("it never ended")


# -- closing ---------------------------------------------------------------------------------------


async def test_closing_closes_all_and_lends_nothing_more(autojump_clock):
    dial, origins = pool(connections_max=3)
    used, kept = [await origins.lend(HERE, 5) for _ in range(2)]
    kept.keep()
    origins.close()
    assert dial.open() == []
    with pytest.raises(trio.ClosedResourceError):
        await origins.lend(HERE, 5)
    assert origins.lend_kept(HERE, trio.current_time()) is None
    used.keep()
    assert settled(origins)


async def test_who_connects_or_waits_while_it_is_closed_is_told(autojump_clock):
    dial, origins = pool(connections_max=1)
    dial.seconds = 1

    async def use():
        with pytest.raises(trio.ClosedResourceError):
            await origins.lend(HERE, 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        nursery.start_soon(use)
        await trio.sleep(0.5)
        origins.close()
    assert dial.open() == []
    assert settled(origins)


# -- ten thousand cancellations --------------------------------------------------------------------


class Slow(FakeWire):
    """Takes its time for everything, and answers in pieces."""

    rng = None

    async def readable(self, _until=None, _meanwhile=None):
        await trio.sleep(self.rng.choice((0, 0.001, 0.01)))
        if not self.pieces and self.rng.random() < 0.7:
            self.pieces += [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", None, b"cd"]
        return True

    def quiet(self):
        return not self.pieces and self.rng.random() < 0.9


@define(eq=False)
class Crowd:
    """Many who send requests at once, and somebody who cancels them at random moments.

    Attributes:
        bound: connections that one origin may have.
    """

    rng: random.Random
    bound: int = 8
    origins: Origins = field(init=False)
    done: Counter = field(factory=Counter)
    scopes: dict = field(factory=dict)

    def __attrs_post_init__(self):
        self.origins = Origins(self.dial, Bounds(connections_max=self.bound, kept_max=10, kept_seconds=0.05))

    async def dial(self, address, _seconds):
        rng = self.rng
        assert sum(connection._origin.address == address for connection in self.origins._all) < self.bound
        await trio.sleep(rng.choice((0, 0.001, 0.02)))
        if rng.random() < 0.1:
            raise Unreachable("nobody is there")
        wire = Slow([], ends=rng.random() < 0.1, room=rng.choice((2, 100)), room_again=rng.choice((0, 3)))
        wire.rng = rng
        return wire

    async def request(self):
        rng, origins = self.rng, self.origins
        address = rng.choice((HERE, THERE, Address("x", 1, tls=False)))
        connection = origins.lend_kept(address, trio.current_time()) or await origins.lend(
            address, 5, rng.choice((0.01, 10))
        )
        connection.wire.room += rng.choice((0, 50))
        answer = await ask(connection, b"HEAD", b"BODY", lambda: None)
        try:
            while rng.random() < 0.95:
                if (data := answer.ready()) is None:
                    data = await answer.read()
                if not data:
                    return
        finally:
            await answer.aclose()

    async def work(self, number, cancellations):
        while self.done["cancelled"] < cancellations:
            with trio.CancelScope() as scope:
                self.scopes[number] = scope
                try:
                    await self.request()
                    self.done["whole"] += 1
                except (Unreachable, NoSlot, NoAnswer, StreamBroken):
                    self.done["failed"] += 1
            self.done["cancelled"] += scope.cancelled_caught
            await trio.lowlevel.checkpoint()
        del self.scopes[number]

    async def run(self, workers, cancellations):
        async with trio.open_nursery() as nursery:
            for number in range(workers):
                nursery.start_soon(self.work, number, cancellations)
            while self.scopes or not self.done["cancelled"]:
                await trio.sleep(self.rng.choice((0, 0, 0.0001, 0.001)))
                for number in self.rng.sample(sorted(self.scopes), min(4, len(self.scopes))):
                    self.scopes[number].cancel()


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 10))])
async def test_after_ten_thousand_cancellations_all_slots_are_free_and_nobody_waits(autojump_clock, seed):
    crowd = Crowd(random.Random(seed))
    await crowd.run(workers=40, cancellations=10_000)
    origins = crowd.origins
    assert min(crowd.done["whole"], crowd.done["failed"]) > 100, crowd.done
    assert settled(origins)
    assert len(origins._kept) == sum(len(origin.kept) for origin in origins._origins.values()) <= 10
    origins.close()
    assert origins._origins == {}
