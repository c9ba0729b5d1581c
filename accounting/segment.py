"""The journal's files: how they are named, made, sealed, and found again, in the journal and in its archive.

    journal/00000003.open          being written, or left behind by a process that died
    journal/00000002.ndjson        sealed: synced whole and closed, together with the head of the one after it
    archive/00000001.ndjson.gz     every record in it is in the store, too
    journal/spare                  has all its bytes, and becomes a segment, with a number, when it is needed

The numbers count on by one, over journal and archive.
"""

import re
from pathlib import Path
from typing import Final

from attrs import define, frozen

from accounting.archive import expand
from accounting.disk import SYNCED_AT_ONCE, Disk, write_out
from accounting.lines import Lines

OPEN: Final = ".open"
SEALED: Final = ".ndjson"
PACKED: Final = ".ndjson.gz"
SPARE: Final = "spare"
ARCHIVE: Final = "archive"

_NAME: Final = re.compile(rf"([0-9]{{8}})({re.escape(OPEN)}|{re.escape(SEALED)})")
_PACKED: Final = re.compile(rf"([0-9]{{8}}){re.escape(PACKED)}")


class JournalDamaged(Exception):
    """Something that was on the platter is missing or cannot be read.

    Args:
        path: the file.
        offset: where in it; in its text, where it is compressed.
        because: what is wrong there.
    """

    def __init__(self, path: Path, offset: int, because: str) -> None:
        super().__init__(f"{path}, byte {offset}: {because}")
        self.path = path
        self.offset = offset
        self.because = because


# -- reading -------------------------------------------------------------------------------------------


@frozen
class Segment:
    """A file of the journal, as found.

    Attributes:
        path: where it is.
        number: its place in the journal, from 1 on.
        original: the file that it was made of, where it is archived and a kill has left both.
    """

    path: Path
    number: int
    original: Path | None = None

    @property
    def archived(self) -> bool:
        """It is in the archive."""
        return self.path.suffix == ".gz"

    @property
    def sealed(self) -> bool:
        """It was synced whole and closed, together with the head of the one after it."""
        return self.path.suffix != OPEN


def archive_of(directory: Path) -> Path:
    """Where the archive of a journal is."""
    return directory.parent / ARCHIVE


def packed(sealed: Path) -> Path:
    """Where a sealed segment goes in the archive."""
    return archive_of(sealed.parent) / sealed.with_suffix(PACKED).name


def segments(disk: Disk, directory: Path) -> list[Segment]:
    """The journal's files in order, archived ones too.

    Raises:
        JournalDamaged: one is there twice, or missing in between.
    """
    # in this order: one that is archived meanwhile is seen twice, never missed
    matches = [(name, _NAME.fullmatch(name)) for name in sorted(disk.names(directory))]
    found = [Segment(directory / name, int(matched[1])) for name, matched in matches if matched]
    found = sorted(_merged(disk, found, _archived(disk, archive_of(directory))), key=lambda one: one.number)
    for expected, segment in enumerate(found, 1):
        if segment.number < expected:
            raise JournalDamaged(segment.path, 0, f"segment {segment.number} is there twice")
        if segment.number > expected:
            raise JournalDamaged(segment.path, 0, f"the segment before it, {expected}, is missing")
    return found


def read(disk: Disk, segment: Segment) -> bytes:
    """The lines of a segment, and whatever stands behind them.

    Raises:
        JournalDamaged: it is archived, and not whole.
    """
    path = segment.path
    if not segment.archived:
        for one in (path, path.with_suffix(SEALED)):  # it was sealed since its name was read
            try:
                return disk.read(one)
            except FileNotFoundError:
                continue
        path = packed(path)  # or archived
    text, wrong = expand(disk.read(path))
    if wrong:
        lines = Lines(text)
        for _ in lines:
            pass
        raise JournalDamaged(path, lines.end, f"this archived segment cannot be read on: {wrong}")
    return text


def _archived(disk: Disk, directory: Path) -> dict[int, Path]:
    try:
        names = disk.names(directory)
    except FileNotFoundError:  # nothing was archived yet
        return {}
    return {int(matched[1]): directory / name for name in names if (matched := _PACKED.fullmatch(name))}


def _merged(disk: Disk, found: list[Segment], archived: dict[int, Path]) -> list[Segment]:
    """Where a kill has left both, the archived one counts if it is whole, else the original."""
    for place, segment in enumerate(found):
        path = archived.get(segment.number)
        if path is not None:
            if segment.sealed and not expand(disk.read(path))[1]:
                found[place] = Segment(path, segment.number, segment.path)
            del archived[segment.number]
    return found + [Segment(path, number) for number, path in archived.items()]


# -- writing -------------------------------------------------------------------------------------------


@define(eq=False)
class File:
    """A segment that is open for writing.

    Attributes:
        path: its name, which changes when it becomes a segment and when it is sealed.
        number: its place in the journal; 0: a spare.
        descriptor: of the open file.
        size: in bytes, all of them its own already.
        offset: where the next line goes.
        bare: nothing stands in it but its head.
        last_seq: of the last record in it, once nothing is added any more.
        named: its name is on the platter.
        failed: an error was seen on it, so that it is never written or synced again.
    """

    path: Path
    number: int
    descriptor: int
    size: int
    offset: int = 0
    bare: bool = True
    last_seq: int = 0
    named: bool = True
    failed: bool = False


def make_file(disk: Disk, directory: Path, number: int, size: int) -> File:
    """Make a segment with all its bytes; durably, name included. Leaves nothing behind where it fails."""
    return _make(disk, directory / f"{number:08d}{OPEN}", number, size, filled=False)


def make_spare(disk: Disk, directory: Path, size: int) -> File:
    """Make what will be a segment later, and write zeros into it, so that no sync has to commit metadata."""
    path = directory / SPARE
    disk.unlink(path)  # of a try that was broken off
    return _make(disk, path, 0, size, filled=True)


def _make(disk: Disk, path: Path, number: int, size: int, *, filled: bool) -> File:
    descriptor = disk.create(path)
    try:
        disk.allocate(descriptor, size)
        if filled:
            step = SYNCED_AT_ONCE
            write_out(disk, descriptor, (bytes(min(step, size - start)) for start in range(0, size, step)))
        else:
            disk.fdatasync(descriptor)
        disk.sync_dir(path.parent)
    except BaseException:
        disk.close(descriptor)
        disk.unlink(path)
        raise
    return File(path, number, descriptor, size)


def name_file(disk: Disk, spare: File, number: int) -> None:
    """Make a spare the segment of this number; its name is on the platter with the next sync only."""
    path = spare.path.with_name(f"{number:08d}{OPEN}")
    disk.rename(spare.path, path)
    spare.path, spare.number, spare.named = path, number, False


def seal_file(disk: Disk, file: File) -> None:
    """Cut a segment that is synced to its length and give it its final name."""
    try:
        disk.truncate(file.descriptor, file.offset)
        disk.fdatasync(file.descriptor)
    finally:
        disk.close(file.descriptor)
    path = file.path.with_suffix(SEALED)
    disk.rename(file.path, path)
    file.path = path
    disk.sync_dir(path.parent)


def remove_file(disk: Disk, file: File) -> None:
    """Remove a spare or a bare segment, durably, so that its number can be used again."""
    disk.close(file.descriptor)
    disk.unlink(file.path)
    disk.sync_dir(file.path.parent)
