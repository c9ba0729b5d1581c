import json

import pytest

from bench import __main__ as cli
from bench import plot, report
from bench.__main__ import NOT_YET, OTHERS, main
from bench.scenarios import SCENARIOS
from tests.bench.reports import case, figures
from tests.bench.reports import report as a_report


def parsed(*words):
    return cli.parser().parse_args(words)


def test_every_scenario_is_listed(capsys):
    assert main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*SCENARIOS, *OTHERS]


def test_translation_is_not_there_yet_and_says_so(capsys):
    assert main(["run", "translation"]) == NOT_YET
    assert "does not translate yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("run",),
        ("run", "nonsense"),
        ("run", "paced", "--peer", "no-url"),
        ("run", "paced", "--peer", "=http://127.0.0.1:1"),
        ("run", "paced", "--peer", "nginx=http://127.0.0.1:1"),
        ("run", "paced", "--start", "nobody"),
        ("run", "paced", "--rounds", "0"),
        ("run", "paced", "--seconds", "-1"),
        ("run", "paced", "--programs", "rust"),
    ],
)
def test_what_is_not_understood_is_refused(words, capsys):
    with pytest.raises(SystemExit) as refused:
        parsed(*words)
    assert refused.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_arguments_are_read():
    asked = parsed(
        "run", "paced", "big", "--seconds", "2", "--peer", "a=http://h:1/v1", "--peer-key", "a=k=1",
        "--start", "litellm==1.2.3", "--targets", "direct,a",
    )  # fmt: skip
    assert asked.scenarios == ["paced", "big"]
    assert (asked.seconds, asked.rounds) == (2.0, 5)
    assert asked.peer == [("a", "http://h:1/v1")]
    assert asked.peer_key == [("a", "k=1")]
    assert asked.start == ["litellm==1.2.3"]
    assert asked.targets == {"direct", "a"}


def test_a_target_that_is_not_there_is_refused(capsys):
    assert main(["run", "paced", "--targets", "nobody", "--programs", "python"]) == 1
    assert "no such target: nobody" in capsys.readouterr().err


def test_a_soak_of_a_gateway_without_its_process_is_refused(capsys):
    assert main(["run", "soak", "--url", "http://127.0.0.1:1"]) == 1
    assert "--pid" in capsys.readouterr().err


def test_reports_are_judged_again_and_drawn(tmp_path, capsys):
    path = tmp_path / "compare-1.json"
    rows = {
        "nginx": figures(cpu=12.0),
        "farebox": figures(cpu=500.0, ratio_to_nginx={"cpu_us_per_answer": 41.0}),
    }
    path.write_text(json.dumps(a_report() | {"cases": {"requests_64": case(rows)}, "start": None}))
    assert main(["compare", "--of", str(path)]) == 0
    assert "| **no** |" in capsys.readouterr().out
    assert main(["compare", "--of", str(path), "--strict"]) == 1
    capsys.readouterr()
    assert main(["plot", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "compare-1-cpu.svg"),
        str(tmp_path / "compare-1-rates.svg"),
    ]


def test_without_a_report_there_is_nothing_to_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "newest", lambda _name: None)
    assert main(["plot"]) == 1
    assert "run a scenario first" in capsys.readouterr().err


@pytest.fixture
def results(tmp_path, monkeypatch):
    usual = report.save
    monkeypatch.setattr(report, "save", lambda name, found: usual(name, found, tmp_path))
    return tmp_path


def test_a_tiny_run_measures_direct_and_farebox_and_says_what_was_shrunk(results, capsys):
    words = ["--seconds", "0.5", "--rounds", "1", "--connections-max", "4", "--targets", "direct,farebox"]
    assert main(["hangup", *words]) == 0
    text = capsys.readouterr().out
    assert "| direct |" in text
    assert "| farebox |" in text
    assert "4 connections instead of 20, as asked" in text
    assert "journal with fdatasync" in text
    (path,) = results.glob("hangup-*.json")
    found = json.loads(path.read_text())
    for row in found["cases"][0]["rows"].values():
        assert row["hangups"] > 0
        assert row["failed"] == 0, row["trouble"]
    assert found["cases"][0]["rows"]["farebox"]["gateway_share"] > 0
    assert plot.plots(found)["hangup"].startswith("<svg")


def test_a_gateway_that_runs_already_is_driven(results, demo, capsys):
    words = [
        "--url",
        demo.base_url,
        "--key",
        demo.key,
        "--model",
        "sandbox-chat",
        "--pid",
        str(demo.process.pid),
    ]
    assert main(["burst", *words, "--seconds", "0.3", "--rounds", "1", "--connections-max", "2"]) == 0
    (path,) = results.glob("burst-*.json")
    rows = json.loads(path.read_text())["cases"][0]["rows"]
    assert set(rows) == {"url"}
    assert rows["url"]["answers"] > 0
    assert rows["url"]["failed"] == 0, rows["url"]["trouble"]
    assert rows["url"]["gateway_share"] >= 0, "two answers may take less CPU time than the kernel counts in"
