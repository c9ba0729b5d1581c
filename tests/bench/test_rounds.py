from contextlib import contextmanager

import pytest
from attrs import evolve

from bench.processes import Cores
from bench.programs import PYTHON
from bench.rounds import FULL, HARNESS, OFFERED, UNHINDERED, Series, bounded, median, rotated, summed
from bench.scenarios import SCENARIOS
from bench.targets import NotHereError, Target
from tests.bench.reports import figures, percentiles


def test_the_order_rotates_so_that_nobody_is_always_last():
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert rotated([], 3) == []


def test_medians_reach_into_nested_figures_and_keep_the_first_text():
    rounds = [
        {"a": 1, "b": {"p50": 5.0}, "c": None, "d": "", "e": None},
        {"a": 9, "b": {"p50": 1.0}, "c": 3, "d": "trouble", "e": None},
        {"a": 2, "b": {"p50": 2.0}, "c": 4, "d": "more", "e": None},
    ]
    assert median(rounds) == {"a": 2, "b": {"p50": 2.0}, "c": None, "d": "trouble", "e": None}
    assert median([]) == {}


def test_ratios_are_taken_round_by_round():
    rows = summed(
        {
            "direct": [figures(), figures()],
            "nginx": [figures(cpu=10.0), figures(cpu=30.0)],
            "farebox": [figures(cpu=100.0), figures(cpu=360.0)],
        }
    )
    assert rows["farebox"]["ratio_to_nginx"]["cpu_us_per_answer"] == 11.0, "of medians it would be 11.5"
    assert rows["nginx"]["ratio_to_nginx"]["cpu_us_per_answer"] == 1.0
    assert rows["direct"]["ratio_to_nginx"] == {"answers_per_second": 1.0}
    assert rows["farebox"]["rounds"][1]["cpu_us_per_answer"] == 360.0


def test_without_nginx_there_are_no_ratios():
    rows = summed({"farebox": [figures(cpu=10.0)]})
    assert rows["farebox"]["ratio_to_nginx"] == {}


def test_what_was_added_is_measured_and_not_a_difference_that_could_be_below_zero():
    slow, quick = percentiles(1.0, 9.0), percentiles(0.5, 2.0)
    rows = summed({"direct": [figures(added=slow)], "farebox": [figures(added=quick)]})
    assert rows["farebox"]["added_first_ms"] == quick
    assert rows["direct"]["added_first_ms"] == slow, "how much of it is provider and client"


def test_of_what_went_wrong_the_worst_round_counts():
    rounds = [
        figures(hangups=10, hangups_seen=10, held=5),
        figures(failed=1, cut=2, hangups=12, hangups_seen=9, held=4),
        figures(late=3, short=4, hangups=10, hangups_seen=10, held=5),
    ]
    row = summed({"farebox": rounds})["farebox"]
    assert [row[name] for name in ("failed", "short", "cut", "late")] == [1, 4, 2, 3]
    assert (row["hangups"], row["hangups_seen"], row["held"]) == (12, 9, 4)


def test_the_harness_was_the_limit_in_most_rounds():
    full, well = figures(harness_share=1.0, gateway_share=0.4), figures()
    assert summed({"nginx": [full, full, well]})["nginx"]["limit"] == HARNESS
    assert not summed({"nginx": [full, well, well]})["nginx"]["limit"]
    assert not summed({"direct": [full]})["direct"]["limit"], "it is its own ceiling"


@pytest.mark.parametrize(
    ("rate", "more", "said"),
    [
        (95.0, {"offered": 100.0}, OFFERED),
        (85.0, {"offered": 100.0}, ""),
        (950.0, {}, UNHINDERED),
        (800.0, {}, ""),
        (800.0, {"harness_share": 0.95}, FULL),
    ],
)
def test_a_rate_that_something_else_held_back_is_marked_with_what_it_was(rate, more, said):
    share, offered = more.pop("harness_share", 0.3), more.pop("offered", None)
    own = figures(rate=rate, events=100, harness_share=share)
    direct = figures(rate=1000.0, events=100)
    assert bounded(own, direct, rates=True, offered=offered) == said
    assert not bounded(own, direct, rates=False, offered=offered), "on a timetable all have the same rate"


class Measured:
    """A harness that measures nothing and remembers what it was asked."""

    programs, cores, provider = PYTHON, Cores(None, None), None

    def __init__(self):
        self.asked = []

    def measure(self, target, shape, plan, load="small"):
        self.asked.append((target.name, shape, plan, load))
        return figures(rate=50.0, cpu=1.0)


