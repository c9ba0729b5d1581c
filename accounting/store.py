"""The store: DuckDB, as an index of the journal for reports; the only file that knows it.

A slice of records goes in by one transaction that also moves `meta.loaded_seq`, so it is in there exactly
once, whatever happened: a COMMIT that raises may have succeeded (DuckDB reports a failed checkpoint that
way), so after any error the answer is to reopen and ask. Nothing here is the only copy of anything.

Slices are read by DuckDB itself from temporary files of JSON lines, one for each kind of record. Measured with
rows of `usage`, in slices of 1,000: 15 µs a row, against 25 by the appender; and the event loop's delay stays
below 2 ms at p99, where the appender, which holds the interpreter's lock, makes it 12 (20,000 rows: 5 against
32 ms). What is left to Python, writing those files, gives the lock up every few records. Attempts, extensions,
progress and usage together, in slices of 20,000: 7 µs a record.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Condition
from typing import Any, Final, Literal, Self

import duckdb
import msgspec
from attrs import define, field, frozen

from accounting.records import (
    LETTERS,
    Attempt,
    Extension,
    Grant,
    Job,
    Key,
    Record,
    Transfer,
    UsageRecord,
    Void,
    Wallet,
)
from pricing.usage import BUCKETS

ENCODE_AT_ONCE: Final = 256
"""Records encoded in one go: a third of a millisecond, for which the event loop may have to wait."""

YIELD_SECONDS: Final = 50e-6
"""Pause after that, long enough for the event loop to wake up and take the interpreter's lock. To give it up for
the moment of a write does not suffice: it is taken back before anybody has noticed."""

WAL_BYTES: Final = "16MB"
"""DuckDB checkpoints when its log is larger. Small, so that opening is quick; it stalls only the loader."""

NAME: Final = "books.duckdb"

_CLOSED: Final[dict[str, str | int | float | list[str]]] = {
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
}
"""DuckDB looks neither into the variables of this process nor onto the network."""

Rows = list[tuple[Any, ...]]

Entry = tuple[int, Record] | tuple[int, Record, bytes]
"""A record and its seq; whatever stands behind them does not matter here."""


class StoreError(Exception):
    """DuckDB could not do it; what became of a transaction is unknown until the store is reopened."""


class StoreBusy(StoreError):
    """Another process has the store open: a gateway that runs, or a command that reads."""


class StoreOutdated(StoreError):
    """An older version wrote it, and nobody has opened it to write since."""


@frozen
class Loading:
    """How one kind of record becomes rows.

    Attributes:
        columns: the fields of its line, in DuckDB's types.
        sql: what inserts them; `{lines}` stands for the table that reads the file.
    """

    columns: str
    sql: str


_LINES: Final = "read_json($file, format = 'newline_delimited', columns = {columns})"

_WALLET: Final = Loading(
    """{s: 'BIGINT', wallet: 'VARCHAR', name: 'VARCHAR', currency: 'VARCHAR', frozen: 'BOOLEAN',
        at_ms: 'BIGINT'}""",
    """
    INSERT INTO wallet BY NAME
    SELECT s AS seq, * EXCLUDE (s), min(s) OVER every AS created_seq, min(at_ms) OVER every AS created_ms
    FROM {lines} WINDOW every AS (PARTITION BY wallet)
    QUALIFY s = max(s) OVER every
    ON CONFLICT (wallet) DO UPDATE SET
        seq = excluded.seq, name = excluded.name, currency = excluded.currency, frozen = excluded.frozen,
        at_ms = excluded.at_ms
    """,
)

# Limits are whatever an operator typed; one that fits no BIGINT shows as none, and does not stop the load.
_KEY: Final = Loading(
    """{s: 'BIGINT', key: 'VARCHAR', wallet: 'VARCHAR', digest: 'VARCHAR', hint: 'VARCHAR', name: 'VARCHAR',
        requests_per_minute: 'VARCHAR', tokens_per_minute: 'VARCHAR', concurrency: 'VARCHAR',
        models: 'VARCHAR[]', markup_ppm: 'VARCHAR', expires_ms: 'VARCHAR', revoked: 'BOOLEAN',
        at_ms: 'BIGINT', cap: 'VARCHAR', cap_window: 'VARCHAR', clamp: 'BOOLEAN'}""",
    """
    INSERT INTO api_key BY NAME
    SELECT s AS seq,
        * EXCLUDE (s) REPLACE (
            try_cast(requests_per_minute AS BIGINT) AS requests_per_minute,
            try_cast(tokens_per_minute AS BIGINT) AS tokens_per_minute,
            try_cast(concurrency AS BIGINT) AS concurrency,
            try_cast(markup_ppm AS BIGINT) AS markup_ppm,
            try_cast(expires_ms AS BIGINT) AS expires_ms,
            try_cast(cap AS HUGEINT) AS cap),
        min(s) OVER every AS created_seq, min(at_ms) OVER every AS created_ms
    FROM {lines} WINDOW every AS (PARTITION BY key)
    QUALIFY s = max(s) OVER every
    ON CONFLICT (key) DO UPDATE SET
        seq = excluded.seq, wallet = excluded.wallet, digest = excluded.digest, hint = excluded.hint,
        name = excluded.name, requests_per_minute = excluded.requests_per_minute,
        tokens_per_minute = excluded.tokens_per_minute, concurrency = excluded.concurrency,
        models = excluded.models, markup_ppm = excluded.markup_ppm, expires_ms = excluded.expires_ms,
        revoked = excluded.revoked, at_ms = excluded.at_ms, cap = excluded.cap,
        cap_window = excluded.cap_window, clamp = excluded.clamp
    """,
)

_GRANT: Final = Loading(
    """{s: 'BIGINT', "grant": 'VARCHAR', wallet: 'VARCHAR', amount: 'HUGEINT', kind: 'VARCHAR',
        source_key: 'VARCHAR', at_ms: 'BIGINT', expires_ms: 'VARCHAR'}""",
    """
    INSERT INTO grant_ BY NAME
    SELECT s AS seq, "grant" AS grant_, * EXCLUDE (s, "grant")
        REPLACE (try_cast(expires_ms AS BIGINT) AS expires_ms)
    FROM {lines}
    """,
)

_TRANSFER: Final = Loading(
    """{s: 'BIGINT', transfer: 'VARCHAR', wallet: 'VARCHAR', debit: 'VARCHAR', credit: 'VARCHAR',
        amount: 'HUGEINT', currency: 'VARCHAR', kind: 'VARCHAR', ref: 'VARCHAR', at_ms: 'BIGINT',
        "grant": 'VARCHAR'}""",
    """
    INSERT INTO transfer BY NAME
    SELECT s AS seq, s AS first_seq, "grant" AS grant_, * EXCLUDE (s, "grant") FROM {lines}
    """,
)

_ATTEMPT: Final = Loading(
    """{s: 'BIGINT', request: 'VARCHAR', number: 'BIGINT', wallet: 'VARCHAR', key: 'VARCHAR', hold: 'HUGEINT',
        model: 'VARCHAR', provider: 'VARCHAR', account: 'VARCHAR', dialect: 'VARCHAR', stream: 'BOOLEAN',
        price_version: 'VARCHAR', markup_ppm: 'BIGINT', kind: 'VARCHAR', at_ms: 'BIGINT',
        hold_ms: 'BIGINT', budget: 'VARCHAR', budget_max: 'HUGEINT'}""",
    "INSERT INTO attempt BY NAME SELECT s AS seq, * EXCLUDE (s) FROM {lines}",
)

_EXTENSION: Final = Loading(
    "{s: 'BIGINT', request: 'VARCHAR', number: 'BIGINT', hold: 'HUGEINT', at_ms: 'BIGINT'}",
    "INSERT INTO extension BY NAME SELECT s AS seq, * EXCLUDE (s) FROM {lines}",
)

_JOB: Final = Loading(
    """{s: 'BIGINT', request: 'VARCHAR', number: 'BIGINT', job: 'VARCHAR', usage: 'JSON', cost: 'HUGEINT',
        list_cost: 'HUGEINT', at_ms: 'BIGINT'}""",
    "INSERT INTO job BY NAME SELECT s AS seq, * EXCLUDE (s) FROM {lines}",
)

_USAGE: Final = Loading(
    f"""{{s: 'BIGINT', request: 'VARCHAR', number: 'BIGINT', wallet: 'VARCHAR', key: 'VARCHAR',
        model: 'VARCHAR', provider: 'VARCHAR', account: 'VARCHAR', dialect: 'VARCHAR', stream: 'BOOLEAN',
        outcome: 'VARCHAR', status: 'BIGINT', source: 'VARCHAR', price_version: 'VARCHAR',
        markup_ppm: 'BIGINT', held: 'HUGEINT', price: 'HUGEINT', charged: 'HUGEINT', cost: 'HUGEINT',
        loss: 'HUGEINT', currency: 'VARCHAR', started_ms: 'BIGINT', first_byte_ms: 'BIGINT',
        ended_ms: 'BIGINT', upstream_id: 'VARCHAR', budget: 'VARCHAR', flags: 'VARCHAR[]', usage_legs: 'JSON',
        usage: 'STRUCT({", ".join(f"{bucket} BIGINT" for bucket in BUCKETS)})',
        legs: 'STRUCT("grant" VARCHAR, amount HUGEINT)[]'}}""",
    """
    INSERT INTO usage BY NAME
    SELECT s AS seq, unnest(usage),
        * EXCLUDE (s, usage) REPLACE ([{'grant_': leg."grant", 'amount': leg.amount} for leg in legs] AS legs)
    FROM {lines}
    """,
)

_VOID: Final = Loading(
    "{s: 'BIGINT', request: 'VARCHAR', number: 'BIGINT', because: 'VARCHAR', at_ms: 'BIGINT'}",
    "INSERT INTO void BY NAME SELECT s AS seq, * EXCLUDE (s) FROM {lines}",
)

# In this order: postings ask which grants were paid for.
_LOADINGS: Final[dict[type, Loading]] = {
    Wallet: _WALLET,
    Key: _KEY,
    Grant: _GRANT,
    Transfer: _TRANSFER,
    Attempt: _ATTEMPT,
    Extension: _EXTENSION,
    Job: _JOB,
    UsageRecord: _USAGE,
    Void: _VOID,
}

_POST: Final = """
    INSERT INTO transfer BY NAME
    WITH posting AS ({postings})
    SELECT max(seq) AS seq, min(seq) AS first_seq, kind || ':' || wallet || ':' || max(seq) AS transfer,
        wallet, debit, credit, sum(amount)::HUGEINT AS amount, currency, kind,
        'lines ' || min(seq) || ' to ' || max(seq) AS ref, max(at_ms) AS at_ms
    FROM posting WHERE seq > $after AND seq <= $upto AND amount > 0
    GROUP BY wallet, kind, debit, credit, currency
    ORDER BY wallet, kind
