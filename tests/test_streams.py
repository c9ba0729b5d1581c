"""Streams over real sockets: hanging up, standing still, silence, deadlines, live cost, failover, a crowd."""

import json
import random
import signal
import socket
import struct
import time
from contextlib import contextmanager

import anthropic
import httpx
import httpx2
import openai
import pytest
import trio
from google import genai
from google.genai import types

from tests.conftest import running

CLOSE_MS = 100
"""A provider's connection is closed within this after the client's hang-up, where that stops the bill."""

WRITE_SECONDS = 1.0
HEARTBEAT_SECONDS = 0.3
MUTED_PER_KEY = 2
CONCURRENCY = 4
PATIENCE_SECONDS = 15
"""Whoever waits for another process gives up after this; nothing here takes so long."""

CLIENTS = 200

DIALECTS = ("openai", "anthropic", "gemini")
MODELS = {"openai": "sandbox-chat", "anthropic": "sandbox-claude", "gemini": "sandbox-gemini"}
CONTENT = {"openai": b'"delta":{"content":"', "anthropic": b'"text_delta"', "gemini": b'"text":"'}
BUCKETS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")


# The processes


def provider(name, kind, url, *, stops, accounts=("one",)):
    base = f"{url}/v1" if kind == "openai" else url
    lines = [
        f'[[provider]]\nname = "{name}"\nkind = "{kind}"\nbase_url = "{base}"',
        f'models = ["sandbox/*"]\nstops_billing = "{stops}"',
        *(f'[[provider.account]]\nname = "{one}"\napi_key = "sk-{one}"' for one in accounts),
    ]
    return "\n".join(lines)


def write_config(path, url, *, hidden="mute"):
    """Every dialect with a provider whose bill a hang-up stops (`…_yes`) and one where it runs on (`…_no`)."""
    providers = [
        provider(f"{kind}_{stops}", kind, url, stops=stops) for kind in DIALECTS for stops in ("yes", "no")
    ]
    providers.append(provider("pair", "openai", url, stops="yes", accounts=("pair-1", "pair-2")))
    path.write_text(
        f"""
        on_hangup_hidden = "{hidden}"
        [listen]
        admin_port = 0
        [server]
        write_seconds = {WRITE_SECONDS}
        [limits]
        muted_per_key_max = {MUTED_PER_KEY}
        [deadlines]
        heartbeat_seconds = {HEARTBEAT_SECONDS}
        first_content_seconds = 2.0
        first_content_reasoning_seconds = 3.0
        idle_seconds = 2.0
        idle_reasoning_seconds = 3.0
        [failover]
        rest_failed_seconds = 0.05
        """
        + "\n".join(providers)
    )
    return path


@contextmanager
def gateway(tmp_path, url, **settings):
    config = write_config(tmp_path / "farebox.toml", url, **settings)
    with running(
        "serve", "--port", "0", "--config", config, "--state", tmp_path / "state", tmp_path=tmp_path
    ) as gate:
        yield gate


class Provider:
    """The sandbox's own view: what it received since the last `mark`, and what it would invoice."""

    def __init__(self, url):
        self.url = url
        self.after = 0
        self.http = httpx.Client(trust_env=False, timeout=30)

    def __enter__(self):
        self.mark()
        return self

    def __exit__(self, *_):
        self.http.close()

    def calls(self):
        answer = self.http.get(f"{self.url}/sandbox/calls", params={"after": self.after})
        return answer.json()["data"]

    def mark(self):
        self.after = max((call["received_at"] for call in self.calls()), default=self.after)

    def only_call(self, until):
        """The one call since the mark, as soon as `until` is true of it."""

        def found():
            calls = self.calls()
            assert len(calls) <= 1
            return calls[0] if calls and until(calls[0]) else None

        return eventually(found)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("sandbox")
    with running("sandbox", "--port", "0", tmp_path=tmp_path) as started:
        yield started.base_url


@pytest.fixture(scope="module")
def gate(tmp_path_factory, url):
    with gateway(tmp_path_factory.mktemp("gate"), url) as started:
        yield started
        assert started.verify()["ok"]
        log = started.log_path.read_text()
        assert '"level":"error"' not in log, log


@pytest.fixture
def box(url):
    with Provider(url) as provider:
        yield provider


@pytest.fixture
def key(gate):
    return gate.new_wallet("10.00", concurrency=CONCURRENCY)[1]


# Asking


