"""What a caller may know about its own money: balance, usage records, and how its key stands."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Final

from quart import Blueprint, Response, request

from accounting.records import Key
from accounting.reports import Query, Reader
from accounting.spending import window_ends_ms
from pricing.money import Pico, show
from proxy.errors import Kind, Rejected
from proxy.gateway import Gateway
from proxy.pages.common import as_json, caller_of_request, key_of_request
from proxy.shown import shown_balance, shown_request, shown_usage

USAGE_LIMIT_MAX: Final = 1000

View = Callable[..., Awaitable[Response]]


def build(gateway: Gateway, reader: Reader) -> Blueprint:
    """Make the blueprint over a gateway."""
    blueprint = Blueprint("account", __name__)

    def identified(view: Callable[..., Awaitable[dict[str, Any]]]) -> View:
        """Give the view the caller's key, or answer 401."""

        @wraps(view)
        async def wrapped(**arguments: str) -> Response:
            return as_json(await view(key_of_request(gateway), **arguments))

        return wrapped

    @blueprint.get("/v1/credits")
    @blueprint.get("/v1/credits/balance")
    @identified
    async def balance(key: Key) -> dict[str, Any]:
        return shown_balance(gateway.books.balance(key.wallet))

    @blueprint.get("/v1/usage/<request_id>")
    @identified
    async def usage_of(key: Key, request_id: str) -> dict[str, Any]:
        records = await reader.usage_of(request_id)
        own = tuple(record for record in records if record.wallet == key.wallet)
        if not own:
            raise Rejected(
                Kind.UNKNOWN_ROUTE, f"There is no settled request {request_id[:80]!r} of this wallet."
            )
        return shown_request(own)

    @blueprint.get("/v1/usage")
    @identified
    async def usage(key: Key) -> dict[str, Any]:
        if "group_by" in request.args:
            raise Rejected(Kind.BAD_REQUEST, "group_by is not offered yet.", param="group_by")
        page = await reader.page(
            Query(
                wallet=key.wallet,
                model=_model(gateway),
                from_ms=_moment("from"),
                to_ms=_moment("to"),
                limit=_limit(),
                cursor=_cursor(),
            )
        )
        return {
            "object": "list",
            "data": [shown_usage(record) for record in page.records],
            "next_cursor": page.next_cursor,
        }

    @blueprint.get("/v1/key")
    @identified
    async def own_key(key: Key) -> dict[str, Any]:
        return _shown_key(gateway, key)

    return blueprint


def _shown_key(gateway: Gateway, key: Key) -> dict[str, Any]:
    caller = caller_of_request(gateway)
    standing = gateway.limits.standing(caller)
    return {
        "object": "key",
        "key_id": key.key,
        "label": key.name,
        "hint": key.hint,
        "wallet": key.wallet,
        "limits": {
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_minute": key.tokens_per_minute,
            "concurrency": key.concurrency,
        },
        "remaining": {name: one.remaining for name, one in standing.items()}
        | (
            {"concurrency": max(key.concurrency - gateway.limits.under_way(caller), 0)}
            if key.concurrency is not None
            else {}
        ),
        "resets_in_seconds": {name: round(one.reset_seconds, 3) for name, one in standing.items()},
        "models": list(key.models),
        "expires_at": None if key.expires_ms is None else _iso(key.expires_ms),
        "cap": None if key.cap is None else _cap(gateway, key, key.cap),
        "clamp": key.clamp,
    }


def _cap(gateway: Gateway, key: Key, cap: Pico) -> dict[str, Any]:
    """How a key stands with what it may spend: in its window, with what is held by now."""
    now = gateway.books.clock()
    spent, held = gateway.books.ledger.spent_within_cap(key.key, now)
    ends_ms = window_ends_ms(key.cap_window, now)
    return {
        "amount": show(cap),
        "window": key.cap_window,
        "spent": show(spent),
        "held": show(held),
        "remaining": show(max(cap - spent - held, 0)),
        "resets_at": None if ends_ms is None else _iso(ends_ms),
    }


def _model(gateway: Gateway) -> str | None:
    """The canonical id of the model that is asked about; one that is no longer served keeps the name it is given."""
    name = request.args.get("model")
    if name is None:
        return None
    try:
        return gateway.router.find(name).id
    except Rejected:
        return name


def _limit() -> int:
    text = request.args.get("limit", "50")
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= USAGE_LIMIT_MAX:
        raise Rejected(Kind.BAD_REQUEST, f"limit must lie between 1 and {USAGE_LIMIT_MAX}.", param="limit")
    return int(text)


def _cursor() -> str | None:
    cursor = request.args.get("cursor")
    if cursor is not None and not re.fullmatch(r"[0-9]{1,19}", cursor):
        raise Rejected(
            Kind.BAD_REQUEST, "cursor must be the next_cursor of an earlier answer.", param="cursor"
        )
    return cursor


def _moment(name: str) -> int | None:
    """A date, a time (UTC without an offset) or unix seconds, as ms."""
    text = request.args.get(name)
    if text is None:
        return None
    moment = moment_ms(text)
    if moment is None:
        raise Rejected(Kind.BAD_REQUEST, f"{name} must be an ISO 8601 time or unix seconds.", param=name)
    return moment


def moment_ms(text: str) -> int | None:
    """Read an ISO date or time (UTC without an offset) or unix seconds as ms, or `None`."""
    if re.fullmatch(r"[0-9]{1,11}", text):
        return int(text) * 1000
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a bare + in a query arrives as a space
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds")
