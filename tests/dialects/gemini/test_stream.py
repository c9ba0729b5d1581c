import json
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.records import Ending, Receipt
from pricing.usage import Meter, Usage
from proxy.dialects.gemini import errors
from proxy.dialects.sse import Framer
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.types import Path
from tests.dialects.common import ask, receipt

SOUND = ("text", "thinking", "tools", "cached_media", "two_candidates", "blocked")
WAVERING = ("stop_in_every_frame", "finish_in_between", "late_usage")
BROKEN = ("error_raw", "error_frame", "error_early", "cut")


def choices(name):
    return 2 if name == "two_candidates" else 1


def responses(data):
    lines = data.decode().split("\r\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def frame(*, text="x", finish=None, index=0, usage=None, **more):
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": index}
    if finish is not None:
        candidate["finishReason"] = finish
    response = {"candidates": [candidate], **more}
    if usage is not None:
        response["usageMetadata"] = {"promptTokenCount": 5, "candidatesTokenCount": usage}
    return f"data: {json.dumps(response)}\r\n\r\n".encode()


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_stream_goes_through_byte_for_byte(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    seen = run(data, choices=choices(name))
    assert seen.failure is None
    assert seen.written + seen.tail == data
    assert seen.ended
    assert seen.meter.reported.final


@pytest.mark.parametrize("name", SOUND)
def test_the_frame_that_finishes_the_last_candidate_is_withheld(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    seen = run(data, choices=choices(name))
    (last,) = responses(seen.tail)
    assert last == responses(data)[-1]


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("name", SOUND + BROKEN)
def test_cut_into_two_at_every_byte_it_comes_out_the_same(run, recording, name, array):
    data = recording(f"gemini_{name}.sse")
    assert len(data) <= 4096
    whole = run(data, choices=choices(name), array=array)
    for at in range(1, len(data)):
        cut = run(data[:at], data[at:], choices=choices(name), array=array)
        assert cut.outcome[1:] == whole.outcome[1:], at
        # Where the error is all that there is, an array may or may not have been opened before it.
        assert cut.written.removeprefix(b"[") == whole.written.removeprefix(b"["), at


@pytest.mark.parametrize("name", SOUND + BROKEN)
def test_byte_by_byte_it_comes_out_the_same(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    pieces = (data[at : at + 1] for at in range(len(data)))
    assert run(*pieces, choices=choices(name)).outcome == run(data, choices=choices(name)).outcome


@pytest.mark.parametrize("name", SOUND)
def test_a_stream_that_is_cut_short_anywhere_never_looks_like_success(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    complete = len(data.rstrip())
    for length in range(len(data)):
        seen = run(data[:length], choices=choices(name))
        if length < complete:
            assert seen.failure is not None, length
            assert seen.failure.ending is Ending.BROKEN
            assert data.startswith(seen.written)
        else:  # only the blank line is missing: it is made up for
            assert (seen.written + seen.tail).rstrip() == data.rstrip(), length


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 1400), max_size=12))
def test_any_cuts_give_the_same_bytes_and_the_same_bill(run, recording, cuts):
    data = recording("gemini_thinking.sse")
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[at[number] : at[number + 1]] for number in range(len(at) - 1)]
    assert run(*pieces).outcome == run(data).outcome


def test_thoughts_are_billed_as_output(run, recording):
    assert run(recording("gemini_thinking.sse")).meter.reported.legs == (
        Usage(input=21, output=319, reasoning=312, requests=1),
    )


def test_every_modality_is_billed_in_its_bucket(run, recording):
    assert run(recording("gemini_cached_media.sse")).meter.reported.legs == (
        Usage(
            input=604,
            cache_read=3696,
            audio_cached=400,
            audio_input=100,
            image_input=300,
            output=6,
            requests=1,
        ),
    )


def test_a_blocked_prompt_is_an_end_with_a_bill(run, recording):
    seen = run(recording("gemini_blocked.sse"))
    assert seen.meter.reported.legs == (Usage(input=12, requests=1),)
    assert seen.meter.content_frames == 0


def test_text_that_speaks_of_usage_is_only_text(run, recording):
    assert run(recording("gemini_text.sse")).meter.reported.legs == (Usage(input=8, output=18, requests=1),)


def test_in_the_middle_the_report_is_a_running_total(run):
    seen = run(frame(usage=3))
    assert seen.meter.reported.legs == (Usage(input=5, output=3, requests=1),)
    assert not seen.meter.reported.final


def test_content_bytes_bound_the_text_and_leave_out_the_usage(run):
    seen = run(frame(text="x" * 500, usage=3) * 3)
    assert seen.meter.content_frames == 3
    assert 1500 <= seen.meter.content_bytes < 1700


def test_one_finished_candidate_of_two_is_not_the_end(run):
    first = frame(finish="STOP", index=0, usage=3)
    seen = run(first, choices=2)
    assert not seen.ended
    second = frame(index=1, usage=4)
    last = frame(finish="STOP", index=1, usage=5)
    seen = run(first, second, last, choices=2)
    assert seen.written + seen.tail == first + second + last
    assert seen.meter.reported.legs[0].output == 5


def test_fewer_candidates_than_asked_for_end_with_the_connection(run):
    only = frame(finish="STOP", usage=3)
    seen = run(only, choices=2)
    assert (seen.failure, seen.tail) == (None, only)
    assert seen.meter.reported.final


def test_usage_that_follows_the_finish_is_waited_for(run):
    finish = frame(finish="STOP")
    seen = run(finish)
    assert not seen.ended
    assert seen.failure is None
    usage = b'data: {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}\r\n\r\n'
    seen = run(finish, usage)
    assert seen.ended
    assert seen.tail == finish + usage
    assert seen.meter.reported.final


# --- what seemed to be the end --------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("name", WAVERING)
def test_an_answer_goes_on_behind_a_finish_wherever_it_is_cut_into_two(run, recording, name, array):
    data = recording(f"gemini_{name}.sse")
    whole = run(data, array=array)
    assert whole.failure is None
    if array:
        assert json.loads(whole.written + whole.tail) == responses(data)
    else:
        assert whole.written + whole.tail == data
    for at in range(1, len(data)):
        cut = run(data[:at], data[at:], array=array)
        assert cut.outcome == whole.outcome, at
        assert seen(cut.meter) == seen(whole.meter), at


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(WAVERING), cuts=st.lists(st.integers(0, 1400), max_size=12))
def test_an_answer_goes_on_behind_a_finish_however_it_is_cut(run, recording, name, cuts):
    data = recording(f"gemini_{name}.sse")
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[at[number] : at[number + 1]] for number in range(len(at) - 1)]
    assert run(*pieces).outcome == run(data).outcome
    assert run(*(data[at : at + 1] for at in range(len(data)))).outcome == run(data).outcome


