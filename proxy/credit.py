"""Credit for one request: set aside the most that it can cost, or refuse with a 402 that says why."""

import re
from typing import Any, Final

from accounting.books import Books
from accounting.claims import Claim
from accounting.hold import Hold
from accounting.ports import Overloaded
from accounting.refusals import Insufficient, KeyRevoked, Refusal, TooManyTasks, UnknownTask, WalletFrozen
from accounting.spending import Budget
from pricing.money import micro_up, parse
from proxy.errors import Kind, Rejected
from proxy.gateway import Gateway
from proxy.types import Caller, Offer, Path, Reply, Request

MAX_COST: Final = "x-credits-max-cost"
BUDGET: Final = "x-credits-budget-id"

_BUDGET: Final = re.compile(r"([A-Za-z0-9._:/-]{1,128})(?: *; *max *= *([^;\s]{1,40}))?")

LIMITED_BY: Final = {
    "wallet": "The credit does not suffice for this request",
    "in_flight": "Other requests hold the credit that this one needs; try again when they are done",
    "key_cap": "What this key may still spend does not suffice for this request",
    "budget": "What this task may still spend does not suffice for this request",
    "max_cost": f"The request may cost more than its {MAX_COST} allows",
}
"""What a 402 says, by the limit that stands in the way."""


def claim(gateway: Gateway, caller: Caller, path: Path, request: Request) -> Claim:
    """For whom and within which bounds the request may spend; refused before its body is read if it may nothing.

    Raises:
        Rejected: 402 where nothing at all is available, 400 for a header that cannot be read.
    """
    headers = request.headers
    max_cost = _max_cost(headers[MAX_COST]) if MAX_COST in headers else None
    budget = _budget(headers[BUDGET]) if BUDGET in headers else None
    claim = gateway.books.claim(caller.spender, budget, max_cost)
    if path.action != "count":  # counting tokens is free
        _refuse_paupers(gateway.books, claim, gateway.waiting.seconds > 0)
    return claim


async def hold(
    gateway: Gateway, request_id: str, claim: Claim, offers: tuple[Offer, ...], reply: Reply
) -> Hold:
    """Set aside what the dearest of the offers begins with; where settings say so, wait for it to come free.

    Nothing is awaited once it is set aside, so that it cannot be lost on the way to whoever settles it.

    Raises:
        Rejected: 402 with the shortfall and what would be affordable, 403 for a frozen wallet or a revoked
            key, 503 while the books take nothing on.
    """
    amount = gateway.router.first_hold(offers)
    wallet = claim.spender.wallet
    try:
        return await gateway.waiting.until_it_fits(
            wallet, gateway.books.hold, request_id, claim, amount, reply
        )
    except Insufficient as error:
        raise _too_little(gateway, offers, error) from error
    except Refusal as error:
        raise _closed(error) from error


def overloaded(error: Overloaded) -> Rejected:
    """Say that the books take nothing on for now, and which of their bounds is met."""
    return Rejected(
        Kind.OVERLOADED,
        f"The accounting can take no more requests for now: {error.because}.",
        retry_after_seconds=error.retry_after_seconds,
        metadata={"trigger": error.trigger},
    )


def _max_cost(text: str) -> int:
    try:
        return parse(text.strip())
    except ValueError as error:
        raise Rejected(Kind.BAD_REQUEST, f"{MAX_COST}: {error}", param=MAX_COST) from None


def _budget(text: str) -> Budget:
    matched = _BUDGET.fullmatch(text.strip())
    if matched is None:
        raise Rejected(
            Kind.BAD_REQUEST,
            f"{BUDGET}: expected an id of up to 128 letters, digits and any of ._:/- and, for a new task, what it "
            "may spend, such as task-7; max=2.00",
            param=BUDGET,
        )
    try:
        most = parse(matched[2]) if matched[2] is not None else None
    except ValueError as error:
        raise Rejected(Kind.BAD_REQUEST, f"{BUDGET}: max: {error}", param=BUDGET) from None
    return Budget(matched[1], most)


def _refuse_paupers(books: Books, claim: Claim, may_wait: bool) -> None:
    """Refuse early where nothing is available, and nothing that is worth waiting for."""
    try:
        rooms = books.ledger.rooms(claim)
    except Refusal as error:
        raise _closed(error) from error
    for room in rooms:
        for_good = room.unheld <= 0
        if for_good or (room.available <= 0 and not may_wait):
            limit = room.limit if for_good else "in_flight"
            message = "This wallet has no credit left." if limit == "wallet" else f"{LIMITED_BY[limit]}."
            raise Rejected(Kind.NO_CREDIT, message, metadata={"limit": limit})


def _too_little(gateway: Gateway, offers: tuple[Offer, ...], error: Insufficient) -> Rejected:
    affordable = gateway.router.affordable_output(offers, error.available)
    metadata: dict[str, Any] = {
        "limit": error.limit,
        "shortfall_micro": micro_up(error.shortfall),
        "affordable_max_tokens": affordable,
        "top_up_url": gateway.config.pricing.top_up_url,
    }
    message = LIMITED_BY[error.limit]
    if error.limit != "in_flight" and affordable:
        message += f"; up to {affordable} output tokens would fit"
    return Rejected(
        Kind.NO_CREDIT,
        f"{message}.",
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


def _closed(error: Refusal) -> Rejected:
    match error:
        case WalletFrozen():
            return Rejected(Kind.NOT_ALLOWED, "This wallet is frozen.")
        case KeyRevoked():
            return Rejected(Kind.NO_KEY, "This key was revoked.")
        case UnknownTask():
            return Rejected(Kind.BAD_REQUEST, f"{BUDGET}: {error}", param=BUDGET)
        case TooManyTasks():
            return Rejected(Kind.RATE_LIMITED, str(error), retry_after_seconds=3600.0)
        case _:
            return Rejected(Kind.NOT_ALLOWED, "This key's wallet does not exist.")
