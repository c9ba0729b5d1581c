"""Work in the background: in threads that give way, waited for to its end, whatever becomes of who asked."""

import os
import sys
import threading

import pytest
import trio

from proxy.background import NICENESS, NICEST, Background


@pytest.fixture
def background():
    with Background(2) as made:
        yield made


def priority():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
async def test_its_threads_give_way_and_others_do_not(background):
    before = priority()
    assert await background.run(priority) == min(before + NICENESS, NICEST)
    assert priority() == await trio.to_thread.run_sync(priority) == before


async def test_what_is_raised_comes_out(background):
    with pytest.raises(ZeroDivisionError):
        await background.run(lambda: 1 // 0)
    assert await background.run(lambda: 7) == 7


async def test_the_loop_goes_on_meanwhile(background):
    other, turns = threading.Event(), []
    async with trio.open_nursery() as nursery:

        async def turn():
            turns.append(1)
            other.set()

        nursery.start_soon(turn)
        assert await background.run(lambda: other.wait(10))
    assert turns


async def test_what_has_begun_is_waited_for_and_what_has_not_is_not_begun(background):
    begun, ended = threading.Event(), []

    def work():
        begun.set()
        threading.Event().wait(0.05)
        ended.append(1)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background.run, work)
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()
    assert ended == [1]
    with trio.CancelScope() as late:
        late.cancel()
        await background.run(work)
    assert ended == [1]


async def test_no_more_threads_than_it_was_given(background):
    running, most = [], []

    def work():
        running.append(1)
        most.append(len(running))
        threading.Event().wait(0.02)
        running.pop()

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(background.run, work)
    assert len(most) == 8
    assert max(most) <= 2
