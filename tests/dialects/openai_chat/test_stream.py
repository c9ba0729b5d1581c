import functools
import json
from itertools import dropwhile, pairwise
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.records import Ending
from pricing.usage import Meter, Usage
from proxy.dialects import sse
from proxy.dialects.openai_chat import stream
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.types import Path as Route
from tests.dialects.common import DIALECTS, payloads, receipt, recording, shown_bytes

DIALECT = DIALECTS["openai_chat"]
CHARGED = 1_234_567

WHOLE = (
    "openai_text.sse",
    "openai_tools.sse",
    "openai_reasoning.sse",
    "openai_two_choices.sse",
    "openai_azure.sse",
    "openai_python_server.sse",
    "openai_running_usage.sse",
    "openai_usage_with_finish.sse",
    "openai_without_done.sse",
    "openai_groq.sse",
)
BROKEN = (
    "openai_broken_error.sse",
    "openai_broken_cut.sse",
    "openai_broken_json_tail.sse",
    "openai_broken_aggregator.sse",
)


@functools.cache
def ask(stream=True, usage=True, live=False, choices=1):
    body = {"model": "m", "stream": stream, "n": choices, "messages": [{"role": "user", "content": "x"}]}
    if stream:
        body["stream_options"] = {"include_usage": usage}
    headers = {"x-credits-live": "1"} if live else {}
    return DIALECT.read_request(Route("openai_chat"), headers, msgspec.json.encode(body), "pass")


def ask_for(name, usage=True):
    return ask(usage=usage, choices=2 if "two" in name else 1)


def play(request, chunks):
    """What a client sees before the end, the end, the meter, and how it broke."""
    meter = Meter()
    translator = DIALECT.passthrough(request, meter)
    relayed, broken = [], None
    try:
        for chunk in chunks:
            relayed.append(translator.feed(chunk))
            assert relayed[-1] == b"" or relayed[-1].endswith((b"\n\n", b"\n\r\n")), (
                "only whole frames are relayed"
            )
        translator.finish()
    except StreamBroken as error:
        broken = error
    end = b"" if broken else translator.end(receipt(CHARGED))
    return b"".join(relayed), end, meter, broken


def seen(meter):
    return meter.reported, meter.content_frames


def cuts_of(data):
    if len(data) <= 4096:
        return range(1, len(data))
    near, at = set(), 0
    for frame in sse.frames(data):
        at += len(frame)
        near.update(range(at - 12, at + 12))
    return sorted(cut for cut in near if 0 < cut < len(data))


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("name", WHOLE)
def test_wherever_a_stream_is_cut_the_client_sees_the_same_and_so_does_the_meter(name, usage):
    data, request = recording(name), ask_for(name, usage)
    relayed, end, meter, broken = play(request, [data])
    assert broken is None
    for cut in cuts_of(data):
        again = play(request, [data[:cut], data[cut:]])
        assert again[0] + again[1] == relayed + end
        assert seen(again[2]) == seen(meter)
        assert again[1] == end, "the same is withheld"


@pytest.mark.parametrize("name", WHOLE + BROKEN)
@pytest.mark.parametrize("step", [1, 2, 7, 64])
def test_small_reads_change_nothing_either(name, step):
    data, request = recording(name), ask_for(name)
    relayed, end, meter, broken = play(request, [data])
    again = play(request, [data[at : at + step] for at in range(0, len(data), step)])
    assert again[:2] == (relayed, end)
    assert seen(again[2]) == seen(meter)
    assert getattr(again[3], "message", None) == getattr(broken, "message", None)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.integers(1, 5000), max_size=6))
def test_any_cutting_gives_the_same_stream(name, where):
    data, request = recording(name), ask_for(name)
    borders = [0, *sorted({cut % len(data) for cut in where}), len(data)]
    relayed, end, meter, _ = play(request, [data[a:b] for a, b in pairwise(borders)])
    whole = play(request, [data])
    assert relayed + end == whole[0] + whole[1]
    assert seen(meter) == seen(whole[2])


@pytest.mark.parametrize("name", WHOLE)
def test_whatever_comes_before_the_end_is_relayed_byte_for_byte(name):
    data = recording(name)
    relayed, _, _, _ = play(ask_for(name), [data])
    assert relayed
    assert data.startswith(relayed)