def eventually(find, seconds=PATIENCE_SECONDS):
    """What `find` gives, as soon as it gives anything; another process's state has no clock to move."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = find()
        if found:
            return found
        time.sleep(0.01)
    pytest.fail(f"it did not happen within {seconds} s")


def question(dialect, provider, told="", *, stream=True, most=1000, model=None):
    """Path and body of a request, with directives for the sandbox."""
    name = f"{provider}/{model or MODELS[dialect]}" + (f"@{told}" if told else "")
    said = [{"role": "user", "content": "Tell me something."}]
    if dialect == "gemini":
        action = "streamGenerateContent?alt=sse" if stream else "generateContent"
        contents = [{"role": "user", "parts": [{"text": "Tell me something."}]}]
        return f"/v1beta/models/{name}:{action}", {
            "contents": contents,
            "generationConfig": {"maxOutputTokens": most},
        }
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    return path, {"model": name, "messages": said, "max_tokens": most, "stream": stream}


def address_of(gate):
    host, port = gate.base_url.removeprefix("http://").split(":")
    return host, int(port)


def request_bytes(host, key, path, body, connection="keep-alive"):
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\nconnection: {connection}\r\n\r\n"
    )
    return head.encode() + content


class Client:
    """One connection of which every byte, and its end, is in our hands."""

    def __init__(self, gate, key, path, body, *, receive_bytes=None):
        self.sock = socket.socket()
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(address_of(gate))
        self.sock.sendall(request_bytes("gateway", key, path, body))
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def read(self, marker=b"\r\n\r\n", count=1):
        """Read until a marker has come so often."""
        while self.seen.count(marker) < count:
            data = self.sock.recv(65_536)
            assert data, self.seen
            self.seen += data
        return self.seen

    @property
    def request_id(self):
        head = self.read().partition(b"\r\n\r\n")[0].decode().lower()
        return next(line[14:] for line in head.split("\r\n") if line.startswith("x-request-id: "))

    def hang_up(self, how):
        """By FIN or RST; gives the moment, in monotonic milliseconds."""
        at = time.monotonic() * 1000
        if how == "fin":
            self.sock.shutdown(socket.SHUT_WR)
        else:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
        return at


def credits_of(gate, key):
    return gate.get("/v1/credits", key).json()


def slots_left(gate, key):
    return gate.get("/v1/key", key).json()["remaining"]["concurrency"]


def record_of(gate, request, key):
    """The operator's record of a request, as soon as it is settled; the caller's must say the same."""

    def found():
        return gate.admin("usage", request=request)[1]["data"]

    records = eventually(found)
    assert gate.usage(request, key)["cost_micro"] == sum(record["cost_micro"] for record in records)
    return records[-1]


def newest(gate, key, count=1):
    """The newest records of a key's wallet, as soon as there are so many."""

    def found():
        page = gate.get("/v1/usage?limit=100", key).json()["data"]
        return page if len(page) >= count else None

    return eventually(found)


def buckets(record):
    written = record["cache_creation"]
    return {
        "input": record["input_tokens"],
        "cache_read": record["cache_read_input_tokens"],
        "cache_write_5m": written["ephemeral_5m_input_tokens"],
        "cache_write_1h": written["ephemeral_1h_input_tokens"],
        "output": record["output_tokens"],
        "reasoning": record["reasoning_tokens"],
    }


def muted(gate):
    """How many answers are read on for clients who left, as the metrics say."""
    answer = httpx.get(
        f"{gate.facts['admin_url']}/metrics",
        headers={"authorization": f"Bearer {gate.admin_token}"},
        trust_env=False,
    )
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    return int(lines["farebox_answers_muted"])


