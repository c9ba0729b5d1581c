"""The journal: append-only files of one checked line per record, which are the truth about all money.

The rules, weightiest first; `accounting/lines.py` says what a line is, `accounting/segment.py` what a file is:

1. The first line of a segment (C0) names the last record before it, with its CRC: the chain of CRCs goes on from
   segment to segment.
2. Records (W K G T A P X J S V) count on by one, over all segments. Lines about the journal itself (C0 C M)
   repeat the seq before them, so that they never leave a gap where they are lost.
3. M is written after a sync and before anybody is told of it: whatever lies at or below a mark was on the
   platter. A damaged line below a mark is a loss and stops the start; above the last it is a torn tail.
4. A file that an error was seen on is never written or synced again (Linux marks pages clean that it failed to
   write, so that a second fsync succeeds over lost data). What is not synced is still in memory: it is written,
   under the same seqs, to a new segment, which begins behind the last synced record, so that whoever reads takes
   every seq once. If that fails too, before the new segment was synced once, the books have failed, and say so.
5. A segment gets its bytes when it is made, so that a full disk is met by the spare, in the background, and
   never by a settlement. Room is taken before it is needed: see `reserve`.

Nothing here awaits. Appending is one `pwrite` in the event loop; syncs and work on files come apart into a
step that plans (in the loop), one that works (in a thread) and one that takes note (in the loop).
`accounting/scan.py` reads what is written here.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from attrs import define, field, frozen
from msgspec import Struct

from accounting.archive import put_away
from accounting.carries import Carries
from accounting.disk import Disk
from accounting.lines import encode
from accounting.records import Attempt, CarryHead, Mark, Record, UsageRecord, Void
from accounting.segment import (
    File,
    make_file,
    make_spare,
    name_file,
    packed,
    remove_file,
    seal_file,
)

RECORD_BYTES: Final = 4096
"""Room that a place stands for: four times a usual S. A longer line takes what it needs; that it finds it is
then owed to the others being shorter."""

MARK_BYTES: Final = 128
"""The longest M. There are never more of them than records, so each place brings room for one."""

HEAD_BYTES: Final = 256
"""The longest C0."""

PLACE_BYTES: Final = RECORD_BYTES + MARK_BYTES


class NoRoom(Exception):
    """The segments at hand have no room for another record; the spare is not ready or the disk is full."""


class BooksFailed(Exception):
    """The journal could not be written or synced, or is closed: nothing can be promised any more."""


@frozen
class Stored:
    """A sealed segment that is not in the archive yet, and the last record that stands in it."""

    path: Path
    last_seq: int


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


class Sync(Struct, frozen=True, gc=False):
    """One group sync: planned in the event loop, run in a thread, told to `Journal.synced`. A struct: there are many.

    Attributes:
        upto: the last record that it covers.
        crc: of its line.
        full: segments that were full already, so that nothing is added to them while it runs.
        last: the one that is being written.
    """

    upto: int
    crc: int
    full: tuple[File, ...]
    last: File
    _disk: Disk
    _named: bool

    def run(self) -> None:
        """Bring everything up to `upto` to the platter. Raises `OSError`; never to be tried again.

        Older files first, so that no head of a segment is durable before its past.
        """
        for file in (*self.full, self.last):
            self._disk.fdatasync(file.descriptor)
        if not self._named:
            self._disk.sync_dir(self.last.path.parent)


@define(eq=False)
class Chore:
    """Work on files that nobody waits for: `run` in a thread, then `Journal.chore_done`, always."""

    _work: Callable[[], object]
    _note: Callable[[], None]
    archives: bool = False
    done: bool = field(default=False, init=False)

    def run(self) -> None:
        """Do it. `OSError` from it harms nothing: a segment that stays as it is is read just as well."""
        self._work()
        self.done = True

    def note(self) -> None:
        """Take note of it in the event loop, where it went well."""
        if self.done:
            self._note()


@define(eq=False)
class Journal:
    """The journal while it is being written. Made by `Journal.open`; one process at a time.

    Attributes:
        seq: of the last record.
        synced_upto: the last that is on the platter.
        failed: the error that ended it, if one did.
        closed: it was closed, and nothing more is taken.
        written_on: how often an error was answered by going on in a new segment.
        on_error: told of each such error.
        reserved: places taken and not used yet.
    """

    _disk: Disk
    _directory: Path
    _segment_bytes: int
    _clock: Callable[[], int]
    _file: File
    seq: int
    synced_upto: int
    _synced_crc: int
    _carries: Carries
    """As of `synced_upto`."""
    failed: BaseException | None = field(default=None, init=False)
    closed: bool = field(default=False, init=False)
    written_on: int = field(default=0, init=False)
    on_error: Callable[[BaseException], None] = field(default=lambda _error: None, init=False)
    _unsynced: deque[tuple[int, Record]] = field(factory=deque, init=False)
    """The records after `synced_upto`, kept for rule 4."""
    _open: int = field(default=0, init=False)
    """How many attempts are open by now."""
    _crc: int = field(default=0, init=False)
    """Of the last line; `_record_crc` of the last record."""
    _record_crc: int = field(default=0, init=False)
    _may_write_on: bool = field(default=False, init=False)
    """The file at hand was synced once: an error is not one of the disk as a whole, as far as we know."""
    _spare: File | None = field(default=None, init=False)
    _busy: bool = field(default=False, init=False)
    _full: list[File] = field(factory=list, init=False)
    """Behind the file at hand, and not synced whole; `_synced` are, and wait to be sealed."""
    _synced: deque[File] = field(factory=deque, init=False)
    _given_up: list[File] = field(factory=list, init=False)
    """An error was seen on them; the next start seals them. Closed once no sync can be under way on them."""
    _stored: deque[Stored] = field(factory=deque, init=False)
    _archiving: bool = field(default=False, init=False)
    reserved: int = field(default=0, init=False)

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
        file = make_file(disk, directory, past.number + 1, max(segment_bytes, needed))
        base = past.synced_seq
        journal = cls(
            disk, directory, segment_bytes, clock, file, base, base, past.synced_crc, past.carries.copy()
        )
        try:
            journal._begin()
            for record in past.tail:
                journal.append(record)
            sync = journal.begin_sync()
            sync.run()
            journal.synced(sync)
        except BaseException:
            disk.close(file.descriptor)
            raise
        return journal

    # -- room ------------------------------------------------------------------------------------------

    def reserve(self, places: int) -> bool:
        """Take room for later records, if all that is promised can then still be written."""
        if self.failed is not None or self.closed or not self._fits(self.reserved + places):
            return False
        self.reserved += places
        return True

    def release(self, places: int) -> None:
        """Give places back."""
        if places > self.reserved:
            raise ValueError(f"{places} places are given back, of {self.reserved} taken")
        self.reserved -= places

    def _fits(self, places: int, extra: int = 0) -> bool:
        """Could so many places, and `extra` bytes, all be written with no more than the files at hand?

        Without a roll, or over one: then up to a line is wasted at the end of this file, and the spare begins
        with a head and a carry for each attempt that is open by then.
        """
        needed = places * PLACE_BYTES + extra
        here = self._file.size - self._file.offset
        if here >= needed:
            return True
        if self._spare is None:
            return False
        # an attempt that is open by then is open now, or takes one of the places
        head = HEAD_BYTES + (max(places, self._open) + 1) * RECORD_BYTES
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
        if self.failed is not None or self.closed:
            self._check()
        seq = self.seq + 1
        line, crc = encode(record, seq, self._crc)
        if not reserved and not self._fits(self.reserved, len(line) + MARK_BYTES):
            raise NoRoom
        self._unsynced.append((seq, record))
        try:
            self._put(record, seq, line, crc)
        except OSError as error:
            self._write_on(error)
        self.seq = seq
        self._record_crc = self._crc
        kind = type(record)
        if kind is Attempt:
            self._open += 1
        elif kind is UsageRecord or kind is Void:
            self._open -= 1
        if reserved:
            self.reserved -= 1
        return seq

    def _put(self, record: Record, seq: int, line: bytes, crc: int) -> None:
        file, size = self._file, len(line)
        if file.offset + size > file.size:
            self._roll(size)
            line, crc = encode(record, seq, self._crc)
            file = self._file
        if self._disk.pwrite(file.descriptor, line, file.offset) == size:  # nearly always
            file.offset += size
        else:
            self._write(line)  # once more, from its first byte
        self._crc = crc
        file.bare = False

    def _write(self, data: bytes) -> None:
        file, rest = self._file, data
        offset = file.offset
        end = offset + len(data)
        if end > file.size:
            raise OSError(f"{file.path}: no room for {len(data)} bytes that were promised some")
        while (written := self._disk.pwrite(file.descriptor, rest, offset)) < len(rest):
            if written <= 0:
                raise OSError(f"{file.path}: nothing is written at byte {offset}")
            offset += written
            rest = rest[written:]
        file.offset = end

    def _roll(self, line_bytes: int) -> None:
        """Go on in the spare. What is full is sealed once a sync has covered the new head, too."""
        carries = self._carries.copy()
        for seq, record in self._unsynced:
            if seq <= self.seq:
                carries.note(record)
        head, crc = self._head(self.seq, self._record_crc, carries)
        full = self._file
        file = self._next_file(len(head) + line_bytes)
        full.last_seq = self.seq
        self._full.append(full)
        self._file = file
        self._write(head)
        self._crc = crc
        self._open = len(carries)

    def _begin(self) -> None:
        """Begin behind what is synced."""
        head, self._crc = self._head(self.synced_upto, self._synced_crc, self._carries)
        self._record_crc = self._synced_crc
        self._open = len(self._carries)
        self._write(head)

    def _head(self, last_seq: int, last_crc: int, carries: Carries) -> tuple[bytes, int]:
        """The head of a segment: C0, and a C for each attempt that is open; and the CRC of its last line."""
        now = self._clock()
        text, crc = encode(CarryHead(last_seq, len(carries), now, f"{last_crc:08x}"), last_seq, 0)
        parts = [text]
        for carried in carries:
            text, crc = encode(carried.line(now), last_seq, crc)
            parts.append(text)
        return b"".join(parts), crc

    def _next_file(self, needed: int) -> File:
        """The spare, if it has so many bytes; else a file that is made for it, now, while everybody waits."""
        number = self._file.number + 1
        if self._spare is None or self._spare.size < needed:
            return make_file(self._disk, self._directory, number, max(self._segment_bytes, needed))
        spare, self._spare = self._spare, None
        try:
            name_file(self._disk, spare, number)
        except OSError:
            self._given_up.append(spare)
            raise
        return spare

    def _check(self) -> None:
        if self.failed is not None or self.closed:
            raise BooksFailed(str(self.failed or "the journal is closed")) from self.failed

    # -- after an error --------------------------------------------------------------------------------

    def _write_on(self, error: OSError) -> None:
        """Give up every file that is not synced whole, and write what is not synced into a new one.

        Raises:
            BooksFailed: that failed, too, or has before.
        """
        self._give_up(*self._full, self._file)
        self._full = []
        if not self._may_write_on:
            raise self._fail(error)
        self._may_write_on = False
        try:
            content, crc = self._head(self.synced_upto, self._synced_crc, self._carries)
            parts = [content]
            for seq, record in self._unsynced:
                line, crc = encode(record, seq, crc)
                parts.append(line)
            content = b"".join(parts)
            self._file = self._next_file(len(content) + (self.reserved + 1) * PLACE_BYTES)
            self._write(content)
        except OSError as another:
            self._give_up(self._file)
            raise self._fail(another) from error
        self._crc = crc
        self._record_crc = crc if self._unsynced else self._synced_crc
        self._file.bare = not self._unsynced
        self.written_on += 1
        self.on_error(error)

    def _give_up(self, *files: File) -> None:
        for file in files:
            if not file.failed:
                file.failed = True
                self._given_up.append(file)

    def _fail(self, error: BaseException) -> BooksFailed:
        if self.failed is None:
            self.failed = error
        return BooksFailed(str(error))

    def fail(self, error: BaseException) -> None:
        """Promise nothing any more: whoever syncs is dead."""
        self._fail(error)

    # -- syncing ---------------------------------------------------------------------------------------

    def begin_sync(self) -> Sync:
        """Plan a sync of everything written so far; one at a time."""
        full, last = tuple(self._full), self._file
        named = last.named and (not full or all(file.named for file in full))
        return Sync(self.seq, self._record_crc, full, last, self._disk, named)

    def synced(self, sync: Sync) -> bool:
        """Take note of a sync that succeeded, and mark it; only then may anybody be told.

        The mark needs no sync of its own: it is there to recognise damage, and what it covers is on the
        platter without it.

        Returns:
            Whether that was all. If not, an error has led on to a new segment meanwhile: sync that.

        Raises:
            BooksFailed: the disk has failed, now or before.
        """
        if self.failed is not None or self.closed:
            self._check()
        if sync.last.failed:
            return False
        upto = sync.upto
        if upto > self.synced_upto:
            mark = Mark(upto, self._clock())
            line, crc = encode(mark, self.seq, self._crc)
            try:
                self._put(mark, self.seq, line, crc)
            except OSError as error:
                self._write_on(error)
                return False
            unsynced = self._unsynced
            while unsynced and unsynced[0][0] <= upto:
                self._carries.note(unsynced.popleft()[1])
            self.synced_upto, self._synced_crc = upto, sync.crc
        sync.last.named = True
        if sync.full:
            for file in sync.full:
                file.named = True
            del self._full[: len(sync.full)]
            self._synced += sync.full
        self._may_write_on = True
        if self._given_up:
            self._close(self._given_up)
            self._given_up = []
        return True

    def sync_failed(self, sync: Sync, error: OSError) -> None:
        """Take note of a sync that did not succeed: go on in a new segment, and sync that.

        Raises:
            BooksFailed: that is not possible.
        """
        self._check()
        if not sync.last.failed:
            self._write_on(error)

    # -- files -----------------------------------------------------------------------------------------

    @property
    def wants_housework(self) -> bool:
        """Something should be done about the files; cheap to ask after every sync."""
        if self._synced:
            return True
        if self._spare is not None:
            return False
        promised = self._file.offset + self.reserved * (PLACE_BYTES + RECORD_BYTES)
        return promised * 2 >= self._file.size

    @property
    def wants_archiving(self) -> bool:
        """There are sealed segments that are not in the archive."""
        return bool(self._stored)

    def housework(self) -> Chore | None:
        """What should be done about the files, if anything; one thing at a time.

        A segment that is full is sealed once a sync has covered it and its successor's head. A spare is made
        once half of the file at hand is used or promised; without one there is less room to promise, nothing
        worse.
        """
        if self.failed is not None or self.closed or self._busy or not self.wants_housework:
            return None
        self._busy = True
        if self._synced:
            file = self._synced.popleft()
            return Chore(partial(seal_file, self._disk, file), partial(self._sealed, file))
        made: list[File] = []

        def make() -> None:
            made.append(make_spare(self._disk, self._directory, self._segment_bytes))

        return Chore(make, lambda: self._made(made[0]))

    def chore_done(self, chore: Chore) -> None:
        """Take note of a chore, whether it went well or not."""
        if chore.archives:
            self._archiving = False
        else:
            self._busy = False
        chore.note()

    def _made(self, spare: File) -> None:
        self._spare = spare

    def _sealed(self, file: File) -> None:
        self._stored.append(Stored(file.path, file.last_seq))

    def to_archive(self, stored: Iterable[Stored]) -> None:
        """Name sealed segments of earlier processes; they go into the archive as our own do."""
        self._stored.extend(stored)

    def archiving(self, loaded: int) -> Chore | None:
        """A sealed segment to put into the archive, if there is one of which the store has everything.

        One at a time, but beside other chores: a spare must not wait for it.

        Args:
            loaded: the last record that the store has.
        """
        if self._archiving or self.closed:
            return None
        for _ in range(len(self._stored)):
            stored = self._stored.popleft()
            self._stored.append(stored)  # if it cannot be done, the others come first
            if stored.last_seq <= loaded:
                self._archiving = True
                work = partial(put_away, self._disk, stored.path, packed(stored.path))
                return Chore(work, partial(self._stored.remove, stored), archives=True)
        return None

    def close(self) -> None:
        """Seal what is open, or remove it if it holds nothing. Everything was synced before, no chore runs.

        What an error was seen on is left as it is, for recovery to judge; after a failure everything is.
        """
        if self.closed:
            return
        self.closed = True
        files, spare = dict.fromkeys((*self._synced, *self._full, self._file)), self._spare
        self._close(self._given_up)
        if self.failed is not None:
            self._close(file for file in (*files, spare) if file is not None and not file.failed)
            return
        if spare is not None:
            remove_file(self._disk, spare)
        for file in files:
            if file is not self._file or not file.bare:
                seal_file(self._disk, file)
            else:
                remove_file(self._disk, file)

    def _close(self, files: Iterable[File]) -> None:
        for file in files:
            with suppress(OSError):  # nothing depends on it any more
                self._disk.close(file.descriptor)
