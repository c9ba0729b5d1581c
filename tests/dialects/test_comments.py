"""Comments and pings count for nothing: what is metered is the same wherever they stand and however they are read."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import Meter
from proxy.dialects import sse
from tests.dialects.common import STREAMS, choices_of, dialect_of, recording, shown_bytes, translator
from tests.dialects.test_content import FRAMES, writers

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
BETWEEN = (
    b": keep-alive\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b":\n\n",
    b": x\r\n\r\n",
    b"\n",
    b"\r\n",
    b"event: nothing\n\n",
    b"id: 7\n\n",
    b"retry: 1000\n\n",
    b": x\n\n" * 300,
)
WITHIN = (b": c\n", b":\r\n", b"id: 7\n", b"retry: 1000\n")
SPOKEN = (
    b': {"choices":[{"index":0,"delta":{"content":"no"}}]}\n\n',
    b': "delta":{"content":"content_block_delta"}\n\n',
    b': "finish_reason":"stop" "usage":{ "error" [DONE]\n\n',
    b': "message_stop" "content_block_start" "content_block_stop" "ping"\n\n',
    b": data: [DONE]\n\n",
)
"""Comments that speak of what a tap searches for."""
WITHOUT_ERRORS = [
    name for name in STREAMS if not any(word in name for word in ("broken", "error", "overloaded"))
]


@st.composite
def commented(draw, dialect, data):
    """Reads of a stream, and of the same with comments in it: borders that stand at the same places."""
    between = st.sampled_from(BETWEEN + ((PING, PING * 100) if dialect == "anthropic" else ()))
    pieces = []  # of the stream, each with whether it was there before
    for frame in sse.frames(data):
        pieces += [(aside, False) for aside in draw(st.lists(between, max_size=2))]
        for line in frame.splitlines(keepends=True):
            if line.strip() and draw(st.integers(0, 5)) == 0:
                pieces.append((draw(st.sampled_from(WITHIN)), False))
            pieces.append((line, True))
    pieces += [(aside, False) for aside in draw(st.lists(between, max_size=1))]
    whole = b"".join(piece for piece, _ in pieces)
    own = [0, *accumulate(own for piece, own in pieces for _ in piece)]
    borders = sorted(
        {0, len(whole), *(at % (len(whole) + 1) for at in draw(st.lists(st.integers(0), max_size=8)))}
    )
    reads = [whole[start:stop] for start, stop in pairwise(borders)]
    return [data[own[start] : own[stop]] for start, stop in pairwise(borders)], reads


def metered(dialect, reads, **more):
    """What the meter has seen after each read."""
    meter, seen = Meter(), []
    stream = translator(dialect, meter, **more)
    for read in reads:
        stream.feed(read)
        seen.append((meter.content_frames, meter.content_bytes, meter.reported))
    return seen


@pytest.mark.parametrize("dialect", FRAMES)
def test_comments_change_nothing_of_what_is_metered(dialect):
    @settings(max_examples=300, deadline=None)
    @given(st.data(), st.lists(FRAMES[dialect], min_size=1, max_size=6), writers(), st.integers(1, 3))
    def holds(data, pieces, write, again):
        plain, reads = data.draw(commented(dialect, b"".join(map(write, pieces)) * again))
        assert metered(dialect, reads, choices=2) == metered(dialect, plain, choices=2)

    holds()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(WITHOUT_ERRORS))
def test_comments_change_nothing_of_what_is_metered_of_a_recording(data, name):
    dialect = dialect_of(name)
    plain, reads = data.draw(commented(dialect, recording(name)))
    assert metered(dialect, reads, choices=choices_of(name)) == metered(
        dialect, plain, choices=choices_of(name)
    )


@pytest.mark.parametrize("dialect", FRAMES)
def test_no_comment_hides_content(dialect):
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(FRAMES[dialect], min_size=1, max_size=6),
        writers(),
        st.lists(st.sampled_from(SPOKEN), min_size=6, max_size=6),
        st.booleans(),
    )
    def holds(pieces, write, asides, one_read):
        frames = [
            part for piece, aside in zip(pieces, asides, strict=False) for part in (aside, write(piece))
        ] * 2
        data = b"".join(frames)
        reads = [data] if one_read else frames
        seen = metered(dialect, reads, choices=2)[-1]
        assert seen[1] >= shown_bytes(dialect, data)
        assert seen[0] == metered(dialect, [write(piece) for piece in pieces] * 2, choices=2)[-1][0]

    holds()


DELTAS = {
    "openai_chat": b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"yo"},"finish_reason":null}]}\n\n',
    "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"yo"}}\n\n',
    "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"yo"}]}}]}\r\n\r\n',
}


@pytest.mark.parametrize("dialect", DELTAS)
def test_a_flood_of_comments_costs_nothing(dialect):
    delta = DELTAS[dialect]
    for flood in (
        b": x\n\n" * 3000,
        b": " + b"x" * 50_000 + b"\n\n",
        PING * 3000 if dialect == "anthropic" else b"\n",
    ):
        seen = metered(dialect, [delta, flood + delta, flood, delta + flood + delta])
        assert seen[-1] == metered(dialect, [delta] * 4)[-1]


@pytest.mark.parametrize("dialect", DELTAS)
def test_a_cut_gives_frames_with_comments_in_them_by_their_content_alone(dialect):
    delta = DELTAS[dialect]
    spoken = b": c\n" * 500 + delta
    stream = translator(dialect)
    stream.feed(delta)
    assert stream.cut(stream.feed(b": x\n\n" + spoken), 200, "wallet") == b": x\n\n" + spoken
