"""A disk with a page cache and a platter: what a kill leaves, and what a power loss leaves.

Written pages stand in the cache. A sync brings a file's pages to the platter; some get there earlier, by
themselves, as the kernel likes. A power loss keeps the platter, any of the pages that were on their way, and of
the changes to names those up to some point. After an error in a sync the pages count as clean, as on Linux, and
are not on the platter. Names are synced by directory, each in its own order.

`Files` is what lasts over processes, `ProcessDisk` the port (`accounting.disk.Disk`) that one process has of it.
"""

import errno
from collections import Counter
from pathlib import Path
from typing import Final

import trio
from attrs import define, field

from tests.simulation.life import Life

PAGE: Final = 512
"""What is written whole or not at all."""

WRITTEN_BACK: Final = 0.02
"""How often a write finds the kernel writing pages back, which nobody has asked it for."""


class Inode:
    """A file: what the cache says of it, and what the platter does."""

    __slots__ = ("cache", "dirty", "platter")

    def __init__(self, content=b""):
        self.cache = bytearray(content)
        self.platter = bytearray(content)
        self.dirty = set()

    def write(self, data, offset):
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self.dirty.update(range(offset // PAGE, (end - 1) // PAGE + 1))

    def reach_platter(self, pages):
        """Write some pages back."""
        cache, platter = self.cache, self.platter
        for page in pages:
            at = page * PAGE
            end = min(at + PAGE, len(platter))
            if at < end:
                platter[at:end] = cache[at:end]

    def resize_platter(self):
        size = len(self.cache)
        if len(self.platter) != size:
            del self.platter[size:]
            self.platter.extend(bytes(size - len(self.platter)))

    def sync(self):
        self.resize_platter()
        self.reach_platter(page for page in self.dirty if page * PAGE < len(self.cache))
        self.dirty.clear()

    def write_back(self, rng):
        some = sorted(self.dirty)
        self.resize_platter()
        written = [page for page in some if rng.random() < 0.5]
        self.reach_platter(written)
        self.dirty.difference_update(written)

    def lose_power(self, rng):
        if len(self.cache) != len(self.platter) and rng.random() < 0.5:
            self.resize_platter()
        self.reach_platter([page for page in sorted(self.dirty) if rng.random() < 0.5])
        self.cache = bytearray(self.platter)
        self.dirty = set()


@define(eq=False)
class Files:
    """All files, by name: as they are, and as the platter has them."""

    now: dict = field(factory=dict)
    platter: dict = field(factory=dict)
    unsynced: list = field(factory=list)
    """Changes to names that are not on the platter: (kind, path, new path, inode)."""
    locked: dict = field(factory=dict)
    capacity: int = 2**40

    def used(self):
        return sum(len(inode.cache) for inode in self.now.values())

    def kill(self):
        """The process is gone, and its locks with it."""
        self.locked.clear()

    def lose_power(self, rng):
        """The machine went down and comes up again."""
        for directory in dict.fromkeys(change[1].parent for change in self.unsynced):
            changes = self._changes_in(directory)
            self._reach_platter(changes[: rng.randrange(len(changes) + 1)])
        for inode in dict.fromkeys((*self.platter.values(), *self.now.values())):
            inode.lose_power(rng)
        self.now = dict(self.platter)
        self.unsynced.clear()
        self.locked.clear()

    def sync_names(self, directory):
        changes = self._changes_in(directory)
        self._reach_platter(changes)
        self.unsynced = [change for change in self.unsynced if change not in changes]

    def _changes_in(self, directory):
        return [change for change in self.unsynced if change[1].parent == directory]

    def _reach_platter(self, changes):
        names = self.platter
        for kind, path, new, inode in changes:
            if kind == "create":
                names[path] = inode
            elif kind == "unlink":
                names.pop(path, None)
            elif path in names:
                names[new] = names.pop(path)


@define(eq=False)
class Troubles:
    """What is wrong with the disk for the time being; asked before each operation.

    Attributes:
        full_until: until when no file can be made or grow.
        short: the next writes write less than they are given.
        errors: by operation, how many of the next fail; after `errors_after` of them went well.
    """

    full_until: float = -1.0
    short: int = 0
    errors: Counter = field(factory=Counter)
    errors_after: Counter = field(factory=Counter)
    seen: Counter = field(factory=Counter)

    @property
    def any(self):
        return self.full_until >= 0 or self.short > 0 or bool(self.errors)

    def clear(self):
        self.full_until, self.short = -1.0, 0
        self.errors.clear()
        self.errors_after.clear()

    def fail(self, operation, after=0, times=1):
        self.errors[operation] = times
        self.errors_after[operation] = after

    def strike(self, operation):
        """Raise what is due."""
        if operation in ("create", "allocate") and self.full_until > trio.current_time():
            self.seen["enospc"] += 1
            raise OSError(errno.ENOSPC, "no space left on device")
        if self.errors.get(operation):
            if self.errors_after[operation] > 0:
                self.errors_after[operation] -= 1
                return
            self.errors[operation] -= 1
            if not self.errors[operation]:
                del self.errors[operation]
            self.seen[f"eio {operation}"] += 1
            raise OSError(errno.EIO, "input/output error")


@define(eq=False)
class ProcessDisk:
    """Implements `accounting.disk.Disk` for one process.

    Attributes:
        heard: told of every write to a file that went well: path, inode, data, offset.
    """

    files: Files
    life: Life
    troubles: Troubles
    rng: object
    heard: object
    open_files: dict = field(factory=dict)
    _next: int = 100

    def make_dir(self, _path):
        self._done(self._begin("make_dir"))

    def names(self, directory):
        self._begin("names")
        return [path.name for path in self.files.now if path.parent == directory]

    def lock(self, path):
        dies = self._begin("lock")
        if path in self.files.locked:
            raise BlockingIOError
        self.files.now.setdefault(path, Inode())
        descriptor = self._descriptor(path)
        self.files.locked[path] = (self.life.number, descriptor)
        self._done(dies)
        return descriptor

    def create(self, path):
        dies = self._begin("create")
        if path in self.files.now:
            raise FileExistsError(path)
        inode = self.files.now[path] = Inode()
        self.files.unsynced.append(("create", path, None, inode))
        self._done(dies)
        return self._descriptor(path)

    def open(self, path):
        self._begin("open")
        if path not in self.files.now:
            raise FileNotFoundError(path)
        return self._descriptor(path)

    def read(self, path):
        self._begin("read")
        try:
            return bytes(self.files.now[path].cache)
        except KeyError:
            raise FileNotFoundError(path) from None

    def read_at(self, path, offset, size):
        self._begin("read_at")
        try:
            return bytes(self.files.now[path].cache[offset : offset + size])
        except KeyError:
            raise FileNotFoundError(path) from None

    def size(self, path):
        self._begin("size")
        try:
            return len(self.files.now[path].cache)
        except KeyError:
            raise FileNotFoundError(path) from None

    def pwrite(self, descriptor, data, offset):
        path, inode = self.open_files[descriptor]
        dies = self._begin("pwrite")
        if self.troubles.short and len(data) > 1:
            self.troubles.short -= 1
            data = data[: self.rng.randrange(1, len(data))]
        if dies and self.rng.random() < 0.5:
            data = data[: self.rng.randrange(len(data) + 1)]
        if data:
            inode.write(data, offset)
            if self.rng.random() < WRITTEN_BACK:
                inode.write_back(self.rng)
        self.heard(path, inode, data, offset)
        self._done(dies)
        return len(data)

    def fdatasync(self, descriptor):
        _, inode = self.open_files[descriptor]
        try:
            dies = self._begin("fdatasync")
        except OSError:
            inode.write_back(self.rng)
            inode.dirty.clear()
            raise
        inode.sync()
        self._done(dies)

    def allocate(self, descriptor, size):
        _, inode = self.open_files[descriptor]
        dies = self._begin("allocate")
        if self.files.used() + size > self.files.capacity:
            raise OSError(errno.ENOSPC, "no space left on device")
        inode.cache.extend(bytes(max(size - len(inode.cache), 0)))
        self._done(dies)

    def truncate(self, descriptor, size):
        _, inode = self.open_files[descriptor]
        dies = self._begin("truncate")
        del inode.cache[size:]
        inode.cache.extend(bytes(size - len(inode.cache)))
        self._done(dies)

    def close(self, descriptor):
        if self.life.alive:
            path, _ = self.open_files.pop(descriptor)
            if self.files.locked.get(path) == (self.life.number, descriptor):
                del self.files.locked[path]

    def rename(self, old, new):
        dies = self._begin("rename")
        inode = self.files.now.pop(old)
        self.files.now[new] = inode
        self.files.unsynced.append(("rename", old, new, inode))
        self._done(dies)

    def unlink(self, path):
        dies = self._begin("unlink")
        inode = self.files.now.pop(path, None)
        self.files.unsynced.append(("unlink", path, None, inode))
        self._done(dies)

    def sync_dir(self, directory):
        dies = self._begin("sync_dir")
        self.files.sync_names(directory)
        self._done(dies)

    def _begin(self, operation):
        dies = self.life.touch(operation)
        if self.troubles.any:
            self.troubles.strike(operation)
        self._operation = operation
        return dies

    _operation: str = ""

    def _done(self, dies):
        if dies:
            self.life.fall(self._operation)

    def _descriptor(self, path):
        self._next += 1
        self.open_files[self._next] = (path, self.files.now[path])
        return self._next


STATE = Path("/state")
