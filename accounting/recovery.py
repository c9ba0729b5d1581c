"""What happens at start, step by step: from whatever a dead process left to books that may be acted on.

1. Lock the state directory: one writer.
2. Sync every segment before acting on it. A killed process leaves lines that stand in the page cache alone;
   to act on them and then lose power would be to forget why one acted.
3. Scan: seqs are contiguous, damage below a mark stops the start, a torn tail is cut.
4. Open the store, setting aside what of it cannot be read: the journal has it all. If it knows lines that
   the journal does not have, stop.
5. Write what lies above the last mark into a new segment, under the same seqs, and sync it. Only then are
   the old ones cut and sealed; they are never appended to. They go into the archive later, in the background.
6. Load what is missing. Settle every call that the dead process left open, at its last progress; write that,
   sync it, and load it, too. A job stays open with its hold: its provider works on, and it is taken up again.
   One that no provider is known to have taken on is settled as a call: nobody could ever say how it ended.

A state directory that is not there yet goes the same way. Nothing here awaits: nobody is served meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar

from attrs import define, field, frozen

from accounting.disk import Disk
from accounting.journal import Journal, Stored
from accounting.ledger import Ledger, OpenAttempt
from accounting.recorder import Index
from accounting.records import Record, UsageRecord
from accounting.refusals import Contradiction
from accounting.scan import Damage, Scan, read_after
from accounting.segment import (
    SEALED,
    SPARE,
    File,
    JournalDamaged,
    Segment,
    archive_of,
    seal_file,
    segments,
)

JOURNAL: Final = "journal"
LOCK: Final = "lock"


class RecoveryError(Exception):
    """The books cannot be opened as they are; the message says what a person has to look at."""


class AlreadyRunning(RecoveryError):
    """Another process has the state directory: ask it over its admin API, or stop it."""


class OpenIndex(Index, Protocol):
    """A store that is open; `accounting.store.Store`, or a fake."""

    def loaded_seq(self) -> int:
        """The last record that is in it."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


S = TypeVar("S", bound=OpenIndex)


@frozen
class Findings:
    """What a start found and did, for the log.

    Attributes:
        damages: torn tails that were cut.
        rewritten: records above the last mark that were written again.
        loaded: records that the store did not have.
        settled: what was settled for the dead process.
        jobs: what is open still, each with its hold: work that a provider has taken on.
    """

    damages: tuple[Damage, ...]
    rewritten: int
    loaded: int
    settled: tuple[UsageRecord, ...]
    jobs: tuple[OpenAttempt, ...] = ()


@define(eq=False)
class Recovered(Generic[S]):
    """Books that are open, for one process.

    Attributes:
        ledger: all of the journal, replayed.
        journal: to be appended to from here on.
        store: loaded up to `journal.seq`.
        findings: what there was to do.
        last_ms: the newest wall clock that stands in the journal; a clock that never goes back begins there.
    """

    ledger: Ledger
    journal: Journal
    store: S
    findings: Findings
    last_ms: int
    _lock: "StateLock"

    def close(self) -> None:
        """Close the store and give the state directory free; the recorder has ended, or never ran."""
        self.journal.close()
        self.store.close()
        self._lock.release()


@define(eq=False)
class StateLock:
    """The right to write in a state directory, from `take` until `release` or the end of the process."""

    _disk: Disk
    _descriptor: int | None

    @classmethod
    def take(cls, disk: Disk, state: Path) -> Self:
        """Make the directory for us alone and lock it. Raises `AlreadyRunning`."""
        disk.make_dir(state)
        try:
            return cls(disk, disk.lock(state / LOCK))
        except BlockingIOError:
            raise AlreadyRunning(f"{state}: another process has these books open") from None

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            self._disk.close(self._descriptor)
            self._descriptor = None