def seen(meter):
    return meter.content_frames, meter.content_bytes


@pytest.mark.parametrize(
    ("name", "output", "content"),
    [("stop_in_every_frame", 400, 4), ("finish_in_between", 33, 5), ("late_usage", 4, 2)],
)
def test_the_last_report_is_billed_and_all_content_is_counted(run, recording, name, output, content):
    last = run(recording(f"gemini_{name}.sse"))
    assert last.meter.reported.legs == (Usage(input=8, output=output, requests=1),)
    assert last.meter.reported.final
    assert last.meter.content_frames == content
    assert last.ended


def reads(dialect, *frames, choices=1):
    """What is relayed after each frame, whether it seems over, and whether the report is taken for the last."""
    meter = Meter()
    stream = dialect.passthrough(ask("gemini", choices=choices), meter)
    found = []
    for one in frames:
        relayed = stream.feed(one)
        found.append((relayed, stream.ended, meter.reported is not None and meter.reported.final))
    return found, stream, meter


def test_what_was_withheld_goes_on_as_soon_as_more_content_comes(dialect):
    once, upon, more = (
        frame(text="a", finish="STOP", usage=1),
        frame(text="b", finish="STOP", usage=2),
        frame(),
    )
    found, stream, meter = reads(dialect, once, upon, b": c\r\n\r\n", more)
    assert found == [
        (b"", True, True),
        (once, True, False),
        (b"", True, False),
        (upon + b": c\r\n\r\n" + more, False, False),
    ]
    assert meter.content_frames == 3
    with pytest.raises(StreamBroken, match="broke off"):
        stream.finish()


