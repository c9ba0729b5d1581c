"""No bytes hang the fast door, crash it, or get an answer that the guard would not give; and atheris may try longer."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.doors.judge import judge, model_of
from tests.doors.test_doors import CHUNKED, EMPTY, SMUGGLING

LINES = [
    b"host: a", b"Host: a:80", b"host: b", b"content-length: 5", b"content-length: 0", b"Content-Length: 5",
    b"content-length: 05", b"content-length: 4", b"content-length:\t5 ", b"content-length: 200000",
    b"content-length : 5", b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked", b"transfer-encoding: identity",
    b"transfer-encoding: chunked, chunked", b"connection: close", b"connection: keep-alive", b"connection: Close, x",
    b"expect: 100-continue", b"expect: x", b"x: y", b"x:", b" folded", b"\tfolded", b"x y: z", b"x\x00: y", b"x: \x00",
    b"x: \x80", b"x: y\rz: a", b"x: y\nz: a", b"upgrade: h2c", b"Upgrade: TLS/1.2", b"upgrade: websocket",
    b"connection: Upgrade", b"content-encoding: gzip", b"content-encoding: identity",
    b"authorization: Bearer a", b"authorization: Bearer b", b"anthropic-version: 1", b"",
]  # fmt: skip
STARTS = [
    b"POST /v1/chat/completions HTTP/1.1", b"POST /v1/chat/completions?a=b HTTP/1.1", b"POST /page HTTP/1.1",
    b"GET /page HTTP/1.1", b"GET /v1/messages HTTP/1.1", b"POST /v1/chat/completions HTTP/1.0", b"HEAD / HTTP/1.1",
    b"OPTIONS /v1/messages HTTP/1.1", b"GET /../x HTTP/1.1", b"GET http://a/ HTTP/1.1", b"PRI * HTTP/2.0",
    b"GET  /page HTTP/1.1", b"GET /page", b"POST /v1beta/models/m:generateContent HTTP/1.1", b"CONNECT a:1 HTTP/1.1",
]  # fmt: skip
BODIES = [
    b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;x=y\r\nhello\r\n0\r\nx: y\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n",
    b"zz\r\n", b"5\nhello\n0\n\n", b"1\r\na\r\n" * 3 + b"0\r\n\r\n", b"ffffffffffffffff0\r\n",
    b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
    b"\r\n", b"\r\n\r\n", b"\n",
]  # fmt: skip


GOOD = [
    EMPTY,
    CHUNKED + b"5;x=y\r\n\r\n\r\n0\r\n0\r\n\r\n",
    CHUNKED + b"1\r\na\r\n" * 3 + b"000\r\nx: y\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
    b"\r\nPOST /v1/messages HTTP/1.1\r\nHost:a\r\ncontent-length: 4\r\nx:\r\nx: y \r\n\r\n\r\n\r\n",
    b"GET /page?a=b HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /page HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"OPTIONS /v1/messages HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /v1/messages HTTP/1.1\r\nhost: a\r\nconnection: keep-alive\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    + CHUNKED.partition(b"\r\n")[2]
    + BODIES[2],
    b"POST /page HTTP/1.1\r\nhost: a\r\nupgrade: x\r\nconnection: upgrade\r\ncontent-length: 5\r\n\r\nhello",
]


@st.composite
def requests(draw):
    """A request put together from good parts and bad ones."""
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    lines = draw(st.lists(st.sampled_from(LINES), max_size=5))
    if draw(st.integers(0, 3)):
        lines = [b"host: a", *lines]
    start, body = draw(st.sampled_from(STARTS)), draw(st.sampled_from(BODIES))
    return start + b"\r\n" + end.join([*lines, b"", b""]) + body


@st.composite
def conversations(draw):
    """Requests in a row, most of them good, perhaps with bytes changed."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(GOOD), max_size=4))))
    if draw(st.booleans()):
        data += draw(requests() | st.sampled_from(list(SMUGGLING.values())))
        data += draw(st.sampled_from(GOOD))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


CUTS = st.lists(st.integers(1, 400), max_size=4)


@given(conversations(), CUTS)
@settings(max_examples=500)
@example(EMPTY * 3 + b"\r", [5])
@example(b"OPTIONS /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n" + EMPTY, [61])
@example(b"HEAD" + CHUNKED[4:] + b"0\r\nx\r\n\r\n", [])
@example(b"HEAD /page" + CHUNKED[17:] + b"0\r\nx\r\n\r\n", [])
def test_whatever_is_sent_is_answered_as_the_guard_would_have_it(data, cuts):
    judge(data, cuts)


@pytest.mark.long
@given(conversations(), CUTS)
@settings(max_examples=30_000, derandomize=False)
def test_whatever_is_sent_for_long_is_answered_as_the_guard_would_have_it(data, cuts):
    judge(data, cuts)


@given(st.binary(max_size=200), CUTS)
@settings(max_examples=200)
def test_garbage_is_answered_with_a_refusal_or_not_at_all(data, cuts):
    judge(data, cuts)


def test_the_parts_make_requests_that_are_let_in_and_such_that_are_not():
    """A fuzzer whose every input is refused at the first line proves nothing."""
    models = []

    @given(conversations())
    @settings(max_examples=300)
    def look(data):
        models.append(model_of(data))

    look()
    assert sum(len(model.accepted) > 1 for model in models) > 30
    assert sum(model.refused is not None for model in models) > 100


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_nothing(tmp_path):
    """Guided by coverage; run the target itself for as long as you like."""
    target = Path(__file__).with_name("fuzz_door.py")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate([EMPTY, *SMUGGLING.values()]):
        (corpus / str(number)).write_bytes(b"\x20\x40" + data)
    done = subprocess.run(
        [sys.executable, target, corpus, "-runs=20000", "-max_len=600", "-seed=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
