import os
import resource
import subprocess
import sys

import pytest

from bench import processes
from bench.processes import Cores, Gone, Machine, children, descriptors, end, pinned, quiet, running, used


def test_our_own_use_is_seen():
    before = used(os.getpid())
    sum(range(3_000_000))
    after = used(os.getpid())
    assert after.cpu_seconds > before.cpu_seconds
    assert after.rss_bytes > 2**20
    assert after.descriptors >= 3


def test_children_are_counted_with_their_parent():
    program = (
        "import time\n"
        "end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\n"
        "print('x', flush=True)\n"
        "input()"
    )
    # `true` keeps the shell from becoming its child
    command = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        found = used(process.pid)
        process.stdin.close()
    assert found.cpu_seconds >= 0.25


def test_a_process_that_has_ended_is_gone_and_not_one_that_needs_nothing():
    program = "import time\nwhile time.process_time() < 0.1: pass"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(Gone, match=f"process {process.pid} has ended"):
        used(process.pid)
    with pytest.raises(Gone):
        quiet(process.pid)
    assert used(process.pid, ended=True).cpu_seconds > 0, "nobody has waited for it yet"
    process.wait()
    with pytest.raises(Gone):
        used(process.pid, ended=True)
    process.stdout.close()


def test_a_process_ends_with_its_with(tmp_path):
    with running(
        [sys.executable, "-c", "import time; time.sleep(60)"], core=None, log=tmp_path / "log"
    ) as process:
        assert process.poll() is None
    assert process.returncode is not None


def test_what_nobody_holds_is_ended_with_all_that_it_has_started(tmp_path):
    with running(["sleep", "60"], core=None, log=tmp_path / "log") as kept:
        lost = subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE)
        lost.stdout.readline()
        (grandchild,) = children(lost.pid)
        processes.end_others([child for child in children(os.getpid()) if child != lost.pid])
        assert lost.wait(10) is not None
        lost.stdout.close()
        with pytest.raises(Gone):
            quiet(grandchild, 10.0, share=-1.0)  # the kernel takes its time over it
        assert kept.poll() is None


def test_a_process_that_does_not_listen_is_killed(tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    end(process, seconds=0.1)
    assert process.returncode == -9


def test_more_descriptors_are_had_where_that_is_allowed(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _what, limits: asked.append(limits))
    assert descriptors(2000) == 2000
    assert asked == [(2000, 4096)]


def test_where_the_hard_limit_is_in_the_way_what_can_be_had_is_said(monkeypatch):
    def refuse(_what, limits):
        if limits[1] > 4096:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert descriptors(20_000) == 4096


def test_enough_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (10_000, 10_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("nothing was to be changed"))
    assert descriptors(2000) == 2000


def test_one_core_is_not_shared_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert Cores.choose() == Cores(None, None, 1)
    assert Cores.choose().said == "one core for all"
    assert Cores.choose().shared
    assert pinned(None, ["a"]) == ["a"]


def test_two_cores_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5}, raising=False)
    monkeypatch.setattr(processes.shutil, "which", lambda _name: "/usr/bin/taskset")
    assert Cores.choose() == Cores(3, 5)
    assert Cores.choose(pin=False) == Cores(None, None)
    assert Cores.choose(pin=False).said == "not pinned (2 cores)"
    assert not Cores.choose(pin=False).shared
    assert pinned(3, ["a"]) == ["taskset", "-c", "3", "a"]


def test_steal_is_a_share_of_the_time_between():
    assert Machine(30, 300).steal_since(Machine(10, 100)) == pytest.approx(0.1)
    assert Machine(0, 0).steal_since(Machine(0, 0)) == 0.0


def test_a_gateway_starts_with_its_modules_compiled_as_an_installed_one_does(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "module.py").write_text("")
    environment = {**processes.environment(), "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import module"], env=environment, check=True)
    assert list(tmp_path.glob("__pycache__/module.*.pyc"))


def test_settings_of_somebodys_gateway_do_not_reach_ours(monkeypatch):
    monkeypatch.setenv("FAREBOX_CONFIG", "x")
    monkeypatch.setenv("HTTP_PROXY", "x")
    assert not {"FAREBOX_CONFIG", "HTTP_PROXY"} & set(processes.environment())
