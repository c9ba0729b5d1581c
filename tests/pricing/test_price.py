"""No usage inside a request's bounds costs more than what was held for it; what is written is charged."""

from enum import IntEnum

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pricing.money import PPM, marked_up
from pricing.price import (
    FALLBACK,
    RATE_NAMES,
    REQUESTS,
    WEB_SEARCHES,
    Bounds,
    Price,
    Rates,
    Tier,
    affordable_output,
    rate,
)
from pricing.usage import BUCKETS, COUNT_MAX, Usage
from tests.values import evolve

# --- What a price may look like: any rates, written or not, cheap tiers above dear ones, any markup. ---

_rates = st.builds(Rates, **{name: st.none() | st.integers(0, 10**9) for name in RATE_NAMES})


@st.composite
def prices(draw):
    thresholds = sorted(draw(st.sets(st.integers(1, 3_000), max_size=3)))
    tiers = tuple(Tier(above=above, rates=draw(_rates)) for above in (0, *thresholds))
    return Price(
        model="vendor/model",
        version="p_0",
        tiers=tiers,
        markup_ppm=draw(st.integers(0, 5 * PPM)),
        cache_writes=draw(st.sampled_from(["none", "5m", "1h"])),
    )


# --- What an answer may report: drawn freely, without a look at bounds or prices. ---

READ = (
    "input",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "audio_input",
    "audio_cached",
    "image_input",
)
WRITTEN = ("output", "audio_output", "image_output")
_count = st.just(0) | st.integers(0, 1_000)


@st.composite
def answers(draw):
    legs = [
        Usage(**{name: draw(_count) for name in READ + WRITTEN}, reasoning=draw(_count))
        for _ in range(draw(st.integers(1, 3)))
    ]
    legs[-1] = replace(legs[-1], requests=draw(st.integers(0, 1)), web_searches=draw(st.integers(0, 5)))
    return tuple(legs)


def _sum(legs, names):
    return sum(getattr(leg, name) for leg in legs for name in names)


@st.composite
def boxes_around(draw, legs, price):
    """Any bounds that these legs lie in, by the meaning of each bound; tight or wide."""

    def at_least(count):
        return count + draw(st.just(0) | st.integers(0, 2_000))

    needed = "1h" if _sum(legs, ["cache_write_1h"]) else "5m" if _sum(legs, ["cache_write_5m"]) else "none"
    order = ["none", "5m", "1h"]
    if order.index(price.cache_writes) >= order.index(needed):
        needed = "none"  # the vendor's own habit accounts for them; the body need not mark any
    return Bounds(
        input=at_least(_sum(legs, READ)),
        output=at_least(_sum(legs, WRITTEN)),
        cache_writes=draw(st.sampled_from(order[order.index(needed) :])),
        audio=bool(_sum(legs, ["audio_input", "audio_cached"])) or draw(st.booleans()),
        image=bool(_sum(legs, ["image_input"])) or draw(st.booleans()),
        audio_output=bool(_sum(legs, ["audio_output"])) or draw(st.booleans()),
        image_output=bool(_sum(legs, ["image_output"])) or draw(st.booleans()),
        web_searches=at_least(_sum(legs, ["web_searches"])),
    )


@settings(max_examples=250)
@given(st.data(), prices(), answers())
def test_no_usage_inside_the_bounds_costs_more_than_their_ceiling(data, price, legs):
    bounds = data.draw(boxes_around(legs, price))
    assert price.cost(legs) <= price.ceiling(bounds)


@settings(max_examples=100)
@given(prices(), answers(), st.data())
def test_wider_bounds_never_have_a_lower_ceiling(price, legs, data):
    bounds = data.draw(boxes_around(legs, price))
    wider = evolve(
        bounds,
        input=bounds.input + data.draw(st.integers(0, 3_000)),
        output=bounds.output + data.draw(st.integers(0, 3_000)),
        cache_writes="1h",
        audio=True,
        image=True,
        audio_output=True,
        image_output=True,
    )
    assert price.ceiling(bounds) <= price.ceiling(wider)


