"""What the journal does about an error of the disk: it goes on in another file, or has failed and says so."""

import errno

import pytest
from msgspec.structs import replace

from accounting.journal import PLACE_BYTES, BooksFailed, Journal, Past
from accounting.scan import read_after
from accounting.segment import SPARE
from tests.accounting.journal_fakes import (
    ALWAYS,
    DIRECTORY,
    FakeDisk,
    attempt,
    calls,
    clock,
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
    wallet,
    work,
)

FIRST, SECOND, THIRD = (DIRECTORY / f"0000000{number}.open" for number in (1, 2, 3))


def lived(disk, **settings):
    """A journal with four records on the platter, of which one is open, and three that are not."""
    journal = fresh(disk, **settings)
    for record in (wallet(), grant(), attempt(1), progress(1)):
        journal.append(record)
    sync(journal)
    for record in (extension(1), work(2), job(2)):
        journal.append(record)
    return journal


def touched(disk, path, since):
    """What was done to a file since so many operations, but for closing it."""
    return {operation for operation, where in disk.operations[since:] if where == path} - {"close"}


# -- going on ----------------------------------------------------------------------------------------------


def test_a_write_that_is_cut_short_is_continued():
    disk = FakeDisk(write_at_most=100)
    journal = fresh(disk)
    journal.append(wallet())
    journal.append(grant())
    assert records(disk) == [(1, wallet()), (2, grant())]
    assert journal.written_on == 0


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_record_that_cannot_be_written_is_written_into_another_file_under_its_seq(error):
    disk = FakeDisk()
    journal = lived(disk)
    seen = []
    journal.on_error = seen.append
    done = len(disk.operations)
    disk.before = fails("pwrite", error=error)
    assert journal.append(settled(1)) == 8
    assert [one.errno for one in seen] == [error]
    assert (journal.written_on, journal.synced_upto) == (1, 4)
    assert touched(disk, FIRST, done) == set()
    assert [record for _, record in records(disk)][4:] == [extension(1), work(2), job(2), settled(1)]
    sync(journal)
    disk.lose_power(seeded(1))
    scanned = read(disk)
    assert (scanned.last_seq, scanned.synced_upto) == (8, 8)
    assert scanned.miscarried == []


def test_what_a_sync_failed_on_is_written_again_under_the_same_seqs():
    disk = FakeDisk()
    journal = lived(disk)
    before = records(disk)
    disk.before = fails("fdatasync")
    done = len(disk.operations)
    sync(journal)
    assert journal.synced_upto == 7
    assert touched(disk, FIRST, done) == set()
    # the pages that it failed on count as clean, and never reach the platter
    disk.lose_power(seeded(2))
    assert records(disk) == before


def test_nobody_is_told_before_the_new_file_is_synced():
    disk = FakeDisk()
    journal = lived(disk)
    under_way = journal.begin_sync()
    disk.before = fails("pwrite")
    journal.append(settled(1))
    under_way.run()  # and succeeds
    assert not journal.synced(under_way)
    assert journal.synced_upto == 4
    sync(journal)
    assert journal.synced_upto == 8


def test_an_error_of_a_sync_whose_file_was_given_up_meanwhile_is_not_another():
    disk = FakeDisk()
    journal = lived(disk)
    under_way = journal.begin_sync()
    disk.before = fails("pwrite")
    journal.append(settled(1))
    disk.before = fails("fdatasync")
    with pytest.raises(OSError, match="provoked") as caught:
        under_way.run()
    journal.sync_failed(under_way, caught.value)
    assert (journal.failed, journal.written_on) == (None, 1)
    sync(journal)
    assert journal.synced_upto == 8


def test_a_mark_that_cannot_be_written_releases_nobody_until_the_new_file_is_synced():
    disk = FakeDisk()
    journal = lived(disk)
    planned = journal.begin_sync()
    planned.run()
    disk.before = fails("pwrite")
    assert not journal.synced(planned)
    assert journal.synced_upto == 4
    sync(journal)
    assert read(disk).synced_upto == journal.synced_upto == 7


