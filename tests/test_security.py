"""Attacks that must not succeed: free tokens, another's wallet, leaked secrets, forged requests, hanging workers."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import duckdb
import httpx
import pytest

from proxy.telemetry import LOGGED
from tests.conftest import cli, running

SECRET = "wiresecret4f1bd0c7e2"
"""The operator's credential at every provider, of a shape that nobody knows; no one else may ever see it."""

OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
GEMINI = "/v1beta/models/sandbox-gemini:generateContent"
ASK = [{"role": "user", "content": "Hello"}]
CONTENTS = [{"role": "user", "parts": [{"text": "Hello"}]}]

SERVER_SECONDS = 1.0
"""What a client has for its head, and for its body, in these tests."""

RESPONSIVE_SECONDS = 2.0
"""Others are answered within this, whatever somebody else is sending."""

MEGABYTES = 2**20


# A provider that remembers every byte, and says whatever a test wants


TELLING = {
    "set-cookie": "__cf_bm=wire-cookie; path=/",
    "openai-organization": "wire-organization",
    "openai-project": "wire-project",
    "anthropic-organization-id": "wire-organization",
    "anthropic-ratelimit-requests-limit": "31337",
    "x-ratelimit-limit-requests": "31337",
    "x-ratelimit-remaining-tokens": "31337",
    "server": "wire-server",
    "via": "1.1 wire-proxy",
    "cf-ray": "wire-ray",
    "x-credits-cost-micro": "31337",
    "x-credits-balance-micro": "31337",
    "access-control-allow-credentials": "true",
    "location": "http://wire-location/",
    "refresh": "0; url=http://wire-location/",
    "x-request-id": "wire-request",
}
"""What a provider might send that belongs to the operator, or that would deceive the caller."""

WHOLE = {
    "openai": {
        "id": "c", "object": "chat.completion", "model": "m", "created": 1,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    },
    "anthropic": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "Hi"}], "usage": {"input_tokens": 10, "output_tokens": 5},
    },
    "gemini": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
    },
}  # fmt: skip


