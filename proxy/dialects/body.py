"""Read a request body that nobody has checked yet: guard it, take it apart, say what is wrong with it.

Three rules that all dialects share:

1. **Measure before decoding.** A decoder recurses and allocates as the body tells it to, so size, depth and
   number of items are bounded first, on the bytes, in a handful of passes that each run at the speed of C.
   What stands inside a string does not count: code-heavy prompts are full of brackets.
2. **Price what is sent, send what is priced.** Objects that lead to a priced or bounded field are taken apart
   into `{name: raw JSON}` (of a name that comes twice the last wins, and only it is sent on) and are encoded
   again from there. A second spelling of a field (`maxTokens` beside `max_tokens`) is refused: a lax provider
   might honour the one that we did not price. Everything else travels verbatim, as raw JSON.
3. **Every complaint names the field**, in a sentence for the person who sent it, and in `param` for their
   program.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, TypeVar

import msgspec
from attrs import field, frozen

from proxy.dialects.guard import BodyLimits, bad, guard
from proxy.types import Headers

T = TypeVar("T")

Object = dict[str, msgspec.Raw]
"""A JSON object taken apart one level deep: names decoded, values as they stand."""

UnknownFields = Literal["pass", "drop", "refuse"]

INT_MAX: Final = 2**31 - 1
"""No count that a request states is larger: what the narrowest provider stores them in."""

NAME_BYTES_SHOWN: Final = 64
"""So much of a caller's own field name or value is repeated in a message."""

# Made once: to make one costs as much as to decode a small object with it.
OBJECT: Final = msgspec.json.Decoder(Object)
RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
TEXT: Final = msgspec.json.Decoder(str)
_BOOLEAN: Final = msgspec.json.Decoder(bool)
_INTEGER: Final = msgspec.json.Decoder(int)
_NUMBER: Final = msgspec.json.Decoder(float)
_TEXTS: Final = msgspec.json.Decoder(list[str])
_TEXT_MAP: Final = msgspec.json.Decoder(dict[str, str])
_ENCODER: Final = msgspec.json.Encoder()
_NULL: Final = msgspec.Raw(b"null")


# --- taking apart ---------------------------------------------------------------------------------------


def read_object(body: bytes, limits: BodyLimits) -> Object:
    """Guard a body and take its outermost object apart.

    Returns:
        Its fields in order; of a name that comes twice the last, in the place of the first.

    Raises:
        Rejected: 413 when too large; 400 when too deep or full, or not one JSON object in valid UTF-8.
    """
    guard(body, limits)
    try:
        return OBJECT.decode(body)
    except msgspec.ValidationError:
        raise bad("The body is not a JSON object.") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if not body.strip():
            raise bad("The body is empty; a JSON object was expected.") from None
        raise bad(f"The body is not valid JSON{_where(error)}.") from None


def _where(error: Exception) -> str:
    """What the decoder says, where that helps; its words for a lone surrogate and for nesting do not."""
    text = str(error)
    if text.startswith("JSON is malformed: "):
        return ": " + text.removeprefix("JSON is malformed: ")
    return ": it ends too early, or a string holds half of a surrogate pair" if "truncated" in text else ""


def decode(raw: msgspec.Raw, decoder: msgspec.json.Decoder[T], param: str, expected: str) -> T:
    """Decode one raw value as one type.

    Args:
        raw: the value.
        decoder: of what msgspec shall make of it.
        param: the field's full name, for the complaint.
        expected: what it should have been, in words: "an integer".

    Raises:
        Rejected: 400, naming the field.
    """
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise bad(f"{param} must be {expected}, not {shown(raw)}.", param) from None


def encode(value: object) -> msgspec.Raw:
    """Encode a value that we made or took apart; raw values inside travel verbatim."""
    return msgspec.Raw(_ENCODER.encode(value))


def write(fields: Mapping[str, object]) -> bytes:
    """Write a body that goes upstream; raw values travel verbatim."""
    return _ENCODER.encode(fields)


def shown(raw: msgspec.Raw) -> str:
    """A value as a complaint shows it: its kind, and itself where it is short."""
    start = bytes(memoryview(raw)[: NAME_BYTES_SHOWN + 1])
    kind = {b"{": "an object", b"[": "an array", b'"': "a string", b"n": "null"}.get(start[:1])
    if kind is not None:
        return kind
    return start.decode("ascii", "replace") if len(start) <= NAME_BYTES_SHOWN else "such a number"


def size(raw: msgspec.Raw) -> int:
    """Bytes of a raw value as it stands: never fewer than the UTF-8 bytes of all text in it."""
    return len(memoryview(raw))


def is_null(raw: msgspec.Raw | None) -> bool:
    """Whether a field is missing or null, which are the same to every provider."""
    return raw is None or raw == _NULL


