"""Caps of keys and budgets of tasks: windows, what counts in them, and that a restart knows them all again."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.claims import Claim
from accounting.records import Key, Spender
from accounting.refusals import Insufficient, TooManyTasks, UnknownTask
from accounting.spending import (
    DAY_MS,
    TASK_IDLE_MS,
    Budget,
    Spending,
    day_of,
    first_day,
    window_ends_ms,
)
from pricing.usage import Reported, Usage
from tests.accounting import ledger_fakes
from tests.accounting.ledger_fakes import FakeClient, World, no_cut, terms

KEY = Key("k1", "w1", "d1", "fb…1", 1)
SPENDER = Spender("w1", "k1")
WEDNESDAY = int(datetime(2026, 11, 18, 12, tzinfo=UTC).timestamp() * 1000)


def ms(*when):
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def world():
    world = World(ms=WEDNESDAY)
    world.fund(10**9)
    return world


def spend(world, amount, request="r", budget=None, max_cost=None, *, held=None):
    """One request that costs so many picos (a multiple of three)."""
    claim = world.books.claim(SPENDER, budget, max_cost)
    with world.books.hold(request, claim, amount if held is None else held, FakeClient()) as hold:
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(Reported((Usage(input=amount // 3),), final=True))
        hold.cover(b"x", no_cut)
    return hold.receipt.record


def refused(world, amount, **more):
    with pytest.raises(Insufficient) as error:
        spend(world, amount, "refused", **more)
    return error.value


# -- windows ---------------------------------------------------------------------------------------


@given(st.datetimes(datetime(1970, 2, 1), datetime(2200, 1, 1)))  # noqa: DTZ001 - hypothesis wants them so
def test_windows_are_those_of_the_calendar_in_utc(moment):
    moment = moment.replace(tzinfo=UTC)
    at_ms = int(moment.timestamp() * 1000)
    day = day_of(at_ms)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    starts = {
        "day": midnight,
        "week": midnight - timedelta(days=midnight.weekday()),
        "month": midnight.replace(day=1),
    }
    ends = {
        "day": midnight + timedelta(days=1),
        "week": starts["week"] + timedelta(days=7),
        "month": (starts["month"] + timedelta(days=31)).replace(day=1),
    }
    for window, start in starts.items():
        assert first_day(window, day) * DAY_MS == start.timestamp() * 1000
        assert window_ends_ms(window, at_ms) == ends[window].timestamp() * 1000
    assert (first_day("lifetime", day), window_ends_ms("lifetime", at_ms)) == (0, None)


# -- caps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "still", "again"),
    [
        ("day", ms(2026, 11, 18, 23, 59), ms(2026, 11, 19)),
        ("week", ms(2026, 11, 22, 23, 59), ms(2026, 11, 23)),
        ("month", ms(2026, 11, 30, 23, 59), ms(2026, 12, 1)),
        ("lifetime", ms(2029, 1, 1), None),
    ],
)
def test_a_key_spends_its_cap_once_in_each_window(world, window, still, again):
    world.books.put_down(replace(KEY, cap=900, cap_window=window))
    spend(world, 600)
    world.ms = still
    error = refused(world, 600)
    assert (error.limit, error.available, error.shortfall) == ("key_cap", 300, 300)
    spend(world, 300, "last")
    assert refused(world, 3).available == 0
    if again is not None:
        world.ms = again
        spend(world, 900, "again")
        assert world.ledger.spent_within_cap("k1", world.ms) == (900, 0)


def test_what_is_held_counts_against_a_cap_and_comes_back(world):
    world.books.put_down(replace(KEY, cap=900))
    with world.books.hold("open", world.books.claim(SPENDER), 600, FakeClient()):
        assert world.ledger.spent_within_cap("k1", world.ms) == (0, 600)
        assert refused(world, 600).limit == "in_flight"
        assert refused(world, 1200).limit == "key_cap"
    spend(world, 900)


def test_a_request_counts_in_the_window_in_which_its_hold_was_taken(world):
    world.books.put_down(replace(KEY, cap=900, cap_window="day"))
    with world.books.hold("long", world.books.claim(SPENDER), 900, FakeClient()) as hold:
        world.ms += DAY_MS
        spend(world, 900, "next day")
        hold.attempt(terms())
        hold.sending()
        hold.meter.report(Reported((Usage(input=300),), final=True))
    assert world.ledger.spent_within_cap("k1", world.ms) == (900, 0)
    assert world.ledger.spent_within_cap("k1", world.ms - DAY_MS) == (900, 0)
    assert world.replayed().spent_within_cap("k1", world.ms - DAY_MS) == (900, 0)


def test_a_cap_that_is_set_later_knows_what_was_spent_before(world):
    world.books.put_down(KEY)
    spend(world, 600)
    world.books.put_down(replace(KEY, cap=900, cap_window="week"))
    assert refused(world, 600).available == 300
    world.books.put_down(replace(KEY, cap=None))
    spend(world, 6000, "free again")


def test_caps_and_budgets_are_rebuilt_from_the_journal(world):
    world.books.put_down(replace(KEY, cap=3000, cap_window="month"))
    budget = Budget("task", 1500)
    spend(world, 600, "r1", budget)
    claim = world.books.claim(SPENDER, Budget("task", 1200))
    hold = world.books.hold("r2", claim, 300, FakeClient())
    hold.attempt(terms())
    after = world.replayed()
    assert (
        after.spent_within_cap("k1", world.ms) == world.ledger.spent_within_cap("k1", world.ms) == (600, 300)
    )
    for ledger in (world.ledger, after):
        task = ledger.task("w1", "task", world.ms)
        assert (task.max, task.tally.spent, task.tally.held) == (1200, 600, 300)
    assert list(after.rooms(claim)) == list(world.ledger.rooms(claim))


# -- budgets ---------------------------------------------------------------------------------------


def test_the_first_request_fixes_a_budget_and_later_ones_may_only_lower_it(world):
    spend(world, 300, "r1", Budget("t", 1500))
    spend(world, 300, "r2", Budget("t", 9000))
    assert refused(world, 1200, budget=Budget("t", 9000)).available == 900
    spend(world, 300, "r3", Budget("t", 1200))
    error = refused(world, 600, budget=Budget("t"))
    assert (error.limit, error.available) == ("budget", 300)


def test_a_lower_maximum_of_a_refused_request_changes_nothing(world):
    spend(world, 300, "r1", Budget("t", 1500))
    assert refused(world, 300, budget=Budget("t", 400)).limit == "budget"
    spend(world, 1200, "r2", Budget("t"))


def test_concurrent_requests_of_one_task_share_its_budget(world):
    budget = Budget("t", 900)
    with world.books.hold("r1", world.books.claim(SPENDER, budget), 600, FakeClient()):
        assert refused(world, 600, budget=budget).limit == "in_flight"
        spend(world, 300, "r2", budget)
        assert refused(world, 900, budget=budget).limit == "budget"


def test_a_budget_belongs_to_its_wallet(world):
    world.fund(10**6, wallet="w2")
    spend(world, 900, "r1", Budget("t", 900))
    other = world.books.claim(Spender("w2", "k2"), Budget("t", 900))
    with world.books.hold("r2", other, 900, FakeClient()):
        pass


def test_a_budget_that_nothing_is_known_of_needs_a_maximum(world):
    with pytest.raises(UnknownTask):
        spend(world, 3, budget=Budget("t"))
    assert world.ledger.task("w1", "t", world.ms) is None


def test_a_task_that_never_reached_a_provider_is_forgotten_with_its_hold(world):
    with world.books.hold("r1", world.books.claim(SPENDER, Budget("t", 900)), 300, FakeClient()):
        assert world.ledger.task("w1", "t", world.ms).max == 900
    assert world.ledger.task("w1", "t", world.ms) is None
    assert world.ledger.state() == world.replayed().state()


def test_a_task_is_forgotten_when_it_has_been_idle_for_thirty_days(world):
    spend(world, 900, "r1", Budget("t", 900))
    world.ms += TASK_IDLE_MS
    assert refused(world, 3, budget=Budget("t", 900)).limit == "budget"
    world.ms += 1
    spend(world, 900, "r2", Budget("t", 900))
    assert world.ledger.task("w1", "t", world.ms).tally.spent == 900
    assert world.replayed().task("w1", "t", world.ms).tally.spent == 900


def test_a_wallet_may_have_so_many_tasks_and_idle_ones_make_room(monkeypatch):
    monkeypatch.setattr("accounting.spending.TASKS_MAX", 3)
    spending = Spending()
    for number in range(3):
        budget = Budget(str(number), 9)
        spending.check_task("w", budget, number)
        spending.begin_task("w", budget, number).recorded = True
        spending.end_hold("w", str(number), spending.task("w", str(number), number))
    with pytest.raises(TooManyTasks):
        spending.check_task("w", Budget("more", 9), 3)
    spending.check_task("other", Budget("more", 9), 3)
    spending.check_task("w", Budget("1", 9), 3)  # one that is there may go on
    later = TASK_IDLE_MS + 1
    spending.check_task("w", Budget("more", 9), later)
    spending.begin_task("w", Budget("more", 9), later)
    assert spending.task("w", "0", later) is None
    assert spending.task("w", "1", later) is not None


# -- what one request may cost ---------------------------------------------------------------------


def test_a_request_costs_no_more_than_it_allows(world):
    assert refused(world, 600, max_cost=599).limit == "max_cost"
    spend(world, 600, "r", max_cost=600)


def test_every_limit_that_is_short_is_looked_at_and_the_tightest_named(world):
    world.books.put_down(replace(KEY, cap=600))
    claim = world.books.claim(SPENDER, Budget("t", 450), 900)
    assert world.books.available_to(claim) == 450
    with pytest.raises(Insufficient) as error:
        world.books.hold("r", claim, 1000, FakeClient())
    assert (error.value.limit, error.value.available) == ("budget", 450)


def test_days_that_no_window_reaches_are_forgotten(world):
    world.books.put_down(replace(KEY, cap=10**6, cap_window="month"))
    for number in range(80):
        spend(world, 3, f"r{number}")
        world.ms += DAY_MS
    spending = world.ledger._spending.key("k1")
    assert len(spending.days) <= 34
    assert spending.lifetime.spent == 240
    world.books.put_down(replace(KEY, cap=10**6))
    assert world.ledger.spent_within_cap("k1", world.ms) == (240, 0)


def test_claims_without_limits_cost_no_walk_through_days(world):
    assert [room.limit for room in world.ledger.rooms(Claim(SPENDER))] == ["wallet"]
    assert ledger_fakes.CLAIM.max_cost is None


def test_a_lower_maximum_holds_from_the_hold_on_and_not_only_from_its_record(world):
    spend(world, 300, "r1", Budget("t", 3000))
    claim = world.books.claim(SPENDER, Budget("t", 900))
    with world.books.hold("r2", claim, 300, FakeClient()):
        assert refused(world, 600, budget=Budget("t")).limit == "in_flight"
        assert refused(world, 900, budget=Budget("t")).limit == "budget"


def test_a_maximum_is_recorded_with_whichever_request_is_recorded_first(world):
    """The one that named it may never have reached a provider."""
    with world.books.hold("r1", world.books.claim(SPENDER, Budget("t", 900)), 3, FakeClient()):
        spend(world, 300, "r2", Budget("t"))
    assert world.ledger.task("w1", "t", world.ms).max == 900
    assert world.replayed().task("w1", "t", world.ms).max == 900
