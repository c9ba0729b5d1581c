import gzip
import zlib

import pytest

from accounting.archive import DRAFT, PIECE, expand, put_away
from accounting.disk import SYNCED_AT_ONCE, OsDisk
from accounting.scan import JournalDamaged, read_after, read_upto, scan
from accounting.segment import SPARE, make_spare, packed, segments
from tests.accounting.journal_fakes import (
    ARCHIVE,
    DIRECTORY,
    FakeDisk,
    PowerLoss,
    archive,
    calls,
    fails,
    fresh,
    grant,
    housekeep,
    paths,
    read,
    records,
    reopened,
    seeded,
    sync,
    wallet,
)

ORIGINAL = DIRECTORY / "00000001.ndjson"
ARCHIVED = ARCHIVE / "00000001.ndjson.gz"


def over_segments(disk, number=4):
    """A journal whose segments are all sealed, but for the last of so many."""
    journal = fresh(disk, segment_bytes=2**14)
    journal.append(wallet())
    journal.append(grant())
    request = 0
    while len(paths(disk)) < number:
        request += 1
        for record in calls(1, request):
            journal.append(record)
            sync(journal)
            housekeep(journal)
    return journal


def names(disk):
    return sorted(path.name for path in paths(disk))


def test_a_segment_of_the_archive_is_an_ordinary_gzip_file(tmp_path):
    text = b"".join(b"%d\n" % number for number in range(10**6))
    original = tmp_path / "journal" / "00000001.ndjson"
    for directory in ("journal", "archive"):
        (tmp_path / directory).mkdir()
    original.write_bytes(text)
    put_away(OsDisk(), original, packed(original))
    assert not original.exists()
    assert gzip.decompress(packed(original).read_bytes()) == text
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["00000001.ndjson.gz"]


def test_a_journal_reads_the_same_whether_segments_are_archived_or_not():
    disk = FakeDisk()
    journal = over_segments(disk)
    before, pieces = records(disk), read(disk).pieces
    archive(journal)
    assert names(disk) == [
        "00000001.ndjson.gz",
        "00000002.ndjson.gz",
        "00000003.ndjson.gz",
        "00000004.open",
    ]
    assert set(disk.names(DIRECTORY)) - {SPARE} == {"00000004.open"}
    assert records(disk) == before
    assert read(disk).damages == []
    assert list(read_upto(disk, DIRECTORY, 30)) == before[:30]
    for after in (0, 1, 17, 40):
        assert list(read_after(disk, pieces, after)) == before[after:]  # moved since it was scanned
        assert list(read_after(disk, read(disk).pieces, after)) == before[after:]
    again = reopened(disk)
    assert again.seq == len(before)


def test_only_segments_that_the_store_has_entirely_are_archived_oldest_first():
    disk = FakeDisk()
    journal = over_segments(disk)
    lasts = [piece.last_seq for piece in read(disk).pieces]
    assert journal.archiving(lasts[0] - 1) is None
    for number in range(3):
        archive(journal, lasts[number])
        assert [name.endswith(".gz") for name in names(disk)] == [place <= number for place in range(4)]


def test_one_segment_is_archived_at_a_time_beside_other_chores():
    journal = over_segments(FakeDisk())
    chore = journal.archiving(10**9)
    assert journal.archiving(10**9) is None
    other = journal.housework()
    assert other is None or not other.archives
    chore.run()
    journal.chore_done(chore)
    assert journal.archiving(10**9) is not None


def test_one_that_cannot_be_archived_lets_the_others_go_first_and_comes_again():
    disk = FakeDisk()
    journal = over_segments(disk)
    disk.before = fails("create")
    chore = journal.archiving(10**9)
    with pytest.raises(OSError, match="provoked"):
        chore.run()
    journal.chore_done(chore)
    chore = journal.archiving(10**9)
    chore.run()
    journal.chore_done(chore)
    assert names(disk)[:2] == ["00000001.ndjson", "00000002.ndjson.gz"]
    archive(journal)
    assert names(disk)[2] == "00000003.ndjson.gz"
    assert names(disk)[0] == "00000001.ndjson.gz"


# -- kept through anything -----------------------------------------------------------------------------------


