"""The fast door's connection, in memory: the same however its bytes are cut, and everything in its order."""

import errno
import json

import pytest
import trio

from proxy.doors import fast_door
from proxy.doors.chunks import AT_ONCE_MAX
from proxy.doors.guard import Guard, Refused
from proxy.errors import Failure
from tests.doors import memory
from tests.doors.memory import converse

ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
HELLO = ASK + b"content-length: 5\r\n\r\nhello"
CHUNKED = ASK + b"transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n\r\n\r\r\n0\r\nx: y\r\n\r\n"
PAGE = b"GET /page?a=%20 HTTP/1.1\r\nhost: a\r\n\r\n"
REQUESTS = {
    "counted": HELLO,
    "chunked": CHUNKED,
    "without a body": ASK + b"content-length: 0\r\n\r\n",
    "expecting": ASK + b"content-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
    "page": PAGE,
    "page with a body": b"POST /page HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nform",
    "head": b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
    "preflight": b"OPTIONS /v1/messages HTTP/1.1\r\nhost: a\r\norigin: https://a\r\n\r\n",
    "not there": b"GET /v1/messages HTTP/1.1\r\nhost: a\r\nanthropic-version: 1\r\n\r\n",
    "old": b"GET /page HTTP/1.0\r\n\r\n",
    "last": b"GET /page HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, close\r\n\r\n",
    "empty line": b"\r\n" + HELLO,
    "twice": b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n" + b"x" * 70_000,
    "compressed": ASK + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
    "too large": ASK + b"content-length: 100001\r\n\r\n" + b"x" * 100_001,
    "broken chunks": ASK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "smuggling": ASK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HELLO,
}


def told(pieces, **more):
    """What a client gets, apart from what depends on when it sent what."""
    seen = converse(pieces, **more)
    assert seen.logged == []
    answers = [
        (one.status, {name: value for name, value in one.headers.items() if name != "date"}, one.body)
        for one in seen.answers
        if one.status != 100
    ]
    assert all(one.complete for one in seen.answers)
    return answers, seen.requests


# However it is cut


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_cut_at_any_byte_is_the_same_request(name):
    request = REQUESTS[name]
    whole = told([request])
    assert len(whole[0]) == 1
    # a long body needs no cut at each of its bytes
    cuts = [*range(1, min(len(request), 400)), *range(400, len(request), 9973)]
    for cut in cuts:
        answers, reached = told([request[:cut], request[cut:]])
        # whether a refused upload was all there decides whether the connection can be kept
        for _, headers, _ in [*answers, *whole[0]]:
            headers.pop("connection", None)
        assert (answers, reached) == whole, cut


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in {"twice", "too large"}])
def test_a_request_may_come_byte_by_byte(name):
    request = REQUESTS[name]
    answers, reached = told([bytes([byte]) for byte in request])
    whole, whole_reached = told([request])
    assert [(status, body) for status, _, body in answers] == [(status, body) for status, _, body in whole]
    assert reached == whole_reached


PIPELINE = HELLO + CHUNKED + PAGE + REQUESTS["without a body"] + REQUESTS["not there"] + HELLO


def test_pipelined_requests_cut_at_any_byte_are_answered_in_order():
    expected = [(200, b"5"), (200, b"8"), (299, b"0"), (200, b"0"), (405, None), (200, b"5")]
    for cut in range(1, len(PIPELINE)):
        answers, reached = told([PIPELINE[:cut], PIPELINE[cut:]])
        assert [(status, body if status != 405 else None) for status, _, body in answers] == expected
        assert [body for *_, body in reached] == [b"hello", b"hello\r\n\r", b"", b"hello"]


def test_the_next_request_is_not_looked_at_before_the_answer_is_complete():
    stages = []

    async def respond(gateway, path, request, reply, requests):
        await request.body(100)
        stages.append(request._connection._guard.stage)
        reply.start(200, {})
        await reply.write(b"a")
        stages.append(request._connection._guard.stage)
        await reply.end(b"b")
        stages.append(request._connection._guard.stage)

    answers, _ = told([HELLO + b"not a request\r\n\r\n"], respond=respond)
    assert stages == ["read"] * 3
    assert [status for status, *_ in answers] == [200, 400]


