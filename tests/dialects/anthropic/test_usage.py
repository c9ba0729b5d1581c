import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import PRICED_BUCKETS, Usage
from proxy.dialects.anthropic.usage import RunningUsage, write_usage


def reported(*reports, final=True):
    running = RunningUsage()
    for report in reports:
        running.take(report)
    return running.reported(final=final)


def leg(*reports):
    (only,) = reported(*reports).legs
    return only


GOLDEN = {
    "the three kinds of input are disjoint": (
        {
            "input_tokens": 2095,
            "cache_creation_input_tokens": 456,
            "cache_read_input_tokens": 1024,
            "output_tokens": 503,
        },
        Usage(input=2095, cache_write_5m=456, cache_read=1024, output=503, requests=1),
    ),
    "writes for an hour have their own bucket": (
        {
            "input_tokens": 1,
            "cache_creation_input_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 400},
            "output_tokens": 2,
        },
        Usage(input=1, cache_write_5m=100, cache_write_1h=400, output=2, requests=1),
    ),
    "a write of unknown lifetime counts as five minutes": (
        {
            "input_tokens": 1,
            "cache_creation_input_tokens": 500,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 300},
            "output_tokens": 2,
        },
        Usage(input=1, cache_write_5m=200, cache_write_1h=300, output=2, requests=1),
    ),
    "the split alone is enough": (
        {
            "input_tokens": 1,
            "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 8},
            "output_tokens": 2,
        },
        Usage(input=1, cache_write_5m=7, cache_write_1h=8, output=2, requests=1),
    ),
    "thinking is within the output": (
        {"input_tokens": 44, "output_tokens": 180, "output_tokens_details": {"thinking_tokens": 150}},
        Usage(input=44, output=180, reasoning=150, requests=1),
    ),
    "searches are counted, fetches have no price": (
        {
            "input_tokens": 4798,
            "output_tokens": 10,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 5},
        },
        Usage(input=4798, output=10, web_searches=2, requests=1),
    ),
    "a cache that was only filled": (
        {"input_tokens": 0, "cache_creation_input_tokens": 9000, "output_tokens": 0},
        Usage(cache_write_5m=9000, requests=1),
    ),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_conversion(case):
    report, expected = case
    assert leg(report) == expected
    assert reported(report).flags == frozenset()


def test_the_newest_word_wins_field_by_field():
    start = {"input_tokens": 2228, "cache_read_input_tokens": 11, "output_tokens": 1}
    assert leg(start, {"output_tokens": 5}, {"input_tokens": 32749, "output_tokens": 510}) == Usage(
        input=32749, cache_read=11, output=510, requests=1
    )


def test_zero_is_a_word_and_null_is_none():
    start = {"input_tokens": 100, "cache_read_input_tokens": 50, "output_tokens": 1}
    assert leg(start, {"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 3}) == Usage(
        cache_read=50, output=3, requests=1
    )


def test_writes_that_grew_after_the_split_are_billed_at_five_minutes():
    start = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
    }
    grown = leg(start, {"cache_creation_input_tokens": 1000, "output_tokens": 2})
    assert (grown.cache_write_5m, grown.cache_write_1h) == (700, 300)


def test_a_split_above_its_total_is_cut_down_and_flagged():
    report = {
        "input_tokens": 1,
        "output_tokens": 1,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 90, "ephemeral_1h_input_tokens": 60},
    }
    result = reported(report)
    assert (result.legs[0].cache_write_5m, result.legs[0].cache_write_1h) == (40, 60)
    assert result.flags == {"total_mismatch"}


