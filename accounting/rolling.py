"""How far a hold reaches: how much output it covers, and what it has to become to cover more; pure.

A hold may roll where every billed token can be seen going by and hanging up stops the bill. It begins with the
input and a slice of output and grows as content flows. What makes that safe is one inequality: a token is at
least one byte of content, so what has been written is never more tokens than

    bytes of content + frames of content + FRAMING_TOKENS

and that many tokens at the dearest rate are set aside before a byte of it is relayed. The true count is mostly a
quarter of it, so a rolling hold errs by being too large; how large its steps are is a matter of taste.

The input part shrinks once the provider has stated the input for good: then it is no bound any more but a fact,
at the price of its own classes and tier.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from accounting.bill import Terms, with_call
from pricing.money import PPM, Pico, marked_up
from pricing.usage import Meter, Usage

FRAMING_TOKENS: Final = 64
"""Tokens of an answer that may show in no byte: what opens and closes turns, blocks and tool calls."""

ALL: Final = 2**62
"""More content than any answer has: the hold covers whatever comes."""

SLICE_SHARE: Final = 4
"""A slice is at least one part in so many of what has gone by, so that long answers take few steps."""

WORTHWHILE: Final = 8
"""A hold shrinks only where that gives back at least one part in so many: each step is a record."""


class Reach(Struct, eq=False, gc=False):
    """How far the hold of one attempt reaches. A struct, since one is made for each.

    Attributes:
        terms: of the attempt.
        covered: content (bytes and frames together) up to which the hold suffices.
        may_shrink: the input is still held by its bound, and may be stated.
    """

    terms: Terms
    covered: int = ALL
    may_shrink: bool = False
    _stated: tuple[Usage, ...] | None = None
    """What the provider has stated of the input for good, without output."""

    def __post_init__(self) -> None:
        terms = self.terms
        bounds = terms.bounds
        if terms.states_input and terms.stream:
            self.may_shrink = not (bounds.audio_output or bounds.image_output)
        if 0 < terms.slice_tokens < bounds.output:  # what every hold that rolls begins with
            self.covered = terms.slice_tokens - FRAMING_TOKENS

    @property
    def is_part(self) -> bool:
        """The hold is or was less than the most that the attempt can cost."""
        return self.terms.slice_tokens > 0 or self._stated is not None

    @property
    def full(self) -> Pico:
        """The most that the attempt can cost: no hold need ever be more."""
        return self.terms.price.ceiling(self.terms.bounds)

    def amount(self, output: int) -> Pico:
        """What it takes to cover so many tokens of output."""
        fixed, each = self._line()
        return marked_up(fixed + min(output, self.terms.bounds.output) * each, self.terms.price.markup_ppm)

    def reach(self, held: Pico) -> None:
        """Work out how much content a hold covers that has grown or shrunk."""
        if not self.terms.slice_tokens:
            return
        output = self._affordable(held)
        self.covered = ALL if output >= self.terms.bounds.output else output - FRAMING_TOKENS

    def needed(self, seen: int) -> Pico:
        """What it takes to cover this much content."""
        return self.amount(seen + FRAMING_TOKENS)

    def wanted(self, seen: int) -> Pico:
        """What the hold should become at this much content: with a slice to spare."""
        return self.amount(seen + FRAMING_TOKENS + max(self.terms.slice_tokens, seen // SLICE_SHARE))

    def shrunk(self, meter: Meter, held: Pico) -> Pico | None:
        """What suffices now that the provider has stated the input; `None`: it has not, or it is not worthwhile."""
        reported = meter.reported
        if reported is None or not any(leg.context for leg in reported.legs):
            return None
        self.may_shrink = False
        if reported.final:
            return None  # settled in a moment
        before, self._stated = self._stated, _input_of(self.terms, reported.legs)
        seen = meter.content_bytes + meter.content_frames
        amount = self.wanted(seen) if self.terms.slice_tokens else self.amount(self.terms.bounds.output)
        if amount > held - held // WORTHWHILE:
            self._stated = before
            return None
        return amount

    def _affordable(self, held: Pico) -> int:
        """The most output that a hold covers: exact, since it is a line, and the markup rounds up."""
        ppm = self.terms.price.markup_ppm
        fixed, each = self._line()
        if not ppm or not each:
            return self.terms.bounds.output if held >= self.amount(0) else 0
        return max(held * PPM // ppm - fixed, 0) // each

    def _line(self) -> tuple[Pico, Pico]:
        """At list price, what all but the output costs, and what each token of output does."""
        price = self.terms.price
        if self._stated is None:
            return price.ceiling_line(self.terms.bounds)
        fixed = price.list_cost(self._stated)
        *before, last = self._stated
        return fixed, price.list_cost((*before, replace(last, output=last.output + 1))) - fixed


def _input_of(terms: Terms, legs: tuple[Usage, ...]) -> tuple[Usage, ...]:
    return with_call(terms.price, tuple(replace(leg, output=0, reasoning=0) for leg in legs))
