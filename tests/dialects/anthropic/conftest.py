"""What the tests of this dialect share: the dialect, an offer, and recordings that are fed through it."""

from pathlib import Path as File

import pytest

from pricing.catalog import Listing, Model
from pricing.price import Bounds, Price, Rates, Tier
from pricing.usage import Meter
from proxy.config import RequestLimits
from proxy.dialects.anthropic import Anthropic
from proxy.errors import StreamBroken
from proxy.types import Ask, Measures, Offer

RECORDINGS = File(__file__).parents[2] / "recordings"


@pytest.fixture
def dialect():
    return Anthropic(RequestLimits())


@pytest.fixture
def recording():
    return lambda name: (RECORDINGS / name).read_bytes()


@pytest.fixture
def offer():
    tiers = (Tier(0, Rates(input=3, output=15)),)
    model = Model(
        id="anthropic/claude-opus-5-5",
        vendor="anthropic",
        name="Claude",
        wire_name="claude-opus-5-5-20261001",
        dialect="anthropic",
        context_window=200_000,
        output_max=64_000,
        output_field="max_tokens",
        reasoning="off",
        image_tokens_max=1600,
        audio_tokens_per_second_max=0,
        message_tokens=8,
        tools_tokens=400,
        dense_bytes_per_token=2,
        tokens_per_second_max=300,
        prices=(Listing(tiers),),
        created=0,
    )
    return Offer(
        provider="anthropic",
        kind="anthropic",
        account="main",
        dialect="anthropic",
        model=model,
        wire_name="claude-opus-5-5-20261001",
        price=Price("anthropic/claude-opus-5-5", "p_0", tiers),
        bounds=Bounds(input=1, output=1),
    )


class Run:
    """One answer fed through a translator, in the pieces that it was cut into."""

    def __init__(self, dialect, pieces, *, stream=True, receipt=None, **ask):
        self.meter = Meter()
        self.written = b""
        self.tail = None
        self.failure = None
        measures = Measures(text_bytes=1)
        translator = dialect.passthrough(
            Ask(dialect="anthropic", model="m", stream=stream, measures=measures, fields={}, **ask),
            self.meter,
        )
        try:
            for piece in pieces:
                self.written += translator.feed(piece)
            self.ended = translator.ended
            translator.finish()
            self.tail = translator.end(receipt)
        except StreamBroken as broken:
            self.failure = broken

    @property
    def outcome(self):
        failure = None if self.failure is None else (self.failure.kind, self.failure.message)
        return self.written, self.tail, failure, self.meter.reported


@pytest.fixture
def run(dialect):
    return lambda *pieces, **more: Run(dialect, pieces, **more)
