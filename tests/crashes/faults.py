"""Disks that fail: by a small library that is preloaded into the gateway, and by a file system that is really full."""

import mmap
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")

FIELDS = (
    "loaded", "met", "journal_syncs", "journal_writes", "journal_shorts", "journal_errno", "store_errno",
    "store_delay_ms",
)  # fmt: skip
"""Of the page, as in faults.c."""


def library(folder):
    """Compile the library; skips the test where that is impossible."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler to make a disk fail with")
    built = folder / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", built, SOURCE, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip(f"the C compiler cannot make the library: {done.stderr[-500:]}")
    return built


class Faults:
    """What a gateway's disk is told, while the gateway runs."""

    def __init__(self, folder, library):
        self.library = library
        self.path = folder / "faults"
        self.path.write_bytes(bytes(4 * len(FIELDS)))
        with self.path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 4 * len(FIELDS))

    def close(self):
        self._page.close()

    @property
    def env(self):
        """The environment of a gateway that obeys."""
        return {"LD_PRELOAD": str(self.library), "FAULTS_PAGE": str(self.path)}

    def __getitem__(self, name):
        return struct.unpack_from("I", self._page, 4 * FIELDS.index(name))[0]

    def __setitem__(self, name, value):
        struct.pack_into("I", self._page, 4 * FIELDS.index(name), value)

    def obeyed(self):
        """Skip the test if nobody has loaded the library."""
        if not self["loaded"]:
            pytest.skip("libraries are not preloaded on this platform")


class SmallDisk:
    """A tmpfs of few megabytes that only processes in a mount namespace of their own can see.

    Attributes:
        path: where it is mounted, as those processes see it.
        under: the command that runs another one in there.
    """

    def __init__(self, path, keeper):
        self.path = path
        self._keeper = keeper
        self.under = ("nsenter", f"--target={keeper}", "--user", "--preserve-credentials", "--mount")

    def seen(self, path):
        """A path in there, as it is seen from here."""
        return Path(f"/proc/{self._keeper}/root{path}")

    def fill(self):
        """Leave not a single byte."""
        descriptor = os.open(self.seen(self.path / "ballast"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (2**20, 2**12, 1):
                while _writes(descriptor, bytes(size)):
                    pass
        finally:
            os.close(descriptor)

    def free(self):
        """Give it back."""
        self.seen(self.path / "ballast").unlink()


def _writes(descriptor, data):
    try:
        return os.write(descriptor, data) > 0
    except OSError:
        return False


@contextmanager
def small_disk(path, megabytes):
    """Mount a small disk; skips the test where that is not permitted."""
    if not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        pytest.skip("unshare, nsenter and mount are needed for a disk that is really full")
    path.mkdir()
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs '{path}' && echo mounted && exec sleep 600"
    keeper = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", mount],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if keeper.stdout.readline() != "mounted\n":
            pytest.skip(
                f"a small file system cannot be mounted here: {keeper.communicate(timeout=10)[1].strip()}"
            )
        yield SmallDisk(path, keeper.pid)
    finally:
        keeper.kill()
        keeper.communicate()
