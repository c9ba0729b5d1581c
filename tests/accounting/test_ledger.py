import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from accounting.claims import Claim
from accounting.hold import Hold
from accounting.ledger import Ledger
from accounting.records import (
    Account,
    Attempt,
    Carry,
    CarryHead,
    Ending,
    Grant,
    GrantKind,
    Key,
    Leg,
    Mark,
    Progress,
    Spender,
    Transfer,
    UsageRecord,
    Void,
    Wallet,
)
from accounting.refusals import (
    Contradiction,
    DuplicateGrant,
    Insufficient,
    KeyRevoked,
    UnknownKey,
    UnknownWallet,
    WalletFrozen,
)
from pricing.money import AMOUNT_MAX
from pricing.usage import NO_USAGE, Reported, Source, Usage
from tests.accounting.ledger_fakes import CLAIM, FakeClient, World, no_cut, terms

WALLET = Wallet("w1", "first", "USD", 1)
KEY = Key("k1", "w1", "d1", "fb…1", 1)
ATTEMPT = Attempt("r1", 1, "w1", "k1", 100, "lab/model", "lab", "main", "openai_chat", True, "p_1", 10**6, 5)


def grant(name="g1", amount=100, kind=GrantKind.PAID, *, wallet="w1", expires_ms=None, source=None):
    return Grant(name, wallet, amount, kind, source or f"ref:{name}", 1, expires_ms)


def funded(*grants):
    ledger = Ledger()
    ledger.create_wallet(WALLET)
    for one in grants or (grant(),):
        ledger.grant(one)
    return ledger


def settled(charged=0, legs=(), **changes):
    record = UsageRecord(
        request="r1", number=1, wallet="w1", key="k1", model="lab/model", provider="lab", account="main",
        dialect="openai_chat", stream=True, outcome=Ending.COMPLETE, status=200, source=Source.REPORTED,
        usage=NO_USAGE, price_version="p_1", markup_ppm=10**6, held=100, price=charged, charged=charged,
        cost=charged, loss=0, currency="USD", started_ms=5, ended_ms=6, legs=legs,
    )  # fmt: skip
    return replace(record, **changes)


# -- holds -----------------------------------------------------------------------------------------


def test_a_hold_takes_from_what_is_available_and_gives_it_back():
    ledger = funded()
    ledger.take("r1", CLAIM, 60)
    assert (ledger.balance("w1"), ledger.held("w1"), ledger.available("w1")) == (100, 60, 40)
    ledger.give_back("r1")
    ledger.give_back("r1")
    assert (ledger.held("w1"), ledger.available("w1"), ledger.holds_open()) == (0, 100, 0)


def test_a_hold_that_the_balance_cannot_cover_names_the_wallet():
    ledger = funded()
    with pytest.raises(Insufficient) as refused:
        ledger.take("r1", CLAIM, 101)
    assert (refused.value.limit, refused.value.shortfall, refused.value.available) == ("wallet", 1, 100)
    assert ledger.held("w1") == 0


def test_a_hold_that_only_open_holds_stand_in_the_way_of_says_in_flight():
    ledger = funded()
    ledger.take("r1", CLAIM, 60)
    with pytest.raises(Insufficient) as refused:
        ledger.take("r2", CLAIM, 60)
    assert (refused.value.limit, refused.value.shortfall, refused.value.available) == ("in_flight", 20, 40)


def test_a_hold_of_nothing_fits_into_an_empty_wallet():
    ledger = Ledger()
    ledger.create_wallet(WALLET)
    ledger.take("r1", CLAIM, 0)
    assert ledger.holds_open() == 1


def test_a_frozen_wallet_takes_no_new_holds_but_open_ones_settle():
    ledger = funded()
    ledger.take("r1", CLAIM, 100)
    ledger.apply(ATTEMPT)
    ledger.apply(replace(WALLET, frozen=True))
    with pytest.raises(WalletFrozen):
        ledger.take("r2", CLAIM, 0)
    ledger.apply(settled(30, (Leg("g1", 30),)))
    assert ledger.balance("w1") == 70


@pytest.mark.parametrize("amount", [-1, 10])
def test_a_negative_or_second_hold_for_a_request_is_our_mistake(amount):
    ledger = funded()
    ledger.take("r1", CLAIM, 10)
    with pytest.raises(ValueError, match="r1"):
        ledger.take("r1", CLAIM, amount)


