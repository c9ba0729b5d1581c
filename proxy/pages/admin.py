"""The admin listener: the operator's operations and metrics, on a port and behind a token of their own."""

import hmac
from collections.abc import Callable
from typing import Any, Final

import msgspec
from quart import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from accounting.ports import Overloaded
from proxy.admin import Admin
from proxy.errors import Failure, Kind, Rejected
from proxy.telemetry import Telemetry
from proxy.types import Secret

_KINDS: Final = {404: Kind.UNKNOWN_ROUTE, 405: Kind.WRONG_METHOD, 413: Kind.TOO_LARGE, 500: Kind.INTERNAL}


def build(
    admin: Admin, telemetry: Telemetry, token: Secret, resting: Callable[[], list[dict[str, Any]]]
) -> Blueprint:
    """Make the blueprint; all its routes ask for `Authorization: Bearer` and the token.

    Args:
        admin: the operations.
        telemetry: gives the metrics, and takes our own faults.
        token: the admin token; never empty.
        resting: accounts at rest, as JSON objects with `provider`, `account`, `model`, `because`, `until` (ISO
            wall clock) and `seconds_left`.
    """
    blueprint = Blueprint("admin", __name__)

    @blueprint.before_request
    async def authorised() -> None:
        presented = request.headers.get("Authorization", "")
        # compared as bytes: header values may hold any Latin-1, which compare_digest takes as bytes only
        expected = f"Bearer {token.reveal()}".encode()
        if not hmac.compare_digest(presented.encode("latin-1", "replace"), expected):
            raise Rejected(
                Kind.NO_KEY, "The admin token is missing or wrong; it stands in the state directory."
            )

    @blueprint.errorhandler(Failure)
    async def failed(failure: Failure) -> Response:
        return _error(failure.kind, failure.message, failure.status, failure.param)

    @blueprint.errorhandler(Overloaded)
    async def overloaded(error: Overloaded) -> Response:
        return _error(Kind.OVERLOADED, str(error), 503)

    # of the whole listener, so that a command that came to the wrong door can read what it is told
    @blueprint.app_errorhandler(HTTPException)
    async def misaddressed(error: HTTPException) -> Response:
        status = error.code or 500
        return _error(_KINDS.get(status, Kind.BAD_REQUEST), f"{error.name}.", status)

    @blueprint.app_errorhandler(Exception)
    async def crashed(error: Exception) -> Response:
        telemetry.fault("admin_failed", error)
        return _error(Kind.INTERNAL, "Something went wrong here; the log of the gateway says where.", 500)

    @blueprint.post("/admin/<operation>")
    async def call(operation: str) -> Response:
        body = await request.get_data(cache=False, as_text=False)
        assert isinstance(body, bytes)  # noqa: S101 - what as_text=False means
        return _json(await admin.call(operation, body))

    @blueprint.get("/admin/accounts")
    async def accounts() -> Response:
        return _json({"object": "list", "data": resting()})

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        return Response(telemetry.metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return blueprint


def _error(kind: Kind, message: str, status: int, param: str | None = None) -> Response:
    return _json({"error": {"code": kind.value, "message": message, "param": param}}, status)


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")
