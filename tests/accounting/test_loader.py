import errno

import pytest
import trio

from accounting import recorder as recorder_module
from accounting.ports import Overloaded
from accounting.recorder import BACKOFF_SECONDS
from accounting.segment import PACKED
from tests.accounting.journal_fakes import (
    attempt,
    calls,
    grant,
    housekeep,
    paths,
    records,
    rolled,
    settled,
    sync,
    wallet,
)
from tests.accounting.recorder_fakes import running


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