def recover(
    state: Path,
    *,
    disk: Disk,
    open_store: Callable[[], S],
    clock: Callable[[], int],
    segment_bytes: int,
    load_records_max: int,
) -> Recovered[S]:
    """Open the books of a state directory, whatever happened to the process that had them before.

    Args:
        state: the directory; made if it is not there.
        disk: where it is.
        open_store: opens the store, setting aside what of it cannot be read; called under the lock.
        clock: wall clock in ms.
        segment_bytes: of a journal segment.
        load_records_max: at most so many in one transaction.

    Raises:
        AlreadyRunning: another process has them.
        RecoveryError: something that was promised is lost or contradicts itself; nothing was changed.
        OSError, StoreError: disk or store cannot be used; a later start may go better.
    """
    with ExitStack() as undo:
        lock = StateLock.take(disk, state)
        undo.callback(lock.release)
        ledger, last = Ledger(), _Newest()
        directory = state / JOURNAL
        scanned = _read(disk, directory, ledger, last)
        store = open_store()
        undo.callback(store.close)
        loaded = store.loaded_seq()
        _check_not_ahead(directory, loaded, scanned.last_seq)

        def stamp() -> int:
            return max(clock(), last.ms)

        past, opened = scanned.past(), ledger.open_attempts()
        jobs = tuple(one for one in opened if one.job is not None)
        calls = [one for one in opened if one.job is None]
        _clear(disk, directory, scanned, past.number)
        journal = Journal.open(
            disk, directory, past, segment_bytes=segment_bytes, clock=stamp, places=len(calls)
        )
        undo.callback(journal.close)
        _load(store, read_after(disk, scanned.pieces, loaded), load_records_max)
        journal.to_archive(_seal(disk, scanned, past.number))
        settled = _settle(ledger, journal, calls, stamp)
        _load(store, enumerate(settled, scanned.last_seq + 1), load_records_max)
        undo.pop_all()
    missing = scanned.last_seq - loaded
    findings = Findings(tuple(scanned.damages), len(past.tail), missing, tuple(settled), jobs)
    return Recovered(ledger, journal, store, findings, last.ms, lock)


def _read(disk: Disk, directory: Path, ledger: Ledger, last: "_Newest") -> Scan:
    """Sync what is there, then scan it, replaying every record. Memory alone is changed."""
    for one in (directory, archive_of(directory)):
        disk.make_dir(one)
    disk.sync_dir(directory.parent)
    try:
        found = segments(disk, directory)
        for segment in found:
            if not segment.archived:  # those were synced before they got their name
                _sync(disk, segment)
        disk.sync_dir(directory)
        scanned = Scan(disk, found)
        for seq, record in scanned:
            try:
                ledger.replay(record)
            except Contradiction as contradiction:
                raise RecoveryError(
                    f"line {seq} of the journal contradicts others: {contradiction}"
                ) from None
            last.note(record)
    except JournalDamaged as damaged:
        raise RecoveryError(f"the journal is damaged. {damaged}") from damaged
    return scanned


def _check_not_ahead(directory: Path, loaded: int, last_seq: int) -> None:
    if loaded > last_seq:
        raise RecoveryError(
            f"the store knows line {loaded}, but the journal in {directory} ends after line {last_seq}: "
            "part of it is missing"
        )


def _sync(disk: Disk, segment: Segment) -> None:
    descriptor = disk.open(segment.path)
    try:
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)


def _clear(disk: Disk, directory: Path, scanned: Scan, number: int) -> None:
    """Remove what lies behind the last piece that counts: segments that were never synced, and the spare."""
    # the last first, each for good: whatever cuts this off must not leave one without those before it
    for segment in sorted(scanned.unused, key=lambda one: one.number, reverse=True):
        if segment.number > number:
            disk.unlink(segment.path)
            disk.sync_dir(directory)
    disk.unlink(directory / SPARE)
    disk.sync_dir(directory)


def _seal(disk: Disk, scanned: Scan, number: int) -> Iterator[Stored]:
    """Cut and seal the old segments, now that what counts in them is on the platter elsewhere, too.

    Says which of them are not in the archive yet.
    """
    counts = [(piece.segment, piece.last_seq, piece.end) for piece in scanned.pieces]
    # nothing counts in one that another was written in place of; its number stays
    counts += [(segment, 0, 0) for segment in scanned.unused if segment.number < number]
    for segment, last_seq, end in counts:
        if not segment.sealed:
            seal_file(disk, File(segment.path, segment.number, disk.open(segment.path), end, end))
        original = segment.original if segment.archived else segment.path.with_suffix(SEALED)
        if original is not None:
            yield Stored(original, last_seq)


def _load(store: OpenIndex, records: Iterable[tuple[int, Record]], at_once: int) -> None:
    slice_: list[tuple[int, Record]] = []
    for entry in records:
        slice_.append(entry)
        if len(slice_) == at_once:
            store.load(slice_)
            slice_ = []
    if slice_:
        store.load(slice_)


def _settle(
    ledger: Ledger, journal: Journal, opened: Iterable[OpenAttempt], stamp: Callable[[], int]
) -> list[UsageRecord]:
    """Settle what was left open, durably."""
    settled = []
    for one in opened:
        record = ledger.settle_recovered(one, stamp())
        journal.append(record)
        settled.append(record)
    while journal.synced_upto < journal.seq:
        sync = journal.begin_sync()
        try:
            sync.run()
        except OSError as error:
            journal.sync_failed(sync, error)
        else:
            journal.synced(sync)
    return settled


@define(eq=False)
class _Newest:
    """The newest wall clock that was read."""

    ms: int = field(default=0)

    def note(self, record: Record) -> None:
        ms = record.ended_ms if isinstance(record, UsageRecord) else record.at_ms
        self.ms = max(self.ms, ms)
