"""A disk with a page cache and a platter, and records to write on it: what the journal's tests share."""

import errno
import random
from collections import deque
from pathlib import Path

from attrs import define, field
from msgspec.structs import replace

from accounting.journal import Journal, Past, Stored
from accounting.records import (
    Attempt,
    Ending,
    Extension,
    Grant,
    GrantKind,
    Job,
    Leg,
    Progress,
    UsageRecord,
    Void,
    Wallet,
)
from accounting.scan import Scan, scan
from accounting.segment import segments
from pricing.usage import Source, Usage

PAGE = 512
STATE = Path("/state")
DIRECTORY = STATE / "journal"
ARCHIVE = STATE / "archive"


class PowerLoss(BaseException):
    """The machine goes down in the middle of what it does."""


@define(eq=False)
class Inode:
    """A file: what the page cache says of it, and what the platter does."""

    cache: bytearray = field(factory=bytearray)
    platter: bytearray = field(factory=bytearray)
    dirty: set[int] = field(factory=set)

    def sync(self):
        size = len(self.cache)
        del self.platter[size:]
        self.platter.extend(bytes(size - len(self.platter)))
        for page in self.dirty:
            at = slice(page * PAGE, min((page + 1) * PAGE, size))
            self.platter[at] = self.cache[at]
        self.dirty.clear()

    def write(self, data, offset):
        if data:
            self.cache.extend(bytes(max(offset + len(data) - len(self.cache), 0)))
            self.cache[offset : offset + len(data)] = data
            self.dirty.update(range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1))
        return len(data)

    def lose_power(self, rng):
        """The cache is gone."""
        self.write_back(rng)
        self.cache = bytearray(self.platter)
        self.dirty.clear()

    def write_back(self, rng):
        """Any pages that were not synced may have reached the platter, in any order; so may the size."""
        if len(self.cache) != len(self.platter) and rng.random() < 0.5:
            size = len(self.cache)
            del self.platter[size:]
            self.platter.extend(bytes(size - len(self.platter)))
        for page in sorted(self.dirty):
            if rng.random() < 0.5:
                at = slice(page * PAGE, min((page + 1) * PAGE, len(self.platter)))
                self.platter[at] = self.cache[at]


