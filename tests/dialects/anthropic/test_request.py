import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects.anthropic import Anthropic
from proxy.errors import Kind, Rejected
from proxy.types import Path
from tests.values import evolve

MESSAGES = Path(dialect="anthropic")
COUNT = Path(dialect="anthropic", action="count")
HELLO = [{"role": "user", "content": "Hello"}]


def read(body, path=MESSAGES, headers=None, unknown="pass", limits=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Anthropic(limits or RequestLimits()).read_request(path, headers or {}, raw, unknown)


def ask(path=MESSAGES, **fields):
    return read({"model": "claude", "max_tokens": 10, "messages": HELLO, **fields}, path)


def blocks(*content, **fields):
    return ask(messages=[{"role": "user", "content": list(content)}], **fields)


def refused(**fields):
    with pytest.raises(Rejected) as rejected:
        ask(**fields)
    assert rejected.value.kind is Kind.BAD_REQUEST
    return rejected.value


def sent(asked, offer):
    return json.loads(Anthropic(RequestLimits()).write_request(asked, offer))


TEXT = {"type": "text", "text": "Hello"}


def test_a_plain_request_is_read():
    one = ask(stream=True)
    assert (one.dialect, one.model, one.stream, one.free) == ("anthropic", "claude", True, False)
    assert one.measures.output == 10
    assert one.measures.messages == 1
    assert one.measures.cache_writes == "none"
    assert one.measures.reasoning is None
    assert not one.measures.unbounded


@pytest.mark.parametrize("name", ["model", "messages", "max_tokens"])
def test_what_must_be_there_is_named(name):
    assert refused(**{name: None}).param == name


def test_max_tokens_of_zero_only_fills_the_cache():
    assert ask(max_tokens=0).measures.output == 0


@pytest.mark.parametrize("value", [-1, 1.5, "10", True, 1e30, 2**31])
def test_an_absurd_max_tokens_is_refused(value):
    assert refused(max_tokens=value).param == "max_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("messages", {}),
        ("messages", ["x"]),
        ("stream", 1),
        ("tools", "x"),
        ("system", 5),
        ("thinking", "enabled"),
    ],
)
def test_a_wrong_type_is_named(name, value):
    assert refused(**{name: value}).param.startswith(name)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": 5, "content": "x"},
        {"role": "user", "content": 5},
    ],
)
def test_a_malformed_message_is_named_by_its_index(message):
    assert refused(messages=[*HELLO, message]).param.startswith("messages[1].")


def test_a_system_turn_may_set_nothing_but_options():
    ask(messages=[*HELLO, {"role": "system", "output_config": {"effort": "low"}}])


@pytest.mark.parametrize(
    "block", [{"text": "x"}, {"type": 5}, {"type": "text"}, {"type": "text", "text": 5}, 5, {"type": "image"}]
)
def test_a_malformed_block_is_named_by_its_index(block):
    assert refused(messages=[{"role": "user", "content": [TEXT, block]}]).param.startswith(
        "messages[0].content[1]"
    )


# --- what a body can cost -----------------------------------------------------------------------------


@settings(max_examples=100)
@given(text=st.text(max_size=200), ascii_only=st.booleans())
def test_text_counts_at_least_its_utf8_bytes_however_it_is_escaped(text, ascii_only):
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    one = read(json.dumps(body, ensure_ascii=ascii_only).encode())
    size = len(text.encode())
    assert size <= one.measures.text_bytes <= size + 64


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "T" * 1000},
        {"system": [{"type": "text", "text": "T" * 1000}]},
        {"messages": [{"role": "user", "content": "T" * 1000}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "T" * 1000}]}]},
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "T" * 990, "signature": "s" * 10}],
                }
            ]
        },
        {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "T" * 1000}]}]},
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "i", "name": "n", "input": {"a": "T" * 1000}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "i", "content": "T" * 1000}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "i",
                            "content": [{"type": "text", "text": "T" * 1000}],
                        }
                    ],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "T" * 1000},
                        }
                    ],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "document", "source": {"type": "content", "content": "T" * 1000}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "search_result",
                            "source": "s",
                            "title": "t",
                            "content": [{"type": "text", "text": "T" * 1000}],
                        }
                    ],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "web_search_tool_result", "tool_use_id": "i", "content": "T" * 1000}
                    ],
                }
            ]
        },
        {"messages": [{"role": "assistant", "content": [{"type": "compaction", "content": "T" * 1000}]}]},
        {"tools": [{"name": "n", "description": "T" * 1000, "input_schema": {"type": "object"}}]},
        {"tools": [{"name": "n", "input_schema": {"type": "object", "description": "T" * 1000}}]},
        {"output_config": {"format": {"type": "json_schema", "schema": {"description": "T" * 1000}}}},
    ],
)
def test_text_counts_wherever_it_stands(fields):
    base = ask(messages=[]).measures.text_bytes
    one = ask(**{"messages": [], **fields})
    assert 1000 <= one.measures.text_bytes - base < 1400
    assert not one.measures.unbounded


