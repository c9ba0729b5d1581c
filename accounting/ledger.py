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

A grant counts until its expiry is written. Expiry takes at most what is available, so that open holds always
find their money; the rest follows as they close.
"""

from bisect import insort
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final, Literal, assert_never

from attrs import define, field, frozen

from accounting import bill
from accounting.records import (
    Account,
    Attempt,
    Carry,
    CarryHead,
    Ending,
    Grant,
    GrantKind,
    Key,
    Leg,
    Mark,
    Progress,
    Record,
    Transfer,
    UsageRecord,
    Void,
    Wallet,
)
from pricing.money import AMOUNT_MAX, Pico

NEVER: Final = 2**63
"""Sorts after every expiry: a grant that does not expire is burned last."""

EXPIRY: Final = "expiry"
"""The kind of a transfer that takes what is left of an expired grant."""

_WALLET_ACCOUNTS: Final = frozenset({Account.WALLET_PAID, Account.WALLET_PROMO})


class Refusal(Exception):
    """The books say no; nothing was changed."""


class Insufficient(Refusal):
    """A hold does not fit into what is available.

    Args:
        limit: `in_flight` where the balance would do and only open holds stand in the way, else `wallet`.
        wallet: whose.
        amount: what was asked for.
        available, balance: what there is, in picos.
    """

    def __init__(
        self, limit: Literal["wallet", "in_flight"], wallet: str, amount: Pico, available: Pico, balance: Pico
    ) -> None:
        super().__init__(f"wallet {wallet}: {amount} picos do not fit into {available} available ({limit})")
        self.limit = limit
        self.wallet = wallet
        self.amount = amount
        self.available = available
        self.balance = balance
        self.shortfall = amount - available


class UnknownWallet(Refusal):
    """No wallet has this id."""

    def __init__(self, wallet: str) -> None:
        super().__init__(f"There is no wallet {wallet!r}.")
        self.wallet = wallet


class UnknownKey(Refusal):
    """No key has this id."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no key {key!r}.")
        self.key = key


class WalletFrozen(Refusal):
    """The wallet takes no new holds; open ones settle."""

    def __init__(self, wallet: str) -> None:
        super().__init__(f"Wallet {wallet!r} is frozen.")
        self.wallet = wallet


class KeyRevoked(Refusal):
    """The key was revoked while its request was on the way to its hold."""

    def __init__(self, key: str) -> None:
        super().__init__(f"Key {key!r} is revoked.")
        self.key = key


class DuplicateGrant(Refusal):
    """This payment has been credited before; `existing` is the grant that it made."""

    def __init__(self, existing: Grant) -> None:
        super().__init__(f"{existing.source_key!r} was credited before, as grant {existing.grant!r}.")
        self.existing = existing


class Contradiction(Exception):
    """Records that cannot follow on what the ledger knows: the journal is incomplete, or we are wrong."""


@define(eq=False)
class _Lot:
    """What is left of one grant."""

    grant: Grant
    left: Pico
    order: tuple[int, bool, int]
    """Soonest expiry first, promotional before paid, then as they came; replay gives the same order."""
    expiries: int = 0


@define(eq=False)
class _Purse:
    """One wallet's money."""

    wallet: Wallet
    balance: Pico = 0
    held: Pico = 0
    lots: list[_Lot] = field(factory=list)
    """In burn order; empty ones leave."""


@define(eq=False)
class _OpenHold:
    purse: _Purse
    amount: Pico
    brought: bool
    """It came with an attempt that recovery found, and goes with it; nobody will give it back."""


@define(eq=False)
class OpenAttempt:
    """An attempt without its end yet, and the last that was written about it."""

    attempt: Attempt
    progress: Progress | None = None


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


