"""The server in front of any app: what it refuses, hands on, and ends; over both kinds of connection."""

import json
import random
import socket
from contextlib import suppress

import pytest
import trio

from proxy.config import RequestLimits
from proxy.doors.server import bind
from tests.doors.apps import HEAD, HELLO, UPGRADE, Streaming

# What is refused before the app sees it


@pytest.mark.parametrize(
    "data",
    [
        HEAD
        + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        HEAD + b"x: a\r\n folded\r\n\r\n",
        b"POST /x HTTP/1.1\nhost: a\n\n",
        HEAD + b"x : a\r\n\r\n",
        HEAD + b"host: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        UPGRADE.replace(b"version: 13", b"version: 12"),
        UPGRADE.replace(b"sec-websocket-key", b"x"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9,
        b"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /x/../y HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET //x HTTP/1.1\r\nhost: a\r\n\r\n",
        HEAD + b"authorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
    ],
)
async def test_a_bad_request_is_answered_and_never_reaches_the_app(serving, data):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    server = await serving(app)
    client = await server.connect()
    await client.send(data)
    answer = await client.answer()

    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == "req_refused"
    assert json.loads(answer.body)["error"]["code"] == "invalid_request_error"
    assert await client.read() == b""
    assert [scope["type"] for scope in seen] == ["lifespan"]
    assert not server.logged


async def test_headers_that_are_too_large_get_431(serving):
    server = await serving(header_bytes_max=1024)
    client = await server.connect()
    await client.send(b"GET /" + b"a" * 100_000)
    assert (await client.answer()).status == 431


async def test_a_body_that_breaks_its_framing_ends_the_request_that_reads_it(serving):
    left = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

    server = await serving(app)
    client = await server.connect()
    await client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await client.send(b"zz\r\n")
    assert (await client.answer()).status == 400
    await left.wait()


# What goes through


async def test_a_request_may_arrive_byte_by_byte(serving):
    server = await serving()
    client = await server.connect()
    for byte in HELLO:
        await client.send(bytes([byte]))
    assert (await client.answer()).body == b"POST /x hello"


async def test_a_request_may_be_cut_anywhere_and_its_connection_kept(serving):
    server = await serving()
    client = await server.connect()
    for request in (HELLO, HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"):
        for cut in range(1, len(request), 3):
            await client.send(request[:cut])
            await trio.lowlevel.checkpoint()
            await client.send(request[cut:])
            assert (await client.answer()).body == b"POST /x hello"


async def test_pipelined_requests_are_answered_in_order(serving):
    server = await serving()
    client = await server.connect()
    requests = [b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number for number in range(20)]
    await client.send(HELLO + b"".join(requests) + HELLO)
    assert (await client.answer()).body == b"POST /x hello"
    for number in range(20):
        assert (await client.answer()).body == b"GET /%d " % number
    assert (await client.answer()).body == b"POST /x hello"


async def test_a_client_that_pipelines_too_far_ahead_is_read_again_after_its_answers(serving):
    server = await serving()
    client = await server.connect()
    bodies = 40
    request = HEAD + b"content-length: 10000\r\n\r\n" + b"a" * 10_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, request * bodies)
        for _ in range(bodies):
            assert len((await client.answer()).body) == len(b"POST /x ") + 10_000


async def test_http_1_0_is_answered_and_closed(serving):
    server = await serving()
    client = await server.connect()
    await client.send(b"GET /old HTTP/1.0\r\n\r\n")
    assert (await client.answer()).body == b"GET /old "
    assert await client.read() == b""


async def test_a_head_request_gets_no_body(serving):
    server = await serving()
    client = await server.connect()
    await client.send(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n" + HELLO)
    assert (await client.answer(head_only=True)).headers["content-length"] == "7"
    assert (await client.answer()).body == b"POST /x hello"


async def test_answers_name_no_server_software(serving):
    server = await serving()
    client = await server.connect()
    await client.send(HELLO)
    assert set((await client.answer()).headers) == {"content-length", "date"}


# Expect: 100-continue


async def test_100_continue_is_sent_when_the_app_asks_for_the_body(serving):
    asked = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asked.wait()
            message = await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": message["body"], "more_body": False})

    server = await serving(app)
    client = await server.connect()
    await client.send(HEAD + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n")
    with trio.move_on_after(0.05) as waited:
        await client.stream.receive_some()
    assert waited.cancelled_caught
    asked.set()
    assert (await client.answer()).status == 100
    await client.send(b"hello")
    assert (await client.answer()).body == b"hello"


async def test_a_refusal_can_precede_an_upload_that_waits_for_100(serving, answering):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answering(send, b"no credit", 402)

    server = await serving(app)
    client = await server.connect()
    await client.send(HEAD + b"content-length: 50000000\r\nexpect: 100-continue\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (402, "close")
    with trio.fail_after(2):
        await client.stream.send_eof()
        assert await client.read() == b""


async def test_a_connection_is_kept_after_an_upload_that_waited_for_100(serving):
    server = await serving()
    client = await server.connect()
    for _ in range(3):
        await client.send(HEAD + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.answer()).status == 100
        await client.send(b"hello")
        assert (await client.answer()).body == b"POST /x hello"


# Uploads


@pytest.mark.parametrize("thinking_seconds", [0, 0.1])
async def test_a_large_upload_is_refused_before_it_is_read(serving, answering, thinking_seconds):
    """Stock hypercorn never ends this request: its app queue is full when the answer is complete."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await trio.sleep(thinking_seconds)
            await answering(send, b"no credit", 402)
            returned.set()

    returned = trio.Event()
    server = await serving(app)
    client = await server.connect()
    size = 10 * 2**20
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, HEAD + b"content-length: %d\r\n\r\n" % size + b"a" * size)
        answer = await client.answer()
    assert (answer.status, answer.body) == (402, b"no credit")
    assert answer.headers["connection"] == "close"
    await returned.wait()
    assert await client.read() == b""


async def test_a_refused_upload_is_read_and_dropped_only_up_to_a_bound(serving, answering):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answering(send, b"no", 413)

    server = await serving(app, limits=RequestLimits(body_bytes_max=2**20))
    client = await server.connect()
    await client.send(HEAD + b"content-length: 1000000000\r\n\r\n")
    sent = 0
    with pytest.raises(trio.BrokenResourceError):
        while sent < 200 * 2**20:
            await client.send(b"a" * 2**20)
            sent += 2**20
    assert sent < 100 * 2**20


async def test_an_app_that_does_not_read_holds_back_its_clients_upload(serving):
    reading = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await reading.wait()
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    server = await serving(app)
    client = await server.connect()
    sent = 0
    size = 64 * 2**20
    await client.send(HEAD + b"content-length: %d\r\n\r\n" % size)
    with trio.move_on_after(0.3):
        while sent < size:
            await client.stream.socket.send(b"a" * 65_536)
            sent += 65_536
    assert sent < size / 2
    assert not server.logged
    reading.set()


async def test_a_client_that_sends_ahead_without_end_is_held_back_while_its_first_request_is_answered(
    serving,
):
    thinking = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await thinking.wait()

    client = await (await serving(app)).connect()
    sent, size = 0, 64 * 2**20
    with trio.move_on_after(0.3):
        while sent < size:
            sent += await client.stream.socket.send(HELLO * 1000)
    assert sent < size / 2
    thinking.set()


@pytest.mark.parametrize("part", [b"", b"POST", b"POST /x HTTP/1.1\r\nhost: a\r\nx:"])
async def test_a_client_that_sends_its_headers_too_slowly_is_closed(serving, part):
    server = await serving(header_seconds=0.15)
    client = await server.connect()
    if part:
        await client.send(part)
        assert (await client.answer()).status == 408
    assert await client.read() == b""


async def test_the_time_for_headers_is_for_all_of_them(serving):
    server = await serving(header_seconds=0.2)
    client = await server.connect()
    began = trio.current_time()
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        for byte in HEAD * 100:
            await client.send(bytes([byte]))
            with trio.move_on_after(0.01):
                assert not (await client.stream.receive_some()).startswith(b"HTTP/1.1 408")
    assert trio.current_time() - began < 2


async def test_a_body_that_comes_too_slowly_gets_408_and_ends_its_request(serving):
    left = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

    server = await serving(app, body_seconds_min=0.05, body_bytes_per_second_min=1_000_000)
    client = await server.connect()
    await client.send(HEAD + b"content-length: 1000\r\n\r\nhello")
    assert (await client.answer()).status == 408
    await left.wait()


# Keep-alive


async def test_an_idle_connection_is_closed_after_its_time(serving):
    server = await serving(keep_alive_seconds=0.1)
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).status == 200
    assert await client.read() == b""


async def test_a_long_answer_is_not_idleness(serving, answering):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await trio.sleep(0.3)
            await answering(send, b"slow")

    server = await serving(app, keep_alive_seconds=0.05, header_seconds=0.05, body_seconds_min=0.05)
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).body == b"slow"


async def test_a_connection_carries_so_many_requests_and_says_which_is_the_last(serving):
    server = await serving(keep_alive_requests=3)
    client = await server.connect()
    closing = []
    for _ in range(3):
        await client.send(HELLO)
        closing.append((await client.answer()).headers.get("connection"))
    assert closing == [None, None, "close"]
    assert await client.read() == b""


async def test_one_connection_too_many_gets_503_and_the_others_live(serving):
    server = await serving(limits=RequestLimits(connections_max=2))
    first, second = await server.connect(), await server.connect()
    for client in (first, second):
        await client.send(HELLO)
        assert (await client.answer()).status == 200
    third = await server.connect()
    assert (await third.answer()).status == 503
    await first.send(HELLO)
    assert (await first.answer()).status == 200
    await second.stream.aclose()
    await trio.sleep(0.05)
    fourth = await server.connect()
    await fourth.send(HELLO)
    assert (await fourth.answer()).status == 200


# Clients that leave, or stand still


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_a_client_that_leaves_is_reported_to_the_app(serving, how):
    app = Streaming(chunk=b"x")
    server = await serving(app)
    client = await server.connect()
    await client.send(HELLO)
    await app.began.wait()
    if how == "half-close":
        await client.stream.send_eof()
    else:
        if how == "reset":
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01" + b"\x00" * 7)
        await client.stream.aclose()
    with trio.fail_after(1):
        await app.disconnected.wait()
        await app.returned.wait()


async def test_a_client_that_leaves_is_noticed_while_it_has_pipelined_more(serving):
    """Stock hypercorn stops reading as soon as a second request has arrived."""
    waiting, left = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            waiting.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

    server = await serving(app)
    client = await server.connect()
    await client.send(HELLO + HELLO)
    await waiting.wait()
    await client.stream.aclose()
    with trio.fail_after(1):
        await left.wait()


async def test_a_client_that_stops_reading_is_gone_after_the_write_deadline(serving):
    """Stock hypercorn shields its sends: this never ends there."""
    app = Streaming()
    server = await serving(app, write_seconds=0.2)
    client = await server.connect()
    await client.send(HELLO)
    with trio.fail_after(3):
        await app.disconnected.wait()
        await app.returned.wait()


async def test_a_send_to_a_client_that_stands_still_can_be_cancelled(serving):
    ended = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with trio.move_on_after(0.2):
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 10**6, "more_body": True})
            ended.set()

    server = await serving(app, write_seconds=60)
    client = await server.connect()
    await client.send(HELLO)
    with trio.fail_after(2):
        await ended.wait()


async def test_a_slow_reader_gets_all_of_a_long_answer(serving, answering):
    body = b"x" * (3 * 2**20)

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answering(send, body)

    server = await serving(app, write_seconds=0.3)
    client = await server.connect()
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    await client.send(HELLO)
    received = bytearray()
    while not received.endswith(body):
        received += await client.stream.receive_some(131_072)
        await trio.sleep(0.02)


# TLS


async def test_a_client_that_never_shakes_hands_cannot_hold_up_the_end(serving, tls):
    server = await serving(ssl_context=tls[0], header_seconds=60, drain_seconds=60)
    client, half = await server.connect(), await server.connect()
    await half.send(b"\x16\x03\x01")
    await trio.sleep(0.05)
    server.shutdown.set()
    with trio.fail_after(2):
        await server.ended.wait()
        assert await client.rest() == await half.rest() == b""


async def strictly(client):
    """What comes to its end over TLS; one without a goodbye is an error."""
    read = b""
    while more := await client.stream.receive_some():
        read += more
    return read


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /old HTTP/1.0\r\n\r\n",
        HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_over_tls_an_answer_that_is_whole_ends_with_a_goodbye(serving, tls, request_):
    server = await serving(ssl_context=tls[0])
    client = await server.connect()
    client.stream = trio.SSLStream(client.stream, tls[1])
    await client.send(request_)
    with trio.fail_after(2):
        assert (await strictly(client)).startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("how", ["fails", "drained"])
async def test_an_answer_that_is_cut_does_not_end_as_a_whole_one_does(serving, tls, version, encrypted, how):
    began = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        began.set()
        if how == "drained":
            await trio.sleep_forever()

    server = await serving(app, ssl_context=tls[0] if encrypted else None, drain_seconds=0.05)
    client = await server.connect()
    if encrypted:
        client.stream = trio.SSLStream(client.stream, tls[1])
    await client.send(b"GET / HTTP/%b\r\nhost: a\r\n\r\n" % version)
    if how == "drained":
        await began.wait()
        server.shutdown.set()
    with trio.fail_after(2):
        if version == b"1.0" or encrypted:
            with pytest.raises(trio.BrokenResourceError):
                await strictly(client)
        else:
            assert not (await strictly(client)).endswith(b"0\r\n\r\n")


async def test_tls_speaks_http_1_1_only(serving, tls):
    server = await serving(ssl_context=tls[0])
    client = await server.connect(tls[1])
    assert client.stream.selected_alpn_protocol() == "http/1.1"
    for _ in range(2):
        await client.send(HELLO + HELLO)
        for _ in range(2):
            assert (await client.answer()).body == b"POST /x hello"
    await client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert (await client.answer()).status == 400
    await client.stream.aclose()


async def test_what_is_not_tls_ends_only_its_own_connection(serving, tls):
    server = await serving(ssl_context=tls[0], header_seconds=0.3)
    plain, silent = await server.connect(), await server.connect()
    await plain.send(HELLO)
    await plain.rest()
    assert await silent.read() == b""
    client = await server.connect(tls[1])
    await client.send(HELLO)
    assert (await client.answer()).status == 200
    assert not server.logged
    await client.stream.aclose()


async def test_a_tls_client_that_stands_still_is_gone_after_the_write_deadline(serving, tls):
    app = Streaming()
    server = await serving(app, ssl_context=tls[0], write_seconds=0.2)
    client = await server.connect(tls[1])
    await client.send(HELLO)
    with trio.fail_after(3):
        await app.disconnected.wait()
        await app.returned.wait()
    await trio.aclose_forcefully(client.stream)


# Sockets


def test_binding_to_port_0_takes_one_free_port():
    (sock,) = bind("127.0.0.1", 0, 5)
    with sock:
        assert sock.getsockname()[1] > 0
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", sock.getsockname()[1], 5)


def test_all_addresses_of_a_host_share_a_port():
    sockets = bind("localhost", 0, 5)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    finally:
        for sock in sockets:
            sock.close()


# Fuzz


async def patient(scope, receive, send):
    """Take whatever comes to its end, and answer requests."""
    assert scope["type"] != "lifespan"
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    while not (message := await receive())["type"].endswith(".disconnect"):
        if scope["type"] == "http" and not message["more_body"]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"well", "more_body": False})


def mutated(chance, data):
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(data)


async def test_no_mutation_of_a_request_hurts_the_server(serving):
    server = await serving(patient, header_seconds=0.2, body_seconds_min=0.1)
    chance = random.Random(20261121)  # the same requests each time
    seeds = (
        HELLO + HELLO,
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + HELLO,
        HEAD + b"content-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
        UPGRADE + b"\x81\x82\x00\x00\x00\x00hi",
    )

    async def try_one(data, cut):
        client = await server.connect()
        with suppress(trio.BrokenResourceError):  # refused before all of it was sent
            await client.send(data[:cut])
            await trio.lowlevel.checkpoint()
            await client.send(data[cut:])
            await client.stream.send_eof()
        for answer in (await client.rest()).split(b"HTTP/1.1 ")[1:]:
            assert answer[:3] in {b"100", b"101", b"200", b"400", b"408", b"417"}

    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                data = mutated(chance, chance.choice(seeds))
                nursery.start_soon(try_one, data, chance.randrange(len(data) + 1))
    assert [event for _, event, _ in server.logged] == ["server"]  # it has no lifespan
    client = await server.connect()
    await client.send(HELLO)
    assert (await client.answer()).body == b"well"
