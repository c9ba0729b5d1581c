"""Small wallets over the whole request path: holds that roll and shrink, clamped bounds, caps, budgets, waiting."""

import json

import pytest
import trio
from attrs import evolve

from accounting.records import Ending, Extension, Grant, GrantKind
from pricing.money import PICO
from proxy.config import Books, Config, Holds
from tests.fakes import ANTHROPIC, OPENAI, Route, World
from tests.test_request_path import DONE, FINISH, ROLE, STREAM, body, delta, usage

MICRO = 10**6
CENT = PICO // 100
GEMINI = Route("gemini", action="stream", model="sandbox-gemini", sse=True)


def endless(text="word " * 20, every=0.1):
    """A stream that never ends by itself."""

    def script():
        return 200, [ROLE, *([delta(text), every] * 5000)]

    return script


def frames(reply):
    return [json.loads(line[6:]) for line in reply.body.splitlines() if line.startswith(b"data: {")]


def claude(size, *, output=32_000, thinking=16_000, stream=True, marked=True):
    """A conversation of so many bytes for a model at 3 and 15 dollars per million."""
    block = {"type": "text", "text": "x" * size}
    if marked:
        block["cache_control"] = {"type": "ephemeral"}
    asked = {
        "model": "sandbox-claude",
        "max_tokens": output,
        "stream": stream,
        "messages": [{"role": "user", "content": [block]}],
    }
    if thinking:
        asked["thinking"] = {"type": "enabled", "budget_tokens": thinking}
    return json.dumps(asked).encode()


def claude_stream(read=15_000, written=400):
    def event(kind, **fields):
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    started = {"input_tokens": 20, "cache_creation_input_tokens": read, "output_tokens": 1}
    opened = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [],
        "usage": started,
    }
    return (
        200,
        [
            event("message_start", message=opened),
            event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"}),
            event("content_block_stop", index=0),
            event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": written}),
            event("message_stop"),
        ],
    )


def dollars(reply):
    return int(reply.headers["x-credits-held-micro"]) / MICRO


# -- what is held ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "held"), [(60_000, 0.71), (800_000, 1.23)])
async def test_large_contexts_run_on_a_wallet_of_two_dollars(autojump_clock, size, held):
    """A cache mark of five minutes is not held at the price of an hour, nor a context beyond the window."""
    world = World(claude_stream(), amount=2 * PICO)
    reply = await world.ask(claude(size), ANTHROPIC)
    assert reply.status == 200
    assert dollars(reply) == pytest.approx(held, abs=0.01)
    assert reply.headers["x-credits-hold"] == "full"
    assert world.settled[0].charged == 20 * 3 * MICRO + 15_000 * 3_750_000 + 400 * 15 * MICRO
    world.check()


