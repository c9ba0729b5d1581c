import json
import time
from contextlib import suppress

import msgspec
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import RequestLimits
from proxy.dialects import body as read
from proxy.dialects.body import FieldLists, read_object
from proxy.errors import Kind, Rejected

LIMITS = RequestLimits()
SMALL = evolve(LIMITS, body_bytes_max=2048, depth_max=8, items_max=20)


def refused(body, limits=LIMITS):
    with pytest.raises(Rejected) as caught:
        read_object(body, limits)
    return caught.value


def plain(fields):
    return {name: msgspec.json.decode(raw) for name, raw in fields.items()}


def test_an_object_is_taken_apart_one_level_and_its_values_stay_as_they_stand():
    fields = read_object(b' {"a" : [1, 2] ,"b":{"c": 1.50}} ', LIMITS)
    assert {name: bytes(raw) for name, raw in fields.items()} == {"a": b"[1, 2]", "b": b'{"c": 1.50}'}


def test_of_a_name_that_comes_twice_only_the_last_is_kept_however_it_is_written():
    assert plain(read_object(rb'{"max_tokens":1,"max\u005ftokens":2}', LIMITS)) == {"max_tokens": 2}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"[1]",
        b'"text"',
        b"nul",
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":NaN}',
        b'{"a":{"b":NaN}}',
        b'{"a":[Infinity]}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":1e999}',
        b'{"a":{"b":[1e999]}}',
        b'{"a":[1.5E+400]}',
        b'{"a":-1e999}',
        b'{"a":1.2.3e400}',
        b'{"a":[1e300,1e308,1e309]}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":"\xff"}',
        b'{"a":"\xc3"}',
        b'{"\xff":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\x"}',
        b'{"a":"line\nbreak"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' + b"[" * 10_000,
        b"]" * 10_000,
        b'{"a":[1,2}}',
    ],
)
def test_what_is_no_sound_json_object_is_a_400_with_a_sentence(body):
    rejected = refused(body)
    assert rejected.kind is Kind.BAD_REQUEST
    assert rejected.status == 400
    assert rejected.message.endswith(".")


def test_a_body_above_the_limit_is_a_413():
    assert read_object(b'{"a":"%b"}' % (b"x" * 2040), SMALL)
    assert refused(b'{"a":"%b"}' % (b"x" * 2041), SMALL).status == 413


def test_depth_is_bounded_exactly():
    for depth in (7, 8):
        body = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
        assert read_object(body, SMALL)
    assert "deeper than 8" in refused(b'{"a":' + b"[" * 8 + b"]" * 8 + b"}", SMALL).message


def test_items_are_bounded_over_the_whole_body():
    assert read_object(b'{"a":[' + b",".join([b"1"] * 18) + b"]}", SMALL)
    assert "20 items" in refused(b'{"a":[' + b",".join([b"1"] * 20) + b"]}", SMALL).message
    assert "20 items" in refused(b'{"a":[' + b",".join([b"{}"] * 11) + b"]}", SMALL).message
    assert "20 items" in refused(b'{"a":[' + b",".join([b'""'] * 50) + b"]}", SMALL).message


@pytest.mark.parametrize(
    "text",
    ["[" * 500, "{" * 500, "," * 500, '"' * 300, "\\" * 300, '\\"[' * 100, '"],[{"' * 80, '\\\\"' * 90],
)
def test_brackets_commas_and_quotes_inside_strings_do_not_count(text):
    body = json.dumps({text: [text]}).encode()
    assert plain(read_object(body, evolve(SMALL, body_bytes_max=10_000))) == {text: [text]}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]",:\\0eE9.u ', max_size=40).map(str.encode))
def test_no_bytes_at_all_make_anything_but_fields_or_a_400(body):
    with suppress(Rejected):
        assert plain(read_object(body, LIMITS)) == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"{}," * 2_000_000 + b"{}]}",
        b'{"a":[' + b'"",' * 2_000_000 + b'""]}',
        b'{"a":"' + b'\\n\\"x[{' * 900_000 + b'"}',
        b'{"a":' + b"[" * 3_000_000 + b"]" * 3_000_000 + b"}",
        b'{"a":' + b"9" * 6_000_000 + b"}",
        b'{"a":[' + (b"9" * 299 + b" ") * 20_000 + b"1e400]}",
        b"[" * 190_000,
        b" " * 6_000_000,
        b"e" * 6_000_000,
        b"\\" * 6_000_000,
        b'"' * 6_000_000,
    ],
    ids=[
        "objects",
        "strings",
        "escapes",
        "deep",
        "digits",
        "runs",
        "open",
        "spaces",
        "letters",
        "slashes",
        "quotes",
    ],
)
def test_six_megabytes_meant_to_stall_are_looked_at_in_a_fraction_of_a_second(body):
    began = time.process_time()
    with suppress(Rejected):
        read_object(body, LIMITS)
    assert time.process_time() - began < 1.0


