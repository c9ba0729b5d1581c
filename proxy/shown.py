"""How money and usage are shown to callers: the JSON of balances, usage records and prices."""

from datetime import UTC, datetime
from typing import Any

from accounting.ports import Balance
from accounting.records import UsageRecord
from pricing.catalog import Model
from pricing.money import credits_of, marked_up, micro_down, micro_up, show
from pricing.price import Price, Rates, rate
from pricing.usage import NO_USAGE, Usage

TOKENS_PER_PRICE = 10**6
"""Prices are shown per million tokens."""


def shown_balance(balance: Balance) -> dict[str, Any]:
    """What `GET /v1/credits` answers: exact decimals as strings, integers in micro-units, rounded down."""
    return {
        "object": "balance",
        "balance": show(balance.balance),
        "held": show(balance.held),
        "available": show(balance.available),
        "currency": balance.currency,
        "credits": credits_of(balance.balance),
        "balance_micro": micro_down(balance.balance),
        "held_micro": micro_up(balance.held),
        "available_micro": micro_down(balance.available),
    }


def shown_usage(record: UsageRecord) -> dict[str, Any]:
    """One usage record as its owner sees it; `cost` is exact, `cost_micro` rounded up."""
    usage = record.usage
    return {
        "object": "usage",
        "request_id": record.request,
        "attempt": record.number,
        "model": record.model,
        "status": record.outcome.value,
        "stream": record.stream,
        "created_at": _iso(record.started_ms),
        "finished_at": _iso(record.ended_ms),
        "first_byte_ms": None if record.first_byte_ms is None else record.first_byte_ms - record.started_ms,
        "cost": show(record.charged),
        "cost_micro": micro_up(record.charged),
        "currency": record.currency,
        "held_micro": micro_up(record.held),
        "usage_source": record.source.value,
        "price_version": record.price_version,
        "markup_ppm": record.markup_ppm,
        "budget_id": record.budget or None,
        **_tokens(usage),
    }


def shown_request(records: tuple[UsageRecord, ...]) -> dict[str, Any]:
    """One request with all its attempts: the sums, and what the last attempt says of the rest."""
    last = records[-1]
    charged = sum(record.charged for record in records)
    return shown_usage(last) | {
        "cost": show(charged),
        "cost_micro": micro_up(charged),
        "attempts": len(records),
    }


def _tokens(usage: Usage) -> dict[str, Any]:
    shown = {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "reasoning_tokens": usage.reasoning,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
    }
    others = ("audio_input", "audio_cached", "audio_output", "image_input", "image_output", "web_searches")
    return shown | {
        name: count for name in others if (count := getattr(usage, name)) != getattr(NO_USAGE, name)
    }


def shown_model(model: Model, price: Price) -> dict[str, Any]:
    """One model with its price to this caller, per million tokens: numbers for show, exact decimals beside them."""
    rates = price.tiers[0].rates
    shown: dict[str, Any] = {
        "id": model.id,
        "name": model.name,
        "provider": model.vendor,
        "dialect": model.dialect,
        "context_window": model.context_window,
        "max_output_tokens": model.output_max,
        "price_version": price.version,
        "pricing": {
            "unit": "per 1M tokens",
            "tiers": [
                {"above_input_tokens": tier.above, **_shown_rates(tier.rates, price.markup_ppm)}
                for tier in price.tiers
            ],
        },
    }
    for name in ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"):
        if getattr(rates, name) is not None:
            # a float is what this field's readers expect; the exact decimal stands under `pricing`
            shown[f"{name}_cost_per_1m"] = float(show(_per_million(rates, name, price.markup_ppm)))
    return shown


def _shown_rates(rates: Rates, markup_ppm: int) -> dict[str, str]:
    names = (
        "input",
        "output",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "audio_input",
        "audio_output",
    )
    return {
        name: show(_per_million(rates, name, markup_ppm))
        for name in names
        if getattr(rates, name) is not None
    }


def _per_million(rates: Rates, name: str, markup_ppm: int) -> int:
    return marked_up(rate(rates, name) * TOKENS_PER_PRICE, markup_ppm)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