async def test_half_a_dollar_does_not_suffice_and_the_402_says_what_would(autojump_clock):
    world = World(claude_stream(), amount=PICO // 2)
    reply = await world.ask(claude(60_000), ANTHROPIC)
    assert reply.status == 402
    told = json.loads(reply.body)["error"]["metadata"]
    assert (told["limit"], told["shortfall_micro"] > 200_000) == ("wallet", True)
    assert 15_000 < told["affordable_max_tokens"] < 19_000
    assert world.provider.calls == []
    world.check()


async def test_a_key_that_allows_it_has_its_bounds_lowered_to_what_half_a_dollar_bears(autojump_clock):
    world = World(claude_stream(), amount=PICO // 2, clamp=True)
    reply = await world.ask(claude(60_000), ANTHROPIC)
    assert reply.status == 200
    sent = json.loads(world.provider.calls[0].body)
    assert 15_000 < sent["max_tokens"] < 19_000
    assert sent["thinking"] == {"type": "enabled", "budget_tokens": sent["max_tokens"] * 16_000 // 32_000}
    assert reply.headers["x-credits-clamped"] == "output"
    assert reply.headers["x-credits-max-output-tokens"] == str(sent["max_tokens"])
    assert reply.headers["x-credits-max-thinking-tokens"] == str(sent["thinking"]["budget_tokens"])
    assert dollars(reply) == pytest.approx(0.5, abs=0.0001)
    world.check()


@pytest.mark.parametrize("thinking", [1024, 16_000])
async def test_below_the_providers_least_reasoning_it_is_a_402(autojump_clock, thinking):
    """1,024 tokens of reasoning and one of an answer: with less, the provider would refuse."""
    wallet = World(claude_stream(), clamp=True, amount=0)
    least = None
    for micro in range(230_000, 270_000, 500):
        world = World(claude_stream(), clamp=True, amount=micro * MICRO)
        reply = await world.ask(claude(60_000, thinking=thinking), ANTHROPIC)
        if reply.status == 200:
            least = json.loads(world.provider.calls[0].body)
            break
        assert json.loads(reply.body)["error"]["type"] == "billing_error"
    assert least is not None
    assert 1025 <= least["max_tokens"] < 1100
    assert least["thinking"]["budget_tokens"] == 1024 < least["max_tokens"]
    assert wallet.provider.calls == []


async def test_without_the_keys_leave_nothing_is_lowered(autojump_clock):
    world = World(claude_stream(), amount=2 * PICO, clamp=True)
    reply = await world.ask(claude(60_000), ANTHROPIC)
    assert json.loads(world.provider.calls[0].body)["max_tokens"] == 32_000
    assert "x-credits-clamped" not in reply.headers


async def test_a_hold_shrinks_once_the_provider_has_stated_the_input(autojump_clock):
    world = World(claude_stream(), amount=2 * PICO, states_input="start")
    held = []
    provider = world.provider

    def script():
        status, steps = claude_stream()
        return status, [steps[0], steps[1], steps[2], 5.0, *steps[3:]]

    provider.answers = [script]

    async def look(_reply):
        await trio.sleep(1)
        held.append(world.books.balance("w").held)

    reply = await world.ask(claude(60_000), ANTHROPIC, meanwhile=look)
    assert reply.status == 200
    assert held == [20 * 3 * MICRO + 15_000 * 3_750_000 + 32_000 * 15 * MICRO]
    assert len(world.journal.of(Extension)) == 1
    assert "beyond_hold" not in world.settled[0].flags
    world.check()


# -- rolling ---------------------------------------------------------------------------------------


async def test_a_visible_stream_that_hanging_up_stops_holds_a_slice(autojump_clock):
    world = World(STREAM)
    reply = await world.ask(body(max_tokens=100_000))
    assert reply.headers["x-credits-hold"] == "rolling"
    assert dollars(reply) < 0.005  # the full hold: 0.40
    world.check()


@pytest.mark.parametrize(
    ("more", "stops"),
    [
        ({"stream": False}, "yes"),
        ({"n": 2}, "yes"),
        ({"stop": ["a sequence that is long enough to hide some tokens"]}, "yes"),
        ({"model": "sandbox-thinker"}, "yes"),
        ({}, "no"),
        ({}, "unknown"),
    ],
)
async def test_elsewhere_everything_is_held(autojump_clock, more, stops):
    world = World((500, [b"{}"]), stops_billing=stops, amount=CENT)
    reply = await world.ask(body(**({"max_tokens": 100_000} | more)))
    assert reply.status == 402
    world.check()


async def test_an_answer_that_the_wallet_cannot_cover_ends_as_length(autojump_clock):
    world = World(endless(), amount=2 * CENT)
    reply = await world.ask(body(max_tokens=90_000, stream_options={"include_usage": True}))
    assert reply.body.endswith(DONE)
    told = frames(reply)
    finished = [one for one in told if one["choices"] and one["choices"][0]["finish_reason"]]
    assert [one["choices"][0]["finish_reason"] for one in finished] == ["length"]
    assert finished[0]["x-credits-limit"] == "wallet"
    [record] = world.settled
    assert record.outcome is Ending.EXHAUSTED
    assert told[-1]["usage"]["completion_tokens"] == record.usage.output
    assert record.charged <= 2 * CENT
    assert world.provider.exchanges[0].closed_at is not None, "the provider's connection is closed"
    written = sum(len(one["choices"][0]["delta"].get("content") or "") for one in told if one["choices"])
    assert written > 3000
    world.check()


async def test_a_thousand_streams_on_one_wallet_hold_slices(autojump_clock):
    """A thousand full holds would be 400 dollars; ten are there, and everybody is served."""
    world = World(
        lambda: (200, [0.5, ROLE, *[delta("word " * 5), 0.2] * 10, FINISH, usage(10, 60), DONE]),
        amount=10 * PICO,
    )
    most = []
    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(_asks, world, body(max_tokens=100_000), f"r{number}")
        await trio.sleep(1.5)
        most.append(world.books.balance("w").held)
    assert 0 < most[0] < 10 * PICO
    assert {record.outcome for record in world.settled} == {Ending.COMPLETE}
    assert len(world.settled) == 1000
    assert all(record.charged == (10 * 1 + 60 * 4) * MICRO for record in world.settled)
    world.check()


async def test_streams_that_use_a_wallet_up_together_never_overdraw_it(autojump_clock):
    world = World(endless(), amount=10 * CENT)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(_asks, world, body(max_tokens=90_000), f"r{number}")
    assert {record.outcome for record in world.settled} == {Ending.EXHAUSTED}
    assert sum(record.charged for record in world.settled) <= 10 * CENT
    assert all(record.loss == 0 for record in world.settled)
    world.check()


async def test_a_revoked_key_gets_no_more_of_an_answer_than_it_holds(autojump_clock):
    world = World(endless())

    async def revoke(_reply):
        await trio.sleep(0.05)
        await world.books.revoke_key("k")

    reply = await world.ask(body(max_tokens=90_000), meanwhile=revoke)
    assert frames(reply)[-1]["x-credits-limit"] == "key_revoked"
    assert world.settled[0].outcome is Ending.EXHAUSTED
    world.check()


async def test_a_client_that_leaves_a_rolling_answer_pays_for_what_was_seen(autojump_clock):
    world = World(endless())

    async def leave(reply):
        await trio.sleep(5)
        reply.hang_up()

    await world.ask(body(max_tokens=90_000), meanwhile=leave)
    [record] = world.settled
    assert (record.outcome, record.source.value) == (Ending.HUNG_UP, "estimated")
    assert 0 < record.charged <= record.held
    world.check()


# -- caps, budgets, and what a request may cost ----------------------------------------------------


async def test_a_request_says_what_it_may_cost(autojump_clock):
    world = World(STREAM)
    asked = body(stream=False, max_tokens=1000)
    reply = await world.ask(asked, headers={"x-credits-max-cost": "0.004"})
    assert (reply.status, json.loads(reply.body)["error"]["metadata"]["limit"]) == (402, "max_cost")
    reply = await world.ask(body(max_tokens=1000), headers={"x-credits-max-cost": "0.05"})
    assert reply.status == 200
    world.check()


async def test_what_a_request_may_cost_ends_a_rolling_answer(autojump_clock):
    world = World(endless())
    reply = await world.ask(body(max_tokens=90_000), headers={"x-credits-max-cost": "0.01"})
    assert frames(reply)[-1]["x-credits-limit"] == "max_cost"
    assert world.settled[0].charged <= CENT
    world.check()


async def test_all_requests_of_a_task_together_stay_within_its_budget(autojump_clock):
    world = World(endless())
    headers = {"x-credits-budget-id": "task-1; max=0.03"}
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(_asks, world, body(max_tokens=90_000), f"r{number}", headers)
    assert 0 < sum(record.charged for record in world.settled) <= 3 * CENT
    assert {record.budget for record in world.settled} == {"task-1"}
    world.check()


async def test_a_key_stays_within_its_cap(autojump_clock):
    world = World(endless(), cap=2 * CENT, cap_window="day")
    for number in range(50):
        reply = await world.ask(body(max_tokens=90_000), request_id=f"r{number}")
        if reply.status == 402:
            break
    assert json.loads(reply.body)["error"]["metadata"]["limit"] == "key_cap"
    assert sum(record.charged for record in world.settled) <= 2 * CENT
    world.check()


# -- waiting ---------------------------------------------------------------------------------------


def waiting(seconds, most=100):
    return evolve(Config(), holds=Holds(hold_wait_seconds=seconds, waiting_max=most))


SLOW = (200, [3.0, ROLE, delta(), FINISH, usage(), DONE])
WHOLE_HOLD = body(max_tokens=1000, n=1, model="sandbox-thinker")


async def test_in_flight_means_that_only_open_holds_stand_in_the_way(autojump_clock):
    world = World(SLOW, amount=15_000 * MICRO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asks, world, WHOLE_HOLD, "r1")
        await trio.sleep(1)
        reply = await world.ask(WHOLE_HOLD, request_id="r2")
        assert json.loads(reply.body)["error"]["metadata"]["limit"] == "in_flight"
    reply = await world.ask(WHOLE_HOLD, request_id="r3")
    assert reply.status == 200
    world.check()


async def test_a_request_waits_for_credit_that_another_one_holds(autojump_clock):
    world = World(lambda: SLOW, amount=15_000 * MICRO, config=waiting(10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asks, world, WHOLE_HOLD, "r1")
        await trio.sleep(1)
        reply = await world.ask(WHOLE_HOLD, request_id="r2")
    assert reply.status == 200
    assert len(world.settled) == 2
    world.check()


async def test_a_top_up_wakes_who_waits(autojump_clock):
    world = World(
        lambda: (200, [60.0, ROLE, delta(), FINISH, usage(), DONE]), amount=15_000 * MICRO, config=waiting(10)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asks, world, WHOLE_HOLD, "r1")
        await trio.sleep(1)
        nursery.start_soon(_tops_up, world, 2.0)
        began = trio.current_time()
        reply = await world.ask(WHOLE_HOLD, request_id="r2")
        assert reply.status == 200
        assert trio.current_time() - began < 63
    world.check()


async def test_a_client_that_leaves_while_it_waits_is_forgotten(autojump_clock):
    world = World(lambda: SLOW, amount=15_000 * MICRO, config=waiting(100))

    async def leave(reply):
        await trio.sleep(1)
        reply.hang_up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asks, world, WHOLE_HOLD, "r1")
        await trio.sleep(1)
        await world.ask(WHOLE_HOLD, request_id="r2", meanwhile=leave)
    assert [record.request for record in world.settled] == ["r1"]
    assert world.gateway.waiting.waiting() == 0
    world.check()


# -- durability ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durability", "waits"),
    [("relaxed", []), ("standard", ["first byte", "end"]), ("strict", ["sent", "first byte", "end"])],
)
async def test_what_waits_for_the_disk(autojump_clock, durability, waits):
    world = World(STREAM, config=evolve(Config(), books=Books(durability=durability)))
    world.books.durability = durability
    seen = []

    async def durable(seq):
        await trio.lowlevel.checkpoint()
        if not world.provider.calls:
            seen.append("sent")
        elif not world.settled:
            seen.append("first byte")
        else:
            seen.append("end")

    world.journal.durable = durable
    reply = await world.ask(body())
    assert (reply.status, seen) == (200, waits)
    world.check()


async def _asks(world, asked, request_id, headers=None):
    await world.ask(asked, OPENAI, request_id=request_id, headers=headers)


async def _tops_up(world, seconds):
    await trio.sleep(seconds)
    await world.books.top_up("w", PICO, GrantKind.PAID, "more")


# -- what the operator sees ------------------------------------------------------------------------


async def test_a_503_names_which_bound_of_the_books_was_met(autojump_clock):
    world = World(STREAM)
    world.journal.room = 0
    reply = await world.ask(body())
    told = json.loads(reply.body)["error"]
    assert (reply.status, told["code"], told["metadata"]) == (503, "overloaded", {"trigger": "journal"})
    assert "no room" in told["message"]
    world.journal.room = 10**9
    assert (await world.ask(body(), request_id="r2")).status == 200
    world.check()


async def test_refusals_are_counted_by_what_stood_in_the_way(autojump_clock):
    world = World(STREAM, amount=0)
    await world.ask(body())
    world.books.put_down(Grant("g", "w", PICO, GrantKind.PAID, "s", 0))
    await world.ask(body(), headers={"x-credits-max-cost": "0.00000001"}, request_id="r2")
    world.journal.room = 0
    await world.ask(body(), request_id="r3")
    text = world.gateway.telemetry.metrics.text()
    for kind, limit in (("no_credit", "wallet"), ("no_credit", "max_cost"), ("overloaded", "journal")):
        assert f'farebox_refused_total{{kind="{kind}",limit="{limit}"}} 1' in text
    world.check()
