"""Every way in which an answer can end, on the real request path: what stands on the record and leaves the wallet.

The truth table itself is tested cell by cell in tests/accounting/test_bill.py. Here each situation is brought about
with scripted providers and clients on virtual time, and the books are read afterwards.
"""

import json

import pytest
import trio
from attrs import evolve, frozen

from accounting.ledger import Ledger
from accounting.records import Ending, Progress, UsageRecord
from pricing.usage import Source
from proxy.config import Config
from proxy.errors import Kind, UpstreamFailed
from tests.fakes import ANTHROPIC, World, broken

INPUT, WRITE, OUTPUT = 3_000_000, 3_750_000, 15_000_000
"""Picos a token of the model that is asked: read, written to a cache for five minutes, generated."""

STATED, AT_LAST = 30, 40
"""Tokens of input by the first report, and by the last, which counts where there is one."""

WRITTEN = 17
SECONDS_TO_LEAVE, SECONDS_TO_EVENT = 5, 10
WORD = "word " * 4
SPEED = 2_000
"""The most tokens a second that the catalogue believes of this model."""


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(*, reports):
    message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": []}
    if reports:
        message["usage"] = {"input_tokens": STATED, "output_tokens": 1}
    return event("message_start", message=message)


def stop(*, reports):
    usage = {"usage": {"input_tokens": AT_LAST, "output_tokens": WRITTEN}} if reports else {}
    return event("message_delta", delta={"stop_reason": "end_turn"}, **usage)


OPEN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": WORD})
CLOSE = event("content_block_stop", index=0)
END = event("message_stop")
ERROR = event("error", error={"type": "api_error", "message": "boom"})
DELTAS = 3


def body(*, thinking=False, stream=True, output=60_000):
    asked = {
        "model": "sandbox-claude",
        "max_tokens": output,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hello, are you there? " * 3}],
    }
    if thinking:
        asked["thinking"] = {"type": "enabled", "budget_tokens": 30_000}
    return json.dumps(asked).encode()


def whole(*, reports=True):
    told = {"id": "m", "type": "message", "role": "assistant", "content": [{"type": "text", "text": WORD}]}
    if reports:
        told["usage"] = {"input_tokens": AT_LAST, "output_tokens": WRITTEN}
    return json.dumps(told).encode()


@frozen
class Case:
    """One line of the table below.

    Attributes:
        what: happens after ten seconds; a client that leaves does so after five.
        report: what the provider had said by then.
        relayed: content had been relayed by then.
        stops, thinking: of the request; see there.
        outcome, pays, costs: what must stand on the record: `r` the report, `s` what was seen, `e` the estimate,
            `0` nothing.
    """

    what: str
    report: str
    relayed: bool
    stops: str
    thinking: bool
    outcome: Ending
    pays: str
    costs: str


SITUATIONS = """
what happened            report        relayed stops           thinking  outcome    pays  costs

finishes                 none,partial  yes     yes,no,unknown  no,yes    complete   r     r
finishes_silently        none,partial  yes     yes,no,unknown  no,yes    complete   e     e

leaves                   none,partial  no,yes  yes             no        hung_up    s     s
leaves                   final         yes     yes             no        hung_up    r     r
leaves                   none,partial  no,yes  no,unknown      no        complete   r     r
leaves                   none,partial  no,yes  yes,no,unknown  yes       complete   r     r
leaves                   final         yes     no,unknown      no        complete   r     r
leaves_silently          none,partial  no,yes  no,unknown      no,yes    complete   e     e
leaves_for_good          none,partial  no,yes  yes             yes       hung_up    e     e
leaves_for_good          none,partial  no,yes  no,unknown      no,yes    hung_up    e     e

leaves_then_stalls       none,partial  no      no,unknown      no,yes    timed_out  e     e
leaves_then_stalls       none,partial  yes     no,unknown      no,yes    stalled    e     e
leaves_then_stalls       final         yes     yes             yes       stalled    r     r
leaves_then_cut          none,partial  no      no,unknown      no,yes    broken     0     e
leaves_then_cut          none,partial  yes     no,unknown      no,yes    broken     e     e
leaves_then_error        none,partial  yes     no,unknown      no,yes    broken     e     e
leaves_then_error        none,partial  no      no,unknown      no,yes    refused    0     0
leaves_then_shutdown     none,partial  no,yes  no,unknown      no,yes    hung_up    e     e

stalls                   none,partial  no      yes,no,unknown  no,yes    timed_out  0     e
stalls                   none,partial  yes     yes,no,unknown  no,yes    stalled    e     e
stalls                   final         yes     yes,no,unknown  no,yes    stalled    r     r

cut                      none,partial  no      yes,no,unknown  no,yes    broken     0     e
cut                      none,partial  yes     yes,no,unknown  no,yes    broken     e     e
cut                      final         yes     yes,no,unknown  no,yes    broken     r     r
ended_early              none,partial  no      yes,no          no        broken     0     e
ended_early              none,partial  yes     yes,no          no        broken     e     e

error                    none,partial  no      yes,no,unknown  no,yes    refused    0     0
error                    none,partial  yes     yes,no,unknown  no,yes    broken     e     e
error                    final         yes     yes,no,unknown  no,yes    broken     r     r

shutdown                 none,partial  no      yes,no,unknown  no,yes    shutdown   0     e
shutdown                 none,partial  yes     yes,no,unknown  no,yes    shutdown   e     e
shutdown                 final         yes     yes,no,unknown  no,yes    shutdown   r     r

our_fault                none,partial  yes     yes,no,unknown  no,yes    internal   e     e
"""
"""A report of an earlier moment is `partial` if the provider states its input at the start."""


