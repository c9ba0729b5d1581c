import json

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER = {"role": "user", "content": "Hi"}


def collect(events):
    """What a client makes of a stream: text, tool calls and finish reason per choice, and the usage."""
    choices, usage = {}, None
    for event in events:
        usage = event.get("usage") or usage
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "tools": {}, "finish": None})
            choice["content"] += part["delta"].get("content") or ""
            choice["finish"] = part["finish_reason"] or choice["finish"]
            for call in part["delta"].get("tool_calls", []):
                tool = choice["tools"].setdefault(call["index"], {"id": None, "name": None, "arguments": ""})
                tool["id"] = call.get("id", tool["id"])
                tool["name"] = call["function"].get("name", tool["name"])
                tool["arguments"] += call["function"]["arguments"]
    return choices, usage


async def test_an_answer_has_the_vendors_form(caller):
    answer = await caller.chat("tokens=5")
    body = answer.json
    assert answer.status == 200
    assert answer.lower["content-type"] == "application/json"
    assert int(answer.lower["content-length"]) == len(answer.body)
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["created"], body["model"]) == (
        "chat.completion",
        1_763_700_000,
        "sandbox-chat@tokens=5",
    )
    choice = body["choices"][0]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert len(choice["message"]["content"].split()) == 5
    assert choice["message"]["role"] == "assistant"