def test_images_are_counted_and_their_data_is_no_text():
    data = {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}
    one = blocks(
        {"type": "image", "source": data},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "image", "source": data}]},
    )
    assert one.measures.images == 3
    assert one.measures.text_bytes < 500
    assert not one.measures.unbounded


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        {"type": "url", "url": "https://example.com/a.pdf"},
        {"type": "of_tomorrow"},
    ],
)
def test_a_document_that_is_no_text_has_no_bound(source):
    assert blocks({"type": "document", "source": source}).measures.unbounded


def test_an_unknown_block_has_no_bound_and_passes(offer):
    block = {"type": "hologram", "rays": [1, 2]}
    one = blocks(block)
    assert one.measures.unbounded
    assert sent(one, offer)["messages"][0]["content"] == [block]


def test_an_image_of_a_form_that_is_not_known_has_no_bound():
    one = blocks({"type": "image", "source": {"type": "of_tomorrow"}})
    assert (one.measures.images, one.measures.unbounded) == (1, True)


def test_a_tool_result_may_be_empty():
    blocks(
        {"type": "tool_result", "tool_use_id": "i"},
        {"type": "tool_result", "tool_use_id": "i", "content": None},
    )


def test_tools_are_counted():
    assert (
        ask(
            tools=[{"name": "a", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]
        ).measures.tools
        == 2
    )


@pytest.mark.parametrize(
    "kind",
    [
        "custom",
        "bash_20250124",
        "text_editor_20250728",
        "computer_20251124",
        "memory_20250818",
        "computer_toolset_20260801",
        "browser_toolset_20260801",
    ],
)
def test_tools_that_the_client_runs_pass(kind):
    tool = {"type": kind, "name": "n", "defer_loading": True}
    one = ask(tools=[tool])
    assert json.loads(bytes(one.fields["tools"])) == [tool]


@pytest.mark.parametrize(
    ("thinking", "reasoning"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, True),
        ({"type": "adaptive"}, True),
        ({"type": "between_tools"}, True),
        ({"type": "disabled"}, False),
        (None, None),
    ],
)
def test_thinking_is_reasoning_unless_disabled(thinking, reasoning):
    assert ask(thinking=thinking).measures.reasoning is reasoning


@pytest.mark.parametrize(
    ("thinking", "bound"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, 2048),
        ({"type": "enabled", "budget_tokens": None}, None),
        ({"type": "enabled"}, None),
        ({"type": "adaptive", "budget_tokens": 2048}, None),
        ({"type": "disabled"}, None),
        (None, None),
    ],
)
def test_only_a_budget_of_enabled_thinking_bounds_it(thinking, bound):
    assert ask(thinking=thinking).measures.thinking == bound


@pytest.mark.parametrize("budget", ["2048", 2048.0, -1, True, 2**31])
def test_a_thinking_budget_that_is_none_is_named(budget):
    assert refused(thinking={"type": "enabled", "budget_tokens": budget}).param == "thinking.budget_tokens"


