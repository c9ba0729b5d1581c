"""From the headers of a request to its Caller: one function for every carrier of a key, and the shape of keys.

Keys are looked up by digest in memory, so nothing here compares secrets. A key carries a checksum, by which typing
errors are told from keys that are not known. No such string ever reaches a log.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from urllib.parse import parse_qsl

from attrs import field, frozen

from accounting.records import Key, Spender
from proxy.errors import Kind, Rejected
from proxy.types import Caller, DialectName, KeyLimits

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS: Final = 43
"""43 characters of 62 are 256 bits."""
_CHECK_CHARS: Final = 6
"""62⁶ is more than 2³²: a CRC-32 fits."""
_KEY_BYTES_MAX: Final = 256

CARRIERS: Final = ("authorization", "x-api-key", "x-user-key", "x-goog-api-key")


class KeyStore(Protocol):
    """Where keys are known by digest: the ledger."""

    def key_by_digest(self, digest: str) -> Key | None:
        """The key with this SHA-256 digest in hex, revoked or not."""
        ...


def new_key(prefix: str, random_bytes: Callable[[int], bytes]) -> str:
    """Make a key: prefix, 256 random bits, and a checksum over both.

    Args:
        prefix: `fb_sk_` or the operator's own.
        random_bytes: a cryptographic source, such as `secrets.token_bytes`.
    """
    secret = _base62(int.from_bytes(random_bytes(32), "big"), _SECRET_CHARS)
    return prefix + secret + _checksum(prefix + secret)


def digest_of(key: str) -> str:
    """What is stored of a key: SHA-256 in hex. 256 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def hint_of(key: str, prefix: str) -> str:
    """What is shown of a key later, to recognise it by."""
    return f"{key[: len(prefix) + 4]}…{key[-4:]}"


@frozen
class KeyRing:
    """Turns what a client sends into a Caller.

    Attributes:
        store: the ledger.
        prefix: of keys with a checksum; others (made under an earlier prefix) are looked up without that check.
        clock: wall clock in milliseconds.
    """

    store: KeyStore
    prefix: str
    clock: Callable[[], int]
    _callers: dict[str, tuple[Key, Caller]] = field(factory=dict, init=False, repr=False)
    """What each key comes to, made anew when its record has changed."""

    def caller(self, headers: Mapping[str, str], query: str, dialect: DialectName | None) -> Caller:
        """Find out who asks.

        Raises:
            Rejected: no key, two different ones, or one that is unknown, expired or revoked.
        """
        record = self.record(headers, query, dialect)
        known = self._callers.get(record.key)
        if known is not None and known[0] is record:
            return known[1]
        caller = Caller(
            spender=Spender(record.wallet, record.key),
            limits=KeyLimits(
                requests_per_minute=record.requests_per_minute,
                tokens_per_minute=record.tokens_per_minute,
                concurrency=record.concurrency,
            ),
            models=record.models,
            markup_ppm=record.markup_ppm,
            expires_ms=record.expires_ms,
            clamp=record.clamp,
        )
        self._callers[record.key] = (record, caller)
        return caller

    def record(self, headers: Mapping[str, str], query: str, dialect: DialectName | None) -> Key:
        """The valid key of a request, as the books know it. Raises like `caller`."""
        presented = _presented(headers, query, dialect)
        if not presented:
            raise _refused(
                "No API key was given. Send it as `Authorization: Bearer`, `x-api-key` or `x-goog-api-key`."
            )
        key = presented.pop()
        if presented:
            raise _refused("Two different API keys were given in one request. Send one.")
        record = self.store.key_by_digest(digest_of(key)) if len(key) <= _KEY_BYTES_MAX else None
        if record is None:
            because = "is not known here" if self._well_formed(key) else "is not a key of this gateway"
            raise _refused(f"The API key {because}.")
        if record.revoked:
            raise _refused("The API key has been revoked.")
        if record.expires_ms is not None and record.expires_ms <= self.clock():
            raise _refused("The API key has expired.")
        return record

    def presents_a_key(self, headers: Mapping[str, str], query: str, dialect: DialectName | None) -> bool:
        """Whether a request carries any key at all, good or bad."""
        return bool(_presented(headers, query, dialect))

    def _well_formed(self, key: str) -> bool:
        if not key.isascii() or not key.isprintable() or len(key) > _KEY_BYTES_MAX:
            return False
        if not key.startswith(self.prefix) or len(key) != len(self.prefix) + _SECRET_CHARS + _CHECK_CHARS:
            return True  # made under another prefix; the digest decides
        return key[-_CHECK_CHARS:] == _checksum(key[:-_CHECK_CHARS])


def _presented(headers: Mapping[str, str], query: str, dialect: DialectName | None) -> set[str]:
    found = set()
    for carrier in CARRIERS:
        if carrier not in headers:
            continue
        value = headers[carrier]
        if carrier == "authorization":
            scheme, _, value = value.partition(" ")
            if scheme != "Bearer" and scheme.lower() != "bearer":
                raise _refused("The authorization scheme must be Bearer.")
        if value := value.strip():
            found.add(value)
    if dialect == "gemini" and "key=" in query:
        found.update(value for name, value in parse_qsl(query) if name == "key" and value)
    return found


def _refused(message: str) -> Rejected:
    return Rejected(Kind.NO_KEY, message)


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode()), _CHECK_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