def test_exactly_the_affordable_ones_of_a_thousand_holds_pass():
    ledger = funded(grant(amount=100 * 7 + 6))
    passed = 0
    for number in range(1000):
        try:
            ledger.take(f"r{number}", CLAIM, 7)
            passed += 1
        except Insufficient:
            pass
        assert ledger.available("w1") >= 0
    assert passed == 100


# -- what may be asked -----------------------------------------------------------------------------


def test_unknown_wallets_and_keys_are_refused_by_name():
    ledger = Ledger()
    for ask in (ledger.wallet, ledger.balance, ledger.held, ledger.available, ledger.grants):
        with pytest.raises(UnknownWallet, match="w9"):
            ask("w9")
    with pytest.raises(UnknownKey, match="k9"):
        ledger.key("k9")
    assert ledger.key_by_digest("d9") is None


def test_keys_are_found_by_digest_whether_revoked_or_not():
    ledger = funded()
    ledger.put_key(KEY)
    assert ledger.key_by_digest("d1") is KEY
    ledger.put_key(replace(KEY, revoked=True))
    assert ledger.key_by_digest("d1").revoked
    (known,) = ledger.keys()
    assert known.key == "k1"


def test_a_key_that_changes_its_digest_is_no_longer_found_by_the_old_one():
    ledger = funded()
    ledger.put_key(KEY)
    ledger.put_key(replace(KEY, digest="d2"))
    assert ledger.key_by_digest("d1") is None
    assert ledger.key_by_digest("d2") is ledger.key("k1")


def test_keys_that_cannot_stand_are_refused():
    ledger = funded()
    ledger.create_wallet(replace(WALLET, wallet="w2"))
    ledger.put_key(KEY)
    with pytest.raises(UnknownWallet):
        ledger.put_key(replace(KEY, wallet="w9"))
    with pytest.raises(ValueError, match="another wallet"):
        ledger.put_key(replace(KEY, wallet="w2"))
    with pytest.raises(ValueError, match="digest of key 'k1'"):
        ledger.put_key(replace(KEY, key="k2"))
    with pytest.raises(ValueError, match="exists"):
        ledger.check_key(KEY, new=True)
    ledger.put_key(replace(KEY, revoked=True))
    with pytest.raises(ValueError, match="make a new one"):
        ledger.put_key(KEY)


def test_a_wallet_is_made_once():
    ledger = funded()
    with pytest.raises(ValueError, match="w1"):
        ledger.create_wallet(WALLET)


# -- grants ----------------------------------------------------------------------------------------


def test_a_payment_is_credited_once_and_the_second_time_its_grant_is_named():
    ledger = funded(grant(source="stripe:1"))
    with pytest.raises(DuplicateGrant) as refused:
        ledger.grant(grant("g2", amount=5, source="stripe:1"))
    assert refused.value.existing.grant == "g1"
    assert ledger.balance("w1") == 100
    assert ledger.grant_by_source("stripe:1").grant == "g1"


def test_a_spent_grant_still_guards_its_payment():
    ledger = funded(grant(source="stripe:1"))
    ledger.apply(ATTEMPT)
    ledger.apply(settled(100, (Leg("g1", 100),)))
    assert ledger.grants("w1") == ()
    with pytest.raises(DuplicateGrant):
        ledger.grant(grant("g2", source="stripe:1"))


@pytest.mark.parametrize(
    "wrong",
    [grant(amount=0), grant(amount=-1), grant(amount=AMOUNT_MAX + 1), grant(expires_ms=1)],
)
def test_grants_that_cannot_stand_are_refused(wrong):
    ledger = Ledger()
    ledger.create_wallet(WALLET)
    with pytest.raises(ValueError, match="expected"):
        ledger.grant(wrong)


def test_a_grant_needs_an_id_of_its_own():
    with pytest.raises(ValueError, match="g1"):
        funded(grant(), grant(source="other"))


def test_grants_burn_soonest_expiry_first_then_promotional_before_paid_then_as_they_came():
    ledger = funded(
        grant("paid", 10),
        grant("promo", 10, GrantKind.PROMO),
        grant("later", 10, expires_ms=500),
        grant("soon_paid", 10, expires_ms=400),
        grant("soon_promo", 10, GrantKind.PROMO, expires_ms=400),
        grant("paid_again", 10),
    )
    order = ["soon_promo", "soon_paid", "later", "promo", "paid", "paid_again"]
    assert [one.grant for one, _ in ledger.grants("w1")] == order
    assert ledger._purses["w1"].burn(25) == (Leg("soon_promo", 10), Leg("soon_paid", 10), Leg("later", 5))
    assert ledger._purses["w1"].burn(0) == ()
    with pytest.raises(Contradiction):
        ledger._purses["w1"].burn(61)


