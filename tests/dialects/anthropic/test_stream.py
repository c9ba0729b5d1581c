import json
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.records import Ending, Receipt
from pricing.usage import Meter, Usage
from proxy.errors import Kind, UpstreamFailed
from tests.dialects.common import ask, receipt

SOUND = ("text", "tools", "thinking", "web_search", "compaction")
BROKEN = ("overloaded_early", "error_late", "cut")


def events(data):
    lines = data.decode().split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def frame(**event):
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_stream_goes_through_byte_for_byte(run, recording, name):
    data = recording(f"anthropic_{name}.sse")
    seen = run(data)
    assert seen.failure is None
    assert seen.written + seen.tail == data
    assert seen.ended
    assert seen.meter.reported.final


@pytest.mark.parametrize("name", SOUND)
def test_the_end_is_withheld_from_the_message_delta_with_a_stop_reason_on(run, recording, name):
    data = recording(f"anthropic_{name}.sse")
    seen = run(data)
    assert b"message_stop" not in seen.written
    assert seen.tail.startswith(b"event: message_delta\n")
    assert events(seen.tail)[-1] == {"type": "message_stop"}


@pytest.mark.parametrize("name", SOUND + BROKEN)
def test_cut_into_two_at_every_byte_it_comes_out_the_same(run, recording, name):
    data = recording(f"anthropic_{name}.sse")
    assert len(data) <= 4096
    whole = run(data)
    for at in range(1, len(data)):
        cut = run(data[:at], data[at:])
        assert cut.outcome == whole.outcome, at
        assert cut.meter.content_frames == whole.meter.content_frames, at


@pytest.mark.parametrize("name", SOUND + BROKEN)
def test_byte_by_byte_it_comes_out_the_same(run, recording, name):
    data = recording(f"anthropic_{name}.sse")
    assert run(*(data[at : at + 1] for at in range(len(data)))).outcome == run(data).outcome


@pytest.mark.parametrize("name", SOUND)
def test_a_stream_that_is_cut_short_anywhere_never_looks_like_success(run, recording, name):
    data = recording(f"anthropic_{name}.sse")
    complete = data.rindex(b'{"type":"message_stop"}') + len(b'{"type":"message_stop"}')
    for length in range(len(data)):
        seen = run(data[:length])
        if length < complete:
            assert seen.failure is not None, length
            assert seen.failure.ending is Ending.BROKEN
            assert data.startswith(seen.written)
        else:  # only the blank line is missing: it is made up for
            assert (seen.written + seen.tail).rstrip() == data.rstrip(), length


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_any_cuts_give_the_same_bytes_and_the_same_bill(run, recording, cuts):
    data = recording("anthropic_web_search.sse")
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:stop] for start, stop in pairwise(at)]
    assert run(*pieces).outcome == run(data).outcome


def test_the_newest_input_count_is_billed_not_the_first(run, recording):
    seen = run(recording("anthropic_web_search.sse"))
    assert seen.meter.reported.legs == (Usage(input=32749, output=510, web_searches=3, requests=1),)


def test_the_split_of_cache_writes_survives_the_message_delta(run, recording):
    (leg,) = run(recording("anthropic_tools.sse")).meter.reported.legs
    assert (leg.cache_write_5m, leg.cache_write_1h, leg.cache_read) == (512, 512, 20480)
    assert (leg.input, leg.output) == (472, 89)


def test_of_two_message_deltas_the_newest_is_billed_and_both_are_withheld(run, recording):
    seen = run(recording("anthropic_thinking.sse"))
    assert seen.meter.reported.legs == (Usage(input=44, output=182, reasoning=150, requests=1),)
    assert [event["type"] for event in events(seen.tail)] == [
        "message_delta",
        "message_delta",
        "message_stop",
    ]


def test_compaction_is_billed_although_the_totals_say_zero(run, recording):
    seen = run(recording("anthropic_compaction.sse"))
    assert seen.meter.reported.legs == (Usage(input=83555, output=139, requests=1),)


def test_before_the_stop_the_report_is_a_running_total(run, recording):
    data = recording("anthropic_text.sse")
    seen = run(data[: data.index(b"event: message_delta")])
    assert seen.meter.reported.legs == (Usage(input=25, output=1, requests=1),)
    assert not seen.meter.reported.final


def test_a_message_delta_without_a_stop_reason_is_relayed_and_not_final(run, recording):
    data = recording("anthropic_text.sse")
    start = data.index(b"event: content_block_start")
    early = frame(type="message_delta", delta={"stop_reason": None}, usage={"output_tokens": 7})
    seen = run(data[:start] + early)
    assert seen.written.endswith(early)
    assert seen.meter.reported.legs[0].output == 7
    assert not seen.meter.reported.final


