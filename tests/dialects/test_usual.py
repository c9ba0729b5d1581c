import json
import random
from contextlib import ExitStack
from copy import deepcopy
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects import anthropic, gemini, openai_chat
from proxy.dialects.usual import as_written, beyond_guard, take
from proxy.errors import Rejected
from proxy.types import Path
from tests import offers
from tests.dialects.common import DIALECTS
from tests.values import evolve

LIMITS = RequestLimits()
SMALL = evolve(LIMITS, body_bytes_max=1500, depth_max=8, items_max=60, messages_max=3, tools_max=2)
SMALL_DIALECTS = {
    name: evolve(dialect, limits=SMALL) for name, dialect in DIALECTS.items() if name != "openai_chat"
}
SMALL_DIALECTS["openai_chat"] = openai_chat.OpenAIChat(SMALL)
PATHS = {
    "openai_chat": [Path("openai_chat"), Path("openai_chat", model="m")],
    "anthropic": [Path("anthropic"), Path("anthropic", action="count")],
    "gemini": [Path("gemini", action=action, model="gem") for action in ("generate", "stream", "count")],
}
MODULES = {
    "openai_chat": openai_chat.request,
    "anthropic": anthropic.request,
    "gemini": gemini.request,
}
OFFERS = [offers.offer(offers.model(), wire_name="there", output_limit=limit) for limit in (None, 7)]


# --- JSON in all its spellings: names twice, escapes that need not be, blanks, odd numbers --------------


class Pairs(list):
    """An object as a list of names and values, so that a name may come twice."""


class Literal(str):
    """JSON as it stands."""

    __slots__ = ()


def pairs(value):
    if isinstance(value, dict):
        return Pairs((name, pairs(inner)) for name, inner in value.items())
    return [pairs(inner) for inner in value] if isinstance(value, list) else value


def spell(value, odd, ascii_only, blank):
    """Write a value; `odd()` says now and then that this one shall be spelled in an unusual way."""

    def text(said):
        if said and odd():
            return '"' + "".join(f"\\u{unit:04x}" for unit in utf16(said)) + '"'
        written = json.dumps(said, ensure_ascii=ascii_only)
        return written.replace("/", "\\/") if odd() else written

    def write(value):
        pad = blank()
        match value:
            case Literal():
                return str(value)
            case Pairs():
                inner = f",{pad}".join(f"{text(name)}:{blank()}{write(inner)}" for name, inner in value)
                return f"{{{inner}{pad}}}"
            case list():
                return f"[{pad}{f',{pad}'.join(map(write, value))}]"
            case str():
                return text(value)
            case _:
                return json.dumps(value)

    return write(value).encode("utf-8", "surrogatepass")


def utf16(text):
    coded = text.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(coded[at : at + 2]) for at in range(0, len(coded), 2)]


def spots(value, found=None):
    """Every object and array within a value."""
    found = [] if found is None else found
    if isinstance(value, list):
        found.append(value)
        for item in value:
            spots(item[1] if isinstance(value, Pairs) else item, found)
    return found


TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "cache_control",
        'x"cache_control',
        '"',
        "\\",
        "[{",
        "a/b",
        "é",
        "\U0001f600",
        "\x00\x1f\x7f",
        "\ud800",
        "e999",
    ]
)
ODD_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        9,
        101,
        129,
        2**31,
        2**63,
        "",
        "x",
        "m" * 257,
        "é" * 129,
        "gs://x",
        "file",
        "data:",
        [],
        Pairs(),
        [[]],
        [None],
        Pairs([("a", 1), ("a", 2)]),
        *map(
            Literal,
            ("1e999", "-1e400", "1.0", "1e2", "-0", "0.10", "1e9", "9" * 40, "9" * 300, "01", "NaN", "null "),
        ),
        *map(
            Literal,
            (
                '"\\ud800"',
                '"\\x"',
                "[" * 9 + "]" * 9,
                "{}" * 2,
                '{"cache_control":{"type":"ephemeral"}}',
                "[1 , 2]",
            ),
        ),
    ]
)
ODD_NAMES = st.sampled_from(
    [
        "maxTokens",
        "max_tokens",
        "role",
        "content",
        "text",
        "type",
        "model",
        "mystery",
        "Mystery",
        "usage",
        "cache",
        "service_tier",
        "name",
        "tool_calls",
        "refusal",
        "cache_control",
        "system_instruction",
        "systemInstruction",
        "store",
        "generation_config",
        "prediction",
        "thinking",
        "stop",
        "seed",
        "n",
        "metadata",
        "audio",
        "parts",
        "temperature",
        "thought",
        "toolConfig",
        "context_management",
        "stream_options",
        "citations",
        "detail",
        "title",
    ]
)


