"""Books: the ledger and its journal as one; what the rest of the house asks about money, and where it changes.

What is awaited here is durability alone: wallets, keys and credit answer only when they are on the platter.
"""

from attrs import define
from msgspec.structs import replace

from accounting.bill import Bill
from accounting.claims import Claim
from accounting.hold import Hold
from accounting.ledger import OpenAttempt
from accounting.pen import Pen
from accounting.ports import Balance, Client, Snapshot
from accounting.records import (
    Ending,
    Grant,
    GrantKind,
    Key,
    Spender,
    UsageRecord,
    Void,
    Wallet,
)
from accounting.refusals import DuplicateGrant
from accounting.spending import Budget
from pricing.money import Pico
from pricing.usage import Source


@define(eq=False)
class Books(Pen):
    """What the rest of the house asks about money, and the only way to change it."""

    def claim(self, spender: Spender, budget: Budget | None = None, max_cost: Pico | None = None) -> Claim:
        """For whom, and within which bounds, something is to be set aside now."""
        return Claim(spender, self.clock(), budget, max_cost)

    def hold(self, request: str, claim: Claim, amount: Pico, client: Client) -> Hold:
        """Set credit aside for a request; zero is legal (free calls).

        Raises:
            Insufficient, WalletFrozen, KeyRevoked, UnknownWallet, UnknownTask, TooManyTasks: nothing was set
                aside.
        """
        self.ledger.take(request, claim, amount)
        return Hold(self, request, claim, amount, client)

    def balance(self, wallet: str) -> Balance:
        """What a wallet has. Raises `UnknownWallet`."""
        balance, held, currency = self.ledger.standing(wallet)
        return Balance(balance, held, balance - held if balance > held else 0, currency)

    def available_to(self, claim: Claim) -> Pico:
        """What a new hold may take, under all limits together. Raises `UnknownWallet`."""
        return self.ledger.available_to(claim)

    def snapshot(self) -> Snapshot:
        """Ledger and seq in one synchronous step, to compare the store with once it is loaded so far."""
        return Snapshot(self.seq, self.ledger.state())

    async def create_wallet(self, name: str, currency: str = "USD") -> Wallet:
        """Make a wallet; returns once it is durable. Raises `Overloaded`."""
        wallet = Wallet(self.new_id("wallet"), name, currency, self.clock())
        self.ledger.check_wallet(wallet)
        await self.writer.durable(self.put_down(wallet))
        return wallet

    async def freeze_wallet(self, wallet: str, *, frozen: bool = True) -> Wallet:
        """Freeze or thaw a wallet; open holds settle in any case. Returns once it is durable."""
        changed = replace(self.ledger.wallet(wallet), frozen=frozen, at_ms=self.clock())
        await self.writer.durable(self.put_down(changed))
        self.freed(wallet)
        return changed

    async def top_up(
        self, wallet: str, amount: Pico, kind: GrantKind, source_key: str, expires_ms: int | None = None
    ) -> tuple[Grant, bool]:
        """Grant credit once per `source_key`; returns once it is durable.

        Returns:
            The grant, and whether this source had been credited before (then nothing was done; its wallet and
            amount may be others than asked for).

        Raises:
            UnknownWallet, ValueError, Overloaded: nothing was granted.
        """
        grant = Grant(self.new_id("grant"), wallet, amount, kind, source_key, self.clock(), expires_ms)
        try:
            self.ledger.check_grant(grant)
        except DuplicateGrant as duplicate:
            await self.writer.durable(self.seq)  # the first of the two may still be on its way to the platter
            return duplicate.existing, True
        seq = self.put_down(grant)
        self.freed(wallet)
        await self.writer.durable(seq)
        return grant, False

    async def create_key(self, key: Key) -> Key:
        """Make a key; returns once it is durable. Raises `UnknownWallet`, ValueError, `Overloaded`."""
        return await self._put_key(key, new=True)

    async def change_key(self, key: Key) -> Key:
        """Replace what is known of a key, whole. Raises `UnknownKey` and as `create_key`."""
        self.ledger.key(key.key)
        changed = await self._put_key(key)
        self.freed(key.wallet)
        return changed

    async def revoke_key(self, key: str) -> Key:
        """Refuse a key from now on; returns once that is durable. Raises `UnknownKey`, `Overloaded`."""
        return await self._put_key(replace(self.ledger.key(key), revoked=True, at_ms=self.clock()))

    def jobs(self) -> tuple[OpenAttempt, ...]:
        """Work that providers have taken on and that is not settled yet, oldest first: for its watchers."""
        return tuple(opened for opened in self.ledger.open_attempts() if opened.job is not None)

    def settle_job(self, request: str, *, finished: bool) -> UsageRecord | Void:
        """Settle a job, once: at the price known beforehand if it finished, else void. Say so when durable.

        Raises:
            LookupError: no such job is open; it was settled before.
            Overloaded: there is no room; try again.
        """
        opened = next((one for one in self.jobs() if one.attempt.request == request), None)
        if opened is None or opened.job is None:
            raise LookupError(f"no job of request {request} is open")
        job, attempt = opened.job, opened.attempt
        record: UsageRecord | Void
        if finished:
            made = Bill((job.usage,), Source.REPORTED, job.cost, job.list_cost)
            record = self.ledger.settlement(
                opened, made, Ending.COMPLETE, self.clock(), status=200, upstream_id=job.job
            )
        else:
            record = Void(request, attempt.number, self.clock(), "failed")
        self.put_down(record)
        self.freed(attempt.wallet)
        return record

    async def _put_key(self, key: Key, *, new: bool = False) -> Key:
        self.ledger.check_key(key, new=new)
        await self.writer.durable(self.put_down(key))
        return key
