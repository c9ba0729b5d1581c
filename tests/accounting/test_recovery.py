import errno
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
from attrs import define, field

from accounting.disk import OsDisk
from accounting.journal import NoRoom
from accounting.records import Attempt, Ending, Progress, UsageRecord
from accounting.recovery import JOURNAL, AlreadyRunning, RecoveryError, recover
from accounting.scan import scan
from accounting.store import NAME, Store, StoreBusy
from pricing.usage import Source
from tests.accounting.journal_fakes import (
    HOLD,
    STATE,
    FakeDisk,
    PowerLoss,
    archive,
    attempt,
    calls,
    clock,
    extension,
    fails,
    grant,
    housekeep,
    job,
    paths,
    progress,
    read,
    records,
    rolled,
    seeded,
    settled,
    sync,
    void,
    wallet,
    work,
)
from tests.accounting.recovery_fakes import FakeStore, check, start, write

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "data" / "schema"


# -- starting --------------------------------------------------------------------------------------------


def test_a_state_directory_that_is_not_there_yet_becomes_empty_books():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    assert (books.journal.seq, books.last_ms, books.findings.loaded) == (0, 0, 0)
    assert books.ledger.wallets() == ()
    check(disk, store, books)


def test_books_that_were_closed_are_found_as_they_were():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), *calls(3))
    sync(books.journal)
    before = books.ledger.state()
    books.close()
    assert not store.is_open
    again = start(disk, store)
    assert again.ledger.state() == before
    assert again.findings.loaded == 8
    assert again.findings.settled == ()
    assert again.findings.damages == ()
    assert again.last_ms == 3_000
    check(disk, store, again)


def test_two_at_a_time_are_refused_and_the_second_changes_nothing():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    done = len(disk.operations)
    with pytest.raises(AlreadyRunning, match="another process"):
        start(disk, FakeStore())
    assert {operation for operation, _ in disk.operations[done:]} <= {"make_dir", "lock"}
    books.close()
    start(disk, store).close()


def test_a_start_that_fails_lets_the_lock_go():
    disk, store = FakeDisk(), FakeStore(error=RuntimeError("no store"))
    with pytest.raises(RuntimeError, match="no store"):
        start(disk, store)
    store.error = None
    start(disk, store).close()


def test_what_is_open_is_settled_at_its_last_progress_and_that_is_durable():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(
        books,
        wallet(),
        grant(),
        attempt(1),
        progress(1, 5),
        progress(1, 6),
        attempt(2),
        attempt(3),
        void(3),
        attempt(4),
        settled(4),
    )
    sync(books.journal)
    disk.kill()
    again = start(disk, store)
    first, second = again.findings.settled
    assert (first.request, first.charged, first.outcome) == ("r1", 6, Ending.KILLED)
    assert (second.request, second.charged, second.source) == ("r2", 0, Source.RECOVERED)
    assert again.ledger.balance("w1") == 10**9 - 6 - 10
    assert again.ledger.held("w1") == 0
    check(disk, store, again)
    disk.lose_power(seeded(0))
    check(disk, store, start(disk, store))


def test_a_job_stays_open_with_its_hold_and_is_told():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), work(1), job(1, 30), work(2), extension(2, 400), job(2, 7), attempt(3))
    write(books, progress(3, 5))
    for restart in range(3):
        disk.kill() if restart < 2 else books.close()
        books = start(disk, store)
        assert [one.request for one in books.findings.settled] == ["r3"] * (restart == 0)
        assert [(one.attempt.request, one.job, one.hold) for one in books.findings.jobs] == [
            ("r1", job(1, 30), HOLD),
            ("r2", job(2, 7), 400),
        ]
        assert books.ledger.held("w1") == HOLD + 400
        assert books.ledger.balance("w1") == 10**9 - 5
        assert read(disk).miscarried == []
    write(books, settled(1, 30), void(2))
    sync(books.journal)
    books.close()
    books = start(disk, store)
    assert books.findings.jobs == ()
    assert books.ledger.balance("w1") == 10**9 - 35
    check(disk, store, books)