def test_iterations_are_the_bill_also_beside_totals():
    steps = [
        {"type": "message", "input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 5},
        {"type": "message", "input_tokens": 200, "output_tokens": 20},
    ]
    result = reported(
        {
            "input_tokens": 300,
            "output_tokens": 30,
            "iterations": steps,
            "server_tool_use": {"web_search_requests": 1},
        }
    )
    assert result.legs == (
        Usage(input=100, cache_read=5, output=10, requests=1),
        Usage(input=200, output=20, web_searches=1),
    )
    assert result.flags == frozenset()


def test_iterations_that_contradict_the_totals_are_flagged():
    steps = [{"type": "message", "input_tokens": 100, "output_tokens": 10}]
    assert reported({"input_tokens": 999, "output_tokens": 10, "iterations": steps}).flags == {
        "total_mismatch"
    }


def test_a_step_by_another_model_is_flagged():
    steps = [{"type": "advisor_message", "model": "other", "input_tokens": 1, "output_tokens": 1}]
    assert reported({"input_tokens": 0, "output_tokens": 0, "iterations": steps}).flags == {
        "iteration:advisor_message"
    }


def test_iterations_that_are_none_leave_the_totals():
    report = {"input_tokens": 3, "output_tokens": 4, "iterations": ["x"]}
    assert reported(report).legs == (Usage(input=3, output=4, requests=1),)
    assert reported({**report, "iterations": []}).flags == frozenset()


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"service_tier": "priority"}, "tier:priority"),
        ({"service_tier": "batch"}, "tier:batch"),
        ({"speed": "fast"}, "speed:fast"),
        ({"inference_geo": "us"}, "region:us"),
        ({"new_tokens": 5}, "unknown_counter:new_tokens"),
        (
            {"cache_creation": {"ephemeral_1d_input_tokens": 5}},
            "unknown_counter:cache_creation.ephemeral_1d_input_tokens",
        ),
        (
            {"server_tool_use": {"code_execution_requests": 1}},
            "unknown_counter:server_tool_use.code_execution_requests",
        ),
        ({"cache_read_input_tokens": -1}, "odd_counter:cache_read_input_tokens"),
        ({"cache_read_input_tokens": "12"}, "odd_counter:cache_read_input_tokens"),
        ({"cache_read_input_tokens": 2**60}, "odd_counter:cache_read_input_tokens"),
    ],
)
def test_what_has_no_price_here_is_flagged(more, flag):
    assert reported({"input_tokens": 1, "output_tokens": 1, **more}).flags == {flag}


@pytest.mark.parametrize(
    "more",
    [
        {"service_tier": "standard"},
        {"speed": "standard"},
        {"inference_geo": "global"},
        {"inference_geo": "not_available"},
        {"new_tokens": 0},
        {"cost": 0.1},
        {"fallback_credit": {"status": {"type": "not_applied"}}},
    ],
)
def test_what_is_usual_is_not_flagged(more):
    assert reported({"input_tokens": 1, "output_tokens": 1, **more}).flags == frozenset()


@pytest.mark.parametrize("report", [None, 5, "x", [], {}, {"service_tier": "standard"}, {"output_tokens": 3}])
def test_what_does_not_say_what_was_read_is_no_report(report):
    assert reported(report) is None


def test_a_report_without_output_is_never_the_last_word():
    assert not reported({"input_tokens": 5}).final


@settings(max_examples=150)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                [
                    "input_tokens",
                    "output_tokens",
                    "cache_read_input_tokens",
                    "cache_creation_input_tokens",
                    "cache_creation",
                    "iterations",
                    "server_tool_use",
                    "service_tier",
                    "x",
                ]
            ),
            st.one_of(
                st.none(),
                st.integers(-5, 2**70),
                st.text(max_size=5),
                st.lists(
                    st.dictionaries(st.sampled_from(["input_tokens", "type"]), st.integers()), max_size=2
                ),
                st.dictionaries(st.sampled_from(["ephemeral_5m_input_tokens", "y"]), st.integers(-1, 100)),
            ),
        ),
        max_size=4,
    )
)
def test_no_report_whatever_it_says_keeps_a_bill_from_being_written(reports):
    result = reported(*reports)
    for one in result.legs if result else ():
        assert all(getattr(one, name) >= 0 for name in PRICED_BUCKETS)
    for flag in result.flags if result else ():
        assert flag.isascii()
        assert flag.isprintable()


def test_input_told_at_the_start_counts_only_where_nothing_later_tells_it():
    start = {"input_tokens": 2228, "cache_read_input_tokens": 7, "output_tokens": 1}
    assert leg(start, {"output_tokens": 9}) == Usage(input=2228, cache_read=7, output=9, requests=1)
    assert leg(start, {"input_tokens": None, "output_tokens": 9}).input == 2228
    assert leg(start, {"input_tokens": 32749, "output_tokens": 9}).input == 32749
    assert leg(start, {"input_tokens": 5, "output_tokens": 9}).input == 5
    assert leg(start, {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 9}) == Usage(
        output=9, requests=1
    )


counts = st.integers(0, 10**9)


@given(counts, counts, counts, counts, st.integers(0, 50))
def test_what_is_written_reads_the_same(read, cached, written, output, searches):
    usage = Usage(
        input=read,
        cache_read=cached,
        cache_write_5m=written,
        output=output,
        reasoning=output // 3,
        web_searches=searches,
        requests=1,
    )
    again = reported(write_usage(usage))
    assert again.legs == (usage,)
    assert again.final
    assert not again.flags


def test_of_writes_for_an_hour_only_the_sum_is_told_as_in_every_last_report():
    assert write_usage(Usage(cache_write_5m=3, cache_write_1h=4))["cache_creation_input_tokens"] == 7
