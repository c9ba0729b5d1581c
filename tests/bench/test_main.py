import json
from contextlib import contextmanager
from functools import partial

import pytest

from bench import __main__ as cli
from bench import plot, readme, report
from bench.__main__ import NOT_YET, OTHERS, main
from bench.scenarios import SCENARIOS
from tests.bench.reports import case, figures
from tests.bench.reports import report as a_report
from tests.bench.test_rounds import Measured, series


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


def test_a_soak_takes_one_target(capsys):
    assert main(["run", "soak", "--targets", "direct,farebox", "--programs", "python"]) == 1
    assert "one target, not direct, farebox" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["idle", "hangup"])
def test_what_needs_our_provider_is_refused_before_another(name, capsys):
    assert main(["run", name, "--url", "http://127.0.0.1:1", "--programs", "python"]) == 1
    assert "--provider-port" in capsys.readouterr().err


def test_a_comparison_is_put_into_readme_where_the_last_one_was(tmp_path, monkeypatch, capsys):
    path = tmp_path / "compare-1.json"
    path.write_text(json.dumps(a_report() | {"cases": {"requests_64": case({"nginx": figures(cpu=12.0)})}}))
    text = tmp_path / "README.md"
    text.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(cli.readme, "put", partial(readme.put, readme=text, plots=tmp_path / "plots"))
    for _ in range(2):
        assert main(["readme", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [str(text), str(tmp_path / "plots/cpu.svg")]
    found = text.read_text()
    assert found.startswith(f"before\n{readme.BEGIN}\n2026-11-21, one gateway core")
    assert found.endswith(f"](plots/rates.svg)\n{readme.END}\nafter\n")
    assert found.count("| work | at most |") == 1
    assert "old" not in found
    text.write_text("no place")
    with pytest.raises(ValueError, match="no place for the comparison"):
        main(["readme", str(path)])


def test_without_a_comparison_readme_stays(monkeypatch, capsys):
    monkeypatch.setattr(report, "newest", lambda _name: None)
    assert main(["readme"]) == 1
    assert "compare" in capsys.readouterr().err


class Counted:
    """A harness and a series that measure nothing, and a bar that counts."""

    def __init__(self, monkeypatch, names):
        self.total, self.steps, self.asked = None, 0, []
        monkeypatch.setattr(cli, "bar", self.bar)
        monkeypatch.setattr(cli, "_harness", self.harness)
        monkeypatch.setattr(cli, "_series", partial(self.series, names))
        monkeypatch.setattr(cli.start, "run", self.start)

    def step(self, _text):
        self.steps += 1

    @contextmanager
    def bar(self, total):
        self.total = total
        yield self

    @contextmanager
    def harness(self, _asked):
        harness = Measured()
        harness.provider = Silent()
        harness.measure = self.measure
        yield harness

    def measure(self, target, _shape, plan, _load="small"):
        self.asked.append((target.name, plan.mode))
        return figures(cpu=1.0, rate=50.0)

    @contextmanager
    def series(self, names, asked, harness):
        with series(harness, names)[0] as made:
            made.rounds = asked.rounds
            yield made

    def start(self, _port, _core, rounds, progress):
        for _ in range(2 * rounds):
            progress.step("start")
        return {"warm_seconds": 0.5, "cold_seconds": 1.0}


class Silent:
    port = 1

    def clear(self):
        pass


def test_a_comparison_asks_whom_it_needs_and_knows_how_long_it_is(results, monkeypatch, capsys):
    counted = Counted(monkeypatch, ["direct", "nginx", "farebox", "litellm"])
    assert main(["compare", "--rounds", "4"]) == 0
    assert counted.steps == counted.total == 6 * 4 * 4 + 3 * 2 + 3 * 2
    assert {name for name, mode in counted.asked if mode == "hold"} == {"nginx", "farebox"}
    assert {name for name, mode in counted.asked if mode == "leave"} == {
        "direct",
        "nginx",
        "farebox",
        "litellm",
    }
    assert "| litellm | 50 | 1.0 |" in capsys.readouterr().out


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