@pytest.mark.parametrize("name", WHOLE)
def test_a_stream_that_stops_at_any_border_before_its_end_is_broken(name):
    data, at, request = recording(name), 0, ask_for(name)
    for frame in sse.frames(data)[: -3 if "running" in name else -2]:
        at += len(frame)
        _, _, _, broken = play(request, [data[:at]])
        assert broken is not None
        assert "broke off" in broken.message


EXPECTED = {
    "openai_text.sse": Usage(input=19, output=11, requests=1),
    "openai_tools.sse": Usage(input=32, cache_read=64, output=41, requests=1),
    "openai_reasoning.sse": Usage(
        input=134, cache_read=2048, cache_write_5m=128, output=450, reasoning=441, requests=1
    ),
    "openai_two_choices.sse": Usage(input=14, output=4, requests=1),
    "openai_azure.sse": Usage(input=11, output=3, requests=1),
    "openai_python_server.sse": Usage(input=9, output=2, requests=1),
    "openai_running_usage.sse": Usage(input=27, output=4, requests=1),
    "openai_usage_with_finish.sse": Usage(input=16, output=3, requests=1),
    "openai_without_done.sse": Usage(input=16, output=3, requests=1),
    "openai_groq.sse": Usage(input=38, output=2, requests=1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_usage_of_every_kind_of_server_is_found_and_is_its_last_word(name):
    _, _, meter, _ = play(ask_for(name), [recording(name)])
    assert meter.reported.legs == (EXPECTED[name],)
    assert meter.reported.final
    assert not meter.reported.flags


def usages(data):
    found = [msgspec.json.decode(text) for text in payloads(data) if text != b"[DONE]"]
    return [frame for frame in found if frame.get("usage")]


@pytest.mark.parametrize("name", [name for name in WHOLE if "groq" not in name])
def test_the_last_report_carries_the_exact_cost_once_and_only_behind_the_books(name):
    relayed, end, _, _ = play(ask_for(name), [recording(name)])
    assert b"cost" not in relayed
    *_, last = reports = usages(relayed + end)
    assert last["usage"]["cost"] == "0.000001234567"
    assert last["usage"]["cost_micro"] == 2
    assert sum("cost" in frame["usage"] for frame in reports) == 1
    assert end.strip().endswith(b"data: [DONE]")


def test_apart_from_the_cost_the_last_report_is_the_providers():
    relayed, end, _, _ = play(ask(), [recording("openai_text.sse")])
    ours, theirs = usages(relayed + end)[0], usages(recording("openai_text.sse"))[0]
    del ours["usage"]["cost"], ours["usage"]["cost_micro"]
    assert ours == theirs


@pytest.mark.parametrize("name", ["openai_text.sse", "openai_azure.sse", "openai_python_server.sse"])
def test_usage_without_choices_is_hidden_from_who_did_not_ask_and_metered_all_the_same(name):
    data = recording(name)
    relayed, end, meter, _ = play(ask_for(name, usage=False), [data])
    assert usages(relayed + end) == []
    assert payloads(relayed + end) == [text for text in payloads(data) if b"completion_tokens" not in text]
    assert meter.reported.legs == (EXPECTED[name],)


def test_the_end_begins_with_the_report_and_not_before():
    relayed, end, _, _ = play(ask(), [recording("openai_text.sse")])
    assert b'"finish_reason":"stop"' in relayed
    assert len(payloads(end)) == 2
    relayed, end, _, _ = play(ask(), [recording("openai_running_usage.sse")])
    assert b"three" in relayed
    assert [b'"finish_reason":"stop"' in text for text in payloads(end)] == [True, False, False]


def test_a_stream_is_ended_by_done_and_what_follows_does_not_matter():
    translator = DIALECT.passthrough(ask(), Meter())
    translator.feed(recording("openai_text.sse"))
    assert translator.ended
    assert translator.feed(b'data: {"error":{"message":"late"}}\n\n') == b""
    translator.finish()
    assert b"late" not in translator.end(None)


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
def test_a_done_without_its_blank_line_is_a_done(newline):
    data = recording("openai_text.sse").removesuffix(b"\n\n") + newline
    _, end, _, broken = play(ask(), [data])
    assert broken is None
    assert end.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("name", ["openai_text.sse", "openai_usage_with_finish.sse"])
@pytest.mark.parametrize("lost", [b"", b"\n", b"\r\n", b"\n: bye", b"\n\n: bye\n"])
def test_without_done_a_last_report_is_found_without_its_blank_line_too(name, lost):
    data = recording(name).removesuffix(b"data: [DONE]\n\n").rstrip()
    relayed, end, meter, broken = play(ask(), [data + lost])
    assert broken is None
    assert meter.reported.legs == (EXPECTED[name],)
    assert meter.reported.final
    assert payloads(relayed + end)[:-2] == payloads(data)[:-1]
    assert usages(relayed + end)[-1]["usage"]["cost_micro"] == 2
    assert end.endswith(b"\n\ndata: [DONE]\n\n")
    hidden = play(ask(usage=False), [data + lost])
    assert (usages(hidden[0] + hidden[1]) == []) is (name == "openai_text.sse")


def test_without_done_a_torn_report_is_none():
    data = recording("openai_text.sse").removesuffix(b"data: [DONE]\n\n").rstrip()
    report = len(sse.frames(data)[-1])
    for cut in range(1, report):
        _, _, meter, broken = play(ask(), [data[:-cut]])
        assert "broke off" in broken.message
        assert meter.reported is None


def test_an_error_without_its_blank_line_is_told():
    frame = sse.frames(recording("openai_text.sse"))[1]
    _, _, _, broken = play(ask(), [frame, b'data: {"error":{"message":"boom"}}'])
    assert "boom" in broken.message


def test_content_without_its_blank_line_is_no_end():
    frames = sse.frames(recording("openai_text.sse"))
    _, _, meter, broken = play(ask(), [*frames[:2], frames[2].rstrip()])
    assert "broke off" in broken.message
    assert meter.content_frames == 2


@pytest.mark.parametrize("space", [b"\t", b"  ", b" \r "])
def test_a_last_report_is_found_however_it_is_spaced(space):
    data = recording("openai_text.sse").replace(b'"usage":{', b'"usage":' + space + b"{")
    for chunks in ([data], sse.frames(data)):
        _, _, meter, broken = play(ask(), chunks)
        assert broken is None
        assert meter.reported.final


@pytest.mark.parametrize(("read", "final"), [(700, True), (0, False)])
def test_an_error_in_the_middle_is_billed_as_it_says(read, final):
    frame = sse.frames(recording("openai_text.sse"))[1]
    report = {"prompt_tokens": read, "completion_tokens": 300, "total_tokens": read + 300}
    error = {"error": {"message": "boom"}, "choices": [], "usage": report}
    for end in (b"\n\n", b""):
        _, _, meter, broken = play(ask(), [frame, b"data: " + msgspec.json.encode(error) + end])
        assert "boom" in broken.message
        assert meter.reported.legs == (Usage(input=read, output=300, requests=1),)
        assert meter.reported.final is final, "no provider reads nothing"


def test_without_done_a_stream_is_complete_only_once_every_choice_has_finished_and_the_usage_came():
    data = recording("openai_two_choices.sse").removesuffix(b"data: [DONE]\n\n")
    assert play(ask(choices=2), [data])[3] is None
    assert play(ask(choices=3), [data])[3] is not None
    without_usage = b"".join(frame for frame in sse.frames(data) if b"completion_tokens" not in frame)
    assert play(ask(choices=2), [without_usage])[3] is not None


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_never_looks_like_success_and_keeps_what_came_before(name):
    data = recording(name)
    relayed, end, meter, broken = play(ask(), [data])
    assert broken.kind is Kind.UPSTREAM_ERROR
    assert broken.ending is Ending.BROKEN
    assert (relayed, end) != (b"", b"")
    assert b"[DONE]" not in relayed + end
    assert b'"error"' not in relayed
    assert meter.reported is None
    assert meter.content_frames >= 1


def test_a_providers_error_in_the_middle_is_told_without_its_operator():
    _, _, _, broken = play(ask(), [recording("openai_broken_error.sse")])
    assert "The server had an error processing your request" in broken.message
    assert "Zk31Lm90qPwX" not in broken.message
    _, _, _, broken = play(ask(), [recording("openai_broken_json_tail.sse")])
    assert "EngineDeadError" in broken.message
    _, _, _, broken = play(ask(), [recording("openai_broken_aggregator.sse")])
    assert "502: Provider disconnected unexpectedly" in broken.message


def test_an_error_alone_in_a_read_is_raised_at_once():
    translator = DIALECT.passthrough(ask(), Meter())
    translator.feed(recording("openai_broken_error.sse").rpartition(b"data: ")[0])
    with pytest.raises(StreamBroken):
        translator.feed(b'event: error\ndata: {"error":{"message":"x"}}\n\n')


def test_errors_that_are_null_are_none():
    data = recording("openai_text.sse").replace(b'"usage":null', b'"error":null,"usage":null')
    assert play(ask(), [data])[3] is None


def test_a_server_with_spaces_of_its_own_is_read_frame_by_frame():
    data = b"".join(
        frame if frame == b"data: [DONE]\n\n" else frame.replace(b'":', b'" : ')
        for frame in sse.frames(recording("openai_text.sse"))
    )
    relayed, end, meter, broken = play(ask(usage=False), [data])
    assert broken is None
    assert meter.reported.legs == (EXPECTED["openai_text.sse"],)
    assert meter.reported.final
    assert b"completion_tokens" not in relayed + end


def test_usage_before_any_content_holds_nothing_back():
    frames = sse.frames(recording("openai_text.sse"))
    early = [frames[-2], *frames]
    relayed, _, meter, _ = play(ask(usage=False), early)
    assert relayed == b"".join(frames[:-2])
    assert meter.reported.final


def test_frames_that_nobody_can_read_are_relayed_and_metered_whole():
    data = recording("openai_text.sse")
    odd = b'data: {"usage":{\n\ndata: {"usage":{"a":[}}\n\ndata: {"choices":[7],"usage":[]}\n\n: "error"\n\n'
    relayed, end, meter, broken = play(ask(), [odd + data])
    assert broken is None
    assert relayed.startswith(odd)
    assert meter.reported.legs == (EXPECTED["openai_text.sse"],)
    assert play(ask(), [data[: -len("data: [DONE]\n\n")], odd, b"data: [DONE]\n\n"])[1].startswith(end[:20])


def test_another_tier_is_flagged():
    data = recording("openai_text.sse").replace(b'"service_tier":"default"', b'"service_tier":"priority"')
    assert play(ask(), [data])[2].reported.flags == {"tier:priority"}


def test_a_report_that_says_nothing_leaves_the_estimate():
    data = recording("openai_text.sse").replace(b'"prompt_tokens":19', b'"prompt_tokens":null')
    data = data.replace(b'"total_tokens":30', b'"total_tokens":null')
    _, _, meter, broken = play(ask(), [data])
    assert broken is None
    assert meter.reported is None


@pytest.mark.parametrize("name", WHOLE + BROKEN)
@pytest.mark.parametrize("step", [50, 400, 10_000])
def test_bytes_of_content_are_never_counted_too_low(name, step):
    data = recording(name)
    _, _, meter, _ = play(ask_for(name), [data[at : at + step] for at in range(0, len(data), step)])
    whole = sse.frames(data[: sse.last_border(data)])
    assert meter.content_bytes >= shown_bytes("openai_chat", b"".join(whole))
    assert meter.content_frames >= sum(shown_bytes("openai_chat", frame) > 0 for frame in whole)


texts = st.text(max_size=30) | st.sampled_from(
    [
        '"},"finish_reason":null}]',
        'data: {"id":"x","choices":[{"index":0,"delta":{"content":"',
        "}\\",
        "[DONE]",
        "\n\n",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=30), st.booleans())
def test_what_a_model_writes_can_neither_hide_content_nor_end_the_stream(pieces, one_read):
    def frame(delta, finish=None):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None}
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    frames = [frame({"content": piece}) for piece in pieces]
    relayed, _, meter, _ = play(ask(), [b"".join(frames)] if one_read else frames)
    true = sum(len(piece.encode()) for piece in pieces)
    assert relayed == b"".join(frames)
    assert meter.content_frames == len(list(dropwhile(lambda piece: not piece, pieces)))
    assert true <= meter.content_bytes
    assert meter.content_bytes <= 2 * len(msgspec.json.encode("".join(pieces))) + 40 * len(pieces) + 200


def test_around_ordinary_content_hardly_anything_is_counted():
    frame = next(frame for frame in sse.frames(recording("openai_text.sse")) if "läßt".encode() in frame)
    _, _, meter, _ = play(ask(), [frame * 100])
    assert meter.content_frames == 100
    assert meter.content_bytes < 100 * 24  # " läßt" and what pads it


def test_live_cost_is_said_once_per_read_to_who_asked_for_it():
    data = recording("openai_text.sse")
    half = sse.last_border(data, 0, len(data) // 2)
    translator = DIALECT.passthrough(ask(live=True), Meter(), lambda: 5_000_001)
    first, second = translator.feed(data[:half]), translator.feed(data[half:])
    for relayed in (first, second):
        frames = [msgspec.json.decode(text) for text in payloads(relayed)]
        assert [frame.get("credits") for frame in frames] == [{"cost_micro": 6}, *[None] * (len(frames) - 1)]
    silent = DIALECT.passthrough(ask(), Meter(), lambda: 5_000_001)
    assert b"credits" not in silent.feed(data)


# --- bodies ---------------------------------------------------------------------------------------------


def test_a_body_is_withheld_and_given_as_it_came_wherever_it_is_cut():
    data, request = recording("openai_text.json"), ask(stream=False)
    for cut in range(len(data)):
        relayed, end, meter, broken = play(request, [data[:cut], data[cut:]])
        assert (relayed, end, broken) == (b"", data, None)
        assert meter.reported.legs == (EXPECTED["openai_text.sse"],)
        assert meter.reported.final


def test_audio_is_a_bucket_of_its_own():
    _, _, meter, _ = play(ask(stream=False), [recording("openai_audio.json")])
    assert meter.reported.legs == (Usage(input=20, audio_input=100, output=14, audio_output=50, requests=1),)


def test_a_body_that_is_cut_anywhere_is_broken():
    data, request = recording("openai_text.json"), ask(stream=False)
    for cut in range(len(data) - 1):
        assert play(request, [data[:cut]])[3] is not None


def test_an_error_under_status_200_is_an_error():
    _, _, _, broken = play(ask(stream=False), [recording("openai_error_429.json")])
    assert "rate_limit_exceeded" in broken.message
    assert "Zk31Lm90qPwX" not in broken.message


@pytest.mark.parametrize(
    "body", [b'{"usage":[]}', b'{"usage":null}', b'{"usage":7}', b"{}", b'{"usage":{"a":{"b":1}}}']
)
def test_a_body_without_usage_is_complete_and_left_to_the_estimate(body):
    _, end, meter, broken = play(ask(stream=False), [body])
    assert (end, broken) == (body, None)
    assert meter.reported is None
    assert meter.content_bytes == len(body)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"usage":' + b"[" * 5000])
def test_what_is_no_answer_is_broken(body):
    assert play(ask(stream=False), [body])[3] is not None


def test_an_answer_nested_beyond_reason_is_broken_or_relayed_but_never_a_crash():
    """How deep JSON may be nested differs between versions of Python."""
    body = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
    _, end, _, broken = play(ask(stream=False), [body])
    assert broken is not None or end == body


# --- the prelude ----------------------------------------------------------------------------------------


def content_begins(name):
    """The number of the frame of a recording at which the prelude says that content has begun."""
    prelude = DIALECT.prelude()
    return next(number for number, frame in enumerate(sse.frames(recording(name)), 1) if prelude.feed(frame))


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("openai_text.sse", 2),
        ("openai_tools.sse", 1),
        ("openai_reasoning.sse", 2),
        ("openai_azure.sse", 3),
        ("openai_python_server.sse", 3),
        ("openai_two_choices.sse", 3),
        ("openai_broken_aggregator.sse", 3),
    ],
)
def test_the_prelude_ends_with_the_first_frame_that_says_something(name, frames):
    assert content_begins(name) == frames


