"""Opening and closing the books for one process: recovery, the recorder, the store, and the operator's view of them.

A gateway opens them to write and keeps them open. A command that writes does the same for a moment. A command that
only reads replays the journal in memory and opens the store to read; it takes no lock and repairs nothing.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from accounting.audit import Finding, Lines, verify
from accounting.books import Books
from accounting.disk import OsDisk
from accounting.ledger import Ledger
from accounting.ports import Overloaded, Writer
from accounting.recorder import Recorder
from accounting.records import Record, UsageRecord
from accounting.recovery import JOURNAL, LOCK, RecoveryError, recover
from accounting.refusals import Contradiction
from accounting.reports import Reader
from accounting.scan import JournalDamaged, read_upto, scan
from accounting.store import NAME as STORE_NAME
from accounting.store import Store, StoreError, StoreOutdated
from pricing.catalog import Catalog
from proxy.admin import READS, Admin
from proxy.background import Background
from proxy.config import DATA, Config
from proxy.telemetry import Telemetry

SCHEMA: Final = DATA / "schema"
REPORTS_AT_ONCE: Final = 2
"""Questions that the store answers at a time: on few cores more of them only slow the loop down."""

RECORDER_THREADS: Final = 4
"""The recorder's own: a sync must never wait for other work to leave its thread."""

BACKGROUND_THREADS: Final = 2
"""For a load of the store, and for compressing an old segment of the journal."""

ATTEMPT_SLACK_SECONDS: Final = 120.0
"""How much longer than its total deadline an attempt may be open before `verify` calls it forgotten."""


ID_BYTES: Final = 10
"""Random bytes in an id: nobody can guess one, and no two are alike before the end of time."""

IDS_DRAWN: Final = 256
"""Ids whose random part is drawn at once."""


class Unavailable(Exception):
    """The books or an address cannot be had; the message says why, and what to do."""


def wall_ms() -> int:
    """Wall clock in milliseconds."""
    return time.time_ns() // 10**6


@define(eq=False)
class Ids:
    """Makes ids: 48 bits of time, so that they sort by age, and 80 random ones, so that nodes need not agree."""

    _drawn: list[str] = field(factory=list, init=False, repr=False)
    """Random parts for the ids to come: one question to the system is as dear as all else about an id."""

    def __call__(self, prefix: str) -> str:
        """A fresh id, `prefix_` and 32 hexadecimal digits."""
        if not self._drawn:
            self._drawn = _draw(IDS_DRAWN)
        return f"{prefix}_{time.time_ns() // 10**6:012x}{self._drawn.pop()}"


def _draw(count: int) -> list[str]:
    digits = secrets.token_hex(count * ID_BYTES)
    return [digits[at : at + 2 * ID_BYTES] for at in range(0, len(digits), 2 * ID_BYTES)]


def new_id(prefix: str) -> str:
    """A fresh id for one who needs no more than a few."""
    return f"{prefix}_{wall_ms():012x}{secrets.token_hex(ID_BYTES)}"


def taken(state: Path) -> bool:
    """Whether a process has these books open to write."""
    disk = OsDisk()
    try:
        disk.close(disk.lock(state / LOCK))
    except BlockingIOError:
        return True
    return False


def keep_catalog(state: Path, catalog: Catalog) -> None:
    """Keep this version of the price list by its hash: records name it for as long as they exist."""
    folder = state / "prices"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{catalog.version}.json"
    if not path.exists():
        draft = path.with_suffix(".draft")
        draft.write_bytes(catalog.content)
        draft.rename(path)


@define(eq=False)
class _Clock:
    """Wall clock that never goes back, beginning at the newest time in the journal."""

    last_ms: int

    def __call__(self) -> int:
        now_ms = time.time_ns() // 1_000_000
        if now_ms <= self.last_ms:
            return self.last_ms
        self.last_ms = now_ms
        return now_ms


