"""OpenAI's usage reports as disjoint buckets.

`prompt_tokens` includes what was cached, written to a cache, audio and images; `completion_tokens` includes
reasoning, audio and rejected predictions. A report that contradicts itself never bills more than its own two
sums: parts are cut down to what is left of them, and the record says so.

The usual report is read as a type that has no place for anything unusual (`UsualUsage`, `usual`); `read_usage` reads
every report, and the same from the usual one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from attrs import define, field

from pricing.usage import Reported, Usage
from proxy.dialects.counters import COUNTER_MAX, Counters, flag

KNOWN: Final = frozenset(
    {
        "prompt_tokens", "completion_tokens", "total_tokens",
        "prompt_tokens_details", "completion_tokens_details",
        "cached_tokens", "prompt_cache_hit_tokens", "prompt_cache_miss_tokens",
        "cost", "cost_details", "is_byok", "queue_time", "prompt_time", "completion_time", "total_time",
    }
)  # fmt: skip
"""With the counters of compatible servers that say nothing new about the bill."""

KNOWN_PROMPT: Final = frozenset(
    {"cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "text_tokens"}
)
KNOWN_COMPLETION: Final = frozenset(
    {
        "reasoning_tokens", "audio_tokens", "image_tokens", "text_tokens", "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    }
)  # fmt: skip

STANDARD_TIERS: Final = ("", "default")
"""Echoed service tiers that the price knows."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNTER_MAX)]


class _UsualPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    cached_tokens: _Count = 0
    audio_tokens: _Count = 0


class _UsualCompletion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    reasoning_tokens: _Count = 0
    audio_tokens: _Count = 0
    accepted_prediction_tokens: _Count = 0
    rejected_prediction_tokens: _Count = 0


class UsualUsage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A report as OpenAI makes it; whatever else a server says does not decode as one."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _UsualPrompt = _UsualPrompt()
    completion_tokens_details: _UsualCompletion = _UsualCompletion()


def usual(told: UsualUsage) -> Reported | None:
    """Convert a last report of the usual kind; `None` where it contradicts itself, which `read_usage` sorts out."""
    prompt, completion = told.prompt_tokens, told.completion_tokens
    read, written = told.prompt_tokens_details, told.completion_tokens_details
    plain = prompt - read.cached_tokens - read.audio_tokens
    output = completion - written.audio_tokens
    if plain < 0 or output < written.reasoning_tokens or told.total_tokens != prompt + completion:
        return None
    leg = Usage(
        input=plain,
        cache_read=read.cached_tokens,
        audio_input=read.audio_tokens,
        output=output,
        audio_output=written.audio_tokens,
        reasoning=written.reasoning_tokens,
        requests=1,
    )
    return Reported((leg,), final=True)


def read_usage(usage: Mapping[str, Any], *, tier: object = None, final: bool) -> Reported | None:
    """Convert one report.

    Args:
        usage: the decoded `usage` object.
        tier: the `service_tier` that came with it.
        final: whether it is the provider's last word.

    Returns:
        `None` where it does not even say how much was read and written: that is no report.
    """
    counters = Counters(usage)
    prompt, completion = counters.count("prompt_tokens"), counters.count("completion_tokens")
    total = counters.count("total_tokens")
    if total is not None:
        prompt = max(total - completion, 0) if prompt is None and completion is not None else prompt
        completion = max(total - prompt, 0) if completion is None and prompt is not None else completion
    if prompt is None or completion is None:
        return None
    if total is not None and total != prompt + completion:
        counters.flags.add("total_mismatch")
    read = _Parts(prompt, counters.inner("prompt_tokens_details"))
    cached = read.take(
        "cached_tokens", counters.count("cached_tokens"), counters.count("prompt_cache_hit_tokens")
    )
    written = _Parts(completion, counters.inner("completion_tokens_details"))
    leg = Usage(
        cache_read=cached,
        cache_write_5m=read.take("cache_write_tokens"),
        audio_input=read.take("audio_tokens"),
        image_input=read.take("image_tokens"),
        input=read.left,
        audio_output=written.take("audio_tokens"),
        image_output=written.take("image_tokens"),
        output=written.left,
        reasoning=written.take("reasoning_tokens"),
        requests=1,
    )
    counters.unknown(KNOWN)
    read.details.unknown(KNOWN_PROMPT)
    written.details.unknown(KNOWN_COMPLETION)
    if tier is not None and tier not in STANDARD_TIERS:
        counters.flags.add(flag("tier", tier))
    return Reported((leg,), final=final, flags=frozenset(counters.flags))


def write_usage(usage: Usage) -> dict[str, Any]:
    """Say in OpenAI's words what was used; `read_usage` reads the same from it."""
    prompt, completion = usage.context, usage.output + usage.audio_output + usage.image_output
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            **_told(
                cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
                audio_tokens=usage.audio_input + usage.audio_cached,
                image_tokens=usage.image_input,
            ),
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            **_told(audio_tokens=usage.audio_output, image_tokens=usage.image_output),
        },
    }


def _told(**counts: int) -> dict[str, int]:
    """The counts that are worth telling."""
    return {name: count for name, count in counts.items() if count}


@define(eq=False)
class _Parts:
    """A sum, and the parts that are taken out of it; never more than it holds."""

    left: int
    details: Counters = field(repr=False)

    def take(self, name: str, *others: int | None) -> int:
        """Take out a part: by its name in the details, or else by what others say."""
        stated = self.details.count(name)
        for other in others:
            stated = other if stated is None else stated
        if stated is None:
            return 0
        if stated > self.left:
            self.details.flags.add(flag("contradiction", name))
            stated = self.left
        self.left -= stated
        return stated
