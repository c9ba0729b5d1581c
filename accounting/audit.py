"""`farebox verify`: every invariant of the books as a query that must return nothing, and three comparisons.

The numbers are those of the list that the house was designed by:

    I1  every transfer moves a positive amount from one account to another, so balances sum to zero
    I2  no wallet and no grant has paid out more than came in
    I3  an attempt ends at most once, and nothing ends that did not begin
    I4  every row has its own line in the journal, and no line later than the last one loaded
    I5  what was loaded is what the journal says
    I6  the general ledger sums to the subledgers, wallet by wallet
    I7  nobody was charged more than was held: charged = min(price, held), paid by grants of the same wallet
    I8  every amount is in its wallet's currency
    I9  every payment was credited once
    I11 balances in memory are the sums of what was written
    I12 open holds fit into their balances
    I13 no attempt has been open for longer than an answer can take

(I10 is about several machines, I14 about the providers' invoices; neither exists here yet.)

The queries ask for what is in the store, whatever has been loaded since; each is one statement and so sees
one instant. The comparisons take a snapshot of the live ledger and ask the store only up to its seq.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from attrs import asdict, define, frozen

from accounting.hold import Snapshot
from accounting.ledger import Contradiction, Ledger, State
from accounting.records import Attempt, Record, UsageRecord, Void
from accounting.reports import SEQ_MAX, Ask
from pricing.money import Pico

SHOWN_MAX: Final = 20
"""Findings of one invariant that are named; a broken book may break it in every row."""


@frozen
class Finding:
    """One way in which the books are wrong: which invariant, what about it, and where."""

    invariant: str
    what: str
    where: str


@frozen
class Check:
    """A query that must return nothing; each row that it does return is (where, what)."""

    invariant: str
    sql: str


_ENDS: Final = "(SELECT seq, request, number FROM usage UNION ALL SELECT seq, request, number FROM void)"
_PAID: Final = """(
    SELECT u.seq, u.request, u.number, u.wallet, leg.grant_ AS grant_, leg.amount AS amount
    FROM (SELECT seq, request, number, wallet, unnest(legs) AS leg FROM usage) u
)"""
_REMAINS: Final = f"""
    SELECT g.wallet AS wallet, g.grant_ AS grant_, g.amount - coalesce(sum(m.amount), 0) AS remains
    FROM grant_ g LEFT JOIN (
        SELECT grant_, amount FROM {_PAID} WHERE seq <= $1
        UNION ALL SELECT grant_, amount FROM transfer WHERE grant_ IS NOT NULL AND seq <= $1
    ) m ON m.grant_ = g.grant_
    WHERE g.seq <= $1
    GROUP BY g.seq, g.wallet, g.grant_, g.amount"""  # noqa: S608 - the same constants everywhere
"""What is left of each grant after line $1."""

CHECKS: Final = (
    Check(
        "I1",
        """SELECT 'transfer ' || transfer, 'moves ' || amount || ' from ' || debit || ' to ' || credit
           FROM transfer WHERE amount <= 0 OR debit = credit""",
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || request || ', attempt ' || number, 'ended ' || count(*) || ' times'
            FROM {_ENDS} GROUP BY request, number HAVING count(*) > 1""",  # noqa: S608
    ),
    Check(
        "I3",
        """SELECT 'request ' || request || ', attempt ' || number, 'began ' || count(*) || ' times'
           FROM attempt GROUP BY request, number HAVING count(*) > 1""",
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || e.request || ', attempt ' || e.number, 'ended but did not begin before'
            FROM {_ENDS} e ANTI JOIN attempt a
            ON a.request = e.request AND a.number = e.number AND a.seq < e.seq""",  # noqa: S608
    ),
    Check(
        "I3",
        """SELECT 'request ' || u.request || ', attempt ' || u.number, 'was settled otherwise than it began'
           FROM usage u JOIN attempt a ON a.request = u.request AND a.number = u.number
           WHERE (a.wallet, a.key, a.model, a.price_version, a.markup_ppm, a.hold)
             <> (u.wallet, u.key, u.model, u.price_version, u.markup_ppm, u.held)""",
    ),
    Check(
        "I4",
        """SELECT 'line ' || seq, 'stands in ' || count(*) || ' rows' FROM (
             SELECT seq FROM grant_ UNION ALL SELECT seq FROM attempt UNION ALL SELECT seq FROM usage
             UNION ALL SELECT seq FROM void UNION ALL SELECT seq FROM wallet UNION ALL SELECT seq FROM api_key
           ) GROUP BY seq HAVING count(*) > 1""",
    ),
    Check(
        "I4",
        """SELECT 'line ' || seq, 'is beyond the last one loaded' FROM (
             SELECT seq FROM grant_ UNION ALL SELECT seq FROM attempt UNION ALL SELECT seq FROM usage
             UNION ALL SELECT seq FROM void UNION ALL SELECT seq FROM wallet UNION ALL SELECT seq FROM api_key
             UNION ALL SELECT seq FROM transfer
           ) WHERE seq < 1 OR seq > (SELECT loaded_seq FROM meta)""",
    ),
    Check("I4", "SELECT 'meta', 'has ' || count(*) || ' rows' FROM meta HAVING count(*) <> 1"),
    Check(
        "I6",
        f"""SELECT 'wallet ' || wallet,
                   kind || ': ' || sum(ours) || ' in the subledger, ' || sum(posted) || ' posted'
            FROM (
              SELECT wallet, kind, 0::HUGEINT AS ours, amount AS posted FROM transfer
              WHERE kind IN ('top_up', 'promo', 'usage', 'usage_promo', 'loss', 'cost')
              UNION ALL
              SELECT wallet, CASE kind WHEN 'paid' THEN 'top_up' ELSE 'promo' END, amount, 0 FROM grant_
              UNION ALL
              SELECT p.wallet, CASE g.kind WHEN 'paid' THEN 'usage' ELSE 'usage_promo' END, p.amount, 0
              FROM {_PAID} p JOIN grant_ g ON g.grant_ = p.grant_
              UNION ALL SELECT wallet, 'loss', loss, 0 FROM usage
              UNION ALL SELECT wallet, 'cost', cost, 0 FROM usage
            ) GROUP BY wallet, kind HAVING sum(ours) <> sum(posted)""",  # noqa: S608
    ),
    Check(
        "I7",
        """SELECT 'request ' || request || ', attempt ' || number,
                  'charged ' || charged || ' at a price of ' || price
                  || ' with ' || held || ' held and a loss of ' || loss
           FROM usage WHERE charged <> least(price, held) OR loss <> price - charged""",
    ),
    Check(
        "I7",
        """SELECT 'request ' || request || ', attempt ' || number,
                  'charged ' || charged || ' but its grants paid otherwise'
           FROM usage WHERE charged <> coalesce(list_sum(list_transform(legs, lambda leg: leg.amount)), 0)""",
    ),
    Check(
        "I7",
        f"""SELECT 'request ' || p.request || ', attempt ' || p.number, 'was paid by grant ' || p.grant_
            FROM {_PAID} p ANTI JOIN grant_ g
            ON g.grant_ = p.grant_ AND g.wallet = p.wallet AND g.seq < p.seq""",  # noqa: S608
    ),
    Check(
        "I7",
        """SELECT 'transfer ' || t.transfer, 'takes from grant ' || t.grant_ FROM transfer t
           ANTI JOIN grant_ g ON g.grant_ = t.grant_ AND g.wallet = t.wallet AND g.seq < t.seq
           WHERE t.grant_ IS NOT NULL""",
    ),
    Check(
        "I8",
        """SELECT o.what,
                  'in ' || o.currency || ', its wallet in ' || coalesce(w.currency, 'nothing: there is none')
           FROM (
             SELECT 'transfer ' || transfer AS what, wallet, currency FROM transfer UNION ALL
             SELECT 'request ' || request || ', attempt ' || number, wallet, currency FROM usage
           ) o LEFT JOIN wallet w ON w.wallet = o.wallet WHERE w.currency IS DISTINCT FROM o.currency""",
    ),
    Check(
        "I8",
        """SELECT o.what, 'belongs to no wallet' FROM (
             SELECT 'grant ' || grant_ AS what, wallet FROM grant_ UNION ALL
             SELECT 'key ' || key, wallet FROM api_key UNION ALL
             SELECT 'request ' || request || ', attempt ' || number, wallet FROM attempt
           ) o ANTI JOIN wallet w ON w.wallet = o.wallet""",
    ),
    Check(
        "I9",
        """SELECT 'payment ' || source_key, 'was credited ' || count(*) || ' times'
           FROM grant_ GROUP BY source_key HAVING count(*) > 1""",
    ),
    Check(
        "I9",
        """SELECT 'grant ' || grant_, 'stands in the books ' || count(*) || ' times'
           FROM grant_ GROUP BY grant_ HAVING count(*) > 1""",
    ),
)

OVERDRAWN: Final = f"""
    SELECT 'wallet ' || wallet || ', grant ' || grant_, 'has ' || remains || ' left'
    FROM ({_REMAINS}) WHERE remains < 0"""  # noqa: S608

STALE_ATTEMPTS: Final = """
    SELECT 'request ' || request || ', attempt ' || number, 'open since ' || at_ms FROM open_attempt
    WHERE kind = 'call' AND at_ms < ?"""

LOADED: Final = "SELECT loaded_seq FROM meta"

OPEN: Final = f"""
    SELECT a.request, a.number, a.hold FROM attempt a
    ANTI JOIN (SELECT * FROM {_ENDS} WHERE seq <= $1) e ON a.request = e.request AND a.number = e.number
    WHERE a.seq <= $1"""  # noqa: S608


TOTALS: Final = """
    SELECT (SELECT count(*) FROM attempt WHERE seq <= $1), (SELECT count(*) FROM void WHERE seq <= $1),
           count(*), coalesce(sum(charged), 0), coalesce(sum(price), 0), coalesce(sum(cost), 0),
           coalesce(sum(loss), 0), coalesce(sum(input), 0), coalesce(sum(output), 0)
    FROM usage WHERE seq <= $1"""


@define
class Totals:
    """What the requests in the books come to, added up line by line; journal and store must agree."""

    attempts: int = 0
    voids: int = 0
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
    remains = {(wallet, grant): left for wallet, grant, left in await ask(_REMAINS, (snapshot.seq,)) if left}
    opened = {(request, number): hold for request, number, hold in await ask(OPEN, (snapshot.seq,))}
    state = snapshot.state
    live = {(one.wallet.wallet, grant): left for one in state.wallets for grant, left in one.grants}
    live_open = {(attempt.request, attempt.number): attempt.hold for attempt, _ in state.open_attempts}
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
    for attempt, _ in state.open_attempts:
        open_holds[attempt.wallet] = open_holds.get(attempt.wallet, 0) + attempt.hold
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
    """Read the journal as recovery would, up to the snapshot, and compare memory and store with it (I4, I5).

    Args:
        lines: (seq, record) as scanned, from the first; its chain of checksums is the scanner's to check.
        snapshot: the live ledger; holds without an attempt are not in the journal and not compared.
        stored: what the store says, up to the same line.
    """
    ledger, totals, last = Ledger(), Totals(), 0
    for seq, record in lines:
        if seq > snapshot.seq:
            break
        if seq != last + 1:
            return (Finding("I4", f"line {last} is followed by {seq}", f"journal, line {seq}"),)
        last = seq
        totals.count(record)
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
    return tuple(_findings("I5", wrong))


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
    if dict(said.open_attempts) != dict(live.open_attempts):
        wrong.append(("open attempts", "are not those of the journal"))
    return wrong


def _findings(invariant: str, wrong: list[tuple[str, str]]) -> list[Finding]:
    found = [Finding(invariant, what, where) for where, what in wrong[:SHOWN_MAX]]
    if len(wrong) > SHOWN_MAX:
        found.append(Finding(invariant, f"and {len(wrong) - SHOWN_MAX} more", "…"))
    return found
