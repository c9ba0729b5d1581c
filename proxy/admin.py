"""What an operator does with the books, as named operations with checked arguments.

The command line calls them on books that it opened itself, or sends them to a running gateway, whose admin listener
calls them on its own: one list of operations, one meaning, whoever holds the lock.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from attrs import define

from accounting.audit import Finding
from accounting.hold import Books
from accounting.records import Grant, GrantKind, Key, Wallet
from accounting.refusals import UnknownKey, UnknownWallet
from accounting.reports import Page, Query, Reader
from pricing.money import credits_of, micro_down, parse, show
from proxy.errors import Kind, Rejected
from proxy.keys import digest_of, hint_of, new_key
from proxy.shown import shown_usage

NAME_MAX: Final = 200
PATTERNS_MAX: Final = 200

CURRENCY: Final = "USD"
"""Of every price list, and so of every wallet: the same number of another currency would be another amount."""


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operation is given. An unknown name is refused: a limit that is misspelt must not be no limit."""


class WalletCreate(Arguments, frozen=True):
    """Make a wallet."""

    name: str = ""
    currency: str = CURRENCY


class WalletShow(Arguments, frozen=True):
    """Show one wallet."""

    wallet: str


class WalletList(Arguments, frozen=True):
    """List all wallets."""


class TopUp(Arguments, frozen=True):
    """Put credit into a wallet; the same `ref` twice is one top-up."""

    wallet: str
    amount: str
    ref: str | None = None
    promo: bool = False
    expires: str | None = None


class KeyCreate(Arguments, frozen=True):
    """Make a key for a wallet; it is shown once."""

    wallet: str
    name: str = ""
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    models: tuple[str, ...] = ()
    expires: str | None = None
    markup_ppm: int | None = None


class KeyList(Arguments, frozen=True):
    """List keys, of one wallet or all."""

    wallet: str | None = None


class KeyRevoke(Arguments, frozen=True):
    """Revoke a key; it is refused from the next request on."""

    key_id: str


class UsageList(Arguments, frozen=True):
    """List usage records, newest first."""

    wallet: str | None = None
    request: str | None = None
    model: str | None = None
    limit: int = 50
    cursor: str | None = None


class Verify(Arguments, frozen=True):
    """Check every invariant of the books."""


