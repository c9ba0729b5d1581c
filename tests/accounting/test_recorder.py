import errno
import math
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, field
from trio.testing import assert_no_checkpoints

from accounting import recorder as recorder_module
from accounting.journal import BooksFailed
from accounting.ports import Overloaded, Writer
from accounting.recorder import BACKOFF_SECONDS, STOP_TRIES, Recorder
from accounting.segment import PACKED
from tests.accounting.journal_fakes import (
    ALWAYS,
    FakeDisk,
    attempt,
    calls,
    fails,
    fresh,
    grant,
    housekeep,
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
)


@define(eq=False)
class FakeStore:
    """A store of a list; it is slow, or fails, as it is told."""

    loaded: list = field(factory=list)
    slices: list[int] = field(factory=list)
    error: Exception | None = None
    committed_before_error: bool = False
    seconds: float = 0.0
    reopened: int = 0

    def load(self, records):
        if self.error is None or self.committed_before_error:
            assert records[0][0] == len(self.loaded) + 1, "a line is loaded twice, or left out"
            self.loaded += records
            self.slices.append(len(records))
        if self.error is not None:
            raise self.error
        return len(self.loaded)

    def reopen(self):
        self.reopened += 1
        if self.error is not None and not self.committed_before_error:
            raise self.error
        self.error = None
        return len(self.loaded)


@define(eq=False)
class World:
    """A recorder on a fake disk and a fake store; work in threads takes virtual time."""

    disk: FakeDisk = field(factory=FakeDisk)
    store: FakeStore = field(factory=FakeStore)
    sync_seconds: float = 0.001
    events: list = field(factory=list)
    works: list[str] = field(factory=list)
    segment_bytes: int = 2**20
    recorder: Recorder = None

    async def in_thread(self, work):
        name = getattr(work, "__qualname__", repr(work))
        self.works.append(name)
        await trio.sleep(self.store.seconds if "_load_once" in name else self.sync_seconds)
        return work()

    def build(self, *, again=False, **settings):
        make = reopened if again else fresh
        journal = make(self.disk, segment_bytes=self.segment_bytes)
        self.recorder = Recorder(
            journal,
            self.store,
            trio.current_time,
            self.in_thread,
            loaded=len(self.store.loaded),
            log=lambda event, **fields: self.events.append((event, fields)),
            **{"load_seconds": 0.25, **settings},
        )
        return self.recorder

    def syncs(self):
        return sum("Sync.run" in name for name in self.works)


def triggered(trigger):
    return lambda error: error.trigger == trigger


@pytest.fixture
def world():
    return World()


@asynccontextmanager
async def running(recorder, *, ends=None):
    """The recorder's task for as long as the block, closed at its end in any case; yields the nursery.

    `ends` is the error that it must end with.
    """
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.run)
            try:
                yield nursery
            finally:
                recorder.close()
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        if ends is None or not isinstance(error, ends):
            raise
    else:
        assert ends is None, "it ended well"


@pytest.fixture
async def recorder(world):
    recorder = world.build()
    async with running(recorder):
        yield recorder


async def test_it_is_what_a_hold_writes_to(recorder, autojump_clock):
    writer: Writer = recorder
    writer.reserve(2)
    assert writer.write(attempt(1), reserved=True) == 1
    writer.release(1)
    await writer.durable(1)


async def test_what_is_durable_is_on_the_platter_and_marked(world, recorder, autojump_clock):
    seq = recorder.write(wallet())
    assert recorder.oldest_unsynced_seconds == 0.0
    await recorder.durable(seq)
    (path,) = paths(world.disk)
    assert b'"Ada"' in world.disk.names_now[path].platter
    assert b'"t":"M"' in world.disk.content(path)
    assert recorder.health().synced == 1


async def test_a_record_is_in_the_journal_when_write_returns(world, recorder, autojump_clock):
    recorder.write(wallet())
    assert records(world.disk) == [(1, wallet())]


async def test_all_that_is_written_while_a_sync_runs_shares_the_next(world, recorder, autojump_clock):
    world.sync_seconds = 1.0
    first = recorder.write(wallet())
    await trio.sleep(0.5)
    later = [recorder.write(record) for record in [grant(), *calls(20)]]
    async with trio.open_nursery() as nursery:
        for seq in (first, *later):
            nursery.start_soon(recorder.durable, seq)
    assert world.syncs() == 2
    assert trio.current_time() == pytest.approx(2.0)


