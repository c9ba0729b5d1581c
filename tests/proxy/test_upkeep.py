"""What is done to the books as a whole, where no gateway has them open; tests/test_commands.py does it to one."""

import csv
import io
import json
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
import trio
from attrs import evolve

from accounting.disk import OsDisk
from accounting.records import GrantKind, Key, Spender
from accounting.recovery import StateLock
from accounting.scan import scan
from accounting.store import NAME, Store
from pricing.load import load_catalog
from pricing.money import PICO, show
from pricing.usage import Reported, Usage
from proxy import app, books, upkeep
from proxy.books import Unavailable
from proxy.config import DATA, Config
from proxy.telemetry import Telemetry
from proxy.upkeep import backup, compare, converse, export_ledger, export_ledger_file, export_tables, rebuild
from tests.accounting.ledger_fakes import FakeClient, no_cut, terms
from tests.accounting.test_export import parsed

REQUESTS = 7


def silent(_what, _count):
    """Told how far it is, and does nothing about it."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Books in which something has happened, closed."""
    config = config_of(tmp_path_factory.mktemp("upkeep") / "state")
    trio.run(write, config)
    return config


@pytest.fixture
def config(written, tmp_path):
    """The same, to be changed."""
    shutil.copytree(written.books.state_dir, tmp_path / "state")
    return config_of(tmp_path / "state")


def config_of(state):
    return evolve(Config(), books=evolve(Config().books, state_dir=str(state), segment_bytes=2**20))


async def write(config):
    async with opened(config) as open_books:
        house = open_books.books
        wallet = (await house.create_wallet("alice")).wallet
        await house.top_up(wallet, 5 * PICO, GrantKind.PAID, "manual:a")
        await house.create_key(Key("key_1", wallet, "digest of the key", "fb…1", house.clock()))
        for number in range(REQUESTS):
            claim = house.claim(Spender(wallet, "key_1"))
            with house.hold(f"req_{number}", claim, 10**9, FakeClient()) as hold:
                hold.attempt(terms(model="openai/gpt-4o-mini"))
                hold.sending()
                hold.answered(200, f"call_{number}")
                hold.meter.report(Reported((Usage(input=10, output=20),), final=True))
                hold.cover(b"x", no_cut)
        books.keep_catalog(open_books.state, load_catalog(DATA, ()))


def opened(config):
    return books.opened(config, Telemetry(books.wall_ms, trio.current_time, "error"))


def state_of(config):
    return Path(config.books.state_dir)


