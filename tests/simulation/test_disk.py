"""The simulated disk does what a disk does, as far as the books rely on it."""

import errno
import random
from pathlib import Path

import pytest

from tests.simulation.disk import PAGE, Files, ProcessDisk, Troubles
from tests.simulation.life import Killed, Life, Trap

PLACE = Path("/state/journal")
FILE = PLACE / "one"


def disk(files, *, trap=None, troubles=None, heard=lambda *_: None):
    rng = random.Random(1)
    return ProcessDisk(files, Life(1, rng, trap), troubles or Troubles(), rng, heard)


def made(files, data=b"x" * 3 * PAGE):
    one = disk(files)
    descriptor = one.create(FILE)
    one.allocate(descriptor, len(data))
    one.fdatasync(descriptor)
    one.sync_dir(PLACE)
    one.pwrite(descriptor, data, 0)
    return one, descriptor


def test_what_is_written_survives_a_kill():
    files = Files()
    made(files)
    files.kill()
    assert disk(files).read(FILE) == b"x" * 3 * PAGE


def test_what_is_synced_survives_a_power_loss():
    for seed in range(20):
        files = Files()
        one, descriptor = made(files)
        one.fdatasync(descriptor)
        files.lose_power(random.Random(seed))
        assert disk(files).read(FILE) == b"x" * 3 * PAGE


def test_of_what_is_not_synced_any_pages_may_be_there_after_a_power_loss():
    seen = set()
    for seed in range(50):
        files = Files()
        made(files)
        files.lose_power(random.Random(seed))
        seen.add(tuple(disk(files).read(FILE)[page * PAGE] for page in range(3)))
    assert len(seen) > 5


def test_names_are_lost_by_directory_and_from_the_end():
    seen = set()
    for seed in range(50):
        files = Files()
        one = disk(files)
        for name in ("a", "b", "c"):
            one.create(PLACE / name)
        files.lose_power(random.Random(seed))
        seen.add(tuple(sorted(path.name for path in files.now)))
    assert seen == {(), ("a",), ("a", "b"), ("a", "b", "c")}


def test_syncing_one_directory_says_nothing_about_another():
    files = Files()
    one = disk(files)
    one.create(PLACE / "here")
    one.create(Path("/state/archive") / "there")
    one.sync_dir(PLACE)
    gone = set()
    for seed in range(20):
        copy = Files(dict(files.now), dict(files.platter), list(files.unsynced))
        copy.lose_power(random.Random(seed))
        assert PLACE / "here" in copy.now
        gone.add(Path("/state/archive") / "there" in copy.now)
    assert gone == {True, False}


def test_after_a_failed_sync_pages_count_as_clean_and_are_not_on_the_platter():
    lost = 0
    for seed in range(20):
        files, troubles = Files(), Troubles()
        one, descriptor = made(files)
        one.troubles = troubles
        troubles.fail("fdatasync")
        with pytest.raises(OSError, match="input/output"):
            one.fdatasync(descriptor)
        one.fdatasync(descriptor)
        files.lose_power(random.Random(seed))
        lost += disk(files).read(FILE) != b"x" * 3 * PAGE
    assert lost > 10


async def test_a_full_disk_takes_no_new_file_and_writes_into_old_ones(autojump_clock):
    files, troubles = Files(), Troubles(full_until=10.0**9)
    one, descriptor = made(files)
    one.troubles = troubles
    one.pwrite(descriptor, b"y", 0)
    with pytest.raises(OSError, match="no space") as raised:
        one.create(PLACE / "two")
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("after", [False, True])
def test_a_dead_process_has_no_effect_on_the_disk(after):
    files = Files()
    made(files)
    ghost = disk(files, trap=Trap(frozenset({"rename"}), 0, power=False, after=after))
    with pytest.raises(Killed):
        ghost.rename(FILE, PLACE / "two")
    assert (PLACE / "two" in files.now) is after
    for attempt in (lambda: ghost.create(PLACE / "three"), lambda: ghost.unlink(PLACE / "two")):
        with pytest.raises(Killed):
            attempt()
    assert len(files.now) == 1


def test_a_lock_ends_with_its_process():
    files = Files()
    disk(files).lock(PLACE / "lock")
    with pytest.raises(BlockingIOError):
        disk(files).lock(PLACE / "lock")
    files.kill()
    disk(files).lock(PLACE / "lock")
