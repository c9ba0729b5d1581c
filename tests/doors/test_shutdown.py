"""Going down: what is under way ends, nothing is begun, and nobody holds it up."""

import pytest
import trio

from tests.doors.apps import HEAD, HELLO, Streaming


async def test_going_down_refuses_new_connections_and_closes_idle_ones(serving):
    server = await serving()
    idle, fresh, half = [await server.connect() for _ in range(3)]
    await idle.send(HELLO)
    await idle.answer()
    await half.send(b"POST /x")
    await trio.sleep(0.02)
    server.shutdown.set()
    with trio.fail_after(1):
        for client in (idle, fresh, half):
            assert await client.read() == b""
        await server.ended.wait()
    with pytest.raises(OSError, match="all attempts to connect"):
        await server.connect()


async def test_a_running_request_ends_in_its_own_time_and_says_that_it_is_the_last(serving, answering):
    go, began = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            began.set()
            await go.wait()
            await answering(send, b"done")

    server = await serving(app)
    client = await server.connect()
    await client.send(HELLO)
    await began.wait()
    server.shutdown.set()
    await trio.sleep(0.05)
    assert not server.ended.is_set()
    go.set()
    answer = await client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")
    with trio.fail_after(1):
        await server.ended.wait()


async def test_requests_that_run_past_the_drain_are_cancelled(serving):
    app = Streaming(chunk=b"x")
    server = await serving(app, drain_seconds=0.1)
    client = await server.connect()
    await client.send(HELLO)
    await app.began.wait()
    server.shutdown.set()
    with trio.fail_after(2):
        await server.ended.wait()
    assert app.cancelled


async def test_a_client_that_stands_still_cannot_hold_up_the_end(serving):
    """Stock hypercorn hangs here until the client closes."""
    app = Streaming()
    server = await serving(app, drain_seconds=0.2, write_seconds=60)
    client = await server.connect()
    await client.send(HELLO)
    await app.began.wait()
    await trio.sleep(0.1)
    server.shutdown.set()
    with trio.fail_after(2):
        await server.ended.wait()
    assert client.stream.socket.fileno() != -1


async def test_an_upload_that_was_refused_cannot_hold_up_the_end(serving, answering):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answering(send, b"no", 402)

    server = await serving(app, drain_seconds=60)
    client = await server.connect()
    await client.send(HEAD + b"content-length: 1000000\r\n\r\n")
    await client.answer()
    server.shutdown.set()
    with trio.fail_after(2):
        await server.ended.wait()


async def test_the_lifespan_surrounds_the_serving(serving):
    steps = []

    async def app(scope, receive, send):
        if scope["type"] != "lifespan":
            return
        scope["state"]["shared"] = 1
        while True:
            message = await receive()
            steps.append(message["type"])
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    server = await serving(app)
    assert steps == ["lifespan.startup"]
    server.shutdown.set()
    await server.ended.wait()
    assert steps == ["lifespan.startup", "lifespan.shutdown"]


async def test_an_app_without_a_lifespan_is_served_and_stopped(serving, answering):
    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await answering(send, b"ok")

    server = await serving(app)
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).body == b"ok"
    server.shutdown.set()
    await server.ended.wait()
    assert [(level, event) for level, event, _ in server.logged] == [("warning", "server")]
