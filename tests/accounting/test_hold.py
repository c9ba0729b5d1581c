import pytest
import trio
from msgspec.structs import replace

from accounting.claims import Claim
from accounting.ports import Overloaded
from accounting.records import (
    Attempt,
    Ending,
    GrantKind,
    Key,
    Progress,
    Spender,
    Transfer,
    UsageRecord,
    Void,
)
from accounting.refusals import Insufficient, UnknownKey, UnknownWallet, WalletFrozen
from pricing.usage import Reported, Source, Usage
from tests.accounting.ledger_fakes import CLAIM, PRICE, FakeClient, World, no_cut, terms

FINAL = Reported((Usage(input=100, output=20),), final=True)
FINAL_PRICE = 100 * 3 + 20 * 15
STARTED = Reported((Usage(input=100, output=1),), final=False)
HELD = 50_000


@pytest.fixture
def world():
    world = World()
    world.fund(100_000)
    return world


def hold_in(world, request="r1", amount=HELD, client=None):
    return world.books.hold(request, CLAIM, amount, client or FakeClient())


def last(world, kind=UsageRecord):
    return next(record for record in reversed(world.writer.records) if isinstance(record, kind))


def assert_closed(world, kinds, *, charged=0):
    """Everything is settled, nothing is held or reserved, and the journal says the same."""
    assert world.writer.kinds() == kinds
    assert (world.ledger.held("w1"), world.ledger.holds_open(), world.writer.reserved) == (0, 0, 0)
    assert world.ledger.balance("w1") == 100_000 - charged
    assert world.replayed().state() == world.ledger.state()


# -- the usual way ---------------------------------------------------------------------------------


async def test_a_complete_answer_is_settled_at_its_report(world):
    with hold_in(world) as hold:
        assert world.ledger.available("w1") == 50_000
        hold.attempt(terms())
        hold.sending()
        world.ms += 5
        hold.answered(200, "up-1")
        await hold.journaled()
        assert hold.cover(b"data", no_cut) == b"data"
        hold.meter.report(FINAL)
        world.ms += 7
    await hold.settled()
    record = last(world)
    assert record.outcome is Ending.COMPLETE
    assert (record.status, record.upstream_id, record.source) == (200, "up-1", Source.REPORTED)
    assert (record.price, record.charged, record.cost, record.loss) == (
        FINAL_PRICE,
        FINAL_PRICE,
        FINAL_PRICE,
        0,
    )
    assert (record.started_ms, record.first_byte_ms, record.ended_ms) == (1000, 1005, 1012)
    assert [leg.amount for leg in record.legs] == [FINAL_PRICE]
    assert (hold.receipt.record, hold.receipt.balance, hold.receipt.held) == (
        record,
        100_000 - FINAL_PRICE,
        0,
    )
    assert world.writer.synced == [3, 4]
    assert_closed(world, "AS", charged=FINAL_PRICE)


def test_books_that_have_failed_let_no_answer_go_on(world):
    with pytest.raises(Overloaded, match="failed"), hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        assert hold.cover(b"data", no_cut) == b"data"
        world.books.failed = True
        hold.cover(b"more", no_cut)
    assert_closed(world, "AS", charged=last(world).charged)


