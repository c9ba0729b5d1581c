"""A copy of the books: all that was promised, whatever is renamed meanwhile; and no name before it is whole."""

import errno
from contextlib import suppress
from pathlib import Path

import pytest

from accounting.archive import put_away
from accounting.backup import BackupError, Copied, back_up
from accounting.disk import OsDisk
from accounting.journal import Journal, NoRoom, Past
from accounting.scan import JournalDamaged, scan
from accounting.segment import packed
from tests.accounting.journal_fakes import (
    DIRECTORY,
    STATE,
    FakeDisk,
    archive,
    calls,
    clock,
    fails,
    fill,
    fresh,
    grant,
    housekeep,
    paths,
    read,
    rolled,
    seeded,
    sync,
    wallet,
)

TARGET = Path("/backups/today")
PARTIAL = Path("/backups/today.partial")


class Disk(FakeDisk):
    """One on which a directory can be renamed, and on which `steps` happen, one before each read of the books."""

    steps = ()

    def rename(self, old, new):
        if not any(old in path.parents for path in self.names_now):
            super().rename(old, new)
            return
        self._begin("rename", old)
        for names in (self.names_now, self.names_platter):
            for path in [path for path in names if old in path.parents]:
                names[new / path.relative_to(old)] = names.pop(path)

    def read(self, path):
        steps, self.steps = self.steps, ()
        if steps and STATE in path.parents:
            steps.pop(0)()
        self.steps = steps
        return super().read(path)

    def copy(self):
        other, plain = Disk(), super().copy()
        other.names_now, other.names_platter = plain.names_now, plain.names_platter
        return other


def busy(disk, *, archived=False):
    """A journal of several segments, some sealed, one open; gives it and the last record that is synced."""
    journal = fresh(disk, segment_bytes=2**15)
    for record in (wallet(), grant()):
        journal.append(record)
    sync(journal)
    for _ in range(3):
        fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
        housekeep(journal)
        fill(journal, lambda: journal._full)
        sync(journal)
        housekeep(journal)
    if archived:
        archive(journal)
    return journal, journal.synced_upto


def copied(disk, into=TARGET):
    """(seq, record) of a copy."""
    return list(scan(disk, into / "journal"))


def original(disk):
    return list(scan(disk, DIRECTORY))


def under(disk, directory):
    return {path.relative_to(directory) for path in disk.names_now if directory in path.parents}


# -- what is in a copy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True])
def test_a_copy_has_every_record_and_nothing_that_belongs_to_a_process(archived):
    disk = Disk()
    disk.close(disk.lock(STATE / "lock"))
    for name in ("admin-token", "gateway.json", "books.duckdb", "prices/p_1.json", "prices/p_2.draft"):
        disk.close(disk.create(STATE / name))
    disk.set_content(STATE / "prices/p_1.json", b"prices")
    journal, upto = busy(disk, archived=archived)
    journal.close()
    found = back_up(disk, STATE, TARGET, None)
    sizes = [len(disk.content(TARGET / path)) for path in under(disk, TARGET)]
    assert found == Copied(upto, len(sizes), sum(sizes))
    assert copied(disk) == original(disk)
    assert disk.content(TARGET / "prices/p_1.json") == b"prices"
    kept = {path for path in under(disk, STATE) if path.parent.name in ("journal", "archive")}
    assert under(disk, TARGET) == kept | {Path("prices/p_1.json")}
    assert archived == any(path.parent.name == "archive" for path in kept)


def test_of_a_live_journal_what_is_synced_is_in_and_what_is_not_is_not():
    disk = Disk()
    journal, upto = busy(disk)
    for record in calls(3, 5000):
        journal.append(record)
    back_up(disk, STATE, TARGET, upto)
    assert copied(disk) == original(disk)[:upto]
    assert len(original(disk)) == upto + 6


def test_an_older_line_may_be_the_last_and_what_was_synced_before_is_in_all_the_same():
    disk = Disk()
    _, upto = busy(disk)
    for last in (1, 2, 7, upto - 3, upto):
        target = TARGET.with_name(str(last))
        assert back_up(disk, STATE, target, last).last_seq >= last
        assert copied(disk, target) == original(disk)[: len(copied(disk, target))]


