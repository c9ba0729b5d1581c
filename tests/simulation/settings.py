"""What gateways in the simulation are set up with: models, prices that change on a day, providers, deadlines."""

from datetime import UTC, datetime
from functools import cache
from typing import Final

from attrs import asdict, evolve

from pricing.catalog import Catalog, Listing
from pricing.load import load_catalog
from pricing.price import Rates, Tier
from proxy.config import DATA, Account, Config, Deadlines, Provider, RequestLimits
from proxy.dialects.anthropic import Anthropic
from proxy.dialects.gemini import Gemini
from proxy.dialects.openai_chat import OpenAIChat
from proxy.types import Secret

BORDER: Final = datetime(2026, 11, 22, tzinfo=UTC)
"""The day on which every price doubles."""

PROVIDERS: Final = {"one": "openai", "two": "openai", "clouds": "anthropic", "stars": "gemini"}
"""Providers and their kinds."""

ACCOUNTS: Final = {"one": ("a",), "two": ("a",), "clouds": ("a", "b"), "stars": ("a",)}

MODELS: Final = ("sandbox/chat", "sandbox/thinker", "sandbox/claude", "sandbox/gemini")

LIMITS: Final = RequestLimits(requests_max=64, muted_max=16, muted_per_key_max=6)

DEADLINES: Final = Deadlines(
    first_content_seconds=20.0,
    first_content_reasoning_seconds=40.0,
    idle_seconds=12.0,
    idle_reasoning_seconds=25.0,
    total_seconds=90.0,
    heartbeat_seconds=4.0,
)


def _doubled(tier):
    rates = {name: None if rate is None else 2 * rate for name, rate in asdict(tier.rates).items()}
    return Tier(tier.above, Rates(**rates))


@cache
def catalog():
    """The sandbox's models alone."""
    full = load_catalog(DATA)
    models = []
    for id_ in MODELS:
        (listing,) = full.models[id_].prices
        later = Listing(tuple(map(_doubled, listing.tiers)), valid_from=BORDER.date())
        models.append(evolve(full.models[id_], prices=(listing, later)))
    return Catalog.of((full.vendors["sandbox"],), tuple(models))


@cache
def config_of(stops, holds, markup_ppm, hangup):
    """Settings; `stops`: of each provider, whether hanging up stops its bill."""
    providers = tuple(
        Provider(
            name=name,
            kind=kind,
            base_url=f"http://{name}.invalid",
            account=tuple(Account(one, Secret(f"sk-up-{name}-{one}")) for one in ACCOUNTS[name]),
            models=("sandbox/*",),
            stops_billing=stop,
            states_input="start" if kind == "anthropic" else "end",
        )
        for (name, kind), stop in zip(PROVIDERS.items(), stops, strict=True)
    )
    return Config(
        provider=providers,
        deadlines=DEADLINES,
        holds=holds,
        limits=LIMITS,
        pricing=evolve(Config().pricing, markup_ppm=markup_ppm),
        on_hangup_hidden=hangup,
        log_level="error",
    )


@cache
def dialects(limits):
    """Every language that is spoken."""
    return {"openai_chat": OpenAIChat(limits), "anthropic": Anthropic(limits), "gemini": Gemini(limits)}