@settings(max_examples=100)
@given(prices(), st.integers(0, 5_000), st.integers(0, 5_000), st.sampled_from(["none", "5m", "1h"]))
def test_a_ceiling_is_no_higher_than_some_usage_can_reach(price, most_input, most_output, writes):
    one_tier = evolve(price, tiers=price.tiers[:1])
    bounds = Bounds(input=most_input, output=most_output, cache_writes=writes, web_searches=2)
    allowed = {"none": READ[:2], "5m": READ[:3], "1h": READ[:4]}
    dearest = max(
        one_tier.cost((Usage(**{name: most_input}, output=most_output, requests=1, web_searches=2),))
        for name in {*allowed[writes], *allowed[price.cache_writes]}
    )
    assert one_tier.ceiling(bounds) == dearest


# --- What is worked out beforehand is what it would come to step by step. ---


def step_by_step(price, legs):
    """Bucket times rate, one after the other, the tier looked up for each leg."""
    cost = 0
    for leg in legs:
        rates = next(
            tier.rates for tier in reversed(price.tiers) if leg.context > tier.above or not tier.above
        )
        for name, count in leg.counts().items():
            if name != "reasoning":
                cost += count * rate(rates, name)
    return cost


_usages = st.builds(Usage, **dict.fromkeys(BUCKETS, _count))


@settings(max_examples=150)
@given(prices(), st.lists(_usages, max_size=3).map(tuple))
def test_a_bill_is_the_same_step_by_step(price, legs):
    assert price.list_cost(legs) == step_by_step(price, legs)
    assert price.cost(legs) == marked_up(step_by_step(price, legs), price.markup_ppm)


@settings(max_examples=100)
@given(prices(), st.lists(_usages, max_size=3).map(tuple))
def test_unpriced_is_what_is_used_and_no_rate_nor_its_stand_in_is_written_for(price, legs):
    expected = set()
    for leg in legs:
        rates = price.tier_at(leg.context).rates
        for name in leg.counts().keys() - {"reasoning", "requests"}:
            chain = [name]
            while chain[-1] in FALLBACK:
                chain.append(FALLBACK[chain[-1]])
            if all(getattr(rates, at) is None for at in chain):
                expected.add(name)
    assert price.unpriced(legs) == expected


_bounds = st.builds(
    Bounds,
    input=st.integers(0, 4_000),
    output=st.integers(0, 4_000),
    cache_writes=st.sampled_from(["none", "5m", "1h"]),
    audio=st.booleans(),
    image=st.booleans(),
    audio_output=st.booleans(),
    image_output=st.booleans(),
    web_searches=st.integers(0, 5),
)


def line_step_by_step(price, bounds):
    """Every rate that can be met, tier by tier and bucket by bucket, and the dearest of them."""
    read, written = price.classes(bounds)
    reachable = [tier.each for tier in price.tiers if tier.above == 0 or tier.above < bounds.input]
    fixed = (
        bounds.input * max(each[place] for each in reachable for place in read)
        + bounds.web_searches * max(each[WEB_SEARCHES] for each in reachable)
        + max(each[REQUESTS] for each in reachable)
    )
    return fixed, max(each[place] for each in reachable for place in written)


@settings(max_examples=250)
@given(prices(), st.lists(_bounds, min_size=1, max_size=6))
def test_a_ceiling_is_the_same_step_by_step_whatever_was_asked_before(price, several):
    for bounds in several:
        fixed, each = line_step_by_step(price, bounds)
        assert price.ceiling_line(bounds) == (fixed, each)
        assert price.ceiling(bounds) == marked_up(fixed + bounds.output * each, price.markup_ppm)


@settings(max_examples=100)
@given(prices(), _bounds, st.integers(0, 10**6))
def test_a_ceiling_is_a_line_over_the_output(price, bounds, output):
    fixed, each = price.ceiling_line(bounds)
    expected = marked_up(fixed + output * each, price.markup_ppm)
    assert price.ceiling(evolve(bounds, output=output)) == expected


@settings(max_examples=150)
@given(prices(), _bounds, st.integers(0, 10**13), st.integers(-2, 2), st.integers(0, 10_000))
def test_affordable_output_is_the_most_that_fits_to_the_token(price, bounds, amount, off, output):
    """For any amount, and for those just above and below what some output costs."""
    for amount_ in (amount, max(price.ceiling(evolve(bounds, output=output)) + off, 0)):
        tokens = affordable_output(price, bounds, amount_)
        fits = price.ceiling(evolve(bounds, output=tokens)) <= amount_
        one_more = price.ceiling(evolve(bounds, output=tokens + 1)) <= amount_
        if price.ceiling(evolve(bounds, output=0)) > amount_:
            assert tokens == 0
        elif tokens < COUNT_MAX:
            assert fits
            assert not one_more
        else:
            assert fits