async def test_a_waiter_is_released_by_the_sync_that_covers_it_and_not_before(
    world, recorder, autojump_clock
):
    world.sync_seconds = 1.0
    recorder.write(wallet())
    await trio.sleep(0.5)
    seq = recorder.write(grant())
    with trio.move_on_after(1.2) as early:
        await recorder.durable(seq)
    assert early.cancelled_caught
    await recorder.durable(seq)
    assert trio.current_time() == pytest.approx(2.0)


async def test_nothing_is_synced_while_nothing_is_written(world, recorder, autojump_clock):
    await recorder.durable(recorder.write(wallet()))
    await trio.sleep(1000)
    assert world.syncs() == 1


async def test_what_is_durable_already_is_not_waited_for(recorder, autojump_clock):
    await recorder.durable(recorder.write(wallet()))
    before = trio.current_time()
    await recorder.durable(1)
    assert trio.current_time() == before


async def test_syncs_come_no_closer_than_they_are_told_to(world, autojump_clock):
    recorder = world.build(sync_seconds=0.5)
    async with running(recorder):
        for record in [wallet(), grant(), *calls(25)]:
            recorder.write(record)
            await trio.sleep(0.05)
        assert world.syncs() == pytest.approx(52 * 0.05 / 0.5, abs=1)
        seq = recorder.write(attempt(99))
        before = trio.current_time()
        await recorder.durable(seq)  # who waits, waits for that sync
        assert 0 < trio.current_time() - before < 0.51
        await trio.sleep(10)
        before = trio.current_time()
        await recorder.durable(recorder.write(attempt(100)))  # long after the last one: at once
        assert trio.current_time() - before < 0.01


async def test_closing_does_not_wait_for_the_next_sync_to_be_due(world, autojump_clock):
    recorder = world.build(sync_seconds=3600.0)
    async with running(recorder):
        await recorder.durable(recorder.write(wallet()))
        recorder.write(grant())
        await trio.sleep(1)
        recorder.close()
    assert trio.current_time() < 2
    assert read(world.disk).synced_upto == 2


# -- loading ---------------------------------------------------------------------------------------------


async def test_what_is_synced_is_loaded_within_a_second_in_order_and_once(world, recorder, autojump_clock):
    written = [wallet(), grant(), *calls(10)]
    for record in written:
        recorder.write(record)
        await trio.sleep(0.1)
    await trio.sleep(1)
    assert world.store.loaded == list(enumerate(written, 1))
    assert (recorder.loaded, recorder.unloaded) == (22, 0)


async def test_only_what_is_synced_is_loaded(world, recorder, autojump_clock):
    world.sync_seconds = 30.0
    recorder.write(wallet())
    await trio.sleep(29)
    assert world.store.loaded == []
    await trio.sleep(2)
    assert world.store.loaded == [(1, wallet())]


async def test_a_slice_is_no_longer_than_it_may_be(world, autojump_clock):
    recorder = world.build(load_records_max=7)
    async with running(recorder):
        for record in [wallet(), grant(), *calls(10)]:
            recorder.write(record)
        await recorder.flush()
        assert world.store.slices == [7, 7, 7, 1]
        assert trio.current_time() < 1


async def test_what_comes_during_a_load_waits_for_the_next_one_in_its_time(world, autojump_clock):
    """Each costs the same whether it brings one record or a thousand: under traffic they must not follow at once."""
    world.store.seconds = 0.25
    recorder = world.build(load_seconds=0.5)
    async with running(recorder):
        recorder.write(wallet())
        for number in range(40):
            recorder.write(grant(number))
            await trio.sleep(0.1)
        assert 4 <= len(world.store.slices) <= 7


async def write_in_time(recorder):
    """Twenty records in every half second, for four."""
    entries = [wallet(), grant(), *calls(79)]
    for start in range(0, len(entries), 10):
        for record in entries[start : start + 10]:
            recorder.write(record)
        await trio.sleep(0.25)


