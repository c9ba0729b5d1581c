"""Reading a journal back: every record once and in order, and a verdict on whatever cannot be read.

The verdict is the important part. What lies below a mark had been promised to somebody: if it is missing
or damaged, nothing may be done until a person has looked (`JournalDamaged`). What lies above the last mark
may be torn by a power loss, within a segment or over the border of two: the intact part counts, the rest is
cut. And a segment that was given up after an error of the disk may be torn anywhere above what was synced by
then: the one that was written in its place begins there.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from attrs import define, field, frozen

from accounting.carries import Carried, Carries
from accounting.disk import Disk
from accounting.journal import Past
from accounting.lines import Line, Lines
from accounting.records import Carry, CarryHead, Mark, Record
from accounting.segment import JournalDamaged, Segment, read, segments

__all__ = [
    "Damage",
    "JournalDamaged",
    "Piece",
    "Scan",
    "Segment",
    "read_after",
    "read_upto",
    "scan",
    "segments",
]


@frozen
class Piece:
    """What counts of one segment: it is intact up to byte `end`, which holds line `last_seq`.

    `bare`: nothing stands in it but its head.
    """

    segment: Segment
    last_seq: int
    end: int
    bare: bool = False


@frozen
class Damage:
    """Where a segment is not as it should be, although nothing is lost that was ever promised."""

    path: Path
    offset: int
    because: str


@define(eq=False)
class Scan:
    """All records of a journal, in order and each once; what is said of it is true once they have been read.

    Attributes:
        disk: where it is.
        found: its segments.
        pieces: what counts of them, in order.
        unused: segments of which nothing counts, and which are not sealed: never synced, given up, or bare.
        damages: what was unreadable without loss.
        miscarried: heads that do not repeat what was open; a fault of ours, and harmless while all older segments
            are there.
        last_seq: of the last record.
        synced_upto: the highest mark.
    """

    disk: Disk
    found: list[Segment]
    pieces: list[Piece] = field(factory=list, init=False)
    unused: list[Segment] = field(factory=list, init=False)
    damages: list[Damage] = field(factory=list, init=False)
    miscarried: list[Damage] = field(factory=list, init=False)
    last_seq: int = field(default=0, init=False)
    synced_upto: int = field(default=0, init=False)
    _crcs: dict[int, int] = field(factory=lambda: {0: 0}, init=False)
    """CRCs of records from the highest mark on, as they stand in the newest segment that has them."""
    _tail: deque[tuple[int, Record]] = field(factory=deque, init=False)
    _carries: Carries = field(factory=Carries, init=False)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Go through the records. Raises `JournalDamaged` where something is lost that had been synced."""
        yield from self._segments()
        # a bare head at the end may stand in the page cache alone; sealed, it would claim to be on the platter
        while self.pieces and self.pieces[-1].bare and not self.pieces[-1].segment.sealed:
            self.unused.append(self.pieces.pop().segment)

    def _segments(self) -> Iterator[tuple[int, Record]]:
        for place, segment in enumerate(self.found):
            lines = Lines(read(self.disk, segment))
            reader = iter(lines)
            head = _head(segment, next(reader, None))
            if head is None or head.last_seq > self.last_seq:
                if not self._taken_over(place):
                    self._end(place, lines, head)
                    return
                if not segment.sealed:
                    self.unused.append(segment)
                continue
            if self._crcs.get(head.last_seq, int(head.last_crc, 16)) != int(head.last_crc, 16):
                raise JournalDamaged(segment.path, 0, "does not follow on the segment before it: another CRC")
            yield from self._records(segment, lines, reader, head)

    def past(self) -> Past:
        """What a new segment continues."""
        number = self.pieces[-1].segment.number if self.pieces else 0
        base = self.last_seq - len(self._tail)
        tail = tuple(record for _, record in self._tail)
        return Past(number, base, self._crcs[base], tail, self._carries)

    # -- one segment -----------------------------------------------------------------------------------

    def _records(
        self, segment: Segment, lines: Lines, reader: Iterator[Line], head: CarryHead
    ) -> Iterator[tuple[int, Record]]:
        """Go through one segment behind its first line, and judge where it ends."""
        at = head.last_seq
        carried: list[Carried] | None = []
        for line in reader:
            letter = line.letter
            if letter == "C":
                if carried is not None:
                    carried.append(_carried(segment, line))
                continue
            if carried is not None:
                self._check_carries(segment, head, carried)
                carried = None
            if letter == "M":
                self._mark(_decode(segment, line))
                continue
            at += 1
            if line.seq != at:
                raise JournalDamaged(segment.path, line.offset, f"line {line.seq} stands in place of {at}")
            self._crcs[at] = line.crc
            if (
                at > self.last_seq
            ):  # else written again, after a kill or an error: the same, under the same seq
                record = _decode(segment, line)
                self.last_seq = at
                self._tail.append((at, record))
                yield at, record
        self.pieces.append(Piece(segment, at, lines.end, bare=carried is not None))
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

    def _check_carries(self, segment: Segment, head: CarryHead, carried: list[Carried]) -> None:
        """Compare what the head repeats with what the records say was open there."""
        if head.last_seq < self.last_seq - len(self._tail):
            return  # that far back nothing is kept; it repeats what a mark has closed since
        known = self._carries.copy()
        for seq, record in self._tail:
            if seq <= head.last_seq:
                known.note(record)
        if carried != list(known) or head.open_attempts != len(carried):
            because = (
                f"its head carries {len(carried)} open attempts over, and {len(known)} were open, or others"
            )
            self.miscarried.append(Damage(segment.path, 0, because))

    # -- where a segment does not follow on what was read ---------------------------------------------------

    def _taken_over(self, place: int) -> bool:
        """A later segment begins at or before what was read so far: it was written in place of this one.

        Only what is not synced is ever written again, so nothing that was promised stands here alone.
        """
        for later in self.found[place + 1 :]:
            head = _head(later, next(iter(Lines(read(self.disk, later))), None))
            if head is not None and head.last_seq <= self.last_seq:
                return True
        return False

    def _end(self, place: int, lines: Lines, head: CarryHead | None) -> None:
        """Nothing from here on follows on what was read: it was never synced, or something is lost."""
        rest = self.found[place:]
        # sealed means: synced, with the head of its successor
        lost = any(one.sealed for one in rest) or self._marked_behind(rest)
        if head is None:
            if lost:
                raise JournalDamaged(
                    rest[0].path, 0, "the first line is unreadable, and others behind it were synced"
                )
            if not lines.empty:
                self._harmless(rest[0].path, 0, "the first line is unreadable")
        else:
            before = self.pieces[-1] if self.pieces else None
            path, offset = (before.segment.path, before.end) if before is not None else (rest[0].path, 0)
            missing = f"lines {self.last_seq + 1} to {head.last_seq}, before {rest[0].path.name}, are missing"
            if lost or before is None or before.segment.sealed:  # a journal begins at its beginning
                raise JournalDamaged(path, offset, f"{missing}, and had been synced")
            self._harmless(path, offset, missing)
        self.unused += rest

    def _marked_behind(self, rest: list[Segment]) -> bool:
        return any(Lines(read(self.disk, one)).mark_anywhere() > self.last_seq for one in rest)

    def _harmless(self, path: Path, offset: int, because: str) -> None:
        self.damages.append(Damage(path, offset, f"{because}; nothing there had been synced"))


def scan(disk: Disk, directory: Path) -> Scan:
    """Read a whole journal that nobody writes, its archive too; iterate over what is returned."""
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
            for line in Lines(read(disk, piece.segment)):
                if line.offset >= piece.end:
                    break
                if line.seq > seq and line.letter not in ("C0", "C", "M"):
                    seq = line.seq
                    yield seq, _decode(piece.segment, line)


def _head(segment: Segment, line: Line | None) -> CarryHead | None:
    """What the first line of a segment says, if it is there."""
    record = _decode(segment, line) if line is not None and line.letter == "C0" else None
    return record if isinstance(record, CarryHead) else None


def _carried(segment: Segment, line: Line) -> Carried:
    record = _decode(segment, line)
    if not isinstance(record, Carry):  # pragma: no cover - the letter says so
        raise TypeError(line.letter)
    return Carried.of(record)


def _decode(segment: Segment, line: Line) -> Record:
    try:
        return line.record()
    except (KeyError, ValueError, msgspec.DecodeError) as error:
        because = f"line {line.seq} is intact, but a {line.letter} that this version cannot read ({error})"
        raise JournalDamaged(segment.path, line.offset, because) from error
