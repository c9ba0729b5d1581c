import duckdb
import pytest
from attrs import evolve
from msgspec.structs import replace

from accounting.audit import (
    SHOWN_MAX,
    Caps,
    Finding,
    Totals,
    audit_journal,
    audit_ledger,
    audit_state,
    audit_store,
    store_totals,
    verify,
)
from accounting.claims import Claim
from accounting.ports import Snapshot
from accounting.records import (
    Attempt,
    Ending,
    Extension,
    GrantKind,
    Key,
    Mark,
    Spender,
    UsageRecord,
    Wallet,
)
from accounting.spending import TASK_IDLE_MS, Budget, first_day
from accounting.store import Store
from pricing.usage import Reported, Usage
from proxy.config import DATA
from tests.accounting.ledger_fakes import FakeClient, World, no_cut, terms

KEY = Key("k1", "w1", "d1", "fb…1", 1)
CAPPED = Key("k3", "w1", "d3", "fb…3", 6_000, cap=2_000, cap_window="day")
DAY_MS = 86_400_000
HOUR_MS = 3_600_000


def busy_world():
    """Books in which everything has happened: charges, failures, expiry, an attempt still open."""
    world = World()
    world.fund(50_000)
    world.fund(7_000, kind=GrantKind.PROMO, expires_ms=5_000)
    world.fund(20_000, "w2")
    world.fund(3_000, "w2", expires_ms=6_000)
    world.books.put_down(KEY)
    for number in range(6):
        wallet = "w1" if number % 3 else "w2"
        with world.books.hold(f"r{number}", Claim(Spender(wallet, "k1")), 1_000, FakeClient()) as hold:
            hold.attempt(terms())
            if number == 1:
                continue
            hold.sending()
            if number == 2:
                hold.attempt_failed(Ending.TIMED_OUT, 0)
                hold.attempt(terms(account="spare"))
                hold.sending()
            hold.meter.report(Reported((Usage(input=10, output=100 if number == 3 else 20),), final=True))
            hold.cover(b"x", no_cut)
            world.seconds += 3
            hold.cover(b"x", no_cut)
    world.ms = 7_000
    world.books.expire_due()
    task_and_jobs(world)
    world.books.hold("r9", Claim(Spender("w1", "k1")), 900, FakeClient()).attempt(terms())
    return world


def task_and_jobs(world):
    """A task with a budget under a key with a cap, holds that change, and jobs: finished, failed and open."""
    world.books.put_down(CAPPED)
    for number, most in enumerate((2_000, 1_500, None)):
        spend(world, f"t{number}", budget=Budget("task", most), held=500, to=700 - 50 * number)
    for number in range(3):
        with world.books.hold(f"j{number}", Claim(Spender("w1", "k1"), 7_000), 900, FakeClient()) as hold:
            hold.attempt(terms(), job=True)
            hold.sending()
            world.books.put_down(Extension(f"j{number}", 1, 800, 7_000))
            hold.accepted(f"video-{number}", Usage(input=10, output=20))
    world.books.settle_job("j0", finished=True)
    world.books.settle_job("j1", finished=False)


