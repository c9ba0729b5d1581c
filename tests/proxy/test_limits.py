"""Limits: GCRA per key, places at once, and the bound on answers that are read on for nobody."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.records import Spender
from pricing.price import Bounds
from pricing.usage import Usage
from proxy.errors import Kind, Rejected
from proxy.limits import Ceilings, Limits
from proxy.types import Caller, KeyLimits


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


class Reply:
    def __init__(self):
        self.callback = None

    def when_gone(self, callback):
        self.callback = callback


class Record:
    def __init__(self, tokens):
        self.usage = Usage(output=tokens)


def limits(clock=None, requests_max=100, muted_max=10, muted_per_key_max=3):
    return Limits(Ceilings(requests_max, muted_max, muted_per_key_max), clock or Clock())


def test_bodies_that_are_being_read_share_their_room():
    room = Limits(Ceilings(1, 1, 1, uploads_bytes_max=100), Clock()).uploads
    room.take(60)
    room.take(40)
    refused(lambda: room.take(1), Kind.OVERLOADED)
    room.give_back(60)
    room.take(60)
    assert room.taken == 100


def caller(key="k", **limits):
    return Caller(Spender("w", key), KeyLimits(**limits))


def refused(call, kind=Kind.RATE_LIMITED):
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.kind is kind
    assert caught.value.retry_after_seconds > 0
    return caught.value.retry_after_seconds


def test_a_key_without_limits_is_only_bound_by_the_gateway():
    all_of_them = limits(requests_max=5)
    slots = [all_of_them.admit(caller(), Reply()) for _ in range(5)]
    refused(lambda: all_of_them.admit(caller("other"), Reply()), Kind.OVERLOADED)
    with slots[0]:
        pass
    all_of_them.admit(caller(), Reply())


def test_a_fresh_key_may_spend_its_minute_at_once_and_then_waits():
    clock = Clock()
    keys = limits(clock)
    for _ in range(6):
        with keys.admit(caller(requests_per_minute=6), Reply()):
            pass
    wait = refused(lambda: keys.admit(caller(requests_per_minute=6), Reply()))
    assert wait == pytest.approx(10.0)
    clock.seconds += wait
    with keys.admit(caller(requests_per_minute=6), Reply()):
        pass
    refused(lambda: keys.admit(caller(requests_per_minute=6), Reply()))


def test_what_is_refused_costs_nothing():
    clock = Clock()
    keys = limits(clock)
    keys.admit(caller(requests_per_minute=1), Reply())
    waits = [refused(lambda: keys.admit(caller(requests_per_minute=1), Reply())) for _ in range(5)]
    assert len(set(waits)) == 1


@given(
    st.integers(1, 50),
    st.lists(st.floats(0, 30, allow_nan=False), max_size=80),
)
def test_over_any_time_a_key_gets_at_most_its_burst_and_its_rate(per_minute, gaps):
    clock = Clock()
    keys, admitted = limits(clock), 0
    for gap in gaps:
        clock.seconds += gap
        try:
            with keys.admit(caller(requests_per_minute=per_minute), Reply()):
                admitted += 1
        except Rejected:
            pass
    assert admitted <= per_minute + sum(gaps) * per_minute / 60 + 1e-6


def test_concurrency_counts_what_is_under_way_and_frees_it_on_every_way_out():
    keys = limits()
    first = keys.admit(caller(concurrency=1), Reply())
    refused(lambda: keys.admit(caller(concurrency=1), Reply()))
    with pytest.raises(ZeroDivisionError), first:
        raise ZeroDivisionError
    with keys.admit(caller(concurrency=1), Reply()):
        pass
    assert keys.open == 0


def test_muted_answers_keep_their_place_and_are_bounded_at_admission_per_key_and_in_all():
    keys = limits(muted_max=4, muted_per_key_max=3)
    slots = []
    for _ in range(3):
        reply = Reply()
        slots.append(keys.admit(caller("a"), reply))
        reply.callback()
        reply.callback()
    assert keys.muted == 3
    refused(lambda: keys.admit(caller("a"), Reply()))
    reply = Reply()
    slots.append(keys.admit(caller("b"), reply))
    reply.callback()
    refused(lambda: keys.admit(caller("c"), Reply()), Kind.OVERLOADED)
    for slot in slots:
        with slot:
            pass
    assert (keys.open, keys.muted) == (0, 0)
    with keys.admit(caller("a"), Reply()):
        pass


def test_a_client_that_leaves_after_the_place_was_given_back_counts_for_nothing():
    keys, reply = limits(), Reply()
    with keys.admit(caller(), reply):
        pass
    reply.callback()
    assert keys.muted == 0


def test_tokens_are_taken_at_most_and_trued_up_to_what_was_used():
    keys = limits()
    who = caller(tokens_per_minute=1000)
    with keys.admit(who, Reply()) as slot:
        slot.tokens(Bounds(input=500, output=400))
        assert slot.standing()["tokens"].remaining == 100
        slot.true_up(Record(tokens=50))
    assert keys.standing(who)["tokens"].remaining == 950


def test_tokens_of_a_request_that_failed_are_given_back():
    keys = limits()
    who = caller(tokens_per_minute=1000)
    with pytest.raises(ZeroDivisionError), keys.admit(who, Reply()) as slot:
        slot.tokens(Bounds(input=500, output=400))
        raise ZeroDivisionError
    assert keys.standing(who)["tokens"].remaining == 1000


class Hold:
    """Left, it has a receipt, like the real one; before, it has none."""

    def __init__(self, record):
        self.settles_at = record
        self.left = False

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.left = True

    @property
    def receipt(self):
        assert self.left
        return SimpleNamespace(record=self.settles_at)


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_whoever_leaves_in_the_middle_has_used_the_tokens_that_were_settled(error):
    keys = limits()
    who = caller(tokens_per_minute=1000)
    with suppress(BaseException), keys.admit(who, Reply()) as slot:
        slot.tokens(Bounds(input=500, output=400))
        with slot.spending(Hold(Record(tokens=300))) as hold:
            assert isinstance(hold, Hold)
            if error is not None:
                raise error
    assert keys.standing(who)["tokens"].remaining == 700


def test_a_hold_of_a_key_without_a_limit_of_tokens_is_spent_from_as_it_is():
    with limits().admit(caller(), Reply()) as slot:
        slot.tokens(Bounds(input=500, output=400))
        hold = Hold(Record(tokens=300))
        assert slot.spending(hold) is hold


def test_a_limit_that_is_changed_holds_from_the_next_request_on():
    keys = limits()
    for _ in range(2):
        with keys.admit(caller(requests_per_minute=2), Reply()):
            pass
    refused(lambda: keys.admit(caller(requests_per_minute=2), Reply()))
    with keys.admit(caller(), Reply()) as slot:
        assert slot.standing() == {}
    with keys.admit(caller(requests_per_minute=1, tokens_per_minute=9), Reply()) as slot:
        assert {name: one.limit for name, one in slot.standing().items()} == {"requests": 1, "tokens": 9}


def test_a_hold_that_settled_nothing_gives_all_tokens_back():
    keys = limits()
    who = caller(tokens_per_minute=1000)
    with pytest.raises(ZeroDivisionError), keys.admit(who, Reply()) as slot:
        slot.tokens(Bounds(input=500, output=400))
        with slot.spending(Hold(None)):
            raise ZeroDivisionError
    assert keys.standing(who)["tokens"].remaining == 1000


def test_more_tokens_than_the_minute_has_pass_only_from_a_full_bucket():
    clock = Clock()
    keys, who = limits(clock), caller(tokens_per_minute=1000)
    with keys.admit(who, Reply()) as slot:
        slot.tokens(Bounds(input=5000, output=0))
        slot.true_up(Record(tokens=5000))
    with keys.admit(who, Reply()) as slot:
        assert refused(lambda: slot.tokens(Bounds(input=5000, output=0))) > 60


def test_standing_says_what_remains_and_when_it_is_full_again():
    clock = Clock()
    keys, who = limits(clock), caller(requests_per_minute=60)
    with keys.admit(who, Reply()) as slot:
        standing = slot.standing()["requests"]
    assert (standing.limit, standing.remaining, standing.reset_seconds) == (60, 59, pytest.approx(1.0))
    clock.seconds += 1
    assert keys.standing(who)["requests"].remaining == 60