def test_affordable_output_of_what_costs_nothing_is_without_end():
    free = Price("v/m", "p_0", (Tier(0, Rates(input=3, output=0)),))
    assert affordable_output(free, Bounds(input=2, output=0), 6) == COUNT_MAX
    assert affordable_output(free, Bounds(input=2, output=0), 5) == 0
    assert affordable_output(_price(Tier(0, SONNET), markup_ppm=0), Bounds(input=2, output=0), 0) == COUNT_MAX


def test_affordable_output_by_hand():
    price = _price(Tier(0, Rates(input=3, output=15)), markup_ppm=1_200_000)
    bounds = Bounds(input=100, output=7)  # whatever output they have
    input_costs = 360
    assert [affordable_output(price, bounds, input_costs + more) for more in (-1, 0, 17, 18, 35, 36)] == [
        0, 0, 0, 1, 1, 2
    ]  # fmt: skip


def test_a_tier_is_written_down_as_it_was_stated():
    """The version of a catalogue is a hash of that: nothing that is worked out may stand in it."""
    tier = Tier(0, Rates(input=1))
    assert set(msgspec.json.decode(msgspec.json.encode(tier))) == {"above", "rates"}


def test_tiers_are_equal_by_what_is_written():
    assert Tier(0, Rates(input=1)) == Tier(0, Rates(input=1))
    assert Tier(0, Rates(input=1)) != Tier(0, Rates(input=1, cache_read=1))  # though both cost the same


@pytest.mark.parametrize(("context", "above"), [(0, 0), (1, 0), (10, 0), (11, 10), (20, 10), (21, 20)])
def test_the_tier_of_a_context_is_the_last_that_it_exceeds(context, above):
    price = _price(Tier(0, SONNET), Tier(10, LONG), Tier(20, SONNET))
    assert price.tier_at(context).above == above


# --- The arithmetic itself, by hand ---

SONNET = Rates(
    input=3_000_000, cache_read=300_000, cache_write_5m=3_750_000, cache_write_1h=6_000_000, output=15_000_000
)
LONG = Rates(
    input=6_000_000,
    cache_read=600_000,
    cache_write_5m=7_500_000,
    cache_write_1h=12_000_000,
    output=22_500_000,
)


def _price(*tiers, **more):
    return Price(model="v/m", version="p_0", tiers=tiers, **more)


def test_a_bill_is_the_sum_of_buckets_times_rates():
    price = _price(Tier(0, SONNET))
    usage = Usage(input=10, cache_read=1_000, cache_write_5m=100, cache_write_1h=7, output=50, reasoning=40)
    by_hand = 10 * 3_000_000 + 1_000 * 300_000 + 100 * 3_750_000 + 7 * 6_000_000 + 50 * 15_000_000
    assert price.list_cost((usage,)) == by_hand
    assert price.cost((usage,)) == by_hand


def test_reasoning_is_part_of_output_and_not_charged_again():
    price = _price(Tier(0, SONNET))
    assert price.cost((Usage(output=9, reasoning=9),)) == price.cost((Usage(output=9),))


def test_a_tier_holds_for_every_token_of_a_leg_whose_context_is_longer():
    price = _price(Tier(0, SONNET), Tier(200_000, LONG))
    at = Usage(input=100_000, cache_read=100_000, output=1)
    above = Usage(input=100_000, cache_read=100_001, output=1)
    assert price.cost((at,)) == 100_000 * 3_000_000 + 100_000 * 300_000 + 15_000_000
    assert price.cost((above,)) == 100_000 * 6_000_000 + 100_001 * 600_000 + 22_500_000


def test_a_tier_is_chosen_for_each_leg_by_itself():
    price = _price(Tier(0, SONNET), Tier(200_000, LONG))
    legs = (Usage(input=150_000), Usage(input=150_000))
    assert price.cost(legs) == 2 * 150_000 * 3_000_000


def test_output_does_not_count_towards_the_tier():
    price = _price(Tier(0, SONNET), Tier(10, LONG))
    assert price.cost((Usage(input=10, output=1_000),)) == 10 * 3_000_000 + 1_000 * 15_000_000


def test_nothing_used_costs_nothing():
    assert _price(Tier(0, SONNET)).cost(()) == 0
    assert _price(Tier(0, SONNET)).cost((Usage(),)) == 0


