"""Disks that fail under a real gateway, and a store that breaks or crawls: money goes on, or nothing is promised."""

import errno
import random
import time
from collections import Counter

import pytest
import trio

from tests.conftest import begin, running
from tests.crashes.faults import Faults, library, small_disk
from tests.loopback import (
    DIALECTS,
    Connection,
    Heard,
    credits_of,
    eventually,
    everything,
    metrics,
    provider,
    question,
)


def configured(path, url, more=""):
    """Settings with tiny segments, and accounts whose names make every record long."""
    accounts = ["account-" + "x" * 3000]
    known = [provider(f"{kind}_yes", kind, url, stops="yes", accounts=accounts) for kind in DIALECTS]
    path.write_text(
        f"""
        log_level = "warning"
        [listen]
        admin_port = 0
        [server]
        drain_seconds = 1.5
        [books]
        segment_bytes = 1_048_576
        load_seconds = 0.1
        {more}
        """
        + "\n".join(known)
    )
    return ("serve", "--port", "0", "--config", path)


@pytest.fixture(scope="module")
def faults_library(tmp_path_factory):
    return library(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faults(tmp_path, faults_library):
    faults = Faults(tmp_path, faults_library)
    yield faults
    faults.close()


class Asking:
    """One customer's answers: which were complete, which refused, and how long they took."""

    def __init__(self, gate, key):
        self.gate, self.key = gate, key
        self.complete, self.refused, self.errors, self.slowest = [], [], [], 0.0

    def ask(self, times, *, told="tokens=3"):
        """Ask so often, two at a time, in every dialect, streamed and not; all within a minute."""
        trio.run(self._ask, times, told)
        return self

    async def _ask(self, times, told):
        numbers = iter(range(times))

        async def client():
            async with Connection(self.gate.base_url, self.key) as connection:
                for number in numbers:
                    await self._one(connection, DIALECTS[number % 3], told, stream=number % 2 == 0)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client)
                nursery.start_soon(client)

    async def _one(self, connection, dialect, told, *, stream):
        began = time.monotonic()
        heard = await connection.ask(*question(dialect, f"{dialect}_yes", told, stream=stream, most=50))
        if heard.has_ended(dialect, stream=stream):
            self.complete.append(heard.request)
            self.slowest = max(self.slowest, heard.ended - began)
        elif heard.status == 503:
            self.refused.append(heard.json())
        else:
            self.errors.append((heard.status, heard.whole, bytes(heard.body[-300:])))


def check_books(gate, complete, acknowledged=()):
    """All that clients have seen stands in the books, once, and the books are in order."""
    found = gate.verify()
    assert found["ok"], found
    records = everything(gate)
    by_request = {record["request_id"]: record for record in records if record["status"] == "complete"}
    assert not set(complete) - by_request.keys()
    attempts = [(record["request_id"], record["attempt"]) for record in records]
    assert len(attempts) == len(set(attempts))
    return by_request


# A journal whose disk fails


def test_a_disk_that_fails_once_is_written_past_and_nobody_notices(tmp_path, box, faults):
    """Not even who starts anew from the journal alone, the store being gone."""
    config = (*configured(tmp_path / "farebox.toml", box.url), "--state", tmp_path / "state")
    with running(*config, tmp_path=tmp_path, env=faults.env) as gate:
        faults.obeyed()
        wallet, key = gate.new_wallet("10.00")
        asking, paid = Asking(gate, key).ask(4), 0
        for fault in ("journal_syncs", "journal_writes", "journal_shorts", "journal_syncs"):
            faults[fault] = 1
            status, _ = gate.admin("top_up", wallet=wallet, amount="0.50")
            assert status == 200
            paid += 1
            asking.ask(4)
            assert faults[fault] == 0
        assert faults["met"] == 4
        assert metrics(gate)['farebox_trouble_total{event="journal_written_on"}'] == 3
        assert (len(asking.complete), asking.errors, asking.refused) == (20, [], [])
        gate.process.kill()
        gate.process.wait()
    delete(tmp_path / "state", None)
    with running(*config, tmp_path=tmp_path) as gate:
        check_books(gate, asking.complete)
        spent = sum(float(record["cost"]) for record in everything(gate))
        assert float(credits_of(gate, key)["balance"]) == pytest.approx(10 + 0.5 * paid - spent)


@pytest.mark.parametrize(
    "error", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.long)], ids=errno.errorcode.get
)
def test_where_the_disk_fails_for_good_nothing_more_is_promised_and_the_gateway_exits(
    tmp_path, box, faults, error
):
    config = (*configured(tmp_path / "farebox.toml", box.url), "--state", tmp_path / "state")
    streams = [Heard() for _ in DIALECTS]
    with running(*config, tmp_path=tmp_path, env=faults.env) as gate:
        faults.obeyed()
        wallet, key = gate.new_wallet("10.00")
        asking = Asking(gate, key).ask(6)

        async def disaster():
            async with trio.open_nursery() as nursery:
                for dialect, heard in zip(DIALECTS, streams, strict=True):
                    nursery.start_soon(listen, gate, key, dialect, heard)
                while not all(heard.body for heard in streams):
                    await trio.sleep(0.01)
                faults["journal_errno"] = error
                async with Connection(gate.base_url, key) as connection:
                    refused = await connection.ask(
                        *question("openai", "openai_yes", "tokens=1", stream=False)
                    )
                assert refused.status == 503
                assert refused.json()["error"]["metadata"] == {"trigger": "failed"}

        trio.run(disaster)
        assert gate.process.wait(10) == 1
    for dialect, heard in zip(DIALECTS, streams, strict=True):
        assert b'"error"' in heard.body
        assert heard.whole
        assert not heard.has_ended(dialect)
    assert "books_failed" in (tmp_path / "log").read_text()
    with running(*config, tmp_path=tmp_path) as gate:
        check_books(gate, asking.complete)
        records = {record["request_id"]: record for record in everything(gate)}
        assert {records[heard.request]["status"] for heard in streams} == {"killed"}
        assert gate.admin("wallet_show", wallet=wallet)[1]["held"] == "0.00"


