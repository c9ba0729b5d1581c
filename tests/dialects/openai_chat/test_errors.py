import json
from pathlib import Path

import pytest

from proxy.config import RequestLimits
from proxy.dialects.openai_chat import OpenAIChat
from proxy.errors import TABLE, Kind, Rejected, StreamBroken, UpstreamFailed

RECORDINGS = Path(__file__).parents[2] / "recordings"
DIALECT = OpenAIChat(RequestLimits())


@pytest.mark.parametrize("kind", list(Kind))
def test_every_situation_of_the_table_has_its_words(kind):
    wording = DIALECT.error(Rejected(kind, "A sentence.", param="model"), "req_1")
    row = TABLE[kind]
    assert wording.status == row.status
    assert json.loads(wording.body) == {
        "error": {
            "message": "A sentence.",
            "type": row.openai_type,
            "param": "model",
            "code": row.openai_code,
        }
    }
    headers = dict(wording.headers)
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "req_1"
    assert headers.get("x-should-retry") == {True: "true", False: "false", None: None}[row.should_retry]
    assert "retry-after" not in headers


def test_the_wait_is_said_in_seconds_rounded_up_and_in_milliseconds():
    wording = DIALECT.error(Rejected(Kind.RATE_LIMITED, "Slow down.", retry_after_seconds=1.2345), "r")
    assert {("retry-after", "2"), ("retry-after-ms", "1235")} <= set(wording.headers)


def test_a_402_says_what_a_program_can_act_on():
    facts = {"limit": "wallet", "shortfall_micro": 12, "affordable_max_tokens": 7, "top_up_url": None}
    wording = DIALECT.error(Rejected(Kind.NO_CREDIT, "Not enough.", metadata=facts), "r")
    error = json.loads(wording.body)["error"]
    assert error["metadata"] == facts
    assert error["code"] == error["type"] == "insufficient_credits"


def test_a_providers_own_status_about_the_request_is_kept():
    wording = DIALECT.error(Rejected(Kind.REFUSED_UPSTREAM, "No.", status=422), "r")
    assert wording.status == 422


def test_an_error_in_a_stream_is_one_event_and_no_done():
    event = DIALECT.error_event(StreamBroken(Kind.UPSTREAM_ERROR, "Line one\nline two é"), "r")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert b"[DONE]" not in event
    assert json.loads(event[6:])["error"]["message"] == "Line one\nline two é"


def test_a_providers_error_is_read_with_what_it_says():
    limited = DIALECT.read_error(429, (RECORDINGS / "openai_error_429.json").read_bytes())
    assert (limited.status, limited.type, limited.code) == (429, "tokens", "rate_limit_exceeded")
    assert limited.retry_after_seconds == pytest.approx(1.262)
    wrong = DIALECT.read_error(400, (RECORDINGS / "openai_error_400.json").read_bytes())
    assert (wrong.param, wrong.code) == ("temperature", "decimal_above_max_value")
    assert wrong.retry_after_seconds is None


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error":"model not loaded"}', "model not loaded", None),
        (b'{"error":{"message":"m","code":503}}', "m", "503"),
        (b'[{"error":{"message":"m","status":"UNAVAILABLE"}}]', "m", None),
        (b'{"message":"no such route","code":"x"}', "no such route", "x"),
        (b'{"detail":"Not Found"}', "Not Found", None),
        (b"<html>502 Bad Gateway</html>", "<html>502 Bad Gateway</html>", None),
        (b"", "", None),
        (b"\xff\xfe", "��", None),
        (b'{"error":{"message":null,"code":true}}', "", None),
        (b"[" * 5000, "[" * 2000, None),
        (b'{"ok":1}', '{"ok":1}', None),
    ],
)
def test_whatever_a_compatible_server_sends_as_an_error_is_read(body, message, code):
    read = DIALECT.read_error(500, body)
    assert (read.message, read.code) == (message, code)


@pytest.mark.parametrize(
    ("sentence", "seconds"),
    [
        ("Please try again in 350ms.", 0.35),
        ("Please try again in 20s. Visit", 20),
        ("Please try again in 6m0s.", 360),
        ("Please try again in 1h2m3.5s.", 3723.5),
        ("Please try again in a while.", None),
        ("Please try again in .", None),
    ],
)
def test_the_wait_in_a_rate_limits_sentence_is_read(sentence, seconds):
    error = DIALECT.read_error(429, json.dumps({"error": {"message": sentence}}).encode()).retry_after_seconds
    assert error == (pytest.approx(seconds) if seconds is not None else None)


def test_a_failure_of_a_provider_is_worded_like_any_other():
    failure = UpstreamFailed(Kind.NO_HEALTHY_UPSTREAM, "None.", try_another=False, retry_after_seconds=0)
    assert ("retry-after", "0") in DIALECT.error(failure, "r").headers
