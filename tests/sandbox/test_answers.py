import itertools
import json

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.usage import Usage
from proxy.sandbox.answers import WORDS, Words, answer
from proxy.sandbox.directives import Directives
from proxy.sandbox.wire import Asked, Refused, Tool

LOOK = Tool(
    "look", {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
)
BOOK = Tool("book", {"type": "object", "properties": {"room": {"type": "string"}}})


def asked(told=None, **fields):
    return evolve(
        Asked(dialect="openai_chat", model="m", directives=told or Directives(), seed=7, input_tokens=100),
        **fields,
    )


def test_the_same_seed_says_the_same():
    assert list(Words(5, 40)) == list(Words(5, 40))
    assert list(Words(5, 40)) != list(Words(6, 40))
    assert list(itertools.islice(Words(5, None), 40)) == list(Words(5, 40))


def test_text_is_words_of_the_list_in_sentences():
    text = "".join(Words(5, 24))
    assert len(text.split()) == 24
    assert all(word.strip(".").lower() in WORDS for word in text.split())
    assert text.count(".") == 2


def test_one_piece_of_text_is_one_token():
    said = answer(asked(Directives(tokens=9)))
    assert len(list(said.choices[0].text)) == said.usage.output == 9
    assert said.choices[0].finish == "stop"


def test_an_answer_is_cut_at_its_bound():
    said = answer(asked(Directives(tokens=9), output_max=4))
    assert (len(list(said.choices[0].text)), said.choices[0].finish, said.usage.output) == (4, "length", 4)


def test_an_answer_that_just_fits_is_not_cut():
    assert answer(asked(Directives(tokens=9), output_max=9)).choices[0].finish == "stop"


def test_reasoning_takes_its_share_of_the_bound_first():
    said = answer(asked(Directives(tokens=9, reasoning=6), output_max=10))
    assert (said.choices[0].reasoning, said.choices[0].text_tokens, said.usage.output) == (6, 4, 10)
    said = answer(asked(Directives(tokens=9, reasoning=60), output_max=10))
    assert (said.usage.reasoning, said.usage.output, said.choices[0].finish) == (10, 10, "length")


def test_reasoning_that_the_request_turns_on_is_there_without_a_directive():
    assert answer(asked(reasoning=True)).usage.reasoning > 0
    assert answer(asked()).usage.reasoning == 0
    assert answer(asked(Directives(reasoning=0), reasoning=True)).usage.reasoning == 0


def test_every_choice_is_billed_and_they_differ():
    said = answer(asked(Directives(tokens=9), choices=3))
    assert said.usage.output == 27
    assert len({choice.content for choice in said.choices}) == 3


def test_a_stop_sequence_ends_the_text_before_it_and_its_tokens_count():
    whole = list(Words(7, 9))
    stop = (whole[3] + whole[4]).strip()
    said = answer(asked(Directives(tokens=9), stops=("nowhere", stop)))
    choice = said.choices[0]
    assert (choice.finish, choice.stop) == ("stopped", stop)
    assert choice.content == "".join(whole[:3]) + " "
    assert said.usage.output == choice.tokens == 5
    assert len(list(choice.text)) == 5


def test_a_stop_sequence_that_does_not_occur_changes_nothing():
    assert answer(asked(stops=("%",))).choices[0].finish == "stop"


def test_a_forced_tool_is_called_with_arguments_that_fit_its_schema():
    said = answer(asked(tools=(LOOK, BOOK), forced=("book",)))
    choice = said.choices[0]
    assert choice.finish == "tools"
    assert [call.name for call in choice.tools] == ["book"]
    assert set(json.loads(choice.tools[0].arguments)) == {"room"}
    assert said.usage.output == len(choice.tools[0].pieces)


def test_tools_that_are_not_forced_are_not_called_unless_told():
    assert answer(asked(tools=(LOOK, BOOK))).choices[0].tools == ()
    told = Directives(tool=("book", "look"))
    assert [call.name for call in answer(asked(told, tools=(LOOK, BOOK))).choices[0].tools] == [
        "book",
        "look",
    ]


def test_once_the_result_is_there_the_answer_is_text():
    told = Directives(tool=("look",))
    said = answer(asked(told, tools=(LOOK,), forced=("look",), answered=True))
    assert said.choices[0].tools == ()
    assert said.choices[0].text_tokens > 0


def test_a_tool_that_is_not_declared_cannot_be_called():
    with pytest.raises(Refused, match="declares: look"):
        answer(asked(Directives(tool=("cook",)), tools=(LOOK,)))


def test_tokens_beside_a_tool_are_text_before_the_call():
    choice = answer(asked(Directives(tool=("look",), tokens=3), tools=(LOOK,))).choices[0]
    assert (choice.text_tokens, len(choice.tools)) == (3, 1)


def test_a_tool_call_is_broken_off_at_the_bound():
    told = Directives(tool=("look", "book"))
    said = answer(asked(told, tools=(LOOK, BOOK), output_max=2))
    assert said.choices[0].finish == "length"
    assert [len(call.pieces) for call in said.choices[0].tools] == [2]


def test_a_structured_answer_is_json_that_fits():
    said = answer(asked(structured=True, schema=LOOK.schema))
    assert set(json.loads(said.choices[0].content)) == {"city", "days"}
    assert isinstance(json.loads(answer(asked(structured=True)).choices[0].content), dict)


@pytest.mark.parametrize(
    ("told", "marks", "expected"),
    [
        ({}, {}, Usage(input=100)),
        ({"cached": 60}, {}, Usage(input=40, cache_read=60)),
        ({}, {"marked_5m": 80}, Usage(input=20, cache_write_5m=80)),
        ({}, {"marked_5m": 80, "marked_1h": 50}, Usage(input=20, cache_write_5m=30, cache_write_1h=50)),
        ({}, {"marked_5m": 50, "marked_1h": 80}, Usage(input=20, cache_write_1h=80)),
        (
            {"cached": 60},
            {"marked_5m": 80, "marked_1h": 50},
            Usage(input=20, cache_read=60, cache_write_5m=20),
        ),
        ({"cache_write": 30}, {}, Usage(input=70, cache_write_5m=30)),
        ({"cached": 50, "cache_write": 80}, {}, Usage(cache_read=50, cache_write_5m=50)),
        (
            {"cache_write_1h": 30, "cache_write": 20},
            {},
            Usage(input=50, cache_write_5m=20, cache_write_1h=30),
        ),
        ({"cache_write_1h": 30}, {"marked_5m": 90}, Usage(input=70, cache_write_1h=30)),
    ],
)
def test_input_splits_into_what_was_read_written_and_neither(told, marks, expected):
    assert answer(asked(Directives(**told), **marks)).read == expected


@settings(max_examples=200)
@given(
    st.integers(0, 100),
    st.none() | st.integers(0, 100),
    st.none() | st.integers(0, 100),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(1, 500),
)
def test_the_parts_of_the_input_are_always_the_whole(cached, five, hour, mark_5m, mark_1h, tokens):
    told = Directives(cached=cached, cache_write=five, cache_write_1h=hour)
    marks = {"marked_5m": min(mark_5m, tokens), "marked_1h": min(mark_1h, tokens)}
    read = answer(asked(told, input_tokens=tokens, **marks)).read
    assert read.context == tokens


@settings(max_examples=200)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.none() | st.integers(1, 80),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([(), ("a",), ("ve",), ("zzz", " s")]),
)
def test_no_answer_is_longer_than_its_bound_and_every_token_is_billed(
    tokens,
    reasoning,
    bound,
    choices,
    tools,
    stops,
):
    told = Directives(tokens=tokens, reasoning=reasoning, tool=("look",) if tools else ())
    said = answer(asked(told, tools=(LOOK,), output_max=bound, choices=choices, stops=stops))
    for choice in said.choices:
        assert bound is None or choice.tokens <= bound
        assert len(list(choice.text)) == choice.text_tokens
        assert len(list(choice.thought)) == choice.reasoning
    assert said.usage.output == sum(choice.tokens for choice in said.choices)


def test_a_double_report_doubles_everything():
    said = answer(asked(Directives(tokens=9, cached=50, reasoning=3, usage="double")))
    assert said.usage == Usage(input=100, cache_read=100, output=24, reasoning=6)
    assert said.used_after(5) == Usage(input=100, cache_read=100, output=10, reasoning=6)


def test_an_excessive_report_exceeds_twice_the_bound():
    assert answer(asked(Directives(tokens=9, usage="over"), output_max=50)).usage.output == 101


def test_what_is_used_grows_with_the_tokens():
    said = answer(asked(Directives(tokens=9, reasoning=4)))
    assert said.used_after(0) == Usage(input=100)
    assert said.used_after(3) == Usage(input=100, output=3, reasoning=3)
    assert said.used_after(13) == said.usage
