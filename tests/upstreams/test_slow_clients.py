"""Whoever reads slowly, or writes without end, is held to the same deadlines; what was written meanwhile is billed."""

import math

import pytest
import trio
from attrs import define, field

from accounting.records import Ending
from proxy.config import Deadlines
from proxy.errors import Kind, StreamBroken
from tests.upstreams.answer_fakes import (
    CONFIG,
    HIDDEN,
    OFFER,
    SILENCE,
    FakeExchange,
    Wait,
    World,
    comes_to_a_standstill,
    no_cut,
    ok,
)
from tests.values import evolve

TURNS = 16


@define(eq=False)
class Flood(FakeExchange):
    """There is always something to read; only now and then it is somebody else's turn."""

    piece: bytes = b"ping"
    turns: int = 0
    begun: bool = False

    def ready(self):
        self.turns += 1
        return None if self.turns % TURNS == 0 else self.piece

    async def read(self, until=math.inf, take=None):  # noqa: ARG002 - an exchange's signature
        await trio.lowlevel.checkpoint()
        begun, self.begun = self.begun, True
        return self.piece if begun else b"content"


@pytest.mark.parametrize(
    ("piece", "ends_after"), [(b"ping", 90), (b"content", 3600)], ids=["pings", "content"]
)
@pytest.mark.parametrize("declines", [False, True])
async def test_a_provider_that_never_pauses_is_held_to_the_deadlines(
    piece, ends_after, declines, autojump_clock
):
    world = World([Flood(200, {}, [], piece=piece)])
    began = trio.current_time()

    def take(chunk):
        autojump_clock.jump(1)
        world.hold.meter.saw(chunk.count(b"content"), len(chunk))
        return not declines

    await comes_to_a_standstill(world, take)
    if declines:
        ends_after = 3600  # what passes while a client is written to is not idle
    assert trio.current_time() - began == pytest.approx(ends_after, abs=3 * TURNS)


async def writing(seconds):
    await trio.sleep(seconds)


async def test_a_client_that_reads_slowly_has_no_longer_than_an_answer_may_take(autojump_clock):
    config = evolve(CONFIG, deadlines=Deadlines(total_seconds=50))
    world = World([ok(b"content", SILENCE)], config=config)
    began = trio.current_time()
    async with world.answer() as answer:
        assert not await answer.hand_on(lambda _: False)
        await answer.in_time(writing(20), more=True)
        with pytest.raises(StreamBroken) as broken:
            await answer.in_time(writing(math.inf), more=True)
    assert (broken.value.kind, broken.value.ending) == (Kind.TIMEOUT, Ending.STALLED)
    assert trio.current_time() - began == pytest.approx(50)
    assert not world.client.open


@define(eq=False)
class Leaving:
    """A client that stops reading after the first piece, and then leaves."""

    world: World
    taken: list = field(factory=list)
    declines_after: float = math.inf
    more: bool = True

    async def watch(self, offer=OFFER, after=30):
        """The middle of `serve`."""
        world = self.world
        with world.reply.scope:
            context = world.answer(offers=[offer])
            with world.hold:
                async with context as answer:
                    while not await answer.hand_on(self.take):
                        await answer.in_time(self.leave(after), more=self.more)

    def take(self, chunk):
        self.world.hold.cover(chunk, no_cut)
        self.world.hold.meter.saw(chunk.count(b"content"), len(chunk))
        self.taken.append(chunk)
        return self.world.reply.muted and len(self.taken) < self.declines_after

    async def leave(self, after):
        await trio.sleep(after)
        self.world.reply.hang_up()
        await trio.lowlevel.checkpoint()


PLENTY = b"content" * 1000


async def test_what_a_provider_wrote_while_a_client_did_not_read_is_billed_though_it_leaves(autojump_clock):
    stream = ok(b"content", PLENTY, PLENTY, Wait(0.1), PLENTY, Wait(0.1), b"content", Wait(0.1), b"content")
    world = World([stream])
    leaving = Leaving(world)
    began = trio.current_time()
    await leaving.watch()
    # then it was no more than a moment's worth at a time: all else is written after the client has left
    assert leaving.taken == [b"content", PLENTY, PLENTY, PLENTY, b"content"]
    assert trio.current_time() - began == pytest.approx(30.2)
    assert world.writer.records[-1].outcome is Ending.HUNG_UP
    assert world.hold.meter.content_frames == 3002
    world.balanced()


@pytest.mark.parametrize(
    "steps",
    [
        [SILENCE],
        [PLENTY, StreamBroken(Kind.UPSTREAM_ERROR, "gone")],
        [step for _ in range(100) for step in (PLENTY, Wait(0.2))],
    ],
    ids=["nothing", "broken", "no end"],
)
async def test_catching_up_ends_soon_whatever_comes(steps, autojump_clock):
    world = World([ok(b"content", *steps)])
    began = trio.current_time()
    await Leaving(world).watch()
    assert trio.current_time() - began <= 30 + 2.01
    assert world.writer.records[-1].outcome is Ending.HUNG_UP
    world.balanced()


async def test_catching_up_ends_where_the_credit_does(autojump_clock):
    world = World([ok(b"content", *[PLENTY] * 10)])
    leaving = Leaving(world, declines_after=3)
    await leaving.watch()
    assert len(leaving.taken) == 3
    world.balanced()


async def test_whoever_leaves_where_nothing_more_would_be_taken_is_caught_up_with_nothing(autojump_clock):
    """An answer that was cut because its credit is used up may not be fed any more."""
    world = World([ok(b"content", *[PLENTY] * 10)])
    leaving = Leaving(world, more=False)
    await leaving.watch()
    assert leaving.taken == [b"content"]
    world.balanced()


async def test_a_client_that_reads_along_and_leaves_costs_no_moment_more(autojump_clock):
    world = World([ok(b"content", b"content", SILENCE)])
    taken = []

    async def leave():
        await trio.sleep(1)
        world.reply.hang_up()

    began = trio.current_time()
    with world.reply.scope:
        context = world.answer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            with world.hold:
                async with context as answer:
                    await answer.hand_on(lambda chunk: taken.append(chunk) is None)
    assert trio.current_time() - began == 1
    assert taken == [b"content", b"content"]
    assert not world.client.open


async def test_where_nothing_stops_the_bill_the_answer_is_read_to_its_end_anyway(autojump_clock):
    world = World([ok(b"content", PLENTY, Wait(60), b"content")])
    leaving = Leaving(world)
    await leaving.watch(HIDDEN)
    assert leaving.taken == [b"content", PLENTY, b"content"]
    assert world.writer.records[-1].outcome is Ending.COMPLETE
    world.balanced()