def fields_of(**values):
    return {name: read.encode(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("getter", "value", "expected"),
    [
        (read.integer, 3, 3),
        (read.integer, 2**31 - 1, 2**31 - 1),
        (read.boolean, True, True),
        (read.boolean, False, False),
        (read.string, "é", "é"),
        (read.strings, ["a"], ["a"]),
        (read.string_map, {"a": "b"}, {"a": "b"}),
        (lambda fields, name, at="": read.number(fields, name, at, low=0, high=2), 1, 1.0),
    ],
)
def test_a_getter_reads_its_type_and_takes_null_for_missing(getter, value, expected):
    assert getter(fields_of(x=value), "x") == expected
    assert getter(fields_of(x=None), "x") is None
    assert getter({}, "x") is None


@pytest.mark.parametrize(
    ("getter", "bad"),
    [
        (read.integer, [-1, 2**31, 1.0, 1.5, "1", True, [], {}, 10**30]),
        (read.boolean, [0, 1, "true", [], {}]),
        (read.string, [1, True, [], {}]),
        (read.strings, ["a", [1], [None], {}, 1]),
        (read.string_map, [{"a": 1}, ["a"], "a", {"a": None}]),
        (read.array, ["a", 1, {}]),
        (read.objects, [{}, [1], [[]], "a"]),
        (read.obj, [[], "a", 1]),
        (lambda fields, name, at: read.number(fields, name, at, low=0, high=2), [-0.1, 2.1, "1", True, []]),
    ],
)
def test_a_getter_names_the_field_that_has_the_wrong_type_or_range(getter, bad):
    for value in bad:
        with pytest.raises(Rejected) as caught:
            getter(fields_of(x=value), "x", "messages[2].")
        assert caught.value.status == 400
        assert caught.value.param.startswith("messages[2].x")
        assert caught.value.param in caught.value.message


def test_a_number_that_overflows_only_where_it_is_decoded_is_a_400_too():
    with pytest.raises(Rejected):
        read.number({"x": msgspec.Raw(b"1e999")}, "x", low=0, high=2)


def test_lengths_of_strings_and_arrays_are_bounded():
    with pytest.raises(Rejected, match="longer than 3 bytes"):
        read.string(fields_of(x="ééé"), "x", bytes_max=3)
    with pytest.raises(Rejected, match="more than 1"):
        read.objects(fields_of(x=[{}, {}]), "x", items_max=1)


def test_an_element_at_fault_is_named_by_its_index():
    with pytest.raises(Rejected) as caught:
        read.objects(fields_of(x=[{}, 1]), "x")
    assert caught.value.param == "x[1]"


def test_what_is_required_must_be_there():
    assert read.required(0, "x") == 0
    with pytest.raises(Rejected, match="x is required"):
        read.required(None, "x")


@given(st.text(max_size=30), st.booleans())
def test_the_size_of_a_text_is_that_of_its_utf8(text, ascii_only):
    raw = msgspec.Raw(json.dumps(text, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
    try:
        expected = len(text.encode())
    except UnicodeEncodeError:
        return
    assert read.text_size(raw, "x") == expected
    assert read.size(raw) >= expected


def test_a_short_value_is_shown_in_a_complaint_and_a_long_one_is_not():
    with pytest.raises(Rejected, match="not -5"):
        read.integer(fields_of(x=-5), "x")
    with pytest.raises(Rejected) as caught:
        read.integer({"x": msgspec.Raw(b"9" * 250)}, "x")
    assert len(caught.value.message) < 120


LISTS = FieldLists(
    priced=("max_tokens", "model"), known=("top_p",), ours=("cache",), forbidden={"service_tier": "no price."}
)
CAMEL = FieldLists(
    priced=("maxOutputTokens",), known=("topP",), forbidden={"cachedContent": "x."}, either_spelling=True
)


def test_known_fields_pass_ours_are_stripped_and_forbidden_nulls_are_not_sent():
    fields = fields_of(model="m", max_tokens=1, top_p=1, cache=True, service_tier=None)
    assert LISTS.admit(fields).keys() == {"model", "max_tokens", "top_p"}


def test_a_forbidden_field_is_refused_by_name_and_reason():
    with pytest.raises(Rejected, match="service_tier is not offered: no price") as caught:
        LISTS.admit(fields_of(service_tier="flex"))
    assert caught.value.param == "service_tier"


@pytest.mark.parametrize(
    "names",
    [("max_tokens", "maxTokens"), ("maxTokens", "max_tokens"), ("top_p", "topP"), ("foo_bar", "fooBar")],
)
def test_two_spellings_of_one_field_are_refused_even_where_neither_is_known(names):
    with pytest.raises(Rejected):
        LISTS.admit({name: read.encode(1) for name in names})


@pytest.mark.parametrize("name", ["maxTokens", "Max_Tokens", "MODEL", "serviceTier", "Cache"])
def test_a_wrong_spelling_of_a_field_that_decides_something_is_refused_alone(name):
    with pytest.raises(Rejected, match="it is spelled") as caught:
        LISTS.admit({name: read.encode(1)})
    assert caught.value.param == name


@pytest.mark.parametrize(("policy", "kept"), [("pass", {"mystery", "topP"}), ("drop", set())])
def test_unknown_fields_pass_or_are_dropped(policy, kept):
    assert LISTS.admit(fields_of(mystery=1, topP=1), policy).keys() == kept


def test_unknown_fields_are_refused_where_the_operator_says_so():
    with pytest.raises(Rejected, match="mystery"):
        LISTS.admit(fields_of(model="m", mystery=1), "refuse", "a.")


def test_either_spelling_is_taken_where_the_dialect_has_two_and_sent_as_one():
    assert CAMEL.admit(fields_of(max_output_tokens=5, top_p=1)).keys() == {"maxOutputTokens", "topP"}
    assert CAMEL.admit(fields_of(maxOutputTokens=5)).keys() == {"maxOutputTokens"}
    for names in (("maxOutputTokens", "max_output_tokens"), ("MaxOutputTokens",), ("cached_content",)):
        with pytest.raises(Rejected):
            CAMEL.admit({name: read.encode(1) for name in names})


def test_types_of_what_passes_through_are_checked_too():
    read.check_types(fields_of(a=True, b=1), {"a": read.boolean})
    with pytest.raises(Rejected):
        read.check_types(fields_of(a="yes"), {"a": read.boolean})
