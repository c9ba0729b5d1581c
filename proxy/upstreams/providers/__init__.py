"""What each kind of provider wants: URL and headers, and which of its answer's headers go on; pure."""

from typing import Final

from proxy.types import Ask, Headers

USER_AGENT: Final = "farebox"

TRAVELLING: Final = frozenset({"accept", "anthropic-beta", "anthropic-version", "openai-beta"})
"""The caller's headers that go on to a provider. Whatever a dialect let through, nothing else ever does."""

HEADER_BYTES_MAX: Final = 4096
"""Of one header's value; the longest list of beta flags seen is a few hundred."""


def common(ask: Ask) -> Headers:
    """The headers that every kind of provider gets.

    Compression is declined: answers are passed on as they come and searched for usage reports.
    """
    travelling = tuple(
        (name, value) for name, value in ask.headers if name in TRAVELLING and _is_plain(value)
    )
    return (
        ("user-agent", USER_AGENT),
        ("accept-encoding", "identity"),
        ("content-type", "application/json"),
        *travelling,
    )


def has(headers: Headers, name: str) -> bool:
    """Whether there is a header of that (lower-case) name."""
    return any(one == name for one, _ in headers)


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= HEADER_BYTES_MAX
