"""A client's bytes: sent at once where there is room, waited for where there is none, never to another descriptor."""

import contextlib
import os
import socket

import pytest
import trio
import trio.testing

from proxy.doors import wire as module
from proxy.doors.wire import AT_ONCE_MAX, Gone, PlainWire, wire_of

MUCH = b"x" * 8_000_000


class Pair:
    """A wire and the client's end of it."""

    def __init__(self, write_seconds=60.0):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        ours.setblocking(False)
        self.closed = 0
        self.wire = PlainWire(trio.socket.from_stdlib_socket(ours), write_seconds, self.before_close)
        self.ours = trio.socket.from_stdlib_socket(self.client.dup())

    def before_close(self):
        assert self.wire.sock.fileno() >= 0  # the watcher must still be able to name it
        self.closed += 1

    def end(self):
        self.wire.close()
        self.client.close()
        self.ours.close()

    async def all(self):
        received = bytearray()
        while more := await self.ours.recv(1_000_000):
            received += more
        return bytes(received)


@pytest.fixture
async def pair():
    made = []

    def make(**more):
        made.append(Pair(**more))
        return made[-1]

    yield make
    for one in made:
        one.end()


async def test_what_is_sent_arrives_whole_however_slowly_it_is_read(pair):
    one = pair()
    async with trio.open_nursery() as nursery:

        async def send():
            await one.wire.send(b"first")
            await one.wire.send(MUCH)
            await one.wire.send(b"last")
            one.wire.finish()

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await one.all() == b"first" + MUCH + b"last"
    assert one.closed == 0


async def test_many_sends_that_need_not_wait_let_others_run(pair):
    one, turns = pair(), []
    async with trio.open_nursery() as nursery:

        async def other():
            while True:
                turns.append(1)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        for _ in range(10 * AT_ONCE_MAX):
            await one.wire.send(b"x")
        nursery.cancel_scope.cancel()
    assert 8 <= len(turns) <= 12


async def test_sends_that_need_not_wait_can_be_cancelled(pair):
    one, sent = pair(), 0
    with trio.CancelScope() as scope:
        scope.cancel()
        while True:
            await one.wire.send(b"x")
            sent += 1
    assert sent <= AT_ONCE_MAX
    assert one.closed == 0


async def test_reads_that_need_not_wait_let_others_run(pair):
    one, turns = pair(), []
    one.client.sendall(b"x" * 400_000)
    async with trio.open_nursery() as nursery:

        async def other():
            while True:
                turns.append(1)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        module_read_bytes = module.READ_BYTES
        try:
            module.READ_BYTES = 1000
            for _ in range(10 * AT_ONCE_MAX):
                assert await one.wire.read(soon=True)
        finally:
            module.READ_BYTES = module_read_bytes
        nursery.cancel_scope.cancel()
    assert len(turns) >= 8


async def test_a_client_that_takes_nothing_is_gone_after_the_write_deadline(pair):
    one = pair(write_seconds=0.1)
    with pytest.raises(Gone):
        await one.wire.send(MUCH)
    assert one.closed == 1
    with pytest.raises(Gone):
        await one.wire.send(b"x")
    with pytest.raises(ConnectionResetError):
        await one.all()


async def test_a_client_that_takes_a_little_now_and_then_stays(pair):
    one = pair(write_seconds=0.3)
    async with trio.open_nursery() as nursery:

        async def send():
            await one.wire.send(MUCH)
            one.wire.close()

        nursery.start_soon(send)
        received = 0
        while more := await one.ours.recv(400_000):
            received += len(more)
            await trio.sleep(0.05)
    assert received == len(MUCH)


async def test_a_send_that_is_cancelled_in_the_middle_resets_the_connection(pair):
    one = pair()
    with trio.move_on_after(0.05):
        await one.wire.send(MUCH)
    assert one.closed == 1
    with pytest.raises(ConnectionResetError):
        await one.all()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_is_gone_for_the_next_send_and_the_one_under_way(pair, how):
    one = pair()
    async with trio.open_nursery() as nursery:

        async def send():
            with pytest.raises(Gone):
                await one.wire.send(MUCH)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if how == "reset":
            one.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
        one.ours.close()
        one.client.close()
    with pytest.raises(Gone):
        await one.wire.send(b"x")


async def closing_ends_both(one):
    """Close it, twice, while a send and a read are under way."""
    ended = []
    async with trio.open_nursery() as nursery:

        async def send():
            with pytest.raises(Gone):
                await one.wire.send(MUCH)
            ended.append("send")

        async def read():
            assert await one.wire.read() == b""
            ended.append("read")

        nursery.start_soon(send)
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.01)
        one.wire.close()
        one.wire.close()
    assert sorted(ended) == ["read", "send"]
    assert one.closed == 1


async def test_closing_ends_the_send_and_the_read_under_way(pair):
    await closing_ends_both(pair())


