"""The index of the books in memory: takes slices exactly once, and fails in the ways in which DuckDB does.

`Rows` is what lasts, `MemoryIndex` the connection (`accounting.recovery.OpenIndex`) that one process has to it.
"""

from attrs import define, field

from tests.simulation.life import Life


class IndexFailed(Exception):
    """It could not, or says so."""


@define(eq=False)
class Rows:
    """What is in the index, whoever has it open.

    Attributes:
        records: (seq, record), contiguous from 1.
        failing: how the next loads fail: `before` (nothing is in), `after` (all is in, and yet it raises), `open`
            (it cannot be opened again).
    """

    records: list = field(factory=list)
    failing: list = field(factory=list)
    failed: int = 0

    @property
    def upto(self):
        return self.records[-1][0] if self.records else 0


@define(eq=False)
class MemoryIndex:
    rows: Rows
    life: Life
    broken: bool = False
    closed: bool = False

    def load(self, records):
        self._touch()
        if self.broken or self.closed:
            raise IndexFailed("closed")
        rows, upto = self.rows, self.rows.upto
        how = rows.failing.pop(0) if rows.failing else ""
        if how == "before":
            self._break()
        new = [entry for entry in records if entry[0] > upto]
        if new and (new[0][0] != upto + 1 or new[-1][0] - upto != len(new)):
            self.broken = True
            raise IndexFailed(f"lines {new[0][0]} to {new[-1][0]} do not follow on {upto}")
        rows.records += new
        if how:
            self._break()
        return rows.upto

    def _break(self):
        self.broken = True
        self.rows.failed += 1
        raise IndexFailed("COMMIT raised")

    def reopen(self):
        self._touch()
        if self.rows.failing and self.rows.failing[0] == "open":
            self.rows.failing.pop(0)
            raise IndexFailed("cannot be opened")
        self.broken = False
        return self.rows.upto

    def loaded_seq(self):
        self._touch()
        return self.rows.upto

    def close(self):
        self.closed = True

    def _touch(self):
        if self.life.touch("index"):
            self.life.fall("index")