async def listen(gate, key, dialect, heard):
    async with Connection(gate.base_url, key) as connection:
        await connection.ask(*question(dialect, f"{dialect}_yes", "endless,gap_ms=50"), heard=heard)


# A disk that is really full


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.long)], ids=["once", "again"])
def test_a_full_disk_refuses_what_it_cannot_write_and_goes_on_when_there_is_room(tmp_path, box, again):
    """Full `again` when it is to start: it says so, and harms nothing."""
    with small_disk(tmp_path / "disk", megabytes=24) as disk:
        config = (*configured(tmp_path / "farebox.toml", box.url), "--state", disk.path / "state")
        with running(*config, tmp_path=tmp_path, under=disk.under) as gate:
            gate.facts["admin_token_file"] = disk.seen(gate.facts["admin_token_file"])
            key = gate.new_wallet("10.00")[1]
            asking = Asking(gate, key).ask(4)
            disk.fill()
            asking.ask(300)
            assert asking.errors == []
            assert len(asking.refused) > 10
            assert {refused.get("error", refused)["metadata"]["trigger"] for refused in asking.refused} == {
                "journal"
            }
            assert len(asking.complete) > 50
            disk.free()

            def goes_on():
                before = len(asking.complete)
                return len(asking.ask(2).complete) == before + 2

            eventually(goes_on)
            assert asking.errors == []
            check_books(gate, asking.complete)
            assert gate.stop() == 0
        if not again:
            return
        disk.fill()
        refused = begin(*config, log=tmp_path / "full", under=disk.under)
        assert refused.process.wait(30) == 1
        assert "cannot be opened" in (tmp_path / "full").read_text()
        disk.free()
        with running(*config, tmp_path=tmp_path, under=disk.under) as gate:
            gate.facts["admin_token_file"] = disk.seen(gate.facts["admin_token_file"])
            check_books(gate, asking.complete)


# A store that breaks or crawls


@pytest.mark.parametrize("seconds", [1.5, pytest.param(5.0, marks=pytest.mark.long)])
def test_a_store_that_crawls_or_fails_delays_nobody_and_is_made_up_for(tmp_path, box, faults, seconds):
    config = (*configured(tmp_path / "farebox.toml", box.url), "--state", tmp_path / "state")
    with running(*config, tmp_path=tmp_path, env=faults.env) as gate:
        faults.obeyed()
        key = gate.new_wallet("10.00")[1]
        faults["store_delay_ms"] = int(seconds * 1000)
        asking = Asking(gate, key).ask(6)
        until = time.monotonic() + 2 * seconds
        while time.monotonic() < until:
            asking.ask(6)
        assert asking.slowest < seconds / 2, "neither first byte nor end waited for a load"
        balance = credits_of(gate, key)["balance"]
        faults["store_delay_ms"] = 0
        faults["store_errno"] = errno.EIO
        asking.ask(12)
        eventually(lambda: gate.admin("usage", limit=1)[0] >= 500 or faults["met"] > 0)
        asking.ask(12)
        assert (asking.errors, asking.refused) == ([], [])
        assert float(credits_of(gate, key)["balance"]) < float(balance)
        faults["store_errno"] = 0
        eventually(lambda: gate.admin("verify")[0] == 200)
        check_books(gate, asking.complete)
        assert gate.stop() == 0


def damage_log(state, rng):
    log = state / "books.duckdb.wal"
    data = bytearray(log.read_bytes())
    for _ in range(20):
        data[rng.randrange(len(data))] ^= 0xFF
    log.write_bytes(data)


def damage_database(state, _rng):
    (state / "books.duckdb").write_bytes(b"this was a database" * 1000)


def cut_database(state, rng):
    database = state / "books.duckdb"
    database.write_bytes(database.read_bytes()[: rng.randrange(database.stat().st_size)])


def delete(state, _rng):
    for name in ("books.duckdb", "books.duckdb.wal"):
        (state / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    "damages",
    [
        (damage_log, damage_database),
        pytest.param((damage_log, cut_database, delete) * 5, marks=pytest.mark.long),
    ],
    ids=["short", "long"],
)
def test_a_store_that_is_damaged_or_gone_is_made_anew_from_the_journal(tmp_path, box, damages):
    config = (*configured(tmp_path / "farebox.toml", box.url), "--state", tmp_path / "state")
    complete, key, state, rng = [], None, tmp_path / "state", random.Random(3)
    for damage in (*damages, None):
        with running(*config, tmp_path=tmp_path) as gate:
            key = key or gate.new_wallet("10.00")[1]
            check_books(gate, complete)
            complete += Asking(gate, key).ask(6).complete
            if damage is None:
                break
            assert gate.verify()["ok"]  # which loads all that there is
            gate.process.kill()
            gate.process.wait()
        damage(state, rng)
    assert len(complete) == 6 * (len(damages) + 1)
    aside = Counter(path.name.partition(".corrupt-")[0] for path in state.glob("*.corrupt-*"))
    # what was set aside is kept: a log also with the database that it belongs to
    assert damages.count(damage_log) <= aside["books.duckdb.wal"] <= len(damages)
    assert aside["books.duckdb"] == damages.count(damage_database) + damages.count(cut_database)
