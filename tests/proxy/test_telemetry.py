"""Telemetry: only what is on the allow-list can be logged, and the metrics are text that Prometheus reads."""

import io
import json
import re

import pytest

from accounting.records import Ending, UsageRecord
from pricing.usage import Source, Usage
from proxy.errors import Kind, Rejected
from proxy.telemetry import LOGGED, Telemetry
from proxy.types import Path


class Request:
    id = "req_1"
    method = "POST"


class Reply:
    client_gone = False


def telemetry(level="info"):
    return Telemetry(lambda: 1_000, lambda: 5.0, level, io.StringIO())


def lines(one):
    return [json.loads(line) for line in one.out.getvalue().splitlines()]


def record(**fields):
    base = {
        "request": "r", "number": 1, "wallet": "w", "key": "k", "model": "v/m", "provider": "p", "account": "a",
        "dialect": "gemini", "stream": True, "outcome": Ending.COMPLETE, "status": 200, "source": Source.REPORTED,
        "usage": Usage(), "price_version": "p_1", "markup_ppm": 10**6, "held": 10, "price": 5, "charged": 5,
        "cost": 5, "loss": 0, "currency": "USD", "started_ms": 1, "ended_ms": 2,
    }  # fmt: skip
    return UsageRecord(**base | fields)


def test_a_field_that_is_not_on_the_list_cannot_be_logged():
    with pytest.raises(AssertionError, match="body"):
        telemetry().log("info", "event", body="secret")


def test_no_field_on_the_list_is_named_after_something_secret():
    assert not {"key", "body", "headers", "query", "authorization", "prompt", "token"} & LOGGED


def test_levels_below_the_chosen_one_are_not_written():
    one = telemetry("warning")
    one.log("info", "quiet")
    one.log("error", "loud")
    assert [line["event"] for line in lines(one)] == ["loud"]


def test_a_request_gets_one_line_with_what_became_of_it():
    one = telemetry()
    with one.request(Request(), Path("anthropic"), Reply()) as log:
        log.failed(Rejected(Kind.NO_CREDIT, "no"))
    [line] = lines(one)
    assert (line["request"], line["status"], line["kind"], line["dialect"]) == (
        "req_1",
        402,
        "no_credit",
        "anthropic",
    )


def test_a_crash_is_logged_with_its_traceback_and_counted():
    one = telemetry()
    with one.request(Request(), Path("gemini"), Reply()) as log:
        log.crashed(ZeroDivisionError("oops"))
    [line] = lines(one)
    assert (line["level"], line["status"]) == ("error", 500)
    assert "ZeroDivisionError" in line["traceback"]


def test_a_request_that_is_cancelled_is_counted_too():
    one = telemetry()
    with pytest.raises(KeyboardInterrupt), one.request(Request(), Path("gemini"), Reply()):
        raise KeyboardInterrupt
    assert "farebox_requests_total" in one.metrics.text()


def test_what_a_provider_billed_beyond_the_hold_is_an_alarm():
    one = telemetry("error")
    one.settled(record(price=15, charged=10, loss=5, flags=("beyond_hold",)))
    one.settled(record())
    [line] = lines(one)
    assert (line["event"], line["because"]) == ("settlement_alarm", "beyond_hold")
    assert 'farebox_loss_micro_total{currency="USD"} 1' in one.metrics.text()


def test_the_metrics_are_text_that_prometheus_reads():
    one = telemetry()
    one.metrics.count("farebox_odd_total", label='a"b\\c\nd')
    one.metrics.gauge("farebox_depth", "How deep.", lambda: 3)
    with one.request(Request(), Path("gemini"), Reply()):
        pass
    sample = re.compile(r'^[a-z_]+(\{([a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\})? -?[0-9.e+]+$')
    for line in one.metrics.text().splitlines():
        assert line.startswith("# ") or sample.match(line), line


def test_buckets_of_a_histogram_count_everything_below_them():
    one = telemetry()
    for seconds in (0.001, 0.05, 1000.0):
        one.metrics.seconds("farebox_x_seconds", seconds)
    text = one.metrics.text()
    assert 'farebox_x_seconds_bucket{le="0.005"} 1' in text
    assert 'farebox_x_seconds_bucket{le="0.1"} 2' in text
    assert 'farebox_x_seconds_bucket{le="600.0"} 2' in text
    assert 'farebox_x_seconds_bucket{le="+Inf"} 3' in text
    assert "farebox_x_seconds_count 3" in text