def spend(world, request, *, key="k3", budget=None, held=500, to=None, output=20):
    """A request that is charged 30 and 15 for each token of output."""
    claim = Claim(Spender("w1", key), world.ms, budget)
    with world.books.hold(request, claim, held, FakeClient()) as hold:
        hold.attempt(terms())
        if to is not None:
            world.books.put_down(Extension(request, 1, to, world.ms))
        hold.sending()
        hold.meter.report(Reported((Usage(input=10, output=output),), final=True))
        hold.cover(b"x", no_cut)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A busy world and a connection to its store."""
    path = tmp_path_factory.mktemp("audit") / "books.duckdb"
    world = busy_world()
    records = list(enumerate(world.writer.records, 1))
    store = Store.open(path, memory_limit="64MB", schema_dir=DATA / "schema")
    for start in range(0, len(records), 7):
        store.load(records[start : start + 7])
    store.close()
    connection = duckdb.connect(str(path))
    yield world, connection
    connection.close()


@pytest.fixture
def books(loaded):
    """The same, with whatever a test does to the store undone after it."""
    world, connection = loaded
    connection.execute("BEGIN")

    async def ask(sql, parameters):
        return connection.execute(sql, list(parameters)).fetchall()

    yield world, ask, connection
    connection.execute("ROLLBACK")


async def store_findings(ask, now_ms=8_000):
    return await audit_store(ask, now_ms=now_ms, attempt_seconds_max=3600)


def lines(world):
    return list(enumerate(world.writer.records, 1))


# -- books that are right ----------------------------------------------------------------------------


async def test_books_in_order_have_no_findings(books):
    world, ask, _ = books
    snapshot = world.books.snapshot()
    assert await store_findings(ask) == ()
    assert await audit_ledger(ask, snapshot) == ()
    assert audit_journal(lines(world), snapshot, await store_totals(ask, snapshot.seq)) == ()


async def test_what_came_after_the_snapshot_does_not_count(books):
    """Every prefix of the journal is in order with the ledger of that time, however far the store is."""
    world, ask, _ = books
    past = World()
    for seq, record in lines(world):
        past.ledger.replay(record)
        snapshot = Snapshot(seq, past.ledger.state())
        assert await audit_ledger(ask, snapshot) == ()
        assert audit_journal(lines(world), snapshot, await store_totals(ask, seq)) == ()


async def test_verifying_takes_the_snapshot_first_and_then_waits_for_the_store(books):
    world, ask, connection = books
    steps = []

    def snapshot():
        steps.append("snapshot")
        return world.books.snapshot()

    async def load():
        steps.append("load")

    async def read_journal(audit):
        steps.append("journal")
        return audit(lines(world))

    async def found():
        return await verify(
            snapshot=snapshot,
            load=load,
            ask=ask,
            read_journal=read_journal,
            now_ms=8_000,
            attempt_seconds_max=3600,
        )

    assert await found() == ()
    assert steps == ["snapshot", "load", "journal"]
    connection.execute("UPDATE usage SET legs = [] WHERE request = 'r4'")
    assert {finding.invariant for finding in await found()} == {"I6", "I7", "I11"}
    connection.execute("DELETE FROM usage WHERE request = 'r4'")
    assert {finding.invariant for finding in await found()} == {"I5", "I6", "I11"}


# -- books that are wrong ----------------------------------------------------------------------------

WRONGS = [
    ("UPDATE transfer SET amount = 0 WHERE kind = 'expiry'", "I1"),
    ("UPDATE transfer SET amount = -5 WHERE kind = 'expiry'", "I1"),
    ("UPDATE transfer SET credit = debit WHERE kind = 'expiry'", "I1"),
    ("UPDATE grant_ SET amount = 5 WHERE wallet = 'w2'", "I2"),
    ("INSERT INTO void SELECT 1000, request, number, '', 1 FROM usage LIMIT 1", "I3"),
    ("INSERT INTO usage SELECT * FROM usage LIMIT 1", "I3"),
    ("INSERT INTO attempt SELECT * FROM attempt LIMIT 1", "I3"),
    ("DELETE FROM attempt WHERE request = 'r4'", "I3"),
    ("UPDATE attempt SET seq = 1000 WHERE request = 'r4'", "I3"),
    ("UPDATE attempt SET hold = hold + 1 WHERE request = 'r4'", "I3"),
    ("UPDATE usage SET price_version = 'p_other' WHERE request = 'r4'", "I3"),
    ("UPDATE usage SET seq = (SELECT min(seq) FROM grant_) WHERE request = 'r4'", "I4"),
    ("UPDATE meta SET loaded_seq = loaded_seq - 1", "I4"),
    ("UPDATE grant_ SET seq = 0 WHERE wallet = 'w2'", "I4"),
    ("DELETE FROM meta", "I4"),
    ("DELETE FROM transfer WHERE kind = 'usage'", "I6"),
    ("UPDATE transfer SET amount = amount + 1 WHERE kind = 'cost'", "I6"),
    ("UPDATE transfer SET amount = amount + 1 WHERE kind = 'top_up'", "I6"),
    ("DELETE FROM usage WHERE request = 'r4'", "I6"),
    ("UPDATE usage SET charged = charged + 1 WHERE request = 'r4'", "I7"),
    ("UPDATE usage SET loss = loss + 1 WHERE request = 'r3'", "I7"),
    ("UPDATE usage SET held = 5 WHERE request = 'r4'", "I7"),
    ("UPDATE usage SET legs = [] WHERE request = 'r4'", "I7"),
    ("UPDATE usage SET wallet = 'w2' WHERE request = 'r4'", "I7"),
    ("DELETE FROM grant_ WHERE kind = 'promo'", "I7"),
    ("UPDATE transfer SET grant_ = 'nobody' WHERE kind = 'expiry'", "I7"),
    ("UPDATE transfer SET currency = 'EUR' WHERE kind = 'usage'", "I8"),
    ("UPDATE usage SET currency = 'EUR' WHERE request = 'r4'", "I8"),
    ("UPDATE api_key SET wallet = 'nobody'", "I8"),
    ("UPDATE grant_ SET source_key = 'same'", "I9"),
    ("UPDATE grant_ SET grant_ = 'same'", "I9"),
    ("UPDATE usage SET held = held + 1 WHERE request = 't0'", "I3"),
    ("UPDATE extension SET hold = hold + 1 WHERE request = 't0'", "I3"),
    ("DELETE FROM extension WHERE request = 'j0'", "I3"),
    ("UPDATE usage SET budget = 'other' WHERE request = 't0'", "I3"),
    ("UPDATE extension SET seq = 1 WHERE request = 't0'", "I3"),
    ("UPDATE extension SET seq = (SELECT loaded_seq FROM meta) WHERE request = 't0'", "I3"),
    ("UPDATE extension SET number = 2 WHERE request = 't0'", "I3"),
    ("INSERT INTO extension VALUES (1, 'nobody', 1, 5, 5)", "I3"),
    ("UPDATE job SET request = 'r4' WHERE request = 'j0'", "I3"),
    ("UPDATE job SET seq = (SELECT loaded_seq FROM meta) WHERE request = 'j1'", "I3"),
    ("INSERT INTO job SELECT * FROM job WHERE request = 'j2'", "I3"),
    ("UPDATE attempt SET kind = 'call' WHERE request = 'j2'", "I3"),
    ("UPDATE extension SET seq = 1000 WHERE request = 'j2'", "I4"),
    ("UPDATE job SET seq = 1 WHERE request = 'j2'", "I4"),
    ("UPDATE job SET cost = cost + 1 WHERE request = 'j0'", "I7"),
    ("UPDATE attempt SET budget_max = 989 WHERE request = 't2'", "I2"),
    ("UPDATE attempt SET budget_max = 659 WHERE request = 't1'", "I2"),
    ("UPDATE usage SET charged = 1_000_000 WHERE request = 't0'", "I2"),
]


@pytest.mark.parametrize(("wrong", "invariant"), WRONGS)
async def test_what_is_wrong_in_the_store_is_found_and_named(books, wrong, invariant):
    _, ask, connection = books
    connection.execute(wrong)
    found = await store_findings(ask)
    assert invariant in {finding.invariant for finding in found}
    assert all(finding.where and finding.what for finding in found)


async def test_an_attempt_open_for_longer_than_an_answer_can_take_is_found(books):
    _, ask, _ = books
    assert await store_findings(ask, now_ms=7_000 + HOUR_MS) == ()
    (finding,) = await store_findings(ask, now_ms=7_001 + HOUR_MS)
    assert finding == Finding("I13", "open since 7000", "request r9, attempt 1")


async def test_a_job_may_be_open_for_long_but_not_one_that_no_provider_has_taken_on(books):
    _, ask, connection = books
    connection.execute("DELETE FROM job WHERE request = 'j2'")
    found = await store_findings(ask, now_ms=7_001 + HOUR_MS)
    assert {one.where for one in found if one.invariant == "I13"} == {
        "request r9, attempt 1",
        "request j2, attempt 1",
    }


# -- what tasks and keys may spend -------------------------------------------------------------------


async def stored_findings(world, tmp_path):
    """What verify finds in the store and the journal of a world."""
    store = Store.open(tmp_path / "books.duckdb", memory_limit="64MB", schema_dir=DATA / "schema")

    async def ask(sql, parameters):
        return store.query(sql, list(parameters))

    store.load(lines(world))
    found = await store_findings(ask, now_ms=world.ms)
    snapshot = world.books.snapshot()
    found += audit_journal(lines(world), snapshot, await store_totals(ask, snapshot.seq))
    store.close()
    (tmp_path / "books.duckdb").unlink()
    return found


def rewritten(world, request, **changes):
    """The world whose journal says something else of a request."""
    world.writer.records = [
        replace(record, **{name: value for name, value in changes.items() if hasattr(record, name)})
        if isinstance(record, Attempt | UsageRecord) and record.request == request
        else record
        for record in world.writer.records
    ]


async def test_a_task_that_was_forgotten_may_be_named_again_with_a_budget_of_its_own(tmp_path):
    world = World()
    world.fund(50_000)
    for number in range(3):
        spend(world, f"r{number}", budget=Budget("task", 500))
        world.ms += TASK_IDLE_MS + 1
    assert await stored_findings(world, tmp_path) == ()


@pytest.mark.parametrize("idle_ms", [0, TASK_IDLE_MS])
async def test_a_task_that_was_not_forgotten_has_one_budget(tmp_path, idle_ms):
    world = World()
    world.fund(50_000)
    spend(world, "r0", budget=Budget("task", 660))
    world.ms += idle_ms
    spend(world, "r1", budget=Budget("task"), held=330)
    assert await stored_findings(world, tmp_path) == ()
    rewritten(world, "r1", budget_max=600)
    found = await stored_findings(world, tmp_path)
    assert [(one.invariant, one.where) for one in found] == [("I2", "wallet w1, task task")]
    assert found[0].what == "was charged 660 and might spend 600"


async def test_a_task_with_a_job_that_is_open_is_not_forgotten(tmp_path):
    world = World()
    world.fund(50_000)
    with world.books.hold(
        "j", Claim(Spender("w1", "k3"), world.ms, Budget("task", 5_000)), 900, FakeClient()
    ) as hold:
        hold.attempt(terms(), job=True)
        hold.accepted("video", Usage(input=10, output=20))
    world.ms += 2 * TASK_IDLE_MS
    spend(world, "r1", budget=Budget("task"))
    world.books.settle_job("j", finished=True)
    assert await stored_findings(world, tmp_path) == ()
    rewritten(world, "j", budget_max=500)
    assert ("I2", "wallet w1, task task") in {
        (one.invariant, one.where) for one in await stored_findings(world, tmp_path)
    }


def capped(world, **changes):
    """Put the key down with these limits, now."""
    world.ms += 1
    world.books.put_down(replace(CAPPED, at_ms=world.ms, **changes))
    world.ms += 1


def capped_world(cap=400, window="day"):
    world = World(ms=100 * DAY_MS)
    world.fund(50_000)
    capped(world, cap=cap, cap_window=window)
    return world


def over_cap(world):
    caps = Caps()
    for record in world.writer.records:
        caps.count(record)
    return [where for where, _ in caps.wrong]


def test_what_a_key_spends_under_its_cap_is_in_order():
    world = capped_world()
    for day in range(3):
        spend(world, f"r{day}", held=400)
        world.ms += DAY_MS
    assert over_cap(world) == []


@pytest.mark.parametrize("window", ["lifetime", "day", "week", "month"])
def test_a_key_that_was_charged_more_than_its_cap_is_found(window):
    world = capped_world(cap=700, window=window)
    spend(world, "r0", held=600)
    rewritten(world, "r0", charged=701)
    assert over_cap(world) == [f"key k3, {window} of day {first_day(window, 100)}"]


def test_a_window_counts_what_was_held_in_it_whenever_it_ended():
    world = capped_world()
    claim = Claim(Spender("w1", "k3"), world.ms)
    with world.books.hold("r0", claim, 400, FakeClient()) as hold:
        hold.attempt(terms())
        hold.sending()
        world.ms += DAY_MS
        spend(world, "r1", held=400)
        hold.meter.report(Reported((Usage(input=10, output=20),), final=True))
    assert over_cap(world) == []


def test_a_cap_that_is_lowered_takes_nothing_back_and_one_that_is_lifted_is_none():
    world = capped_world(cap=400)
    spend(world, "r0", held=400)
    capped(world, cap=100)
    assert over_cap(world) == []
    capped(world, cap=None)
    spend(world, "r1", held=600, output=30)
    capped(world, cap=50)
    assert over_cap(world) == []
    spend(world, "r2", key="k9", held=400)
    assert over_cap(world) == []


def test_what_was_asked_for_before_a_cap_was_set_is_not_measured_by_it():
    world = capped_world(cap=None)
    asked_ms = world.ms
    with world.books.hold("r0", Claim(Spender("w1", "k3"), asked_ms), 400, FakeClient()) as hold:
        capped(world, cap=10)
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(Reported((Usage(input=10, output=20),), final=True))
    assert over_cap(world) == []


def test_a_raised_cap_counts_for_what_is_under_way():
    world = capped_world(cap=400)
    with world.books.hold("r0", Claim(Spender("w1", "k3"), world.ms), 400, FakeClient()) as hold:
        hold.attempt(terms())
        capped(world, cap=700)
        world.books.put_down(Extension("r0", 1, 700, world.ms))
        hold.sending()
        hold.meter.report(Reported((Usage(input=10, output=40),), final=True))
    assert over_cap(world) == []
    rewritten(world, "r0", charged=701)
    assert len(over_cap(world)) == 1


async def test_an_invariant_broken_everywhere_names_the_first_and_counts_the_rest(books):
    _, ask, connection = books
    connection.execute("INSERT INTO usage SELECT u.* FROM usage u, range(3)")
    connection.execute("UPDATE usage SET loss = loss + 1")
    found = [finding for finding in await store_findings(ask) if finding.invariant == "I7"]
    assert len(found) == SHOWN_MAX + 1
    assert found[-1].what.startswith("and ")


@pytest.mark.parametrize(
    "wrong",
    [
        "UPDATE grant_ SET amount = amount + 1 WHERE wallet = 'w2'",
        "DELETE FROM grant_ WHERE wallet = 'w1'",
        "UPDATE transfer SET amount = amount - 1 WHERE kind = 'expiry'",
        "UPDATE usage SET legs = [] WHERE request = 'r4'",
        "DELETE FROM attempt WHERE request = 'r9'",
        "DELETE FROM void",
        "UPDATE attempt SET hold = 1 WHERE request = 'r9'",
        "UPDATE extension SET hold = 1 WHERE request = 'j2'",
        "DELETE FROM extension WHERE request = 'j2'",
    ],
)
async def test_memory_and_store_that_differ_are_found(books, wrong):
    world, ask, connection = books
    connection.execute(wrong)
    assert {finding.invariant for finding in await audit_ledger(ask, world.books.snapshot())} == {"I11"}


async def test_a_store_that_has_not_been_loaded_so_far_says_so(books):
    world, ask, connection = books
    connection.execute("UPDATE meta SET loaded_seq = 3")
    (finding,) = await audit_ledger(ask, world.books.snapshot())
    assert (finding.invariant, finding.where) == ("I4", "store")


# -- memory and journal ------------------------------------------------------------------------------


def test_a_wallet_that_does_not_add_up_is_found():
    world = busy_world()
    state = world.books.snapshot().state
    one = state.wallets[0]
    assert audit_state(state) == []
    for wrong, invariants in (
        (evolve(one, balance=one.balance + 1), {"I11"}),
        (evolve(one, balance=-5, grants=(("g", -5),)), {"I2", "I12"}),
        (evolve(one, held=one.balance + 1), {"I12"}),
        (evolve(one, held=899 + 800), {"I12"}),
    ):
        found = audit_state(evolve(state, wallets=(wrong, *state.wallets[1:])))
        assert {finding.invariant for finding in found} == invariants


def journal_findings(world, changed, **snapshot):
    before = world.books.snapshot()
    totals = Totals()
    for record in world.writer.records:
        totals.count(record)
    return audit_journal(changed, evolve(before, **snapshot), totals)


def test_a_journal_with_a_gap_or_a_short_end_is_found():
    world = busy_world()
    (gap,) = journal_findings(world, [line for line in lines(world) if line[0] != 5])
    assert (gap.invariant, gap.where) == ("I4", "journal, line 6")
    (short,) = journal_findings(world, lines(world)[:-1])
    assert (short.invariant, short.where) == ("I4", "journal")


def test_a_journal_that_contradicts_itself_is_found():
    world = busy_world()
    records = lines(world)
    records[4] = (5, records[2][1])
    (finding,) = journal_findings(world, records)
    assert (finding.invariant, finding.where) == ("I5", "journal, line 5")


def test_a_journal_that_says_something_else_than_memory_or_store_is_found():
    world = busy_world()
    records = lines(world)
    place, record = next((seq, one) for seq, one in records if isinstance(one, UsageRecord) and one.charged)
    changed = records.copy()
    changed[place - 1] = (place, replace(record, cost=record.cost + 1))
    (finding,) = journal_findings(world, changed)
    assert (finding.invariant, finding.where) == ("I5", "store, cost")
    leg = record.legs[0]
    changed[place - 1] = (
        place,
        replace(record, charged=record.charged - 1, legs=(replace(leg, amount=leg.amount - 1),)),
    )
    assert {finding.where for finding in journal_findings(world, changed)} >= {"wallet w2", "store, charged"}
    changed = [*records, (len(records) + 1, Wallet("w3", "", "USD", 1)), (len(records) + 2, KEY_2)]
    found = journal_findings(world, changed, seq=len(records) + 2)
    assert {finding.where for finding in found} == {"wallet w3", "keys"}
    state = evolve(world.books.snapshot().state, open_attempts=(), holds=())
    assert [one.where for one in journal_findings(world, records, state=state)] == ["open attempts"]
    state = world.books.snapshot().state
    state = evolve(state, holds=(state.holds[0] + 1, *state.holds[1:]))
    assert [one.where for one in journal_findings(world, records, state=state)] == ["open attempts"]


def test_extensions_and_jobs_that_are_in_the_journal_alone_are_found():
    world = busy_world()
    totals = Totals()
    for record in world.writer.records:
        totals.count(record)
    short = evolve(totals, extensions=totals.extensions - 1, jobs=totals.jobs - 1)
    found = audit_journal(lines(world), world.books.snapshot(), short)
    assert {finding.where for finding in found} == {"store, extensions", "store, jobs"}


KEY_2 = replace(KEY, key="k2", digest="d2")


def test_lines_about_the_journal_itself_change_nothing():
    totals = Totals()
    totals.count(Mark(1, 1))
    assert totals == Totals()
