"""Bytes over real sockets on loopback, plain and under TLS: never blocking, never losing any, closed at once."""

import socket
import ssl
import time

import pytest
import trio
import trio.testing

from proxy.upstreams import wire as wire_module
from proxy.upstreams.transport import trust
from proxy.upstreams.wire import READ_BYTES, Address, Plain, Tls, Unreachable, connect
from tests.upstreams.scripted import cancelled_at, listening, server_context, trusting


@pytest.fixture(params=["plain", "tls"])
def pairs(request, tmp_path):
    """Makes a connected wire and the other side's stream."""
    tls = server_context(tmp_path / "pem") if request.param == "tls" else None

    class Pairs:
        def __init__(self):
            self.over_tls = tls is not None

        async def __call__(self, nursery):
            send, receive = trio.open_memory_channel(1)

            async def script(_server, stream):
                if tls is not None:
                    await stream.do_handshake()
                await send.send(stream)
                await trio.sleep_forever()

            server = await nursery.start(serve, script, tls)
            wire = await connect(Address("127.0.0.1", server.port, tls is not None), trusting(), 5)
            return wire, await receive.receive()

    return Pairs()


async def serve(script, tls, task_status):
    async with listening(script, tls) as server:
        task_status.started(server)
        await trio.sleep_forever()


async def receive_all(wire, count):
    data = b""
    while len(data) < count:
        piece = wire.receive()
        if piece is None:
            await wire.readable()
        else:
            assert piece
            assert len(piece) <= READ_BYTES
            data += piece
    return data


async def flush(wire):
    while not wire.flush():
        await wire.writable()


async def until(check, seconds=2):
    with trio.fail_after(seconds):
        while not check():
            await trio.sleep(0.001)


