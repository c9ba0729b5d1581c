"""Who waits for bytes is woken when there are some, in time, and never for another's."""

import os
import select
import socket

import pytest
import trio
import trio.testing

from proxy import readiness as module
from proxy.readiness import EpollReadiness, TrioReadiness, readiness

EPOLL = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


@pytest.fixture(params=[pytest.param("epoll", marks=EPOLL), "trio"])
async def ways(request, monkeypatch):
    """Both ways of waiting."""
    if request.param == "trio":
        monkeypatch.delattr(select, "epoll")
    kind = EpollReadiness if request.param == "epoll" else TrioReadiness
    assert isinstance(readiness(), kind)
    return request.param


@pytest.fixture
def pair():
    """Two ends of a connection over loopback: ours, and the other side's."""
    listener = socket.create_server(("127.0.0.1", 0))
    made = [listener]

    def connect():
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        ours.setblocking(False)
        made.extend([theirs, ours])
        return ours, theirs

    yield connect
    for sock in made:
        sock.close()


async def drained(watch, ours):
    """Wait for bytes and take them all."""
    with trio.fail_after(2):
        assert await watch.wait()
    return taken(watch, ours)


def taken(watch, ours):
    """What is there, without waiting; the watch is as after a read that took all of it."""
    try:
        data = ours.recv(1000)
    except BlockingIOError:
        data = None
    watch.drained()
    return data