@st.composite
def spelled(draw, bodies):
    """A body of these, in some spelling, with some oddities or none."""
    value = pairs(draw(bodies))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 2)))):
        spot = draw(st.sampled_from(spots(value)))
        odd = deepcopy(draw(ODD_VALUES | TEXTS))
        at = draw(st.integers(0, len(spot)))
        act = draw(st.sampled_from(("replace", "add", "again", "drop")))
        if not isinstance(spot, Pairs):
            spot.insert(at, odd)
        elif act == "add" or not spot:
            spot.insert(at, (draw(ODD_NAMES), odd))
        else:
            at %= len(spot)
            name, inner = spot[at]
            if act == "replace":
                spot[at] = (name, odd)
            elif act == "again":
                spot.insert(
                    draw(st.integers(0, len(spot))), (name, deepcopy(draw(st.sampled_from((odd, inner)))))
                )
            else:
                del spot[at]
    if draw(st.booleans()) and isinstance(value, Pairs):
        value[:] = draw(st.permutations(value))
    rare = draw(st.sampled_from((0, 0, 0, 3, 9)))
    chance = random.Random(draw(st.integers(0, 999)))
    blanks = draw(st.sampled_from((("",), ("", " "), (" ",), ("", "\n  ", " \t"))))
    text = spell(
        value,
        odd=lambda: bool(rare) and chance.randrange(rare) == 0,
        ascii_only=draw(st.booleans()),
        blank=lambda: chance.choice(blanks),
    )
    if draw(st.integers(0, 19)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=2)) + text[at + draw(st.integers(0, 2)) :]
    return text


# --- usual bodies ---------------------------------------------------------------------------------------


def some(required, **optional):
    return st.fixed_dictionaries(
        required, optional={name: st.sampled_from(of) for name, of in optional.items()}
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "number", "maximum": 1.5}}}
OPENAI_PARTS = st.one_of(
    some({"type": st.just("text"), "text": TEXTS}),
    some(
        {
            "type": st.just("image_url"),
            "image_url": some(
                {"url": st.sampled_from(["data:image/png;base64,AA/=", "https://x/é", "HTTP://x"])},
                detail=["low"],
            ),
        }
    ),
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
OPENAI = some(
    {
        "model": st.sampled_from(["gpt", "é/", "m" * 256]),
        "messages": st.lists(
            some(
                {
                    "role": st.sampled_from(["user", "system", "assistant", "tool"]),
                    "content": TEXTS | st.lists(OPENAI_PARTS, max_size=2) | st.none(),
                },
                refusal=[None],
                name=["bob"],
                tool_calls=[[CALL], None, []],
                tool_call_id=["c"],
            ),
            max_size=4,
        ),
    },
    stream=[True, False, None],
    stream_options=[{"include_usage": True}, {"include_usage": False}, None],
    max_tokens=[1, 5, None, 2**31 - 1],
    max_completion_tokens=[5, None],
    temperature=[0, 0.7, 100, None],
    top_p=[1, 0.5],
    n=[1, 128, None],
    stop=["a", ["b", "é"], [], None],
    frequency_penalty=[-2],
    presence_penalty=[1.5],
    seed=[1, -(2**63)],
    user=["u", "u" * 300],
    reasoning_effort=["none", "low", None],
    parallel_tool_calls=[True],
    prompt_cache_key=["k"],
    tools=[[], [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}] * 2],
    tool_choice=["auto", {"type": "function"}],
    response_format=[{"type": "json_schema", "json_schema": SCHEMA}, None],
)

