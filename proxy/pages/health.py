"""Is it alive, and is it ready: what a load balancer asks."""

from collections.abc import Callable
from typing import Any

import msgspec
from quart import Blueprint, Response


def build(unready: Callable[[], str | None]) -> Blueprint:
    """Make the blueprint.

    Args:
        unready: why no request should be sent here now, or `None`.
    """
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    async def health() -> Response:
        return _json({"status": "ok"}, 200)

    @blueprint.get("/health/ready")
    async def ready() -> Response:
        reason = unready()
        if reason is None:
            return _json({"status": "ready", "db": "ok"}, 200)
        return _json(
            {"status": "unready", "db": "ok" if reason == "draining" else "failed", "reason": reason}, 503
        )

    return blueprint


def _json(body: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")