def test_a_markup_rounds_up_once_over_all_legs():
    price = _price(Tier(0, Rates(input=1, output=1)), markup_ppm=1_500_000)
    assert price.cost((Usage(input=1), Usage(input=1))) == marked_up(2, 1_500_000) == 3
    assert price.list_cost((Usage(input=1), Usage(input=1))) == 2


def test_another_markup_leaves_the_list_price_alone():
    price = _price(Tier(0, SONNET)).with_markup(600_000)
    assert price.markup_ppm == 600_000
    assert price.list_cost((Usage(input=1),)) == 3_000_000
    assert price.cost((Usage(input=1),)) == 1_800_000


@pytest.mark.parametrize(("name", "stand_in"), FALLBACK.items())
def test_a_rate_that_is_not_written_is_the_plain_one_of_its_direction(name, stand_in):
    rates = Rates(**{stand_in: 7})
    assert rate(rates, name) == 7
    assert rate(Rates(**{stand_in: 7, name: 0}), name) == 0


def test_what_has_no_rate_at_all_is_free_and_said_so():
    price = _price(Tier(0, Rates(input=1, output=1)))
    usage = Usage(input=1, cache_read=1, audio_output=1, seconds=3, requests=1, reasoning=0)
    assert price.cost((usage,)) == 3
    assert price.unpriced((usage,)) == {"seconds"}


def test_the_call_itself_may_have_a_price():
    price = _price(Tier(0, Rates(input=1, output=1, requests=1_000)))
    assert price.cost((Usage(input=2, requests=1),)) == 1_002
    assert price.ceiling(Bounds(input=2, output=0)) == 1_002


def test_an_estimate_of_plain_tokens_includes_the_call():
    price = _price(Tier(0, Rates(input=1, output=3, requests=1_000)), markup_ppm=2 * PPM)
    assert price.cost_of_tokens(10, 2) == 2 * (10 + 6 + 1_000)


def test_cache_writes_count_only_where_the_body_or_the_vendor_makes_them():
    price = _price(Tier(0, SONNET))
    assert price.ceiling(Bounds(input=10, output=0)) == 10 * 3_000_000
    assert price.ceiling(Bounds(input=10, output=0, cache_writes="5m")) == 10 * 3_750_000
    assert price.ceiling(Bounds(input=10, output=0, cache_writes="1h")) == 10 * 6_000_000
    by_habit = evolve(price, cache_writes="5m")
    assert by_habit.ceiling(Bounds(input=10, output=0)) == 10 * 3_750_000
    assert by_habit.ceiling(Bounds(input=10, output=0, cache_writes="1h")) == 10 * 6_000_000


def test_a_tier_that_the_input_cannot_reach_is_not_held_for():
    price = _price(Tier(0, SONNET), Tier(200_000, LONG))
    assert price.ceiling(Bounds(input=200_000, output=1)) == 200_000 * 3_000_000 + 15_000_000
    assert price.ceiling(Bounds(input=200_001, output=1)) == 200_001 * 6_000_000 + 22_500_000


# --- What is no price ---


@pytest.mark.parametrize("thresholds", [[], [1], [0, 0], [0, 5, 3], [0, 5, 5]])
def test_tiers_begin_at_nothing_and_ascend(thresholds):
    with pytest.raises(ValueError, match="begin at 0 and ascend"):
        _price(*(Tier(above, SONNET) for above in thresholds))


@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_a_rate_is_a_non_negative_integer(value):
    with pytest.raises(ValueError, match="cache_read"):
        Rates(cache_read=value)


@pytest.mark.parametrize(
    "wrong",
    [{"input": -1}, {"output": -1}, {"web_searches": -1}, {"cache_writes": "1H"}, {"cache_writes": ""}],
)
def test_bounds_that_bound_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bounds(**{"input": 1, "output": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"input": 1.0}, {"output": "1"}, {"output": None}, {"web_searches": 0.5}])
def test_bounds_are_whole_numbers(wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Bounds(**{"input": 1, "output": 1, **wrong})


def test_a_whole_number_of_another_class_is_one():
    assert Bounds(input=IntEnum("Count", {"MANY": 5}).MANY, output=True).input == 5


def test_a_negative_markup_is_refused():
    with pytest.raises(ValueError, match="markup_ppm"):
        _price(Tier(0, SONNET), markup_ppm=-1)