def test_a_lowered_bound_on_thinking_takes_the_place_of_the_callers_and_nothing_else_changes(offer):
    one = ask(max_tokens=32_000, thinking={"type": "enabled", "budget_tokens": 30_000, "display": "omitted"})
    lowered = sent(one, evolve(offer, output_limit=5000, thinking_limit=4000))
    assert lowered["max_tokens"] == 5000
    assert lowered["thinking"] == {"type": "enabled", "budget_tokens": 4000, "display": "omitted"}
    assert {**lowered, "max_tokens": 32_000, "thinking": json.loads(bytes(one.fields["thinking"]))} == sent(
        one, offer
    )


@pytest.mark.parametrize(("output_limit", "told"), [(None, 1999), (5000, 4000), (4000, 3999)])
def test_the_bound_on_thinking_stays_below_that_on_the_output(offer, output_limit, told):
    one = ask(max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1500})
    lowered = evolve(offer, output_limit=output_limit, thinking_limit=4000)
    assert sent(one, lowered)["thinking"]["budget_tokens"] == told


@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}, {"type": "disabled"}, {"type": "enabled"}])
def test_where_the_caller_has_no_bound_on_thinking_none_is_sent(offer, thinking):
    one = ask(max_tokens=9000) if thinking is None else ask(max_tokens=9000, thinking=thinking)
    body = sent(one, evolve(offer, output_limit=5000, thinking_limit=4000))
    assert body.get("thinking") == thinking


def test_a_count_of_tokens_goes_up_as_it_is(offer):
    thinking = {"type": "enabled", "budget_tokens": 2048}
    one = ask(path=COUNT, thinking=thinking)
    assert sent(one, evolve(offer, output_limit=5000, thinking_limit=4000))["thinking"] == thinking


MARK = {"type": "ephemeral"}
MARK_5M = {"type": "ephemeral", "ttl": "5m"}
MARK_1H = {"type": "ephemeral", "ttl": "1h"}


@pytest.mark.parametrize(("mark", "writes"), [(MARK, "5m"), (MARK_5M, "5m"), (MARK_1H, "1h"), (None, "none")])
@pytest.mark.parametrize(
    "place",
    [
        lambda mark: {"cache_control": mark},
        lambda mark: {"system": [{**TEXT, "cache_control": mark}]},
        lambda mark: {"messages": [{"role": "user", "content": [{**TEXT, "cache_control": mark}]}]},
        lambda mark: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "i",
                            "content": [{**TEXT, "cache_control": mark}],
                        }
                    ],
                }
            ]
        },
        lambda mark: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "url", "url": "https://x.example"},
                            "cache_control": mark,
                        }
                    ],
                }
            ]
        },
        lambda mark: {"tools": [{"name": "n", "input_schema": {}, "cache_control": mark}]},
    ],
)
def test_a_cache_mark_counts_wherever_it_stands(place, mark, writes):
    assert ask(**place(mark)).measures.cache_writes == writes


def test_the_dearest_of_several_cache_marks_counts():
    one = blocks({**TEXT, "cache_control": MARK_1H}, {**TEXT, "cache_control": MARK_5M})
    assert one.measures.cache_writes == "1h"


@pytest.mark.parametrize("lifetime", ["2h", 5, "1H"])
def test_a_lifetime_without_a_price_is_refused(lifetime):
    assert refused(cache_control={"type": "ephemeral", "ttl": lifetime}).param == "cache_control.ttl"


# --- what is refused by name --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("container", "container_1"),
        ("container", {"skills": []}),
        ("mcp_servers", []),
        ("thread", {"type": "create"}),
        ("service_tier", "priority"),
        ("speed", "fast"),
        ("inference_geo", "us"),
        ("fallbacks", [{"model": "other"}]),
        ("fallback_credit_token", "t"),
        ("billing_policy", {"type": "billing_policy"}),
        ("user_profile_id", "u"),
        ("workspace_id", "w"),
        ("compaction", {"type": "summarize"}),
    ],
)
def test_what_has_no_price_or_bound_is_refused_by_name(name, value):
    assert refused(**{name: value}).param == name
    assert name in refused(**{name: value}).message


@pytest.mark.parametrize("name", ["container", "mcp_servers", "speed", "inference_geo", "service_tier"])
def test_null_is_the_same_as_missing(name):
    ask(**{name: None})


