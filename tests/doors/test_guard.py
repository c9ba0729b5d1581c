from itertools import pairwise

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.doors import chunks
from proxy.doors.guard import Guard, Refused, refusal

GET = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    b"7\r\nab\r\n\r\nc\r\n4;x=y\r\n0\r\n\r\r\n0\r\n\r\n"
)
TRAILERS = (
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\nz: 1\r\n\r\n"
)


def head(*lines, request=b"POST /x HTTP/1.1", host=b"host: a"):
    return b"\r\n".join([request, *([host] if host else []), *lines, b"", b""])


def guard(header_bytes_max=65_536):
    return Guard(header_bytes_max)


def everything(pieces, one=None):
    """Feed pieces of one request and give all that goes on."""
    one = one or guard()
    taken = b""
    for piece in pieces:
        one.feed(piece)
        taken += one.take()
        while more := one.take():
            taken += more
    return taken, one


def refused(data, **more):
    with pytest.raises(Refused) as caught:
        everything([data], guard(**more))
    return caught.value.status


@pytest.mark.parametrize("request_", [GET, POST, CHUNKED, TRAILERS])
def test_a_request_goes_on_unchanged_however_it_is_cut(request_):
    for cut in range(len(request_)):
        taken, one = everything([request_[:cut], request_[cut:]])
        assert taken == request_
        assert one.stage == "read"
    assert everything([bytes([byte]) for byte in request_])[0] == request_


@pytest.mark.parametrize("first", [GET, POST, CHUNKED, TRAILERS])
def test_not_one_byte_of_the_next_request_goes_on_before_the_answer(first):
    for cut in range(len(first)):
        taken, one = everything([first[:cut], first[cut:] + POST])
        assert taken == first
        assert one.pending_bytes == len(POST)
        one.next_request()
        assert everything([], one)[0] + one.take() + one.take() == POST