class Wire:
    """Remembers each request as (method, target, headers, body); `answer` is what it says next."""

    def __init__(self):
        self.seen = []
        self.answer = None
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                wire.seen.append((self.command, self.path, self.headers.items(), body))
                status, headers, answer = wire.answer or wire.usual(self.path)
                self.send_response_only(status)
                for name, value in {**TELLING, **headers, "content-length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = handle_one  # noqa: N815 - its base calls them so

            def log_message(self, *_):
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    @staticmethod
    def usual(path):
        kind = "gemini" if "models/" in path else "anthropic" if "messages" in path else "openai"
        if path.endswith("count_tokens"):
            return 200, {"content-type": "application/json"}, b'{"input_tokens":7}'
        return 200, {"content-type": "application/json"}, json.dumps(WHOLE[kind]).encode()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def wire():
    with Wire() as wire:
        yield wire


@pytest.fixture(autouse=True)
def fresh(wire):
    wire.seen.clear()
    wire.answer = None


@contextmanager
def gateway(tmp_path, wire, sandbox_url):
    """`wire` and `box` serve the sandbox's models, `wire` also OpenAI's own, in all three dialects."""
    providers = ""
    for name, url, models in (
        ("box", sandbox_url, '["sandbox/*"]'),
        ("wire", wire.url, '["sandbox/*", "openai/gpt-4o"]'),
    ):
        for kind in ("openai", "anthropic", "gemini"):
            base = f"{url}/v1" if kind == "openai" else url
            providers += f"""
            [[provider]]
            name = "{name}_{kind}"
            kind = "{kind}"
            base_url = "{base}"
            models = {models}
            stops_billing = "yes"
            [[provider.account]]
            name = "one"
            api_key = "{SECRET}"
            """
    (tmp_path / "farebox.toml").write_text(
        f"""
        log_level = "debug"
        [listen]
        admin_port = 0
        allowed_hosts = ["127.0.0.1", "api.example"]
        [server]
        header_seconds = {SERVER_SECONDS}
        body_seconds_min = {SERVER_SECONDS}
        [failover]
        rest_failed_seconds = 0.01
        rest_refused_seconds = 0.01
        rest_limited_seconds = 0.01
        {providers}"""
    )
    config = ("--config", tmp_path / "farebox.toml", "--state", tmp_path / "state")
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as gate:
        gate.sandbox_url = sandbox_url
        yield gate


@pytest.fixture(scope="module")
def sandbox_url(tmp_path_factory):
    with running("sandbox", "--port", "0", tmp_path=tmp_path_factory.mktemp("box")) as sandbox:
        yield sandbox.base_url


@pytest.fixture(scope="module")
def gate(tmp_path_factory, wire, sandbox_url):
    with gateway(tmp_path_factory.mktemp("gate"), wire, sandbox_url) as gate:
        yield gate
        assert gate.verify()["ok"]
        for line in gate.log_path.read_text().splitlines():
            assert json.loads(line).keys() <= LOGGED, line


@pytest.fixture(scope="module")
def http():
    """A client without a key of its own."""
    with httpx.Client(trust_env=False, timeout=60) as http:
        yield http


@pytest.fixture
def mine(gate):
    return gate.new_wallet("10.00")


def openai_body(model="box_openai/sandbox-chat", **fields):
    return {"model": model, "messages": ASK, "max_tokens": 50, **fields}


def calls_of(gate):
    return len(gate.calls())


def balance(gate, key):
    return gate.get("/v1/credits", key).json()


def records(gate, key):
    return gate.get("/v1/usage?limit=1000", key).json()["data"]


def raw(url, data, seconds=10):
    """Send bytes as they are; gives all that comes back until the other side closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as sock:
        sock.sendall(data)
        answer = b""
        try:
            while part := sock.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
    return answer


# Tokens for free


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o@tokens=5", "openai/gpt-4o@tokens=5", "wire_openai/gpt-4o@tokens=5", "models/gpt-4o@usage=none",
        "wire_openai/openai/gpt-4o@x", "gpt-4o@", "@sandbox-chat", "sandbox@chat",
    ],
)  # fmt: skip
def test_directives_reach_no_model_but_the_sandboxs(gate, wire, mine, model):
    answer = gate.post(OPENAI, openai_body(model), mine[1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert wire.seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC, GEMINI])
def test_no_other_method_generates(gate, wire, mine, http, method, path):
    before = calls_of(gate)
    body = openai_body("wire_openai/sandbox-chat") | {"contents": CONTENTS}
    answer = http.request(
        method,
        f"{gate.base_url}{path}",
        headers={"authorization": f"Bearer {mine[1]}", "x-http-method-override": "POST"},
        json=body,
    )
    assert answer.status_code == (204 if method == "OPTIONS" else 405)
    assert (wire.seen, calls_of(gate)) == ([], before)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages/count_tokens",
            {"model": "sandbox-claude", "messages": ASK, "stream": True, "max_tokens": 9999},
        ),
        ("/v1beta/models/sandbox-gemini:countTokens?alt=sse", {"contents": CONTENTS}),
        (
            "/v1beta/models/sandbox-gemini:countTokens",
            {"generateContentRequest": {"model": "models/sandbox-gemini", "contents": CONTENTS}},
        ),
    ],
)
def test_counting_tokens_is_free_and_generates_nothing(gate, mine, path, body):
    before = calls_of(gate)
    answer = gate.post(path, body, mine[1])
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) <= {"input_tokens", "totalTokens", "promptTokensDetails"}
    assert [call["action"] for call in gate.calls()[before:]] == ["count"]
    assert balance(gate, mine[1])["balance"] == "10.00"


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/sandbox-gemini:generateContent:countTokens",
        "/v1beta/models/sandbox-gemini:countTokens:generateContent",
        "/v1beta/models/sandbox-gemini:countTokens%2F..%2Fsandbox-gemini:generateContent",
        "/v1beta/models/sandbox-gemini%3AgenerateContent%3Fx=:countTokens",
        "/v1/messages/count_tokens/../../messages",
        "/v1/messages/count_tokens%2f..",
        "/v1/messages/count_tokens/",
        "/v1//messages",
    ],
)
def test_the_free_route_is_no_way_to_the_paid_one(gate, wire, mine, path):
    before = calls_of(gate)
    body = {"model": "sandbox-claude", "messages": ASK, "max_tokens": 50, "contents": CONTENTS}
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {mine[1]}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(json.dumps(body))}\r\n\r\n"
    )
    answer = raw(gate.base_url, head.encode() + json.dumps(body).encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404")), answer
    assert (wire.seen, calls_of(gate)) == ([], before)


def test_counting_names_no_other_model_than_the_path(gate, mine):
    inner = {"model": "models/gemini-3-pro", "contents": CONTENTS}
    answer = gate.post(
        "/v1beta/models/sandbox-gemini:countTokens", {"generateContentRequest": inner}, mine[1]
    )
    assert answer.status_code == 400


def test_many_choices_are_held_and_paid_each(gate, mine):
    assert gate.post(OPENAI, openai_body(n=129), mine[1]).status_code == 400
    one, many = (
        gate.post(OPENAI, openai_body("box_openai/sandbox-chat@tokens=9", n=n), mine[1]) for n in (1, 16)
    )
    one, many = (gate.usage(answer.headers["x-request-id"], mine[1]) for answer in (one, many))
    assert (one["output_tokens"], many["output_tokens"]) == (9, 144)
    assert many["held_micro"] > 14 * one["held_micro"]


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_a_cache_mark_is_held_for_however_it_is_spelt(gate, mine, ttl):
    block = '{"type":"text","text":"%s","%s":{"type":"ephemeral","ttl":"%s"}}'
    nested = '{"type":"tool_result","tool_use_id":"t","content":[%s]}'
    marks = [
        block % ("x" * 4000, name, ttl)
        for name in ("cache_control", "cache\\u005fcontrol", "\\u0063ache_control")
    ]
    held = set()
    for mark in (*marks, nested % marks[0], nested % marks[1]):
        model = f"box_anthropic/sandbox-claude@tokens=2,cache_write{'_1h' if ttl == '1h' else ''}=100"
        messages = '[{"role":"user","content":[' + mark + "]}]"
        body = '{"model":"' + model + '","max_tokens":2,"messages":' + messages + "}"
        answer = gate.post(ANTHROPIC, body.encode(), mine[1], headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        [record] = gate.admin("usage", request=answer.headers["x-request-id"])[1]["data"]
        written = record["cache_creation"][f"ephemeral_{ttl}_input_tokens"]
        assert written >= 1000
        assert (record["loss"], record["flags"]) == ("0.00", [])
        held.add(record["held_micro"])
    assert min(held) >= 4000 * (6 if ttl == "1h" else 3.75)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "model"),
    [
        (OPENAI, "box_openai/sandbox-chat"),
        (ANTHROPIC, "box_anthropic/sandbox-claude"),
        ("/v1beta/models/box_gemini/{}", "sandbox-gemini"),
    ],
)
def test_a_provider_that_reports_no_usage_is_no_free_lunch(gate, mine, path, model, stream):
    told = "tokens=40,usage=none"
    if path.startswith("/v1beta"):
        action = "streamGenerateContent?alt=sse" if stream else "generateContent"
        answer = gate.post(path.format(f"{model}@{told}:{action}"), {"contents": CONTENTS}, mine[1])
    else:
        body = openai_body(f"{model}@{told}", stream=stream)
        answer = gate.post(path, body, mine[1])
    assert answer.status_code == 200
    [record] = records(gate, mine[1])
    assert record["usage_source"] == "estimated"
    assert record["output_tokens"] >= 40
    assert record["input_tokens"] > 0
    assert record["cost_micro"] > 0


def test_a_provider_that_reports_more_than_was_held_takes_no_more_than_that(gate, mine):
    answer = gate.post(OPENAI, openai_body("box_openai/sandbox-chat@usage=over"), mine[1])
    [record] = gate.admin("usage", request=answer.headers["x-request-id"])[1]["data"]
    assert record["cost_micro"] == record["held_micro"]
    assert float(record["loss"]) > 0
    assert "beyond_hold" in record["flags"]


def test_a_wallet_cannot_be_spent_twice_by_asking_at_once(gate):
    """It has enough for three; thirty ask. The rest is refused, and nothing is overdrawn."""
    price = 200 * 4  # micro-units of 200 tokens of output, the input comes on top
    _, key = gate.new_wallet(f"{(3 * price + 200) / 1e6:.6f}")
    body = openai_body("box_openai/sandbox-chat@tokens=200,gap_ms=2", max_tokens=200)
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: gate.post(OPENAI, body, key), range(30)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 402}
    assert statuses.count(200) == 3
    left = balance(gate, key)
    assert float(left["balance"]) >= 0
    assert left["held"] == "0.00"
    assert sum(record["cost_micro"] for record in records(gate, key)) <= 3 * price + 200


@pytest.mark.parametrize("stream", [True, False])
def test_there_is_no_right_instant_to_hang_up(gate, mine, stream):
    """Whenever a client leaves: what it was given is charged, and in all no less than the provider invoices."""
    rng, before = random.Random(5), calls_of(gate)
    host, port = gate.base_url.removeprefix("http://").split(":")
    content = json.dumps(openai_body("box_openai/sandbox-chat@tokens=20,ttft_ms=20,gap_ms=5", stream=stream))
    head = (
        f"POST {OPENAI} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {mine[1]}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )

    def leave(seconds):
        seen, until = b"", time.monotonic() + seconds
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall((head + content).encode())
            while (left := until - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    seen += sock.recv(65_536)
                except TimeoutError:
                    break
        return seen

    given = []
    for longest in (0.2, 0.5, 1.0, 2.0):  # on a busy machine it takes longer until a call is under way
        with ThreadPoolExecutor(6) as pool:
            given += pool.map(leave, [rng.random() * longest for _ in range(40)])
        if calls_of(gate) - before > 20:
            break
    until = time.monotonic() + 10
    while any(call["ended_ms"] is None for call in gate.calls()) or balance(gate, mine[1])["held_micro"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    charged = {record["request_id"]: record for record in records(gate, mine[1])}
    for seen in given:
        if seen:
            request = seen.partition(b"x-request-id: ")[2].partition(b"\r")[0].decode()
            assert charged[request]["output_tokens"] >= seen.count(b'"delta":{"content":"')
            assert charged[request]["cost_micro"] > 0
    calls = gate.calls()[before:]
    assert len(calls) > 20
    for name in ("input", "output"):
        invoiced = sum(call["usage"][name] for call in calls)
        assert sum(record[f"{name}_tokens"] for record in charged.values()) >= invoiced


def test_usage_that_is_reported_twice_is_charged_once(gate, wire, mine):
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = chunk | {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
    finish = chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = chunk | {"choices": [], "usage": WHOLE["openai"]["usage"]}
    events = [delta, finish, usage, usage, usage]
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    wire.answer = 200, {"content-type": "text/event-stream"}, body + b"data: [DONE]\n\n"
    answer = gate.post(OPENAI, openai_body("wire_openai/sandbox-chat", stream=True), mine[1])
    record = gate.usage(answer.headers["x-request-id"], mine[1])
    assert (record["input_tokens"], record["output_tokens"], record["cost_micro"]) == (10, 5, 30)


def test_a_key_that_may_use_one_model_cannot_reach_another_by_another_name(gate):
    _, key = gate.new_wallet("1.00", models=["sandbox/claude"])
    for name in (
        "sandbox-chat", "sandbox/chat", "models/sandbox-chat", "box_openai/sandbox-chat", "sandbox-chat@sandbox/claude",
        "wire_openai/sandbox/chat", "box_anthropic/sandbox-chat", "sandbox/claude/../chat", "sandbox/claude@,/chat",
        "wire_openai/openai/gpt-4o",
    ):  # fmt: skip
        assert gate.post(OPENAI, openai_body(name), key).status_code in (400, 403, 404), name
    assert gate.post(ANTHROPIC, openai_body("sandbox-claude"), key).status_code == 200
    assert gate.post(GEMINI, {"contents": CONTENTS}, key).status_code == 403
    assert len(records(gate, key)) == 1


# Another's wallet


def test_nobody_reads_another_wallet(gate, mine):
    theirs, their_key = gate.new_wallet("5.00")
    requests = [gate.post(OPENAI, openai_body(), their_key).headers["x-request-id"] for _ in range(3)]
    for request in requests:
        for path in (f"/v1/usage/{request}", f"/v1/usage/{request}?wallet={theirs}&key={their_key}"):
            answer = gate.get(path, mine[1])
            assert answer.status_code == 404
            assert "cost" not in answer.text
    cursor = gate.get("/v1/usage?limit=1", their_key).json()["next_cursor"]
    assert cursor
    for query in (
        f"cursor={quote(cursor)}",
        f"wallet={theirs}",
        f"key={their_key}",
        f"wallet_id={theirs}&limit=5",
    ):
        page = gate.get(f"/v1/usage?{query}", mine[1])
        assert page.status_code in (200, 400)
        assert page.json().get("data", []) == []
    for path in ("/v1/key", "/v1/credits", "/v1/credits/balance"):
        text = gate.get(f"{path}?wallet={theirs}&key={their_key}", mine[1]).text
        assert theirs not in text
        assert "5.00" not in text


@pytest.mark.parametrize(
    "path", ["/v1/usage", "/v1/credits", "/v1/key", "/v1/usage/req_x", OPENAI, ANTHROPIC]
)
def test_a_key_in_the_query_is_none_but_for_gemini(gate, mine, http, path):
    call = http.post if path in (OPENAI, ANTHROPIC) else http.get
    answer = call(f"{gate.base_url}{path}?key={mine[1]}")
    assert answer.status_code == 401
    assert mine[1] not in answer.text


# What comes in and does not go on


PRIVATE = {
    "cookie": "session=client-cookie",
    "x-user-key": None,
    "x-api-key": None,
    "proxy-authorization": "Basic client-proxy",
    "x-forwarded-for": "203.0.113.7",
    "x-forwarded-host": "client-host.example",
    "x-forwarded-proto": "https",
    "x-real-ip": "203.0.113.7",
    "forwarded": "for=203.0.113.7",
    "via": "1.1 client-via",
    "x-credits-live": "1",
    "x-credits-cost-micro": "0",
    "x-request-id": "client-request",
    "openai-organization": "client-organization",
    "openai-project": "client-project",
    "anthropic-dangerous-direct-browser-access": "true",
    "origin": "https://client-origin.example",
    "referer": "https://client-referer.example",
    "user-agent": "client-agent",
    "accept-encoding": "gzip",
    "te": "trailers",
    "x-stainless-os": "client-os",
    "idempotency-key": "client-idempotency",
    "x-custom": "client-custom",
}
"""Headers of a client; `None`: the client's own key."""

ALLOWED = {
    "host", "content-length", "content-type", "accept", "accept-encoding", "user-agent", "connection",
    "anthropic-version", "anthropic-beta", "openai-beta", "authorization", "x-api-key", "x-goog-api-key",
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (OPENAI, "wire_openai/sandbox-chat"),
        (ANTHROPIC, "wire_anthropic/sandbox-claude"),
        ("/v1/messages/count_tokens?beta=true", "wire_anthropic/sandbox-claude"),
        ("/v1beta/models/wire_gemini/sandbox-gemini:generateContent?key={}", None),
        ("/genai/v1beta/models/wire_gemini/sandbox-gemini:generateContent?key={}&alt=json&$secret=1", None),
    ],
)
def test_of_a_clients_headers_only_the_allowed_go_to_the_provider(gate, wire, mine, path, model):
    key = mine[1]
    body = openai_body(model) if model else {"contents": CONTENTS}
    headers = {name: key if value is None else value for name, value in PRIVATE.items()}
    answer = gate.post(path.format(key), body, key, headers=headers)
    assert answer.status_code == 200, answer.text
    [(method, target, sent, raw_body)] = wire.seen
    assert method == "POST"
    assert "key=" not in target
    assert "secret" not in target
    assert {name.lower() for name, _ in sent} <= ALLOWED
    together = f"{target} {sent} {raw_body}"
    assert key not in together
    for sign in ("client-", "203.0.113.7"):
        assert sign not in together
    assert together.count(SECRET) == 1, "the operator's credential, in one place"