def ends(at):
    count = 0

    def before(_operation, _path):
        nonlocal count
        count += 1
        if count == at:
            raise PowerLoss

    return before


@pytest.mark.parametrize("powerless", [False, True])
def test_cut_off_before_any_operation_each_segment_is_readable_exactly_once(powerless):
    whole = FakeDisk()
    journal = over_segments(whole)
    sync(journal)
    before = records(whole)
    whole.kill()
    cuts = 0
    for seed in range(3 if powerless else 1):
        for at in range(1, 100):
            disk = whole.copy()
            disk.before = ends(at)
            try:
                put_away(disk, ORIGINAL, ARCHIVED)
            except PowerLoss:
                cuts += 1
            else:
                break
            if powerless:
                disk.lose_power(seeded(100 * at + seed))
            disk.kill()
            assert records(disk) == before
            put_away(disk, ORIGINAL, ARCHIVED)
            assert records(disk) == before
            assert ORIGINAL not in disk.names_now
            assert names(disk)[0] == ARCHIVED.name
            disk.lose_power(seeded(at))
            assert records(disk) == before
    assert cuts >= 8


@pytest.mark.parametrize("operation", ["create", "pwrite", "fdatasync", "rename", "unlink", "sync_dir"])
@pytest.mark.parametrize("at", [1, 2])
def test_an_error_at_any_operation_leaves_a_segment_that_can_be_archived_later(operation, at):
    disk = FakeDisk()
    over_segments(disk)
    before = records(disk)
    disk.before = fails(operation, at=at)
    try:
        put_away(disk, ORIGINAL, ARCHIVED)
    except OSError:
        assert records(disk) == before
        put_away(disk, ORIGINAL, ARCHIVED)
    assert records(disk) == before
    assert set(disk.names(ARCHIVE)) == {ARCHIVED.name}


def test_an_archive_that_a_kill_left_unfinished_gives_way_to_its_original():
    disk = FakeDisk()
    journal = over_segments(disk)
    before, original = records(disk), disk.content(ORIGINAL)
    archive(journal)
    whole = disk.content(ARCHIVED)
    disk.close(disk.create(ORIGINAL))
    disk.set_content(ORIGINAL, original)
    assert segments(disk, DIRECTORY)[0].original == ORIGINAL
    disk.set_content(ARCHIVED, whole[:-5])
    assert segments(disk, DIRECTORY)[0].path == ORIGINAL
    assert records(disk) == before
    put_away(disk, ORIGINAL, ARCHIVED)
    assert disk.content(ARCHIVED) == whole
    assert ORIGINAL not in disk.names_now


def test_what_was_written_is_read_back_before_the_original_goes():
    class Forgetful(FakeDisk):
        forgets = False

        def pwrite(self, descriptor, data, offset):
            return super().pwrite(descriptor, bytes(len(data)) if self.forgets else data, offset)

    disk = Forgetful()
    over_segments(disk)
    disk.forgets = True
    with pytest.raises(OSError, match="does not say what was written"):
        put_away(disk, ORIGINAL, ARCHIVED)
    assert ORIGINAL in disk.names_now
    assert segments(disk, DIRECTORY)[0].path == ORIGINAL


def test_a_draft_is_not_a_segment():
    disk = FakeDisk()
    journal = over_segments(disk)
    disk.close(disk.create(ARCHIVE / (ARCHIVED.name + DRAFT)))
    archive(journal)
    assert set(disk.names(ARCHIVE)) == {f"0000000{number}.ndjson.gz" for number in (1, 2, 3)}


# -- damaged -------------------------------------------------------------------------------------------------


def test_damage_in_the_archive_is_a_loss_and_names_file_and_offset():
    disk = FakeDisk()
    journal = over_segments(disk)
    text = disk.content(ORIGINAL)
    archive(journal)
    data = disk.content(ARCHIVED)
    at = len(data) // 2
    for place, because in ((at, "cannot be read on"), (-6, "incorrect data check")):
        damaged = bytearray(data)
        damaged[place] ^= 1
        disk.set_content(ARCHIVED, damaged)
        with pytest.raises(JournalDamaged, match=because) as caught:
            read(disk)
        assert caught.value.path == ARCHIVED
        offset = caught.value.offset
        assert text[:offset].endswith(b"}\n")
        assert 0 < offset < len(text) if place == at else offset == len(text)


