"""The headers of an answer: exact, rounded the honest way, and in the caller's dialect."""

import pytest

from accounting.hold import Balance
from accounting.records import Receipt
from proxy import headers
from proxy.limits import Standing

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
