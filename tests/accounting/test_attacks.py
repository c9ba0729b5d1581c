"""Attacks on books that live: an error, a kill or a power loss at every operation of the disk, one after the other.

A life is a script: it starts the books, writes over several segments, waits, loads, archives, dies with calls and
jobs under way, starts again, and closes. Whatever anybody was told is there afterwards, once, and a process that
does not go on has said so.
"""

import errno

import pytest
import trio
from attrs import define, field
from msgspec.structs import replace

from accounting.journal import BooksFailed
from accounting.ports import Overloaded
from accounting.recorder import Recorder
from accounting.recovery import RecoveryError
from accounting.segment import JournalDamaged
from tests.accounting.journal_fakes import (
    ALWAYS,
    ARCHIVE,
    DIRECTORY,
    HOLD,
    FakeDisk,
    PowerLoss,
    attempt,
    extension,
    grant,
    job,
    paths,
    progress,
    read,
    records,
    seeded,
    settled,
    wallet,
    work,
)
from tests.accounting.recovery_fakes import FakeStore, check, start

LOUD = (OSError, RecoveryError, BooksFailed, Overloaded)
"""How a process says that it does not go on."""


@define(eq=False)
class Fault:
    """What befalls the disk: errors at these of its operations, and its end; counted over all lives."""

    errors: object = ()
    error: int = errno.EIO
    end: int = ALWAYS
    count: int = 0
    dead: bool = False

    def __call__(self, _operation, _path):
        self.count += 1
        if self.dead or self.over:
            raise PowerLoss
        if self.count in self.errors:
            raise OSError(self.error, "provoked")

    @property
    def over(self):
        return self.count >= self.end


@define(eq=False)
class World:
    """Books, what was written to them, and what somebody was told."""

    fault: Fault
    disk: FakeDisk = field(factory=lambda: FakeDisk(rng=seeded(8)))
    store: FakeStore = field(factory=FakeStore)
    history: dict = field(factory=dict)
    told: dict = field(factory=dict)
    failed: list = field(factory=list)
    """Recorders that have said that they failed."""
    ends: list = field(factory=list)
    """What ended a life before its time."""

    async def lives(self):
        """The script: a life that ends in a crash, one that is closed, one that only looks."""
        for number, crash in enumerate((True, False, False)):
            self.disk.before = self.fault
            try:
                with trio.fail_after(3600):
                    await self.live(number, crash=crash)
            except* LOUD as group:
                self.ends.append(group)
            except* PowerLoss:
                pass
            if self.fault.over:
                return
            self.die()

    def die(self):
        self.store.close()
        self.disk.kill()
        self.fault.dead = False

    async def live(self, number, *, crash):
        books = start(self.disk, self.store, segment_bytes=2**15)
        self.history = dict(records(self.disk.copy()))
        self.told = dict(self.history)
        recorder = Recorder(
            books.journal,
            self.store,
            trio.current_time,
            in_thread,
            loaded=books.journal.seq,
            load_seconds=0.1,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.run)
            try:
                if number < 2:
                    await self.serve(books, recorder, 1000 * books.journal.seq + 1, 16 if crash else 4)
                if crash:
                    self.fault.dead = True
            finally:
                if recorder.failed is not None:
                    self.failed.append(recorder.failed)
                recorder.close()
        books.close()

    async def serve(self, books, recorder, first, count):
        for record in (wallet(), grant())[books.journal.seq :]:
            await self.durable(recorder, self.put(books, recorder, record))
        for request in range(first, first + count):
            await reserve(recorder, 2)
            self.put(books, recorder, attempt(request), reserved=True)
            if request % 3 == 0:
                self.put(books, recorder, extension(request, 2 * HOLD))
                self.put(books, recorder, progress(request, 5))
            seq = self.put(books, recorder, long(settled(request, request % 7)), reserved=True)
            if request % 2 == 0:
                await self.durable(recorder, seq)
            else:
                await trio.sleep(0.0015)  # so that the next is written while a sync runs
        await recorder.flush()
        await trio.sleep(1)  # for the archive
        await reserve(recorder, 4)
        self.put(books, recorder, work(first + 90), reserved=True)
        await self.durable(recorder, self.put(books, recorder, job(first + 90), reserved=True))
        self.put(books, recorder, attempt(first + 91), reserved=True)
        await reserve(recorder, 1)
        self.put(books, recorder, progress(first + 91, 3), reserved=True)

    def put(self, books, recorder, record, *, reserved=False):
        seq = recorder.write(record, reserved=reserved)
        self.history[seq] = record
        books.ledger.replay(record)
        return seq

    async def durable(self, recorder, seq):
        await recorder.durable(seq)
        self.told |= {one: self.history[one] for one in range(max(self.told, default=0) + 1, seq + 1)}

    def judge(self):
        """Start again, with no fault, and hold the books against what was told."""
        self.die()
        books = start(self.disk, self.store)
        check(self.disk, self.store, books)
        written = dict(records(self.disk))
        assert {seq: written.get(seq) for seq in self.told} == self.told
        assert read(self.disk).miscarried == []


