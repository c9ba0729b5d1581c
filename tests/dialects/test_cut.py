"""An answer that is cut off, wherever and with however little credit left, ends as one that reached its length."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.records import Ending, Receipt
from pricing.usage import Meter, Usage
from proxy.dialects import sse
from proxy.errors import StreamBroken
from tests.dialects.common import (
    STREAMS,
    choices_of,
    dialect_of,
    objects,
    payloads,
    receipt,
    recording,
    shown_bytes,
    translator,
)

USAGE = Usage(input=100, cache_read=50, cache_write_5m=7, output=42, reasoning=4, requests=1)
RECEIPT = receipt(
    5_000_001, usage=USAGE, request="req_9", outcome=Ending.EXHAUSTED, started_ms=1_700_000_000_000
)
BUDGETS = (0, 1, 60, 150, 500, 10**6)
WAVERING = ("gemini_stop_in_every_frame.sse", "gemini_finish_in_between.sse")
"""What seems to be the end of these is none."""
TEXTS = ("openai_text.sse", "anthropic_text.sse", "gemini_text.sse")
NOT_STREAMS = ("openai_overloaded_prelude.sse", "gemini_error_early.sse")
SOUND = tuple(
    name for name in STREAMS if name not in NOT_STREAMS and "blocked" not in name and "broken" not in name
)


def cut(name, reads, budget, *, after=b"", array=False, live=False, limit="wallet"):
    """Feed the reads, cut the last of them, and give what the client got: before, of the last read, and the end."""
    stream = translator(
        dialect_of(name),
        choices=choices_of(name),
        gemini_array=array,
        live_cost=live,
        cost_so_far=lambda: 1,
    )
    relays = [b""]
    try:
        relays += [stream.feed(read) for read in reads]
    except StreamBroken:  # alone in its read: there is nothing to be cut
        return None
    kept = stream.cut(relays[-1], budget, limit)
    assert relays[-1].startswith(kept)
    assert stream.ended
    stream.finish()
    end = stream.end(RECEIPT)
    for again in (lambda: stream.feed(after), lambda: stream.cut(b"", budget, limit)):
        with pytest.raises(RuntimeError):
            again()
    return b"".join(relays[:-1]), kept, end


def check(name, before, kept, end):
    """That all in all it is one valid stream whose last word is the length."""
    body = before + kept + end
    assert sse.last_border(body) == len(body), "no torn frame"
    CHECKS[dialect_of(name)](name, body)


def check_openai(name, body):
    *frames, done = payloads(body)
    assert done == b"[DONE]"
    chunks = [json.loads(frame) for frame in frames]
    finishes = [
        (choice["index"], choice["finish_reason"], chunk)
        for chunk in chunks
        for choice in chunk["choices"]
        if choice.get("finish_reason")
    ]
    assert sorted(index for index, _, _ in finishes) == list(range(choices_of(name)))
    for _, reason, chunk in finishes:
        if "x-credits-limit" in chunk:
            assert (reason, chunk["x-credits-limit"], chunk["x-credits-cost-micro"]) == (
                "length",
                "wallet",
                6,
            )
        else:  # the model's own, from before the cut
            assert chunk["choices"][0] in [
                choice for own in objects(whole(name)) for choice in own["choices"]
            ]
    assert len({chunk["id"] for chunk in chunks if chunk["id"]}) == 1
    assert len({chunk["model"] for chunk in chunks if chunk["model"]}) == 1
    usage = chunks[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["cost_micro"]) == (157, 42, 6)
    assert chunks[-1]["choices"] == []


def check_anthropic(_name, body):
    events = [event for event in objects(body) if event["type"] != "ping"]
    assert events[0]["type"] == "message_start"
    open_block, blocks = None, 0
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert (open_block, event["index"]) == (None, blocks)
                open_block, blocks = blocks, blocks + 1
            case "content_block_delta":
                assert event["index"] == open_block
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case other:
                pytest.fail(other)
    assert open_block is None
    last, stop = events[-2:]
    assert stop == {"type": "message_stop"}
    assert last["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 42
    assert last["usage"]["cost_micro"] == last["x-credits-cost-micro"] == 6
    assert last["x-credits-limit"] == "wallet"
    assert body.count(b"event:") == len(payloads(body))


def check_gemini(name, body):
    check_responses(name, objects(body))


def check_responses(name, responses):
    finished = [
        (candidate["index"], candidate["finishReason"])
        for response in responses
        for candidate in response.get("candidates", ())
        if "finishReason" in candidate
    ]
    if name in WAVERING:  # the last word on each counts
        finished = list(dict(finished).items())
    assert sorted(index for index, _ in finished) == list(range(choices_of(name)))
    last = responses[-1]
    assert all(candidate["finishReason"] == "MAX_TOKENS" for candidate in last["candidates"])
    assert last["candidates"]
    assert last["x-credits-limit"] == "wallet"
    assert last["usageMetadata"]["candidatesTokenCount"] == 38
    assert last["usageMetadata"]["cost_micro"] == last["x-credits-cost-micro"] == 6
    assert len({response.get("responseId") for response in responses}) == 1


UNBROKEN = tuple(
    name for name in SOUND if "error" not in name and "cut" not in name and "overload" not in name
)
FINISHES = {
    "openai_chat": lambda chunk: any(choice["finish_reason"] for choice in chunk["choices"]),
    "anthropic": lambda event: event["type"] == "message_delta",
    "gemini": lambda response: any("finishReason" in candidate for candidate in response["candidates"]),
}
CHECKS = {"openai_chat": check_openai, "anthropic": check_anthropic, "gemini": check_gemini}


def whole(name):
    data = recording(name)
    return data[: sse.last_border(data)]


@pytest.mark.parametrize("name", SOUND)
def test_cut_after_any_frame_it_ends_as_by_its_length_and_shows_no_more_than_is_covered(name):
    frames = sse.frames(whole(name))
    for count in range(1, len(frames) + 1):
        for budget in BUDGETS:
            for reads in (frames[:count], [b"".join(frames[:count])]):
                given = cut(name, reads, budget)
                if given is None:
                    continue
                check(name, *given)
                assert shown_bytes(dialect_of(name), given[1]) <= budget


def every_byte(name, step):
    data = recording(name)
    for length in range(0, len(data) + 1, step):
        for reads in ([data[:length]], [data[: length // 2], data[length // 2 : length]]):
            for budget in (0, 200):
                given = cut(name, reads, budget)
                if given is not None:
                    check(name, *given)


@pytest.mark.parametrize("name", SOUND)
def test_cut_after_some_byte_it_ends_as_by_its_length(name):
    every_byte(name, 29)


@pytest.mark.long
@pytest.mark.parametrize("name", SOUND)
def test_cut_after_any_byte_it_ends_as_by_its_length(name):
    every_byte(name, 1)


@settings(max_examples=150)
@given(
    st.sampled_from(SOUND), st.lists(st.integers(0, 5000), max_size=6), st.integers(0, 3000), st.booleans()
)
def test_however_it_is_read_and_whatever_is_covered_it_ends_as_by_its_length(name, where, budget, live):
    data = recording(name)
    borders = sorted({0, *(at % (len(data) + 1) for at in where)})
    reads = [data[start:stop] for start, stop in pairwise(borders)]
    given = cut(name, reads, budget, live=live)
    if given is not None:
        check(name, *given)
        assert shown_bytes(dialect_of(name), given[1]) <= budget


@pytest.mark.parametrize("name", [name for name in UNBROKEN if "every" not in name])
def test_all_that_is_covered_is_given(name):
    """But for what says that the answer is finished: it must not be, as the client is told that it was cut."""
    frames = sse.frames(whole(name))
    _, kept, _ = cut(name, frames[:1], 10**6)
    assert kept == frames[0]
    _, kept, _ = cut(name, [b"".join(frames)], 10**6)
    dropped = objects(b"".join(frames)[len(kept) :])
    assert FINISHES[dialect_of(name)](dropped[0])


@pytest.mark.parametrize("name", TEXTS)
def test_more_credit_never_shows_less(name):
    kept = [cut(name, [whole(name)], budget)[1] for budget in range(0, 1500, 10)]
    assert all(more.startswith(less) for less, more in pairwise(kept))
    assert len(set(kept)) > 3


@pytest.mark.parametrize(
    "name", ["openai_broken_error.sse", "anthropic_error_late.sse", "gemini_error_frame.sse"]
)
def test_an_error_behind_the_cut_is_no_longer_the_clients_matter(name):
    given = cut(name, [recording(name)], 10**6)
    check(name, *given)
    assert b'"error"' not in b"".join(given)


@pytest.mark.parametrize("name", TEXTS)
def test_cut_before_anything_has_come_it_still_is_an_answer(name):
    stream = translator(dialect_of(name))
    assert stream.cut(b"", 0, "wallet") == b""
    stream.finish()
    check(name, b"", b"", stream.end(RECEIPT))


def test_what_was_withheld_before_the_cut_is_dropped():
    """Content in the frame that ends a Gemini answer, or after it, may be what was not covered."""
    for name in ("gemini_thinking.sse", "openai_running_usage.sse"):
        frames = sse.frames(whole(name))
        stream = translator(dialect_of(name))
        given = b"".join(map(stream.feed, frames[:-1]))
        relay = stream.feed(frames[-1])
        assert stream.cut(relay, 0, "wallet") == b""
        stream.finish()
        check(name, given, b"", stream.end(RECEIPT))


def test_the_live_cost_in_a_frame_takes_nothing_from_what_is_covered():
    for name in TEXTS:
        for budget in range(0, 600, 20):
            plain = cut(name, [whole(name)], budget)[1]
            live = cut(name, [whole(name)], budget, live=True)[1]
            assert live.replace(b'"credits":{"cost_micro":1},', b"") == plain


def test_only_what_was_fed_last_can_be_cut():
    for array in (False, True):
        stream = translator("gemini", gemini_array=array)
        stream.feed(whole("gemini_text.sse"))
        with pytest.raises(RuntimeError, match="fed last"):
            stream.cut(b"data: {}\r\n\r\n", 5, "wallet")


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic", "gemini"])
def test_a_body_in_one_piece_cannot_be_cut(dialect):
    with pytest.raises(RuntimeError):
        translator(dialect, stream=False).cut(b"", 5, "wallet")


@pytest.mark.parametrize("nothing", [None, Receipt("r", None, 0, 0)])
def test_without_a_record_the_end_says_no_cost(nothing):
    for name in TEXTS:
        stream = translator(dialect_of(name))
        stream.cut(stream.feed(whole(name)), 0, "key_cap")
        (last,) = [event for event in objects(stream.end(nothing)) if "x-credits-limit" in event]
        assert last["x-credits-limit"] == "key_cap"
        assert "cost" not in json.dumps(last)


# --- without alt=sse: one JSON array ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SOUND if name.startswith("gemini")])
def test_cut_anywhere_a_stream_that_is_an_array_is_a_whole_one(name):
    data = recording(name)
    frames = sse.frames(whole(name))
    reads = [frames[:count] for count in range(1, len(frames) + 1)]
    reads += [[data[:length]] for length in range(0, len(data), 23)]
    for pieces in reads:
        for budget in BUDGETS:
            given = cut(name, pieces, budget, array=True)
            if given is not None:
                check_responses(name, json.loads(b"".join(given)))


def test_an_array_of_which_nothing_was_read_is_a_whole_one():
    stream = translator("gemini", gemini_array=True)
    assert stream.cut(b"", 0, "wallet") == b""
    stream.finish()
    (only,) = json.loads(stream.end(RECEIPT))
    assert only["candidates"][0]["finishReason"] == "MAX_TOKENS"


def test_the_meter_has_seen_no_less_than_what_was_given():
    for name in SOUND:
        meter = Meter()
        stream = translator(dialect_of(name), meter, choices=choices_of(name))
        relay = stream.feed(whole(name))
        kept = stream.cut(relay, 100, "wallet")
        assert meter.content_bytes >= shown_bytes(dialect_of(name), kept)
