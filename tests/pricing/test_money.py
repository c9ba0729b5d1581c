"""Money is integers: what is read is what is shown, and only three named places round."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.money import (
    AMOUNT_MAX,
    PICO,
    PPM,
    credits_of,
    marked_up,
    micro_down,
    micro_up,
    parse,
    show,
)

amounts = st.integers(0, AMOUNT_MAX)
any_amounts = st.integers(-AMOUNT_MAX, AMOUNT_MAX)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("1", PICO),
        ("10.00", 10 * PICO),
        ("0.000000000001", 1),
        ("007.5", 7 * PICO + PICO // 2),
        ("1000000000", AMOUNT_MAX),
    ],
)
def test_a_plain_decimal_is_read_exactly(text, amount):
    assert parse(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "-1",
        "1e3",
        "1.",
        ".5",
        "1,000",
        "1_000",
        "0x10",
        "NaN",
        "inf",
        "1.0000000000001",
        "١٢",
        "1.2.3",
        "9" * 40,
    ],
)
def test_whatever_is_no_plain_decimal_is_refused(text):
    with pytest.raises(ValueError, match="plain decimal"):
        parse(text)


@pytest.mark.parametrize("text", ["1000000000.000000000001", "999999999999"])
def test_an_absurd_amount_is_refused(text):
    with pytest.raises(ValueError, match="more than 1000000000"):
        parse(text)


@given(amounts)
def test_what_is_shown_can_be_read_again(amount):
    assert parse(show(amount)) == amount


@given(any_amounts)
def test_what_is_shown_is_the_exact_value_with_at_least_two_places(amount):
    shown = show(amount)
    assert Decimal(shown) == Decimal(amount) / PICO
    assert 2 <= len(shown.partition(".")[2]) <= 12


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0.00"), (1, "0.000000000001"), (PICO, "1.00"), (-PICO // 2, "-0.50"), (12 * PICO // 10, "1.20")],
)
def test_trailing_zeros_end_at_the_second_place(amount, shown):
    assert show(amount) == shown


def test_a_hundred_credits_are_one_unit():
    assert credits_of(PICO) == "100.00"
    assert credits_of(1) == "0.0000000001"


@given(any_amounts)
def test_a_cost_in_micro_units_is_never_shown_as_less_nor_a_balance_as_more(amount):
    assert micro_down(amount) * 10**6 <= amount <= micro_up(amount) * 10**6
    assert micro_up(amount) - micro_down(amount) == (0 if amount % 10**6 == 0 else 1)


@given(amounts, st.integers(0, 10 * PPM))
def test_a_markup_rounds_up_by_less_than_a_pico(amount, ppm):
    assert 0 <= marked_up(amount, ppm) * PPM - amount * ppm < PPM


@given(amounts)
def test_list_price_is_left_as_it_is(amount):
    assert marked_up(amount, PPM) == amount


@given(amounts, amounts, st.integers(0, 10 * PPM))
def test_what_costs_more_costs_no_less_under_a_markup(one, other, ppm):
    low, high = sorted((one, other))
    assert marked_up(low, ppm) <= marked_up(high, ppm)
