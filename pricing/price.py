"""What usage costs, and the most that a request can cost: one function, two arguments.

`cost(usage)` settles and `ceiling(bounds)` holds; both walk the same rates, so a bound that contains a usage
costs at least as much as the usage does. That inequality is the reason why no wallet can be overspent, and
`tests/pricing/test_price.py` holds it over random prices, bounds and usages.
"""

from itertools import product
from operator import mul
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import ge, in_, instance_of
from msgspec.structs import astuple

from pricing.money import PPM, Pico, marked_up
from pricing.usage import BUCKETS, COUNT_MAX, Usage


def _is_a_rate(_instance: object, attribute: "Attribute[Any]", value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{attribute.name}: {value!r} is not a non-negative integer")


@frozen
class Rates:
    """Picos of list price per unit of each bucket; `None` where no price is written, which is not zero.

    The names are those of `Usage`. `requests` is the price of a call as such.
    """

    input: Pico | None = field(default=None, validator=_is_a_rate)
    cache_read: Pico | None = field(default=None, validator=_is_a_rate)
    cache_write_5m: Pico | None = field(default=None, validator=_is_a_rate)
    cache_write_1h: Pico | None = field(default=None, validator=_is_a_rate)
    output: Pico | None = field(default=None, validator=_is_a_rate)
    audio_input: Pico | None = field(default=None, validator=_is_a_rate)
    audio_cached: Pico | None = field(default=None, validator=_is_a_rate)
    audio_output: Pico | None = field(default=None, validator=_is_a_rate)
    image_input: Pico | None = field(default=None, validator=_is_a_rate)
    image_output: Pico | None = field(default=None, validator=_is_a_rate)
    requests: Pico | None = field(default=None, validator=_is_a_rate)
    web_searches: Pico | None = field(default=None, validator=_is_a_rate)
    seconds: Pico | None = field(default=None, validator=_is_a_rate)
    characters: Pico | None = field(default=None, validator=_is_a_rate)
    images: Pico | None = field(default=None, validator=_is_a_rate)


RATE_NAMES: Final = tuple(attribute.name for attribute in fields(Rates))

FALLBACK: Final = {
    "cache_read": "input",
    "cache_write_5m": "input",
    "cache_write_1h": "cache_write_5m",
    "audio_input": "input",
    "audio_cached": "audio_input",
    "audio_output": "output",
    "image_input": "input",
    "image_output": "output",
}
"""Which written rate stands in for one that is missing: the plain rate of the same direction."""


@frozen
class Tier:
    """Rates that hold for answers whose context is longer than `above` tokens.

    What is worked out beforehand has private names: the content of a catalogue is what was written, and no more.
    """

    above: int = field(validator=[instance_of(int), ge(0)])
    rates: Rates = field(validator=instance_of(Rates))
    _each: tuple[Pico, ...] = field(init=False, repr=False, eq=False)
    _unwritten: tuple[str, ...] = field(init=False, repr=False, eq=False)

    @_each.default
    def _work_out_each(self) -> tuple[Pico, ...]:
        return tuple(0 if name == "reasoning" else rate(self.rates, name) for name in BUCKETS)

    @_unwritten.default
    def _find_unwritten(self) -> tuple[str, ...]:
        return tuple(name for name in RATE_NAMES if name != "requests" and _written(self.rates, name) is None)

    @property
    def each(self) -> tuple[Pico, ...]:
        """What one of each bucket costs, stand-ins included, in the order of `BUCKETS`: a bill is a sum over it."""
        return self._each

    @property
    def unwritten(self) -> tuple[str, ...]:
        """Buckets with neither a rate nor a stand-in."""
        return self._unwritten


CacheWrites = Literal["none", "5m", "1h"]
"""Classes of cache write, from none to the dearest."""

_count = [instance_of(int), ge(0)]
_class_of_write = in_(get_args(CacheWrites))
_dearness = get_args(CacheWrites).index

WEB_SEARCHES: Final = BUCKETS.index("web_searches")
REQUESTS: Final = BUCKETS.index("requests")


def _places(*names: str) -> tuple[int, ...]:
    return tuple(BUCKETS.index(name) for name in names)


READ: Final = MappingProxyType(
    {
        (writes, audio, image): _places(
            "input",
            "cache_read",
            *(["cache_write_5m"] if writes != "none" else []),
            *(["cache_write_1h"] if writes == "1h" else []),
            *(["audio_input", "audio_cached"] if audio else []),
            *(["image_input"] if image else []),
        )
        for writes, audio, image in product(get_args(CacheWrites), (False, True), (False, True))
    }
)
"""Which buckets input can fall into: by class of cache write, and whether there may be audio and images."""

WRITTEN: Final = MappingProxyType(
    {
        (audio, image): _places(
            "output", *(["audio_output"] if audio else []), *(["image_output"] if image else [])
        )
        for audio, image in product((False, True), (False, True))
    }
)
"""Which buckets output can fall into: whether there may be audio and images."""


_NOTHING: Final[frozenset[str]] = frozenset()


@frozen
class Bounds:
    """The box that every usage of one request must lie in; what a hold is the price of.

    Attributes:
        input: most tokens of input, all modalities and cache classes together.
        output: most tokens of output over all choices, hidden reasoning included.
        cache_writes: the dearest class of cache write that the body allows.
        audio, image: whether input may hold audio or images, whose rates then count as reachable.
        audio_output, image_output: whether output may.
        web_searches: most calls of a provider's own search tool.
    """

    input: int = field(validator=_count)
    output: int = field(validator=_count)
    cache_writes: CacheWrites = field(default="none", validator=_class_of_write)
    audio: bool = False
    image: bool = False
    audio_output: bool = False
    image_output: bool = False
    web_searches: int = field(default=0, validator=_count)


@frozen
class Price:
    """The price of one model for one customer: tiers of list rates, and a markup.

    Attributes:
        model: canonical model id.
        version: content hash of the catalogue that it was taken from; stands on every record.
        tiers: ascending by `above`; the first has `above=0`.
        markup_ppm: what the customer pays in parts per million of list.
        cache_writes: the class of cache write that the vendor makes, and bills, without being asked.
    """

    model: str
    version: str
    tiers: tuple[Tier, ...] = field()
    markup_ppm: int = field(default=PPM, validator=_count)
    cache_writes: CacheWrites = field(default="none", validator=_class_of_write)

    @tiers.validator
    def _tiers_ascend(self, _attribute: object, tiers: tuple[Tier, ...]) -> None:
        thresholds = [tier.above for tier in tiers]
        if not thresholds or thresholds[0] != 0 or thresholds != sorted(set(thresholds)):
            raise ValueError(f"{self.model}: tiers must begin at 0 and ascend, not {thresholds}")

    def list_cost(self, legs: tuple[Usage, ...]) -> Pico:
        """What the legs cost at list price: the operator's own cost."""
        return sum([sum(map(mul, self.tier_of(leg).each, astuple(leg))) for leg in legs])

    def cost(self, legs: tuple[Usage, ...]) -> Pico:
        """What the customer owes for the legs of one answer; rounded up once, by the markup."""
        return marked_up(self.list_cost(legs), self.markup_ppm)

    def cost_of_tokens(self, input_tokens: int, output_tokens: int) -> Pico:
        """What so many plain tokens in and out cost the customer, for price estimates."""
        return self.cost((Usage(input=input_tokens, output=output_tokens, requests=1),))

    def ceiling(self, bounds: Bounds) -> Pico:
        """The most that any usage within `bounds` can cost the customer.

        Every rate is taken at its dearest over the tiers that the input bound can reach, input at the dearest
        class that the body or the vendor's habits allow. One call is counted; seconds, characters and images
        are not bounded by tokens and belong to prices known beforehand.
        """
        fixed, each = self.ceiling_line(bounds)
        return marked_up(fixed + bounds.output * each, self.markup_ppm)

    def ceiling_line(self, bounds: Bounds) -> tuple[Pico, Pico]:
        """The ceiling at list price as a line over the output: what all else costs, and what each token does.

        `ceiling` of these bounds with any other output is `marked_up(fixed + output * each, markup_ppm)`.
        """
        read, written = self.classes(bounds)
        reachable = [tier.each for tier in self.tiers if tier.above == 0 or tier.above < bounds.input]
        fixed = (
            bounds.input * max([each[place] for each in reachable for place in read])
            + bounds.web_searches * max([each[WEB_SEARCHES] for each in reachable])
            + max([each[REQUESTS] for each in reachable])
        )
        return fixed, max([each[place] for each in reachable for place in written])

    def classes(self, bounds: Bounds) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which buckets input and output can fall into, as places in `BUCKETS`: by the body, or the vendor's habits."""
        writes = max(bounds.cache_writes, self.cache_writes, key=_dearness)
        return READ[writes, bounds.audio, bounds.image], WRITTEN[bounds.audio_output, bounds.image_output]

    def unpriced(self, legs: tuple[Usage, ...]) -> frozenset[str]:
        """Buckets in use with neither a written rate nor a stand-in; charged at nothing, and alarmed."""
        used = [name for leg in legs for name in self.tier_of(leg).unwritten if getattr(leg, name)]
        return frozenset(used) if used else _NOTHING

    def with_markup(self, markup_ppm: int) -> "Price":
        """The same list price under another markup."""
        return evolve(self, markup_ppm=markup_ppm)

    def tier_of(self, leg: Usage) -> Tier:
        """The tier that holds for an answer, or a leg of it."""
        return self.tiers[0] if len(self.tiers) == 1 else self.tier_at(leg.context)

    def tier_at(self, context: int) -> Tier:
        """The tier that holds for an answer (or a leg of it) of this context length, in tokens."""
        found = self.tiers[0]
        for tier in self.tiers:
            if context > tier.above:
                found = tier
        return found


def affordable_output(price: Price, bounds: Bounds, amount: Pico) -> int:
    """The most tokens of output for which the ceiling of these bounds stays within an amount.

    Exact: one more would cost more. 0 where not even the input fits; `COUNT_MAX` where output costs nothing.
    """
    fixed, each = price.ceiling_line(bounds)
    if not price.markup_ppm or not each:
        return COUNT_MAX if amount >= marked_up(fixed, price.markup_ppm) else 0
    left = amount * PPM // price.markup_ppm - fixed  # the markup is rounded up, so this is what it is of
    return min(max(left, 0) // each, COUNT_MAX)


def rate(rates: Rates, name: str) -> Pico:
    """Picos per unit of one bucket, by its own rate or the one that stands in for it; 0 without either."""
    return _written(rates, name) or 0


def _written(rates: Rates, name: str) -> Pico | None:
    at: str | None = name
    while at is not None:
        written: Pico | None = getattr(rates, at)
        if written is not None:
            return written
        at = FALLBACK.get(at)
    return None