@define(eq=False)
class OpenBooks:
    """Books that this process writes.

    Attributes:
        state: the directory.
        books: what the house asks about money.
        recorder: makes it durable.
        reader: reports.
    """

    state: Path
    books: Books
    recorder: Recorder
    reader: Reader
    _ask: Callable[[str, Sequence[object]], Awaitable[Any]]
    _total_seconds: float

    def admin(self, config: Config) -> Admin:
        """The operator's operations on them."""
        prefix = config.keys.prefix
        return Admin(self.books, self.reader, self.verify, prefix, secrets.token_bytes, load_books=self.load)

    async def load(self) -> int:
        """Return once all that is written by now is in the store; says the last record that is.

        Not the last that had been asked for: what was loaded together was posted together.
        """
        await self.recorder.flush()
        return self.recorder.loaded

    async def verify(self) -> tuple[Finding, ...]:
        """Check every invariant, on books that go on being written."""

        async def read_journal(judge: Callable[[Lines], tuple[Finding, ...]]) -> tuple[Finding, ...]:
            seq = self.recorder.journal.seq
            return await trio.to_thread.run_sync(
                lambda: judge(read_upto(OsDisk(), self.state / JOURNAL, seq))
            )

        try:
            return await verify(
                snapshot=self.books.snapshot,
                load=self.recorder.flush,
                ask=self._ask,
                read_journal=read_journal,
                now_ms=self.books.clock(),
                attempt_seconds_max=self._total_seconds + ATTEMPT_SLACK_SECONDS,
            )
        except JournalDamaged as damaged:
            return (Finding("I4", damaged.because, f"{damaged.path}, byte {damaged.offset}"),)


@asynccontextmanager
async def opened(config: Config, telemetry: Telemetry) -> AsyncIterator[OpenBooks]:
    """Open the books to write, recovering whatever a dead process left; on leaving flush, seal and let go.

    Raises:
        Unavailable: another process has them, or they cannot be opened as they are.
    """
    settings, disk, state = config.books, OsDisk(), _state_of(config)
    path, memory = state / STORE_NAME, settings.store_memory
    try:
        recovered = recover(
            state,
            disk=disk,
            open_store=lambda: Store.open_repaired(
                path, memory_limit=memory, schema_dir=SCHEMA, stamp=str(wall_ms())
            ),
            clock=wall_ms,
            segment_bytes=settings.segment_bytes,
            load_records_max=settings.load_records_max,
        )
    except (RecoveryError, StoreError) as error:
        raise Unavailable(str(error)) from error
    except OSError as error:
        raise Unavailable(f"the books in {state} cannot be opened: {error}") from error
    _report(recovered.findings, recovered.store.set_aside, telemetry)
    background = Background(BACKGROUND_THREADS)
    recorder = Recorder(
        recovered.journal,
        recovered.store,
        time.perf_counter,
        partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(RECORDER_THREADS)),
        run_aside=background.run,
        loaded=recovered.journal.seq,
        sync_seconds=settings.relaxed_seconds if settings.durability == "relaxed" else 0.0,
        load_seconds=settings.load_seconds,
        load_records_max=settings.load_records_max,
        unloaded_max=settings.unloaded_max,
        unsynced_seconds_max=settings.unsynced_seconds_max,
        log=partial(telemetry.trouble, "error"),
        on_settled=telemetry.settled,
    )
    books = Books(
        recovered.ledger,
        recorder,
        _Clock(recovered.last_ms),
        time.perf_counter,
        Ids(),
        progress_seconds=settings.progress_seconds,
        progress_tokens=settings.progress_tokens,
        durability=settings.durability,
        empty_free_per_key_day=config.holds.empty_free_per_key_day,
        seq=recovered.journal.seq,
    )
    ask = _asker(recovered.store)
    try:
        with background:
            async with trio.open_nursery() as nursery:
                await nursery.start(recorder.run)
                try:
                    yield OpenBooks(
                        state, books, recorder, Reader(ask, recorder), ask, config.deadlines.total_seconds
                    )
                finally:
                    recorder.close()
    finally:
        recovered.close()


