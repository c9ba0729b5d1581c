import base64
import json

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects.openai_chat import OpenAIChat
from proxy.dialects.openai_chat.request import FIELDS
from proxy.dialects.openai_chat.usual import CHOICES_MAX
from proxy.errors import Kind, Rejected
from proxy.types import Path
from tests import offers

LIMITS = RequestLimits()
DIALECT = OpenAIChat(LIMITS)
PATH = Path("openai_chat")
USER = {"role": "user", "content": "hi"}


def read_bytes(body, unknown="pass", headers=None):
    return DIALECT.read_request(PATH, headers or {}, body, unknown)


def read(unknown="pass", headers=None, **fields):
    body = {"model": "gpt-4o", "messages": [USER], **fields}
    return read_bytes(json.dumps(body).encode(), unknown, headers)


def refused(**fields):
    with pytest.raises(Rejected) as caught:
        read(**fields)
    assert caught.value.kind is Kind.BAD_REQUEST
    return caught.value


def part(kind, **more):
    return {"messages": [{"role": "user", "content": [{"type": kind, **more}]}]}


def model(**more):
    facts = {"output_field": "max_completion_tokens", "context_window": 128_000, "output_max": 16_384}
    return offers.model("openai/gpt-4o", **facts | more)


def offer(**more):
    facts = {"model": model(), "wire_name": "gpt-4o-2024-08-06"}
    return offers.offer(model(), **facts | more)


def written(ask, **more):
    return json.loads(DIALECT.write_request(ask, offer(**more)))


# --- what is read ---------------------------------------------------------------------------------------


def test_a_plain_request_is_read():
    ask = read()
    assert (ask.dialect, ask.model, ask.stream, ask.usage_wanted, ask.live_cost) == (
        "openai_chat",
        "gpt-4o",
        False,
        False,
        False,
    )
    measures = ask.measures
    assert (measures.messages, measures.choices, measures.output, measures.reasoning) == (1, 1, None, None)
    assert not measures.unbounded


@pytest.mark.parametrize("missing", ["model", "messages"])
@pytest.mark.parametrize("value", [None, "absent"])
def test_model_and_messages_are_required(missing, value):
    fields = {"model": "m", "messages": [USER]}
    fields[missing] = value
    if value == "absent":
        del fields[missing]
    with pytest.raises(Rejected, match=f"{missing} is required") as caught:
        read_bytes(json.dumps(fields).encode())
    assert caught.value.param == missing


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER] * 4097}, "messages"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (part("text"), "messages[0].content[0].text"),
        (part("text", text=1), "messages[0].content[0].text"),
        (part("image_url"), "messages[0].content[0].image_url"),
        (part("image_url", image_url={}), "messages[0].content[0].image_url.url"),
        (part("image_url", image_url={"url": "gs://bucket/x"}), "messages[0].content[0].image_url.url"),
        (part("image_url", image_url={"url": "file-abc123"}), "messages[0].content[0].image_url.url"),
        (part("image_url", image_url={"url": 7}), "messages[0].content[0].image_url.url"),
        (part("image_url", image_url={"URL": "https://x"}), "messages[0].content[0].image_url.URL"),
        (part("input_audio", input_audio={}), "messages[0].content[0].input_audio.data"),
        (part("input_audio", input_audio={"data": 1}), "messages[0].content[0].input_audio.data"),
        (part("input_audio", input_audio={"data": "https://x"}), "messages[0].content[0].input_audio.data"),
        (part("file", file={"file_id": "file-1"}), "messages[0].content[0].file.file_id"),
        (part("file", file={"fileId": "file-1"}), "messages[0].content[0].file.fileId"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages[0].audio.id"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": CHOICES_MAX + 1}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": 1.0}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 5, "maxTokens": 5}, "maxTokens"),
        ({"maxTokens": 5}, "maxTokens"),
        ({"maxCompletionTokens": 5}, "maxCompletionTokens"),
        ({"max_output_tokens": 5}, "max_output_tokens"),
        ({"maxOutputTokens": 5}, "maxOutputTokens"),
        ({"Messages": [USER]}, "Messages"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"modalities": "audio"}, "modalities"),
        ({"modalities": ["audio", 1]}, "modalities"),
        ({"audio": {"voice": {"id": "voice_1"}, "format": "wav"}}, "audio.voice"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"serviceTier": "flex"}, "serviceTier"),
        ({"service_tier": 1}, "service_tier"),
        ({"store": True}, "store"),
        ({"store": "true"}, "store"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"webSearchOptions": {}}, "webSearchOptions"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"models": ["a", "b"]}, "models"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}, {"type": "mcp"}]}, "tools[1].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 513}, "tools"),
        ({"functions": "f"}, "functions"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop": 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"logprobs": 1}, "logprobs"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"user": 5}, "user"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:60],
)
def test_a_field_that_is_wrong_or_not_offered_is_named(fields, param):
    rejected = refused(**fields)
    assert rejected.param == param
    assert param in rejected.message


