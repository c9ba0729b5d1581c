"""Money as integers: the pico, 10⁻¹² of a wallet's currency; parse it, show it, mark it up.

A price of *n* millionths of the currency per million tokens is *n* picos per token, so
`tokens * price` is exact and nothing on the way from a price list to a receipt is ever a float.
Rounding happens in three named places only: `marked_up` (up), `micro_up` and `micro_down`.
"""

import re
from typing import Final

Pico = int
"""10⁻¹² of the wallet's currency."""

PICO: Final = 10**12
"""Picos in one unit of currency."""

PICO_PER_MICRO: Final = 10**6
PPM: Final = 10**6
"""Parts per million in the whole: a markup of 1_000_000 is list price."""

CREDITS_PER_UNIT: Final = 100
"""100 credits are one unit of currency."""

AMOUNT_MAX: Final = 10**9 * PICO
"""The largest amount that may be entered at once: a billion. Far inside HUGEINT and beyond any top-up."""

_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)


def parse(text: str) -> Pico:
    """Read a plain non-negative decimal such as `"10.00"`, at most 12 places, exactly.

    Raises:
        ValueError: it is no such decimal, or above `AMOUNT_MAX`. No signs, exponents, spaces or separators.
    """
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a plain decimal amount such as 10.00 (at most 12 places)")
    whole, _, fraction = text.partition(".")
    amount = int(whole) * PICO + int(fraction.ljust(12, "0"))
    if amount > AMOUNT_MAX:
        raise ValueError(f"{text} is more than {AMOUNT_MAX // PICO}")
    return amount


def show(amount: Pico) -> str:
    """Write an amount as an exact decimal of 2 to 12 places, no trailing zeros beyond the second."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), PICO)
    places = f"{fraction:012d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"


def micro_up(amount: Pico) -> int:
    """Picos as micro-units, rounded up: for costs, so that no charge is ever shown as less than it is."""
    return -(-amount // PICO_PER_MICRO)


def micro_down(amount: Pico) -> int:
    """Picos as micro-units, rounded down: for balances, so that nobody is shown money that is not there."""
    return amount // PICO_PER_MICRO


def credits_of(amount: Pico) -> str:
    """An amount in credits (100 to the unit) as an exact decimal."""
    return show(amount * CREDITS_PER_UNIT)


def marked_up(amount: Pico, markup_ppm: int) -> Pico:
    """Apply a markup or discount in parts per million of list price, rounded up once.

    >>> marked_up(10, 1_500_000), marked_up(1, 600_000)
    (15, 1)
    """
    return -(-amount * markup_ppm // PPM)
