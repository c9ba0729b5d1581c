"""What is done to the books as a whole: made anew, copied, given to other tools, compared with an invoice.

A running gateway is never told to write anywhere: it says what is safe, or gives out what it has, page by page, and
the command's own process writes the files.
"""

import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO, TypeVar

import msgspec
import trio
from attrs import define, field

from accounting import export
from accounting.audit import Finding
from accounting.backup import BackupError, Copied, back_up
from accounting.disk import OsDisk
from accounting.invoice import Invoice, Priced, Settled, read_lines, settled
from accounting.records import Record
from accounting.recovery import RecoveryError, StateLock, recover
from accounting.scan import JournalDamaged
from accounting.store import NAME, Store, StoreError, write_table
from pricing.catalog import Catalog
from pricing.money import PPM, Pico
from pricing.usage import Usage
from proxy import app, books
from proxy.books import Unavailable
from proxy.config import Config
from proxy.telemetry import Telemetry

T = TypeVar("T")

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Runs one of the operator's operations, by name."""

Form = Literal["parquet", "csv"]

Told = Callable[[str, int], None]
"""Is told how far it is: what is being done, and how much of it is done."""

ANEW: Final = f"{NAME}.anew"
OLD: Final = f"{NAME}.old"
LOG: Final = ".wal"


@contextmanager
def ungrouped() -> Iterator[None]:
    """Take a lone exception out of the groups that nurseries put around it; commands show sentences."""
    try:
        yield
    except BaseExceptionGroup as group:
        alone: BaseException = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
        if isinstance(alone, BaseExceptionGroup):
            raise
        raise alone from None


