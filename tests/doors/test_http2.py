"""HTTP/2 where it is switched on: the same answers, and no stream or error that outlives its connection."""

import json

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from proxy.doors.http2 import Frames, FrameTooLong
from tests.doors.conftest import answer_with
from tests.doors.gate import gate


class Client:
    """An HTTP/2 client of which every frame is in our hands."""

    def __init__(self, stream):
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.statuses, self.headers, self.bodies, self.ended, self.reset = {}, {}, {}, set(), set()
        self.takes = True
        self.goodbye = False

    async def begin(self, window=None):
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        await self.flush()

    async def flush(self):
        await self.stream.send_all(self.h2.data_to_send())

    async def ask(self, path="/", body=b"", method="POST", headers=(), *, end=True):
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "a")]
        self.h2.send_headers(number, [*pseudo, *headers], end_stream=end and not body)
        if body:
            self.h2.send_data(number, body, end_stream=end)
        await self.flush()
        return number

    async def until(self, done):
        """Read until something is so; false if the server closed before."""
        while not done():
            try:
                data = await self.stream.receive_some(65_536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return False
            for event in self.h2.receive_data(data):
                self.note(event)
            await self.flush()
        return True

    def note(self, event):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.ResponseReceived):
            self.headers[number] = dict(event.headers)
            self.statuses[number] = int(self.headers[number][":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[number] = self.bodies.get(number, b"") + event.data
            if self.takes:
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(number)
        elif isinstance(event, h2.events.StreamReset):
            self.reset.add(number)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goodbye = True

    async def answer(self, number):
        assert await self.until(lambda: number in self.ended | self.reset), "closed"
        return self.statuses.get(number), self.bodies.get(number, b"")


@pytest.fixture
async def speaking(serving, tls):
    """Give a server with HTTP/2 on, and clients of it."""

    async def start(app=None, **settings):
        server = await serving(*([app] if app else []), ssl_context=tls[0], http2=True, **settings)

        async def connect(window=None):
            client = await server.connect(tls[1])
            assert client.stream.selected_alpn_protocol() == "h2"
            speaker = Client(client.stream)
            await speaker.begin(window)
            return speaker

        return server, connect

    return start


async def test_requests_on_one_connection_are_answered_each(speaking):
    _, connect = await speaking()
    client = await connect()
    numbers = [await client.ask(f"/{n}", b"hello") for n in range(5)]
    for n, number in enumerate(numbers):
        assert await client.answer(number) == (200, b"POST /%d hello" % n)


async def test_a_client_that_speaks_http_1_1_is_served_beside(speaking, tls):
    server, _ = await speaking()
    tls[1].set_alpn_protocols(["http/1.1"])
    client = await server.connect(tls[1])
    await client.send(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (await client.answer()).body == b"GET /x "


async def test_http2_is_never_spoken_on_a_plain_connection(serving):
    server = await serving(http2=True)
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n\r\n"
    for sent, status in (
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9, 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\n" + upgrade, 200),
    ):
        client = await server.connect()
        await client.send(sent)
        answer = await client.answer()
        assert (answer.status, answer.raw[:9]) == (status, b"HTTP/1.1 ")


async def test_api_requests_go_the_request_path(speaking):
    async def respond(_gateway, path, request, reply):
        body = await request.body(100)
        reply.start(200, {"content-type": "text/event-stream"})
        await reply.write(b"data: %s\n\n" % path.dialect.encode())
        await reply.end(b"data: %s\n\n" % body)

    _, connect = await speaking(gate(respond))
    client = await connect()
    number = await client.ask("/v1/messages", b"hello")
    assert await client.answer(number) == (200, b"data: anthropic\n\ndata: hello\n\n")
    assert client.headers[number]["x-request-id"] == "req_0"
    assert (await client.answer(await client.ask("/v1/messages", method="GET")))[0] == 405


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/x/../y", ()),
        ("//x", ()),
        ("/%2e%2e/x", ()),
        ("/x%00", ()),
        ("/", [("authorization", "a"), ("authorization", "b")]),
        ("/", [("x-api-key", "a"), ("x-api-key", "b")]),
    ],
)
async def test_what_the_guard_refuses_is_refused_here(speaking, path, headers):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    _, connect = await speaking(app)
    client = await connect()
    status, body = await client.answer(await client.ask(path, b"hello", headers=headers))
    assert status == 400
    assert json.loads(body)["error"]["code"] == "invalid_request_error"
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    ("more", "status"),
    [({"method": "BREW"}, 400), ({"headers": [(f"x{n}", "a") for n in range(300)]}, 431)],
)
async def test_methods_and_headers_are_those_that_the_guard_lets_in(speaking, more, status):
    _, connect = await speaking()
    client = await connect()
    assert (await client.answer(await client.ask("/", **more)))[0] == status


async def test_a_client_that_resets_its_stream_ends_its_request_and_no_other(speaking):
    left, began = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/other":
            await answer_with(send, b"well")
            return
        began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    server, connect = await speaking(app)
    client = await connect()
    number = await client.ask("/", b"hello")
    await began.wait()
    client.h2.reset_stream(number)
    await client.flush()
    await left.wait()
    assert await client.answer(await client.ask("/other")) == (200, b"well")
    assert not server.logged


