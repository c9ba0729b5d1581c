"""One request and its answer over one connection: cut at every byte, odd in every way, never taken for another."""

from itertools import pairwise

import h11
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import StreamBroken
from proxy.upstreams.http1 import (
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    INFORMATIONAL_MAX,
    TURNS,
    Answer,
    NoAnswer,
    ask,
    line_of,
    lines_of,
)
from tests.upstreams.wires import FakeConnection, FakeWire

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"

WHOLE = {
    "length": (OK + b"content-length: 5\r\n\r\nhello", b"hello"),
    "no body": (OK + b"content-length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "chunks with extensions": (CHUNKED + b'5;a=b;c="d"\r\nhello\r\n0;e\r\n\r\n', b"hello"),
    "chunks with trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nx-a: b\r\nx-status: c\r\n\r\n", b"hello"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b""),
    "after 1xx": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
        + OK
        + b"content-length: 5\r\n\r\nhello",
        b"hello",
    ),
    "chunks after 1xx": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
    "no reason": (b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello", b"hello"),
}
"""Answers after which a connection may be used again."""

LAST = {
    "until close": (OK + b"\r\nhello", b"hello"),
    "1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "1.0 with length": (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
    "1.0 kept alive": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
        b"hello",
    ),
    "close": (OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
    "close, no body": (OK + b"connection: close\r\ncontent-length: 0\r\n\r\n", b""),
    "close, chunks": (
        OK + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"hello",
    ),
}
"""Answers after which it may not."""


async def sent(answer):
    """Send a request and wait for the head of its answer."""
    if not answer.send(b"HEAD", b"BODY"):
        await answer.upload(answer.flush)
    await answer.head()


async def answer_to(*pieces, bodiless=False, reused=False, **wire):
    """Send a request and get these pieces for an answer; gives answer and connection."""
    connection = FakeConnection(FakeWire(list(pieces), **wire), reused)
    answer = Answer(connection, bodiless)
    await sent(answer)
    return answer, connection


async def read_all(answer):
    body = b""
    while piece := await answer.read():
        body += piece
    return body


async def outcome(*pieces, **more):
    """What becomes of an answer: status, body and whether it was whole; and its connection's fate."""
    connection = FakeConnection(FakeWire(list(pieces), **more))
    answer = Answer(connection)
    body = b""
    try:
        await sent(answer)
        while piece := await answer.read():
            body += piece
    except NoAnswer:
        how = "no answer"
    except StreamBroken:
        how = "broken"
    else:
        how = "whole"
    assert len(connection.fate) == 1
    return how, answer.status, body, connection.fate[0]


def cuts(data):
    return ((data[:at], data[at:]) for at in range(1, len(data)))


# -- answers, whole and cut ------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_is_read_to_its_end_wherever_it_is_cut_and_its_connection_kept(name):
    data, body = WHOLE[name]
    pieces = [(data,), *cuts(data), tuple(data[at : at + 1] for at in range(len(data)))]
    for cut in pieces:
        assert await outcome(*cut, ends=False) == (
            "whole",
            int(data.rpartition(b"HTTP/1.1 ")[2][:3]),
            body,
            "kept",
        )


@pytest.mark.parametrize("name", LAST)
async def test_a_last_answer_is_read_to_its_end_and_its_connection_closed(name):
    data, body = LAST[name]
    for cut in [(data,), *cuts(data), tuple(data[at : at + 1] for at in range(len(data)))]:
        assert await outcome(*cut) == ("whole", 200, body, "closed")


@pytest.mark.parametrize("name", {**WHOLE, **LAST})
async def test_an_answer_that_breaks_off_never_looks_whole(name):
    data, body = {**WHOLE, **LAST}[name]
    head = data.rindex(b"\r\n\r\n" if b"chunked" not in data else b"chunked\r\n\r\n") + 4
    if b"chunked" in data:
        head += 7
    for end in (b"", ConnectionResetError()):
        for at in range(len(data)):
            pieces = [data[:at]] if at else []
            how, _, seen, fate = await outcome(*pieces, *([end] if end else []))
            ended = name in {"until close", "1.0"} and not end
            assert how == ("no answer" if at < head else "whole" if ended else "broken"), data[:at]
            assert body.startswith(seen)
            assert fate == "closed"