def cases():
    for line in SITUATIONS.splitlines()[3:]:
        if not line:
            continue
        what, reports, relayeds, stopses, thinkings, outcome, pays, costs = line.split()
        for report in reports.split(","):
            for relayed in relayeds.split(","):
                for stops in stopses.split(","):
                    for thinking in thinkings.split(","):
                        yield Case(
                            what,
                            report,
                            relayed == "yes",
                            stops,
                            thinking == "yes",
                            Ending(outcome),
                            pays,
                            costs,
                        )


def name(case):
    relayed = "relayed" if case.relayed else "nothing relayed"
    hidden = "hidden" if case.thinking else "visible"
    return f"{case.what}-{case.report}-{relayed}-{case.stops}-{hidden}"


def script(case):
    """The provider's answer: what came before the event, ten seconds, the event, and what would come after it."""
    reports_at_last = not case.what.endswith("_silently")
    content, ending = [OPEN, *[DELTA] * DELTAS], [CLOSE, stop(reports=reports_at_last)]
    before = [start(reports=case.report != "none")]
    after = [*content, *ending, END]
    if case.report == "final":
        before, after = [*before, *content, *ending], [END]
    elif case.relayed:
        before, after = [*before, *content], [*ending, END]
    happens = {
        "stalls": [5_000.0],
        "cut": [broken()],
        "error": [ERROR],
    }.get(case.what.removeprefix("leaves_then_"), [])
    if case.what == "ended_early":
        after = []
    return 200, [*before, float(SECONDS_TO_EVENT), *happens, *after]


async def brought_about(case, *, world=None):
    """Let it happen; gives the world and what the client saw."""
    config = Config()
    if case.what == "leaves_for_good":
        config = evolve(config, on_hangup_hidden="abort")
    world = world or World(script(case), stops_billing=case.stops, config=config)
    scopes = []

    async def client(reply):
        if case.what == "our_fault":
            reply.write = fails_later(reply.write)
        await trio.sleep(SECONDS_TO_LEAVE)
        if case.what.startswith("leaves"):
            reply.hang_up()
        if case.what.endswith("shutdown"):
            await trio.sleep(1)
            scopes[0].cancel()

    reply = await world.ask(body(thinking=case.thinking), ANTHROPIC, meanwhile=client, scope=scopes)
    return world, reply


def fails_later(write):
    async def writing(chunk):
        if trio.current_time() > SECONDS_TO_LEAVE and chunk.strip() and b"ping" not in chunk:
            raise ZeroDivisionError
        await write(chunk)

    return writing


def estimated_by_bytes():
    """Two bytes to a token, of the text and of 16 for its block; and eight tokens for the message."""
    return (len("Hello, are you there? " * 3) + 16) // 2 + 8