def dump(config):
    """Everything in the store that does not depend on how it was sliced."""
    connection = duckdb.connect(str(state_of(config) / NAME), read_only=True)
    tables = ("wallet", "api_key", "grant_", "attempt", "extension", "job", "usage", "void", "meta")
    found = {table: connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in tables}
    found["transfer"] = connection.execute(
        "SELECT wallet, kind, debit, credit, sum(amount) FROM transfer GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    connection.close()
    return found


def verified(config):
    """What `farebox verify` finds."""
    return app.operate(config, "verify", b"{}")


def names(config):
    return {path.name for path in state_of(config).iterdir()}


# -- made anew -------------------------------------------------------------------------------------------


def test_a_store_that_is_made_anew_says_what_the_old_one_said(config):
    before, files = dump(config), names(config)
    told = []
    last = rebuild(config, lambda what, count: told.append((what, count)))
    assert dump(config) == before
    assert names(config) == files
    assert told[-1] == ("records", last)
    assert verified(config) == {"ok": True, "findings": []}


@pytest.mark.parametrize("broken", ["gone", "garbage", "behind", "log", "left over"])
def test_whatever_became_of_the_store_it_is_made_anew_from_the_journal(config, broken):
    before, path = dump(config), state_of(config) / NAME
    match broken:
        case "gone":
            path.unlink()
        case "garbage":
            path.write_bytes(b"garbage" * 5000)
        case "behind":
            path.unlink()
            Store.open(path, memory_limit="64MB", schema_dir=books.SCHEMA).close()
        case "log":
            path.with_name(f"{NAME}.wal").write_bytes(b"garbage" * 500)
        case "left over":
            for name in (upkeep.ANEW, f"{upkeep.ANEW}.wal", upkeep.OLD, f"{upkeep.OLD}.wal"):
                path.with_name(name).write_bytes(b"of a try that was broken off")
    rebuild(config, silent)
    assert dump(config) == before
    assert not any(name.startswith(f"{NAME}.") for name in names(config))


def test_archived_segments_are_read_too(config):
    trio.run(write_more, config)
    before = dump(config)
    assert list((state_of(config) / "archive").iterdir())
    rebuild(config, silent)
    assert dump(config) == before


async def write_more(config):
    """Another start, in which what was sealed before goes into the archive."""
    async with opened(config) as open_books:
        await open_books.books.create_wallet("bob")
        with trio.fail_after(20):
            while not list((state_of(config) / "archive").glob("*.gz")):
                await trio.sleep(0.01)


def test_a_store_that_cannot_be_made_anew_leaves_the_old_one_as_it_was(config, monkeypatch):
    before, files = dump(config), names(config)

    def full(*_arguments):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(Store, "load", full)
    with pytest.raises(Unavailable, match=r"the old one is as it was.*no space left"):
        rebuild(config, silent)
    monkeypatch.undo()
    assert (dump(config), names(config)) == (before, files)


@pytest.mark.parametrize("at", range(1, 4))
def test_a_kill_while_the_new_one_takes_its_place_loses_nothing(config, monkeypatch, tmp_path, at):
    before = dump(config)
    (state_of(config) / f"{NAME}.wal").touch()
    rename, count = Path.rename, 0

    def killed(path, target):
        nonlocal count
        if path.name.startswith(NAME):
            count += 1
            if count == at:
                raise SystemExit
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(SystemExit):
        rebuild(config, silent)
    monkeypatch.undo()
    # what the killed process left, to one that does not have its locks
    left = config_of(shutil.copytree(state_of(config), tmp_path / "left"))
    assert verified(left)["ok"]
    assert dump(left) == before


def test_books_that_a_process_has_open_are_not_made_anew(config):
    lock = StateLock.take(OsDisk(), state_of(config))
    before = dump(config)
    with pytest.raises(Unavailable, match="another process"):
        rebuild(config, silent)
    lock.release()
    assert dump(config) == before


# -- copied ----------------------------------------------------------------------------------------------


def test_a_copy_recovers_and_is_clean(config, tmp_path):
    copied = backup(config, tmp_path / "copy")
    copy = config_of(tmp_path / "copy")
    assert copied.last_seq == len(list(scan(OsDisk(), state_of(config) / "journal")))
    assert names(copy) == {"journal", "archive", "prices"}
    assert verified(copy) == {"ok": True, "findings": []}
    assert dump(copy) == dump(config)


@pytest.mark.parametrize("where", ["state/copy", "state", "state/journal"])
def test_a_copy_inside_of_the_books_is_refused(config, tmp_path, where):
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for target in (tmp_path / where, tmp_path / where.replace("state", "link", 1)):
        with pytest.raises(Unavailable, match="inside the books"):
            backup(config, target)


def test_books_that_a_command_writes_at_the_moment_are_not_copied(config, tmp_path):
    lock = StateLock.take(OsDisk(), state_of(config))
    with pytest.raises(Unavailable, match="another process"):
        backup(config, tmp_path / "copy")
    lock.release()


def test_books_that_are_damaged_are_not_called_a_copy(config, tmp_path):
    segment = next((state_of(config) / "journal").iterdir())
    segment.write_bytes(segment.read_bytes()[:500] + b"x" + segment.read_bytes()[501:])
    with pytest.raises(Unavailable, match="unreadable"):
        backup(config, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "work",
    [
        lambda config, _path: rebuild(config, silent),
        backup,
        lambda config, path: export_tables(config, path, "csv", silent),
        lambda config, _path: export_ledger(config, io.StringIO(), silent),
        lambda config, _path: compare(config, b"id,cost\n", load_catalog(DATA, ())),
        lambda config, _path: verified(config),
    ],
)
def test_where_there_are_no_books_none_are_made(tmp_path, work):
    with pytest.raises(Unavailable, match="no books"):
        work(config_of(tmp_path / "state"), tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


# -- given to other tools --------------------------------------------------------------------------------


def test_every_table_is_a_file_of_its_own(config, tmp_path):
    told = []
    for form, reader in (("parquet", "read_parquet($1)"), ("csv", "read_csv($1, all_varchar = true)")):
        files = export_tables(config, tmp_path / form, form, lambda *what: told.append(what))
        assert [path.name for path in files] == sorted(
            f"{table.name}.{form}" for table in upkeep.export.TABLES
        )
        sums = f"SELECT count(*), sum(charged::DECIMAL(38, 12)) FROM {reader}"  # noqa: S608 - one of two
        (found,) = duckdb.execute(sums, [str(tmp_path / form / f"usage.{form}")]).fetchall()
        assert found == (REQUESTS, Decimal(REQUESTS * 330).scaleb(-12))
        assert (tmp_path / form).stat().st_mode & 0o777 == 0o700
    assert ("usage", REQUESTS) in told
    keys = list(csv.DictReader((tmp_path / "csv" / "api_key.csv").read_text().splitlines()))
    assert [key["key"] for key in keys] == ["key_1"]
    assert "digest" not in str(keys)
    assert verified(config)["ok"]


def test_a_directory_that_holds_something_is_not_written_to(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(Unavailable, match="not empty"):
        export_tables(config, tmp_path / "out", "csv", silent)
    (tmp_path / "out" / "mine").unlink()
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(Unavailable, match="broken off"):
        export_tables(config, tmp_path / "out", "csv", silent)
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="cannot be written"):
        export_tables(config, tmp_path / "file" / "x", "csv", silent)


def test_an_export_that_fails_leaves_nothing_behind(config, tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(upkeep, "write_table", full)
    with pytest.raises(Unavailable, match="no space left"):
        export_tables(config, tmp_path / "out", "csv", silent)
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def test_the_ledger_is_one_file_that_balances(config, tmp_path):
    out = io.StringIO()
    export_ledger(config, out, silent)
    entries, balances = parsed(out.getvalue())
    assert sum(balances.values()) == 0
    assert {entry["kind"] for entry in entries} == {"top_up", "usage", "cost"}
    assert export_ledger_file(config, tmp_path / "ledger", silent) == [tmp_path / "ledger"]
    assert (tmp_path / "ledger").read_text() == out.getvalue()
    assert {path.name for path in tmp_path.iterdir()} == {"state", "ledger"}
    with pytest.raises(Unavailable, match="cannot be written"):
        export_ledger_file(config, tmp_path / "none" / "ledger", silent)


def test_many_operations_are_run_on_books_that_are_opened_once(config):
    async def work(call):
        shown = [await call("wallet_list", {}) for _ in range(3)]
        await call("wallet_create", {"name": "bob"})
        return [len(one["data"]) for one in (*shown, await call("wallet_list", {}))]

    assert converse(config, work) == [1, 1, 1, 2]


# -- compared with an invoice ----------------------------------------------------------------------------


def invoice(cost="0.00000000033", count=REQUESTS):
    return b"id,cost\n" + b"".join(b"call_%d,%s\n" % (number, cost.encode()) for number in range(count))


def test_an_invoice_that_says_what_was_settled_is_in_order(config):
    findings, summary = compare(config, invoice(), load_catalog(DATA, ()))
    assert findings == ()
    assert (summary["lines"], summary["matched"], summary["difference"]) == (REQUESTS, REQUESTS, "0.00")


def test_an_invoice_that_says_something_else_is_not(config):
    catalog = load_catalog(DATA, ())
    findings, summary = compare(config, invoice() + b"call_x,1\n", catalog)
    assert [finding.where for finding in findings] == ["line call_x"]
    findings, summary = compare(config, invoice(count=REQUESTS - 2), catalog, period=(0, 2**62))
    assert [finding.where for finding in findings] == ["request req_5, attempt 1", "request req_6, attempt 1"]
    findings, summary = compare(config, invoice("0.00000000034"), catalog, tolerance=10)
    assert (findings, summary["difference"]) == ((), "0.00000000007")
    with pytest.raises(ValueError, match="columns"):
        compare(config, b"nothing", catalog)


def test_usage_that_was_invoiced_otherwise_is_priced_at_list(config):
    catalog = load_catalog(DATA, ())
    price = catalog.price(catalog.models["openai/gpt-4o-mini"], 10**6, date(2026, 11, 21))
    data = {
        "data": [
            {"id": f"call_{number}", "usage": {"input": 10, "output": 20 + number}} for number in range(2)
        ]
    }
    _, summary = compare(config, json.dumps(data).encode(), catalog)
    assert (summary["matched"], summary["off"]) == (2, 1)
    expected = price.list_cost((Usage(input=10, output=21),)) - 330
    assert summary["difference"] == show(expected)
    nothing = evolve(catalog, models={})
    findings, summary = compare(config, json.dumps(data).encode(), nothing)
    assert (summary["off"], summary["difference"]) == (1, "0.00")
    assert "21 output invoiced" in findings[-1].what
