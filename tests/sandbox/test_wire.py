import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sandbox.anthropic import Anthropic
from proxy.sandbox.gemini import Gemini
from proxy.sandbox.openai_chat import OpenAIChat
from proxy.sandbox.wire import (
    Prompt,
    Refused,
    directives_of,
    grouped,
    mapping,
    objects,
    read_object,
    stop_list,
    whole_number,
)


@given(st.lists(st.text(max_size=40), max_size=20))
def test_no_text_has_more_tokens_than_bytes(texts):
    prompt = Prompt()
    for text in texts:
        prompt.text(text)
    assert prompt.tokens <= sum(len(text.encode()) for text in texts)


def test_text_is_about_four_bytes_a_token():
    prompt = Prompt()
    prompt.text("x" * 4000)
    assert prompt.tokens == 1000


def test_the_seed_knows_where_one_text_ends_and_the_next_begins():
    one, two = Prompt(), Prompt()
    one.text("ab")
    one.text("c")
    two.text("a")
    two.text("bc")
    assert one.seed("m", "") != two.seed("m", "")


def test_the_seed_depends_on_model_and_directives():
    prompt = Prompt()
    prompt.text("Hi")
    assert len({prompt.seed("m", ""), prompt.seed("n", ""), prompt.seed("m", "tokens=1")}) == 3
    assert prompt.seed("m", "") == prompt.seed("m", "")


def test_a_mark_remembers_how_far_the_prompt_had_come():
    prompt = Prompt()
    prompt.text("x" * 40)
    prompt.mark({"type": "ephemeral", "ttl": "1h"})
    prompt.text("x" * 40)
    prompt.mark({"type": "ephemeral"})
    prompt.text("x" * 40)
    prompt.mark(None)
    assert (prompt.marked_1h, prompt.marked_5m, prompt.tokens) == (10, 20, 30)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"a":NaN}', b"[" * 100_000, b"7"])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(Refused) as caught:
        read_object(body, "no")
    assert caught.value.status == 400


@pytest.mark.parametrize("value", ["7", True, 1.5, 0, 129, [], float("inf")])
def test_numbers_that_make_no_sense_are_refused(value):
    with pytest.raises(Refused):
        whole_number(value, "n", 1, 128)


def test_numbers_within_bounds_pass():
    assert whole_number(None, "n", 1) is None
    assert whole_number(5.0, "n", 1) == 5


def test_fields_of_the_wrong_type_are_refused_by_name():
    for refuse in (
        lambda: objects({"a": 1}, "messages"),
        lambda: objects([1], "messages"),
        lambda: mapping([], "messages"),
        lambda: stop_list([1], "messages"),
        lambda: stop_list([""], "messages"),
    ):
        with pytest.raises(Refused, match="messages"):
            refuse()


@pytest.mark.parametrize(
    ("model", "metadata"), [(None, None), ("", None), (7, None), ("m", 7), ("m@nope", None)]
)
def test_a_model_must_be_named_and_its_directives_known(model, metadata):
    with pytest.raises(Refused):
        directives_of(model, metadata)


@given(st.lists(st.text(max_size=3), max_size=30), st.integers(1, 8))
def test_grouping_loses_nothing(pieces, size):
    groups = list(grouped(pieces, size))
    assert "".join(text for text, _ in groups) == "".join(pieces)
    assert sum(count for _, count in groups) == len(pieces)
    assert all(count <= size for _, count in groups)


@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=6),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.booleans(), max_size=4),
)
def test_no_request_has_more_tokens_than_its_bytes_and_eight_per_message(texts, arguments):
    """What the gateway's holds rely on, for every dialect, with tools declared and called."""
    look = {"name": "look", "parameters": arguments}
    turns = [{"role": "user", "content": text} for text in texts]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": json.dumps(arguments)}}
    use = {"type": "tool_use", "id": "c", "name": "look", "input": arguments}
    parts = [{"text": text} for text in texts] + [{"functionCall": {"name": "look", "args": arguments}}]
    requests = (
        (OpenAIChat(), "", {
            "model": "m",
            "messages": [*turns, {"role": "assistant", "tool_calls": [call]}],
            "tools": [{"type": "function", "function": look}],
        }),
        (Anthropic(), "", {
            "model": "m",
            "max_tokens": 1,
            "messages": [*turns, {"role": "assistant", "content": [use]}],
            "tools": [{"name": "look", "input_schema": arguments}],
        }),
        (Gemini(), "/v1beta/models/m:generateContent", {
            "contents": [{"parts": [part]} for part in parts],
            "tools": [{"functionDeclarations": [look]}],
        }),
    )  # fmt: skip
    for voice, path, request in requests:
        body = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        messages = len(request.get("messages", request.get("contents")))
        assert voice.read(path, {}, body).input_tokens <= len(body) + 8 * messages