def test_content_behind_the_last_report_leaves_no_last_word(dialect):
    found, stream, meter = reads(dialect, frame(finish="STOP", usage=1), frame(text="late", finish="STOP"))
    assert [final for _, _, final in found] == [True, False]
    stream.finish()
    assert not meter.reported.final


def test_an_end_without_words_belongs_to_the_one_before(dialect):
    finish, silent = frame(finish="STOP", usage=1), frame(text="", finish="STOP", usage=2)
    found, stream, meter = reads(dialect, frame(), finish, silent)
    assert found[1:] == [(b"", True, True), (b"", True, True)]
    stream.finish()
    assert stream.end(None) == finish + silent
    assert meter.reported.legs[0].output == 2


def test_a_candidate_that_begins_late_lets_the_answer_go_on(dialect):
    first, second = frame(finish="STOP", usage=1), frame(index=1, text="")
    found, _, _ = reads(dialect, first, second, choices=2)
    assert found == [(b"", False, True), (first + second, False, False)]


def test_content_behind_a_block_lets_the_answer_go_on(dialect, recording):
    blocked, more = recording("gemini_blocked.sse"), frame()
    found, stream, _ = reads(dialect, blocked, more)
    assert [relayed for relayed, _, _ in found] == [b"", blocked + more]
    with pytest.raises(StreamBroken):
        stream.finish()


@pytest.mark.parametrize("last", [b"a", b"b"])
def test_a_cut_answer_has_its_length_wherever_it_went_on_and_nowhere_else(dialect, last):
    """Whatever was shown and looked at: finished is who was said to be, and has said nothing since."""
    zero, one = frame(text="a", finish="STOP", usage=1), frame(index=1, text="b")
    again = frame(text=last.decode(), index=0 if last == b"a" else 1, usage=2)
    found, stream, _ = reads(dialect, zero, one, again, choices=2)
    assert b"".join(relayed for relayed, _, _ in found) == zero + one + again
    assert stream.cut(again, 0, "wallet") == b""
    (end,) = responses(stream.end(None))
    assert [candidate["index"] for candidate in end["candidates"]] == ([0, 1] if last == b"a" else [1])


def test_of_a_cut_answer_what_is_withheld_is_not_shown_and_not_finished(dialect):
    frames = [frame(text=text, finish="STOP", usage=1) for text in "abc"]
    found, stream, _ = reads(dialect, *frames)
    assert [relayed for relayed, _, _ in found] == [b"", *frames[:2]]
    assert stream.cut(frames[1], 10**6, "wallet") == b""
    (end,) = responses(stream.end(None))
    assert [candidate["finishReason"] for candidate in end["candidates"]] == ["MAX_TOKENS"]


def test_what_follows_the_end_without_content_is_bounded(dialect):
    stream = dialect.passthrough(ask("gemini"), Meter())
    stream.feed(frame(finish="STOP", usage=1))
    with pytest.raises(StreamBroken, match="too long"):
        for _ in range(200):
            stream.feed(b": wait\r\n\r\n" * 10_000)


def test_after_an_error_nothing_more_is_looked_at(dialect):
    found, stream, meter = reads(
        dialect, frame() + b'data: {"error": {"code": 500}}\r\n\r\n', frame(text="late")
    )
    assert [relayed for relayed, _, _ in found] == [frame(), b""]
    assert meter.content_frames == 1
    with pytest.raises(StreamBroken):
        stream.finish()


def test_a_report_behind_the_end_counts_without_its_blank_line_too(run, recording):
    data = recording("gemini_late_usage.sse")
    assert run(data.rstrip()).meter.reported.legs == (Usage(input=8, output=4, requests=1),)


