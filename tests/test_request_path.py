"""The whole request path on fakes and a virtual clock: endings, bills, failover, muting, heartbeats, deadlines."""

import json
import sys

import pytest
import trio

from accounting.records import Attempt, Ending, Void
from pricing.usage import Source
from proxy.errors import Kind, UpstreamFailed
from tests.fakes import ANTHROPIC, OPENAI, TODAY, World, broken


def event(**fields):
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps(base | fields).encode() + b"\n\n"


def delta(text="word"):
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], usage=None)


ROLE = event(
    choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], usage=None
)
FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)
DONE = b"data: [DONE]\n\n"


def usage(prompt=10, completion=5):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event(choices=[], usage=counts)


def body(stream=True, **fields):
    base = {
        "model": "sandbox-chat",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 100,
        "stream": stream,
    }
    return json.dumps(base | fields).encode()


WHOLE = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
).encode()
STREAM = (200, [ROLE, delta(), delta(), FINISH, usage(), DONE])


def price_of(world, prompt=10, completion=5):
    model = world.router.find("sandbox-chat")
    rates = model.tiers_on(TODAY)[0].rates
    return prompt * rates.input + completion * rates.output + (rates.requests or 0)


async def test_a_stream_is_relayed_byte_for_byte_and_charged_what_was_reported(autojump_clock):
    world = World(STREAM)
    reply = await world.ask(body())
    assert reply.body == ROLE + delta() + delta() + FINISH + DONE
    [record] = world.settled
    assert (record.outcome, record.source) == (Ending.COMPLETE, Source.REPORTED)
    assert record.charged == price_of(world)
    assert record.held >= record.charged
    world.check()


async def test_an_answer_that_is_not_streamed_comes_with_its_cost(autojump_clock):
    world = World((200, [WHOLE[:20], WHOLE[20:]], {"content-type": "application/json"}))
    reply = await world.ask(body(stream=False))
    assert reply.body == WHOLE
    [record] = world.settled
    assert int(reply.headers["x-credits-cost-micro"]) == -(-record.charged // 10**6)
    assert reply.headers["x-credits-model"] == "sandbox/chat"
    world.check()


async def test_the_attempt_is_in_the_journal_before_the_first_byte_leaves(autojump_clock):
    world = World(STREAM)
    seen = []
    send = world.provider.send

    async def spying(*call, **how):
        seen.append(len(world.journal.of(Attempt)))
        return await send(*call, **how)

    world.provider.send = spying
    await world.ask(body())
    assert seen == [1]


async def test_the_end_waits_for_the_books(autojump_clock):
    """The client sees content at once, the end only when S is on the platter."""
    world = World(STREAM)
    durable = world.journal.durable

    async def slow(seq):
        await trio.sleep(7)
        await durable(seq)

    world.journal.durable = slow
    reply = await world.ask(body())
    times = [at for at, chunk in reply.writes if chunk]
    assert times[0] >= 7
    assert times[-1] - times[0] >= 7


async def test_credit_that_does_not_suffice_is_a_402_and_nothing_is_sent(autojump_clock):
    world = World(STREAM, amount=1000)
    reply = await world.ask(body())
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["code"], error["type"]) == (
        402,
        "insufficient_credits",
        "insufficient_credits",
    )
    assert error["metadata"]["limit"] == "wallet"
    assert error["metadata"]["shortfall_micro"] > 0
    assert world.provider.calls == []
    world.check()


async def test_a_wallet_of_nothing_is_refused_before_the_body_is_read(autojump_clock):
    world = World(STREAM, amount=0)
    reply = await world.ask(None)
    assert reply.status == 402
    assert world.journal.of(Attempt) == []
    world.check()


async def test_a_refusal_moves_on_to_the_next_account_and_the_customer_pays_once(autojump_clock):
    world = World(
        (429, [b'{"error":{"message":"slow down org-abc"}}'], {"retry-after": "20"}),
        STREAM,
        accounts=("one", "two"),
    )
    reply = await world.ask(body())
    assert reply.body.endswith(DONE)
    first, second = world.settled
    assert (first.account, first.charged, first.outcome) == ("one", 0, Ending.REFUSED)
    assert (second.account, second.charged) == ("two", price_of(world))
    assert first.request == second.request
    [rest] = world.pool.resting(trio.current_time())
    assert (rest.account, rest.until) == ("one", pytest.approx(20, abs=1))
    world.check()