# -- expiry ----------------------------------------------------------------------------------------


def expire(ledger, now_ms, wallet=None):
    written = ledger.expire_due(now_ms, wallet)
    for record in written:
        ledger.apply(record)
    return written


def test_a_grant_counts_until_its_expiry_is_written():
    ledger = funded(grant(expires_ms=50), grant("g2", 5, GrantKind.PROMO, expires_ms=60), grant("g3", 7))
    assert expire(ledger, 49) == []
    assert ledger.balance("w1") == 112
    (written,) = expire(ledger, 50)
    assert (written.amount, written.debit, written.credit) == (100, Account.WALLET_PAID, Account.BREAKAGE)
    (written,) = expire(ledger, 99)
    assert (written.amount, written.debit) == (5, Account.WALLET_PROMO)
    assert (ledger.balance("w1"), expire(ledger, 10**12)) == (7, [])


def test_expiry_takes_what_is_available_and_the_rest_as_holds_close():
    ledger = funded(grant(expires_ms=50))
    ledger.take("r1", CLAIM, 60)
    (first,) = expire(ledger, 50)
    assert first.amount == 40
    assert expire(ledger, 50) == []
    assert ledger.available("w1") == 0
    ledger.apply(replace(ATTEMPT, hold=60))
    ledger.apply(settled(10, (Leg("g1", 10),), held=60))
    ledger.give_back("r1")
    (second,) = expire(ledger, 51, "w1")
    assert second.amount == 50
    assert first.transfer != second.transfer
    assert ledger.balance("w1") == 0
    assert expire(ledger, 52) == []


def test_several_grants_that_expire_at_once_leave_open_holds_their_money():
    ledger = funded(
        grant(amount=30, expires_ms=50), grant("g2", 30, expires_ms=51), grant("g3", 30, expires_ms=52)
    )
    ledger.take("r1", CLAIM, 50)
    assert [record.amount for record in expire(ledger, 60)] == [30, 10]
    assert (ledger.available("w1"), ledger.balance("w1")) == (0, 50)


def test_expiry_asked_for_twice_without_writing_says_the_same():
    ledger = funded(grant(expires_ms=50))
    assert ledger.expire_due(50) == ledger.expire_due(50)


# -- records ---------------------------------------------------------------------------------------


def test_an_attempt_that_recovery_finds_open_brings_its_hold_and_takes_it_along():
    ledger = funded()
    ledger.replay(ATTEMPT)
    assert ledger.held("w1") == 100
    ledger.replay(settled(40, (Leg("g1", 40),)))
    assert (ledger.held("w1"), ledger.balance("w1"), ledger.open_attempts()) == (0, 60, ())
    ledger.replay(replace(ATTEMPT, request="r2"))
    ledger.replay(Void("r2", 1, 9))
    assert (ledger.held("w1"), ledger.balance("w1")) == (0, 60)


def test_an_open_attempt_is_listed_with_its_last_progress():
    ledger = funded()
    ledger.replay(ATTEMPT)
    for cost in (3, 8):
        ledger.replay(Progress("r1", 1, cost, cost, NO_USAGE, Source.ESTIMATED, True, 7))
    (opened,) = ledger.open_attempts()
    assert (opened.attempt, opened.progress.cost) == (ATTEMPT, 8)


def test_a_carry_repeats_what_is_open_or_brings_it_where_older_segments_are_gone():
    progress = Progress("r1", 1, 3, 3, NO_USAGE, Source.ESTIMATED, True, 7)
    known, fresh = funded(), funded()
    known.replay(ATTEMPT)
    for ledger in (known, fresh):
        ledger.replay(CarryHead(9, 1, 8))
        ledger.replay(Carry(ATTEMPT, progress, 8))
        ledger.replay(Mark(9, 8))
    assert known.state() == fresh.state()
    with pytest.raises(Contradiction, match="carried"):
        known.replay(Carry(replace(ATTEMPT, hold=99), progress, 8))


def test_a_killed_attempt_is_settled_at_its_last_progress_never_above_its_hold():
    for cost, charged in ((40, 40), (140, 100)):
        ledger = funded()
        ledger.replay(ATTEMPT)
        ledger.replay(Progress("r1", 1, cost, cost - 1, Usage(output=4), Source.REPORTED, True, 7))
        record = ledger.settle_recovered(ledger.open_attempts()[0], 90)
        assert (record.charged, record.price, record.loss) == (charged, cost, cost - charged)
        assert (record.outcome, record.source, record.cost) == (Ending.KILLED, Source.RECOVERED, cost - 1)
        assert (record.usage, record.legs) == (Usage(output=4), (Leg("g1", charged),))
        assert (ledger.balance("w1"), ledger.held("w1")) == (100 - charged, 0)


