"""Reading a journal back: every record once and in order, and a verdict on whatever cannot be read.

The verdict is the important part. What lies below a mark had been promised to somebody: if it is missing
or damaged, nothing may be done until a person has looked (`JournalDamaged`). What lies above the last mark
may be torn by a power loss, within a segment or over the border of two: the intact part counts, the rest is
cut.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from attrs import define, field, frozen

from accounting.disk import Disk
from accounting.journal import OPEN, SEALED, Carries, Line, Lines, Past
from accounting.records import CarryHead, Mark, Record

_NAME: Final = re.compile(rf"([0-9]{{8}})({re.escape(OPEN)}|{re.escape(SEALED)})")


class JournalDamaged(Exception):
    """Something that was on the platter is missing or cannot be read.

    Args:
        path: the file.
        offset: where in it.
        because: what is wrong there.
    """

    def __init__(self, path: Path, offset: int, because: str) -> None:
        super().__init__(f"{path}, byte {offset}: {because}")
        self.path = path
        self.offset = offset
        self.because = because


@frozen
class Segment:
    """A file of the journal, as found."""

    path: Path
    number: int

    @property
    def sealed(self) -> bool:
        """It was synced whole and closed, together with the head of the one after it."""
        return self.path.suffix == SEALED


@frozen
class Piece:
    """What counts of one segment: it is intact up to byte `end`, which holds line `last_seq`."""

    segment: Segment
    last_seq: int
    end: int


@frozen
class Damage:
    """Where a segment stops being readable, although nothing is lost that was ever promised."""

    path: Path
    offset: int
    because: str


def segments(disk: Disk, directory: Path) -> list[Segment]:
    """The journal's files in order. Raises `JournalDamaged` if one is there twice or missing in between."""
    matches = [(name, _NAME.fullmatch(name)) for name in sorted(disk.names(directory))]
    found = [Segment(directory / name, int(matched[1])) for name, matched in matches if matched]
    for expected, segment in enumerate(found, 1):
        if segment.number < expected:
            raise JournalDamaged(segment.path, 0, f"segment {segment.number} is there twice")
        if segment.number > expected:
            raise JournalDamaged(segment.path, 0, f"the segment before it, {expected}, is missing")
    return found