def test_a_stop_without_a_count_of_output_is_no_last_word(run, recording):
    data = recording("anthropic_text.sse")
    start = data.index(b"event: message_delta")
    seen = run(
        data[:start]
        + frame(type="message_delta", delta={"stop_reason": "end_turn"})
        + frame(type="message_stop")
    )
    assert seen.failure is None
    assert not seen.meter.reported.final


def test_a_start_that_tells_of_no_output_is_no_empty_completion(run):
    start = frame(
        type="message_start", message={"content": [], "usage": {"input_tokens": 9, "output_tokens": 0}}
    )
    seen = run(start)
    assert seen.meter.reported.legs == (Usage(input=9, requests=1),)
    assert not seen.meter.reported.final
    stop = frame(type="message_delta", delta={"stop_reason": "end_turn"}) + frame(type="message_stop")
    assert not run(start + stop).meter.reported.final, "its output was never told"
    told = frame(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 0})
    assert run(start + told + frame(type="message_stop")).meter.reported.final


def test_content_that_stands_in_the_start_is_counted(run):
    message = {"content": [{"type": "text", "text": "x" * 300}], "usage": {"input_tokens": 9}}
    seen = run(frame(type="message_start", message=message))
    assert seen.meter.content_bytes >= 300
    assert seen.meter.content_frames == 1


def test_text_that_speaks_of_events_is_only_text(run):
    text = 'data: {"type":"message_stop"} "error" "message_delta" {"usage": {"output_tokens": 1}}'
    delta = frame(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    seen = run(delta)
    assert seen.written == delta
    assert not seen.ended
    assert seen.meter.reported is None


def test_pings_are_no_content(run):
    seen = run(frame(type="ping") * 5)
    assert (seen.meter.content_frames, seen.meter.content_bytes) == (0, 0)


def test_a_comment_that_speaks_of_events_is_only_a_comment(run, recording):
    data = recording("anthropic_text.sse")
    comment = b': "error" "message_stop" "content_block_delta"\n\n'
    seen = run(comment + data.replace(b"event: content", comment + b"event: content"))
    assert seen.failure is None
    assert seen.meter.content_frames == run(data).meter.content_frames


def test_what_opens_and_closes_counts_the_same_however_it_is_read(run):
    start = frame(type="content_block_start", index=0, content_block={"type": "text", "text": ""})
    delta = frame(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "yo"})
    stop, novel = frame(type="content_block_stop", index=0), frame(type="content_block_novelty", novel="x")
    frames = [start, delta, delta, novel, stop, delta.replace(b'"index": 0', b'"index": 1'), stop]
    apart, together = run(*frames).meter, run(b"".join(frames)).meter
    assert (apart.content_frames, apart.content_bytes) == (together.content_frames, together.content_bytes)
    assert apart.content_frames == 5


def test_a_frame_without_an_end_to_its_text_takes_nothing_back(run):
    seen = run(b'data: {"type":"content_block_delta","delta":{"text":"\n\n')
    assert (seen.meter.content_frames, seen.meter.content_bytes) == (1, 0)


def test_content_bytes_bound_the_text_and_leave_out_most_of_its_wrapping(run):
    text = "x" * 500
    seen = run(frame(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text}) * 3)
    assert seen.meter.content_frames == 3
    assert 1500 <= seen.meter.content_bytes < 1600


def test_an_error_after_content_ends_the_stream_behind_the_last_good_frame(run, recording):
    data = recording("anthropic_error_late.sse")
    seen = run(data)
    assert seen.written == data[: data.index(b"event: error")]
    assert seen.failure.kind is Kind.UPSTREAM_ERROR
    assert "api_error" in seen.failure.message
    assert "Internal server error" not in seen.failure.message


def test_an_overload_in_the_middle_is_told_as_such(run, recording):
    seen = run(recording("anthropic_overloaded_early.sse"))
    assert seen.failure.row.anthropic_type == "overloaded_error"


def test_an_error_alone_in_its_read_is_raised_at_once(dialect, run):
    error = frame(type="error", error={"type": "api_error", "message": "m"})
    assert run(error).failure is not None


def test_an_event_that_cannot_be_read_breaks_the_stream(run):
    seen = run(b'event: message_delta\ndata: {"type":"message_delta",\n\n')
    assert "not JSON" in seen.failure.message


def test_an_event_that_is_too_large_breaks_the_stream(run):
    seen = run(b"data: " + b"x" * (5 * 2**20))
    assert "too large" in seen.failure.message


