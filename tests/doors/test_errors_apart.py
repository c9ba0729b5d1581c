"""Whatever goes wrong on one connection, in an app or in the system, stays there."""

import errno
import select
import socket

import pytest
import trio

from proxy.config import RequestLimits
from proxy.doors import fast_door, guard
from tests.doors.apps import HELLO, UPGRADE, until


async def test_a_websocket_upgrade_with_one_trailing_byte_does_not_end_the_server(serving):
    """Stock hypercorn lets h11's error out of the connection, and with it the whole process."""
    server = await serving()
    client = await server.connect()
    await client.send(UPGRADE + b"x")
    await client.stream.aclose()
    other = await server.connect()
    await other.send(HELLO)
    assert (await other.answer()).status == 200


async def test_a_websocket_talks_also_where_its_first_frame_came_too_early(serving):
    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        assert (await receive())["type"] == "websocket.connect"
        await trio.sleep(0.05)
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"].upper()})

    server = await serving(app)
    client = await server.connect()
    frame = b"\x81\x82\x00\x00\x00\x00hi"  # text, masked with zeros
    await client.send(UPGRADE + frame)
    assert (await client.answer()).status == 101
    assert await client.read() == b"\x81\x02HI"
    await client.send(frame)
    assert await client.read() == b"\x81\x02HI"
    await client.send(b"\x88\x80\x00\x00\x00\x00")
    assert await client.rest() == b"\x88\x00"
    assert not server.logged


@pytest.mark.parametrize("ahead", [0, 70_000])
async def test_a_websocket_that_is_refused_before_the_app_leaves_nothing_behind(serving, ahead, monkeypatch):
    """Hypercorn's own refusal runs no app, whose end would end the connection; nobody sees its client leave."""
    monkeypatch.setattr(
        guard, "_asks_for_websocket", lambda _head: True
    )  # as if it were let through to there
    server = await serving(limits=RequestLimits(connections_max=1))
    for _ in range(2):
        client = await server.connect()
        await client.send(UPGRADE.replace(b"version: 13", b"version: 12") + b"x" * ahead)
        with trio.fail_after(2):
            assert (await client.answer()).status == 400
            await client.stream.send_eof()
            assert await client.rest() == b""
    with trio.fail_after(2):
        await until(lambda: not server.logged)
        server.shutdown.set()
        await server.ended.wait()


async def test_a_websocket_that_is_not_granted_in_time_is_refused(serving):
    left = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            while (await receive())["type"] != "websocket.disconnect":
                pass
            left.set()

    server = await serving(app, header_seconds=0.15, drain_seconds=60)
    client = await server.connect()
    await client.send(UPGRADE + b"x" * 70_000)
    with trio.fail_after(2):
        assert (await client.answer()).status == 503
        await client.stream.aclose()
        await left.wait()


async def test_a_websocket_that_the_app_refuses_is_closed(serving):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})

    server = await serving(app)
    client = await server.connect()
    await client.send(UPGRADE)
    assert (await client.answer()).status == 403
    assert await client.rest() == b""


@pytest.mark.parametrize("after_start", [False, True])
async def test_an_app_that_fails_ends_its_connection_alone_and_tells_no_secrets(
    serving, answering, after_start
):
    app_error = "sk-secret"

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        if server.logged:
            await answering(send, b"well")
            return
        if after_start:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        async with trio.open_nursery():
            raise RuntimeError(app_error)

    server = await serving(app)
    client = await server.connect()
    await client.send(HELLO)
    if after_start:
        read = await client.rest()
        assert b"half" in read
        assert not read.endswith(b"0\r\n\r\n")
    else:
        assert (await client.answer()).status == 500
    await until(lambda: server.logged)
    (level, event, fields), *more = server.logged
    assert (level, event, more) == ("error", "connection_failed", [])
    assert fields["error"].startswith("RuntimeError at test_errors_apart.py:")
    assert app_error not in str(server.logged)
    other = await server.connect()
    await other.send(HELLO)
    assert (await other.answer()).body == b"well"


async def test_an_app_that_answers_against_the_protocol_ends_its_connection_alone(serving):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            await send({"type": "http.response.body", "body": b"too long", "more_body": False})

    server = await serving(app)
    for _ in range(2):
        client = await server.connect()
        await client.send(HELLO)
        assert b"too long" not in await client.rest()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
async def test_a_connection_that_the_system_has_no_room_for_ends_alone(serving, monkeypatch):
    def nowhere(*_):
        raise OSError(errno.ENOSPC, "")

    server = await serving(door="fast")
    with monkeypatch.context() as patch:
        patch.setattr(fast_door, "wire_of", nowhere)
        client = await server.connect()
        assert await client.rest() == b""
    assert [event for _, event, _ in server.logged] == ["connection_failed"]
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).status == 200


async def test_clients_that_reset_their_connection_at_once_are_no_errors(serving):
    server = await serving()
    for _ in range(50):
        client = await server.connect()
        await client.send(HELLO * 3)
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
        client.stream.socket.close()
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).status == 200
    assert not server.logged
