import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sandbox.directives import KNOWN, NO_DIRECTIVES, BadDirectiveError, Directives, parse


def test_a_model_without_directives_is_only_a_name():
    assert parse("gpt-4o") == ("gpt-4o", NO_DIRECTIVES)


def test_directives_stand_after_the_at_sign():
    name, told = parse("sandbox-chat@tokens=500,ttft_ms=200,gap_ms=5")
    assert name == "sandbox-chat"
    assert (told.tokens, told.ttft_ms, told.gap_ms) == (500, 200, 5)
    assert told.text == "tokens=500,ttft_ms=200,gap_ms=5"


def test_metadata_is_read_last_and_wins():
    _, told = parse("m@tokens=5,cached=50", "tokens=7")
    assert (told.tokens, told.cached, told.text) == (7, 50, "tokens=5,cached=50,tokens=7")


def test_a_bare_name_is_a_switch_turned_on():
    assert parse("m@bills_on,no_close=0")[1] == Directives(
        bills_on=True, no_close=False, text="bills_on,no_close=0"
    )


def test_two_tools_are_joined_by_a_plus():
    assert parse("m@tool=look+book")[1].tool == ("look", "book")


def test_an_endless_answer_takes_its_time_unless_told_otherwise():
    assert parse("m@endless")[1].gap_ms == 10
    assert parse("m@endless,gap_ms=0")[1].gap_ms == 0


def test_an_unknown_directive_is_refused_with_all_that_there_are():
    with pytest.raises(BadDirectiveError) as caught:
        parse("m@tokns=5")
    assert "'tokns'" in str(caught.value)
    assert all(name in str(caught.value) for name in KNOWN)


@pytest.mark.parametrize(
    "text",
    [
        "tokens=-1",
        "tokens=1.5",
        "tokens=1000001",
        "tokens=",
        "tokens=٣",
        "tokens=1e3",
        "status=200",
        "status=600",
        "cached=101",
        "bills_on=maybe",
        "usage=lots",
        "tool=",
        "tool=a+",
        "fail_key",
        "tokens",
        "usage",
        "frame_tokens=0",
        "batch=0",
        "tokens=99999999999999999999",
        "=5",
        "x" * 600,
        "tokens=1," + "," * 600,
    ],
)
def test_what_makes_no_sense_is_refused(text):
    with pytest.raises(BadDirectiveError):
        parse(f"m@{text}")


def test_empty_parts_and_spaces_are_nothing():
    assert parse("m@ tokens=1 ,, gap_ms=2,")[1].gap_ms == 2
    assert parse("m@") == ("m", NO_DIRECTIVES)


def test_forgiveness_takes_away_every_failure_and_nothing_else():
    _, told = parse(
        "m@status=429,fail_at=1,cut_at=2,stall_at=3,silent,overload_in_prelude,retry_after=5,tokens=9,times=1"
    )
    assert told.fails
    forgiven = told.forgiven()
    assert not forgiven.fails
    assert (forgiven.tokens, forgiven.text) == (9, told.text)


@given(st.text(max_size=80), st.none() | st.text(max_size=80))
def test_any_string_is_read_or_refused(model, metadata):
    try:
        name, told = parse(model, metadata)
    except BadDirectiveError:
        return
    assert name == model.partition("@")[0]
    assert isinstance(told, Directives)


def test_every_directive_has_a_sentence():
    assert all(sentence and not sentence.endswith(".") for _, sentence in KNOWN.values())
