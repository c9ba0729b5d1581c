import json

import pytest
import trio

from proxy.sandbox.app import BODY_BYTES_MAX, build
from proxy.sandbox.directives import KNOWN

DIALECTS = ("openai_chat", "anthropic", "gemini")
REQUEST_ID = {"openai_chat": "x-request-id", "anthropic": "request-id", "gemini": "x-request-id"}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_two_servers_started_alike_answer_alike_to_the_byte(
    new_caller, dialect, stream, autojump_clock
):
    one, two = [await new_caller().in_dialect(dialect, "reasoning=9", stream=stream) for _ in range(2)]
    assert (one.status, one.headers, one.body) == (two.status, two.headers, two.body)


async def test_the_same_request_gets_the_same_words_under_new_ids(caller, autojump_clock):
    one, two = await caller.chat(), await caller.chat()
    assert one.json["choices"] == two.json["choices"]
    assert one.json["usage"] == two.json["usage"]
    assert one.json["id"] != two.json["id"]
    assert one.lower["x-request-id"] != two.lower["x-request-id"]


async def test_another_conversation_gets_another_answer(caller, autojump_clock):
    one = (await caller.chat("tokens=20")).json
    two = (await caller.chat("tokens=20", messages=[{"role": "user", "content": "Something else"}])).json
    assert one["choices"][0]["message"]["content"] != two["choices"][0]["message"]["content"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_invoiced_as_it_was_reported(caller, autojump_clock, dialect, stream):
    answer = await caller.in_dialect(dialect, "tokens=20,reasoning=5,cached=50", stream=stream)
    call = await caller.last_call()
    assert call["id"] == answer.lower[REQUEST_ID[dialect]]
    assert (call["dialect"], call["status"], call["stream"]) == (dialect, 200, stream)
    assert (call["finished"], call["hung_up"], call["broke"], call["account"]) == (True, False, None, "-one")
    assert (call["tokens"], call["tokens_sent"]) == (25, 25)
    assert (call["usage"]["output"], call["usage"]["reasoning"]) == (25, 5)
    assert call["usage"]["input"] + call["usage"]["cache_read"] == 9
    assert call["usage"]["cache_read"] == 4
    assert call["ended_ms"] >= call["first_byte_ms"] >= call["received_ms"]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_tokens_come_when_they_are_due(caller, autojump_clock, dialect):
    answer = await caller.in_dialect(dialect, "tokens=4,head_ms=100,ttft_ms=500,gap_ms=50", stream=True)
    assert answer.started_at == pytest.approx(0.1)
    times = [time for time, data in answer.writes if b"text" in data or b'content":"' in data]
    expected = [0.6, 0.65, 0.7, 0.75]
    assert times[-4:] == pytest.approx(expected)
    assert answer.took == pytest.approx(0.75)


async def test_a_frame_leaves_when_its_last_token_is_there(caller, autojump_clock):
    answer = await caller.chat("tokens=10,frame_tokens=4,ttft_ms=1000,gap_ms=100", stream=True)
    assert [round(time, 3) for time, _ in answer.writes] == [0.0, 1.3, 1.7, 1.9]
    assert [len(event["choices"][0]["delta"]["content"].split()) for event in answer.events[1:4]] == [4, 4, 2]


async def test_hidden_reasoning_takes_its_time(caller, autojump_clock):
    answer = await caller.chat("tokens=1,reasoning=100,gap_ms=10", stream=True)
    assert [round(time, 3) for time, _ in answer.writes] == [0.0, 1.0]


async def test_choices_are_generated_side_by_side(caller, autojump_clock):
    answer = await caller.chat("tokens=5,gap_ms=100", stream=True, n=3)
    assert answer.took == pytest.approx(0.4)
    assert [event["choices"][0]["index"] for event in answer.events[3:9]] == [0, 1, 2, 0, 1, 2]


async def test_an_answer_that_is_not_streamed_takes_as_long(caller, autojump_clock):
    answer = await caller.chat("tokens=11,ttft_ms=500,gap_ms=50")
    assert answer.started_at == pytest.approx(1.0)


async def test_frames_that_are_due_together_go_together(caller, autojump_clock):
    answer = await caller.chat("tokens=100", stream=True)
    assert len(answer.writes) == -(-(1 + 100 + 1 + 1) // 32)
    answer = await caller.chat("tokens=100,batch=1", stream=True)
    assert [len(data.split(b"\n\n")) for _, data in answer.writes] == [2] * 103


async def test_writes_can_be_cut_into_small_ones(caller, autojump_clock):
    whole = await caller.chat("tokens=3", stream=True)
    cut = await caller.chat("tokens=3,split_bytes=7", stream=True)
    assert all(len(data) <= 7 for _, data in cut.writes)
    assert len(cut.frames) == len(whole.frames)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_hanging_up_stops_the_bill(caller, autojump_clock, dialect):
    answer = await caller.in_dialect(dialect, "tokens=100,gap_ms=100", stream=True, leave=1.05)
    call = await caller.last_call()
    assert answer.took == pytest.approx(1.05)
    assert (call["hung_up"], call["finished"], call["tokens"]) == (True, False, 11)
    assert call["usage"]["output"] == 11
    assert call["usage"]["input"] > 0
    assert call["closed_ms"] - call["received_ms"] == pytest.approx(1050)


async def test_hanging_up_does_not_stop_the_bill_where_it_runs_on(caller, autojump_clock):
    await caller.chat("tokens=100,gap_ms=100,bills_on", stream=True, leave=1.05)
    call = await caller.last_call()
    assert (call["hung_up"], call["tokens"], call["usage"]["output"]) == (True, 11, 100)


async def test_hanging_up_on_hidden_reasoning_bills_what_was_thought(caller, autojump_clock):
    await caller.chat("tokens=5,reasoning=100,gap_ms=100", stream=True, leave=1.05)
    usage = (await caller.last_call())["usage"]
    assert (usage["output"], usage["reasoning"]) == (11, 11)


async def test_hanging_up_before_the_first_token_bills_the_input(caller, autojump_clock):
    await caller.chat("tokens=5,ttft_ms=5000", stream=True, leave=1.0)
    call = await caller.last_call()
    assert call["usage"]["output"] == 0
    assert call["usage"]["input"] > 0


async def test_hanging_up_on_an_answer_that_is_not_streamed_bills_it_whole(caller, autojump_clock):
    answer = await caller.chat("tokens=100,ttft_ms=5000", leave=1.0)
    call = await caller.last_call()
    assert answer.status is None
    assert (call["hung_up"], call["status"], call["usage"]["output"]) == (True, None, 100)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_endless_stream_goes_on_past_its_bound_until_hung_up_on(caller, autojump_clock, dialect):
    bound = {
        "openai_chat": {"max_tokens": 5},
        "anthropic": {"max_tokens": 5},
        "gemini": {"generationConfig": {"maxOutputTokens": 5}},
    }[dialect]
    answer = await caller.in_dialect(dialect, "endless", stream=True, leave=60.0, **bound)
    call = await caller.last_call()
    assert answer.took == pytest.approx(60.0)
    assert call["hung_up"]
    assert call["usage"]["output"] == call["tokens"] == pytest.approx(6000, abs=2)


async def test_an_endless_stream_without_gaps_still_notices_that_its_caller_left(caller, autojump_clock):
    await caller.chat("endless,gap_ms=0", stream=True, until=lambda answer: len(answer.writes) > 50)
    assert (await caller.last_call())["hung_up"]


async def test_an_endless_answer_that_is_not_streamed_ends(caller, autojump_clock):
    assert (await caller.chat("endless")).status == 200


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_cut_connection_has_no_end(caller, autojump_clock, dialect):
    answer = await caller.in_dialect(dialect, "tokens=9,cut_at=4", stream=True)
    call = await caller.last_call()
    assert not answer.ended
    assert (call["broke"], call["finished"], call["hung_up"], call["usage"]["output"]) == (
        "cut",
        False,
        False,
        4,
    )


async def test_an_answer_that_is_not_streamed_is_cut_in_its_middle(caller, autojump_clock):
    answer = await caller.chat("tokens=9,cut_at=4")
    assert not answer.ended
    assert len(answer.body) == int(answer.lower["content-length"]) // 2
    assert (await caller.last_call())["usage"]["output"] == 9


async def test_what_is_to_break_after_the_end_does_not(caller, autojump_clock):
    for stream in (False, True):
        answer = await caller.chat("tokens=3,cut_at=4", stream=stream)
        assert answer.ended


async def test_a_break_right_at_the_last_token_comes_before_the_end(caller, autojump_clock):
    answer = await caller.chat("tokens=3,cut_at=3", stream=True)
    assert len(answer.events) == 4
    assert not answer.ended


async def test_a_stalled_stream_says_nothing_more(caller, autojump_clock):
    answer = await caller.messages("tokens=9,stall_at=4,ping_ms=10000", stream=True, leave=35.0)
    call = await caller.last_call()
    assert (call["broke"], call["hung_up"], call["usage"]["output"]) == ("stall", True, 4)
    assert [round(time) for time, _ in answer.writes] == [0, 10, 20, 30]
    answer = await caller.chat("tokens=9,stall_at=4", leave=35.0)
    assert 0 < len(answer.body) < int(answer.lower["content-length"])


async def test_a_silent_call_is_never_answered_and_costs_nothing(caller, autojump_clock):
    for stream in (False, True):
        answer = await caller.chat("silent", stream=stream, leave=500.0)
        call = await caller.last_call()
        assert (answer.status, answer.took) == (None, pytest.approx(500))
        assert (call["hung_up"], call["status"], sum(call["usage"].values())) == (True, None, 0)


async def test_a_stream_that_fails_is_billed_for_what_came_before(caller, autojump_clock):
    await caller.chat("tokens=9,fail_at=4", stream=True)
    call = await caller.last_call()
    assert (call["broke"], call["status"], call["usage"]["output"]) == ("error", 200, 4)


async def test_an_answer_that_is_not_streamed_fails_as_a_whole_and_costs_nothing(caller, autojump_clock):
    assert (await caller.chat("tokens=9,fail_at=4")).status == 500
    assert (await caller.chat("tokens=9,fail_at=4,status=502,retry_after=2")).lower["retry-after"] == "2"
    assert (await caller.chat("overload_in_prelude")).status == 503
    assert (await caller.messages("overload_in_prelude")).status == 529
    assert sum((await caller.calls())["total"]["usage"].values()) == 0


async def test_the_first_of_several_breaks_is_the_one(caller, autojump_clock):
    await caller.chat("tokens=9,fail_at=4,cut_at=2", stream=True)
    assert (await caller.last_call())["broke"] == "cut"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_only_the_first_calls_of_a_string_fail(caller, autojump_clock, dialect):
    statuses = [(await caller.in_dialect(dialect, "status=429,times=2")).status for _ in range(4)]
    assert statuses == [429, 429, 200, 200]
    assert (await caller.in_dialect(dialect, "status=429,times=2,tokens=3")).status == 429
    await caller.send("DELETE", "/sandbox/calls")
    assert (await caller.in_dialect(dialect, "status=429,times=2")).status == 429


async def test_only_the_named_account_fails(caller, autojump_clock):
    told = "status=429,fail_key=one"
    assert (await caller.chat(told, key="sk-account-one")).status == 429
    assert (await caller.chat(told, key="sk-account-two")).status == 200


async def test_another_account_does_not_use_up_the_times(caller, autojump_clock):
    told = "status=429,fail_key=one,times=1"
    statuses = [(await caller.chat(told, key=f"sk-account-{name}")).status for name in ("two", "one", "one")]
    assert statuses == [200, 429, 200]


async def test_a_connection_that_is_not_closed_stays_open_after_the_end(caller, autojump_clock):
    for stream in (False, True):
        answer = await caller.chat("tokens=3,no_close", stream=stream, leave=7.0)
        call = await caller.last_call()
        assert not answer.ended
        assert (call["finished"], call["hung_up"]) == (True, False)
        assert call["closed_ms"] - call["received_ms"] == pytest.approx(7000)


async def test_an_excessive_report_is_what_is_invoiced(caller, autojump_clock):
    body = (await caller.chat("tokens=3,usage=over", max_tokens=10)).json
    assert body["usage"]["completion_tokens"] == 21
    assert (await caller.last_call())["usage"]["output"] == 21


async def test_what_is_not_reported_is_invoiced_all_the_same(caller, autojump_clock):
    await caller.chat("tokens=3,usage=none")
    assert (await caller.last_call())["usage"]["output"] == 3


async def test_directives_in_metadata_work_like_those_in_the_model(caller, autojump_clock):
    body = (await caller.chat(metadata="tokens=3")).json
    assert body["usage"]["completion_tokens"] == 3


async def test_refused_calls_are_counted_and_cost_nothing(caller, autojump_clock):
    await caller.send("POST", "/v1/chat/completions", b"{")
    await caller.chat("nonsense")
    await caller.chat(key="sk-invalid")
    shown = await caller.calls()
    assert [call["status"] for call in shown["data"]] == [401, 400, 401]
    assert sum(shown["total"]["usage"].values()) == 0
    assert shown["total"]["open"] == 0


async def test_calls_are_shown_while_they_run(caller, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: caller.chat("tokens=100,gap_ms=1000", stream=True))
        await trio.sleep(10.5)
        call = await caller.last_call()
        assert (call["tokens"], call["ended_ms"], call["finished"]) == (11, None, False)
        assert call["usage"]["output"] == 11


async def test_calls_can_be_forgotten(caller, autojump_clock):
    await caller.chat()
    assert (await caller.send("DELETE", "/sandbox/calls")).status == 200
    assert (await caller.calls())["data"] == []
    await caller.chat()
    assert (await caller.last_call())["received_at"] == 2


async def test_calls_can_be_asked_for_from_a_number_on(caller, autojump_clock):
    for _ in range(3):
        await caller.chat()
    assert [call["received_at"] for call in (await caller.calls("after=2"))["data"]] == [3]
    assert len((await caller.calls("after=x"))["data"]) == 3


async def test_a_credential_is_never_shown_whole(caller, autojump_clock):
    await caller.chat(key="sk-very-secret-key")
    shown = (await caller.send("GET", "/sandbox/calls")).body
    assert b"very-secret" not in shown
    assert json.loads(shown)["data"][0]["account"] == "-key"


async def test_a_caller_that_leaves_while_sending_is_noted(caller, autojump_clock):
    app, sent = build(now=trio.current_time), []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/messages", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    assert sent == []
    assert app.calls.shown()["data"][0]["hung_up"]


async def test_a_body_in_many_parts_is_read_whole_and_an_excessive_one_refused(caller, autojump_clock):
    def receiver(parts):
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive():
            return messages.pop(0) if messages else await trio.sleep_forever()

        return receive

    async def status(parts):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer sk")],
        }
        await caller.app(scope, receiver(parts), send)
        return sent[0]["status"]

    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    assert await status([body[:10], body[10:]]) == 200
    chunk = b" " * (BODY_BYTES_MAX // 2)
    assert await status([chunk, chunk, chunk, body]) == 413


async def test_the_guide_names_every_directive(caller, autojump_clock):
    for path in ("/sandbox", "/"):
        answer = await caller.send("GET", path)
        assert (answer.status, answer.lower["content-type"]) == (200, "text/plain; charset=utf-8")
        assert all(name in answer.body.decode() for name in KNOWN)


async def test_health(caller, autojump_clock):
    assert (await caller.send("GET", "/health")).json == {"status": "ok"}


async def test_models_are_listed_in_the_shape_that_the_headers_ask_for(caller, autojump_clock):
    openai = (await caller.send("GET", "/v1/models")).json
    assert (openai["object"], openai["data"][0]["object"]) == ("list", "model")
    anthropic = (await caller.send("GET", "/v1/models", headers={"anthropic-version": "2023-06-01"})).json
    assert (anthropic["has_more"], anthropic["data"][0]["type"]) == (False, "model")
    gemini = (await caller.send("GET", "/v1beta/models")).json
    assert gemini["models"][0]["name"].startswith("models/")
    assert (await caller.send("GET", "/v1/models", headers={"x-goog-api-key": "k"})).json == gemini
    assert (await caller.send("GET", "/v1/models/anything")).json["id"] == "anything"


async def test_what_is_not_there_is_404_and_a_wrong_method_405(caller, autojump_clock):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/models", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/messages", 405),
        ("PUT", "/sandbox/calls", 405),
        ("POST", "/health", 404),
    ):
        answer = await caller.send(method, path)
        assert (answer.status, "error" in answer.json) == (status, True), (method, path)


async def test_lifespan_and_websockets_are_answered(caller, autojump_clock):
    async def run(kind, messages):
        waiting, sent = [{"type": message} for message in messages], []

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message["type"])

        await caller.app({"type": kind}, receive, send)
        return sent

    assert await run("lifespan", ["lifespan.startup", "lifespan.shutdown"]) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert await run("websocket", ["websocket.connect"]) == ["websocket.close"]


async def test_two_servers_never_give_the_same_id(caller, autojump_clock):
    one, two = (build(wall=lambda started=started: started) for started in (1.0, 2.0))
    assert one.calls.receive("gemini", 0)[0].id != two.calls.receive("gemini", 0)[0].id


async def test_a_frame_is_cheap(caller, autojump_clock):
    """100,000 tokens in one stream: the work per token must stay small enough for load tests."""
    with trio.fail_after(60):
        answer = await caller.chat("tokens=100000,batch=1000", stream=True)
    assert len(answer.writes) == 101
