"""Read the bodies that nearly everybody sends as one closed shape, in C; leave every other body to the general code.

A usual body is decoded twice: into a shape, for what is looked into, and one level deep, for what travels
(`take`). The reading of a dialect's usual bodies comes to the very result that its general reading comes to, or to
none (`None`), and the general reading words all complaints. Three rules keep the two the same:

1. **A shape is closed** (`Closed`): it has the names, types and ranges that are looked into and nothing else. A
   name that it does not know, another spelling, a null in an odd place: none of that is usual.
2. **Lengths tell what a shape hides** (`as_written`): a name that comes twice, escapes that need not be.
3. **Unguarded is only what the guard could not object to** (`beyond_guard`): a shape whose every value is decoded
   nests a few levels deep, and all its text and numbers have been checked. As soon as a body has a raw value in
   it, the guard looks at it.
"""

from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from proxy.dialects.body import OBJECT, Object, size
from proxy.dialects.guard import NUMBER_DIGITS_MAX, BodyLimits

T = TypeVar("T")

DEPTH_MAX: Final = 8
"""No shape nests deeper; where less is allowed (it cannot be configured), nothing is usual."""

PIECE_ITEMS_MAX: Final = 16
"""So many items at most has a message without its parts, or a part: names, commas, brackets."""

UNUSUAL: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What a decoder raises for whatever is no such shape, or no JSON."""

_ENCODER: Final = msgspec.json.Encoder()
_NOT_OPENINGS: Final = bytes(set(range(256)) - set(b'{"'))


class Closed(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An object with these names and no others. Of a message there are thousands, so it is made by C alone.

    What the general reading carries on verbatim *and* measures is `Raw` here too, or a scalar: of objects and arrays
    that were decoded, the blanks between their items would be forgotten.
    """


def take(body: bytes, shape: msgspec.json.Decoder[T], limits: BodyLimits) -> tuple[T, Object] | None:
    """Decode a body into a closed shape and one level deep; `None` where it is not of that shape.

    Nothing is allocated for what the shape does not have, so that the number of objects and strings bounds it all.
    """
    if len(body) > limits.body_bytes_max or limits.depth_max < DEPTH_MAX:
        return None
    if len(body) > limits.items_max and _openings(body) > 4 * limits.items_max:
        return None
    try:
        return shape.decode(body), OBJECT.decode(body)
    except UNUSUAL:
        return None


def _openings(body: bytes) -> int:
    """No fewer than a body has objects and strings."""
    return len(body.translate(None, delete=_NOT_OPENINGS))


def as_written(raw: msgspec.Raw, value: object) -> msgspec.Raw | None:
    """What the general reading would make of a raw value by taking it apart and writing it again.

    Args:
        raw: as the caller wrote it.
        value: of closed shapes, decoded from it.

    Returns:
        The same names and values in the same order without blanks between them; or `None`, where something stands in
        it that the value does not show. Whatever that is, a name that came twice, a letter written as an
        escape, it makes the text longer than the shortest in which the value can be written, and nothing makes
        it shorter.
    """
    shortest = _ENCODER.encode(value)
    if size(raw) == len(shortest):
        return raw
    dense = msgspec.json.format(bytes(raw), indent=-1)
    if len(dense) == len(shortest) == len(msgspec.json.format(shortest, indent=-1)):
        return msgspec.Raw(dense)
    return None


def put_back(fields: Object, name: str, value: object) -> bool:
    """Replace a field that was decoded into shapes, if it was there, by what the general reading would make of it.

    Returns:
        Whether the value shows all that stands in it.
    """
    if value is UNSET or isinstance(value, str):
        return True
    written = as_written(fields[name], value)
    if written is None:
        return False
    fields[name] = written
    return True


def beyond_guard(body: bytes, text_bytes: int, pieces: int, limits: BodyLimits) -> bool:
    """Whether a body in whose shape no value is raw has nothing that the guard could refuse.

    Args:
        body: the whole.
        text_bytes: how much of it are values that hold no number, and no name twice.
        pieces: messages and parts in those values.
        limits: those of the guard.
    """
    rest = len(body) - text_bytes
    return rest < NUMBER_DIGITS_MAX and rest + pieces * PIECE_ITEMS_MAX <= limits.items_max
