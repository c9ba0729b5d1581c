"""The headers of an answer: exact, rounded the honest way, and in the caller's dialect."""

from datetime import date
from types import SimpleNamespace

import pytest

from accounting.ports import Balance
from accounting.records import Receipt
from pricing.price import Bounds
from proxy import headers
from proxy.limits import Standing
from proxy.types import Ask, Measures, Offer
from tests.fakes import catalog

STANDING = {"requests": Standing(60, 59, 0.5), "tokens": Standing(1000, 0, 361.0)}


def test_openai_gets_its_own_names_and_gos_durations():
    assert headers.standing(STANDING, "openai_chat", 0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "500ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m1s",
    }


def test_anthropic_gets_its_own_names_and_moments():
    found = headers.standing(STANDING, "anthropic", 1_700_000_000_000)
    assert found["anthropic-ratelimit-requests-limit"] == "60"
    assert found["anthropic-ratelimit-tokens-reset"] == "2023-11-14T22:19:21Z"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "0ms"), (0.9994, "999ms"), (1.0, "1s"), (59.0, "59s"), (60.0, "1m0s")]
)
def test_durations_read_as_go_writes_them(seconds, shown):
    found = headers.standing({"requests": Standing(1, 0, seconds)}, "openai_chat", 0)
    assert found["x-ratelimit-reset-requests"] == shown


def test_balances_round_down_and_costs_up():
    assert headers.balance(Balance(1_999_999, 0, 0, "USD")) == {"x-credits-balance-micro": "1"}
    receipt = Receipt("r", None, 1_999_999, 0)
    assert headers.receipt(receipt) == {"x-credits-cost-micro": "0", "x-credits-balance-micro": "1"}


def test_moments_are_never_before_the_limit_is_free_again():
    found = headers.standing({"requests": Standing(60, 59, 0.25)}, "anthropic", 1_700_000_000_000)
    assert found["anthropic-ratelimit-requests-reset"] == "2023-11-14T22:13:21Z"


def test_a_key_without_limits_gets_no_headers_about_them():
    assert headers.standing({}, "openai_chat", 0) == headers.standing({}, "anthropic", 0) == {}


MODEL = catalog().models["sandbox/chat"]


def ask(**fields):
    return Ask("openai_chat", "sandbox-chat", measures=Measures(0), fields={}, **{"stream": True} | fields)


def offer(**fields):
    price = catalog().price(MODEL, 10**6, date(2026, 11, 21))
    base = {"provider": "p", "kind": "openai", "account": "a", "dialect": "openai_chat", "model": MODEL,
            "wire_name": "m", "price": price, "bounds": Bounds(input=10, output=4096)}  # fmt: skip
    return Offer(**base | fields)


def test_a_hold_is_told_on_streams_and_rounded_up():
    hold = SimpleNamespace(held=1_000_001)
    found = headers.held(hold, offer(), ask())
    assert found["x-credits-held-micro"] == "2"
    assert found["x-credits-model"] == "sandbox/chat"
    assert found["x-credits-price-version"] == catalog().version
    assert "x-credits-held-micro" not in headers.held(hold, offer(), ask(stream=False))


def test_a_bound_on_the_output_is_told_only_where_it_is_ours():
    hold = SimpleNamespace(held=0)
    assert "x-credits-max-output-tokens" not in headers.held(hold, offer(), ask())
    assert headers.held(hold, offer(output_assumed=True), ask())["x-credits-max-output-tokens"] == "4096"


def test_streams_are_not_to_be_buffered_and_a_gemini_array_is_json():
    answer = SimpleNamespace(headers={"content-type": "text/event-stream", "x-a": "b"})
    whole = headers.answer(answer, ask(stream=False))
    assert whole == answer.headers
    stream = headers.answer(answer, ask())
    assert (stream["content-type"], stream["x-accel-buffering"]) == ("text/event-stream", "no")
    array = headers.answer(answer, ask(gemini_array=True))
    assert array["content-type"] == "application/json; charset=utf-8"
    assert answer.headers == {"content-type": "text/event-stream", "x-a": "b"}


def test_only_streams_get_a_heartbeat_and_an_array_gets_white_space():
    dialect = SimpleNamespace(heartbeat=b": keep-alive\n\n")
    assert headers.heartbeat(dialect, ask()) == b": keep-alive\n\n"
    assert headers.heartbeat(dialect, ask(stream=False)) == b""
    assert headers.heartbeat(dialect, ask(gemini_array=True)) == b"\n"


def test_what_was_charged_is_on_the_receipt():
    record = SimpleNamespace(charged=1)
    assert headers.receipt(Receipt("r", record, 0, 0))["x-credits-cost-micro"] == "1"