async def test_a_stream_is_role_content_finish_usage_done(caller):
    answer = await caller.chat("tokens=2", stream=True, stream_options={"include_usage": True})
    assert answer.lower["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.frames[-1] == b"data: [DONE]"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    role, first, second, finish, usage = answer.events
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert set(first["choices"][0]["delta"]) == set(second["choices"][0]["delta"]) == {"content"}
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2
    assert [event["usage"] for event in answer.events[:-1]] == [None] * 4
    assert len({(event["id"], event["created"], event["object"]) for event in answer.events}) == 1


async def test_usage_is_streamed_only_where_it_was_asked_for(caller):
    answer = await caller.chat("tokens=2", stream=True)
    assert all("usage" not in event for event in answer.events)
    assert len(answer.events) == 4


async def test_a_stream_says_what_the_whole_answer_says(caller):
    for fields in ({}, {"n": 3}, {"stop": ["ve"]}, {"tools": [TOOL], "tool_choice": "required"}):
        whole = (await caller.chat(**fields)).json
        stream = await caller.chat(stream=True, stream_options={"include_usage": True}, **fields)
        choices, usage = collect(stream.events)
        assert usage == whole["usage"]
        for choice in whole["choices"]:
            streamed = choices[choice["index"]]
            assert streamed["content"] == (choice["message"]["content"] or "")
            assert streamed["finish"] == choice["finish_reason"]
            calls = choice["message"].get("tool_calls", [])
            assert [tool["arguments"] for tool in streamed["tools"].values()] == [
                call["function"]["arguments"] for call in calls
            ]


async def test_usage_adds_up_inclusively(caller):
    usage = (await caller.chat("tokens=20,reasoning=30,cached=50,cache_write=25")).json["usage"]
    prompt = usage["prompt_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == prompt // 2
    assert usage["prompt_tokens_details"]["cache_write_tokens"] == prompt // 4
    assert usage["completion_tokens"] == 50
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 30
    assert usage["total_tokens"] == prompt + 50


async def test_a_missing_report_is_missing_in_both_forms(caller):
    assert "usage" not in (await caller.chat("usage=none")).json
    answer = await caller.chat("usage=none,tokens=1", stream=True, stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in answer.events)
    assert all(event["choices"] for event in answer.events)


async def test_both_bounds_cut_as_length(caller):
    for name in ("max_tokens", "max_completion_tokens"):
        body = (await caller.chat("tokens=50", **{name: 5})).json
        assert (body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 5)


async def test_models_with_a_bound_of_their_own_refuse_the_old_one(caller):
    answer = await caller.chat(model="o3", max_tokens=5)
    assert answer.status == 400
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (
        "max_tokens",
        "unsupported_parameter",
    )
    assert (await caller.chat(model="gpt-4o", max_tokens=5)).status == 200


async def test_a_tool_round_trip(caller):
    called = (await caller.chat("tool=look", tools=[TOOL])).json["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    assert called["message"]["content"] is None
    call = called["message"]["tool_calls"][0]
    assert call["id"].startswith("call_")
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    messages = [USER, called["message"], {"role": "tool", "tool_call_id": call["id"], "content": "Sunny"}]
    done = (await caller.chat("tool=look", tools=[TOOL], messages=messages)).json["choices"][0]
    assert done["finish_reason"] == "stop"
    assert done["message"]["content"]


async def test_a_streamed_tool_call_opens_with_id_and_name_and_goes_on_in_pieces(caller):
    choice = {"type": "function", "function": {"name": "look"}}
    events = (await caller.chat(stream=True, tools=[TOOL], tool_choice=choice)).events
    assert events[0]["choices"][0]["delta"]["content"] is None
    opening = events[1]["choices"][0]["delta"]["tool_calls"][0]
    assert (opening["index"], opening["type"], opening["function"]) == (
        0,
        "function",
        {"name": "look", "arguments": ""},
    )
    assert all("id" not in event["choices"][0]["delta"]["tool_calls"][0] for event in events[2:-1])
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_json_is_answered_where_a_schema_asks_for_it(caller):
    schema = {"name": "x", "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}
    body = (await caller.chat(response_format={"type": "json_schema", "json_schema": schema})).json
    assert json.loads(body["choices"][0]["message"]["content"]) == {"ok": True}
    body = (await caller.chat(response_format={"type": "json_object"})).json
    assert isinstance(json.loads(body["choices"][0]["message"]["content"]), dict)


async def test_reasoning_is_counted_and_never_shown(caller):
    answer = await caller.chat("tokens=2,reasoning=9", stream=True, stream_options={"include_usage": True})
    assert len(answer.events) == 5
    assert answer.events[-1]["usage"]["completion_tokens"] == 11


async def test_reasoning_models_reason_unless_told_not_to(caller):
    async def reasoning(model, **fields):
        body = (await caller.chat(model=model, **fields)).json
        return body["usage"]["completion_tokens_details"]["reasoning_tokens"]

    assert await reasoning("sandbox-thinker") > 0
    assert await reasoning("sandbox-thinker", reasoning_effort="none") == 0
    assert await reasoning("sandbox-chat") == 0
    assert await reasoning("sandbox-chat", reasoning_effort="low") > 0


async def test_every_part_of_a_message_is_read(caller):
    plain = (await caller.chat(messages=[USER])).json["usage"]["prompt_tokens"]
    messages = [
        {
            "role": "user",
            "name": "anna",
            "content": [
                {"type": "text", "text": "Hi"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "Sunny"},
    ]
    assert (await caller.chat(messages=messages)).json["usage"]["prompt_tokens"] > plain + 64


async def test_errors_have_the_vendors_form_status_and_headers(caller):
    answer = await caller.chat("status=429,retry_after=7")
    assert answer.status == 429
    assert answer.json["error"]["type"] == "requests"
    assert answer.json["error"]["code"] == "rate_limit_exceeded"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert (answer.lower["retry-after"], answer.lower["retry-after-ms"]) == ("7", "7000")
    assert answer.lower["x-ratelimit-remaining-requests"] == "0"
    for status in (400, 401, 402, 403, 404, 418, 500, 502, 503, 529):
        assert (await caller.chat(f"status={status}")).status == status


async def test_a_missing_and_an_invalid_key_are_401(caller):
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    missing = await caller.send("POST", "/v1/chat/completions", body)
    assert (missing.status, missing.json["error"]["code"]) == (401, None)
    bad = await caller.chat(key="sk-invalid")
    assert (bad.status, bad.json["error"]["code"]) == (401, "invalid_api_key")


async def test_bad_requests_are_refused(caller):
    for fields in (
        {"messages": []},
        {"messages": "Hi"},
        {"messages": [{"content": "Hi"}]},
        {"n": 0},
        {"n": 1000},
        {"max_tokens": "5"},
        {"messages": [{"role": "user", "content": [7]}]},
        {"stream_options": {"include_usage": True}},
        {"model": None},
        {"model": "m@nonsense"},
        {"tools": {}},
        {"stop": 7},
        {"metadata": {"sandbox": 7}},
    ):
        answer = await caller.chat(**fields)
        assert answer.status == 400, fields
        assert answer.json["error"]["type"] == "invalid_request_error"


async def test_an_error_in_mid_stream_is_an_event_and_there_is_no_done(caller):
    answer = await caller.chat("tokens=9,fail_at=3", stream=True)
    assert answer.status == 200
    assert answer.ended
    assert answer.events[-1]["error"]["type"] == "server_error"
    assert len(answer.events) == 1 + 3 + 1
    assert b"[DONE]" not in answer.body


async def test_headers_are_those_that_a_gateway_must_strip(caller):
    headers = (await caller.chat()).lower
    for name in (
        "set-cookie",
        "openai-organization",
        "openai-project",
        "x-ratelimit-remaining-tokens",
        "cf-ray",
        "alt-svc",
        "via",
        "strict-transport-security",
        "openai-processing-ms",
    ):
        assert name in headers
