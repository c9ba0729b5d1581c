"""A copy of the books, of a gateway that goes on working or of one that is closed: all that a new start needs.

That is the journal with its archive, and the price lists that records name. The store is an index of it and is made
anew; lock, token and address belong to a process and not to the books.

While a live journal is copied, its segments are sealed, archived and begun. So they are listed once, when every line
that must be in the copy stands in one of them, and each is copied under whatever name it has by then. What is not
sealed is cut behind the last line that must be in, since what follows may not be on the platter yet. Nothing counts
as copied before it has been read back, as recovery would read it.
"""

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import define, frozen

from accounting.disk import Disk, write_out
from accounting.lines import Lines
from accounting.scan import JournalDamaged, Segment, scan, segments
from accounting.segment import ARCHIVE, SEALED, packed

JOURNAL: Final = "journal"
PRICES: Final = "prices"
"""Price lists, by the hash that records name them by."""

FOLDERS: Final = (JOURNAL, ARCHIVE, PRICES)
PARTIAL: Final = ".partial"
LISTINGS: Final = 5
"""Times that a listing is tried: one that is read while files are renamed may show a file twice, or not at all."""


class BackupError(Exception):
    """There is no copy; the message says why."""


@frozen
class Copied:
    """What stands in a copy.

    Attributes:
        last_seq: the last record.
        files: how many.
        size: of all of them, in bytes.
    """

    last_seq: int
    files: int
    size: int


def back_up(disk: Disk, state: Path, target: Path, upto: int | None) -> Copied:
    """Copy the books of a state directory into one that is not there yet, or empty.

    It gets its name when all of it is on the platter; until then it is called `.partial`.

    Args:
        disk: where both are.
        state: the directory with the books; nobody else writes there, or else `upto` is given.
        target: the directory to be made; outside of `state`.
        upto: the last record that must be in, which is on the platter; `None`: all that can be read.

    Raises:
        BackupError: the target cannot be used, or what was copied does not go so far.
        JournalDamaged: what was copied cannot be read back: so it is in the books.
        OSError: the disk cannot do it.
    """
    if target == state or state in target.parents:
        raise BackupError(f"{target} lies inside the books: name a directory outside of {state}")
    if _names(disk, target):
        raise BackupError(f"{target} is there and not empty: name a directory that is not there yet")
    partial = target.with_name(target.name + PARTIAL)
    if unknown := set(_names(disk, partial)) - set(FOLDERS):
        raise BackupError(f"{partial} holds {min(unknown)}, which is from no backup: move it away first")
    copy = _Copy(disk, state, partial)
    copy.clear()
    copy.journal(upto)
    copy.prices()
    last_seq = copy.checked(upto)
    copy.sync()
    disk.rename(partial, target)
    disk.sync_dir(target.parent)
    return Copied(last_seq, copy.files, copy.size)


@define(eq=False)
class _Copy:
    """A copy that is being made."""

    disk: Disk
    state: Path
    into: Path
    files: int = 0
    size: int = 0

    def clear(self) -> None:
        """Make the directories, and remove what a copy that was broken off has left in them."""
        self.disk.make_dir(self.into)
        for folder in FOLDERS:
            self.disk.make_dir(self.into / folder)
            for name in self.disk.names(self.into / folder):
                self.disk.unlink(self.into / folder / name)

    def journal(self, upto: int | None) -> None:
        """Copy every segment, the oldest first."""
        for segment in self._listed():
            found = self._content(segment)
            if found is None:
                continue
            path, data = found
            if path.parent.name == JOURNAL and path.suffix != SEALED:
                data = _cut(data, upto)
            self._write(Path(path.parent.name) / path.name, data)

    def prices(self) -> None:
        """Copy the price lists that were kept."""
        for name in sorted(_names(self.disk, self.state / PRICES)):
            if name.endswith(".json"):
                self._write(Path(PRICES) / name, self.disk.read(self.state / PRICES / name))

    def checked(self, upto: int | None) -> int:
        """Read back what was copied; says the last record. Raises `BackupError`, `JournalDamaged`."""
        reading = scan(self.disk, self.into / JOURNAL)
        deque(reading, maxlen=0)
        if upto is not None and reading.last_seq < upto:
            raise BackupError(
                f"what was copied ends after line {reading.last_seq}, and {upto} had been written"
            )
        return reading.last_seq

    def sync(self) -> None:
        """Bring all names to the platter; what stands in the files is there already."""
        for folder in FOLDERS:
            self.disk.sync_dir(self.into / folder)
        self.disk.sync_dir(self.into)

    def _listed(self) -> list[Segment]:
        tries = LISTINGS
        while True:
            tries -= 1
            try:
                return segments(self.disk, self.state / JOURNAL)
            except (JournalDamaged, FileNotFoundError):
                if not tries:
                    raise

    def _content(self, segment: Segment) -> tuple[Path, bytes] | None:
        """A segment under the name that it has by now, and what stands in it.

        `None`: it is gone, as one in which no record stands goes when a gateway stops. If records did, reading
        back finds them missing.
        """
        path = segment.path
        later = () if segment.archived else (path.with_suffix(SEALED), packed(path))
        for one in (path, *later):  # it was sealed since its name was read, or archived
            with suppress(FileNotFoundError):
                return one, self.disk.read(one)
        return None

    def _write(self, name: Path, data: bytes) -> None:
        descriptor = self.disk.create(self.into / name)
        try:
            self.size += write_out(self.disk, descriptor, (data,))
        finally:
            self.disk.close(descriptor)
        self.files += 1


def _cut(data: bytes, upto: int | None) -> bytes:
    """What is to be copied of a segment that is not sealed: without its empty space, and without later records."""
    if upto is None:
        return data.rstrip(b"\0")
    lines = Lines(data)
    for line in lines:
        if line.seq > upto:
            return data[: line.offset]
    return data[: lines.end]


def _names(disk: Disk, directory: Path) -> list[str]:
    try:
        return disk.names(directory)
    except FileNotFoundError:
        return []
