import json

import pytest

from bench import compare
from bench.rounds import summed
from tests.bench.reports import case, figures, percentiles, report

WELL = percentiles(0.0, 0.1)


def cases(**farebox):
    """A report in which all is met, save what a test changes."""
    own = {
        "saturated": figures(cpu=15.0, events=1000),
        "paced_200": figures(cpu=30.0, events=1000),
        "requests_64": figures(cpu=140.0, rate=7000.0),
        "first": figures(first=percentiles(50.4, 52.0), events=5),
        "paced_1000": figures(events=1000, stretch=percentiles(0.0, 4.0)),
        "idle": figures(kb_per_stream=18.0),
        "hangup": figures(hangup_ms=percentiles(0.5, 3.0)),
        **farebox,
    }
    nginx = {
        "saturated": figures(cpu=8.0, events=1000),
        "paced_200": figures(cpu=12.0, events=1000),
        "requests_64": figures(cpu=12.0),
        "first": figures(first=percentiles(50.1, 50.5), events=5),
        "paced_1000": figures(events=1000, stretch=percentiles(0.0, 1.0)),
        "idle": figures(kb_per_stream=13.0),
        "hangup": figures(hangup_ms=percentiles(0.1, 0.3)),
    }
    direct = figures(first=percentiles(50.0, 50.2), events=5, stretch=WELL)
    return {
        name: case(summed({"direct": [direct], "nginx": [nginx[name]], "farebox": [own[name]]}), name)
        for name in own
    }


def judged(start=0.8, litellm=None, **farebox):
    found = cases(**farebox)
    if litellm is not None:
        for name, row in litellm.items():
            found[name]["rows"] |= summed({"litellm": [row]})
    start = {"warm_seconds": start, "cold_seconds": 1.4}
    return {**report(), "cases": found, "start": start}


def met(figures_):
    return {line.work.split(",")[0]: line.met for line in compare.lines(figures_)}


def test_all_that_was_measured_is_met():
    lines = compare.lines(judged())
    assert [line.met for line in lines] == [True] * 8 + [None] * 2
    assert compare.met(judged())


@pytest.mark.parametrize(
    ("work", "changed"),
    [
        ("streaming saturated", {"saturated": figures(cpu=17.0, events=1000)}),
        ("streaming 200 × 100/s", {"paced_200": figures(cpu=37.0, events=1000)}),
        ("plain request", {"requests_64": figures(cpu=151.0)}),
        ("plain request", {"requests_64": figures(cpu=100.0, failed=3)}),
        ("added time to first byte", {"first": figures(first=percentiles(50.6, 51.0), events=5)}),
        ("added time to first byte", {"first": figures(first=percentiles(50.1, 53.3), events=5)}),
        ("1", {"paced_1000": figures(events=1000, stretch=percentiles(0.0, 10.3))}),
        ("1", {"paced_1000": figures(events=1000, stretch=WELL, cut=1)}),
        ("memory per open stream", {"idle": figures(kb_per_stream=20.1)}),
        (
            "client hangs up → provider's connection closed",
            {"hangup": figures(hangup_ms=percentiles(1.0, 11.0))},
        ),
        ("start to first answer", {"start": 1.1}),
    ],
)
def test_each_target_can_be_missed(work, changed):
    missed = judged(**changed)
    assert [name for name, is_met in met(missed).items() if is_met is False] == [work]
    assert not compare.met(missed)


def test_the_request_target_moves_with_the_machine():
    slow = judged(requests_64=figures(cpu=280.0))
    for name in ("nginx",):
        slow["cases"]["requests_64"]["rows"][name]["cpu_us_per_answer"] = 24.0
    slow["cases"]["requests_64"]["rows"]["farebox"]["ratio_to_nginx"]["cpu_us_per_answer"] = 280 / 24
    assert met(slow)["plain request"] is True


def test_what_was_not_measured_is_neither_met_nor_missed():
    empty = {**report(), "cases": {}, "start": None}
    assert {line.met for line in compare.lines(empty)} == {None}
    assert compare.as_table(empty).count("not measured") == 10


def test_litellm_is_compared_where_it_was_there():
    litellm = {"requests_64": figures(rate=100.0), "saturated": figures(rate=40.0, events=100)}
    found = compare.lines(judged(litellm=litellm))[-2:]
    assert [(line.ratio, line.met) for line in found] == [(70.0, True), (25.0, True)]


def test_a_litellm_that_drowns_is_beaten():
    drowned = {"requests_64": figures(rate=0.0), "saturated": figures(rate=0.0, events=0)}
    found = compare.lines(judged(litellm=drowned))[-2:]
    assert [(line.nginx, line.ratio, line.met) for line in found] == [("LiteLLM: 0", None, True)] * 2


def test_peers_are_shown_beside_us_and_nothing_is_shown_without_any():
    heads = "| answers/s | CPU µs/answer | events/s |"
    assert heads not in compare.as_table(judged())
    peer = {"requests_64": figures(rate=470.0, cpu=2000.0), "saturated": figures(cpu=25.0, events=100)}
    text = compare.as_table(judged(litellm=peer))
    assert heads in text
    assert "| litellm | 470 | 2,000.0 | 100 | 25.0 | – | – | – |" in text
    assert "| farebox | 7,000 | 140.0 |" in text


def test_the_table_says_date_machine_and_what_was_on():
    text = compare.as_table(judged())
    assert "2026-11-21" in text
    assert "medians of 3 alternating rounds" in text
    assert "- farebox: everything" in text
    assert "| start to first answer | 1.0 s | – | 0.80 s, 1.40 s from a cold disk | – | yes |" in text


def test_a_table_survives_json():
    assert compare.as_table(json.loads(json.dumps(judged()))) == compare.as_table(judged())


def test_everything_that_the_table_needs_is_run():
    assert set(cases()) == set(compare.CASES)
