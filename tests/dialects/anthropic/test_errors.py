import json

import pytest

from proxy.errors import TABLE, Failure, Kind, Rejected, StreamBroken


def worded(dialect, failure):
    wording = dialect.error(failure, "req_1")
    return wording.status, dict(wording.headers), json.loads(wording.body)


@pytest.mark.parametrize("kind", Kind)
def test_every_situation_has_its_words(dialect, kind):
    status, headers, body = worded(dialect, Failure(kind, "Because."))
    row = TABLE[kind]
    assert status == row.status
    assert body == {
        "type": "error",
        "error": {"type": row.anthropic_type, "message": "Because."},
        "request_id": "req_1",
    }
    assert headers["content-type"] == "application/json"
    assert headers["request-id"] == "req_1"
    assert headers.get("x-should-retry") == {True: "true", False: "false", None: None}[row.should_retry]


def test_a_bad_key_tells_the_client_not_to_try_again(dialect):
    _, headers, _ = worded(dialect, Rejected(Kind.NO_KEY, "m"))
    assert headers["x-should-retry"] == "false"


def test_a_402_says_within_the_error_what_would_help(dialect):
    facts = {"limit": "wallet", "shortfall_micro": 5, "affordable_max_tokens": 100}
    status, _, body = worded(dialect, Rejected(Kind.NO_CREDIT, "m", metadata=facts, param="max_tokens"))
    assert status == 402
    assert body["error"] == {
        "type": "billing_error",
        "message": "m",
        "param": "max_tokens",
        "metadata": facts,
    }


def test_a_limit_says_when_to_come_back(dialect):
    _, headers, _ = worded(dialect, Rejected(Kind.RATE_LIMITED, "m", retry_after_seconds=1.2345))
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1235")
    assert "x-should-retry" not in headers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
    ],
)
def test_a_refusal_by_the_provider_keeps_its_status(dialect, status, kind):
    told, _, body = worded(dialect, Rejected(Kind.REFUSED_UPSTREAM, "m", status=status))
    assert (told, body["error"]["type"]) == (status, kind)


def test_an_error_event_is_one_whole_frame(dialect):
    event = dialect.error_event(StreamBroken(Kind.UPSTREAM_ERROR, "It\nbroke."), "req_1")
    first, second, *blank = event.decode().split("\n")
    assert first == "event: error"
    assert json.loads(second.removeprefix("data: "))["error"] == {
        "type": "api_error",
        "message": "It\nbroke.",
    }
    assert blank == ["", ""]


def test_the_heartbeat_is_a_ping(dialect):
    assert dialect.heartbeat == b'event: ping\ndata: {"type": "ping"}\n\n'


def test_a_providers_error_is_read(dialect, recording):
    error = dialect.read_error(400, recording("anthropic_error_400.json"))
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert error.message.startswith("messages.0.content.1.image")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"error": "x"}',
        b'{"error": {"type": 5, "message": []}}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_whatever_a_provider_answers_is_read(dialect, body):
    error = dialect.read_error(502, body)
    assert (error.status, error.type, error.message) == (502, None, "The provider answered 502.")


def test_only_what_looks_like_a_type_is_repeated(run):
    bad = b'event: error\ndata: {"type":"error","error":{"type":"<b>org-123</b>","message":"x"}}\n\n'
    assert run(bad).failure.message == "The provider's answer broke off with an error."