def long(record):
    """So that few records fill a segment."""
    return replace(record, upstream_id="u" * 3000)


async def in_thread(work_):
    await trio.sleep(0.001)
    return work_()


async def reserve(recorder, places):
    """As at the door: who finds no room comes again, a few times."""
    for _ in range(20):
        try:
            return recorder.reserve(places)
        except Overloaded as overloaded:
            if overloaded.trigger != "journal":
                raise
            await trio.sleep(0.05)
    return recorder.reserve(places)


async def operations():
    """How many operations of the disk the script has when nothing goes wrong."""
    world = World(Fault())
    await world.lives()
    assert world.ends == []
    world.judge()
    suffixes = [path.suffix for path in paths(world.disk)]
    assert suffixes.count(".gz") >= 3, "segments are rotated, sealed, loaded and archived"
    assert len(world.told) > 50
    return world.fault.count


SHORT = pytest.param(9, id="short")
LONG = pytest.param(1, id="long", marks=pytest.mark.long)


@pytest.mark.parametrize("step", [SHORT, LONG])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_one_error_at_any_operation_harms_nothing_and_ends_no_life_but_a_start(
    step, error, autojump_clock
):
    for at in range(1, await operations() + 1, step):
        world = World(Fault({at}, error))
        await world.lives()
        assert world.failed == []
        assert len(world.ends) <= 1
        world.judge()


@pytest.mark.parametrize("step", [SHORT, LONG])
@pytest.mark.parametrize("powerless", [False, True])
async def test_a_disk_that_fails_from_any_operation_on_is_told_and_loses_nothing_that_was_acknowledged(
    step, powerless, autojump_clock
):
    for at in range(1, await operations() + 1, step):
        world = World(Fault(range(at, ALWAYS), errno.EIO if at % 2 else errno.ENOSPC))
        await world.lives()
        assert world.ends or at > world.fault.count - 5
        if powerless:
            world.disk.lose_power(seeded(at))
        world.judge()


@pytest.mark.parametrize("step", [pytest.param(31, id="short"), LONG])
async def test_a_power_loss_soon_after_an_error_loses_nothing_that_was_told(step, autojump_clock):
    """What an fdatasync has failed on counts as clean, and is gone with the page cache."""
    for at in range(1, await operations() + 1, step):
        for later in (1, 3, 5, 8, 13, 21, 34):
            world = World(Fault({at}, end=at + later))
            await world.lives()
            world.disk.lose_power(seeded(at + later))
            world.judge()


@pytest.mark.parametrize(
    "seeds", [pytest.param(25, id="short"), pytest.param(2_000, id="long", marks=pytest.mark.long)]
)
async def test_over_many_lives_with_many_errors_nothing_that_was_told_is_lost(seeds, autojump_clock):
    count = await operations()
    for seed in range(seeds):
        rng = seeded(seed)
        disk, store, told = FakeDisk(rng=rng), FakeStore(), {}
        for _ in range(4):
            errors = {rng.randrange(1, count) for _ in range(rng.randrange(12))}
            world = World(
                Fault(errors, end=rng.choice([ALWAYS, rng.randrange(1, count)])), disk, store, told=told
            )
            await world.lives()
            told = world.told
            if rng.random() < 0.5:
                disk.lose_power(rng)
            world.judge()
            world.die()


