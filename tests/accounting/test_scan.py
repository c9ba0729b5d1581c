from collections import deque
from zlib import crc32

import pytest

from accounting.carries import Carried
from accounting.lines import encode
from accounting.records import Mark
from accounting.scan import JournalDamaged, read_after, read_upto, scan, segments
from tests.accounting.journal_fakes import (
    DIRECTORY,
    FakeDisk,
    attempt,
    calls,
    fresh,
    grant,
    housekeep,
    paths,
    progress,
    read,
    records,
    reopened,
    seeded,
    settled,
    sync,
    wallet,
)


def written(*, marks=True, synced=6, more=4):
    """A journal of one segment with so many synced records, and more behind the last mark."""
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**14)
    everything = [wallet(), grant(), attempt(1), progress(1), settled(1), *calls(8, 2)]
    for number, record in enumerate(everything[: synced + more], 1):
        journal.append(record)
        if marks and number <= synced and number % 3 == 0:
            sync(journal)
    return disk


def over_three_segments():
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**14)
    journal.append(wallet())
    journal.append(grant())
    request = 0
    while len(paths(disk)) < 4:
        request += 1
        for record in calls(1, request):
            journal.append(record)
            sync(journal)
            housekeep(journal)
    return disk, journal


def verdict(disk):
    """What a scan says: the seqs that it read, or that it stopped."""
    scanned = scan(disk, DIRECTORY)
    try:
        deque(scanned, maxlen=0)
    except JournalDamaged:
        return None, scanned
    return scanned.last_seq, scanned


def test_a_journal_that_is_not_there_is_empty():
    scanned = read(FakeDisk())
    assert (scanned.last_seq, scanned.past().number, scanned.past().tail) == (0, 0, ())


def test_what_a_scan_says_is_what_the_journal_knew():
    disk = FakeDisk()
    journal = fresh(disk)
    for record in (wallet(), grant(), attempt(1), progress(1)):
        journal.append(record)
    sync(journal)
    journal.append(settled(1))
    scanned = read(disk)
    past = scanned.past()
    assert (scanned.last_seq, scanned.synced_upto, past.synced_seq) == (5, 4, 4)
    assert past.tail == (settled(1),)
    assert list(past.carries) == [Carried(attempt(1), progress(1))]
    assert scanned.damages == []


def test_truncated_at_any_byte_it_gives_back_an_exact_prefix():
    disk = written()
    (path,) = paths(disk)
    data = disk.content(path).rstrip(b"\0")
    everything = records(disk)
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        cut = disk.copy()
        cut.set_content(path, data[:size] + bytes(100))
        lines = [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if end <= size]
        expected = sum(b'"t":"M"' not in line and b'"t":"C' not in line for line in lines)
        assert records(cut) == everything[:expected]


def test_cut_at_any_byte_without_zeros_behind_it_it_gives_back_the_same():
    disk = written()
    (path,) = paths(disk)
    data = disk.content(path).rstrip(b"\0")
    for size in range(0, len(data), 7):
        cut, padded = disk.copy(), disk.copy()
        cut.set_content(path, data[:size])
        padded.set_content(path, data[:size] + bytes(4096))
        assert records(cut) == records(padded)


def test_no_flipped_bit_goes_unnoticed_and_none_drops_a_synced_record_in_silence():
    rng = seeded(11)
    disk = written(synced=12, more=4)
    (path,) = paths(disk)
    data = disk.content(path).rstrip(b"\0")
    everything = records(disk)
    synced = read(disk).synced_upto
    stopped = torn = 0
    for _ in range(4000):
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        flipped = bytearray(data + bytes(64))
        flipped[at] ^= 1 << bit
        broken = disk.copy()
        broken.set_content(path, flipped)
        last, scanned = verdict(broken)
        if last is None:
            stopped += 1
            continue
        torn += 1
        assert scanned.damages, f"bit {bit} of byte {at} went unnoticed"
        assert last >= synced, f"bit {bit} of byte {at} dropped lines {last + 1} to {synced}"
        assert records(broken) == everything[:last]
    assert stopped > torn > 0


def test_no_flipped_bit_in_any_of_several_segments_goes_unnoticed():
    rng = seeded(12)
    disk, journal = over_three_segments()
    everything = records(disk)
    for _ in range(1500):
        path = rng.choice(paths(disk)[:3])
        flipped = bytearray(disk.content(path).rstrip(b"\0"))
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        broken = disk.copy()
        broken.set_content(path, flipped)
        last, scanned = verdict(broken)
        if last is not None:
            assert scanned.damages
            assert last >= journal.synced_upto
            assert records(broken) == everything[:last]


