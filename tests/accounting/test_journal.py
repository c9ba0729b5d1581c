from contextlib import suppress

import msgspec
import pytest
from msgspec.structs import replace

from accounting.journal import (
    HEAD_BYTES,
    MARK_BYTES,
    PLACE_BYTES,
    RECORD_BYTES,
    BooksFailed,
    NoRoom,
)
from accounting.lines import encode
from accounting.records import (
    Account,
    Attempt,
    Carry,
    CarryHead,
    Key,
    Mark,
    Transfer,
    Wallet,
)
from accounting.segment import SPARE
from tests.accounting.journal_fakes import (
    DIRECTORY,
    FakeDisk,
    attempt,
    calls,
    extension,
    fails,
    fill,
    fresh,
    grant,
    housekeep,
    job,
    paths,
    progress,
    read,
    records,
    reopened,
    rolled,
    seeded,
    settled,
    sync,
    void,
    wallet,
    work,
)

EVERY_KIND = (
    wallet(),
    Key("k1", "w1", "ab" * 32, "fb_sk_…abcd", 5, "laptop", 60, None, 4, ("openai/*",), 900_000, None, True),
    grant(amount=10**21),
    Transfer("t1", "w1", Account.WALLET_PAID, Account.BREAKAGE, 2**70, "USD", "expiry", "g1", 7, "g1"),
    attempt(1),
    progress(1),
    extension(1),
    settled(1),
    attempt(2),
    void(2),
    work(3),
    job(3),
)


def letters(disk, path):
    return [msgspec.json.decode(line)["t"] for line in disk.content(path).rstrip(b"\0").splitlines()]


def test_every_kind_of_record_comes_back_as_it_was_written():
    disk = FakeDisk()
    journal = fresh(disk)
    assert [journal.append(record) for record in EVERY_KIND] == list(range(1, len(EVERY_KIND) + 1))
    assert records(disk) == list(enumerate(EVERY_KIND, 1))


def test_lines_about_the_journal_are_never_longer_than_the_room_that_is_kept_for_them():
    far = 2**63 - 1
    assert len(encode(Mark(far, far), far, 0)[0]) <= MARK_BYTES
    assert len(encode(CarryHead(far, far, far, "f" * 8), far, 0)[0]) <= HEAD_BYTES


def test_a_record_is_written_before_append_returns():
    disk = FakeDisk()
    journal = fresh(disk)
    journal.append(wallet())
    assert b'"Ada"' in disk.content(paths(disk)[0])


# -- syncing ---------------------------------------------------------------------------------------------


def test_a_mark_says_what_is_on_the_platter_and_needs_no_sync_of_its_own():
    disk = FakeDisk()
    journal = fresh(disk)
    journal.append(wallet())
    sync(journal)
    assert journal.synced_upto == journal.seq == 1
    assert read(disk).synced_upto == 1
    before = disk.content(paths(disk)[0])
    sync(journal)
    assert disk.content(paths(disk)[0]) == before


def test_what_is_written_while_a_sync_runs_is_not_covered_by_it():
    disk = FakeDisk()
    journal = fresh(disk)
    journal.append(wallet())
    planned = journal.begin_sync()
    planned.run()
    journal.append(grant())
    journal.synced(planned)
    assert journal.synced_upto == 1
    assert read(disk).synced_upto == 1


def test_a_segment_that_fills_up_while_a_sync_runs_is_synced_again_before_it_is_sealed():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    housekeep(journal)
    planned = journal.begin_sync()
    planned.run()
    fill(journal, lambda: journal._full)
    journal.synced(planned)
    assert journal.synced_upto < journal.seq
    housekeep(journal)
    assert [path.name for path in paths(disk)] == ["00000001.open", "00000002.open"]
    before = journal.seq
    sync(journal)
    housekeep(journal)
    assert [path.suffix for path in paths(disk)] == [".ndjson", ".open"]
    disk.lose_power(seeded(1))
    assert read(disk).last_seq == before


# -- segments --------------------------------------------------------------------------------------------


