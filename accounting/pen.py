"""The pen: it writes what the ledger has decided into the journal, and lets the ledger take it in, in one step.

Nothing is awaited between the two, so no cancellation can fall between a debit and its record.
"""

from collections.abc import Callable
from typing import Literal

from attrs import define, field

from accounting.ledger import Ledger
from accounting.ports import Overloaded, Writer
from accounting.records import Record


@define(eq=False)
class Pen:
    """The ledger and its journal, and what whoever writes needs to know.

    Attributes:
        ledger: as recovered.
        writer: where records go.
        clock: wall clock in ms, never decreasing; only stamped.
        now: monotonic seconds; for elapsed time.
        new_id: a fresh unique id with this prefix.
        progress_seconds, progress_tokens: how often an answer under way is written down.
        durability: `relaxed`, `standard` or `strict`; what waits for the platter (`config.Books`).
        empty_free_per_key_day: how many completions without a single token are free.
        freed: told the wallet whenever something of its credit has come free.
        seq: of the last record that the ledger has taken in.
        failed: the writer has failed for good, so whoever watches it says; no answer may go on.
    """

    ledger: Ledger
    writer: Writer
    clock: Callable[[], int]
    now: Callable[[], float]
    new_id: Callable[[str], str]
    progress_seconds: float = field(default=2.0, kw_only=True)
    progress_tokens: int = field(default=1000, kw_only=True)
    durability: Literal["relaxed", "standard", "strict"] = field(default="standard", kw_only=True)
    empty_free_per_key_day: int = field(default=0, kw_only=True)
    freed: Callable[[str], None] = field(default=lambda _wallet: None, kw_only=True)
    seq: int = field(default=0, kw_only=True)
    failed: bool = field(default=False, init=False)

    def put_down(self, record: Record, *, reserved: bool = False) -> int:
        """Write a record that the ledger has decided on, and apply it; one synchronous step. Says its seq."""
        seq = self.writer.write(record, reserved=reserved)
        self.seq = seq
        self.ledger.apply(record)
        return seq

    def expire_due(self, wallet: str | None = None) -> int:
        """Write off what has expired, as far as open holds allow and there is room; call it now and then.

        Returns:
            How many records were written. What found no room comes with a later call.
        """
        if not self.ledger.may_expire:
            return 0
        transfers = self.ledger.expire_due(self.clock(), wallet)
        for count, transfer in enumerate(transfers):
            try:
                self.put_down(transfer)
            except (Overloaded, OSError):
                return count
        return len(transfers)