@pytest.mark.parametrize("name", sorted(FIELDS.forbidden))
def test_what_is_not_offered_may_be_null_and_is_not_sent(name):
    refused(**{name: "x"})
    assert name not in written(read(**{name: None}))


def test_a_last_spelling_that_is_null_is_still_a_second_spelling():
    refused(max_tokens=5, maxTokens=None)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5},
        {"stop": "x"},
        {"stop": ["x", "y"]},
        {"seed": -(2**62)},
        {"metadata": {"sandbox": "tokens=5"}},
        {"user": "u"},
        {"logprobs": True, "top_logprobs": 3},
        {"logit_bias": {"50256": -100}},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"functions": [{"name": "f", "parameters": {}}], "function_call": "auto"},
        {"verbosity": "low"},
        {"prompt_cache_key": "k"},
        {"store": False},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text"]},
        {"reasoning_effort": "low"},
        {"new_thing_of_next_year": {"a": [1]}},
    ],
)
def test_what_is_of_no_effect_on_the_bill_travels_as_it_is(fields):
    assert written(read(**fields)) == {"model": "gpt-4o-2024-08-06", "messages": [USER], **fields}


def test_unknown_fields_are_dropped_or_refused_where_the_operator_says_so():
    assert "novelty" not in written(read("drop", novelty=1))
    with pytest.raises(Rejected, match="novelty"):
        read("refuse", novelty=1)


def test_fields_meant_for_the_gateway_do_not_travel():
    assert written(read(cache=True, no_cache=False, usage={"include": True})) == written(read())


@pytest.mark.parametrize(
    ("headers", "live"), [({}, False), ({"x-credits-live": "1"}, True), ({"x-credits-live": "0"}, False)]
)
def test_live_cost_is_asked_for_by_a_header(headers, live):
    assert read(headers=headers).live_cost is live


def test_of_the_callers_headers_only_those_of_the_dialect_travel():
    headers = {"openai-beta": "x=v1", "authorization": "Bearer s", "cookie": "c", "x-credits-live": "1"}
    assert read(headers=headers).headers == (("openai-beta", "x=v1"),)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": True}}, True),
        ({"usage": {"include": True}}, True),
        ({"usage": {"include": False}}, False),
        ({"usage": True}, False),
    ],
)
def test_the_usage_frame_is_for_who_asks_for_it(fields, wanted):
    assert read(stream=True, **fields).usage_wanted is wanted


# --- what it can cost -----------------------------------------------------------------------------------


def test_text_is_counted_by_its_utf8_however_it_is_escaped():
    content = "ö🌸\n" * 100
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    sizes = {
        read_bytes(json.dumps(body, ensure_ascii=ascii_only).encode()).measures.text_bytes
        for ascii_only in (True, False)
    }
    assert sizes == {len(content.encode()) + len('"user"')}


def strings_in(value):
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return sum(map(strings_in, value.values()))
    return sum(map(strings_in, value)) if isinstance(value, list) else 0


words = st.text(max_size=20).filter(lambda text: text.isprintable())
parts = st.one_of(
    words.map(lambda text: {"type": "text", "text": text}),
    words.map(lambda text: {"type": "refusal", "refusal": text, "novelty": text}),
    words.map(lambda text: {"type": "novelty", "novelty": {"a": text}, "b": text}),
)
calls = st.builds(
    lambda name, text: [{"id": "c", "type": "function", "function": {"name": name, "arguments": text}}],
    words,
    words,
)
messages = st.builds(
    lambda role, content, extra: {"role": role, "content": content} | extra,
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    st.none() | words | st.lists(parts, max_size=3),
    st.fixed_dictionaries(
        {}, optional={"name": words, "tool_calls": calls, "reasoning_content": words, "other": words}
    ),
)
tools = st.lists(
    st.builds(
        lambda name, text: {
            "type": "function",
            "function": {"name": name, "parameters": {"description": text}},
        },
        words,
        words,
    ),
    max_size=3,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(messages, min_size=1, max_size=4), tools, words, st.booleans())