def text_size(raw: msgspec.Raw, param: str) -> int:
    """UTF-8 bytes of a raw string once its escapes are undone.

    Raises:
        Rejected: 400, if it is no string.
    """
    view = memoryview(raw)
    if is_string(raw) and b"\\" not in bytes(view):
        return len(view) - 2
    return utf8_size(decode(raw, TEXT, param, "a string"))


def utf8_size(text: str) -> int:
    """UTF-8 bytes of a string."""
    return len(text) if text.isascii() else len(text.encode())


def texts_size(texts: list[str]) -> int:
    """UTF-8 bytes of several strings together."""
    joined = "".join(texts)
    return len(joined) if joined.isascii() else sum(map(utf8_size, texts))


def is_string(raw: msgspec.Raw) -> bool:
    """Whether a raw value is a string."""
    return memoryview(raw)[0] == ord(b'"')


def is_array(raw: msgspec.Raw) -> bool:
    """Whether a raw value is an array."""
    return memoryview(raw)[0] == ord(b"[")


def is_object(raw: msgspec.Raw) -> bool:
    """Whether a raw value is an object."""
    return memoryview(raw)[0] == ord(b"{")


# --- headers --------------------------------------------------------------------------------------------


def wants_live_cost(headers: Mapping[str, str]) -> bool:
    """Whether the caller asks for the cost so far in the stream."""
    said = headers.get("x-credits-live")
    return said is not None and said.strip().lower() in ("1", "true")


def travelling(headers: Mapping[str, str], names: Iterable[str]) -> Headers:
    """Those of the caller's headers that go upstream."""
    found: list[tuple[str, str]] = []
    for name in names:
        if name in headers:
            found.append((name, headers[name]))  # noqa: PERF401 - most often there are none
    return tuple(found)


# --- one field ------------------------------------------------------------------------------------------
#
# All take the object, the field's name, and `at`: what stands before the name in a complaint
# ("messages[2]."). Missing and null are `None`.


def integer(fields: Object, name: str, at: str = "", *, low: int = 0, high: int = INT_MAX) -> int | None:
    """Read an integer of a range.

    Raises:
        Rejected: 400, if it is none (`1.0`, `"1"` and `true` are not) or out of range.
    """
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    number = decode(raw, _INTEGER, f"{at}{name}", "an integer")
    if not low <= number <= high:
        raise bad(f"{at}{name} must be between {low} and {high}, not {shown(raw)}.", f"{at}{name}")
    return number


def number(fields: Object, name: str, at: str = "", *, low: float, high: float) -> float | None:
    """Read a number of a range.

    Raises:
        Rejected: 400, if it is none or out of range.
    """
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    value = decode(raw, _NUMBER, f"{at}{name}", "a number")
    if not low <= value <= high:
        raise bad(f"{at}{name} must be between {low:g} and {high:g}, not {shown(raw)}.", f"{at}{name}")
    return value


def boolean(fields: Object, name: str, at: str = "") -> bool | None:
    """Read true or false.

    Raises:
        Rejected: 400, if it is neither.
    """
    raw = fields.get(name)
    return None if raw is None or is_null(raw) else decode(raw, _BOOLEAN, f"{at}{name}", "true or false")


def string(fields: Object, name: str, at: str = "", *, bytes_max: int | None = None) -> str | None:
    """Read a string.

    Raises:
        Rejected: 400, if it is none, or longer than `bytes_max`.
    """
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    text = decode(raw, TEXT, f"{at}{name}", "a string")
    if bytes_max is not None and utf8_size(text) > bytes_max:
        raise bad(f"{at}{name} must not be longer than {bytes_max} bytes.", f"{at}{name}")
    return text


def strings(fields: Object, name: str, at: str = "") -> list[str] | None:
    """Read an array of strings.

    Raises:
        Rejected: 400, if it is none.
    """
    raw = fields.get(name)
    return None if raw is None or is_null(raw) else decode(raw, _TEXTS, f"{at}{name}", "an array of strings")


def string_map(fields: Object, name: str, at: str = "") -> dict[str, str] | None:
    """Read an object whose values are strings.

    Raises:
        Rejected: 400, if it is none.
    """
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    return decode(raw, _TEXT_MAP, f"{at}{name}", "an object of strings")


def array(
    fields: Object, name: str, at: str = "", *, items_max: int | None = None
) -> list[msgspec.Raw] | None:
    """Read an array, its elements raw.

    Raises:
        Rejected: 400, if it is none, or holds more than `items_max`.
    """
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    items = decode(raw, RAWS, f"{at}{name}", "an array")
    if items_max is not None and len(items) > items_max:
        raise bad(
            f"{at}{name} must not hold more than {items_max} elements, not {len(items)}.", f"{at}{name}"
        )
    return items


def obj(fields: Object, name: str, at: str = "") -> Object | None:
    """Read an object, taken apart one level.

    Raises:
        Rejected: 400, if it is none.
    """
    raw = fields.get(name)
    return None if raw is None or is_null(raw) else as_object(raw, f"{at}{name}")