def worth(record, by, case):
    """Check what the record says was used, and give what that costs."""
    usage = record.usage
    if by == "r":
        assert (usage.input, usage.output) == (AT_LAST, WRITTEN)
        return AT_LAST * INPUT + WRITTEN * OUTPUT
    if by == "0":
        return 0
    # never less than what was seen, nor, where it may think unseen, than what it can have written in the time
    seen = DELTAS * len(WORD) // 4 if case.relayed else 0
    hidden = SPEED * SECONDS_TO_LEAVE if case.thinking and by == "e" else 0
    assert usage.output >= min(seen + hidden, 60_000)
    if not hidden:
        assert usage.output < 500
    stated = case.report != "none"
    assert usage.input >= STATED if stated else usage.input > STATED
    return usage.input * INPUT + usage.output * OUTPUT


@pytest.mark.parametrize("case", list(cases()), ids=name)
async def test_an_ending_has_its_one_bill(autojump_clock, case):
    world, reply = await brought_about(case)
    [record] = world.settled
    assert record.outcome is case.outcome
    assert record.price == worth(record, case.pays, case)
    assert record.charged == min(record.price, record.held)
    assert record.cost == worth(record, case.costs, case)
    source = {"r": Source.REPORTED, "0": Source.NONE}.get(case.costs, Source.ESTIMATED)
    assert record.source is source or (source is Source.ESTIMATED and record.usage.output == 1)
    assert record.loss == 0
    assert world.books.balance("w").balance == 100 * 10**12 - record.charged
    if case.what == "finishes":
        assert reply.ended
        assert reply.body.endswith(END)
    elif not case.what.startswith("finishes"):
        assert END not in reply.body, "it looks like a whole answer"
    world.check()


def test_the_table_leaves_out_no_ending_that_a_stream_can_have():
    elsewhere = {Ending.NEVER_SENT, Ending.UNREACHED, Ending.EXHAUSTED, Ending.KILLED}
    assert {case.outcome for case in cases()} | elsewhere == set(Ending)


# -- where hanging up stops the bill ---------------------------------------------------------------


@pytest.mark.parametrize("report", ["none", "partial"])
@pytest.mark.parametrize("relayed", [False, True])
async def test_hanging_up_closes_the_provider_within_milliseconds(autojump_clock, report, relayed):
    case = Case("leaves", report, relayed, "yes", False, Ending.HUNG_UP, "s", "s")
    world, _ = await brought_about(case)
    exchange = world.provider.exchanges[0]
    assert exchange.closed_at == pytest.approx(SECONDS_TO_LEAVE, abs=0.01)
    assert "bills_on" not in world.settled[0].flags


async def test_an_operator_who_closes_where_the_bill_runs_on_is_told(autojump_clock):
    case = Case("leaves_for_good", "partial", True, "no", False, Ending.HUNG_UP, "e", "e")
    world, _ = await brought_about(case)
    assert world.settled[0].flags == ("bills_on",)
    world.check()


# -- answers in one piece --------------------------------------------------------------------------

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("steps", "leaves", "outcome", "pays", "costs"),
    [
        ([10.0, whole()], False, Ending.COMPLETE, "r", "r"),
        ([10.0, whole()], True, Ending.COMPLETE, "r", "r"),
        ([10.0, whole(reports=False)], False, Ending.COMPLETE, "e", "e"),
        ([10.0, whole(reports=False)], True, Ending.COMPLETE, "e", "e"),
        ([10.0, whole()[:50]], False, Ending.BROKEN, "0", "e"),
        ([10.0, whole()[:50]], True, Ending.BROKEN, "0", "e"),
        ([10.0, whole()[:50], broken()], False, Ending.BROKEN, "0", "e"),
        ([10.0, ERROR], False, Ending.BROKEN, "0", "e"),
        ([10.0, whole()[:50], 5_000.0], False, Ending.STALLED, "0", "e"),
        ([10.0, whole()[:50], 5_000.0], True, Ending.STALLED, "e", "e"),
        ([5_000.0, whole()], False, Ending.TIMED_OUT, "0", "e"),
        ([5_000.0, whole()], True, Ending.TIMED_OUT, "e", "e"),
    ],
)
async def test_an_answer_in_one_piece_has_its_one_bill(autojump_clock, steps, leaves, outcome, pays, costs):
    world = World((200, steps, JSON))

    async def client(reply):
        await trio.sleep(SECONDS_TO_LEAVE)
        if leaves:
            reply.hang_up()

    await world.ask(body(stream=False), ANTHROPIC, meanwhile=client)
    [record] = world.settled
    assert record.outcome is outcome
    for amount, by in ((record.price, pays), (record.cost, costs)):
        if by == "r":
            assert amount == AT_LAST * INPUT + WRITTEN * OUTPUT
        elif by == "e":
            assert record.source is Source.ESTIMATED
            assert amount == estimated_by_bytes() * INPUT + record.usage.output * OUTPUT
        else:
            assert amount == 0
    if costs == "e" and outcome is not Ending.COMPLETE:  # nobody knows how much of it was written
        assert record.usage.output >= min(SPEED * SECONDS_TO_EVENT, 60_000)
    world.check()


