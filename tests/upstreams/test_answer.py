"""Trying accounts, hang-ups and cancellation, on virtual time with scripted providers."""

import math

import pytest
import trio
import trio.testing

from accounting.records import Ending, UsageRecord
from pricing.usage import Meter, Reported, Usage
from proxy.config import Failover
from proxy.errors import Kind, Rejected, StreamBroken, UpstreamFailed
from proxy.pool import Pool, Rest
from proxy.upstreams.answer import ERROR_SECONDS
from proxy.upstreams.client import ConnectionWasStale
from tests.upstreams.answer_fakes import (
    CONFIG,
    HIDDEN,
    OFFER,
    SILENCE,
    STREAM,
    WHOLE,
    FakeExchange,
    FakeReply,
    Pieces,
    Wait,
    World,
    ok,
    refuse,
    two,
)
from tests.values import evolve

# -- an answer -------------------------------------------------------------------------------------


async def test_an_answer_is_relayed_as_it_was_read_prelude_first(autojump_clock):
    world = World([ok(b"start", b"ping", b"content 1", b"content 2")])
    assert await world.run() == b"startpingcontent 1content 2"
    assert [(ending, status) for ending, status, _ in world.ends] == [(Ending.COMPLETE, 200)]
    world.balanced()


async def test_the_bytes_before_content_come_as_one_piece(autojump_clock):
    chunks = []
    await World([ok(b"start", b"ping", b"content 1", b"content 2")]).run(each=chunks.append)
    assert chunks == [b"startpingcontent 1", b"content 2"]


async def test_of_an_answer_that_is_not_streamed_the_status_is_enough(autojump_clock):
    world = World([ok(Wait(5), b"{", b"}")])
    async with world.answer(WHOLE) as answer:
        assert trio.current_time() < 5
        assert [chunk async for chunk in Pieces(answer)] == [b"{", b"}"]


async def test_only_the_headers_that_a_client_needs_come_back(autojump_clock):
    headers = {
        "set-cookie": "a",
        "openai-organization": "org",
        "x-ratelimit-limit-requests": "1",
        "x-request-id": "up",
    }
    world = World([ok(b"content", **headers)])
    with world.answer() and world.hold:
        async with world.upstreams.answer(STREAM, (OFFER,), world.hold, world.reply) as answer:
            assert dict(answer.headers) == {"content-type": "text/event-stream"}
            assert (answer.status, answer.offer) == (200, OFFER)
    assert world.writer.records[-1].upstream_id == "up"


async def test_the_request_carries_the_accounts_own_credential_and_the_url_of_the_provider(autojump_clock):
    world = World([refuse(500), ok(b"content")])
    await world.run(offers=two())
    assert [dict(call.headers)["authorization"] for call in world.client.calls] == [
        "Bearer key-of-a",
        "Bearer key-of-b",
    ]
    assert {call.url for call in world.client.calls} == {"https://inner.example/v1/chat/completions"}
    assert "key-of-a" not in repr(world.client.calls[0])
    assert "key-of-a" not in repr(world.upstreams)


# -- failover --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "ending", "status", "hard"),
    [
        (refuse(429), Ending.REFUSED, 429, True),
        (refuse(401), Ending.REFUSED, 401, True),
        (refuse(402), Ending.REFUSED, 402, True),
        (refuse(403), Ending.REFUSED, 403, True),
        (refuse(400, b'{"message": "API key not valid. Please."}'), Ending.REFUSED, 400, True),
        (refuse(400, b'{"message": "x", "code": "API_KEY_INVALID"}'), Ending.REFUSED, 400, True),
        (refuse(404, b'{"message": "no model"}'), Ending.REFUSED, 404, False),
        (refuse(500), Ending.REFUSED, 500, False),
        (refuse(529, b"<html>"), Ending.REFUSED, 529, False),
        (refuse(302), Ending.REFUSED, 302, False),
        (ok(b"start", b"overloaded"), Ending.REFUSED, 200, False),
        (ok(b"start"), Ending.BROKEN, 200, False),
        (ok(b"start", StreamBroken(Kind.UPSTREAM_ERROR, "gone")), Ending.BROKEN, 200, False),
        (ok(b"content", **{"content-encoding": "gzip"}), Ending.BROKEN, 200, False),
        (
            UpstreamFailed(Kind.UPSTREAM_ERROR, "lost", try_another=True, ending=Ending.UNREACHED),
            Ending.UNREACHED,
            0,
            False,
        ),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, FakeExchange) else str(value.status),
)
async def test_a_failing_account_rests_and_another_answers(first, ending, status, hard, autojump_clock):
    first = evolve(first, script=list(first.script)) if isinstance(first, FakeExchange) else first
    world = World([first, ok(b"content")])
    assert await world.run(offers=two()) == b"content"
    assert world.accounts == ["a", "b"]
    assert world.ends[0] == (ending, status, 0)
    assert world.ends[1][0] is Ending.COMPLETE
    (rest,) = world.pool.resting(trio.current_time())
    assert (rest.account, rest.hard) == ("a", hard)
    assert world.log[0][1] == "account_rests"
    world.balanced()


