"""What usage costs, and the most that a request can cost: one function, two arguments.

`cost(usage)` settles and `ceiling(bounds)` holds; both walk the same rates, so a bound that contains a usage
costs at least as much as the usage does. That inequality is the reason why no wallet can be overspent, and
`tests/pricing/test_price.py` holds it over random prices, bounds and usages.
"""

from typing import Any, Final, Literal, get_args

from attrs import Attribute, evolve, field, fields, frozen
from attrs.validators import ge, in_, instance_of

from pricing.money import PPM, Pico, marked_up
from pricing.usage import Usage


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
    """Rates that hold for answers whose context is longer than `above` tokens."""

    above: int = field(validator=[instance_of(int), ge(0)])
    rates: Rates = field(validator=instance_of(Rates))


CacheWrites = Literal["none", "5m", "1h"]
"""Classes of cache write, from none to the dearest."""

_count = [instance_of(int), ge(0)]
_class_of_write = in_(get_args(CacheWrites))


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
        return sum(_cost(leg, self._rates_for(leg.context)) for leg in legs)

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
        reachable = [tier.rates for tier in self.tiers if tier.above == 0 or tier.above < bounds.input]
        classes = ["input", "cache_read"]
        writes = {bounds.cache_writes, self.cache_writes} - {"none"}
        if writes:
            classes.append("cache_write_5m")
        if "1h" in writes:
            classes.append("cache_write_1h")
        if bounds.audio:
            classes += ["audio_input", "audio_cached"]
        if bounds.image:
            classes.append("image_input")
        written = ["output"]
        if bounds.audio_output:
            written.append("audio_output")
        if bounds.image_output:
            written.append("image_output")
        most = (
            bounds.input * max(rate(rates, name) for rates in reachable for name in classes)
            + bounds.output * max(rate(rates, name) for rates in reachable for name in written)
            + bounds.web_searches * max(rate(rates, "web_searches") for rates in reachable)
            + max(rate(rates, "requests") for rates in reachable)
        )
        return marked_up(most, self.markup_ppm)

    def unpriced(self, legs: tuple[Usage, ...]) -> frozenset[str]:
        """Buckets in use with neither a written rate nor a stand-in; charged at nothing, and alarmed."""
        return frozenset(
            name
            for leg in legs
            for name in leg.counts()
            if name not in ("reasoning", "requests") and _written(self._rates_for(leg.context), name) is None
        )

    def with_markup(self, markup_ppm: int) -> "Price":
        """The same list price under another markup."""
        return evolve(self, markup_ppm=markup_ppm)

    def _rates_for(self, context: int) -> Rates:
        rates = self.tiers[0].rates
        for tier in self.tiers[1:]:
            if context > tier.above:
                rates = tier.rates
        return rates


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


def _cost(leg: Usage, rates: Rates) -> Pico:
    return sum(count * rate(rates, name) for name, count in leg.counts().items() if name != "reasoning")