@pytest.mark.parametrize(
    "kind",
    [
        "web_search_20250305",
        "web_search_20260318",
        "web_fetch_20250910",
        "code_execution_20250825",
        "tool_search_tool_bm25",
        "tool_search_tool_regex_20251119",
        "advisor_20260301",
        "mcp_toolset",
        "telepathy_20270101",
        "bash_2025",
    ],
)
def test_tools_that_run_at_the_provider_and_unknown_ones_are_refused_by_name(kind):
    failure = refused(tools=[{"name": "a", "input_schema": {}}, {"type": kind, "name": "n"}])
    assert failure.param == "tools[1].type"
    assert kind in failure.message


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "text", "data": "x", "file_id": "file_1"}},
    ],
)
def test_files_at_the_provider_are_refused_by_name(block):
    assert refused(messages=[{"role": "user", "content": [block]}]).param.endswith("source.file_id")
    nested = {"type": "tool_result", "tool_use_id": "i", "content": [block]}
    assert refused(messages=[{"role": "user", "content": [nested]}]).param.endswith("source.file_id")


@pytest.mark.parametrize(
    "block", [{"type": "container_upload", "file_id": "file_1"}, {"type": "hologram", "of": {"file_id": "f"}}]
)
def test_other_ways_to_name_a_file_are_refused(block):
    assert refused(messages=[{"role": "user", "content": [block]}]).param == "messages[0].content[0].type"


def test_a_file_id_within_tool_input_is_the_callers_own_matter():
    blocks({"type": "tool_use", "id": "i", "name": "n", "input": {"file_id": "x"}})


def test_a_tool_that_joins_later_is_checked_like_any_other():
    good = {
        "type": "tool_definition",
        "definition": {"name": "n", "input_schema": {}, "cache_control": MARK_1H},
    }
    one = blocks({"type": "tool_addition", "tool": good})
    assert (one.measures.tools, one.measures.cache_writes) == (1, "1h")
    blocks({"type": "tool_addition", "tool": {"type": "tool_reference", "tool_name": "n"}})
    for tool in (
        {"type": "tool_definition", "definition": {"type": "web_search_20250305", "name": "w"}},
        {"type": "mcp_toolset_reference"},
    ):
        content = [{"type": "tool_addition", "tool": tool}]
        assert "not offered" in refused(messages=[{"role": "user", "content": content}]).message


def test_edits_that_only_clear_pass_and_those_that_sample_do_not(offer):
    clear = {
        "edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]
    }
    assert sent(ask(context_management=clear), offer)["context_management"] == clear
    failure = refused(context_management={"edits": [{"type": "compact_20260112"}]})
    assert failure.param == "context_management.edits[0].type"


def test_a_reference_to_an_earlier_answer_is_refused():
    ask(diagnostics={"previous_message_id": None})
    assert refused(diagnostics={"previous_message_id": "msg_1"}).param == "diagnostics.previous_message_id"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"maxTokens": 5}, "maxTokens"),
        ({"cacheControl": MARK}, "cacheControl"),
        (
            {"messages": [{"role": "user", "content": [{**TEXT, "cacheControl": MARK}]}]},
            "messages[0].content[0].cacheControl",
        ),
        ({"messages": [{"role": "user", "content": "x", "Content": "y"}]}, "messages[0].Content"),
    ],
)
def test_another_spelling_of_a_priced_field_is_refused(fields, param):
    assert refused(**fields).param == param


def test_too_many_messages_and_tools_are_refused():
    limits = RequestLimits(messages_max=2, tools_max=1)
    for fields, param in (
        ({"messages": HELLO * 3}, "messages"),
        ({"messages": HELLO, "tools": [{"name": "n", "input_schema": {}}] * 2}, "tools"),
    ):
        with pytest.raises(Rejected) as rejected:
            read({"model": "m", "max_tokens": 1, **fields}, limits=limits)
        assert rejected.value.param == param


# --- what travels -------------------------------------------------------------------------------------


def test_what_goes_upstream_has_the_models_name_there_and_the_callers_bound(offer):
    body = sent(ask(temperature=0.5, metadata={"user_id": "u"}), offer)
    assert body == {
        "model": "claude-opus-5-5-20261001",
        "max_tokens": 10,
        "messages": HELLO,
        "temperature": 0.5,
        "metadata": {"user_id": "u"},
    }


