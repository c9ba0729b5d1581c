import csv
import json
import subprocess
import sys
import threading
import zlib
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import duckdb
import msgspec
import pytest
from msgspec.structs import replace

from accounting.lines import Lines
from accounting.records import (
    LETTERS,
    Account,
    Carry,
    CarryHead,
    Grant,
    GrantKind,
    Key,
    Leg,
    Mark,
    Progress,
    Transfer,
    Wallet,
)
from accounting.store import (
    _LOADINGS,
    ENCODE_AT_ONCE,
    NAME,
    Store,
    StoreBusy,
    StoreError,
    StoreOutdated,
    write_table,
)
from pricing.usage import BUCKETS, Usage
from tests.accounting.journal_fakes import (
    HOLD,
    attempt,
    calls,
    extension,
    grant,
    job,
    progress,
    settled,
    void,
    wallet,
    work,
)

SCHEMA = Path(__file__).resolve().parents[2] / "data" / "schema"
KEY = Key("k1", "w1", "ab" * 32, "fb_sk_…abcd", 5, "laptop", 60, None, 4, ("openai/*", "x"), 900_000)


def opened(path):
    return Store.open(path / NAME, memory_limit="128MB", schema_dir=SCHEMA)


@pytest.fixture
def store(tmp_path):
    store = opened(tmp_path)
    yield store
    store.close()


def numbered(*records, after=0):
    return list(enumerate(records, after + 1))


def row(store, table):
    cursor = store._connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - tables, named here
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return rows[0] if len(rows) == 1 else rows


def test_a_new_store_has_loaded_nothing(store):
    assert store.loaded_seq() == 0
    assert store.load([]) == 0


def test_every_kind_of_record_has_a_place_or_needs_none():
    assert set(LETTERS) - set(_LOADINGS) == {Progress, Mark, Carry, CarryHead}


def test_a_settled_attempt_is_a_row_with_every_bucket_and_leg(store):
    buckets = {bucket: number * 1000 for number, bucket in enumerate(BUCKETS)}
    record = replace(
        settled(1, 10**25),
        usage=Usage(**buckets),
        usage_legs=(Usage(input=1), Usage(output=2)),
        legs=(Leg("g1", 10**25 - 1), Leg("g2", 1)),
        flags=("beyond_hold", 'odd "flag"\n'),
        first_byte_ms=2_100,
    )
    store.load(numbered(wallet(), grant(), attempt(1), record))
    found = row(store, "usage")
    assert found["seq"] == 4
    assert {bucket: found[bucket] for bucket in BUCKETS} == buckets
    assert found["charged"] == 10**25
    assert found["legs"] == [{"grant_": "g1", "amount": 10**25 - 1}, {"grant_": "g2", "amount": 1}]
    assert found["flags"] == list(record.flags)
    assert found["outcome"] == "complete"
    assert found["source"] == "reported"
    assert found["first_byte_ms"] == 2_100
    assert '"output":2' in found["usage_legs"]
    for name in ("request", "number", "wallet", "key", "model", "stream", "status", "upstream_id", "loss"):
        assert found[name] == getattr(record, name)


def test_attempts_voids_grants_and_transfers_are_rows(store):
    expiry = Transfer("t1", "w1", Account.WALLET_PAID, Account.BREAKAGE, 2**90, "USD", "expiry", "x", 7, "g1")
    promised = Grant("g1", "w1", 10**21, GrantKind.PROMO, "ref", 6, 99)
    store.load(numbered(wallet(), promised, attempt(1), progress(1), void(1), expiry))
    assert row(store, "grant_") == {
        "seq": 2, "grant_": "g1", "wallet": "w1", "amount": 10**21, "kind": "promo", "source_key": "ref",
        "at_ms": 6, "expires_ms": 99,
    }  # fmt: skip
    assert row(store, "attempt")["hold"] == attempt(1).hold
    assert row(store, "void")["because"] == "never_sent"
    written = row(store, "transfer WHERE kind = 'expiry'")
    assert (written["seq"], written["first_seq"], written["amount"], written["grant_"]) == (6, 6, 2**90, "g1")
    assert row(store, "open_attempt") == []
    assert store.loaded_seq() == 6