"""

_POST_GRANTS: Final = _POST.format(
    postings="""
        SELECT g.seq, g.wallet, g.amount, w.currency, g.at_ms,
            if(g.kind = 'paid', 'top_up', 'promo') AS kind,
            if(g.kind = 'paid', 'psp_clearing', 'promo_expense') AS debit,
            if(g.kind = 'paid', 'wallet_paid', 'wallet_promo') AS credit
        FROM grant_ g JOIN wallet w ON w.wallet = g.wallet
    """
)

_POST_USAGE: Final = _POST.format(
    postings="""
        SELECT u.seq, u.wallet, u.leg.amount AS amount, u.currency, u.ended_ms AS at_ms,
            if(g.kind = 'paid', 'usage', 'usage_promo') AS kind,
            if(g.kind = 'paid', 'wallet_paid', 'wallet_promo') AS debit, 'revenue' AS credit
        FROM (
            SELECT seq, wallet, unnest(legs) AS leg, currency, ended_ms FROM usage
            WHERE seq > $after AND seq <= $upto
        ) u JOIN grant_ g ON g.grant_ = u.leg.grant_
        UNION ALL
        SELECT seq, wallet, loss, currency, ended_ms, 'loss', 'operator_loss', 'revenue' FROM usage
        UNION ALL
        SELECT seq, wallet, cost, currency, ended_ms, 'cost', 'upstream_cost', 'upstream_payable' FROM usage
    """
)


@define(eq=False)
class Store:
    """The open store. Loads come one at a time; queries may run beside them, each in a thread of its own.

    Attributes:
        path: of the database.
        set_aside: files that could not be opened and were renamed, for a person to look at.
    """

    path: Path
    _memory_limit: str
    _schema_dir: Path | None
    _connection: duckdb.DuckDBPyConnection | None = field(default=None, init=False)
    set_aside: list[Path] = field(factory=list, init=False)
    _asking: int = field(default=0, init=False)
    _idle: Condition = field(factory=Condition, init=False)

    @classmethod
    def open(cls, path: Path, *, memory_limit: str, schema_dir: Path) -> Self:
        """Open the store to write, made and migrated as necessary.

        Args:
            path: of the database.
            memory_limit: DuckDB's, such as `256MB`.
            schema_dir: the migrations, `NNNN_name.sql`.

        Raises:
            StoreBusy: another process has it.
            StoreError: it cannot be opened, or a newer version wrote it.
        """
        store = cls(path, memory_limit, schema_dir)
        store.reopen()
        return store

    @classmethod
    def open_repaired(cls, path: Path, *, memory_limit: str, schema_dir: Path, stamp: str) -> Self:
        """Open the store to write; set aside what cannot be read of it, since the journal has it all.

        First its log alone, which leaves it as of its last checkpoint; then, if need be, the whole. What is
        set aside is renamed to end in `.corrupt-<stamp>`. Only for who holds the lock of the state directory.

        Raises:
            StoreBusy, StoreError: as `open`.
        """
        store = cls(path, memory_limit, schema_dir)
        for aside in (_log_of(path), path):
            try:
                store.reopen()
            except StoreBusy:
                raise
            except StoreError:
                if not aside.exists():
                    continue
                renamed = aside.with_name(f"{aside.name}.corrupt-{stamp}")
                aside.rename(renamed)
                store.set_aside.append(renamed)
            else:
                return store
        store.reopen()
        return store

    @classmethod
    def open_to_read(cls, path: Path, *, memory_limit: str, schema_dir: Path) -> Self:
        """Open the store to read, repairing and migrating nothing; without the lock of the state directory.

        Raises:
            StoreBusy: a gateway has it open; ask the gateway.
            StoreOutdated: it lacks migrations.
            StoreError: it is not there, or cannot be read.
        """
        store = cls(path, memory_limit, None)
        store.reopen()
        try:
            store.check_migrated(schema_dir)
        except BaseException:
            store.close()
            raise
        return store

    def check_migrated(self, schema_dir: Path) -> None:
        """Raise `StoreOutdated` unless every migration has been applied, and `StoreError` if others were."""
        done = {str(name) for (name,) in self.query("SELECT name FROM migration")}
        if _migrations(schema_dir, done).keys() - done:
            raise StoreOutdated("the store was written by an older version")

    def reopen(self) -> int:
        """Close and open again, and ask what is loaded: the way on after any error. Returns `loaded_seq`.

        Raises:
            StoreBusy, StoreError: as `open`; it is closed then, and may be reopened later.
        """
        self.close()
        with self._idle, _mapped():
            connection = duckdb.connect(
                str(self.path),
                read_only=self._schema_dir is None,
                config={
                    "threads": 1,
                    "memory_limit": self._memory_limit,
                    "checkpoint_threshold": WAL_BYTES,
                    **_CLOSED,
                },
            )
            try:
                if self._schema_dir is not None:
                    _migrate(connection, self._schema_dir)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self.loaded_seq()

    def close(self) -> None:
        """Close it, once queries that run are over; closing checkpoints."""
        with self._idle:
            connection, self._connection = self._connection, None
            self._idle.wait_for(lambda: not self._asking)
            if connection is not None:
                with suppress(duckdb.Error):  # an instance that has failed fails to close, too
                    connection.close()
            if self._schema_dir is not None:
                for kind in _LOADINGS:
                    _scratch_of(self.path, kind).unlink(missing_ok=True)

    def query(self, sql: str, parameters: Sequence[object] | dict[str, object] = ()) -> Rows:
        """Ask a question, in a transaction of its own; may run beside others. Raises `StoreError`."""
        with self._idle:
            if self._connection is None:
                raise StoreError("the store is closed")
            self._asking += 1
            try:
                cursor = self._connection.cursor()
            except duckdb.Error as error:
                self._asking -= 1
                raise StoreError(str(error)) from error
        try:
            with _mapped():
                return cursor.execute(sql, parameters).fetchall()
        finally:
            with suppress(duckdb.Error):
                cursor.close()
            with self._idle:
                self._asking -= 1
                self._idle.notify_all()

    def loaded_seq(self) -> int:
        """The last record that is in here. Raises `StoreError`."""
        return int(self.query("SELECT loaded_seq FROM meta")[0][0])

    def load(self, records: Sequence[Entry]) -> int:
        """Take in a slice of the journal, in order, in one transaction; what is in already is left out.

        Returns:
            The last record that is in.

        Raises:
            StoreError: it may be in or not: `reopen`, and go on after what that says.
        """
        with _mapped():
            connection = self._connection
            if connection is None or self._schema_dir is None:
                raise StoreError("the store is closed, or open to read")
            connection.execute("BEGIN")
            try:
                row = connection.execute("SELECT loaded_seq FROM meta").fetchone()
                after: int = row[0] if row is not None else 0
                new = records[max(after + 1 - records[0][0], 0) :] if records else ()
                upto = self._insert(connection, new, after) if new else after
                connection.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise
        return upto

    def _insert(self, connection: duckdb.DuckDBPyConnection, records: Sequence[Entry], after: int) -> int:
        first, upto = records[0][0], records[-1][0]
        if first != after + 1 or upto - after != len(records):
            raise StoreError(f"lines {first} to {upto} ({len(records)}) do not follow on line {after}")
        files = _write_lines(self.path, records)
        for kind, loading in _LOADINGS.items():
            if kind in files:
                # not `format`: the SQL has braces of its own
                lines = _LINES.replace("{columns}", loading.columns)
                connection.execute(loading.sql.replace("{lines}", lines), {"file": str(files[kind])})
        for kind, posting in ((Grant, _POST_GRANTS), (UsageRecord, _POST_USAGE)):
            if kind in files:
                connection.execute(posting, {"after": after, "upto": upto})
        connection.execute("UPDATE meta SET loaded_seq = $upto", {"upto": upto})
        return upto


def write_table(
    lines: Path,
    target: Path,
    columns: Mapping[str, str],
    *,
    form: Literal["parquet", "csv"],
    memory_limit: str,
) -> None:
    """Turn lines of JSON into a file of Parquet or CSV, in bounded memory.

    Args:
        lines: an object in each.
        target: written anew.
        columns: what is in it, by name, and as what type of DuckDB.
        form: of the file.
        memory_limit: DuckDB's.

    Raises:
        StoreError: it cannot be written, or a line does not fit the columns.
    """
    types = ", ".join(f"{_name(name)}: '{kind}'" for name, kind in columns.items())
    source = _LINES.replace("{columns}", f"{{{types}}}").replace("$file", _text(str(lines)))
    how = {"csv": "FORMAT csv, HEADER", "parquet": "FORMAT parquet, COMPRESSION zstd"}[form]
    copy = f"COPY (SELECT * FROM {source}) TO {_text(str(target))} ({how})"  # noqa: S608 - quoted
    spill = str(target.parent)
    config = {"threads": 1, "memory_limit": memory_limit, "temp_directory": spill, **_CLOSED}
    with _mapped(), duckdb.connect(config=config) as connection:
        connection.execute(copy)


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _scratch_of(path: Path, kind: type) -> Path:
    return path.with_name(f"{path.name}.load-{LETTERS[kind]}")


def _write_lines(path: Path, records: Sequence[Entry]) -> dict[type, Path]:
    """Write the records that have a table into a file for each kind, for DuckDB to read; says which files."""
    encode = msgspec.json.encode
    with ExitStack() as closing:
        files: dict[type, Any] = {}
        for start in range(0, len(records), ENCODE_AT_ONCE):
            lines: dict[type, list[bytes]] = {}
            for entry in records[start : start + ENCODE_AT_ONCE]:
                kind = type(entry[1])
                if kind in _LOADINGS:
                    line = b'{"s":%d,%s\n' % (entry[0], encode(entry[1])[1:])
                    lines.setdefault(kind, []).append(line)
            for kind, some in lines.items():
                if kind not in files:
                    scratch = _scratch_of(path, kind)
                    # what is there is overwritten: to give its pages back and ask for them again costs more
                    files[kind] = closing.enter_context(scratch.open("r+b" if scratch.exists() else "wb"))
                files[kind].write(b"".join(some))
            time.sleep(YIELD_SECONDS)
        for file in files.values():
            file.truncate()  # the slice before may have been longer
    return {kind: _scratch_of(path, kind) for kind in files}


def _migrations(schema_dir: Path, done: AbstractSet[str]) -> dict[str, Path]:
    """All migrations in order. Raises `StoreError` if one was applied that is not known here."""
    files = {path.stem: path for path in sorted(schema_dir.glob("[0-9][0-9][0-9][0-9]_*.sql"))}
    if unknown := sorted(done - files.keys()):
        raise StoreError(f"a newer version has written this store: {unknown[0]} is not known here")
    return files


def _migrate(connection: duckdb.DuckDBPyConnection, schema_dir: Path) -> None:
    """Apply the migrations that are missing, each in a transaction of its own."""
    connection.execute("CREATE TABLE IF NOT EXISTS migration (name VARCHAR NOT NULL)")
    done = {name for (name,) in connection.execute("SELECT name FROM migration").fetchall()}
    for name, path in _migrations(schema_dir, done).items():
        if name not in done:
            connection.execute("BEGIN")
            try:
                connection.execute(path.read_text(encoding="utf-8"))
                connection.execute("INSERT INTO migration VALUES ($name)", {"name": name})
                connection.execute("COMMIT")
            except BaseException:
                with suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise


@contextmanager
def _mapped() -> Iterator[None]:
    """Turn DuckDB's errors, and those of its files, into ours."""
    try:
        yield
    except duckdb.IOException as error:
        if "Could not set lock" in str(error):
            raise StoreBusy("another process has the store open") from error
        raise StoreError(str(error)) from error
    except (duckdb.Error, OSError) as error:
        raise StoreError(str(error)) from error