@pytest.mark.parametrize("operation", ["rename", "pwrite"])
def test_an_error_on_the_way_to_the_next_segment_leads_to_another(operation):
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    journal.append(wallet())
    sync(journal)
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    housekeep(journal)
    while journal._file.offset + 700 < journal._file.size:
        journal.append(settled(1))
    disk.before = fails(operation)
    while not journal.written_on:
        journal.append(settled(1))
    assert len(paths(disk)) == (2 if operation == "rename" else 3)
    before = records(disk)
    assert len(before) == journal.seq
    sync(journal)
    disk.lose_power(seeded(5))
    assert records(disk) == before


def test_a_roll_without_a_spare_makes_a_file_for_what_was_promised():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    while journal.reserve(1):
        pass
    long = replace(settled(1), upstream_id="u" * 3 * PLACE_BYTES)  # so that others find no room
    for _ in range(journal.reserved):
        journal.append(long, reserved=True)
    assert len(paths(disk)) > 1
    sync(journal)
    disk.lose_power(seeded(6))
    assert read(disk).last_seq == journal.seq


def test_everything_that_is_not_synced_moves_over_several_segments_too():
    """The file before the one at hand was full, and not synced either."""
    disk = FakeDisk()
    journal = rolled(disk, wallet(), grant(), attempt(1))
    for record in calls(3):
        journal.append(record)
    before = records(disk)
    disk.before = fails("fdatasync")
    sync(journal)
    assert paths(disk) == [FIRST, SECOND, THIRD]
    for seed in range(20):
        other = disk.copy()
        other.lose_power(seeded(seed))
        assert records(other) == before
        again = reopened(other)
        assert again.seq == len(before)


def test_what_was_written_while_the_last_sync_ran_moves_too():
    disk = FakeDisk()
    journal = lived(disk)
    planned = journal.begin_sync()
    planned.run()
    journal.append(settled(1))
    assert journal.synced(planned)
    before = records(disk)
    disk.before = fails("fdatasync")
    sync(journal)
    disk.lose_power(seeded(7))
    assert records(disk) == before
    assert read(disk).miscarried == []


def test_a_segment_in_the_middle_of_which_nothing_reached_the_platter_is_passed_over():
    disk = FakeDisk()
    journal = rolled(disk, wallet(), grant(), attempt(1))
    before = records(disk)
    disk.before = fails("fdatasync")
    sync(journal)
    disk.set_content(SECOND, bytes(2**15))
    content = disk.content(FIRST)
    disk.set_content(FIRST, content[: content.index(b'"t":"M"')] + bytes(100))
    scanned = read(disk)
    assert records(disk) == before
    assert [one.path for one in scanned.unused] == [SECOND]
    assert [piece.segment.path for piece in scanned.pieces] == [FIRST, THIRD]
    assert list(read_after(disk, scanned.pieces, 0)) == before


def test_readers_take_every_seq_once():
    disk = FakeDisk()
    journal = lived(disk)
    disk.before = fails("pwrite")
    journal.append(settled(1))
    sync(journal)
    scanned = read(disk)
    assert [piece.last_seq for piece in scanned.pieces] == [7, 8]
    for after in range(9):
        assert [seq for seq, _ in read_after(disk, scanned.pieces, after)] == list(range(after + 1, 9))


def test_a_file_that_an_error_was_seen_on_is_closed_and_left_for_the_next_start():
    disk = FakeDisk()
    journal = lived(disk)
    disk.before = fails("fdatasync")
    sync(journal)
    housekeep(journal)
    journal.close()
    assert disk._files == {}
    assert [path.name for path in paths(disk)] == ["00000001.open", "00000002.ndjson"]


# -- where the room comes from -----------------------------------------------------------------------------


def with_spare(disk):
    journal = fresh(disk, segment_bytes=2**15)
    journal.append(wallet())
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    sync(journal)
    housekeep(journal)
    assert SPARE in disk.names(DIRECTORY)
    return journal


