"""Server-sent events as bytes: where frames end, and what one says.

A frame ends with a blank line, and lines end with LF or CRLF, mixed if need be. (The specification knows a
lone CR too; no provider ends lines so, and JSON cannot hold one, so it does not end a frame here.) Inside
JSON a line break is always escaped: whatever stands at the start of a line is framing, never content.
"""

import re
from typing import Final

from attrs import define, field

from proxy.errors import Kind, StreamBroken

_FRAME: Final = re.compile(rb".*?\n(?:\r?\n)+|.+\Z", re.DOTALL)


def last_border(data: bytes, start: int = 0, end: int | None = None) -> int:
    """One past the last blank line in `data[start:end]`, or `start` where there is none."""
    stop = len(data) if end is None else end
    lf = data.rfind(b"\n\n", start, stop)
    after = lf + 2 if lf >= 0 else start
    crlf = data.rfind(b"\n\r\n", max(start, after - 2), stop)
    return max(after, crlf + 3) if crlf >= 0 else after


def first_border(data: bytes, start: int = 0) -> int:
    """One past the first blank line from `start` on, or the end of `data` where there is none."""
    lf = data.find(b"\n\n", start)
    crlf = data.find(b"\n\r\n", start, len(data) if lf < 0 else lf + 1)
    if crlf >= 0:
        return crlf + 3
    return lf + 2 if lf >= 0 else len(data)


def frame_at(block: bytes, position: int) -> tuple[int, int]:
    """Start and end of the frame that holds a position of a block of whole frames."""
    return last_border(block, 0, position), first_border(block, position)


def frames(block: bytes) -> list[bytes]:
    """A block cut into its frames, each with all blank lines behind it; joined they are the block."""
    return _FRAME.findall(block)


def data_of(frame: bytes) -> bytes:
    """The data of one frame: its `data:` lines, joined by LF; `b""` for comments and blank lines."""
    if (
        frame.startswith(b"data:") and frame.find(b"\n", 0, -3) < 0
    ):  # one line and its blank line: almost always
        return frame[5:].strip()
    lines = (line.removesuffix(b"\r") for line in frame.split(b"\n"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def count_data_lines(block: bytes) -> int:
    """How many lines of a block are data: its frames without comments, for a provider that splits no data."""
    return block.count(b"\ndata:") + block.startswith(b"data:")


def only_data(block: bytes) -> bytes:
    """Whole frames less all that is no data: comments, names, numbers, and frames of nothing else.

    Each frame keeps its data lines and one blank line, byte for byte. A lone CR ends no line here, so nothing can
    hide behind one.
    """
    kept: list[bytes] = []
    told = False
    for line in block.split(b"\n"):
        if line.startswith(b"data:"):
            kept.append(line)
            told = True
        elif told and line in (b"", b"\r"):
            kept.append(line)
            told = False
    return b"\n".join((*kept, b""))


def has_line(block: bytes, start: bytes) -> bool:
    """Whether a line of the block begins so."""
    return block.startswith(start) or b"\n" + start in block


@define(eq=False)
class Framer:
    """Makes whole frames of bytes as they were read.

    Attributes:
        bytes_max: of a frame; a longer one breaks the stream.
    """

    bytes_max: int
    _carry: list[bytes] = field(factory=list, init=False)
    _carried: int = field(default=0, init=False)
    _last: bytes = field(default=b"", init=False)

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes; give all frames that are whole now, in one piece, or `b""`.

        Raises:
            StreamBroken: a frame grew beyond `bytes_max`.
        """
        if not self._carry and chunk.endswith(b"\n\n"):  # whole frames, as nearly every read brings them
            return chunk
        # A blank line may have been cut in two, so the two bytes before the chunk are looked at as well.
        before = len(self._last)
        end = last_border(self._last + chunk if before else chunk) - before
        if end <= 0:
            self._keep(chunk)
            return b""
        block = b"".join((*self._carry, chunk[:end])) if self._carry else chunk[:end]
        self._carry, self._carried, self._last = [], 0, b""
        if end < len(chunk):
            self._keep(chunk[end:])
        return block

    @property
    def rest(self) -> bytes:
        """What has come of a frame that is not whole."""
        return b"".join(self._carry)

    def _keep(self, piece: bytes) -> None:
        self._carry.append(piece)
        self._carried += len(piece)
        self._last = (self._last + piece)[-2:]
        if self._carried > self.bytes_max:
            raise StreamBroken(Kind.UPSTREAM_ERROR, "The provider sent an event that is too large.")


@define(eq=False)
class Bare:
    """Looks out for what comes in place of a stream: its first byte, and the end of a bare JSON value.

    Every byte is looked at once, however small the reads are.

    Attributes:
        start: the first byte that is no white space; `b""` before it.
    """

    start: bytes = field(default=b"", init=False)
    _depth: int = field(default=0, init=False)
    _in_string: bool = field(default=False, init=False)
    _escape: bytes = field(default=b"", init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def is_json(self) -> bool:
        """Whether it begins as an object or an array does, and as no event."""
        return self.start in (b"{", b"[")

    def feed(self, piece: bytes) -> bool:
        """Take bytes; true once, where a JSON value has come whole (or has at least closed all its brackets)."""
        if not self.start:
            piece = piece.lstrip()
            self.start = piece[:1]
        if not self.is_json or self._closed:
            return False
        outside = self._outside_strings(piece)
        self._depth += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
        self._closed = self._depth <= 0
        return self._closed

    def _outside_strings(self, piece: bytes) -> bytes:
        """What of a piece stands outside strings. A backslash begins an escape, which may be cut in two."""
        piece = self._escape + piece
        self._escape = piece[-1:] if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        piece = piece.removesuffix(self._escape).replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        return outside