def test_damage_below_a_mark_names_file_and_offset():
    disk = written()
    (path,) = paths(disk)
    data = bytearray(disk.content(path))
    at = data.index(b'"t":"G"')
    line = data.rindex(b"\n", 0, at) + 1
    data[at + 20] ^= 1
    disk.set_content(path, data)
    with pytest.raises(JournalDamaged, match="below a later mark") as caught:
        read(disk)
    assert (caught.value.path, caught.value.offset) == (path, line)


def test_a_page_of_zeros_below_a_mark_stops_the_start():
    disk = written()
    (path,) = paths(disk)
    data = bytearray(disk.content(path))
    start = data.index(b'"t":"G"')
    data[start : data.rindex(b'"t":"M"') - 30] = bytes(data.rindex(b'"t":"M"') - 30 - start)
    disk.set_content(path, data)
    with pytest.raises(JournalDamaged):
        read(disk)


def test_a_record_that_contains_the_words_of_a_mark_is_none():
    disk = FakeDisk()
    journal = fresh(disk)
    mark = encode(Mark(10**6, 1), 10**6, 0)[0].decode()
    journal.append(wallet(name=mark))
    journal.append(grant())
    (path,) = paths(disk)
    data = bytearray(disk.content(path))
    data[data.index(b'"t":"W"')] ^= 1
    disk.set_content(path, data)
    assert read(disk).last_seq == 0


def test_a_seq_that_is_skipped_stops_the_start():
    disk = FakeDisk()
    journal = fresh(disk)
    journal.append(wallet())
    journal.seq += 1
    journal.append(grant())
    with pytest.raises(JournalDamaged, match="line 3 stands in place of 2"):
        read(disk)


def test_a_line_of_a_newer_version_is_named():
    disk = FakeDisk()
    journal = fresh(disk)
    line = encode(wallet(), 1, journal._crc)[0]
    line = line.replace(b'"t":"W"', b'"t":"Q"')
    line = b'{"c":"%08x",' % crc32(line[16:], journal._crc) + line[16:]
    journal._write(line)
    with pytest.raises(JournalDamaged, match="a Q that this version cannot read"):
        read(disk)


# -- several segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_segment_that_is_missing_stops_the_start(missing):
    disk, _ = over_three_segments()
    del disk.names_now[paths(disk)[missing]]
    with pytest.raises(JournalDamaged, match=f"{missing + 1}, is missing"):
        read(disk)


def test_a_segment_that_is_there_twice_stops_the_start():
    disk, _ = over_three_segments()
    first = paths(disk)[0]
    disk.names_now[first.with_suffix(".open")] = disk.names_now[first]
    with pytest.raises(JournalDamaged, match="there twice"):
        segments(disk, DIRECTORY)


def test_a_sealed_segment_that_was_cut_short_stops_the_start():
    disk, _ = over_three_segments()
    first = paths(disk)[0]
    lines = disk.content(first).splitlines(keepends=True)
    disk.set_content(first, b"".join(lines[:-3]))
    with pytest.raises(JournalDamaged, match="are missing, and had been synced"):
        read(disk)


def test_a_sealed_segment_of_another_journal_stops_the_start():
    disk, _ = over_three_segments()
    other, _ = over_three_segments()
    first = paths(disk)[0]
    data = other.content(first)
    lines = data.splitlines(keepends=True)
    crc, changed = 0, []
    for line in lines:
        body = line[16:].replace(b"Ada", b"Bob")
        crc = crc32(body, crc)
        changed.append(b'{"c":"%08x",' % crc + body)
    disk.set_content(first, b"".join(changed))
    with pytest.raises(JournalDamaged, match="another CRC"):
        read(disk)


def test_an_empty_or_headless_sealed_segment_stops_the_start():
    for content in (b"", b"x\n"):
        disk, _ = over_three_segments()
        disk.set_content(paths(disk)[1], content)
        with pytest.raises(JournalDamaged, match="first line is unreadable"):
            read(disk)


