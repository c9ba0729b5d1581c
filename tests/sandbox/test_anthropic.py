import json

TOOL = {"name": "look", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
USER = {"role": "user", "content": "Hi"}
LONG = "x" * 4000


def kinds(answer):
    return [event["type"] for event in answer.events]


def collect(events):  # noqa: C901 - one case per kind of event
    """What a client makes of a stream: a message as if it had not been streamed."""
    message, blocks = dict(events[0]["message"]), []
    for event in events:
        match event["type"]:
            case "content_block_start":
                blocks.append(dict(event["content_block"], partial=""))
            case "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        block["partial"] += delta["partial_json"]
            case "message_delta":
                message |= event["delta"]
                message["usage"] = message["usage"] | event["usage"]
    for block in blocks:
        if partial := block.pop("partial"):
            block["input"] = json.loads(partial)
    return message | {"content": blocks}


async def test_an_answer_has_the_vendors_form(caller):
    answer = await caller.messages("tokens=5")
    body = answer.json
    assert answer.status == 200
    assert body["id"].startswith("msg_01")
    assert (body["type"], body["role"], body["stop_reason"], body["stop_sequence"]) == (
        "message",
        "assistant",
        "end_turn",
        None,
    )
    assert [block["type"] for block in body["content"]] == ["text"]
    assert len(body["content"][0]["text"].split()) == body["usage"]["output_tokens"] == 5
    assert body["usage"]["service_tier"] == "standard"


async def test_a_stream_has_the_vendors_sequence_of_events(caller):
    answer = await caller.messages("tokens=2", stream=True)
    assert kinds(answer) == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for frame, event in zip(answer.frames, answer.events, strict=True):
        assert frame.startswith(b"event: " + event["type"].encode() + b"\ndata: ")
    assert b"[DONE]" not in answer.body


async def test_usage_in_the_stream_is_a_running_total(caller):
    events = (await caller.messages("tokens=9,cached=50", stream=True)).events
    started, ended = events[0]["message"]["usage"], events[-2]["usage"]
    assert started["output_tokens"] == 1
    assert ended["output_tokens"] == 9
    assert started["cache_read_input_tokens"] == ended["cache_read_input_tokens"] > 0
    assert started["input_tokens"] == ended["input_tokens"]
    assert "cache_creation" in started
    assert "cache_creation" not in ended


async def test_a_stream_says_what_the_whole_answer_says(caller):
    for fields in (
        {},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"stop_sequences": ["ve"]},
        {"max_tokens": 7},
        {"max_tokens": 0},
    ):
        whole = (await caller.messages(**fields)).json
        streamed = collect((await caller.messages(stream=True, **fields)).events)
        for block in (streamed, whole, *streamed["content"], *whole["content"]):
            block.pop("id", None)  # new for every call
        assert streamed == whole


async def test_thinking_is_a_block_of_its_own_with_a_signature(caller):
    body = (await caller.messages("reasoning=20,tokens=3")).json
    thinking, text = body["content"]
    assert (thinking["type"], text["type"]) == ("thinking", "text")
    assert len(thinking["thinking"].split()) == 20
    assert thinking["signature"]
    assert body["usage"]["output_tokens"] == 23
    assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 20}


async def test_omitted_thinking_leaves_only_the_signature(caller):
    thinking = {"type": "adaptive", "display": "omitted"}
    events = (await caller.messages("reasoning=20,tokens=3", thinking=thinking, stream=True)).events
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["signature_delta"] + ["text_delta"] * 3
    assert events[-2]["usage"]["output_tokens"] == 23


async def test_cache_writes_are_split_by_lifetime(caller):
    system = [
        {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}},
    ]
    usage = (await caller.messages(system=system)).json["usage"]
    assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 1000}
    assert usage["cache_creation_input_tokens"] == 2000
    assert usage["input_tokens"] < 20


async def test_a_mark_at_the_top_marks_everything(caller):
    usage = (await caller.messages(cache_control={"type": "ephemeral"})).json["usage"]
    assert usage["input_tokens"] == 0
    assert usage["cache_creation"]["ephemeral_5m_input_tokens"] == usage["cache_creation_input_tokens"] > 0


async def test_the_three_inputs_are_disjoint_and_make_up_what_is_counted(caller):
    system = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    usage = (await caller.messages("cached=30", system=system)).json["usage"]
    counted = (await caller.messages(path="/v1/messages/count_tokens", system=system)).json["input_tokens"]
    parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(usage[name] for name in parts) == counted
    assert all(usage[name] > 0 for name in parts)


async def test_counting_needs_no_output_bound_and_is_free(caller):
    answer = await caller.messages(path="/v1/messages/count_tokens", max_tokens=None)
    assert set(answer.json) == {"input_tokens"}
    call = await caller.last_call()
    assert (call["action"], call["finished"], sum(call["usage"].values())) == ("count", True, 0)