def test_a_job_that_no_provider_is_known_to_have_taken_on_is_settled_and_holds_nothing():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), work(1))
    disk.kill()
    books = start(disk, store)
    assert [(one.request, one.charged, one.outcome) for one in books.findings.settled] == [
        ("r1", 0, Ending.KILLED)
    ]
    assert books.findings.jobs == ()
    assert (books.ledger.held("w1"), books.ledger.balance("w1")) == (0, 10**9)
    check(disk, store, books)


def test_a_call_is_settled_within_the_hold_that_was_in_force():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), attempt(1), extension(1, 5_000), progress(1, 4_000))
    disk.kill()
    books = start(disk, store)
    (record,) = books.findings.settled
    assert (record.charged, record.held) == (4_000, 5_000)
    check(disk, store, books)


def test_many_open_attempts_are_settled_although_segments_are_small():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store, segment_bytes=2**20)
    write(books, wallet(), grant(), *(attempt(request) for request in range(200)))
    disk.kill()
    again = start(disk, store, segment_bytes=2**12)
    assert len(again.findings.settled) == 200
    check(disk, store, again)


def test_time_never_goes_back_over_a_restart():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), attempt(1, at_ms=9_000))
    disk.kill()
    again = start(disk, store)
    assert again.last_ms == 9_000
    assert again.findings.settled[0].ended_ms >= 9_000


def test_old_segments_are_synced_before_anything_acts_on_them():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), attempt(1))
    disk.kill()
    done = len(disk.operations)
    start(disk, store)
    operations = disk.operations[done:]
    first = next(at for at, (operation, path) in enumerate(operations) if operation == "fdatasync")
    acts = [at for at, (operation, _) in enumerate(operations) if operation in ("create", "pwrite", "rename")]
    assert operations[first][1] == STATE / "journal" / "00000001.open"
    assert first < min(acts)


def test_old_segments_are_sealed_and_never_appended_to():
    disk, store = FakeDisk(), FakeStore()
    write(start(disk, store), wallet(), grant(), *calls(3))
    disk.kill()
    again = start(disk, store)
    first, second = paths(disk)
    assert (first.name, second.name) == ("00000001.ndjson", "00000002.open")
    before = disk.content(first)
    write(again, *calls(3, 10))
    assert disk.content(first) == before


def test_starting_again_and_again_adds_nothing():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), *calls(2))
    sync(books.journal)
    for _ in range(5):
        books.close()
        books = start(disk, store)
    assert len(paths(disk)) == 2
    check(disk, store, books)


def test_a_segment_that_another_was_written_in_place_of_is_sealed_empty_and_archived():
    disk, store = FakeDisk(), FakeStore()
    journal = rolled(disk, wallet(), grant(), attempt(1))
    before = records(disk)
    disk.before = fails("fdatasync")
    sync(journal)
    disk.kill()
    first, second, _ = paths(disk)
    disk.set_content(second, bytes(2**15))
    content = disk.content(first)
    disk.set_content(first, content[: content.index(b'"t":"M"')] + bytes(100))
    books = start(disk, store, segment_bytes=2**15)
    assert [path.suffix for path in paths(disk)] == [".ndjson", ".ndjson", ".ndjson", ".open"]
    assert disk.content(second.with_suffix(".ndjson")) == b""
    archive(books.journal)
    assert [path.suffix for path in paths(disk)] == [".gz", ".gz", ".gz", ".open"]
    assert records(disk)[: len(before)] == before
    books.close()
    books = start(disk, store)
    assert books.findings.damages == ()
    check(disk, store, books)


def test_a_head_that_only_the_page_cache_has_is_not_sealed():
    """Nothing in it is needed; sealed and then lost, it would look like a loss."""
    disk, store = FakeDisk(), FakeStore()
    disk.before = fails("fdatasync", at=2)  # the first is of the file when it is made
    with pytest.raises(OSError, match="provoked"):
        start(disk, store)
    disk.kill()
    start(disk, store).close()
    disk.lose_power(seeded(0))
    check(disk, store, start(disk, store))


