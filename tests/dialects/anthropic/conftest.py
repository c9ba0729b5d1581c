"""What the tests of this dialect share: the dialect, an offer, and recordings that are fed through it."""

from pathlib import Path as File

import pytest

from pricing.usage import Meter
from proxy.config import RequestLimits
from proxy.dialects.anthropic import Anthropic
from proxy.errors import StreamBroken
from proxy.types import Ask, Measures
from tests.offers import model
from tests.offers import offer as made

RECORDINGS = File(__file__).parents[2] / "recordings"


@pytest.fixture
def dialect():
    return Anthropic(RequestLimits())


@pytest.fixture
def recording():
    return lambda name: (RECORDINGS / name).read_bytes()


@pytest.fixture
def offer():
    claude = model(
        "anthropic/claude-opus-5-5",
        "anthropic",
        wire_name="claude-opus-5-5-20261001",
        reasoning="off",
        image_tokens_max=1600,
        message_tokens=8,
        tools_tokens=400,
    )
    return made(claude)


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
