"""Small wallets over real sockets: what is held, lowered and cut off, and a thousand streams at once on one of them."""

import json
import resource

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from google import genai
from google.genai import types

from tests.conftest import running
from tests.loopback import (
    DIALECTS,
    Connection,
    buckets,
    credits_of,
    everything,
    provider,
    question,
)

DOLLAR = 10**6
"""In micro-units."""

SLICES_IN = 25
"""Dollars in a wallet of which a thousand slices can be held and grow twice; of full holds, at 0.37 each, some 70."""

SOCKETS_PER_STREAM = 4
"""The client's, the gateway's two and the sandbox's, if all of them were in one process."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory, sandbox):
    tmp_path = tmp_path_factory.mktemp("wallets")
    known = [provider(f"{kind}_yes", kind, sandbox, stops="yes") for kind in DIALECTS]
    (tmp_path / "farebox.toml").write_text(
        'log_level = "warning"\n[listen]\nadmin_port = 0\n' + "\n".join(known)
    )
    config = ("--config", tmp_path / "farebox.toml", "--state", tmp_path / "state")
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as started:
        yield started
        assert started.verify()["ok"]
        log = started.log_path.read_text()
        assert '"level":"error"' not in log, log


# Large contexts and a little money


class Heard:
    """The headers and the bytes of the last answer that an SDK was given, whichever HTTP library it is built on."""

    def __init__(self, library):
        self.headers, self.bytes = {}, b""
        heard = self

        class Stream(library.SyncByteStream):
            def __init__(self, stream):
                self.stream = stream

            def __iter__(self):
                for chunk in self.stream:
                    heard.bytes += chunk
                    yield chunk

            def close(self):
                self.stream.close()

        class Transport(library.HTTPTransport):
            def handle_request(self, request):
                response = super().handle_request(request)
                heard.headers, heard.bytes = response.headers, b""
                return library.Response(
                    response.status_code, headers=response.headers, stream=Stream(response.stream)
                )

        self.http = library.Client(transport=Transport(trust_env=False), timeout=60)


def claude(gate, key, size, told="tokens=9"):
    """A conversation of so many bytes, marked for five minutes, that may think; gives the message and the headers."""
    heard = Heard(httpx2)
    block = {"type": "text", "text": "x" * size, "cache_control": {"type": "ephemeral"}}
    with heard.http as http:
        client = anthropic.Anthropic(base_url=gate.base_url, api_key=key, max_retries=0, http_client=http)
        with client.messages.stream(
            model=f"sandbox-claude@{told}",
            max_tokens=32_000,
            thinking={"type": "enabled", "budget_tokens": 16_000},
            messages=[{"role": "user", "content": [block]}],
        ) as stream:
            message = stream.get_final_message()
    return message, heard.headers


@pytest.mark.parametrize(("size", "held"), [(60_000, 0.71), (799_900, 1.23)])
def test_large_marked_contexts_run_on_a_wallet_of_two_dollars(gate, box, size, held):
    """The larger one fills the model's window to the brim; more than that is never held."""
    key = gate.new_wallet("2.00")[1]
    message, headers = claude(gate, key, size)
    assert message.stop_reason == "end_turn"
    assert (headers["x-credits-hold"], "x-credits-clamped" in headers) == ("full", False)
    assert int(headers["x-credits-held-micro"]) / DOLLAR == pytest.approx(held, abs=0.01)
    record = gate.usage(headers["x-request-id"], key)
    assert record["usage_source"] == "reported"
    assert buckets(record) == box.only_call(lambda call: call["finished"])["usage"]
    assert record["cache_creation"]["ephemeral_5m_input_tokens"] > size // 4 - 10


def test_half_a_dollar_is_refused_and_told_what_would_fit(gate, box):
    key = gate.new_wallet("0.50")[1]
    with pytest.raises(anthropic.APIStatusError) as refused:
        claude(gate, key, 60_000)
    assert refused.value.status_code == 402
    told = refused.value.body["error"]["metadata"]
    assert told["limit"] == "wallet"
    assert 15_000 < told["affordable_max_tokens"] < 19_000
    assert box.calls() == []


def test_half_a_dollar_suffices_for_a_key_whose_bounds_may_be_lowered(gate, box):
    """The provider is told the lower bound, and keeps to it; the header says so."""
    key = gate.new_wallet("0.50", clamp=True)[1]
    message, headers = claude(gate, key, 60_000, "tokens=40000,reasoning=20000,frame_tokens=1000")
    bound = int(headers["x-credits-max-output-tokens"])
    assert headers["x-credits-clamped"] == "output"
    assert 15_000 < bound < 19_000
    assert int(headers["x-credits-max-thinking-tokens"]) == bound // 2
    assert message.stop_reason == "max_tokens"
    call = box.only_call(lambda call: call["finished"])
    assert call["usage"]["output"] == message.usage.output_tokens == bound
    assert gate.usage(headers["x-request-id"], key)["cost_micro"] <= DOLLAR // 2
    assert credits_of(gate, key)["held"] == "0.00"


# Answers that the wallet does not cover to their end


