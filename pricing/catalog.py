"""Which models there are, what they are called, how they behave and what they cost: one immutable Catalog.

A catalogue is swapped whole, never changed. Its version is the hash of its content, so two catalogues with
the same version bill alike whatever files they were read from (`load.py` reads them), and a record that names
a version can be priced again from the content kept under it. A model without a price is not in it.

Prices may change on a day that is known beforehand, so a price is a function of model and day, and what a
version says of a record is the price of the day on which its hold was made. There is no clock here: the day is
an argument, and whoever asks reads it once for a whole request.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import msgspec
from attrs import Attribute, field, frozen
from attrs.validators import ge, in_, instance_of, min_len

from pricing.money import PICO, Pico, show
from pricing.price import CacheWrites, Price, Rates, Tier

DialectName = Literal["openai_chat", "anthropic", "gemini"]
ProviderKind = Literal["openai", "anthropic", "gemini"]
StopsBilling = Literal["yes", "no", "unknown"]
StatesInput = Literal["start", "end"]
OutputField = Literal["max_completion_tokens", "max_tokens", "maxOutputTokens"]
Reasoning = Literal["none", "off", "on", "always"]

GEMINI_PREFIX: Final = "models/"
"""Google's SDK writes it before every model name; it says nothing, so it is dropped."""

PARAMETERS: Final = "@"
"""What follows it in the name of a model with `parameters` travels on to the provider as it is."""


@frozen
class Vendor:
    """Whose models they are, and how that vendor is spoken to unless the operator says otherwise.

    Attributes:
        name: the prefix of its models' ids.
        dialect: the wire language of its models, where a model does not say otherwise.
        kind: how its API is addressed.
        base_url: where its API is.
        stops_billing: whether hanging up in the middle of a stream ends the bill there.
        states_input: whether a stream states the input for good at its start, or only at its end.
        source: where `stops_billing` is known from.
        rank: a bare model name that several vendors know belongs to the lowest rank.
    """

    name: str = field(validator=min_len(1))
    dialect: DialectName = field(validator=in_(get_args(DialectName)))
    kind: ProviderKind = field(validator=in_(get_args(ProviderKind)))
    base_url: str
    stops_billing: StopsBilling = field(validator=in_(get_args(StopsBilling)))
    source: str
    rank: int = 100
    states_input: StatesInput = field(default="end", validator=in_(get_args(StatesInput)))


@frozen
class Listing:
    """What a model costs at list price, from a day on until a later listing takes over.

    Attributes:
        tiers: list prices by length of context.
        source, checked: where the price was seen, and on which day.
        valid_from: the first day of it; `None`: it has always been so.
        until: the last day for which the vendor has promised it, where it named one. A promise, not an end:
            without a later listing the price goes on, and `check` warns.
    """

    tiers: tuple[Tier, ...] = field(validator=min_len(1))
    source: str = ""
    checked: date | None = None
    valid_from: date | None = None
    until: date | None = field(default=None)

    @until.validator
    def _ends_after_it_began(self, _attribute: object, value: date | None) -> None:
        if value is not None and self.valid_from is not None and value < self.valid_from:
            raise ValueError(f"until {value} lies before the first day, {self.valid_from}")


_count = [instance_of(int), ge(0)]
_at_least_one = [instance_of(int), ge(1)]


def _one_after_the_other(_model: object, _attribute: "Attribute[Any]", value: tuple[Listing, ...]) -> None:
    days = [listing.valid_from or date.min for listing in value]
    if days != sorted(set(days)):
        raise ValueError(f"prices must begin one after the other, not on {', '.join(map(str, days))}")


def _begins_with_vendor(model: "Model", _attribute: object, value: str) -> None:
    if not value.startswith(f"{model.vendor}/") or value == f"{model.vendor}/":
        raise ValueError(f"{value!r} is not of the form {model.vendor}/name")


