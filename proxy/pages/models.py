"""Which models there are and what they cost: the lists in each dialect, the catalogue, and price estimates."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from quart import Blueprint, Response, request

from pricing.money import credits_of, micro_up, show
from proxy.errors import Kind, Rejected
from proxy.gateway import Gateway
from proxy.pages.common import as_json, caller_or_none
from proxy.routing import Served
from proxy.shown import shown_model

TOKENS_MAX: Final = 2**31
NAMES_MAX: Final = 1000
"""Models in one question about prices; several times as many as there are."""

_GEMINI_ACTIONS: Final = ["generateContent", "streamGenerateContent", "countTokens"]


def build(gateway: Gateway) -> Blueprint:
    """Make the blueprint over a gateway."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/v1/models")
    async def models() -> Response:
        listed = gateway.router.models(caller_or_none(gateway))
        if "anthropic-version" in request.headers:
            return as_json(_anthropic_models(listed))
        return as_json({"object": "list", "data": [_openai_model(one) for one in listed]})

    @blueprint.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        one = _named(gateway, name)
        return as_json(
            _anthropic_model(one) if "anthropic-version" in request.headers else _openai_model(one)
        )

    @blueprint.get("/genai/v1beta/models")
    @blueprint.get("/genai/v1/models")
    @blueprint.get("/v1beta/models")
    async def gemini_models() -> Response:
        listed = gateway.router.models(caller_or_none(gateway))
        return as_json({"models": [_gemini_model(one) for one in listed]})

    @blueprint.get("/genai/v1beta/models/<path:name>")
    @blueprint.get("/genai/v1/models/<path:name>")
    @blueprint.get("/v1beta/models/<path:name>")
    async def gemini_model(name: str) -> Response:
        return as_json(_gemini_model(_named(gateway, name)))

    @blueprint.get("/api/models")
    async def catalogue() -> Response:
        listed = gateway.router.models(caller_or_none(gateway))
        return as_json({"object": "list", "data": [shown_model(one.model, one.price) for one in listed]})

    @blueprint.route("/v1/credits/pricing", methods=["GET", "POST"])
    async def pricing() -> Response:
        return as_json(_pricing(gateway, await _pricing_question()))

    return blueprint


def _named(gateway: Gateway, name: str) -> Served:
    """The model of this name, if this caller may use it. Raises `Rejected`, 404."""
    return _all_named(gateway, (name,))[0]


def _all_named(gateway: Gateway, names: Iterable[str]) -> tuple[Served, ...]:
    """The models of these names, if this caller may use all of them. Raises `Rejected`, 404."""
    usable = {one.model.id: one for one in gateway.router.models(caller_or_none(gateway))}
    found = []
    for name in names:
        one = usable.get(gateway.router.find(name).id)
        if one is None:
            raise Rejected(
                Kind.UNKNOWN_MODEL, f"There is no model {name[:100]!r} for this key.", param="model"
            )
        found.append(one)
    return tuple(found)


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
    models: Annotated[list[str], msgspec.Meta(max_length=NAMES_MAX)] | None = None
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
    listed = (
        gateway.router.models(caller_or_none(gateway))
        if asked.models is None
        else _all_named(gateway, asked.models)
    )
    return {
        "object": "list",
        "currency": "USD",
        "input_tokens": asked.input_tokens,
        "output_tokens": asked.output_tokens,
        "partner_share": "0.00",
        "data": [_estimate(one, asked) for one in listed],
    }


def _estimate(one: Served, asked: _PricingQuestion) -> dict[str, Any]:
    cost = one.price.cost_of_tokens(asked.input_tokens, asked.output_tokens)
    return {
        "model": one.model.id,
        "credits": credits_of(cost),
        "cost": show(cost),
        "cost_micro": micro_up(cost),
        "markup_ppm": one.price.markup_ppm,
        "price_version": one.price.version,
    }


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