async def test_a_client_that_leaves_ends_all_its_requests(speaking):
    left, began = [], []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            began.append(1)
            while (await receive())["type"] != "http.disconnect":
                pass
            left.append(1)

    _, connect = await speaking(app)
    client = await connect()
    for _ in range(3):
        await client.ask("/", b"hello")
    while len(began) < 3:
        await trio.sleep(0.01)
    await trio.aclose_forcefully(client.stream)
    while len(left) < 3:
        await trio.sleep(0.01)


async def test_a_client_whose_window_stays_closed_is_gone_after_the_write_deadline(speaking):
    ended = trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                await send({"type": "http.response.body", "body": b"x" * 200_000, "more_body": True})
            ended.set()

    _, connect = await speaking(app, write_seconds=0.2)
    client = await connect()
    client.takes = False
    await client.ask("/")
    with trio.fail_after(3):
        assert not await client.until(lambda: False)
        await ended.wait()  # what it sends after that goes nowhere, at once


async def test_a_long_answer_arrives_whole(speaking):
    body = bytes(range(256)) * 4000

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answer_with(send, body)

    _, connect = await speaking(app)
    client = await connect()
    assert await client.answer(await client.ask("/")) == (200, body)


@pytest.mark.parametrize("started", [False, True])
async def test_an_app_that_fails_is_said_or_cut_and_hurts_nobody_else(speaking, started):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        if scope["path"] == "/well":
            await answer_with(send, b"well")
            return
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    server, connect = await speaking(app)
    client = await connect()
    number = await client.ask("/")
    if started:
        with trio.fail_after(2):  # and not only when the connection has been idle for too long
            assert not await client.until(lambda: number in client.ended)
    else:
        assert (await client.answer(number))[0] == 500
    other = await connect()
    assert await other.answer(await other.ask("/well")) == (200, b"well")
    assert "ZeroDivisionError" in str(server.logged)


async def test_frames_that_are_none_end_their_connection_alone(speaking):
    _server, connect = await speaking()
    for garbage in (b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xff"):
        client = await connect()
        await client.stream.send_all(garbage)
        assert not await client.until(lambda: False)
    for headers in ([(":method", "CONNECT"), (":authority", "a")],):
        client = await connect()
        client.h2.config.validate_outbound_headers = False
        client.h2.send_headers(1, headers, end_stream=True)
        await client.flush()
        assert not await client.until(lambda: False)
    other = await connect()
    assert (await other.answer(await other.ask("/")))[0] == 200


async def test_an_idle_connection_is_closed_though_it_pings(speaking):
    _, connect = await speaking(keep_alive_seconds=0.3)
    client = await connect()
    assert (await client.answer(await client.ask("/")))[0] == 200
    with trio.fail_after(3):
        try:
            while True:
                client.h2.ping(b"12345678")
                await client.flush()
                await trio.sleep(0.02)
        except trio.BrokenResourceError:
            pass


async def test_a_connection_without_a_request_is_closed_in_the_time_of_a_head(speaking):
    _, connect = await speaking(header_seconds=0.2)
    client = await connect()
    with trio.fail_after(1):
        assert await client.until(lambda: client.goodbye)


async def test_streams_that_are_opened_and_reset_in_a_row_are_bounded(speaking):
    """Rapid reset: each costs the client two frames, and us a request."""
    running, most = [0], [0]

    async def app(scope, receive, send):
        if scope["type"] == "http":
            running[0] += 1
            most[0] = max(most[0], running[0])
            try:
                await trio.sleep(60)
            finally:
                running[0] -= 1

    _, connect = await speaking(app)
    client = await connect()
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(2000):
            client.h2.reset_stream(await client.ask("/"))
            await client.flush()
        await client.until(lambda: False)
        raise trio.BrokenResourceError
    assert 0 < most[0] <= 210


async def test_going_down_lets_streams_end_and_closes_idle_connections(speaking):
    go, began = trio.Event(), trio.Event()

    async def app(scope, receive, send):
        if scope["type"] == "http":
            began.set()
            await go.wait()
            await answer_with(send, b"done")

    server, connect = await speaking(app)
    busy, idle = await connect(), await connect()
    number = await busy.ask("/")
    await began.wait()
    server.shutdown.set()
    assert await idle.until(lambda: idle.goodbye)
    await trio.aclose_forcefully(idle.stream)
    go.set()
    assert await busy.answer(number) == (200, b"done")
    assert await busy.until(lambda: busy.goodbye)
    await trio.aclose_forcefully(busy.stream)
    with trio.fail_after(1):
        await server.ended.wait()


@given(st.lists(st.integers(0, 40), max_size=20), st.lists(st.integers(1, 60), max_size=30))
def test_frames_are_followed_however_they_are_cut(lengths, cuts):
    data = b"P" * 24 + b"".join(
        length.to_bytes(3, "big") + b"\x00" * 6 + b"\xff" * length for length in lengths
    )
    frames, too_long, at = Frames(30), any(length > 30 for length in lengths), 0
    try:
        for cut in [*cuts, len(data)]:
            frames.feed(data[at : at + cut])
            at += cut
    except FrameTooLong:
        assert too_long
    else:
        assert not too_long


async def test_a_frame_that_is_too_long_is_not_waited_for(speaking):
    _, connect = await speaking()
    client = await connect()
    await client.stream.send_all((2**24 - 1).to_bytes(3, "big") + b"\x00\x00\x00\x00\x00\x01")
    with trio.fail_after(1):
        assert not await client.until(lambda: False)
