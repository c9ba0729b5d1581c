import pytest

from bench import scenarios
from bench.processes import shrunk
from bench.scenarios import SCENARIOS


def test_a_scenario_shrinks_to_the_descriptors_that_can_be_had_and_says_so(monkeypatch):
    monkeypatch.setattr(scenarios, "descriptors", lambda _wanted: 4096)
    _, plan, said = SCENARIOS["idle"].cases[0].fitted(5.0)
    assert plan.connections == (4096 - scenarios.SPARE) // scenarios.EACH
    assert said == (
        "10,000 open streams: shrunk to 1,792 connections instead of 10,000, "
        "because no more than 4,096 descriptors may be open"
    )


def test_few_descriptors_are_shared_between_connections_and_the_rest(monkeypatch):
    monkeypatch.setattr(scenarios, "descriptors", lambda _wanted: 256)
    _, plan, _ = SCENARIOS["idle"].cases[0].fitted(5.0)
    assert plan.connections == (256 - 64) // scenarios.EACH


def test_a_scenario_that_fits_says_nothing(monkeypatch):
    monkeypatch.setattr(scenarios, "descriptors", lambda wanted: wanted)
    _, plan, said = SCENARIOS["idle"].cases[0].fitted(5.0)
    assert (plan.connections, said) == (10_000, "")


def test_one_connection_is_always_left():
    assert shrunk(100, 10, 2, 512) == 1


@pytest.mark.parametrize("name", [*SCENARIOS])
@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_no_case_runs_on_for_long(name, seconds):
    for case in SCENARIOS[name].cases:
        plan = case.plan(seconds)
        assert plan.whole_seconds <= seconds + 80
        assert plan.seconds <= max(seconds, 30.0)


@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_paced_streams_last_as_long_as_the_window_and_can_be_read_to_their_end(seconds):
    for case in SCENARIOS["paced"].cases:
        shape, plan, _ = case.fitted(seconds)
        assert plan.expect == shape.events
        assert shape.seconds > plan.ramp + plan.warm + plan.seconds
        assert shape.seconds + plan.ramp < plan.whole_seconds