def test_of_a_wallet_and_a_key_the_newest_line_holds_and_the_first_is_remembered(store):
    later = replace(KEY, at_ms=9, revoked=True, models=())
    store.load(numbered(wallet(at_ms=3), KEY, wallet(name="w2")))
    store.load(numbered(Wallet("w1", "Bob", "USD", 8, True), later, replace(later, name="desk"), after=3))
    found = row(store, "wallet WHERE wallet = 'w1'")
    assert (found["name"], found["frozen"], found["seq"]) == ("Bob", True, 4)
    assert (found["created_ms"], found["created_seq"], found["at_ms"]) == (3, 1, 8)
    found = row(store, "api_key")
    assert (found["name"], found["revoked"], found["models"], found["seq"]) == ("desk", True, [], 6)
    assert (found["requests_per_minute"], found["tokens_per_minute"], found["created_seq"]) == (60, None, 2)


def test_no_text_or_limit_that_an_operator_types_stops_the_load(store):
    odd = 'a\0b"\\\n\u2028 😀 {s: 1} $file'
    store.load(numbered(Wallet("w1", odd, "USD", 1), replace(KEY, name=odd, concurrency=10**40)))
    assert row(store, "wallet")["name"] == odd
    assert row(store, "api_key")["concurrency"] is None


def test_the_general_ledger_gets_one_transfer_for_each_slice_wallet_and_kind(store):
    promo = Grant("g2", "w1", 50, GrantKind.PROMO, "ref 2", 5)
    record = replace(settled(2, 30), legs=(Leg("g2", 20), Leg("g1", 10)), price=36, loss=6, cost=12)
    store.load(numbered(wallet(), grant(1, 100), promo, attempt(1), settled(1, 5), attempt(2), record))
    store.load(numbered(attempt(3), settled(3, 7), attempt(4), settled(4, 0), after=7))
    posted = store.query(
        "SELECT kind, debit, credit, amount, first_seq, seq, currency FROM transfer ORDER BY seq, kind"
    )
    assert posted == [
        ("top_up", "psp_clearing", "wallet_paid", 100, 2, 2, "USD"),
        ("promo", "promo_expense", "wallet_promo", 50, 3, 3, "USD"),
        ("cost", "upstream_cost", "upstream_payable", 17, 5, 7, "USD"),
        ("loss", "operator_loss", "revenue", 6, 7, 7, "USD"),
        ("usage", "wallet_paid", "revenue", 15, 5, 7, "USD"),
        ("usage_promo", "wallet_promo", "revenue", 20, 7, 7, "USD"),
        ("cost", "upstream_cost", "upstream_payable", 7, 9, 9, "USD"),
        ("usage", "wallet_paid", "revenue", 7, 9, 9, "USD"),
    ]
    assert store.query("SELECT count(*), count(DISTINCT transfer) FROM transfer") == [(8, 8)]


def test_extensions_and_jobs_are_rows_and_the_newest_hold_is_what_is_held(store):
    work_1 = replace(work(1), hold_ms=1_999, budget="task", budget_max=10**20)
    store.load(
        numbered(wallet(), work_1, extension(1, 10**20), job(1), extension(1, 500), attempt(2), extension(3))
    )
    assert row(store, "extension WHERE seq = 3") == {
        "seq": 3, "request": "r1", "number": 1, "hold": 10**20, "at_ms": 2_550,
    }  # fmt: skip
    found = row(store, "job")
    assert json.loads(found.pop("usage"))["seconds"] == 4
    assert found == {
        "seq": 4, "request": "r1", "number": 1, "job": "video-1", "cost": 30, "list_cost": 30, "at_ms": 2_560,
    }  # fmt: skip
    opened_1, opened_2 = row(store, "open_attempt ORDER BY seq")
    assert (opened_1["hold"], opened_1["held"], opened_1["kind"]) == (HOLD, 500, "job")
    assert (opened_1["hold_ms"], opened_1["budget"], opened_1["budget_max"]) == (1_999, "task", 10**20)
    assert (opened_2["held"], opened_2["budget"], opened_2["budget_max"]) == (HOLD, "", None)


