import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness import (
    Plan,
    ProviderAt,
    costs,
    doubts,
    percentiles,
    provider,
    said_by_provider,
    was_asked_otherwise,
    was_the_limit,
)
from bench.processes import Used
from bench.programs import COMPILERS, programs
from tests.bench.reports import figures

COMPILED = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C compiler")


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


def test_on_one_core_both_are_the_limit_as_soon_as_it_is_full():
    assert was_the_limit(figures(harness_share=0.5, gateway_share=0.5, one_core=True))
    assert not was_the_limit(figures(harness_share=0.3, gateway_share=0.3, one_core=True))


def test_a_hang_up_that_was_not_seen_is_infinitely_late():
    left, stats = [[number, 0] for number in range(1, 101)], {"lag_ms": None, "requests": 100}
    all_seen = said_by_provider({**stats, "closed": [[number, 10**6] for number in range(1, 101)]}, left)
    assert (all_seen["hangups"], all_seen["hangups_seen"], all_seen["hangup_ms"]["p99"]) == (100, 100, 1.0)
    two_missing = said_by_provider({**stats, "closed": [[number, 10**6] for number in range(1, 99)]}, left)
    assert two_missing["hangups_seen"] == 98
    assert (two_missing["hangup_ms"]["p95"], two_missing["hangup_ms"]["p99"]) == (1.0, None)
    none = said_by_provider({**stats, "closed": []}, left)
    assert (none["hangups_seen"], none["hangup_ms"]["p50"]) == (0, None)


def use(cpu=1.0, rss=0.0, at=0.0):
    return Used(cpu, int(rss * 1024), 9, at)


HOLD = Plan("hold", 10, 1.0)


def test_memory_is_shared_by_the_streams_that_are_open():
    found = costs(figures(held=8), HOLD, use(rss=100), use(rss=300), use(rss=300, at=1.0))
    assert found["kb_per_stream"] == 25.0


@pytest.mark.parametrize(
    ("held", "rss", "said"), [(8, 90, "it had some left from before"), (0, 300, "no stream was open")]
)
def test_memory_that_cannot_be_is_no_figure(held, rss, said):
    found = costs(figures(held=held), HOLD, use(rss=100), use(rss=rss), use(rss=rss, at=1.0))
    assert found["kb_per_stream"] is None
    assert said in doubts({**figures(held=held), **found})[0]


def test_cpu_time_that_went_with_a_process_is_no_figure():
    found = costs(figures(), Plan("loop", 1, 1.0), use(), use(cpu=9.0), use(cpu=1.0, at=1.0))
    assert found == {"gateway_share": None, "cpu_us_per_answer": None}
    assert "ended meanwhile" in doubts({**figures(), **found})[0]
    assert not was_the_limit({**figures(), **found})


@pytest.mark.parametrize(
    ("asked", "came", "cut", "otherwise"),
    [
        (100, 100, 0, False),
        (100, 95, 0, False),
        (100, 20, 0, True),
        (100, 20, 80, False),
        (100, 200, 0, True),
    ],
)
def test_a_provider_that_was_asked_another_number_of_times_is_told(asked, came, cut, otherwise):
    found = figures(asked=asked, provider_requests=came, cut=cut)
    assert was_asked_otherwise(found) is otherwise
    assert doubts(found) == (
        [f"the provider was asked {came} times for {asked} requests"] if otherwise else []
    )
    assert not was_asked_otherwise(figures(asked=asked)), "of another provider nothing is known"


@pytest.mark.parametrize("language", ["python", pytest.param("c", marks=COMPILED)])
def test_a_provider_that_runs_already_is_counted_and_put_on_our_core(language):
    core = max(os.sched_getaffinity(0))
    with provider(programs(language), None) as at:
        found = ProviderAt(at.port, None).adopted(core)
        assert (found.pid, found.said) == (at.pid, "")
        assert os.sched_getaffinity(at.pid) == {core}


def test_a_provider_whose_process_is_not_found_is_told(monkeypatch):
    monkeypatch.setattr(ProviderAt, "stats", lambda _at: {"pid": os.getpid()})
    assert "process was not found" in ProviderAt(1, None).adopted(None).said
    monkeypatch.setattr(ProviderAt, "stats", lambda _at: {})
    assert "process was not found" in ProviderAt(1, None).adopted(0).said


def test_a_plan_knows_how_long_it_takes_at_most():
    assert Plan("loop", 1, 5.0, ramp=1.0, warm=1.0, drain=3.0).whole_seconds == 10.0
