"""What the tests of this dialect share: the dialect, an offer, and recordings that are fed through it."""

import pytest

from tests.dialects.common import DIALECTS, Run
from tests.dialects.common import recording as read
from tests.offers import model
from tests.offers import offer as made


@pytest.fixture
def dialect():
    return DIALECTS["gemini"]


@pytest.fixture
def recording():
    return read


@pytest.fixture
def offer():
    facts = {"context_window": 1_000_000, "reasoning": "on", "image_tokens_max": 1600}
    return made(
        model("google/gemini-3-pro", "gemini", **facts, audio_tokens_per_second_max=32, tools_tokens=400)
    )


@pytest.fixture
def run():
    return lambda *pieces, array=False, **more: Run("gemini", pieces, gemini_array=array, **more)
