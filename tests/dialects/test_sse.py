import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import sse
from proxy.errors import StreamBroken

lines = st.sampled_from([b"data: x", b"data:", b": c", b"event: e", b"", b"", b"data: \r", b"d\xc3"])
ends = st.sampled_from([b"\n", b"\r\n"])
streams = st.lists(st.tuples(lines, ends), max_size=12).map(lambda parts: b"".join(a + b for a, b in parts))


def cuts(data, where):
    borders = [0, *sorted({cut % (len(data) + 1) for cut in where}), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


@settings(max_examples=300, deadline=None)
@given(streams, st.lists(st.integers(0, 200), max_size=5))
def test_frames_do_not_depend_on_where_the_reads_were_cut(data, where):
    framer = sse.Framer(1000)
    whole = b"".join(framer.feed(chunk) for chunk in cuts(data, where))
    assert whole + framer.rest == data
    # A further blank line alone in a read waits for the next frame: it says nothing.
    assert whole.rstrip(b"\r\n") == data[: sse.last_border(data)].rstrip(b"\r\n")


@settings(max_examples=100, deadline=None)
@given(streams)
def test_frames_joined_are_the_block_and_each_ends_with_a_blank_line(data):
    block = data[: sse.last_border(data)]
    frames = sse.frames(block)
    assert b"".join(frames) == block
    assert all(frame.endswith((b"\n\n", b"\n\r\n")) for frame in frames)
    assert sse.count_data_lines(block) == sum(line.startswith(b"data:") for line in block.split(b"\n"))


@settings(max_examples=100, deadline=None)
@given(streams, st.integers(0, 200))
def test_the_frame_at_a_position_is_the_one_that_holds_it(data, position):
    block = data[: sse.last_border(data)]
    at = 0
    for frame in sse.frames(block):
        content = len(frame.rstrip(b"\r\n"))
        if at <= position < at + content:
            start, end = sse.frame_at(block, position)
            assert start == at
            assert at + content < end <= at + len(frame)
        at += len(frame)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\r\n\r\n", b"x"),
        (b"data: x\n\r\n", b"x"),
        (b"event: e\ndata: x\n\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b": data: x\n\n", b""),
        (b"\n\n", b""),
        (b"data:\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
    ],
)
def test_the_data_of_a_frame_is_that_of_its_data_lines(frame, data):
    assert sse.data_of(frame) == data


def test_a_line_is_found_only_where_it_begins():
    assert sse.has_line(b"data: [DONE]\n\n", b"data: [DONE]")
    assert sse.has_line(b": c\n\ndata: [DONE]\n\n", b"data: [DONE]")
    assert not sse.has_line(b"data: data: [DONE]\n\n", b"data: [DONE]")


def test_a_frame_may_be_as_long_as_the_limit_and_no_longer():
    framer = sse.Framer(10)
    assert framer.feed(b"data: 6789") == b""
    assert framer.feed(b"\n\ndata: ") == b"data: 6789\n\n"
    with pytest.raises(StreamBroken, match="too large"):
        framer.feed(b"67890")


def test_a_long_frame_in_small_pieces_is_put_together_once():
    framer = sse.Framer(2**22)
    for _ in range(3000):
        assert framer.feed(b"x" * 1000) == b""
    assert len(framer.feed(b"\n\n")) == 3_000_002


def test_only_data_leaves_nothing_else_and_each_frame_its_blank_line():
    block = b": c\nevent: e\ndata: a\nid: 7\ndata: b\r\n: c\n\r\n\n: c\n\nretry: 1\n\ndata: c\n\nevent: e\n\n"
    assert sse.only_data(block) == b"data: a\ndata: b\r\n\r\ndata: c\n\n"
    assert sse.only_data(b": c\n\n") == b""
    assert sse.only_data(b": c\rdata: a\n\ndata: b\rc\n\n") == b"data: b\rc\n\n"


@settings(max_examples=300, deadline=None)
@given(streams)
def test_only_data_says_what_the_frames_say(block):
    block = block[: sse.last_border(block)]
    bare = sse.only_data(block)
    assert sse.count_data_lines(bare) == sse.count_data_lines(block)
    assert sse.only_data(bare) == bare
    assert said(bare) == said(block)


def said(block):
    return [data for frame in sse.frames(block) if (data := sse.data_of(frame).strip())]


values = st.recursive(
    st.none() | st.text(st.sampled_from('ab"\\{}[]\n ')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('{}"\\'), inner, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(values) | st.dictionaries(st.text(max_size=3), values), st.lists(st.integers(0, 300), max_size=8)
)
def test_a_bare_value_is_told_when_it_has_come_whole_and_not_before(value, where):
    data = b" \n" + json.dumps(value).encode()
    for pieces in (cuts(data, where), [data[at : at + 1] for at in range(len(data))]):
        reads = [piece for piece in pieces if piece]
        bare = sse.Bare()
        assert [bare.feed(read) for read in reads] == [False] * (len(reads) - 1) + [True]
        assert bare.is_json
        assert not bare.feed(b"\n")


@pytest.mark.parametrize("start", [b"data: {}", b"<html>{}", b": {}", b"}"])
def test_what_does_not_begin_as_json_is_none(start):
    bare = sse.Bare()
    assert not bare.feed(b" \r\n")
    assert bare.start == b""
    assert not bare.feed(start)
    assert bare.start == start[:1]
    assert not bare.is_json
