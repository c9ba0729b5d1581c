"""What callers are shown of money and usage: exact, rounded the honest way, and complete."""

import json
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.ports import Balance
from accounting.records import Ending, UsageRecord
from pricing.money import PICO
from pricing.usage import Source, Usage
from proxy.shown import shown_balance, shown_model, shown_request, shown_usage
from tests.fakes import catalog

DAY = date(2026, 11, 21)
picos = st.integers(0, 10**9 * PICO)


def record(**fields):
    base = {
        "request": "r", "number": 1, "wallet": "w", "key": "k", "model": "v/m", "provider": "p", "account": "a",
        "dialect": "gemini", "stream": True, "outcome": Ending.COMPLETE, "status": 200, "source": Source.REPORTED,
        "usage": Usage(), "price_version": "p_1", "markup_ppm": 10**6, "held": 10, "price": 5, "charged": 5,
        "cost": 4, "loss": 0, "currency": "USD", "started_ms": 1_000, "ended_ms": 2_500,
    }  # fmt: skip
    return UsageRecord(**base | fields)


@given(picos, picos)
def test_a_balance_is_exact_as_text_and_never_promises_more_as_an_integer(balance, held):
    held = min(balance, held)
    shown = shown_balance(Balance(balance, held, balance - held, "USD"))
    for name, amount in (("balance", balance), ("held", held), ("available", balance - held)):
        assert Decimal(shown[name]) * PICO == amount
    assert Decimal(shown["credits"]) * PICO == balance * 100
    assert shown["balance_micro"] * 10**6 <= balance < (shown["balance_micro"] + 1) * 10**6
    assert (shown["held_micro"] - 1) * 10**6 < held <= shown["held_micro"] * 10**6
    assert shown["available_micro"] + shown["held_micro"] <= shown["balance_micro"] + 1


@given(picos)
def test_a_cost_is_exact_as_text_and_never_less_as_an_integer(charged):
    shown = shown_usage(record(charged=charged))
    assert Decimal(shown["cost"]) * PICO == charged
    assert (shown["cost_micro"] - 1) * 10**6 < charged <= shown["cost_micro"] * 10**6


def test_a_record_is_shown_with_its_times_and_without_what_is_the_operators():
    shown = shown_usage(record(first_byte_ms=1_250, upstream_id="chatcmpl-1", flags=("odd",)))
    assert shown["created_at"] == "1970-01-01T00:00:01.000+00:00"
    assert shown["finished_at"] == "1970-01-01T00:00:02.500+00:00"
    assert shown["first_byte_ms"] == 250
    assert not {"provider", "account", "flags", "upstream_id", "loss", "key"} & shown.keys()
    assert shown_usage(record())["first_byte_ms"] is None


def test_tokens_are_named_as_the_contract_names_them_and_rare_ones_only_where_there_are_some():
    usage = Usage(input=1, output=2, reasoning=1, cache_read=3, cache_write_5m=4, cache_write_1h=5)
    shown = shown_usage(record(usage=usage))
    assert (shown["input_tokens"], shown["output_tokens"], shown["reasoning_tokens"]) == (1, 2, 1)
    assert shown["cache_read_input_tokens"] == 3
    assert shown["cache_creation"] == {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 5}
    assert "audio_input" not in shown
    assert shown_usage(record(usage=Usage(audio_input=7)))["audio_input"] == 7


@given(st.lists(picos, min_size=1, max_size=5))
def test_a_request_costs_what_its_attempts_cost_together(charges):
    records = tuple(record(number=number, charged=charged) for number, charged in enumerate(charges, 1))
    shown = shown_request(records)
    assert Decimal(shown["cost"]) * PICO == sum(charges)
    assert (shown["attempts"], shown["attempt"]) == (len(charges), len(charges))


@pytest.mark.parametrize("name", sorted(name for name, one in catalog().models.items() if one.tiers_on(DAY)))
@pytest.mark.parametrize("markup_ppm", [1_000_000, 600_000, 1_234_567])
def test_every_model_is_shown_at_the_price_that_is_charged(name, markup_ppm):
    price = catalog().price(catalog().models[name], markup_ppm, DAY)
    shown = json.loads(json.dumps(shown_model(catalog().models[name], price)))
    for tier, told in zip(price.tiers, shown["pricing"]["tiers"], strict=True):
        million = price.cost((Usage(output=10**6),)) if tier.above == 0 else None
        if million is not None:
            assert Decimal(told["output"]) * PICO == million
        assert told["above_input_tokens"] == tier.above
    assert float(shown["pricing"]["tiers"][0]["input"]) == shown["input_cost_per_1m"]
    assert shown["provider"] == name.partition("/")[0]