async def test_what_is_to_be_loaded_waits_for_its_time(world, autojump_clock):
    world.segment_bytes = 2**18
    recorder = world.build(load_seconds=2.0)
    async with running(recorder):
        await write_in_time(recorder)
        assert len(world.store.slices) <= 2
        await trio.sleep(2)
        assert world.store.loaded[-1][0] == recorder.journal.seq


async def test_where_refusals_come_near_it_does_not_wait(world, autojump_clock):
    world.segment_bytes = 2**18
    recorder = world.build(load_seconds=3600.0, unloaded_max=50)
    async with running(recorder):
        await write_in_time(recorder)
        assert len(world.store.slices) >= 3
        assert recorder.journal.seq - recorder.loaded <= 30


async def test_a_store_that_fails_is_not_tried_again_with_every_sync(world, autojump_clock):
    world.segment_bytes = 2**18
    recorder = world.build(load_seconds=0.5, unloaded_max=200)
    world.store.error = RuntimeError("broken")
    async with running(recorder):
        await write_in_time(recorder)
        assert world.store.reopened <= 4, "after a quarter of a second, half of one, one, two"
        world.store.error = None
        await recorder.flush()


async def test_what_was_loaded_is_forgotten_in_parts_and_others_run_in_between(
    world, autojump_clock, monkeypatch
):
    monkeypatch.setattr(recorder_module, "FORGOTTEN_AT_ONCE", 5)
    recorder, lengths = world.build(), []

    class Look(trio.abc.Instrument):
        def after_task_step(self, _task):
            lengths.append(sum(1 for _ in recorder.unloaded_usage()))

    async with running(recorder):
        for record in calls(10):
            recorder.write(record)
        trio.lowlevel.add_instrument(look := Look())
        await recorder.flush()
        trio.lowlevel.remove_instrument(look)
    assert lengths[-1] == 0
    assert 5 in lengths, "some, and not only all or none"


async def test_what_is_on_the_platter_is_not_waited_for(recorder, autojump_clock):
    await recorder.durable(recorder.write(wallet()))
    with assert_no_checkpoints():
        await recorder.durable(1)


async def test_the_tail_that_is_not_loaded_answers_for_a_request(world, recorder, autojump_clock):
    world.store.seconds = 5.0
    recorder.write(attempt(1))
    recorder.write(settled(1, 0))
    recorder.write(attempt(1, 2))
    recorder.write(settled(1, 9, number=2))
    recorder.write(settled(2))
    assert recorder.usage_of("r1") == (settled(1, 0), settled(1, 9, number=2))
    assert list(recorder.unloaded_usage()) == [
        (2, settled(1, 0)),
        (4, settled(1, 9, number=2)),
        (5, settled(2)),
    ]
    await recorder.flush()
    assert recorder.usage_of("r1") == ()
    assert list(recorder.unloaded_usage()) == []


async def test_a_load_of_five_seconds_delays_no_sync(world, autojump_clock):
    world.segment_bytes = 2**15
    recorder = world.build()
    async with running(recorder):
        world.store.seconds = 5.0
        await recorder.durable(recorder.write(wallet()))
        await trio.sleep(1)  # the load is under way now
        for record in calls(20):
            before = trio.current_time()
            await recorder.durable(recorder.write(record))
            assert trio.current_time() - before < 0.01
        assert recorder.unloaded == 41
        await trio.sleep(20)
        assert recorder.unloaded == 0


async def test_a_store_that_fails_is_reopened_and_loading_goes_on(world, recorder, autojump_clock):
    world.store.error = RuntimeError("disk full")
    for record in [wallet(), grant()]:
        await recorder.durable(recorder.write(record))
    await trio.sleep(2)
    assert "disk full" in recorder.health().store_error
    assert recorder.failed is None
    assert ("store_failed", BACKOFF_SECONDS[0]) in [
        (event, fields["pause_seconds"]) for event, fields in world.events
    ]
    await recorder.durable(recorder.write(attempt(1)))
    world.store.error = None
    await trio.sleep(BACKOFF_SECONDS[1] + 1)
    assert len(world.store.loaded) == 3
    assert recorder.health().store_error is None


async def test_a_commit_that_failed_and_yet_succeeded_is_not_repeated(world, recorder, autojump_clock):
    world.store.error = RuntimeError("COMMIT succeeded, the checkpoint failed")
    world.store.committed_before_error = True
    for record in [wallet(), grant(), *calls(3)]:
        recorder.write(record)
    await trio.sleep(2)
    assert world.store.reopened == 1
    assert [seq for seq, _ in world.store.loaded] == list(range(1, 9))