def test_a_missing_file_of_the_archive_is_a_loss():
    for missing in (1, 2, 3):
        disk = FakeDisk()
        archive(over_segments(disk))
        del disk.names_now[ARCHIVE / f"0000000{missing}.ndjson.gz"]
        with pytest.raises(JournalDamaged, match=f"{missing}, is missing"):
            read(disk)


def test_no_flipped_bit_of_the_archive_changes_or_drops_a_record():
    rng = seeded(21)
    disk = FakeDisk()
    archive(over_segments(disk))
    before = records(disk)
    data = disk.content(ARCHIVED)
    named = []
    for _ in range(600):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        disk.set_content(ARCHIVED, flipped)
        try:
            assert records(disk) == before
        except JournalDamaged as damaged:
            named.append(damaged.path)
    assert set(named) == {ARCHIVED}
    assert len(named) > 590


@pytest.mark.parametrize("step", [1, 97])
def test_an_archived_segment_that_was_cut_short_is_never_whole(step):
    text = b"some text, and more of it " * 200
    data = gzip.compress(text, mtime=0)
    data = data[:8] + b"\0\3" + data[10:]
    for size in range(0, len(data), step):
        found, wrong = expand(data[:size])
        assert wrong
        assert text.startswith(found)
    assert expand(data) == (text, "")
    assert expand(data + b"x")[1] == "something follows its end"


def test_pieces_are_bounded_and_their_borders_are_not_seen(tmp_path):
    text = zlib.compress(b"x" * 10**7) * 300  # hardly compressible, and larger than a piece
    assert len(text) > 2 * PIECE
    disk, original = OsDisk(), tmp_path / "journal" / "00000001.ndjson"
    for directory in ("journal", "archive"):
        disk.make_dir(tmp_path / directory)
    original.write_bytes(text)
    put_away(disk, original, packed(original))
    assert expand(disk.read(packed(original))) == (text, "")


def test_large_files_are_read_and_handed_to_the_disk_a_piece_at_a_time():
    class Watched(FakeDisk):
        unsynced = worst = largest = 0

        def read_at(self, path, offset, size):
            self.largest = max(self.largest, size)
            return super().read_at(path, offset, size)

        def pwrite(self, descriptor, data, offset):
            self.unsynced += len(data)
            self.worst = max(self.worst, self.unsynced)
            return super().pwrite(descriptor, data, offset)

        def fdatasync(self, descriptor):
            self.unsynced = 0
            super().fdatasync(descriptor)

    text = seeded(5).randbytes(3 * 10**6)  # neither packed nor expanded by much
    assert len(text) > 10 * SYNCED_AT_ONCE
    disk = Watched()
    make_spare(disk, DIRECTORY, len(text))
    assert disk.worst == SYNCED_AT_ONCE
    disk.close(disk.create(ORIGINAL))
    disk.set_content(ORIGINAL, text)
    put_away(disk, ORIGINAL, ARCHIVED)
    assert expand(disk.content(ARCHIVED)) == (text, "")
    assert disk.worst < 2 * SYNCED_AT_ONCE
    assert disk.largest <= 2 * PIECE
    assert "read" not in {operation for operation, _ in disk.operations}


def test_a_segment_with_anything_behind_what_was_archived_of_it_is_archived_anew():
    text = b"a line\n" * 1000
    disk = FakeDisk()
    for shorter in (text[:-7], text[:100], b""):
        disk.unlink(ARCHIVED)
        disk.close(disk.create(ORIGINAL))
        disk.set_content(ORIGINAL, shorter)
        put_away(disk, ORIGINAL, ARCHIVED)
        disk.close(disk.create(ORIGINAL))
        disk.set_content(ORIGINAL, text)
        put_away(disk, ORIGINAL, ARCHIVED)
        assert expand(disk.content(ARCHIVED)) == (text, "")
        assert ORIGINAL not in disk.names_now


def test_without_an_archive_a_journal_is_read_all_the_same(tmp_path):
    disk = OsDisk()
    disk.make_dir(tmp_path / "journal")
    assert list(scan(disk, tmp_path / "journal")) == []