@define(eq=False)
class Scan:
    """All records of a journal, in order and each once; what is said of it is true once they have been read.

    Attributes:
        disk: where it is.
        found: its segments.
        pieces: what counts of them, in order.
        unused: spares, and segments behind a torn tail of which nothing was ever synced.
        damages: what was unreadable without loss.
        last_seq: of the last record.
        synced_upto: the highest mark.
    """

    disk: Disk
    found: list[Segment]
    pieces: list[Piece] = field(factory=list, init=False)
    unused: list[Segment] = field(factory=list, init=False)
    damages: list[Damage] = field(factory=list, init=False)
    last_seq: int = field(default=0, init=False)
    synced_upto: int = field(default=0, init=False)
    _crcs: dict[int, int] = field(factory=lambda: {0: 0}, init=False)
    """CRCs of records from the highest mark on, as they stand in the newest segment that has them."""
    _tail: deque[tuple[int, Record]] = field(factory=deque, init=False)
    _carries: Carries = field(factory=Carries, init=False)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Go through the records. Raises `JournalDamaged` where something is lost that had been synced."""
        for place, segment in enumerate(self.found):
            lines = Lines(_read(self.disk, segment))
            reader = iter(lines)
            first = next(reader, None)
            if first is None or first.letter != "C0":
                self._headless(segment, lines)
                continue
            head = _decode(segment, first)
            if not isinstance(head, CarryHead):  # pragma: no cover - the letter says so
                raise TypeError(first.letter)
            if head.last_seq > self.last_seq:
                self._gap(place, head)
                return
            if self._crcs.get(head.last_seq, int(head.last_crc, 16)) != int(head.last_crc, 16):
                raise JournalDamaged(segment.path, 0, "does not follow on the segment before it: another CRC")
            yield from self._records(segment, lines, reader, head.last_seq)

    def past(self) -> Past:
        """What a new segment continues."""
        number = self.pieces[-1].segment.number if self.pieces else 0
        base = self.last_seq - len(self._tail)
        tail = tuple(record for _, record in self._tail)
        return Past(number, base, self._crcs[base], tail, self._carries)

    def _records(
        self, segment: Segment, lines: Lines, reader: Iterator[Line], at: int
    ) -> Iterator[tuple[int, Record]]:
        """Go through one segment behind its head, and judge where it ends. `at`: the seq before it."""
        for line in reader:
            if line.letter == "M":
                self._mark(_decode(segment, line))
            elif line.letter != "C":
                at += 1
                if line.seq != at:
                    raise JournalDamaged(
                        segment.path, line.offset, f"line {line.seq} stands in place of {at}"
                    )
                self._crcs[at] = line.crc
                if at > self.last_seq:  # else written again by a recovery: the same, under the same seq
                    record = _decode(segment, line)
                    self.last_seq = at
                    self._tail.append((at, record))
                    yield at, record
        self.pieces.append(Piece(segment, at, lines.end))
        if lines.torn:
            if lines.mark_behind() > at:
                raise JournalDamaged(
                    segment.path, lines.end, f"unreadable after line {at}, below a later mark"
                )
            self._harmless(segment.path, lines.end, f"unreadable after line {at}")

    def _mark(self, mark: Record) -> None:
        if isinstance(mark, Mark) and mark.synced_upto > self.synced_upto:
            self.synced_upto = mark.synced_upto
            while self._tail and self._tail[0][0] <= mark.synced_upto:
                self._carries.note(self._tail.popleft()[1])
            self._crcs = {seq: crc for seq, crc in self._crcs.items() if seq >= mark.synced_upto}

    def _headless(self, segment: Segment, lines: Lines) -> None:
        """A segment without a readable first line is a spare, or was never synced; or it is a loss."""
        if segment.sealed or lines.mark_anywhere() > self.last_seq:
            raise JournalDamaged(
                segment.path, 0, "the first line is unreadable, and others behind it were synced"
            )
        self.unused.append(segment)
        if not lines.empty:
            self._harmless(segment.path, 0, "the first line is unreadable")

    def _gap(self, place: int, head: CarryHead) -> None:
        """Lines are missing between two segments: torn together with what follows, or a loss."""
        segment, before = self.found[place], self.pieces[-1] if self.pieces else None
        missing = f"lines {self.last_seq + 1} to {head.last_seq}, before {segment.path.name}, are missing"
        path, offset = (before.segment.path, before.end) if before is not None else (segment.path, 0)
        # sealed means: synced, with the head of its successor; and a journal begins at its beginning
        lost = before is None or before.segment.sealed or any(one.sealed for one in self.found[place:])
        if lost or any(
            Lines(_read(self.disk, later)).mark_anywhere() > self.last_seq for later in self.found[place:]
        ):
            raise JournalDamaged(path, offset, f"{missing}, and had been synced")
        self.unused += self.found[place:]
        self._harmless(path, offset, missing)

    def _harmless(self, path: Path, offset: int, because: str) -> None:
        self.damages.append(Damage(path, offset, f"{because}; nothing there had been synced"))


def scan(disk: Disk, directory: Path) -> Scan:
    """Read a whole journal that nobody writes; iterate over what is returned."""
    return Scan(disk, segments(disk, directory))


def read_upto(disk: Disk, directory: Path, seq: int) -> Iterator[tuple[int, Record]]:
    """The records up to one that has been written, of a journal that is being written. For `farebox verify`.

    Raises:
        JournalDamaged: as for a scan, or the record is not there.
    """
    if seq == 0:
        return
    reading = scan(disk, directory)
    for at, record in reading:
        yield at, record
        if at == seq:
            return
    raise JournalDamaged(directory, 0, f"it ends after line {reading.last_seq}, and {seq} had been written")


def read_after(disk: Disk, pieces: Iterable[Piece], seq: int) -> Iterator[tuple[int, Record]]:
    """The records after a seq, from pieces that a scan found sound; what lies before is not even decoded."""
    for piece in pieces:
        if piece.last_seq > seq:
            for line in Lines(_read(disk, piece.segment)[: piece.end]):
                if line.seq > seq and line.letter not in ("C0", "C", "M"):
                    seq = line.seq
                    yield seq, _decode(piece.segment, line)


def _read(disk: Disk, segment: Segment) -> bytes:
    try:
        return disk.read(segment.path)
    except FileNotFoundError:  # it was sealed since its name was read
        return disk.read(segment.path.with_suffix(SEALED))


def _decode(segment: Segment, line: Line) -> Record:
    try:
        return line.record()
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        because = f"line {line.seq} is intact, but a {line.letter} that this version cannot read ({error})"
        raise JournalDamaged(segment.path, line.offset, because) from error
