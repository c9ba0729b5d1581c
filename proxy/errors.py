"""What can go wrong with a request: whose fault it is, what may be done, and one table of statuses.

`Rejected`: we refused it and nothing was sent. `UpstreamFailed`: an account or provider failed before anything
was relayed, another may be tried. `StreamBroken`: too late for a status, the stream ends with the dialect's
own error event. Dialects word them, doors send them; foreign exceptions are mapped to these at the border.
"""

from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from accounting.records import Ending


class Kind(StrEnum):
    """The situations of the public error table."""

    NO_KEY = "no_key"
    NO_CREDIT = "no_credit"
    NOT_ALLOWED = "not_allowed"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_ROUTE = "unknown_route"
    WRONG_METHOD = "wrong_method"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    REFUSED_UPSTREAM = "refused_upstream"
    UPSTREAM_ERROR = "upstream_error"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


@frozen
class Row:
    """One line of the table.

    Attributes:
        status: HTTP status.
        openai_type, openai_code, anthropic_type, gemini_status: how each dialect names the situation.
        should_retry: what `x-should-retry` says; `None` leaves the header out.
    """

    status: int
    openai_type: str
    openai_code: str
    anthropic_type: str
    gemini_status: str
    should_retry: bool | None


_BAD = "invalid_request_error"

TABLE: Final = MappingProxyType(
    {
        Kind.NO_KEY: Row(401, _BAD, "invalid_api_key", "authentication_error", "UNAUTHENTICATED", False),
        # never insufficient_quota: a client was seen to retry that for a minute
        Kind.NO_CREDIT: Row(
            402, "insufficient_credits", "insufficient_credits", "billing_error", "RESOURCE_EXHAUSTED", False
        ),
        Kind.NOT_ALLOWED: Row(403, _BAD, "permission_denied", "permission_error", "PERMISSION_DENIED", False),
        Kind.UNKNOWN_MODEL: Row(404, _BAD, "model_not_found", "not_found_error", "NOT_FOUND", False),
        Kind.UNKNOWN_ROUTE: Row(404, _BAD, "not_found", "not_found_error", "NOT_FOUND", False),
        Kind.WRONG_METHOD: Row(405, _BAD, "method_not_allowed", _BAD, "INVALID_ARGUMENT", False),
        Kind.BAD_REQUEST: Row(400, _BAD, _BAD, _BAD, "INVALID_ARGUMENT", False),
        Kind.TOO_LARGE: Row(413, _BAD, "request_too_large", "request_too_large", "INVALID_ARGUMENT", False),
        Kind.RATE_LIMITED: Row(
            429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED", None
        ),
        Kind.REFUSED_UPSTREAM: Row(400, _BAD, _BAD, _BAD, "INVALID_ARGUMENT", False),
        Kind.UPSTREAM_ERROR: Row(502, "upstream_error", "upstream_error", "api_error", "INTERNAL", True),
        Kind.NO_HEALTHY_UPSTREAM: Row(
            503, "upstream_error", "no_healthy_upstream", "overloaded_error", "UNAVAILABLE", None
        ),
        Kind.OVERLOADED: Row(503, "server_error", "overloaded", "overloaded_error", "UNAVAILABLE", None),
        Kind.TIMEOUT: Row(504, "timeout_error", "timeout_error", "timeout_error", "DEADLINE_EXCEEDED", True),
        Kind.INTERNAL: Row(500, "server_error", "internal_error", "api_error", "INTERNAL", True),
    }
)


class Failure(Exception):
    """A situation of the table, with what the caller may be told about it.

    Args:
        kind: the situation.
        message: a sentence for the caller; never a secret, an account or a provider's internals.
        param: the field or header at fault, where there is one.
        metadata: facts that a machine can act on (402: `limit`, `shortfall_micro` …).
        retry_after_seconds: when trying again may help.
        status: overrides the table's, for a provider's own 400-class answer about the request.
        ending: what it means for the bill of an attempt that is open when it is raised.
    """

    default_ending = Ending.INTERNAL

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        metadata: dict[str, Any] | None = None,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        ending: Ending | None = None,
    ) -> None:
        super().__init__(message)
        self.ending = ending if ending is not None else self.default_ending
        self.kind = kind
        self.message = message
        self.param = param
        self.metadata = metadata
        self.retry_after_seconds = retry_after_seconds
        self.row = TABLE[kind]
        self.status = status if status is not None else self.row.status


class Rejected(Failure):
    """Refused by us, or by the provider as a request; nothing was generated and it costs nothing."""

    default_ending = Ending.REFUSED


class UpstreamFailed(Failure):
    """An attempt failed before anything of its body was relayed.

    Args:
        try_another: whether another account may be tried (the failure says nothing about the request itself).
        more: as for `Failure`; `ending` says whether it was refused, not reached, or too slow.
    """

    default_ending = Ending.REFUSED

    def __init__(self, kind: Kind, message: str, *, try_another: bool, **more: Any) -> None:
        super().__init__(kind, message, **more)
        self.try_another = try_another


class StreamBroken(Failure):
    """The answer broke off after some of it was relayed; there is no status left to send."""

    default_ending = Ending.BROKEN
