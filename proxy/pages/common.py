"""What the plain JSON routes have in common: who asks, and how an answer is written."""

from typing import Any, Final

import msgspec
from quart import Response, request

from accounting.records import Key
from proxy.gateway import Gateway
from proxy.types import Caller, DialectName

_GEMINI_PREFIXES: Final = ("/genai/", "/v1beta/")


def key_of_request(gateway: Gateway) -> Key:
    """The valid key of the present request. Raises `Rejected`, 401."""
    return gateway.keys.record(*_presented())


def caller_of_request(gateway: Gateway) -> Caller:
    """Whose it is. Raises `Rejected`, 401."""
    return gateway.keys.caller(*_presented())


def caller_or_none(gateway: Gateway) -> Caller | None:
    """For public routes: a key, where one is sent, must be valid and narrows what is shown."""
    presented = _presented()
    return gateway.keys.caller(*presented) if gateway.keys.presents_a_key(*presented) else None


def as_json(body: dict[str, Any], status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")


def _presented() -> tuple[dict[str, str], str, DialectName]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    dialect: DialectName = "gemini" if request.path.startswith(_GEMINI_PREFIXES) else "openai_chat"
    return headers, request.query_string.decode("latin-1"), dialect