def converse(config: Config, work: Callable[[Call], Awaitable[T]]) -> T:
    """Do work that takes several operations: on the running gateway, or on the books, opened once for all of it.

    Raises:
        Rejected: an operation was refused.
        Unavailable: there are no books, or they cannot be opened.
    """
    books.existing(config)
    client = app.running(config)
    if client is None:
        with ungrouped():
            return trio.run(_on_closed_books, config, work)

    async def call(operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        return client.call(operation, msgspec.json.encode(asked))

    return trio.run(work, call)


async def _on_closed_books(config: Config, work: Callable[[Call], Awaitable[T]]) -> T:
    telemetry = Telemetry(books.wall_ms, trio.current_time, "warning")
    async with books.opened(config, telemetry) as opened:
        admin = opened.admin(config)

        async def call(operation: str, asked: dict[str, Any]) -> dict[str, Any]:
            return await admin.call(operation, msgspec.json.encode(asked))

        return await work(call)


# -- made anew -----------------------------------------------------------------------------------------


def rebuild(config: Config, told: Told) -> int:
    """Make the store anew from archive and journal; says the last record in it.

    The old one stays until the new one is whole, and takes its place.

    Raises:
        Unavailable: a gateway runs, there are no books, or they cannot be read.
    """
    state, settings = books.existing(config), config.books
    anew = _Anew(state, told)
    try:
        recovered = recover(
            state,
            disk=OsDisk(),
            open_store=lambda: anew.open(settings.store_memory),
            clock=books.wall_ms,
            segment_bytes=settings.segment_bytes,
            load_records_max=settings.load_records_max,
        )
        anew.whole = anew.loaded_seq() == recovered.journal.seq
        recovered.close()
    except (RecoveryError, StoreError, OSError) as error:
        raise Unavailable(f"the store was not made anew, and the old one is as it was: {error}") from error
    return recovered.journal.seq


@define(eq=False)
class _Anew:
    """A store that is made beside the old one, and takes its place when it is closed and whole."""

    _state: Path
    _told: Told
    whole: bool = field(default=False, init=False)
    _store: Store | None = field(default=None, init=False)

    def open(self, memory_limit: str) -> "_Anew":
        """Begin; the lock of the state directory is held by now."""
        self._remove(ANEW)  # of a try that was broken off
        path = self._state / ANEW
        self._store = Store.open(path, memory_limit=memory_limit, schema_dir=books.SCHEMA)
        self._told("records", 0)
        return self

    @property
    def store(self) -> Store:
        """The new one."""
        if self._store is None:
            raise StoreError("it was not opened")
        return self._store

    def loaded_seq(self) -> int:
        return self.store.loaded_seq()

    def load(self, records: Sequence[tuple[int, Record]]) -> int:
        upto = self.store.load(records)
        self._told("records", upto)
        return upto

    def reopen(self) -> int:
        return self.store.reopen()

    def close(self) -> None:
        """Take the place of the old one, if all is in; else leave nothing behind."""
        self.store.close()
        if not self.whole:
            self._remove(ANEW)
            return
        if (self._state / f"{ANEW}{LOG}").exists():
            raise StoreError(f"{ANEW} could not be closed whole")
        # at every step there is an old store, a new one or none; and the journal has what is missing
        self._rename(f"{NAME}{LOG}", f"{OLD}{LOG}")
        self._rename(NAME, OLD)
        self._rename(ANEW, NAME)
        OsDisk().sync_dir(self._state)
        self._remove(OLD)

    def _rename(self, name: str, new: str) -> None:
        if (self._state / name).exists():
            (self._state / name).rename(self._state / new)

    def _remove(self, name: str) -> None:
        for one in (name, f"{name}{LOG}"):
            (self._state / one).unlink(missing_ok=True)


# -- copied --------------------------------------------------------------------------------------------


def backup(config: Config, target: Path) -> Copied:
    """Copy the books into a directory, whether a gateway runs or not.

    Raises:
        Unavailable: it cannot be done; says why.
    """
    state, disk = books.existing(config).resolve(), OsDisk()
    client = app.running(config)
    try:
        if client is not None:
            upto = int(client.call("durable", b"{}")["seq"])
            return back_up(disk, state, target.resolve(), upto)
        lock = StateLock.take(disk, state)
        try:
            return back_up(disk, state, target.resolve(), None)
        finally:
            lock.release()
    except (BackupError, RecoveryError, JournalDamaged, OSError) as error:
        raise Unavailable(f"nothing was copied: {error}") from error


# -- given to other tools ------------------------------------------------------------------------------


def export_ledger(config: Config, out: TextIO, told: Told) -> None:
    """Write the general ledger in the language of beancount.

    Raises:
        Rejected, Unavailable: as `converse`.
    """

    async def work(call: Call) -> None:
        upto = (await call("export_begin", {}))["upto"]
        writer, counted = export.Beancount(), _Counted("transfers", told)
        out.write(writer.head())

        def take(lines: str) -> None:
            out.writelines(writer.entries(lines))
            counted.add(lines)

        await _each_page(call, "transfer", upto, take)

    converse(config, work)


def export_ledger_file(config: Config, path: Path, told: Told) -> list[Path]:
    """The same into a file, which is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as out:
            export_ledger(config, out, told)
        partial.rename(path)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return [path]


def export_tables(config: Config, directory: Path, form: Form, told: Told) -> list[Path]:
    """Write every table into a file of its own, in a directory that is not there yet, or empty.

    Raises:
        Rejected, Unavailable: as `converse`; or the directory cannot be used.
    """
    with _whole(directory) as partial:

        async def work(call: Call) -> None:
            upto = (await call("export_begin", {}))["upto"]
            for table in export.TABLES:
                try:
                    await _write_table(call, table, upto, partial, form, config.books.store_memory, told)
                except (StoreError, OSError) as error:
                    raise Unavailable(f"{directory} cannot be written: {error}") from error

        converse(config, work)
    return sorted(directory.iterdir())


async def _write_table(
    call: Call, table: export.Table, upto: int, into: Path, form: Form, memory_limit: str, told: Told
) -> None:
    """Write one table: as the lines that its pages are, and then from those as what it is to be."""
    lines, counted = into / f"{table.name}.lines", _Counted(table.name, told)
    with lines.open("w", encoding="utf-8") as file:

        def take(page: str) -> None:
            file.write(page)
            counted.add(page)

        await _each_page(call, table.name, upto, take)
    target = into / f"{table.name}.{form}"
    write_table(lines, target, _types(table, form), form=form, memory_limit=memory_limit)
    lines.unlink()


def _types(table: export.Table, form: str) -> dict[str, str]:
    """What the columns are read as; in a file of plain text what is nested stays the JSON that it was."""
    return {
        name: "VARCHAR" if form == "csv" and kind in export.NESTED else export.TYPES[kind]
        for name, kind in table.columns.items()
    }


async def _each_page(call: Call, table: str, upto: int, take: Callable[[str], None]) -> None:
    """Give every page of a table to a function, in order."""
    after: Any = export.START
    while after is not None:
        page = await call("export_page", {"table": table, "upto": upto, "after": after})
        take(page["lines"])
        after = page["after"]


@define(eq=False)
class _Counted:
    """Counts lines, and tells."""

    _what: str
    _told: Told
    _count: int = 0

    def add(self, lines: str) -> None:
        self._count += lines.count("\n")
        self._told(self._what, self._count)


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A directory to be filled, which gets its name when that is done."""
    partial = directory.with_name(f"{directory.name}.partial")
    try:
        if directory.exists() and any(directory.iterdir()):
            raise Unavailable(f"{directory} is there and not empty; nothing was written")
        partial.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise Unavailable(
            f"{partial} is left from an export that was broken off, or still runs; remove it first"
        ) from None
    except OSError as error:
        raise Unavailable(f"{directory} cannot be written: {error.strerror}") from None
    try:
        yield partial
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# -- compared with an invoice --------------------------------------------------------------------------


def compare(
    config: Config,
    data: bytes,
    catalog: Catalog,
    *,
    tolerance: Pico = 0,
    period: tuple[int, int] | None = None,
) -> tuple[tuple[Finding, ...], dict[str, Any]]:
    """Compare a provider's list of calls with what was settled (I14). Gives what is wrong, and a summary.

    Raises:
        ValueError: it is no such list.
        Rejected, Unavailable: as `converse`.
    """
    invoice = Invoice(read_lines(data), _priced(catalog), tolerance, period)

    async def work(call: Call) -> None:
        upto = (await call("export_begin", {}))["upto"]
        rows = msgspec.json.Decoder(dict[str, Any])
        for take in (invoice.match, invoice.miss):

            def take_all(lines: str, take: Callable[[Settled], None] = take) -> None:
                for row in rows.decode_lines(lines):
                    take(settled(row))

            await _each_page(call, export.INVOICED.name, upto, take_all)

    converse(config, work)
    return invoice.findings(), invoice.summary()


def _priced(catalog: Catalog) -> Priced:
    """What other usage would cost than that which was settled: list price of the day, as far as it is known."""

    def priced(one: Settled, usage: Usage) -> Pico | None:
        model = catalog.models.get(one.model)
        if model is None:
            return None
        try:
            price = catalog.price(model, PPM, datetime.fromtimestamp(one.started_ms / 1000, UTC).date())
            return price.list_cost((usage,))
        except ValueError:
            return None

    return priced
