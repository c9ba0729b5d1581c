import json

import pytest

from bench import report as bench_report
from bench.rounds import summed
from tests.bench.reports import case, figures, report


def table_of(*rows_and_names, **more):
    rows = summed(dict(rows_and_names))
    return bench_report.as_tables(report(case(rows, **more)))


def test_a_table_has_a_row_for_each_target_and_only_columns_with_figures():
    text = table_of(
        ("direct", [figures(rate=90_000.0)]), ("nginx", [figures(cpu=12.0)]), ("farebox", [figures(cpu=96.0)])
    )
    head, line, *rows = [row for row in text.splitlines() if row.startswith("|")]
    assert head == "| 64 at once | answers/s | CPU µs/answer | × nginx | core used |"
    assert line == "|---|---|---|---|---|"
    assert rows == [
        "| direct | 90,000 | – | – | 0.95 |",
        "| nginx | 100 | 12 | 1.0 | 0.95 |",
        "| farebox | 100 | 96 | 8.0 | 0.95 |",
    ]


def test_streams_are_shown_by_event_and_answers_by_answer():
    stream = figures(cpu=10.0, events=1000, cpu_us_per_answer=300.0)
    assert "CPU µs/answer" not in table_of(("nginx", [stream]))
    assert "CPU µs/event" in table_of(("nginx", [stream]))
    assert "CPU µs/event" not in table_of(("nginx", [figures(cpu=10.0)]))


def test_percentiles_stay_together_where_one_of_them_is_zero():
    stretch = {"p50": 0.0, "p95": 1.0, "p99": 2.0}
    text = table_of(
        ("direct", [figures(events=10, gap_stretch_ms=dict.fromkeys(stretch, 0.0))]),
        ("nginx", [figures(events=10, gap_stretch_ms=stretch)]),
    )
    assert "| added gap p50 ms | p95 | p99 |" in text


def test_what_was_on_and_what_was_not_is_said():
    text = bench_report.as_tables(report(case({}), said=["nginx was left out: it is not installed"]))
    assert "- farebox: everything" in text
    assert "- nginx was left out: it is not installed" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"harness_share": 1.0, "gateway_share": 0.5}, "provider and clients were the limit"),
        ({"failed": 7, "trouble": "answered: 500"}, "7 answers failed: answered: 500"),
        ({"short": 2}, "2 answers had another number of events"),
        ({"failed": 1}, "1 answers failed: without a word"),
        ({"note": "no stream was open"}, "no stream was open"),
        ({"cut": 3}, "3 answers were not whole in time"),
        ({"late": 4}, "4 requests found no connection free"),
        ({"hangups": 10, "hangups_seen": 9}, "1 of 10 hang-ups were not seen"),
        ({"steal": 0.2}, "20% of the machine"),
    ],
)
def test_what_spoils_a_figure_is_said(more, said):
    assert said in table_of(("farebox", [figures(**more)]))
    assert said not in table_of(("farebox", [figures()]))


def test_streams_that_are_cut_by_design_are_no_trouble():
    assert "not whole" not in table_of(("farebox", [figures(cut=400)]), saturates=True)


def test_names_carry_marks():
    text = table_of(("farebox", [figures(failed=1, harness_share=1.0, gateway_share=0.1)]))
    assert "| farebox*! |" in text


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [(None, 2, "–"), (-0.001, 2, "0.00"), (1234.5, 1, "1,234.5"), (-3.0, 1, "-3.0")],
)
def test_numbers_are_shown(number, digits, text):
    assert bench_report.shown(number, digits) == text


def test_a_report_is_saved_with_the_machine_and_found_again(tmp_path):
    path = bench_report.save("requests", {"cases": []}, "| a | b |", tmp_path / "results")
    assert path.with_suffix(".md").read_text() == "| a | b |\n"
    assert json.loads(path.read_text())["machine"]["cores"] >= 1
    assert bench_report.newest("requests", tmp_path / "results") == path
    assert bench_report.newest("paced", tmp_path / "results") is None


def test_whoever_gave_no_answer_at_all_is_told():
    silent = figures(answers=0, failed=9, trouble="connect: error 111")
    rows = {
        "direct": {"rounds": [figures()]},
        "url": {"trouble": "connect: error 111", "rounds": [silent, silent]},
        "held": {"rounds": [figures(answers=0, streams_begun=3)]},
        "late": {"rounds": [silent, figures()]},
    }
    told = ["64 at once, url: no answer at all: connect: error 111"]
    assert bench_report.unanswered(report(case(rows))) == told
    assert bench_report.unanswered({"cases": {"requests_64": case(rows)}}) == told


def test_a_report_can_stand_on_one_line():
    text = bench_report.as_json({"a": [1, 2]}, indent=None)
    assert len(text.splitlines()) == 1
    assert json.loads(text)["a"] == [1, 2]