@given(
    st.lists(st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"\r", b"\n", b"x", b"0"]), max_size=12),
    st.lists(st.integers(0, 200), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_the_end_of_a_chunked_body_is_found_whatever_is_in_it(parts, cuts):
    content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    whole = head(b"transfer-encoding: chunked") + content + b"0\r\n\r\n"
    sent = whole + CHUNKED
    borders = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    taken, one = everything([sent[a:b] for a, b in pairwise(borders)])
    assert taken == whole
    assert one.pending_bytes == len(CHUNKED)


@pytest.mark.parametrize("content", [b"\r\n\r\n", b"0\r\n\r\n", b"    "])
def test_what_is_in_chunks_makes_no_work(content, monkeypatch):
    fed, parse = [], Guard._parse
    monkeypatch.setattr(Guard, "_parse", lambda one, piece: fed.append(len(piece)) or parse(one, piece))
    content *= 10_000
    whole = head(b"transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    assert everything([whole])[0] == whole
    assert len(fed) == 2


def test_what_is_read_in_two_ways_is_refused(monkeypatch):
    monkeypatch.setattr(chunks, "_size", lambda *_: 4)
    one = guard()
    one.feed(CHUNKED.replace(b"7\r\nab\r\n\r\nc\r\n", b"0\r\n\r\n"))
    one.take()
    with pytest.raises(Refused):
        one.take()
    assert one.stage == "body"


def test_a_head_goes_on_only_when_all_of_it_was_checked():
    one = guard()
    one.feed(POST[:40])
    assert one.take() == b""
    assert not one.idle


def test_one_empty_line_before_a_request_is_dropped_and_a_second_refused():
    assert everything([b"\r", b"\n" + GET])[0] == GET
    assert refused(b"\r\n\r\n" + GET) == 400
    assert refused(b"\n" + GET) == 400


@pytest.mark.parametrize(
    "data",
    [
        head(b"content-length: 5", b"transfer-encoding: chunked"),
        head(b"transfer-encoding: chunked", b"content-length: 5"),
        head(b"content-length: 5", b"content-length: 5"),
        head(b"content-length: 5", b"content-length: 6"),
        head(b"content-length: 5, 5"),
        head(b"content-length: +5"),
        head(b"content-length: -5"),
        head(b"content-length: 0x5"),
        head(b"content-length: 5 5"),
        head(b"content-length:"),
        head(b"content-length: 99999999999999999999"),
        head(b"transfer-encoding: gzip, chunked"),
        head(b"transfer-encoding: identity"),
        head(b"transfer-encoding: xchunked"),
        head(b"transfer-encoding: chunked", b"transfer-encoding: chunked"),
        head(b"transfer-encoding: chunked", request=b"POST /x HTTP/1.0"),
        head(b"transfer-encoding : chunked"),
        head(b"transfer-encoding: chunked") + b"zz\r\n",
        head(b"transfer-encoding: chunked") + b"1\r\nab\r\n",
        head(b"transfer-encoding: chunked") + b"1\na\r\n",
        head(b"transfer-encoding: chunked") + b"-1\r\na\r\n",
        head(b"transfer-encoding: chunked") + b"fffffffffffffffffffff\r\na\r\n",
    ],
)
def test_a_body_whose_length_could_be_read_two_ways_is_refused(data):
    assert refused(data) == 400


@pytest.mark.parametrize(
    "data",
    [
        b"POST /x HTTP/1.1\nhost: a\n\n",
        b"POST /x HTTP/1.1\r\nhost: a\n\r\n",
        b"POST /x HTTP/1.1\r\nhost: a\rb: c\r\n\r\n",
        head(b"x: a", b" folded"),
        head(b"x: a", b"\tfolded"),
        head(b"x : a"),
        head(b" x: a"),
        head(b": a"),
        head(b"x"),
        head(b"x\x00y: a"),
        head(b"x: a\x00"),
        head(b"x: a\x01"),
        head(b"x: a\x7f"),
        head(b"x\xc3\xa4: a"),
        head(request=b"POST  /x HTTP/1.1"),
        head(request=b"POST /x  HTTP/1.1"),
        head(request=b"POST\t/x HTTP/1.1"),
        head(request=b"POST /x"),
        head(request=b"POST /x HTTP/1.1 "),
        head(request=b"POST /x HTTP/0.9"),
        head(request=b"POST /x HTTP/1.2"),
        head(request=b"POST /x HTTP/2.0"),
        head(request=b"POST /x HTTX/1.1"),
        head(request=b"post /x HTTP/1.1"),
        head(request=b"BREW /x HTTP/1.1"),
        head(request=b"SOURCE /x HTTP/1.1"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_not_plain_http_1_1_is_refused(data):
    assert refused(data) == 400


@pytest.mark.parametrize(
    "target",
    [
        b"http://a/x", b"https://a/x", b"a:443", b"*", b"x", b"?a", b"//a/x", b"/x//y", b"/..", b"/x/../y", b"/x/.",
        b"/./x",
        b"/%2e%2e/x", b"/x/%2E./y", b"/x%2f..%2fy", b"/x/%2e", b"/x%2f%2fy", b"/a\\b", b"/a%5cb", b"/x#y", b"/x%00y",
        b"/x%0d%0ay",
        b"/x%7f", b"/x%", b"/x%zz", b"/x?a=%g0", b"/x%ff", b"/x?a\\b", b"/x?a#b", b"/x\x7f", b"/x\xc3\xa4", b"/x\x01",
    ],
)  # fmt: skip
def test_a_target_that_readers_could_resolve_differently_is_refused(target):
    assert refused(head(request=b"GET %s HTTP/1.1" % target)) == 400


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/v1/",
        b"/v1beta/models/gemini%2Fx%3AgenerateContent?alt=sse&key=a%0Ab",
        b"/x?a=../..&b=//",
        b"/a..b/.c",
    ],
)
def test_an_ordinary_target_passes(target):
    sent = head(request=b"GET %s HTTP/1.1" % target)
    assert everything([sent])[0] == sent


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"authorization",
        b"content-type",
        b"x-api-key",
        b"X-Goog-Api-Key",
        b"x-user-key",
        b"Authorization",
    ],
)
def test_a_second_header_that_leaves_open_which_counts_is_refused(name):
    assert refused(head(name + b": a", name.lower() + b": a")) == 400


def test_ordinary_headers_may_come_twice():
    sent = head(b"accept: a", b"accept: b", b"cookie: a", b"cookie: b")
    assert everything([sent])[0] == sent


def test_a_host_is_needed_once_and_well_formed():
    assert refused(head(host=None)) == 400
    for host in (b"", b"a b", b"a/b", b"a@b", b"a:b", b"[::1", b"a,b c", b"a:123456", b'"a"'):
        assert refused(head(host=b"host: " + host)) == 400
    for host in (b"a", b"127.0.0.1:8080", b"[::1]:8080", b"a_b.example", b"localhost:"):
        assert everything([head(host=b"host: " + host)])[1].stage == "read"
    assert everything([head(host=None, request=b"GET / HTTP/1.0")])[1].stage == "read"


def test_headers_that_are_too_large_are_refused_before_they_are_complete():
    assert refused(b"GET /" + b"a" * 2000, header_bytes_max=1024) == 431
    assert refused(head(b"x: " + b"a" * 2000), header_bytes_max=1024) == 431
    assert refused(head(*[b"x%d: a" % n for n in range(500)]), header_bytes_max=1024) == 431


def test_only_the_expectation_that_can_be_met_is_let_in():
    assert refused(head(b"expect: 200-ok")) == 417
    assert everything([head(b"expect: 100-Continue", b"content-length: 5")])[1].stage == "body"


VERSION, KEY = b"sec-websocket-version: 13", b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    "lines",
    [
        (b"upgrade: websocket", VERSION, KEY),
        (b"upgrade: websocket, h2c", b"connection: upgrade", VERSION, KEY),
        (b"upgrade: websocket,", b"connection: upgrade", VERSION, KEY),
        (b"upgrade: websocket", b"connection: upgrade", b"connection: close", VERSION, KEY),
        (b"upgrade: websocket", b"connection: upgrade", b"content-length: 3", VERSION, KEY),
        (b"upgrade: websocket", b"connection: upgrade", b"transfer-encoding: chunked", VERSION, KEY),
        (b"upgrade: websocket", b"connection: upgrade", KEY),
        (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-version: 12", KEY),
        (b"upgrade: websocket", b"connection: upgrade", VERSION, VERSION, KEY),
        (b"upgrade: websocket", b"connection: upgrade", VERSION),
        (b"upgrade: websocket", b"connection: upgrade", VERSION, KEY, KEY),
        (b"upgrade: websocket", b"connection: upgrade", VERSION, b"sec-websocket-key: AAAA"),
        (b"upgrade: websocket", b"connection: upgrade", VERSION, KEY[:-1] + b"A"),
    ],
)
def test_a_websocket_that_is_not_asked_for_as_it_should_be_is_refused(lines):
    """The parser behind would refuse it too, and its connection would stay for ever."""
    assert refused(head(*lines, request=b"GET / HTTP/1.1")) == 400


def test_who_asks_for_another_version_of_websockets_is_told_which_there_is():
    lines = (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-version: 8", KEY)
    with pytest.raises(Refused) as caught:
        everything([head(*lines, request=b"GET / HTTP/1.1")])
    assert b"\r\nsec-websocket-version: 13\r\n" in refusal(caught.value)


BODIES = {
    "none": ((), b""),
    "counted": ((b"content-length: 8",), b"a\r\n\r\nb\r\n"),
    "empty": ((b"content-length: 0",), b""),
    "chunked": ((b"transfer-encoding: chunked",), b"6\r\na\r\n\r\nb\r\n0\r\nx: y\r\nupgrade: h2c\r\n\r\n"),
}


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("options", [(), (b"connection: Upgrade, http2-settings",)])
@pytest.mark.parametrize("wish", [b"h2c", b"TLS/1.2", b"h2c, x/1", b"websockets", b""])
def test_an_upgrade_to_anything_else_is_ignored_and_left_out(wish, options, body, method):
    lines, content = BODIES[body]
    start = method + b" / HTTP/1.1"
    sent = head(b"x: a", b"Upgrade: " + wish, *options, *lines, request=start) + content
    expected = head(b"x: a", *options, *lines, request=start) + content
    for cut in range(len(sent)):
        taken, one = everything([sent[:cut], sent[cut:] + POST])
        assert taken == expected
        assert (one.stage, one.pending_bytes) == ("read", len(POST))
        assert "upgrade" not in one.head.headers
        one.next_request()
        assert everything([], one)[0] + one.take() + one.take() == POST


def test_an_old_client_speaks_of_no_upgrade():
    """RFC 9110 §7.8: whatever it wishes for must be ignored."""
    sent = head(b"upgrade: websocket", b"connection: upgrade", VERSION, KEY, request=b"GET / HTTP/1.0")
    taken, one = everything([sent])
    assert (b"upgrade: websocket" in taken, one.stage) == (False, "read")


def test_bytes_behind_a_websocket_upgrade_wait_until_it_is_granted():
    lines = (b"upgrade: websocket", b"connection: keep-alive, Upgrade", VERSION, KEY)
    sent = head(*lines, request=b"GET / HTTP/1.1")
    taken, one = everything([sent + b"x"])
    assert (taken, one.stage) == (sent, "upgrading")
    one.upgrade()
    assert one.take() == b"x"
    one.feed(b"\x00\r\n\r\n")
    assert one.take() == b"\x00\r\n\r\n"


def test_a_refusal_is_a_whole_answer_that_repeats_nothing_of_the_request():
    with pytest.raises(Refused) as caught:
        everything([head(b"authorization: secret", b"authorization: secret2")])
    answer = refusal(caught.value, "req_1")
    assert b"secret" not in answer
    top, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in top
    assert b"connection: close" in top
    assert b"x-request-id: req_1" in top
    assert body.startswith(b'{"error":{"message":"There is more than one authorization header."')


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_or_waits_and_nothing_else(data):
    one = guard()
    one.feed(data)
    try:
        taken = one.take()
    except Refused:
        return
    assert taken == b""


class Count:
    """How many requests llhttp sees."""

    requests = 0

    def on_message_complete(self):
        self.requests += 1


@given(st.lists(st.sampled_from([GET, POST, CHUNKED, TRAILERS]), max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_as_many_requests_go_on_as_llhttp_sees_in_one_go(requests, data):
    whole = b"".join(requests)
    count = Count()
    httptools.HttpRequestParser(count).feed_data(whole)
    at, one, answered = 0, guard(), 0
    while at < len(whole) or one.pending_bytes:
        size = data.draw(st.integers(1, 80))
        one.feed(whole[at : at + size])
        at += size
        while one.take():
            pass
        if one.stage == "read":
            answered += 1
            one.next_request()
    assert answered == count.requests == len(requests)