def test_wherever_the_prelude_is_cut_it_ends_with_the_same_frame():
    data = recording("openai_text.sse")
    border = sum(map(len, sse.frames(data)[:2]))
    for cut in range(1, border):
        prelude = DIALECT.prelude()
        before = prelude.feed(data[:cut])
        assert not before
        assert prelude.feed(data[cut:border])


def test_an_overload_before_content_lets_another_account_answer():
    data = recording("openai_overloaded_prelude.sse")
    for cut in range(len(data)):
        prelude = DIALECT.prelude()
        assert not prelude.feed(data[:cut])
        with pytest.raises(UpstreamFailed) as caught:
            prelude.feed(data[cut:])
        assert caught.value.try_another
        assert caught.value.kind is Kind.NO_HEALTHY_UPSTREAM


@pytest.mark.parametrize(
    ("error", "kind", "another"),
    [
        ({"message": "x", "type": "server_error", "code": None}, Kind.UPSTREAM_ERROR, True),
        ({"message": "x", "code": 429}, Kind.NO_HEALTHY_UPSTREAM, True),
        (
            {"message": "x", "type": "invalid_request_error", "code": "invalid_api_key"},
            Kind.NO_HEALTHY_UPSTREAM,
            True,
        ),
        (
            {"message": "x", "type": "invalid_request_error", "code": "context_length_exceeded"},
            Kind.REFUSED_UPSTREAM,
            False,
        ),
        ("something failed", Kind.UPSTREAM_ERROR, True),
    ],
)
def test_an_error_before_content_says_whether_another_account_may_be_tried(error, kind, another):
    for body in (b"data: %b\n\n", b"%b"):  # as an event, and in plain JSON under status 200
        with pytest.raises(UpstreamFailed) as caught:
            DIALECT.prelude().feed(body % msgspec.json.encode({"error": error}))
        assert (caught.value.kind, caught.value.try_another) == (kind, another)


