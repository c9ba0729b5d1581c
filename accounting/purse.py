"""One wallet's money: what is left of its grants, in the order in which they burn, and how much of it is held.

Soonest expiry first, promotional before paid. A grant counts until its expiry is written; expiry takes at most
what is available, so that open holds always find their money, and the rest follows as they close.
"""

from bisect import insort
from collections.abc import Iterator
from typing import Final

from attrs import define, field

from accounting.records import Account, Grant, GrantKind, Leg, Transfer, Wallet
from accounting.refusals import Contradiction
from pricing.money import Pico

NEVER: Final = 2**63
"""Sorts after every expiry: a grant that does not expire is burned last."""

EXPIRY: Final = "expiry"
"""The kind of a transfer that takes what is left of an expired grant."""


@define(eq=False)
class Lot:
    """What is left of one grant."""

    grant: Grant
    left: Pico
    order: tuple[int, bool, int]
    """Expiry, paid or not, and then as they came; replay gives the same order."""
    expiries: int = 0


@define(eq=False)
class Purse:
    """One wallet's money.

    Attributes:
        balance: the sum of what is left of its grants.
        held: the sum of its open holds.
        lots: its grants in burn order; empty ones leave.
    """

    wallet: Wallet
    balance: Pico = 0
    held: Pico = 0
    lots: list[Lot] = field(factory=list)

    @property
    def available(self) -> Pico:
        """What a new hold may take."""
        return self.balance - self.held

    def put(self, grant: Grant, place: int) -> Lot:
        """Money came in; `place` counts all grants ever, so that equals burn as they came."""
        expires = NEVER if grant.expires_ms is None else grant.expires_ms
        lot = Lot(grant, grant.amount, (expires, grant.kind is not GrantKind.PROMO, place))
        insort(self.lots, lot, key=lambda one: one.order)
        self.balance += grant.amount
        return lot

    def take(self, lot: Lot, amount: Pico) -> bool:
        """Money goes out of one grant, that has so much left; says whether it is empty now, and gone."""
        lot.left -= amount
        self.balance -= amount
        if lot.left:
            return False
        self.lots.remove(lot)
        return True

    def burn(self, amount: Pico) -> tuple[Leg, ...]:
        """Say which grants pay a charge. Changes nothing."""
        legs = []
        due = amount
        for lot in self.lots if due else ():
            part = min(lot.left, due)
            legs.append(Leg(lot.grant.grant, part))
            due -= part
            if not due:
                break
        if due:
            raise Contradiction(
                f"wallet {self.wallet.wallet}: a charge of {amount} picos has {due} more than all grants"
            )
        return tuple(legs)

    def expiries(self, now_ms: int) -> Iterator[Transfer]:
        """Say what expires now, as far as open holds allow. Changes nothing."""
        available = self.available
        for lot in self.lots:
            if lot.order[0] > now_ms or available <= 0:
                return
            amount = min(lot.left, available)
            available -= amount
            paid = lot.grant.kind is GrantKind.PAID
            yield Transfer(
                transfer=f"{lot.grant.grant}.x{lot.expiries + 1}",
                wallet=self.wallet.wallet,
                debit=Account.WALLET_PAID if paid else Account.WALLET_PROMO,
                credit=Account.BREAKAGE,
                amount=amount,
                currency=self.wallet.currency,
                kind=EXPIRY,
                ref=lot.grant.source_key,
                at_ms=now_ms,
                grant=lot.grant.grant,
            )
