"""How long a gateway takes from its start to its first answer: from a cold disk, and with its files in memory."""

import os
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench.harness import Figures
from bench.processes import ROOT
from bench.rounds import Progress, median
from bench.targets import Home

TEXT: Final = (
    "from the start of `farebox serve` to its first answer, from a cold disk and with its files in memory"
)
PACKAGES: Final = ("proxy", "accounting", "pricing", "data")


def run(port: int, core: int | None, rounds: int, progress: Progress) -> Figures:
    """Start it so often, on books that exist; gives the seconds, cold and warm."""
    found: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        home = Home.make(Path(folder), port)
        for number in range(rounds):
            progress.step(f"start, round {number + 1}, cold")
            dropped = drop_from_memory()
            cold = _once(home, core)
            progress.step(f"start, round {number + 1}, warm")
            found.append({"cold_seconds": cold, "warm_seconds": _once(home, core), "files_dropped": dropped})
    return {"rounds": found, **median(found)}


def _once(home: Home, core: int | None) -> float:
    began = time.perf_counter()
    with home.serving(core) as target:
        target.wait()
        return time.perf_counter() - began


def drop_from_memory() -> int:
    """Ask the kernel to forget what it has cached of Python, its packages and ours; says for how many files.

    Those that a running process has mapped stay: the interpreter itself is never quite cold.
    """
    count = 0
    for path in _files():
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                count += 1
            finally:
                os.close(descriptor)
    return count


def _files() -> Iterator[Path]:
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for folder in dict.fromkeys([*folders, *(ROOT / name for name in PACKAGES)]):
        yield from (path for path in folder.rglob("*") if path.is_file())


def as_table(figures: Figures) -> str:
    """The figures as a Markdown table."""
    rows = [f"| {name} | {figures[f'{name}_seconds']:.2f} |" for name in ("cold", "warm")]
    return "\n".join(["| start to first answer | s |", "|---|---|", *rows])