def test_the_cost_is_added_to_the_last_usage_report(run, recording):
    data = recording("anthropic_thinking.sse")
    seen = run(data, receipt=receipt(1_234_500_000))
    first, last, stop = events(seen.tail)
    assert "cost" not in first["usage"]
    assert last["usage"]["cost"] == "0.0012345"
    assert last["usage"]["cost_micro"] == 1235
    assert last["usage"]["output_tokens"] == 182
    assert stop == {"type": "message_stop"}
    assert seen.tail.startswith(b"event: message_delta\ndata: ")


def test_a_receipt_without_a_record_adds_nothing(run, recording):
    data = recording("anthropic_text.sse")
    seen = run(data, receipt=Receipt(request="r", record=None, balance=0, held=0))
    assert seen.written + seen.tail == data


def test_the_cost_so_far_goes_along_for_those_who_asked(dialect, recording):
    data = recording("anthropic_text.sse")
    for live in (True, False):
        asked = ask("anthropic", live_cost=live)
        written = dialect.passthrough(asked, Meter(), lambda: 1_500_000).feed(data)
        assert [event.get("credits") for event in events(written)][:2] == [
            {"cost_micro": 2} if live else None,
            None,
        ]


def test_an_end_without_usage_is_left_as_it_is(run):
    stop = frame(type="message_stop")
    assert run(stop, receipt=receipt(5)).tail == stop


def test_what_comes_after_the_end_is_not_relayed(run, recording):
    data = recording("anthropic_text.sse")
    seen = run(data, frame(type="ping"))
    assert seen.written + seen.tail == data


# --- the prelude --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_content_begins_with_the_first_block_wherever_the_stream_is_cut(dialect, recording, name):
    data = recording(f"anthropic_{name}.sse")
    start = data.index(b"event: content_block_start")
    whole = data.index(b"\n\n", start) + 2
    for at in range(1, whole):
        prelude = dialect.prelude()
        assert not prelude.feed(data[:at])
        assert prelude.feed(data[at:whole])


def test_an_overload_in_the_prelude_moves_on_to_another_account(dialect, recording):
    data = recording("anthropic_overloaded_early.sse")
    for at in range(1, len(data)):
        prelude = dialect.prelude()
        with pytest.raises(UpstreamFailed) as failed:
            _ = prelude.feed(data[:at]) or prelude.feed(data[at:])
        assert failed.value.try_another
        assert failed.value.kind is Kind.NO_HEALTHY_UPSTREAM


def test_a_refusal_of_the_request_in_the_prelude_is_final(dialect):
    error = frame(type="error", error={"type": "invalid_request_error", "message": "prompt is too long"})
    with pytest.raises(UpstreamFailed) as failed:
        dialect.prelude().feed(error)
    assert not failed.value.try_another
    assert failed.value.kind is Kind.REFUSED_UPSTREAM


def test_what_is_no_json_ends_the_prelude(dialect):
    assert dialect.prelude().feed(b"data: nonsense\n\n")


def test_comments_do_not_end_the_prelude(dialect):
    assert not dialect.prelude().feed(b": hello\n\n")


# --- answers in one piece -----------------------------------------------------------------------------


def test_a_body_is_withheld_whole_and_its_usage_is_final(run, recording):
    data = recording("anthropic_message.json")
    seen = run(data, stream=False)
    assert (seen.written, seen.tail) == (b"", data)
    assert seen.meter.reported.final
    assert seen.meter.reported.legs == (
        Usage(
            input=2095,
            cache_read=1024,
            cache_write_5m=56,
            cache_write_1h=400,
            output=503,
            reasoning=100,
            requests=1,
        ),
    )


def test_iterations_of_a_body_are_legs_with_contexts_of_their_own(run, recording):
    seen = run(recording("anthropic_compaction.json"), stream=False)
    assert seen.meter.reported.legs == (
        Usage(input=180000, output=3500, requests=1),
        Usage(input=23000, output=1000),
    )
    assert seen.meter.reported.flags == frozenset()


def test_a_body_that_is_cut_short_never_looks_like_success(run, recording):
    data = recording("anthropic_message.json")
    for length in range(len(data)):
        assert run(data[:length], stream=False).failure is not None


def test_an_error_under_status_200_is_an_error(run, recording):
    seen = run(recording("anthropic_error_429.json"), stream=False)
    assert seen.failure is not None
    assert "organization" not in seen.failure.message


def test_a_count_of_tokens_is_passed_on_and_bills_nothing(run, recording):
    data = recording("anthropic_count.json")
    seen = run(data, stream=False, free=True)
    assert seen.tail == data
    assert seen.meter.reported is None