@pytest.mark.parametrize("body", [b"<!doctype html>", b'{"id":"chatcmpl-1","choices":[]}', b"\n\n  <html>"])
def test_an_answer_that_is_no_stream_is_a_failure(body):
    with pytest.raises(UpstreamFailed, match="not answer with a stream"):
        DIALECT.prelude().feed(body)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_a_whole_answer_in_place_of_a_stream_is_not_asked_for_twice(step, end):
    """The provider has generated it, and will bill it."""
    body, prelude = recording("openai_text.json").rstrip() + end, DIALECT.prelude()
    with pytest.raises(UpstreamFailed, match="not answer with a stream") as caught:
        for at in range(0, len(body), step):
            assert not prelude.feed(body[at : at + step])
    assert not caught.value.try_another
    assert caught.value.ending is Ending.BROKEN


def test_a_page_in_place_of_a_stream_lets_another_account_answer():
    for page in (b"<!doctype html>", b"<html>\n\n<p>", b"<" + b"p" * 2**17):
        with pytest.raises(UpstreamFailed, match="not answer with a stream") as caught:
            DIALECT.prelude().feed(page)
        assert caught.value.try_another
        assert caught.value.ending is Ending.REFUSED


def test_an_error_in_plain_json_is_told_however_it_is_read():
    body = (
        b'{"error":{"message":"{\\"}\\\\","type":"invalid_request_error","code":"context_length_exceeded"}}'
    )
    prelude = DIALECT.prelude()
    assert not any(prelude.feed(body[at : at + 1]) for at in range(len(body) - 1))
    with pytest.raises(UpstreamFailed) as caught:
        prelude.feed(body[-1:])
    assert caught.value.kind is Kind.REFUSED_UPSTREAM