@pytest.mark.parametrize(
    "extra", [b"\r", b"\r\n", b"\n", b"\r\n\r\n", b"x", b"HTTP/1.1 200 OK\r\n", OK + b"\r\n"]
)
@pytest.mark.parametrize("name", WHOLE)
async def test_one_byte_beyond_the_end_and_the_connection_is_not_used_again(name, extra):
    data, body = WHOLE[name]
    joined = data + extra
    for at in range(len(data)):  # beyond that it has been given back, and who takes it looks at it first
        how, _, seen, fate = await outcome(*([joined[:at]] if at else []), joined[at:], ends=False)
        assert (how, seen, fate) == ("whole", body, "closed"), joined[:at]


async def test_the_answer_to_a_head_has_no_body_whatever_it_says():
    for head in (b"content-length: 5\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"):
        answer, connection = await answer_to(OK + head, bodiless=True, ends=False)
        assert await read_all(answer) == b""
        assert connection.fate == ["kept"]
    answer, connection = await answer_to(OK + b"content-length: 5\r\n\r\nhello", bodiless=True)
    assert await read_all(answer) == b""
    assert connection.fate == ["closed"]


# -- answers that are odd --------------------------------------------------------------------------


ODD_HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "other protocol": b"RTSP/1.0 200 OK\r\n\r\n",
    "a blank line first": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "blank lines only": b"\r\n\r\n",
    "a blank line after 1xx": b"HTTP/1.1 100 Continue\r\n\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a null in the reason": b"HTTP/1.1 200 O\0K\r\n\r\n",
    "a null in the reason of 1xx": b"HTTP/1.1 100 O\0K\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "length and chunks": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "chunks and length": OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
    "one length twice": OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\n",
    "a list of lengths": OK + b"content-length: 5, 5\r\n\r\n",
    "a signed length": OK + b"content-length: +5\r\n\r\n",
    "a negative length": OK + b"content-length: -5\r\n\r\n",
    "a length in words": OK + b"content-length: five\r\n\r\n",
    "no length": OK + b"content-length:\r\n\r\n",
    "a huge length": OK + b"content-length: 99999999999999999999\r\n\r\n",
    "another coding": OK + b"transfer-encoding: gzip\r\n\r\n",
    "another coding too": OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
    "chunks not last": OK + b"transfer-encoding: chunked, gzip\r\n\r\n",
    "chunks twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    "like chunks": OK + b"transfer-encoding: xchunked\r\n\r\n",
    "space before a colon": OK + b"content-length : 5\r\n\r\n",
    "a folded line": OK + b"x-a: b\r\n c\r\n\r\n",
    "line feeds alone": b"HTTP/1.1 200 OK\ncontent-length: 5\n\n",
    "a line feed alone": OK + b"x-a: b\ncontent-length: 5\r\n\r\n",
    "a carriage return alone": OK + b"x-a: b\rc\r\n\r\n",
    "a null": OK + b"x-a: b\0c\r\n\r\n",
    "a header without a name": OK + b": b\r\n\r\n",
    "a header without a colon": OK + b"x-a\r\n\r\n",
    "too many headers": OK + b"a:b\r\n" * (HEADERS_MAX + 1) + b"\r\n",
    "a head without end": OK + b"a: " + b"b" * HEAD_BYTES_MAX,
    "1xx without end": b"HTTP/1.1 100 Continue\r\n\r\n" * (INFORMATIONAL_MAX + 1),
}


@pytest.mark.parametrize("name", ODD_HEADS)
async def test_a_head_that_is_odd_is_no_answer(name):
    data = ODD_HEADS[name]
    positions = range(1, len(data)) if len(data) < 200 else ()
    for cut in [(data,), *((data[:at], data[at:]) for at in positions)]:
        with pytest.raises(NoAnswer) as none:
            await answer_to(*cut, ends=False)
        assert none.value.odd
        assert none.value.heard


