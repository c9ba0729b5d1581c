"""What kills, blocks or fools the stock server, over real sockets: none of it does so here."""

import pytest
import trio

BIG = 10 * 2**20
ASK = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def refuse_lifespan(scope):
    """What an app without a lifespan does when it is asked for one."""
    if scope["type"] == "lifespan":
        raise NotImplementedError


async def until_over(client):
    with trio.fail_after(5):
        return await client.rest()


def streaming(chunk=b"x" * 65536, finished=None):
    """An app that writes for ever, and says when it is let go."""

    async def app(scope, receive, send):
        refuse_lifespan(scope)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await trio.lowlevel.checkpoint()
        finally:
            if finished is not None:
                finished.set()

    return app


async def test_a_websocket_upgrade_with_a_trailing_byte_takes_nothing_with_it(serving):
    server = await serving()
    client = await server.connect()
    await client.send(
        b"GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nx"
    )
    await client.stream.send_eof()
    await until_over(client)
    other = await server.connect()
    await other.send(b"GET /still/here HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await other.answer()).body.endswith(b"/still/here ")


async def test_an_app_that_raises_takes_only_its_own_connection(serving):
    async def app(scope, _receive, _send):
        refuse_lifespan(scope)
        raise ExceptionGroup("many", [ZeroDivisionError("a"), ValueError("b")])

    server = await serving(app)
    for _ in range(2):
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 500 " in (await until_over(client)).split(b"\r\n")[0]


async def test_a_client_that_stops_reading_is_gone_after_the_write_deadline(serving):
    gone = trio.Event()
    writing = streaming()

    async def app(scope, receive, send):
        refuse_lifespan(scope)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writing, scope, receive, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            nursery.cancel_scope.cancel()

    server = await serving(app, write_seconds=0.3)
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    with trio.fail_after(3):
        await gone.wait()


async def test_a_client_that_stops_reading_does_not_hold_up_the_end(serving):
    finished = trio.Event()
    server = await serving(streaming(finished=finished), write_seconds=60, drain_seconds=0.3)
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await trio.testing.wait_all_tasks_blocked(0.05)
    server.shutdown.set()
    with trio.fail_after(5):
        await server.ended.wait()
        await finished.wait()


async def test_refusing_a_large_upload_before_it_is_read_does_not_deadlock(serving, answering):
    async def app(scope, _receive, send):
        refuse_lifespan(scope)
        await trio.lowlevel.checkpoint()
        await answering(send, b"no credit", status=402)

    server = await serving(app)
    client = await server.connect()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def upload():
                try:
                    await client.send(ASK + b"content-length: %d\r\n\r\n" % BIG)
                    for _ in range(BIG // 65536):
                        await client.send(b"x" * 65536)
                except trio.BrokenResourceError:
                    pass  # refused and closed, as it may be

            nursery.start_soon(upload)
            answer = await client.answer()
            assert (answer.status, answer.body) == (402, b"no credit")
            nursery.cancel_scope.cancel()
    other = await server.connect()
    await other.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await other.answer()).status == 402


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ncontent-length: 5\r\n",
        b"content-length: +5\r\n",
        b"content-length: 5, 5\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"x: a\r\n b\r\n",
        b"x: a\n",
        b"x : a\r\n",
        b"x: a\rb\r\n",
        b"x: a\x00b\r\n",
        b"host: y\r\n",
        b"upgrade: h2c\r\nconnection: upgrade\r\n",
        b"authorization: Bearer a\r\nauthorization: Bearer b\r\n",
    ],
    ids=lambda head: head.decode("latin-1"),
)
async def test_what_smugglers_send_is_refused_and_the_app_never_sees_it(serving, head):
    seen = []

    async def app(scope, receive, send):
        refuse_lifespan(scope)
        seen.append(scope)

    server = await serving(app)
    client = await server.connect()
    await client.send(b"POST / HTTP/1.1\r\nhost: x\r\n" + head + b"\r\nhello")
    answer = await until_over(client)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"101" not in answer.split(b"\r\n")[0]
    assert seen == []


@pytest.mark.parametrize(
    "line",
    [
        b"PRI * HTTP/2.0", b"GET http://evil/ HTTP/1.1", b"CONNECT evil:443 HTTP/1.1", b"GET /../x HTTP/1.1",
        b"GET //x HTTP/1.1", b"GET /%2e%2e/x HTTP/1.1", b"GET /a\\b HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET x HTTP/1.1",
        b"GET / HTTP/0.9", b"GET / HTTP/3.0", b"G@T / HTTP/1.1",
    ],
    ids=lambda line: line.decode("latin-1"),
)  # fmt: skip
async def test_targets_that_mean_something_elsewhere_are_refused(serving, line):
    server = await serving()
    client = await server.connect()
    await client.send(line + b"\r\nhost: x\r\n\r\n")
    assert (await until_over(client)).startswith(b"HTTP/1.1 400")


async def test_a_request_arrives_whole_wherever_it_is_cut(serving):
    request = (
        b"POST /a%20b?c=d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    server = await serving()
    for cut in range(1, len(request)):
        client = await server.connect()
        await client.send(request[:cut])
        await trio.lowlevel.checkpoint()
        await client.send(request[cut:])
        assert (await client.answer()).body == b"POST /a%20b hello"
        await client.stream.aclose()


async def test_two_requests_in_one_packet_are_answered_in_order(serving):
    server = await serving()
    client = await server.connect()
    await client.send(
        b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nPOST /2 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"
    )
    assert (await client.answer()).body == b"GET /1 "
    assert (await client.answer()).body == b"POST /2 hi"


async def test_one_connection_carries_many_requests(serving):
    server = await serving()
    client = await server.connect()
    for n in range(50):
        await client.send(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % n)
        assert (await client.answer()).body == b"GET /%d " % n


async def test_continue_is_said_only_when_the_app_wants_the_body(serving, answering):
    async def app(scope, receive, send):
        refuse_lifespan(scope)
        if scope["path"] == "/refused":
            await answering(send, b"no", status=401)
            return
        message = await receive()
        await answering(send, message["body"])

    server = await serving(app)
    expecting = b"host: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    client = await server.connect()
    await client.send(b"POST /refused HTTP/1.1\r\n" + expecting)
    assert (await client.answer()).status == 401
    client = await server.connect()
    await client.send(b"POST /read HTTP/1.1\r\n" + expecting)
    assert (await client.answer()).status == 100
    await client.send(b"hi")
    assert (await client.answer()).body == b"hi"


async def test_headers_that_drip_are_not_waited_for_for_ever(serving):
    server = await serving(header_seconds=0.3, keep_alive_seconds=0.3)
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
    await until_over(client)


async def test_headers_beyond_their_limit_are_a_431(serving):
    server = await serving(header_bytes_max=2048)
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 4096)
    assert (await until_over(client)).startswith(b"HTTP/1.1 431")


async def test_an_idle_connection_is_closed_at_shutdown_and_no_new_one_is_taken(serving):
    server = await serving(drain_seconds=30)
    client = await server.connect()
    await client.send(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\n")
    await client.answer()
    server.shutdown.set()
    await until_over(client)
    with trio.fail_after(5):
        await server.ended.wait()
    with pytest.raises(OSError, match="connect"):
        await server.connect()


async def test_a_disconnect_reaches_the_app_at_once(serving):
    gone = trio.Event()

    async def app(scope, receive, send):
        refuse_lifespan(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    server = await serving(app)
    client = await server.connect()
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await client.read()
    await client.stream.aclose()
    with trio.fail_after(2):
        await gone.wait()
