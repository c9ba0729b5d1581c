"""Books on a fake disk that are opened, written and checked: what the tests of recovery and of attacks share."""

from attrs import define, field

from accounting.ledger import Ledger
from accounting.records import Attempt, UsageRecord, Void
from accounting.recovery import Recovered, recover
from tests.accounting.journal_fakes import STATE, clock, records


@define(eq=False)
class FakeStore:
    """A store of a list, on a platter of its own: what it has taken in stays, whatever happens."""

    loaded: list = field(factory=list)
    is_open: bool = False
    error: Exception | None = None

    def open(self):
        if self.error is not None:
            raise self.error
        self.is_open = True
        return self

    def loaded_seq(self):
        return len(self.loaded)

    def load(self, entries):
        assert self.is_open
        new = [entry for entry in entries if entry[0] > len(self.loaded)]
        if new:
            assert [seq for seq, _ in new] == list(range(len(self.loaded) + 1, new[-1][0] + 1))
            self.loaded += new
        return len(self.loaded)

    def reopen(self):
        return len(self.loaded)

    def close(self):
        self.is_open = False


def start(disk, store, *, segment_bytes=2**14, load_records_max=7) -> Recovered:
    return recover(
        STATE,
        disk=disk,
        open_store=store.open,
        clock=clock,
        segment_bytes=segment_bytes,
        load_records_max=load_records_max,
    )


def write(books, *written):
    """What the gateway does: into the journal and, as the ledger's own, into memory."""
    for record in written:
        books.journal.append(record)
        books.ledger.replay(record)


def replayed(disk):
    ledger = Ledger()
    for _, record in records(disk):
        ledger.replay(record)
    return ledger


def check(disk, store, books):
    """Journal, store and ledger say the same, everything has one end, and only jobs are open."""
    written = records(disk)
    assert [seq for seq, _ in written] == list(range(1, len(written) + 1))
    assert store.loaded == written
    assert books.ledger.state() == replayed(disk).state()
    assert books.journal.seq == books.journal.synced_upto == len(written)
    opened = books.ledger.open_attempts()
    assert opened == books.findings.jobs
    assert {one.attempt.kind for one in opened} <= {"job"}
    ends = [(one.request, one.number) for _, one in written if isinstance(one, UsageRecord | Void)]
    begun = [(one.request, one.number) for _, one in written if isinstance(one, Attempt)]
    assert sorted(ends + [(one.attempt.request, one.attempt.number) for one in opened]) == sorted(begun)