async def test_bytes_go_both_ways_and_nothing_blocks(nursery, pairs):
    wire, other = await pairs(nursery)
    assert wire.quiet()
    assert wire.receive() is None
    assert wire.send(b"head", b"body")
    assert await other.receive_some() == b"headbody"
    await other.send_all(b"answer")
    assert await receive_all(wire, 6) == b"answer"
    assert wire.receive() is None
    wire.close()


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 100_000, 8 * 2**20])
async def test_bodies_of_all_sizes_arrive_whole(nursery, pairs, size):
    wire, other = await pairs(nursery)
    body, arrived = bytes(range(256)) * (size // 256) + b"x" * (size % 256), bytearray()

    async def read():
        while len(arrived) < size + 4:
            arrived.extend(await other.receive_some())

    async with trio.open_nursery() as inner:
        inner.start_soon(read)
        if not wire.send(b"head", body):
            await flush(wire)
    assert bytes(arrived) == b"head" + body
    assert wire.flush()
    wire.close()


async def test_a_stream_that_nobody_reads_does_not_block_the_sender(nursery, pairs):
    wire, _ = await pairs(nursery)
    began = time.monotonic()
    assert not wire.send(b"head", bytes(32 * 2**20))
    assert not wire.flush()
    assert time.monotonic() - began < 2
    with trio.move_on_after(0.05) as patience:
        await flush(wire)
    assert patience.cancelled_caught
    wire.close()


async def test_a_large_answer_comes_in_pieces_of_a_bounded_size(nursery, pairs):
    wire, other = await pairs(nursery)
    sent = bytes(range(256)) * 4096 * 2
    nursery.start_soon(other.send_all, sent)
    assert await receive_all(wire, len(sent)) == sent
    wire.close()


async def test_many_small_pieces_are_one_read(nursery, pairs):
    wire, other = await pairs(nursery)
    for _ in range(20):
        await other.send_all(b"x" * 100)
    await until(lambda: len(wire_socket(wire).recv(READ_BYTES, socket.MSG_PEEK)) >= 2000)
    assert wire.receive() == b"x" * 2000
    wire.close()


def wire_socket(wire):
    return (wire._plain if isinstance(wire, Tls) else wire)._socket


async def test_the_end_is_empty_again_and_again_after_what_came_before_it(nursery, pairs):
    wire, other = await pairs(nursery)
    await other.send_all(b"last")
    await other.aclose()
    assert await receive_all(wire, 4) == b"last"
    await wire.readable()
    assert [wire.receive(), wire.receive()] == [b"", b""]
    assert not wire.quiet()
    wire.close()


async def test_a_cut_under_tls_is_no_end(nursery, pairs):
    wire, other = await pairs(nursery)
    await other.send_all(b"last")
    raw = other.transport_stream if pairs.over_tls else other
    await raw.aclose()
    assert await receive_all(wire, 4) == b"last"
    await wire.readable()
    for _ in range(2):
        if pairs.over_tls:
            with pytest.raises(ssl.SSLEOFError):
                wire.receive()
        else:
            assert wire.receive() == b""
    assert not wire.quiet()
    wire.close()


async def test_a_reset_is_an_error(nursery, pairs):
    wire, other = await pairs(nursery)
    raw = other.transport_stream if pairs.over_tls else other
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    raw.socket.close()
    await wire.readable()
    assert not wire.quiet()
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system calls it
        for _ in range(2):
            wire.send(b"head", b"")
            wire.receive()
    wire.close()


async def test_a_wire_with_something_to_read_is_not_quiet(nursery, pairs):
    wire, other = await pairs(nursery)
    await other.send_all(b"x")
    await wire.readable()
    assert not wire.quiet()
    wire.close()


@pytest.mark.parametrize("what", ["bytes", "end"])
async def test_a_wire_is_not_quiet_even_where_the_loop_has_not_had_a_turn_to_notice(what, nursery, pairs):
    wire, other = await pairs(nursery)
    assert wire.quiet()
    await receive_all_that_is_there(wire)
    sock = (other.transport_stream if pairs.over_tls else other).socket._sock
    # without a checkpoint from here on
    if what == "end":
        sock.shutdown(socket.SHUT_RDWR)
    elif pairs.over_tls:
        other._ssl_object.write(b"x")
        sock.send(other._outgoing.read())
    else:
        sock.send(b"x")
    assert not wire.quiet()
    wire.close()


async def receive_all_that_is_there(wire):
    """Have the wire know that there is nothing to read."""
    await trio.testing.wait_all_tasks_blocked()
    assert wire.receive() is None


async def test_closing_wakes_who_waits_and_tells_the_other_side_at_once(nursery, pairs):
    wire, other = await pairs(nursery)
    assert wire.receive() is None
    woken = []

    async def wait():
        with pytest.raises(trio.ClosedResourceError):
            await wire.readable()
        woken.append(1)

    async with trio.open_nursery() as inner:
        inner.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        wire.close()
        wire.close()
    assert woken == [1]
    with trio.fail_after(1):
        assert await other.receive_some() == b""  # under TLS: with its own goodbye
    with pytest.raises(trio.ClosedResourceError):
        await wire.writable()
    with pytest.raises(OSError):  # noqa: PT011 - whatever the system calls it
        wire.receive()


async def test_there_is_no_delay_in_sending(nursery, pairs):
    wire, _ = await pairs(nursery)
    made = wire_socket(wire)
    assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    wire.close()


async def test_a_descriptor_that_is_used_again_is_not_the_old_wire(nursery):
    one, two = socket.socketpair()
    one.setblocking(False)
    wire, number = Plain(one), one.fileno()
    wire.close()
    again, peer = socket.socketpair()
    assert number in {again.fileno(), peer.fileno()}
    wire.close()
    with pytest.raises(trio.ClosedResourceError):
        await wire.readable()
    again.send(b"x")
    assert peer.recv(1) == b"x"
    for each in (again, peer, two):
        each.close()


# -- connecting ------------------------------------------------------------------------------------


async def silent(_server, _stream):
    await trio.sleep_forever()


async def test_a_name_is_looked_up_and_an_address_is_not(monkeypatch):
    async with listening(silent) as server:
        (await connect(Address("localhost", server.port, tls=False), trusting(), 5)).close()
        monkeypatch.setattr(trio, "open_tcp_stream", None)
        (await connect(Address("127.0.0.1", server.port, tls=False), trusting(), 5)).close()
        await until(lambda: server.connections == 2)


async def test_a_wire_of_a_looked_up_name_does_not_block():
    async with listening(silent) as server:
        wire = await connect(Address("localhost", server.port, tls=False), trusting(), 5)
        assert wire.receive() is None
        assert wire.quiet()
        wire.close()


async def closed_port():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_closed_port_is_unreachable(host):
    with pytest.raises(Unreachable) as error:
        await connect(Address(host, await closed_port(), tls=False), trusting(), 5)
    assert error.value.in_time


@pytest.mark.parametrize("host", ["x" * 64 + ".example", "a..b", "\udc80", ""])
async def test_a_name_that_can_be_none_is_unreachable(host):
    with pytest.raises(Unreachable):
        await connect(Address(host, 80, tls=False), trusting(), 5)


async def test_a_handshake_has_its_time_and_no_more():
    async with listening(silent) as server:
        began = time.monotonic()
        with pytest.raises(Unreachable) as error:
            await connect(Address("127.0.0.1", server.port, tls=True), trusting(), 0.05)
        assert not error.value.in_time
        assert 0.04 < time.monotonic() - began < 2


async def test_connecting_has_its_time_and_no_more(monkeypatch):
    async def never(*_):
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    with pytest.raises(Unreachable) as error:
        await connect(Address("localhost", 1, tls=False), trusting(), 0.02)
    assert not error.value.in_time


@pytest.mark.parametrize("tls", [False, True])
async def test_cancelled_at_every_checkpoint_a_socket_is_never_left(tls, tmp_path, monkeypatch):
    made, ready = [], wire_module._ready

    def counted(each):
        made.append(each)
        return ready(each)

    async def script(_server, stream):
        if tls:
            await stream.do_handshake()

    async with listening(script, server_context(tmp_path / "pem") if tls else None) as server:
        monkeypatch.setattr(wire_module, "_ready", counted)

        async def work():
            (await connect(Address("127.0.0.1", server.port, tls), trusting(), 5)).close()

        for n in range(1, 50):
            made.clear()
            reached = await cancelled_at(n, work)
            assert all(each.fileno() == -1 for each in made), n
            if not reached:
                break
        assert len(made) >= 1
        assert n > (2 if tls else 1)


# -- trust -----------------------------------------------------------------------------------------


async def quiet(_server, stream):
    await stream.do_handshake()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    async def refused(_server, stream):
        with pytest.raises(trio.BrokenResourceError) as error:
            await stream.do_handshake()
        told.append(str(error.value.__cause__))

    told = []
    async with listening(refused, server_context(tmp_path / "pem")) as server:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await connect(Address("127.0.0.1", server.port, tls=True), trust(None), 5)
        await until(lambda: told)
    assert "unknown ca" in told[0].lower()  # the other side can see why


async def test_a_certificate_of_another_host_is_refused(tmp_path):
    async def refused(_server, stream):
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()

    async with listening(refused, server_context(tmp_path / "pem")) as server:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await listener.aclose()
        context = trusting()
        plain = await connect(Address("127.0.0.1", server.port, tls=False), context, 5)
        wire = Tls(plain, context, "elsewhere.example")
        with pytest.raises(ssl.SSLCertVerificationError):
            await wire.handshake()
        wire.close()


async def test_the_host_is_named_to_the_server_and_http_1_1_offered(tmp_path):
    context, named = server_context(tmp_path / "pem"), []
    context.sni_callback = lambda _tls, name, _context: named.append(name)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with listening(quiet, context) as server:
        wire = await connect(Address("localhost", server.port, tls=True), trust(trusting()), 5)
        assert wire._tls.selected_alpn_protocol() == "http/1.1"
        wire.close()
    assert named == ["localhost"]


async def test_a_server_that_insists_on_another_protocol_is_unreachable(tmp_path):
    context = server_context(tmp_path / "pem")
    context.set_alpn_protocols(["h2"])
    client = trusting()
    client.set_alpn_protocols(["h2"])
    async with listening(quiet, context) as server:
        with pytest.raises(Unreachable, match="another protocol"):
            await connect(Address("127.0.0.1", server.port, tls=True), client, 5)


def test_without_a_word_the_usual_authorities_are_trusted_and_hosts_are_checked():
    context = trust(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.cert_store_stats()["x509_ca"] > 10
