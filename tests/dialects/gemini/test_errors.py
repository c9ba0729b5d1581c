import json

import pytest

from proxy.errors import TABLE, Failure, Kind, Rejected, StreamBroken
from proxy.types import Path

RPC = "type.googleapis.com/google.rpc."


def worded(dialect, failure):
    wording = dialect.error(failure, "req_1")
    return wording.status, dict(wording.headers), json.loads(wording.body)["error"]


def detail(error, kind):
    return next((one for one in error["details"] if one["@type"] == RPC + kind), None)


@pytest.mark.parametrize("kind", Kind)
def test_every_situation_has_its_words(dialect, kind):
    status, headers, error = worded(dialect, Failure(kind, "Because."))
    row = TABLE[kind]
    assert status == error["code"] == row.status
    assert (error["status"], error["message"]) == (row.gemini_status, "Because.")
    assert detail(error, "RequestInfo")["requestId"] == "req_1"
    assert detail(error, "ErrorInfo")["reason"] == kind.name
    assert headers["content-type"] == "application/json"
    assert headers.get("x-should-retry") == {True: "true", False: "false", None: None}[row.should_retry]


def test_a_402_says_what_would_help(dialect):
    facts = {"limit": "wallet", "shortfall_micro": 5}
    status, _, error = worded(dialect, Rejected(Kind.NO_CREDIT, "m", metadata=facts))
    assert (status, error["code"], error["status"]) == (402, 402, "RESOURCE_EXHAUSTED")
    assert error["metadata"] == facts
    assert detail(error, "ErrorInfo")["metadata"] == {"limit": "wallet", "shortfall_micro": "5"}


def test_a_bad_field_is_named_as_a_violation(dialect):
    _, _, error = worded(dialect, Rejected(Kind.BAD_REQUEST, "m", param="contents[0].parts"))
    assert detail(error, "BadRequest")["fieldViolations"] == [
        {"field": "contents[0].parts", "description": "m"}
    ]


@pytest.mark.parametrize(
    ("seconds", "delay", "header"), [(17, "17s", "17"), (1.2345, "1.234s", "2"), (0, "0s", "0")]
)
def test_a_limit_says_when_to_come_back_in_body_and_header(dialect, seconds, delay, header):
    _, headers, error = worded(dialect, Rejected(Kind.RATE_LIMITED, "m", retry_after_seconds=seconds))
    assert detail(error, "RetryInfo")["retryDelay"] == delay
    assert headers["retry-after"] == header


@pytest.mark.parametrize(
    ("status", "name"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (413, "INVALID_ARGUMENT")]
)
def test_a_refusal_by_the_provider_keeps_its_status(dialect, status, name):
    told, _, error = worded(dialect, Rejected(Kind.REFUSED_UPSTREAM, "m", status=status))
    assert (told, error["code"], error["status"]) == (status, status, name)


def test_an_error_event_is_one_whole_frame(dialect):
    event = dialect.error_event(StreamBroken(Kind.UPSTREAM_ERROR, "It\nbroke."), "req_1")
    data, *blank = event.decode().split("\r\n")
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "It\nbroke."
    assert blank == ["", ""]


def test_the_heartbeat_is_a_blank_line(dialect):
    assert dialect.heartbeat.strip() == b""


def test_a_bad_key_is_told_apart_from_a_bad_request(dialect, recording):
    error = dialect.read_error(400, recording("gemini_error_bad_key.json"))
    assert (error.status, error.type, error.code) == (400, "INVALID_ARGUMENT", "API_KEY_INVALID")
    assert dialect.read_error(400, recording("gemini_error_400.json")).code is None


def test_the_delay_of_a_limit_is_read_from_the_body(dialect, recording):
    error = dialect.read_error(429, recording("gemini_error_429.json"))
    assert (error.type, error.retry_after_seconds) == ("RESOURCE_EXHAUSTED", 17.5)


def test_the_field_at_fault_is_read(dialect):
    violation = {"@type": RPC + "BadRequest", "fieldViolations": [{"field": "contents"}]}
    body = {"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT", "details": [violation]}}
    assert dialect.read_error(400, json.dumps(body).encode()).param == "contents"
    assert dialect.read_error(400, json.dumps([body]).encode()).param == "contents"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"error": "x"}',
        b'{"error": {"message": 5, "details": {}}}',
        b'{"error": {"details": [5, {"@type": "%sRetryInfo", "retryDelay": 5}]}}' % RPC.encode(),
        b"\xff",
        b"[" * 5000,
    ],
)
def test_whatever_a_provider_answers_is_read(dialect, body):
    error = dialect.read_error(502, body)
    assert (error.status, error.type, error.code, error.retry_after_seconds) == (502, None, None, None)
    assert error.message == "The provider answered 502."


def test_an_error_element_closes_the_array(dialect):
    late = dialect.error_event(StreamBroken(Kind.UPSTREAM_ERROR, "m"), "req_1", Path("gemini", "stream"))
    assert json.loads(b"[" + late)[-1]["error"]["code"] == 502
    early = dialect.error_event(Failure(Kind.TIMEOUT, "m"), "req_1", Path("gemini", "stream"))
    assert json.loads(b"\n\n" + early)[-1]["error"]["code"] == 504
