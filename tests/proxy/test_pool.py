"""Which account is tried next, and how long one that failed is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.pool import Pool, Rest
from tests.offers import offer
from tests.values import evolve

A = offer()
B = evolve(A, account="b")
OTHER_MODEL = evolve(A, wire_name="n")


def rest(offer=A, since=0.0, until=10.0, hard=True, whole=False):
    return Rest(offer.provider, offer.account, None if whole else offer.wire_name, since, until, "429", hard)


def test_healthy_accounts_are_tried_in_order():
    pool = Pool()
    assert pool.next([A, B], 0.0) is A
    assert pool.next([B], 0.0) is B
    assert pool.next([], 0.0) is None


def test_a_resting_account_is_passed_over_until_its_rest_is_over():
    pool = Pool()
    pool.rest(rest(until=10.0))
    assert pool.next([A, B], 9.9) is B
    assert pool.next([A], 9.9) is None
    assert pool.next([A, B], 10.0) is A


def test_one_model_may_rest_while_the_account_serves_others():
    pool = Pool()
    pool.rest(rest())
    assert pool.next([A], 1.0) is None
    assert pool.next([OTHER_MODEL], 1.0) is OTHER_MODEL
    pool.rest(rest(whole=True))
    assert pool.next([OTHER_MODEL], 1.0) is None


def test_a_soft_rest_gives_way_to_others_but_is_a_last_resort():
    pool = Pool()
    pool.rest(rest(A, hard=False))
    assert pool.next([A, B], 1.0) is B
    assert pool.next([A], 1.0) is A
    pool.rest(rest(B, hard=True))
    assert pool.next([B, A], 1.0) is A
    pool.rest(rest(A, hard=True, whole=True))
    assert pool.next([A, B], 1.0) is None


def test_a_harder_or_longer_rest_is_not_shortened():
    pool = Pool()
    assert pool.rest(rest(until=100.0)).until == 100.0
    assert pool.rest(rest(since=1.0, until=10.0)).until == 100.0
    assert pool.rest(rest(since=1.0, until=500.0, hard=False)).hard
    assert pool.rest(rest(since=1.0, until=200.0)).until == 200.0
    assert pool.rest(rest(since=300.0, until=310.0, hard=False)).until == 310.0


def test_success_clears_what_was_said_before_the_attempt_began_and_nothing_younger():
    pool = Pool()
    pool.rest(rest(since=5.0, until=50.0))
    pool.succeeded(A, began=4.0)
    assert pool.next([A], 6.0) is None
    pool.succeeded(A, began=5.0)
    assert pool.next([A], 6.0) is A
    assert pool.resting(6.0) == ()


def test_the_operator_sees_who_rests_until_when_and_why_and_can_wake_them():
    pool = Pool()
    late, soon = pool.rest(rest(A, until=90.0)), pool.rest(rest(B, until=20.0, whole=True))
    assert pool.resting(1.0) == (soon, late)
    assert pool.resting(30.0) == (late,)
    assert late.because == "429"
    pool.clear("p", "a")
    assert pool.resting(1.0) == (soon,)


def test_the_next_to_wake_is_the_first_whose_every_rest_is_over():
    pool = Pool()
    pool.rest(rest(A, until=10.0))
    pool.rest(rest(A, until=40.0, whole=True))
    pool.rest(rest(B, until=30.0))
    assert pool.ready_at([A, B], 1.0) == 30.0
    assert pool.ready_at([A], 1.0) == 40.0
    assert pool.ready_at([evolve(A, account="c"), A], 1.0) == 1.0
    assert pool.ready_at([], 1.0) == 1.0


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1000)), max_size=60))
def test_rests_are_bounded_whatever_models_are_named(rests):
    pool = Pool(rests_max=8)
    for name, until in rests:
        pool.rest(rest(evolve(A, wire_name=f"m@{name}"), until=until))
        assert len(pool._rests) <= 8


def test_over_the_bound_the_rest_that_ends_first_is_forgotten_first():
    pool = Pool(rests_max=2)
    offers = [evolve(A, wire_name=name) for name in "xyz"]
    for one, until in zip(offers, (30.0, 20.0, 40.0), strict=True):
        pool.rest(rest(one, until=until))
    assert [one.model for one in pool.resting(0.0)] == ["x", "z"]
    pool.rest(rest(evolve(A, wire_name="w"), since=35.0, until=60.0))
    assert [one.model for one in pool.resting(0.0)] == ["z", "w"]


def test_where_nobody_rests_success_says_nothing_new():
    pool = Pool()
    pool.succeeded(A, 5.0)
    assert pool.resting(0.0) == ()
    assert pool.ready_at([A], 5.0) == 5.0


@pytest.mark.parametrize("now", [10.0, 11.0])
def test_a_rest_that_is_over_is_like_none(now):
    pool = Pool()
    pool.rest(rest(until=10.0))
    assert pool.ready_at([A], now) == now
    assert pool.resting(now) == ()