async def test_a_head_of_the_size_of_the_limit_is_read():
    line = b"x-a: " + b"b" * (HEAD_BYTES_MAX - len(OK) - 9) + b"\r\n\r\n"
    assert (await outcome(OK + line))[0] == "whole"
    assert (await outcome(OK + b"b" + line))[0] == "no answer"


@pytest.mark.parametrize(
    "chunks",
    [
        b"2 \r\nhi\r\n",
        b"0x2\r\nhi\r\n",
        b"+2\r\nhi\r\n",
        b"-2\r\nhi\r\n",
        b"zz\r\n",
        b"\r\n",
        b"2\nhi\n",
        b"fffffffffffffffff\r\n",
        b"2\r\nhiX\r\n",
        b"2\r\nhi\n",
        b"2\r\nhi3\r\nllo",
        b"0\n\n",
        b"0\r\nx y: z\r\n\r\n",
        b"0\r\n x: y\r\n\r\n",
        b"0\r\ncontent-length: 5\r\n\r\n",
    ],
)
async def test_a_chunk_that_is_odd_breaks_the_answer_after_what_came_before(chunks):
    data = CHUNKED + b"5\r\nhello\r\n" + chunks
    for at in range(len(CHUNKED), len(data)):
        how, _, body, fate = await outcome(data[:at], data[at:], ends=False)
        assert (how, body[:5], fate) == ("broken", b"hello", "closed"), data[:at]


@pytest.mark.parametrize("filler", [b"x-a: b\r\n", b"x"])
async def test_trailers_without_end_break_the_answer(filler):
    end = b"0\r\n" if filler != b"x" else b"2;"
    pieces = [CHUNKED + b"5\r\nhello\r\n" + end] + [filler * 4096] * 100
    how, _, body, fate = await outcome(*pieces, ends=False)
    assert (how, body, fate) == ("broken", b"hello", "closed")


async def test_trailers_are_no_headers():
    answer, _ = await answer_to(CHUNKED + b"0\r\nx-a: b\r\n\r\n")
    await read_all(answer)
    assert answer.headers == {"transfer-encoding": "chunked"}
    assert len(answer.raw) == 1


async def test_headers_are_in_lower_case_and_joined():
    answer, _ = await answer_to(
        OK
        + b"X-One:  a \r\nx-one: b\r\nSet-Cookie: c\r\nX-Empty:\r\nX-High: \xe9\r\nContent-Length: 0\r\n\r\n"
    )
    assert answer.headers == {
        "x-one": "a, b",
        "set-cookie": "c",
        "x-empty": "",
        "x-high": "é",
        "content-length": "0",
    }
    assert answer.reason == b"OK"


async def test_headers_of_1xx_are_not_the_answers():
    answer, _ = await answer_to(b"HTTP/1.1 103 Early\r\nx-a: b\r\n\r\n" + OK + b"content-length: 0\r\n\r\n")
    assert answer.headers == {"content-length": "0"}
    assert answer.reason == b"OK"


# -- properties ------------------------------------------------------------------------------------


def pieces_of(draw, data):
    """Cut bytes anywhere."""
    at = sorted(set(draw(st.lists(st.integers(0, len(data)), max_size=8))))
    return [data[a:b] for a, b in pairwise([0, *at, len(data)]) if b > a]


@st.composite
def chunked_bodies(draw):
    parts = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    extension = draw(st.sampled_from([b"", b";a", b";a=b", b";a=b;c"]))
    trailers = draw(st.sampled_from([b"", b"x-a: b\r\n", b"x-a: b\r\nx-c:\r\n"]))
    framed = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return pieces_of(draw, CHUNKED + framed + b"0\r\n" + trailers + b"\r\n"), b"".join(parts)


@given(chunked_bodies())
def test_chunks_give_their_content_wherever_they_are_cut(sent):
    pieces, body = sent
    assert trio.run(lambda: outcome(*pieces, ends=False)) == ("whole", 200, body, "kept")