# -- refusing --------------------------------------------------------------------------------------------


def lived(disk, store):
    books = start(disk, store)
    write(books, wallet(), grant(), *calls(4))
    sync(books.journal)
    write(books, attempt(20), progress(20), settled(20))
    store.close()
    disk.kill()
    return books


def test_damage_below_a_mark_stops_the_start_names_its_place_and_changes_nothing():
    disk, store = FakeDisk(), FakeStore()
    lived(disk, store)
    (path,) = paths(disk)
    data = bytearray(disk.content(path))
    data[data.index(b'"t":"G"') + 30] ^= 1
    disk.set_content(path, data)
    done = len(disk.operations)
    with pytest.raises(RecoveryError, match=r"00000001.open, byte \d+: unreadable"):
        start(disk, store)
    changing = {"create", "pwrite", "rename", "unlink", "truncate"}
    assert not changing & {operation for operation, _ in disk.operations[done:]}
    assert disk.content(path) == data
    assert not store.is_open
    assert disk.locked == set()


def test_a_store_that_knows_more_than_the_journal_stops_the_start():
    disk, store = FakeDisk(), FakeStore()
    lived(disk, store)
    store.loaded = records(disk)[:10]
    (path,) = paths(disk)
    disk.set_content(path, disk.content(path)[:900])
    with pytest.raises(RecoveryError, match="the store knows line 10, but the journal"):
        start(disk, store)


def test_a_journal_that_contradicts_itself_stops_the_start():
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    books.journal.append(wallet())
    books.journal.append(settled(1))
    disk.kill()
    with pytest.raises(RecoveryError, match="line 2 of the journal contradicts"):
        start(disk, store)


def test_a_torn_tail_is_cut_and_told():
    disk, store = FakeDisk(), FakeStore()
    lived(disk, store)
    (path,) = paths(disk)
    data = disk.content(path).rstrip(b"\0")
    disk.set_content(path, data[:-20] + bytes(100))
    books = start(disk, store)
    (damage,) = books.findings.damages
    assert (damage.path, damage.offset) == (path, data.rindex(b"\n", 0, -20) + 1)
    assert [one.request for one in books.findings.settled] == ["r20"]
    assert books.findings.rewritten == 2
    check(disk, store, books)
    assert not disk.content(path.with_suffix(".ndjson")).endswith(b"\0")


# -- power loss and kills, everywhere ----------------------------------------------------------------------


@define(eq=False)
class Life:
    """A gateway's life on a fake disk: calls, syncs, loads, chores; until the disk ends it."""

    disk: FakeDisk
    store: FakeStore
    rng: Random
    told: list = field(factory=list)
    """What somebody was told is durable."""
    requests: int = 0

    def live(self, steps, books):
        if books.journal.seq == 0:
            write(books, wallet(), grant())
        under_way: list[int] = []
        for _ in range(steps):
            self.step(books, under_way)

    def step(self, books, under_way):
        journal, rng = books.journal, self.rng
        match rng.randrange(7):
            case 0 | 1 if journal.reserve(2):
                self.requests += 1
                self.put(books, attempt(self.requests))
                under_way.append(self.requests)
            case 2 if under_way:
                self.put(books, settled(under_way.pop(rng.randrange(len(under_way))), rng.randrange(50)))
            case 3 if under_way:
                request = rng.choice(under_way)
                try:
                    write(books, progress(request, rng.randrange(50)))
                except NoRoom:
                    return
            case 4:
                sync(journal)
                self.told = records(self.disk)[: journal.synced_upto]
            case 5:
                loaded = self.store.loaded_seq()
                self.store.load(records(self.disk)[loaded : journal.synced_upto])
            case 6 if rng.random() < 0.5:
                housekeep(journal)

    def put(self, books, record):
        books.journal.append(record, reserved=True)
        books.ledger.replay(record)


