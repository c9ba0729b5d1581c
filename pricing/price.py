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
from msgspec import Struct
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

CLASSES_OF_WRITE: Final = get_args(CacheWrites)

_dearness = CLASSES_OF_WRITE.index

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
        for writes, audio, image in product(CLASSES_OF_WRITE, (False, True), (False, True))
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

_Kind = tuple[CacheWrites, bool, bool, bool, bool]
"""What of bounds decides which rates they can meet: all of them but how many."""


class Bounds(Struct, frozen=True, gc=False):
    """The box that every usage of one request must lie in; what a hold is the price of.

    A struct, not an attrs class as elsewhere: every request makes some, and one is made in a tenth of the time.

    Attributes:
        input: most tokens of input, all modalities and cache classes together.
        output: most tokens of output over all choices, hidden reasoning included.
        cache_writes: the dearest class of cache write that the body allows.
        audio, image: whether input may hold audio or images, whose rates then count as reachable.
        audio_output, image_output: whether output may.
        web_searches: most calls of a provider's own search tool.
    """

    input: int
    output: int
    cache_writes: CacheWrites = "none"
    audio: bool = False
    image: bool = False
    audio_output: bool = False
    image_output: bool = False
    web_searches: int = 0

    def __post_init__(self) -> None:
        """Refuse what bounds nothing: an invalid box does not exist."""
        if (
            self.input.__class__ is not int
            or self.output.__class__ is not int
            or self.web_searches.__class__ is not int
            or self.input < 0
            or self.output < 0
            or self.web_searches < 0
            or self.cache_writes not in CLASSES_OF_WRITE
        ):
            self._refuse()

    def _refuse(self) -> None:
        """Say what is wrong, if anything is: a number of another class may be a whole one all the same."""
        for name in ("input", "output", "web_searches"):
            most = getattr(self, name)
            if not isinstance(most, int):
                raise TypeError(f"{name}: expected an integer, not {most!r:.60}")
            if most < 0:
                raise ValueError(f"{name}: expected 0 or more, not {most}")
        if self.cache_writes not in CLASSES_OF_WRITE:
            raise ValueError(
                f"cache_writes: expected one of {CLASSES_OF_WRITE}, not {self.cache_writes!r:.60}"
            )


@frozen
class _Dearest:
    """The dearest list rates that usage of one kind can meet, where its input is longer than `above` tokens."""

    above: int
    read: Pico
    written: Pico
    web_search: Pico
    request: Pico


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
    markup_ppm: int = field(default=PPM, validator=[instance_of(int), ge(0)])
    cache_writes: CacheWrites = field(default="none", validator=in_(CLASSES_OF_WRITE))
    _only: Tier | None = field(init=False, repr=False, eq=False)
    """The tier of nearly every price, which has no other."""
    _dearest: dict[_Kind, tuple[_Dearest, ...]] = field(factory=dict, init=False, repr=False, eq=False)
    """What bounds of each kind come to, by the tiers that they can reach; worked out when first asked for."""

    @_only.default
    def _find_only(self) -> Tier | None:
        return self.tiers[0] if len(self.tiers) == 1 else None

    @tiers.validator
    def _tiers_ascend(self, _attribute: object, tiers: tuple[Tier, ...]) -> None:
        thresholds = [tier.above for tier in tiers]
        if not thresholds or thresholds[0] != 0 or thresholds != sorted(set(thresholds)):
            raise ValueError(f"{self.model}: tiers must begin at 0 and ascend, not {thresholds}")

    def list_cost(self, legs: tuple[Usage, ...]) -> Pico:
        """What the legs cost at list price: the operator's own cost."""
        cost = 0
        for leg in legs:
            tier = self._only or self.tier_at(leg.context)
            cost += sum(map(mul, tier.each, astuple(leg)))
        return cost

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
        kind = bounds.cache_writes, bounds.audio, bounds.image, bounds.audio_output, bounds.image_output
        steps = self._dearest.get(kind)
        if steps is None:
            steps = self._dearest[kind] = self._work_out(bounds)
        dearest = steps[0]
        for step in steps:
            if step.above < bounds.input:
                dearest = step
        fixed = bounds.input * dearest.read + bounds.web_searches * dearest.web_search + dearest.request
        return fixed, dearest.written

    def _work_out(self, bounds: Bounds) -> tuple[_Dearest, ...]:
        """For bounds of this kind: the dearest rates of each tier and all that lie below it."""
        read, written = self.classes(bounds)
        steps = []
        for count, tier in enumerate(self.tiers, 1):
            reachable = [one.each for one in self.tiers[:count]]
            steps.append(
                _Dearest(
                    above=tier.above,
                    read=max(each[place] for each in reachable for place in read),
                    written=max(each[place] for each in reachable for place in written),
                    web_search=max(each[WEB_SEARCHES] for each in reachable),
                    request=max(each[REQUESTS] for each in reachable),
                )
            )
        return tuple(steps)

    def classes(self, bounds: Bounds) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which buckets input and output can fall into, as places in `BUCKETS`: by the body, or the vendor's habits."""
        writes = max(bounds.cache_writes, self.cache_writes, key=_dearness)
        return READ[writes, bounds.audio, bounds.image], WRITTEN[bounds.audio_output, bounds.image_output]

    def unpriced(self, legs: tuple[Usage, ...]) -> frozenset[str]:
        """Buckets in use with neither a written rate nor a stand-in; charged at nothing, and alarmed."""
        used = _NOTHING
        for leg in legs:
            tier = self._only or self.tier_at(leg.context)
            for name in tier.unwritten:
                if getattr(leg, name):
                    used |= {name}
        return used

    def with_markup(self, markup_ppm: int) -> "Price":
        """The same list price under another markup."""
        return evolve(self, markup_ppm=markup_ppm)

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