async def test_an_account_that_cannot_be_reached_is_voided_and_rests_as_a_whole(autojump_clock):
    unreached = UpstreamFailed(Kind.UPSTREAM_ERROR, "no", try_another=True, ending=Ending.UNREACHED)
    world = World([(unreached,), ok(b"content")])
    await world.run(offers=two())
    assert world.ends[0] == "void"
    assert world.pool.resting(trio.current_time())[0].model is None


async def test_a_stale_connection_is_tried_again_at_the_same_account_which_does_not_rest(autojump_clock):
    stale = ConnectionWasStale(Kind.UPSTREAM_ERROR, "no", try_another=True, ending=Ending.UNREACHED)
    world = World([stale, ok(b"content")])
    assert await world.run(offers=two()) == b"content"
    assert world.accounts == ["a", "a"]
    assert world.client.fresh == [False, True]
    assert not world.pool.resting(trio.current_time())


async def test_an_account_with_two_stale_connections_is_left_for_another(autojump_clock):
    stale = [
        ConnectionWasStale(Kind.UPSTREAM_ERROR, "no", try_another=True, ending=Ending.UNREACHED) for _ in "12"
    ]
    world = World([*stale, ok(b"content")])
    await world.run(offers=two())
    assert world.accounts == ["a", "a", "b"]


async def test_a_request_is_sent_to_a_bounded_number_of_accounts(autojump_clock):
    world = World([refuse(500) for _ in range(4)])
    with pytest.raises(UpstreamFailed) as failed:
        await world.run(offers=[evolve(OFFER, account=name) for name in "abcd"])
    assert world.accounts == ["a", "b", "c"]
    assert (failed.value.status, failed.value.kind) == (502, Kind.UPSTREAM_ERROR)
    world.balanced()


async def test_the_last_failure_settles_at_nothing_and_is_not_said_to_have_failed_over(autojump_clock):
    world = World([refuse(500), refuse(503)])
    with pytest.raises(UpstreamFailed):
        await world.run(offers=two())
    first, last = (record for record in world.writer.records if isinstance(record, UsageRecord))
    assert "failed_over" in first.flags
    assert "failed_over" not in last.flags
    assert (last.status, last.charged, last.outcome) == (503, 0, Ending.REFUSED)


async def test_where_every_account_rests_the_caller_learns_when_to_come_again(autojump_clock):
    world = World([refuse(429, retry_after="40"), refuse(429, retry_after="20")])
    with pytest.raises(UpstreamFailed) as failed:
        await world.run(offers=two())
    assert (failed.value.status, failed.value.retry_after_seconds) == (503, 20)
    await trio.sleep(8)
    again = World([], pool=world.pool)
    with pytest.raises(UpstreamFailed) as failed:
        await again.run(offers=two())
    assert (failed.value.kind, failed.value.retry_after_seconds) == (Kind.NO_HEALTHY_UPSTREAM, 12)
    assert again.writer.records == []
    again.balanced()


async def test_a_resting_account_is_skipped_until_its_rest_is_over(autojump_clock):
    pool = Pool()
    pool.rest(Rest("p", "a", None, 0.0, 1000.0, "401", hard=True))
    pool.rest(Rest("p", "a", None, 0.0, trio.current_time() + 10, "401", hard=True))
    world = World([ok(b"content")], pool=pool)
    await world.run(offers=two())
    assert world.accounts == ["b"]
    await trio.sleep(1000)
    world = World([ok(b"content")], pool=pool)
    await world.run(offers=two())
    assert world.accounts == ["a"]


