"""`farebox verify`: every invariant of the books as a query that must return nothing, and three comparisons.

The numbers are those of the list that the house was designed by:

    I1  every transfer moves a positive amount from one account to another, so balances sum to zero
    I2  no wallet, grant, task or key has paid out more than it may
    I3  an attempt ends at most once, nothing ends that did not begin, and nothing happens to it outside of that
    I4  every row has its own line in the journal, and no line later than the last one loaded
    I5  what was loaded is what the journal says
    I6  the general ledger sums to the subledgers, wallet by wallet
    I7  nobody was charged more than was held: charged = min(price, held), paid by grants of the same wallet
    I8  every amount is in its wallet's currency
    I9  every payment was credited once
    I11 balances in memory are the sums of what was written
    I12 open holds fit into their balances
    I13 no attempt has been open for longer than an answer can take, unless it is a job
    I14 what a provider invoices is what was settled (`accounting/invoice.py`)

(I10 is about several machines, and there is one.)

The queries (`accounting/checks.py`) ask for what is in the store, whatever has been loaded since. The comparisons
take a snapshot of the live ledger and ask the store only up to its seq.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from attrs import asdict, define, field, frozen

from accounting.checks import CHECKS, LOADED, OPEN, OVERDRAWN, REMAINS, STALE_ATTEMPTS, TOTALS
from accounting.ledger import Ledger, State
from accounting.ports import Snapshot
from accounting.records import Attempt, Extension, Job, Key, Progress, Record, UsageRecord, Void
from accounting.refusals import Contradiction
from accounting.reports import SEQ_MAX, Ask
from accounting.spending import day_of, first_day
from pricing.money import Pico

SHOWN_MAX: Final = 20
"""Findings of one invariant that are named; a broken book may break it in every row."""


@frozen
class Finding:
    """One way in which the books are wrong: which invariant, what about it, and where."""

    invariant: str
    what: str
    where: str


@define
class Totals:
    """What the requests in the books come to, added up line by line; journal and store must agree."""

    attempts: int = 0
    voids: int = 0
    extensions: int = 0
    jobs: int = 0
    settled: int = 0
    charged: Pico = 0
    price: Pico = 0
    cost: Pico = 0
    loss: Pico = 0
    input: int = 0
    output: int = 0

    def count(self, record: Record) -> None:
        """Take in one line."""
        match record:
            case Attempt():
                self.attempts += 1
            case Void():
                self.voids += 1
            case Extension():
                self.extensions += 1
            case Job():
                self.jobs += 1
            case UsageRecord():
                self.settled += 1
                self.charged += record.charged
                self.price += record.price
                self.cost += record.cost
                self.loss += record.loss
                self.input += record.usage.input
                self.output += record.usage.output
            case _:
                pass


@define
class _Window:
    """What a key has spent in one window of its cap, and the largest cap that it had meanwhile."""

    spent: Pico = 0
    most: Pico | None = None


@define
class Caps:
    """What keys spend under their caps (I2), line by line; the store has the newest line of a key alone.

    What was asked for after a key was last changed was measured by that cap; only that is counted. A cap that is
    lowered later takes nothing back, so the largest one counts; and one that is lifted is none.
    """

    wrong: list[tuple[str, str]] = field(factory=list, init=False)
    _keys: dict[str, Key] = field(factory=dict, init=False)
    _windows: dict[str, dict[tuple[str, int], _Window]] = field(factory=dict, init=False)
    """By key, and then by what kind of window it is and its first day."""
    _open: dict[tuple[str, int], tuple[str, _Window]] = field(factory=dict, init=False)

    def count(self, record: Record) -> None:
        """Take in one line."""
        match record:
            case Key():
                self._change(record)
            case Attempt():
                self._begin(record)
            case UsageRecord() | Void():
                where, window = self._open.pop((record.request, record.number), ("", None))
                if window is not None and isinstance(record, UsageRecord):
                    self._spend(where, window, record.charged)
            case _:
                pass

    def _change(self, key: Key) -> None:
        self._keys[key.key] = key
        for (kind, _), window in self._windows.get(key.key, {}).items():
            if window.most is not None:
                lifted = key.cap is None or key.cap_window != kind
                window.most = None if lifted or key.cap is None else max(window.most, key.cap)

    def _begin(self, attempt: Attempt) -> None:
        key = self._keys.get(attempt.key)
        asked_ms = attempt.hold_ms or attempt.at_ms
        if key is not None and key.cap is not None and asked_ms > key.at_ms:
            first = first_day(key.cap_window, day_of(asked_ms))
            windows = self._windows.setdefault(key.key, {})
            window = windows.setdefault((key.cap_window, first), _Window(0, key.cap))
            where = f"key {key.key}, {key.cap_window} of day {first}"
            self._open[attempt.request, attempt.number] = where, window

    def _spend(self, where: str, window: _Window, charged: Pico) -> None:
        window.spent += charged
        if window.most is not None and window.spent > window.most:
            self.wrong.append((where, f"was charged {window.spent} under a cap of {window.most}"))


Lines = Iterable[tuple[int, Record]]
"""A journal as it is scanned: (seq, record)."""


async def verify(
    *,
    snapshot: Callable[[], Snapshot],
    load: Callable[[], Awaitable[None]],
    ask: Ask,
    read_journal: Callable[[Callable[[Lines], tuple[Finding, ...]]], Awaitable[tuple[Finding, ...]]],
    now_ms: int,
    attempt_seconds_max: float,
) -> tuple[Finding, ...]:
    """Check everything, on a gateway that goes on working meanwhile.

    Args:
        snapshot: takes ledger and seq in one synchronous step.
        load: returns once all that was written before is in the store.
        ask: asks the store.
        read_journal: scans the journal, in a thread, and gives its lines to the function that it is given.
        now_ms: wall clock.
        attempt_seconds_max: how long an attempt may be open: the total deadline of an answer and some more.
    """
    taken = snapshot()
    await load()
    stored = await store_totals(ask, taken.seq)
    return (
        *await audit_store(ask, now_ms=now_ms, attempt_seconds_max=attempt_seconds_max),
        *await audit_ledger(ask, taken),
        *await read_journal(lambda lines: audit_journal(lines, taken, stored)),
    )


async def audit_store(ask: Ask, *, now_ms: int, attempt_seconds_max: float) -> tuple[Finding, ...]:
    """Run every check over the store. Arguments as for `verify`."""
    found: list[Finding] = []
    for check in CHECKS:
        found += _findings(check.invariant, [(str(row[0]), str(row[1])) for row in await ask(check.sql, ())])
    oldest_ms = now_ms - int(attempt_seconds_max * 1000)
    for invariant, sql, argument in (("I2", OVERDRAWN, SEQ_MAX), ("I13", STALE_ATTEMPTS, oldest_ms)):
        rows = await ask(sql, (argument,))
        found += _findings(invariant, [(str(row[0]), str(row[1])) for row in rows])
    return tuple(found)


async def audit_ledger(ask: Ask, snapshot: Snapshot) -> tuple[Finding, ...]:
    """Compare what the ledger had in memory with what the store says up to the same line (I11, I12).

    The store must have been loaded at least that far.
    """
    ((loaded,),) = await ask(LOADED, ())
    if loaded < snapshot.seq:
        return (Finding("I4", f"loaded up to line {loaded}, asked for {snapshot.seq}", "store"),)
    remains = {(wallet, grant): left for wallet, grant, left in await ask(REMAINS, (snapshot.seq,)) if left}
    opened = {(request, number): hold for request, number, hold in await ask(OPEN, (snapshot.seq,))}
    state = snapshot.state
    live = {(one.wallet.wallet, grant): left for one in state.wallets for grant, left in one.grants}
    live_open = {
        (attempt.request, attempt.number): hold
        for (attempt, _), hold in zip(state.open_attempts, state.holds, strict=True)
    }
    wrong = [
        (
            f"wallet {wallet}, grant {grant}",
            f"{live.get((wallet, grant), 0)} left in memory, {left} in the store",
        )
        for (wallet, grant), left in (dict.fromkeys(live, 0) | remains).items()
        if live.get((wallet, grant), 0) != left
    ]
    wrong += [
        (
            f"request {which[0]}, attempt {which[1]}",
            f"{live_open.get(which, 'nothing')} held in memory, {opened.get(which, 'nothing')} in the store",
        )
        for which in sorted(live_open.keys() | opened.keys())
        if live_open.get(which) != opened.get(which)
    ]
    return tuple(_findings("I11", wrong) + audit_state(state))


async def store_totals(ask: Ask, seq: int) -> Totals:
    """What the store has loaded of the requests, up to a line."""
    ((*counts,),) = await ask(TOTALS, (seq,))
    return Totals(*(int(count) for count in counts))


def audit_state(state: State) -> list[Finding]:
    """Check one instant of the ledger against itself (I2, I11, I12)."""
    open_holds: dict[str, int] = {}
    for (attempt, _), hold in zip(state.open_attempts, state.holds, strict=True):
        open_holds[attempt.wallet] = open_holds.get(attempt.wallet, 0) + hold
    found = []
    for one in state.wallets:
        where = f"wallet {one.wallet.wallet}"
        left = sum(amount for _, amount in one.grants)
        if one.balance != left:
            found.append(Finding("I11", f"a balance of {one.balance}, but {left} left of its grants", where))
        if one.balance < 0:
            found.append(Finding("I2", f"a balance of {one.balance}", where))
        attempts = open_holds.get(one.wallet.wallet, 0)
        if not attempts <= one.held <= one.balance:
            found.append(
                Finding("I12", f"{one.held} held of {one.balance}, {attempts} of it by open attempts", where)
            )
    return found


def audit_journal(lines: Lines, snapshot: Snapshot, stored: Totals) -> tuple[Finding, ...]:
    """Read the journal as recovery would, up to the snapshot, and compare memory and store with it (I2, I4, I5).

    Args:
        lines: (seq, record) as scanned, from the first; its chain of checksums is the scanner's to check.
        snapshot: the live ledger; holds without an attempt are not in the journal and not compared.
        stored: what the store says, up to the same line.
    """
    ledger, totals, caps, last = Ledger(), Totals(), Caps(), 0
    for seq, record in lines:
        if seq > snapshot.seq:
            break
        if seq != last + 1:
            return (Finding("I4", f"line {last} is followed by {seq}", f"journal, line {seq}"),)
        last = seq
        totals.count(record)
        caps.count(record)
        try:
            ledger.replay(record)
        except Contradiction as contradiction:
            return (Finding("I5", str(contradiction), f"journal, line {seq}"),)
    if last < snapshot.seq:
        return (Finding("I4", f"ends after line {last} of {snapshot.seq}", "journal"),)
    wrong = _differences(ledger.state(), snapshot.state)
    said, loaded = asdict(totals), asdict(stored)
    wrong += [
        (f"store, {name}", f"{loaded[name]} in the store, {said[name]} in the journal")
        for name in said
        if said[name] != loaded[name]
    ]
    return (*_findings("I2", caps.wrong), *_findings("I5", wrong))


def _differences(said: State, live: State) -> list[tuple[str, str]]:
    wrong = []
    journal = {one.wallet.wallet: one for one in said.wallets}
    memory = {one.wallet.wallet: one for one in live.wallets}
    for wallet in sorted(journal.keys() | memory.keys()):
        then, now = journal.get(wallet), memory.get(wallet)
        if then is None or now is None:
            wrong.append((f"wallet {wallet}", f"only in {'memory' if then is None else 'the journal'}"))
        elif (then.wallet, then.grants) != (now.wallet, now.grants):
            wrong.append(
                (
                    f"wallet {wallet}",
                    f"{now.balance} in memory, {then.balance} by the journal; or it was changed",
                )
            )
    if set(said.keys) != set(live.keys):
        wrong.append(("keys", "are not those of the journal"))
    if _open(said) != _open(live):
        wrong.append(("open attempts", "are not those of the journal"))
    return wrong


def _open(state: State) -> dict[Attempt, tuple[Progress | None, Pico]]:
    """Every open attempt with the last that was written about it, and what is set aside."""
    both = zip(state.open_attempts, state.holds, strict=True)
    return {attempt: (progress, hold) for (attempt, progress), hold in both}


def _findings(invariant: str, wrong: list[tuple[str, str]]) -> list[Finding]:
    found = [Finding(invariant, what, where) for where, what in wrong[:SHOWN_MAX]]
    if len(wrong) > SHOWN_MAX:
        found.append(Finding(invariant, f"and {len(wrong) - SHOWN_MAX} more", "…"))
    return found