MARKS = [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": "5m"}]
SIMPLE_BLOCKS = st.one_of(
    some({"type": st.just("text"), "text": TEXTS}, cache_control=MARKS),
    some(
        {
            "type": st.just("image"),
            "source": st.sampled_from(
                [
                    {"type": "base64", "media_type": "image/png", "data": "AA/="},
                    {"type": "url", "url": "https://x"},
                ]
            ),
        }
    ),
)
BLOCKS = st.one_of(
    SIMPLE_BLOCKS,
    some({"type": st.just("thinking"), "thinking": TEXTS, "signature": st.just("s")}),
    some(
        {
            "type": st.just("tool_use"),
            "id": st.just("t"),
            "name": st.just("f"),
            "input": st.sampled_from([{}, {"a": [1.5]}]),
        },
        cache_control=MARKS,
    ),
    some(
        {
            "type": st.just("tool_result"),
            "tool_use_id": st.just("t"),
            "content": TEXTS | st.lists(SIMPLE_BLOCKS, max_size=2),
        },
        is_error=[True, None],
    ),
)
ANTHROPIC = some(
    {
        "model": st.sampled_from(["claude", "", "é" * 128]),
        "max_tokens": st.sampled_from([1, 0, 2**31 - 1]),
        "messages": st.lists(
            some(
                {
                    "role": st.sampled_from(["user", "assistant"]),
                    "content": TEXTS | st.lists(BLOCKS, max_size=3),
                }
            ),
            max_size=4,
        ),
    },
    system=["be", "be" * 200, [{"type": "text", "text": "be", "cache_control": MARKS[1]}], []],
    stream=[True, False, None],
    temperature=[0.5, 1],
    top_p=[1],
    top_k=[5],
    stop_sequences=[["a", "é"], None],
    metadata=[{"user_id": "u"}, {}, None],
    thinking=[{"type": "enabled", "budget_tokens": 9}, {"type": "disabled"}, {"type": "adaptive"}],
    tools=[
        [],
        [{"name": "f", "input_schema": SCHEMA, "cache_control": MARKS[0]}] * 2,
        [{"type": "custom", "name": "f", "description": "d"}],
    ],
    tool_choice=[{"type": "auto"}, None],
    output_config=[{"effort": "low"}],
)

PARTS = some(
    {},
    text=["", "hi", "é\n", "\U0001f600/"],
    thought=[True, None],
    thoughtSignature=["s"],
    inlineData=[{"mimeType": "image/png", "data": "AA/="}, {"mimeType": "image/é", "data": "A"}],
    functionCall=[{"name": "f", "args": {"a": 1.5}}, None],
    functionResponse=[{"name": "f", "response": {"a": []}, "id": "i"}],
)
CONTENT = some({"parts": st.lists(PARTS, max_size=3)}, role=["user", "model"])
GEMINI = st.fixed_dictionaries(
    {"contents": st.lists(CONTENT, max_size=4)},
    optional={
        "systemInstruction": CONTENT,
        "tools": st.just([{"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}]),
        "generationConfig": some(
            {},
            maxOutputTokens=[1, None],
            candidateCount=[1, 8],
            temperature=[0, 0.7, 1e9],
            topP=[0.5],
            topK=[4],
            seed=[1],
            presencePenalty=[-1],
            frequencyPenalty=[0.5],
            stopSequences=[["a", "é"], []],
            responseMimeType=["text/plain"],
            thinkingConfig=[
                {},
                {"thinkingBudget": 0},
                {"thinkingBudget": -1},
                {"thinkingBudget": 5},
                {"thinkingLevel": "low"},
                {"includeThoughts": True},
            ],
        ),
        "safetySettings": st.just([{"category": "x"}]),
        "toolConfig": st.just({"mode": "any"}),
    },
)
BODIES = {"openai_chat": OPENAI, "anthropic": ANTHROPIC, "gemini": GEMINI}


# --- the same to the caller -----------------------------------------------------------------------------


def outcome(dialect, path, text, unknown):
    """What a caller, the ledger and the provider see of a request."""
    try:
        ask = dialect.read_request(path, {"x-credits-live": " TRUE ", "openai-beta": "b"}, text, unknown)
    except Rejected as rejected:
        return rejected.kind, rejected.message, rejected.param
    fields = [(name, bytes(raw)) for name, raw in ask.fields.items()]
    return evolve(ask, fields={}), fields, [dialect.write_request(ask, offer) for offer in OFFERS]


def the_long_way(name):
    """Without a usual body, nor usual messages within an unusual one."""
    stack = ExitStack()
    stack.enter_context(patch.object(MODULES[name], "take", lambda *_: None))
    nothing = msgspec.json.Decoder(msgspec.defstruct("Nothing", ["never_sent"]))
    stack.enter_context(
        patch.object(MODULES[name].usual, "CONTENTS" if name == "gemini" else "MESSAGES", nothing)
    )
    return stack


def same_both_ways(name, dialect, path, text, unknown):
    quick = outcome(dialect, path, text, unknown)
    with the_long_way(name):
        assert outcome(dialect, path, text, unknown) == quick


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=400, deadline=None)
@given(data=st.data(), unknown=st.sampled_from(("pass", "drop", "refuse")), small=st.booleans())
def test_whatever_is_sent_the_quick_reading_comes_to_the_same_as_the_long_one(name, data, unknown, small):
    text = data.draw(spelled(BODIES[name]))
    path = data.draw(st.sampled_from(PATHS[name]))
    same_both_ways(name, (SMALL_DIALECTS if small else DIALECTS)[name], path, text, unknown)


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]",:\\0eE9.u ', max_size=40).map(str.encode))
@example(b"")
@example(b" ")
def test_no_bytes_at_all_are_read_in_two_ways(name, text):
    same_both_ways(name, DIALECTS[name], PATHS[name][0], text, "pass")


QUICK = {
    "openai_chat": [
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": False},
        {"messages": [{"content": "Zeile\n", "role": "system"}] * 3, "model": "m", "temperature": 0.7},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": '"é"'}]}]},
        {
            "model": "m",
            "messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ],
    "anthropic": [
        {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
        {
            "model": "m",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "be", "cache_control": MARKS[0]}],
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "t", "content": "done"}],
                },
            ],
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
    ],
    "gemini": [
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        {
            "systemInstruction": {"parts": [{"text": "be"}]},
            "contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}]}],
            "generationConfig": {"maxOutputTokens": 5, "temperature": 0.70, "stopSequences": ["x"]},
        },
    ],
}