@frozen
class Model:
    """One model of one vendor.

    Attributes:
        id: canonical, `vendor/name`; what stands on records and receipts.
        vendor: name of its vendor.
        name: for people.
        wire_name: what the vendor calls it.
        wire_names: what the vendor calls it besides (dated snapshots …); such a name travels as it is.
        dialect: the wire language it is native to.
        context_window: most tokens that it reads and writes together.
        output_max: most tokens that it writes in one answer.
        output_field: the request field that bounds its output.
        reasoning: whether it thinks: `none`, `off` (can, when asked), `on` (unless switched off), `always`.
        image_tokens_max: most input tokens that one image can become; 0: it takes none.
        audio_tokens_per_second_max: most input tokens for a second of audio; 0: it takes none.
        message_tokens: tokens of framing for each message, at most.
        tools_tokens: tokens that declaring any tools adds beside their own text, at most.
        dense_bytes_per_token: fewest bytes of text that a token of its output usually carries; an estimate
            that divides by it is not cheaper than a report.
        tokens_per_second_max: fastest that it writes; bounds hidden tokens by the time that went by.
        cache_writes: the class of cache write that the vendor makes, and bills, without being asked.
        thinking_tokens_min: the least that a bound on its reasoning may be, where callers can set one.
        prices: what it costs, by the day from which on; ascending.
        aliases: names for it that the vendor does not know; they travel as `wire_name`.
        created: when it was released, in unix seconds.
        parameters: `name@anything` means this model too, and `@anything` travels on in the wire name.
    """

    id: str = field(validator=_begins_with_vendor)
    vendor: str
    name: str = field(validator=min_len(1))
    wire_name: str = field(validator=min_len(1))
    dialect: DialectName = field(validator=in_(get_args(DialectName)))
    context_window: int = field(validator=_at_least_one)
    output_max: int = field(validator=_at_least_one)
    output_field: OutputField = field(validator=in_(get_args(OutputField)))
    reasoning: Reasoning = field(validator=in_(get_args(Reasoning)))
    image_tokens_max: int = field(validator=_count)
    audio_tokens_per_second_max: int = field(validator=_count)
    message_tokens: int = field(validator=_count)
    tools_tokens: int = field(validator=_count)
    dense_bytes_per_token: int = field(validator=_at_least_one)
    tokens_per_second_max: int = field(validator=_at_least_one)
    prices: tuple[Listing, ...] = field(validator=[min_len(1), _one_after_the_other])
    wire_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    created: int = field(default=0, validator=_count)
    parameters: bool = False
    cache_writes: CacheWrites = field(default="none", validator=in_(get_args(CacheWrites)))
    thinking_tokens_min: int = field(default=0, validator=_count)

    @output_max.validator
    def _output_fits(self, _attribute: object, value: int) -> None:
        if value > self.context_window:
            raise ValueError(f"output_max {value} is more than the context window of {self.context_window}")

    def listing_on(self, day: date) -> Listing | None:
        """The price in force on a day; none before the first one begins."""
        begun = [one for one in self.prices if one.valid_from is None or one.valid_from <= day]
        return begun[-1] if begun else None

    def tiers_on(self, day: date) -> tuple[Tier, ...]:
        """List prices on a day by length of context; empty without a price, and then it is not served."""
        listing = self.listing_on(day)
        return listing.tiers if listing else ()

    def hides_reasoning(self, asked: bool | None) -> bool:
        """Whether tokens may be billed that nobody sees go by.

        Args:
            asked: the request turned reasoning on (`True`) or off (`False`), or left it (`None`).
        """
        match self.reasoning:
            case "none":
                return False
            case "off":
                return asked is True
            case "on":
                return asked is not False
            case "always":
                return True


@frozen
class Found:
    """What a name means: the model, and what to call it at its vendor."""

    model: Model
    wire_name: str


