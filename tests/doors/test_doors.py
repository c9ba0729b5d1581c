"""What is true of both doors, over sockets: who is let in, who has left, who is too slow, and that no byte waits."""

import json
import random
import socket
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing
from attrs import define, field

from proxy.doors import hangups
from proxy.doors import server as serving_module
from proxy.errors import Failure, Rejected
from proxy.limits import Uploads
from tests.doors.gate import gate

POST = b"POST /v1/messages HTTP/1.1\r\n"
ASK = POST + b"host: a\r\n"
EMPTY = ASK + b"content-length: 0\r\n\r\n"
CHUNKED = ASK + b"transfer-encoding: chunked\r\n\r\n"
OLD = b"POST /v1/messages HTTP/1.0\r\nhost: a\r\n"
UPGRADE = b"GET /v1/messages HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n"
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
    "TE old": OLD + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
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
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two keys": sized(b"x-api-key: a", b"x-api-key: b", b"content-length: 0"),
    "TE with trailing comma": sized(b"transfer-encoding: chunked,") + b"0\r\n\r\n",
    "TE empty": sized(b"transfer-encoding:", b"content-length: 0"),
    "TE empty alone": sized(b"transfer-encoding:"),
    "TE after vertical tab": sized(b"transfer-encoding: \x0bchunked") + b"0\r\n\r\n",
    "TE with parameter": sized(b"transfer-encoding: chunked;q=1") + b"0\r\n\r\n",
    "TE gzip chunked": sized(b"transfer-encoding: gzip, chunked") + b"0\r\n\r\n",
    "TE without a colon space": sized(b"transfer-encoding chunked") + b"0\r\n\r\n",
    "CL folded": sized(b"content-length:", b" 0"),
    "CL null": sized(b"content-length: 0\x00"),
    "CL tab name": sized(b"content-length\t: 0"),
    "CL float": sized(b"content-length: 0.0"),
    "CL and TE in 1.0": OLD + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk size space before": CHUNKED + b" 1\r\na\r\n0\r\n\r\n",
    "chunk size space after": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "chunk size tab after": CHUNKED + b"1\t\r\na\r\n0\r\n\r\n",
    "chunk size underscore": CHUNKED + b"1_0\r\na\r\n0\r\n\r\n",
    "chunk size null": CHUNKED + b"1\x00\r\na\r\n0\r\n\r\n",
    "chunk size CR alone": CHUNKED + b"1\ra\r\n0\r\n\r\n",
    "chunk size minus": CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
    "chunk extension with CR": CHUNKED + b"1;a\rb\r\na\r\n0\r\n\r\n",
    "chunk extension null": CHUNKED + b"1;a\x00b\r\na\r\n0\r\n\r\n",
    "chunk ends with CR": CHUNKED + b"1\r\na\r0\r\n\r\n",
    "last chunk bare LF": CHUNKED + b"0\n\n",
    "last chunk ends with LF": CHUNKED + b"0\r\n\n",
    "trailer bare LF": CHUNKED + b"0\r\nx: y\n\r\n",
    "trailer space before colon": CHUNKED + b"0\r\nx : y\r\n\r\n",
    "trailer with a length": CHUNKED + b"0\r\ncontent-length: 50\r\n\r\n",
    "trailer with a coding": CHUNKED + b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    "trailer null": CHUNKED + b"0\r\nx: \x00\r\n\r\n",
    "null in target": b"POST /v1/mess\x00ages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "null in method": b"PO\x00ST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "null in version": b"POST /v1/messages HTTP/1.1\x00\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "space before method": b" POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "tabs in request line": b"POST\t/v1/messages\tHTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "version with space": b"POST /v1/messages HTTP/1.1 \r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "version 0.9": b"POST /v1/messages HTTP/0.9\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "empty lines before": b"\r\n\r\n" + EMPTY,
    "LF before": b"\n" + EMPTY,
    "host empty": POST + b"host:\r\ncontent-length: 0\r\n\r\n",
    "host folded": POST + b"host: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "host list": POST + b"host: a, b\r\ncontent-length: 0\r\n\r\n",
    "host null": POST + b"host: a\x00\r\ncontent-length: 0\r\n\r\n",
    "absolute target of another host": b"POST https://b/v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "scheme-relative target": b"POST //a/v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "encoded dots": b"POST /v1/%2e%2e/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    "websocket with a body": sized(b"connection: upgrade", b"upgrade: websocket", b"content-length: 5")
    + b"hello",
    "websocket by POST": sized(b"connection: upgrade", b"upgrade: websocket"),
    "websocket and h2c": UPGRADE + b"upgrade: h2c, websocket\r\n\r\n",
    "upgrade twice": UPGRADE + b"upgrade: websocket\r\nupgrade: h2c\r\n\r\n",
    "websocket without version and key": UPGRADE + b"upgrade: websocket\r\n\r\n",
    "websocket of another version": UPGRADE + b"upgrade: websocket\r\nsec-websocket-version: 12\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "websocket with a short key": UPGRADE + b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAA\r\n\r\n",
    "no colon but CR": sized(b"x\rcontent-length: 0"),
    "form feed in name": sized(b"content-length\x0c: 0"),
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