@pytest.mark.parametrize(("name", "asked"), [(name, asked) for name in QUICK for asked in QUICK[name]])
def test_what_nearly_everybody_sends_is_read_the_quick_way(name, asked):
    path = PATHS[name][0]
    for separators in ((",", ":"), (", ", ": ")):
        text = json.dumps(asked, ensure_ascii=False, separators=separators).encode()
        if "tools" not in asked or separators == (",", ":"):  # blanks within a schema count: the long way
            with patch.object(MODULES[name].read, "read_object", None):
                assert DIALECTS[name].read_request(path, {}, text, "refuse").measures.text_bytes
        same_both_ways(name, DIALECTS[name], path, text, "refuse")


HI = b'{"role":"user","content":"hi"}'
DEEP = b"[" * 70 + b"]" * 70


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"m","messages":[{"role":"user","content":"no","content":"hi"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"no"}],"messages":[%b]}' % HI,
        b'{"model":"m","messages":[{"role":"us\\u0065r","content":"hi"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"h\\u0069"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\u001F"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"m","user":"\xff","messages":[%b]}' % HI,
        # a name twice, with as many blanks within a raw value as the first of the two has letters
        b'{"model":"m","messages":[{"role":"user","content":"hi","name":"n","name":{"a":         1}}]}',
        b'{"model":"m","messages":[{"role":"user","content":"","content":"hi","name":[             ]}]}',
        # what only stands in a value that is overwritten
        b'{"model":"m","temperature":0.%b,"temperature":1,"messages":[%b]}' % (b"1" * 300, HI),
        b'{"model":"m","temperature":1e999,"temperature":1,"messages":[%b]}' % HI,
        b'{"model":"m","tools":%b,"tools":[],"messages":[%b]}' % (DEEP, HI),
        b'{"model":"m","tool_choice":%b,"messages":[%b]}' % (DEEP, HI),
        b'{"model":"m","tool_choice":{"a":1e999},"messages":[%b]}' % HI,
        b'{"model":"m",%b"messages":[%b]}' % (b'"n":1,' * 70, HI),
        b'{"model":"m","seed":%b,"messages":[%b]}' % (b"1" * 300, HI),
        b'{"model":"m","max\\u005ftokens":5,"max_tokens":6,"messages":[%b]}' % HI,
        b'{"model":"m","messages":[{"role":"user","content":"x\\"cache_control"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"cache_control"}]}',
        b'{"model":"m","messages":[%b],"max_tokens":5,"max_completion_tokens":6}' % HI,
        b'{"model":"m","messages":[%b]}' % b",".join([HI] * 4),
        b'{"model":"m","messages":[%b]} x' % HI,
        b'\xef\xbb\xbf{"model":"m","messages":[%b]}' % HI,
    ],
)
def test_a_hostile_body_is_read_as_by_the_long_way(text):
    for dialects in (DIALECTS, SMALL_DIALECTS):
        same_both_ways("openai_chat", dialects["openai_chat"], PATHS["openai_chat"][0], text, "pass")
        claude = text[:-1] + b',"max_tokens":5}'
        same_both_ways("anthropic", dialects["anthropic"], PATHS["anthropic"][0], claude, "pass")