HOSTILE = [
    "x\r\nx-injected: 1", "x\nx-injected: 1", "x\r\n\r\nGET /injected HTTP/1.1", "x\u2028x-injected", "x\x00",
    "\u010d\u010ax-injected: 1", "x" * 5000, "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_no_value_in_a_body_becomes_a_header(gate, wire, mine, hostile):
    answers = [
        gate.post(OPENAI, json.dumps(openai_body(hostile)).encode(), mine[1]),
        gate.post(OPENAI, json.dumps(openai_body(f"wire_openai/sandbox-chat@{hostile}")).encode(), mine[1]),
        gate.post(
            OPENAI,
            json.dumps(
                openai_body("wire_openai/sandbox-chat", metadata={"a": hostile, hostile: "b"}, user=hostile)
            ).encode(),
            mine[1],
        ),
        gate.post(
            f"/v1beta/models/{quote(f'wire_gemini/sandbox-gemini@{hostile}', safe='/@')}:generateContent",
            {"contents": CONTENTS},
            mine[1],
        ),
    ]
    for answer in answers:
        assert answer.status_code in (200, 400, 404)
        assert "x-injected" not in answer.headers
        assert all("\n" not in value and "\r" not in value for value in answer.headers.values())
    for _, target, sent, _ in wire.seen:
        assert "x-injected" not in {name.lower() for name, _ in sent}
        assert target == "/v1/chat/completions" or target.endswith(":generateContent")
        assert target.isascii()
        assert target.isprintable()


def test_no_name_of_a_model_leads_to_another_route_of_the_provider(gate, wire, mine):
    for name in ("a/b", "x?alt=sse", "x#y", "x:countTokens", "x&key=1", "%2e%2e", "x;y", "a b", "{y}"):
        path = f"/v1beta/models/{quote(f'wire_gemini/sandbox-gemini@{name}', safe='/@')}:generateContent"
        assert gate.post(path, {"contents": CONTENTS}, mine[1]).status_code in (200, 400, 404)
    assert wire.seen
    for _, target, _, _ in wire.seen:
        assert target.startswith("/v1beta/models/sandbox-gemini@")
        assert target.endswith(":generateContent")
        assert target.count("/") == 3
        assert "?" not in target
        assert target.count(":") == 1


def test_a_link_in_a_request_is_never_followed(gate, wire, mine):
    link = f"{wire.url}/internal/metadata"
    image = [{"type": "image_url", "image_url": {"url": link}}]
    source = [{"type": "image", "source": {"type": "url", "url": link}}]
    asked = [
        (OPENAI, openai_body("wire_openai/sandbox-chat", messages=[{"role": "user", "content": image}])),
        (ANTHROPIC, openai_body("wire_anthropic/sandbox-claude", messages=[{"role": "user", "content": source}])),
        *(
            (
                "/v1beta/models/wire_gemini/sandbox-gemini:generateContent",
                {"contents": [{"role": "user", "parts": [{"fileData": {"mimeType": "image/png", "fileUri": uri}}]}]},
            )
            for uri in (link, "file:///etc/passwd", "gs://bucket/x", "http://169.254.169.254/latest")
        ),
    ]  # fmt: skip
    for path, body in asked:
        assert gate.post(path, body, mine[1]).status_code in (200, 400)
    for scheme in ("file:///etc/passwd", "gopher://x", "//evil", "javascript:1", ""):
        part = [{"type": "image_url", "image_url": {"url": scheme}}]
        body = openai_body("wire_openai/sandbox-chat", messages=[{"role": "user", "content": part}])
        assert gate.post(OPENAI, body, mine[1]).status_code == 400
    assert wire.seen
    assert {method for method, *_ in wire.seen} == {"POST"}
    assert not any("internal" in target for _, target, _, _ in wire.seen)


def test_a_redirect_of_a_provider_is_not_followed(gate, wire, mine):
    for status in (301, 302, 303, 307, 308):
        wire.answer = status, {"location": f"{wire.url}/internal"}, b""
        answer = gate.post(OPENAI, openai_body("wire_openai/sandbox-chat"), mine[1])
        assert answer.status_code in (502, 503)
        assert "location" not in answer.headers
    assert {target for _, target, _, _ in wire.seen} == {"/v1/chat/completions"}
    assert balance(gate, mine[1])["balance"] == "10.00"


# What a provider says and a caller does not see


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500, 529])
@pytest.mark.parametrize(
    ("path", "model"),
    [
        (OPENAI, "wire_openai/sandbox-chat"),
        (ANTHROPIC, "wire_anthropic/sandbox-claude"),
        ("/v1beta/models/wire_gemini/sandbox-gemini:generateContent", None),
    ],
)
def test_of_a_providers_headers_and_errors_nothing_of_the_operators_is_passed_on(
    gate, wire, mine, path, model, status
):
    if status != 200:
        message = f"Incorrect API key provided: {SECRET}. Organization org-AbCdEf1234567890 at {wire.url}/v1"
        error = {
            "error": {"message": message, "type": "invalid_request_error", "code": status, "status": "X"}
        }
        wire.answer = status, {"content-type": "application/json"}, json.dumps(error).encode()
    body = openai_body(model) if model else {"contents": CONTENTS}
    answer = gate.post(path, body, mine[1])
    assert (answer.status_code == 200) == (status == 200)
    assert answer.status_code not in (401, 403)
    shown = f"{answer.headers} {answer.text}"
    for sign in (SECRET, "wire-", "31337", "AbCdEf1234567890", wire.url.removeprefix("http://")):
        assert sign not in shown, sign
    assert "access-control-allow-credentials" not in answer.headers
    assert "set-cookie" not in answer.headers


