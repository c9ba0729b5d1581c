"""The plain JSON routes beside inference: models, credit, prices, usage, the caller's own key."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Final, NoReturn

import msgspec
from quart import Blueprint, Response, request

from accounting.records import Key
from accounting.reports import Query, Reader
from pricing.money import credits_of, micro_up, show
from pricing.price import Bounds
from proxy.errors import Failure, Kind, Rejected
from proxy.gateway import Gateway
from proxy.routing import Served
from proxy.shown import shown_balance, shown_model, shown_request, shown_usage
from proxy.types import Caller, DialectName

USAGE_LIMIT_MAX: Final = 1000
TOKENS_MAX: Final = 2**31
_GEMINI_PREFIXES: Final = ("/genai/", "/v1beta/")
_GEMINI_ACTIONS: Final = ["generateContent", "streamGenerateContent", "countTokens"]

View = Callable[..., Awaitable[Response]]


def build(gateway: Gateway, reader: Reader) -> Blueprint:
    """Make the blueprint over a gateway."""
    blueprint = Blueprint("api", __name__)

    def identified(view: Callable[..., Awaitable[dict[str, Any]]]) -> View:
        """Give the view the caller's key, or answer 401."""

        @wraps(view)
        async def wrapped(**arguments: str) -> Response:
            return _json(await view(_key(gateway), **arguments))

        return wrapped

    @blueprint.errorhandler(Failure)
    async def failed(failure: Failure) -> Response:
        return worded(gateway, failure, dialect_of(request.path, dict(request.headers.to_wsgi_list())))

    @blueprint.get("/v1/models")
    async def models() -> Response:
        listed = gateway.router.models(_caller_or_none(gateway))
        if "anthropic-version" in request.headers:
            return _json(_anthropic_models(listed))
        return _json({"object": "list", "data": [_openai_model(one) for one in listed]})

    @blueprint.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        one = _named(gateway, name)
        return _json(_anthropic_model(one) if "anthropic-version" in request.headers else _openai_model(one))

    @blueprint.get("/genai/v1beta/models")
    @blueprint.get("/genai/v1/models")
    @blueprint.get("/v1beta/models")
    async def gemini_models() -> Response:
        listed = gateway.router.models(_caller_or_none(gateway))
        return _json({"models": [_gemini_model(one) for one in listed]})

    @blueprint.get("/genai/v1beta/models/<path:name>")
    @blueprint.get("/genai/v1/models/<path:name>")
    @blueprint.get("/v1beta/models/<path:name>")
    async def gemini_model(name: str) -> Response:
        return _json(_gemini_model(_named(gateway, name)))

    @blueprint.get("/api/models")
    async def catalogue() -> Response:
        listed = gateway.router.models(_caller_or_none(gateway))
        return _json({"object": "list", "data": [shown_model(one.model, one.price) for one in listed]})

    @blueprint.get("/v1/credits")
    @blueprint.get("/v1/credits/balance")
    @identified
    async def balance(key: Key) -> dict[str, Any]:
        return shown_balance(gateway.books.balance(key.wallet))

    @blueprint.route("/v1/credits/pricing", methods=["GET", "POST"])
    async def pricing() -> Response:
        return _json(_pricing(gateway, await _pricing_question()))

    @blueprint.get("/v1/usage/<request_id>")
    @identified
    async def usage_of(key: Key, request_id: str) -> dict[str, Any]:
        records = await reader.usage_of(request_id)
        own = tuple(record for record in records if record.wallet == key.wallet)
        if not own:
            raise Rejected(Kind.UNKNOWN_ROUTE, f"There is no settled request {request_id[:80]!r} of this wallet.")
        return shown_request(own)

    @blueprint.get("/v1/usage")
    @identified
    async def usage(key: Key) -> dict[str, Any]:
        if "group_by" in request.args:
            raise Rejected(Kind.BAD_REQUEST, "group_by is not offered yet.", param="group_by")
        page = await reader.page(
            Query(
                wallet=key.wallet,
                model=request.args.get("model"),
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


def worded(gateway: Gateway, failure: Failure, dialect: DialectName) -> Response:
    """A failure as an answer in the caller's dialect; the door adds the request's id to every answer."""
    wording = gateway.dialects[dialect].error(failure, "")
    return Response(wording.body, status=wording.status, headers=dict(wording.headers))


def dialect_of(path: str, headers: Any) -> DialectName:
    """Whose error shape a route without a dialect of its own should use."""
    if path.startswith(_GEMINI_PREFIXES):
        return "gemini"
    return "anthropic" if any(name.lower() == "anthropic-version" for name, _ in headers.items()) else "openai_chat"


def _key(gateway: Gateway) -> Key:
    headers = {name.lower(): value for name, value in request.headers.items()}
    dialect: DialectName = "gemini" if request.path.startswith(_GEMINI_PREFIXES) else "openai_chat"
    return gateway.keys.record(headers, request.query_string.decode("latin-1"), dialect)


def _caller_or_none(gateway: Gateway) -> Caller | None:
    """Models are public; a key, where one is sent, must be valid and narrows what is shown."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    query = request.query_string.decode("latin-1")
    dialect: DialectName = "gemini" if request.path.startswith(_GEMINI_PREFIXES) else "openai_chat"
    if not gateway.keys.presents_a_key(headers, query, dialect):
        return None
    return gateway.keys.caller(headers, query, dialect)


def _named(gateway: Gateway, name: str) -> Served:
    """The model of this name, if this caller may use it. Raises `Rejected`, 404."""
    model = gateway.router.find(name)
    for one in gateway.router.models(_caller_or_none(gateway)):
        if one.model.id == model.id:
            return one
    raise Rejected(Kind.UNKNOWN_MODEL, f"There is no model {name[:100]!r} for this key.", param="model")


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), content_type="application/json")


def _openai_model(one: Served) -> dict[str, Any]:
    return {
        "id": one.model.id,
        "object": "model",
        "created": one.model.created,
        "owned_by": one.model.vendor,
        **{k: v for k, v in shown_model(one.model, one.price).items() if k != "id"},
    }


def _anthropic_models(listed: tuple[Served, ...]) -> dict[str, Any]:
    shown = [_anthropic_model(one) for one in listed]
    return {
        "data": shown,
        "has_more": False,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _anthropic_model(one: Served) -> dict[str, Any]:
    return {
        "type": "model",
        "id": one.model.id,
        "display_name": one.model.name,
        "created_at": _rfc3339(one.model.created),
        "max_input_tokens": one.model.context_window,
        "max_tokens": one.model.output_max,
    }


def _gemini_model(one: Served) -> dict[str, Any]:
    return {
        "name": f"models/{one.model.id}",
        "displayName": one.model.name,
        "inputTokenLimit": one.model.context_window,
        "outputTokenLimit": one.model.output_max,
        "supportedGenerationMethods": _GEMINI_ACTIONS if one.model.dialect == "gemini" else [],
    }


class _PricingQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/credits/pricing`."""

    publishable_key: str | None = None
    models: list[str] | None = None
    input_tokens: int = 1_000_000
    output_tokens: int = 1_000_000


async def _pricing_question() -> _PricingQuestion:
    try:
        if request.method == "POST":
            body = await request.get_data(cache=False)
            return msgspec.json.decode(body or b"{}", type=_PricingQuestion)
        asked: dict[str, Any] = {name: request.args[name] for name in request.args}
        if "models" in asked or "models[]" in asked:
            listed = request.args.getlist("models") + request.args.getlist("models[]")
            asked.pop("models[]", None)
            asked["models"] = [name for text in listed for name in text.split(",") if name]
        return msgspec.convert(asked, type=_PricingQuestion, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Rejected(Kind.BAD_REQUEST, str(error)) from None


def _pricing(gateway: Gateway, asked: _PricingQuestion) -> dict[str, Any]:
    if asked.publishable_key:
        raise Rejected(
            Kind.BAD_REQUEST,
            "Publishable keys and partner shares are not offered yet; ask without publishable_key.",
            param="publishable_key",
        )
    for name in ("input_tokens", "output_tokens"):
        if not 0 <= getattr(asked, name) <= TOKENS_MAX:
            raise Rejected(Kind.BAD_REQUEST, f"{name} must lie between 0 and {TOKENS_MAX}.", param=name)
    caller = _caller_or_none(gateway)
    listed = (
        gateway.router.models(caller) if asked.models is None else tuple(_named(gateway, name) for name in asked.models)
    )
    bounds = Bounds(input=asked.input_tokens, output=asked.output_tokens)
    return {
        "object": "list",
        "currency": "USD",
        "input_tokens": asked.input_tokens,
        "output_tokens": asked.output_tokens,
        "partner_share": "0.00",
        "data": [_estimate(one, bounds) for one in listed],
    }


def _estimate(one: Served, bounds: Bounds) -> dict[str, Any]:
    cost = one.price.cost_of_tokens(bounds.input, bounds.output)
    return {
        "model": one.model.id,
        "credits": credits_of(cost),
        "cost": show(cost),
        "cost_micro": micro_up(cost),
        "markup_ppm": one.price.markup_ppm,
        "price_version": one.price.version,
    }


def _shown_key(gateway: Gateway, key: Key) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    caller = gateway.keys.caller(headers, request.query_string.decode("latin-1"), None)
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
        "expires_at": None if key.expires_ms is None else _rfc3339(key.expires_ms // 1000),
    }


def _limit() -> int:
    text = request.args.get("limit", "50")
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= USAGE_LIMIT_MAX:
        raise Rejected(Kind.BAD_REQUEST, f"limit must lie between 1 and {USAGE_LIMIT_MAX}.", param="limit")
    return int(text)


def _cursor() -> str | None:
    cursor = request.args.get("cursor")
    if cursor is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cursor):
        _bad_cursor()
    return cursor


def _bad_cursor() -> NoReturn:
    raise Rejected(Kind.BAD_REQUEST, "cursor must be the next_cursor of an earlier answer.", param="cursor")


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


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

