"""Processes seen from outside: how they are started, pinned and ended, and what /proc says they have used."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from attrs import frozen

ROOT: Final = Path(__file__).resolve().parents[1]
TICKS: Final = os.sysconf("SC_CLK_TCK")
ENDED: Final = frozenset("ZX")
"""States of processes that only wait for their parent to take note."""

STOP_SECONDS: Final = 60.0
"""A gateway drains for up to half a minute; what has not ended by then is killed."""


class Gone(Exception):
    """A process that was to be looked at has ended."""


@frozen
class Cores:
    """Which core whom: the gateway has one to itself, provider and clients share another; `None`: not pinned.

    Attributes:
        gateway, harness: numbers of cores.
        usable: how many this process may use, which can be fewer than the machine has.
    """

    gateway: int | None
    harness: int | None
    usable: int = 2

    @classmethod
    def choose(cls, *, pin: bool = True) -> "Cores":
        """Two of those that we may use, where there are two and `taskset` is at hand."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(None, None, os.cpu_count() or 1)
        usable = sorted(os.sched_getaffinity(0))
        if not pin or len(usable) < 2 or shutil.which("taskset") is None:
            return cls(None, None, len(usable))
        return cls(usable[0], usable[1], len(usable))

    @property
    def shared(self) -> bool:
        """Whether gateway, provider and clients have one core between them: what one takes the others lack."""
        return self.usable == 1

    @property
    def said(self) -> str:
        """For people."""
        if self.shared:
            return "one core for all"
        if self.gateway is None:
            return f"not pinned ({self.usable} cores)"
        return f"gateways that we start on core {self.gateway}, provider and clients on core {self.harness}"


UNCOMPILED: Final = "PYTHONDONTWRITEBYTECODE"
"""With this set, every start would compile all our modules anew, which takes half as long again; an installed
gateway's are compiled."""


def environment() -> dict[str, str]:
    """Ours, with the checkout on the path, no proxy in the way and no settings of somebody's own gateway."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("FAREBOX_") and name != UNCOMPILED
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


def used(pid: int, *, ended: bool = False) -> Used:
    """Look at a process and all that it has started.

    Args:
        pid: the process.
        ended: it may have ended, as long as nobody has waited for it: its time can be read until then.

    Raises:
        Gone: it has ended. Zeros would pass for a process that needs nothing.
    """
    own = _stat(pid)
    if own is None or (own[0] in ENDED and not ended):
        raise Gone(f"process {pid} has ended")
    cpu, rss, count = 0.0, 0, 0
    for one in _tree(pid):
        fields = _stat(one)
        if fields is None:
            continue
        cpu += sum(map(int, fields[11:15])) / TICKS
        rss += int(fields[21]) * resource.getpagesize()
        with suppress(OSError):  # of somebody else's, or it has ended by now
            count += sum(1 for _ in Path(f"/proc/{one}/fd").iterdir())
    return Used(cpu, rss, count, time.monotonic())


def _stat(pid: int) -> list[str] | None:
    """What /proc says of one process, from its state on; `None` where there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _tree(child)


def children(pid: int) -> list[int]:
    """What a process has started and not waited for; nothing if it has ended."""
    found: list[str] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += (task / "children").read_text().split()
    return list(map(int, found))


def end_others(known: Collection[int]) -> None:
    """Kill what we have started, and what that has, save these.

    For when a signal has come in the moment in which a process was there already, and nobody held it yet.
    """
    for child in children(os.getpid()):
        if child not in known:
            for one in list(_tree(child)):
                with suppress(OSError):
                    os.kill(one, signal.SIGKILL)
            with suppress(OSError):
                os.waitpid(child, 0)


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


def quiet(pid: int, seconds: float = 5.0, share: float = 0.05) -> bool:
    """Wait until a process has nothing left to do of what came before, or for so long; says whether it came to that.

    Raises:
        Gone: it has ended.
    """
    until = time.monotonic() + seconds
    before = used(pid)
    while time.monotonic() < until:
        time.sleep(0.2)
        after = used(pid)
        if after.cpu_seconds - before.cpu_seconds <= share * (after.at - before.at):
            return True
        before = after
    return False
