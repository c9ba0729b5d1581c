"""From the model that a caller names to the offers that can answer: who serves it, at what price and bound.

Pure: the catalogue, the configuration and the day in, offers or a refusal out. A hold is the dearest offer's
ceiling, so the bounds made here keep a wallet from being overspent: they must contain whatever the provider can
bill. A request has one day: its price is pinned in its offers, however long the answer takes.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from attrs import define, evolve, field, frozen
from msgspec.structs import replace

from pricing.catalog import Catalog, Found, Model, StatesInput, Vendor
from pricing.money import Pico
from pricing.price import Bounds, Price, Rates, Tier, affordable_output
from proxy.config import Account, Config, Provider
from proxy.errors import Kind, Rejected
from proxy.types import Ask, Caller, DialectName, Measures, Offer, StopsBilling

DIALECTS: Final[Mapping[str, DialectName]] = MappingProxyType(
    {"openai": "openai_chat", "anthropic": "anthropic", "gemini": "gemini"}
)
"""What each kind of provider speaks."""

VENDORS: Final = MappingProxyType({"openai": "openai", "anthropic": "anthropic", "gemini": "google"})
"""Whose catalogue entries a provider serves, by its kind, unless it says otherwise."""

SPOKEN: Final = MappingProxyType(
    {"openai_chat": "/v1/chat/completions", "anthropic": "/v1/messages", "gemini": "/v1beta/models/…"}
)
"""Where each dialect is spoken here; told to callers who asked in another."""

HOLD_BACK: Final = frozenset({"anthropic"})
"""Where a tool's input is kept back until a value of it is complete, unless fine-grained streaming is asked for."""

OUTPUT_TOKENS_MIN: Final = 4096
"""What an answer may always grow to where the caller sets no bound: a page or three, the usual default."""

AVAILABLE_SHARE: Final = 4
"""Without a caller's bound, output may take one part in so many of what is available."""

AUDIO_BYTES_PER_SECOND_MIN: Final = 500
"""The thinnest speech codecs in use (6 kbit/s is 750) need more; so bytes ÷ this is never fewer seconds."""

STOP_BYTES_MAX: Final = 48
"""A model writes a stop sequence, is paid for it, and nobody sees it. So long a list of them fits into the tokens that
every hold has to spare for what shows in no byte; with a longer one everything is held."""

NAME_LENGTH_MAX: Final = 200
"""Of what a caller calls a model; longer ones are not worth comparing with anything."""

KNOWN_MAX: Final = 4096
"""Names that are remembered with what they come to. There is no end to them: some models take parameters in theirs."""

_NOTHING: Final = Bounds(input=0, output=0)
_FREE: Final = (Tier(0, Rates(input=0, output=0, requests=0)),)


@frozen
class Served:
    """A model that callers can use here, for `GET /v1/models`."""

    model: Model
    price: Price
    providers: tuple[str, ...]


