"""Deadlines of an answer: its first content, pauses, its end and all of it; on virtual time."""

import pytest
import trio
import trio.testing

from accounting.records import Ending
from proxy.config import Deadlines
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.types import Measures
from tests.upstreams.answer_fakes import (
    CONFIG,
    HIDDEN,
    OFFER,
    SILENCE,
    STREAM,
    WHOLE,
    Pieces,
    Wait,
    World,
    comes_to_a_standstill,
    ok,
    two,
)
from tests.values import evolve


@pytest.mark.parametrize(
    ("ask", "offer", "seconds"),
    [
        (STREAM, OFFER, 60),
        (WHOLE, OFFER, 600),
        (evolve(STREAM, measures=Measures(text_bytes=1, reasoning=True)), HIDDEN, 600),
    ],
)
async def test_a_provider_that_does_not_begin_in_time_is_a_504_and_not_tried_again(
    ask, offer, seconds, autojump_clock
):
    world = World([SILENCE, ok(b"content")])
    began = trio.current_time()
    with pytest.raises(UpstreamFailed) as failed:
        await world.run(ask, two(offer))
    assert trio.current_time() - began == pytest.approx(seconds)
    assert (failed.value.status, failed.value.kind) == (504, Kind.TIMEOUT)
    assert world.ends == [(Ending.TIMED_OUT, 0, 0)]
    assert world.accounts == ["a"]
    world.balanced()


async def test_pings_are_not_content_for_the_first_deadline(autojump_clock):
    world = World([ok(*[step for _ in range(100) for step in (b"ping", Wait(10))])])
    began = trio.current_time()
    with pytest.raises(UpstreamFailed) as failed:
        await world.run()
    assert failed.value.status == 504
    assert trio.current_time() - began == pytest.approx(60)
    world.balanced()


async def test_a_stream_that_falls_silent_is_stalled(autojump_clock):
    world = World([ok(b"content", Wait(80), b"content", SILENCE)])
    began = trio.current_time()
    with pytest.raises(StreamBroken) as broken:
        await world.run()
    assert trio.current_time() - began == pytest.approx(170)
    assert (broken.value.kind, broken.value.ending) == (Kind.TIMEOUT, Ending.STALLED)
    world.balanced()


async def test_bytes_that_are_there_already_are_not_waited_for(autojump_clock):
    stream = ok(b"content", b"last")
    world = World([stream])
    async with world.answer() as answer:
        stream.there = [b"one", b"two"]
        with trio.testing.assert_no_checkpoints():
            assert [await anext(Pieces(answer)) for _ in range(3)] == [b"content", b"one", b"two"]
        assert [chunk async for chunk in Pieces(answer)] == [b"last"]


async def test_a_connection_that_breaks_under_bytes_that_were_there_is_broken(autojump_clock):
    for closing in (False, True):
        stream = ok(b"content", SILENCE)
        async with World([stream]).answer() as answer:
            assert await anext(Pieces(answer)) == b"content"
            stream.there = [StreamBroken(Kind.UPSTREAM_ERROR, "reset")]
            if closing:
                answer.expect_close()
            with pytest.raises(StopAsyncIteration if closing else StreamBroken):
                await anext(Pieces(answer))


async def test_pings_do_not_keep_a_stream_alive(autojump_clock):
    world = World([ok(b"content", *[step for _ in range(100) for step in (Wait(20), b"ping")])])
    began = trio.current_time()
    with pytest.raises(StreamBroken):
        await world.run()
    assert trio.current_time() - began == pytest.approx(90)


@pytest.mark.parametrize(
    ("steps", "ends_after"),
    [
        ([step for _ in range(10) for step in (Wait(80), b"content")] + [SILENCE], 890),
        ([b"content", *[step for _ in range(100) for step in (Wait(20), b"ping")]], 90),
        ([step for _ in range(500) for step in (Wait(30), b"content")], 3600),
    ],
    ids=["silence", "pings", "no end"],
)
@pytest.mark.parametrize("declines", [False, True])
async def test_the_deadlines_hold_for_what_is_handed_on_while_somebody_waits(
    steps, ends_after, declines, autojump_clock
):
    """Also where each piece is declined until it is written, as a door does that cannot write at once."""
    stream = ok(b"content", *steps)
    stream.hands_on = True
    world, began, calls = World([stream]), trio.current_time(), []

    def take(chunk):
        calls.append(chunk)
        world.hold.meter.saw(chunk.count(b"content"), len(chunk))
        return not declines

    await comes_to_a_standstill(world, take)
    assert trio.current_time() - began == pytest.approx(ends_after)
    assert len(calls) > 1


