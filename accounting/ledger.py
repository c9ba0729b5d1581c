"""Balances in memory: every decision about money, in plain synchronous code that knows no clock and no disk.

Three steps, always in this order and never with an await between them: the ledger *decides* (what a
record must say, or that it is refused), the caller *writes* the record into the journal, the ledger
*applies* it. Recovery applies the same records in the same order, so what is in memory after a crash is
by construction what was there before. Only the hold of a request lives outside the records: `take` and
`give_back` open and close it, and an attempt that recovery finds open brings it along.

What holds at every instant, for every wallet:

    balance   = Σ what is left of its grants
    held      = Σ open holds
    available = balance - held >= 0
    settled   <= hold, for every attempt

The cap of a key, the budget of a task and the most that a request may cost are rooms of the same kind: a hold
must fit into each of them when it is taken, and when it grows.
"""

from heapq import heappop, heappush
from typing import Final, assert_never

from attrs import define, field, frozen
from msgspec import Struct

from accounting import bill
from accounting.claims import Claim, Claims, Room
from accounting.purse import Lot, Purse
from accounting.records import (
    Account,
    Attempt,
    Carry,
    CarryHead,
    Ending,
    Extension,
    Grant,
    Job,
    Key,
    Mark,
    Progress,
    Record,
    Spender,
    Transfer,
    UsageRecord,
    Void,
    Wallet,
)
from accounting.refusals import (
    Contradiction,
    DuplicateGrant,
    UnknownKey,
    UnknownWallet,
)
from accounting.spending import Budget, Spending, Task
from pricing.money import AMOUNT_MAX, Pico

_WALLET_ACCOUNTS: Final = frozenset({Account.WALLET_PAID, Account.WALLET_PROMO})


class OpenAttempt(Struct, eq=False, gc=False):
    """An attempt without its end yet, and the last that was written about it; `hold` is what is set aside.

    A struct, since one is made for each attempt.
    """

    attempt: Attempt
    hold: Pico
    progress: Progress | None = None
    job: Job | None = None


@frozen
class WalletState:
    """One wallet at one instant; `grants` are (id, what is left) in burn order."""

    wallet: Wallet
    balance: Pico
    held: Pico
    grants: tuple[tuple[str, Pico], ...]

    @property
    def available(self) -> Pico:
        """What a new hold may take."""
        return self.balance - self.held


@frozen
class State:
    """The whole ledger at one instant, as values: for `verify`, and to compare two ledgers."""

    wallets: tuple[WalletState, ...]
    keys: tuple[Key, ...]
    open_attempts: tuple[tuple[Attempt, Progress | None], ...]
    holds: tuple[Pico, ...] = ()
    """What is set aside for each of the open attempts."""


