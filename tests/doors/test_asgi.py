"""What an ASGI app may do on the fast door, and what its client gets for it; in memory."""

from functools import partial

import pytest
import trio

from tests.doors.memory import converse

GET = b"GET /page HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /page HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"


def start(status=200, *headers):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages):
    async def app(_scope, _receive, send):
        for message in messages:
            await send(message)

    return app


def answer(*messages, request=GET, errors=0):
    """The first answer to a request, with another one behind it."""
    seen = converse([request, GET], app=sending(*messages))
    assert len(seen.logged) == errors, seen.logged
    return seen, seen.answers[0]


def test_a_scope_says_what_was_asked():
    scopes = []

    async def app(scope, _receive, send):
        scopes.append(scope)
        await send(start())
        await send(body())

    converse([b"GET /a%20b/%C3%A4?c=%20d HTTP/1.1\r\nHost: a\r\nX-Y:  z \r\nX-Y: w\r\n\r\n"], app=app)
    (scope,) = scopes
    assert scope["type"] == "http"
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("GET", "/a b/ä", b"/a%20b/%C3%A4")
    assert (scope["query_string"], scope["http_version"], scope["scheme"]) == (b"c=%20d", "1.1", "http")
    assert scope["headers"] == [(b"host", b"a"), (b"x-y", b"z"), (b"x-y", b"w")]
    assert scope["client"] == ("127.0.0.1", 1)
    assert scope["state"] == {}


def test_an_answer_in_one_message_leaves_in_one_send_with_its_length():
    seen, one = answer(start(200, (b"x-a", b"b")), body(b"hello"))
    assert len(seen.sent) == 2
    assert (one.status, one.headers["content-length"], one.headers["x-a"], one.body) == (
        200,
        "5",
        "b",
        b"hello",
    )


def test_an_answer_in_several_messages_is_chunked():
    seen, one = answer(start(), body(b"he", more=True), body(b"", more=True), body(b"llo"))
    assert (one.headers["transfer-encoding"], one.body) == ("chunked", b"hello")
    assert len(seen.answers) == 2


def test_an_announced_length_is_kept_to_by_parts():
    _, one = answer(start(200, (b"content-length", b"5")), body(b"he", more=True), body(b"llo"))
    assert ("transfer-encoding" in one.headers, one.body) == (False, b"hello")


@pytest.mark.parametrize("length", [b"4", b"6"])
def test_an_answer_of_another_length_than_announced_is_not_sent(length):
    seen, one = answer(start(200, (b"content-length", length)), body(b"hello"), errors=1)
    assert (one.status, len(seen.answers)) == (500, 1)
    assert b"hello" not in b"".join(seen.sent)


def test_not_one_byte_beyond_the_announced_length_is_sent():
    """The client would take it for the beginning of the next answer."""
    parts = [body(b"he", more=True), body(b"llo", more=True), body(b"")]
    seen, _ = answer(start(200, (b"content-length", b"3")), *parts, errors=1)
    assert b"".join(seen.sent).partition(b"\r\n\r\n")[2] == b"he"


def test_an_answer_that_turns_out_longer_is_cut():
    seen, one = answer(start(200, (b"content-length", b"3")), body(b"he", more=True), body(b"llo"), errors=1)
    assert not one.complete
    assert b"".join(seen.sent).endswith(b"he")


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_whatever_is_said(status):
    seen, one = answer(start(status, (b"content-length", b"5")), body(b"hello"))
    assert one.status == status
    assert len(seen.answers) == 2
    assert b"hello" not in b"".join(seen.sent)


def test_head_gets_the_length_and_no_body():
    seen = converse(
        [b"HEAD /page HTTP/1.1\r\nhost: a\r\n\r\n"],
        app=sending(start(200, (b"content-length", b"5")), body(b"hello")),
    )
    sent = b"".join(seen.sent)
    assert b"content-length: 5\r\n" in sent
    assert sent.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"b\r\nc: d"),
        (b"x-a", b"b\nc"),
        (b"x a", b"b"),
        (b"", b"b"),
        (b"x\r\ny", b"b"),
        (b"x:", b"b"),
    ],
)
def test_no_header_of_an_app_breaks_out_of_its_line(header):
    _, one = answer(start(200, header), body(), errors=1)
    assert one.status == 500