def test_whoever_sends_far_ahead_is_not_read_ahead():
    """What is unread stays with the kernel, which holds the client back."""
    unread = []

    async def respond(gateway, path, request, reply, requests):
        await request.body(100)
        unread.append(len(request._connection.wire.pieces))
        reply.start(200, {})
        await reply.end(b"")

    told([HELLO] * 10, respond=respond)
    assert unread == list(range(9, -1, -1))


# What an answer looks like


def test_an_answer_in_one_piece_leaves_in_one_send():
    seen = converse([HELLO])
    assert len(seen.sent) == 1
    assert seen.sent[0].startswith(b"HTTP/1.1 200 OK\r\ndate: ")
    assert seen.answers[0].headers["content-length"] == "1"


def test_each_write_is_one_chunk_in_one_send_and_the_head_leaves_with_the_first():
    async def respond(gateway, path, request, reply, requests):
        reply.start(200, {"content-type": "text/event-stream"})
        await reply.write(b"data: 1\n\n")
        await reply.write(b"")
        await reply.write(b"data: 2\n\n")
        await reply.end(b"data: [DONE]\n\n")

    seen = converse([REQUESTS["without a body"]], respond=respond)
    head, *rest = seen.sent
    assert head.endswith(b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
    assert rest == [b"9\r\ndata: 2\n\n\r\n", b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]


def test_a_stream_that_ends_without_a_tail_has_one_last_chunk():
    async def respond(gateway, path, request, reply, requests):
        reply.start(200, {})
        await reply.write(b"a")
        await reply.end(b"")

    assert converse([REQUESTS["without a body"]], respond=respond).sent[-1] == b"0\r\n\r\n"


def test_an_old_client_gets_a_stream_until_the_connection_closes():
    async def respond(gateway, path, request, reply, requests):
        reply.start(200, {})
        await reply.write(b"a")
        await reply.end(b"b")

    seen = converse([b"POST /v1/messages HTTP/1.0\r\n\r\n", HELLO], respond=respond)
    head, _, body = b"".join(seen.sent).partition(b"\r\n\r\n")
    assert body == b"ab"
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head


def test_every_answer_of_the_api_may_be_read_by_browsers_and_asked_about():
    for name in ("counted", "not there", "preflight", "compressed"):
        (_, headers, _), *_ = told([REQUESTS[name]])[0]
        assert headers["access-control-allow-origin"] == "*"
        assert headers["x-request-id"] == "req_0"


def test_a_request_id_is_made_once_whoever_answers():
    ids = []

    async def app(scope, receive, send):
        ids.append(scope[fast_door.REQUEST_ID])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    answers, _ = told([HELLO + PAGE + HELLO], app=app)
    assert ids == ["req_1"]
    assert [headers.get("x-request-id") for _, headers, _ in answers] == ["req_0", None, "req_2"]


# What is refused


def refused_by_guard(data):
    one = Guard(65_536)
    one.feed(data)
    try:
        while one.take():
            pass
    except Refused as refused:
        return refused.status
    return None


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        (b"POST /v1/messages HTTP/1.1\r\n", lambda error: error["type"] == "error"),
        (b"POST /v1/x HTTP/1.1\r\nanthropic-version: 1\r\n", lambda error: error["type"] == "error"),
        (b"POST /v1beta/models/m:generateContent HTTP/1.1\r\n", lambda error: error["error"]["status"]),
        (b"POST /v1/chat/completions HTTP/1.1\r\n", lambda error: error["error"]["code"]),
        (b"\x16\x03\x01", lambda error: error["error"]["code"]),
    ],
)
def test_a_refusal_is_worded_in_the_callers_dialect_as_far_as_it_is_known(start, shape):
    data = start + b"host: a\r\nhost: b\r\n\r\n"
    assert refused_by_guard(data) == 400
    (status, headers, body), *more = told([data])[0]
    assert (status, more) == (400, [])
    assert shape(json.loads(body))
    assert headers["connection"] == "close"
    assert headers["x-request-id"] == "req_refused"