def test_an_answer_in_place_of_a_stream_is_waited_for_only_so_long():
    prelude = DIALECT.prelude()
    assert not prelude.feed(b'{"a":"')
    with pytest.raises(UpstreamFailed) as caught:
        prelude.feed(b"x" * 2**16)
    assert not caught.value.try_another


def test_a_first_frame_in_many_reads_is_put_together_once():
    prelude = DIALECT.prelude()
    assert not prelude.feed(b": wait\n\nda")
    with mock.patch.object(sse.Framer, "rest", new_callable=mock.PropertyMock) as rest:
        assert not any(prelude.feed(b"ta: xxxx") for _ in range(1000))
    rest.assert_not_called()
    assert prelude.feed(b"\n\n")


def test_a_prelude_without_end_is_given_up():
    prelude = DIALECT.prelude()
    assert not prelude.feed(b": wait\n\n" * 1000)
    assert prelude.feed(b": wait\n\n" * 10_000)


@pytest.mark.parametrize(
    "frame",
    [
        b"data: [DONE]\n\n",
        b"data: what?\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[{"index":0,"text":"x"}]}\n\n',
        b'data: {"choices":[{"delta":{"refusal":"No"}}]}\n\n',
        b'data: {"choices":[{"delta":{"reasoning_content":"Hm"}}]}\n\n',
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    ],
)
def test_an_answer_that_is_over_at_once_or_says_what_we_do_not_know_is_no_longer_a_prelude(frame):
    assert DIALECT.prelude().feed(frame)