# The doors


ADMIN = [
    "/admin/wallet_list",
    "/admin/top_up",
    "/admin/key_create",
    "/admin/verify",
    "/admin/accounts",
    "/metrics",
]


@pytest.mark.parametrize("path", ADMIN)
def test_the_admin_listener_and_the_api_are_apart(gate, mine, http, path):
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        for token in (gate.admin_token, mine[1]):
            headers = {"authorization": f"Bearer {token}"}
            answer = http.request(method, f"{gate.base_url}{path}", headers=headers)
            assert answer.status_code in (404, 405)
            assert "farebox_requests" not in answer.text
        url = f"{gate.facts['admin_url']}{path}"
        for headers in (
            {},
            {"authorization": f"Bearer {mine[1]}"},
            {"authorization": gate.admin_token},
            {"authorization": f"Basic {gate.admin_token}"},
            {"x-api-key": gate.admin_token},
            {"authorization": f"Bearer {gate.admin_token}x"},
            {"authorization": f"Bearer {gate.admin_token[:-1]}"},
            {"authorization": b"Bearer \xff\xfe"},
        ):
            answer = http.request(method, url, headers=headers)
            assert answer.status_code in (401, 405), (method, headers)
            assert "access-control-allow-origin" not in answer.headers
    answer = http.get(f"{gate.facts['admin_url']}{path}?token={gate.admin_token}")
    assert answer.status_code in (401, 405)


