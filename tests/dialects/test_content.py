"""No token goes by uncounted: what is metered is never less than what a stream shows, whoever writes it, however.

A rolling hold stands on this alone: a token is at least a byte of what is shown, so whoever counts all bytes of
content (and each frame once more) has never counted fewer tokens than there are.
"""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import Meter
from proxy.dialects import sse
from tests.dialects.common import choices_of, dialect_of, recording, shown_bytes, translator

STREAMS = (
    "openai_text.sse",
    "openai_tools.sse",
    "openai_two_choices.sse",
    "openai_azure.sse",
    "openai_python_server.sse",
    "openai_running_usage.sse",
    "anthropic_text.sse",
    "anthropic_tools.sse",
    "anthropic_thinking.sse",
    "anthropic_web_search.sse",
    "gemini_text.sse",
    "gemini_tools.sse",
    "gemini_thinking.sse",
    "gemini_two_candidates.sse",
    "gemini_stop_in_every_frame.sse",
    "gemini_finish_in_between.sse",
    "gemini_late_usage.sse",
)

DELTA_OPENS = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'

# Whatever a tap searches for, as a model, a tool or a user may have it written.
NASTY = st.sampled_from(
    [
        "content_block_delta",
        "content_block_start",
        '"content_block_delta"',
        "event: content_block_delta\ndata: " + DELTA_OPENS,
        '"}}\n\n',
        "}}",
        "message_stop",
        '"message_delta"',
        '"delta":',
        'data: {"id":"c","choices":[{"index":0,"delta":{"content":"',
        '"},"logprobs":null,"finish_reason":null}],"usage":null}',
        '"finish_reason":"stop"',
        '"usage":{"prompt_tokens":1,"completion_tokens":1}',
        '"error"',
        "[DONE]",
        '{"parts": [{"text": ""}], "role": "model"}',
        "yes " * 20,
        "\\",
        "\n\n",
        "é🌍",
    ]
)
TEXT = NASTY | st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def writers(draw):
    """How a server writes its JSON and its events."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
    style = {"ensure_ascii": draw(st.booleans()), "sort_keys": draw(st.booleans()), "separators": separators}
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    space = draw(st.sampled_from(["", " "]))
    named = draw(st.booleans())

    def write(fields):
        event = f"event:{space}{fields['type']}{newline}" if named and "type" in fields else ""
        return f"{event}data:{space}{json.dumps(fields, **style)}{newline}{newline}".encode()

    return write


CALL = st.fixed_dictionaries(
    {"index": st.integers(0, 2)},
    optional={
        "id": st.just("call_1"),
        "type": st.just("function"),
        "function": st.fixed_dictionaries({}, optional={"name": TEXT, "arguments": TEXT}),
    },
)
DELTA = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": TEXT | st.none(),
        "refusal": TEXT | st.none(),
        "reasoning_content": TEXT | st.none(),
        "reasoning_details": st.lists(st.fixed_dictionaries({"text": TEXT}), max_size=2),
        "tool_calls": st.lists(CALL, max_size=2),
        "function_call": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}),
        "audio": st.fixed_dictionaries({"data": TEXT, "transcript": TEXT}),
        "annotations": st.lists(st.fixed_dictionaries({"title": TEXT}), max_size=1),
    },
)  # fmt: skip
CHOICE = st.fixed_dictionaries(
    {"index": st.integers(0, 1), "delta": DELTA, "logprobs": st.none(), "finish_reason": st.none()},
    optional={"text": TEXT},
)
OPENAI = st.fixed_dictionaries(
    {"id": st.just("c"), "object": st.just("chat.completion.chunk"), "choices": st.lists(CHOICE, max_size=2)},
    optional={"usage": st.none(), "error": st.none(), "obfuscation": st.text("ab", max_size=9)},
)

DELTAS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text_delta"), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("thinking_delta"), "thinking": TEXT}),
    st.fixed_dictionaries({"type": st.just("signature_delta"), "signature": TEXT}),
    st.fixed_dictionaries({"type": st.just("input_json_delta"), "partial_json": TEXT}),
    st.fixed_dictionaries({"type": st.just("citations_delta"), "citation": st.fixed_dictionaries({"text": TEXT})}),
    st.fixed_dictionaries({"type": st.just("novel_delta"), "novel": JSON}),
)  # fmt: skip
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": st.just("t"), "name": TEXT, "input": JSON}),
    st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXT}),
)
INDEX = st.integers(0, 12)
ANTHROPIC = st.one_of(
    st.fixed_dictionaries({"type": st.just("content_block_delta"), "index": INDEX, "delta": DELTAS}),
    st.fixed_dictionaries({"type": st.just("content_block_start"), "index": INDEX, "content_block": BLOCKS}),
    st.fixed_dictionaries({"type": st.just("content_block_stop"), "index": INDEX}),
    st.fixed_dictionaries({"type": st.just("ping")}),
    st.fixed_dictionaries({"type": st.just("content_block_novelty"), "novel": JSON}),
)

PART = st.one_of(
    st.fixed_dictionaries({"text": TEXT}, optional={"thought": st.booleans(), "thoughtSignature": TEXT}),
    st.fixed_dictionaries({"functionCall": st.fixed_dictionaries({"name": TEXT, "args": JSON})}),
    st.fixed_dictionaries({"inlineData": st.fixed_dictionaries({"mimeType": TEXT, "data": TEXT})}),
    st.fixed_dictionaries({"executableCode": st.fixed_dictionaries({"code": TEXT})}),
    st.fixed_dictionaries({"novel": JSON}),
)
CONTENT = st.fixed_dictionaries({"role": st.just("model")}, optional={"parts": st.lists(PART, max_size=2)})
CANDIDATE = st.fixed_dictionaries({"index": st.integers(0, 1)}, optional={"content": CONTENT})
GEMINI = st.fixed_dictionaries({"candidates": st.lists(CANDIDATE, max_size=2)})


FRAMES = {"openai_chat": OPENAI, "anthropic": ANTHROPIC, "gemini": GEMINI}


def check(dialect, data, reads, **more):
    """Feed a stream read by read; after each, all that it has shown so far must have been counted."""
    meter, so_far = Meter(), b""
    stream = translator(dialect, meter, **more)
    for read in reads:
        so_far += read
        stream.feed(read)
        shown = shown_bytes(dialect, so_far[: sse.last_border(so_far)])
        assert meter.content_bytes >= shown
        assert meter.content_frames > 0 or shown == 0
    assert so_far == data
    return meter


def cut_up(data, where):
    return [
        data[start:stop]
        for start, stop in pairwise([0, *sorted({at % (len(data) + 1) for at in where}), len(data)])
    ]


@pytest.mark.parametrize("dialect", FRAMES)
def test_whatever_a_server_sends_all_that_it_shows_is_counted(dialect):
    @settings(max_examples=150)
    @given(
        st.lists(FRAMES[dialect], min_size=1, max_size=8),
        writers(),
        st.integers(1, 4),
        st.lists(st.integers(0, 4000), max_size=5),
    )
    def holds(pieces, write, again, where):
        data = (
            b"".join(map(write, pieces)) * again
        )  # what comes again and again is what an envelope is learned from
        check(dialect, data, cut_up(data, where), choices=2)

    holds()


@pytest.mark.parametrize("dialect", FRAMES)
def test_whatever_a_server_sends_no_more_of_it_is_given_than_is_covered(dialect):
    @settings(max_examples=150)
    @given(st.lists(FRAMES[dialect], min_size=1, max_size=6), writers(), st.integers(0, 600))
    def holds(pieces, write, covered):
        data = b"".join(map(write, pieces)) * 2
        stream = translator(dialect, choices=2)
        stream.feed(data)
        kept = stream.cut(stream.feed(data), covered, "wallet")
        assert data.startswith(kept)
        shown = [shown_bytes(dialect, frame) for frame in sse.frames(kept)]
        assert sum(shown) + sum(map(bool, shown)) <= covered

    holds()


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("step", [70, 400, 10_000])
def test_of_every_recording_all_that_it_shows_is_counted(name, step):
    data = recording(name)
    check(
        dialect_of(name),
        data,
        [data[at : at + step] for at in range(0, len(data), step)],
        choices=choices_of(name),
    )


def test_a_tool_that_is_called_like_an_event_hides_nothing():
    block = '{"type":"tool_use","name":"content_block_delta"}'
    start = f'data: {{"type":"content_block_start","index":0,"content_block":{block}}}\n\n'.encode()
    delta = f'data: {DELTA_OPENS}content_block_delta"}}}}\n\n'.encode()
    for data in (start, delta, start + delta * 5):
        check("anthropic", data, [data])


def test_deltas_without_an_event_line_hide_nothing():
    delta = f'data: {DELTA_OPENS}a b c d e f g h"}}}}\n\n'.encode()
    meter = check("anthropic", delta * 3, [delta * 3])
    assert meter.content_bytes == 3 * len("a b c d e f g h")


def test_an_envelope_that_was_learned_from_one_kind_of_piece_takes_nothing_from_another():
    def frame(delta):
        return f'data: {{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}\n\n'.encode()

    words = frame('{"content":"many words"}') * 20
    call = frame('{"tool_calls":[{"index":0,"function":{"arguments":"1"}}]}')
    for data in (words + call, call + words):
        check("openai_chat", data, [data])


def test_text_that_stands_before_the_delta_is_no_envelope():
    frame = (
        b'data: {"choices":[{"text":"yes yes yes yes","delta":{},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    check("openai_chat", frame * 9, [frame] * 9)


@pytest.mark.parametrize(
    "delta",
    [
        '{"content":" word"}',
        '{"role":"assistant","content":" word"}',
        '{"content":" word","reasoning_content":null}',
        '{"content":null,"reasoning_content":" word"}',
        '{"tool_calls":[{"index":0,"function":{"arguments":" word"}}]}',
        '{"tool_calls":[{"index":12,"type":"function","function":{"arguments":" word"}}]}',
    ],
)
def test_around_ordinary_pieces_hardly_anything_is_counted(delta):
    frame = f'data: {{"id":"c","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null}}]}}\n\n'
    meter = check("openai_chat", frame.encode() * 50, [frame.encode() * 10] * 5)
    assert meter.content_frames == 50
    assert meter.content_bytes <= 50 * (len(" word") + 8)


# --- answers with nothing in them ---------------------------------------------------------------------------

_CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":0}}\n\ndata: [DONE]\n\n'
_START = (
    b'event: message_start\ndata: {"type":"message_start",'
    b'"message":{"content":[],"usage":{"input_tokens":5,"output_tokens":0}}}\n\n'
)
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_OVER = (
    b'event: message_delta\ndata: {"type":"message_delta",'
    b'"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":0}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
_NO_TEXT = b'data: {"candidates":[{"content":{"parts":[{"text":""}],"role":"model"}}]}\r\n\r\n'
_FINISH = (
    b'data: {"candidates":[{"finishReason":"STOP"}],'
    b'"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":0}}\r\n\r\n'
)
EMPTY = {
    "openai_chat": _CHUNK % (b'{"role":"assistant","content":""}', b"null")
    + _CHUNK % (b"{}", b'"stop"')
    + _USAGE,
    "anthropic": _START + _PING + _OVER,
    "gemini": _NO_TEXT + _FINISH,
}
FULL = {
    "openai_chat": EMPTY["openai_chat"].replace(b"{},", b'{"content":"x"},'),
    "anthropic": EMPTY["anthropic"].replace(
        _PING, b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
    ),
    "gemini": EMPTY["gemini"].replace(b'{"text":""}', b'{"text":"x"}'),
}
EMPTY_BODY = {
    "openai_chat": [
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"","refusal":null},"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[]},"logprobs":null}]}',
        b'{"choices":[]}',
    ],
    "anthropic": [b'{"type":"message","content":[],"stop_reason":"end_turn"}', b'{"content": [ ] }'],
    "gemini": [
        b'{"candidates":[{"finishReason":"STOP"}]}',
        b'{"candidates":[{"content":{"role":"model"}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"}}]}',
        b'{"promptFeedback":{"blockReason":"SAFETY"}}',
    ],
}
FULL_BODY = {
    "openai_chat": [
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"}}]}',
        b'{"choices":[{"index":0,"message":{"content":null,"tool_calls":[{"id":"c"}]}}]}',
        b'{"choices":[{"index":0,"message":{"content":"","refusal":"no"}}]}',
        b'{"choices":[{"index":0,"text":"x"}]}',
        b'{"choices":[7]}',
        b"{}",
    ],
    "anthropic": [b'{"content":[{"type":"text","text":"x"}]}', b'{"input_tokens":5}'],
    "gemini": [
        b'{"candidates":[{"content":{"parts":[{"text":"x"}],"role":"model"}}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"}}]}}]}',
        b'{"candidates":[{"content":{"parts":[7]}}]}',
        b'{"candidates":[{"content":{"parts":[{"novel":0}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":"\xff"}]}}]}',
        b'{"candidates":[{"content":{"novel":1}}]}',
        b'{"candidates":[{"content":"x"}]}',
        b'{"totalTokens":5}',
    ],
}


@pytest.mark.parametrize("dialect", EMPTY)
def test_of_a_stream_can_be_told_whether_there_was_anything_in_it(dialect):
    for data, empty in ((EMPTY[dialect], True), (FULL[dialect], False)):
        for reads in ([data], sse.frames(data), [data[at : at + 7] for at in range(0, len(data), 7)]):
            meter = Meter()
            stream = translator(dialect, meter)
            for read in reads:
                stream.feed(read)
            stream.finish()
            assert (meter.content_frames == 0) is empty
            assert (meter.content_bytes == 0) is empty
            assert meter.reported.final
            assert meter.reported.legs[0].output == 0


@pytest.mark.parametrize("dialect", EMPTY)
def test_of_a_body_can_be_told_whether_there_was_anything_in_it(dialect):
    for bodies, empty in ((EMPTY_BODY, True), (FULL_BODY, False)):
        for body in bodies[dialect]:
            meter = Meter()
            whole = translator(dialect, meter, stream=False)
            whole.feed(body[:9])
            whole.feed(body[9:])
            assert (meter.content_frames, meter.content_bytes) == (1, len(body)), "it may still break off"
            whole.finish()
            assert (meter.content_frames, meter.content_bytes) == ((0, 0) if empty else (1, len(body))), body
