"""What is true of both doors, over sockets: who is let in, who has left, who is too slow, and that no byte waits."""

import json
import random
import socket
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing

from proxy.doors import hangups
from proxy.doors import server as serving_module
from proxy.errors import Failure
from tests.doors.gate import gate

POST = b"POST /v1/messages HTTP/1.1\r\n"
ASK = POST + b"host: a\r\n"
EMPTY = ASK + b"content-length: 0\r\n\r\n"
CHUNKED = ASK + b"transfer-encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nhost: a\r\n\r\n"


def sized(*lines):
    return ASK + b"\r\n".join(lines) + b"\r\n\r\n"


SMUGGLING = {
    "CL and TE": sized(b"content-length: 5", b"transfer-encoding: chunked") + b"0\r\n\r\n",
    "TE and CL": sized(b"transfer-encoding: chunked", b"content-length: 5") + b"0\r\n\r\n",
    "two CL": sized(b"content-length: 0", b"content-length: 0"),
    "two different CL": sized(b"content-length: 0", b"content-length: 50"),
    "CL list": sized(b"content-length: 0, 0"),
    "CL plus": sized(b"content-length: +0"),
    "CL minus": sized(b"content-length: -0"),
    "CL hex": sized(b"content-length: 0x0"),
    "CL with space": sized(b"content-length: 0 0"),
    "CL empty": sized(b"content-length:"),
    "CL huge": sized(b"content-length: 18446744073709551616"),
    "CL underscore": sized(b"content-length: 1_0") + b"a" * 10,
    "TE twice": sized(b"transfer-encoding: chunked", b"transfer-encoding: chunked") + b"0\r\n\r\n",
    "TE identity": sized(b"transfer-encoding: identity"),
    "TE list": sized(b"transfer-encoding: chunked, identity") + b"0\r\n\r\n",
    "TE unknown": sized(b"transfer-encoding: xchunked") + b"0\r\n\r\n",
    "TE with tab": sized(b"transfer-encoding:\tchunked\x0b") + b"0\r\n\r\n",
    "TE quoted": sized(b'transfer-encoding: "chunked"') + b"0\r\n\r\n",
    "TE old": b"POST /v1/messages HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE space before colon": sized(b"transfer-encoding : chunked") + b"0\r\n\r\n",
    "TE folded": sized(b"transfer-encoding:", b" chunked") + b"0\r\n\r\n",
    "TE null": sized(b"transfer-encoding: chunked\x00") + b"0\r\n\r\n",
    "space before name": sized(b" content-length: 0"),
    "no colon": sized(b"content-length"),
    "no name": sized(b": 0"),
    "odd name": sized(b"content\xad-length: 0"),
    "null in name": sized(b"content\x00-length: 0"),
    "space in name": sized(b"content length: 0"),
    "bare LF in head": POST + b"host: a\ncontent-length: 0\r\n\r\n",
    "bare CR in head": POST + b"host: a\rcontent-length: 0\r\n\r\n",
    "LF only": b"POST /v1/messages HTTP/1.1\nhost: a\ncontent-length: 0\n\n",
    "chunk size not hex": CHUNKED + b"g\r\n",
    "chunk size signed": CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
    "chunk size 0x": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "chunk size huge": CHUNKED + b"ffffffffffffffffff\r\na\r\n",
    "chunk size wraps": CHUNKED + b"10000000000000001\r\na\r\n0\r\n\r\n",
    "chunk size empty": CHUNKED + b"\r\na\r\n0\r\n\r\n",
    "chunk with bare LF": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "chunk longer than said": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "chunk shorter than said": CHUNKED + b"3\r\na\r\n0\r\n\r\n",
    "chunk ends with LF": CHUNKED + b"1\r\na\n0\r\n\r\n",
    "chunk extension with LF": CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n",
    "trailer without colon": CHUNKED + b"0\r\nx\r\n\r\n",
    "trailer folded": CHUNKED + b"0\r\nx: y\r\n z\r\n\r\n",
    "host missing": POST + b"content-length: 0\r\n\r\n",
    "host twice": sized(b"host: b", b"content-length: 0"),
    "host with path": POST + b"host: a/b\r\ncontent-length: 0\r\n\r\n",
    "host with user": POST + b"host: a@b\r\ncontent-length: 0\r\n\r\n",
    "absolute target": b"POST http://a/v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "authority target": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "asterisk target": b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "dotted target": b"POST /v1/x/../messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "fragment": b"POST /v1/messages#x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "two spaces": b"POST  /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "no version": b"POST /v1/messages\r\nhost: a\r\n\r\n",
    "other version": b"POST /v1/messages HTTP/1.2\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "lower case method": b"post /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "h2c": sized(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two keys": sized(b"x-api-key: a", b"x-api-key: b", b"content-length: 0"),
}


async def whole(gateway, path, request, reply):
    """Read the body and say how long it was; word what is refused, as the request path does."""
    try:
        length = len(await request.body(1_000_000))
    except Failure as failure:
        wording = gateway.dialects[path.dialect].error(failure, request.id)
        reply.start(wording.status, dict(wording.headers))
        await reply.end(wording.body)
        return
    reply.start(200, {})
    await reply.end(b"%d" % length)


@pytest.mark.parametrize("name", SMUGGLING)
async def test_no_request_is_smuggled_in(serving, name):
    server = await serving(gate(whole))
    client = await server.connect()
    with suppress(trio.BrokenResourceError):
        await client.send(SMUGGLING[name] + SMUGGLED)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
    assert await client.rest() == b""
    assert not server.logged


@pytest.mark.parametrize(
    ("lines", "status"),
    [((b"expect: 200-ok", b"content-length: 0"), 417), ([b"x%d: a" % n for n in range(300)], 431)],
)
async def test_other_refusals_have_their_own_status(serving, lines, status):
    client = await (await serving(gate(whole))).connect()
    await client.send(sized(*lines))
    assert (await client.answer()).status == status


# Who leaves


def leave(client, how):
    sock = client.stream.socket
    if how == "half-close":
        sock.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Leaving:
    """A request path that stands still at a stage until it is cancelled."""

    def __init__(self, stage):
        self.stage = stage
        self.there, self.over = trio.Event(), trio.Event()
        self.cancelled = False

    async def __call__(self, _gateway, _path, request, reply):
        try:
            if self.stage == "body":
                self.there.set()
            await request.body(100)
            reply.start(200, {})
            if self.stage == "writing":
                self.there.set()
                while True:
                    await reply.write(b"x" * 100_000)
            if self.stage == "started":
                await reply.write(b"x")
            self.there.set()
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled = True
            raise
        finally:
            self.over.set()


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("stage", ["body", "thinking", "started", "writing"])
async def test_a_client_that_leaves_cancels_its_request_at_every_stage(serving, stage, how):
    leaving = Leaving(stage)
    server = await serving(gate(leaving))
    client = await server.connect()
    await client.send(sized(b"content-length: 5") + (b"he" if stage == "body" else b"hello"))
    await leaving.there.wait()
    await trio.testing.wait_all_tasks_blocked(0.005)
    leave(client, how)
    with trio.fail_after(2):
        await leaving.over.wait()
    assert leaving.cancelled
    assert not server.logged


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_a_client_that_leaves_silences_a_reply_that_is_to_fall_mute(serving, how):
    told, over = trio.Event(), trio.Event()

    async def respond(_gateway, _path, request, reply):
        await request.body(100)
        reply.mute_when_gone(mute=True)
        reply.when_gone(told.set)
        reply.start(200, {})
        while not told.is_set():
            await reply.write(b"x" * 100_000)
        for _ in range(100):
            await reply.write(b"x" * 100_000)
        await reply.end(b"")
        over.set()

    server = await serving(gate(respond))
    client = await server.connect()
    await client.send(EMPTY)
    await trio.sleep(0.02)
    leave(client, how)
    with trio.fail_after(2):
        await told.wait()
        await over.wait()
    assert not server.logged


async def test_a_client_that_has_sent_more_and_half_closes_has_left(serving):
    """As in nginx and Go; what it sent ahead is not answered any more."""
    leaving = Leaving("thinking")
    server = await serving(gate(leaving))
    client = await server.connect()
    await client.send(EMPTY * 3)
    await leaving.there.wait()
    leave(client, "half-close")
    with trio.fail_after(2):
        await leaving.over.wait()
        assert await client.rest() == b""


async def test_a_client_that_stops_reading_is_gone_after_the_write_deadline(serving):
    leaving = Leaving("writing")
    server = await serving(gate(leaving), write_seconds=0.2)
    client = await server.connect()
    await client.send(EMPTY)
    with trio.fail_after(3):
        await leaving.over.wait()
    assert leaving.cancelled
    assert not server.logged


async def test_without_epoll_a_client_that_leaves_is_noticed_too(serving, monkeypatch):
    monkeypatch.setattr(serving_module, "hangups", hangups.PeekingHangups)
    for stage in ("body", "thinking", "started", "writing"):
        leaving = Leaving(stage)
        running = await serving(gate(leaving))
        client = await running.connect()
        await client.send(sized(b"content-length: 5") + (b"he" if stage == "body" else b"hello"))
        await leaving.there.wait()
        await trio.testing.wait_all_tasks_blocked(0.005)
        leave(client, "half-close")
        with trio.fail_after(2):
            await leaving.over.wait()
        assert leaving.cancelled
        assert not running.logged


async def test_without_epoll_connections_are_kept_and_pipelined(serving, monkeypatch):
    monkeypatch.setattr(serving_module, "hangups", hangups.PeekingHangups)
    client = await (await serving(gate(whole))).connect()
    for _ in range(3):
        await client.send(sized(b"content-length: 5") + b"hello" + EMPTY)
        assert (await client.answer()).body == b"5"
        assert (await client.answer()).body == b"0"


async def test_many_clients_that_come_and_go_are_never_mistaken_for_each_other(serving):
    """Descriptors are reused at once; nobody's request may be cancelled because somebody else has left."""
    chance = random.Random(20261121)  # the same each time
    answered = []

    async def respond(_gateway, _path, request, reply):
        await request.body(100)
        reply.start(200, {})
        await reply.write(b"x")
        await trio.sleep(0.002)
        await reply.end(b"")

    server = await serving(gate(respond))

    async def one(stays):
        client = await server.connect()
        for _ in range(5):
            await client.send(EMPTY)
            if not stays and chance.random() < 0.5:
                break
            assert (await client.answer()).body == b"x"
            answered.append(1)
        leave(client, chance.choice(["close", "reset"]))

    for _ in range(10):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number % 2)
    assert len(answered) >= 500
    assert not server.logged