@define(eq=False)
class Ledger:
    """Who has how much. Empty at first; recovery replays the journal into it."""

    _purses: dict[str, Purse] = field(factory=dict, init=False)
    _keys: dict[str, Key] = field(factory=dict, init=False)
    _digests: dict[str, Key] = field(factory=dict, init=False)
    _grants: dict[str, Grant] = field(factory=dict, init=False)
    _sources: dict[str, Grant] = field(factory=dict, init=False)
    _lots: dict[str, Lot] = field(factory=dict, init=False)
    _open: dict[str, OpenAttempt] = field(factory=dict, init=False)
    _spending: Spending = field(factory=Spending, init=False)
    _claims: Claims = field(init=False)
    _expiring: list[tuple[int, str, str]] = field(factory=list, init=False)
    """A heap of (when, grant, wallet) over grants that expire and are not empty."""

    @_claims.default
    def _claims_default(self) -> Claims:
        return Claims(self._purses, self._keys, self._spending)

    # -- what others may ask -----------------------------------------------------------------------

    def wallets(self) -> tuple[Wallet, ...]:
        """Every wallet, in the order in which they were made."""
        return tuple(purse.wallet for purse in self._purses.values())

    def wallet(self, wallet: str) -> Wallet:
        """One wallet. Raises `UnknownWallet`."""
        return self._purse(wallet).wallet

    def keys(self) -> tuple[Key, ...]:
        """Every key, revoked ones too, in the order in which they were made."""
        return tuple(self._keys.values())

    def key(self, key: str) -> Key:
        """One key by its id. Raises `UnknownKey`."""
        try:
            return self._keys[key]
        except KeyError:
            raise UnknownKey(key) from None

    def key_by_digest(self, digest: str) -> Key | None:
        """The key with this SHA-256 in hex, revoked or not."""
        return self._digests.get(digest)

    def grants(self, wallet: str) -> tuple[tuple[Grant, Pico], ...]:
        """What is left of a wallet's grants, in the order in which they burn. Raises `UnknownWallet`."""
        return tuple((lot.grant, lot.left) for lot in self._purse(wallet).lots)

    def grant_by_source(self, source_key: str) -> Grant | None:
        """The grant that this payment made, spent or not."""
        return self._sources.get(source_key)

    def standing(self, wallet: str) -> tuple[Pico, Pico, str]:
        """What is left of a wallet's grants, what of it is held, and in which currency. Raises `UnknownWallet`."""
        purse = self._purses.get(wallet) or self._purse(wallet)
        return purse.balance, purse.held, purse.wallet.currency

    def balance(self, wallet: str) -> Pico:
        """What is left of a wallet's grants together. Raises `UnknownWallet`."""
        return self._purse(wallet).balance

    def held(self, wallet: str) -> Pico:
        """The sum of a wallet's open holds. Raises `UnknownWallet`."""
        return self._purse(wallet).held

    def available(self, wallet: str) -> Pico:
        """What a new hold may take. Raises `UnknownWallet`."""
        return self._purse(wallet).available

    def open_attempts(self) -> tuple[OpenAttempt, ...]:
        """Attempts that have neither been settled nor voided, oldest first."""
        return tuple(self._open.values())

    def holds_open(self) -> int:
        """How many requests have something set aside."""
        return len(self._claims)

    def state(self) -> State:
        """Everything, as values that no later change touches."""
        return State(
            tuple(
                WalletState(
                    purse.wallet,
                    purse.balance,
                    purse.held,
                    tuple((lot.grant.grant, lot.left) for lot in purse.lots),
                )
                for purse in self._purses.values()
            ),
            tuple(self._keys.values()),
            tuple((opened.attempt, opened.progress) for opened in self._open.values()),
            tuple(opened.hold for opened in self._open.values()),
        )

    def spent_within_cap(self, key: str, at_ms: int) -> tuple[Pico, Pico]:
        """What a key has spent and holds in the window of its cap. Raises `UnknownKey`."""
        return self._spending.within_cap(self.key(key), at_ms)

    def task(self, wallet: str, budget: str, at_ms: int) -> Task | None:
        """What a task may spend and has spent, if it is remembered."""
        return self._spending.task(wallet, budget, at_ms)

    def empties(self, key: str, at_ms: int) -> int:
        """How many completions of a key were free on that day for being empty."""
        return self._spending.empties(key, at_ms)

    # -- holds -------------------------------------------------------------------------------------

    def rooms(self, claim: Claim) -> list[Room]:
        """Every limit that a hold has to fit into, with what it leaves. Raises `UnknownWallet`."""
        return self._claims.rooms(claim)

    def available_to(self, claim: Claim) -> Pico:
        """What a new hold may take, under all limits together. Raises `UnknownWallet`."""
        return self._claims.available_to(claim)

    def take(self, request: str, claim: Claim, amount: Pico) -> None:
        """Set an amount aside for a request: checked and taken in this one step. Raises as `Claims.take`."""
        self._claims.take(request, claim, amount)

    def check_extension(self, request: str, amount: Pico) -> None:
        """Refuse to set so much aside in all for a request. Raises as `Claims.check_extension`."""
        self._claims.check_extension(request, amount)

    def keep(self, request: str) -> None:
        """Leave a hold with its open attempt, a job: it closes when that is settled or void."""
        hold = self._claims.of(request)
        if hold is not None:
            hold.stays = True

    def give_back(self, request: str) -> None:
        """Close a request's hold; what was charged has left the balance already. Nothing if there is none."""
        self._claims.give_back(request)

    # -- decisions ---------------------------------------------------------------------------------

    def create_wallet(self, wallet: Wallet) -> Wallet:
        """Check and apply a new wallet. Raises ValueError if the id is taken."""
        self.check_wallet(wallet)
        self.apply(wallet)
        return wallet

    def put_key(self, key: Key) -> Key:
        """Check and apply a key, new or changed. Raises like `check_key`."""
        self.check_key(key)
        self.apply(key)
        return key

    def grant(self, grant: Grant) -> Grant:
        """Check and apply a grant. Raises like `check_grant`."""
        self.check_grant(grant)
        self.apply(grant)
        return grant

    def check_wallet(self, wallet: Wallet) -> None:
        """Refuse a new wallet whose id is taken (ValueError)."""
        if wallet.wallet in self._purses:
            raise ValueError(f"wallet {wallet.wallet!r} exists")

    def check_key(self, key: Key, *, new: bool = False) -> None:
        """Refuse a key that cannot stand.

        Raises:
            UnknownWallet: it opens nothing.
            ValueError: its id is taken (by another wallet's key or, for a new one, by any), its digest is
                another key's, or it is revoked for good.
        """
        self._purse(key.wallet)
        known = self._keys.get(key.key)
        if known is not None and new:
            raise ValueError(f"key {key.key!r} exists")
        if known is not None and known.wallet != key.wallet:
            raise ValueError(f"key {key.key!r} belongs to another wallet")
        if known is not None and known.revoked and not key.revoked:
            raise ValueError(f"key {key.key!r} is revoked; make a new one")
        holder = self._digests.get(key.digest)
        if holder is not None and holder.key != key.key:
            raise ValueError(f"key {key.key!r} has the digest of key {holder.key!r}")

    def check_grant(self, grant: Grant) -> None:
        """Refuse a grant that cannot stand.

        Raises:
            UnknownWallet: nobody to give it to.
            DuplicateGrant: its source was credited before.
            ValueError: no positive amount, too large, already expired, or an id that is taken.
        """
        self._purse(grant.wallet)
        existing = self._sources.get(grant.source_key)
        if existing is not None:
            raise DuplicateGrant(existing)
        if not 0 < grant.amount <= AMOUNT_MAX:
            raise ValueError(
                f"amount: expected more than 0 and at most {AMOUNT_MAX} picos, not {grant.amount}"
            )
        if grant.expires_ms is not None and grant.expires_ms <= grant.at_ms:
            raise ValueError("expires: expected a time in the future")
        if grant.grant in self._grants:
            raise ValueError(f"grant {grant.grant!r} exists")

    @property
    def may_expire(self) -> bool:
        """Some grant of some wallet has an end."""
        return bool(self._expiring)

    def expire_due(self, now_ms: int, wallet: str | None = None) -> list[Transfer]:
        """Say what expires now, of one wallet or all: the records to write and then apply, in this order.

        A grant that open holds lean on shrinks by what is available; ask again when they have closed.
        """
        if wallet is not None:
            return list(self._purse(wallet).expiries(now_ms))
        due = []
        while self._expiring and self._expiring[0][0] <= now_ms:
            entry = heappop(self._expiring)
            if entry[1] in self._lots:
                due.append(entry)
        for entry in due:  # they leave the heap for good once a record has emptied them
            heappush(self._expiring, entry)
        purses = dict.fromkeys(entry[2] for entry in due)
        return [transfer for name in purses for transfer in self._purses[name].expiries(now_ms)]

    def settlement(
        self,
        opened: OpenAttempt,
        made: bill.Bill,
        ending: Ending,
        now_ms: int,
        *,
        status: int = 0,
        first_byte_ms: int | None = None,
        upstream_id: str | None = None,
    ) -> UsageRecord:
        """Make out S for an attempt: what its bill comes to under its hold, and which grants pay. Changes nothing.

        Args:
            opened: the attempt, as `open_attempts` has it.
            made: what it costs.
            ending: how it ended.
            now_ms: wall clock.
            status: of the provider's answer.
            first_byte_ms: when its first byte was relayed.
            upstream_id: what the provider calls it.
        """
        attempt = opened.attempt
        purse = self._purses.get(attempt.wallet) or self._purse(attempt.wallet)
        price, held = made.price, opened.hold
        charged = min(price, held)
        return UsageRecord(  # by place: 29 names would take ten times as long
            attempt.request,
            attempt.number,
            attempt.wallet,
            attempt.key,
            attempt.model,
            attempt.provider,
            attempt.account,
            attempt.dialect,
            attempt.stream,
            ending,
            status,
            made.source,
            made.usage,
            attempt.price_version,
            attempt.markup_ppm,
            held,
            price,
            charged,
            made.cost,
            price - charged,
            purse.wallet.currency,
            attempt.at_ms,
            max(attempt.at_ms, now_ms),
            first_byte_ms,
            made.legs if len(made.legs) > 1 else (),
            purse.burn(charged),
            (*made.flags, "beyond_hold") if price > charged else made.flags,
            upstream_id,
            attempt.budget,
        )

    def settle_recovered(self, opened: OpenAttempt, now_ms: int) -> UsageRecord:
        """Settle a call that a dead process left open, at its last progress, and apply it.

        Returns:
            The record, for the journal. `replay` is not to be called with it.
        """
        record = self.settlement(opened, bill.recovered(opened.progress), Ending.KILLED, now_ms)
        self.apply_settled(record)
        return record

    # -- records -----------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:  # noqa: C901, PLR0912 - one arm per kind of record
        """Take in one record, live (just written) or while recovering (in order of seq).

        Raises:
            Contradiction: it cannot follow on what is known; nothing was changed.
        """
        match record:
            case Attempt():
                self.apply_attempt(record)
            case UsageRecord():
                self.apply_settled(record)
            case Progress():
                self.apply_progress(record)
            case Extension():
                self.apply_extension(record)
            case Job():
                self._opened(record.request, record.number).job = record
            case Void():
                self._close(record.request, record.number)
            case Grant():
                self._apply_grant(record)
            case Transfer():
                self._apply_transfer(record)
            case Wallet():
                self._apply_wallet(record)
            case Key():
                self._apply_key(record)
            case Carry():
                self._apply_carry(record)
            case Mark() | CarryHead():
                pass  # about the journal itself
            case _:
                assert_never(record)

    def replay(self, record: Record) -> None:
        """Apply one journal line while recovering, in order of seq. See `apply`."""
        self.apply(record)

    def apply_attempt(self, attempt: Attempt) -> OpenAttempt:
        """A: it is open from now on. Without a hold of its request (recovery) it brings it along."""
        request = attempt.request
        if request in self._open:
            raise Contradiction(f"request {request}: attempt {attempt.number} begins while another is open")
        hold = self._claims.of(request)
        if hold is None:
            self._known_purse(attempt.wallet, f"attempt of request {request}")
            budget = Budget(attempt.budget, attempt.budget_max) if attempt.budget else None
            claim = Claim(Spender(attempt.wallet, attempt.key), attempt.hold_ms or attempt.at_ms, budget)
            hold = self._claims.open(request, claim, attempt.hold)
            hold.stays = True
        hold.recorded(attempt.budget_max)
        opened = self._open[request] = OpenAttempt(attempt, attempt.hold)
        return opened

    def apply_progress(self, progress: Progress) -> None:
        """P: the newest replaces what was known."""
        self._opened(progress.request, progress.number).progress = progress

    def apply_extension(self, extension: Extension) -> None:
        """X: what is set aside for the request changes."""
        opened = self._opened(extension.request, extension.number)
        self._resize(opened, extension.hold)

    def apply_settled(self, record: UsageRecord) -> None:
        """S: the legs leave their grants, the attempt is closed."""
        opened = self._opened(record.request, record.number)
        paid = 0
        for leg in record.legs:
            lot = self._lots.get(leg.grant)
            if lot is None or not 0 < leg.amount <= lot.left or lot.grant.wallet != record.wallet:
                raise _misfit(record, f"grant {leg.grant!r} cannot pay {leg.amount}")
            paid += leg.amount
        if len(record.legs) > 1 and len({leg.grant for leg in record.legs}) < len(record.legs):
            raise _misfit(record, "a grant is named twice")
        if opened.attempt.wallet != record.wallet:
            raise _misfit(record, f"it began for wallet {opened.attempt.wallet!r}")
        if paid != record.charged or paid > opened.hold:
            raise _misfit(record, f"its grants paid {paid}, and {opened.hold} was held")
        purse = self._purses[record.wallet]
        for leg in record.legs:
            if purse.take(self._lots[leg.grant], leg.amount):
                del self._lots[leg.grant]
        del self._open[record.request]
        hold = self._claims.of(record.request)
        if hold is not None:
            hold.spent(record.charged, record.flags)
            if hold.stays:
                self.give_back(record.request)

    def _apply_grant(self, grant: Grant) -> None:
        purse = self._known_purse(grant.wallet, f"grant {grant.grant}")
        if grant.grant in self._grants or grant.source_key in self._sources:
            raise Contradiction(f"grant {grant.grant}: {grant.source_key!r} is credited a second time")
        self._lots[grant.grant] = purse.put(grant, len(self._grants))
        self._grants[grant.grant] = self._sources[grant.source_key] = grant
        if grant.expires_ms is not None:
            heappush(self._expiring, (grant.expires_ms, grant.grant, grant.wallet))

    def _apply_transfer(self, transfer: Transfer) -> None:
        if transfer.debit not in _WALLET_ACCOUNTS and transfer.credit not in _WALLET_ACCOUNTS:
            return  # between accounts that are not a wallet's
        purse = self._known_purse(transfer.wallet, f"transfer {transfer.transfer}")
        lot = self._lots.get(transfer.grant or "")
        if (
            transfer.credit in _WALLET_ACCOUNTS  # money comes in by grants alone
            or lot is None
            or lot.grant.wallet != transfer.wallet
            or not 0 < transfer.amount <= lot.left
        ):
            raise Contradiction(
                f"transfer {transfer.transfer}: {transfer.amount} picos do not fit grant {transfer.grant!r}"
            )
        lot.expiries += 1
        if purse.take(lot, transfer.amount):
            del self._lots[lot.grant.grant]

    def _apply_wallet(self, wallet: Wallet) -> None:
        purse = self._purses.get(wallet.wallet)
        if purse is None:
            self._purses[wallet.wallet] = Purse(wallet)
        elif purse.wallet.currency != wallet.currency:
            raise Contradiction(f"wallet {wallet.wallet}: its currency cannot change")
        else:
            purse.wallet = wallet

    def _apply_key(self, key: Key) -> None:
        self._known_purse(key.wallet, f"key {key.key}")
        known = self._keys.get(key.key)
        if known is not None:
            self._digests.pop(known.digest, None)
        self._keys[key.key] = self._digests[key.digest] = key

    def _apply_carry(self, carry: Carry) -> None:
        """C repeats an open attempt at the head of a segment; news only where the older segments are gone."""
        opened = self._open.get(carry.attempt.request)
        if opened is None:
            self.apply_attempt(carry.attempt)
            opened = self._open[carry.attempt.request]
        elif opened.attempt != carry.attempt:
            raise Contradiction(f"request {carry.attempt.request}: carried otherwise than it began")
        opened.progress, opened.job = carry.progress, carry.job
        if carry.hold is not None and carry.hold != opened.hold:
            self._resize(opened, carry.hold)

    # -- inside ------------------------------------------------------------------------------------

    def _purse(self, wallet: str) -> Purse:
        try:
            return self._purses[wallet]
        except KeyError:
            raise UnknownWallet(wallet) from None

    def _known_purse(self, wallet: str, what: str) -> Purse:
        purse = self._purses.get(wallet)
        if purse is None:
            raise Contradiction(f"{what}: there is no wallet {wallet!r}")
        return purse

    def _opened(self, request: str, number: int) -> OpenAttempt:
        opened = self._open.get(request)
        if opened is None or opened.attempt.number != number:
            raise Contradiction(f"request {request}: attempt {number} is not open")
        return opened

    def _close(self, request: str, number: int) -> None:
        self._opened(request, number)
        del self._open[request]
        hold = self._claims.of(request)
        if hold is not None and hold.stays:
            self.give_back(request)

    def _resize(self, opened: OpenAttempt, amount: Pico) -> None:
        opened.hold = amount
        hold = self._claims.of(opened.attempt.request)
        if hold is not None:
            hold.resize(amount)


def _misfit(record: UsageRecord, because: str) -> Contradiction:
    return Contradiction(
        f"request {record.request}, attempt {record.number}, charged {record.charged}: {because}"
    )
