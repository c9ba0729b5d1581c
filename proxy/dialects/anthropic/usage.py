"""Anthropic's usage reports as disjoint buckets.

A stream reports twice or more: `message_start` states what was read, each `message_delta` repeats the counts
that have changed. All are running totals, on the input side too: a stream that begins with 2,228 input tokens
may end with 32,749. So the newest word wins, field by field, and nothing is ever added. Three details:

* how cache writes divide into five minutes and an hour is told in `message_start` only; what a later total
  has more than that split is billed at five minutes;
* where `iterations` are told, they are the bill, each a leg with a context length of its own: the totals
  beside them leave out compaction;
* zero is a count.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from pricing.usage import Reported, Usage
from proxy.dialects.counters import Counters, RunningTotal, flag

_CACHE_CREATION: Final = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
_OUTPUT_DETAILS: Final = frozenset({"thinking_tokens"})
_SERVER_TOOLS: Final = frozenset({"web_search_requests", "web_fetch_requests"})
"""A fetch has no price of its own: its text is input."""

_ITERATION: Final = frozenset(
    {
        "type",
        "model",
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "output_tokens_details",
    }
)
_USAGE: Final = _ITERATION | {
    "server_tool_use",
    "service_tier",
    "inference_geo",
    "speed",
    "iterations",
    "fallback_credit",
    # Ours, where the provider is a gateway of this kind.
    "cost",
    "cost_micro",
}

_OWN_ITERATIONS: Final = frozenset({"message", "compaction"})
"""Iterations by the model that was asked for; every other kind has another model's price."""


class RunningUsage(RunningTotal):
    """The newest word of an answer on what it used, field by field, and what it comes to."""

    def reported(self, *, final: bool) -> Reported | None:
        """What has been reported so far, or `None` if not even what was read.

        Args:
            final: it is the provider's last word, if it says what was written as well.
        """
        usage = Counters(self.fields)
        iterations = self.fields.get("iterations")
        has_steps = isinstance(iterations, list) and bool(iterations)
        if usage.count("input_tokens") is None and not has_steps:
            return None
        final = final and (has_steps or usage.count("output_tokens") is not None)
        searches = usage.inner("server_tool_use")
        searches.unknown(_SERVER_TOOLS, "server_tool_use.")
        usage.unknown(_USAGE)
        usage.mode("tier", "service_tier", ("standard",))
        usage.mode("speed", "speed", ("standard",))
        usage.mode("region", "inference_geo", ("global", "not_available"))
        legs = [_leg(usage, searches.count("web_search_requests") or 0)]
        if isinstance(iterations, list) and has_steps:
            legs = _iterations(iterations, legs[0], usage.flags)
        legs[0] = replace(legs[0], requests=1)
        return Reported(tuple(legs), final, frozenset(usage.flags))


def write_usage(usage: Usage) -> dict[str, Any]:
    """Say in Anthropic's words what was used, as a last `message_delta` does: the cache writes without their split."""
    told: dict[str, Any] = {
        "input_tokens": usage.input + usage.audio_input + usage.audio_cached + usage.image_input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output + usage.audio_output + usage.image_output,
    }
    if usage.reasoning:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    if usage.web_searches:
        told["server_tool_use"] = {"web_search_requests": usage.web_searches}
    return told


def _leg(usage: Counters, web_searches: int = 0) -> Usage:
    details = usage.inner("output_tokens_details")
    details.unknown(_OUTPUT_DETAILS, "output_tokens_details.")
    output = usage.count("output_tokens") or 0
    five_minutes, hour = _cache_writes(usage)
    return Usage(
        input=usage.count("input_tokens") or 0,
        cache_read=usage.count("cache_read_input_tokens") or 0,
        cache_write_5m=five_minutes,
        cache_write_1h=hour,
        output=output,
        reasoning=min(details.count("thinking_tokens") or 0, output),
        web_searches=web_searches,
    )


def _cache_writes(usage: Counters) -> tuple[int, int]:
    """Tokens written to the cache, for five minutes and for an hour; together the newest total."""
    split = usage.inner("cache_creation")
    split.unknown(_CACHE_CREATION, "cache_creation.")
    five_minutes = split.count("ephemeral_5m_input_tokens") or 0
    hour = split.count("ephemeral_1h_input_tokens") or 0
    total = usage.count("cache_creation_input_tokens")
    if total is None:
        return five_minutes, hour
    if total < five_minutes + hour:
        usage.flags.add("total_mismatch")
        hour = min(hour, total)
    return total - hour, hour


def _iterations(iterations: list[Any], totals: Usage, flags: set[str]) -> list[Usage]:
    """The legs of an answer that took several steps; what was searched stands on the last."""
    legs: list[Usage] = []
    read = written = 0
    for step in iterations:
        if not isinstance(step, Mapping):
            flags.add(flag("unknown_counter", "iterations"))
            continue
        counters = Counters(step, flags)
        counters.unknown(_ITERATION, "iterations.")
        leg = _leg(counters)
        legs.append(leg)
        kind = step.get("type")
        if kind not in _OWN_ITERATIONS:
            flags.add(flag("iteration", kind))
        elif kind == "message":
            read, written = read + leg.input, written + leg.output
    if not legs:
        return [totals]
    if (totals.input, totals.output) not in ((0, 0), (read, written)):
        flags.add("total_mismatch")
    if totals.web_searches:
        legs[-1] = replace(legs[-1], web_searches=totals.web_searches)
    return legs