@frozen(eq=False)
class Catalog:
    """Every model that has a price. Make one with `Catalog.of`.

    Attributes:
        vendors: by name.
        models: by canonical id, in the order of the ids.
        content: everything above as canonical JSON: the same whatever files, order or layout it came from.
        version: `p_` and the beginning of the SHA-256 of `content`.
    """

    vendors: Mapping[str, Vendor]
    models: Mapping[str, Model]
    content: bytes = field(repr=False)
    version: str
    _names: Mapping[str, Found] = field(repr=False)

    @classmethod
    def of(cls, vendors: tuple[Vendor, ...], models: tuple[Model, ...]) -> "Catalog":
        """Put a catalogue together.

        Raises:
            ValueError: two models share an id or a name, or a model's vendor is missing.
        """
        vendors_by_name = {vendor.name: vendor for vendor in sorted(vendors, key=lambda v: v.name)}
        models_by_id: dict[str, Model] = {}
        for model in sorted(models, key=lambda m: m.id):
            if model.vendor not in vendors_by_name:
                raise ValueError(f"{model.id}: there is no vendor {model.vendor}")
            if model.id in models_by_id:
                raise ValueError(f"{model.id} is there twice")
            models_by_id[model.id] = model
        content = msgspec.json.encode({"vendors": vendors_by_name, "models": models_by_id}, order="sorted")
        return cls(
            vendors=MappingProxyType(vendors_by_name),
            models=MappingProxyType(models_by_id),
            content=content,
            version="p_" + sha256(content).hexdigest()[:16],
            names=MappingProxyType(_names(vendors_by_name, models_by_id)),
        )

    def find(self, name: str) -> Found | None:
        """Find the model that a caller means.

        Forms: `openai/gpt-4o`, `gpt-4o`, any alias with or without prefix, `models/` before any of them, and
        `…@parameters` for models that take some. A prefix that names a vendor wins; a bare name belongs to
        the vendor of lowest rank. Upper and lower case differ.
        """
        name = name.removeprefix(GEMINI_PREFIX)
        if found := self._names.get(name):
            return found
        base, separator, parameters = name.partition(PARAMETERS)
        found = self._names.get(base) if separator else None
        if found is None or not found.model.parameters:
            return None
        return Found(found.model, f"{found.wire_name}{separator}{parameters}")

    def price(self, model: Model, markup_ppm: int, day: date) -> Price:
        """The price of a model on a day, under a markup in parts per million of list price.

        Raises:
            ValueError: it has no price on that day; `Model.tiers_on` tells beforehand.
        """
        tiers = model.tiers_on(day)
        if not tiers:
            raise ValueError(f"{model.id} has no price on {day}")
        return Price(
            model=model.id,
            version=self.version,
            tiers=tiers,
            markup_ppm=markup_ppm,
            cache_writes=model.cache_writes,
        )


def _names(vendors: Mapping[str, Vendor], models: Mapping[str, Model]) -> dict[str, Found]:
    """Everything that a model may be called; qualified names first, so that no bare name can hide one."""
    names: dict[str, Found] = {}
    for model in models.values():
        for name, wire_name in _own_names(model).items():
            found = names.setdefault(f"{model.vendor}/{name}", Found(model, wire_name))
            if found.model is not model:
                raise ValueError(f"{model.id}: {name} is already a name of {found.model.id}")
    for model in sorted(models.values(), key=lambda m: (vendors[m.vendor].rank, m.id)):
        for name in (model.wire_name, *model.wire_names, *model.aliases):
            names.setdefault(name, names[f"{model.vendor}/{name}"])
    return names


def _own_names(model: Model) -> dict[str, str]:
    """What a model may be called after its vendor's prefix, and what each name is on the wire."""
    local = model.id.removeprefix(f"{model.vendor}/")
    known = dict.fromkeys((local, *model.aliases), model.wire_name)
    return known | {name: name for name in (model.wire_name, *model.wire_names)}


STALE_DAYS: Final = 180
"""A price that nobody has looked at for half a year has probably changed."""

NOTICE_DAYS: Final = 60
"""How long beforehand an operator is told that a price changes, or that the vendor's promise of it ends."""

OUTLIER: Final = 10
"""A factor that no vendor's honest prices differ by, but a slipped decimal point does."""

TOKEN_RATE_MIN: Final = PICO // 1000 // 10**6
TOKEN_RATE_MAX: Final = 1000 * PICO // 10**6
"""A tenth of a cent and 1,000 per million tokens: beyond them somebody mistook the unit."""


def check(catalog: Catalog, today: date, reference: Catalog | None = None) -> tuple[str, ...]:
    """Look for prices that are probably a mistake, now or from a coming day on.

    Args:
        catalog: what is to be looked at.
        today: decides which prices are in force or to come; what is over is history.
        reference: prices to compare with, such as those that were shipped.

    Returns:
        A sentence for each finding, in the order of the model ids; nothing is refused.
    """
    findings = []
    for model in catalog.models.values():
        known = reference.models.get(model.id) if reference else None
        said: list[str] = []
        for listing in _current_and_coming(model, today):
            coming = listing.valid_from is not None and listing.valid_from > today
            when = f" from {listing.valid_from}" if coming else ""
            said += [sentence + when for sentence in _odd_rates(listing.tiers)]
        said += _odd_against(model.tiers_on(today), known.tiers_on(today) if known else ())
        findings += [f"{model.id}: {sentence}" for sentence in said]
    return tuple(findings)