# Hanging up


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("pace", ["busy", "idle"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_where_hanging_up_stops_the_bill_the_provider_is_closed_at_once(gate, box, key, dialect, pace, how):
    told = "endless,gap_ms=2" if pace == "busy" else "stall_at=5"
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


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    ("dialect", "options", "leaves"),
    [
        ("openai", {"provider": "openai_no"}, "in the text"),
        ("anthropic", {"provider": "anthropic_no"}, "in the text"),
        ("gemini", {"provider": "gemini_no"}, "in the text"),
        ("openai", {"provider": "openai_yes", "model": "sandbox-thinker"}, "while it thinks"),
        ("openai", {"provider": "openai_yes", "stream": False}, "at once"),
        ("anthropic", {"provider": "anthropic_yes", "stream": False}, "at once"),
    ],
    ids=["openai", "anthropic", "gemini", "hidden reasoning", "openai whole", "anthropic whole"],
)
def test_elsewhere_the_answer_is_read_on_and_billed_as_reported(
    gate, box, key, dialect, options, leaves, how
):
    path, body = question(dialect, told="tokens=30,reasoning=10,gap_ms=15", **options)
    with Client(gate, key, path, body) as client:
        if leaves == "in the text":
            client.read(CONTENT[dialect], 2)
        else:
            box.only_call(lambda call: call["account"] is not None)
        client.hang_up(how)
        eventually(lambda: muted(gate) == 1)
        assert slots_left(gate, key) == CONCURRENCY - 1
        assert credits_of(gate, key)["held_micro"] > 0
        call = box.only_call(lambda call: call["ended_ms"] is not None)

    assert call["finished"], "it was read to its end"
    assert not call["hung_up"]
    [record] = newest(gate, key)
    assert record["usage_source"] == "reported"
    assert buckets(record) == call["usage"]
    assert call["usage"]["output"] == 40
    assert (credits_of(gate, key)["held"], slots_left(gate, key), muted(gate)) == ("0.00", CONCURRENCY, 0)


def test_the_number_of_muted_answers_is_bounded_where_requests_are_admitted(gate, box, key):
    ask = question("openai", "openai_no", "tokens=30,gap_ms=30")
    for count in range(1, MUTED_PER_KEY + 1):
        with Client(gate, key, *ask) as client:
            client.read(CONTENT["openai"])
            client.hang_up("rst")
        eventually(lambda count=count: muted(gate) == count)

    refused = gate.chat(key)
    assert refused.status_code == 429
    assert "hung up" in refused.json()["error"]["message"]
    assert gate.chat(gate.new_wallet()[1]).status_code == 200, "others are not concerned"

    eventually(lambda: muted(gate) == 0)
    assert [record["output_tokens"] for record in newest(gate, key, MUTED_PER_KEY)] == [30] * MUTED_PER_KEY
    assert gate.chat(key).status_code == 200


def test_an_operator_may_choose_to_abort_where_the_bill_runs_on(tmp_path, url, box):
    with gateway(tmp_path, url, hidden="abort") as gate:
        key = gate.new_wallet("10.00")[1]
        ask = question("openai", "openai_no", "endless,gap_ms=5", model="sandbox-thinker")
        with Client(gate, key, *ask) as client:
            client.read(CONTENT["openai"], 3)
            at = client.hang_up("fin")
            call = box.only_call(lambda call: call["closed_ms"] is not None)
            assert call["closed_ms"] - at < CLOSE_MS
        [record] = newest(gate, key)
        assert (record["status"], record["usage_source"]) == ("hung_up", "estimated")
        assert record["output_tokens"] > call["usage"]["output"], "what was hidden is estimated by time"
        assert gate.verify()["ok"]


# Standing still

FLOOD = "endless,gap_ms=0,frame_tokens=2000"


def test_a_client_that_stops_reading_is_let_go_after_the_write_deadline(gate, box, key):
    with Client(gate, key, *question("openai", "openai_yes", FLOOD), receive_bytes=4096) as client:
        client.read()
        request, began = client.request_id, time.monotonic()
        assert credits_of(gate, key)["held_micro"] > 0
        record = record_of(gate, request, key)
        assert time.monotonic() - began < WRITE_SECONDS + 4
    assert record["status"] == "hung_up"
    assert record["cost_micro"] > 0
    assert (credits_of(gate, key)["held"], slots_left(gate, key)) == ("0.00", CONCURRENCY)
    assert box.only_call(lambda call: call["closed_ms"] is not None)["hung_up"]


def test_a_client_that_stops_reading_does_not_hold_up_the_end(tmp_path, url):
    with gateway(tmp_path, url) as gate:
        key = gate.new_wallet("10.00")[1]
        with Client(gate, key, *question("openai", "openai_yes", FLOOD), receive_bytes=4096) as client:
            client.read()
            began = time.monotonic()
            assert gate.stop(signal.SIGTERM, 10) == 0
            assert time.monotonic() - began < WRITE_SECONDS + 5


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


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_silent_stream_has_heartbeats_that_the_real_sdk_takes(gate, key, dialect):
    text, _, recorded = by_sdk(gate, key, dialect, "tokens=5,ttft_ms=1000")
    assert len(text.split()) == 5
    before = recorded.bytes.partition(CONTENT[dialect])[0]
    beats = before.removesuffix(b"data: ").count(HEARTBEATS[dialect])
    assert beats >= 2
    if dialect == "gemini":
        assert recorded.bytes.startswith(b"\r\n\r\n"), "only blank lines stand before the first event"
    assert gate.usage(recorded.request_id, key)["output_tokens"] == 5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_does_not_begin_in_time_ends_with_an_error_and_is_free(gate, key, dialect):
    """A heartbeat had to send status 200; so the 504 is an event."""
    path, body = question(dialect, f"{dialect}_yes", "silent")
    answer = gate.post(path, body, key)
    assert answer.status_code == 200
    error = json.loads(answer.text.strip().rpartition("data: ")[2])["error"]
    named = {"openai": "code", "anthropic": "type", "gemini": "status"}[dialect]
    assert error[named] == ("DEADLINE_EXCEEDED" if dialect == "gemini" else "timeout_error")
    record = record_of(gate, answer.headers["x-request-id"], key)
    assert (record["status"], record["cost"]) == ("timed_out", "0.00")
    assert float(record["provider_cost"]) > 0, "the operator may be billed, and is told"
    assert credits_of(gate, key)["balance"] == "10.00"


def test_an_answer_in_one_piece_that_does_not_come_in_time_is_a_504_and_free(gate, key):
    path, body = question("openai", "openai_yes", "silent", stream=False)
    answer = gate.post(path, body, key)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout_error"
    assert record_of(gate, answer.headers["x-request-id"], key)["cost"] == "0.00"


def test_a_stream_that_stands_still_ends_with_an_error_whatever_pings_it_sends(gate, box, key):
    path, body = question("anthropic", "anthropic_yes", "stall_at=5,ping_ms=200")
    answer = gate.post(path, body, key)
    assert answer.text.count("event: ping") >= 2
    assert "message_stop" not in answer.text
    error = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert (error["type"], error["error"]["type"]) == ("error", "timeout_error")
    record = record_of(gate, answer.headers["x-request-id"], key)
    call = box.only_call(lambda call: call["closed_ms"] is not None)
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
    "told", ["tokens=20", "tokens=20,fail_at=5", "tokens=20,cut_at=5", "tokens=5,ttft_ms=700", "silent"]
)
def test_a_gemini_stream_without_sse_is_one_json_array_however_it_ends(gate, key, told):
    path, body = question("gemini", "gemini_yes", told)
    answer = gate.post(path.removesuffix("?alt=sse"), body, key)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    elements = answer.json()
    assert isinstance(elements, list)
    last = elements[-1]
    record = newest(gate, key)[0]
    if told in ("tokens=20", "tokens=5,ttft_ms=700"):
        assert last["usageMetadata"]["cost_micro"] == record["cost_micro"] > 0
    else:
        assert last["error"]["code"] in (500, 502, 504)
        assert (record["cost_micro"] > 0) == (told != "silent")


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