def test_a_killed_attempt_without_progress_costs_nothing():
    ledger = funded()
    ledger.replay(ATTEMPT)
    record = ledger.settle_recovered(ledger.open_attempts()[0], 2)
    assert (record.charged, record.cost, record.source, record.legs) == (0, 0, Source.RECOVERED, ())
    assert record.ended_ms == record.started_ms
    assert (ledger.balance("w1"), ledger.held("w1")) == (100, 0)


@pytest.mark.parametrize(
    "record",
    [
        ATTEMPT,  # open already
        replace(ATTEMPT, request="r2", wallet="w9"),
        settled(1, ()),  # legs do not add up
        settled(1, (Leg("g1", 2), Leg("g1", -1))),
        settled(101, (Leg("g1", 101),)),  # beyond the hold
        settled(1, (Leg("g9", 1),)),
        settled(100, (Leg("g1", 60), Leg("g1", 40))),
        settled(1, (Leg("g2", 1),)),  # another wallet's
        settled(0, wallet="w2"),
        settled(0, wallet="w9"),
        settled(0, number=2),
        Void("r9", 1, 9),
        Progress("r1", 2, 1, 1, NO_USAGE, Source.ESTIMATED, True, 7),
        grant(),  # once more
        grant("g3", source="ref:g1"),
        grant("g3", wallet="w9"),
        replace(KEY, wallet="w9"),
        replace(WALLET, currency="EUR"),
        Transfer("t1", "w1", Account.WALLET_PAID, Account.BREAKAGE, 101, "USD", "expiry", "r", 9, "g1"),
        Transfer("t1", "w1", Account.WALLET_PAID, Account.BREAKAGE, 1, "USD", "expiry", "r", 9),
        Transfer("t1", "w2", Account.WALLET_PAID, Account.BREAKAGE, 1, "USD", "expiry", "r", 9, "g1"),
        Transfer("t1", "w1", Account.ADJUSTMENT, Account.WALLET_PAID, 1, "USD", "gift", "r", 9, "g1"),
    ],
)
def test_a_record_that_cannot_follow_is_a_contradiction_and_changes_nothing(record):
    ledger = funded()
    ledger.create_wallet(replace(WALLET, wallet="w2"))
    ledger.grant(grant("g2", wallet="w2", source="ref:w2"))
    ledger.replay(ATTEMPT)
    before = ledger.state()
    with pytest.raises(Contradiction):
        ledger.replay(record)
    assert ledger.state() == before


def test_transfers_between_accounts_that_are_not_a_wallets_leave_it_alone():
    ledger = funded()
    before = ledger.state()
    ledger.replay(Transfer("t1", "w1", Account.REVENUE, Account.PARTNER_PAYABLE, 5, "USD", "share", "r", 9))
    assert ledger.state() == before


# -- everything at once ----------------------------------------------------------------------------