def notices(catalog: Catalog, today: date) -> tuple[str, ...]:
    """Say what time brings: prices that change soon, promises that end, prices that nobody has looked at for long.

    Nothing of it is wrong; a sentence for each, in the order of the model ids.
    """
    return tuple(
        f"{model.id}: {sentence}"
        for model in catalog.models.values()
        for sentence in (*_odd_age(model, today), *_odd_days(model, today))
    )


def _current_and_coming(model: Model, today: date) -> tuple[Listing, ...]:
    """The price in force and those after it; what is over is history."""
    current = model.listing_on(today)
    return model.prices[model.prices.index(current) :] if current else model.prices


def _odd_age(model: Model, today: date) -> list[str]:
    """What is to be said about when the price in force was looked at."""
    listing = _current_and_coming(model, today)[0]
    if listing.checked is None:
        return ["no date says when the price was checked"]
    if (days := (today - listing.checked).days) > STALE_DAYS:
        return [f"the price was last checked {days} days ago, on {listing.checked}"]
    return []


def _odd_days(model: Model, today: date) -> list[str]:
    """Which price begins, changes or is promised no longer, soon enough for the operator to be told."""
    said = []
    listings = _current_and_coming(model, today)
    if model.listing_on(today) is None:
        said.append(f"there is no price before {listings[0].valid_from}, so it is not served")
    for listing, following in zip(listings, (*listings[1:], None), strict=True):
        begins = following.valid_from if following else None
        if following and begins and (begins - today).days < NOTICE_DAYS:
            said.append(f"the price changes on {begins}: {_change(listing, following)}")
        until = listing.until
        # a price that follows at once is the answer to the question what comes after the promise
        answered = until is not None and begins is not None and begins <= until + timedelta(days=1)
        if until and not answered and (left := (until - today).days) < NOTICE_DAYS:
            said.append(f"the price {'was' if left < 0 else 'is'} promised until {until} only")
    return said


def _change(old: Listing, new: Listing) -> str:
    said = []
    for name in ("input", "output"):
        before, after = getattr(old.tiers[0].rates, name), getattr(new.tiers[0].rates, name)
        if before is not None and after is not None and before != after:
            said.append(f"{name} from {_per_million(before)} to {_per_million(after)} per million tokens")
    return ", ".join(said) or "neither input nor output"


def _odd_rates(tiers: tuple[Tier, ...]) -> list[str]:
    said = []
    for tier in tiers:
        rates, where = tier.rates, f" above {tier.above} tokens" if tier.above else ""
        for name in ("input", "output"):
            rate: Pico | None = getattr(rates, name)
            if rate is None:
                said.append(f"no price for {name}{where}")
            elif rate == 0:
                said.append(f"{name} is free{where}")
            elif not TOKEN_RATE_MIN <= rate <= TOKEN_RATE_MAX:
                said.append(
                    f"{name} costs {_per_million(rate)} per million tokens{where}; is the unit right?"
                )
        said += [sentence + where for sentence in _odd_order(rates)]
    return said


def _odd_order(rates: Rates) -> list[str]:
    said = []
    if rates.input is not None and rates.cache_read is not None and rates.cache_read > rates.input:
        said.append("reading from the cache costs more than input")
    if rates.input and rates.cache_write_5m is not None and rates.cache_write_5m < rates.input:
        said.append("writing to the cache costs less than input")
    if (
        rates.cache_write_5m
        and rates.cache_write_1h is not None
        and rates.cache_write_1h < rates.cache_write_5m
    ):
        said.append("writing to the cache for an hour costs less than for 5 minutes")
    if rates.input and rates.output and rates.output < rates.input:
        said.append("output costs less than input")
    if rates.input and rates.output and rates.output > OUTLIER * rates.input:
        said.append(f"output costs more than {OUTLIER} times as much as input")
    return said


def _odd_against(tiers: tuple[Tier, ...], known: tuple[Tier, ...]) -> list[str]:
    if not tiers or not known:
        return []
    said = []
    for name in ("input", "output"):
        ours: Pico | None = getattr(tiers[0].rates, name)
        theirs: Pico | None = getattr(known[0].rates, name)
        if ours and theirs and not theirs <= ours * OUTLIER <= theirs * OUTLIER**2:
            said.append(
                f"{name} costs {_per_million(ours)} per million tokens, "
                f"more than {OUTLIER} times off the {_per_million(theirs)} that we know of"
            )
    return said


def _per_million(rate: Pico) -> str:
    return show(rate * 10**6)
