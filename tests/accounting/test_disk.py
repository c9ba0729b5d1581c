import os
import stat

import pytest

from accounting.disk import OsDisk


@pytest.fixture
def disk():
    return OsDisk()


def test_a_directory_is_for_its_owner_alone(disk, tmp_path):
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    for path in (there, tmp_path / "a" / "b"):
        disk.make_dir(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_file_is_made_once_with_all_its_bytes_and_for_its_owner_alone(disk, tmp_path):
    path = tmp_path / "file"
    descriptor = disk.create(path)
    disk.allocate(descriptor, 10_000)
    assert disk.pwrite(descriptor, b"hello", 5_000) == 5
    disk.fdatasync(descriptor)
    disk.sync_dir(tmp_path)
    assert disk.read(path) == bytes(5_000) + b"hello" + bytes(4_995)
    assert disk.read_at(path, 4_999, 4) == b"\0hel"
    assert disk.read_at(path, 9_999, 4) == b"\0"
    assert disk.read_at(path, 10_000, 4) == b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    disk.truncate(descriptor, 5_002)
    disk.close(descriptor)
    assert path.stat().st_size == 5_002
    with pytest.raises(FileExistsError):
        disk.create(path)


def test_files_are_renamed_listed_and_removed(disk, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    disk.close(disk.create(old))
    disk.rename(old, new)
    assert disk.names(tmp_path) == ["new"]
    disk.close(disk.open(new))
    disk.unlink(new)
    disk.unlink(new)
    assert disk.names(tmp_path) == []


def test_a_lock_is_held_until_its_file_is_closed(disk, tmp_path):
    path = tmp_path / "lock"
    descriptor = disk.lock(path)
    with pytest.raises(BlockingIOError):
        disk.lock(path)
    assert not os.get_inheritable(descriptor)
    disk.close(descriptor)
    disk.close(disk.lock(path))


def test_a_platform_without_fallocate_gets_the_size_all_the_same(disk, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(os, "fdatasync")
    descriptor = disk.create(tmp_path / "file")
    disk.allocate(descriptor, 4_096)
    disk.fdatasync(descriptor)
    disk.close(descriptor)
    assert (tmp_path / "file").stat().st_size == 4_096