async def test_a_tool_round_trip(caller):
    called = (await caller.messages(tools=[TOOL], tool_choice={"type": "tool", "name": "look"})).json
    use = called["content"][-1]
    assert called["stop_reason"] == "tool_use"
    assert use["id"].startswith("toolu_")
    assert (use["type"], use["name"], set(use["input"])) == ("tool_use", "look", {"city"})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "Sunny"}]}
    messages = [
        USER,
        {"role": "assistant", "content": called["content"]},
        {"role": "user", "content": [result]},
    ]
    done = (await caller.messages(tools=[TOOL], messages=messages)).json
    assert (done["stop_reason"], done["content"][0]["type"]) == ("end_turn", "text")


async def test_text_may_precede_a_tool_call(caller):
    events = (await caller.messages("tool=look,tokens=2", tools=[TOOL], stream=True)).events
    opened = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in opened] == ["text", "tool_use"]
    assert opened[1]["input"] == {}


async def test_the_bound_is_demanded_and_respected(caller):
    refused = await caller.messages(max_tokens=None)
    assert (refused.status, refused.json["error"]["message"]) == (400, "max_tokens: Field required")
    body = (await caller.messages("tokens=50", max_tokens=5)).json
    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("max_tokens", 5)


async def test_a_broken_off_tool_call_is_still_an_answer(caller):
    body = (await caller.messages(tools=[TOOL], tool_choice={"type": "any"}, max_tokens=1)).json
    assert (body["stop_reason"], body["content"][0]["input"]) == ("max_tokens", {})


async def test_the_stop_sequence_is_named(caller):
    text = (await caller.messages("tokens=9")).json["content"][0]["text"]
    stop = text.split()[4]
    body = (await caller.messages("tokens=9", stop_sequences=[stop])).json
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)


async def test_json_is_answered_where_a_schema_asks_for_it(caller):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    body = (await caller.messages(output_config={"format": {"type": "json_schema", "schema": schema}})).json
    assert json.loads(body["content"][0]["text"]) == {"ok": True}


async def test_metadata_and_user_id_carry_directives(caller):
    assert (await caller.messages(metadata={"sandbox": "tokens=3"})).json["usage"]["output_tokens"] == 3
    assert (await caller.messages(metadata={"user_id": "sandbox:tokens=4"})).json["usage"][
        "output_tokens"
    ] == 4
    assert (await caller.messages(metadata={"user_id": "anna"})).status == 200


async def test_every_kind_of_block_is_read(caller):
    content = [
        {"type": "text", "text": "Hi"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "tool_use", "id": "t", "name": "look", "input": {"city": "Rome"}},
        {"type": "tool_result", "tool_use_id": "t", "content": "Sunny"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
    ]
    body = (await caller.messages(messages=[{"role": "user", "content": content}])).json
    assert body["usage"]["input_tokens"] > 64


async def test_errors_have_the_vendors_form_status_and_headers(caller):
    expected = {
        400: "invalid_request_error",
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        504: "timeout_error",
        529: "overloaded_error",
        418: "invalid_request_error",
        599: "api_error",
    }
    for status, kind in expected.items():
        answer = await caller.messages(f"status={status},retry_after=3")
        assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
        assert answer.json["request_id"] == answer.lower["request-id"]
        assert answer.lower["retry-after"] == "3"


async def test_a_missing_and_an_invalid_key_are_401(caller):
    body = json.dumps({"model": "m", "max_tokens": 5, "messages": [USER]}).encode()
    for headers in ({}, {"x-api-key": "sk-invalid"}, {"authorization": "Basic x"}):
        answer = await caller.send("POST", "/v1/messages", body, headers)
        assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")
    assert (await caller.send("POST", "/v1/messages", body, {"authorization": "Bearer sk"})).status == 200


async def test_bad_requests_are_refused(caller):
    for fields in (
        {"messages": []},
        {"messages": [{"role": "robot", "content": "Hi"}]},
        {"max_tokens": -1},
        {"system": 7},
        {"messages": [{"role": "user", "content": 7}]},
        {"thinking": 7},
        {"metadata": []},
        {"model": ""},
    ):
        assert (await caller.messages(**fields)).status == 400, fields


async def test_an_overload_comes_after_the_prelude_and_costs_nothing(caller):
    answer = await caller.messages("overload_in_prelude", stream=True)
    assert answer.status == 200
    assert kinds(answer) == ["message_start", "error"]
    assert answer.events[1]["error"]["type"] == "overloaded_error"
    assert sum((await caller.last_call())["usage"].values()) == 0


async def test_an_error_in_mid_stream_is_an_event(caller):
    answer = await caller.messages("tokens=9,fail_at=3,status=529", stream=True)
    assert answer.frames[-1].startswith(b"event: error\ndata: ")
    assert answer.events[-1]["error"]["type"] == "overloaded_error"
    assert kinds(answer).count("content_block_delta") == 3


async def test_pings_come_in_silence(caller, autojump_clock):
    answer = await caller.messages("tokens=1,ttft_ms=10000,ping_ms=3000", stream=True)
    assert kinds(answer).count("ping") == 1 + 3
    assert [round(time) for time, _ in answer.writes] == [0, 3, 6, 9, 10]


async def test_headers_are_those_that_a_gateway_must_strip(caller):
    headers = (await caller.messages()).lower
    for name in (
        "set-cookie",
        "anthropic-organization-id",
        "anthropic-ratelimit-tokens-remaining",
        "cf-ray",
        "via",
    ):
        assert name in headers