@st.composite
def mutated(draw):
    """An answer with some of its bytes changed, lost or doubled."""
    data = bytearray(draw(st.sampled_from([data for data, _ in (*WHOLE.values(), *LAST.values())])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        new = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b" ", b"0", b"5", b":", b";", b"\0", b"h", b"\xff"])
        )
        data[at : at + draw(st.integers(0, 2))] = new
    return pieces_of(draw, bytes(data))


@given(mutated())
@example([OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"])
def test_what_we_take_for_a_whole_answer_other_readers_take_for_the_same(pieces):
    how, status, body, fate = trio.run(lambda: outcome(*pieces))
    if how == "whole" and fate == "kept":
        assert read_by_h11(b"".join(pieces)) == (status, body)


def read_by_h11(data):
    theirs = h11.Connection(h11.CLIENT)
    theirs.send(h11.Request(method="POST", target="/", headers=[("host", "h"), ("content-length", "0")]))
    theirs.send(h11.EndOfMessage())
    theirs.receive_data(data)
    theirs.receive_data(b"")
    status, body = 0, b""
    while True:
        event = theirs.next_event()
        match event:
            case h11.Response():
                status = event.status_code
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage():
                return status, body


# -- sending ---------------------------------------------------------------------------------------


def test_headers_are_written_as_they_are_given():
    assert lines_of((("a", "b"), ("X-C", ""))) == "a: b\r\nX-C: \r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("", "b"), ("a b", "b"), ("a:", "b"), ("a\r\nb", "c"), ("ä", "b"), ("a\0", "b")]
    + [("a", f"b{bad}c") for bad in "\r\n\0\x0b\x0c\x1f\x7f\u2028€"]
    + [("a", "b\r\n"), ("a", "\r\nb"), ("a", " b"), ("a", "\tb")],
)
def test_what_cannot_be_sent_is_refused_and_not_quoted(name, value):
    with pytest.raises(ValueError, match="cannot be sent") as refused:
        line_of(name, f"{value}s3cret")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "connection", "Upgrade", "TE", "Expect", "trailer"],
)
def test_framing_is_not_the_callers_to_set(name):
    with pytest.raises(ValueError, match="not the caller's"):
        lines_of(((name, "1"),))


async def test_sending_is_called_once_and_nothing_waits_from_there_to_the_first_byte():
    wire = FakeWire([OK + b"content-length: 0\r\n\r\n"])
    seen = []

    def sending():
        seen.append(wire.sent)
        trio.lowlevel.current_task().custom_sleep_data = "not slept since"

    class Watch(trio.abc.Instrument):
        def after_task_step(self, _task):
            if seen and not wire.sent:
                seen.append("waited")

    watch = Watch()
    trio.lowlevel.add_instrument(watch)
    await ask(FakeConnection(wire), b"HEAD", b"BODY", sending)
    trio.lowlevel.remove_instrument(watch)
    assert seen == [b""]
    assert wire.sent == b"HEADBODY"


async def test_who_was_cancelled_before_has_sent_nothing():
    connection, said = FakeConnection(FakeWire([])), []
    with trio.CancelScope() as scope:
        scope.cancel()
        await ask(connection, b"HEAD", b"BODY", lambda: said.append(1))
    assert (said, connection.wire.sent, connection.fate) == ([], b"", ["closed"])


async def test_a_refusal_to_send_closes_the_connection():
    def sending():
        raise KeyError

    connection = FakeConnection(FakeWire([]))
    with pytest.raises(KeyError):
        await ask(connection, b"HEAD", b"BODY", sending)
    assert (connection.wire.sent, connection.fate) == (b"", ["closed"])


async def test_a_body_goes_out_as_far_as_there_is_room():
    answer, connection = await answer_to(
        OK + b"content-length: 0\r\n\r\n", room=3, room_again=2, after=8, ends=False
    )
    assert connection.wire.sent == b"HEADBODY"
    assert await read_all(answer) == b""
    assert connection.fate == ["kept"]