def ends(at, exception=PowerLoss):
    """Ends a life at its so many-th operation."""
    count = 0

    def before(operation, path):
        nonlocal count
        count += 1
        if count == at:
            raise exception()

    return before


@pytest.mark.parametrize("seed", range(24))
def test_over_many_lives_nothing_that_was_told_is_lost_and_nothing_happens_twice(seed):
    """Kill or power loss at a random operation of a life, or of a recovery; then again, and again."""
    rng = seeded(seed)
    life = Life(FakeDisk(), FakeStore(), rng)
    for _ in range(12):
        life.disk.before = ends(rng.randrange(1, 150))
        try:
            books = start(life.disk, life.store)
            life.live(120, books)
        except PowerLoss:
            pass
        life.store.close()
        if rng.random() < 0.5:
            life.disk.kill()
        else:
            life.disk.lose_power(rng)
        written = records(life.disk)
        assert written[: len(life.told)] == life.told
        assert written[: len(life.store.loaded)] == life.store.loaded
    check(life.disk, life.store, start(life.disk, life.store))


@pytest.mark.parametrize("seed", range(6))
def test_a_recovery_may_be_cut_off_at_any_operation(seed):
    """From the same wreck, cut off at each operation in turn, by a kill and by a power loss."""
    rng = seeded(seed)
    life = Life(FakeDisk(), FakeStore(), rng)
    books = start(life.disk, life.store)
    life.live(150, books)
    life.store.close()
    life.disk.kill()
    told = life.told
    for at in range(1, 200):
        for powerless in (False, True):
            disk, store = life.disk.copy(), FakeStore(list(life.store.loaded))
            disk.before = ends(at)
            try:
                start(disk, store)
            except PowerLoss:
                pass
            else:
                if not powerless:
                    assert at > 10
                    return
            if powerless:
                disk.lose_power(seeded(at))
            else:
                disk.kill()
            acted = list(store.loaded)
            again = start(disk, store)
            check(disk, store, again)
            written = records(disk)
            assert written[: len(told)] == told
            assert written[: len(acted)] == acted
    pytest.fail("a recovery has more operations than were cut")


def test_lines_that_only_the_page_cache_has_are_on_the_platter_before_they_are_acted_on():
    """An fsync failed earlier: the cache shows lines, and says that they are clean, that no platter has."""
    disk, store = FakeDisk(), FakeStore()
    books = start(disk, store)
    write(books, wallet(), grant(), attempt(1))
    sync(books.journal)
    write(books, settled(1), attempt(2), progress(2, 9))

    def before(operation, _path):
        if operation == "fdatasync":
            raise OSError(errno.EIO, "provoked")

    disk.before = before
    with pytest.raises(OSError, match="provoked"):
        books.journal.begin_sync().run()
    disk.kill()
    again = start(disk, store)
    assert again.findings.rewritten == 3
    acted = list(store.loaded)
    disk.lose_power(seeded(4))
    assert records(disk)[: len(acted)] == acted
    check(disk, store, start(disk, store))


@pytest.mark.parametrize("operation", ["create", "allocate", "pwrite", "fdatasync", "sync_dir", "rename"])
def test_a_disk_that_fails_while_recovering_leaves_books_that_can_be_recovered(operation):
    for count in range(1, 6):
        disk, store = FakeDisk(), FakeStore()
        lived(disk, store)
        left = count

        def before(what, _path):
            nonlocal left
            left -= what == operation
            if what == operation and left == 0:
                raise OSError(errno.EIO, "provoked")

        disk.before = before
        try:
            books = start(disk, store)
        except Exception:  # noqa: BLE001 - that it fails is the point; how, is not
            assert disk.locked == set()
            assert not store.is_open
            disk.kill()
            books = start(disk, store)
        disk.before = None
        check(disk, store, books)


# -- for real --------------------------------------------------------------------------------------------


def start_for_real(state, clock=clock, **settings):
    opened = partial(
        Store.open_repaired, state / NAME, memory_limit="128MB", schema_dir=SCHEMA, stamp="1700000000000"
    )
    settings = {"segment_bytes": 2**20, "load_records_max": 1000, **settings}
    return recover(state, disk=OsDisk(), open_store=opened, clock=clock, **settings)