async def test_when_no_account_answers_it_is_a_502_and_free(autojump_clock):
    world = World((500, [b"{}"]), accounts=("one", "two"))
    reply = await world.ask(body())
    assert reply.status == 502
    assert sum(record.charged for record in world.settled) == 0
    world.check()


async def test_no_healthy_account_is_a_503_that_says_when(autojump_clock):
    world = World((429, [b"{}"], {"retry-after": "20"}))
    await world.ask(body())
    reply = await world.ask(body(), request_id="req_2")
    assert reply.status == 503
    assert 1 <= int(reply.headers["retry-after"]) <= 21
    world.check()


async def test_a_providers_word_about_the_request_is_passed_on_without_its_ids(autojump_clock):
    answer = {
        "error": {
            "message": "bad thing in org-AbCdEf1234567890",
            "type": "invalid_request_error",
            "param": "top_p",
        }
    }
    world = World((400, [json.dumps(answer).encode()], {"content-type": "application/json"}))
    reply = await world.ask(body())
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["param"]) == (400, "top_p")
    assert "bad thing" in error["message"]
    assert "AbCdEf" not in error["message"]
    world.check()


async def test_an_overload_in_the_prelude_still_moves_on(autojump_clock):
    error = b'data: {"error":{"message":"overloaded","type":"server_error","code":"overloaded"}}\n\n'
    world = World((200, [ROLE, error]), STREAM, accounts=("one", "two"))
    reply = await world.ask(body())
    assert reply.body.endswith(DONE)
    assert b"overloaded" not in reply.body
    world.check()


@pytest.mark.parametrize(
    "steps",
    [
        [ROLE, delta(), broken()],
        [ROLE, delta()],
        [ROLE, delta(), b'data: {"error":{"message":"boom","type":"server_error"}}\n\n'],
        [ROLE, delta(), delta()[:20]],
    ],
    ids=["cut", "ended early", "error event", "torn frame"],
)
async def test_a_broken_stream_ends_with_an_error_event_and_is_charged_an_estimate(autojump_clock, steps):
    world = World((200, steps))
    reply = await world.ask(body())
    assert b"[DONE]" not in reply.body
    assert b'"error"' in reply.body.rpartition(b"data: ")[2]
    [record] = world.settled
    assert (record.outcome, record.source) == (Ending.BROKEN, Source.ESTIMATED)
    assert 0 < record.charged <= record.held
    world.check()


async def test_hanging_up_where_it_stops_the_bill_closes_the_provider_at_once(autojump_clock):
    world = World((200, [ROLE, *[step for _ in range(50) for step in (delta(), 1.0)]]))

    async def leave(reply):
        await trio.sleep(10.5)
        reply.hang_up()

    await world.ask(body(), meanwhile=leave)
    assert world.provider.exchanges[0].closed_at == pytest.approx(10.5, abs=0.1)
    [record] = world.settled
    assert record.outcome is Ending.HUNG_UP
    assert record.usage.output >= 11
    assert record.usage.input > 0
    world.check()


async def test_hanging_up_elsewhere_reads_on_and_charges_the_report(autojump_clock):
    world = World(
        (200, [ROLE, *[step for _ in range(50) for step in (delta(), 1.0)], FINISH, usage(10, 777), DONE]),
        stops_billing="no",
    )
    muted = []

    async def leave(reply):
        await trio.sleep(10.5)
        reply.hang_up()
        await trio.sleep(1)
        muted.append((world.limits.open, world.limits.muted, world.books.balance("w").held > 0))

    reply = await world.ask(body(max_tokens=1000), meanwhile=leave)
    assert muted == [(1, 1, True)]
    assert not reply.ended
    [record] = world.settled
    assert (record.source, record.usage.output) == (Source.REPORTED, 777)
    world.check()


async def test_an_answer_that_is_not_streamed_is_read_on_too(autojump_clock):
    world = World((200, [30.0, WHOLE], {"content-type": "application/json"}))

    async def leave(reply):
        await trio.sleep(5)
        reply.hang_up()

    await world.ask(body(stream=False), meanwhile=leave)
    [record] = world.settled
    assert (record.source, record.charged) == (Source.REPORTED, price_of(world))
    world.check()