def test_the_spare_is_taken_where_it_has_the_room():
    disk = FakeDisk()
    journal = with_spare(disk)
    disk.capacity = 0
    disk.before = fails("fdatasync")
    journal.append(grant())
    sync(journal)
    assert SPARE not in disk.names(DIRECTORY)
    assert journal.synced_upto == journal.seq


def test_a_spare_that_is_too_small_stays_one_and_what_was_promised_finds_its_room():
    disk = FakeDisk()
    journal = Journal.open(disk, DIRECTORY, Past(), segment_bytes=2**15, clock=clock, places=40)
    assert journal.reserve(30)
    housekeep(journal)
    disk.before = fails("pwrite")
    journal.append(wallet())
    assert disk.names(DIRECTORY) == ["00000001.open", SPARE, "00000002.open"]
    disk.capacity = 0
    while journal.reserved:
        journal.append(replace(settled(1), upstream_id="u" * 3400), reserved=True)  # as long as a line may be
    sync(journal)
    assert journal.failed is None
    assert read(disk).last_seq == 31


# -- failing -----------------------------------------------------------------------------------------------


def test_a_second_error_before_the_new_file_was_synced_is_the_end():
    disk = FakeDisk()
    journal = lived(disk)
    assert journal.reserve(2)
    disk.before = fails("pwrite")
    journal.append(settled(1), reserved=True)
    disk.before = fails("fdatasync")
    with pytest.raises(BooksFailed):
        sync(journal)
    assert journal.failed.errno == errno.EIO
    assert (journal.synced_upto, journal.reserved) == (4, 1)


def test_after_a_sync_of_the_new_file_another_error_gets_the_same_chance():
    disk = FakeDisk()
    journal = lived(disk)
    for times in range(1, 6):
        disk.before = fails("fdatasync" if times % 2 else "pwrite")
        journal.append(settled(1))
        sync(journal)
        assert journal.written_on == times
    assert journal.synced_upto == journal.seq == 12
    disk.lose_power(seeded(3))
    assert read(disk).last_seq == 12


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_a_disk_that_goes_on_failing_ends_every_promise(operation):
    disk = FakeDisk()
    journal = lived(disk)
    assert journal.reserve(2)
    disk.before = fails(operation, times=ALWAYS)
    with pytest.raises(BooksFailed):
        journal.append(settled(1), reserved=True)
        sync(journal)
    disk.before = None
    done = len(disk.operations)
    for refused in (
        lambda: journal.append(grant(), reserved=True),
        lambda: journal.synced(journal.begin_sync()),
    ):
        with pytest.raises(BooksFailed):
            refused()
    assert not journal.reserve(1)
    assert journal.housework() is None
    assert journal.synced_upto == 4
    journal.close()
    assert {operation for operation, _ in disk.operations[done:]} == {"close"}
    assert disk._files == {}
    assert [record for _, record in records(disk)][:7] == [
        wallet(),
        grant(),
        attempt(1),
        progress(1),
        extension(1),
        work(2),
        job(2),
    ]


def test_a_write_that_writes_nothing_is_an_error():
    disk = FakeDisk()
    journal = fresh(disk)
    disk.write_at_most = 0
    with pytest.raises(BooksFailed, match="nothing is written"):
        journal.append(wallet())


def test_a_full_disk_ends_it_only_where_the_spare_is_too_small():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**15)
    journal.append(wallet())
    disk.capacity = 0
    disk.before = fails("fdatasync")
    with pytest.raises(BooksFailed, match="no space"):
        sync(journal)


def test_a_disk_that_is_full_is_said_when_the_journal_is_opened():
    disk = FakeDisk(capacity=100)
    with pytest.raises(OSError, match="no space"):
        fresh(disk)
    assert paths(disk) == []


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_an_error_while_it_is_opened_lets_the_file_go(operation):
    disk = FakeDisk()
    journal = lived(disk)
    journal.close()
    # the second sync is that of the tail that is written again; the first makes the file
    disk.before = fails(operation, at=2 if operation == "fdatasync" else 1)
    with pytest.raises((OSError, BooksFailed)):
        reopened(disk)
    assert disk._files == {}
    disk.before = None
    assert reopened(disk).seq == 7
