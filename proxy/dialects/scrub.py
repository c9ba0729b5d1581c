"""Take out of a provider's sentence whose account it is about: what a caller may read of it."""

import re
from collections.abc import Iterable
from typing import Final

MESSAGE_CHARACTERS_MAX: Final = 2000
"""Of a provider's sentence about a request; longer ones quote the request."""

_PRIVATE: Final = (
    (re.compile(r"\borg-[A-Za-z0-9*]{4,}"), "org-…"),
    (re.compile(r"\bproj_[A-Za-z0-9*]{4,}"), "proj_…"),
    (re.compile(r"\b(?:acct|user|team|workspace|wrkspc|account)[-_][A-Za-z0-9*]{8,}"), "…"),
    (re.compile(r"\b(projects?[/ :=]|project_number[:=])\s*[\"']?[A-Za-z0-9_-]*\d[A-Za-z0-9_-]*"), r"\1…"),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai)-[A-Za-z0-9_*\-]{4,}"), "…"),
    (re.compile(r"\bAIza[A-Za-z0-9_*\-]{4,}"), "…"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "…"),
    (re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}"), "…"),
)
"""What providers put into their sentences about whose account it is."""

_ADDRESS: Final = re.compile(r"https?://\S+")


def scrub(text: str, hidden: Iterable[str] | None = None) -> str:
    """Make a provider's sentence fit for a caller: one printable line without organisations, keys and accounts.

    Args:
        text: as the provider said it.
        hidden: what else belongs to the operator (credentials, own URLs); where it is not known (`None`), every
            address goes.

    >>> scrub("Rate limit reached for gpt-4o in organization org-AbC123xyz on tokens per min.")
    'Rate limit reached for gpt-4o in organization org-… on tokens per min.'
    """
    for secret in hidden or ():
        if secret:
            text = text.replace(secret, "…")
    if hidden is None:
        text = _ADDRESS.sub("…", text)
    for pattern, instead in _PRIVATE:
        text = pattern.sub(instead, text)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MESSAGE_CHARACTERS_MAX else text[: MESSAGE_CHARACTERS_MAX - 1] + "…"
