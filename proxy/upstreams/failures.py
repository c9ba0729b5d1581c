"""What a provider's error answer means: whose fault it is, who is told what, how long the account rests.

Pure. A 401, 402, 403 or 429 is about the operator's account and never reaches a caller as such. A 400-class
answer about the request itself does, without anything of the operator's in it. All else is the provider's
failure.

Callers can make a provider quote them in its error texts, so no text alone ever puts an account to rest: only
statuses, codes, and sentences that a message begins with.
"""

import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from proxy.config import Failover
from proxy.dialects.scrub import scrub
from proxy.errors import Kind, Rejected, UpstreamFailed
from proxy.types import ProviderError

ABOUT_THE_REQUEST: Final = frozenset({400, 404, 409, 413, 422})
ABOUT_THE_ACCOUNT: Final = frozenset({401, 402, 403})

ACCOUNT_CODES: Final = frozenset(
    {
        "account_deactivated", "api_key_expired", "api_key_invalid", "authentication_error", "billing_error",
        "billing_hard_limit_reached", "billing_not_active", "insufficient_quota", "invalid_api_key",
    }
)  # fmt: skip
"""Codes by which providers say, under any status, that the credential or its credit is at fault."""

ACCOUNT_SENTENCES: Final = (
    "API key not valid",  # Gemini, as a 400
    "API key expired",
    "Your credit balance is too low",  # Anthropic, as a 400
    "This organization has been disabled",
    "User location is not supported",  # Gemini, as a 400: where the gateway runs
)


@frozen
class Leave:
    """How long an account is to be left alone.

    Attributes:
        because: in a few words, for the operator.
        hard: not even as a last resort.
        whole: the account, or else the model there.
    """

    seconds: float
    because: str
    hard: bool
    whole: bool


class ProviderFailed(UpstreamFailed):
    """An attempt failed in a way that says something about the account. `leave` says what."""

    def __init__(self, kind: Kind, message: str, leave: Leave, **more: object) -> None:
        super().__init__(kind, message, try_another=True, **more)
        self.leave = leave


def judge(
    status: int,
    headers: Mapping[str, str],
    error: ProviderError,
    failover: Failover,
    hidden: Iterable[str],
) -> Rejected | ProviderFailed:
    """Say what an answer that is not a 200 means.

    Args:
        status: its status.
        headers: its headers, lower-case names.
        error: its body, as the dialect reads it.
        failover: how long to leave whom alone.
        hidden: what must not appear in any message: credentials, the operator's own URLs.
    """
    because = scrub(_because(status, error), hidden)  # it goes into the log
    if status == 429 and not _is_account(error):
        seconds = min(
            _retry_after(headers, error) or failover.rest_limited_seconds, failover.rest_limited_seconds_max
        )
        leave = Leave(seconds, because, hard=True, whole=False)
        message = "The provider takes no more requests for now."
        return ProviderFailed(Kind.NO_HEALTHY_UPSTREAM, message, leave, retry_after_seconds=seconds)
    if status in ABOUT_THE_ACCOUNT or _is_account(error):
        # a 403 may be about one model that the account has no access to; the others are about all of it
        leave = Leave(failover.rest_refused_seconds, because, hard=True, whole=status != 403)
        message = "No account is available at the provider for now."
        return ProviderFailed(Kind.NO_HEALTHY_UPSTREAM, message, leave)
    if status in ABOUT_THE_REQUEST and not _is_missing_model(status, error):
        message = scrub(error.message, hidden) or f"The provider refused the request (status {status})."
        return Rejected(Kind.REFUSED_UPSTREAM, message, status=status, param=error.param)
    message = f"The provider failed (status {status})."
    return ProviderFailed(
        Kind.UPSTREAM_ERROR, message, Leave(failover.rest_failed_seconds, because, hard=False, whole=False)
    )


def private(base_url: str, secrets: Iterable[str]) -> tuple[str, ...]:
    """What belongs to the operator and is never told: credentials, the base URL, and its host."""
    return (*secrets, base_url, urlsplit(base_url).netloc)


def _because(status: int, error: ProviderError) -> str:
    code = re.sub(r"[^A-Za-z0-9_.-]", "", error.code or error.type or "")[:64]
    return f"{status} {code}".strip()


def _is_account(error: ProviderError) -> bool:
    said = {(error.code or "").lower(), (error.type or "").lower()}
    return not said.isdisjoint(ACCOUNT_CODES) or error.message.startswith(ACCOUNT_SENTENCES)


def _is_missing_model(status: int, error: ProviderError) -> bool:
    """The provider does not know the model or the path: our configuration, not the caller's request.

    References to things stored at a provider are refused before they are sent: a 404 is hardly anything else.
    """
    return error.code == "model_not_found" or (status == 404 and error.param in (None, "model"))


def _retry_after(headers: Mapping[str, str], error: ProviderError) -> float | None:
    """Seconds, from where the provider says them: header (milliseconds, seconds, a date), or body."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
            return float(value) * unit
    try:
        until, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max((until - now).total_seconds(), 0.0)
    except (KeyError, ValueError, TypeError):
        return error.retry_after_seconds