def test_a_new_segment_opens_with_the_last_seq_and_every_attempt_that_is_open():
    disk = FakeDisk()
    first = (wallet(), grant(), attempt(1), attempt(2), attempt(3), attempt(4), work(5))
    more = (progress(2, 5), extension(2, 7), progress(2, 6), extension(2, 9), job(5), settled(3), void(4))
    journal = rolled(disk, *first, *more)
    lines = disk.content(paths(disk)[1]).rstrip(b"\0").splitlines()
    head = msgspec.json.decode(lines[0], type=CarryHead)
    carried = [msgspec.json.decode(line, type=Carry) for line in lines[1 : 1 + head.open_attempts]]
    assert [(one.attempt, one.progress, one.hold, one.job) for one in carried[:3]] == [
        (attempt(1), None, None, None),
        (attempt(2), progress(2, 6), 9, None),
        (work(5), None, None, job(5)),
    ]
    assert not {"r3", "r4"} & {one.attempt.request for one in carried}
    assert len(carried) == len(lines[1:]) - (journal.seq - head.last_seq)
    assert read(disk).miscarried == []


def test_what_was_written_over_several_segments_is_read_as_one():
    disk = FakeDisk()
    journal = rolled(disk, wallet(), grant())
    for _ in range(2000):
        journal.append(settled(1))
        sync(journal)
        housekeep(journal)
    assert len(paths(disk)) >= 5
    assert [seq for seq, _ in records(disk)] == list(range(1, journal.seq + 1))


def test_a_segment_is_sealed_only_when_the_head_of_the_next_is_durable():
    disk = FakeDisk()
    journal = rolled(disk, wallet(), grant(), attempt(1))
    housekeep(journal)
    assert paths(disk)[0].suffix == ".open"
    sync(journal)
    housekeep(journal)
    assert paths(disk)[0].suffix == ".ndjson"
    assert not disk.content(paths(disk)[0]).endswith(b"\0")


def test_closing_seals_what_holds_records_and_removes_what_holds_none():
    disk = FakeDisk()
    journal = rolled(disk, wallet())
    sync(journal)
    housekeep(journal)
    journal.close()
    journal.close()
    assert {path.suffix for path in paths(disk)} == {".ndjson"}
    before = paths(disk)
    again = reopened(disk)
    again.close()
    assert paths(disk) == before
    with pytest.raises(BooksFailed, match="closed"):
        again.append(wallet())
    assert not again.reserve(1)


def test_a_spare_is_made_in_time_and_leaves_nothing_behind_where_it_cannot_be():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    assert journal.housework() is None
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    disk.capacity = 0
    chore = journal.housework()
    assert journal.housework() is None
    with pytest.raises(OSError, match="no space"):
        chore.run()
    journal.chore_done(chore)
    assert disk.names(DIRECTORY) == ["00000001.open"]
    disk.capacity = 2**40
    housekeep(journal)
    assert disk.names(DIRECTORY) == ["00000001.open", SPARE]
    assert paths(disk) == [DIRECTORY / "00000001.open"]


def test_the_spare_has_all_its_bytes_before_it_is_used():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    housekeep(journal)
    disk.capacity = 0
    fill(journal, lambda: journal._full)
    sync(journal)
    assert journal.failed is None


# -- room ------------------------------------------------------------------------------------------------


def test_a_place_is_refused_where_what_was_promised_could_no_longer_be_written():
    journal = fresh(FakeDisk(), segment_bytes=2**15)
    taken = 0
    while journal.reserve(1):
        taken += 1
    assert taken == (2**15 - journal._file.offset) // PLACE_BYTES
    while journal._fits(taken, 500):
        journal.append(wallet())
    with pytest.raises(NoRoom):
        journal.append(settled(1))
    journal.release(1)
    assert journal.append(wallet()) == journal.seq
    assert not journal.reserve(2)


def test_places_that_were_not_taken_cannot_be_given_back():
    journal = fresh(FakeDisk())
    assert journal.reserve(2)
    with pytest.raises(ValueError, match="given back"):
        journal.release(3)


