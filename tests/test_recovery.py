"""Real processes, killed at any moment: what they have promised stands in the books afterwards, once."""

import json
import os
import random
import socket
from contextlib import suppress

import pytest
import trio

from tests.conftest import begin, cli, end, running
from tests.crashes.account import Account
from tests.crashes.lives import Lives
from tests.crashes.moments import Moment

CUSTOMERS = 24

SHORT = (Moment.ROTATION, Moment.RECOVERY, Moment.STORE)

LONG_KILLS = 60
CHECKED_EVERY = 10
"""Lives between two looks at the books, in the long form; each is a check of the whole."""


def long_run(rng):
    """Every moment several times, those of recovery right behind a kill that left something to recover."""
    moments = [moment for moment in Moment for _ in range(LONG_KILLS // len(Moment))]
    rng.shuffle(moments)
    again = [Moment.RECOVERY] * (LONG_KILLS - len(moments))
    return (*moments, *again)


@pytest.mark.parametrize(
    ("seed", "moments"),
    [
        pytest.param(7, SHORT, id="short"),
        *(pytest.param(seed, None, id=f"seed {seed}", marks=pytest.mark.long) for seed in (1, 2)),
    ],
)
async def test_no_kill_loses_or_doubles_what_was_answered_called_or_paid_in(
    tmp_path, box, say, seed, moments
):
    """Under load, and the sandbox's own count of calls is held against the books."""
    rng = random.Random(seed)
    lives = Lives(tmp_path, box, rng)
    lives.configure()
    await lives.settle_in(CUSTOMERS)
    moments = moments or long_run(rng)
    for number, moment in enumerate(moments, 1):
        await lives.live(moment)
        if number % CHECKED_EVERY == 0 or number == len(moments):
            gate = await lives.ready()
            try:
                account = Account(lives, gate)
                account.check()
            finally:
                await trio.to_thread.run_sync(end, gate.process)
    say(account.told())
    assert len(lives.deaths) == len(moments) + 1
    assert len(account.complete) > 5 * len(moments)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The state that a demo left behind when it was killed, with a wallet of ours; its id and key."""
    tmp_path = tmp_path_factory.mktemp("killed")
    starting = begin("demo", "--port", "0", "--state", tmp_path / "state", log=tmp_path / "log")
    try:
        wallet, key = starting.ready().new_wallet("3.50")
    finally:
        starting.kill()
    return tmp_path / "state", wallet, key


def test_an_address_that_a_killed_gateway_left_behind_is_not_trusted(killed):
    """Whoever listens there now would be sent the admin token."""
    heard, (state, *_) = [], killed
    address = json.loads((state / "gateway.json").read_text())
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        port = other.getsockname()[1]
        alive = {**address, "admin_url": f"http://127.0.0.1:{port}", "pid": os.getpid()}
        (state / "gateway.json").write_text(json.dumps(alive))
        cli("wallet", "list", "--state", state)
        with suppress(TimeoutError):
            heard.append(other.accept())
    assert heard == []


def test_what_was_answered_as_durable_survives_a_kill(killed, tmp_path):
    """Wallets, keys and top-ups are on the platter before their answer; commands that only read see them, too."""
    state, wallet, key = killed
    assert json.loads(cli("wallet", "show", wallet, "--state", state, "--json").stdout)["balance"] == "3.50"
    with running("demo", "--port", "0", "--state", state, tmp_path=tmp_path) as demo:
        assert demo.get("/v1/credits", key).json()["balance"] == "3.50"
        assert demo.verify()["ok"]
