import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bench import __main__ as cli
from bench import plot, readme, report
from bench.__main__ import INTERRUPTED, NOT_YET, OTHERS, main
from bench.processes import children, environment
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
        ("run", "paced", "--seconds", "nan"),
        ("run", "paced", "--seconds", "inf"),
        ("run", "paced", "--url", "https://127.0.0.1:1"),
        ("run", "paced", "--url", "http://127.0.0.1:99999"),
        ("run", "paced", "--peer", "a=127.0.0.1:1"),
        ("run", "paced", "--peer-pid", "a=abc"),
        ("run", "paced", "--peer-pid", "a=999999999"),
        ("run", "paced", "--pid", "999999999"),
        ("run", "paced", "--provider-port", "99999"),
        ("provider", "--port", "-1"),
        ("compare", "--of", "/nonexistent"),
        ("plot", __file__),
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
        "--start", "litellm==1.2.3", "--targets", "direct,a", "--peer-pid", f"a={os.getpid()}",
    )  # fmt: skip
    assert asked.scenarios == ["paced", "big"]
    assert (asked.seconds, asked.rounds) == (2.0, 5)
    assert asked.peer == [("a", "http://h:1/v1")]
    assert asked.peer_key == [("a", "k=1")]
    assert asked.peer_pid == [("a", os.getpid())]
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
        "nginx": figures(cpu=12.0, rounds=[figures()]),
        "farebox": figures(cpu=500.0, rounds=[figures()], ratio_to_nginx={"cpu_us_per_answer": 41.0}),
    }
    found = a_report() | {"scenario": "compare", "cases": {"requests_64": case(rows)}, "start": None}
    path.write_text(json.dumps(found))
    assert main(["compare", "--of", str(path)]) == 0
    assert "| **no** |" in capsys.readouterr().out
    assert main(["compare", "--of", str(path), "--strict"]) == 1
    capsys.readouterr()
    assert main(["plot", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "compare-1-cpu.svg"),
        str(tmp_path / "compare-1-rates.svg"),
    ]


def test_a_report_of_something_else_is_no_comparison(tmp_path, capsys):
    path = tmp_path / "requests-1.json"
    path.write_text(json.dumps(a_report()))
    for words in (["compare", "--of", str(path)], ["readme", str(path)]):
        assert main(words) == 1
        assert "is no comparison, but one of requests" in capsys.readouterr().err


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
    cases = {"requests_64": case({"nginx": figures(cpu=12.0, rounds=[figures()])})}
    path.write_text(json.dumps(a_report() | {"scenario": "compare", "cases": cases}))
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
    port, said = 1, ""

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
    monkeypatch.setattr(report, "save", lambda name, found, text, _folder: usual(name, found, text, tmp_path))
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
    assert path.with_suffix(".md").read_text() in text, "what is shown is kept beside it"
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


