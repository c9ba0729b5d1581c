import pytest

from proxy.dialects.counters import Counters, RunningTotal, flag


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (5, 5), (5.0, 5), (None, None)])
def test_a_count_is_a_whole_number_and_null_is_none(value, expected):
    counters = Counters({"n": value})
    assert counters.count("n") == expected
    assert counters.flags == set()


@pytest.mark.parametrize("value", [-1, 1.5, True, "5", [], {}, 2**40, float("nan"), float("inf")])
def test_what_cannot_be_a_count_is_left_out_and_flagged(value):
    counters = Counters({"n": value})
    assert counters.count("n") is None
    assert counters.flags == {"odd_counter:n"}


def test_a_flag_holds_no_foreign_text_but_a_word():
    assert flag("tier", "a b\n\x1b[31m" + "c" * 100) == "tier:a_b_31m" + "c" * 41
    assert flag("total_mismatch") == "total_mismatch"


def test_inner_counters_share_their_flags():
    counters = Counters({"inner": {"n": -1}, "text": "x"})
    assert counters.inner("inner").count("n") is None
    assert counters.inner("text").raw == {}
    assert counters.flags == {"odd_counter:n"}


def test_an_unhashable_mode_is_flagged():
    counters = Counters({"tier": {"a": 1}})
    counters.mode("tier", "tier", ("standard",))
    assert len(counters.flags) == 1


def test_the_newest_word_on_each_field_wins_and_zero_is_one():
    total = RunningTotal()
    for report in ({"a": 5, "b": 6}, {"a": 0, "b": None}, None, "nonsense", {"c": 1}):
        total.take(report)
    counters = Counters(total.fields)
    assert [counters.count(name) for name in "abcd"] == [0, 6, 1, None]