def test_a_lower_bound_in_force_replaces_the_callers(offer):
    assert sent(ask(), evolve(offer, output_limit=7))["max_tokens"] == 7


def test_values_that_are_not_priced_travel_verbatim(offer):
    body = (
        b'{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"i",'
    )
    body += b'"name":"n","input":{"n": 1.10, "big":12345678901234567890,  "n": 2}}]}],"metadata":{"a" : 1e2}}'
    written = Anthropic(RequestLimits()).write_request(read(body), offer)
    assert b'"input":{"n": 1.10, "big":12345678901234567890,  "n": 2}' in written
    assert b'"metadata":{"a" : 1e2}' in written


def test_of_a_field_that_comes_twice_the_last_is_priced_and_only_it_is_sent(offer):
    one = read(
        b'{"model":"m","max_tokens":1,"max_tokens":9,"messages":[{"role":"user","content":"long text",'
        b'"content":[{"type":"text","text":"gone","text":"kept"}]}]}'
    )
    assert one.measures.output == 9
    body = sent(one, offer)
    assert body["max_tokens"] == 9
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "kept"}]}]
    assert b"gone" not in Anthropic(RequestLimits()).write_request(one, offer)


def test_the_billing_block_of_a_coding_agent_is_forwarded_untouched(offer):
    system = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=abc"}, TEXT]
    assert sent(ask(system=system), offer)["system"] == system


def test_a_tier_of_whatever_is_there_is_sent_as_the_one_that_has_a_price(offer):
    assert sent(ask(service_tier="auto"), offer)["service_tier"] == "standard_only"
    assert sent(ask(service_tier="standard_only"), offer)["service_tier"] == "standard_only"
    assert "service_tier" not in sent(ask(), offer)


def test_what_is_meant_for_the_gateway_is_not_sent(offer):
    body = sent(ask(cache=True, no_cache=False), offer)
    assert not {"cache", "no_cache"} & body.keys()


def test_unknown_fields_pass_or_are_dropped_or_refused(offer):
    body = {"model": "m", "max_tokens": 1, "messages": HELLO, "of_tomorrow": 1}
    assert sent(read(body), offer)["of_tomorrow"] == 1
    assert "of_tomorrow" not in sent(read(body, unknown="drop"), offer)
    with pytest.raises(Rejected):
        read(body, unknown="refuse")


def test_version_and_betas_travel_and_nothing_else():
    headers = {
        "anthropic-version": "2026-10-21",
        "anthropic-beta": "a,b",
        "x-api-key": "secret",
        "x-session-id": "1",
    }
    one = read({"model": "m", "max_tokens": 1, "messages": HELLO}, headers=headers)
    assert one.headers == (("anthropic-version", "2026-10-21"), ("anthropic-beta", "a,b"))


def test_counting_tokens_is_free_and_needs_no_bound(offer):
    one = read({"model": "m", "messages": HELLO, "stream": True}, COUNT)
    assert (one.free, one.stream) == (True, False)
    body = sent(one, evolve(offer, output_limit=7))
    assert "max_tokens" not in body
    assert body["model"] == offer.wire_name


def test_live_cost_is_asked_for_by_header():
    body = {"model": "m", "max_tokens": 1, "messages": HELLO}
    assert read(body, headers={"x-credits-live": "1"}).live_cost
    assert not read(body).live_cost


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "text",
                    "role",
                    "content",
                    "source",
                    "tool",
                    "cache_control",
                    "ttl",
                    "name",
                    "file_id",
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
        st.sampled_from(["messages", "system", "tools", "thinking", "context_management", "max_tokens"]), JSON
    )
)
def test_whatever_comes_is_read_or_refused(fields):
    body = msgspec.json.encode({"model": "m", "max_tokens": 1, "messages": HELLO, **fields})
    try:
        one = read(body)
    except Rejected as rejected:
        assert rejected.kind is Kind.BAD_REQUEST  # noqa: PT017 - either outcome is right
    else:
        assert one.measures.text_bytes >= 0