# -- what goes wrong ---------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """A server that knows nobody's key, and is not our provider though it speaks JSON."""

    hosts: list[str]

    def do_POST(self):
        self.hosts.append(self.headers["host"])
        self.rfile.read(int(self.headers["content-length"]))
        self.answer(401, b'{"error":"who are you?"}')

    def do_GET(self):
        self.answer(200, b'{"status":"fine"}')

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    hosts = []
    with HTTPServer(("127.0.0.1", 0), type("Own", (Refusing,), {"hosts": hosts})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port, hosts
        server.shutdown()
        thread.join()


BRIEFLY = ("--seconds", "0.2", "--rounds", "1", "--connections-max", "2", "--programs", "python", "--no-pin")


def test_a_wrong_key_is_told_before_anything_is_measured(refusing, results, capsys):
    port, hosts = refusing
    assert main(["burst", "--url", f"http://localhost:{port}", *BRIEFLY]) == 1
    assert (
        f'http://localhost:{port}/v1/chat/completions answers with 401: {{"error":"who are you?"}}'
        in capsys.readouterr().err
    )
    assert hosts == [f"localhost:{port}"], "the name that was given, and not the address behind it"
    assert list(results.iterdir()) == []


def test_a_peer_that_does_not_answer_is_left_out_and_the_exit_status_says_so(results, capsys):
    words = ["--targets", "direct,other", "--peer", "other=http://127.0.0.1:1"]
    assert main(["burst", *words, *BRIEFLY]) == 1
    said = capsys.readouterr()
    assert "other was left out: http://127.0.0.1:1/v1/chat/completions does not answer" in said.out
    assert "other: http://127.0.0.1:1/v1/chat/completions does not answer" in said.err
    assert list(results.glob("burst-*.json")) != []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nobody.invalid"])
def test_a_gateway_that_is_not_there_is_told_in_a_sentence(url, capsys):
    assert main(["burst", "--url", url, *BRIEFLY]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not answer" in line or "no host nobody.invalid" in line


def test_a_port_that_somebody_else_has_is_told_in_a_sentence(refusing, capsys):
    port = str(refusing[0])
    for words in (["burst", "--provider-port", port, *BRIEFLY], ["provider", "--port", port]):
        assert main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"our provider cannot listen on port {port}: ")
        assert "in use" in line


def test_programs_that_cannot_be_built_are_told_in_a_sentence(monkeypatch, capsys):
    def refuse(_language):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(cli, "programs", refuse)
    assert main(["burst", "--programs", "c"]) == 1
    assert capsys.readouterr().err == "--programs c: no C compiler\n"


def test_what_was_measured_is_shown_where_it_cannot_be_saved(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--targets", "direct", "--out", str(tmp_path / "file" / "folder")]
    assert main(["burst", *words, *BRIEFLY]) == 0
    said = capsys.readouterr()
    assert "| direct |" in said.out
    assert "not saved" in said.err
    assert main(["burst", "--targets", "direct", "--out", str(tmp_path / "new"), *BRIEFLY]) == 0
    assert {path.suffix for path in (tmp_path / "new").iterdir()} == {".json", ".md"}


def test_json_is_a_line_for_each_scenario(results, capsys):
    assert main(["run", "burst", "requests", "--targets", "direct", "--json", *BRIEFLY]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["scenario"] for one in found] == ["burst", "requests"]


def test_on_one_core_a_note_says_what_that_means(results, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert main(["burst", "--targets", "direct", *BRIEFLY]) == 0
    text = capsys.readouterr().out
    assert "; one core for all;" in text
    assert f"- {cli.ONE_CORE}" in text


# -- being ended -------------------------------------------------------------------------------------


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(_asked):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_list", interrupted)
    assert main(["list"]) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_signals_are_afterwards_as_they_were():
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    main(["list"])
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before


def descendants(pid):
    """All that a process has started, and what that has started."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(found, seconds=30.0):
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def bench_run(*words, **environs):
    """The program as a process of its own; it writes to pipes, and ends when its input does if it has one."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--programs", "python"],
        env={**environment(), **environs},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def heeded(number):
    """A process that is started meanwhile does not ignore the signal, even if this run does, as under `nohup`."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_a_run_ends_all_that_it_has_started(number, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    words = [
        "burst",
        "--targets",
        "farebox",
        "--seconds",
        "60",
        "--rounds",
        "9",
        "--out",
        str(tmp_path / "out"),
    ]
    with heeded(number):
        run = bench_run(*words, TMPDIR=str(folder))
    with run as process:
        # provider, gateway and client
        assert until(lambda: len(descendants(process.pid)) >= 3)
        started = descendants(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "bench/__main__.py" not in said, (
        "a client that has just begun may miss its request; we say nothing"
    )
    assert not [pid for pid in started if alive(pid)]
    assert list(folder.iterdir()) == [], "one of these folders had a key in it"


def test_a_provider_whose_program_has_ended_does_not_live_on():
    with bench_run("provider") as process:
        port = int(process.stdout.readline().removesuffix("/v1\n").rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
        (program,) = children(process.pid)
        os.kill(program, signal.SIGKILL)
        assert process.wait(10) == 1
        assert f"process {program} has ended" in process.stderr.read()


def test_a_provider_ends_when_its_input_does():
    with bench_run("provider") as process:
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0