async def test_a_refusal_ends_the_sending_and_is_seen():
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    for at in range(1, len(refusal)):
        answer, connection = await answer_to(refusal[:at], None, refusal[at:], room=3, ends=False)
        assert answer.status == 413
        assert await read_all(answer) == b"no"
        assert connection.wire.sent == b"HEA"
        assert connection.fate == ["closed"]  # the rest of the body was not sent


async def test_an_early_answer_that_is_none_does_not_end_the_sending():
    class Continues(FakeWire):
        def receive(self):
            self.after = 8  # the answer itself waits for all of the body
            return super().receive()

    wire = Continues(
        [b"HTTP/1.1 102 Processing\r\n\r\n", OK + b"content-length: 2\r\n\r\nok"],
        room=3,
        room_again=1,
        ends=False,
    )
    connection = FakeConnection(wire)
    answer = await ask(connection, b"HEAD", b"BODY", lambda: None)
    assert wire.sent == b"HEADBODY"
    assert (answer.status, await read_all(answer)) == (200, b"ok")
    assert connection.fate == ["kept"]


async def test_an_answer_that_begins_early_waits_until_all_is_sent():
    answer, connection = await answer_to(CHUNKED, room=3, room_again=1, ends=False)
    assert connection.wire.sent == b"HEADBODY"
    connection.wire.pieces += [b"2\r\nok\r\n0\r\n\r\n"]
    assert await read_all(answer) == b"ok"
    assert connection.fate == ["kept"]


async def test_an_answer_that_is_whole_before_all_is_sent_ends_the_sending():
    answer, connection = await answer_to(OK + b"content-length: 2\r\n\r\nok", room=3, ends=False)
    assert (answer.status, await read_all(answer)) == (200, b"ok")
    assert connection.wire.sent == b"HEA"
    assert connection.fate == ["closed"]


async def test_a_provider_that_closes_while_a_body_is_sent_gives_no_answer():
    with pytest.raises(NoAnswer):
        await answer_to(room=3)
    with pytest.raises(NoAnswer) as none:
        await answer_to(b"garbage", room=3)
    assert none.value.odd


