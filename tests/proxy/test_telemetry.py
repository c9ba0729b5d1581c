"""Telemetry: only what is on the allow-list can be logged, and the metrics are text that Prometheus reads."""

import ast
import io
import json
import pathlib
import re

import pytest

from accounting.records import Ending, UsageRecord
from pricing.usage import Source, Usage
from proxy.errors import Kind, Rejected
from proxy.telemetry import LOGGED, Telemetry
from proxy.types import Path

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


def test_what_a_provider_billed_beyond_the_hold_is_an_alarm():
    one = telemetry("error")
    one.settled(record(price=15, charged=10, loss=5, flags=("beyond_hold",)))
    one.settled(record())
    [line] = lines(one)
    assert (line["event"], line["because"]) == ("settlement_alarm", "beyond_hold")
    assert 'farebox_loss_micro_total{currency="USD"} 1' in one.metrics.text()


def test_the_metrics_are_text_that_prometheus_reads():
    one = telemetry()
    one.metrics.count("farebox_flags_total", flag='a"b\\c\nd')
    one.metrics.gauge("farebox_depth", "How deep.\nIn metres.", lambda: 3)
    with one.request(Request(), Path("gemini"), Reply()):
        pass
    sample = re.compile(r'^[a-z_]+(\{([a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\})? -?[0-9.e+]+$')
    for line in one.metrics.text().splitlines():
        assert line.startswith("# ") or sample.match(line), line


def test_every_sample_stands_below_the_help_and_type_of_its_metric():
    one = telemetry()
    one.metrics.gauge("farebox_depth", "How deep.", lambda: 3)
    with one.request(Request(), Path("gemini"), Reply()):
        pass
    said = {}
    for line in one.metrics.text().splitlines():
        if line.startswith("# "):
            what, name, text = line[2:].split(" ", 2)
            assert name not in said or what == "TYPE"
            said.setdefault(name, []).append((what, text))
            newest = name
        else:
            assert re.fullmatch(rf"{newest}(_bucket|_sum|_count)?", re.split(r"[{ ]", line)[0]), line
    assert all([what for what, _ in told] == ["HELP", "TYPE"] for told in said.values())
    assert {told[1][1] for told in said.values()} == {"counter", "histogram", "gauge"}


def test_a_counter_goes_up_by_what_was_counted_however_large_it_is():
    one = telemetry()
    one.metrics.count("farebox_charged_micro_total", 123_456_789_012, currency="USD")
    one.metrics.count("farebox_charged_micro_total", 1, currency="USD")
    assert 'farebox_charged_micro_total{currency="USD"} 123456789013\n' in one.metrics.text()


def test_what_nobody_described_cannot_be_counted():
    with pytest.raises(KeyError):
        telemetry().metrics.count("farebox_secret_total")
    with pytest.raises(KeyError):
        telemetry().metrics.seconds("farebox_other_seconds", 1)


def test_buckets_of_a_histogram_count_everything_below_them_and_come_in_order():
    one = telemetry()
    for seconds in (0.001, 0.05, 0.1, 1000.0):
        one.metrics.seconds("farebox_request_seconds", seconds)
    found = re.findall(
        r'^farebox_request_seconds_bucket{le="([^"]+)"} (\d+)$', one.metrics.text(), re.MULTILINE
    )
    assert found == [
        ("0.005", "1"), ("0.02", "1"), ("0.1", "3"), ("0.5", "3"), ("2.0", "3"), ("10.0", "3"), ("60.0", "3"),
        ("600.0", "3"), ("+Inf", "4"),
    ]  # fmt: skip
    assert "farebox_request_seconds_count 4\n" in one.metrics.text()


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "disk full"), ValueError("closed file")])
def test_a_log_that_cannot_be_written_ends_nothing(error):
    class Broken:
        def write(self, _text):
            raise error

    one = Telemetry(lambda: 1_000, lambda: 5.0, "info", Broken())
    one.settled(record(flags=("beyond_hold",)))
    with one.request(Request(), Path("gemini"), Reply()):
        pass
    assert 'status="200"' in one.metrics.text()


def test_text_that_is_no_unicode_ends_nothing_either():
    telemetry().log("info", "event", because="\ud800")


def test_what_an_error_says_is_not_logged_only_what_it_is_and_where():
    one = telemetry()
    with one.request(Request(), Path("gemini"), Reply()) as log:
        error = ExceptionGroup("the prompt", [ValueError("the prompt"), TypeError("x")])
        try:
            {}["sk-the-" + "key"]
        except KeyError as first:
            error.__cause__ = first
        log.crashed(error)
    [line] = lines(one)
    assert "sk-the-key" not in line["traceback"]
    assert "prompt" not in line["traceback"]
    assert [name for name in ("KeyError", "ExceptionGroup", "ValueError", "TypeError", "test_telemetry.py")
            if name not in line["traceback"]] == []  # fmt: skip


def test_a_request_without_an_end_is_not_counted_as_answered():
    one = telemetry()
    with pytest.raises(KeyboardInterrupt), one.request(Request(), Path("gemini"), Reply()):
        raise KeyboardInterrupt
    assert 'farebox_requests_total{dialect="gemini",kind="cancelled",status="499"} 1' in one.metrics.text()
    [line] = lines(one)
    assert (line["status"], line["kind"]) == (499, "cancelled")


def test_trouble_and_faults_inside_are_logged_and_counted():
    one = telemetry()
    one.trouble("error", "store_failed", seconds_behind=3, what="x")
    one.fault("admin_failed", ZeroDivisionError("words"))
    first, second = lines(one)
    assert first["because"] == "seconds_behind=3; what=x"
    assert second["traceback"] == "ZeroDivisionError"
    assert 'farebox_trouble_total{event="store_failed"} 1' in one.metrics.text()
    assert 'farebox_trouble_total{event="admin_failed"} 1' in one.metrics.text()


def test_every_field_that_the_source_logs_is_on_the_list():
    found = 0
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "func", None)
            if isinstance(node, ast.Call) and getattr(name, "attr", getattr(name, "id", "")) in {
                "log",
                "_log",
            }:
                fields = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                assert fields <= LOGGED, f"{path}:{node.lineno}"
                found += bool(fields)
    assert found > 5
