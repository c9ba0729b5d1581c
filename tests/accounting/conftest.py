import pytest

from tests.accounting.recorder_fakes import World, running


@pytest.fixture
def world():
    return World()


@pytest.fixture
async def recorder(world):
    recorder = world.build()
    async with running(recorder):
        yield recorder
