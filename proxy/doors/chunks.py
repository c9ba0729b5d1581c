"""Follows a chunked body by the sizes of its chunks, so that nothing in them is looked at. Sans-IO.

llhttp checks the framing, but may not be shown a byte of what follows the body, and reports no end beforehand. To look
for the end in the bytes themselves means to stop at every empty line that a chunk holds, and chunks may hold nothing
else. So the end is counted to. Nothing need be checked for that: where a size cannot be read, llhttp refuses the line
that it stands in, and what was counted after it is of no matter.
"""

import re
from typing import Final

from attrs import define

AT_ONCE_MAX: Final = 256
"""After so many chunks others get their turn: a body may consist of chunks of a single byte."""

SIZE_DIGITS_MAX: Final = 16
"""llhttp refuses sizes of more; zeros in front do not count."""

_END_OF_LINES: Final = b"\r\n\r\n"
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]*")


@define(eq=False)
class Chunks:
    """Where the reading of one body stands.

    Attributes:
        over: the body's last byte was counted.
    """

    over: bool = False
    _due: int = 0
    """Bytes still to come of the present chunk, the end of its line included."""
    _line: bytes = b""
    """What has come of the line in which the next size stands, as far as it matters; of trailers the last bytes."""
    _trailing: bool = False
    """The last chunk has come: an empty line is the end."""

    def follow(self, data: bytes) -> int:
        """Count what comes next; gives how much of it may be read now: up to the body's end, or some chunks."""
        if self._trailing:
            return self._look_for_end(self._line + data, 0, len(data))
        window = self._line + data if self._line else data
        before, at = len(window) - len(data), self._due
        for _ in range(AT_ONCE_MAX):
            border = window.find(b"\n", at)
            if border < 0:
                break
            size = _size(window, at)
            if not size:
                self._trailing = True
                return self._look_for_end(window, max(at, border - 1), len(data))
            at = border + 1 + size + 2
        else:
            if at < len(window):
                self._due, self._line = 0, b""
                return at - before
        self._due = max(0, at - len(window))
        # zeros in front change nothing, and what stands behind the size neither
        self._line = window[at:].lstrip(b"0")[: SIZE_DIGITS_MAX + 1]
        return len(data)

    def _look_for_end(self, window: bytes, at: int, new: int) -> int:
        """Look for the empty line, from the end of the last chunk's line on; `new`: bytes of it not yet read."""
        border = window.find(_END_OF_LINES, at)
        if border < 0:
            self._line = window[max(at, len(window) - 3) :]
            return new
        self.over = True
        return border + 4 - (len(window) - new)


def _size(window: bytes, at: int) -> int:
    digits = _SIZE.match(window, at)
    assert digits is not None  # noqa: S101 - no digits are a match too
    return int(digits[0] or b"0", 16)
