"""Which provider and which client run: the C programs, built with the compiler at hand, or the Python ones.

The C programs (`native/`) take 2 to 4 µs for an event or a request each. On one core both together reach 100,000
events a second, which is about what nginx passes on: a rate that comes near to that is marked. Where there is no
compiler the Python ones answer and measure the same, at ten times the cost: every report says which ran, and marks
the figures of which the harness was the limit.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import frozen

SOURCES: Final = Path(__file__).with_name("native")
BUILT: Final = (SOURCES / "build", Path("~/.cache/farebox-bench"))
"""Where the programs are kept: beside their sources, or, where that may not be written, with what the user caches."""

COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
COMPILE_SECONDS: Final = 120


@frozen
class Programs:
    """How provider and client are started.

    Attributes:
        kind: `C` or `Python`.
        provider, client: the beginnings of their command lines.
    """

    kind: str
    provider: tuple[str, ...]
    client: tuple[str, ...]


PYTHON: Final = Programs(
    "Python", (sys.executable, "-m", "bench.upstream"), (sys.executable, "-m", "bench.load")
)


def programs(language: str = "auto") -> Programs:
    """The programs to use: `c`, `python`, or `auto` for C where it can be had.

    Raises:
        RuntimeError: C was asked for and there is no compiler, or it failed.
    """
    if language == "python":
        return PYTHON
    try:
        return Programs("C", (str(_built("provider")),), (str(_built("client")),))
    except RuntimeError:
        if language == "c":
            raise
        return PYTHON


def _built(name: str) -> Path:
    """The program, compiled once for each state of its source.

    Raises:
        RuntimeError: there is no compiler, it failed, or there is no place to build at.
    """
    compiler = next((found for one in COMPILERS if (found := shutil.which(one))), None)
    if compiler is None:
        raise RuntimeError("no C compiler: none of " + ", ".join(COMPILERS))
    sources = [SOURCES / f"{name}.c", SOURCES / "common.h"]
    state = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    for folder in BUILT:
        path = folder.expanduser() / f"{name}-{state}"
        if path.exists():
            return path
        with suppress(OSError):  # a folder that may not be written: the next one
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as draft:
                _compile(compiler, sources[0], Path(draft) / name)
                # in one step, so that two runs at a time never see half a program
                (Path(draft) / name).replace(path)
            return path
    raise RuntimeError("no place to build at: none of " + ", ".join(map(str, BUILT)))


def _compile(compiler: str, source: Path, program: Path) -> None:
    command = [compiler, *FLAGS, "-o", str(program), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{compiler} took too long for {source.name}") from error
    if done.returncode:
        raise RuntimeError(f"{compiler} failed on {source.name}: {done.stderr[-2000:]}")