@define(eq=False)
class Admin:
    """The operations, over one set of open books.

    Attributes:
        books: the ledger and its writer.
        reader: reports.
        verify_books: runs the audit.
        key_prefix: of new keys.
        random_bytes: a cryptographic source.
    """

    books: Books
    reader: Reader
    verify_books: Callable[[], Awaitable[tuple[Finding, ...]]]
    key_prefix: str
    random_bytes: Callable[[int], bytes]

    async def call(self, operation: str, arguments: bytes) -> dict[str, Any]:
        """Run one operation on arguments in JSON.

        Raises:
            Rejected: no such operation, arguments that do not fit, or the books say no.
        """
        if operation not in OPERATIONS:
            raise Rejected(Kind.UNKNOWN_ROUTE, f"There is no operation {operation!r}.")
        shape, method = OPERATIONS[operation]
        try:
            asked: Any = msgspec.json.decode(arguments or b"{}", type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(Kind.BAD_REQUEST, f"{operation}: {error}") from None
        try:
            return await method(self, asked)
        except (UnknownWallet, UnknownKey) as error:
            raise Rejected(Kind.UNKNOWN_ROUTE, str(error)) from None
        except ValueError as error:
            raise Rejected(Kind.BAD_REQUEST, f"{operation}: {error}") from None

    async def wallet_create(self, asked: WalletCreate) -> dict[str, Any]:
        """Make a wallet."""
        if len(asked.name) > NAME_MAX:
            raise ValueError(f"name: expected at most {NAME_MAX} characters")
        if asked.currency != CURRENCY:
            raise ValueError(
                f"currency: expected {CURRENCY}, which all prices are in; others need rates of exchange and are "
                "not offered yet"
            )
        return self._wallet(await self.books.create_wallet(asked.name, asked.currency))

    async def wallet_list(self, _asked: WalletList) -> dict[str, Any]:
        """List all wallets."""
        wallets = self.books.ledger.wallets()
        return {"object": "list", "data": [self._wallet(wallet) for wallet in wallets]}

    async def wallet_show(self, asked: WalletShow) -> dict[str, Any]:
        """Show one wallet with its grants and keys."""
        ledger = self.books.ledger
        wallet = ledger.wallet(asked.wallet)
        shown = self._wallet(wallet)
        shown["grants"] = [_grant(grant, remaining) for grant, remaining in ledger.grants(asked.wallet)]
        shown["keys"] = [_key(key) for key in ledger.keys() if key.wallet == asked.wallet]
        return shown

    async def top_up(self, asked: TopUp) -> dict[str, Any]:
        """Put credit into a wallet, once per `ref`."""
        amount = parse(asked.amount)
        if amount == 0:
            raise ValueError("amount: expected more than 0")
        ref = asked.ref if asked.ref is not None else self.books.new_id("top")
        if not ref or len(ref) > NAME_MAX:
            raise ValueError(f"ref: expected 1 to {NAME_MAX} characters")
        kind = GrantKind.PROMO if asked.promo else GrantKind.PAID
        grant, already = await self.books.top_up(
            asked.wallet, amount, kind, f"manual:{ref}", expires_ms=_when(asked.expires)
        )
        if already and (grant.wallet, grant.amount, grant.kind) != (asked.wallet, amount, kind):
            raise Rejected(
                Kind.BAD_REQUEST,
                f"ref {ref!r} was used before, for {show(grant.amount)} ({grant.kind.value}) to wallet "
                f"{grant.wallet}; nothing was done.",
                status=409,
            )
        shown = self._wallet(self.books.ledger.wallet(asked.wallet))
        return {
            "grant": grant.grant,
            "ref": ref,
            "amount": show(grant.amount),
            "already": already,
            **shown,
        }

    async def key_create(self, asked: KeyCreate) -> dict[str, Any]:
        """Make a key; the answer is the only place where it is ever shown."""
        self.books.ledger.wallet(asked.wallet)
        for name in ("rpm", "tpm", "concurrency"):
            limit = getattr(asked, name)
            if limit is not None and not 1 <= limit <= 10**9:
                raise ValueError(f"{name}: expected 1 to 1000000000")
        if asked.markup_ppm is not None and not 0 <= asked.markup_ppm <= 10**9:
            raise ValueError("markup_ppm: expected 0 to 1000000000")
        if len(asked.name) > NAME_MAX:
            raise ValueError(f"name: expected at most {NAME_MAX} characters")
        if len(asked.models) > PATTERNS_MAX or not all(0 < len(one) <= NAME_MAX for one in asked.models):
            raise ValueError(f"models: expected at most {PATTERNS_MAX} patterns such as openai/*")
        expires_ms = _when(asked.expires)
        if expires_ms is not None and expires_ms <= self.books.clock():
            raise ValueError("expires: expected a time in the future")
        secret = new_key(self.key_prefix, self.random_bytes)
        key = Key(
            key=self.books.new_id("key"),
            wallet=asked.wallet,
            digest=digest_of(secret),
            hint=hint_of(secret, self.key_prefix),
            at_ms=self.books.clock(),
            name=asked.name,
            requests_per_minute=asked.rpm,
            tokens_per_minute=asked.tpm,
            concurrency=asked.concurrency,
            models=asked.models,
            markup_ppm=asked.markup_ppm,
            expires_ms=expires_ms,
        )
        await self.books.create_key(key)
        return {"key": secret, "key_id": key.key, **{k: v for k, v in _key(key).items() if k != "key_id"}}

    async def key_list(self, asked: KeyList) -> dict[str, Any]:
        """List keys; never the keys themselves."""
        self._check_wallet(asked.wallet)
        keys = [key for key in self.books.ledger.keys() if asked.wallet in (None, key.wallet)]
        return {"object": "list", "data": [_key(key) for key in keys]}

    async def key_revoke(self, asked: KeyRevoke) -> dict[str, Any]:
        """Revoke a key."""
        return _key(await self.books.revoke_key(asked.key_id))

    async def usage(self, asked: UsageList) -> dict[str, Any]:
        """List usage records, of everybody or one wallet; or all attempts of one request."""
        self._check_wallet(asked.wallet)
        if asked.request is not None:
            found = await self.reader.usage_of(asked.request, asked.wallet)
            return {
                "object": "list",
                "data": [_operator_usage(record) for record in found],
                "next_cursor": None,
            }
        if not 1 <= asked.limit <= 1000:
            raise ValueError("limit: expected 1 to 1000")
        page: Page = await self.reader.page(
            Query(wallet=asked.wallet, model=asked.model, limit=asked.limit, cursor=asked.cursor)
        )
        return {
            "object": "list",
            "data": [_operator_usage(record) for record in page.records],
            "next_cursor": page.next_cursor,
        }

    async def verify(self, _asked: Verify) -> dict[str, Any]:
        """Check every invariant of the books."""
        findings = await self.verify_books()
        return {
            "ok": not findings,
            "findings": [
                {"invariant": finding.invariant, "what": finding.what, "where": finding.where}
                for finding in findings
            ],
        }

    def _check_wallet(self, wallet: str | None) -> None:
        """Tell a wallet that is not there from one that is empty. Raises `UnknownWallet`."""
        if wallet is not None:
            self.books.ledger.wallet(wallet)

    def _wallet(self, wallet: Wallet) -> dict[str, Any]:
        balance = self.books.balance(wallet.wallet)
        return {
            "wallet": wallet.wallet,
            "name": wallet.name,
            "currency": wallet.currency,
            "frozen": wallet.frozen,
            "created_at": _iso(wallet.at_ms),
            "balance": show(balance.balance),
            "held": show(balance.held),
            "available": show(balance.available),
            "credits": credits_of(balance.balance),
            "balance_micro": micro_down(balance.balance),
        }


OPERATIONS: Final[dict[str, tuple[type, Callable[[Admin, Any], Awaitable[dict[str, Any]]]]]] = {
    "wallet_create": (WalletCreate, Admin.wallet_create),
    "wallet_list": (WalletList, Admin.wallet_list),
    "wallet_show": (WalletShow, Admin.wallet_show),
    "top_up": (TopUp, Admin.top_up),
    "key_create": (KeyCreate, Admin.key_create),
    "key_list": (KeyList, Admin.key_list),
    "key_revoke": (KeyRevoke, Admin.key_revoke),
    "usage": (UsageList, Admin.usage),
    "verify": (Verify, Admin.verify),
}
"""Every operation by name: its arguments, and what runs it."""

READS: Final = frozenset({"wallet_list", "wallet_show", "key_list", "usage", "verify"})
"""Operations that change nothing; they work on a closed state directory without repairing it."""


def _operator_usage(record: Any) -> dict[str, Any]:
    """A usage record with what only the operator may see."""
    return shown_usage(record) | {
        "wallet": record.wallet,
        "key_id": record.key,
        "provider": record.provider,
        "account": record.account,
        "provider_cost": show(record.cost),
        "loss": show(record.loss),
        "flags": list(record.flags),
        "upstream_id": record.upstream_id,
    }


def _grant(grant: Grant, remaining: int) -> dict[str, Any]:
    return {
        "grant": grant.grant,
        "kind": grant.kind.value,
        "amount": show(grant.amount),
        "remaining": show(remaining),
        "source": grant.source_key,
        "created_at": _iso(grant.at_ms),
        "expires_at": _iso(grant.expires_ms),
    }


def _key(key: Key) -> dict[str, Any]:
    return {
        "key_id": key.key,
        "wallet": key.wallet,
        "hint": key.hint,
        "name": key.name,
        "rpm": key.requests_per_minute,
        "tpm": key.tokens_per_minute,
        "concurrency": key.concurrency,
        "models": list(key.models),
        "markup_ppm": key.markup_ppm,
        "created_at": _iso(key.at_ms),
        "expires_at": _iso(key.expires_ms),
        "revoked": key.revoked,
    }


def _iso(at_ms: int | None) -> str | None:
    return (
        None
        if at_ms is None
        else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    )


def _when(text: str | None) -> int | None:
    """An ISO date or time as wall clock in ms; without an offset it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"expires: expected a date such as 2027-01-31 or 2027-01-31T12:00:00Z, not {text!r}"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
