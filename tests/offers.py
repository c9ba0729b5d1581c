"""Models and offers for tests that need one and do not care about most of it."""

from pricing.catalog import Listing, Model
from pricing.price import Bounds, Price, Rates, Tier
from proxy.types import Offer
from tests.values import evolve

KINDS = {"openai_chat": "openai", "anthropic": "anthropic", "gemini": "gemini"}
OUTPUT_FIELDS = {"openai_chat": "max_tokens", "anthropic": "max_tokens", "gemini": "maxOutputTokens"}


def model(id_="lab/m", dialect="openai_chat", *, rates=None, **fields):
    """A model that costs 1 pico a token, unless told otherwise."""
    vendor, _, name = id_.partition("/")
    plain = Model(
        id=id_,
        vendor=vendor,
        name=name,
        wire_name=name,
        dialect=dialect,
        context_window=200_000,
        output_max=64_000,
        output_field=OUTPUT_FIELDS[dialect],
        reasoning="none",
        image_tokens_max=0,
        audio_tokens_per_second_max=0,
        message_tokens=0,
        tools_tokens=0,
        dense_bytes_per_token=1,
        tokens_per_second_max=1,
        prices=(Listing((Tier(0, rates or Rates(input=1, output=1)),)),),
    )
    return evolve(plain, **fields)


def offer(of=None, **fields):
    """An offer of a model by account `a` of provider `p`, at list price."""
    of = of or model()
    tiers = of.prices[0].tiers
    plain = Offer(
        provider="p",
        kind=KINDS[of.dialect],
        account="a",
        dialect=of.dialect,
        model=of,
        wire_name=of.wire_name,
        price=Price(of.id, "p_1", tiers),
        bounds=Bounds(input=1, output=1),
    )
    return evolve(plain, **fields)