# -- the usual answer in one piece, and every other -------------------------------------------------

COUNTS = st.one_of(
    st.integers(0, 60), st.sampled_from([None, -1, True, 3.0, 2.5, "7", 2**38, 2**38 + 1, 2**70])
)
USUAL_COUNTS = st.integers(0, 60)
ODD = st.sampled_from([None, False, 0, "", "x", [], {}, [1], {"a": 1}])


def optional(fields):
    return st.fixed_dictionaries({}, optional=fields)


def details(*names, counts=COUNTS):
    return optional(dict.fromkeys(names, counts))


PROMPT = details("cached_tokens", "audio_tokens")
COMPLETION = details(
    "reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"
)
TOLD = optional(
    {
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "total_tokens": COUNTS,
        "prompt_tokens_details": st.one_of(PROMPT, details("image_tokens", "text_tokens", "odd"), ODD),
        "completion_tokens_details": st.one_of(COMPLETION, details("image_tokens", "odd"), ODD),
        "cached_tokens": COUNTS,
        "prompt_cache_hit_tokens": COUNTS,
        "cost": COUNTS,
        "odd": COUNTS,
    }
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={"role": st.just("assistant"), "content": st.one_of(st.text(max_size=5), ODD), "refusal": ODD},
)
CHOICES = st.lists(
    st.one_of(ODD, optional({"message": st.one_of(MESSAGES, ODD), "delta": ODD, "index": ODD, "odd": ODD})),
    max_size=3,
)