async def test_a_lone_account_is_tried_again_right_after_a_500(autojump_clock):
    world = World([refuse(500)])
    with pytest.raises(UpstreamFailed):
        await world.run()
    again = World([ok(b"content")], pool=world.pool)
    assert await again.run() == b"content"
    assert not world.pool.resting(trio.current_time())


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_what_a_provider_says_about_the_request_reaches_the_caller_scrubbed(status, autojump_clock):
    body = b'{"message": "org-abcdef12 at https://inner.example/v1 with key-of-a: bad n", "param": "n"}'
    world = World([refuse(status, body), ok(b"content")])
    with pytest.raises(Rejected) as refused:
        await world.run(offers=two())
    assert (refused.value.status, refused.value.kind, refused.value.param) == (
        status,
        Kind.REFUSED_UPSTREAM,
        "n",
    )
    for private in ("abcdef12", "inner.example", "key-of-a"):
        assert private not in refused.value.message
    assert "bad n" in refused.value.message
    assert world.accounts == ["a"]
    assert not world.pool.resting(trio.current_time())
    assert world.ends == [(Ending.REFUSED, status, 0)]
    world.balanced()


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_the_status_of_the_operators_account_never_reaches_a_caller(status, autojump_clock):
    world = World([refuse(status, b'{"message": "Incorrect API key provided: sk-abcdef"}')])
    with pytest.raises(UpstreamFailed) as failed:
        await world.run()
    assert failed.value.status == 503
    assert "sk-" not in failed.value.message


async def test_an_error_body_without_end_is_read_within_its_bounds(autojump_clock):
    endless = FakeExchange(500, {}, [b"x" * 10_000] * 1000)
    slow = FakeExchange(500, {}, [b"x", SILENCE])
    world = World([endless, slow])
    began = trio.current_time()
    with pytest.raises(UpstreamFailed):
        await world.run(offers=two())
    assert len(endless.script) > 900
    assert trio.current_time() - began == pytest.approx(ERROR_SECONDS)
    world.balanced()


async def test_full_books_refuse_before_anything_is_sent(autojump_clock):
    world = World([ok(b"content")])
    world.writer.full = True
    with pytest.raises(Rejected) as refused:
        await world.run()
    assert (refused.value.kind, refused.value.retry_after_seconds) == (Kind.OVERLOADED, 7)
    assert world.client.calls == []
    world.balanced()


async def test_the_prelude_of_an_overload_says_nothing_of_the_operator(autojump_clock):
    world = World([ok(b"overloaded")])
    with pytest.raises(UpstreamFailed) as failed:
        await world.run()
    assert failed.value.message == "org-… is overloaded at …"


async def test_a_stream_that_begins_by_refusing_the_request_rests_nobody_and_is_not_tried_again(
    autojump_clock,
):
    refusal = UpstreamFailed(Kind.REFUSED_UPSTREAM, "bad n", try_another=False)
    world = World([ok(b"start", refusal), ok(b"content")])
    with pytest.raises(UpstreamFailed) as failed:
        await world.run(offers=two())
    assert failed.value.status == 400
    assert world.accounts == ["a"]
    assert not world.pool.resting(trio.current_time())
    world.balanced()


async def test_a_prelude_beyond_its_bound_counts_as_content(autojump_clock):
    config = evolve(CONFIG, limits=evolve(CONFIG.limits, frame_bytes_max=65_536))
    world = World([ok(*[b"x" * 10_000] * 10)], config=config)
    assert len(await world.run()) == 100_000


async def test_a_bug_in_writing_the_request_leaves_nothing_open(autojump_clock):
    world = World([ok(b"content")])
    world.upstreams.dialects["openai_chat"].write_request = None
    with pytest.raises(TypeError):
        await world.run()
    assert world.writer.records == []
    world.balanced()


# -- hang-ups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "on_hangup", "muted"),
    [
        (OFFER, "mute", False),
        (HIDDEN, "mute", True),
        (HIDDEN, "abort", False),
        (evolve(OFFER, stops_billing="unknown"), "mute", True),
        (evolve(OFFER, stops_billing="no"), "mute", True),
        (evolve(OFFER, stops_billing="no"), "abort", False),
    ],
)
async def test_a_hang_up_aborts_only_where_that_stops_the_bill_or_the_operator_says_so(
    offer, on_hangup, muted, autojump_clock
):
    world = World([ok(b"content", b"content")], config=evolve(CONFIG, on_hangup_hidden=on_hangup))
    relayed = await world.run(offers=[offer], each=lambda _: world.reply.hang_up())
    assert relayed == (b"contentcontent" if muted else b"content")
    assert [end[0] for end in world.ends] == [Ending.COMPLETE if muted else Ending.HUNG_UP]
    assert world.reply.switches == [False, muted]
    world.balanced()


