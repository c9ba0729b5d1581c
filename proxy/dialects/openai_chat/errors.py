"""Errors in OpenAI's words: ours to a caller, a provider's to us."""

import re
from typing import Any, Final

import msgspec
from attrs import frozen

from proxy.dialects.wording import JSON, retry_headers
from proxy.errors import Failure
from proxy.types import ProviderError, Wording

_AGAIN_IN: Final = re.compile(r"try again in ((?:\d+h)?(?:\d+m(?!s))?(?:[\d.]+s)?(?:[\d.]+ms)?)\b")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

CONTAINERS: Final = ("error", "detail", "message")
"""Where OpenAI and the servers that call themselves compatible put their error: an object or a sentence."""


@frozen
class Said:
    """What a provider's error object says, as far as it is there."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None


def error(failure: Failure, request_id: str) -> Wording:
    """Word a failure as an answer."""
    headers = (*JSON, ("x-request-id", request_id), *retry_headers(failure))
    return Wording(failure.status, headers, _body(failure))


def error_event(failure: Failure) -> bytes:
    """Word a failure as the last event of a stream. No `[DONE]` follows: the stream did not end well."""
    return b"data: " + _body(failure) + b"\n\n"


def read_error(status: int, body: bytes) -> ProviderError:
    """Read a provider's error answer; one that is no JSON is its message."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        tree = None
    said = said_by(tree) or Said(body[:2000].decode("utf-8", "replace").strip())
    return ProviderError(
        status=status,
        message=said.message,
        type=said.type,
        code=said.code,
        param=said.param,
        retry_after_seconds=_retry_after(said.message),
    )


def said_by(tree: object) -> Said | None:
    """The error that a decoded JSON value states, or `None`; some wrap it into an array."""
    if isinstance(tree, list) and len(tree) == 1:
        tree = tree[0]
    if not isinstance(tree, dict):
        return None
    for name in CONTAINERS:
        value = tree.get(name)
        if isinstance(value, dict):
            return said(value)
        if isinstance(value, str) and value:
            return Said(value, _text(tree.get("type")), _text(tree.get("code")), _text(tree.get("param")))
    return None


def said(value: dict[str, Any]) -> Said:
    """Read an error object."""
    message = value.get("message")
    return Said(
        message=message if isinstance(message, str) else "",
        type=_text(value.get("type")) or _text(value.get("status")),
        code=_text(value.get("code")),
        param=_text(value.get("param")),
    )


def _body(failure: Failure) -> bytes:
    words: dict[str, Any] = {
        "message": failure.message,
        "type": failure.row.openai_type,
        "param": failure.param,
        "code": failure.row.openai_code,
    }
    if failure.metadata is not None:
        words["metadata"] = failure.metadata
    return msgspec.json.encode({"error": words})


def _text(value: object) -> str | None:
    """A code may be a string or a number; anything else says nothing."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _retry_after(message: str) -> float | None:
    """What a rate limit's sentence ends with: `Please try again in 1m2.5s.`, or `350ms.`, as seconds."""
    match = _AGAIN_IN.search(message[:4000])
    if match is None or not match[1]:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(match[1]))
