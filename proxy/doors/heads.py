"""The bytes of an answer: status line, headers and chunks; nothing in a header can break out of its line."""

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from attrs import define

_NAME_BYTES: Final = b"abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+.^_`|~-"
_VALUE_BYTES: Final = bytes(code for code in range(256) if code == 9 or (code >= 32 and code != 127))
_STATUS_LINES: Final = {int(one): f"HTTP/1.1 {one:d} {one.phrase}\r\n".encode() for one in HTTPStatus}

LAST_CHUNK: Final = b"0\r\n\r\n"
CLOSE: Final = b"connection: close\r\n"
CHUNKED: Final = b"transfer-encoding: chunked\r\n"
BODILESS: Final = frozenset({204, 304})
"""Statuses whose answers end with the head, whatever it announces."""


def check(headers: Mapping[str, str]) -> None:
    """Check that headers cannot break out of their line; names must be in lower case.

    Raises:
        ValueError: a name or value that could; only the name is told, for values may be secret.
    """
    # all at once, for there are twenty on each answer; one by one only to say which it was
    if not _sound("".join(headers), "".join(headers.values())) or "" in headers:
        name = next(name for name, value in headers.items() if not (name and _sound(name, value)))
        raise ValueError(f"the header {name!r} is not one that can be sent")


def checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Give a copy of headers that were checked, as `check` does."""
    check(headers)
    return dict(headers)


def _sound(name: str, value: str) -> bool:
    try:
        return not (
            name.encode("ascii").translate(None, _NAME_BYTES)
            or value.encode("latin-1").translate(None, _VALUE_BYTES)
        )
    except UnicodeEncodeError:
        return False


def sound_line(name: bytes, value: bytes) -> bool:
    """Whether a name in lower case and its value make one header, and nothing else."""
    return bool(name) and not (name.translate(None, _NAME_BYTES) or value.translate(None, _VALUE_BYTES))


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def lines(headers: Mapping[str, str]) -> bytes:
    """Headers that were checked, as they are sent."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Bytes of a body in chunked coding; none is nothing, for an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def whole(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """An answer in one piece."""
    length = {"content-length": str(len(body))}
    return b"%b%b\r\n%b" % (status_line(status), lines(checked(headers) | length), body)


@define(eq=False)
class Dates:
    """The `date` line, made once a second."""

    _second: int = -1
    _line: bytes = b""

    def line(self) -> bytes:
        """For an answer that begins now."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = f"date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
        return self._line