@pytest.mark.parametrize(
    "path", [OPENAI, ANTHROPIC, GEMINI, "/v1/models", "/v1/credits", "/v1/usage", "/api/models"]
)
def test_the_admin_listener_serves_nothing_of_the_api(gate, mine, http, path):
    for token in (gate.admin_token, mine[1]):
        for method in ("GET", "POST"):
            answer = http.request(
                method,
                f"{gate.facts['admin_url']}{path}",
                headers={"authorization": f"Bearer {token}"},
            )
            assert answer.status_code == 404


@pytest.mark.parametrize("listener", ["base_url", "admin_url"])
@pytest.mark.parametrize(
    "head",
    [
        "GET http://evil.example/metrics HTTP/1.1\r\nhost: 127.0.0.1",
        "GET http://127.0.0.1/admin/accounts HTTP/1.1\r\nhost: 127.0.0.1",
        "GET https://x@127.0.0.1/v1/credits HTTP/1.1\r\nhost: 127.0.0.1",
        "CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: 127.0.0.1",
        "GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example",
        "GET /metrics HTTP/1.1\r\nhost: evil.example/x",
        "GET /metrics HTTP/1.1\r\nhost: a b",
        "GET /v1/../metrics HTTP/1.1\r\nhost: 127.0.0.1",
        "GET /v1/%2e%2e/metrics HTTP/1.1\r\nhost: 127.0.0.1",
        "GET //metrics HTTP/1.1\r\nhost: 127.0.0.1",
        "GET /\\metrics HTTP/1.1\r\nhost: 127.0.0.1",
        "GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nx-a : b",
        "GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\n folded: b",
        "POST /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3",
        "POST /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: xchunked",
        "POST /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: +3",
        "POST /metrics HTTP/1.0\r\ntransfer-encoding: chunked",
    ],
)
def test_targets_and_hosts_that_two_readers_could_take_differently_are_refused(gate, listener, head):
    answer = raw(gate.facts[listener], f"{head}\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 400 ") == 1


