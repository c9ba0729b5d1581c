import json

import pytest

from bench import compare
from bench.rounds import summed
from tests.bench.reports import case, figures, percentiles, report

WELL = percentiles(0.0, 0.1)


def cases(name="farebox", **farebox):
    """A report in which all is met, save what a test changes."""
    own = {
        "saturated": figures(cpu=15.0, events=1000),
        "paced_200": figures(cpu=30.0, events=1000),
        "requests_64": figures(cpu=140.0, rate=7000.0),
        "first": figures(added=percentiles(0.4, 2.0), events=5),
        "paced_1000": figures(events=1000, stretch=percentiles(0.0, 4.0)),
        "idle": figures(kb_per_stream=18.0, held=10_000),
        "hangup": figures(hangup_ms=percentiles(0.5, 3.0)),
        **farebox,
    }
    nginx = {
        "saturated": figures(cpu=8.0, events=1000),
        "paced_200": figures(cpu=12.0, events=1000),
        "requests_64": figures(cpu=12.0),
        "first": figures(added=percentiles(0.1, 0.5), events=5),
        "paced_1000": figures(events=1000, stretch=percentiles(0.0, 1.0)),
        "idle": figures(kb_per_stream=13.0, held=10_000),
        "hangup": figures(hangup_ms=percentiles(0.1, 0.3)),
    }
    direct = figures(added=WELL, events=5, stretch=WELL)
    return {
        key: case(
            summed({"direct": [direct], "nginx": [nginx[key]], name: [own[key]]}),
            key,
            connections=compare.CASES[key].plan(1.0).connections,
            saturates=compare.CASES[key].saturates,
        )
        for key in own
    }


def judged(start=0.8, litellm=None, cold=0.9, **farebox):
    found = cases(**farebox)
    if litellm is not None:
        for name, row in litellm.items():
            found[name]["rows"] |= summed({"litellm": [row]})
    start = {"warm_seconds": start, "cold_seconds": cold}
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
        ("added time to first byte", {"first": figures(added=percentiles(0.6, 1.0), events=5)}),
        ("added time to first byte", {"first": figures(added=percentiles(0.1, 3.1), events=5)}),
        ("added time to first byte", {"first": figures(added=WELL, events=5, late=1)}),
        ("added time to first byte", {"first": figures(added=WELL, events=5, failed=1)}),
        ("1", {"paced_1000": figures(events=1000, stretch=percentiles(0.0, 10.3))}),
        ("1", {"paced_1000": figures(events=1000, stretch=WELL, cut=1)}),
        ("memory per open stream", {"idle": figures(kb_per_stream=20.1, held=10_000)}),
        ("memory per open stream", {"idle": figures(kb_per_stream=10.0, held=10_000, failed=1)}),
        ("memory per open stream", {"idle": figures(kb_per_stream=10.0, held=9_000)}),
        (
            "client hangs up → provider's connection closed",
            {"hangup": figures(hangup_ms=WELL, hangups=100, hangups_seen=99)},
        ),
        ("client hangs up → provider's connection closed", {"hangup": figures(hangup_ms=WELL, short=1)}),
        ("plain request", {"requests_64": figures(cpu=100.0, asked=100, provider_requests=20)}),
        (
            "client hangs up → provider's connection closed",
            {"hangup": figures(hangup_ms=percentiles(1.0, 11.0))},
        ),
        ("start to first answer", {"start": 1.1}),
        ("start to first answer", {"cold": 1.1}),
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
    assert not compare.met(empty), "it should have been"


def test_a_case_with_few_connections_is_not_the_one_of_the_target():
    few = judged()
    for key in ("idle", "first"):
        few["cases"][key]["connections"] = 96
    lines = {line.work.split(",")[0]: line for line in compare.lines(few)}
    assert lines["memory per open stream"].verdict == "not measured: only 96 of 10,000 streams"
    assert lines["added time to first byte"].met, "there they are only what may be used"
    assert not compare.met(few)
    few["cases"]["first"]["rows"]["farebox"]["late"] = 9
    first = next(line for line in compare.lines(few) if line.work.startswith("added time"))
    assert first.verdict == "not measured: only 96 of 4,000 streams", (
        "too few, so it is not the gateway's fault"
    )
    few["cases"]["first"]["rows"]["farebox"]["late"] = 0
    few["cases"]["idle"]["connections"] = 9_744
    few["cases"]["idle"]["rows"]["farebox"]["held"] = 9_744
    assert compare.met(few), "nearly all"


def test_a_floor_that_fails_is_no_floor():
    found = judged()
    found["cases"]["saturated"]["rows"]["nginx"] |= {"failed": 2, "trouble": "closed"}
    assert compare.lines(found)[0].verdict == "not measured: nginx: 2 answers failed: closed"


def test_a_figure_that_cannot_be_is_not_met():
    found = judged(first=figures(added=percentiles(-0.1, 0.1), events=5))
    assert met(found)["added time to first byte"] is None
    assert not compare.met(found)


def test_a_hang_up_that_was_never_seen_has_no_percentile_and_is_not_met():
    line = compare.lines(judged(hangup=figures(hangup_ms={"p99": None}, hangups=9, hangups_seen=3)))[6]
    assert (line.ours, line.verdict) == ("–", "**no**: 6 hang-ups were never seen")


def test_rounds_that_are_missing_are_missed():
    found = judged()
    found["cases"]["saturated"]["rounds"] = 5
    assert compare.lines(found)[0].verdict == "**no**: only 1 of 5 rounds"


def test_another_gateway_is_judged_in_the_place_of_farebox():
    found = {**report(on={"url": "as it was found"}), "cases": cases("url"), "start": None}
    lines = compare.lines(found)
    assert [line.met for line in lines] == [True] * 7 + [None] * 3
    assert lines[7].verdict == "not measured: it runs already"
    assert compare.met(found)
    assert "| nginx | the gateway at --url | ratio |" in compare.as_table(found)


def test_litellm_is_compared_where_it_was_there():
    litellm = {"requests_64": figures(rate=100.0), "saturated": figures(rate=40.0, events=100)}
    found = compare.lines(judged(litellm=litellm))[-2:]
    assert [(line.ratio, line.met) for line in found] == [(70.0, True), (25.0, True)]


def test_what_provider_and_clients_add_is_said_beside_what_a_gateway_does():
    said = "Added without any gateway, by provider and clients: first byte, p50 / p99 0.00 / 0.10 ms; gap, p99 0.10 ms"
    assert said in compare.as_table(judged())


def test_a_figure_that_was_held_back_says_so():
    held = judged(saturated=figures(cpu=10.0, events=1000, harness_share=1.0, gateway_share=0.5))
    assert compare.lines(held)[0].ours == "10.0 µs*"
    assert "\\* saturated, farebox: provider and clients were the limit" in compare.as_table(held)


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
    found = judged(cold=1.4)
    found["start"]["rounds"] = [{}, {}]
    found["cases"]["idle"]["rounds"] = 1
    text = compare.as_table(found)
    assert "2026-11-21" in text
    assert "medians of 3 alternating rounds (memory 1, start 2)" in text
    assert "- farebox: everything" in text
    start = "| start to first answer | 1.0 s | – | 0.80 s, 1.40 s from a cold disk | – | **no**: warm yes, cold no |"
    assert start in text


def test_a_table_survives_json():
    assert compare.as_table(json.loads(json.dumps(judged()))) == compare.as_table(judged())


def test_everything_that_the_table_needs_is_run():
    assert set(cases()) == set(compare.CASES)