async def test_waking_ends_a_wait_and_the_next_one_reads(pair):
    one = pair()
    async with trio.open_nursery() as nursery:

        async def read():
            assert await one.wire.read() is None
            assert await one.wire.read() == b"hello"

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        one.wire.wake()
        await trio.testing.wait_all_tasks_blocked()
        await one.ours.send(b"hello")
    one.wire.wake()
    assert one.wire.read_now() == b""
    await one.ours.send(b"more")
    assert await one.wire.read() == b"more"


async def test_a_closed_wire_touches_nobody_elses_descriptor(pair):
    one = pair()
    number = one.wire.sock.fileno()
    one.wire.close()
    others, far = socket.socketpair()
    if others.fileno() != number:  # somebody else was quicker
        os.dup2(others.fileno(), number)
        others.close()
        others = socket.socket(fileno=number)
    with others, far:
        far.setblocking(False)
        far.send(b"for the new one")
        with pytest.raises(Gone):
            await one.wire.send(b"for the old one")
        assert await one.wire.read() == b""
        assert one.wire.read_now() == b""
        one.wire.wake()
        one.wire.close(reset=True)
        with pytest.raises(BlockingIOError):
            far.recv(100)
        assert others.recv(100) == b"for the new one"


# TLS


class TlsPair:
    """A wire over TLS and the client's end of it, which reads nothing unless it is asked to."""

    def __init__(self, write_seconds):
        self.write_seconds, self.closed = write_seconds, 0

    async def begin(self, tls):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        ends = []
        for sock, context in ((near, tls[0]), (far, tls[1])):
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            side = {"server_side": True} if sock is near else {"https_compatible": True}
            ends.append(trio.SSLStream(stream, context, **side))
        async with trio.open_nursery() as nursery:
            for end in ends:
                nursery.start_soon(end.do_handshake)
        self.client = ends[1]
        self.wire = wire_of(ends[0], self.write_seconds, self.before_close)
        return self

    def before_close(self):
        assert self.wire.sock.fileno() >= 0
        self.closed += 1

    async def rest(self):
        while await self.client.transport_stream.receive_some():
            pass


@pytest.fixture
async def tls_pair(tls):
    made = []

    async def make(write_seconds=60.0):
        made.append(await TlsPair(write_seconds).begin(tls))
        return made[-1]

    yield make
    for one in made:
        one.wire.close()
        await trio.aclose_forcefully(one.client)


async def test_over_tls_a_client_that_takes_nothing_is_reset_after_the_write_deadline(tls_pair):
    one = await tls_pair(write_seconds=0.1)
    with pytest.raises(Gone):
        await one.wire.send(MUCH)
    assert one.closed == 1
    with pytest.raises(trio.BrokenResourceError):
        await one.rest()
    with pytest.raises(Gone):
        await one.wire.send(b"x")
    assert await one.wire.read() == b""


async def test_over_tls_a_send_that_is_cancelled_in_the_middle_resets_the_connection(tls_pair):
    one = await tls_pair()
    with trio.move_on_after(0.05):
        await one.wire.send(MUCH)
    assert one.closed == 1
    with pytest.raises(trio.BrokenResourceError):
        await one.rest()


async def test_over_tls_a_goodbye_is_said_once_and_waits_for_nobody(tls_pair):
    one = await tls_pair()
    await one.wire.send(b"all")
    with trio.fail_after(0.5):
        await one.wire.say_goodbye()
        await one.wire.say_goodbye()
    one.wire.close()
    assert one.closed == 1
    received = b""
    one.client._https_compatible = False  # an end without a goodbye would be an error
    while more := await one.client.receive_some():
        received += more
    assert received == b"all"


async def test_over_tls_a_goodbye_that_finds_no_room_is_given_up(tls_pair, monkeypatch):
    monkeypatch.setattr(module, "GOODBYE_SECONDS", 0.05)
    one = await tls_pair()
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(one.wire.sock.fileno(), MUCH)
    with trio.fail_after(2):
        await one.wire.say_goodbye()
    assert one.wire.sock.fileno() == -1


async def test_a_goodbye_on_a_plain_socket_is_its_end(pair):
    one = pair()
    await one.wire.send(b"all")
    await one.wire.say_goodbye()
    assert (await one.all(), one.closed) == (b"all", 1)


async def test_over_tls_closing_ends_the_send_and_the_read_under_way(tls_pair):
    await closing_ends_both(await tls_pair())


async def test_over_tls_waking_ends_a_wait_and_the_next_one_reads(tls_pair):
    one = await tls_pair()
    async with trio.open_nursery() as nursery:

        async def read():
            assert await one.wire.read() is None
            assert await one.wire.read() == b"hello"

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        one.wire.wake()
        await trio.testing.wait_all_tasks_blocked()
        await one.client.send_all(b"hello")
