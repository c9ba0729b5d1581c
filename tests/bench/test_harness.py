import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import Plan, percentiles, was_the_limit
from tests.bench.reports import figures


def test_percentiles_are_values_that_were_measured():
    found = percentiles([float(value) for value in range(1, 101)])
    assert (found["p50"], found["p95"], found["p99"], found["max"]) == (51.0, 96.0, 100.0, 100.0)
    assert found["count"] == 100
    assert found["mean"] == pytest.approx(50.5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_value_or_two_have_percentiles_too(count):
    values = [float(value) for value in range(count)]
    assert percentiles(values)["p99"] == values[-1]


def test_nothing_has_none():
    assert percentiles([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_are_in_order(values):
    found = percentiles(sorted(values))
    assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= found["p999"] <= found["max"]


def test_the_harness_was_the_limit_where_it_had_no_time_left_and_the_gateway_had():
    assert was_the_limit(figures(harness_share=0.97, gateway_share=0.5))
    assert not was_the_limit(figures(harness_share=0.97, gateway_share=0.98))
    assert not was_the_limit(figures(harness_share=0.5, gateway_share=0.5))


def test_a_plan_knows_how_long_it_takes_at_most():
    assert Plan("loop", 1, 5.0, ramp=1.0, warm=1.0, drain=3.0).whole_seconds == 10.0