def test_nothing_of_what_was_sent_stands_in_a_refusal():
    for start in (b"POST /v1/messages", b"GET /x"):
        seen = converse([start + b" HTTP/1.1\r\nauthorization: secret\r\nauthorization: secret\r\n\r\n"])
        assert b"secret" not in b"".join(seen.sent)


def test_after_a_refusal_nothing_is_read_as_a_request():
    answers, reached = told([REQUESTS["smuggling"], HELLO, HELLO])
    assert [status for status, *_ in answers] == [400]
    assert reached == []


@pytest.mark.parametrize(
    "framing",
    [
        b"1" + b";x" * 40_000 + b"\r\na\r\n",
        b"0" * 70_000 + b"1\r\na\r\n",
        b"0\r\n" + b"x: y\r\n" * 12_000 + b"\r\n",
    ],
)
def test_chunks_with_more_framing_than_content_are_refused(framing):
    """No limit on bodies sees it: without a limit of its own it would be an upload without end."""
    data = ASK + b"transfer-encoding: chunked\r\n\r\n" + framing
    (status, *_), *_ = told([data[at : at + 5000] for at in range(0, len(data), 5000)])[0]
    assert status == 400


def test_chunks_of_one_byte_are_not_refused():
    data = ASK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
    assert told([data[at : at + 65_536] for at in range(0, len(data), 65_536)])[1][0][-1] == b"a" * 50_000


def test_a_body_that_breaks_where_nobody_asked_for_it_is_not_read_as_a_request():
    """What it holds has been looked at, and dropped; it must not be looked at again as something else."""

    async def respond(gateway, path, request, reply, requests):
        reply.start(401, {})
        await reply.end(b"{}")

    framing = b"1" + b";x" * 40_000 + b"\r\na\r\n0\r\n\r\n"
    data = ASK + b"transfer-encoding: chunked\r\n\r\n" + framing + HELLO
    answers, _ = told([data, HELLO], respond=respond)
    assert [(status, headers["connection"]) for status, headers, _ in answers] == [(401, "close")]


def test_many_small_chunks_let_others_run():
    turns = []

    async def respond(gateway, path, request, reply, requests):
        async def other():
            while not requests:
                turns.append(1)
                await trio.lowlevel.checkpoint()

        request._connection.beside(other)
        await trio.lowlevel.checkpoint()
        turns.clear()
        requests.append(len(await request.body(100_000)))
        reply.start(200, {})
        await reply.end(b"")

    many = ASK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50 * AT_ONCE_MAX + b"0\r\n\r\n"
    assert converse([many], respond=respond).requests == [50 * AT_ONCE_MAX]
    assert len(turns) >= 40


def test_a_head_of_too_many_headers_is_refused():
    many = b"".join(b"x%d: a\r\n" % number for number in range(300))
    assert told([ASK + many + b"\r\n"])[0][0][0] == 431


# In which order


def test_100_continue_is_sent_when_the_request_path_asks_for_the_body_and_not_before():
    async def respond(gateway, path, request, reply, requests):
        wire = request._connection.wire
        requests.append(list(wire.sent))
        await trio.sleep(5)
        wire.pieces.append(b"hello")
        body = await request.body(100)
        requests.append((list(wire.sent), body))
        reply.start(200, {})
        await reply.end(b"")

    head = ASK + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n"
    before, (after, body) = converse([head], respond=respond).requests
    assert (before, after, body) == ([], [b"HTTP/1.1 100 Continue\r\n\r\n"], b"hello")