def test_only_the_hosts_that_the_operator_named_are_served(gate, mine):
    for host in ("evil.example", "127.0.0.1.evil.example", "api.example.evil", "localhost", "xapi.example"):
        for path in ("/v1/credits", "/v1/models", "/health", "/nothing"):
            answer = gate.get(path, mine[1], headers={"host": host})
            assert answer.status_code == 421, host
            assert "10.00" not in answer.text
    for host in ("api.example", "API.example:8080", "127.0.0.1"):
        assert gate.get("/v1/credits", mine[1], headers={"host": host}).status_code == 200


def test_a_second_request_hidden_in_the_first_is_none(gate, wire, mine):
    """What stands behind a body, or in a chunk, is read as one reader would."""
    inner = f"GET /v1/credits HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {mine[1]}\r\n\r\n"
    chunked = (
        "POST /v1/nothing HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        f"{len(inner):x};ext=\r\n{inner}\r\n0\r\nauthorization: Bearer {mine[1]}\r\n\r\n"
    )
    answer = raw(gate.base_url, chunked.encode() + inner.encode())
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"10.00" not in answer


@pytest.mark.parametrize("listener", ["base_url", "admin_url"])
@pytest.mark.parametrize("path", [OPENAI, "/v1/realtime", "/v1/credits", "/metrics", "/nothing"])
def test_an_upgrade_is_no_way_around_anything(gate, wire, mine, listener, path):
    token = mine[1] if listener == "base_url" else "wrong"
    answer = raw(
        gate.facts[listener],
        (
            f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\nupgrade: websocket\r\n"
            "connection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            f"GET /v1/credits HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {mine[1]}\r\n\r\n"
        ).encode(),
    )
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 ", b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), answer
    assert b"10.00" not in answer
    assert wire.seen == []


