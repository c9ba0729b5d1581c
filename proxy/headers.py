"""The headers of an answer: what it costs, what is left, and how the caller stands with its limits."""

from datetime import UTC, datetime
from math import ceil
from typing import Final

from accounting.hold import Hold
from accounting.ports import Balance
from accounting.records import Receipt
from pricing.money import micro_down, micro_up
from proxy.limits import Standing
from proxy.types import Answer, Ask, Dialect, DialectName, Offer

STREAM: Final = {
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
"""What keeps the proxies in between from holding a stream back."""

ARRAY: Final = "application/json; charset=utf-8"
"""What a Gemini stream without `alt=sse` is: one JSON array."""


def standing(limits: dict[str, Standing], dialect: DialectName, now_ms: int) -> dict[str, str]:
    """The gateway's own limits, in the caller's dialect."""
    headers = {}
    for name, one in limits.items():
        headers.update(_anthropic(name, one, now_ms) if dialect == "anthropic" else _openai(name, one))
    return headers


def balance(balance: Balance) -> dict[str, str]:
    """What the wallet has; on every answer to a caller who is known."""
    return {"x-credits-balance-micro": str(micro_down(balance.balance))}


def held(hold: Hold, offer: Offer, ask: Ask) -> dict[str, str]:
    """What is known once the hold is taken."""
    headers = {
        "x-credits-model": offer.model.id,
        "x-credits-price-version": offer.price.version,
        "x-credits-cache": "bypass",
    }
    if ask.stream:
        headers["x-credits-held-micro"] = str(micro_up(hold.held))
        headers["x-credits-hold"] = "rolling" if offer.slice_tokens else "full"
    if ask.gemini_array:
        headers["content-type"] = ARRAY  # should a heartbeat come first, it announces what it begins
    if offer.output_assumed:
        headers["x-credits-max-output-tokens"] = str(offer.bounds.output)
    if offer.thinking_limit is not None:
        headers["x-credits-max-thinking-tokens"] = str(offer.thinking_limit)
    if offer.clamped:
        headers["x-credits-clamped"] = "output"
    return headers


def answer(answer: Answer, ask: Ask) -> dict[str, str]:
    """The provider's headers that a client needs, and those that keep a stream flowing."""
    headers = dict(answer.headers)
    if ask.stream:
        headers.update(STREAM)
        if ask.gemini_array:
            headers["content-type"] = ARRAY
    return headers


def receipt(receipt: Receipt) -> dict[str, str]:
    """What an answer cost; leaves with answers that are withheld whole."""
    charged = receipt.record.charged if receipt.record is not None else 0
    return {
        "x-credits-cost-micro": str(micro_up(charged)),
        "x-credits-balance-micro": str(micro_down(receipt.balance)),
    }


def heartbeat(dialect: Dialect, ask: Ask) -> bytes:
    """What to write into a silent stream; nothing where the answer is one body."""
    if not ask.stream:
        return b""
    return b"\n" if ask.gemini_array else dialect.heartbeat


def _openai(name: str, standing: Standing) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(standing.limit),
        f"x-ratelimit-remaining-{name}": str(standing.remaining),
        f"x-ratelimit-reset-{name}": _go_duration(standing.reset_seconds),
    }


def _anthropic(name: str, standing: Standing, now_ms: int) -> dict[str, str]:
    # whole seconds, and never before it is so
    reset = datetime.fromtimestamp(ceil(now_ms / 1000 + standing.reset_seconds), UTC)
    return {
        f"anthropic-ratelimit-{name}-limit": str(standing.limit),
        f"anthropic-ratelimit-{name}-remaining": str(standing.remaining),
        f"anthropic-ratelimit-{name}-reset": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _go_duration(seconds: float) -> str:
    """Seconds as Go writes durations (`12ms`, `6m0s`), which is what OpenAI's clients expect."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
