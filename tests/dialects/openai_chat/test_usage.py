import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import Usage
from proxy.dialects.openai_chat.usage import read_usage, write_usage


def report(prompt=100, completion=50, total=None, **more):
    total = prompt + completion if total is None else total
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


def test_inclusive_counters_become_disjoint_buckets():
    usage = report(
        prompt=1000,
        completion=500,
        prompt_tokens_details={
            "cached_tokens": 600,
            "cache_write_tokens": 100,
            "audio_tokens": 50,
            "image_tokens": 30,
            "text_tokens": 920,
        },
        completion_tokens_details={
            "reasoning_tokens": 300,
            "audio_tokens": 40,
            "accepted_prediction_tokens": 7,
            "rejected_prediction_tokens": 8,
        },
    )
    reported = read_usage(usage, tier="default", final=True)
    assert reported.legs == (
        Usage(
            input=220,
            cache_read=600,
            cache_write_5m=100,
            audio_input=50,
            image_input=30,
            output=460,
            audio_output=40,
            reasoning=300,
            requests=1,
        ),
    )
    assert reported.final
    assert not reported.flags


def test_zero_is_a_value_and_null_is_missing():
    zero = read_usage(report(0, 0), final=True)
    assert zero.legs == (Usage(requests=1),)
    assert read_usage({"prompt_tokens": None, "completion_tokens": 5}, final=True) is None
    assert read_usage({}, final=True) is None
    nulls = report(prompt_tokens_details=None, completion_tokens_details={"reasoning_tokens": None})
    assert read_usage(nulls, final=False).legs == (Usage(input=100, output=50, requests=1),)


@pytest.mark.parametrize("missing", ["prompt_tokens", "completion_tokens"])
def test_one_missing_sum_follows_from_the_total(missing):
    usage = report() | {missing: None}
    assert read_usage(usage, final=True).legs == (Usage(input=100, output=50, requests=1),)


@pytest.mark.parametrize(
    ("usage", "flag"),
    [
        (report(total=151), "total_mismatch"),
        (report(prompt_tokens_details={"cached_tokens": 101}), "contradiction:cached_tokens"),
        (report(completion_tokens_details={"reasoning_tokens": 51}), "contradiction:reasoning_tokens"),
        (report(search_units=3), "unknown_counter:search_units"),
        (report(prompt_tokens_details={"video_tokens": 3}), "unknown_counter:video_tokens"),
        (report(prompt_tokens_details={"cached_tokens": -3}), "odd_counter:cached_tokens"),
        (report(prompt_tokens_details={"cached_tokens": "many"}), "odd_counter:cached_tokens"),
    ],
)
def test_what_is_odd_about_a_report_is_flagged(usage, flag):
    assert flag in read_usage(usage, final=True).flags


@pytest.mark.parametrize(
    ("tier", "flags"), [(None, set()), ("default", set()), ("priority", {"tier:priority"})]
)
def test_another_tier_than_the_priced_one_is_flagged(tier, flags):
    assert read_usage(report(), tier=tier, final=True).flags == flags


@pytest.mark.parametrize(
    "where", [{"cached_tokens": 60}, {"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}]
)
def test_compatible_servers_state_cached_tokens_elsewhere(where):
    assert read_usage(report(**where), final=True).legs[0].cache_read == 60


counters = (
    st.none() | st.integers(-5, 200) | st.just(2**60) | st.floats() | st.text(max_size=3) | st.booleans()
)
details = (
    st.none()
    | st.lists(counters, max_size=2)
    | st.dictionaries(
        st.sampled_from(
            ["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens", "x"]
        ),
        counters,
    )
)


@settings(max_examples=200, deadline=None)
@given(counters, counters, counters, details, details)
def test_whatever_a_provider_reports_the_buckets_never_exceed_its_sums(
    prompt, completion, total, read, written
):
    usage = report(0, 0) | {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "prompt_tokens_details": read,
        "completion_tokens_details": written,
    }
    reported = read_usage(usage, tier=prompt, final=True)
    if reported is not None:
        (leg,) = reported.legs
        believed = isinstance(prompt, int | float) and 0 <= prompt < 2**40 and prompt == int(prompt)
        assert leg.context <= (prompt if believed and not isinstance(prompt, bool) else total)
        assert leg.reasoning <= leg.output


def test_inclusive_counters_are_made_of_disjoint_buckets():
    usage = Usage(
        input=100, cache_read=50, cache_write_5m=4, cache_write_1h=3, output=42, reasoning=4, requests=1
    )
    assert write_usage(usage) == {
        "prompt_tokens": 157,
        "completion_tokens": 42,
        "total_tokens": 199,
        "prompt_tokens_details": {"cached_tokens": 50, "cache_write_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


counts = st.integers(0, 10**9)


@given(counts, counts, counts, counts, counts, counts, counts, counts)
def test_what_is_written_reads_the_same(read, cached, written, audio, image, output, spoken, drawn):
    usage = Usage(
        input=read,
        cache_read=cached,
        cache_write_5m=written,
        audio_input=audio,
        image_input=image,
        output=output,
        reasoning=output // 3,
        audio_output=spoken,
        image_output=drawn,
        requests=1,
    )
    again = read_usage(write_usage(usage), final=True)
    assert again.legs == (usage,)
    assert not again.flags
