"""One state directory and the processes that live on it, one after the other, each killed; and who they served."""

import math
import random
import time
from collections import Counter

import trio
from attrs import define, field, frozen

from tests.conftest import begin
from tests.crashes.moments import Moment, reach
from tests.loopback import CONTENT, DIALECTS, Connection, Heard, providers, question

LEAST_INPUT = 40
"""Customers are told apart in the sandbox's books by the length of what they say, from this on."""

PRICE = "0.01"


@frozen
class Kind:
    """One sort of request.

    Attributes:
        dialect, provider, stream: see `question`.
        told: directives.
        leaves: after so many pieces of content, or so many seconds where it is not streamed; `None`: stays.
    """

    dialect: str
    provider: str
    stream: bool = True
    told: str = "tokens=12,gap_ms=4"
    leaves: float | None = None


KINDS = (
    *(Kind(dialect, f"{dialect}_{stops}") for dialect in DIALECTS for stops in ("yes", "no")),
    *(Kind(dialect, f"{dialect}_yes", stream=False) for dialect in DIALECTS),
    *(Kind(dialect, f"{dialect}_yes", told="endless,gap_ms=3", leaves=7) for dialect in DIALECTS),
    *(Kind(dialect, f"{dialect}_no", told="tokens=15,gap_ms=8", leaves=4) for dialect in DIALECTS),
    Kind("openai", "openai_yes", stream=False, told="tokens=15,gap_ms=8", leaves=0.03),
    Kind("openai", "pair", told="tokens=9,status=500,fail_key=pair-1"),
    Kind("openai", "openai_yes", told="tokens=9,status=400"),
)


@define(eq=False)
class Customer:
    """Asks one thing after another, and remembers which answers were complete."""

    number: int
    key: str
    key_id: str
    rng: random.Random
    asked: int = 0
    complete: list = field(factory=list)

    async def live(self, url):
        """Ask until nobody answers any more."""
        async with Connection(url, self.key) as connection:
            while True:
                kind = self.rng.choice(KINDS)
                cached = self.rng.randrange(0, 60, 10)
                path, body = question(
                    kind.dialect,
                    kind.provider,
                    f"{kind.told},cached={cached}",
                    stream=kind.stream,
                    most=200,
                    text="x" * 4 * (LEAST_INPUT + self.number),
                )
                self.asked += 1
                heard = await self._ask(connection, kind, path, body)
                if heard is None:
                    return
                if heard.has_ended(kind.dialect, stream=kind.stream):
                    self.complete.append(heard.request)
                elif heard.status == 429:
                    await trio.sleep(0.02)  # too many of its answers are read on without it
                elif not heard.whole and kind.leaves is None:
                    return

    async def _ask(self, connection, kind, path, body):
        """`None`: nobody is there."""
        content, heard = CONTENT[kind.dialect], Heard()
        pieces = kind.leaves if kind.leaves is not None and kind.stream else math.inf
        seconds = math.inf if kind.leaves is None or kind.stream else kind.leaves
        try:
            with trio.move_on_after(seconds):
                await connection.ask(
                    path, body, heard=heard, until=lambda heard: heard.body.count(content) >= pieces
                )
        except OSError:
            return None
        return heard


@define(eq=False)
class Banker:
    """Tops one wallet up, over and over, and remembers what was acknowledged."""

    wallet: str
    tried: int = 0
    acknowledged: list = field(factory=list)

    async def live(self, facts, token):
        """Top up until nobody answers any more; what was not acknowledged is tried again, under the same ref."""
        async with Connection(facts["admin_url"], token) as connection:
            while True:
                ref = f"ref-{self.tried}"
                try:
                    heard = await connection.ask(
                        "/admin/top_up", {"wallet": self.wallet, "amount": PRICE, "ref": ref}
                    )
                except OSError:
                    return
                if heard.whole and heard.status == 200:
                    self.acknowledged.append(heard.json()["ref"])
                    self.tried += 1
                elif not heard.whole:
                    return
                await trio.sleep(0.01)


@frozen
class Birth:
    """When a process was started, by both clocks."""

    wall_ms: float
    monotonic_ms: float


@frozen
class Death:
    """One kill: at which moment, and whether that was seen to come."""

    moment: Moment
    came: bool


@define(eq=False)
class Lives:
    """The processes on one state directory.

    Attributes:
        tmp_path: where the state is.
        provider: the sandbox, which lives on, from here on.
        rng: decides everything that is left to chance.
    """

    tmp_path: object
    provider: object
    rng: random.Random
    wallet: str = ""
    customers: list = field(factory=list)
    banker: Banker | None = None
    births: list = field(factory=list)
    deaths: list = field(factory=list)

    @property
    def state(self):
        return self.tmp_path / "state"

    def configure(self):
        """Tiny segments, progress at every turn, a store that is loaded all the time."""
        (self.tmp_path / "farebox.toml").write_text(
            f"""
            log_level = "warning"
            [listen]
            admin_port = 0
            [books]
            segment_bytes = 1_048_576
            progress_seconds = 0.002
            progress_tokens = 1
            load_seconds = 0.1
            load_records_max = 400
            [failover]
            rest_failed_seconds = 0.05
            {providers(self.provider.url)}
            """
        )

    def begin(self):
        """Start the next one."""
        self.births.append(Birth(time.time() * 1000, time.monotonic() * 1000))
        return begin(
            "serve", "--port", "0", "--config", self.tmp_path / "farebox.toml", "--state", self.state,
            log=self.tmp_path / "log",
        )  # fmt: skip

    async def ready(self):
        """Start the next one, and wait for it."""
        starting = self.begin()
        return await trio.to_thread.run_sync(starting.ready)

    async def settle_in(self, customers):
        """The first life: a wallet, a banker, and customers with a key each; then the first kill."""
        starting = self.begin()
        try:
            gate = await trio.to_thread.run_sync(starting.ready)
            self.wallet = gate.admin("wallet_create", name="everybody")[1]["wallet"]
            assert gate.admin("top_up", wallet=self.wallet, amount="1000.00", ref="first")[0] == 200
            for number in range(customers):
                made = gate.admin("key_create", wallet=self.wallet)[1]
                seed = random.Random(self.rng.random())
                self.customers.append(Customer(number, made["key"], made["key_id"], seed))
            self.banker = Banker(self.wallet)
        finally:
            starting.kill()
        self.deaths.append(Death(Moment.READY, came=True))

    async def live(self, moment):
        """One life: serve everybody until the moment comes, then die."""
        starting = self.begin()
        try:
            if moment.early:
                came = await reach(moment, self.state, starting.process, self.rng)
            else:
                came = await self._serve(starting, moment)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(starting.kill)
        self.deaths.append(Death(moment, came))

    async def _serve(self, starting, moment):
        gate = await trio.to_thread.run_sync(starting.ready)
        async with trio.open_nursery() as nursery:
            for customer in self.customers:
                nursery.start_soon(customer.live, gate.base_url)
            nursery.start_soon(self.banker.live, gate.facts, gate.admin_token)
            came = await reach(moment, self.state, gate.process, self.rng)
            gate.process.kill()
        return came

    def told(self):
        """The kills by their moments, for people."""
        counted = Counter(death.moment.value for death in self.deaths if death.came)
        missed = sum(not death.came for death in self.deaths)
        said = ", ".join(f"{count} × {moment}" for moment, count in sorted(counted.items()))
        return f"{len(self.deaths)} kills ({said}; {missed} whose moment did not come)"
