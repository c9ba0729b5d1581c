"""How much an answer used: disjoint buckets, and the Meter that keeps the newest report of one answer.

Providers disagree on what includes what (OpenAI's prompt tokens include cached ones, Anthropic's do not,
Gemini's candidates exclude thoughts). Each dialect converts once, at its border, into the disjoint buckets
here; from then on a bill is a sum of bucket times rate and nothing can be counted twice.

A report is a running total. The newest one replaces what came before, on the input side too; nothing is
ever added up. What a provider said and what we guessed are different types, so that an estimate can never be
mistaken for a report.
"""

from enum import StrEnum
from typing import ClassVar, Final

import msgspec
from attrs import define

COUNT_MAX: Final = 2**40
"""No count of tokens, seconds or characters is larger: the guard against absurd reports."""

_NONE: Final = 0
"""What nearly every bucket of a usage holds, and this very object: there is nothing to check about it."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Disjoint, non-negative counts of what one answer (or one leg of it) used.

    A struct, not an attrs class as elsewhere: several are made for each request, and read back from the journal.

    Attributes:
        input: text tokens read at the plain input rate.
        cache_read: tokens read from the provider's prompt cache.
        cache_write_5m, cache_write_1h: tokens written to it, by lifetime; an unknown one counts as 5 minutes.
        output: tokens written, hidden reasoning included.
        reasoning: how many of `output` were reasoning; for show, never priced.
        audio_input, audio_cached, audio_output, image_input, image_output: tokens of other modalities.
        requests: calls with a price of their own (one per upstream call).
        web_searches: searches that a provider's own tool made.
        seconds, characters, images: units of media.
    """

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    audio_input: int = 0
    audio_cached: int = 0
    audio_output: int = 0
    image_input: int = 0
    image_output: int = 0
    requests: int = 0
    web_searches: int = 0
    seconds: int = 0
    characters: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no count: an invalid usage does not exist."""
        for count in msgspec.structs.astuple(self):
            if count is not _NONE and (count.__class__ is not int or not 0 <= count <= COUNT_MAX):
                self._refuse()

    def _refuse(self) -> None:
        for name in BUCKETS:
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool):
                raise TypeError(f"{name}: expected an integer, not {count!r:.60}")
            if not 0 <= count <= COUNT_MAX:
                raise ValueError(f"{name}: expected 0 to {COUNT_MAX}, not {count}")

    @property
    def context(self) -> int:
        """Every token that the model read: what a context-length tier is chosen by."""
        return (
            self.input
            + self.cache_read
            + self.cache_write_5m
            + self.cache_write_1h
            + self.audio_input
            + self.audio_cached
            + self.image_input
        )

    def counts(self) -> dict[str, int]:
        """The buckets that are not zero, by name."""
        return {
            name: count for name, count in zip(BUCKETS, msgspec.structs.astuple(self), strict=True) if count
        }


BUCKETS: Final = tuple(entry.name for entry in msgspec.structs.fields(Usage))
PRICED_BUCKETS: Final = tuple(name for name in BUCKETS if name != "reasoning")

NO_USAGE: Final = Usage()


class Source(StrEnum):
    """Where the usage on a record comes from."""

    REPORTED = "reported"
    ESTIMATED = "estimated"
    RECOVERED = "recovered"
    NONE = "none"


class Reported(msgspec.Struct, frozen=True, gc=False):
    """What the provider said. A struct, as `Usage`.

    Attributes:
        legs: the parts of the bill; more than one where an answer took several steps, each with a context
            length (and so a tier) of its own.
        final: this is the provider's last word (`True`), or a running total of an unfinished answer.
        flags: what was odd about it: `total_mismatch`, `unknown_counter:<name>`, `tier:<name>` …
    """

    legs: tuple[Usage, ...]
    final: bool
    flags: frozenset[str] = frozenset()
    source: ClassVar[Source] = Source.REPORTED


class Estimated(msgspec.Struct, frozen=True, gc=False):
    """What we counted or derived, because the provider's word is missing. A struct, as `Usage`.

    Attributes:
        legs: as in `Reported`; always one leg.
        because: the reason, in a word or two, for the record.
    """

    legs: tuple[Usage, ...]
    because: str
    source: ClassVar[Source] = Source.ESTIMATED


def total(legs: tuple[Usage, ...]) -> Usage:
    """Add up the legs of one bill, for the columns of a record; never to be priced (tiers are per leg).

    A sum stops at `COUNT_MAX`: absurd legs must not keep a bill from being written.
    """
    if len(legs) == 1:
        return legs[0]
    return Usage(**{name: min(sum(getattr(leg, name) for leg in legs), COUNT_MAX) for name in BUCKETS})


@define(eq=False)
class Meter:
    """The running total of one answer: the newest report, and what was seen going by.

    Attributes:
        reported: the newest report, or `None` when the provider has said nothing yet.
        content_frames: frames (or bodies) that carried content.
        content_bytes: their bytes of content or, where that is not known, of whole frames: an upper bound.
    """

    reported: Reported | None = None
    content_frames: int = 0
    content_bytes: int = 0

    def report(self, reported: Reported) -> None:
        """Take the provider's newest word; it replaces every earlier one."""
        self.reported = reported

    def saw(self, frames: int, size_bytes: int) -> None:
        """Count content that went by."""
        self.content_frames += frames
        self.content_bytes += size_bytes