# How an answer arrives


async def test_no_byte_waits_for_more(serving, monkeypatch):
    """Without TCP_NODELAY the second write of a stream waits 40 ms for the acknowledgement of the first."""
    streams = []

    accept = trio.SocketListener.accept

    async def noting(self):
        streams.append(await accept(self))
        return streams[-1]

    monkeypatch.setattr(trio.SocketListener, "accept", noting)
    client = await (await serving(gate(whole))).connect()
    await client.send(EMPTY)
    await client.answer()
    assert streams
    assert all(stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for stream in streams)


async def test_each_write_can_be_read_before_the_next(serving):
    go = trio.Semaphore(0)

    async def respond(_gateway, _path, request, reply):
        await request.body(100)
        reply.start(200, {})
        for number in range(5):
            await reply.write(b"data: %d\n\n" % number)
            await go.acquire()
        await reply.end(b"")

    client = await (await serving(gate(respond))).connect()
    await client.send(EMPTY)
    for number in range(5):
        read = b""
        while b"data: %d\n\n" % number not in read:
            read += await client.read()
        go.release()
    assert (await client.read()).endswith(b"0\r\n\r\n")


async def test_a_silent_stream_is_kept_alive_between_whole_frames(serving):
    async def respond(_gateway, _path, request, reply):
        await request.body(100)
        async with reply.keep_alive(b": keep-alive\n\n", 0.02):
            await trio.sleep(0.07)
            reply.start(200, {})
            await reply.write(b"data: 1\n\n")
        await reply.end(b"data: [DONE]\n\n")

    client = await (await serving(gate(respond))).connect()
    for _ in range(2):
        await client.send(EMPTY)
        answer = await client.answer()
        beats, rest = answer.body[: -len(b"data: 1\n\ndata: [DONE]\n\n")], answer.body[-22:]
        assert set(beats.split(b"\n\n")) == {b": keep-alive", b""}
        assert rest.endswith(b"data: [DONE]\n\n")
        assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_long_stream_arrives_whole_over_either_transport(serving, tls, encrypted):
    async def respond(_gateway, _path, request, reply):
        body = await request.body(10_000_000)
        reply.start(200, {})
        async with reply.keep_alive(b": keep-alive\n\n", 15):
            for at in range(0, len(body), 99_999):
                await reply.write(body[at : at + 99_999])
        await reply.end(b"end")

    server = await serving(gate(respond), ssl_context=tls[0] if encrypted else None)
    client = await server.connect(tls[1] if encrypted else None)
    body = random.Random(1).randbytes(3_000_000)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, sized(b"content-length: %d" % len(body)) + body)
            answer = await client.answer()
        assert answer.body == body + b"end"
    assert not server.logged
    await trio.aclose_forcefully(client.stream)