def test_what_is_about_the_connection_is_ours_to_say():
    seen, one = answer(
        start(200, (b"transfer-encoding", b"chunked"), (b"Connection", b"close"), (b"keep-alive", b"x")),
        body(b"hello"),
    )
    assert one.headers["connection"] == "close"
    assert (one.body, "keep-alive" in one.headers) == (b"hello", False)
    assert len(seen.answers) == 1


@pytest.mark.parametrize(
    "messages",
    [
        (body(b"x"),),
        (start(), start()),
        ({"type": "websocket.accept"},),
        (start(200, (b"content-length", b"x")), body(b"x")),
        (start("so"), body(b"x")),
    ],
)
def test_what_is_against_the_protocol_is_an_error_of_the_app(messages):
    _, one = answer(*messages, errors=1)
    assert one.status == 500


def test_what_follows_the_end_is_an_error_that_its_client_does_not_see():
    seen, one = answer(start(), body(b"hello"), body(b"more"), errors=2)
    assert one.body == b"hello"
    assert b"more" not in b"".join(seen.sent)


@pytest.mark.parametrize("messages", [(), (start(),)])
def test_an_app_that_says_nothing_has_500_said_for_it(messages):
    seen, one = answer(*messages)
    assert (one.status, one.body, len(seen.answers)) == (500, b"", 1)


def test_an_app_is_told_that_the_answer_is_over():
    told = []

    async def app(_scope, receive, send):
        async with trio.open_nursery() as nursery:

            async def watch():
                while (message := await receive())["type"] == "http.request":
                    pass
                told.append(message["type"])

            nursery.start_soon(watch)
            before = len(told)
            await trio.sleep(1)
            assert len(told) == before
            await send(start())
            await send(body(b"x"))
        told.append((await receive())["type"])

    seen = converse([GET, GET], app=app)
    assert seen.logged == []
    assert told == ["http.disconnect"] * 4
    assert len(seen.answers) == 2


def test_a_body_is_given_in_parts_as_it_comes():
    parts = []

    async def app(_scope, receive, send):
        more = True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        await send(start())
        await send(body())

    converse([POST, b"he", b"llo" + GET], app=app)
    assert parts == [b"he", b"llo", b"", b""]


def test_a_client_that_leaves_in_its_body_is_reported():
    told = []

    async def app(_scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            pass
        told.append(message["type"])
        await send(start())
        await send(body(b"nobody reads this"))

    seen = converse([POST + b"he"], app=app)
    assert told == ["http.disconnect"]
    assert seen.sent == []


def test_a_broken_body_is_refused_in_the_apps_place():
    told = []

    async def app(_scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            pass
        told.append(message["type"])
        await send(start())
        await send(body(b"late"))

    seen = converse(
        [b"POST /page HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"], app=app
    )
    assert [one.status for one in seen.answers] == [400]
    assert told == ["http.disconnect"]


def test_an_app_that_answers_while_its_body_is_refused_sends_nothing_behind_the_refusal():
    async def app(_scope, receive, send, turns):
        async def answer():
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            await send(start())
            await send(body(b"late"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            while (await receive())["type"] == "http.request":
                pass

    for turns in range(6):
        pieces = [b"POST /page HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", b"zz\r\n"]
        seen = converse(pieces, app=partial(app, turns=turns))
        sent = b"".join(seen.sent)
        assert sent.startswith(b"HTTP/1.1 400") != sent.endswith(b"late")
        assert len(seen.answers) == 1


def test_a_body_that_breaks_after_the_answer_began_cuts_it():
    async def app(_scope, receive, send):
        await send(start())
        await send(body(b"half", more=True))
        while (await receive())["type"] == "http.request":
            pass
        await send(body(b"other half"))

    seen = converse(
        [b"POST /page HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"], app=app
    )
    (one,) = seen.answers
    assert (one.status, one.complete) == (200, False)
    assert b"400" not in b"".join(seen.sent)