def test_a_torn_piece_of_the_answer_behind_the_end_breaks_it(run, recording):
    for name in ("stop_in_every_frame", "finish_in_between"):
        data = recording(f"gemini_{name}.sse")
        border = data.index(b"\r\n\r\n", data.index(b"STOP")) + 4
        for length in range(border + 20, data.index(b"\r\n\r\n", border)):
            assert run(data[:length]).failure is not None, length


def test_a_torn_frame_behind_the_end_takes_nothing_from_the_answer(run):
    finish = frame(finish="STOP")
    seen = run(finish, b'data: {"usageMeta')
    assert (seen.failure, seen.tail) == (None, finish)


@pytest.mark.parametrize("name", ["error_raw", "error_frame"])
def test_an_error_after_content_ends_the_stream_behind_the_last_good_frame(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    seen = run(data)
    assert seen.written == data[: data.index(b"\r\n\r\n") + 4]
    assert seen.failure.kind is Kind.NO_HEALTHY_UPSTREAM
    assert "(UNAVAILABLE)" in seen.failure.message


def test_an_error_behind_a_finished_answer_is_still_an_error(run):
    raw = b'{"error": {"code": 500, "message": "m", "status": "INTERNAL"}}\n'
    assert run(frame(finish="STOP"), raw).failure is not None


def test_an_event_that_cannot_be_read_breaks_the_stream(run):
    assert "not a response" in run(b"data: nonsense\r\n\r\n").failure.message


def test_blank_lines_and_comments_are_relayed(run, recording):
    data = b"\r\n\r\n: hello\n\n" + recording("gemini_text.sse")
    seen = run(data)
    assert seen.written + seen.tail == data


def test_the_cost_is_added_to_the_last_usage_report(run, recording):
    data = recording("gemini_text.sse")
    seen = run(data, receipt=receipt(1_234_500_000))
    (last,) = responses(seen.tail)
    assert last["usageMetadata"]["cost"] == "0.0012345"
    assert last["usageMetadata"]["cost_micro"] == 1235
    assert last["usageMetadata"]["totalTokenCount"] == 26
    assert seen.tail.endswith(b"\r\n\r\n")


def test_a_receipt_without_a_record_adds_nothing(run, recording):
    data = recording("gemini_text.sse")
    seen = run(data, receipt=Receipt(request="r", record=None, balance=0, held=0))
    assert seen.written + seen.tail == data


def test_an_end_without_usage_is_left_as_it_is(run):
    finish = frame(finish="STOP")
    assert run(finish, receipt=receipt(5)).tail == finish


# --- without alt=sse: one JSON array -------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_without_sse_the_stream_is_one_json_array_of_the_same_responses(run, recording, name):
    data = recording(f"gemini_{name}.sse")
    seen = run(data, choices=choices(name), array=True)
    assert json.loads(seen.written + seen.tail) == responses(data)


def test_heartbeats_between_elements_leave_the_array_whole(run, recording):
    data = recording("gemini_text.sse")
    half = data.index(b"\r\n\r\n") + 4
    first, second = run(data[:half], array=True).written, run(data, array=True)
    assert second.written.startswith(first)
    rest = second.written[len(first) :] + second.tail
    assert len(json.loads(b"\n" + first + b"\n\n" + rest)) == 4


def test_an_error_becomes_the_last_element(dialect, run, recording):
    seen = run(recording("gemini_error_raw.sse"), array=True)
    array = json.loads(seen.written + dialect.error_event(seen.failure, "req_1", Path("gemini", "stream")))
    assert "candidates" in array[0]
    assert array[1]["error"]["status"] == "UNAVAILABLE"


def test_the_cost_stands_in_the_last_element(run, recording):
    seen = run(recording("gemini_text.sse"), array=True, receipt=receipt(10**12))
    assert json.loads(seen.written + seen.tail)[-1]["usageMetadata"]["cost"] == "1.00"


def test_the_cost_so_far_goes_along_for_those_who_asked(dialect, recording):
    data = recording("gemini_text.sse")
    for live in (True, False):
        asked = ask("gemini", live_cost=live, gemini_array=True)
        written = dialect.passthrough(asked, Meter(), lambda: 1_500_000).feed(data)
        first = json.loads(written.rstrip(b"\n,") + b"]")[0]
        assert first.get("credits") == ({"cost_micro": 2} if live else None)


def test_an_odd_index_is_the_only_candidate(run):
    data = b'data: {"candidates": [{"index": null, "finishReason": "STOP"}]}\r\n\r\n'
    assert run(data).failure is None


# --- the prelude ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_content_begins_with_the_first_response_wherever_the_stream_is_cut(dialect, recording, name):
    data = recording(f"gemini_{name}.sse")
    whole = data.index(b"\r\n\r\n") + 4
    for at in range(1, whole):
        prelude = dialect.prelude()
        assert not prelude.feed(data[:at])
        assert prelude.feed(data[at:whole])


def test_usage_alone_is_no_content(dialect):
    assert not dialect.prelude().feed(b'data: {"usageMetadata": {"promptTokenCount": 5}}\r\n\r\n')


@pytest.mark.parametrize("bare", [False, True])
def test_an_overload_in_the_prelude_moves_on_to_another_account(dialect, recording, bare):
    data = recording("gemini_error_early.sse")
    data = data.removeprefix(b"data: ").strip() if bare else data
    for at in range(1, len(data)):
        prelude = dialect.prelude()
        with pytest.raises(UpstreamFailed) as failed:
            _ = prelude.feed(data[:at]) or prelude.feed(data[at:])
        assert failed.value.try_another
        assert failed.value.kind is Kind.NO_HEALTHY_UPSTREAM


def test_a_bad_key_in_the_prelude_is_no_fault_of_the_request(dialect, recording):
    with pytest.raises(UpstreamFailed) as failed:
        dialect.prelude().feed(recording("gemini_error_bad_key.json"))
    assert failed.value.try_another
    with pytest.raises(UpstreamFailed) as failed:
        dialect.prelude().feed(recording("gemini_error_400.json"))
    assert not failed.value.try_another


def test_a_first_response_in_many_reads_is_put_together_once(dialect, recording):
    prelude, data = dialect.prelude(), recording("gemini_text.sse")
    border = data.index(b"\r\n\r\n") + 3
    with mock.patch.object(Framer, "rest", new_callable=mock.PropertyMock) as rest:
        assert not any(prelude.feed(data[at : at + 1]) for at in range(border))
    rest.assert_not_called()
    assert prelude.feed(data[border : border + 1])


def test_a_bare_error_in_many_reads_is_decoded_once(dialect, recording):
    prelude, data = dialect.prelude(), recording("gemini_error_429.json").rstrip()
    with mock.patch.object(errors, "is_error", wraps=errors.is_error) as is_error:
        assert not any(prelude.feed(data[at : at + 1]) for at in range(len(data) - 1))
        with pytest.raises(UpstreamFailed):
            prelude.feed(data[-1:])
    assert is_error.call_count == 1


# --- answers in one piece -------------------------------------------------------------------------------


def test_a_body_is_withheld_whole_and_its_usage_is_final(run, recording):
    data = recording("gemini_message.json")
    seen = run(data, stream=False)
    assert (seen.written, seen.tail) == (b"", data)
    assert seen.meter.reported.final
    assert seen.meter.reported.legs == (
        Usage(input=24, cache_read=1000, output=112, reasoning=100, requests=1),
    )


def test_a_blocked_prompt_in_one_piece_is_billed_as_reported(run, recording):
    assert run(recording("gemini_blocked.json"), stream=False).meter.reported.legs == (
        Usage(input=12, requests=1),
    )


def test_a_body_that_is_cut_short_never_looks_like_success(run, recording):
    data = recording("gemini_message.json")
    for length in range(len(data.rstrip())):
        assert run(data[:length], stream=False).failure is not None


def test_an_error_under_status_200_is_an_error(run, recording):
    assert run(recording("gemini_error_429.json"), stream=False).failure is not None


def test_a_count_of_tokens_is_passed_on_and_bills_nothing(run, recording):
    data = recording("gemini_count.json")
    seen = run(data, stream=False, free=True)
    assert seen.tail == data
    assert seen.meter.reported is None