@pytest.mark.parametrize("hands_on", [False, True])
async def test_what_taking_raises_is_nobodys_broken_answer(hands_on, autojump_clock):
    """Not even after the terminal event, when a provider may break off as it likes."""
    stream = ok(b"content", Wait(0.5), b"more")
    stream.hands_on = hands_on

    def take(chunk):
        if chunk == b"more":
            raise StreamBroken(Kind.UPSTREAM_ERROR, "too long an end")
        return True

    async with World([stream]).answer() as answer:
        answer.expect_close()
        with pytest.raises(StreamBroken, match="too long"):
            await answer.hand_on(take)


@pytest.mark.parametrize("hands_on", [False, True])
async def test_whoever_declines_is_given_the_rest_later(hands_on, autojump_clock):
    stream = ok(b"content", Wait(1), b"a", Wait(1), b"b", Wait(1), b"c")
    stream.hands_on = hands_on
    taken = []
    async with World([stream]).answer() as answer:
        assert not await answer.hand_on(lambda chunk: taken.append(chunk) or chunk != b"a")
        assert taken == [b"content", b"a"]
        assert await answer.hand_on(lambda chunk: taken.append(chunk) is None)
    assert taken == [b"content", b"a", b"b", b"c"]


async def test_the_time_that_a_slow_client_takes_is_not_idle(autojump_clock):
    world = World([ok(b"content", b"ping", Wait(50), b"ping", Wait(30), b"content")])
    async with world.answer() as answer:
        async for chunk in Pieces(answer):
            world.hold.meter.saw(chunk.count(b"content"), 1)
            await trio.sleep(60)


async def test_the_bytes_of_a_body_that_is_not_streamed_are_progress(autojump_clock):
    config = evolve(CONFIG, deadlines=Deadlines(idle_reasoning_seconds=100))
    world = World([ok(b"{", Wait(90), b'"', Wait(90), b'"', Wait(60), b" ", Wait(60), b"}")], config=config)
    began = trio.current_time()
    with pytest.raises(StreamBroken):
        await world.run(WHOLE)
    assert trio.current_time() - began == pytest.approx(280)


async def test_a_stream_without_end_is_cut_by_the_total_deadline(autojump_clock):
    world = World([ok(*[step for _ in range(500) for step in (b"content", Wait(30))])])
    began = trio.current_time()
    with pytest.raises(StreamBroken) as broken:
        await world.run()
    assert trio.current_time() - began == pytest.approx(3600)
    assert broken.value.ending is Ending.STALLED
    world.balanced()


async def test_a_connection_that_breaks_in_mid_stream_is_broken_and_not_tried_again(autojump_clock):
    world = World([ok(b"content", StreamBroken(Kind.UPSTREAM_ERROR, "gone")), ok(b"content")])
    with pytest.raises(StreamBroken):
        await world.run(offers=two())
    assert [end[0] for end in world.ends] == [Ending.BROKEN]
    world.balanced()


@pytest.mark.parametrize(
    "tail", [[], [SILENCE], [StreamBroken(Kind.UPSTREAM_ERROR, "reset")], [Wait(0.5), b"tail"]]
)
async def test_after_the_terminal_event_the_provider_has_a_second_to_close(tail, autojump_clock):
    world = World([ok(b"content", b"end", *tail)])
    chunks = []
    began = trio.current_time()
    async with world.answer() as answer:
        async for chunk in Pieces(answer):
            chunks.append(chunk)
            if chunk == b"end":
                answer.expect_close()
                answer.expect_close()
    assert chunks[:2] == [b"content", b"end"]
    assert trio.current_time() - began <= 1.0
    assert not world.client.open


async def test_leaving_in_the_middle_closes_the_connection(autojump_clock):
    world = World([ok(b"content", b"content")])
    async with world.answer() as answer:
        async for _ in Pieces(answer):
            break
        assert world.client.open
    assert not world.client.open
