"""Clients who leave are told to whom they belong, and to nobody who has their descriptor now."""

import os
import select
import socket

import pytest
import trio
import trio.testing

from proxy.doors import hangups as module
from proxy.doors.hangups import EpollHangups, PeekingHangups, hangups

KINDS = [
    pytest.param(
        EpollHangups, marks=pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
    ),
    PeekingHangups,
]


@pytest.fixture(params=KINDS)
async def watcher(request, nursery):
    one = request.param(pytest.fail)
    nursery.start_soon(one.run)
    await trio.testing.wait_all_tasks_blocked()
    return one


@pytest.fixture
async def pair():
    """Two ends of a connection over loopback: ours, and the client's."""
    listener = socket.create_server(("127.0.0.1", 0))
    made = []

    def connect():
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        ours.setblocking(False)
        made.extend([client, ours])
        return trio.socket.from_stdlib_socket(ours), client

    yield connect
    for sock in [listener, *made]:
        sock.close()


async def until(condition):
    with trio.fail_after(2):
        while not condition():
            await trio.sleep(0.001)


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_a_client_that_leaves_is_noticed(watcher, pair, how):
    told = []
    ours, client = pair()
    other, _stays = pair()
    watcher.add(ours, lambda: told.append("ours"))
    watcher.add(other, lambda: told.append("other"))
    watcher.watch(ours)
    watcher.watch(other)
    await trio.testing.wait_all_tasks_blocked()
    assert told == []
    if how == "half-close":
        client.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
        client.close()
    await until(lambda: told)
    assert set(told) == {"ours"}
    watcher.remove(ours)
    watcher.remove(other)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
async def test_a_connection_that_the_system_has_no_room_for_can_be_removed_all_the_same(pair):
    watcher, (ours, _client) = EpollHangups(pytest.fail), pair()
    watcher._epoll.close()  # it refuses everything from now on
    with pytest.raises(ValueError, match="closed"):
        watcher.add(ours, lambda: None)
    watcher.remove(ours)


async def test_a_client_that_sends_has_not_left(watcher, pair):
    told = []
    ours, client = pair()
    watcher.add(ours, lambda: told.append(1))
    watcher.watch(ours)
    client.send(b"GET / HTTP/1.1\r\n")
    with trio.move_on_after(0.05):
        await trio.sleep_forever()
    watcher.unwatch(ours)
    assert await ours.recv(100) == b"GET / HTTP/1.1\r\n"
    assert told == []
    watcher.remove(ours)


async def test_whoever_was_removed_is_not_told(watcher, pair):
    told = []
    ours, client = pair()
    watcher.add(ours, lambda: told.append(1))
    watcher.watch(ours)
    client.close()
    watcher.remove(ours)
    with trio.move_on_after(0.05):
        await trio.sleep_forever()
    assert told == []


async def test_a_reused_descriptor_is_never_taken_for_the_old_one(watcher, pair):
    """The first client leaves, its connection is closed before that was told, and the next one gets its number."""
    for _ in range(20):
        told = []
        old, leaving = pair()
        number = old.fileno()
        watcher.add(old, lambda told=told: told.append("old"))
        watcher.watch(old)
        leaving.close()
        watcher.remove(old)
        old.close()
        new, stays = pair()
        if new.fileno() != number:  # somebody else was quicker
            new = trio.socket.from_stdlib_socket(moved(new, number))
        assert new.fileno() == number
        watcher.add(new, lambda told=told: told.append("new"))
        watcher.watch(new)
        with trio.move_on_after(0.01):
            await trio.sleep_forever()
        assert told == []
        stays.close()
        await until(lambda told=told: told)
        assert set(told) == {"new"}
        watcher.remove(new)
        new.close()


def moved(sock, number):
    os.dup2(sock.fileno(), number)
    sock.close()
    moved = socket.socket(fileno=number)
    moved.setblocking(False)
    return moved


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
async def test_one_who_is_closed_by_anothers_hang_up_is_not_told_any_more(nursery, pair):
    """Both leave before anybody looks; telling the first closes the second."""
    watcher, told = EpollHangups(pytest.fail), []
    ends = [pair() for _ in range(2)]

    def left(number):
        told.append(number)
        watcher.remove(ends[1 - number][0])
        ends[1 - number][0].close()

    for number, (ours, _) in enumerate(ends):
        watcher.add(ours, lambda number=number: left(number))
    for _, client in ends:
        client.close()
    watcher.dispatch()
    watcher.dispatch()
    assert len(told) == 1
    watcher._epoll.close()


async def test_one_callback_that_fails_deafens_nobody(nursery, pair):
    for kind in (EpollHangups, PeekingHangups):
        failed, told = [], []
        watcher = kind(failed.append)
        nursery.start_soon(watcher.run)
        await trio.testing.wait_all_tasks_blocked()
        first, second = pair(), pair()
        watcher.add(first[0], lambda: 1 / 0)
        watcher.add(second[0], lambda told=told: told.append(1))
        watcher.watch(first[0])
        watcher.watch(second[0])
        first[1].close()
        await until(lambda failed=failed: failed)
        second[1].close()
        await until(lambda told=told: told)
        assert {type(error) for error in failed} == {ZeroDivisionError}
        watcher.remove(first[0])
        watcher.remove(second[0])


async def test_without_epoll_the_portable_way_is_taken(monkeypatch):
    monkeypatch.delattr(module.select, "epoll")
    assert isinstance(hangups(pytest.fail), PeekingHangups)
