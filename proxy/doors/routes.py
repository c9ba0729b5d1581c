"""From method and target to what a request of the API is for; pure.

The path decides the dialect. What the contract names and does not work yet is told apart from what nobody
promised: an SDK's user who reads "not offered yet" stops looking for a typing error.
"""

from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from attrs import frozen

from proxy.errors import Kind, Rejected
from proxy.types import DialectName, Path

API_PREFIXES: Final = ("/v1/", "/v1beta/", "/genai/", "/api/")
"""Browsers of any origin may call these; pages are for our own."""

_GEMINI_PREFIXES: Final = ("/v1beta/", "/genai/")
_GEMINI_MODELS: Final = tuple(
    f"{prefix}/models/" for prefix in ("/v1beta", "/v1", "/genai/v1beta", "/genai/v1")
)
_GEMINI_ACTIONS: Final[Mapping[str, Literal["generate", "stream", "count"]]] = {
    "generateContent": "generate",
    "streamGenerateContent": "stream",
    "countTokens": "count",
}
_GEMINI_LATER: Final = frozenset({"embedContent", "batchEmbedContents", "predict", "predictLongRunning"})

FIXED: Final[Mapping[str, Path]] = {
    "/v1/chat/completions": Path("openai_chat"),
    "/v1/messages": Path("anthropic"),
    "/v1/messages/count_tokens": Path("anthropic", "count"),
}
_LATER: Final = (
    "/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/images", "/v1/audio", "/v1/videos",
    "/v1/realtime",
)  # fmt: skip


@frozen
class Refusal:
    """A route that gets an error, worded in its dialect.

    Attributes:
        allow: methods that the route does have, for the `allow` header.
    """

    dialect: DialectName
    failure: Rejected
    allow: str | None = None


def route(method: str, raw_path: str, query: str) -> Path | Refusal | None:
    """Say what a request is for; `None` if it is not for the inference routes.

    Args:
        method: in upper case.
        raw_path: percent-encoded, without the query.
        query: percent-encoded.
    """
    if method == "POST" and (found := FIXED.get(raw_path)) is not None:
        return found
    path = unquote(raw_path)
    gemini = _gemini(path, query)
    named = FIXED.get(path) if gemini is None else gemini
    if isinstance(named, Path):
        return named if method == "POST" else _wrong_method(method, named.dialect)
    if named is not None:
        return named
    if any(path == later or path.startswith(f"{later}/") for later in _LATER):
        return _not_yet(path, "openai_chat")
    return None


def is_api(path: str) -> bool:
    """Whether a path belongs to the API, which browsers of any origin may call."""
    return path.startswith(API_PREFIXES)


def dialect_of(path: str, headers: Mapping[str, str]) -> DialectName:
    """Whose error shape a path without a dialect of its own gets."""
    if path.startswith(_GEMINI_PREFIXES):
        return "gemini"
    return "anthropic" if "anthropic-version" in headers else "openai_chat"


def _gemini(path: str, query: str) -> Path | Refusal | None:
    prefix = next((prefix for prefix in _GEMINI_MODELS if path.startswith(prefix)), None)
    if prefix is None:
        return None
    # model names may hold colons and slashes: the last colon splits
    model, colon, verb = path[len(prefix) :].removeprefix("models/").rpartition(":")
    if not colon or not model:
        return None
    if verb in _GEMINI_LATER:
        return _not_yet(f":{verb}", "gemini")
    if verb not in _GEMINI_ACTIONS:
        return None
    return Path("gemini", _GEMINI_ACTIONS[verb], model, sse=("alt", "sse") in parse_qsl(query))


def _wrong_method(method: str, dialect: DialectName) -> Refusal:
    return Refusal(
        dialect, Rejected(Kind.WRONG_METHOD, f"This route takes POST, not {method}."), allow="POST, OPTIONS"
    )


def _not_yet(what: str, dialect: DialectName) -> Refusal:
    return Refusal(dialect, Rejected(Kind.UNKNOWN_ROUTE, f"{what} is not offered by this gateway yet."))