# -- before there is an answer ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 429, 500, 503, 529])
@pytest.mark.parametrize("stops", ["yes", "no", "unknown"])
async def test_a_refusal_is_free_for_everybody(autojump_clock, status, stops):
    world = World(
        (status, [b'{"type":"error","error":{"type":"x","message":"no"}}'], JSON), stops_billing=stops
    )
    await world.ask(body(), ANTHROPIC)
    [record] = world.settled
    assert (record.outcome, record.price, record.cost) == (Ending.REFUSED, 0, 0)
    world.check()


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_connection_lost_before_an_answer_costs_the_operator_alone(autojump_clock, leaves):
    world = World((200, []), stops_billing="no")

    async def lost(call, sending, _until, *, fresh):
        sending()
        world.provider.calls.append(call)
        await trio.sleep(SECONDS_TO_EVENT)
        raise UpstreamFailed(Kind.UPSTREAM_ERROR, "gone", try_another=False, ending=Ending.UNREACHED)

    world.provider.send = lost

    async def client(reply):
        await trio.sleep(SECONDS_TO_LEAVE)
        if leaves:
            reply.hang_up()

    await world.ask(body(), ANTHROPIC, meanwhile=client)
    [record] = world.settled
    assert (record.outcome, record.charged) == (Ending.UNREACHED, 0)
    assert record.cost == estimated_by_bytes() * INPUT
    world.check()


async def test_what_failed_over_costs_the_operator_and_the_customer_pays_the_one_that_answered(
    autojump_clock,
):
    finishes = next(case for case in cases() if case.what == "finishes" and case.report == "partial")
    world = World((200, [start(reports=True), broken()]), script(finishes), accounts=("one", "two"))
    await world.ask(body(), ANTHROPIC)
    first, second = world.settled
    assert (first.outcome, first.charged) == (Ending.BROKEN, 0)
    assert first.cost == first.usage.input * INPUT + first.usage.output * OUTPUT > 0
    assert second.charged == AT_LAST * INPUT + WRITTEN * OUTPUT
    world.check()


# -- the wallet is exhausted -----------------------------------------------------------------------


@pytest.mark.parametrize("reports", [False, True])
async def test_an_answer_that_the_credit_does_not_cover_is_billed_by_what_was_seen(autojump_clock, reports):
    steps = [start(reports=reports), OPEN, *[DELTA, 0.01] * 3_000]
    world = World((200, steps), amount=40_000 * 10**6)
    reply = await world.ask(body(), ANTHROPIC)
    [record] = world.settled
    assert (record.outcome, record.source) == (Ending.EXHAUSTED, Source.ESTIMATED)
    assert record.usage.input == (STATED if reports else estimated_by_bytes())
    assert record.price == record.usage.input * INPUT + record.usage.output * OUTPUT
    assert reply.body.count(DELTA) * len(WORD) // 4 <= record.usage.output
    assert (record.charged, record.loss) == (record.price, 0)
    assert b'"max_tokens"' in reply.body
    assert b"message_stop" in reply.body.rstrip().rpartition(b"\n\n")[2]
    world.check()


async def test_a_last_report_beyond_the_credit_takes_what_is_held_and_the_rest_is_the_operators(
    autojump_clock,
):
    """It comes with the bytes that it is about, so they can be kept back, and were generated nevertheless."""
    long = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 9_000})
    usage = {"input_tokens": AT_LAST, "output_tokens": 9_000}
    final = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    world = World((200, [start(reports=True), OPEN + long + CLOSE + final + END]), amount=40_000 * 10**6)
    reply = await world.ask(body(), ANTHROPIC)
    [record] = world.settled
    assert record.outcome is Ending.EXHAUSTED
    assert record.price == AT_LAST * INPUT + 9_000 * OUTPUT
    assert (record.charged, record.loss) == (record.held, record.price - record.held)
    assert "beyond_hold" in record.flags
    assert long not in reply.body
    assert world.books.balance("w").balance >= 0
    world.check()


