"""Errors in Google's words, both ways: word ours, read theirs."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from proxy.dialects.wording import JSON, retry_headers
from proxy.errors import Failure, Kind, StreamBroken, UpstreamFailed
from proxy.types import ProviderError, Wording

_RPC: Final = "type.googleapis.com/google.rpc."

_STATUS_OF_CODE: Final = MappingProxyType({404: "NOT_FOUND"})
"""How a provider's refusal of a request is called, where its status says more than "invalid"."""

_BUSY: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""Of an error within a stream: this account or provider has no room; another may have."""

_ABOUT_THE_REQUEST: Final = frozenset(
    {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "NOT_FOUND"}
)
"""Of an error within a stream: every account would say the same."""

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s", re.ASCII)


def error(failure: Failure, request_id: str) -> Wording:
    """Word a failure as an answer."""
    headers = (*JSON, *retry_headers(failure))
    return Wording(failure.status, headers, msgspec.json.encode(envelope(failure, request_id)))


def error_event(failure: Failure, request_id: str) -> bytes:
    """Word a failure as the last event of a stream."""
    return b"data: " + msgspec.json.encode(envelope(failure, request_id)) + b"\r\n\r\n"


def error_element(failure: Failure, request_id: str) -> bytes:
    """Word a failure as the last element of a stream that is one JSON array.

    An array is opened with the first bytes of an answer; only a `StreamBroken` comes after those.
    """
    opening = b"" if isinstance(failure, StreamBroken) else b"["
    return opening + msgspec.json.encode(envelope(failure, request_id)) + b"\n]\n"


def is_error(data: bytes) -> bool:
    """Whether this is an error object and nothing else."""
    return b'"error"' in data and bool(_about(data))


def envelope(failure: Failure, request_id: str) -> dict[str, Any]:
    """A failure as Google's error object; what else there is to say stands in `details`."""
    status = failure.row.gemini_status
    if failure.kind is Kind.REFUSED_UPSTREAM:
        status = _STATUS_OF_CODE.get(failure.status, status)
    about: dict[str, Any] = {"code": failure.status, "message": failure.message, "status": status}
    reason: dict[str, Any] = {"@type": f"{_RPC}ErrorInfo", "reason": failure.kind.name, "domain": "farebox"}
    if failure.metadata is not None:
        # ErrorInfo's metadata are strings; beside it the same facts stand as in the other dialects.
        reason["metadata"] = {name: str(value) for name, value in failure.metadata.items()}
        about["metadata"] = failure.metadata
    about["details"] = [reason, {"@type": f"{_RPC}RequestInfo", "requestId": request_id}]
    if failure.param is not None:
        violation = {"field": failure.param, "description": failure.message}
        about["details"].append({"@type": f"{_RPC}BadRequest", "fieldViolations": [violation]})
    if failure.retry_after_seconds is not None:
        delay = f"{max(0.0, failure.retry_after_seconds):.3f}".rstrip("0").rstrip(".") + "s"
        about["details"].append({"@type": f"{_RPC}RetryInfo", "retryDelay": delay})
    return {"error": about}


def read_error(status: int, body: bytes) -> ProviderError:
    """Read a provider's error answer, whatever it looks like.

    A bad key is a 400 there, told only by its reason: it arrives as `code` (`API_KEY_INVALID`), so that it is
    not taken for a fault of the request.
    """
    about = _about(body)
    message = about.get("message")
    kind = about.get("status")
    reason = _detail(about, "ErrorInfo").get("reason")
    violations = _detail(about, "BadRequest").get("fieldViolations")
    first = violations[0] if isinstance(violations, list) and violations else None
    param = first.get("field") if isinstance(first, Mapping) else None
    return ProviderError(
        status=status,
        message=message if isinstance(message, str) and message else f"The provider answered {status}.",
        type=kind if isinstance(kind, str) else None,
        code=reason if isinstance(reason, str) else None,
        param=param if isinstance(param, str) else None,
        retry_after_seconds=_seconds(_detail(about, "RetryInfo").get("retryDelay")),
    )


def broken(data: bytes) -> StreamBroken:
    """An error after content has begun; the provider's own words are not repeated."""
    kind = _about(data).get("status")
    situation = Kind.NO_HEALTHY_UPSTREAM if kind in _BUSY else Kind.UPSTREAM_ERROR
    return StreamBroken(situation, f"The provider's answer broke off with an error{_named(kind)}.")


def failed(data: bytes) -> UpstreamFailed:
    """An error before any content: unless it is about the request, another account may answer."""
    about = _about(data)
    kind = about.get("status")
    key_is_bad = _detail(about, "ErrorInfo").get("reason") == "API_KEY_INVALID"
    if kind in _ABOUT_THE_REQUEST and not key_is_bad:
        text = f"The provider refused the request{_named(kind)}."
        return UpstreamFailed(Kind.REFUSED_UPSTREAM, text, try_another=False)
    situation = Kind.NO_HEALTHY_UPSTREAM if kind in _BUSY else Kind.UPSTREAM_ERROR
    return UpstreamFailed(situation, f"The provider failed at once{_named(kind)}.", try_another=True)


def _about(body: bytes) -> Mapping[str, Any]:
    """The error object of an answer; empty where there is none. Streams without SSE wrap it into an array."""
    try:
        envelope = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(envelope, list) and envelope:
        envelope = envelope[-1]
    about = envelope.get("error") if isinstance(envelope, Mapping) else None
    return about if isinstance(about, Mapping) else {}


def _detail(about: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One of the typed details of an error; empty where it has none."""
    details = about.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, Mapping) and detail.get("@type") == _RPC + kind:
            return detail
    return {}


def _seconds(delay: object) -> float | None:
    """A protobuf duration such as `"17.5s"`."""
    match = _DURATION.fullmatch(delay) if isinstance(delay, str) else None
    return float(match.group(1)) if match else None


def _named(kind: object) -> str:
    """An error's status in brackets, where it looks like one."""
    known = isinstance(kind, str) and len(kind) <= 64 and kind.isascii() and kind.isidentifier()
    return f" ({kind})" if known else ""
