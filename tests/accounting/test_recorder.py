import errno
import math

import pytest
import trio
from trio.testing import assert_no_checkpoints

from accounting.journal import BooksFailed
from accounting.ports import Overloaded, Writer
from accounting.recorder import BACKOFF_SECONDS, STOP_TRIES
from tests.accounting.journal_fakes import (
    ALWAYS,
    attempt,
    calls,
    fails,
    grant,
    paths,
    progress,
    read,
    records,
    seeded,
    settled,
    wallet,
)
from tests.accounting.recorder_fakes import running, triggered


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


async def test_what_is_on_the_platter_is_not_waited_for(recorder, autojump_clock):
    await recorder.durable(recorder.write(wallet()))
    with assert_no_checkpoints():
        await recorder.durable(1)


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