@st.composite
def usual_reports(draw):
    prompt, completion = draw(USUAL_COUNTS), draw(USUAL_COUNTS)
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion + draw(st.sampled_from([0, 0, 0, 1])),
        "prompt_tokens_details": draw(details("cached_tokens", "audio_tokens", counts=USUAL_COUNTS)),
        "completion_tokens_details": draw(details("reasoning_tokens", "audio_tokens", counts=USUAL_COUNTS)),
    }
    return {name: value for name, value in told.items() if value != {}}


BODIES = optional(
    {
        "id": ODD,
        "choices": st.one_of(CHOICES, st.just([{"message": {"content": "Hi"}}]), ODD),
        "usage": st.one_of(TOLD, usual_reports(), ODD),
        "service_tier": st.sampled_from([None, "", "default", "flex", 1]),
        "error": st.sampled_from([None, None, {}, "", {"message": "no", "code": "x"}, "no"]),
        "x_groq": st.one_of(ODD, st.builds(lambda usage: {"usage": usage}, TOLD)),
    }
)


def read_by(read, body):
    meter = Meter()
    try:
        return read(body, meter), meter.reported
    except StreamBroken as broken:
        return str(broken), meter.reported


@settings(max_examples=1500)
@given(fields=BODIES, torn=st.integers(0, 400), twice=st.booleans())
def test_the_usual_body_is_read_as_any_other(fields, torn, twice):
    body = msgspec.json.encode(fields)
    if twice:  # what is named twice counts as it was named last
        body = body[:-1] + b',"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
    for text in (body, body[: torn + 1], body.replace(b"H", b"\xff")):
        assert read_by(stream.read_body, text) == read_by(stream.read_any_body, text)


@given(told=usual_reports(), text=st.text(min_size=1, max_size=9))
def test_a_usual_report_is_read_without_the_general_code(told, text):
    body = msgspec.json.encode({"choices": [{"index": 0, "message": {"content": text}}], "usage": told})
    meter = Meter()
    assert stream.read_any_body(body, meter)
    report = meter.reported
    if not report.flags:  # what contradicts itself is not usual
        assert stream.usual(msgspec.json.decode(body, type=stream.UsualBody).usage) == report


# -- ordinary frames, and every other ----------------------------------------------------------------

NO_PATTERN = mock.patch.object(stream.Pattern, "of", return_value=None)

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            " a",
            "error",
            "[DONE]",
            "usage",
            "finish_reason",
            "delta",
            '"',
            "\\",
            '"usage":{',
            '"error"',
            "},",
            ":",
        ]
    ),
    st.sampled_from(["\n\n", "data: [DONE]", '"}}]}', '"},"finish_reason":null}]}', "content", "x" * 200]),
    st.text(max_size=6),
)
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXTS),
    st.builds(lambda text: {"reasoning_content": text}, TEXTS),
    st.builds(lambda text: {"content": None, "reasoning": text}, TEXTS),
    st.builds(lambda text: {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, TEXTS),
    st.just({}),
)


