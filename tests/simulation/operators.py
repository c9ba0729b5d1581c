"""Operators: they make wallets and keys, credit payments, change their minds, and watch jobs at providers.

Whoever is told "done" remembers it, and the end of the world compares. What was under way when a gateway died is
asked for again: every request of an operator bears repetition.
"""

from contextlib import suppress

import trio
from attrs import define, field
from msgspec.structs import replace

from accounting.bill import Terms
from accounting.ports import Overloaded
from accounting.records import GrantKind, Key, Spender
from accounting.refusals import Refusal
from pricing.money import PICO
from pricing.price import Bounds, Price, Rates, Tier
from pricing.usage import Usage
from proxy.keys import digest_of, new_key
from tests.simulation.scheduler import ticks

VIDEO = Price("sandbox/video", "p_test", (Tier(0, Rates(input=0, output=0, seconds=PICO // 1000)),))
"""A price that is known beforehand: a tenth of a cent for each second."""


def secret_of(number):
    """The key with this number."""
    known = _SECRETS.get(number)
    if known is None:
        known = _SECRETS[number] = new_key("fb_sk_", lambda size: number.to_bytes(size, "big"))
    return known


_SECRETS = {}


@define(eq=False)
class Staying:
    """A client that does not leave."""

    client_gone: bool = False


@define(eq=False)
class Operators:
    """All of a world's.

    Attributes:
        wallets: their ids, in the order of the plan.
        keys: of each planned key its number by now: a revoked one is replaced.
        acked: what they were told is done.
        sources: payments that they have announced.
        revoked: of each key that was revoked, when that was acknowledged.
        jobs: what they know of each job: `accepted`, `settled`.
    """

    world: object
    wallets: list = field(factory=list)
    keys: list = field(factory=list)
    acked: dict = field(factory=dict)
    sources: set = field(factory=set)
    revoked: dict = field(factory=dict)
    jobs: dict = field(factory=dict)
    _made: int = 100

    @property
    def _account(self):
        return self.world.auditor.account

    async def ask(self, what, action):
        """Ask the gateway for something until it has said that it is done."""
        world = self.world
        while True:
            process = await world.up()
            life, done, answer = process.life, False, None
            with trio.CancelScope() as scope:
                life.scopes[scope] = None
                try:
                    answer, done = await action(process.books), life.alive
                except BaseException as error:
                    if life.alive and not isinstance(error, Overloaded):
                        raise
                finally:
                    life.scopes.pop(scope, None)
            await trio.lowlevel.checkpoint_if_cancelled()
            if done:
                world.event("done", what)
                return answer
            await trio.sleep(ticks(world.rng.uniform(0.1, 1.0)))

    def promised(self, said, what):
        """Somebody was told that it is done."""
        self.world.auditor.promise(said.s, what)

    async def ask_to_change(self, what, change):
        """Ask for a change that is always written, at once; it must be on the platter when it is done."""

        async def action(books):
            doing, seq = change(books), books.seq + 1
            await doing
            self.world.auditor.promise(seq, what)

        await self.ask(what, action)

    # -- wallets, keys, payments -----------------------------------------------------------------------

    async def found(self):
        """Make what the plan says, and put the first credit on."""
        plan = self.world.plan
        for number, amount in enumerate(plan.wallets):
            self.wallets.append(
                await self.ask("wallet", lambda books, number=number: self._wallet(books, number))
            )
            await self.credit(number, amount, f"first:{number}")
        for number, planned in enumerate(plan.keys):
            self.keys.append(number)
            await self._make_key(number, planned)

    async def _wallet(self, books, number):
        name = f"wallet {number}"
        known = next((one for one in books.ledger.wallets() if one.name == name), None)
        if known is None:
            known = await books.create_wallet(name)
        else:
            await books.writer.durable(books.seq)
        self.acked["wallet", known.wallet] = known.wallet
        self.promised(self._account.wallets[known.wallet], f"making {name}")
        return known.wallet

    async def credit(self, wallet, amount, source, expires_ms=None):
        """Credit a payment; the same source twice is one."""
        self.sources.add(source)

        async def top_up(books):
            until = None if expires_ms is None else books.clock() + expires_ms
            return (await books.top_up(self.wallets[wallet], amount, GrantKind.PAID, source, until))[0]

        grant = await self.ask("top-up", top_up)
        self.acked["grant", source] = (grant.wallet, grant.amount)
        self.promised(self._account.grants[source], f"crediting {source}")

    async def _make_key(self, number, planned):
        digest = digest_of(secret_of(number))

        async def make(books):
            known = books.ledger.key_by_digest(digest)
            if known is None:
                wallet = self.wallets[planned.wallet]
                key = Key(f"key_{number}", wallet, digest, "fb", books.clock(), **planned.limits)
                return await books.create_key(key)
            await books.writer.durable(books.seq)
            return known

        key = await self.ask("key", make)
        self.acked["key", key.key] = digest
        self.promised(self._account.keys[key.key], f"making {key.key}")

    async def top_up(self, at, wallet, amount, ref):
        """A payment arrives, or is announced again."""
        await trio.sleep_until(at)
        source = f"payment:{ref}"
        if ("grant", source) in self.acked:
            known, amount = self.acked["grant", source]
            wallet = self.wallets.index(known)
        await self.credit(wallet, amount, source)

    # -- changes ---------------------------------------------------------------------------------------

    async def change(self, at, what, which):
        """An operator changes something."""
        await trio.sleep_until(at)
        self.world.event("change", what, which)
        match what:
            case "revoke":
                await self._revoke(which % len(self.keys))
            case "limit":
                await self._limit(f"key_{self.keys[which % len(self.keys)]}")
            case "freeze":
                await self._freeze(self.wallets[which % len(self.wallets)])
            case "gift":
                amount = 10**9 * (1 + which)
                await self.credit(which % len(self.wallets), amount, f"gift:{which}:{at}", expires_ms=4000)
            case "job":
                await self._job(f"job_{which}_{at}", which)

    async def _revoke(self, which):
        number, planned = self.keys[which], self.world.plan.keys[which]
        key = f"key_{number}"
        await self.ask_to_change("revoke", lambda books: books.revoke_key(key))
        self.revoked[number] = trio.current_time()
        self._made += 1
        new = self._made
        await self._make_key(new, planned)
        if self.world.rng.random() < 0.7:  # some clients keep the old one
            self.keys[which] = new

    async def _limit(self, key):
        def change(books):
            known = books.ledger.key(key)
            return books.change_key(replace(known, name="changed", concurrency=5, at_ms=books.clock()))

        await self.ask_to_change("limit", change)

    async def _freeze(self, wallet):
        for frozen in (True, False):
            await self.ask_to_change(
                "freeze", lambda books, frozen=frozen: books.freeze_wallet(wallet, frozen=frozen)
            )
            await trio.sleep(3.0)

    # -- jobs ------------------------------------------------------------------------------------------

    async def _job(self, request, which):
        """Work that outlives its connection, and maybe the gateway: taken on once, and settled once."""
        rng = self.world.rng
        number = which % len(self.keys)
        spender = Spender(self.wallets[self.world.plan.keys[number].wallet], f"key_{self.keys[number]}")
        seconds = rng.randrange(1, 9)
        known = self.jobs[request] = {"usage": Usage(seconds=seconds), "accepted": False, "settled": None}
        try:
            await self.ask("job", lambda books: self._begin_job(books, request, spender, known))
        except (Refusal, _Refused):
            return
        if not known["accepted"]:
            return
        await trio.sleep(ticks(rng.uniform(0.1, 8.0)))
        finished = rng.random() < 0.7

        async def settle(books):
            # not there: by a gateway that died before it could say so, or its beginning was lost with power
            with suppress(LookupError):
                books.settle_job(request, finished=finished)
            await books.writer.durable(books.seq)

        await self.ask("job settled", settle)
        known["settled"] = finished

    async def _begin_job(self, books, request, spender, known):
        if any(one.attempt.request == request for one in books.jobs()):
            await books.writer.durable(books.seq)
            known["accepted"] = True  # by a gateway that died before it could say so
            return
        if request in self._account.last:
            raise _Refused  # an earlier try stands in the books already
        claim = books.claim(spender)
        with books.hold(request, claim, VIDEO.cost((known["usage"],)), Staying()) as hold:
            hold.attempt(_terms(), job=True)
            await hold.may_be_sent()
            hold.sending()
            await trio.sleep(ticks(self.world.rng.uniform(0.0, 0.5)))
            hold.answered(200, f"up_{request}")
            if self.world.rng.random() < 0.2:
                raise _Refused
            hold.accepted(f"up_{request}", known["usage"])
        await hold.settled()
        known["accepted"] = True
        if self.world.plan.durability != "relaxed":
            self.promised(self._account.last[request].said, f"beginning {request}")


class _Refused(Exception):
    """The provider does not take the job on."""


def _terms():
    return Terms(
        model="sandbox/video",
        provider="one",
        account="a",
        dialect="openai_chat",
        stream=False,
        price=VIDEO,
        stops_billing="no",
        visible=False,
        bounds=Bounds(input=0, output=0),
        text_bytes=0,
        dense_bytes_per_token=1,
        tokens_per_second_max=1,
    )
