import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import Usage
from proxy.dialects.gemini.usage import RunningUsage, write_usage


def reported(*reports, final=True):
    running = RunningUsage()
    for report in reports:
        running.take(report)
    return running.reported(final=final)


def details(**counts):
    return [{"modality": name.upper(), "tokenCount": count} for name, count in counts.items()]


GOLDEN = {
    "thoughts are billed as output": (
        {
            "promptTokenCount": 21,
            "candidatesTokenCount": 7,
            "thoughtsTokenCount": 312,
            "totalTokenCount": 340,
        },
        Usage(input=21, output=319, reasoning=312, requests=1),
    ),
    "what was cached is within the prompt": (
        {
            "promptTokenCount": 1024,
            "cachedContentTokenCount": 1000,
            "candidatesTokenCount": 12,
            "totalTokenCount": 1036,
        },
        Usage(input=24, cache_read=1000, output=12, requests=1),
    ),
    "what tools brought in is not": (
        {
            "promptTokenCount": 10,
            "toolUsePromptTokenCount": 100,
            "candidatesTokenCount": 5,
            "totalTokenCount": 115,
        },
        Usage(input=110, output=5, requests=1),
    ),
    "images and audio have buckets of their own": (
        {
            "promptTokenCount": 1000,
            "promptTokensDetails": details(text=200, image=300, audio=400, video=60, document=40),
            "candidatesTokenCount": 5,
            "totalTokenCount": 1005,
        },
        Usage(input=300, image_input=300, audio_input=400, output=5, requests=1),
    ),
    "cached audio is neither fresh audio nor cached text": (
        {
            "promptTokenCount": 5000,
            "cachedContentTokenCount": 4096,
            "promptTokensDetails": details(text=4200, image=300, audio=500),
            "cacheTokensDetails": details(text=3696, audio=400),
            "candidatesTokenCount": 6,
            "totalTokenCount": 5006,
        },
        Usage(
            input=504,
            image_input=300,
            audio_input=100,
            audio_cached=400,
            cache_read=3696,
            output=6,
            requests=1,
        ),
    ),
    "written images and speech have buckets of their own": (
        {
            "promptTokenCount": 5,
            "candidatesTokenCount": 1390,
            "candidatesTokensDetails": details(text=50, image=1290, audio=50),
            "totalTokenCount": 1395,
        },
        Usage(input=5, output=50, image_output=1290, audio_output=50, requests=1),
    ),
    "media that tools brought in": (
        {
            "promptTokenCount": 5,
            "toolUsePromptTokenCount": 30,
            "toolUsePromptTokensDetails": details(text=10, image=15, audio=5),
            "totalTokenCount": 35,
        },
        Usage(input=15, image_input=15, audio_input=5, requests=1),
    ),
    "a prompt that was blocked": (
        {"promptTokenCount": 12, "totalTokenCount": 12},
        Usage(input=12, requests=1),
    ),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_conversion(case):
    report, expected = case
    result = reported(report)
    assert result.legs == (expected,)
    assert result.flags == frozenset()


def test_the_newest_word_wins_field_by_field():
    (leg,) = reported(
        {"promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 5},
        {"candidatesTokenCount": 0, "promptTokenCount": None},
        {"thoughtsTokenCount": 3},
    ).legs
    assert leg == Usage(input=60, cache_read=40, output=3, reasoning=3, requests=1)


def test_a_total_that_is_not_the_sum_is_flagged_and_the_buckets_are_charged():
    result = reported({"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 99})
    assert result.legs == (Usage(input=10, output=5, requests=1),)
    assert result.flags == {"total_mismatch"}


def test_more_cached_than_read_is_flagged():
    result = reported({"promptTokenCount": 10, "cachedContentTokenCount": 50})
    assert result.legs == (Usage(cache_read=50, requests=1),)
    assert result.flags == {"total_mismatch"}


def test_audio_beyond_what_is_fresh_was_cached():
    (leg,) = reported(
        {"promptTokenCount": 100, "cachedContentTokenCount": 80, "promptTokensDetails": details(audio=90)}
    ).legs
    assert (leg.audio_input, leg.audio_cached, leg.cache_read, leg.input) == (20, 70, 10, 0)


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "tier:ON_DEMAND_PRIORITY"),
        ({"serviceTier": "flex"}, "tier:flex"),
        ({"searchTokenCount": 5}, "unknown_counter:searchTokenCount"),
        ({"promptTokensDetails": details(smell=5)}, "unknown_counter:promptTokensDetails.SMELL"),
        ({"thoughtsTokenCount": -5}, "odd_counter:thoughtsTokenCount"),
        ({"thoughtsTokenCount": "5"}, "odd_counter:thoughtsTokenCount"),
        ({"thoughtsTokenCount": True}, "odd_counter:thoughtsTokenCount"),
    ],
)
def test_what_has_no_price_here_is_flagged(more, flag):
    assert reported({"promptTokenCount": 10, **more}).flags == {flag}


@pytest.mark.parametrize(
    "more",
    [
        {"trafficType": "ON_DEMAND"},
        {"serviceTier": "standard"},
        {"searchTokenCount": 0},
        {"promptTokensDetails": "x"},
        {"promptTokensDetails": [5]},
    ],
)
def test_what_is_usual_or_says_nothing_is_not_flagged(more):
    assert reported({"promptTokenCount": 10, **more}).flags == frozenset()


@pytest.mark.parametrize("report", [None, 5, "x", {}, {"candidatesTokenCount": 3}])
def test_what_does_not_say_what_was_read_is_no_report(report):
    assert reported(report) is None


COUNTS = st.integers(0, 2**38)
DETAILS = st.lists(
    st.fixed_dictionaries(
        {"modality": st.sampled_from(["TEXT", "AUDIO", "IMAGE", "X"]), "tokenCount": COUNTS}
    ),
    max_size=3,
)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"promptTokenCount": COUNTS},
        optional={
            "cachedContentTokenCount": COUNTS,
            "candidatesTokenCount": COUNTS,
            "thoughtsTokenCount": COUNTS,
            "toolUsePromptTokenCount": COUNTS,
            "promptTokensDetails": DETAILS,
            "cacheTokensDetails": DETAILS,
            "candidatesTokensDetails": DETAILS,
            "toolUsePromptTokensDetails": DETAILS,
        },
    )
)
def test_nothing_is_lost_or_counted_twice_whatever_the_details_say(report):
    (leg,) = reported(report).legs
    cached = report.get("cachedContentTokenCount", 0)
    read = max(report["promptTokenCount"], cached) + report.get("toolUsePromptTokenCount", 0)
    assert leg.context == read
    assert leg.cache_read + leg.audio_cached == cached
    written = report.get("candidatesTokenCount", 0) + report.get("thoughtsTokenCount", 0)
    assert leg.output + leg.audio_output + leg.image_output == written


def test_what_is_zero_is_left_out_as_google_does():
    assert write_usage(Usage(input=5)) == {
        "promptTokenCount": 5,
        "candidatesTokenCount": 0,
        "totalTokenCount": 5,
    }


counts = st.integers(0, 10**9)


@given(counts, counts, counts, counts)
def test_what_is_written_reads_the_same(read, cached, output, thoughts):
    usage = Usage(input=read, cache_read=cached, output=output + thoughts, reasoning=thoughts, requests=1)
    again = reported(write_usage(usage))
    assert again.legs == (usage,)
    assert not again.flags