def test_a_gap_behind_a_sealed_segment_stops_the_start_although_no_mark_is_left():
    disk, _ = two_segments_unsynced()
    first, _ = paths(disk)
    lines = disk.content(first).rstrip(b"\0").splitlines(keepends=True)
    disk.set_content(first, b"".join(lines[:-2]))
    assert read(disk).unused
    disk.rename(first, first.with_suffix(".ndjson"))
    with pytest.raises(JournalDamaged, match="are missing, and had been synced"):
        read(disk)


def two_segments_unsynced():
    """The second segment holds lines, and nothing since the middle of the first is synced."""
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**14)
    journal.append(wallet())
    journal.append(grant())
    sync(journal)
    request = 0
    while len(paths(disk)) < 2 or not journal._full:
        request += 1
        for record in calls(1, request):
            journal.append(record)
        housekeep(journal)
    for record in calls(3, 500):
        journal.append(record)
    return disk, journal


def test_a_tail_that_is_torn_over_the_border_of_two_segments_is_cut():
    disk, journal = two_segments_unsynced()
    first, second = paths(disk)
    data = disk.content(first).rstrip(b"\0")
    disk.set_content(first, data[: len(data) // 2] + bytes(1000))
    scanned = read(disk)
    assert 2 <= scanned.last_seq < journal.seq
    assert [segment.path for segment in scanned.unused] == [second]
    assert len(scanned.damages) == 2
    again = reopened(disk)
    assert again.seq == scanned.last_seq
    assert [seq for seq, _ in records(disk)] == list(range(1, again.seq + 1))


def test_a_head_that_never_reached_the_platter_leaves_the_segment_before_it():
    disk, _ = two_segments_unsynced()
    first, second = paths(disk)
    data = bytearray(disk.content(second))
    data[:40] = bytes(40)
    disk.set_content(second, data)
    scanned = read(disk)
    assert [piece.segment.path for piece in scanned.pieces] == [first]
    assert [segment.path for segment in scanned.unused] == [second]


def test_but_not_where_something_behind_it_was_synced():
    for which in (0, 1):
        disk, journal = two_segments_unsynced()
        sync(journal)
        path = paths(disk)[which]
        data = bytearray(disk.content(path))
        data[: 40 if which else 300] = bytes(40 if which else 300)
        disk.set_content(path, data)
        with pytest.raises(JournalDamaged):
            read(disk)


def test_a_journal_whose_beginning_is_gone_stops_the_start():
    disk, _ = over_three_segments()
    first, second = paths(disk)[:2]
    disk.names_now[first] = disk.names_now[second]
    for path in paths(disk)[1:]:
        del disk.names_now[path]
    with pytest.raises(JournalDamaged, match="lines 1 to"):
        read(disk)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_a_power_loss_leaves_behind_is_read_up_to_the_last_mark_at_least(seed):
    rng = seeded(seed)
    disk = FakeDisk()
    journal = fresh(disk, segment_bytes=2**14)
    told = 0
    history = []
    for request in range(rng.randrange(5, 60)):
        for record in [wallet(), grant()] if request == 0 else calls(1, request):
            journal.append(record)
            history.append(record)
        if rng.random() < 0.3:
            sync(journal)
            told = journal.synced_upto
        if rng.random() < 0.5:
            housekeep(journal)
    disk.lose_power(rng)
    scanned = read(disk)
    assert scanned.last_seq >= told
    assert records(disk) == list(enumerate(history[: scanned.last_seq], 1))


# -- parts of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 20, 60])
def test_the_records_after_a_seq_are_read_without_those_before(after):
    disk, journal = over_three_segments()
    scanned = read(disk)
    found = list(read_after(disk, scanned.pieces, after))
    assert [seq for seq, _ in found] == list(range(after + 1, journal.seq + 1))
    assert found == records(disk)[after:]


def test_the_records_after_a_seq_are_found_although_a_segment_was_sealed_meanwhile():
    disk = written()
    scanned = read(disk)
    (path,) = paths(disk)
    disk.rename(path, path.with_suffix(".ndjson"))
    assert len(list(read_after(disk, scanned.pieces, 0))) == 10


def test_a_journal_that_is_being_written_is_read_up_to_what_has_been():
    disk = written()
    everything = records(disk)
    assert list(read_upto(disk, DIRECTORY, 0)) == []
    assert list(read_upto(disk, DIRECTORY, 4)) == everything[:4]
    assert list(read_upto(disk, DIRECTORY, 10)) == everything
    with pytest.raises(JournalDamaged, match="ends after line 10"):
        list(read_upto(disk, DIRECTORY, 11))
