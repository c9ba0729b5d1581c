"""Holds that roll: nothing passes that they do not cover, and what they covered is never more than the wallet had."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.ports import Overloaded
from accounting.records import Ending, Extension, Key, UsageRecord, Wallet
from accounting.rolling import ALL, FRAMING_TOKENS, Reach
from pricing.price import Bounds
from pricing.usage import Meter, Reported, Usage
from tests.accounting.ledger_fakes import CLAIM, PRICE, FakeClient, FakeWriter, World, no_cut, terms
from tests.values import evolve

KEY = Key("k1", "w1", "d1", "fb…1", 1)
BOUNDS = Bounds(input=1000, output=100_000)
ROLLING = terms(bounds=BOUNDS, slice_tokens=256)
FIRST = PRICE.ceiling(evolve(BOUNDS, output=256))


class Stream:
    """An answer that is relayed in frames of some bytes; `cut` ends it as a dialect would."""

    def __init__(self, hold):
        self.hold, self.relayed, self.limit = hold, b"", None

    def frame(self, size, frames=1):
        self.hold.meter.saw(frames, size)
        self.relayed += self.hold.cover(b"x" * size, self.cut)
        return self

    def cut(self, chunk, content_bytes, limit):
        assert self.limit is None, "cut twice"
        assert content_bytes >= 0
        self.limit = limit
        return chunk[:content_bytes]


def rolling(world, amount=FIRST, *, under=ROLLING, request="r1", client=None, claim=CLAIM):
    hold = world.books.hold(request, claim, amount, client or FakeClient())
    hold.__enter__()
    hold.attempt(under)
    hold.sending()
    return hold


def extensions(world):
    return [record.hold for record in world.writer.records if isinstance(record, Extension)]


def funded(amount):
    world = World()
    world.fund(amount)
    return world


def test_a_rolling_hold_begins_with_a_slice_and_grows_before_it_is_passed():
    world = funded(10**9)
    hold = rolling(world)
    stream = Stream(hold)
    covered = 256 - FRAMING_TOKENS
    stream.frame(covered - 1)
    assert (hold.held, extensions(world)) == (FIRST, [])
    stream.frame(1)
    assert hold.held == PRICE.ceiling(evolve(BOUNDS, output=covered + 2 + FRAMING_TOKENS + 256))
    assert extensions(world) == [hold.held]
    assert world.ledger.held("w1") == hold.held
    hold.meter.report(Reported((Usage(input=100, output=40),), final=True))
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert (record.charged, record.held, record.outcome) == (100 * 3 + 40 * 15, hold.held, Ending.COMPLETE)
    assert world.replayed().state() == world.ledger.state()


def test_extensions_are_few_because_slices_grow_with_the_answer():
    world = funded(10**12)
    hold = rolling(world)
    stream = Stream(hold)
    for _ in range(20_000):
        stream.frame(4)
    assert 5 < len(extensions(world)) < 40
    assert hold.held >= PRICE.ceiling(evolve(BOUNDS, output=100_000))
    hold.__exit__(None, None, None)


def test_a_hold_never_grows_beyond_the_bounds():
    world = funded(10**12)
    hold = rolling(world)
    Stream(hold).frame(1_000_000)
    assert hold.held == PRICE.ceiling(BOUNDS)
    count = len(extensions(world))
    Stream(hold).frame(1_000_000)
    assert len(extensions(world)) == count
    hold.__exit__(None, None, None)


def test_what_the_wallet_cannot_cover_is_not_relayed_and_the_answer_ends_as_exhausted():
    world = funded(FIRST + 1000 * 15)
    hold = rolling(world)
    stream = Stream(hold)
    while stream.limit is None:
        stream.frame(40)
    covered = 256 + 1000 - FRAMING_TOKENS
    assert (stream.limit, hold.exhausted) == ("wallet", "wallet")
    assert covered - 2 * 40 < len(stream.relayed) <= covered
    assert world.ledger.available("w1") == 0
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert record.outcome is Ending.EXHAUSTED
    assert 0 < record.charged <= record.held
    assert "beyond_hold" not in record.flags
    assert world.ledger.balance("w1") == FIRST + 15_000 - record.charged
    assert world.replayed().state() == world.ledger.state()


@pytest.mark.parametrize(("why", "limit"), [("freeze", "wallet_frozen"), ("revoke", "key_revoked")])
def test_a_frozen_wallet_or_a_revoked_key_gets_no_extension(why, limit):
    world = funded(10**9)
    world.books.put_down(KEY)
    hold = rolling(world)
    if why == "freeze":
        world.books.put_down(replace(world.ledger.wallet("w1"), frozen=True))
    else:
        world.books.put_down(replace(KEY, revoked=True))
    stream = Stream(hold).frame(1000)
    assert stream.limit == limit
    assert len(stream.relayed) == 256 - FRAMING_TOKENS
    hold.__exit__(None, None, None)
    assert hold.receipt.record.charged > 0


def test_an_extension_that_finds_no_room_in_the_journal_ends_the_answer():
    world = funded(10**9)
    hold = rolling(world)
    world.writer.room = world.writer.reserved
    stream = Stream(hold).frame(1000)
    assert stream.limit == "books"
    hold.__exit__(None, None, None)
    assert hold.receipt.record.outcome is Ending.EXHAUSTED
    assert world.writer.kinds() == "AS"


def test_a_cap_bounds_how_far_a_hold_may_grow():
    world = funded(10**9)
    world.books.put_down(replace(KEY, cap=FIRST + 150))
    hold = rolling(world)
    assert Stream(hold).frame(1000).limit == "key_cap"
    hold.__exit__(None, None, None)
    assert hold.receipt.record.held == FIRST + 150


def test_other_holds_that_stand_in_the_way_are_said_to():
    world = funded(2 * FIRST)
    first, second = rolling(world), rolling(world, request="r2")
    assert Stream(first).frame(500).limit == "in_flight"
    for hold in (first, second):
        hold.__exit__(None, None, None)


def test_a_final_report_needs_no_slice_beyond_it():
    """The answer is over: it takes what it costs, and no more credit than that has to be there."""
    cost = 1000 * 3 + 300 * 15
    world = funded(max(FIRST, cost))
    hold = rolling(world)
    hold.meter.saw(1, 4000)
    hold.meter.report(Reported((Usage(input=1000, output=300),), final=True))
    assert hold.cover(b"y" * 4000, no_cut) == b"y" * 4000
    hold.__exit__(None, None, None)
    assert (hold.receipt.record.charged, hold.receipt.record.loss) == (cost, 0)


def test_a_report_behind_the_last_relayed_byte_may_still_make_the_hold_grow():
    world = funded(10**9)
    hold = rolling(world)
    hold.meter.saw(1, 10)
    hold.cover(b"x" * 10, no_cut)
    hold.meter.report(Reported((Usage(input=1000, output=5000),), final=True))
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert (record.charged, record.loss, record.held) == (1000 * 3 + 5000 * 15, 0, record.charged)
    assert world.replayed().state() == world.ledger.state()


def test_a_provider_that_bills_beyond_all_bounds_bills_the_operator():
    world = funded(10**9)
    hold = rolling(world)
    hold.meter.report(Reported((Usage(input=1000, output=200_000),), final=True))
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert record.charged == PRICE.ceiling(BOUNDS)
    assert (record.loss, "beyond_hold" in record.flags) == (100_000 * 15, True)


# -- the input -------------------------------------------------------------------------------------

STATED = terms(bounds=Bounds(input=100_000, output=1000, cache_writes="5m"), states_input=True)
FULL = PRICE.ceiling(STATED.bounds)


def test_a_full_hold_shrinks_once_the_input_is_stated():
    world = funded(10**9)
    hold = rolling(world, FULL, under=STATED)
    hold.meter.report(Reported((Usage(input=2000, cache_write_5m=500, output=1),), final=False))
    hold.cover(b"x", no_cut)
    assert hold.held == 2000 * 3 + 500 * 4 + 1000 * 15
    assert extensions(world) == [hold.held]
    hold.meter.report(Reported((Usage(input=2000, cache_write_5m=500, output=1000),), final=True))
    hold.cover(b"x", no_cut)
    hold.__exit__(None, None, None)
    assert (hold.receipt.record.charged, hold.receipt.record.loss) == (hold.held, 0)
    assert world.replayed().state() == world.ledger.state()


def test_an_input_that_is_not_stated_for_good_shrinks_nothing():
    world = funded(10**9)
    hold = rolling(world, FULL, under=evolve(STATED, states_input=False))
    hold.meter.report(Reported((Usage(input=2000, output=1),), final=False))
    hold.cover(b"x", no_cut)
    assert (hold.held, extensions(world)) == (FULL, [])
    hold.__exit__(None, None, None)


def test_little_to_gain_is_not_worth_a_record():
    world = funded(10**9)
    hold = rolling(world, FULL, under=STATED)
    hold.meter.report(Reported((Usage(cache_write_5m=99_000, output=1),), final=False))
    hold.cover(b"x", no_cut)
    assert (hold.held, extensions(world)) == (FULL, [])
    hold.__exit__(None, None, None)


def test_an_input_that_grows_after_all_is_held_for_again():
    world = funded(10**9)
    hold = rolling(world, FULL, under=STATED)
    hold.meter.report(Reported((Usage(input=2000, output=1),), final=False))
    hold.cover(b"x", no_cut)
    hold.meter.report(Reported((Usage(input=32_000, output=900),), final=True))
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert (record.charged, record.loss) == (32_000 * 3 + 900 * 15, 0)
    assert record.held == record.charged


def test_what_a_hold_gave_back_is_told_to_those_who_wait():
    world = funded(10**9)
    freed = []
    world.books.freed = freed.append
    hold = rolling(world, FULL, under=STATED)
    hold.meter.report(Reported((Usage(input=2000, output=1),), final=False))
    hold.cover(b"x", no_cut)
    assert freed == ["w1"]
    hold.__exit__(None, None, None)
    assert freed == ["w1", "w1"]


def test_shrinking_without_room_in_the_journal_changes_nothing():
    world = funded(10**9)
    hold = rolling(world, FULL, under=STATED)
    world.writer.room = world.writer.reserved
    hold.meter.report(Reported((Usage(input=2000, output=1),), final=False))
    assert hold.cover(b"x", no_cut) == b"x"
    assert hold.held == world.ledger.held("w1") == FULL
    hold.__exit__(None, None, None)


# -- jobs ------------------------------------------------------------------------------------------


def job(world):
    with world.books.hold("r1", CLAIM, 5000, FakeClient()) as hold:
        hold.attempt(terms(), job=True)
        hold.sending()
        hold.accepted("video_1", Usage(input=100))
    return hold


async def test_a_job_keeps_its_hold_until_it_is_settled_once():
    world = funded(10_000)
    job(world)
    assert (world.ledger.held("w1"), world.writer.reserved, world.writer.kinds()) == (5000, 0, "AJ")
    (opened,) = world.books.jobs()
    assert (opened.job.job, opened.job.cost) == ("video_1", 300)
    record = world.books.settle_job("r1", finished=True)
    assert isinstance(record, UsageRecord)
    assert (record.charged, record.upstream_id, record.outcome) == (300, "video_1", Ending.COMPLETE)
    assert (world.ledger.held("w1"), world.ledger.balance("w1")) == (0, 9700)
    with pytest.raises(LookupError):
        world.books.settle_job("r1", finished=True)
    assert world.writer.kinds() == "AJS"


def test_a_job_that_failed_costs_nothing():
    world = funded(10_000)
    job(world)
    world.books.settle_job("r1", finished=False)
    assert (world.ledger.held("w1"), world.ledger.balance("w1"), world.writer.kinds()) == (0, 10_000, "AJV")


def test_a_job_is_known_after_a_restart_and_settled_there():
    world = funded(10_000)
    job(world)
    after = World(writer=FakeWriter(list(world.writer.records)))
    for record in world.writer.records:
        after.ledger.replay(record)
    assert after.ledger.state() == world.ledger.state()
    after.books.settle_job("r1", finished=True)
    assert after.ledger.balance("w1") == 9700
    assert after.ledger.held("w1") == 0


def test_a_job_that_cannot_be_settled_for_want_of_room_stays_open():
    world = funded(10_000)
    job(world)
    world.writer.room = 0
    with pytest.raises(Overloaded):
        world.books.settle_job("r1", finished=True)
    assert len(world.books.jobs()) == 1
    assert world.ledger.held("w1") == 5000


def test_a_request_that_ends_before_its_job_was_accepted_is_settled_like_a_call():
    world = funded(10_000)
    with world.books.hold("r1", CLAIM, 5000, FakeClient()) as hold:
        hold.attempt(terms(), job=True)
    assert (world.writer.kinds(), world.writer.reserved, world.ledger.held("w1")) == ("AV", 0, 0)


# -- the reach itself ------------------------------------------------------------------------------


def test_a_hold_that_does_not_roll_covers_everything():
    assert Reach(terms()).covered == ALL
    assert Reach(terms(slice_tokens=500)).covered == ALL  # the slice is all there can be


@settings(max_examples=200)
@given(
    held=st.integers(0, 3_000_000),
    markup=st.integers(1, 3_000_000),
    stated=st.booleans(),
    seen=st.integers(0, 99_000),
)
def test_what_is_said_to_be_covered_is_and_what_is_needed_covers_it(held, markup, stated, seen):
    price = PRICE.with_markup(markup)
    reach = Reach(evolve(ROLLING, price=price, states_input=True))
    if stated:
        reach.shrunk(Meter(Reported((Usage(input=100, output=1),), final=False)), 10**9)
    reach.reach(held)
    if reach.covered == ALL:
        assert reach.amount(BOUNDS.output) <= held
    elif reach.covered > -FRAMING_TOKENS:
        assert reach.needed(reach.covered) <= held
    assert reach.needed(seen) <= reach.wanted(seen) <= reach.amount(BOUNDS.output)
    reach.reach(reach.needed(seen))
    assert reach.covered >= seen


@settings(max_examples=150)
@given(
    credit=st.integers(FIRST, FIRST + 100_000),
    frames=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 40)), max_size=30),
    share=st.floats(0.05, 1.0),
)
def test_however_dense_the_text_no_more_is_charged_than_held_and_nothing_is_lost(credit, frames, share):
    """Tokens are at most bytes and frames of content together; the report comes when the answer was not cut."""
    world = funded(credit)
    hold = rolling(world)
    stream = Stream(hold)
    tokens = 0
    for size, count in frames:
        if stream.limit is None:
            stream.frame(size, count)
            tokens += int((size + count) * share)
    if stream.limit is None:
        hold.meter.report(Reported((Usage(input=1000, output=min(tokens, 100_000)),), final=True))
    hold.__exit__(None, None, None)
    record = hold.receipt.record
    assert record.charged <= record.held <= credit
    if stream.limit is None:
        assert record.loss == 0
    assert world.ledger.balance("w1") == credit - record.charged
    assert (world.ledger.held("w1"), world.writer.reserved) == (0, 0)
    assert isinstance(world.ledger.wallet("w1"), Wallet)
