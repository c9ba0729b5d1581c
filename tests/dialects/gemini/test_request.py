import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects.gemini import Gemini
from proxy.errors import Kind, Rejected
from proxy.types import Path
from tests.values import evolve

MODEL = "gemini-3-pro"
GENERATE = Path(dialect="gemini", model=MODEL)
STREAM = Path(dialect="gemini", action="stream", model=MODEL, sse=True)
ARRAY = Path(dialect="gemini", action="stream", model=MODEL)
COUNT = Path(dialect="gemini", action="count", model=MODEL)
HELLO = [{"role": "user", "parts": [{"text": "Hello"}]}]
PNG = {"mimeType": "image/png", "data": "A" * 40_000}


def read(body, path=GENERATE, headers=None, unknown="pass", limits=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Gemini(limits or RequestLimits()).read_request(path, headers or {}, raw, unknown)


def ask(path=GENERATE, **fields):
    return read({"contents": HELLO, **fields}, path)


def parts(*of, **fields):
    return ask(contents=[{"role": "user", "parts": list(of)}], **fields)


def refused(path=GENERATE, **fields):
    with pytest.raises(Rejected) as rejected:
        ask(path, **fields)
    assert rejected.value.kind is Kind.BAD_REQUEST
    return rejected.value


def sent(asked, offer):
    return json.loads(Gemini(RequestLimits()).write_request(asked, offer))


def test_a_plain_request_is_read():
    one = ask()
    assert (one.dialect, one.model, one.stream, one.free, one.gemini_array) == (
        "gemini",
        MODEL,
        False,
        False,
        False,
    )
    assert one.measures.messages == 1
    assert (one.measures.output, one.measures.choices, one.measures.reasoning) == (None, 1, None)
    assert one.headers == ()


def test_the_path_says_how_the_answer_is_wanted():
    assert (ask(STREAM).stream, ask(STREAM).gemini_array) == (True, False)
    assert (ask(ARRAY).stream, ask(ARRAY).gemini_array) == (True, True)


def test_live_cost_is_asked_for_by_header():
    assert read({"contents": HELLO}, headers={"x-credits-live": "1"}).live_cost


# --- what a body can cost ------------------------------------------------------------------------------


@settings(max_examples=100)
@given(text=st.text(max_size=200), ascii_only=st.booleans())
def test_text_counts_at_least_its_utf8_bytes_however_it_is_escaped(text, ascii_only):
    body = {"contents": [{"parts": [{"text": text}]}]}
    one = read(json.dumps(body, ensure_ascii=ascii_only).encode())
    size = len(text.encode())
    assert size <= one.measures.text_bytes <= size + 64


LONG = "T" * 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"systemInstruction": {"parts": [{"text": LONG}]}},
        {"systemInstruction": {"parts": {"text": LONG}}},
        {"contents": [{"parts": [{"text": LONG, "thought": True}]}]},
        {"contents": {"parts": {"text": LONG}}},
        {"contents": [{"parts": [{"functionCall": {"name": "n", "args": {"a": LONG}}}]}]},
        {"contents": [{"parts": [{"functionResponse": {"name": "n", "response": {"a": LONG}}}]}]},
        {"contents": [{"parts": [{"text": "", "thoughtSignature": LONG}]}]},
        {"contents": [{"parts": [{"executableCode": {"code": LONG}}]}]},
        {"contents": [{"parts": [{"codeExecutionResult": {"output": LONG}}]}]},
        {"contents": [{"parts": [{"inlineData": {"mimeType": "text/plain", "data": LONG}}]}]},
        {"tools": [{"functionDeclarations": [{"name": "n", "description": LONG}]}]},
        {"tools": {"functionDeclarations": {"name": "n", "description": LONG}}},
        {"toolConfig": {"functionCallingConfig": {"allowedFunctionNames": [LONG]}}},
        {"generationConfig": {"responseSchema": {"description": LONG}}},
        {"generationConfig": {"responseJsonSchema": {"description": LONG}}},
    ],
)
def test_text_counts_wherever_it_stands(fields):
    base = ask(contents=[]).measures.text_bytes
    one = ask(**{"contents": [], **fields})
    assert 1000 <= one.measures.text_bytes - base < 1300
    assert not one.measures.unbounded


def test_images_are_counted_and_their_data_is_no_text():
    one = parts(
        {"inlineData": PNG},
        {"inline_data": {"mime_type": "IMAGE/JPEG", "data": "A"}},
        {"functionResponse": {"name": "n", "response": {}, "parts": [{"inlineData": PNG}]}},
    )
    assert one.measures.images == 3
    assert one.measures.text_bytes < 500


