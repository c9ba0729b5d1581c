"""The archive: sealed segments of the journal, compressed, once the store has every record in them.

Nothing is ever pruned: together archive and journal hold every line that was ever written, so that the store can
be made anew at any time and every balance be checked from its first grant. To prune would need balances that are
carried forward, and trust in whoever carried them.

A segment moves in steps, each durable before the next: a draft is written and synced, renamed into place, the
archive's directory synced, what stands there read back and compared, and only then the original removed. So at
every instant it is readable, and once: where a kill has left both, the archived one counts if it is whole, else the
original.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from accounting.disk import Disk

DRAFT: Final = ".draft"

PIECE: Final = 2**18
"""Bytes that are compressed, expanded and written at a time."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""How the archive's files begin; gzip leaves room there for names and times, which would go unchecked."""


def expand(data: bytes) -> tuple[bytes, str]:
    """Expand an archived segment.

    Returns:
        Its text as far as it can be had, and what is wrong with the rest; `""` where it is whole.
    """
    text, wrong = bytearray(), ""
    try:
        for piece in _expanded(data):
            text += piece
    except ValueError as error:
        wrong = str(error)
    return bytes(text), wrong


def _expanded(data: bytes) -> Iterator[bytes]:
    """The text of an archived segment, in pieces; ValueError says what is wrong behind the last of them."""
    if not data.startswith(_HEADER):
        raise ValueError("it does not begin as a segment of the archive does")
    inflate = zlib.decompressobj(_GZIP)
    for start in range(0, len(data), PIECE):
        piece, before = data[start : start + PIECE], inflate.copy()
        try:
            yield inflate.decompress(piece)
        except zlib.error as error:
            yield from _before_error(before, piece)
            raise ValueError(str(error)) from None
    if not inflate.eof:
        raise ValueError("it ends early")
    if inflate.unused_data:
        raise ValueError("something follows its end")


def _before_error(inflate: "zlib._Decompress", piece: bytes) -> Iterator[bytes]:
    """What can be had of a piece, which zlib does not say when it finds an error in it."""
    with suppress(zlib.error):
        for place in range(len(piece)):
            yield inflate.decompress(piece[place : place + 1])


def put_away(disk: Disk, original: Path, archived: Path) -> None:
    """Move a sealed segment into the archive, from wherever an earlier try was broken off.

    Raises:
        OSError: the original is still there, and counts unless the archived one is whole.
    """
    try:
        text = disk.read(original)
    except FileNotFoundError:
        pass  # that far an earlier try has got
    else:
        if not _holds(disk, archived, text):
            _write(disk, archived, text)
            if not _holds(disk, archived, text):
                raise OSError(f"{archived} does not say what was written to it")
        disk.unlink(original)
    disk.sync_dir(original.parent)


def _holds(disk: Disk, archived: Path, text: bytes) -> bool:
    """Whether this stands there, whole. In pieces: to compare all at once would keep the event loop waiting."""
    at = 0
    try:
        for piece in _expanded(disk.read(archived)):
            if text[at : at + len(piece)] != piece:
                return False
            at += len(piece)
    except (FileNotFoundError, ValueError):
        return False
    return at == len(text)


def _write(disk: Disk, archived: Path, text: bytes) -> None:
    draft = archived.with_name(archived.name + DRAFT)
    disk.unlink(draft)  # of a try that was broken off
    descriptor = disk.create(draft)
    try:
        deflate, offset = zlib.compressobj(wbits=_GZIP), 0
        for start in range(0, len(text), PIECE):
            offset = _put(disk, descriptor, deflate.compress(text[start : start + PIECE]), offset)
        _put(disk, descriptor, deflate.flush(), offset)
        disk.fdatasync(descriptor)
    finally:
        disk.close(descriptor)
    disk.rename(draft, archived)
    disk.sync_dir(archived.parent)


def _put(disk: Disk, descriptor: int, data: bytes, offset: int) -> int:
    while data:
        written = disk.pwrite(descriptor, data, offset)
        if written <= 0:
            raise OSError("nothing is written")
        offset += written
        data = data[written:]
    return offset