async def test_leaving_before_anything_was_sent_is_void(autojump_clock):
    world = World(STREAM)

    async def never(_call, _sending):
        await trio.sleep_forever()

    world.provider.send = never

    async def leave(reply):
        await trio.sleep(1)
        reply.hang_up()

    await world.ask(body(), meanwhile=leave)
    assert world.settled == []
    assert len(world.journal.of(Void)) == 1
    world.check()


async def test_no_further_attempt_is_begun_for_a_client_that_is_gone(autojump_clock):
    world = World((500, [10.0, b"{}"]), STREAM, accounts=("one", "two"), stops_billing="no")

    async def leave(reply):
        await trio.sleep(1)
        reply.hang_up()

    await world.ask(body(), meanwhile=leave)
    assert len(world.provider.calls) == 1
    assert sum(record.charged for record in world.settled) == 0
    world.check()


async def test_silence_gets_a_heartbeat_and_failover_goes_on_behind_it(autojump_clock):
    world = World((500, [40.0, b"{}"]), STREAM, accounts=("one", "two"))
    reply = await world.ask(body())
    assert reply.status == 200
    assert reply.body.startswith(b": keep-alive\n\n")
    assert reply.body.endswith(DONE)
    world.check()


async def test_a_failure_behind_a_heartbeat_is_an_error_event(autojump_clock):
    world = World((500, [40.0, b"{}"]))
    reply = await world.ask(body())
    assert reply.status == 200
    assert json.loads(reply.body.rpartition(b"data: ")[2])["error"]["code"] == "upstream_error"
    world.check()