# Hanging a worker


@contextmanager
def still_answering(gate):
    """Within this context, others are answered at once."""
    slowest, over = [0.0], threading.Event()

    def ask():
        with httpx.Client(base_url=gate.base_url, trust_env=False, timeout=30) as client:
            while not over.is_set():
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                slowest[0] = max(slowest[0], time.monotonic() - began)
                over.wait(0.01)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
            asking.result()
    assert slowest[0] < RESPONSIVE_SECONDS


POST = b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer KEY\r\n"
COUNTED = POST + b"content-length: 500\r\n\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"

SLOW = {
    "nothing": [],
    "a byte": [b"G"],
    "half a head": [b"GET /v1/models HTTP/1.1\r\n"],
    "a dripping head": [b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ", *[b"y"] * 100],
    "half a body": [COUNTED + b"{"],
    "a dripping body": [COUNTED, *[b" "] * 100],
    "dripping chunks": [CHUNKED, *[b"1\r\n \r\n"] * 100],
    "half a chunk": [CHUNKED + b"5;" + b"e" * 100],
}


@pytest.mark.parametrize("pieces", SLOW.values(), ids=SLOW.keys())
def test_whoever_is_slow_is_let_go(gate, mine, pieces):
    host, port = gate.base_url.removeprefix("http://").split(":")
    began, answer = time.monotonic(), b""
    with still_answering(gate), socket.create_connection((host, int(port))) as sock:
        sock.settimeout(0.05)
        pieces = [piece.replace(b"KEY", mine[1].encode()) for piece in pieces]
        while time.monotonic() - began < 10 * SERVER_SECONDS:
            try:
                if pieces:
                    sock.sendall(pieces.pop(0))
                data = sock.recv(65_536)
                answer += data
                if not data:
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
    assert time.monotonic() - began < 6 * SERVER_SECONDS
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")
    assert balance(gate, mine[1])["held"] == "0.00"


def test_a_hundred_half_open_connections_keep_nobody_waiting(gate, mine):
    host, port = gate.base_url.removeprefix("http://").split(":")
    socks = [socket.create_connection((host, int(port))) for _ in range(100)]
    try:
        for sock in socks[::2]:
            sock.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n")
        with still_answering(gate):
            assert gate.post(OPENAI, openai_body(), mine[1]).status_code == 200
    finally:
        for sock in socks:
            sock.close()


FULL = 32 * MEGABYTES - 1000
START = b'{"model":"sandbox-chat","messages":['


@pytest.mark.parametrize(
    "body",
    [
        lambda: b"[" * FULL,
        lambda: b'{"a":' * (FULL // 5),
        lambda: START + b"[" * 10_000 + b"]" * 10_000 + b"]}",
        lambda: START + b"1," * (FULL // 2 - 100) + b"1]}",
        lambda: b"{" + b",".join(b'"k%d":1' % number for number in range(2_000_000)) + b"}",
        lambda: START + b'"' + b'\\"' * (FULL // 2 - 100),
        lambda: b'{"model":"sandbox-chat","max_tokens":' + b"9" * (FULL - 100) + b"}",
        lambda: b'{"model":"' + b"x" * (FULL - 100) + b'","messages":[]}',
    ],
    ids=["brackets", "braces", "depth", "items", "names", "quotes", "digits", "a name"],
)
def test_a_body_made_to_be_expensive_is_a_400_and_keeps_nobody_waiting(gate, mine, body):
    with still_answering(gate):
        answer = gate.post(OPENAI, body(), mine[1], headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.content) < 2000


def test_without_a_key_or_credit_no_body_is_read(gate):
    """The answer comes while the body has not: so nobody without credit can make us work."""
    _, empty = gate.new_wallet(None)
    for key, status in (("fb_sk_nonsense", 401), (empty, 402)):
        answer = raw(
            gate.base_url,
            (
                f"POST {OPENAI} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
                "content-length: 30000000\r\nexpect: 100-continue\r\n\r\n"
            ).encode(),
        )
        assert answer.startswith(b"HTTP/1.1 %d" % status), answer


# Secrets


def carriers(key):
    """Every way in which a key may come, and some in which it may not."""
    return (
        {"authorization": f"Bearer {key}"},
        {"x-api-key": key},
        {"x-goog-api-key": key},
        {"x-user-key": key},
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"cookie": key, "x-api-key": "other"},
    )


def said_to_clients(gate, http, key, keys):
    """What clients are told who send keys, good and bad, everywhere; without their own words."""
    for one in keys:
        body = openai_body("wire_openai/sandbox-chat", metadata={"key": one})
        for headers in carriers(one):
            for path in (f"/v1/usage?key={one}", f"/v1/{one}", f"/v1/models/{one}", f"/{one}?{one}={one}"):
                answer = http.get(f"{gate.base_url}{path}", headers=headers)
                yield str(answer.headers)
                # a path, but no query, may come back in the sentence about it
                yield answer.text if path.startswith("/v1/usage") else answer.text.replace(one, "")
            yield http.post(f"{gate.base_url}{OPENAI}", headers=headers, json=body).text
        yield http.post(f"{gate.base_url}{GEMINI}?key={one}", json={"contents": CONTENTS}).text
        yield http.post(f"{gate.base_url}{GEMINI}?key={one}", content=b"{").text
        yield gate.post(OPENAI, openai_body(one), key).text.replace(one, "")
        yield gate.get(f"/v1/usage/{one}", key).text.replace(one, "")
    for path in ("key", "credits", "usage", "models"):
        yield gate.get(f"/v1/{path}", key).text


def said_of_failures(gate, wire, key):
    """What clients are told when a provider quotes the operator's credential: at first, or in mid-stream."""
    error = {"message": f"key {SECRET} of {wire.url}", "type": "x", "code": SECRET, "param": "p"}
    whole = json.dumps({"error": error}).encode()
    for status in (200, 400, 401, 429, 500):
        wire.answer = status, {"content-type": "application/json"}, whole
        for stream in (True, False):
            yield gate.post(OPENAI, openai_body("wire_openai/sandbox-chat", stream=stream), key).text
    delta = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
    broken = b"data: %b\n\ndata: %b\n\n" % (json.dumps(delta).encode(), whole)
    wire.answer = 200, {"content-type": "text/event-stream"}, broken
    text = gate.post(OPENAI, openai_body("wire_openai/sandbox-chat", stream=True), key).text
    assert '"Hi"' in text
    yield text
    wire.answer = None


def said_to_the_operator(gate, http, wallet, config):
    for command in ("key list", f"wallet show {wallet}", "usage"):
        done = cli(*command.split(), *config, "--json")
        yield done.stdout + done.stderr
    for path in ("/metrics", "/admin/accounts"):
        headers = {"authorization": f"Bearer {gate.admin_token}"}
        yield http.get(f"{gate.facts['admin_url']}{path}", headers=headers).text


def kept_by_the_store(path):
    """Everything in the store as text: its file may be compressed."""
    with duckdb.connect(str(path), read_only=True) as books:
        tables = [name for (name,) in books.execute("select table_name from duckdb_tables()").fetchall()]
        return "".join(str(books.table(name).fetchall()) for name in tables)


def test_no_secret_is_anywhere_but_where_it_belongs(tmp_path, wire, sandbox_url, http):
    """Keys in every carrier, errors that quote them, pages and commands; then log, journal and store are searched."""
    with gateway(tmp_path, wire, sandbox_url) as gate:
        wallet, key = gate.new_wallet("10.00", name="named")
        bad = key[:-1] + ("a" if key[-1] != "a" else "b")
        secrets = (key, bad, gate.admin_token, SECRET)
        config = ("--config", tmp_path / "farebox.toml", "--state", gate.state)
        said = [
            *said_to_clients(gate, http, key, secrets[:3]),
            *said_of_failures(gate, wire, key),
            *said_to_the_operator(gate, http, wallet, config),
        ]
        assert gate.stop() == 0

    for text in said:
        assert not any(secret in text for secret in secrets), text[:2000]
    private = {"admin-token", "farebox.toml"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in private]
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path
    assert (tmp_path / "log") in files
    [store] = [path for path in files if path.suffix == ".duckdb"]
    kept = kept_by_the_store(store)
    assert wallet in kept
    assert not any(secret in kept for secret in secrets)
