"""Usage is disjoint, bounded and never negative; a report replaces the one before it."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.price import RATE_NAMES
from pricing.usage import (
    BUCKETS,
    COUNT_MAX,
    NO_USAGE,
    PRICED_BUCKETS,
    Estimated,
    Meter,
    Reported,
    Source,
    Usage,
    total,
)

usages = st.builds(Usage, **{name: st.integers(0, COUNT_MAX) for name in BUCKETS})


@pytest.mark.parametrize("count", [-1, COUNT_MAX + 1])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_an_absurd_count_is_no_usage(bucket, count):
    with pytest.raises(ValueError, match=bucket):
        Usage(**{bucket: count})


@pytest.mark.parametrize("count", [1.0, "1", None, True])
def test_a_count_is_an_integer(count):
    with pytest.raises(TypeError):
        Usage(input=count)


def test_a_usage_cannot_be_changed():
    with pytest.raises(AttributeError):
        NO_USAGE.input = 1


@settings(max_examples=50)
@given(usages)
def test_a_usage_is_read_back_from_the_journal_as_it_was(usage):
    assert msgspec.json.decode(msgspec.json.encode(usage), type=Usage) == usage


@pytest.mark.parametrize("count", ["-1", str(COUNT_MAX + 1), "1.5", "true"])
def test_an_absurd_count_cannot_be_read_back_either(count):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"input":%s}' % count.encode(), type=Usage)


def test_context_is_every_token_that_was_read_and_none_that_was_written():
    usage = Usage(**{name: 10**place for place, name in enumerate(PRICED_BUCKETS[:11])})
    read = (
        "input",
        "cache_read",
        "cache_write_5m",
        "cache_write_1h",
        "audio_input",
        "audio_cached",
        "image_input",
    )
    assert usage.context == sum(getattr(usage, name) for name in read)


def test_only_counts_that_are_not_zero_are_listed():
    assert Usage(input=3, reasoning=2).counts() == {"input": 3, "reasoning": 2}
    assert NO_USAGE.counts() == {}


def test_every_bucket_but_reasoning_has_a_rate_of_its_own():
    assert set(PRICED_BUCKETS) == set(RATE_NAMES)
    assert set(BUCKETS) - set(PRICED_BUCKETS) == {"reasoning"}


@settings(max_examples=50)
@given(st.lists(usages, max_size=4))
def test_legs_add_up_by_bucket_and_stop_at_the_greatest_count(legs):
    whole = total(tuple(legs))
    for name in BUCKETS:
        assert getattr(whole, name) == min(sum(getattr(leg, name) for leg in legs), COUNT_MAX)


def test_the_newest_report_replaces_the_one_before_on_the_input_side_too():
    meter = Meter()
    assert meter.reported is None
    meter.report(Reported((Usage(input=2228, output=1),), final=False))
    newest = Reported((Usage(input=32_749, output=600),), final=True)
    meter.report(newest)
    assert meter.reported is newest


def test_content_that_went_by_is_added_up():
    meter = Meter()
    meter.saw(1, 10)
    meter.saw(2, 5)
    assert (meter.content_frames, meter.content_bytes) == (3, 15)


def test_a_report_and_an_estimate_say_which_they_are():
    assert Reported((NO_USAGE,), final=True).source is Source.REPORTED
    assert Estimated((NO_USAGE,), because="hung up").source is Source.ESTIMATED
