"""One request, cancelled at its every step: each time the hold ends, the books balance and nothing stays open."""

import pytest
import trio

from tests.fakes import World
from tests.test_request_path import DONE, FINISH, ROLE, body, delta, usage

STEPS_MAX = 400


class CancelAt(trio.abc.Instrument):
    """Cancels a scope just before a task of the request takes its nth step."""

    def __init__(self, step, scopes, hang_up):
        self.step, self.scopes, self.hang_up = step, scopes, hang_up
        self.count = 0

    def before_task_step(self, task):
        if not self.scopes or task.name.endswith("keep"):
            return
        self.count += 1
        if self.count == self.step:
            self.hang_up()


async def cancelled_at(step, *answers, how, **world):
    world = World(*answers, **world)
    scopes, replies = [], []

    async def keep(reply):
        replies.append(reply)
        await trio.sleep_forever()

    def leave():
        if how == "client":
            for reply in replies:
                reply.hang_up()
        else:
            scopes[0].cancel()

    instrument = CancelAt(step, scopes, leave)
    trio.lowlevel.add_instrument(instrument)
    try:
        await world.ask(body(), meanwhile=keep, scope=scopes)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return world, instrument.count


STREAM = [ROLE, delta(), 0.5, delta(), FINISH, usage(), DONE]


@pytest.mark.parametrize("how", ["client", "shutdown"])
@pytest.mark.parametrize("stops_billing", ["yes", "no"])
async def test_cancelled_at_every_step_the_books_balance(autojump_clock, how, stops_billing):
    reached = STEPS_MAX
    for step in range(1, STEPS_MAX):
        answers = ((500, [b"{}"]), (200, list(STREAM)))
        world, count = await cancelled_at(
            step, *answers, how=how, stops_billing=stops_billing, accounts=("one", "two")
        )
        world.check()
        for record in world.settled:
            assert record.charged <= record.held
            assert record.charged == 0 or world.provider.calls, "charged for what was never sent"
        if count < step:
            reached = step
            break
    assert 20 < reached < STEPS_MAX, "the request was not followed to its end"
