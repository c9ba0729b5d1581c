"""The fork in front of Quart: API requests go to the request path whole, everything else Quart's ordinary way."""

import json

import pytest
import quart
import trio
import trio.testing
from quart import Blueprint

from proxy.config import Listen, Server
from proxy.doors import quart_door
from proxy.errors import Failure
from tests.doors.gate import gate

ASK = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"


def door(respond, **config):
    page = Blueprint("page", __name__)

    @page.get("/page")
    async def shown():
        return {"a": 1}

    @page.get("/broken")
    async def broken():
        raise ZeroDivisionError("a secret detail")

    return gate(respond, [page], **config)


async def nobody(*_arguments):
    raise AssertionError("not for the request path")


async def test_an_api_request_reaches_the_request_path_whole(serving):
    async def respond(_gateway, path, request, reply):
        body = await request.body(100)
        said = [path.dialect, request.id, request.method, request.path, request.query, body.decode()]
        reply.start(200, {"content-type": "application/json"})
        await reply.end(json.dumps([*said, request.headers["x-a"]]).encode())

    server = await serving(door(respond))
    client = await server.connect()
    await client.send(
        b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: x\r\nX-A: b\r\ncontent-length: 2\r\n\r\nhi"
    )
    answer = await client.answer()
    assert json.loads(answer.body) == ["anthropic", "req_0", "POST", "/v1/messages", "beta=true", "hi", "b"]
    assert answer.headers["x-request-id"] == answer.headers["request-id"] == "req_0"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_a_long_stream_is_not_cut_by_quarts_own_time_out(serving):
    """RESPONSE_TIMEOUT is 60 s by default; set to nothing it would cut whatever passes Quart."""

    async def respond(_gateway, _path, _request, reply):
        reply.start(200, {})
        for _ in range(5):
            await reply.write(b"data: x\n\n")
            await trio.sleep(0.02)
        await reply.end(b"data: [DONE]\n\n")

    app = door(respond)
    app.config["RESPONSE_TIMEOUT"] = 0.01
    server = await serving(app)
    client = await server.connect()
    await client.send(ASK + b"content-length: 0\r\n\r\n")
    assert (await client.answer()).body == b"data: x\n\n" * 5 + b"data: [DONE]\n\n"


async def test_a_body_larger_than_quart_allows_is_read(serving):
    size = quart_door.PAGE_BODY_BYTES_MAX + 1

    async def respond(_gateway, _path, request, reply):
        reply.start(200, {})
        await reply.end(b"%d" % len(await request.body(2 * size)))

    server = await serving(door(respond))
    client = await server.connect()
    await client.send(ASK + b"content-length: %d\r\n\r\n" % size + b"x" * size)
    assert (await client.answer()).body == b"%d" % size


async def test_a_hang_up_cancels_the_request(serving):
    ended = trio.Event()

    async def respond(_gateway, _path, request, reply):
        await request.body(10)
        reply.start(200, {})
        await reply.write(b"data: x\n\n")
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    server = await serving(door(respond))
    client = await server.connect()
    await client.send(ASK + b"content-length: 0\r\n\r\n")
    await client.read()
    await client.stream.aclose()
    with trio.fail_after(2):
        await ended.wait()


async def test_a_request_that_falls_mute_is_not_cancelled(serving):
    ended = trio.Event()

    async def respond(_gateway, _path, request, reply):
        await request.body(10)
        reply.mute_when_gone(mute=True)
        reply.start(200, {})
        await reply.write(b"data: x\n\n")
        while not reply.client_gone:
            await trio.sleep(0.01)
        await reply.write(b"data: y\n\n")
        ended.set()

    server = await serving(door(respond))
    client = await server.connect()
    await client.send(ASK + b"content-length: 0\r\n\r\n")
    await client.read()
    await client.stream.aclose()
    with trio.fail_after(2):
        await ended.wait()


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"GET /v1/messages", 405, "invalid_request_error"),
        (b"POST /v1/nothing", 404, "not_found"),
        (b"GET /nothing", 404, "not_found"),
        (b"POST /v1/embeddings", 404, "not_found"),
        (b"POST /page", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_there_is_said_in_json(serving, line, status, code):
    server = await serving(door(nobody))
    client = await server.connect()
    await client.send(line + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    answer = await client.answer()
    error = json.loads(answer.body)["error"]
    assert answer.status == status
    assert code in (error.get("code"), error["type"])
    assert answer.headers["x-request-id"]


async def test_pages_go_quarts_ordinary_way_and_a_broken_one_tells_nothing(serving):
    server = await serving(door(nobody))
    client = await server.connect()
    await client.send(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n")
    assert json.loads((await client.answer()).body) == {"a": 1}
    await client.send(b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await client.answer()
    assert answer.status == 500
    assert b"secret" not in answer.body
    await client.send(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await client.answer(head_only=True)).status in (200, 404)


async def test_browsers_may_ask_beforehand_without_credentials(serving):
    server = await serving(door(nobody))
    client = await server.connect()
    await client.send(
        b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: https://a.example\r\n"
        b"access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-stainless-os\r\n\r\n"
    )
    answer = await client.answer(head_only=True)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def answered_by(wording):
    """Respond by reading the body and wording whatever is refused, as the request path does."""

    async def respond(gateway, path, request, reply):
        try:
            await request.body(100)
        except Failure as failure:
            worded = gateway.dialects[path.dialect].error(failure, request.id)
            reply.start(worded.status, dict(worded.headers))
            await reply.end(worded.body)
            return
        reply.start(200, {})
        await reply.end(wording)

    return respond


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"content-length: 101\r\n\r\n", 413),
        (b"content-length: 10000000\r\nexpect: 100-continue\r\n\r\n", 413),
        (b"content-length: 5\r\ncontent-encoding: gzip\r\n\r\n", 415),
        (b"transfer-encoding: chunked\r\n\r\n65\r\n" + b"x" * 101 + b"\r\n", 413),
    ],
)
async def test_a_refused_body_is_said_in_the_callers_dialect_before_it_is_read(serving, head, status):
    server = await serving(door(answered_by(b"read")))
    client = await server.connect()
    await client.send(ASK + head)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert json.loads(answer.body)["type"] == "error"
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_a_slow_body_is_refused_in_the_callers_dialect(serving):
    app = door(answered_by(b"read"), server=Server(body_seconds_min=0.1))
    server = await serving(app, body_seconds_min=0.1)
    client = await server.connect()
    await client.send(ASK + b"content-length: 5\r\n\r\nhi")
    answer = await client.answer()
    assert answer.status == 408
    assert json.loads(answer.body)["type"] == "error"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"a.example", 200),
        (b"A.example:8080", 200),
        (b"127.0.0.1:1", 421),
        (b"b.example", 421),
        (b"a.example.b", 421),
    ],
)
async def test_only_allowed_hosts_are_answered(serving, host, status):
    server = await serving(door(answered_by(b"read"), listen=Listen(allowed_hosts=("a.example",))))
    client = await server.connect()
    await client.send(b"POST /v1/messages HTTP/1.1\r\nhost: %s\r\ncontent-length: 0\r\n\r\n" % host)
    assert (await client.answer()).status == status