async def test_a_store_that_stays_broken_is_asked_less_and_less_often(world, recorder, autojump_clock):
    world.store.error = RuntimeError("broken")
    recorder.write(wallet())
    await trio.sleep(100)
    assert world.store.reopened < 20
    with pytest.raises(Overloaded, match="broken"):
        await recorder.flush()


# -- bounds ----------------------------------------------------------------------------------------------


async def test_records_that_wait_for_the_store_close_the_door_at_their_bound(world, autojump_clock):
    recorder = world.build(unloaded_max=10)
    async with running(recorder):
        world.store.error = RuntimeError("broken")
        recorder.reserve(4)
        for record in [wallet(), grant(), attempt(1), attempt(2), attempt(3), attempt(4)]:
            recorder.write(record)
        with pytest.raises(Overloaded, match="wait for the store", check=triggered("unloaded")):
            recorder.write(progress(1))
        with pytest.raises(Overloaded, match="wait for the store", check=triggered("unloaded")):
            recorder.reserve(1)
        for request in (1, 2, 3, 4):
            recorder.write(settled(request), reserved=True)
        await recorder.durable(10)
        world.store.error = None
        await trio.sleep(BACKOFF_SECONDS[1] * 2)
        recorder.reserve(1)


async def test_a_disk_that_takes_too_long_closes_the_door(world, recorder, autojump_clock):
    world.sync_seconds = 60.0
    recorder.reserve(1)
    recorder.write(wallet())
    await trio.sleep(9)
    recorder.reserve(1)
    await trio.sleep(2)
    assert recorder.oldest_unsynced_seconds == pytest.approx(11)
    with pytest.raises(Overloaded, match="too slow", check=triggered("unsynced")):
        recorder.reserve(1)
    recorder.write(attempt(1), reserved=True)
    await recorder.durable(2)
    recorder.reserve(1)


async def test_a_journal_without_room_closes_the_door_until_its_spare_is_there(world, autojump_clock):
    world.segment_bytes = 2**16
    recorder = world.build()
    async with running(recorder):
        world.disk.capacity = 0
        while recorder.journal._file.offset < 2**14 * 3:
            await recorder.durable(recorder.write(settled(1)))
        taken = 0
        while recorder.journal._fits(taken + 1):
            recorder.reserve(1)
            taken += 1
        with pytest.raises(Overloaded, match="no room", check=triggered("journal")):
            recorder.reserve(1)
        await trio.sleep(1)
        assert ("journal_chore_failed", errno.ENOSPC) in [(event, errno.ENOSPC) for event, _ in world.events]
        with pytest.raises(Overloaded, match="no room", check=triggered("journal")):
            recorder.reserve(1)
        world.disk.capacity = 2**40
        await trio.sleep(BACKOFF_SECONDS[1] * 2)
        recorder.reserve(1)
        assert taken


# -- failing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
async def test_a_disk_that_goes_on_failing_ends_every_promise(world, autojump_clock, operation):
    recorder = world.build()
    async with running(recorder, ends=BooksFailed) as nursery:
        recorder.reserve(2)
        await recorder.durable(recorder.write(wallet()))
        world.sync_seconds = 1.0
        world.disk.before = fails(operation, times=ALWAYS)
        if operation == "fdatasync":
            seq = recorder.write(grant())
            with pytest.raises(Overloaded, match="failed", check=triggered("failed")):
                await recorder.durable(seq)
        else:
            with pytest.raises(Overloaded, match="failed", check=triggered("failed")):
                recorder.write(grant())
        await recorder.wait_failed()
        world.disk.before = None
        assert "provoked" in recorder.health().failed
        for refused in (
            lambda: recorder.reserve(1),
            lambda: recorder.write(attempt(1)),
            lambda: recorder.write(attempt(1), reserved=True),
        ):
            with pytest.raises(Overloaded, match="failed", check=triggered("failed")):
                refused()
        await recorder.durable(1)
        with pytest.raises(Overloaded, match="failed", check=triggered("failed")):
            await recorder.durable(2)
        assert recorder.journal.reserved == 2
        recorder.close()
        nursery.cancel_scope.cancel()  # no effect: it ends by itself
    assert [event for event, _ in world.events] == ["books_failed"]
    assert read(world.disk).synced_upto == 1
    assert world.store.loaded == [(1, wallet())]