@define(eq=False)
class Ledger:
    """Who has how much. Empty at first; recovery replays the journal into it."""

    _purses: dict[str, _Purse] = field(factory=dict, init=False)
    _keys: dict[str, Key] = field(factory=dict, init=False)
    _digests: dict[str, Key] = field(factory=dict, init=False)
    _grants: dict[str, Grant] = field(factory=dict, init=False)
    _sources: dict[str, Grant] = field(factory=dict, init=False)
    _lots: dict[str, _Lot] = field(factory=dict, init=False)
    _holds: dict[str, _OpenHold] = field(factory=dict, init=False)
    _open: dict[str, OpenAttempt] = field(factory=dict, init=False)
    _expiring: list[tuple[int, str, str]] = field(factory=list, init=False)
    """A heap of (when, grant, wallet) over grants that expire and are not empty."""

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

    def balance(self, wallet: str) -> Pico:
        """What is left of a wallet's grants together. Raises `UnknownWallet`."""
        return self._purse(wallet).balance

    def held(self, wallet: str) -> Pico:
        """The sum of a wallet's open holds. Raises `UnknownWallet`."""
        return self._purse(wallet).held

    def available(self, wallet: str) -> Pico:
        """What a new hold may take. Raises `UnknownWallet`."""
        purse = self._purse(wallet)
        return purse.balance - purse.held

    def open_attempts(self) -> tuple[OpenAttempt, ...]:
        """Attempts that have neither been settled nor voided, oldest first."""
        return tuple(self._open.values())

    def holds_open(self) -> int:
        """How many requests have something set aside."""
        return len(self._holds)

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
        )

    # -- holds -------------------------------------------------------------------------------------

    def take(self, request: str, wallet: str, amount: Pico) -> None:
        """Set an amount aside for a request: checked and taken in this one step.

        Raises:
            UnknownWallet, WalletFrozen, Insufficient: nothing was taken.
            ValueError: a negative amount, or a second hold for one request.
        """
        purse = self._purse(wallet)
        if purse.wallet.frozen:
            raise WalletFrozen(wallet)
        if amount < 0 or request in self._holds:
            raise ValueError(f"request {request}: cannot hold {amount} (again)")
        available = purse.balance - purse.held
        if amount > available:
            limit: Literal["wallet", "in_flight"] = "in_flight" if amount <= purse.balance else "wallet"
            raise Insufficient(limit, wallet, amount, max(available, 0), purse.balance)
        purse.held += amount
        self._holds[request] = _OpenHold(purse, amount, brought=False)

    def give_back(self, request: str) -> None:
        """Close a request's hold; what was charged has left the balance already. Nothing if there is none."""
        hold = self._holds.pop(request, None)
        if hold is not None:
            hold.purse.held -= hold.amount

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

    def burn(self, wallet: str, amount: Pico) -> tuple[Leg, ...]:
        """Say which grants pay a charge: soonest expiry first, promotional before paid. Changes nothing."""
        legs = []
        due = amount
        for lot in self._purse(wallet).lots if due else ():
            part = min(lot.left, due)
            legs.append(Leg(lot.grant.grant, part))
            due -= part
            if not due:
                break
        if due:
            raise Contradiction(f"wallet {wallet}: a charge of {amount} picos has {due} more than all grants")
        return tuple(legs)

    def expire_due(self, now_ms: int, wallet: str | None = None) -> list[Transfer]:
        """Say what expires now, of one wallet or all: the records to write and then apply, in this order.

        A grant that open holds lean on shrinks by what is available; ask again when they have closed.
        """
        if wallet is not None:
            return list(self._expiries(self._purse(wallet), now_ms))
        due = []
        while self._expiring and self._expiring[0][0] <= now_ms:
            entry = heappop(self._expiring)
            if entry[1] in self._lots:
                due.append(entry)
        for entry in due:  # they leave the heap for good once a record has emptied them
            heappush(self._expiring, entry)
        purses = dict.fromkeys(entry[2] for entry in due)
        return [transfer for name in purses for transfer in self._expiries(self._purses[name], now_ms)]

    def settle_recovered(self, attempt: Attempt, progress: Progress | None, now_ms: int) -> UsageRecord:
        """Settle an attempt that a dead process left open, at its last progress, and apply it.

        Returns:
            The record, for the journal. `replay` is not to be called with it.
        """
        charge = bill.recovered(progress)
        charged = min(charge.price, attempt.hold)
        record = UsageRecord(
            request=attempt.request,
            number=attempt.number,
            wallet=attempt.wallet,
            key=attempt.key,
            model=attempt.model,
            provider=attempt.provider,
            account=attempt.account,
            dialect=attempt.dialect,
            stream=attempt.stream,
            outcome=Ending.KILLED,
            status=0,
            source=charge.source,
            usage=charge.usage,
            price_version=attempt.price_version,
            markup_ppm=attempt.markup_ppm,
            held=attempt.hold,
            price=charge.price,
            charged=charged,
            cost=charge.cost,
            loss=charge.price - charged,
            currency=self._purse(attempt.wallet).wallet.currency,
            started_ms=attempt.at_ms,
            ended_ms=max(now_ms, attempt.at_ms),
            legs=self.burn(attempt.wallet, charged),
            flags=charge.flags,
        )
        self.apply_settled(record)
        return record

    # -- records -----------------------------------------------------------------------------------

    def apply(self, record: Record) -> None:  # noqa: C901 - one arm per kind of record
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

    def apply_attempt(self, attempt: Attempt) -> None:
        """A: it is open from now on. Without a hold of its request (recovery) it brings it along."""
        request = attempt.request
        if request in self._open:
            raise Contradiction(f"request {request}: attempt {attempt.number} begins while another is open")
        if request not in self._holds:
            purse = self._known_purse(attempt.wallet, f"attempt of request {request}")
            purse.held += attempt.hold
            self._holds[request] = _OpenHold(purse, attempt.hold, brought=True)
        self._open[request] = OpenAttempt(attempt)

    def apply_progress(self, progress: Progress) -> None:
        """P: the newest replaces what was known."""
        self._opened(progress.request, progress.number).progress = progress

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
        if paid != record.charged or paid > opened.attempt.hold:
            raise _misfit(record, f"its grants paid {paid}, and {opened.attempt.hold} was held")
        purse = self._purses[record.wallet]
        for leg in record.legs:
            self._shrink(purse, self._lots[leg.grant], leg.amount)
        self._close(record.request, record.number)

    def _apply_grant(self, grant: Grant) -> None:
        purse = self._known_purse(grant.wallet, f"grant {grant.grant}")
        if grant.grant in self._grants or grant.source_key in self._sources:
            raise Contradiction(f"grant {grant.grant}: {grant.source_key!r} is credited a second time")
        expires = NEVER if grant.expires_ms is None else grant.expires_ms
        order = (expires, grant.kind is not GrantKind.PROMO, len(self._grants))
        lot = _Lot(grant, grant.amount, order)
        self._grants[grant.grant] = self._sources[grant.source_key] = grant
        self._lots[grant.grant] = lot
        insort(purse.lots, lot, key=lambda one: one.order)
        purse.balance += grant.amount
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
        self._shrink(purse, lot, transfer.amount)

    def _apply_wallet(self, wallet: Wallet) -> None:
        purse = self._purses.get(wallet.wallet)
        if purse is None:
            self._purses[wallet.wallet] = _Purse(wallet)
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
        opened.progress = carry.progress

    # -- inside ------------------------------------------------------------------------------------

    def _purse(self, wallet: str) -> _Purse:
        try:
            return self._purses[wallet]
        except KeyError:
            raise UnknownWallet(wallet) from None

    def _known_purse(self, wallet: str, what: str) -> _Purse:
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
        hold = self._holds.get(request)
        if hold is not None and hold.brought:
            self.give_back(request)

    def _shrink(self, purse: _Purse, lot: _Lot, amount: Pico) -> None:
        lot.left -= amount
        purse.balance -= amount
        if lot.left == 0:
            purse.lots.remove(lot)
            del self._lots[lot.grant.grant]

    def _expiries(self, purse: _Purse, now_ms: int) -> Iterator[Transfer]:
        available = purse.balance - purse.held
        for lot in purse.lots:
            if lot.order[0] > now_ms or available <= 0:
                return
            amount = min(lot.left, available)
            available -= amount
            paid = lot.grant.kind is GrantKind.PAID
            yield Transfer(
                transfer=f"{lot.grant.grant}.x{lot.expiries + 1}",
                wallet=purse.wallet.wallet,
                debit=Account.WALLET_PAID if paid else Account.WALLET_PROMO,
                credit=Account.BREAKAGE,
                amount=amount,
                currency=purse.wallet.currency,
                kind=EXPIRY,
                ref=lot.grant.source_key,
                at_ms=now_ms,
                grant=lot.grant.grant,
            )


def _misfit(record: UsageRecord, because: str) -> Contradiction:
    return Contradiction(
        f"request {record.request}, attempt {record.number}, charged {record.charged}: {because}"
    )