# -- the process dies ------------------------------------------------------------------------------


def recovered(records):
    """What the next start makes of these records: a ledger with nothing open, and what it settled."""
    ledger = Ledger()
    for record in records:
        ledger.replay(record)
    settled = [ledger.settle_recovered(opened, 99_999) for opened in ledger.open_attempts()]
    assert ledger.open_attempts() == ()
    assert ledger.held("w") == 0
    return ledger, settled


@pytest.mark.parametrize("report", ["none", "partial"])
@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("stops", ["yes", "no", "unknown"])
@pytest.mark.parametrize("leaves", [False, True])
async def test_killed_at_any_moment_the_last_progress_is_charged(
    autojump_clock, report, relayed, stops, leaves
):
    """At every record that had been written; what the dead process never wrote down nobody pays."""
    steps = [start(reports=report == "partial")]
    if relayed:
        steps += [OPEN, *[DELTA, 1.0] * 20]
    steps += [10.0, OPEN, DELTA, CLOSE, stop(reports=True), END]
    world = World((200, steps), stops_billing=stops)

    async def client(reply):
        await trio.sleep(SECONDS_TO_LEAVE)
        if leaves:
            reply.hang_up()

    await world.ask(body(), ANTHROPIC, meanwhile=client)
    records = world.journal.records
    progress = None
    for count, last in enumerate(records, 1):
        ledger, settled = recovered(records[:count])
        if isinstance(last, Progress):
            progress = last
        if isinstance(last, UsageRecord):
            assert settled == []
            continue
        for record in settled:
            paid = 0 if progress is None else progress.cost
            assert (record.outcome, record.source) == (Ending.KILLED, Source.RECOVERED)
            assert (record.charged, record.cost) == (paid, 0 if progress is None else progress.list_cost)
            assert paid == 0 or progress.relayed, "for what nobody was given"
            assert ledger.balance("w") == 100 * 10**12 - paid
    assert progress is not None or leaves
    world.check()


# -- empty completions -----------------------------------------------------------------------------


def zeros(**more):
    usage = {"input_tokens": AT_LAST, "output_tokens": 0}
    final = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage | more)
    return 200, [start(reports=False), final, END]


async def test_zero_is_a_value_and_what_was_read_is_not_read_for_free_beyond_the_cap(autojump_clock):
    world = World(zeros())
    world.books.empty_free_per_key_day = 0
    await world.ask(body(), ANTHROPIC)
    [record] = world.settled
    assert (record.source, record.usage.output) == (Source.REPORTED, 0)
    assert record.charged == AT_LAST * INPUT
    world.check()


async def test_an_empty_completion_is_free_so_many_times_a_day_and_its_cost_the_operators(autojump_clock):
    world = World(zeros)
    world.books.empty_free_per_key_day = 2
    for number in range(3):
        await world.ask(body(), ANTHROPIC, request_id=f"r{number}")
    assert [record.charged for record in world.settled] == [0, 0, AT_LAST * INPUT]
    assert [record.flags for record in world.settled] == [("empty_free",), ("empty_free",), ()]
    assert {record.cost for record in world.settled} == {AT_LAST * INPUT}
    await trio.sleep(86_400)
    await world.ask(body(), ANTHROPIC, request_id="tomorrow")
    assert world.settled[-1].charged == 0
    world.check()


async def test_content_that_is_reported_as_nothing_is_billed_as_reported_and_not_waived(autojump_clock):
    """A report is a report; but whoever was given something got no empty completion."""
    usage = {"input_tokens": AT_LAST, "output_tokens": 0}
    final = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    world = World((200, [start(reports=False), OPEN, DELTA, CLOSE, final, END]))
    world.books.empty_free_per_key_day = 2
    await world.ask(body(), ANTHROPIC)
    assert world.settled[0].charged == AT_LAST * INPUT
    world.check()


async def test_whoever_asks_for_no_output_pays_for_what_was_read(autojump_clock):
    """So caches are filled; and were that free, so would be the caches."""
    world = World(zeros)
    world.books.empty_free_per_key_day = 2
    await world.ask(body(output=0), ANTHROPIC)
    assert world.settled[0].charged == AT_LAST * INPUT
    world.check()