async def test_everybody_who_waits_learns_of_it(world, autojump_clock):
    recorder = world.build()
    world.sync_seconds = 1.0
    learned = []

    async def wait(seq):
        with pytest.raises(Overloaded):
            await recorder.durable(seq)
        learned.append(seq)

    async with running(recorder, ends=BooksFailed) as nursery:
        recorder.write(wallet())
        nursery.start_soon(wait, 1)
        await trio.sleep(0.5)
        recorder.write(grant())
        nursery.start_soon(wait, 2)
        world.disk.before = fails("fdatasync", times=ALWAYS)
        await recorder.wait_failed()
        recorder.close()
    assert sorted(learned) == [1, 2]


async def test_a_dead_recorder_is_failed_books(world, autojump_clock):
    recorder = world.build()

    async def breaks(work):
        raise LookupError("a fault of ours")

    recorder.run_in_thread = breaks
    async with running(recorder, ends=ExceptionGroup):
        seq = recorder.write(wallet())
        with pytest.raises(Overloaded):
            await recorder.durable(seq)
    assert "a fault of ours" in repr(recorder.failed.exceptions)
    with pytest.raises(Overloaded):
        recorder.reserve(1)


# -- going on after an error -------------------------------------------------------------------------------


async def test_who_waits_is_let_go_by_a_sync_of_the_new_file_alone(world, recorder, autojump_clock):
    world.sync_seconds = 1.0
    freed = []

    async def wait(seq):
        await recorder.durable(seq)
        freed.append((seq, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, recorder.write(wallet()))
        await trio.sleep(0.5)
        nursery.start_soon(wait, recorder.write(grant()))
        world.disk.before = fails("fdatasync")  # of the sync that is over in half a second
    assert freed == [(1, pytest.approx(2.0)), (2, pytest.approx(3.0))]
    assert recorder.health().written_on == 1
    assert [event for event, _ in world.events] == ["journal_written_on"]
    assert "provoked" in world.events[0][1]["error"]


async def test_an_error_of_a_write_while_a_sync_runs_is_answered_by_another_sync(
    world, recorder, autojump_clock
):
    world.sync_seconds = 1.0
    first = recorder.write(wallet())
    await trio.sleep(0.5)
    world.disk.before = fails("pwrite")
    second = recorder.write(grant())
    await recorder.durable(first)
    assert trio.current_time() == pytest.approx(2.0)
    await recorder.durable(second)
    disk = world.disk.copy()
    disk.lose_power(seeded(1))
    assert records(disk) == [(1, wallet()), (2, grant())]
    assert recorder.failed is None


async def test_an_error_changes_nothing_for_the_store(world, autojump_clock):
    world.segment_bytes = 2**15
    recorder = world.build()
    written = [wallet(), grant(), *calls(60)]
    async with running(recorder):
        for number, record in enumerate(written):
            if number % 7 == 0:
                world.disk.before = fails(["pwrite", "fdatasync", "sync_dir", "rename"][number % 4])
            await recorder.durable(recorder.write(record))
        await recorder.flush()
    assert world.store.loaded == list(enumerate(written, 1)) == records(world.disk)
    assert recorder.health().written_on > 5


# -- the archive -------------------------------------------------------------------------------------------


async def test_segments_go_into_the_archive_once_the_store_has_them_and_not_before(world, autojump_clock):
    world.segment_bytes = 2**15
    recorder = world.build()
    async with running(recorder):
        world.store.error = RuntimeError("broken")
        for record in [wallet(), grant(), *calls(100)]:
            await recorder.durable(recorder.write(record))
        await trio.sleep(5)
        suffixes = [path.suffix for path in paths(world.disk)]
        assert suffixes.count(".ndjson") >= 3
        assert ".gz" not in suffixes
        world.store.error = None
        await trio.sleep(BACKOFF_SECONDS[1] * 2)
        assert {path.suffix for path in paths(world.disk)[:-1]} == {".gz"}
        assert len(records(world.disk)) == 202


async def test_an_archive_that_cannot_be_written_is_tried_again_and_harms_nothing(world, autojump_clock):
    world.segment_bytes = 2**15
    recorder = world.build()
    async with running(recorder):

        def before(operation, path):
            if operation == "create" and path.name.startswith("00000001" + PACKED):
                raise OSError(errno.ENOSPC, "no space left on device")

        world.disk.before = before
        for record in [wallet(), grant(), *calls(100)]:
            await recorder.durable(recorder.write(record))
        await trio.sleep(30)
        assert [path.suffix for path in paths(world.disk)][:3] == [".ndjson", ".gz", ".gz"]
        failures = [fields for event, fields in world.events if event == "archive_failed"]
        assert 3 < len(failures) < 10
        world.disk.before = None
        await trio.sleep(BACKOFF_SECONDS[1] + 1)
        assert paths(world.disk)[0].suffix == ".gz"


async def test_what_earlier_processes_have_sealed_is_archived_too(world, autojump_clock):
    world.segment_bytes = 2**15
    journal = rolled(world.disk, wallet(), grant())
    sync(journal)
    housekeep(journal)
    journal.close()
    assert [path.suffix for path in paths(world.disk)] == [".ndjson", ".ndjson"]
    world.store.loaded = records(world.disk)
    recorder = world.build(again=True)
    async with running(recorder):
        await trio.sleep(1)
        assert [path.suffix for path in paths(world.disk)] == [".gz", ".gz", ".open"]
    assert len(records(world.disk)) == len(world.store.loaded)


# -- stopping --------------------------------------------------------------------------------------------


async def test_closing_brings_everything_to_the_platter_and_the_store_and_seals(world, autojump_clock):
    recorder = world.build(load_records_max=3)
    world.sync_seconds = 0.5
    written = [wallet(), grant(), *calls(5)]
    async with running(recorder):
        for record in written:
            recorder.write(record)
        recorder.close()
    assert world.store.loaded == list(enumerate(written, 1))
    (path,) = paths(world.disk)
    assert path.suffix == ".ndjson"
    assert read(world.disk).synced_upto == len(written)
    with pytest.raises(Overloaded, match="closed", check=triggered("closed")):
        recorder.write(wallet())
    with pytest.raises(Overloaded, match="closed", check=triggered("closed")):
        recorder.reserve(1)
    await recorder.durable(len(written))


async def test_a_reserved_write_after_closing_is_refused_before_it_is_in_the_journal(world, autojump_clock):
    recorder = world.build()
    async with running(recorder):
        recorder.reserve(1)
        recorder.close()
        with pytest.raises(Overloaded, match="closed", check=triggered("closed")):
            recorder.write(wallet(), reserved=True)
    assert records(world.disk) == []


async def test_a_cancelled_recorder_goes_on_until_it_is_closed(world, autojump_clock):
    recorder = world.build()
    with trio.CancelScope() as scope:
        async with running(recorder):
            scope.cancel()
            with trio.CancelScope(shield=True):
                await recorder.durable(recorder.write(wallet()))
                await trio.sleep(5)
                await recorder.durable(recorder.write(grant()))
            recorder.close()
    assert len(world.store.loaded) == 2


async def test_a_store_that_is_broken_does_not_keep_the_recorder_from_stopping(world, autojump_clock):
    recorder = world.build()
    world.store.error = RuntimeError("broken")
    async with running(recorder):
        recorder.write(wallet())
        recorder.close()
    assert world.store.reopened <= STOP_TRIES
    assert read(world.disk).synced_upto == 1


async def test_segments_are_sealed_and_spares_made_as_it_goes_on(world, autojump_clock):
    world.segment_bytes = 2**15
    recorder = world.build()
    async with running(recorder):
        for record in [wallet(), grant(), *calls(100)]:
            await recorder.durable(recorder.write(record))
        await recorder.flush()
        await trio.sleep(1)
        assert [path.suffix for path in paths(world.disk)].count(".gz") >= 3
        assert read(world.disk).last_seq == 202


async def test_ids_of_places_balance_over_reserve_release_and_write(recorder, autojump_clock):
    recorder.reserve(3)
    recorder.write(attempt(1), reserved=True)
    recorder.release(1)
    assert recorder.health().reserved == 1
    assert not math.isnan(recorder.health().unsynced_seconds)