def by_openai(gate, key, http):
    client = openai.OpenAI(base_url=f"{gate.base_url}/v1", api_key=key, max_retries=0, http_client=http)
    chunks = client.chat.completions.create(
        model="sandbox-chat@endless,gap_ms=0,frame_tokens=20",
        messages=[{"role": "user", "content": "Tell me everything."}],
        stream=True,
        max_tokens=90_000,
        stream_options={"include_usage": True},
    )
    told, usage = [], None
    for chunk in chunks:
        told += [one.finish_reason for one in chunk.choices if one.finish_reason]
        usage = chunk.usage or usage
    return told, usage.completion_tokens


def by_anthropic(gate, key, http):
    client = anthropic.Anthropic(base_url=gate.base_url, api_key=key, max_retries=0, http_client=http)
    with client.messages.stream(
        model="sandbox-claude@endless,gap_ms=0,frame_tokens=20",
        messages=[{"role": "user", "content": "Tell me everything."}],
        max_tokens=60_000,
    ) as stream:
        message = stream.get_final_message()
    return [message.stop_reason], message.usage.output_tokens


def by_gemini(gate, key, http):
    options = types.HttpOptions(base_url=gate.base_url, httpx_client=http)
    told, usage = [], None
    with genai.Client(api_key=key, http_options=options) as client:
        for chunk in client.models.generate_content_stream(
            model="sandbox-gemini@endless,gap_ms=0,frame_tokens=20",
            contents="Tell me everything.",
            config=types.GenerateContentConfig(max_output_tokens=60_000),
        ):
            told += [one.finish_reason.value for one in chunk.candidates or () if one.finish_reason]
            usage = chunk.usage_metadata or usage
    return told, usage.candidates_token_count


SDKS = {
    "openai": (by_openai, httpx, "length"),
    "anthropic": (by_anthropic, httpx2, "max_tokens"),
    "gemini": (by_gemini, httpx, "MAX_TOKENS"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_the_wallet_cannot_cover_ends_as_length_for_the_real_sdk(gate, box, dialect):
    by_sdk, library, length = SDKS[dialect]
    key = gate.new_wallet("0.03")[1]
    heard = Heard(library)
    with heard.http as http:
        told, tokens = by_sdk(gate, key, http)
    assert told == [length]
    assert heard.headers["x-credits-hold"] == "rolling"
    assert int(heard.headers["x-credits-held-micro"]) < 0.03 * DOLLAR
    last = [json.loads(line[6:]) for line in heard.bytes.splitlines() if line.startswith(b"data: {")]
    assert {frame["x-credits-limit"] for frame in last if "x-credits-limit" in frame} == {"wallet"}
    record = gate.usage(heard.headers["x-request-id"], key)
    assert (record["status"], record["output_tokens"]) == ("exhausted", tokens)
    call = box.only_call(lambda call: call["closed_ms"] is not None)
    assert call["hung_up"], "the provider's connection is closed"
    left = credits_of(gate, key)
    assert left["held_micro"] == 0
    assert 0 <= left["balance_micro"] < 0.02 * DOLLAR


# A crowd on one wallet


async def one_stream(gate, key, number, told, seen):
    dialect = DIALECTS[number % 3]
    async with Connection(gate.base_url, key) as connection:
        heard = await connection.ask(*question(dialect, f"{dialect}_yes", told, most=50_000))
    assert heard.has_ended(dialect), (heard.status, bytes(heard.body[-300:]))
    assert heard.headers["x-credits-hold"] == "rolling"
    seen.append((heard.request, int(heard.headers["x-credits-held-micro"])))


@pytest.mark.parametrize(
    ("crowd", "waits_ms"), [(150, 2000), pytest.param(1000, 20_000, marks=pytest.mark.long)]
)
async def test_a_crowd_of_streams_on_one_wallet_holds_slices_not_maxima(gate, box, say, crowd, waits_ms):
    """All are open at once, their holds grow, and all end; full holds for one in fifteen is all that there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < crowd * SOCKETS_PER_STREAM:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, crowd * SOCKETS_PER_STREAM), hard))
    wallet, key = gate.new_wallet(f"{SLICES_IN * crowd / 1000:.2f}")
    told, seen, held = f"tokens=300,frame_tokens=25,gap_ms=20,ttft_ms={waits_ms}", [], []
    async with trio.open_nursery() as nursery:
        for number in range(crowd):
            nursery.start_soon(one_stream, gate, key, number, told, seen)
        with trio.fail_after(120):
            while len(seen) < crowd:
                shown = await trio.to_thread.run_sync(credits_of, gate, key)
                held.append(shown["held_micro"])
                assert shown["available_micro"] >= 0
                await trio.sleep(0.1)
    calls = {call["id"]: call for call in box.calls()}
    records = everything(gate, wallet=wallet)
    assert {record["request_id"] for record in records} == {request for request, _ in seen}
    assert len(records) == len(calls) == crowd
    for record in records:
        assert (record["status"], record["usage_source"]) == ("complete", "reported")
        assert buckets(record) == calls[record["upstream_id"]]["usage"]
    began = max(call["received_ms"] for call in calls.values())
    assert began < min(call["ended_ms"] for call in calls.values()), "all were open at once"
    full = crowd * 50_000 * (4 + 15 + 3) / 3
    say(
        f"{crowd} streams at once: {max(held) / DOLLAR:.2f} dollars held at most; full holds: {full / DOLLAR:.2f}"
    )
    assert 0 < max(held) <= SLICES_IN * crowd / 1000 * DOLLAR < full / 10
    assert any(gate.usage(request, key)["held_micro"] > first for request, first in seen)
