"""Errors in Anthropic's words, both ways: word ours, read theirs."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from proxy.dialects.wording import JSON, retry_headers
from proxy.errors import Failure, Kind, StreamBroken, UpstreamFailed
from proxy.types import ProviderError, Wording

_TYPE_OF_STATUS: Final = MappingProxyType({404: "not_found_error", 413: "request_too_large"})
"""How a provider's refusal of a request is called, where its status says more than "invalid"."""

_BUSY: Final = frozenset({"overloaded_error", "rate_limit_error"})
"""Of an error within a stream: this account or provider has no room; another may have."""

_ABOUT_THE_REQUEST: Final = frozenset({"invalid_request_error", "not_found_error", "request_too_large"})
"""Of an error within a stream: every account would say the same."""


def error(failure: Failure, request_id: str) -> Wording:
    """Word a failure as an answer."""
    headers = (*JSON, ("request-id", request_id), *retry_headers(failure))
    return Wording(failure.status, headers, msgspec.json.encode(_envelope(failure, request_id)))


def error_event(failure: Failure, request_id: str) -> bytes:
    """Word a failure as the last event of a stream."""
    return b"event: error\ndata: " + msgspec.json.encode(_envelope(failure, request_id)) + b"\n\n"


def _envelope(failure: Failure, request_id: str) -> dict[str, Any]:
    kind = failure.row.anthropic_type
    if failure.kind is Kind.REFUSED_UPSTREAM:
        kind = _TYPE_OF_STATUS.get(failure.status, kind)
    about: dict[str, Any] = {"type": kind, "message": failure.message}
    if failure.param is not None:
        about["param"] = failure.param
    if failure.metadata is not None:
        about["metadata"] = failure.metadata
    return {"type": "error", "error": about, "request_id": request_id}


def read_error(status: int, body: bytes) -> ProviderError:
    """Read a provider's error answer, whatever it looks like."""
    kind, message = _about(body)
    return ProviderError(status=status, message=message or f"The provider answered {status}.", type=kind)


def broken(data: bytes) -> StreamBroken:
    """An `error` event after content has begun.

    The provider's own words are not repeated: they name its parts, and nothing that the caller could act on.
    """
    kind, _ = _about(data)
    situation = Kind.NO_HEALTHY_UPSTREAM if kind in _BUSY else Kind.UPSTREAM_ERROR
    return StreamBroken(situation, f"The provider's answer broke off with an error{_named(kind)}.")


def failed(data: bytes) -> UpstreamFailed:
    """An `error` event before any content: unless it is about the request, another account may answer."""
    kind, _ = _about(data)
    if kind in _ABOUT_THE_REQUEST:
        text = f"The provider refused the request{_named(kind)}."
        return UpstreamFailed(Kind.REFUSED_UPSTREAM, text, try_another=False)
    situation = Kind.NO_HEALTHY_UPSTREAM if kind in _BUSY else Kind.UPSTREAM_ERROR
    return UpstreamFailed(situation, f"The provider failed at once{_named(kind)}.", try_another=True)


def _about(body: bytes) -> tuple[str | None, str]:
    """Type and message of an error envelope; `None` and nothing where it is none."""
    try:
        envelope = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, ""
    about = envelope.get("error") if isinstance(envelope, Mapping) else None
    if not isinstance(about, Mapping):
        return None, ""
    kind, message = about.get("type"), about.get("message")
    return (kind if isinstance(kind, str) else None), (message if isinstance(message, str) else "")


def _named(kind: str | None) -> str:
    """An error's type in brackets, where it looks like one."""
    known = kind is not None and len(kind) <= 64 and kind.isascii() and kind.isidentifier()
    return f" ({kind})" if known else ""
