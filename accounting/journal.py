"""The journal: append-only files of one checked line per record, which are the truth about all money.

A line is `{"c":"<crc32>","s":<seq>,"t":"<kind>",…fields}` and a newline. The rules, weightiest first:

1. The CRC covers everything after itself, newline included, and is seeded with the CRC of the line before.
   The first line of a segment (C0) is seeded with zero and names the last record before it, with its CRC.
2. Records (W K G T A P S V) count on by one, over all segments. Lines about the journal itself (C0 C M)
   repeat the seq before them, so that they never leave a gap where they are lost.
3. M is written after a sync and before anybody is told of it: whatever lies at or below a mark was on the
   platter. A damaged line below a mark is a loss and stops the start; above the last it is a torn tail.
4. A file that an error was seen on is never written or synced again (Linux marks pages clean that it failed
   to write, so that a second fsync succeeds over lost data). The books have failed, then, and say so.
5. A segment gets its bytes when it is made, so that a full disk is met by the spare, in the background, and
   never by a settlement. Room is taken before it is needed: see `reserve`.

Nothing here awaits. Appending is one `pwrite` in the event loop; syncs and work on files come apart into a
step that plans (in the loop), one that works (in a thread) and one that takes note (in the loop).
`accounting/scan.py` reads what is written here.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec
from attrs import define, field, frozen

from accounting.disk import Disk
from accounting.records import (
    LETTERS,
    Attempt,
    Carry,
    CarryHead,
    Mark,
    Progress,
    Record,
    UsageRecord,
    Void,
)

RECORD_BYTES: Final = 4096
"""Room that a place stands for: four times a usual S. A longer line takes what it needs; that it finds it is
then owed to the others being shorter."""

MARK_BYTES: Final = 128
"""The longest M. There are never more of them than records, so each place brings room for one."""

HEAD_BYTES: Final = 256
"""The longest C0."""

PLACE_BYTES: Final = RECORD_BYTES + MARK_BYTES

ZEROS: Final = 2**20
"""How much of a spare is zero-filled at a time."""

OPEN: Final = ".open"
SEALED: Final = ".ndjson"

_PREFIX: Final = len('{"c":"00000000",')
_HEADER: Final = re.compile(rb'"s":([0-9]{1,19}),"t":"([A-Z0-9]{1,2})",')
_HEADER_BYTES: Final = _PREFIX + len('"s":,') + 19
_MARK: Final = re.compile(rb'"t":"M",[^\n}]{0,64}"synced_upto":([0-9]{1,19})')

_ENCODER: Final = msgspec.json.Encoder()
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    letter: msgspec.json.Decoder(kind) for kind, letter in LETTERS.items()
}


class NoRoom(Exception):
    """The segments at hand have no room for another record; the spare is not ready or the disk is full."""


class BooksFailed(Exception):
    """The journal could not be written or synced, or is closed: nothing can be promised any more."""


# -- lines ---------------------------------------------------------------------------------------------


def encode(record: Record, seq: int, crc: int) -> tuple[bytes, int]:
    """Write one line behind a line whose CRC is `crc`; returns it and its own CRC."""
    fields = _ENCODER.encode(record)
    body = b'"s":%d,"t":"%s",%s\n' % (seq, LETTERS[type(record)].encode(), fields[1:])
    crc = crc32(body, crc)
    return b'{"c":"%08x",%s' % (crc, body), crc


class Line(NamedTuple):
    """One intact line: where it lies and what it is; not decoded yet."""

    offset: int
    seq: int
    letter: str
    text: bytes
    crc: int

    def record(self) -> Record:
        """Read its fields. Raises KeyError, `msgspec.DecodeError`: intact, and yet nothing that we know."""
        record: Record = _DECODERS[self.letter].decode(self.text)
        return record


@define(eq=False)
class Lines:
    """The intact lines of one segment, from its start to the first that is not.

    Attributes:
        data: the segment.
        end: where the intact part ends; true once the lines have been read.
    """

    data: bytes
    end: int = 0

    def __iter__(self) -> Iterator[Line]:
        data, find, header, crc, start = self.data, self.data.find, _HEADER.match, 0, 0
        while (newline := find(b"\n", start)) >= 0:
            text = data[start : newline + 1]
            crc = crc32(text[_PREFIX:], crc)
            # compared as a whole: a flipped bit must not turn the prefix into another spelling of the same
            matched = header(text, _PREFIX) if text.startswith(b'{"c":"%08x",' % crc) else None
            if matched is None:
                return
            self.end = newline + 1
            yield Line(start, int(matched[1]), matched[2].decode(), text, crc)
            start = newline + 1

    @property
    def empty(self) -> bool:
        """Nothing was ever written here: a spare."""
        return not self.data.strip(b"\0")

    @property
    def torn(self) -> bool:
        """Something follows the intact part."""
        return bool(self.data[self.end :].strip(b"\0"))

    def mark_behind(self) -> int:
        """The highest mark that can still be made out behind the intact part, or -1.

        Without its neighbours a line's CRC cannot be checked, and need not be: a mark that is not one stops
        the start, which is the safe side. Only the first damaged line itself does not count as one.
        """
        return self._highest_mark(self.end + _HEADER_BYTES)

    def mark_anywhere(self) -> int:
        """The highest mark that can be made out in the whole segment, or -1."""
        return self._highest_mark(0)

    def _highest_mark(self, start: int) -> int:
        return max((int(match[1]) for match in _MARK.finditer(self.data, start)), default=-1)


@define(eq=False)
class Carries:
    """Attempts that are open, with their progress: what the head of a segment carries over."""

    _open: dict[tuple[str, int], tuple[Attempt, Progress | None]] = field(factory=dict)

    def note(self, record: Record) -> None:
        """Take in one record, in order of seq."""
        match record:
            case Attempt():
                self._open[record.request, record.number] = (record, None)
            case Progress():
                known = self._open.get((record.request, record.number))
                if known is not None:
                    self._open[record.request, record.number] = (known[0], record)
            case UsageRecord() | Void():
                self._open.pop((record.request, record.number), None)
            case _:
                pass

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[tuple[Attempt, Progress | None]]:
        return iter(self._open.values())

    def copy(self) -> "Carries":
        """The same, to go on by itself."""
        return Carries(dict(self._open))


@frozen
class Past:
    """What a new segment continues; `Scan.past` says it of a journal that was read.

    Attributes:
        number: of the last segment.
        synced_seq: of the last record that need not be written again.
        synced_crc: of its line.
        tail: the records after it.
        carries: attempts open at `synced_seq`.
    """

    number: int = 0
    synced_seq: int = 0
    synced_crc: int = 0
    tail: tuple[Record, ...] = ()
    carries: Carries = field(factory=Carries)


# -- files ---------------------------------------------------------------------------------------------


@define(eq=False)
class File:
    """A segment that is open for writing.

    Attributes:
        path: its name, which changes when it is sealed.
        number: its place in the journal.
        descriptor: of the open file.
        size: in bytes, all of them its own already.
        offset: where the next line goes.
        records: how many it holds, lines about the journal not counted.
    """

    path: Path
    number: int
    descriptor: int
    size: int
    offset: int = 0
    records: int = 0


def make_file(disk: Disk, directory: Path, number: int, size: int, *, filled: bool) -> File:
    """Make a segment with all its bytes; durably, name included. Leaves nothing behind where it fails.

    `filled` writes zeros into it, so that no later sync has to commit metadata: for spares, which have time.
    """
    path = directory / f"{number:08d}{OPEN}"
    descriptor = disk.create(path)
    try:
        disk.allocate(descriptor, size)
        if filled:
            for offset in range(0, size, ZEROS):
                disk.pwrite(descriptor, bytes(min(ZEROS, size - offset)), offset)
        disk.fdatasync(descriptor)
        disk.sync_dir(directory)
    except BaseException:
        disk.close(descriptor)
        disk.unlink(path)
        raise
    return File(path, number, descriptor, size)


def seal_file(disk: Disk, file: File) -> None:
    """Cut a segment that is synced to its length and give it its final name."""
    try:
        disk.truncate(file.descriptor, file.offset)
        disk.fdatasync(file.descriptor)
    finally:
        disk.close(file.descriptor)
    disk.rename(file.path, file.path.with_suffix(SEALED))
    disk.sync_dir(file.path.parent)


def remove_file(disk: Disk, file: File) -> None:
    """Remove a segment that holds no record, durably, so that its number can be used again."""
    disk.close(file.descriptor)
    disk.unlink(file.path)
    disk.sync_dir(file.path.parent)


@frozen
class Sync:
    """One group sync: planned in the event loop, run in a thread, told to `Journal.synced`.

    Attributes:
        upto: the last record that it covers.
        full: segments that were full already, so that nothing is added to them while it runs.
    """

    upto: int
    full: tuple[File, ...]
    _last: File
    _disk: Disk

    def run(self) -> None:
        """Bring everything up to `upto` to the platter. Raises `OSError`; never to be tried again.

        Older files first, so that no head of a segment is durable before its past.
        """
        for file in (*self.full, self._last):
            self._disk.fdatasync(file.descriptor)


@define(eq=False)
class Chore:
    """Work on files that nobody waits for: `run` in a thread, then `Journal.housework_done`, always."""

    _work: Callable[[], File | None]
    made: File | None = field(default=None, init=False)

    def run(self) -> None:
        """Do it. `OSError` from it harms nothing: a segment that is not sealed is read just as well."""
        self.made = self._work()


# -- writing -------------------------------------------------------------------------------------------


@define(eq=False)
class Journal:
    """The journal while it is being written. Made by `Journal.open`; one process at a time.

    Attributes:
        seq: of the last record.
        synced_upto: the last that is on the platter.
        failed: the error that ended it, if one did.
        closed: it was closed, and nothing more is taken.
    """

    _disk: Disk
    _directory: Path
    _segment_bytes: int
    _clock: Callable[[], int]
    _file: File
    seq: int
    synced_upto: int
    _carries: Carries = field(factory=Carries)
    failed: BaseException | None = field(default=None, init=False)
    closed: bool = field(default=False, init=False)
    _crc: int = field(default=0, init=False)
    """Of the last line; `_record_crc` of the last record."""
    _record_crc: int = field(default=0, init=False)
    _spare: File | None = field(default=None, init=False)
    _busy: bool = field(default=False, init=False)
    _full: list[File] = field(factory=list, init=False)
    _synced: list[File] = field(factory=list, init=False)
    _reserved: int = field(default=0, init=False)

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: Path,
        past: Past,
        *,
        segment_bytes: int,
        clock: Callable[[], int],
        places: int = 0,
    ) -> "Journal":
        """Begin a new segment behind what is there, which is never appended to.

        The tail above the last mark is written again into the new segment, under the same seqs, and synced:
        it may have been readable only because it still stood in the page cache.

        Args:
            disk: where it is.
            directory: its directory there.
            past: what it continues; `Past()` for a journal that is not there yet.
            segment_bytes: of each segment; more where the tail and `places` need it.
            clock: wall clock in ms.
            places: records that must fit behind the tail: recovery's settlements.

        Raises:
            OSError, BooksFailed: nothing may be promised on it.
        """
        tail_bytes = sum(len(encode(record, 10**18, 0)[0]) + MARK_BYTES for record in past.tail)
        needed = HEAD_BYTES + len(past.carries) * RECORD_BYTES + tail_bytes + (places + 1) * PLACE_BYTES
        file = make_file(disk, directory, past.number + 1, max(segment_bytes, needed), filled=False)
        base = past.synced_seq
        journal = cls(disk, directory, segment_bytes, clock, file, base, base, past.carries.copy())
        journal._begin(file, past.synced_crc)
        for record in past.tail:
            journal.append(record)
        sync = journal.begin_sync()
        sync.run()
        journal.synced(sync)
        return journal

    # -- room ------------------------------------------------------------------------------------------

    def reserve(self, places: int) -> bool:
        """Take room for later records, if all that is promised can then still be written."""
        if self.failed is not None or self.closed or not self._fits(self._reserved + places):
            return False
        self._reserved += places
        return True

    def release(self, places: int) -> None:
        """Give places back."""
        if places > self._reserved:
            raise ValueError(f"{places} places are given back, of {self._reserved} taken")
        self._reserved -= places

    @property
    def reserved(self) -> int:
        """Places taken and not used yet."""
        return self._reserved

    def _fits(self, places: int, extra: int = 0) -> bool:
        """Could so many places, and `extra` bytes, all be written with no more than the files at hand?

        Without a roll, or over one: then up to a line is wasted at the end of this file, and the spare begins
        with a head and a carry for each attempt that is open by then (each keeps the place of its end).
        """
        needed = places * PLACE_BYTES + extra
        here = self._file.size - self._file.offset
        if here >= needed:
            return True
        if self._spare is None:
            return False
        head = HEAD_BYTES + max(places, len(self._carries) + 1) * RECORD_BYTES
        return max(here - max(RECORD_BYTES, extra), 0) + self._spare.size - head >= needed

    # -- appending -------------------------------------------------------------------------------------

    def append(self, record: Record, *, reserved: bool = False) -> int:
        """Write one record; returns its seq. It is safe from our own death then, not yet from power loss.

        Args:
            record: of a kind that has a seq.
            reserved: use up one place that was reserved.

        Raises:
            BooksFailed: the disk has failed, now or before. A reserved place stays reserved.
            NoRoom: as it says; only where nothing was reserved.
        """
        self._check()
        seq = self.seq + 1
        line, crc = encode(record, seq, self._crc)
        if not reserved and not self._fits(self._reserved, len(line) + MARK_BYTES):
            raise NoRoom
        self._put(record, seq, line, crc)
        self.seq = seq
        self._record_crc = self._crc
        self._file.records += 1
        self._carries.note(record)
        if reserved:
            self._reserved -= 1
        return seq

    def _put(self, record: Record, seq: int, line: bytes, crc: int) -> None:
        if self._file.offset + len(line) > self._file.size:
            self._roll()
            line, crc = encode(record, seq, self._crc)
        self._write(self._file, line)
        self._crc = crc

    def _write(self, file: File, data: bytes) -> None:
        offset, rest = file.offset, data
        if offset + len(data) > file.size:
            raise self._fail(OSError(f"{file.path}: no room for {len(data)} bytes that were promised some"))
        try:
            while (written := self._disk.pwrite(file.descriptor, rest, offset)) < len(rest):
                if written <= 0:
                    raise OSError(f"{file.path}: nothing is written at byte {offset}")  # noqa: TRY301
                offset += written
                rest = rest[written:]
        except OSError as error:
            raise self._fail(error) from error
        file.offset += len(data)

    def _roll(self) -> None:
        """Go on in the spare. What is full is sealed once a sync has covered the new head, too."""
        spare = self._spare
        if spare is None:
            raise self._fail(OSError("no room is left for a record that was promised some"))
        self._full.append(self._file)
        self._spare = None
        self._file = spare
        self._begin(spare, self._record_crc)

    def _begin(self, file: File, last_crc: int) -> None:
        """Write the head of a segment in one piece: C0, and a C for each attempt that is open."""
        self._record_crc = last_crc
        now = self._clock()
        head = CarryHead(self.seq, len(self._carries), now, f"{last_crc:08x}")
        text, crc = encode(head, self.seq, 0)
        parts = [text]
        for attempt, progress in self._carries:
            text, crc = encode(Carry(attempt, progress, now), self.seq, crc)
            parts.append(text)
        self._write(file, b"".join(parts))
        self._crc = crc

    def _check(self) -> None:
        if self.failed is not None or self.closed:
            raise BooksFailed(str(self.failed or "the journal is closed")) from self.failed

    def _fail(self, error: BaseException) -> BooksFailed:
        if self.failed is None:
            self.failed = error
        return BooksFailed(str(error))

    # -- syncing ---------------------------------------------------------------------------------------

    def begin_sync(self) -> Sync:
        """Plan a sync of everything written so far."""
        return Sync(self.seq, tuple(self._full), self._file, self._disk)

    def synced(self, sync: Sync) -> None:
        """Take note of a sync that succeeded, and mark it; only then may anybody be told.

        The mark needs no sync of its own: it is there to recognise damage, and what it covers is on the
        platter without it. Raises `BooksFailed` if it cannot be written.
        """
        self._check()
        self._full = self._full[len(sync.full) :]
        self._synced += sync.full
        if sync.upto > self.synced_upto:
            self.synced_upto = sync.upto
            mark = Mark(sync.upto, self._clock())
            self._put(mark, self.seq, *encode(mark, self.seq, self._crc))

    def sync_failed(self, error: BaseException) -> None:
        """Take note of a sync that did not: the journal is never written to again."""
        self._fail(error)

    # -- files -----------------------------------------------------------------------------------------

    def housework(self) -> Chore | None:
        """What should be done about the files, if anything; one thing at a time.

        A segment that is full is sealed once a sync has covered it and its successor's head. A spare is made
        once half of the file at hand is used or promised; without one there is less room to promise, nothing
        worse.
        """
        if self.failed is not None or self.closed or self._busy:
            return None
        work: Callable[[], File | None] | None = None
        promised = self._file.offset + self._reserved * (PLACE_BYTES + RECORD_BYTES)
        if self._synced:
            work = partial(seal_file, self._disk, self._synced.pop(0))
        elif self._spare is None and promised * 2 >= self._file.size:
            # nothing rolls while there is no spare, so this number stays right
            number = self._file.number + 1
            work = partial(make_file, self._disk, self._directory, number, self._segment_bytes, filled=True)
        self._busy = work is not None
        return Chore(work) if work is not None else None

    def housework_done(self, chore: Chore) -> None:
        """Take note of a chore, whether it went well or not."""
        self._busy = False
        if chore.made is not None:
            self._spare = chore.made

    def close(self) -> None:
        """Seal what is open, or remove it if it holds nothing. Everything was synced before, no chore runs.

        After a failure the files are left as they are, for recovery to judge.
        """
        if self.closed:
            return
        self.closed = True
        files = (*self._synced, *self._full, self._file)
        if self.failed is not None:
            for file in files if self._spare is None else (*files, self._spare):
                self._disk.close(file.descriptor)
            return
        if self._spare is not None:
            remove_file(self._disk, self._spare)
        for file in files[:-1]:
            seal_file(self._disk, file)
        if self._file.records:
            seal_file(self._disk, self._file)
        else:
            remove_file(self._disk, self._file)
