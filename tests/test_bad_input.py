"""Bad input against a running gateway: each gets its clear error, costs nothing, and leaves the books balanced."""

import json
import socket

import pytest

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
GEMINI = "/v1beta/models/sandbox-gemini:generateContent"
ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def mine(demo):
    wallet, key = demo.new_wallet("5.00")
    yield wallet, key
    balance = demo.get("/v1/credits", key).json()
    assert (balance["balance"], balance["held"]) == ("5.00", "0.00"), "bad input has cost something"
    assert demo.get("/v1/usage", key).json()["data"] == []
    assert demo.verify()["ok"]
    assert key not in demo.log_path.read_text()


def openai(demo, mine, body, **more):
    answer = demo.post(OPENAI, body, mine[1], **more)
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"{}}", b"\xff\xfe", b'{"model": "sandbox-chat", "messages": NaN}',
        b'{"model": "sandbox-chat", "messages": [], "temperature": 1e999}',
        b'{"model": "sandbox-chat", "messages": [], "max_tokens": NaN}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": "sandbox-chat", "messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"model": "sandbox-chat", "messages": [' + b"{}," * 500_000 + b"{}]}",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)  # fmt: skip
def test_a_body_that_is_no_request_is_a_400(demo, mine, body):
    status, error = openai(demo, mine, body, headers={"content-type": "application/json"})
    assert status == 400
    assert error["code"] == "invalid_request_error"
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [1]}, "messages"),
        ({"messages": []}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0.5}, "max_tokens"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": -5}, "n"),
        ({"n": 10**9}, "n"),
        ({"maxTokens": 10}, "max"),
        ({"maxTokens": 10, "max_tokens": 10}, "max"),
        ({"max_tokens": 10, "max_completion_tokens": 20}, "max"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options"),
        ({"tools": {}}, "tools"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(demo, mine, fields, param):
    status, error = openai(demo, mine, {"model": "sandbox-chat", "messages": ASK, **fields})
    assert status == 400, error
    assert param in (error["param"] or "") or param in error["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 10**18}, "max_tokens"),
        ({"maxTokens": 5}, "maxTokens"),
        ({"container": "c_1"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
         "file"),
        ({"stream": 1}, "stream"),
    ],
)  # fmt: skip
def test_anthropic_refuses_by_name(demo, mine, fields, named):
    body = {"model": "sandbox-claude", "max_tokens": 10, "messages": ASK, **fields}
    answer = demo.post(ANTHROPIC, body, mine[1])
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert named in error["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"contents": "x" * 5}, "contents"),
        ({"generationConfig": {"maxOutputTokens": -1}}, "maxOutputTokens"),
        ({"generationConfig": {"maxOutputTokens": 5, "max_output_tokens": 6}}, "max"),
        ({"generationConfig": {"candidateCount": 0}}, "candidateCount"),
        ({"tools": [{"googleSearch": {}}]}, "googleSearch"),
        ({"tools": [{"google_search": {}}]}, "oogle"),
        ({"cachedContent": "cachedContents/1"}, "cachedContent"),
        ({"generation_config": {}, "generationConfig": {}}, "eneration"),
    ],
)
def test_gemini_refuses_by_name(demo, mine, fields, named):
    body = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], **fields}
    answer = demo.post(GEMINI, body, mine[1])
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert named in error["message"]


def test_a_body_beyond_the_limit_is_a_413_before_it_is_read(demo, mine):
    """Only the headers are sent: whoever waited for the body would wait for ever."""
    host, port = demo.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(
            f"POST {OPENAI} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {mine[1]}\r\n"
            "content-type: application/json\r\ncontent-length: 999999999\r\n\r\n".encode()
        )
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/admin", "/v1/chat/completions/x", "/favicon.ico"]
)
def test_an_unknown_path_is_a_404_in_json(demo, mine, path):
    answer = demo.post(path, {}, mine[1])
    assert answer.status_code in (404, 405)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/videos",
    ],
)
def test_a_surface_that_is_not_there_yet_says_so(demo, mine, path):
    answer = demo.post(path, {"model": "sandbox-chat"}, mine[1])
    assert answer.status_code == 404
    assert "yet" in answer.json()["error"]["message"]