class Calls:
    """Calls that come and go on a journal; `refused` counts what found no room."""

    def __init__(self, journal, disk, rng):
        self.journal, self.disk, self.rng = journal, disk, rng
        self.under_way, self.begun, self.refused = [], 0, 0
        self.long = rng.choice(
            [10, RECORD_BYTES - 1100]
        )  # of ordinary records, or of some that fill their place

    def begin(self):
        if not self.journal.reserve(2):
            self.refused += 1
            return
        self.begun += 1
        self.journal.append(replace(attempt(self.begun), model="m" * self.long), reserved=True)
        self.under_way.append(self.begun)

    def go_on(self):
        try:
            self.journal.append(progress(self.rng.choice(self.under_way or [0])))
        except NoRoom:
            self.refused += 1

    def end(self):
        if self.under_way:
            record = replace(settled(self.under_way.pop()), upstream_id="u" * self.long)
            self.journal.append(record, reserved=True)

    def sync(self):
        sync(self.journal)

    def chore(self):
        """Made or not: the disk is full now and then."""
        self.disk.capacity = self.rng.choice([0, 0, 2**40])
        chore = self.journal.housework()
        if chore is not None:
            with suppress(OSError):
                chore.run()
            self.journal.chore_done(chore)

    def error(self):
        """The disk fails once; what it has room for then is what it has for a new file."""
        self.disk.capacity = 2**40
        self.disk.before = fails(self.rng.choice(["pwrite", "fdatasync", "rename", "sync_dir"]))
        self.begin()
        self.sync()
        self.disk.before = None
        self.sync()


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_a_reserved_place_always_finds_room(seed, errors):
    """On tiny segments, with spares that come late or not at all, what was promised is written."""
    rng = seeded(seed)
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=rng.choice([2**14, 2**15, 2**16]))
    journal.append(wallet())
    calls = Calls(journal, disk, rng)
    steps = [calls.begin, calls.begin, calls.go_on, calls.end, calls.sync, calls.chore]
    for number in range(600):
        rng.choice(steps)()
        if errors and number % 50 == 0:
            calls.error()
    disk.capacity = 0
    while calls.under_way:
        calls.end()
        calls.sync()
    calls.sync()
    assert journal.failed is None
    assert journal.reserved == 0
    assert calls.refused
    assert bool(journal.written_on) == errors
    assert read(disk).last_seq == journal.synced_upto == journal.seq


def test_a_line_that_is_longer_than_its_place_is_still_written():
    disk = FakeDisk()
    journal = fresh(disk)
    assert journal.reserve(1)
    long = Wallet("w" * 3 * PLACE_BYTES, "", "USD", 1)
    journal.append(long, reserved=True)
    assert records(disk) == [(1, long)]


# -- going on --------------------------------------------------------------------------------------------


def test_the_tail_above_the_last_mark_is_written_again_under_the_same_seqs_and_synced():
    disk = FakeDisk()
    journal = fresh(disk)
    for record in (wallet(), grant(), attempt(1)):
        journal.append(record)
    sync(journal)
    for record in (progress(1), settled(1), attempt(2)):
        journal.append(record)
    written = records(disk)
    disk.kill()
    again = reopened(disk)
    assert again.seq == again.synced_upto == 6
    assert letters(disk, paths(disk)[1]) == ["C0", "C", "P", "S", "A", "M"]
    assert records(disk) == written
    disk.lose_power(seeded(3))
    assert records(disk) == written
    assert isinstance(written[-1][1], Attempt)


def test_a_tail_longer_than_a_segment_gets_a_segment_that_holds_it():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**17)
    for record in (wallet(), *calls(40)):
        journal.append(record)
    disk.kill()
    again = reopened(disk, segment_bytes=2**12)
    assert again.seq == 81
    again.append(grant())
    assert [seq for seq, _ in records(disk)] == list(range(1, 83))


def test_a_journal_directory_holds_nothing_but_segments():
    disk = FakeDisk()
    rolled(disk, wallet())
    assert [path.name for path in paths(disk)] == ["00000001.open", "00000002.open"]
    assert {path.parent for path in paths(disk)} == {DIRECTORY}