@define(eq=False)
class Router:
    """Which provider serves which model, in the operator's order.

    Attributes:
        today: the day whose prices hold; read once for each question.
    """

    catalog: Catalog
    config: Config
    today: Callable[[], date]
    _served: Mapping[str, tuple[Provider, ...]] = field(init=False)
    _offers: dict[tuple[str, int | None, date], tuple[Offer, ...]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        served = {
            model.id: tuple(provider for provider in self.config.provider if _serves(provider, model))
            for model in self.catalog.models.values()
        }
        self._served = {model: providers for model, providers in served.items() if providers}

    def offers(self, ask: Ask, caller: Caller, available: Pico) -> tuple[Offer, ...]:
        """Every way to answer, in the order to be tried.

        Args:
            ask: what is asked.
            caller: who asks; decides which models and at which markup.
            available: what the request may spend; it limits the output where the caller sets no bound, or lets
                us lower it.

        Raises:
            Rejected: unknown, unpriced or unserved model (404), not allowed for this key (403), a model of
                another dialect or an input that it does not take (400).
        """
        day = self.today()
        known = self._known(ask.model, caller.markup_ppm, day)
        model = known[0].model
        if caller.models and not _allowed(caller, model):
            raise Rejected(Kind.NOT_ALLOWED, f"This key may not use the model {model.id!r}.", param="model")
        if model.dialect != ask.dialect:
            raise Rejected(
                Kind.BAD_REQUEST,
                f"The model {model.id!r} speaks {model.dialect} and this request is {ask.dialect}. "
                "Translation between dialects is not offered yet: "
                f"use {SPOKEN[model.dialect]} for this model.",
                param="model",
            )
        measures = ask.measures
        _check_input(model, measures, day)
        if ask.free:
            return tuple([_free(offer, measures) for offer in known])
        bounds, visible = input_bounds(model, measures), not model.hides_reasoning(measures.reasoning)
        # one hold is for all of them: it rolls where it is safe with whichever answers
        rolls = (
            ask.stream
            and visible
            and _may_roll(ask, bounds)
            and all(one.stops_billing == "yes" for one in known)
        )
        slice_tokens = self.config.holds.slice_tokens if rolls else 0
        return tuple([_made(offer, ask, caller, bounds, visible, available, slice_tokens) for offer in known])

    def first_hold(self, offers: tuple[Offer, ...]) -> Pico:
        """What has to be set aside before anything is sent, whichever offer answers."""
        dearest = offers[0].first_hold
        for offer in offers[1:]:
            dearest = max(dearest, offer.first_hold)
        return dearest

    def affordable_output(self, offers: tuple[Offer, ...], available: Pico) -> int:
        """How many output tokens per choice would fit into what is available, whichever offer answers."""
        return min(_affordable(offer, available) for offer in offers)

    def models(self, caller: Caller | None = None) -> tuple[Served, ...]:
        """The models that can be used here, at this caller's prices; for nobody in particular without one."""
        day, own = self.today(), None if caller is None else caller.markup_ppm
        return tuple(
            Served(
                model=model,
                price=self.catalog.price(model, self._markup_ppm(own, providers[0], model), day),
                providers=tuple(provider.name for provider in providers),
            )
            for model, providers in self._on_sale(day)
            if caller is None or _allowed(caller, model)
        )

    def find(self, name: str) -> Model:
        """The model that a name means, if it is served here.

        Raises:
            Rejected: 404, with the nearest name.
        """
        return self._resolve(name, self.today())[0].model

    def base_urls(self) -> Mapping[str, str]:
        """Where each provider is, by its name: its own URL, or its vendor's."""
        vendors = self.catalog.vendors
        return MappingProxyType(
            {
                provider.name: provider.base_url or vendors[_vendor(provider)].base_url
                for provider in self.config.provider
                if provider.base_url or _vendor(provider) in vendors
            }
        )

    def _on_sale(self, day: date) -> Iterator[tuple[Model, tuple[Provider, ...]]]:
        """The models that have a provider and, on this day, a price."""
        for id_, providers in self._served.items():
            model = self.catalog.models[id_]
            if _has_price(model, day):
                yield model, providers

    def _serving(self, model: Model, day: date) -> tuple[Provider, ...]:
        return self._served.get(model.id, ()) if _has_price(model, day) else ()

    def _resolve(self, name: str, day: date) -> tuple[Found, tuple[Provider, ...]]:
        """What a name means and who serves it; a provider's name before it reaches that provider alone.

        Where that prefix is the vendor's too, as in every canonical id, that provider only goes first.
        """
        prefix, _, rest = name.removeprefix("models/").partition("/")
        named = next(
            (provider for provider in self.config.provider if rest and provider.name == prefix), None
        )
        if named is not None:
            found = self.catalog.find(f"{_vendor(named)}/{rest}") or self.catalog.find(rest)
            serving = self._serving(found.model, day) if found else ()
            if found is not None and named in serving:
                others = [one for one in serving if one is not named] if prefix == found.model.vendor else []
                return found, (named, *others)
        found = self.catalog.find(name)
        if found is not None and (serving := self._serving(found.model, day)):
            return found, serving
        raise Rejected(Kind.UNKNOWN_MODEL, self._unknown(name, found, day), param="model")

    def _unknown(self, name: str, found: Found | None, day: date) -> str:
        shown = name[:NAME_LENGTH_MAX]
        if found is not None:
            return (
                f"The model {shown!r} is not served here: no provider is set up for it, or it has no price."
            )
        near = get_close_matches(shown, self._names(day), n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else " GET /v1/models lists what there is."
        return f"There is no model {shown!r} here.{hint}"

    def _names(self, day: date) -> Iterator[str]:
        for model, _ in self._on_sale(day):
            yield model.id
            yield model.id.partition("/")[2]

    def _known(self, name: str, markup_ppm: int | None, day: date) -> tuple[Offer, ...]:
        """What a name comes to at this markup, in the order to be tried: all of an offer that no request changes."""
        at = (name, markup_ppm, day)
        known = self._offers.get(at)
        if known is None:
            if len(self._offers) >= KNOWN_MAX:
                self._offers.clear()
            found, providers = self._resolve(name, day)
            known = self._offers[at] = tuple(
                [
                    self._offer(found, provider, account, markup_ppm, day)
                    for provider in providers
                    for account in provider.account or (Account(name="default"),)
                ]
            )
        return known

    def _offer(
        self, found: Found, provider: Provider, account: Account, markup_ppm: int | None, day: date
    ) -> Offer:
        model = found.model
        return Offer(
            provider=provider.name,
            kind=provider.kind,
            account=account.name,
            dialect=DIALECTS[provider.kind],
            model=model,
            wire_name=_wire_name(provider, found),
            price=self.catalog.price(model, self._markup_ppm(markup_ppm, provider, model), day),
            bounds=_NOTHING,
            region=provider.region,
            stops_billing=self._stops_billing(provider),
            states_input=self._states_input(provider) == "start",
            stream_options=provider.stream_options,
        )

    def _stops_billing(self, provider: Provider) -> StopsBilling:
        """Of a stream: any other answer is billed to its end."""
        if provider.stops_billing is not None:
            return provider.stops_billing
        vendor = self._itself(provider)
        return vendor.stops_billing if vendor is not None else "unknown"

    def _states_input(self, provider: Provider) -> StatesInput:
        if provider.states_input is not None:
            return provider.states_input
        vendor = self._itself(provider)
        return vendor.states_input if vendor is not None else "end"

    def _itself(self, provider: Provider) -> Vendor | None:
        """The vendor, if it is the provider itself: the data speaks of its own servers, not of compatible ones."""
        vendor = self.catalog.vendors.get(_vendor(provider))
        return vendor if vendor is not None and provider.base_url in (None, vendor.base_url) else None

    def _markup_ppm(self, own: int | None, provider: Provider, model: Model) -> int:
        """The key's own, or the provider's, or the first whose pattern the model fits, or everybody's."""
        if own is not None:
            return own
        if provider.markup_ppm is not None:
            return provider.markup_ppm
        for markup in self.config.pricing.markup:
            if fnmatchcase(model.id, markup.models):
                return markup.ppm
        return self.config.pricing.markup_ppm


def input_bounds(model: Model, measures: Measures) -> Bounds:
    """The box that the input of a request must lie in; no output yet.

    A byte of text is at most one token. What no count of bytes bounds is a full context window, and nothing
    can be more than that.
    """
    seconds = -(-measures.audio_bytes // AUDIO_BYTES_PER_SECOND_MIN)
    counted = (
        measures.text_bytes
        + measures.messages * model.message_tokens
        + (model.tools_tokens if measures.tools else 0)
        + measures.images * model.image_tokens_max
        + seconds * model.audio_tokens_per_second_max
    )
    # a file may turn out to hold anything that the model takes
    file = measures.unbounded
    return Bounds(
        input=model.context_window if file else min(counted, model.context_window),
        output=0,
        cache_writes=measures.cache_writes,
        audio=measures.audio_bytes > 0 or (file and model.audio_tokens_per_second_max > 0),
        image=measures.images > 0 or (file and model.image_tokens_max > 0),
        audio_output=measures.audio_output,
        image_output=measures.image_output,
    )


def _free(offer: Offer, measures: Measures) -> Offer:
    """Of a call that generates nothing: hanging up ends a bill of nothing."""
    price = evolve(offer.price, tiers=_FREE)
    return replace(
        offer, price=price, choices=measures.choices, stops_billing="yes", visible=True, states_input=False
    )


def _may_roll(ask: Ask, bounds: Bounds) -> bool:
    """Whether all that such a stream writes goes by, so that its hold may begin with a slice."""
    one_text = ask.measures.choices == 1 and not (bounds.audio_output or bounds.image_output)
    return one_text and ask.measures.stop_bytes <= STOP_BYTES_MAX and not bounds.web_searches


def _made(
    known: Offer, ask: Ask, caller: Caller, bounds: Bounds, visible: bool, available: Pico, slice_tokens: int
) -> Offer:
    """Make the offer to one request of what is known of it.

    The output bound in force is the caller's, or else the model's or one that the credit can bear. Where the caller
    allows it (`clamp`) and the hold does not roll, its own bound is lowered to what the credit can bear, as far as
    the provider's minimum.
    """
    measures, price = ask.measures, known.price
    most, asked = known.model.output_max, measures.output
    limit = most if asked is None else min(asked, most)
    if asked is None:
        bought = affordable_output(price, bounds, price.ceiling(bounds) + available // AVAILABLE_SHARE)
        share = bought // measures.choices
        limit = min(most, max(OUTPUT_TOKENS_MIN, share))
    clamped = False
    if caller.clamp and not slice_tokens:
        bears = affordable_output(price, bounds, available) // measures.choices
        if _least_output(known, measures) <= bears < limit:
            limit, clamped = bears, True
    lowered = limit < most if asked is None else limit < asked
    return replace(
        known,
        bounds=replace(bounds, output=limit * measures.choices),
        choices=measures.choices,
        stops_billing=known.stops_billing if ask.stream else "no",
        states_input=known.states_input and ask.stream,
        holds_back=measures.tools > 0 and known.dialect in HOLD_BACK,
        visible=visible,
        output_limit=limit if lowered else None,
        output_assumed=asked is None or lowered,
        clamped=clamped,
        thinking_limit=_thinking_within(known, measures, limit) if lowered else None,
        slice_tokens=slice_tokens,
    )


def _least_output(offer: Offer, measures: Measures) -> int:
    """The least bound on output that the provider takes for this request: an answer behind its least reasoning."""
    return 1 if measures.thinking is None else offer.model.thinking_tokens_min + 1


def _thinking_within(offer: Offer, measures: Measures, limit: int) -> int | None:
    """The caller's bound on reasoning, lowered with that on output, in which it has to fit; in the same proportion."""
    thinking, asked = measures.thinking, measures.output
    if thinking is None or asked is None:
        return None
    return max(min(thinking, offer.model.thinking_tokens_min), min(thinking * limit // asked, limit - 1))


def _affordable(offer: Offer, available: Pico) -> int:
    tokens = affordable_output(offer.price, offer.bounds, available)
    return min(tokens, offer.model.output_max * offer.choices) // offer.choices


def _check_input(model: Model, measures: Measures, day: date) -> None:
    """Refuse what the model has no price for: no price, no service."""
    if not (measures.images or measures.audio_bytes or measures.audio_output or measures.image_output):
        return
    rates = [tier.rates for tier in model.tiers_on(day)]
    refused: list[tuple[bool, str]] = [
        (measures.images > 0 and model.image_tokens_max == 0, "take images"),
        (measures.audio_bytes > 0 and model.audio_tokens_per_second_max == 0, "take audio"),
        (measures.audio_output and any(rate.audio_output is None for rate in rates), "write audio"),
        (measures.image_output and any(rate.image_output is None for rate in rates), "write images"),
    ]
    for is_refused, what in refused:
        if is_refused:
            raise Rejected(Kind.BAD_REQUEST, f"The model {model.id!r} does not {what} here.")


def _has_price(model: Model, day: date) -> bool:
    tiers = model.tiers_on(day)
    return bool(tiers) and all(
        tier.rates.input is not None and tier.rates.output is not None for tier in tiers
    )


def _serves(provider: Provider, model: Model) -> bool:
    if DIALECTS[provider.kind] != model.dialect:
        return False
    if not provider.models:
        return model.vendor == _vendor(provider)
    if provider.vendor is not None and model.vendor != provider.vendor:
        return False
    return any(fnmatchcase(model.id, pattern) for pattern in provider.models)


def _allowed(caller: Caller, model: Model) -> bool:
    return not caller.models or any(fnmatchcase(model.id, pattern) for pattern in caller.models)


def _vendor(provider: Provider) -> str:
    return provider.vendor or VENDORS[provider.kind]


def _wire_name(provider: Provider, found: Found) -> str:
    """The model's name at this provider, with whatever parameters the caller's name carried."""
    own = provider.names.get(found.model.id)
    return found.wire_name if own is None else own + found.wire_name.removeprefix(found.model.wire_name)