HEAD_ASKED = b"HEAD /v1/messages HTTP/1.1\r\nhost: a\r\n\r\n"
WEBSOCKET = (
    b"GET %s HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
HELLO = b"5\r\nhello\r\n"

NEXT = {
    "counted": (sized(b"content-length: 5") + b"hello", [200, 404]),
    "length with zeros": (sized(b"content-length: 005") + b"hello", [200, 404]),
    "no body": (sized(), [200, 404]),
    "a body that is a request": (sized(b"content-length: %d" % len(SMUGGLED)) + SMUGGLED, [200, 404]),
    "a GET with a body": (
        b"GET /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        [405, 404],
    ),
    "chunks": (CHUNKED + HELLO + b"0\r\n\r\n", [200, 404]),
    "chunks with extensions": (CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', [200, 404]),
    "chunks with zeros": (CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", [200, 404]),
    "a chunk that is a request": (
        CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        [200, 404],
    ),
    "trailers": (CHUNKED + HELLO + b"0\r\nx: y\r\nhost: b\r\n\r\n", [200, 404]),
    "head": (HEAD_ASKED, [405, 404]),
    "preflight": (b"OPTIONS /v1/messages HTTP/1.1\r\nhost: a\r\n\r\n", [204, 404]),
    "one empty line before": (b"\r\n" + EMPTY, [200, 404]),
    "expecting, body at once": (sized(b"content-length: 5", b"expect: 100-continue") + b"hello", [200, 404]),
    "expecting nothing": (sized(b"content-length: 0", b"expect: 100-continue"), [200, 404]),
    "last": (sized(b"connection: close", b"content-length: 0"), [200]),
    "last in a list": (sized(b"connection: keep-alive, Close", b"content-length: 0"), [200]),
    "old": (OLD + b"content-length: 5\r\n\r\nhello", [200]),
    "old, asking to be kept": (
        OLD + b"connection: keep-alive\r\ncontent-length: 0\r\n\r\n",
        [200],
    ),
    "old, expecting": (
        b"POST /v1/messages HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello",
        [200],
    ),
    "h2c": (
        sized(b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMA"),
        [200, 404],
    ),
    "h2c, counted": (
        sized(b"connection: upgrade", b"upgrade: h2c", b"content-length: 5") + b"hello",
        [200, 404],
    ),
    "h2c, chunked": (
        ASK
        + b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n"
        + HELLO
        + b"0\r\n\r\n",
        [200, 404],
    ),
    "h2c by GET": (UPGRADE + b"upgrade: h2c\r\n\r\n", [405, 404]),
    "h2c, not named": (sized(b"upgrade: h2c", b"content-length: 0"), [200, 404]),
    "TLS": (sized(b"Upgrade: TLS/1.2", b"Connection: Upgrade", b"content-length: 5") + b"hello", [200, 404]),
    "old, asking for a websocket": (OLD + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", [200]),
    "websocket on the API": (WEBSOCKET % b"/v1/messages", None),
    "websocket elsewhere": (WEBSOCKET % b"/", None),
}
"""Requests that are let in, and the statuses of the answers where another request follows; `None`: of no matter."""


@pytest.mark.parametrize("name", NEXT)
async def test_what_follows_a_request_is_the_next_one_or_is_never_looked_at(serving, name):
    asked = []

    async def respond(gateway, path, request, reply):
        asked.append(request.path)
        await whole(gateway, path, request, reply)

    server = await serving(gate(respond), keep_alive_seconds=0.1)
    client = await server.connect()
    data, expected = NEXT[name]
    with suppress(trio.BrokenResourceError):
        await client.send(data + SMUGGLED)
    seen, head_only = [], data is HEAD_ASKED
    with suppress(AssertionError):  # closed
        while True:
            answer = await client.answer(head_only=head_only and not seen)
            if answer.status != 100:
                seen.append(answer.status)
    assert not client._read, "every byte belongs to an answer"
    if expected is None:
        assert set(seen) <= {400, 403, 404, 405, 426}
        assert len(seen) == 1, "what followed was no request"
        assert asked == []
    else:
        assert seen == expected
        assert asked == ["/v1/messages"] * (expected[0] == 200)
    assert not server.logged


async def test_an_answer_without_a_body_announces_none_that_a_client_would_wait_for(serving):
    client = await (await serving(gate(whole))).connect()
    await client.send(b"OPTIONS /v1/messages HTTP/1.1\r\nhost: a\r\n\r\n" + HEAD_ASKED)
    preflight = await client.answer()
    assert preflight.status == 204
    assert not {"content-length", "transfer-encoding"} & set(preflight.headers)
    refused = (await client.answer(head_only=True)).headers
    assert int(refused["content-length"]) > 0
    assert refused["allow"] == "POST, OPTIONS"


async def test_a_trailer_is_no_header(serving):
    seen = []

    async def respond(gateway, path, request, reply):
        seen.append(request.headers)
        await whole(gateway, path, request, reply)

    client = await (await serving(gate(respond))).connect()
    await client.send(CHUNKED + HELLO + b"0\r\nauthorization: Bearer a\r\nx-user-key: b\r\n\r\n")
    assert (await client.answer()).body == b"5"
    assert [sorted(headers) for headers in seen] == [["host", "transfer-encoding"]]


async def test_a_refusal_comes_before_an_upload_that_waits_and_what_is_sent_all_the_same_is_no_request(
    serving,
):
    async def respond(_gateway, _path, _request, reply):
        reply.start(402, {})
        await reply.end(b"{}")

    client = await (await serving(gate(respond))).connect()
    await client.send(sized(b"content-length: %d" % len(SMUGGLED), b"expect: 100-continue"))
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (402, "close")
    with suppress(trio.BrokenResourceError):
        await client.send(SMUGGLED + SMUGGLED)
    await client.stream.send_eof()
    assert await client.rest() == b""


async def test_an_answer_may_begin_before_its_request_has_been_read(serving):
    async def respond(_gateway, _path, request, reply):
        reply.start(200, {})
        await reply.write(b"a")
        await reply.end(await request.body(100))

    client = await (await serving(gate(respond))).connect()
    for request in (sized(b"content-length: 5") + b"hello", CHUNKED + HELLO + b"0\r\n\r\n"):
        await client.send(request)
        answer = await client.answer()
        assert answer.body == b"ahello"
        if answer.headers.get("connection") == "close":
            client = await (await serving(gate(respond))).connect()


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
    hello = sized(b"content-length: 5") + b"hello"
    for stage, request in (
        ("body", hello[:-3]),
        ("thinking", hello),
        ("thinking", EMPTY),
        ("started", hello),
        ("writing", EMPTY),
    ):
        leaving = Leaving(stage)
        running = await serving(gate(leaving))
        client = await running.connect()
        await client.send(request)
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


async def until(check):
    with trio.fail_after(2):
        while not check():
            await trio.sleep(0.001)


async def test_a_body_takes_room_as_it_comes_and_gives_it_back_however_it_ends(serving):
    room, bodies = Uploads(100_000), []

    async def respond(_gateway, _path, request, reply):
        try:
            bodies.append(len(await request.body(1_000_000, room)))
            status = 200
        except Rejected as refused:
            status = refused.status
        reply.start(status, {})
        await reply.end(b"")

    server = await serving(gate(respond))
    slow = await server.connect()
    await slow.send(sized(b"content-length: 90000") + bytes(80_000))
    await until(lambda: room.taken == 80_000)
    other = await server.connect()
    await other.send(sized(b"content-length: 90000") + bytes(60_000))
    assert (await other.answer()).status == 503
    small = await server.connect()
    await small.send(sized(b"content-length: 5") + b"hello")
    assert (await small.answer()).status == 200
    await slow.send(bytes(10_000))
    assert (await slow.answer()).status == 200
    assert (bodies, room.taken) == ([5, 90_000], 0)
    leaving = await server.connect()
    await leaving.send(sized(b"content-length: 90000") + bytes(80_000))
    await until(lambda: room.taken == 80_000)
    await trio.aclose_forcefully(leaving.stream)
    await until(lambda: room.taken == 0)


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


@define
class Held:
    """Answers with a stream that ends when it is told to; counts them."""

    began: trio.Event = field(factory=trio.Event)
    go: trio.Event = field(factory=trio.Event)
    asked: int = 0

    async def __call__(self, _gateway, _path, request, reply):
        self.asked += 1
        await request.body(100)
        reply.start(200, {})
        await reply.write(b"a")
        self.began.set()
        await self.go.wait()
        await reply.end(b"b")


async def test_going_down_lets_a_stream_end_and_closes_idle_connections(serving):
    held = Held()
    server = await serving(gate(held))
    busy, idle = await server.connect(), await server.connect()
    await busy.send(EMPTY)
    await held.began.wait()
    server.shutdown.set()
    with trio.fail_after(1):
        assert await idle.rest() == b""
    held.go.set()
    assert (await busy.answer()).body == b"ab"
    with trio.fail_after(1):
        assert await busy.rest() == b""
        await server.ended.wait()


async def test_going_down_begins_no_request_that_was_sent_ahead(serving):
    held = Held()
    server = await serving(gate(held))
    client = await server.connect()
    await client.send(EMPTY * 3)
    await held.began.wait()
    server.shutdown.set()
    await trio.sleep(0.02)
    held.go.set()
    assert (await client.answer()).body == b"ab"
    with trio.fail_after(2):
        assert await client.rest() == b""
        await server.ended.wait()
    assert held.asked == 1


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