async def test_a_tls_client_that_leaves_cancels_its_request(serving, tls):
    leaving = Leaving("started")
    server = await serving(gate(leaving), ssl_context=tls[0])
    client = await server.connect(tls[1])
    await client.send(EMPTY)
    await leaving.there.wait()
    await trio.aclose_forcefully(client.stream)
    with trio.fail_after(2):
        await leaving.over.wait()
    assert leaving.cancelled
    assert not server.logged


# Going down


async def test_going_down_lets_a_stream_end_and_closes_idle_connections(serving):
    began, go = trio.Event(), trio.Event()

    async def respond(_gateway, _path, request, reply):
        await request.body(100)
        reply.start(200, {})
        await reply.write(b"a")
        began.set()
        await go.wait()
        await reply.end(b"b")

    server = await serving(gate(respond))
    busy, idle = await server.connect(), await server.connect()
    await busy.send(EMPTY)
    await began.wait()
    server.shutdown.set()
    with trio.fail_after(1):
        assert await idle.rest() == b""
    go.set()
    assert (await busy.answer()).body == b"ab"
    with trio.fail_after(1):
        assert await busy.rest() == b""
        await server.ended.wait()


async def test_a_stream_that_runs_past_the_drain_is_cut(serving):
    leaving = Leaving("started")
    server = await serving(gate(leaving), drain_seconds=0.1)
    client = await server.connect()
    await client.send(EMPTY)
    await leaving.there.wait()
    server.shutdown.set()
    with trio.fail_after(2):
        await server.ended.wait()
    assert leaving.cancelled
    assert not (await client.rest()).endswith(b"0\r\n\r\n")
