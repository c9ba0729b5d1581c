"""Measure a request body before anything decodes it: size, depth, items, numbers and encoding, on the bytes.

A decoder recurses and allocates as the body tells it to, so all of that is bounded first, in a handful of passes
that each run at the speed of C. What stands inside a string does not count: code-heavy prompts are full of
brackets.
"""

import codecs
import math
import re
from typing import Final, Protocol

from proxy.errors import Kind, Rejected

NUMBER_DIGITS_MAX: Final = 300
"""A run of digits that long is no number that any field takes; it also bounds the cost of looking at them."""

_UTF8_STEP: Final = 1 << 16


class BodyLimits(Protocol):
    """How large a body may be; `proxy.config.RequestLimits` is one."""

    @property
    def body_bytes_max(self) -> int:
        """Of the whole body."""
        ...

    @property
    def depth_max(self) -> int:
        """Levels of nesting, the outermost object included."""
        ...

    @property
    def items_max(self) -> int:
        """Elements of all arrays and objects together."""
        ...

    @property
    def messages_max(self) -> int:
        """Turns of a conversation."""
        ...

    @property
    def tools_max(self) -> int:
        """Declared tools."""
        ...

    @property
    def frame_bytes_max(self) -> int:
        """Of one event from a provider."""
        ...


def bad(message: str, param: str | None = None) -> Rejected:
    """A 400 about one field of the request."""
    return Rejected(Kind.BAD_REQUEST, message, param=param)


_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_BRACES_AS_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_DIGITS_AS_ZEROS: Final = bytes.maketrans(b"0123456789.E", b"00000000000e")
_LONG_NUMBER: Final = b"0" * NUMBER_DIGITS_MAX
# The look-behind lets a run of digits be tried once, at its start: without it the search is quadratic.
_EXPONENTIAL: Final = re.compile(rb"(?<![0-9.])[0-9.]++[eE]\+?[0-9]{3,}+")


def guard(body: bytes, limits: BodyLimits) -> None:
    """Refuse a body that is too large, too deep, too full or not text, without decoding it.

    An item is an element of an array or a member of an object; every container counts as one more.

    Raises:
        Rejected: 413 for its size, 400 for all else.
    """
    if len(body) > limits.body_bytes_max:
        raise Rejected(Kind.TOO_LARGE, f"The body is larger than {limits.body_bytes_max} bytes.")
    items_max = limits.items_max
    outside = _outside_strings(body, items_max)
    if len(outside) > items_max and (
        outside.count(b",") + outside.count(b"[") + outside.count(b"{") > items_max
    ):
        raise _too_many(items_max)
    _check_depth(outside, limits.depth_max)
    _check_numbers(outside)
    if not body.isascii():
        _check_utf8(body)


def _outside_strings(body: bytes, items_max: int) -> bytes:
    """What of a JSON text stands outside its strings.

    A backslash in valid JSON always begins an escape, so pairs of them and then escaped quotes can be cut out
    from the left; what quotes remain delimit strings. In a text that is not valid JSON this holds up to its
    first fault, and no decoder reads on from there.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # An item holds two strings at most, its name and its value; more only make the split below expensive.
    if body.count(b'"') > 4 * items_max + 4:
        raise _too_many(items_max)
    return b"".join(body.split(b'"')[::2])


def _check_depth(outside: bytes, depth_max: int) -> None:
    """Take away the innermost brackets, level by level; what is left after the last level is too deep."""
    brackets = outside.translate(_BRACES_AS_BRACKETS, delete=_NOT_BRACKETS)
    for _ in range(depth_max):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise bad(f"The body is nested deeper than {depth_max} levels, or its brackets do not match.")


def _check_numbers(outside: bytes) -> None:
    """Refuse numbers that overflow wherever they stand: what travels verbatim is never decoded here."""
    digits = outside.translate(_DIGITS_AS_ZEROS)  # then plain searches: a pattern would be ten times slower
    if _LONG_NUMBER in digits:
        raise bad(f"The body holds a number of {NUMBER_DIGITS_MAX} digits or more.")
    if b"e000" in digits or b"e+000" in digits:
        for match in _EXPONENTIAL.finditer(outside):
            if _overflows(match.group()):
                raise bad(f"The body holds a number out of range: {match.group()[:40].decode('ascii')}.")


def _overflows(literal: bytes) -> bool:
    try:
        return math.isinf(float(literal))
    except ValueError:  # "1.2.3e400": no number at all, which the decoder is going to say
        return False


def _check_utf8(body: bytes) -> None:
    """Decode in steps: the text of a 32 MB body would take four times that."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _UTF8_STEP):
            decoder.decode(view[start : start + _UTF8_STEP])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise bad("The body is not valid UTF-8.") from None


def _too_many(items_max: int) -> Rejected:
    return bad(f"The body holds more than {items_max} items.")
