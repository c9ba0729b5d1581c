"""The recorder: makes durable what was written, tells who waits for it, and loads it into the store.

    write()   synchronous: a line in the journal, the record into the tail
    syncer    one fdatasync in a thread for all that is written by then, a mark, wakes waiters; and again
    loader    takes the newest synced slice into the store, in one transaction; slow or broken, it delays
              reports and, at a bound, admission; never a sync
    keeper    seals segments that are full and makes the next spare
    archivist compresses sealed segments that the store has

Back-pressure stands at the door: `reserve` and unreserved writes are refused (`Overloaded`) at any bound, a
reserved write finds its room. The one shielded scope of the house is in `run`; it ends when `close` was called
and everything that was written is on the platter.

An error of the disk is answered by the journal, which goes on in another file; whoever waits then waits until
that is synced. Where it cannot, nothing is promised any more: writes and waits raise `Overloaded`, `failed` says
why, `wait_failed` returns, and `run` raises at its end, so that the process ends with an error.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import Final, Protocol, TypeVar

import trio
from attrs import Factory, define, field, frozen

from accounting.journal import BooksFailed, Chore, Journal, NoRoom
from accounting.ports import Overloaded
from accounting.records import Record, UsageRecord

T = TypeVar("T")

BACKOFF_SECONDS: Final = (0.25, 10.0)
"""First and longest pause after an error of the store or of work on files."""

FORGOTTEN_AT_ONCE: Final = 512
"""Records that are dropped in one go: freeing them takes half a millisecond, for which all others have to wait."""

STOP_TRIES: Final = 3
"""Loads that are tried when stopping; what is not in the store then comes in at the next start."""


class RunInThread(Protocol):
    """Runs work in a thread. At least four at a time: a sync must not wait for a load, or for a report."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """Run it; what it returns or raises."""
        ...


class Index(Protocol):
    """Where slices are loaded; `accounting.store.Store`, or a fake. Called in threads, one call at a time."""

    def load(self, records: Sequence[tuple[int, Record]]) -> int:
        """Take a slice in, exactly once; says the last record that is in. Any exception: unknown."""
        ...

    def reopen(self) -> int:
        """Begin again after an error; says the last record that is in."""
        ...


@frozen
class Health:
    """How the books are, for `/health/ready` and metrics.

    Attributes:
        failed: why nothing is promised any more, if so.
        store_error: why the last load failed, if it did; it is tried again.
        written, synced, loaded: seqs.
        unsynced_seconds: age of the oldest record that is not on the platter.
        reserved: places taken for records to come.
        written_on: how often the journal has answered an error of the disk by going on in another file.
    """

    failed: str | None
    store_error: str | None
    written: int
    synced: int
    loaded: int
    unsynced_seconds: float
    reserved: int
    written_on: int = 0


@define(eq=False)
class _Bell:
    """Rung by many, heard by one: at once, if it was rung since it was heard last."""

    _event: trio.Event = field(factory=trio.Event, init=False)

    def ring(self) -> None:
        self._event.set()

    async def heard(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


@define(eq=False)
class Recorder:
    """Implements `accounting.hold.Writer`. `run` it as a task, `close` it to end that.

    Attributes:
        journal: opened by recovery; all of it is in the store, or follows from `loaded`.
        store: where it is loaded.
        now: monotonic seconds.
        run_in_thread: see there.
        run_aside: the same for what may wait while others are busy: loads, and compressing old segments.
        loaded: the last record that the store has.
        sync_seconds: least time between two syncs, for books that may lose so much when power fails.
        load_seconds, load_records_max: how often it is given more, and how much at most. However small, a load costs
            as much as 2,000 records, and reports know without it what it does not have yet.
        unloaded_max: records that may wait for it, before new ones are refused; from half of them on nobody waits.
        unsynced_seconds_max: age of the oldest record that is not on the platter, before they are.
        log: told what went wrong and is tried again: event and fields.
        on_settled: shown every settlement as it is written.
    """

    journal: Journal
    store: Index
    now: Callable[[], float]
    run_in_thread: RunInThread
    run_aside: RunInThread = field(
        default=Factory(lambda self: self.run_in_thread, takes_self=True), kw_only=True
    )
    loaded: int = field(kw_only=True)
    sync_seconds: float = field(default=0.0, kw_only=True)
    load_seconds: float = field(default=2.0, kw_only=True)
    load_records_max: int = field(default=20_000, kw_only=True)
    unloaded_max: int = field(default=500_000, kw_only=True)
    unsynced_seconds_max: float = field(default=10.0, kw_only=True)
    log: Callable[..., None] = field(default=lambda _event, **_fields: None, kw_only=True)
    on_settled: Callable[[UsageRecord], None] = field(default=lambda _record: None, kw_only=True)
    store_error: str | None = field(default=None, init=False)
    _synced: int = field(init=False)
    _tail: deque[tuple[int, Record]] = field(factory=deque, init=False)
    """Records that the store does not have yet. Its bound is `unloaded_max`, asked before a place is needed."""
    _usage: dict[str, tuple[tuple[int, UsageRecord], ...]] = field(factory=dict, init=False)
    """The S among them, by request."""
    _next: trio.Event = field(factory=trio.Event, init=False)
    """Set when the sync that comes next is over; `_flying` when the one under way is."""
    _flying: trio.Event = field(factory=trio.Event, init=False)
    _flying_upto: int = field(default=0, init=False)
    _unsynced_since: float | None = field(default=None, init=False)
    """When the first record was written that the sync under way does not cover; `_since_flying` of those it does."""
    _since_flying: float | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _failure: trio.Event = field(factory=trio.Event, init=False)
    _closing: trio.Event = field(factory=trio.Event, init=False)
    _written: _Bell = field(factory=_Bell, init=False)
    _over: trio.Event = field(factory=trio.Event, init=False)
    _loaded: trio.Event = field(factory=trio.Event, init=False)
    _load_now: _Bell = field(factory=_Bell, init=False)
    _chores: _Bell = field(factory=_Bell, init=False)
    _archivable: _Bell = field(factory=_Bell, init=False)

    def __attrs_post_init__(self) -> None:
        self._synced = self.journal.synced_upto
        self.journal.on_error = self._written_on

    # -- writing: synchronous --------------------------------------------------------------------------

    def reserve(self, places: int) -> None:
        """Take room for later records, in the journal and on the way to the store.

        Raises:
            Overloaded: one of them could find none, or the books have failed; nothing was taken.
        """
        self._admit(places)
        if not self.journal.reserve(places):
            self._chores.ring()  # a spare may be all that is missing
            raise Overloaded("the journal has no room", trigger="journal")

    def release(self, places: int) -> None:
        """Give room back that is no longer needed."""
        self.journal.release(places)

    def write(self, record: Record, *, reserved: bool = False) -> int:
        """Write a record and say its seq; with `reserved` it uses up a reserved place.

        Raises:
            Overloaded: no room, where none was reserved; or the books have failed. A reserved place stays so.
        """
        if not reserved:
            self._admit(1)
        elif self._closed:
            raise Overloaded("the books are closed", trigger="closed")
        try:
            seq = self.journal.append(record, reserved=reserved)
        except NoRoom:
            self._chores.ring()
            raise Overloaded("the journal has no room", trigger="journal") from None
        except BooksFailed as error:
            self._fail(error)
            raise Overloaded("the books have failed", trigger="failed") from error
        self._tail.append((seq, record))
        if self._unsynced_since is None:
            self._unsynced_since = self.now()
            self._written.ring()
        if isinstance(record, UsageRecord):
            before = self._usage.get(record.request)
            self._usage[record.request] = ((seq, record),) if before is None else (*before, (seq, record))
            self.on_settled(record)
        return seq

    def close(self) -> None:
        """Take nothing more; `run` ends once everything is on the platter and, if the store can, loaded."""
        self._closed = True
        self._closing.set()
        self._written.ring()

    def _admit(self, places: int) -> None:
        journal = self.journal
        if journal.failed is not None:
            raise Overloaded("the books have failed", trigger="failed")
        if self._closed:
            raise Overloaded("the books are closed", trigger="closed")
        if journal.seq - self.loaded + journal.reserved + places > self.unloaded_max:
            raise Overloaded("too many records wait for the store", trigger="unloaded")
        since = self._unsynced_since if self._since_flying is None else self._since_flying
        if since is not None and self.now() - since > self.unsynced_seconds_max:
            raise Overloaded("the disk is too slow", trigger="unsynced")

    # -- asking ----------------------------------------------------------------------------------------

    @property
    def failed(self) -> BaseException | None:
        """The error after which nothing is promised any more."""
        return self.journal.failed

    @property
    def unloaded(self) -> int:
        """How many records the store does not have yet."""
        return self.journal.seq - self.loaded

    @property
    def oldest_unsynced_seconds(self) -> float:
        """Age of the oldest record that is not on the platter; 0 where there is none."""
        since = self._unsynced_since if self._since_flying is None else self._since_flying
        return 0.0 if since is None else self.now() - since

    def health(self) -> Health:
        """How the books are."""
        return Health(
            None if self.failed is None else str(self.failed),
            self.store_error,
            self.journal.seq,
            self._synced,
            self.loaded,
            self.oldest_unsynced_seconds,
            self.journal.reserved,
            self.journal.written_on,
        )

    def usage_of(self, request: str) -> tuple[UsageRecord, ...]:
        """The settled attempts of a request that the store does not have yet.

        Ask before the store is asked: a record that is loaded in between is then seen twice, never missed.
        """
        return tuple(record for _, record in self._usage.get(request, ()))

    def unloaded_usage(self) -> Iterator[tuple[int, UsageRecord]]:
        """Every settled attempt that the store does not have yet, with its seq, by seq. See `usage_of`."""
        entries = [entry for entries in self._usage.values() for entry in entries]
        return iter(sorted(entries, key=lambda entry: entry[0]))

    # -- waiting ---------------------------------------------------------------------------------------

    async def durable(self, seq: int) -> None:
        """Return once everything up to a record is on the platter, and marked: at once, where it is already.

        Where nothing must be waited for this is no checkpoint: nobody else runs, nothing is cancelled.

        Raises:
            Overloaded: it never will be, as far as can be known: the books have failed.
        """
        if seq <= self._synced:
            return
        if self.journal.failed is None and not self._over.is_set():
            await (self._flying if seq <= self._flying_upto else self._next).wait()
        if seq > self._synced:
            raise Overloaded("the books have failed", trigger="failed") from self.failed

    async def flush(self) -> None:
        """Return once everything that is written by now is in the store; for `verify` and tests.

        Raises:
            Overloaded: the books have failed, or the store cannot take it for now.
        """
        upto = self.journal.seq
        await self.durable(upto)
        while self.loaded < upto:
            self._load_now.ring()
            await self._loaded.wait()
            if self.loaded < upto and (self.store_error is not None or self._over.is_set()):
                raise Overloaded(f"the store cannot be loaded: {self.store_error}", trigger="unloaded")

    async def wait_failed(self) -> None:
        """Return when the books have failed: the process is to stop admitting, and to end with an error."""
        await self._failure.wait()

    # -- the task --------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sync, load and keep files until `close`; then seal the journal. Cancelling it has no effect.

        Raises:
            BooksFailed: the disk failed, now or earlier.
        """
        with trio.CancelScope(shield=True):  # ended by `close`, in whatever happens
            try:
                async with trio.open_nursery() as nursery:
                    self._archivable.ring()  # for what earlier processes have sealed
                    nursery.start_soon(self._load)
                    nursery.start_soon(
                        self._tend, "journal_chore", self._chores, self.journal.housework, self.run_in_thread
                    )
                    nursery.start_soon(
                        self._tend,
                        "archive",
                        self._archivable,
                        lambda: self.journal.archiving(self.loaded),
                        self.run_aside,
                    )
                    task_status.started()
                    await self._sync()
            except BaseException as error:
                self._fail(error)  # a dead recorder is failed books
                raise
            finally:
                self._closed = True
                self._over.set()
                self._wake()
            try:
                await self.run_in_thread(self.journal.close)
            except OSError as error:
                # all is on the platter; a segment that is not sealed is read just as well
                self.log("journal_not_sealed", error=repr(error))
        if self.failed is not None:
            raise BooksFailed(str(self.failed)) from self.failed

    async def _sync(self) -> None:
        """Group syncs: while one is under way, what is written gathers for the next. Until all is in after `close`.

        After a failure none follows: what is not on the platter by then was promised to nobody.
        """
        began = -math.inf
        try:
            while True:
                if self._unsynced_since is None or self.journal.failed is not None:
                    if self._closed:
                        return
                    await self._written.heard()
                    continue
                if self.sync_seconds:
                    with trio.move_on_at(began + self.sync_seconds):
                        await self._closing.wait()
                    began = trio.current_time()
                await self._sync_once()
        finally:
            self._over.set()
            self._load_now.ring()
            self._chores.ring()
            self._archivable.ring()

    async def _sync_once(self) -> None:
        """Bring what is written to the platter, in another file if need be, and let go of who waits for it."""
        self._flying, self._next = self._next, trio.Event()
        self._since_flying, self._unsynced_since = self._unsynced_since, None
        try:
            synced = None
            while synced is None:
                synced = await self._try_sync()
        except BooksFailed as error:
            self._fail(error)
            return
        self._since_flying = None
        self._synced = synced
        self._flying.set()
        if self.journal.wants_housework:
            self._chores.ring()
        if 2 * (synced - self.loaded) > self.unloaded_max and self.store_error is None:
            self._load_now.ring()

    async def _try_sync(self) -> int | None:
        """Sync once; says up to where, or `None` if an error has led the journal on to another file."""
        sync = self.journal.begin_sync()
        self._flying_upto = sync.upto
        try:
            await self.run_in_thread(sync.run)
        except OSError as error:
            self.journal.sync_failed(sync, error)
            return None
        return sync.upto if self.journal.synced(sync) else None

    def _written_on(self, error: BaseException) -> None:
        self.log("journal_written_on", error=repr(error), times=self.journal.written_on)

    def _fail(self, error: BaseException) -> None:
        self.journal.fail(error)
        if not self._failure.is_set():
            self.log("books_failed", error=repr(error))
            self._failure.set()
        self._wake()

    def _wake(self) -> None:
        """Let everybody who waits look again; who finds nothing raises."""
        self._flying.set()
        self._next.set()
        self._loaded.set()

    # -- the loader ------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Load what is synced, every `load_seconds` or when asked, until the syncer is over and all is in."""
        pause, tries = BACKOFF_SECONDS[0], 0
        while True:
            if not self._over.is_set():
                with trio.move_on_after(self.load_seconds if self.store_error is None else pause):
                    await self._load_now.heard()
            over = self._over.is_set()
            try:
                more = await self._load_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, reports wait and money does not
                self.store_error = repr(error)
                self.log("store_failed", error=self.store_error, pause_seconds=pause)
                more, tries = True, tries + over
                pause = min(pause * 2, BACKOFF_SECONDS[1])
            else:
                pause = BACKOFF_SECONDS[0]
            self._loaded.set()
            self._loaded = trio.Event()
            if over and (not more or tries >= STOP_TRIES):
                return

    async def _load_once(self) -> bool:
        """Load one slice, after finding out where the store is if that is unknown. Says if there is more."""
        if self.store_error is not None:
            await self._forget(await self.run_aside(self.store.reopen))
            self.store_error = None
        count = min(self._loadable(), self.load_records_max)
        if not count:
            return False
        entries = tuple(islice(self._tail, count))
        await self._forget(await self.run_aside(lambda: self.store.load(entries)))
        if count == self.load_records_max:
            self._load_now.ring()  # what came meanwhile can wait for others; what did not fit cannot
        return self._loadable() > 0

    def _loadable(self) -> int:
        """How many records of the tail are on the platter; their seqs count on by one."""
        return max(self._synced - self._tail[0][0] + 1, 0) if self._tail else 0

    async def _forget(self, upto: int) -> None:
        """The store has everything up to here: drop it from the tail, a part at a time."""
        self.loaded = max(self.loaded, upto)
        tail, usage = self._tail, self._usage
        while tail and tail[0][0] <= upto:
            for _ in range(min(upto - tail[0][0] + 1, FORGOTTEN_AT_ONCE, len(tail))):
                record = tail.popleft()[1]
                if isinstance(record, UsageRecord):
                    entries = usage.pop(record.request)
                    if len(entries) > 1:  # the first of them is this one
                        usage[record.request] = entries[1:]
            await trio.lowlevel.checkpoint()
        if self.journal.wants_archiving:
            self._archivable.ring()

    # -- the keeper of files, and the archivist ----------------------------------------------------------

    async def _tend(
        self, name: str, bell: _Bell, next_chore: Callable[[], Chore | None], run: RunInThread
    ) -> None:
        """Do chores of one sort, one after the other, whenever the bell rings; one that fails comes again."""
        pause = BACKOFF_SECONDS[0]
        while not self._over.is_set():
            await bell.heard()
            while not self._over.is_set() and (chore := next_chore()) is not None:
                try:
                    await run(chore.run)
                    pause = BACKOFF_SECONDS[0]
                except OSError as error:
                    self.log(f"{name}_failed", error=repr(error), pause_seconds=pause)
                    with trio.move_on_after(pause):
                        await self._over.wait()
                    pause = min(pause * 2, BACKOFF_SECONDS[1])
                finally:
                    self.journal.chore_done(chore)
                    self._archivable.ring()  # one was sealed, perhaps