@st.composite
def answers(draw):
    """Streams of one server's frames, most of them alike, with some that are not, and whatever ends them."""
    logprobs = draw(st.booleans())
    told = draw(
        st.sampled_from([{}, {"usage": None}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}])
    )
    padded, index = draw(st.booleans()), draw(st.sampled_from([0, 0, 0, 1]))
    spaced, event = draw(st.booleans()), draw(st.sampled_from([b"", b"", b"event: chunk\n", b"id: 7\n"]))

    def framed(fields):
        text = msgspec.json.encode(fields)
        if spaced:
            text = json.dumps(fields).encode()
        return event + b"data: " + text + b"\n\n"

    def frame(delta, reason=None, at=index):
        choice = {
            "index": at,
            "delta": delta,
            **({"logprobs": None} if logprobs else {}),
            "finish_reason": reason,
        }
        padding = (
            {"obfuscation": draw(st.sampled_from(["", "aB", "error", "usage", "x" * 30]))} if padded else {}
        )
        return framed({"id": "c", "model": "m", "choices": [choice], **told, **padding})

    frames = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 19))
        if kind < 16:
            frames.append(frame(draw(DELTAS)))
        elif kind == 16:
            frames.append(
                draw(st.sampled_from([b": ping\n\n", b"\n", b"\r\n", b"data: {}\n\n", b"data: x\n\n"]))
            )
        elif kind == 17:
            frames.append(frame({"content": "y"}).replace(b"\n", b"\r\n"))
        elif kind == 18:
            frames.append(frame({}, draw(st.sampled_from(["stop", "length", ""])), draw(st.integers(0, 1))))
        else:
            frames.append(framed({"error": {"message": "no"}, "choices": []}))
    frames.append(frame({}, "stop"))
    if draw(st.booleans()):
        frames.append(
            framed({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}})
        )
    return b"".join([*frames, draw(st.sampled_from([b"data: [DONE]\n\n", b""]))])


def stages(chunks):
    """All that can be seen of a tap, read by read."""
    meter = Meter()
    translator = DIALECT.passthrough(ask(), meter)
    seen_so_far = []
    try:
        for chunk in chunks:
            given = translator.feed(chunk)
            tap = translator._tap
            seen_so_far.append(
                (
                    given,
                    meter.content_frames,
                    meter.content_bytes,
                    meter.reported,
                    translator.ended,
                    tap.standing,
                )
            )
        translator.finish()
    except StreamBroken as broken:
        return seen_so_far, str(broken)
    cut = translator.end(receipt(CHARGED))
    return seen_so_far, cut


def by_frames(answer):
    return [frame for frame in sse.frames(answer) if frame]


@settings(max_examples=600)
@given(answer=answers(), sizes=st.lists(st.integers(1, 300), max_size=12), per_read=st.integers(1, 5))
def test_ordinary_frames_are_metered_as_all_others(answer, sizes, per_read):
    whole = by_frames(answer)
    reads = [b"".join(whole[at : at + per_read]) for at in range(0, len(whole), per_read)]
    torn, rest = [], answer
    for size in sizes:
        torn.append(rest[:size])
        rest = rest[size:]
    for chunks in (reads, [*torn, rest], [answer]):
        with NO_PATTERN:
            expected = stages(chunks)
        assert stages(chunks) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_every_recorded_answer_is_metered_the_same_without_a_pattern(name):
    chunks = by_frames(recording(name))
    with NO_PATTERN:
        expected = stages(chunks)
    assert stages(chunks) == expected


@pytest.mark.parametrize("padding", [b"", b',"obfuscation":"%s"'])
def test_ordinary_frames_are_told_by_their_pattern(padding):
    def frame(text):
        padded = padding.replace(b"%s", b"z" * len(text))
        return b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]%s}\n\n' % (
            text, padded
        )  # fmt: skip

    translator = DIALECT.passthrough(ask(), Meter())
    translator.feed(frame(b"ab"))
    with mock.patch.object(stream.StreamTap, "_saw", side_effect=AssertionError("looked at again")):
        assert translator.feed(frame(b"other") + frame(b"")) == frame(b"other") + frame(b"")