async def test_bytes_are_waited_for_and_found(ways, pair):
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    found = []

    async def read():
        while len(found) < 3:
            if (data := await drained(watch, ours)) is not None:
                found.append(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for word in (b"one", b"two", b"three"):
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(word)
            with trio.fail_after(2):
                while word not in found:
                    await trio.sleep(0.001)
    watch.forget()


async def test_what_came_before_the_watch_is_found_too(ways, pair):
    ours, theirs = pair()
    theirs.sendall(b"early")
    watch = readiness().watch(ours.fileno())
    assert await drained(watch, ours) == b"early"
    watch.forget()


@EPOLL
async def test_a_socket_that_was_drained_is_not_asked_again_before_there_is_more(pair):
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    theirs.sendall(b"x")
    await drained(watch, ours)
    with trio.fail_after(2):
        while watch.readable:
            assert taken(watch, ours) is None  # the kernel's word of the first byte came late
            await trio.testing.wait_all_tasks_blocked()
    assert not watch.readable
    theirs.sendall(b"y")
    with trio.fail_after(2):
        while not watch.readable:
            await trio.sleep(0.001)
    watch.forget()


@EPOLL
@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_an_end_stays_readable_however_often_it_is_drained(pair, how):
    """The end may come together with bytes: a short read is then not the last."""
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    if how == "reset":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    else:
        theirs.sendall(b"last words")
    theirs.shutdown(socket.SHUT_WR) if how == "half-close" else theirs.close()
    seen = []
    with trio.fail_after(2):
        while not seen or seen[-1] not in (b"", "reset"):
            assert await watch.wait()
            try:
                seen.append(ours.recv(1000))
            except BlockingIOError:
                seen.append(None)
            except OSError:
                seen.append("reset")
            watch.drained()
        while not watch.readable:  # where the end was read before the kernel's word of it came
            await trio.sleep(0.001)
    watch.drained()
    assert watch.readable
    assert b"".join(one for one in seen if isinstance(one, bytes)) == (
        b"" if how == "reset" else b"last words"
    )
    watch.forget()


async def test_a_wait_ends_when_its_time_is_over_and_the_next_is_a_new_one(ways, pair, autojump_clock):
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    assert taken(watch, ours) is None
    began = trio.current_time()
    assert not await watch.wait(began + 5)
    assert not await watch.wait(began + 7)
    assert trio.current_time() - began == pytest.approx(7)
    assert not await watch.wait(began + 6)  # which is over
    theirs.sendall(b"x")
    assert await watch.wait(began + 1e6)
    watch.forget()


@EPOLL
async def test_the_time_of_a_wait_that_was_not_needed_wakes_no_later_one(pair, autojump_clock):
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    theirs.sendall(b"x")
    await drained(watch, ours)
    began = trio.current_time()
    with trio.move_on_after(1):
        await watch.wait(began + 5)
    while watch.readable:
        assert taken(watch, ours) is None
        await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(60) as patience:
        await watch.wait()
    assert patience.cancelled_caught
    watch.forget()


async def test_a_wait_may_be_ended_and_cancelled(ways, pair):
    ours, _theirs = pair()
    watch = readiness().watch(ours.fileno())
    assert taken(watch, ours) is None
    watch.wake()  # nobody waits: nothing happens
    results = []

    async def wait():
        results.append(await watch.wait())

    for end in (watch.wake, None):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            if end is None:
                nursery.cancel_scope.cancel()
            else:
                end()
    assert results == [False]
    watch.forget()


async def test_whoever_waits_is_told_when_the_socket_is_forgotten(ways, pair):
    ours, _theirs = pair()
    watch = readiness().watch(ours.fileno())
    assert taken(watch, ours) is None
    told = []

    async def wait():
        with pytest.raises(trio.ClosedResourceError):
            await watch.wait()
        told.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        watch.forget()
        watch.forget()
    assert told == [1]
    assert watch.readable
    with pytest.raises(trio.ClosedResourceError):
        await watch.wait()


async def test_a_descriptor_that_is_used_again_is_not_the_old_socket(ways, pair):
    """Bytes that had come for the old one are not told to whoever has its number now."""
    ours, theirs = pair()
    number = ours.fileno()
    old = readiness().watch(number)
    assert taken(old, ours) is None
    theirs.sendall(b"for the old one")
    old.forget()
    fresh, _other = pair()
    os.dup2(fresh.fileno(), number)
    new = readiness().watch(number)
    assert taken(new, fresh) is None
    assert not await new.wait(trio.current_time() + 0.01)
    new.forget()


@EPOLL
async def test_many_sockets_are_told_apart(pair):
    made = [pair() for _ in range(200)]
    watches = [readiness().watch(ours.fileno()) for ours, _ in made]
    woken = []

    async def wait(number):
        ours = made[number][0]
        while (data := await drained(watches[number], ours)) is None:
            pass
        woken.append((number, data))

    async with trio.open_nursery() as nursery:
        for number in range(len(made)):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        for number, (_, theirs) in enumerate(made):
            theirs.sendall(b"%d" % number)
    assert sorted(woken) == [(number, b"%d" % number) for number in range(len(made))]
    for watch in watches:
        watch.forget()
    assert not readiness()._watches


def test_each_run_has_its_own_set():
    async def one():
        first = readiness()
        assert readiness() is first
        return first

    assert trio.run(one) is not trio.run(one)


def test_nothing_is_left_open_after_a_run():
    async def main():
        made = readiness()
        with trio.move_on_after(0.01):
            await trio.sleep_forever()
        return made

    made = trio.run(main)
    if isinstance(made, module.EpollReadiness):
        assert made._epoll.closed


# -- what is done while somebody waits ---------------------------------------------------------------


def reading(ours, watch, seen, last=b"end"):
    """Reads all that is there, and ends the wait at a last word."""

    def meanwhile():
        while (data := taken(watch, ours)) is not None:
            seen.append((data, trio.lowlevel.current_task().name))
            if data.endswith(last):
                return True
        return False

    return meanwhile


@EPOLL
async def test_bytes_are_dealt_with_without_waking_who_waits(pair):
    ours, theirs = pair()
    watch, seen, woken = readiness().watch(ours.fileno()), [], []
    taken(watch, ours)

    async def wait():
        woken.append(await watch.wait(meanwhile=reading(ours, watch, seen)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for number in range(5):
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(b"%d" % number)
            with trio.fail_after(2):
                while len(seen) <= number:
                    await trio.sleep(0.001)
            assert not woken
        theirs.sendall(b"end")
    assert woken == [True]
    assert [data for data, _ in seen] == [b"0", b"1", b"2", b"3", b"4", b"end"]
    assert not any("wait" in name for _, name in seen)  # another task's
    watch.forget()


@EPOLL
async def test_what_goes_wrong_meanwhile_is_raised_where_somebody_waits(pair):
    ours, theirs = pair()
    others, their_other = pair()
    watch, other = readiness().watch(ours.fileno()), readiness().watch(others.fileno())
    taken(watch, ours), taken(other, others)

    def fail():
        raise KeyError("ours")

    async def wait():
        with pytest.raises(KeyError, match="ours"):
            await watch.wait(meanwhile=fail)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        theirs.sendall(b"x")
    their_other.sendall(b"y")
    assert await drained(other, others) == b"y"  # nobody else is the worse for it
    watch.forget(), other.forget()


@EPOLL
async def test_the_next_wait_does_nothing_meanwhile_unless_it_says_so(pair):
    ours, theirs = pair()
    watch, seen = readiness().watch(ours.fileno()), []
    taken(watch, ours)
    assert not await watch.wait(trio.current_time() + 0.01, reading(ours, watch, seen))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.wait)
        await trio.testing.wait_all_tasks_blocked()
        theirs.sendall(b"x")
    assert seen == []
    assert taken(watch, ours) == b"x"
    watch.forget()


@EPOLL
@pytest.mark.parametrize("how", ["cancel", "forget"])
async def test_whoever_waits_may_be_cancelled_and_forgotten_by_what_is_done_meanwhile(pair, how):
    ours, theirs = pair()
    watch, scope, ended = readiness().watch(ours.fileno()), trio.CancelScope(), []
    taken(watch, ours)

    def meanwhile():
        scope.cancel() if how == "cancel" else watch.forget()
        return how == "forget"  # the wait is over anyway

    async def wait():
        with scope:
            try:
                await watch.wait(meanwhile=meanwhile)
            except trio.ClosedResourceError:
                ended.append("closed")
        if scope.cancelled_caught:
            ended.append("cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        theirs.sendall(b"x")
    assert ended == ["closed" if how == "forget" else "cancelled"]
    watch.forget()


@EPOLL
async def test_who_is_woken_while_it_need_not_wait_is_told(pair, monkeypatch):
    """The next wait would last for ever: the alarm that has rung does not ring again."""
    ours, theirs = pair()
    watch = readiness().watch(ours.fileno())
    theirs.send(b"x")
    checkpoint = trio.lowlevel.checkpoint

    async def wake_meanwhile():
        watch.wake()
        await checkpoint()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", wake_meanwhile)
    assert watch.readable
    assert not await watch.wait()
    monkeypatch.undo()
    assert await watch.wait()
    watch.forget()