def test_audio_counts_by_its_bytes():
    assert parts({"inlineData": {"mimeType": "audio/wav", "data": "A" * 4000}}).measures.audio_bytes >= 3000


@pytest.mark.parametrize(
    "part",
    [
        {"inlineData": {"mimeType": "application/pdf", "data": "A"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "A"}},
        {"inlineData": {"data": "A"}},
        {"fileData": {"fileUri": "https://www.youtube.com/watch?v=x"}},
        {"hologram": {"rays": 5}},
    ],
)
def test_what_may_hold_anything_has_no_bound(part):
    assert parts(part).measures.unbounded


def test_a_part_that_is_null_is_not_there():
    assert not parts({"text": "x", "fileData": None, "hologram": None}).measures.unbounded


def test_declarations_are_counted():
    tools = [
        {"functionDeclarations": [{"name": "a"}, {"name": "b"}]},
        {"functionDeclarations": [{"name": "c"}]},
    ]
    assert ask(tools=tools).measures.tools == 3
    assert ask(tools=[{}]).measures.tools == 0


@pytest.mark.parametrize(
    ("thinking", "reasoning"),
    [
        ({"thinkingBudget": 0}, False),
        ({"thinkingBudget": -1}, True),
        ({"thinking_budget": 1024}, True),
        ({"thinkingLevel": "LOW"}, True),
        ({"includeThoughts": True}, None),
        (None, None),
    ],
)
def test_a_thinking_budget_of_zero_is_the_only_way_to_switch_it_off(thinking, reasoning):
    assert ask(generationConfig={"thinkingConfig": thinking}).measures.reasoning is reasoning


@pytest.mark.parametrize(
    ("thinking", "bound"),
    [
        ({"thinkingBudget": 1}, 1),
        ({"thinking_budget": 1024}, 1024),
        ({"thinkingBudget": 0}, None),
        ({"thinkingBudget": -1}, None),
        ({"thinkingLevel": "LOW"}, None),
        (None, None),
    ],
)
def test_only_a_thinking_budget_above_zero_bounds_it(thinking, bound):
    assert ask(generationConfig={"thinkingConfig": thinking}).measures.thinking == bound


def test_a_lowered_bound_on_thinking_takes_the_place_of_the_callers_and_nothing_else_changes(offer):
    thinking = {"thinking_budget": 9000, "includeThoughts": True}
    one = ask(generationConfig={"maxOutputTokens": 32_000, "topK": 3, "thinkingConfig": thinking})
    assert sent(one, evolve(offer, output_limit=5000, thinking_limit=4000))["generationConfig"] == {
        "maxOutputTokens": 5000,
        "topK": 3,
        "thinkingConfig": {"thinkingBudget": 4000, "includeThoughts": True},
    }
    alone = sent(one, evolve(offer, thinking_limit=4000))["generationConfig"]
    assert (alone["maxOutputTokens"], alone["thinkingConfig"]["thinkingBudget"]) == (32_000, 4000)


@pytest.mark.parametrize(
    "thinking", [None, {"thinkingBudget": -1}, {"thinkingBudget": 0}, {"thinkingLevel": "LOW"}]
)
def test_where_the_caller_has_no_bound_on_thinking_none_is_sent(offer, thinking):
    config = {"topK": 3} if thinking is None else {"topK": 3, "thinkingConfig": thinking}
    body = sent(ask(generationConfig=config), evolve(offer, output_limit=5000, thinking_limit=4000))
    assert body["generationConfig"] == {**config, "maxOutputTokens": 5000}