def test_the_attempt_is_in_the_journal_before_anything_is_sent(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        assert world.writer.kinds() == "A"
        attempt = last(world, Attempt)
    assert (attempt.hold, attempt.number, attempt.price_version) == (HELD, 1, PRICE.version)


def test_nothing_is_charged_where_nothing_was_sent(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
    assert last(world, Void).because == "complete"
    assert hold.receipt.record is None
    assert_closed(world, "AV")


def test_a_hold_without_an_attempt_writes_nothing(world):
    with hold_in(world) as hold:
        pass
    assert (hold.receipt.record, hold.receipt.balance) == (None, 100_000)
    assert_closed(world, "")


async def test_waiting_for_durability_where_nothing_was_written_is_over_at_once(world):
    with hold_in(world) as hold:
        await hold.journaled()
    await hold.settled()
    assert world.writer.synced == []


def test_a_free_call_holds_nothing_and_is_recorded(world):
    with hold_in(world, amount=0) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(Reported((Usage(),), final=True))
    assert last(world).charged == 0
    assert_closed(world, "AS")


def test_what_a_report_says_beyond_the_hold_is_the_operators_loss(world):
    with hold_in(world, amount=100) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(FINAL)
    record = last(world)
    assert (record.charged, record.loss, record.price) == (100, FINAL_PRICE - 100, FINAL_PRICE)
    assert "beyond_hold" in record.flags
    assert_closed(world, "AS", charged=100)


def test_several_legs_stand_on_the_record(world):
    legs = (Usage(input=1, output=2), Usage(input=3, output=4))
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(Reported(legs, final=True))
    assert (last(world).usage_legs, last(world).usage) == (legs, Usage(input=4, output=6))


def test_the_charge_names_the_grants_that_paid_it():
    world = World()
    paid = world.fund(100_000)
    promo = world.fund(500, kind=GrantKind.PROMO)
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(FINAL)
    assert [(leg.grant, leg.amount) for leg in last(world).legs] == [(promo.grant, 500), (paid.grant, 100)]


# -- failing over ----------------------------------------------------------------------------------


def test_an_attempt_that_failed_over_is_free_for_the_customer_and_the_next_one_counts(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(STARTED)
        hold.attempt_failed(Ending.TIMED_OUT, 0)
        hold.attempt(terms(account="spare"))
        assert hold.meter.reported is None
        hold.sending()
        hold.answered(200, None)
        hold.meter.report(FINAL)
    first, second = [record for record in world.writer.records if isinstance(record, UsageRecord)]
    assert (first.number, first.charged, first.price, first.outcome) == (1, 0, 0, Ending.TIMED_OUT)
    assert first.cost == 315
    assert "failed_over" in first.flags
    assert (second.number, second.account, second.charged) == (2, "spare", FINAL_PRICE)
    assert hold.receipt.record is second
    assert_closed(world, "ASAS", charged=FINAL_PRICE)


def test_an_attempt_that_failed_before_it_was_sent_is_void(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.attempt_failed(Ending.UNREACHED, 0)
        assert world.ledger.held("w1") == HELD
    assert last(world, Void).because == "unreached"
    assert hold.receipt.record is None
    assert_closed(world, "AV")


def test_a_refusal_is_free_for_everybody_and_keeps_its_status(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.attempt_failed(Ending.REFUSED, 429)
    record = last(world)
    assert (record.status, record.cost, record.charged, record.source) == (429, 0, 0, Source.NONE)
    assert hold.receipt.record is record
    assert_closed(world, "AS")


def test_attempts_out_of_order_are_our_mistake(world):
    with hold_in(world) as hold:
        for misuse in (hold.sending, lambda: hold.cover(b"", no_cut), lambda: hold.answered(200, None)):
            with pytest.raises(RuntimeError, match="r1"):
                misuse()
        hold.attempt(terms())
        with pytest.raises(RuntimeError, match="inside another"):
            hold.attempt(terms())
    with pytest.raises(RuntimeError, match="after the hold"):
        hold.attempt(terms())
    assert_closed(world, "AV")


# -- leaving in every way --------------------------------------------------------------------------


class StatedError(Exception):
    def __init__(self, ending):
        self.ending = ending


def leave_by(hold, error, report=None, relayed=b"x"):
    """An answer that is relayed for nine frames and then left by an exception."""
    with hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.reported = report
        hold.meter.saw(9, 27)
        hold.cover(relayed, no_cut)
        raise error


@pytest.mark.parametrize(
    ("error", "gone", "ending"),
    [
        (StatedError(Ending.BROKEN), False, Ending.BROKEN),
        (StatedError(Ending.STALLED), True, Ending.STALLED),
        (StatedError("broken?"), False, Ending.INTERNAL),
        (RuntimeError("ours"), True, Ending.INTERNAL),
        (KeyboardInterrupt(), False, Ending.SHUTDOWN),
        (GeneratorExit(), True, Ending.HUNG_UP),
        (ExceptionGroup("", [StatedError(Ending.BROKEN)]), False, Ending.BROKEN),
        (ExceptionGroup("", [StatedError(Ending.BROKEN), RuntimeError()]), False, Ending.INTERNAL),
        (
            ExceptionGroup("", [StatedError(Ending.BROKEN), StatedError(Ending.STALLED)]),
            False,
            Ending.INTERNAL,
        ),
        (BaseExceptionGroup("", [StatedError(Ending.BROKEN), KeyboardInterrupt()]), False, Ending.BROKEN),
        (BaseExceptionGroup("", [KeyboardInterrupt(), SystemExit()]), True, Ending.HUNG_UP),
    ],
)
def test_leaving_by_an_exception_settles_by_what_it_means(world, error, gone, ending):
    hold = hold_in(world, client=FakeClient(gone))
    with pytest.raises(type(error)):
        leave_by(hold, error, STARTED)
    record = last(world)
    assert record.outcome is ending
    assert (record.charged, record.source) == (100 * 3 + 9 * 15, Source.ESTIMATED)
    assert hold.error is None
    assert_closed(world, "AS", charged=record.charged)


@pytest.mark.parametrize("gone", [False, True])
async def test_a_cancelled_request_is_charged_for_what_it_used(world, gone):
    with trio.CancelScope() as scope, hold_in(world, client=FakeClient(gone)) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.saw(9, 27)
        hold.cover(b"x", no_cut)
        scope.cancel()
        await trio.lowlevel.checkpoint()
    record = last(world)
    assert record.outcome is (Ending.HUNG_UP if gone else Ending.SHUTDOWN)
    assert record.usage == Usage(input=400, output=9)
    assert_closed(world, "AS", charged=record.charged)


def test_our_own_fault_before_anything_was_relayed_is_free(world):
    with pytest.raises(RuntimeError):
        leave_by(hold_in(world), RuntimeError(), relayed=b"")
    assert (last(world).charged, last(world).outcome) == (0, Ending.INTERNAL)
    assert last(world).cost > 0
    assert_closed(world, "AS")


def test_leaving_twice_settles_once(world):
    hold = hold_in(world)
    hold.attempt(terms())
    hold.sending()
    hold.meter.report(FINAL)
    hold.__exit__(None, None, None)
    receipt = hold.receipt
    hold.__exit__(RuntimeError, RuntimeError(), None)
    assert hold.receipt is receipt
    assert_closed(world, "AS", charged=FINAL_PRICE)


def test_bytes_that_were_covered_were_sent_for_whatever_the_caller_forgot_to_say(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.cover(b"", no_cut)
    assert last(world).outcome is Ending.COMPLETE
    assert world.writer.kinds() == "AS"


# -- errors inside ---------------------------------------------------------------------------------


class Broken:
    """A price that breaks when it is told to."""

    def __init__(self, price):
        self.price, self.broken = price, False

    def __getattr__(self, name):
        return getattr(self.price, name)

    def list_cost(self, legs):
        if self.broken:
            raise ZeroDivisionError
        return self.price.list_cost(legs)


class BadReport:
    final = True
    legs = "not legs"
    flags = frozenset()
    source = Source.REPORTED


def test_a_report_that_cannot_be_priced_is_settled_at_the_estimate_and_flagged(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.saw(9, 27)
        hold.meter.report(BadReport())
    record = last(world)
    assert (record.usage, record.source) == (Usage(input=400, output=9), Source.ESTIMATED)
    assert record.flags == ("settle_error:TypeError",)
    assert isinstance(hold.error, TypeError)
    assert_closed(world, "AS", charged=400 * 3 + 9 * 15)


def test_where_no_estimate_can_be_priced_either_the_last_progress_is_charged(world):
    world.books.progress_tokens = 5
    price = Broken(PRICE)
    with hold_in(world) as hold:
        hold.attempt(terms(price=price))
        hold.sending()
        hold.meter.saw(9, 27)
        hold.cover(b"x", no_cut)
        price.broken = True
    record = last(world)
    assert (record.charged, record.source) == (400 * 3 + 9 * 15, Source.RECOVERED)
    assert record.flags == ("settle_error:ZeroDivisionError", "settle_error:ZeroDivisionError")
    assert_closed(world, "APS", charged=record.charged)


def test_a_client_that_cannot_be_asked_is_no_reason_not_to_settle(world):
    class Unaskable:
        @property
        def client_gone(self):
            raise OSError

    with pytest.raises(KeyboardInterrupt):
        leave_by(hold_in(world, client=Unaskable()), KeyboardInterrupt())
    assert last(world).outcome is Ending.INTERNAL
    assert_closed(world, "AS", charged=400 * 3 + 9 * 15)


async def test_where_the_end_cannot_be_written_memory_is_right_and_nobody_is_told_that_all_is_well(world):
    for number, kind in enumerate((UsageRecord, Void)):
        world.writer.fails = lambda record, kind=kind: OSError(5, "I/O") if isinstance(record, kind) else None
        with hold_in(world, f"r{number}") as hold:
            hold.attempt(terms())
            if kind is UsageRecord:
                hold.sending()
                hold.meter.report(FINAL)
        with pytest.raises(Overloaded, match="could not be written"):
            await hold.settled()
        assert isinstance(hold.error, OSError)
        assert (world.ledger.balance("w1"), world.ledger.held("w1")) == (100_000 - FINAL_PRICE, 0)
        assert world.writer.reserved == 0


def test_without_room_no_attempt_begins(world):
    world.writer.room = 1
    with pytest.raises(Overloaded), hold_in(world) as hold:
        hold.attempt(terms())
    assert_closed(world, "")


@pytest.mark.parametrize("error", [OSError(28, "full"), Overloaded("failed"), KeyboardInterrupt()])
def test_an_attempt_whose_record_cannot_be_written_does_not_begin(world, error):
    world.writer.fails = lambda record: error if isinstance(record, Attempt) else None
    with pytest.raises(type(error)), hold_in(world) as hold:
        hold.attempt(terms())
    assert hold.receipt.record is None
    assert_closed(world, "")


def test_a_ledger_that_contradicts_itself_still_lets_the_hold_close(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(FINAL)
        world.ledger._lots.clear()
    assert hold.error is not None
    assert (world.ledger.held("w1"), world.writer.reserved) == (0, 0)


# -- progress --------------------------------------------------------------------------------------


def test_progress_is_written_when_its_tokens_or_its_seconds_have_passed(world):
    world.books.progress_tokens = 10
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(STARTED)
        for _ in range(25):  # a token is taken for a frame and its three bytes
            hold.meter.saw(1, 3)
            hold.cover(b"x", no_cut)
        assert world.writer.kinds() == "APP"
        world.seconds += 1.99
        hold.cover(b"x", no_cut)
        assert world.writer.kinds() == "APP"
        world.seconds += 0.01
        hold.cover(b"x", no_cut)
        assert world.writer.kinds() == "APPP"
        progress = last(world, Progress)
        assert (progress.cost, progress.usage) == (300 + 25 * 15, Usage(input=100, output=25))
        hold.meter.saw(0, 40)
        hold.cover(b"", no_cut)
        assert world.writer.kinds() == "APPPP"
    assert_closed(world, "APPPPS", charged=300 + 39 * 15)


def test_progress_before_anything_was_relayed_costs_the_customer_nothing(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(STARTED)
        world.seconds = 3
        hold.cover(b"", no_cut)
        progress = last(world, Progress)
        assert (progress.cost, progress.list_cost, progress.relayed) == (0, 315, False)
        recovered = world.replayed()
        (opened,) = recovered.open_attempts()
        record = recovered.settle_recovered(opened, 9_999)
        assert (record.charged, record.cost) == (0, 315)


def test_progress_of_a_muted_answer_costs_what_leaving_costs(world):
    with hold_in(world, client=FakeClient(client_gone=True)) as hold:
        hold.attempt(terms(visible=False))
        hold.sending()
        hold.meter.report(STARTED)
        world.seconds = 3
        hold.cover(b"", no_cut)
    assert last(world, Progress).cost == 300 + 300 * 15


def test_progress_never_promises_more_than_the_hold(world):
    with hold_in(world, amount=200) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(STARTED)
        world.seconds = 3
        hold.cover(b"x", no_cut)
    assert last(world, Progress).cost == 200


@pytest.mark.parametrize("error", [None, OSError(28, "full")])
def test_progress_without_room_is_left_out_and_the_answer_goes_on(world, error):
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        world.writer.room = world.writer.reserved
        world.writer.fails = lambda record: error if isinstance(record, Progress) else None
        world.seconds = 3
        assert hold.cover(b"x", no_cut) == b"x"
        assert hold.error is error
        hold.meter.report(FINAL)
    assert_closed(world, "AS", charged=FINAL_PRICE)


def test_a_kill_at_any_record_leaves_books_that_recovery_can_balance(world):
    world.books.progress_tokens = 5
    with hold_in(world) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.attempt_failed(Ending.TIMED_OUT, 0)
        hold.attempt(terms())
        hold.sending()
        for _ in range(12):
            hold.meter.saw(1, 3)
            hold.cover(b"x", no_cut)
        hold.meter.report(FINAL)
    for cut in range(len(world.writer.records) + 1):
        survivor = World()
        for record in world.writer.records[:cut]:
            survivor.ledger.replay(record)
        for opened in survivor.ledger.open_attempts():
            record = survivor.ledger.settle_recovered(opened, 9_999)
            assert record.charged == (opened.progress.cost if opened.progress else 0)
        state = survivor.ledger.state()
        assert all(
            (one.held, one.balance) == (0, sum(left for _, left in one.grants)) for one in state.wallets
        )
        assert not state.open_attempts


# -- books -----------------------------------------------------------------------------------------


async def test_wallets_grants_and_keys_answer_once_they_are_durable():
    world = World()
    wallet = await world.books.create_wallet("mine", "EUR")
    grant, already = await world.books.top_up(wallet.wallet, 500, GrantKind.PAID, "stripe:1")
    key = await world.books.create_key(Key("k1", wallet.wallet, "d1", "h", 1))
    await world.books.change_key(replace(key, name="renamed"))
    revoked = await world.books.revoke_key("k1")
    await world.books.freeze_wallet(wallet.wallet)
    assert world.writer.synced == [1, 2, 3, 4, 5, 6]
    assert (already, revoked.revoked, revoked.name) == (False, True, "renamed")
    balance = world.books.balance(wallet.wallet)
    assert (balance.balance, balance.held, balance.available, balance.currency) == (500, 0, 500, "EUR")
    assert world.ledger.wallet(wallet.wallet).frozen
    assert world.ledger.grants(wallet.wallet) == ((grant, 500),)
    assert world.replayed().state() == world.ledger.state()


async def test_the_same_payment_twice_is_one_grant_and_answers_when_the_first_is_durable(world):
    first, _ = await world.books.top_up("w1", 500, GrantKind.PAID, "stripe:1")
    seq = world.books.seq
    again, already = await world.books.top_up("w1", 999, GrantKind.PAID, "stripe:1")
    assert (again, already) == (first, True)
    assert world.writer.synced == [seq, seq]
    assert world.ledger.available("w1") == 100_500


async def test_what_cannot_be_written_did_not_happen(world):
    world.writer.room = 0
    before = world.ledger.state()
    for doing in (
        lambda: world.books.create_wallet("x"),
        lambda: world.books.top_up("w1", 5, GrantKind.PAID, "s"),
        lambda: world.books.create_key(Key("k1", "w1", "d1", "h", 1)),
        lambda: world.books.freeze_wallet("w1"),
    ):
        with pytest.raises(Overloaded):
            await doing()
    assert world.ledger.state() == before


async def test_keys_that_do_not_exist_are_neither_changed_nor_revoked(world):
    for doing in (world.books.change_key(Key("k9", "w1", "d", "h", 1)), world.books.revoke_key("k9")):
        with pytest.raises(UnknownKey):
            await doing
    await world.books.create_key(Key("k1", "w1", "d1", "h", 1))
    with pytest.raises(ValueError, match="exists"):
        await world.books.create_key(Key("k1", "w1", "d2", "h", 1))


def test_holds_that_the_books_refuse_take_nothing(world):
    with pytest.raises(Insufficient):
        hold_in(world, amount=100_001)
    with pytest.raises(UnknownWallet):
        world.books.hold("r1", Claim(Spender("w9", "k1")), 1, FakeClient())
    world.books.put_down(replace(world.ledger.wallet("w1"), frozen=True))
    with pytest.raises(WalletFrozen):
        hold_in(world)
    assert world.ledger.holds_open() == 0


async def test_of_a_thousand_concurrent_requests_exactly_the_affordable_ones_pass(autojump_clock):
    world = World()
    world.fund(100 * FINAL_PRICE + FINAL_PRICE - 1)
    passed = refused = 0

    async def request(number):
        nonlocal passed, refused
        try:
            with hold_in(world, f"r{number}", FINAL_PRICE) as hold:
                hold.attempt(terms())
                hold.sending()
                await trio.sleep(1 + number % 7)
                assert world.ledger.available("w1") >= 0
                hold.meter.report(FINAL)
            await hold.settled()
        except Insufficient:
            refused += 1
        else:
            passed += 1

    with trio.CancelScope():
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(request, number)
    assert (passed, refused) == (100, 900)
    assert (world.ledger.balance("w1"), world.ledger.held("w1")) == (FINAL_PRICE - 1, 0)


def test_what_a_hold_leaned_on_expires_as_it_closes():
    world = World()
    world.fund(1000, expires_ms=2000)
    with hold_in(world, amount=600):
        world.ms = 2000
        assert world.books.expire_due() == 1
        assert world.books.balance("w1").balance == 600
    assert world.books.balance("w1").balance == 0
    assert [record.amount for record in world.writer.records if isinstance(record, Transfer)] == [400, 600]


def test_expiry_that_finds_no_room_comes_later():
    world = World()
    world.fund(1000, expires_ms=2000)
    world.ms, world.writer.room = 2000, 0
    assert (world.books.expire_due(), world.books.balance("w1").balance) == (0, 1000)
    world.writer.room = 1
    assert (world.books.expire_due(), world.books.balance("w1").balance) == (1, 0)


def test_a_snapshot_is_of_one_instant(world):
    with hold_in(world) as hold:
        hold.attempt(terms())
        before = world.books.snapshot()
        hold.sending()
        hold.meter.report(FINAL)
    after = world.books.snapshot()
    assert (before.seq, before.state.wallets[0].held, before.state.wallets[0].available) == (3, HELD, 50_000)
    assert len(before.state.open_attempts) == 1
    assert (after.seq, after.state.wallets[0].balance) == (4, 100_000 - FINAL_PRICE)


# -- empty completions -----------------------------------------------------------------------------

EMPTY = Reported((Usage(input=100),), final=True)


def empty(world, request, report=EMPTY):
    claim = world.books.claim(CLAIM.spender)
    with world.books.hold(request, claim, HELD, FakeClient()) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(report)
    return hold.receipt.record


def test_an_empty_completion_is_free_so_many_times_a_day_and_the_operator_knows_its_cost(world):
    world.books.empty_free_per_key_day = 2
    records = [empty(world, f"r{number}") for number in range(3)]
    assert [record.charged for record in records] == [0, 0, 300]
    assert [record.cost for record in records] == [300, 300, 300]
    assert ["empty_free" in record.flags for record in records] == [True, True, False]
    assert [record.loss for record in records] == [0, 0, 0]
    assert world.replayed().empties("k1", world.ms) == world.ledger.empties("k1", world.ms) == 2
    world.ms += 86_400_000
    assert empty(world, "next day").charged == 0
    assert world.replayed().state() == world.ledger.state()


def test_without_the_policy_an_empty_completion_costs_what_was_read(world):
    assert empty(world, "r1").charged == 300


def test_an_answer_that_was_cut_off_or_wrote_anything_is_not_empty(world):
    world.books.empty_free_per_key_day = 9
    assert empty(world, "r1", Reported((Usage(input=100, output=1),), final=True)).charged == 315
    with pytest.raises(RuntimeError), hold_in(world, "r2") as hold:
        hold.attempt(terms())
        hold.sending()
        hold.cover(b"x", no_cut)
        hold.meter.report(EMPTY)
        raise RuntimeError
    assert hold.receipt.record.charged == 300


# -- content that is kept back ---------------------------------------------------------------------


@pytest.mark.parametrize(("holds_back", "written"), [(False, 9), (True, 9 + 4 * 100)])
def test_a_client_that_leaves_pays_for_what_may_have_been_written_while_nothing_was_shown(
    world, holds_back, written
):
    """A tool's input comes when a value of it is complete; in the silence before that it was being written."""
    client = FakeClient()
    with pytest.raises(trio.Cancelled), hold_in(world, client=client) as hold:
        hold.attempt(terms(holds_back=holds_back))
        hold.sending()
        world.seconds += 60  # before any content nothing is kept back
        hold.meter.saw(9, 27)
        hold.cover(b"x", no_cut)
        world.seconds += 4
        client.client_gone = True
        raise trio.Cancelled._create(source="unknown")
    assert last(world).usage.output == written
    assert last(world).outcome is Ending.HUNG_UP