@pytest.mark.parametrize(
    "config",
    [
        b'{"temperature":1e9,"topK":1}',
        b'{"temperature":1e9,"topK":1,"topK":2}',
        b'{"stopSequences":["a" , "b"]}',
        b'{"thinkingConfig":{"thinkingBudget":5,"thinkingBudget":0}}',
        b'{"thinkingConfig":{"thinkingBudget":5},"thinkingConfig":{}}',
        b'{"max\\u004futputTokens":5}',
        b'{"maxOutputTokens":5,"max_output_tokens":6}',
        b'{"temperature":%b}' % (b"1" * 300),
        b'{"temperature":1e999,"temperature":1}',
        b"null",
    ],
)
def test_numbers_travel_as_they_were_spelled(config):
    text = b'{"contents":[{"parts":[{"text":"hi"}]}],"generationConfig":%b}' % config
    same_both_ways("gemini", DIALECTS["gemini"], PATHS["gemini"][0], text, "pass")


def test_as_written_takes_blanks_away_and_nothing_else():
    value = [["a", "b"], "c"]
    assert as_written(msgspec.Raw(b'[["a","b"],"c"]'), value) == msgspec.Raw(b'[["a","b"],"c"]')
    assert as_written(msgspec.Raw(b'[ ["a", "b"] ,\n"c"]'), value) == msgspec.Raw(b'[["a","b"],"c"]')
    assert as_written(msgspec.Raw(b'[["a","b"],"\\u0063"]'), value) is None


def test_a_body_is_beyond_the_guard_only_if_next_to_nothing_of_it_is_not_text():
    assert beyond_guard(b" " * 1299, 1000, 1, LIMITS)
    assert not beyond_guard(b" " * 1300, 1000, 1, LIMITS)
    assert not beyond_guard(b" " * 1299, 1000, LIMITS.items_max // 16, LIMITS)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (gemini.request.usual.BODY, b'{"contents":[{"parts":[%b{}]}]}' % (b"{}," * 250)),
        (openai_chat.request.usual.BODY, b'{"model":"m","messages":[],"stop":[%b""]}' % (b'"",' * 250)),
    ],
)
def test_a_body_with_more_in_it_than_is_allowed_is_not_decoded(shape, text):
    assert take(text, shape, LIMITS)
    assert take(text, shape, SMALL) is None