@pytest.mark.parametrize("step", [SHORT, LONG])
@pytest.mark.parametrize("powerless", [False, True])
async def test_a_kill_or_power_loss_before_any_operation_loses_nothing_that_was_told(
    step, powerless, autojump_clock
):
    for at in range(1, await operations() + 1, step):
        for seed in range(3 if powerless and step == 1 else 1):
            world = World(Fault(end=at))
            await world.lives()
            if powerless:
                world.disk.lose_power(seeded(1000 * seed + at))
            world.judge()


@pytest.mark.parametrize(
    "step", [pytest.param(60, id="short"), pytest.param(7, id="long", marks=pytest.mark.long)]
)
async def test_a_recovery_that_is_cut_off_at_any_operation_is_done_by_the_next(step, autojump_clock):
    """From wrecks of all ages, by power losses: the recovery of each is cut off everywhere, too."""
    for at in range(20, await operations() + 1, step):
        wreck = World(Fault(end=at))
        await wreck.lives()
        wreck.disk.lose_power(seeded(at))
        for inner in range(1, 200):
            world = World(
                Fault(end=inner), wreck.disk.copy(), FakeStore(list(wreck.store.loaded)), told=wreck.told
            )
            world.disk.before = world.fault
            try:
                start(world.disk, world.store)
            except PowerLoss:
                pass
            else:
                break
            if inner % 2:
                world.disk.lose_power(seeded(inner))
            world.judge()
        assert inner > 5


# -- what is on the platter changes ------------------------------------------------------------------------


async def aged():
    """Books that were closed, that were killed, and that were killed after errors: each with all sorts of segments."""
    count = await operations()
    worlds = [World(Fault()), World(Fault(end=count * 2 // 3)), World(Fault({count // 3}, end=count // 2))]
    for world in worlds:
        await world.lives()
        world.die()
        world.history = dict(records(world.disk))
        assert len(world.told) > 30
    suffixes = {path.suffix for world in worlds for path in paths(world.disk)}
    assert suffixes == {".open", ".ndjson", ".gz"}
    return worlds


def damaged(disk, path, content):
    """The records of books in which one file is another; or the damage that was found."""
    other = disk.copy()
    other.set_content(path, content)
    try:
        return dict(records(other)), None
    except JournalDamaged as found:
        return None, found


@pytest.mark.parametrize(
    "flips", [pytest.param(400, id="short"), pytest.param(20_000, id="long", marks=pytest.mark.long)]
)
async def test_no_flipped_bit_changes_or_drops_an_acknowledged_record_in_silence(flips, autojump_clock):
    rng, stopped = seeded(31), 0
    worlds = await aged()
    for _ in range(flips):
        world = rng.choice(worlds)
        path = rng.choice(paths(world.disk))
        content = bytearray(world.disk.content(path))
        content[rng.randrange(len(content.rstrip(b"\0")))] ^= 1 << rng.randrange(8)
        found, damage = damaged(world.disk, path, content)
        if found is None:
            assert damage.path.parent in (DIRECTORY, ARCHIVE)
            stopped += 1
        else:
            assert found.items() >= world.told.items()
            assert found.items() <= world.history.items()
    assert flips * 0.8 < stopped < flips


@pytest.mark.parametrize(
    "step", [pytest.param(331, id="short"), pytest.param(1, id="long", marks=pytest.mark.long)]
)
async def test_a_file_that_is_cut_at_any_byte_leaves_an_exact_prefix_that_has_what_the_store_has_or_is_refused(
    step, autojump_clock
):
    refused = 0
    for world in await aged():
        for path in paths(world.disk):
            content = world.disk.content(path)
            content = content.rstrip(b"\0") if path.suffix == ".open" else content
            for size in range(0, len(content), step):
                found, _ = damaged(world.disk, path, content[:size])
                if found is None or len(found) < len(world.store.loaded):  # the second is for recovery to say
                    refused += 1
                else:
                    assert found == {seq: world.history[seq] for seq in range(1, len(found) + 1)}
                    original = DIRECTORY / path.with_suffix("").name  # which a kill may have left, too
                    assert path.suffix != ".gz" or original in world.disk.names_now
    assert refused