def test_no_text_that_is_sent_goes_uncounted(messages, tools, text, ascii_only):
    body = {
        "model": "m",
        "messages": messages,
        "tools": tools,
        "functions": [{"name": text}],
        "novelty": {"documents": [text]},
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"description": text}}},
    }
    ask = read_bytes(json.dumps(body, ensure_ascii=ascii_only).encode())
    sent = written(ask)
    assert {name: sent[name] for name in body if name != "model"} == {
        name: value for name, value in body.items() if name != "model"
    }
    unbounded_parts = sum(
        strings_in({name: value for name, value in part.items() if name in ("type", part["type"])})
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "novelty"
    )
    types = sum(
        len(part["type"])
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    counted = {name: value for name, value in sent.items() if name != "model"}
    assert ask.measures.text_bytes >= strings_in(counted) - unbounded_parts - types
    assert ask.measures.unbounded or not unbounded_parts
    assert ask.measures.messages == len(messages)
    assert ask.measures.tools == len(tools) + 1


@pytest.mark.parametrize(
    "image",
    [
        {"url": "data:image/png;base64," + "A" * 40_000},
        {"url": "HTTPS://x/y.png", "detail": "high"},
        "https://x/y.png",
    ],
)
def test_an_image_is_counted_as_one_and_not_by_its_bytes(image):
    ask = read(**part("image_url", image_url=image))
    assert ask.measures.images == 1
    assert ask.measures.text_bytes < 20
    assert written(ask)["messages"][0]["content"][0]["image_url"] == image


def test_audio_is_counted_by_its_decoded_bytes_or_a_little_more():
    for size in (0, 1, 2, 3, 1000, 40_001):
        data = base64.b64encode(b"x" * size).decode()
        ask = read(**part("input_audio", input_audio={"data": data, "format": "wav"}))
        assert size <= ask.measures.audio_bytes <= size + 6
        assert ask.measures.text_bytes < 20


@pytest.mark.parametrize(
    "more",
    [
        part("file", file={"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}),
        part("video_url", video_url={"url": "https://x"}),
    ],
)
def test_what_no_count_of_bytes_bounds_is_a_full_window(more):
    assert read(**more).measures.unbounded


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({}, None),
        ({"reasoning_effort": None}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, True),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"max_tokens": 100}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}}, True),
    ],
)
def test_whether_reasoning_is_switched_on_or_off_is_read(fields, reasoning):
    assert read(**fields).measures.reasoning is reasoning


def test_output_choices_modalities_and_cache_writes_are_measured():
    measures = read(max_tokens=7, max_completion_tokens=7, n=3, modalities=["text", "audio"]).measures
    assert (measures.output, measures.choices, measures.audio_output, measures.image_output) == (
        7,
        3,
        True,
        False,
    )
    assert read(modalities=["image"]).measures.image_output
    assert read().measures.cache_writes == "none"
    assert read(prompt_cache_options={"ttl": "30m"}).measures.cache_writes == "5m"
    marked = [
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    ]
    assert read(messages=marked).measures.cache_writes == "1h"


# --- what is sent ---------------------------------------------------------------------------------------


def test_of_a_field_that_comes_twice_the_last_is_measured_and_only_it_is_sent():
    body = (
        b'{"model":"m","max_tokens":5,"max_tokens":9,"messages":[{"role":"user","content":"short","role":"user",'
        b'"content":"much longer"}],"tools":[{"type":"web_search","type":"function","function":{"name":"f"}}'
        b'],"reasoning":{"effort":"none","effort":"high"}}'
    )
    ask = read_bytes(body)
    assert ask.measures.output == 9
    assert ask.measures.reasoning
    sent = DIALECT.write_request(ask, offer(output_limit=9))
    assert b"short" not in sent
    assert b"web_search" not in sent
    assert b"none" not in sent
    assert sent.count(b"max_") == 1


def test_what_we_do_not_read_is_sent_verbatim():
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"b": 1.50, "a" : 1e2}}'
    )
    assert b'"response_format":{"b": 1.50, "a" : 1e2}' in DIALECT.write_request(read_bytes(body), offer())


@pytest.mark.parametrize("asked", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("taken", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("limit", "sent"), [(None, 100), (40, 40)])
def test_the_bound_goes_into_the_field_that_the_model_takes(asked, taken, limit, sent):
    body = written(read(**{asked: 100}), model=model(output_field=taken), output_limit=limit)
    assert {name: value for name, value in body.items() if name.startswith("max")} == {taken: sent}


def test_without_any_bound_none_is_sent_and_with_ours_it_is():
    assert not [name for name in written(read()) if name.startswith("max")]
    assert written(read(), output_limit=4096)["max_completion_tokens"] == 4096


def test_a_stream_is_asked_for_its_usage_whatever_the_caller_wants():
    for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
        assert written(read(stream=True, **options))["stream_options"] == {"include_usage": True}
    kept = written(read(stream=True, stream_options={"include_obfuscation": False}))
    assert kept["stream_options"] == {"include_obfuscation": False, "include_usage": True}


def test_a_provider_that_does_not_take_stream_options_is_not_sent_any():
    ask = read(stream=True, stream_options={"include_usage": True})
    assert "stream_options" not in written(ask, stream_options=False)
    assert "stream_options" not in written(read())
    assert written(read(stream_options={"include_usage": True}))["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("tier", "sent"), [("auto", "default"), ("default", "default"), (None, None)])
def test_an_automatic_tier_is_sent_as_the_standard_one(tier, sent):
    assert written(read(service_tier=tier)).get("service_tier") == sent


def test_the_model_is_sent_under_the_providers_name():
    assert written(read(model="openai/gpt-4o"))["model"] == "gpt-4o-2024-08-06"


def test_a_body_above_the_limit_is_a_413():
    small = OpenAIChat(evolve(LIMITS, body_bytes_max=1024))
    with pytest.raises(Rejected) as caught:
        small.read_request(PATH, {}, b" " * 1025, "pass")
    assert caught.value.status == 413
