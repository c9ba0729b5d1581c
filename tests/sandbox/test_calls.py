import proxy.sandbox.calls
from proxy.sandbox.answers import answer
from proxy.sandbox.calls import BILLED_BUCKETS, Calls
from proxy.sandbox.directives import Directives
from proxy.sandbox.wire import Asked


def new_calls():
    return Calls(lambda order: f"{order:024x}{0:08x}")


def said(tokens=9, *, stream=False, **told):
    return answer(
        Asked("openai_chat", "m", Directives(tokens=tokens, **told), seed=1, input_tokens=100, stream=stream)
    )


def test_a_call_that_never_began_costs_nothing():
    call, _ = new_calls().receive("openai_chat", 0.0)
    assert call.usage.counts() == {}


def test_a_stream_costs_its_input_and_what_was_generated_so_far():
    call, _ = new_calls().receive("openai_chat", 0.0)
    call.begin(said(), whole=False)
    assert call.usage.counts() == {"input": 100}
    call.tokens = 4
    call.closed(5.0)
    assert call.hung_up
    assert call.usage.counts() == {"input": 100, "output": 4}


def test_an_answer_that_is_not_streamed_is_billed_whole():
    call, _ = new_calls().receive("openai_chat", 0.0)
    call.begin(said(), whole=True)
    assert call.usage.output == 9


def test_leaving_after_the_end_is_no_hanging_up():
    call, _ = new_calls().receive("openai_chat", 0.0)
    call.finished = True
    call.closed(7.0)
    assert (call.hung_up, call.closed_ms) == (False, 7.0)


def test_an_endless_answer_has_no_whole():
    call, _ = new_calls().receive("openai_chat", 0.0)
    call.begin(said(stream=True, endless=True), whole=False)
    call.tokens = 12
    call.bill_whole()
    assert call.usage.output == 12


def test_only_the_first_times_fail():
    calls = new_calls()
    assert [calls.shall_fail("a", 2) for _ in range(4)] == [True, True, False, False]
    assert calls.shall_fail("b", 1)
    assert all(calls.shall_fail("c", None) for _ in range(3))
    calls.reset()
    assert calls.shall_fail("a", 2)


def test_what_is_remembered_is_bounded_and_the_totals_go_on(monkeypatch):
    monkeypatch.setattr(proxy.sandbox.calls, "CALLS_MAX", 3)
    monkeypatch.setattr(proxy.sandbox.calls, "STRINGS_MAX", 2)
    calls = new_calls()
    running, _ = calls.receive("openai_chat", 0.0)
    for _ in range(5):
        call, _ = calls.receive("openai_chat", 0.0)
        call.begin(said(), whole=True)
        call.ended_ms = 1.0
    shown = calls.shown()
    assert shown["data"][0]["id"] == running.id
    assert [call["received_at"] for call in shown["data"]] == [1, 5, 6]
    assert (shown["dropped"], shown["total"]["calls"], shown["total"]["open"]) == (3, 6, 1)
    assert shown["total"]["usage"]["output"] == 45
    for text in "abc":
        calls.shall_fail(text, 1)
    assert calls.shall_fail("a", 1)


def test_where_nothing_has_ended_the_oldest_leaves(monkeypatch):
    monkeypatch.setattr(proxy.sandbox.calls, "CALLS_MAX", 1)
    calls = new_calls()
    calls.receive("openai_chat", 0.0)
    calls.receive("openai_chat", 0.0)
    assert [call["received_at"] for call in calls.shown()["data"]] == [2]


def test_calls_can_be_asked_for_by_order_and_by_id():
    calls = new_calls()
    made = [calls.receive("gemini", 0.0)[0] for _ in range(3)]
    assert [call["id"] for call in calls.shown(after=1)["data"]] == [made[1].id, made[2].id]
    assert [call["received_at"] for call in calls.shown(request_id=made[1].id)["data"]] == [2]


def test_ids_stay_unique_over_a_reset():
    calls = new_calls()
    first, _ = calls.receive("gemini", 0.0)
    calls.reset()
    assert calls.shown()["total"]["calls"] == 0
    assert calls.receive("gemini", 0.0)[0].id != first.id


def test_every_bucket_is_shown_even_when_empty():
    calls = new_calls()
    calls.receive("gemini", 0.0)
    assert set(calls.shown()["data"][0]["usage"]) == set(BILLED_BUCKETS)
