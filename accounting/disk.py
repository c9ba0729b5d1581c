"""The disk as the books see it: a port, so that one that fills up, fails or loses power can stand in."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

SYNCED_AT_ONCE: Final = 2**18
"""Bytes of a large file that go to the disk at a time: what the journal syncs has to wait for all that was handed over
before it. With 64 MB at once that was 48 ms, so 2 to 4; and the large file is there no later.
"""


class Disk(Protocol):
    """What the books ask of a disk; every method may raise `OSError`."""

    def make_dir(self, path: Path) -> None:
        """Make a directory for its owner alone (0700), with its parents, unless it is there."""
        ...

    def names(self, directory: Path) -> list[str]:
        """The names in a directory."""
        ...

    def lock(self, path: Path) -> int:
        """Open a file and lock it for as long as it is open; BlockingIOError if another process has it."""
        ...

    def create(self, path: Path) -> int:
        """Make a file that must not exist and open it; returns a descriptor."""
        ...

    def open(self, path: Path) -> int:
        """Open a file that exists, to write; returns a descriptor."""
        ...

    def read(self, path: Path) -> bytes:
        """The whole of a file."""
        ...

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """What stands in a file at an offset, so many bytes at most; none behind its end."""
        ...

    def pwrite(self, descriptor: int, data: bytes, offset: int, /) -> int:
        """Write at an offset; returns how many bytes."""
        ...

    def fdatasync(self, descriptor: int, /) -> None:
        """Return once a file's bytes (and its size) are on the platter."""
        ...

    def allocate(self, descriptor: int, size: int) -> None:
        """Take that many bytes for a file, so that writing them cannot fail for want of space."""
        ...

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to a length."""
        ...

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file within its directory."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        ...

    def sync_dir(self, directory: Path) -> None:
        """Return once a directory's names are on the platter."""
        ...


class OsDisk:
    """The disk of the operating system."""

    def make_dir(self, path: Path) -> None:
        """See `Disk`; an existing directory of ours is closed to others, too."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)

    def names(self, directory: Path) -> list[str]:
        """See `Disk`."""
        return [path.name for path in directory.iterdir()]

    def lock(self, path: Path) -> int:
        """See `Disk`."""
        import fcntl  # noqa: PLC0415 - does not exist on every platform that can at least read the books

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def create(self, path: Path) -> int:
        """See `Disk`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """See `Disk`."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self, path: Path) -> bytes:
        """See `Disk`."""
        return path.read_bytes()

    def read_at(self, path: Path, offset: int, size: int) -> bytes:
        """See `Disk`."""
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)

    pwrite = staticmethod(os.pwrite)
    """See `Disk`."""

    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))
    """See `Disk`; `fsync` where the platform has no `fdatasync`."""

    def allocate(self, descriptor: int, size: int) -> None:
        """See `Disk`; where the platform cannot, the zero-filling of spares does it."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        """See `Disk`."""
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        """See `Disk`."""
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """See `Disk`."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """See `Disk`."""
        path.unlink(missing_ok=True)

    def sync_dir(self, directory: Path) -> None:
        """See `Disk`."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_out(disk: Disk, descriptor: int, pieces: Iterable[bytes]) -> int:
    """Write a new file, which may be large, and sync it, `SYNCED_AT_ONCE` at a time; says how many bytes.

    Raises:
        OSError: any of it could not be written.
    """
    end = synced = 0
    for piece in pieces:
        begin, size = end, len(piece)
        while (at := end - begin) < size:
            written = disk.pwrite(descriptor, piece[at : at + SYNCED_AT_ONCE], end)
            if written <= 0:
                raise OSError(f"nothing is written at byte {end}")
            end += written
            if end - synced >= SYNCED_AT_ONCE:
                disk.fdatasync(descriptor)
                synced = end
    disk.fdatasync(descriptor)
    return end