async def operate(
    config: Config, operation: str, arguments: bytes, telemetry: Callable[[], Telemetry]
) -> dict[str, Any]:
    """Run one operation on books that no gateway has open.

    Raises:
        Rejected: the operation was refused.
        Unavailable: the books cannot be opened.
    """
    # verify recovers first: what a killed process left is not wrong, only unfinished
    if operation in READS:
        with suppress(StoreOutdated):  # then it is brought up to date first, as by anything that writes
            return await _reading(config).call(operation, arguments)
    if operation in {*READS, "verify"}:
        existing(config)
    async with opened(config, telemetry()) as books:
        return await books.admin(config).call(operation, arguments)


def existing(config: Config) -> Path:
    """The state directory. Raises `Unavailable` if there are no books in it, so that none are made by reading."""
    state = _state_of(config)
    if not (state / JOURNAL).is_dir():
        raise Unavailable(f"there are no books in {state}; `farebox wallet create` makes some")
    return state


def _reading(config: Config) -> Admin:
    """The operations that only read, over the journal replayed in memory and the store as it is."""
    state = existing(config)
    ledger, tail = Ledger(), _Tail()
    try:
        store = Store.open_to_read(
            state / STORE_NAME, memory_limit=config.books.store_memory, schema_dir=SCHEMA
        )
        loaded = store.loaded_seq()
        for seq, record in scan(OsDisk(), state / JOURNAL):
            ledger.replay(record)
            if seq > loaded and isinstance(record, UsageRecord):
                tail.records.append((seq, record))
    except StoreOutdated:
        raise
    except (StoreError, JournalDamaged, Contradiction, OSError) as error:
        raise Unavailable(str(error)) from error
    books = Books(ledger, _NoWriter(), wall_ms, trio.current_time, Ids())

    async def nothing() -> tuple[Finding, ...]:
        raise Unavailable("books that are only read cannot be verified")

    return Admin(books, Reader(_asker(store), tail), nothing, config.keys.prefix, secrets.token_bytes)


@define(eq=False)
class _Tail:
    """What the journal has and the store does not, yet."""

    records: list[tuple[int, UsageRecord]] = field(factory=list)

    def unloaded_usage(self) -> Iterable[tuple[int, UsageRecord]]:
        return self.records

    def usage_of(self, request: str) -> tuple[UsageRecord, ...]:
        return tuple(record for _, record in self.records if record.request == request)


class _NoWriter(Writer):
    """The writer of books that are only read; the commands that read never come here."""

    def reserve(self, places: int) -> None:
        raise self._refused(places)

    def release(self, places: int) -> None:
        raise self._refused(places)

    def write(self, record: Record, *, reserved: bool = False) -> int:
        raise self._refused(record, reserved)

    async def durable(self, seq: int) -> None:
        raise self._refused(seq)

    def _refused(self, *_what: object) -> Overloaded:
        return Overloaded("these books are only read")


def _state_of(config: Config) -> Path:
    return Path(config.books.state_dir).absolute()


def _asker(store: Store) -> Callable[[str, Sequence[object]], Awaitable[Any]]:
    """Ask the store in threads, a few questions at a time."""
    limiter = trio.CapacityLimiter(REPORTS_AT_ONCE)

    async def ask(sql: str, parameters: Sequence[object]) -> Any:
        return await trio.to_thread.run_sync(store.query, sql, parameters, limiter=limiter)

    return ask


def _report(findings: Any, set_aside: list[Path], telemetry: Telemetry) -> None:
    """Say what recovery found and did, where that was anything."""
    for damage in findings.damages:
        telemetry.log("warning", "journal_tail_cut", path=damage.path.name, because=damage.because)
    for path in set_aside:
        telemetry.log("warning", "store_set_aside", path=path.name)
    if findings.settled:
        telemetry.log(
            "warning", "settled_after_a_kill", because=f"{len(findings.settled)} attempts were open"
        )
    if findings.jobs:
        telemetry.log("info", "jobs_open", because=f"{len(findings.jobs)} jobs go on at their providers")