@pytest.mark.parametrize(
    "pieces", [[b"5\r", b"\nhe", b"llo\r\n0", b"\r\n\r\n"], [b"5;", b"x=y\r\n", b"hello\r\n0\r\n\r\n"]]
)
def test_100_continue_is_sent_once_however_its_chunks_are_cut(pieces):
    seen = converse([ASK + b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n", *pieces])
    assert [one.status for one in seen.answers] == [100, 200]


def test_whoever_expects_100_and_does_not_wait_for_it_gets_none():
    head = ASK + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n"
    for pieces in ([head + b"hello"], [head + b"he", b"llo"]):
        assert statuses(pieces) == [200]


def test_a_refusal_precedes_an_upload_that_waits_and_the_connection_ends_with_it():
    async def respond(gateway, path, request, reply, requests):
        reply.start(402, {})
        await reply.end(b"{}")

    head = ASK + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n"
    seen = converse([head, b"hello", HELLO], respond=respond)
    assert [one.status for one in seen.answers] == [402]
    assert seen.answers[0].headers["connection"] == "close"


def test_a_small_body_that_nobody_asked_for_does_not_cost_the_connection():
    async def respond(gateway, path, request, reply, requests):
        reply.start(401, {})
        await reply.end(b"{}")

    for request in (HELLO, CHUNKED):
        answers, _ = told([request + request, request], respond=respond)
        assert [status for status, *_ in answers] == [401] * 3
        assert not any("connection" in headers for _, headers, _ in answers)


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_asked_for():
    head = ASK + b"content-length: 100001\r\nexpect: 100-continue\r\n\r\n"
    seen = converse([head], stays=True)
    assert [one.status for one in seen.answers] == [413]


# Time


@pytest.mark.parametrize("part", [b"P", ASK, ASK + b"x: "])
def test_a_head_that_does_not_come_is_refused_after_its_time(part):
    clock = []

    async def respond(*_):
        raise AssertionError

    seen = converse([part], respond=respond, stays=True, header_seconds=3)
    clock = [one.status for one in seen.answers]
    assert clock == [408]


def test_an_idle_connection_is_closed_without_a_word():
    for pieces in ([], [HELLO], [b"\r\n"]):
        seen = converse(pieces, stays=True)
        assert [one.status for one in seen.answers] == [200] * (pieces == [HELLO])


def test_a_body_that_stops_is_refused_in_the_callers_dialect():
    seen = converse([b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel"], stays=True)
    assert [one.status for one in seen.answers] == [408]
    assert json.loads(seen.answers[0].body)["type"] == "error"


def test_a_page_whose_body_stops_is_refused_too():
    seen = converse([b"POST /page HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel"], stays=True)
    assert [one.status for one in seen.answers] == [408]


def test_the_time_of_an_upload_is_what_we_waited_for_it():
    """Whoever is asked late has not been slow."""

    async def respond(gateway, path, request, reply, requests):
        await trio.sleep(1000)
        requests.append(await request.body(100))
        reply.start(200, {})
        await reply.end(b"")

    seen = converse([ASK + b"content-length: 5\r\n\r\n", b"he", b"llo"], respond=respond, body_seconds_min=1)
    assert seen.requests == [b"hello"]


def statuses(pieces, **settings):
    return [one.status for one in converse(pieces, **settings).answers]


def test_the_time_of_an_upload_is_for_all_of_it_and_begins_anew_with_the_next():
    head = ASK + b"content-length: 3\r\n\r\n"
    limits = {"body_seconds_min": 1, "body_bytes_per_second_min": 1_000_000}
    assert statuses([head, 0.4, b"a", 0.4, b"b", 0.4, b"c"], **limits) == [408]
    assert statuses([head, 0.4, b"a", 0.4, b"bc"] * 2, **limits) == [200, 200]
    more = {"body_seconds_min": 1, "body_bytes_per_second_min": 2}  # each byte buys half a second
    assert statuses([head, 0.4, b"a", 0.4, b"b", 0.4, b"c"], **more) == [200]


def test_the_time_of_a_head_begins_with_its_first_byte():
    times = {"keep_alive_seconds": 60, "header_seconds": 20}
    assert statuses([HELLO, 50, HELLO[:10], 15, HELLO[10:]], **times) == [200, 200]
    assert statuses([HELLO, 1, HELLO[:10], 15, HELLO[10:20], 15, HELLO[20:]], **times) == [200, 408]
    assert statuses([HELLO, 61, HELLO], **times) == [200]


# Whoever leaves, and whoever fails


def test_a_client_that_leaves_in_its_body_cancels_its_request():
    seen = converse([ASK + b"content-length: 5\r\n\r\nhel"])
    assert (seen.sent, seen.requests) == ([], [])


def test_a_client_that_leaves_in_its_body_is_a_refusal_where_nothing_cancels():
    async def respond(gateway, path, request, reply, requests):
        reply.mute_when_gone(mute=True)
        with pytest.raises(Failure) as caught:
            await request.body(100)
        requests.append((caught.value.status, reply.client_gone))
        reply.start(400, {})
        await reply.end(b"")

    seen = converse([ASK + b"content-length: 5\r\n\r\nhel"], respond=respond)
    assert (seen.sent, seen.requests) == ([], [(400, True)])


@pytest.mark.parametrize("after", [False, True])
def test_a_request_path_that_fails_ends_its_connection_and_tells_nothing(after):
    async def respond(gateway, path, request, reply, requests):
        if after:
            reply.start(200, {})
            await reply.write(b"half")
        raise ZeroDivisionError("a secret")

    seen = converse([HELLO, HELLO], respond=respond)
    assert "a secret" not in str(seen.logged)
    assert "ZeroDivisionError" in str(seen.logged)
    (answer,) = seen.answers
    assert (answer.status, answer.complete) == ((200, False) if after else (500, True))


def test_a_request_path_that_ends_without_an_answer_gets_a_500():
    async def respond(*_):
        """Say nothing."""

    (answer,) = converse([HELLO, HELLO], respond=respond).answers
    assert (answer.status, answer.headers["connection"]) == (500, "close")


def test_an_answer_that_was_not_ended_ends_the_connection_without_a_last_chunk():
    async def respond(gateway, path, request, reply, requests):
        reply.start(200, {})
        await reply.write(b"half")

    seen = converse([HELLO, HELLO], respond=respond)
    assert not seen.answers[0].complete
    assert len(seen.answers) == 1


def test_going_down_begins_no_request_that_was_sent_ahead():
    begun = []

    async def respond(gateway, path, request, reply, requests):
        begun.append(request.path)
        reply.start(200, {})
        await reply.write(b"a")
        request._connection.house.going_down = True
        await reply.end(b"")

    seen = converse([REQUESTS["without a body"] + HELLO, HELLO], respond=respond)
    assert (len(begun), len(seen.answers)) == (1, 1)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_that_is_cut_looks_to_no_client_like_a_whole_one(version):
    async def respond(gateway, path, request, reply, requests):
        reply.start(200, {})
        await reply.write(b"half")

    seen = converse([b"POST /v1/messages HTTP/%b\r\nhost: a\r\n\r\n" % version], respond=respond)
    assert seen.reset == (version == b"1.0")
    assert not b"".join(seen.sent).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", [b"/v1/messages", b"/page"])
def test_an_old_client_is_refused_without_a_reset(path):
    seen = converse([b"POST %b HTTP/1.0\r\ncontent-length: 5\r\n\r\nhel" % path], stays=True)
    assert ([one.status for one in seen.answers], seen.reset) == ([408], False)


def test_a_client_that_has_reset_its_connection_is_no_error(monkeypatch):
    def nobody(_):
        raise OSError(errno.ENOTCONN, "")

    monkeypatch.setattr(memory.Socket, "getpeername", nobody)
    seen = converse([PAGE])
    assert (seen.sent, seen.logged) == ([], [])


def test_going_down_ends_a_connection_with_the_answer_under_way():
    async def respond(gateway, path, request, reply, requests):
        request._connection.house.going_down = True
        reply.start(200, {})
        await reply.end(b"")

    answers, _ = told([REQUESTS["without a body"], HELLO], respond=respond)
    assert [(status, headers["connection"]) for status, headers, _ in answers] == [(200, "close")]