def test_a_copy_can_be_written_on():
    disk = Disk()
    _, upto = busy(disk)
    back_up(disk, STATE, TARGET, upto)
    past = scan(disk, TARGET / "journal")
    assert len(list(past)) == upto
    journal = Journal.open(disk, TARGET / "journal", past.past(), segment_bytes=2**15, clock=clock)
    journal.append(wallet("w9"))
    sync(journal)
    assert copied(disk)[-1] == (upto + 1, wallet("w9"))
    assert isinstance(past.past(), Past)


def test_a_journal_that_was_written_on_after_an_error_is_copied():
    disk = Disk()
    journal = rolled(disk)
    sync(journal)
    for record in calls(2, 7000):
        journal.append(record)
    disk.before = fails("fdatasync")
    sync(journal)
    disk.before = None
    assert journal.written_on == 1
    back_up(disk, STATE, TARGET, journal.synced_upto)
    assert copied(disk) == original(disk)


def test_a_torn_tail_of_closed_books_stays_for_recovery_to_judge():
    disk = Disk()
    journal, upto = busy(disk)
    for record in calls(2, 5000):
        journal.append(record)
    last = paths(disk)[-1]
    disk.kill()
    disk.set_content(last, disk.content(last).rstrip(b"\0")[:-20] + bytes(500))
    assert back_up(disk, STATE, TARGET, None).last_seq == upto + 3
    assert copied(disk) == original(disk)
    assert read(disk).damages


# -- what happens meanwhile ------------------------------------------------------------------------------


def advance(disk, journal, rng):
    """One thing that a gateway does: write, sync, seal, make a spare, archive."""
    match rng.randrange(5):
        case 0:
            with suppress(NoRoom):  # until there is a spare again
                for record in calls(rng.randrange(1, 40), rng.randrange(10**6, 10**9)):
                    journal.append(record)
        case 1:
            sync(journal)
        case 2 | 3:
            housekeep(journal)
        case 4:
            archive(journal)


@pytest.mark.parametrize("seed", range(40))
def test_segments_may_be_sealed_archived_and_begun_while_they_are_copied(seed):
    rng = seeded(seed)
    disk = Disk()
    journal, _ = busy(disk, archived=rng.random() < 0.5)
    for _ in range(rng.randrange(6)):
        advance(disk, journal, rng)
    upto = journal.synced_upto
    disk.steps = [lambda: advance(disk, journal, rng) for _ in range(60)]
    back_up(disk, STATE, TARGET, upto)
    assert len(disk.steps) < 60, "something happened"
    disk.steps = []
    found = copied(disk)
    assert len(found) >= upto
    assert found == original(disk)[: len(found)]
    assert len(found) <= journal.synced_upto


@pytest.mark.parametrize("put", [False, True])
def test_a_segment_is_found_under_each_name_that_it_may_have_by_then(put):
    books = Disk()
    _, upto = busy(books)
    for place, path in enumerate(paths(books)):
        disk, sealed = books.copy(), path.with_suffix(".ndjson")

        def change(disk=disk, path=path, sealed=sealed):
            disk.names_now[sealed] = disk.names_now.pop(path)
            if put:
                put_away(disk, sealed, packed(sealed))

        disk.steps = [*[lambda: None] * place, change]
        back_up(disk, STATE, TARGET, upto)
        assert not disk.steps
        assert len(copied(disk)) >= upto


def test_a_segment_without_a_record_that_goes_when_the_gateway_stops_is_not_missed():
    disk = Disk()
    journal, upto = busy(disk)
    sync(journal)
    empty = fresh_empty(disk, journal)
    disk.steps = [lambda: disk.unlink(empty)]
    back_up(disk, STATE, TARGET, upto)
    assert len(copied(disk)) >= upto


def fresh_empty(disk, journal):
    """A segment behind the last, as a start makes one."""
    path = DIRECTORY / f"{journal._file.number + 1:08d}.open"
    disk.close(disk.create(path))
    return path


def test_a_segment_with_records_that_is_gone_is_missed():
    disk = Disk()
    _, upto = busy(disk)
    last = paths(disk)[-1]
    disk.steps = [lambda: disk.unlink(last)]
    with pytest.raises(BackupError, match="had been written"):
        back_up(disk, STATE, TARGET, upto)
    assert not under(disk, TARGET)