async def test_an_answer_that_came_before_the_connection_broke_is_seen():
    class Broken(FakeWire):
        def send(self, *_):
            raise BrokenPipeError

    connection = FakeConnection(Broken([b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"]))
    answer = await ask(connection, b"HEAD", b"BODY", lambda: None)
    assert (answer.status, await read_all(answer)) == (413, b"no")
    assert connection.fate == ["closed"]


@pytest.mark.parametrize(
    "pieces", [(), (ConnectionResetError(),), (b"HTTP/1.1 2",)], ids=["fin", "rst", "cut"]
)
async def test_no_answer_says_what_is_known(pieces):
    connection = FakeConnection(FakeWire(list(pieces)), reused=True)
    with pytest.raises(NoAnswer) as none:
        await ask(connection, b"HEAD", b"BODY", lambda: None)
    assert none.value.reused
    assert none.value.heard == (pieces == (b"HTTP/1.1 2",))
    assert not none.value.odd
    assert connection.fate == ["closed"]


async def test_an_error_of_what_sends_leaves_as_it_is():
    async def send():
        raise KeyError

    answer = Answer(FakeConnection(FakeWire([], ends=False)))
    with pytest.raises(KeyError):
        await answer.upload(send)


# -- reading ---------------------------------------------------------------------------------------


async def test_what_has_arrived_is_ready_without_waiting():
    answer, connection = await answer_to(OK + b"content-length: 6\r\n\r\none", b"t", None, b"wo", ends=False)
    assert [answer.ready() for _ in range(3)] == [b"one", b"t", None]
    waits = connection.wire.waits
    assert await answer.read() == b"wo"
    assert connection.wire.waits == waits + 1
    assert connection.wire.receives == 4  # after `None` nothing is asked again before it has waited
    assert (answer.ready(), await answer.read()) == (b"", b"")


async def test_chunks_of_one_read_are_one_piece():
    answer, _ = await answer_to(CHUNKED, b"1\r\na\r\n1\r\nb\r\n1\r\nc", b"\r\n0\r\n\r\n")
    assert [await answer.read(), await answer.read()] == [b"abc", b""]


async def test_what_is_no_content_is_not_the_end():
    answer, _ = await answer_to(CHUNKED, b"5", b"\r\n", b"hello", b"\r\n", b"0\r\n", b"\r\n")
    assert [answer.ready(), answer.ready(), answer.ready()] == [b"hello", b"", b""]


async def test_others_get_their_turn_while_a_provider_sends_and_sends():
    answer, connection = await answer_to(OK + b"\r\n", *[b"x"] * 100)
    turns = 0
    while (piece := answer.ready()) != b"":
        if piece is None:
            assert connection.wire.pieces  # there was more
            turns += 1
    assert turns == 100 // TURNS
    answer, connection = await answer_to(OK + b"\r\n", *[b"x"] * 100)
    before = connection.wire.waits
    steps = []

    async def count():
        while True:
            steps.append(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await read_all(answer)
        nursery.cancel_scope.cancel()
    assert len(steps) >= turns - 1  # whoever comes first in the last round
    assert connection.wire.waits == before


async def test_large_reads_use_a_turn_up_sooner():
    answer, _ = await answer_to(OK + b"\r\n", *[bytes(65_536)] * 100)
    in_a_row, most = 0, 0
    while (piece := answer.ready()) != b"":
        in_a_row = 0 if piece is None else in_a_row + 1
        most = max(most, in_a_row)
    assert 2 <= most <= 6


async def test_a_reader_who_is_cancelled_has_lost_nothing():
    pieces = [b"one", None, b"two", None, b"three"]
    data = OK + b"content-length: 11\r\n\r\n"
    for n in range(1, 20):
        answer, connection = await answer_to(data, *pieces, ends=False)
        body, steps = b"", 0
        while True:
            steps += 1
            with trio.CancelScope() as scope:
                if steps == n:
                    scope.cancel()
                piece = await answer.read()
                body += piece
                if not piece:
                    break
        assert body == b"onetwothree"
        assert connection.fate == ["kept"]


async def test_a_broken_answer_stays_broken_until_it_is_left():
    answer, connection = await answer_to(OK + b"content-length: 9\r\n\r\none")
    assert await answer.read() == b"one"
    for _ in range(2):
        with pytest.raises(StreamBroken):
            await answer.read()
        with pytest.raises(StreamBroken):
            answer.ready()
    await answer.aclose()
    assert (answer.ready(), await answer.read()) == (b"", b"")
    assert connection.fate == ["closed"]


async def test_leaving_in_the_middle_closes_at_once_and_gives_nothing_more():
    answer, connection = await answer_to(OK + b"content-length: 9\r\n\r\none", None, b"two")
    with trio.CancelScope() as scope:
        scope.cancel()
        await answer.aclose()
        await answer.aclose()
    assert connection.fate == ["closed"]
    assert (answer.ready(), await answer.read()) == (b"", b"")


async def test_leaving_after_the_end_leaves_the_connection_to_the_next():
    answer, connection = await answer_to(OK + b"content-length: 3\r\n\r\none", ends=False)
    await answer.aclose()
    assert connection.fate == ["kept"]


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_connection_that_is_closed_under_a_reader_breaks_its_answer(waiting):
    answer, connection = await answer_to(OK + b"content-length: 9\r\n\r\none", ends=False)
    await answer.read()
    assert answer.ready() is None
    if waiting:
        connection.wire.close()
    else:
        connection.wire.pieces.append(OSError("closed"))
    for _ in range(2):
        with pytest.raises(StreamBroken):
            await answer.read()


async def test_an_answer_that_is_left_while_another_task_waits_for_it_is_over():
    answer, connection = await answer_to(OK + b"content-length: 9\r\n\r\none", ends=False)
    await answer.read()
    assert answer.ready() is None
    await answer.aclose()
    assert connection.wire.closed
    assert await answer.read() == b""