async def test_a_websocket_of_another_host_is_refused_as_everything_else_is(serving):
    server = await serving(door(nobody, listen=Listen(allowed_hosts=("a.example",))))
    for host, status in ((b"a.example", 404), (b"b.example", 421)):
        client = await server.connect()
        await client.send(
            b"GET /v1/realtime HTTP/1.1\r\nhost: "
            + host
            + b"\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert (await client.answer()).status == status


@pytest.mark.parametrize(
    ("line", "length", "statuses"),
    [
        (b"GET /page", 5, [200]),
        (b"POST /page", 5, [405]),
        (b"POST /nothing", 5, [404]),
        (b"POST /v1/nothing", 5, [404]),
        (b"POST /broken", 5, [405]),
        (b"POST /closed", 5, [401]),
        (b"POST /form", 5, [100, 200]),
        (b"POST /pieces", 5, [100, 200]),
        (b"POST /form", quart_door.PAGE_BODY_BYTES_MAX + 1, [413]),
    ],
)
async def test_a_page_lets_a_client_send_its_body_only_when_it_reads_it(serving, line, length, statuses):
    page = Blueprint("forms", __name__)

    @page.post("/form")
    async def form():
        return await quart.request.get_data()

    @page.post("/pieces")
    async def pieces():
        return b"".join([piece async for piece in quart.request.body])

    @page.post("/closed")
    async def closed():
        return b"who are you?", 401

    app = door(nobody)
    app.register_blueprint(page)
    client = await (await serving(app)).connect()
    await client.send(line + b" HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % length)
    await client.send(b"expect: 100-continue\r\n\r\n")
    answer = await client.answer()
    assert answer.status == statuses[0]
    if answer.status == 100:
        await client.send(b"hello")
        answer = await client.answer()
        assert (answer.status, answer.body) == (statuses[1], b"hello")


@pytest.mark.parametrize("path", [b"/v1/realtime", b"/page", b"/nothing"])
async def test_a_websocket_is_refused_in_words(serving, path):
    server = await serving(door(nobody))
    client = await server.connect()
    await client.send(
        b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nx"
    )
    answer = await client.answer()
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "not_found"
    assert answer.headers["x-request-id"] == "req_0"
    assert not server.logged


async def test_a_request_id_is_ours_and_never_the_clients(serving):
    server = await serving(door(answered_by(b"read")))
    client = await server.connect()
    for n, line in enumerate((b"POST /v1/messages", b"GET /page", b"GET /nothing", b"OPTIONS /v1/x")):
        await client.send(line + b" HTTP/1.1\r\nhost: x\r\nx-request-id: theirs\r\ncontent-length: 0\r\n\r\n")
        answer = await client.answer(head_only=line.startswith(b"OPTIONS"))
        assert answer.headers["x-request-id"] == f"req_{n}"


async def test_a_client_that_leaves_right_after_the_end_was_not_hung_up_on(serving):
    seen = []

    async def respond(_gateway, _path, request, reply):
        await request.body(10)
        reply.start(200, {})
        await reply.write(b"data: x\n\n")
        await reply.end(b"data: [DONE]\n\n")
        await trio.lowlevel.checkpoint()
        seen.append(reply.client_gone)

    server = await serving(door(respond))
    client = await server.connect()
    for _ in range(20):
        await client.send(ASK + b"content-length: 0\r\n\r\n")
        await client.answer()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert seen == [False] * 20
