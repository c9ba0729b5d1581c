"""The end of a chunked body is counted to, whatever its chunks hold and however it is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.doors.chunks import AT_ONCE_MAX, SIZE_DIGITS_MAX, Chunks

EMPTY_LINES = b"\r\n\r\n" * 10_000
BODIES = {
    "empty": b"0\r\n\r\n",
    "one chunk": b"5\r\nhello\r\n0\r\n\r\n",
    "empty lines": b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n",
    "a body in a body": b"5\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "extensions": b'5;a=b\r\nhello\r\n3;c="d;5"\r\n\r\n\r\r\n0;e\r\n\r\n',
    "trailers": b"1\r\na\r\n0\r\nx: y\r\nz: 0\r\n\r\n",
    "zeros in front": b"0" * 40 + b"5\r\nhello\r\n000\r\n\r\n",
    "capitals": b"A\r\n0123456789\r\n0\r\n\r\n",
}
NEXT = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def followed(pieces):
    """How much of what comes in pieces is the body, and what followed it."""
    chunks, counted = Chunks(), 0
    for piece in pieces:
        rest = piece
        while rest and not chunks.over:
            step = chunks.follow(rest)
            assert 0 < step <= len(rest)
            counted, rest = counted + step, rest[step:]
    return counted, chunks


@pytest.mark.parametrize("name", BODIES)
def test_the_end_is_the_same_however_the_body_is_cut(name):
    body = BODIES[name]
    sent = body + NEXT
    for cut in range(len(sent)):
        counted, chunks = followed([sent[:cut], sent[cut:]])
        assert (counted, chunks.over) == (len(body), True)
    assert followed([bytes([byte]) for byte in sent])[0] == len(body)


@given(st.lists(st.binary(min_size=1, max_size=30)), st.lists(st.integers(0, 400), max_size=8))
def test_any_bytes_may_stand_in_chunks(parts, cuts):
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    sent = body + NEXT
    borders = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    assert followed([sent[a:b] for a, b in pairwise(borders)])[0] == len(body)


def test_what_a_chunk_holds_is_passed_in_one_step():
    chunk = b"%x\r\n%b\r\n" % (len(EMPTY_LINES), EMPTY_LINES)
    assert Chunks().follow(chunk) == len(chunk)


def test_so_many_chunks_are_followed_at_once():
    chunks, small = Chunks(), b"1\r\na\r\n"
    data = small * 3 * AT_ONCE_MAX
    assert chunks.follow(data) == len(small) * AT_ONCE_MAX
    assert chunks.follow(data[:2]) == 2
    assert chunks.follow(data[2:]) == len(small) * AT_ONCE_MAX - 2
    assert chunks.follow(small * AT_ONCE_MAX) == len(small) * AT_ONCE_MAX


@pytest.mark.parametrize("part", [b"0", b"5;x", b"0\r\nx: y\r\n"])
def test_of_a_line_without_end_only_what_matters_is_kept(part):
    chunks = Chunks()
    chunks.follow(part)
    for _ in range(100):
        chunks.follow(part[-1:] * 1000)
        assert len(chunks._line) <= SIZE_DIGITS_MAX + 1


@pytest.mark.parametrize(
    "data", [b"zz\r\nhello", b"\r\n", b"\n\n", b"-1\r\na", b"0x1\r\na", b"f" * 100 + b"\r\na"]
)
def test_what_is_no_size_is_left_to_llhttp(data):
    counted, _ = followed([data])
    assert 0 < counted <= len(data)
