import json

LOOK = {"name": "look", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
TOOLS = [{"functionDeclarations": [LOOK]}]
STREAM = {"action": "streamGenerateContent"}
ANY = {"functionCallingConfig": {"mode": "ANY"}}


def text_of(response):
    parts = response["candidates"][0]["content"].get("parts", [])
    return "".join(part.get("text", "") for part in parts if not part.get("thought"))


async def test_an_answer_has_the_vendors_form(caller):
    answer = await caller.gemini("tokens=5")
    body = answer.json
    assert answer.status == 200
    assert answer.lower["content-type"] == "application/json; charset=UTF-8"
    assert set(body) == {"candidates", "usageMetadata", "modelVersion", "responseId"}
    candidate = body["candidates"][0]
    assert (candidate["finishReason"], candidate["index"], candidate["content"]["role"]) == (
        "STOP",
        0,
        "model",
    )
    assert len(text_of(body).split()) == body["usageMetadata"]["candidatesTokenCount"] == 5


async def test_frames_end_in_crlf_and_each_has_the_totals_so_far(caller):
    answer = await caller.gemini("tokens=3", **STREAM)
    assert answer.lower["content-type"] == "text/event-stream"
    frames = answer.body.split(b"\r\n\r\n")
    assert frames.pop() == b""
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames)
    assert [event["usageMetadata"]["candidatesTokenCount"] for event in answer.events] == [1, 2, 3, 3]
    assert [event["candidates"][0].get("finishReason") for event in answer.events] == [
        None,
        None,
        None,
        "STOP",
    ]
    assert len({event["responseId"] for event in answer.events}) == 1


async def test_without_sse_a_stream_is_one_array(caller):
    answer = await caller.gemini("tokens=3", sse=False, **STREAM)
    assert answer.lower["content-type"] == "application/json; charset=UTF-8"
    assert [text_of(response) for response in answer.json] == [
        text_of(event) for event in (await caller.gemini("tokens=3", **STREAM)).events
    ]


async def test_a_stream_says_what_the_whole_answer_says(caller):
    for fields in (
        {},
        {"generationConfig": {"maxOutputTokens": 7}},
        {"generationConfig": {"stopSequences": ["ve"]}},
        {"generationConfig": {"thinkingConfig": {"thinkingBudget": -1, "includeThoughts": True}}},
        {"tools": TOOLS, "toolConfig": ANY},
    ):
        whole = (await caller.gemini(**fields)).json
        events = (await caller.gemini(**STREAM, **fields)).events
        assert "".join(text_of(event) for event in events) == text_of(whole)
        assert events[-1]["usageMetadata"] == whole["usageMetadata"]
        assert events[-1]["candidates"][0]["finishReason"] == whole["candidates"][0]["finishReason"]


async def test_usage_adds_up(caller):
    usage = (await caller.gemini("tokens=5,reasoning=7,cached=50")).json["usageMetadata"]
    assert usage["cachedContentTokenCount"] == usage["promptTokenCount"] // 2
    assert (usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (5, 7)
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + 12
    assert usage["promptTokensDetails"] == [{"modality": "TEXT", "tokenCount": usage["promptTokenCount"]}]


async def test_a_missing_report_is_missing_everywhere(caller):
    assert "usageMetadata" not in (await caller.gemini("usage=none")).json
    assert all("usageMetadata" not in event for event in (await caller.gemini("usage=none", **STREAM)).events)


async def test_thoughts_are_shown_only_where_they_are_asked_for(caller):
    shown = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
    body = (await caller.gemini("reasoning=4,tokens=1", **shown)).json
    thought, text = body["candidates"][0]["content"]["parts"]
    assert thought["thought"] is True
    assert "thought" not in text
    events = (await caller.gemini("reasoning=4,tokens=1", **STREAM, **shown)).events
    assert [event["usageMetadata"].get("thoughtsTokenCount") for event in events] == [1, 2, 3, 4, 4, 4]
    hidden = (await caller.gemini("reasoning=4,tokens=1", **STREAM)).events
    assert [event["usageMetadata"]["thoughtsTokenCount"] for event in hidden] == [4, 4]


async def test_a_budget_of_nothing_turns_thinking_off(caller):
    off = {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}}
    assert "thoughtsTokenCount" not in (await caller.gemini(**off)).json["usageMetadata"]
    level = {"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}}}
    assert "thoughtsTokenCount" in (await caller.gemini(**level)).json["usageMetadata"]


async def test_a_tool_round_trip(caller):
    called = (await caller.gemini(tools=TOOLS, toolConfig=ANY)).json
    part = called["candidates"][0]["content"]["parts"][0]
    assert (part["functionCall"]["name"], set(part["functionCall"]["args"])) == ("look", {"city"})
    assert part["thoughtSignature"]
    assert called["candidates"][0]["finishReason"] == "STOP"
    result = {"functionResponse": {"name": "look", "response": {"sky": "blue"}}}
    contents = [
        {"role": "user", "parts": [{"text": "Hi"}]},
        called["candidates"][0]["content"],
        {"parts": [result]},
    ]
    done = (await caller.gemini(tools=TOOLS, toolConfig=ANY, contents=contents)).json
    assert text_of(done)


async def test_only_allowed_functions_are_called(caller):
    declared = [{"functionDeclarations": [LOOK, LOOK | {"name": "book"}]}]
    config = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["book"]}}
    body = (await caller.gemini(tools=declared, toolConfig=config)).json
    assert body["candidates"][0]["content"]["parts"][0]["functionCall"]["name"] == "book"


