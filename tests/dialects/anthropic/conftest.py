"""What the tests of this dialect share: the dialect, an offer, and recordings that are fed through it."""

import pytest

from tests.dialects.common import DIALECTS, Run
from tests.dialects.common import recording as read
from tests.offers import model
from tests.offers import offer as made


@pytest.fixture
def dialect():
    return DIALECTS["anthropic"]


@pytest.fixture
def recording():
    return read


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


@pytest.fixture
def run():
    return lambda *pieces, **more: Run("anthropic", pieces, **more)
