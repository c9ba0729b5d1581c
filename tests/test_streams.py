"""Streams over real sockets: silence, deadlines, live cost, failover, and a crowd with every ending that there is."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from google import genai
from google.genai import types

from tests.loopback import (
    BUCKETS,
    CONTENT,
    DIALECTS,
    MODELS,
    PATIENCE_SECONDS,
    Connection,
    buckets,
    credits_of,
    eventually,
    muted,
    newest,
    question,
    record_of,
)


@pytest.fixture
def key(gate):
    return gate.new_wallet("10.00")[1]


# Silence


class Recorded:
    """What came over the wire to an SDK, whichever HTTP library that is built on."""

    def __init__(self):
        self.bytes = b""
        self.request_id = None

    def client(self, library):
        recorded = self

        class Heard(library.SyncByteStream):
            def __init__(self, stream):
                self.stream = stream

            def __iter__(self):
                for chunk in self.stream:
                    recorded.bytes += chunk
                    yield chunk

            def close(self):
                self.stream.close()

        class Transport(library.HTTPTransport):
            def handle_request(self, request):
                response = super().handle_request(request)
                recorded.request_id = response.headers["x-request-id"]
                return library.Response(
                    response.status_code, headers=response.headers, stream=Heard(response.stream)
                )

        return library.Client(transport=Transport(trust_env=False), timeout=30)


def by_sdk(gate, key, dialect, told, *, headers=None, provider=None):
    """Stream by the real SDK; gives its text, its chunks, and what came over the wire."""
    recorded = Recorded()
    model = f"{provider or dialect + '_yes'}/{MODELS[dialect]}@{told}"
    said = [{"role": "user", "content": "Tell me something."}]
    with recorded.client(httpx2 if dialect == "anthropic" else httpx) as http:
        if dialect == "openai":
            client = openai.OpenAI(
                base_url=f"{gate.base_url}/v1", api_key=key, max_retries=0, http_client=http
            )
            chunks = list(
                client.chat.completions.create(
                    model=model, messages=said, stream=True, max_tokens=100, extra_headers=headers,
                    stream_options={"include_usage": True},
                )
            )  # fmt: skip
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        elif dialect == "anthropic":
            client = anthropic.Anthropic(base_url=gate.base_url, api_key=key, max_retries=0, http_client=http)
            with client.messages.stream(
                model=model, messages=said, max_tokens=100, extra_headers=headers
            ) as stream:
                chunks = list(stream)
                text = stream.get_final_text()
        else:
            options = types.HttpOptions(base_url=gate.base_url, httpx_client=http, headers=headers)
            with genai.Client(api_key=key, http_options=options) as client:
                chunks = list(client.models.generate_content_stream(model=model, contents="Tell me."))
            text = "".join(chunk.text or "" for chunk in chunks)
    return text, chunks, recorded


HEARTBEATS = {"openai": b": keep-alive\n\n", "anthropic": b"event: ping\n", "gemini": b"\r\n"}


def test_a_silent_stream_has_heartbeats_that_the_real_sdks_take(gate, key):
    with ThreadPoolExecutor(3) as clients:
        asked = {
            one: clients.submit(by_sdk, gate, key, one, "tokens=5,ttft_ms=1000", headers=None)
            for one in DIALECTS
        }
    for dialect, answer in asked.items():
        text, _, recorded = answer.result()
        assert len(text.split()) == 5
        before = recorded.bytes.partition(CONTENT[dialect])[0]
        assert before.removesuffix(b"data: ").count(HEARTBEATS[dialect]) >= 2
        if dialect == "gemini":
            assert recorded.bytes.startswith(b"\r\n\r\n"), "only blank lines stand before the first event"
        assert gate.usage(recorded.request_id, key)["output_tokens"] == 5


def array(told):
    path, body = question("gemini", "gemini_yes", told)
    return path.removesuffix("?alt=sse"), body


SLOW = {
    **{dialect: question(dialect, f"{dialect}_yes", "silent") for dialect in DIALECTS},
    "array": array("silent"),
    "whole": question("openai", "openai_yes", "silent", stream=False),
    "stalled": question("anthropic", "anthropic_yes", "stall_at=5,ping_ms=200"),
}
"""What runs into a deadline; all of it is asked at once, for whoever waits has nothing else to do."""


@pytest.fixture(scope="module")
def late(gate, sandbox):
    """The answers to `SLOW` by name; each was asked for with a key of its own."""
    keys = {name: gate.new_wallet("10.00")[1] for name in SLOW}
    with ThreadPoolExecutor(len(SLOW)) as clients:
        answers = {name: clients.submit(gate.post, *asked, keys[name]) for name, asked in SLOW.items()}
    return {name: (answer.result(), keys[name]) for name, answer in answers.items()}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_does_not_begin_in_time_ends_with_an_error_and_is_free(gate, late, dialect):
    """A heartbeat had to send status 200; so the 504 is an event."""
    answer, key = late[dialect]
    assert answer.status_code == 200
    error = json.loads(answer.text.strip().rpartition("data: ")[2])["error"]
    named = {"openai": "code", "anthropic": "type", "gemini": "status"}[dialect]
    assert error[named] == ("DEADLINE_EXCEEDED" if dialect == "gemini" else "timeout_error")
    record = record_of(gate, answer.headers["x-request-id"], key)
    assert (record["status"], record["cost"]) == ("timed_out", "0.00")
    assert float(record["provider_cost"]) > 0, "the operator may be billed, and is told"
    assert credits_of(gate, key)["balance"] == "10.00"


def test_an_answer_in_one_piece_that_does_not_come_in_time_is_a_504_and_free(gate, late):
    answer, key = late["whole"]
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout_error"
    assert record_of(gate, answer.headers["x-request-id"], key)["cost"] == "0.00"


def test_a_stream_that_stands_still_ends_with_an_error_whatever_pings_it_sends(gate, late, sandbox):
    answer, key = late["stalled"]
    assert answer.text.count("event: ping") >= 2
    assert "message_stop" not in answer.text
    error = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert (error["type"], error["error"]["type"]) == ("error", "timeout_error")
    record = record_of(gate, answer.headers["x-request-id"], key)
    shown = httpx.get(f"{sandbox}/sandbox/calls", params={"id": record["upstream_id"]}, trust_env=False)
    [call] = shown.json()["data"]
    assert call["hung_up"]
    assert (record["status"], record["usage_source"]) == ("stalled", "estimated")
    assert record["input_tokens"] == call["usage"]["input"], "what was stated is kept"
    assert record["output_tokens"] >= call["usage"]["output"] == 5
    assert record["cost_micro"] > 0


# What a stream says about money


def last_usage(dialect, text):
    field = "usageMetadata" if dialect == "gemini" else "usage"
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [event[field] for event in events if event.get(field)][-1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_cost_in_the_last_usage_report_is_the_cost_in_the_books(gate, box, key, dialect):
    path, body = question(dialect, f"{dialect}_yes", "tokens=33,cached=40")
    if dialect == "openai":
        body["stream_options"] = {"include_usage": True}
    answer = gate.post(path, body, key)
    usage = last_usage(dialect, answer.text)
    record = gate.usage(answer.headers["x-request-id"], key)
    assert (usage["cost"], usage["cost_micro"]) == (record["cost"], record["cost_micro"])
    assert record["cost_micro"] > 0
    assert buckets(record) == box.only_call(lambda call: call["finished"])["usage"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_cost_so_far_grows_in_a_stream_that_asks_for_it(gate, key, dialect):
    text, _, recorded = by_sdk(gate, key, dialect, "tokens=40,gap_ms=5", headers={"x-credits-live": "1"})
    assert len(text.split()) == 40, "the real SDK takes it"
    events = [json.loads(line[6:]) for line in recorded.bytes.decode().splitlines() if "data: {" in line]
    costs = [event["credits"]["cost_micro"] for event in events if "credits" in event]
    final = gate.usage(recorded.request_id, key)["cost_micro"]
    assert len(costs) > 5
    assert costs[:-1] == sorted(costs[:-1]), "until the provider's own report, at the end, corrects it"
    assert costs[0] < costs[-2]
    assert final == last_usage(dialect, recorded.bytes.decode())["cost_micro"]


def test_a_stream_has_no_live_cost_unless_asked(gate, key):
    answer = gate.post(*question("openai", "openai_yes", "tokens=9"), key)
    assert '"credits"' not in answer.text


@pytest.mark.parametrize(
    "told", ["tokens=20", "tokens=20,fail_at=5", "tokens=20,cut_at=5", "tokens=5,ttft_ms=700"]
)
def test_a_gemini_stream_without_sse_is_one_json_array_however_it_ends(gate, key, told):
    answer = gate.post(*array(told), key)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    *_, last = answer.json()
    record = newest(gate, key)[0]
    assert record["cost_micro"] > 0
    if "_at" not in told:
        assert last["usageMetadata"]["cost_micro"] == record["cost_micro"]
    else:
        assert last["error"]["code"] in (500, 502)


def test_a_gemini_stream_without_sse_is_one_json_array_even_where_nothing_came(gate, late):
    answer, key = late["array"]
    assert (answer.status_code, answer.json()[-1]["error"]["code"]) == (200, 504)
    assert newest(gate, key)[0]["cost_micro"] == 0


# Failover


def test_an_overload_in_the_prelude_moves_on_to_another_account_and_is_paid_once(gate, box, key):
    path, body = question("openai", "pair", "tokens=12,overload_in_prelude,fail_key=pair-1")
    answer = gate.post(path, body, key)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "error" not in answer.text
    records = gate.admin("usage", request=answer.headers["x-request-id"])[1]["data"]
    first, second = sorted(records, key=lambda record: record["attempt"])
    assert (first["account"], first["cost"]) == ("pair-1", "0.00")
    assert (second["account"], second["output_tokens"]) == ("pair-2", 12)
    calls = {call["id"]: call for call in box.calls()}
    assert [calls[one["upstream_id"]]["account"] for one in (first, second)] == ["ir-1", "ir-2"]
    assert gate.usage(answer.headers["x-request-id"], key)["cost"] == second["cost"]


# Everybody at once

ON_ITS_WAY = 50
"""Tokens that a busy machine may not have read yet when their client leaves: a second, at the pace of these."""

ENDINGS = (
    # who asks what, and when the client leaves: after so many pieces of content, after a second (0), or never
    ("openai", {"provider": "openai_yes", "told": "tokens=15"}, None),
    ("anthropic", {"provider": "anthropic_yes", "told": "tokens=15,cached=30"}, None),
    ("gemini", {"provider": "gemini_yes", "told": "tokens=15"}, None),
    ("openai", {"provider": "openai_yes", "told": "tokens=9,reasoning=6", "stream": False}, None),
    ("anthropic", {"provider": "anthropic_yes", "told": "tokens=9", "stream": False}, None),
    ("gemini", {"provider": "gemini_yes", "told": "tokens=9,reasoning=4", "stream": False}, None),
    ("openai", {"provider": "pair", "told": "tokens=7,overload_in_prelude,fail_key=pair-1"}, None),
    ("openai", {"provider": "pair", "told": "tokens=7,status=500,times=20"}, None),
    ("openai", {"provider": "openai_yes", "told": "status=400"}, None),
    ("openai", {"provider": "openai_yes", "told": "tokens=15,fail_at=4"}, None),
    ("anthropic", {"provider": "anthropic_yes", "told": "tokens=15,cut_at=4"}, None),
    ("openai", {"provider": "openai_yes", "told": "endless,gap_ms=20"}, 3),
    ("anthropic", {"provider": "anthropic_yes", "told": "endless,gap_ms=20"}, 3),
    ("gemini", {"provider": "gemini_yes", "told": "endless,gap_ms=20"}, 3),
    ("openai", {"provider": "openai_no", "told": "tokens=25,gap_ms=20"}, 3),
    ("gemini", {"provider": "gemini_no", "told": "tokens=25,gap_ms=20"}, 3),
    ("openai", {"provider": "openai_yes", "told": "tokens=20,gap_ms=80", "stream": False}, 0),
)


async def one_client(gate, key, number, seconds):
    """Ask after so many seconds, and leave when this client leaves."""
    dialect, options, leaves_after = ENDINGS[number % len(ENDINGS)]
    await trio.sleep(seconds)
    pieces = leaves_after or float("inf")
    async with Connection(gate.base_url, key) as connection:
        with trio.move_on_after(1 if leaves_after == 0 else PATIENCE_SECONDS):
            heard = await connection.ask(
                *question(dialect, **options),
                until=lambda heard: heard.body.count(CONTENT[dialect]) >= pieces,
            )
            assert heard.status, options


@pytest.mark.parametrize("clients", [120, pytest.param(400, marks=pytest.mark.long)])
async def test_a_crowd_with_mixed_endings_leaves_books_that_match_the_providers_to_the_token(
    gate, box, clients
):
    wallet, key = gate.new_wallet("1000.00")
    # whoever leaves an answer that is read on has a key of their own, for the bound on such answers is per key
    leaving = {n for n in range(clients) if ENDINGS[n % len(ENDINGS)][2] is not None}
    keys = {n: gate.admin("key_create", wallet=wallet)[1]["key"] for n in sorted(leaving)}
    rng = random.Random(11)
    async with trio.open_nursery() as nursery:
        for number in range(clients):
            seconds = rng.random() * clients / 120
            nursery.start_soon(one_client, gate, keys.get(number, key), number, seconds)

    eventually(lambda: credits_of(gate, key)["held_micro"] == 0 and muted(gate) == 0)
    eventually(lambda: all(call["ended_ms"] is not None for call in box.calls()))
    assert gate.verify()["ok"]
    records = gate.admin("usage", wallet=wallet, limit=1000)[1]["data"]
    by_call = {record["upstream_id"]: record for record in records}
    calls = {call["id"]: call for call in box.calls()}
    hasty = sum(leaves == 0 for _, _, leaves in (ENDINGS[n % len(ENDINGS)] for n in range(clients)))
    requests = len({record["request_id"] for record in records})
    # who leaves before their request was sent, as may happen to the hasty, is not billed: nothing was called
    assert clients - hasty <= requests <= clients
    assert len(by_call) == len(records), "each record names its call, and none the same"
    assert by_call.keys() == calls.keys(), "no call without a record, no record without a call"
    reported = {name for name, record in by_call.items() if record["usage_source"] != "estimated"}
    for name in reported:
        assert buckets(by_call[name]) == calls[name]["usage"], by_call[name]
    for name in by_call.keys() - reported:
        mine, theirs = buckets(by_call[name]), calls[name]["usage"]
        assert mine["input"] >= theirs["input"] > 0, by_call[name]
        assert mine["output"] >= theirs["output"] - ON_ITS_WAY, by_call[name]
    for bucket in BUCKETS:
        assert sum(buckets(by_call[name])[bucket] for name in reported) == sum(
            calls[name]["usage"][bucket] for name in reported
        )
    assert len(reported) > clients // 2, "most are billed by the provider's own word"