def objects(fields: Object, name: str, at: str = "", *, items_max: int | None = None) -> list[Object] | None:
    """Read an array of objects, each taken apart one level.

    Raises:
        Rejected: 400, if it is none, or holds more than `items_max`; an element at fault is named.
    """
    items = array(fields, name, at, items_max=items_max)
    if items is None:
        return None
    return [as_object(item, f"{at}{name}[{index}]") for index, item in enumerate(items)]


def as_object(raw: msgspec.Raw, param: str) -> Object:
    """Take an object apart one level.

    Raises:
        Rejected: 400, if it is none.
    """
    return decode(raw, OBJECT, param, "an object")


def required(value: T | None, param: str) -> T:
    """The value of a field that must be there.

    Raises:
        Rejected: 400, if it is missing or null.
    """
    if value is None:
        raise bad(f"{param} is required.", param)
    return value


# --- names ----------------------------------------------------------------------------------------------


def fold(name: str) -> str:
    """What all spellings of a name have in common: `max_tokens`, `maxTokens` and `MAXTOKENS` are one.

    >>> fold("max_completion_tokens") == fold("maxCompletionTokens")
    True
    """
    return name.replace("_", "").lower()


def snake(name: str) -> str:
    """A name in lower case with underscores.

    >>> snake("maxOutputTokens"), snake("model")
    ('max_output_tokens', 'model')
    """
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@frozen
class FieldLists:
    """What a dialect knows of the fields of one kind of object, as data.

    Attributes:
        priced: read by us before sending, because they decide what a request can cost. Of these, a wrong
            spelling is refused even where it stands alone.
        known: of no effect on the bill; they pass.
        ours: meant for the gateway; stripped.
        forbidden: name to the reason why it is refused until it can be priced, bounded or bound to a wallet.
            Null is the same as missing, and is not sent on.
        either_spelling: `snake_case` is another accepted spelling of a camelCase name (Gemini's JSON is like
            that); what is sent has the spelling of this list.
    """

    priced: frozenset[str] = field(default=frozenset(), converter=_names)
    known: frozenset[str] = field(default=frozenset(), converter=_names)
    ours: frozenset[str] = field(default=frozenset(), converter=_names)
    forbidden: Mapping[str, str] = field(factory=dict)
    either_spelling: bool = False
    _plain: frozenset[str] = field(init=False, repr=False, eq=False)
    _by_fold: Mapping[str, str] = field(init=False, repr=False, eq=False)

    @_plain.default
    def _plain_default(self) -> frozenset[str]:
        return self.priced | self.known

    @_by_fold.default
    def _by_fold_default(self) -> dict[str, str]:
        return {fold(name): name for name in (*self.known, *self.forbidden, *self.ours, *self.priced)}

    def admit(self, fields: Object, unknown: str = "pass", at: str = "") -> Object:
        """Check the names of an object and give the fields that may travel, in canonical spelling.

        Args:
            fields: the object.
            unknown: what to do with names on no list: `pass`, `drop` or `refuse`.
            at: what stands before a name in a complaint (`"messages[2]."`).

        Raises:
            Rejected: 400, for a forbidden field, a wrong or second spelling, or an unknown name if told so.
        """
        if fields.keys() <= self._plain:  # no two of our own names fold to one
            return fields
        admitted: Object = {}
        seen: dict[str, str] = {}
        for name, raw in fields.items():
            folded = fold(name)
            if folded in seen:
                raise bad(f"{at}{name} and {at}{seen[folded]} are two spellings of one field.", f"{at}{name}")
            seen[folded] = name
            canonical = self._canonical(name, folded, at)
            if canonical in self.forbidden:
                if not is_null(raw):
                    raise bad(f"{at}{name} is not offered: {self.forbidden[canonical]}", f"{at}{name}")
            elif canonical in self.ours:
                pass
            elif canonical in self._plain or unknown == "pass":
                admitted[canonical] = raw
            elif unknown == "refuse":
                raise bad(f"{at}{name} is not a field that is known here.", f"{at}{name}")
        return admitted

    def _canonical(self, name: str, folded: str, at: str) -> str:
        meant = self._by_fold.get(folded)
        if meant is None or meant == name:
            return name
        if self.either_spelling and name == snake(meant):
            return meant
        if meant in self.known:  # of no effect on the bill: an unknown name like any other
            return name
        raise bad(f"{at}{name} is not a field: it is spelled {meant}.", f"{at}{name}")


Check = Callable[[Object, str, str], object]
"""A reader of one field (`boolean` …), called for its complaints."""


def check_types(fields: Object, checks: Mapping[str, Check], at: str = "") -> None:
    """Check the fields that pass through without being priced, so that a wrong type gets its clear 400 here.

    Raises:
        Rejected: 400, naming the first field at fault.
    """
    for name in fields:
        if name in checks:
            checks[name](fields, name, at)