def test_a_key_has_its_cap_and_whether_it_lowers_bounds(store):
    capped = replace(KEY, cap=10**24, cap_window="month", clamp=True)
    store.load(numbered(wallet(), KEY))
    found = row(store, "api_key")
    assert (found["cap"], found["cap_window"], found["clamp"]) == (None, "lifetime", False)
    store.load(numbered(capped, replace(capped, key="k2"), after=2))
    found = row(store, "api_key WHERE key = 'k1'")
    assert (found["cap"], found["cap_window"], found["clamp"]) == (10**24, "month", True)


# -- what older versions wrote ---------------------------------------------------------------------------


def test_lines_that_an_older_version_wrote_are_loaded(store):
    """Its lines lack what is new; they are read with what that means for them."""
    new = {
        "K": ("cap", "cap_window", "clamp"),
        "A": ("hold_ms", "budget", "budget_max"),
        "S": ("budget",),
    }
    lines, crc = [], 0
    for seq, record in numbered(wallet(), KEY, grant(), attempt(1), settled(1)):
        fields = json.loads(msgspec.json.encode(record))
        for name in new.get(LETTERS[type(record)], ()):
            del fields[name]
        body = b'"s":%d,"t":"%s",%s\n' % (
            seq,
            LETTERS[type(record)].encode(),
            json.dumps(fields).encode()[1:],
        )
        crc = zlib.crc32(body, crc)
        lines.append(b'{"c":"%08x",%s' % (crc, body))
    store.load([(line.seq, line.record()) for line in Lines(b"".join(lines))])
    assert store.loaded_seq() == 5
    assert (row(store, "attempt")["budget"], row(store, "usage")["budget"]) == ("", "")
    assert row(store, "api_key")["cap_window"] == "lifetime"


OLD = """
    INSERT INTO wallet VALUES (1, 'w1', 'Ada', 'USD', false, 5, 1, 5);
    INSERT INTO api_key VALUES (2, 'k1', 'w1', 'd', 'h', 'n', 1, NULL, 3, ['x'], 9, NULL, false, 5, 2, 5);
    INSERT INTO attempt VALUES (3, 'r1', 1, 'w1', 'k1', 7, 'm', 'p', 'a', 'd', true, 'v', 8, 'call', 9);
    INSERT INTO attempt VALUES (4, 'r2', 1, 'w1', 'k1', 7, 'm', 'p', 'a', 'd', true, 'v', 8, 'call', 9);
    UPDATE meta SET loaded_seq = 4;
"""


