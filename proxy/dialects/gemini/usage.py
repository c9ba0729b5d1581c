"""Gemini's usage reports as disjoint buckets.

Every chunk of a stream may carry `usageMetadata`, a running total: the newest word wins, field by field. Then

* `promptTokenCount` includes what was read from the cache, but not what tools brought in;
* `candidatesTokenCount` leaves out thoughts, which are billed as output;
* the `…TokensDetails` divide the counts by modality: audio and images have rates of their own, the rest
  (text, video, documents) has the plain one;
* `totalTokenCount` is the sum of prompt, candidates, thoughts and tool use: where it is not, the record is
  flagged, and the buckets are charged as reported.
"""

from collections.abc import Mapping
from typing import Final

from pricing.usage import Reported, Usage
from proxy.dialects.counters import Counters, RunningTotal, flag

_KNOWN: Final = frozenset(
    {
        "promptTokenCount",
        "cachedContentTokenCount",
        "candidatesTokenCount",
        "thoughtsTokenCount",
        "toolUsePromptTokenCount",
        "totalTokenCount",
        "promptTokensDetails",
        "cacheTokensDetails",
        "candidatesTokensDetails",
        "toolUsePromptTokensDetails",
        "trafficType",
        "serviceTier",
        # Ours, where the provider is a gateway of this kind.
        "cost",
        "costMicro",
        "cost_micro",
    }
)

_ALWAYS: Final = ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")

_USUAL_TRAFFIC: Final = ("ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED")
_USUAL_TIER: Final = ("standard", "STANDARD", "SERVICE_TIER_STANDARD", "unspecified")
_MODALITIES: Final = frozenset({"TEXT", "IMAGE", "AUDIO", "VIDEO", "DOCUMENT", "MODALITY_UNSPECIFIED"})


class RunningUsage(RunningTotal):
    """The newest word of an answer on what it used, field by field, and what it comes to."""

    def reported(self, *, final: bool) -> Reported | None:
        """What has been reported so far, or `None` if not even what was read."""
        usage = Counters(self.fields)
        if usage.count("promptTokenCount") is None:
            return None
        usage.unknown(_KNOWN)
        usage.mode("tier", "trafficType", _USUAL_TRAFFIC)
        usage.mode("tier", "serviceTier", _USUAL_TIER)
        prompt = usage.count("promptTokenCount") or 0
        cached = usage.count("cachedContentTokenCount") or 0
        candidates = usage.count("candidatesTokenCount") or 0
        thoughts = usage.count("thoughtsTokenCount") or 0
        tools = usage.count("toolUsePromptTokenCount") or 0
        total = usage.count("totalTokenCount")
        if (total is not None and total != prompt + candidates + thoughts + tools) or cached > prompt:
            usage.flags.add("total_mismatch")
        leg = Usage(
            **_read(usage, prompt, cached, tools),
            **_written(usage, candidates, thoughts),
            reasoning=thoughts,
            requests=1,
        )
        return Reported((leg,), final, frozenset(usage.flags))


def write_usage(usage: Usage) -> dict[str, int]:
    """Say in Google's words what was used: counts alone, what is zero is left out as they do."""
    written = usage.output + usage.audio_output + usage.image_output
    counts = {
        "promptTokenCount": usage.context,
        "cachedContentTokenCount": usage.cache_read + usage.audio_cached,
        "candidatesTokenCount": written - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.context + written,
    }
    return {name: count for name, count in counts.items() if count or name in _ALWAYS}


def _read(usage: Counters, prompt: int, cached: int, tools: int) -> dict[str, int]:
    """Buckets of what was read; their sum is `max(prompt, cached) + tools` whatever the details say."""
    by_prompt = _by_modality(usage, "promptTokensDetails")
    by_cache = _by_modality(usage, "cacheTokensDetails")
    by_tools = _by_modality(usage, "toolUsePromptTokensDetails")
    fresh = max(prompt - cached, 0)
    audio = min(max(by_prompt["AUDIO"] - by_cache["AUDIO"], 0), fresh)
    image = min(max(by_prompt["IMAGE"] - by_cache["IMAGE"], 0), fresh - audio)
    audio_cached = min(max(by_prompt["AUDIO"] - audio, 0), cached)
    tool_audio = min(by_tools["AUDIO"], tools)
    tool_image = min(by_tools["IMAGE"], tools - tool_audio)
    return {
        "input": fresh - audio - image + tools - tool_audio - tool_image,
        "cache_read": cached - audio_cached,
        "audio_input": audio + tool_audio,
        "audio_cached": audio_cached,
        "image_input": image + tool_image,
    }


def _written(usage: Counters, candidates: int, thoughts: int) -> dict[str, int]:
    """Buckets of what was written; their sum is `candidates + thoughts`."""
    by_modality = _by_modality(usage, "candidatesTokensDetails")
    audio = min(by_modality["AUDIO"], candidates)
    image = min(by_modality["IMAGE"], candidates - audio)
    return {
        "output": candidates - audio - image + thoughts,
        "audio_output": audio,
        "image_output": image,
    }


def _by_modality(usage: Counters, name: str) -> dict[str, int]:
    """Tokens of images and audio, as one of the lists of details has them."""
    counts = {"IMAGE": 0, "AUDIO": 0}
    details = usage.raw.get(name)
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, Mapping):
            continue
        modality = detail.get("modality")
        tokens = Counters(detail, usage.flags).count("tokenCount") or 0
        if modality in counts:
            counts[modality] += tokens
        elif modality not in _MODALITIES and tokens:
            usage.flags.add(flag("unknown_counter", f"{name}.{modality}"))
    return counts
