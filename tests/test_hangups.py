"""Clients that leave, over real sockets: the provider is closed at once, or read on; and it is never a discount."""

import signal
import time
from contextlib import ExitStack

import pytest
import trio

from tests.conftest import running
from tests.loopback import (
    CONTENT,
    DIALECTS,
    STREAMING,
    Client,
    Connection,
    Provider,
    buckets,
    credits_of,
    eventually,
    muted,
    newest,
    question,
    record_of,
    slots_left,
    streaming,
)

CLOSE_MS = 100
"""A provider's connection is closed within this after the client's hang-up, where that stops the bill."""

CONCURRENCY = 4


@pytest.fixture
def key(gate):
    return gate.new_wallet("10.00", concurrency=CONCURRENCY)[1]


# Where it stops the bill


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("pace", ["busy", "idle"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_hanging_up_stops_the_bill_the_provider_is_closed_at_once(gate, box, key, dialect, pace, how):
    told = "endless,gap_ms=10" if pace == "busy" else "stall_at=5"
    with Client(gate, key, *question(dialect, f"{dialect}_yes", told)) as client:
        client.read(CONTENT[dialect], 5)
        request = client.request_id
        at = client.hang_up(how)
        call = box.only_call(lambda call: call["closed_ms"] is not None)

    assert call["hung_up"]
    assert 0 <= call["closed_ms"] - at < CLOSE_MS
    record = record_of(gate, request, key)
    assert (record["status"], record["usage_source"]) == ("hung_up", "estimated")
    assert record["output_tokens"] >= call["usage"]["output"], "leaving must not be cheaper than staying"
    assert record["input_tokens"] >= call["usage"]["input"] > 0
    assert (credits_of(gate, key)["held"], slots_left(gate, key)) == ("0.00", CONCURRENCY)


def test_leaving_after_a_few_words_costs_a_few_words(gate, box, key):
    """The estimate is on the safe side, but what surrounds the words is not paid for."""
    with Client(gate, key, *question("openai", "openai_yes", "endless,gap_ms=20")) as client:
        client.read(CONTENT["openai"], 3)
        request = client.request_id
        client.hang_up("fin")
        call = box.only_call(lambda call: call["closed_ms"] is not None)
    assert record_of(gate, request, key)["output_tokens"] <= 5 * call["usage"]["output"] + 40


# Where it does not


READ_ON = {
    # who is asked, and when and how the client leaves
    "openai": ("openai", {"provider": "openai_no"}, "in the text", "fin"),
    "anthropic": ("anthropic", {"provider": "anthropic_no"}, "in the text", "rst"),
    "gemini": ("gemini", {"provider": "gemini_no"}, "in the text", "fin"),
    "not known": ("openai", {"provider": "openai_unknown"}, "in the text", "rst"),
    "hidden": ("openai", {"provider": "openai_yes", "model": "sandbox-thinker"}, "while it thinks", "fin"),
    "hidden, rst": (
        "openai",
        {"provider": "openai_yes", "model": "sandbox-thinker"},
        "while it thinks",
        "rst",
    ),
    "whole": ("openai", {"provider": "openai_yes", "stream": False}, "at once", "fin"),
    "whole, rst": ("anthropic", {"provider": "anthropic_yes", "stream": False}, "at once", "rst"),
}


@pytest.fixture(scope="module")
def read_on(gate, sandbox):
    """What became of `READ_ON`: its record, its call, and what was free and held while nobody listened any more."""
    keys = {name: gate.new_wallet("10.00", concurrency=CONCURRENCY)[1] for name in READ_ON}
    with Provider(sandbox) as box, ExitStack() as open_clients:
        clients = {}
        for name, (dialect, options, _, _) in READ_ON.items():
            asked = question(dialect, told="tokens=30,reasoning=10,gap_ms=60", **options)
            clients[name] = open_clients.enter_context(Client(gate, keys[name], *asked))
        eventually(lambda: [call["account"] for call in box.calls()].count("-one") == len(READ_ON))
        for name, (dialect, _, leaves, how) in READ_ON.items():
            if leaves == "in the text":
                clients[name].read(CONTENT[dialect], 2)
            clients[name].hang_up(how)
        eventually(lambda: muted(gate) == len(READ_ON))
        meanwhile = {
            name: (slots_left(gate, key), credits_of(gate, key)["held_micro"]) for name, key in keys.items()
        }
        eventually(lambda: muted(gate) == 0)
        calls = {call["id"]: call for call in box.calls()}
    found = {}
    for name, key in keys.items():
        [shown] = newest(gate, key)
        record = record_of(gate, shown["request_id"], key)
        found[name] = (key, record, calls[record["upstream_id"]], *meanwhile[name])
    return found


@pytest.mark.parametrize("name", READ_ON)
def test_elsewhere_the_answer_is_read_on_and_billed_as_reported(gate, read_on, name):
    key, record, call, slots, held_micro = read_on[name]
    assert slots == CONCURRENCY - 1, "it keeps its slot"
    assert held_micro > 0, "it keeps its hold"
    assert call["finished"], "it was read to its end"
    assert not call["hung_up"]
    assert (record["status"], record["usage_source"]) == ("complete", "reported")
    assert buckets(record) == call["usage"]
    assert call["usage"]["output"] == 40
    assert (credits_of(gate, key)["held"], slots_left(gate, key)) == ("0.00", CONCURRENCY)


def test_the_number_of_muted_answers_is_bounded_for_each_key(gate, box, key):
    bound = STREAMING["muted_per_key_max"]
    ask = question("openai", "openai_no", "tokens=30,gap_ms=30")
    for count in range(1, bound + 1):
        with Client(gate, key, *ask) as client:
            client.read(CONTENT["openai"])
            client.hang_up("rst")
        eventually(lambda count=count: muted(gate) == count)

    refused = gate.chat(key)
    assert refused.status_code == 429
    assert "hung up" in refused.json()["error"]["message"]
    assert gate.chat(gate.new_wallet()[1]).status_code == 200, "others are not concerned"

    eventually(lambda: muted(gate) == 0)
    assert [record["output_tokens"] for record in newest(gate, key, bound)] == [30] * bound
    assert gate.chat(key).status_code == 200


def test_the_number_of_muted_answers_is_bounded_in_all(gate, box):
    """Where it is reached nobody is admitted: every one of them holds credit that may be spent."""
    bound, each = STREAMING["muted_max"], STREAMING["muted_per_key_max"]
    wallet, other = gate.new_wallet("100.00")
    keys = [gate.admin("key_create", wallet=wallet)[1]["key"] for _ in range(bound // each)]
    ask = question("gemini", "gemini_no", "tokens=25,gap_ms=100")
    with ExitStack() as clients:
        for each_key in keys * each:
            clients.enter_context(Client(gate, each_key, *ask)).read(CONTENT["gemini"])
    eventually(lambda: muted(gate) == bound)
    refused = gate.chat(other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert credits_of(gate, other)["held_micro"] > 0
    eventually(lambda: muted(gate) == 0)
    assert gate.chat(other).status_code == 200
    records = gate.admin("usage", wallet=wallet, limit=1000)[1]["data"]
    assert {record["usage_source"] for record in records} == {"reported"}
    assert len(records) == bound + 1


# Never a discount

SAID_TOKENS = 120
"""Of the dense answers: JSON, of which the sandbox counts a token for every four characters."""

RATES = {"sandbox/dense": (1, 4), "sandbox/thinker": (2, 10)}
"""In micro-units a token."""


@pytest.fixture(scope="module")
def aborting(tmp_path_factory, sandbox):
    """A gateway that aborts wherever a client leaves, whatever that costs its operator."""
    tmp_path = tmp_path_factory.mktemp("aborting")
    config = streaming(tmp_path / "farebox.toml", sandbox, hidden="abort")
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as started:
        yield started


def dense_question(provider, told, *, stream=True):
    said = "x" * (4 * SAID_TOKENS - 2)
    path, body = question("openai", provider, told, stream=stream, model="sandbox-dense")
    schema = {"name": "one", "schema": {"const": said}}
    return path, {**body, "response_format": {"type": "json_schema", "json_schema": schema}}


def thinking_question(told):
    return question("openai", "openai_yes", told, model="sandbox-thinker")


LEAVES = (
    # what is asked; and when the client leaves: after so many frames of content, or so many seconds
    *((thinking_question("tokens=20,reasoning=40,gap_ms=10"), {"seconds": at}) for at in (0.15, 0.3, 0.5)),
    (thinking_question("tokens=20,reasoning=40,gap_ms=10"), {"frames": 1}),
    *((dense_question("openai_no", "frame_tokens=10,gap_ms=5"), {"frames": at}) for at in (1, 5, 11)),
    (dense_question("openai_no", "frame_tokens=10,gap_ms=5"), {"seconds": 0.15}),
    *(
        (dense_question("openai_yes", f"frame_tokens=10,stall_at={10 * at}"), {"frames": at})
        for at in (1, 5, 11)
    ),
    (dense_question("openai_yes", "ttft_ms=5000"), {"seconds": 0.3}),
    (dense_question("openai_yes", "gap_ms=5", stream=False), {"seconds": 0.15}),
)


async def leave(gate, key, asked, moment):
    async with Connection(gate.base_url, key) as connection:
        frames = moment.get("frames", float("inf"))
        with trio.move_on_after(moment.get("seconds", 10)):
            await connection.ask(*asked, until=lambda heard: heard.body.count(CONTENT["openai"]) >= frames)


async def test_leaving_at_any_moment_is_never_cheaper_than_the_report(gate, box):
    """Hidden reasoning, and text as dense as text can be: whatever the provider wants by then, or in the end."""
    wallet, _ = gate.new_wallet("10.00")
    keys = [gate.admin("key_create", wallet=wallet)[1]["key"] for _ in LEAVES]
    async with trio.open_nursery() as nursery:
        for key, (asked, moment) in zip(keys, LEAVES, strict=True):
            nursery.start_soon(leave, gate, key, asked, moment)
    eventually(lambda: muted(gate) == 0 and credits_of(gate, keys[0])["held_micro"] == 0)
    eventually(lambda: all(call["ended_ms"] is not None for call in box.calls()))
    records = {record["upstream_id"]: record for record in gate.admin("usage", wallet=wallet)[1]["data"]}
    calls = {call["id"]: call for call in box.calls()}
    assert records.keys() - {None} <= calls.keys()
    # on a busy machine the first may have left before anything was sent for them
    assert len(LEAVES) - 3 <= len(records) == len(calls) <= len(LEAVES)
    nameless = [record for name, record in records.items() if name is None]
    left = [calls[name] for name in calls.keys() - records.keys()]
    pairs = [(records[name], calls[name]) for name in records.keys() - {None}]
    for record, call in [*pairs, *zip(nameless, left, strict=True)]:
        read, written = RATES[record["model"]]
        usage = call["usage"]
        wanted = (usage["input"] + usage["cache_read"]) * read + usage["output"] * written
        assert record["cost_micro"] >= wanted, (record, call)
        if call["finished"]:
            assert record["usage_source"] == "reported"
            assert buckets(record) == usage
            assert record["cost_micro"] == wanted
        else:
            assert (record["status"], record["usage_source"]) == ("hung_up", "estimated")
    assert {record["status"] for record in records.values()} == {"complete", "hung_up"}


def test_an_operator_may_choose_to_abort_where_the_bill_runs_on(aborting, box):
    key = aborting.new_wallet("10.00")[1]
    ask = question("openai", "openai_no", "endless,gap_ms=5", model="sandbox-thinker")
    with Client(aborting, key, *ask) as client:
        client.read(CONTENT["openai"], 3)
        at = client.hang_up("fin")
        call = box.only_call(lambda call: call["closed_ms"] is not None)
        assert call["closed_ms"] - at < CLOSE_MS
    [record] = newest(aborting, key)
    assert (record["status"], record["usage_source"]) == ("hung_up", "estimated")
    assert record["output_tokens"] > call["usage"]["output"], "what was hidden is estimated by time"
    assert aborting.verify()["ok"]


# Standing still

FLOOD = "endless,gap_ms=0,frame_tokens=2000"


def test_a_client_that_stops_reading_is_let_go_after_the_write_deadline(gate, box, key):
    with Client(gate, key, *question("openai", "openai_yes", FLOOD), receive_bytes=4096) as client:
        client.read()
        request, began = client.request_id, time.monotonic()
        assert credits_of(gate, key)["held_micro"] > 0
        record = record_of(gate, request, key)
        assert time.monotonic() - began < STREAMING["write_seconds"] + 4
    assert record["status"] == "hung_up"
    assert record["cost_micro"] > 0
    assert (credits_of(gate, key)["held"], slots_left(gate, key)) == ("0.00", CONCURRENCY)
    assert box.only_call(lambda call: call["closed_ms"] is not None)["hung_up"]


def test_a_client_that_stops_reading_does_not_hold_up_the_end(aborting):
    key = aborting.new_wallet("10.00")[1]
    with Client(aborting, key, *question("openai", "openai_yes", FLOOD), receive_bytes=4096) as client:
        client.read()
        began = time.monotonic()
        assert aborting.stop(signal.SIGTERM, 10) == 0
        assert time.monotonic() - began < STREAMING["write_seconds"] + 5