async def one_client(gate, key, number, rng):
    """Ask, and leave when this client leaves."""
    dialect, options, leaves_after = ENDINGS[number % len(ENDINGS)]
    await trio.sleep(rng.random() * 1.5)
    host, port = address_of(gate)
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(request_bytes(host, key, *question(dialect, **options), "close"))
        seen = b""
        with trio.move_on_after(1 if leaves_after == 0 else PATIENCE_SECONDS):
            async for chunk in stream:
                seen += chunk
                if leaves_after and seen.count(CONTENT[dialect]) >= leaves_after:
                    return
        assert seen or leaves_after == 0, options


async def test_two_hundred_clients_with_mixed_endings_leave_books_that_match_the_providers_to_the_token(
    gate, box
):
    wallet, key = gate.new_wallet("1000.00")
    # whoever leaves an answer that is read on has a key of their own, for the bound on such answers is per key
    leaving = {n for n in range(CLIENTS) if ENDINGS[n % len(ENDINGS)][2] is not None}
    keys = {n: gate.admin("key_create", wallet=wallet)[1]["key"] for n in sorted(leaving)}
    rng = random.Random(11)
    async with trio.open_nursery() as nursery:
        for number in range(CLIENTS):
            nursery.start_soon(one_client, gate, keys.get(number, key), number, rng)

    eventually(lambda: credits_of(gate, key)["held_micro"] == 0 and muted(gate) == 0)
    eventually(lambda: all(call["ended_ms"] is not None for call in box.calls()))
    assert gate.verify()["ok"]
    records = gate.admin("usage", wallet=wallet, limit=1000)[1]["data"]
    by_call = {record["upstream_id"]: record for record in records}
    calls = {call["id"]: call for call in box.calls()}
    hasty = sum(leaves == 0 for _, _, leaves in (ENDINGS[n % len(ENDINGS)] for n in range(CLIENTS)))
    requests = len({record["request_id"] for record in records})
    # who leaves before their request was sent, as may happen to the hasty, is not billed: nothing was called
    assert CLIENTS - hasty <= requests <= CLIENTS
    assert len(by_call) == len(records), "each record names its call, and none the same"
    assert by_call.keys() == calls.keys(), "no call without a record, no record without a call"
    reported = {name for name, record in by_call.items() if record["usage_source"] != "estimated"}
    for name in reported:
        assert buckets(by_call[name]) == calls[name]["usage"], by_call[name]
    for name in by_call.keys() - reported:
        mine, theirs = buckets(by_call[name]), calls[name]["usage"]
        assert mine["input"] >= theirs["input"] > 0, by_call[name]
        assert mine["output"] >= theirs["output"], by_call[name]
    for bucket in BUCKETS:
        assert sum(buckets(by_call[name])[bucket] for name in reported) == sum(
            calls[name]["usage"][bucket] for name in reported
        )
    assert len(reported) > CLIENTS // 2, "most are billed by the provider's own word"
