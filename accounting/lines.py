"""The lines of a journal: one record each, checked by a CRC that is chained to the line before.

A line is `{"c":"<crc32>","s":<seq>,"t":"<kind>",…fields}` and a newline. The CRC covers everything after itself,
newline included, and is seeded with the CRC of the line before, or with zero at the start of a segment. So what
is read up to any line is, byte for byte, what was written there.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec
from attrs import define

from accounting.records import LETTERS, Record

_PREFIX: Final = len('{"c":"00000000",')
_HEADER: Final = re.compile(rb'"s":([0-9]{1,19}),"t":"([A-Z0-9]{1,2})",')
_HEADER_BYTES: Final = _PREFIX + len('"s":,') + 19
_MARK: Final = re.compile(rb'"t":"M",[^\n}]{0,64}"synced_upto":([0-9]{1,19})')

_ENCODER: Final = msgspec.json.Encoder()
_LETTERS: Final = {kind: letter.encode() for kind, letter in LETTERS.items()}
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    letter: msgspec.json.Decoder(kind) for kind, letter in LETTERS.items()
}


def encode(record: Record, seq: int, crc: int) -> tuple[bytes, int]:
    """Write one line behind a line whose CRC is `crc`; returns it and its own CRC."""
    body = b'"s":%d,"t":"%s",%s\n' % (seq, _LETTERS[type(record)], _ENCODER.encode(record)[1:])
    crc = crc32(body, crc)
    return b'{"c":"%08x",%s' % (crc, body), crc


class Line(NamedTuple):
    """One intact line: where it lies and what it is; not decoded yet."""

    offset: int
    seq: int
    letter: str
    text: bytes
    crc: int

    def record(self) -> Record:
        """Read its fields. Raises KeyError, `msgspec.DecodeError`: intact, and yet nothing that we know."""
        record: Record = _DECODERS[self.letter].decode(self.text)
        return record


@define(eq=False)
class Lines:
    """The intact lines of one segment, from its start to the first that is not.

    Attributes:
        data: the segment.
        end: where the intact part ends; true once the lines have been read.
    """

    data: bytes
    end: int = 0

    def __iter__(self) -> Iterator[Line]:
        data, find, header, crc, start = self.data, self.data.find, _HEADER.match, 0, 0
        while (newline := find(b"\n", start)) >= 0:
            text = data[start : newline + 1]
            crc = crc32(text[_PREFIX:], crc)
            # compared as a whole: a flipped bit must not turn the prefix into another spelling of the same
            matched = header(text, _PREFIX) if text.startswith(b'{"c":"%08x",' % crc) else None
            if matched is None:
                return
            self.end = newline + 1
            yield Line(start, int(matched[1]), matched[2].decode(), text, crc)
            start = newline + 1

    @property
    def empty(self) -> bool:
        """Nothing was ever written here."""
        return not self.data.strip(b"\0")

    @property
    def torn(self) -> bool:
        """Something follows the intact part."""
        return bool(self.data[self.end :].strip(b"\0"))

    def mark_behind(self) -> int:
        """The highest mark that can still be made out behind the intact part, or -1.

        Without its neighbours a line's CRC cannot be checked, and need not be: a mark that is not one stops
        the start, which is the safe side. Only the first damaged line itself does not count as one.
        """
        return self._highest_mark(self.end + _HEADER_BYTES)

    def mark_anywhere(self) -> int:
        """The highest mark that can be made out in the whole segment, or -1."""
        return self._highest_mark(0)

    def _highest_mark(self, start: int) -> int:
        return max((int(match[1]) for match in _MARK.finditer(self.data, start)), default=-1)
