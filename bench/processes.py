"""Processes seen from outside: how they are started, pinned and ended, and what /proc says they have used."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from attrs import frozen

ROOT: Final = Path(__file__).resolve().parents[1]
TICKS: Final = os.sysconf("SC_CLK_TCK")
STOP_SECONDS: Final = 60.0
"""A gateway drains for up to half a minute; what has not ended by then is killed."""


@frozen
class Cores:
    """Which core whom: the gateway has one to itself, provider and clients share another; `None`: not pinned."""

    gateway: int | None
    harness: int | None

    @classmethod
    def choose(cls, *, pin: bool = True) -> "Cores":
        """Two of those that we may use, where there are two and `taskset` is at hand."""
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if not pin or len(usable) < 2 or shutil.which("taskset") is None:
            return cls(None, None)
        return cls(usable[0], usable[1])

    @property
    def said(self) -> str:
        """For people."""
        if self.gateway is None:
            return f"not pinned ({os.cpu_count() or 1} cores)"
        return f"gateway on core {self.gateway}, provider and clients on core {self.harness}"


def environment() -> dict[str, str]:
    """Ours, with the checkout on the path, no proxy in the way and no settings of somebody's own gateway."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("FAREBOX_")
    }
    return {**kept, "PYTHONPATH": str(ROOT)}


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    """A command bound to a core."""
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


@contextmanager
def running(
    command: Sequence[str], *, core: int | None, log: Path, env: Mapping[str, str] | None = None, **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process for the length of a `with`; ended at its end, by its own id, whatever happens."""
    with log.open("ab") as file:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **more}
        process = subprocess.Popen(
            pinned(core, command), text=True, env=dict(env or environment()), **streams
        )
    try:
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[str]", seconds: float = STOP_SECONDS) -> None:
    """Ask a process to stop, and see that it does."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def descriptors(wanted: int) -> int:
    """Raise the limit of open descriptors, for us and what we start, to what is wanted; says what can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return wanted
    for most in (max(hard, wanted), hard):  # only root may raise the hard limit
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), most))
            return min(wanted, most)
    return soft


def shrunk(connections: int, granted: int, each: int, spare: int) -> int:
    """How many connections fit, where each takes so many descriptors of the process that has most of them."""
    return max(min(connections, (granted - spare) // each), 1)


# -- what /proc says -------------------------------------------------------------------------------


@frozen
class Used:
    """A process and its children at one moment.

    Attributes:
        cpu_seconds: user and system time so far, with that of children that have ended.
        rss_bytes: resident memory.
        descriptors: open files and sockets.
        at: monotonic seconds.
    """

    cpu_seconds: float
    rss_bytes: int
    descriptors: int
    at: float


def used(pid: int) -> Used:
    """Look at a process and all that it has started."""
    cpu, rss, count = 0.0, 0, 0
    for one in _tree(pid):
        with suppress(OSError):  # it may have ended by now
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            cpu += sum(map(int, fields[11:15])) / TICKS
            rss += int(fields[21]) * resource.getpagesize()
            count += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
    return Used(cpu, rss, count, time.monotonic())


def _tree(pid: int) -> Iterator[int]:
    yield pid
    children: list[str] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += (task / "children").read_text().split()
    for child in children:
        yield from _tree(int(child))


@frozen
class Machine:
    """The machine's own time at one moment, over all cores: how much of it others took."""

    stolen: float
    whole: float

    @classmethod
    def now(cls) -> "Machine":
        """Look."""
        with suppress(OSError):
            fields = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            return cls(fields[7], sum(fields))
        return cls(0, 0)

    def steal_since(self, before: "Machine") -> float:
        """The share that the hypervisor gave to other guests since then."""
        whole = self.whole - before.whole
        return (self.stolen - before.stolen) / whole if whole else 0.0


def quiet(pid: int, seconds: float = 5.0, share: float = 0.05) -> None:
    """Wait until a process has nothing left to do of what came before, or for so long."""
    until = time.monotonic() + seconds
    before = used(pid)
    while time.monotonic() < until:
        time.sleep(0.2)
        after = used(pid)
        if after.cpu_seconds - before.cpu_seconds <= share * (after.at - before.at):
            return
        before = after