def test_a_wrong_method_is_a_405(demo, mine):
    answer = demo.get(OPENAI, mine[1])
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_two_different_credentials_are_a_401(demo, mine):
    answer = demo.post(OPENAI, {}, mine[1], headers={"x-api-key": demo.key})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "key", ["x' OR pg_sleep(5)--", "../../etc/passwd", "{{7*7}}", "a" * 5000, "fb_sk_" + "0" * 49, "%s%s%n"]
)
def test_a_hostile_key_is_a_401_and_is_not_repeated(demo, key):
    answer = demo.post(OPENAI, {}, key)
    assert answer.status_code == 401
    assert key not in answer.text
    assert key not in demo.log_path.read_text()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /%2e%2e/x HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://evil/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET //evil/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-a: b\n\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=lambda raw: raw[:40].decode("latin-1"),
)
def test_bytes_that_are_no_honest_request_are_refused_and_the_connection_closed(demo, raw):
    host, port = demo.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(raw)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 401")) or answer == b""
    if answer:
        assert answer.startswith(b"HTTP/1.1 400")
    assert demo.get("/health").status_code == 200


def test_a_websocket_upgrade_with_a_trailing_byte_kills_nothing(demo, mine):
    host, port = demo.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nx"
        )
        sock.settimeout(5)
        try:
            while sock.recv(65536):
                pass
        except TimeoutError:
            pass
    assert demo.get("/v1/credits", mine[1]).status_code == 200


def test_header_values_of_a_caller_never_come_back_as_headers(demo, mine):
    answer = demo.post(
        OPENAI, {}, mine[1], headers={"x-request-id": "mine", "x-credits-cost-micro": "0", "cookie": "a=b"}
    )
    assert answer.headers["x-request-id"] != "mine"
    assert "x-credits-cost-micro" not in answer.headers
    assert "set-cookie" not in answer.headers


def test_every_answer_has_an_id_and_cors_without_credentials(demo, mine):
    for answer in (
        demo.get("/v1/models"),
        demo.post(OPENAI, {}, mine[1]),
        demo.post(OPENAI, {}, "bad"),
        demo.post("/v1/nothing", {}, mine[1]),
    ):
        assert answer.headers["x-request-id"]
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_the_admin_operations_refuse_bad_arguments(demo):
    for operation, arguments in (
        ("wallet_create", {"name": 5}),
        ("wallet_create", {"currency": "dollars"}),
        ("top_up", {"wallet": "none", "amount": "1.00"}),
        ("top_up", {"wallet": "none", "amount": 1}),
        ("key_create", {"wallet": "none"}),
        ("key_create", {"wallet": demo.wallet, "rpm": 0}),
        ("key_create", {"wallet": demo.wallet, "expires": "soon"}),
        ("usage", {"limit": 10**9}),
        ("nothing", {}),
    ):
        status, body = demo.admin(operation, **arguments)
        assert status in (400, 404), (operation, arguments, body)
        assert body["error"]["message"]


def test_a_usage_record_of_another_wallet_is_not_found(demo, mine):
    _, other = demo.new_wallet("1.00")
    request = demo.chat(other).headers["x-request-id"]
    assert demo.get(f"/v1/usage/{request}", other).status_code == 200
    assert demo.get(f"/v1/usage/{request}", mine[1]).status_code == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "cursor='; drop table usage; --", "from=yesterday", "group_by=day"],
)
def test_bad_questions_about_usage_are_a_400(demo, mine, query):
    assert demo.get(f"/v1/usage?{query}", mine[1]).status_code == 400


def test_a_model_name_is_only_a_name(demo, mine):
    for name in ("../../etc/passwd", "a" * 5000, "x\r\ny: z", "openai/", "/", "models/"):
        answer = demo.post(
            OPENAI, json.dumps({"model": name, "messages": ASK, "max_tokens": 1}).encode(), mine[1]
        )
        assert answer.status_code in (400, 404), (name[:30], answer.text)