def test_a_listing_that_shows_a_file_twice_or_not_at_all_is_read_again():
    disk = Disk()
    _, upto = busy(disk)
    names, count = disk.names, 0

    def odd(directory):
        nonlocal count
        found = names(directory)
        if directory == DIRECTORY:
            count += 1
            if count == 1:
                return found[:1] + found[2:]
            if count == 2:
                return [*found, found[0].replace(".ndjson", ".open")]
        return found

    disk.names = odd
    back_up(disk, STATE, TARGET, upto)
    assert copied(disk) == original(disk)


def test_a_journal_that_lacks_a_segment_is_not_copied():
    disk = Disk()
    _, upto = busy(disk)
    disk.unlink(paths(disk)[1])
    with pytest.raises(JournalDamaged, match="missing"):
        back_up(disk, STATE, TARGET, upto)
    assert not under(disk, TARGET)


# -- where it goes, and what becomes of it ---------------------------------------------------------------


@pytest.mark.parametrize("target", [STATE, STATE / "backup", DIRECTORY / "x"])
def test_a_copy_inside_the_books_is_refused(target):
    disk = Disk()
    busy(disk)
    before = under(disk, STATE)
    with pytest.raises(BackupError, match="inside the books"):
        back_up(disk, STATE, target, None)
    assert under(disk, STATE) == before


def test_a_directory_that_holds_something_is_refused():
    disk = Disk()
    busy(disk)
    disk.close(disk.create(TARGET / "mine"))
    with pytest.raises(BackupError, match="not empty"):
        back_up(disk, STATE, TARGET, None)
    disk.unlink(TARGET / "mine")
    disk.close(disk.create(PARTIAL / "mine"))
    with pytest.raises(BackupError, match="mine"):
        back_up(disk, STATE, TARGET, None)


def test_a_copy_that_was_broken_off_anywhere_has_no_name_and_the_next_one_succeeds():
    disk = Disk()
    journal, upto = busy(disk)
    journal.close()
    whole = disk.copy()
    back_up(whole, STATE, TARGET, upto)
    steps = len(whole.operations)
    for at in range(1, steps, 5):
        broken = disk.copy()
        broken.before = fails("", at=at, error=errno.EIO)
        with suppress(OSError):
            back_up(broken, STATE, TARGET, upto)
        broken.before = None
        if not under(broken, TARGET):
            back_up(broken, STATE, TARGET, upto)
        assert copied(broken) == original(broken)


@pytest.mark.parametrize("seed", range(10))
def test_when_power_is_lost_a_copy_is_whole_or_has_no_name(seed):
    rng = seeded(seed)
    disk = Disk()
    journal, upto = busy(disk)
    journal.close()
    back_up(disk, STATE, TARGET, upto)
    disk.lose_power(rng)
    assert copied(disk) == original(disk)
    again = Disk()
    journal, upto = busy(again)
    journal.close()
    again.before = fails("", at=rng.randrange(40, 120), error=errno.EIO)
    with suppress(OSError):
        back_up(again, STATE, TARGET, upto)
    again.lose_power(rng)
    if under(again, TARGET):
        assert copied(again) == original(again)


def test_a_disk_that_takes_little_at_a_time_or_nothing_is_dealt_with():
    disk = Disk()
    _, upto = busy(disk)
    disk.write_at_most = 1_000
    back_up(disk, STATE, TARGET, upto)
    assert copied(disk) == original(disk)
    disk.write_at_most = 0
    with pytest.raises(OSError, match="nothing is written"):
        back_up(disk, STATE, TARGET.with_name("other"), upto)


def test_on_the_disk_of_the_system_it_is_private_and_complete(tmp_path):
    disk, state = OsDisk(), tmp_path / "state"
    disk.make_dir(state / "journal")
    journal = Journal.open(disk, state / "journal", Past(), segment_bytes=2**16, clock=clock)
    for record in (wallet(), grant(), *calls(20)):
        journal.append(record)
    sync(journal)
    (tmp_path / "empty").mkdir()
    found = back_up(disk, state, tmp_path / "empty", 42)
    assert found.last_seq == 42
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {"state", "empty"}
    assert list(scan(disk, tmp_path / "empty" / "journal")) == list(scan(disk, state / "journal"))
    assert (tmp_path / "empty/journal/00000001.open").stat().st_size < 2**16
    journal.close()