@define(eq=False)
class FakeDisk:
    """Implements `accounting.disk.Disk`; `before` is asked before each operation and may raise.

    With `rng`, a pwrite or an fdatasync that fails has done a part of its work, or all of it.
    """

    names_now: dict[Path, Inode] = field(factory=dict)
    names_platter: dict[Path, Inode] = field(factory=dict)
    locked: set[Path] = field(factory=set)
    operations: list[tuple[str, Path]] = field(factory=list)
    capacity: int = 2**40
    before: object = None
    write_at_most: int | None = None
    rng: random.Random | None = None
    _files: dict[int, tuple[Path, Inode]] = field(factory=dict)
    _unsynced_names: list[tuple[str, Path, Path | None]] = field(factory=list)

    # -- what may happen to it -------------------------------------------------------------------------

    def kill(self):
        """The process dies: descriptors and locks go, the page cache stays."""
        self._files.clear()
        self.locked.clear()
        self.before = None

    def lose_power(self, rng):
        """The machine dies: of what was not synced, some is there and some is not."""
        names = dict(self.names_platter)
        for kind, path, new in self._unsynced_names[: rng.randrange(len(self._unsynced_names) + 1)]:
            _apply(names, kind, path, new, self.names_now)
        for inode in {id(inode): inode for inode in [*self.names_now.values(), *names.values()]}.values():
            inode.lose_power(rng)
        self.names_now, self.names_platter = names, dict(names)
        self._unsynced_names.clear()
        self.kill()

    def content(self, path):
        return bytes(self.names_now[path].cache)

    def set_content(self, path, data):
        inode = self.names_now[path]
        inode.cache, inode.platter = bytearray(data), bytearray(data)
        inode.dirty.clear()

    def copy(self):
        other = FakeDisk()
        for path, inode in self.names_now.items():
            other.names_now[path] = Inode(bytearray(inode.cache), bytearray(inode.platter), set(inode.dirty))
        other.names_platter = dict(other.names_now)
        return other

    # -- the port --------------------------------------------------------------------------------------

    def make_dir(self, path):
        self._begin("make_dir", path)

    def names(self, directory):
        self._begin("names", directory)
        return [path.name for path in self.names_now if path.parent == directory]

    def lock(self, path):
        self._begin("lock", path)
        if path in self.locked:
            raise BlockingIOError
        self.locked.add(path)
        self.names_now.setdefault(path, Inode())
        return self._descriptor(path)

    def create(self, path):
        self._begin("create", path)
        if path in self.names_now:
            raise FileExistsError(path)
        self.names_now[path] = Inode()
        self._unsynced_names.append(("create", path, None))
        return self._descriptor(path)

    def open(self, path):
        self._begin("open", path)
        if path not in self.names_now:
            raise FileNotFoundError(path)
        return self._descriptor(path)

    def read(self, path):
        self._begin("read", path)
        if path not in self.names_now:
            raise FileNotFoundError(path)
        return self.content(path)

    def read_at(self, path, offset, size):
        self._begin("read_at", path)
        if path not in self.names_now:
            raise FileNotFoundError(path)
        return bytes(self.names_now[path].cache[offset : offset + size])

    def pwrite(self, descriptor, data, offset):
        path, inode = self._files[descriptor]
        try:
            self._begin("pwrite", path)
        except OSError:
            if self.rng is not None:
                inode.write(data[: self.rng.randrange(len(data) + 1)], offset)
            raise
        return inode.write(data[: self.write_at_most], offset)

    def fdatasync(self, descriptor):
        path, inode = self._files[descriptor]
        try:
            self._begin("fdatasync", path)
        except OSError:
            if self.rng is not None:
                inode.write_back(self.rng)
            inode.dirty.clear()  # as Linux does: it counts as clean from now on, and is not on the platter
            raise
        inode.sync()

    def allocate(self, descriptor, size):
        path, inode = self._files[descriptor]
        self._begin("allocate", path)
        if sum(len(one.cache) for one in self.names_now.values()) + size > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on device")
        inode.cache.extend(bytes(size - len(inode.cache)))

    def truncate(self, descriptor, size):
        path, inode = self._files[descriptor]
        self._begin("truncate", path)
        del inode.cache[size:]

    def close(self, descriptor):
        path, _ = self._files.pop(descriptor)
        self.locked.discard(path)
        self._begin("close", path)  # it is closed all the same

    def rename(self, old, new):
        self._begin("rename", old)
        self.names_now[new] = self.names_now.pop(old)
        self._unsynced_names.append(("rename", old, new))

    def unlink(self, path):
        self._begin("unlink", path)
        self.names_now.pop(path, None)
        self._unsynced_names.append(("unlink", path, None))

    def sync_dir(self, directory):
        self._begin("sync_dir", directory)
        self.names_platter = dict(self.names_now)
        self._unsynced_names.clear()

    def _begin(self, operation, path):
        if self.before is not None:
            self.before(operation, path)
        self.operations.append((operation, path))

    def _descriptor(self, path):
        descriptor = max(self._files, default=100) + 1
        self._files[descriptor] = (path, self.names_now[path])
        return descriptor


def _apply(names, kind, path, new, now):
    if kind == "create":
        # a file that is gone again by now was empty to anybody who could still find it
        names[path] = now.get(path, Inode())
    elif kind == "unlink":
        names.pop(path, None)
    elif path in names:
        names[new] = names.pop(path)


# -- records ---------------------------------------------------------------------------------------------

HOLD = 1_000


def wallet(name="w1", at_ms=1_000):
    return Wallet(name, "Ada", "USD", at_ms)


def grant(number=1, amount=10**9, wallet="w1"):
    return Grant(f"g{number}", wallet, amount, GrantKind.PAID, f"ref {number}", 1_001)


def attempt(request, number=1, at_ms=2_000):
    return Attempt(
        f"r{request}",
        number,
        "w1",
        "k1",
        HOLD,
        "lab/model",
        "lab",
        "main",
        "openai_chat",
        True,
        "p_0123456789abcdef",
        1_000_000,
        at_ms,
    )


def progress(request, cost=7, number=1):
    return Progress(
        f"r{request}", number, cost, cost, Usage(input=3, output=4), Source.ESTIMATED, True, 2_500
    )


