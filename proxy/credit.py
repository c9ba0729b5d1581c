"""Credit for one request: set aside the most that it can cost, or refuse with a 402 that says why."""

from typing import Any

from accounting.hold import Books, Hold, Overloaded
from accounting.ledger import Insufficient, KeyRevoked, UnknownWallet, WalletFrozen
from pricing.money import micro_up
from proxy.errors import Kind, Rejected
from proxy.gateway import Gateway
from proxy.types import Caller, Offer, Path, Reply


def check(books: Books, caller: Caller, path: Path) -> None:
    """Refuse early, before the body is read, where nothing at all is available; counting tokens is free.

    Raises:
        Rejected: 402, or 403 for a frozen wallet.
    """
    if path.action == "count":
        return
    try:
        balance = books.balance(caller.spender.wallet)
    except UnknownWallet as error:
        raise _closed(error) from error
    if balance.available > 0:
        return
    in_flight = balance.balance > 0
    raise Rejected(
        Kind.NO_CREDIT,
        "Other requests of this wallet hold all its credit; try again when they are done."
        if in_flight
        else "This wallet has no credit left.",
        metadata={"limit": "in_flight" if in_flight else "wallet"},
    )


def hold(gateway: Gateway, request_id: str, caller: Caller, offers: tuple[Offer, ...], reply: Reply) -> Hold:
    """Set aside what the dearest of the offers can cost.

    Raises:
        Rejected: 402 with the shortfall and what would be affordable, 403 for a frozen wallet or a revoked
            key, 503 while the books take nothing on.
    """
    amount = gateway.router.ceiling(offers)
    try:
        return gateway.books.hold(request_id, caller.spender, amount, reply)
    except Insufficient as error:
        raise _too_little(gateway, offers, error) from error
    except (UnknownWallet, WalletFrozen, KeyRevoked) as error:
        raise _closed(error) from error
    except Overloaded as error:
        raise overloaded(error) from error


def overloaded(error: Overloaded) -> Rejected:
    """Say that the books take nothing on for now."""
    return Rejected(
        Kind.OVERLOADED,
        "The accounting can take no more requests for now.",
        retry_after_seconds=error.retry_after_seconds,
    )


def _too_little(gateway: Gateway, offers: tuple[Offer, ...], error: Insufficient) -> Rejected:
    affordable = gateway.router.affordable_output(offers, error.available)
    shortfall = micro_up(error.shortfall)
    metadata: dict[str, Any] = {
        "limit": error.limit,
        "shortfall_micro": shortfall,
        "affordable_max_tokens": affordable,
        "top_up_url": gateway.config.pricing.top_up_url,
    }
    if error.limit == "in_flight":
        message = (
            "Other requests of this wallet hold the credit that this one needs; try again when they are done."
        )
    elif affordable:
        message = f"The credit does not suffice for this request; up to {affordable} output tokens would fit."
    else:
        message = "The credit does not suffice for this request."
    return Rejected(
        Kind.NO_CREDIT,
        message,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


def _closed(error: Exception) -> Rejected:
    if isinstance(error, WalletFrozen):
        return Rejected(Kind.NOT_ALLOWED, "This wallet is frozen.")
    if isinstance(error, KeyRevoked):
        return Rejected(Kind.NO_KEY, "This key was revoked.")
    return Rejected(Kind.NOT_ALLOWED, "This key's wallet does not exist.")