@pytest.fixture
def old(tmp_path):
    """A store that the first version wrote."""
    first = next(SCHEMA.glob("0001_*.sql"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / first.name).write_bytes(first.read_bytes())
    store = Store.open(tmp_path / NAME, memory_limit="64MB", schema_dir=tmp_path / "old")
    store._connection.execute(OLD)
    store.close()
    return tmp_path


def test_a_store_that_the_first_version_wrote_is_brought_up_to_date_and_goes_on_loading(old):
    store = opened(old)
    first, second = row(store, "open_attempt ORDER BY seq")
    assert (first["request"], first["held"], first["hold_ms"], first["budget"]) == ("r1", 7, 0, "")
    assert (second["request"], second["budget_max"]) == ("r2", None)
    assert row(store, "api_key")["clamp"] is False
    store.load(numbered(extension(1, 9), replace(KEY, clamp=True, cap=6), *calls(3, 5), after=4))
    store.close()
    store = opened(old)
    assert store.loaded_seq() == 12
    assert row(store, "open_attempt WHERE request = 'r1'")["held"] == 9
    found = row(store, "api_key")
    assert (found["cap"], found["clamp"], found["created_seq"]) == (6, True, 2)
    store.close()


def test_a_reader_of_an_older_store_is_told_so_and_changes_nothing(old):
    with pytest.raises(StoreOutdated):
        Store.open_to_read(old / NAME, memory_limit="64MB", schema_dir=SCHEMA)
    store = Store.open_to_read(old / NAME, memory_limit="64MB", schema_dir=old / "old")
    assert store.loaded_seq() == 4
    store.close()
    opened(old).close()
    with pytest.raises(StoreError, match="newer version"):
        Store.open_to_read(old / NAME, memory_limit="64MB", schema_dir=old / "old")


# -- exactly once ----------------------------------------------------------------------------------------


def test_a_slice_that_overlaps_what_is_loaded_is_loaded_once(store):
    everything = numbered(wallet(), grant(), *calls(20))
    assert store.load(everything[:10]) == 10
    assert store.load(everything[5:20]) == 20
    assert store.load(everything[:15]) == 20
    assert store.load(everything) == 42
    assert store.query("SELECT count(*), count(DISTINCT request) FROM usage") == [(20, 20)]
    assert store.query("SELECT sum(amount) FROM transfer WHERE kind = 'usage'") == [(200,)]


def test_an_entry_may_bring_more_than_seq_and_record(store):
    entries = [(seq, record, b"its line") for seq, record in numbered(wallet(), grant(), *calls(2))]
    assert store.load(entries) == 6
    assert store.query("SELECT count(*) FROM usage") == [(2,)]


def test_a_slice_of_more_records_than_are_encoded_at_once_is_loaded_whole(store):
    count = ENCODE_AT_ONCE + 7
    store.load(numbered(wallet(), grant(), *calls(count)))
    assert store.query("SELECT count(DISTINCT request), sum(charged) FROM usage") == [(count, 10 * count)]


def test_of_a_longer_slice_before_it_or_one_that_failed_nothing_comes_into_a_slice(store):
    everything = numbered(wallet(), grant(), *calls(30))
    store.load(everything[:50])
    with pytest.raises(StoreError):
        store.load([*everything[50:60], (61, replace(settled(9), number=0))])
    assert store.reopen() == 50
    assert store.load(everything[50:52]) == 52
    assert store.load(everything[52:]) == 62
    assert store.query("SELECT count(*), count(DISTINCT request), max(seq) FROM usage") == [(30, 30, 62)]
    assert store.query("SELECT count(*) FROM attempt") == [(30,)]


def test_a_slice_that_leaves_out_a_line_is_refused_whole(store):
    everything = numbered(wallet(), grant(), *calls(3))
    store.load(everything[:2])
    gap = [*everything[2:4], *everything[5:]]
    for broken in (everything[3:], gap, [*everything[:2], *gap]):
        with pytest.raises(StoreError, match="do not follow on line 2"):
            store.load(broken)
    assert store.loaded_seq() == 2
    assert store.query("SELECT count(*) FROM attempt") == [(0,)]
    store.load(everything)


def test_a_slice_that_fails_half_way_leaves_nothing(store):
    everything = numbered(wallet(), grant(), *calls(3), replace(settled(9), number=0))
    with pytest.raises(StoreError):
        store.load(everything)
    assert store.reopen() == 0
    assert store.query("SELECT (SELECT count(*) FROM usage) + (SELECT count(*) FROM wallet)") == [(0,)]
    assert store.load(everything[:-1]) == 8


def test_what_was_loaded_is_there_after_reopening(store):
    store.load(numbered(wallet(), grant(), *calls(3)))
    assert store.reopen() == 8
    assert store.query("SELECT count(*) FROM usage") == [(3,)]


def test_no_temporary_file_is_left_behind(store, tmp_path):
    store.load(numbered(wallet()))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


# -- opening ---------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from accounting.store import Store
from tests.accounting.journal_fakes import wallet, grant, calls
store = Store.open(Path(sys.argv[1]), memory_limit="128MB", schema_dir=Path(sys.argv[2]))
store.load(list(enumerate([wallet(), grant()], 1)))
store._connection.execute("CHECKPOINT")
store.load(list(enumerate([wallet(), grant(), *calls(200)], 1)))
print("up", flush=True)
sys.stdin.read()
os._exit(9)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the store open; it is killed when its standard input is closed."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / NAME), str(SCHEMA)]
    root = SCHEMA.parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout.readline() == b"up\n"
        yield process


def killed(other):
    other.stdin.close()
    assert other.wait() == 9


def test_a_store_that_another_process_has_is_busy_to_read_and_to_write(other, tmp_path):
    with pytest.raises(StoreBusy):
        opened(tmp_path)
    with pytest.raises(StoreBusy):
        Store.open_to_read(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA)
    with pytest.raises(StoreBusy):
        Store.open_repaired(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA, stamp="1")
    assert not list(tmp_path.glob("*.corrupt-*"))
    killed(other)


def test_a_reader_repairs_nothing_and_still_sees_what_was_committed(other, tmp_path):
    killed(other)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    reader = Store.open_to_read(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA)
    assert reader.loaded_seq() == 402
    with pytest.raises(StoreError, match="open to read"):
        reader.load(numbered(*calls(1), after=402))
    reader.close()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_reader_of_what_is_not_there_is_told_so(tmp_path):
    with pytest.raises(StoreError):
        Store.open_to_read(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_does_not_replay_is_set_aside_and_leaves_the_last_checkpoint(other, tmp_path):
    killed(other)
    log = tmp_path / f"{NAME}.wal"
    broken = bytearray(log.read_bytes())
    for at in range(len(broken) // 4, len(broken) // 2, 7):
        broken[at] ^= 0x55
    log.write_bytes(broken)
    with pytest.raises(StoreError):
        opened(tmp_path)
    store = Store.open_repaired(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA, stamp="77")
    assert store.set_aside == [tmp_path / f"{NAME}.wal.corrupt-77"]
    assert store.loaded_seq() == 2
    store.load(numbered(wallet(), grant(), *calls(200)))
    assert store.query("SELECT count(*) FROM usage") == [(200,)]
    store.close()


def test_a_database_that_cannot_be_read_is_set_aside_whole(tmp_path):
    (tmp_path / NAME).write_bytes(b"garbage" * 4000)
    store = Store.open_repaired(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA, stamp="78")
    assert store.set_aside == [tmp_path / f"{NAME}.corrupt-78"]
    assert store.loaded_seq() == 0
    store.close()


def test_a_store_that_is_sound_is_not_touched_by_the_repairing_way(tmp_path):
    store = opened(tmp_path)
    store.load(numbered(wallet()))
    store.close()
    store = Store.open_repaired(tmp_path / NAME, memory_limit="64MB", schema_dir=SCHEMA, stamp="79")
    assert (store.set_aside, store.loaded_seq()) == ([], 1)
    store.close()


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    store = opened(tmp_path)
    store._connection.execute("INSERT INTO migration VALUES ('9999_future')")
    store.close()
    with pytest.raises(StoreError, match="newer version"):
        opened(tmp_path)


def test_a_migration_is_applied_once_and_whole_or_not_at_all(tmp_path):
    schema = tmp_path / "schema"
    schema.mkdir()
    for path in SCHEMA.glob("*.sql"):
        (schema / path.name).write_bytes(path.read_bytes())
    opened(tmp_path).close()
    (schema / "9998_more.sql").write_text("CREATE TABLE more (x INTEGER); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(StoreError):
        Store.open(tmp_path / NAME, memory_limit="64MB", schema_dir=schema)
    (schema / "9998_more.sql").write_text("CREATE TABLE more (x INTEGER);")
    for _ in range(2):
        store = Store.open(tmp_path / NAME, memory_limit="64MB", schema_dir=schema)
        assert store.query("SELECT count(*) FROM more") == [(0,)]
        store.close()


def test_duckdb_does_not_look_into_the_variables_of_this_process(store):
    secret = [(1,)]  # noqa: F841 - it would be found by its name
    with pytest.raises(StoreError, match="secret"):
        store.query("SELECT * FROM secret")
    assert store.query("SELECT current_setting('threads'), current_setting('memory_limit')") == [
        (1, "122.0 MiB")
    ]


# -- queries ---------------------------------------------------------------------------------------------


def test_queries_in_other_threads_see_whole_slices_while_loads_go_on(store):
    store.load(numbered(wallet(), grant()))
    wrong, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            loaded, usage, attempts = store.query(
                "SELECT loaded_seq, (SELECT count(*) FROM usage), (SELECT count(*) FROM attempt) FROM meta"
            )[0]
            if loaded - 2 != usage + attempts:
                wrong.append((loaded, usage, attempts))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    everything = numbered(*calls(300), after=2)
    for start in range(0, 600, 50):
        store.load(everything[start : start + 50])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.loaded_seq() == 602


def test_a_query_that_runs_is_waited_for_when_the_store_is_reopened(store):
    store.load(numbered(wallet()))
    began, answers = threading.Event(), []

    def ask():
        began.set()
        with suppress(StoreError):  # it may come too late and find the store closed
            answers.append(store.query("SELECT sum(a.range * b.range % 7) FROM range(3000) a, range(3000) b"))

    thread = threading.Thread(target=ask)
    thread.start()
    began.wait()
    store.reopen()
    thread.join()
    assert len(answers) <= 1
    assert store.query("SELECT count(*) FROM wallet") == [(1,)]


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.query("SELECT 1")
    with pytest.raises(StoreError, match="closed"):
        store.load(numbered(wallet()))
    assert store.reopen() == 0


def test_an_error_of_the_database_is_one_of_ours(store):
    with pytest.raises(StoreError):
        store.query("SELECT nothing FROM nowhere")
    assert store.query("SELECT ? + 1", [2]) == [(3,)]


def test_a_commit_that_raises_and_yet_succeeded_is_found_out_by_reopening(store):
    """DuckDB reports a checkpoint that failed after COMMIT as a failure of the COMMIT."""

    class Commits:
        def __init__(self, connection):
            self.connection = connection

        def execute(self, sql, *parameters):
            done = self.connection.execute(sql, *parameters)
            if sql == "COMMIT":
                raise duckdb.FatalException("COMMIT succeeded, but the checkpoint failed")
            return done

        def close(self):
            self.connection.close()

    store._connection = Commits(store._connection)
    everything = numbered(wallet(), grant(), *calls(5))
    with pytest.raises(StoreError, match="checkpoint failed"):
        store.load(everything)
    assert store.reopen() == 12
    assert store.load(everything) == 12
    assert store.query("SELECT count(*) FROM usage") == [(5,)]


# -- files for others ------------------------------------------------------------------------------------

COLUMNS = {"name": "VARCHAR", "grant": "VARCHAR", "amount": "DECIMAL(38, 12)", "flags": "VARCHAR[]"}
LINES = (
    '{"name":"odd \'\\"\\n","grant":"g","amount":"12345678901234567890.000000000001","flags":["a","b"]}\n'
    '{"name":null,"grant":"h","amount":"-0.500000000000","flags":[]}\n'
)


def written(tmp_path, text, form, columns=COLUMNS):
    folder = tmp_path / "it's a folder"
    folder.mkdir(exist_ok=True)
    (folder / "lines").write_text(text)
    write_table(folder / "lines", folder / f"table.{form}", columns, form=form, memory_limit="64MB")
    assert {path.name for path in folder.iterdir()} == {"lines", f"table.{form}"}
    return folder / f"table.{form}"


def test_a_parquet_file_has_amounts_that_are_exact(tmp_path):
    path = written(tmp_path, LINES, "parquet")
    rows = duckdb.execute("SELECT * FROM read_parquet($1)", [str(path)]).fetchall()
    assert rows == [
        ("odd '\"\n", "g", Decimal("12345678901234567890.000000000001"), ["a", "b"]),
        (None, "h", Decimal("-0.5"), []),
    ]


def test_a_csv_file_has_what_is_nested_as_json(tmp_path):
    path = written(tmp_path, LINES, "csv", {**COLUMNS, "flags": "VARCHAR"})
    rows = list(csv.reader(path.read_text().splitlines(keepends=True)))
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["odd '\"\n", "g", "12345678901234567890.000000000001", '["a","b"]']
    assert rows[2] == ["", "h", "-0.500000000000", "[]"]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_table_without_rows_is_a_file_with_its_columns(tmp_path, form):
    path = written(tmp_path, "", form)
    reader = {"parquet": "read_parquet", "csv": "read_csv"}[form]
    names = [column[0] for column in duckdb.execute(f"FROM {reader}($1)", [str(path)]).description]
    assert names == list(COLUMNS)


def test_a_table_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(StoreError, match="much"):
        written(tmp_path, LINES.replace("-0.5", "much"), "csv")
    with pytest.raises(StoreError):
        write_table(tmp_path / "none", tmp_path / "x.csv", COLUMNS, form="csv", memory_limit="64MB")