async def test_whoever_leaves_before_anything_was_sent_pays_nothing(autojump_clock):
    world = World([ok(b"content")])
    world.reply.hang_up()
    await world.run(offers=[HIDDEN])
    assert world.client.calls == []
    assert world.writer.records == []
    world.balanced()


@pytest.mark.parametrize("offer", [OFFER, HIDDEN])
async def test_no_further_attempt_is_begun_for_a_client_that_is_gone(offer, autojump_clock):
    class Leaves(FakeExchange):
        async def read(self, until=math.inf, _take=None):
            world.reply.hang_up()
            return await FakeExchange.read(self, until)

    world = World([Leaves(500, {}, [b"{}"]), ok(b"content")])
    await world.run(offers=two(offer))
    assert world.accounts == ["a"]
    assert [(end[0], end[2]) for end in world.ends] == [(Ending.REFUSED, 0)]
    world.balanced()


async def test_no_further_attempt_is_begun_even_if_the_reply_does_not_cancel(autojump_clock):
    class Lax(FakeReply):
        def mute_when_gone(self, mute):
            pass

    world = World([refuse(500), ok(b"content")], reply=Lax(client_gone=True))
    with pytest.raises(UpstreamFailed):
        await world.run(offers=two())
    assert world.client.calls == []
    world.balanced()


# -- cancellation ----------------------------------------------------------------------------------


class CancelAt(trio.abc.Instrument):
    """Cancels a scope at the n-th time that its task is scheduled."""

    def __init__(self, task, n, cancel):
        self.task, self.left, self.cancel = task, n, cancel

    def before_task_step(self, task):
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.cancel()


SCRIPTS = {
    "answer": lambda: [ok(b"start", b"content", Wait(1), b"content")],
    "failover": lambda: [
        refuse(500),
        UpstreamFailed(Kind.UPSTREAM_ERROR, "no", try_another=True, ending=Ending.UNREACHED),
        ok(b"start", b"content"),
    ],
    "overloaded prelude": lambda: [ok(b"start", b"overloaded"), Wait(3), ok(b"content", b"content")],
    "refused": lambda: [refuse(400)],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("how", ["cancelled", "hung up"])
@pytest.mark.parametrize("offer", [OFFER, HIDDEN], ids=["abort", "mute"])
async def test_cancelled_at_every_checkpoint_no_connection_stays_open_and_the_books_balance(
    script, how, offer, autojump_clock
):
    offers = [evolve(offer, account=name) for name in "abc"]
    for n in range(1, 200):
        world = World(SCRIPTS[script]())
        cancel = world.reply.hang_up if how == "hung up" else world.reply.scope.cancel
        instrument = CancelAt(trio.lowlevel.current_task(), n, cancel)
        trio.lowlevel.add_instrument(instrument)
        try:
            await world.run(offers=offers)
        except (UpstreamFailed, Rejected):
            pass
        finally:
            trio.lowlevel.remove_instrument(instrument)
        world.balanced()
        for record in world.writer.records:
            if isinstance(record, UsageRecord) and not record.first_byte_ms and record.status >= 400:
                assert record.charged == 0, "a refused attempt costs nothing, whenever its client left"
        if instrument.left > 0:
            break
    else:
        pytest.fail("it never ended")
    assert n > 3


async def test_success_wakes_an_account(autojump_clock):
    pool = Pool()
    pool.rest(Rest("p", "a", None, 0.0, 1e9, "500", hard=False))
    await World([ok(b"content")], pool=pool).run()
    assert not pool.resting(trio.current_time())


async def test_the_meter_of_a_hold_counts_the_attempt_that_answers_only(autojump_clock):
    world = World([ok(b"start", b"overloaded"), ok(b"content")])
    await world.run(offers=two())
    meter = world.hold.meter
    assert isinstance(meter, Meter)
    assert meter.content_frames == 1


async def test_a_reported_answer_is_charged_by_its_report(autojump_clock):
    world = World([ok(b"content")])

    def report(_chunk):
        world.hold.meter.report(Reported((Usage(input=10, output=5),), final=True))

    await world.run(each=report)
    assert world.ends == [(Ending.COMPLETE, 200, 20)]


def test_the_defaults_for_failover_are_bounded():
    assert Failover().attempts_max == 3
    assert Failover().rest_limited_seconds_max >= Failover().rest_limited_seconds
