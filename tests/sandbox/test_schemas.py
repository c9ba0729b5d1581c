import itertools

from proxy.sandbox.schemas import sample


def words():
    return itertools.cycle([" river", " stone"])


def test_an_object_gets_all_its_properties_by_type():
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 3},
            "share": {"type": "number"},
            "deep": {"type": ["boolean", "null"]},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
            "at": {"type": "string", "format": "date"},
            "kind": {"const": "x"},
            "nothing": {"type": "null"},
        },
    }
    assert sample(schema, words()) == {
        "city": "river",
        "days": 3,
        "share": 7,
        "deep": True,
        "tags": ["a", "a"],
        "at": "2026-01-02",
        "kind": "x",
        "nothing": None,
    }


def test_googles_upper_case_types_are_understood():
    assert sample({"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}}, words()) == {"n": 7}


def test_references_and_choices_are_followed():
    schema = {
        "$defs": {"place": {"type": "string"}},
        "properties": {
            "a": {"$ref": "#/$defs/place"},
            "b": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
    }
    assert sample(schema, words()) == {"a": "river", "b": 7}


def test_a_schema_that_refers_to_itself_comes_to_an_end():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    value, depth = sample(schema, words()), 0
    while value is not None:
        value, depth = value["next"], depth + 1
    assert depth < 20


def test_what_is_no_schema_is_null():
    assert sample(None, words()) is None
    assert sample({"$ref": "elsewhere.json"}, words()) is None
    assert sample({"$ref": "#/no/where"}, words()) is None
    assert sample({"anyOf": [], "type": []}, words()) is None


def test_no_schema_makes_an_absurd_answer():
    schema = {"properties": {str(number): {"type": "integer"} for number in range(1000)}}
    assert len(sample(schema, words())) == 64
    assert len(sample({"type": "array", "minItems": 10**9, "items": {"type": "boolean"}}, words())) == 64