def test_bounds_are_read_from_the_generation_config():
    one = ask(
        generation_config={
            "max_output_tokens": 100,
            "candidateCount": 3,
            "responseModalities": ["TEXT", "image", "AUDIO"],
        }
    )
    measures = one.measures
    assert (measures.output, measures.choices) == (100, 3)
    assert (measures.audio_output, measures.image_output) == (True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxOutputTokens", 0),
        ("maxOutputTokens", -1),
        ("maxOutputTokens", "100"),
        ("maxOutputTokens", 1e30),
        ("candidateCount", 0),
        ("candidateCount", 9),
        ("responseModalities", "TEXT"),
        ("responseModalities", ["VIDEO"]),
        ("thinkingConfig", 5),
    ],
)
def test_an_absurd_value_is_named(name, value):
    assert refused(generationConfig={name: value}).param == f"generationConfig.{name}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"contents": None}, "contents"),
        ({"contents": "Hello"}, "contents"),
        ({"contents": [5]}, "contents[0]"),
        ({"contents": [{"parts": "x"}]}, "contents[0].parts"),
        ({"contents": [{"parts": [{"text": 5}]}]}, "contents[0].parts[0].text"),
        ({"contents": [{"role": 5}]}, "contents[0].role"),
        ({"contents": [{"parts": [{"inlineData": {"data": 5}}]}]}, "contents[0].parts[0].inlineData.data"),
        ({"contents": [{"parts": [{"inlineData": {}}]}]}, "contents[0].parts[0].inlineData.data"),
        ({"contents": [{"parts": [{"fileData": {}}]}]}, "contents[0].parts[0].fileData.fileUri"),
        ({"systemInstruction": "x"}, "systemInstruction"),
        ({"tools": "x"}, "tools"),
        ({"generationConfig": []}, "generationConfig"),
    ],
)
def test_a_wrong_type_is_named_by_where_it_stands(fields, param):
    assert refused(**fields).param == param


# --- what is refused by name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell", [lambda name: name, lambda name: "".join("_" + c.lower() if c.isupper() else c for c in name)]
)
@pytest.mark.parametrize(
    "name",
    [
        "googleSearch",
        "googleSearchRetrieval",
        "codeExecution",
        "urlContext",
        "fileSearch",
        "computerUse",
        "googleMaps",
        "enterpriseWebSearch",
        "mcpServers",
        "retrieval",
    ],
)
def test_tools_that_run_at_the_provider_are_refused_by_name(name, spell):
    failure = refused(tools=[{"functionDeclarations": []}, {spell(name): {}}])
    assert failure.param == f"tools[1].{spell(name)}"


def test_unknown_tools_are_refused_whatever_is_configured():
    with pytest.raises(Rejected):
        read({"contents": HELLO, "tools": [{"telepathy": {}}]}, unknown="pass")


@pytest.mark.parametrize("name", ["cachedContent", "cached_content", "serviceTier", "continuationToken"])
def test_what_has_no_price_or_bound_is_refused_by_name(name):
    assert refused(**{name: "x"}).param == name
    ask(**{name: None})


@pytest.mark.parametrize("name", ["routingConfig", "modelSelectionConfig", "model_selection_config"])
def test_a_choice_of_another_model_is_refused_by_name(name):
    assert refused(generationConfig={name: {}}).param == f"generationConfig.{name}"


@pytest.mark.parametrize(
    "uri",
    [
        "https://generativelanguage.googleapis.com/v1beta/files/abc",
        "https://generativelanguage.googleapis.com./v1beta/files/abc",
        "HTTPS://user@GENERATIVELANGUAGE.GOOGLEAPIS.COM:443/v1beta/files/abc",
        "files/abc",
        "gs://bucket/object",
        "",
        "https://[",
    ],
)
def test_files_at_the_provider_are_refused_by_name(uri):
    param = "contents[0].parts[0].fileData.fileUri"
    assert refused(contents=[{"parts": [{"fileData": {"fileUri": uri}}]}]).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"generationConfig": {}, "generation_config": {}}, "generation_config"),
        (
            {"generationConfig": {"maxOutputTokens": 1, "max_output_tokens": 9}},
            "generationConfig.max_output_tokens",
        ),
        (
            {"contents": [{"parts": [{"inlineData": PNG, "inline_data": PNG}]}]},
            "contents[0].parts[0].inline_data",
        ),
        ({"Contents": HELLO}, "Contents"),
        ({"generationConfig": {"max_outputTokens": 1}}, "generationConfig.max_outputTokens"),
    ],
)
def test_two_spellings_of_one_field_or_a_third_are_refused(fields, param):
    assert refused(**fields).param == param


@pytest.mark.parametrize("named", [MODEL, f"models/{MODEL}"])
def test_the_body_may_name_the_model_of_the_path(named, offer):
    assert "model" not in sent(ask(model=named), offer)


def test_the_body_may_not_name_another_model():
    assert refused(model="gemini-other").param == "model"
    failure = refused(COUNT, contents=None, generateContentRequest={"model": "models/x", "contents": HELLO})
    assert failure.param == "generateContentRequest.model"