class Quietly:
    def step(self, text):
        self.last = text


def series(harness, names, target=None, **more):
    @contextmanager
    def up(name):
        started.append(name)
        if name == "gone":
            raise NotHereError("it is not installed")
        yield evolve(target or Target(name, "127.0.0.1", 1, on="everything"), name=name)

    started = []
    starts = {name: (lambda name=name: up(name)) for name in names}
    return Series(harness, starts, seconds=1.0, rounds=2, **more), started


def test_every_target_is_measured_in_every_round_and_started_once():
    harness = Measured()
    with series(harness, ["direct", "farebox"])[0] as run:
        found = run.run(SCENARIOS["requests"].cases[0], Quietly())
    measured = [name for name, _, plan, _ in harness.asked if plan.seconds == 1.0]
    assert measured == ["direct", "farebox", "farebox", "direct"]
    assert set(found["rows"]) == {"direct", "farebox"}
    assert run.on == {
        "direct": "everything",
        "farebox": "everything; its process was not named, so that its CPU time, its memory and its core are not known",
    }


def test_a_target_that_does_not_come_up_is_left_out_and_that_is_said():
    run, started = series(Measured(), ["direct", "gone"])
    with run:
        found = run.run(SCENARIOS["requests"].cases[0], Quietly())
    assert set(found["rows"]) == {"direct"}
    assert started.count("gone") == 1
    assert run.said == ["gone was left out: it is not installed"]


def test_where_memory_is_measured_targets_are_fresh_in_each_round():
    run, started = series(Measured(), ["direct", "farebox"])
    with run:
        run.run(SCENARIOS["idle"].cases[0], Quietly())
    assert started == ["farebox", "farebox"]


def test_the_pace_is_a_share_of_what_farebox_can_do_and_nginx_is_asked_at_the_same():
    harness = Measured()
    with series(harness, ["direct", "nginx", "farebox", "other"])[0] as run:
        run.run(SCENARIOS["first"].cases[0], Quietly())
    rates = {name: plan.rate for name, _, plan, _ in harness.asked if plan.mode == "open"}
    assert rates == dict.fromkeys(("direct", "nginx", "farebox", "other"), pytest.approx(15.0))
    capacity = [
        name for name, shape, plan, _ in harness.asked if plan.mode == "loop" and plan.connections == 64
    ]
    assert capacity == ["farebox", "other"]


def test_fewer_connections_are_said():
    harness = Measured()
    with series(harness, ["direct"], connections_max=3)[0] as run:
        found = run.run(SCENARIOS["paced"].cases[1], Quietly())
    assert found["connections"] == 3
    assert run.said == ["1,000 streams × 20/s: 3 connections instead of 1,000, as asked"]


def test_of_a_provider_that_is_not_ours_no_number_of_events_is_expected():
    harness = Measured()
    with series(harness, ["mine"], Target("", "127.0.0.1", 1, ours=False))[0] as run:
        run.run(SCENARIOS["paced"].cases[0], Quietly())
    assert {plan.expect for _, _, plan, _ in harness.asked} == {0}
    with series(harness, ["direct"])[0] as run:
        run.run(SCENARIOS["paced"].cases[0], Quietly())
    assert {plan.expect for name, _, plan, _ in harness.asked if name == "direct"} == {0, 350}


def test_what_another_provider_cannot_tell_is_not_measured_and_that_is_said_once():
    run, _ = series(Measured(), ["mine"], Target("", "127.0.0.1", 1, ours=False))
    with run:
        assert run.run(SCENARIOS["hangup"].cases[0], Quietly())["rows"] == {}
    assert run.said == [
        "20 clients that leave, mine: not measured, because the provider behind it is not ours"
    ]


def test_the_memory_of_a_gateway_that_runs_already_is_measured_once():
    run, _ = series(Measured(), ["mine"], Target("", "127.0.0.1", 1, found=True))
    with run:
        fresh = run.run(SCENARIOS["idle"].cases[0], Quietly())
        usual = run.run(SCENARIOS["hangup"].cases[0], Quietly())
    assert (fresh["rounds"], len(fresh["rows"]["mine"]["rounds"])) == (2, 1)
    assert len(usual["rows"]["mine"]["rounds"]) == 2