def extension(request, hold=HOLD * 2, number=1):
    return Extension(f"r{request}", number, hold, 2_550)


def work(request, at_ms=2_000, number=1):
    """An attempt at work that outlives its connection."""
    return replace(attempt(request, number, at_ms), kind="job")


def job(request, cost=30, number=1):
    return Job(f"r{request}", number, f"video-{request}", Usage(seconds=4), cost, cost, 2_560)


def settled(request, charged=10, number=1, grant=1):
    return UsageRecord(
        request=f"r{request}",
        number=number,
        wallet="w1",
        key="k1",
        model="lab/model",
        provider="lab",
        account="main",
        dialect="openai_chat",
        stream=True,
        outcome=Ending.COMPLETE,
        status=200,
        source=Source.REPORTED,
        usage=Usage(input=5, output=7),
        price_version="p_0123456789abcdef",
        markup_ppm=1_000_000,
        held=HOLD,
        price=charged,
        charged=charged,
        cost=charged,
        loss=0,
        currency="USD",
        started_ms=2_000,
        ended_ms=3_000,
        legs=(Leg(f"g{grant}", charged),) if charged else (),
        upstream_id="chatcmpl-1",
    )


def void(request, number=1):
    return Void(f"r{request}", number, 2_600, "never_sent")


def calls(count, first=1):
    """A, and S, of so many requests."""
    return [
        record for request in range(first, first + count) for record in (attempt(request), settled(request))
    ]


def fails(operation, *, at=1, times=1, error=errno.EIO):
    """For `FakeDisk.before`: the so many-th operation of this name (`""`: of any) fails, and so many in all."""
    count = 0

    def before(what, _path):
        nonlocal count
        count += operation in ("", what)
        if operation in ("", what) and at <= count < at + times:
            raise OSError(error, "provoked")

    return before


ALWAYS = 10**9


def seeded(seed):
    """Randomness that can be repeated."""
    return random.Random(seed)


# -- a journal on a fake disk ----------------------------------------------------------------------------


def clock():
    return 5_000


def fresh(disk, *, segment_bytes=2**16):
    return Journal.open(disk, DIRECTORY, Past(), segment_bytes=segment_bytes, clock=clock)


def reopened(disk, *, segment_bytes=2**16):
    scanned = read(disk)
    for segment in scanned.unused:
        disk.unlink(segment.path)
    journal = Journal.open(disk, DIRECTORY, scanned.past(), segment_bytes=segment_bytes, clock=clock)
    sealed = [piece for piece in scanned.pieces if piece.segment.sealed and not piece.segment.archived]
    journal.to_archive(Stored(piece.segment.path, piece.last_seq) for piece in sealed)
    return journal


def sync(journal):
    """As the recorder does: in another file, where an error has led the journal on."""
    done = False
    while not done:
        planned = journal.begin_sync()
        try:
            planned.run()
        except OSError as error:
            journal.sync_failed(planned, error)
        else:
            done = journal.synced(planned)


def housekeep(journal):
    while (chore := journal.housework()) is not None:
        chore.run()
        journal.chore_done(chore)


def read(disk) -> Scan:
    """A scan that has been read to its end."""
    scanned = scan(disk, DIRECTORY)
    deque(scanned, maxlen=0)
    return scanned


def records(disk):
    """(seq, record) of the whole journal."""
    return list(scan(disk, DIRECTORY))


def paths(disk):
    return [segment.path for segment in segments(disk, DIRECTORY)]


def archive(journal, loaded=10**9):
    """Put everything into the archive that may go there."""
    while (chore := journal.archiving(loaded)) is not None:
        chore.run()
        journal.chore_done(chore)


def fill(journal, until):
    """Write settled calls until this is true."""
    request = 1000
    while not until():
        request += 1
        for record in calls(1, request):
            journal.append(record)


def rolled(disk, *before):
    """A journal that has gone on to its second segment."""
    journal = fresh(disk, segment_bytes=2**15)
    for record in before:
        journal.append(record)
    sync(journal)
    fill(journal, lambda: journal._file.offset * 2 > journal._file.size)
    housekeep(journal)
    fill(journal, lambda: journal._full)
    return journal