def test_too_many_contents_and_tools_are_refused():
    limits = RequestLimits(messages_max=2, tools_max=1)
    for fields, param in (
        ({"contents": HELLO * 3}, "contents"),
        ({"contents": HELLO, "tools": [{}, {}]}, "tools"),
        (
            {"contents": HELLO, "tools": [{"functionDeclarations": [{"name": "a"}, {"name": "b"}]}]},
            "tools[0].functionDeclarations",
        ),
    ):
        with pytest.raises(Rejected) as rejected:
            read(fields, limits=limits)
        assert rejected.value.param == param


# --- what travels --------------------------------------------------------------------------------------


def test_what_goes_upstream_is_spelled_one_way(offer):
    one = ask(
        contents={"role": "user", "parts": {"inline_data": {"mime_type": "image/png", "data": "A"}}},
        system_instruction={"parts": {"text": "s"}},
        tools={"function_declarations": {"name": "f"}},
        tool_config={"functionCallingConfig": {"mode": "ANY"}},
        generation_config={
            "max_output_tokens": 5,
            "thinking_config": {"thinking_budget": 0},
            "top_k": 3,
        },
        safety_settings=[],
    )
    assert sent(one, offer) == {
        "contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "A"}}]}],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        "generationConfig": {"maxOutputTokens": 5, "thinkingConfig": {"thinkingBudget": 0}, "topK": 3},
        "safetySettings": [],
    }


def test_a_bound_in_force_is_added_or_replaces_the_callers(offer):
    bounded = evolve(offer, output_limit=7)
    assert sent(ask(), bounded)["generationConfig"] == {"maxOutputTokens": 7}
    one = ask(generationConfig={"maxOutputTokens": 100, "temperature": 0.5})
    assert sent(one, bounded)["generationConfig"] == {"maxOutputTokens": 7, "temperature": 0.5}
    assert sent(one, offer)["generationConfig"]["maxOutputTokens"] == 100


def test_values_that_are_not_priced_travel_verbatim(offer):
    body = b'{"contents":[{"parts":[{"functionCall":{"name":"n", "args":{"n": 1.10,  "n": 2}},'
    body += b'"thoughtSignature":"CiQB"}]}],"labels":{"a" : "b"}}'
    written = Gemini(RequestLimits()).write_request(read(body), offer)
    assert b'"functionCall":{"name":"n", "args":{"n": 1.10,  "n": 2}}' in written
    assert b'"thoughtSignature":"CiQB"' in written
    assert b'"labels":{"a" : "b"}' in written


def test_of_a_field_that_comes_twice_the_last_is_priced_and_only_it_is_sent(offer):
    one = read(
        b'{"contents":[{"parts":[{"text":"gone","text":"kept"}]}],'
        b'"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9}}'
    )
    assert one.measures.output == 9
    assert sent(one, offer) == {
        "contents": [{"parts": [{"text": "kept"}]}],
        "generationConfig": {"maxOutputTokens": 9},
    }


def test_unknown_fields_pass_or_are_dropped_or_refused(offer):
    body = {"contents": HELLO, "ofTomorrow": 1, "cache": True}
    assert sent(read(body), offer) == {"contents": HELLO, "ofTomorrow": 1}
    assert sent(read(body, unknown="drop"), offer) == {"contents": HELLO}
    with pytest.raises(Rejected):
        read(body, unknown="refuse")


def test_counting_tokens_is_free(offer):
    one = ask(COUNT)
    assert one.free
    assert sent(one, evolve(offer, output_limit=7)) == {"contents": HELLO}


def test_a_whole_request_can_be_counted(offer):
    inner = {"model": f"models/{MODEL}", "contents": HELLO, "system_instruction": {"parts": [{"text": "s"}]}}
    one = read({"generate_content_request": inner}, COUNT)
    assert sent(one, offer) == {
        "generateContentRequest": {
            "model": "models/gemini-3-pro",
            "contents": HELLO,
            "systemInstruction": {"parts": [{"text": "s"}]},
        }
    }


def test_contents_beside_a_whole_request_are_refused():
    assert refused(COUNT, generateContentRequest={"contents": HELLO}).param == "generateContentRequest"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "parts",
                    "text",
                    "role",
                    "inlineData",
                    "inline_data",
                    "mimeType",
                    "data",
                    "fileData",
                    "fileUri",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["contents", "systemInstruction", "tools", "generationConfig", "x"]), JSON
    )
)
def test_whatever_comes_is_read_or_refused(fields):
    body = msgspec.json.encode({"contents": HELLO, **fields})
    try:
        one = read(body)
    except Rejected as rejected:
        assert rejected.kind is Kind.BAD_REQUEST  # noqa: PT017 - either outcome is right
    else:
        assert one.measures.text_bytes >= 0