class Money(RuleBasedStateMachine):
    """Any order of top-ups, holds, endings, expiry and freezing, on two wallets, against sums by hand."""

    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.world = World()
        self.granted = dict.fromkeys(("w1", "w2"), 0)
        self.gone = dict.fromkeys(("w1", "w2"), 0)
        self.open: dict[str, Hold] = {}
        self.requests = 0
        for wallet in self.granted:
            self.world.books.put_down(Wallet(wallet, "", "USD", 1))
        self.world.books.put_down(KEY)

    @rule(
        wallet=st.sampled_from(["w1", "w2"]),
        amount=st.integers(1, 3000),
        kind=st.sampled_from(GrantKind),
        lasts_ms=st.none() | st.integers(1, 50),
    )
    def top_up(self, wallet, amount, kind, lasts_ms):
        expires_ms = None if lasts_ms is None else self.world.ms + lasts_ms
        self.world.fund(amount, wallet, kind, expires_ms=expires_ms)
        self.granted[wallet] += amount

    @rule(
        target=holds,
        wallet=st.sampled_from(["w1", "w2"]),
        amount=st.integers(0, 3000),
        begins=st.booleans(),
        sends=st.booleans(),
    )
    def hold(self, wallet, amount, begins, sends):
        self.requests += 1
        name = f"r{self.requests}"
        ledger = self.world.ledger
        fits = amount <= ledger.available(wallet) and not ledger.wallet(wallet).frozen
        try:
            hold = self.world.books.hold(name, Claim(Spender(wallet, "k1")), amount, FakeClient())
        except (Insufficient, WalletFrozen):
            assert not fits
            return name
        assert fits
        self.open[name] = hold
        if begins:
            hold.attempt(terms())
            if sends:
                hold.sending()
        return name

    @rule(name=holds, tokens=st.integers(0, 300))
    def report(self, name, tokens):
        if name in self.open:
            self.open[name].meter.report(Reported((Usage(output=tokens),), final=True))

    @rule(name=holds, ending=st.sampled_from([Ending.REFUSED, Ending.TIMED_OUT, Ending.UNREACHED]))
    def fail_over(self, name, ending):
        hold = self.open.get(name)
        if hold is not None and hold._open is not None:
            hold.attempt_failed(ending, 503)
            hold.attempt(terms())
            hold.sending()

    @rule(name=holds, error=st.sampled_from([None, RuntimeError("ours"), KeyboardInterrupt()]))
    def leave(self, name, error):
        hold = self.open.pop(name, None)
        if hold is None:
            return
        hold.__exit__(type(error), error, None)
        assert hold.error is None
        if hold.receipt.record is not None:
            self.gone[hold.claim.spender.wallet] += hold.receipt.record.charged

    @rule(passed_ms=st.integers(1, 60))
    def expire(self, passed_ms):
        self.world.ms += passed_ms
        self.world.books.expire_due()

    @rule(wallet=st.sampled_from(["w1", "w2"]), frozen=st.booleans())
    def freeze(self, wallet, frozen):
        known = self.world.ledger.wallet(wallet)
        self.world.books.put_down(replace(known, frozen=frozen))

    @precondition(lambda self: not self.open)
    @rule()
    def crash(self):
        """Nothing but the journal survives; what follows goes on with what was replayed from it."""
        self.world.books.ledger = self.world.replayed()

    @invariant()
    def settled_and_held_never_exceed_what_was_granted(self):
        expired = {"w1": 0, "w2": 0}
        for record in self.world.writer.records:
            if isinstance(record, Transfer):
                expired[record.wallet] += record.amount
        for wallet, granted in self.granted.items():
            held = sum(hold.held for hold in self.open.values() if hold.claim.spender.wallet == wallet)
            ledger = self.world.ledger
            assert self.gone[wallet] + held + expired[wallet] <= granted
            assert ledger.balance(wallet) == granted - self.gone[wallet] - expired[wallet]
            assert ledger.balance(wallet) == sum(left for _, left in ledger.grants(wallet))
            assert ledger.held(wallet) == held
            assert ledger.available(wallet) >= 0

    @invariant()
    def the_journal_says_what_memory_says(self):
        replayed, live = self.world.replayed().state(), self.world.ledger.state()
        assert replayed.open_attempts == live.open_attempts
        for then, now in zip(replayed.wallets, live.wallets, strict=True):
            assert (then.wallet, then.balance, then.grants) == (now.wallet, now.balance, now.grants)
            assert then.held <= now.held  # holds without an attempt are not written down

    @invariant()
    def every_settlement_is_paid_by_its_legs_and_lies_within_its_hold(self):
        for record in self.world.writer.records[-1:]:
            if isinstance(record, UsageRecord):
                assert sum(leg.amount for leg in record.legs) == record.charged <= record.held
                assert record.charged == min(record.price, record.held)
                assert record.loss == record.price - record.charged


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_replaying_everything_that_was_written_gives_the_same_ledger():
    world = World()
    world.fund(10_000, expires_ms=2_000)
    world.fund(5_000, kind=GrantKind.PROMO)
    world.books.put_down(KEY)
    for number in range(20):
        with world.books.hold(f"r{number}", CLAIM, 500, FakeClient()) as hold:
            hold.attempt(terms())
            if number % 3:
                hold.sending()
                hold.meter.report(Reported((Usage(input=10, output=number),), final=True))
                hold.cover(b"x", no_cut)
    world.ms = 2_000
    world.books.expire_due()
    assert world.replayed().state() == world.ledger.state()
    assert world.ledger.held("w1") == 0


def test_a_key_revoked_on_the_way_to_the_hold_is_refused():
    world = World()
    world.fund(100)
    world.books.put_down(replace(KEY, revoked=True))
    with pytest.raises(KeyRevoked):
        world.books.hold("r1", CLAIM, 10, FakeClient())
    assert world.ledger.held("w1") == 0