async def test_anthropic_gets_pings(autojump_clock):
    ask = {
        "model": "sandbox-claude",
        "max_tokens": 10,
        "stream": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    world = World((500, [40.0, b"{}"]))
    reply = await world.ask(json.dumps(ask).encode(), ANTHROPIC)
    assert reply.body.startswith(b'event: ping\ndata: {"type": "ping"}\n\n')
    assert b"event: error" in reply.body


async def test_no_first_content_in_time_is_a_504_and_is_not_tried_again(autojump_clock):
    world = World((200, [ROLE, 1000.0, delta()]), accounts=("one", "two"))
    reply = await world.ask(body())
    assert trio.current_time() == pytest.approx(60, abs=1)
    assert b"timeout_error" in reply.body
    assert len(world.provider.calls) == 1
    assert sum(record.charged for record in world.settled) == 0
    world.check()


async def test_a_stream_of_nothing_but_pings_stalls(autojump_clock):
    ping = b": ping\n\n"
    world = World((200, [ROLE, delta(), *[step for _ in range(1000) for step in (5.0, ping)]]))
    reply = await world.ask(body())
    assert trio.current_time() == pytest.approx(90, abs=6)
    assert b"timeout_error" in reply.body
    [record] = world.settled
    assert record.outcome is Ending.STALLED
    world.check()


async def test_an_endless_stream_ends_at_the_total_deadline(autojump_clock):
    world = World((200, [ROLE, *[step for _ in range(500) for step in (delta(), 10.0)]]))
    await world.ask(body(max_tokens=10_000))
    assert trio.current_time() == pytest.approx(3600, abs=11)
    world.check()


async def test_a_provider_that_does_not_close_after_the_end_is_closed_after_a_second(autojump_clock):
    world = World((200, [ROLE, delta(), FINISH, usage(), DONE, 1000.0]))
    reply = await world.ask(body())
    assert reply.body.endswith(DONE)
    assert trio.current_time() == pytest.approx(1, abs=0.1)
    world.check()


async def test_a_report_beyond_the_hold_is_the_operators_loss(autojump_clock):
    world = World((200, [ROLE, delta(), FINISH, usage(10, 10**6), DONE]))
    await world.ask(body(max_tokens=10))
    [record] = world.settled
    assert record.charged == record.held < record.price
    assert record.loss == record.price - record.charged
    world.check()


async def test_a_fault_of_ours_is_a_500_without_details_and_the_hold_is_gone(autojump_clock):
    world = World(STREAM)

    async def fails(_call, _sending):
        raise ZeroDivisionError("secret detail")

    world.provider.send = fails
    reply = await world.ask(body())
    assert reply.status == 500
    assert b"secret detail" not in reply.body
    assert b"req_1" in reply.body
    world.check()


async def test_connect_errors_are_void_and_move_on(autojump_clock):
    unreached = UpstreamFailed(Kind.UPSTREAM_ERROR, "no", try_another=True, ending=Ending.UNREACHED)
    world = World((unreached, []), STREAM, accounts=("one", "two"))
    reply = await world.ask(body())
    assert reply.body.endswith(DONE)
    assert len(world.journal.of(Void)) == 1
    assert len(world.settled) == 1
    world.check()


async def test_a_thousand_at_once_on_a_wallet_for_a_hundred_pass_exactly_the_affordable(autojump_clock):
    """No interleaving overspends: what passes is what fits, and available never goes below zero."""
    world = World((200, [5.0, ROLE, delta(), FINISH, usage(), DONE]), accounts=("one",))
    probe = await World(STREAM).ask(body())
    assert probe.status == 200
    one = World(STREAM)
    await one.ask(body())
    hold = one.settled[0].held
    world = World(lambda: (200, [5.0, ROLE, delta(), FINISH, usage(), DONE]), amount=100 * hold + hold - 1)
    lowest, statuses = [], []

    async def client(n):
        reply = await world.ask(body(), request_id=f"req_{n}")
        statuses.append(reply.status)
        balance = world.books.balance("w")
        lowest.append(balance.balance - balance.held)

    async with trio.open_nursery() as nursery:
        for n in range(1000):
            nursery.start_soon(client, n)

    assert sorted(set(statuses)) == [200, 402]
    assert statuses.count(200) == 100
    assert min(lowest) >= 0
    world.check()


async def test_a_402_says_in_flight_when_only_open_holds_stand_in_the_way(autojump_clock):
    one = World(STREAM)
    await one.ask(body())
    world = World(lambda: (200, [5.0, ROLE, delta(), FINISH, usage(), DONE]), amount=one.settled[0].held + 5)
    replies = {}

    async def client(n):
        replies[n] = await world.ask(body(), request_id=f"req_{n}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client, 1)
        await trio.sleep(1)
        nursery.start_soon(client, 2)
    assert json.loads(replies[2].body)["error"]["metadata"]["limit"] == "in_flight"
    assert replies[1].status == 200


async def test_a_revoked_key_is_refused_and_a_stream_under_way_settles(autojump_clock):
    world = World((200, [ROLE, delta(), 5.0, FINISH, usage(), DONE]))

    async def revoke(_reply):
        await trio.sleep(1)
        await world.books.revoke_key("k")
        await trio.sleep_forever()

    reply = await world.ask(body(), meanwhile=revoke)
    assert reply.body.endswith(DONE)
    assert (await world.ask(body(), request_id="req_2")).status == 401
    world.check()


async def test_full_books_refuse_before_anything_is_sent(autojump_clock):
    world = World(STREAM)
    world.journal.room = 0
    reply = await world.ask(body())
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] == "overloaded"
    assert world.provider.calls == []
    world.check()


async def test_the_log_line_of_a_request_holds_no_secret(autojump_clock):
    world = World(STREAM)
    await world.ask(body(), OPENAI)
    text = "".join(world.log)
    assert '"event":"request"' in text
    for secret in (world.secret, "sk-provider", "Hi"):
        assert secret not in text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_not_kept_for_as_long_as_its_answer_takes(autojump_clock, stream):
    """What was asked may be megabytes, and there are thousands of answers under way."""
    answer = [ROLE, delta(), 10, delta(), FINISH, usage(), DONE] if stream else [WHOLE[:5], 10, WHOLE[5:]]
    world, counts = World((200, answer)), []
    content = body(stream=stream, tools=[{"type": "function", "function": {"name": "f"}}], temperature=1)

    async def count(_reply):
        for _ in range(2):
            await trio.sleep(5)
            world.provider.calls.clear()
            counts.append(sys.getrefcount(content))

    await world.ask(content, meanwhile=count)
    assert len(world.settled) == 1
    mine = 4  # of this function, of `ask`, of the door's request, of the count itself
    assert counts[0] <= mine