async def test_both_spellings_of_a_field_are_read(caller):
    config = {"max_output_tokens": 5, "candidate_count": 2}
    body = (await caller.gemini("tokens=50", generation_config=config)).json
    assert [candidate["finishReason"] for candidate in body["candidates"]] == ["MAX_TOKENS"] * 2
    assert body["usageMetadata"]["candidatesTokenCount"] == 10


async def test_both_versions_of_the_api_are_served(caller):
    assert (await caller.gemini(version="v1")).status == (await caller.gemini(version="v1beta")).status == 200


async def test_a_key_may_stand_in_the_query(caller):
    body = json.dumps({"contents": [{"parts": [{"text": "Hi"}]}]}).encode()
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    assert (await caller.send("POST", path, body, query="key=AIzaSomething1234")).status == 200
    assert (await caller.last_call())["account"] == "1234"
    assert (await caller.send("POST", path, body, {"authorization": "Bearer ya29.x"})).status == 200


async def test_a_missing_key_is_401_and_a_bad_one_400(caller):
    body = json.dumps({"contents": [{"parts": [{"text": "Hi"}]}]}).encode()
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    missing = await caller.send("POST", path, body)
    assert (missing.status, missing.json["error"]["status"]) == (401, "UNAUTHENTICATED")
    bad = await caller.send("POST", path, body, {"x-goog-api-key": "AIza-invalid"})
    assert (bad.status, bad.json["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert bad.json["error"]["details"][0]["reason"] == "API_KEY_INVALID"


async def test_counting_takes_both_forms_and_is_free(caller):
    plain = (await caller.gemini(action="countTokens")).json
    contents = [{"role": "user", "parts": [{"text": "Hi there"}]}]
    nested = (await caller.gemini(action="countTokens", generateContentRequest={"contents": contents})).json
    assert plain == nested
    assert plain["totalTokens"] == (await caller.gemini()).json["usageMetadata"]["promptTokenCount"]
    assert [call["action"] for call in (await caller.calls())["data"]] == ["count", "count", "generate"]


async def test_json_is_answered_where_a_schema_asks_for_it(caller):
    schema = {"type": "OBJECT", "properties": {"ok": {"type": "BOOLEAN"}}}
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    assert json.loads(text_of((await caller.gemini(generationConfig=config)).json)) == {"ok": True}


async def test_labels_carry_directives(caller):
    body = (await caller.gemini(labels={"sandbox": "tokens=3"})).json
    assert body["usageMetadata"]["candidatesTokenCount"] == 3


async def test_the_rest_of_a_request_is_read_too(caller):
    parts = [
        {"text": "Hi"},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"function_call": {"name": "look", "args": {"city": "Rome"}}},
        {"function_response": {"name": "look", "response": {}}},
    ]
    fields = {"contents": [{"parts": parts}], "systemInstruction": {"parts": [{"text": "Be brief. " * 10}]}}
    assert (await caller.gemini(**fields)).json["usageMetadata"]["promptTokenCount"] > 64 + 25


async def test_errors_have_the_vendors_form(caller):
    expected = {
        400: "INVALID_ARGUMENT",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
        418: "INVALID_ARGUMENT",
        529: "INTERNAL",
    }
    for status, name in expected.items():
        answer = await caller.gemini(f"status={status},retry_after=17")
        error = answer.json["error"]
        assert (answer.status, error["code"], error["status"]) == (status, status, name)
        assert error["details"][-1]["retryDelay"] == "17s"


async def test_where_an_array_was_to_come_an_error_stands_in_one(caller):
    answer = await caller.gemini("status=503", sse=False, **STREAM)
    assert answer.json[0]["error"]["status"] == "UNAVAILABLE"


async def test_an_error_in_mid_stream_takes_the_form_of_the_stream(caller):
    answer = await caller.gemini("tokens=9,fail_at=2,status=503", **STREAM)
    assert len(answer.events) == 3
    assert answer.events[-1]["error"]["code"] == 503
    answer = await caller.gemini("tokens=9,fail_at=2,bare_error", **STREAM)
    assert len(answer.events) == 2
    assert json.loads(answer.frames[-1])["error"]["code"] == 500
    answer = await caller.gemini("tokens=9,fail_at=2", sse=False, **STREAM)
    assert answer.json[-1]["error"]["code"] == 500
    answer = await caller.gemini("overload_in_prelude", sse=False, **STREAM)
    assert [list(response) for response in answer.json] == [["error"]]


async def test_bad_requests_are_refused(caller):
    for fields in (
        {"contents": []},
        {"contents": "Hi"},
        {"contents": [{"parts": "Hi"}]},
        {"generationConfig": []},
        {"generationConfig": {"maxOutputTokens": 0}},
        {"generationConfig": {"candidateCount": 9}},
    ):
        answer = await caller.gemini(**fields)
        assert (answer.status, answer.json["error"]["status"]) == (400, "INVALID_ARGUMENT"), fields
    assert (await caller.gemini("cache_write=5")).status == 400


async def test_a_broken_off_function_call_is_still_an_answer(caller):
    body = (await caller.gemini(tools=TOOLS, toolConfig=ANY, generationConfig={"maxOutputTokens": 1})).json
    candidate = body["candidates"][0]
    assert (candidate["finishReason"], candidate["content"]["parts"][0]["functionCall"]["args"]) == (
        "MAX_TOKENS",
        {},
    )