def test_on_a_real_disk_and_a_real_store(tmp_path):
    state = tmp_path / "state"
    books = start_for_real(state)
    assert state.stat().st_mode & 0o777 == 0o700
    write(books, wallet(), grant(), *calls(5), attempt(9), progress(9, 3))
    sync(books.journal)
    with pytest.raises(AlreadyRunning):
        start_for_real(state)
    with pytest.raises(StoreBusy):
        raise_from_another_process(state)
    books.close()
    again = start_for_real(state)
    assert again.findings.loaded == 14
    assert again.store.loaded_seq() == again.journal.seq == 15
    assert again.store.query("SELECT count(*), sum(charged) FROM usage") == [(6, 53)]
    again.close()
    assert {path.suffix for path in (state / JOURNAL).iterdir()} == {".ndjson"}


def raise_from_another_process(state):
    code = (
        "import sys; from pathlib import Path; from accounting.store import Store, StoreBusy\n"
        "try: Store.open_to_read(Path(sys.argv[1]), memory_limit='64MB', schema_dir=Path(sys.argv[2]))\n"
        "except StoreBusy: sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(state / NAME), str(SCHEMA)], cwd=ROOT, check=False)
    if done.returncode == 7:
        raise StoreBusy


def test_a_store_that_is_gone_or_broken_is_made_anew_from_the_journal(tmp_path):
    state = tmp_path / "state"
    books = start_for_real(state)
    write(books, wallet(), grant(), *calls(50))
    sync(books.journal)
    books.close()
    database = state / NAME
    for damage in (database.unlink, lambda: database.write_bytes(b"not a database" * 1000)):
        damage()
        books = start_for_real(state, load_records_max=13)
        assert books.findings.loaded == 102
        assert books.store.query("SELECT count(*) FROM usage") == [(50,)]
        assert books.store.query("SELECT sum(amount) FROM transfer WHERE kind = 'usage'") == [(500,)]
        books.close()
    assert len(list(state.glob("*.corrupt-1700000000000"))) == 1


CHILD = """
import sys
from pathlib import Path
from tests.accounting.journal_fakes import attempt, grant, housekeep, progress, settled, sync, wallet
from tests.accounting.recovery_fakes import write
from tests.accounting.test_recovery import start_for_real

first = int(sys.argv[2])
books = start_for_real(Path(sys.argv[1]), segment_bytes=2**16)
if books.journal.seq == 0:
    write(books, wallet(), grant())
for request in range(first, first + 10**6):
    write(books, attempt(request), progress(request, 1))
    if request % 40:
        write(books, settled(request))
    if request % 7 == 0:
        sync(books.journal)
        books.store.load([])
        print(request - 1, flush=True)
    housekeep(books.journal)
"""


def test_a_process_that_is_killed_loses_nothing_that_it_has_told(tmp_path):
    state = tmp_path / "state"
    first, told = 0, set()
    for kill in range(3):
        command = [sys.executable, "-c", CHILD, str(state), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as child:
            for _ in range(20 + kill):
                last = int(child.stdout.readline())
                told.update(range(first, last + 1))
            child.send_signal(signal.SIGKILL)
        first += 10**6
    books = start_for_real(state)
    lines = [record for _, record in scan(OsDisk(), state / JOURNAL)]
    ended = [record.request for record in lines if isinstance(record, UsageRecord)]
    assert len(ended) == len(set(ended))
    assert {f"r{request}" for request in told} <= set(ended)
    assert {one.request for one in lines if isinstance(one, Attempt | Progress)} == set(ended)
    stored = books.store.query("SELECT count(*), count(DISTINCT request), sum(charged) FROM usage")
    paid = sum(record.charged for record in lines if isinstance(record, UsageRecord))
    assert stored == [(len(ended), len(ended), paid)]
    assert books.ledger.balance("w1") == 10**9 - paid
    books.close()
