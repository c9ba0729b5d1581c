"""What an operator does with the books, as named operations with checked arguments.

The command line calls them on books that it opened itself, or sends them to a running gateway, whose admin listener
calls them on its own: one list of operations, one meaning, whoever holds the lock.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from attrs import define, field
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from accounting import export
from accounting.audit import Finding
from accounting.books import Books
from accounting.records import CapWindow, Grant, GrantKind, Key, Wallet
from accounting.refusals import UnknownKey, UnknownWallet
from accounting.reports import Page, Query, Reader
from accounting.spending import window_ends_ms
from accounting.store import StoreError
from pricing.money import Pico, credits_of, micro_down, parse, show
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


class WalletFreeze(Arguments, frozen=True):
    """Freeze a wallet, or thaw it: a frozen one takes no new requests; what is under way is settled."""

    wallet: str
    frozen: bool = True


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
    cap: str | None = None
    cap_window: CapWindow = "lifetime"
    clamp: bool = False


class KeyChange(Arguments, frozen=True):
    """Change a key's limits: what is not named stays, `null` takes a limit away."""

    key_id: str
    name: str | UnsetType = UNSET
    rpm: int | UnsetType | None = UNSET
    tpm: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    models: tuple[str, ...] | UnsetType = UNSET
    expires: str | UnsetType | None = UNSET
    markup_ppm: int | UnsetType | None = UNSET
    cap: str | UnsetType | None = UNSET
    cap_window: CapWindow | UnsetType = UNSET
    clamp: bool | UnsetType = UNSET


class KeyShow(Arguments, frozen=True):
    """Show one key with its limits and what it has spent under its cap."""

    key_id: str


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


class Durable(Arguments, frozen=True):
    """Say which record is the last that is on the platter for certain."""


class ExportBegin(Arguments, frozen=True):
    """Load what is written by now, and say up to which record."""


class ExportPage(Arguments, frozen=True):
    """Give a page of a table, as lines of JSON."""

    table: str
    upto: int
    after: tuple[int, str] = export.START


async def _not_loaded() -> int:
    """Of books that are only read."""
    raise Rejected(Kind.BAD_REQUEST, "These books are only read; they cannot be exported.")


@define(eq=False)
class Admin:
    """The operations, over one set of open books.

    Attributes:
        books: the ledger and its writer.
        reader: reports.
        verify_books: runs the audit.
        key_prefix: of new keys.
        random_bytes: a cryptographic source.
        load_books: returns once all that is written by now is in the store; says the last record that is.
    """

    books: Books
    reader: Reader
    verify_books: Callable[[], Awaitable[tuple[Finding, ...]]]
    key_prefix: str
    random_bytes: Callable[[int], bytes]
    load_books: Callable[[], Awaitable[int]] = field(default=_not_loaded, kw_only=True)

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
        wallet = await self.books.create_wallet(asked.name, asked.currency)
        return self._wallet(wallet, {wallet.wallet: wallet.at_ms})

    async def wallet_list(self, _asked: WalletList) -> dict[str, Any]:
        """List all wallets."""
        wallets, created = self.books.ledger.wallets(), await self._created("wallet")
        return {"object": "list", "data": [self._wallet(wallet, created) for wallet in wallets]}

    async def wallet_show(self, asked: WalletShow) -> dict[str, Any]:
        """Show one wallet with its grants and keys."""
        ledger = self.books.ledger
        wallet = ledger.wallet(asked.wallet)
        shown = await self._wallet_now(wallet)
        shown["grants"] = [_grant(grant, remaining) for grant, remaining in ledger.grants(asked.wallet)]
        created = await self._created("api_key")
        shown["keys"] = [self._key(key, created) for key in ledger.keys() if key.wallet == asked.wallet]
        return shown

    async def wallet_freeze(self, asked: WalletFreeze) -> dict[str, Any]:
        """Freeze or thaw a wallet; one that is so already stays so, and nothing is written."""
        wallet = self.books.ledger.wallet(asked.wallet)
        if wallet.frozen != asked.frozen:
            wallet = await self.books.freeze_wallet(asked.wallet, frozen=asked.frozen)
        return await self._wallet_now(wallet)

    async def top_up(self, asked: TopUp) -> dict[str, Any]:
        """Put credit into a wallet, once per `ref`."""
        amount = _amount("amount", asked.amount)
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
        shown = await self._wallet_now(self.books.ledger.wallet(asked.wallet))
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
        limits = self._limits(asked)
        secret = new_key(self.key_prefix, self.random_bytes)
        key = Key(
            key=self.books.new_id("key"),
            wallet=asked.wallet,
            digest=digest_of(secret),
            hint=hint_of(secret, self.key_prefix),
            at_ms=self.books.clock(),
            **limits,
        )
        if key.cap is None and key.cap_window != "lifetime":
            raise ValueError("cap_window: expected a cap beside it")
        await self.books.create_key(key)
        shown = self._key(key, {key.key: key.at_ms})
        return {"key": secret, "key_id": shown.pop("key_id"), **shown}

    async def key_change(self, asked: KeyChange) -> dict[str, Any]:
        """Change what is named of a key; it holds from the next request on."""
        key, limits = self.books.ledger.key(asked.key_id), self._limits(asked)
        if key.revoked:
            raise ValueError(f"key {key.key!r} is revoked; make a new one")
        if not limits:
            raise ValueError("expected something to change")
        if limits.get("cap", key.cap) is None:
            if limits.get("cap_window", "lifetime") != "lifetime":
                raise ValueError("cap_window: expected a cap beside it")
            limits["cap_window"] = "lifetime"
        key = replace(key, **limits, at_ms=self.books.clock())
        return await self._key_now(await self.books.change_key(key))

    async def key_show(self, asked: KeyShow) -> dict[str, Any]:
        """Show one key; never the key itself."""
        return await self._key_now(self.books.ledger.key(asked.key_id))

    async def key_list(self, asked: KeyList) -> dict[str, Any]:
        """List keys; never the keys themselves."""
        self._check_wallet(asked.wallet)
        created = await self._created("api_key")
        keys = [key for key in self.books.ledger.keys() if asked.wallet in (None, key.wallet)]
        return {"object": "list", "data": [self._key(key, created) for key in keys]}

    async def key_revoke(self, asked: KeyRevoke) -> dict[str, Any]:
        """Revoke a key."""
        return await self._key_now(await self.books.revoke_key(asked.key_id))

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

    async def durable(self, _asked: Durable) -> dict[str, Any]:
        """Return once all that is written by now is on the platter."""
        seq = self.books.seq
        await self.books.writer.durable(seq)
        return {"seq": seq}

    async def export_begin(self, _asked: ExportBegin) -> dict[str, Any]:
        """Return once all that is written by now can be exported."""
        return {"upto": await self.load_books()}

    async def export_page(self, asked: ExportPage) -> dict[str, Any]:
        """Give a page of a table."""
        table = export.BY_NAME.get(asked.table)
        if table is None:
            raise ValueError(f"table: expected one of {', '.join(export.BY_NAME)}")
        page = await export.page(self.reader.ask, table, asked.upto, asked.after)
        return {"lines": page.lines, "after": page.after}

    def _check_wallet(self, wallet: str | None) -> None:
        """Tell a wallet that is not there from one that is empty. Raises `UnknownWallet`."""
        if wallet is not None:
            self.books.ledger.wallet(wallet)

    def _limits(self, asked: KeyCreate | KeyChange) -> dict[str, Any]:
        """What is asked for of a key, by the names of its record. Raises ValueError for what cannot be."""
        given = {name: value for name in _LIMITS if (value := getattr(asked, name)) is not UNSET}
        for name in ("rpm", "tpm", "concurrency"):
            limit = given.get(name)
            if limit is not None and not 1 <= limit <= 10**9:
                raise ValueError(f"{name}: expected 1 to 1000000000")
        markup = given.get("markup_ppm")
        if markup is not None and not 0 <= markup <= 10**9:
            raise ValueError("markup_ppm: expected 0 to 1000000000")
        if len(given.get("name", "")) > NAME_MAX:
            raise ValueError(f"name: expected at most {NAME_MAX} characters")
        models = given.get("models", ())
        if len(models) > PATTERNS_MAX or not all(0 < len(one) <= NAME_MAX for one in models):
            raise ValueError(f"models: expected at most {PATTERNS_MAX} patterns such as openai/*")
        if "expires" in given:
            given["expires"] = _when(given["expires"])
            if given["expires"] is not None and given["expires"] <= self.books.clock():
                raise ValueError("expires: expected a time in the future")
        if given.get("cap") is not None:
            given["cap"] = _amount("cap", given["cap"])
        return {_LIMITS[name]: value for name, value in given.items()}

    async def _created(
        self, table: Literal["wallet", "api_key"], which: str | None = None
    ) -> dict[str, int] | None:
        """When they were made, as far as the store has it; `None`: it cannot be asked, and nothing waits for it."""
        try:
            return await self.reader.created(table, which)
        except StoreError:
            return None

    async def _wallet_now(self, wallet: Wallet) -> dict[str, Any]:
        created = await self._created("wallet", wallet.wallet)
        return self._wallet(self.books.ledger.wallet(wallet.wallet), created)

    def _wallet(self, wallet: Wallet, created: dict[str, int] | None) -> dict[str, Any]:
        balance = self.books.balance(wallet.wallet)
        return {
            "wallet": wallet.wallet,
            "name": wallet.name,
            "currency": wallet.currency,
            "frozen": wallet.frozen,
            "created_at": _created_at(created, wallet.wallet, wallet.at_ms),
            "balance": show(balance.balance),
            "held": show(balance.held),
            "available": show(balance.available),
            "credits": credits_of(balance.balance),
            "balance_micro": micro_down(balance.balance),
        }

    async def _key_now(self, key: Key) -> dict[str, Any]:
        return self._key(key, await self._created("api_key", key.key))

    def _key(self, key: Key, created: dict[str, int] | None) -> dict[str, Any]:
        now = self.books.clock()
        spent, held = self.books.ledger.spent_within_cap(key.key, now)
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
            "cap": None if key.cap is None else show(key.cap),
            "cap_window": None if key.cap is None else key.cap_window,
            "cap_spent": None if key.cap is None else show(spent),
            "cap_held": None if key.cap is None else show(held),
            "cap_resets_at": None if key.cap is None else _iso(window_ends_ms(key.cap_window, now)),
            "clamp": key.clamp,
            "created_at": _created_at(created, key.key, key.at_ms),
            "expires_at": _iso(key.expires_ms),
            "revoked": key.revoked,
        }


_LIMITS: Final = {
    "name": "name",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "concurrency": "concurrency",
    "models": "models",
    "expires": "expires_ms",
    "markup_ppm": "markup_ppm",
    "cap": "cap",
    "cap_window": "cap_window",
    "clamp": "clamp",
}
"""What may be said of a key, and what its record calls that."""


OPERATIONS: Final[dict[str, tuple[type, Callable[[Admin, Any], Awaitable[dict[str, Any]]]]]] = {
    "wallet_create": (WalletCreate, Admin.wallet_create),
    "wallet_list": (WalletList, Admin.wallet_list),
    "wallet_show": (WalletShow, Admin.wallet_show),
    "wallet_freeze": (WalletFreeze, Admin.wallet_freeze),
    "top_up": (TopUp, Admin.top_up),
    "key_create": (KeyCreate, Admin.key_create),
    "key_change": (KeyChange, Admin.key_change),
    "key_show": (KeyShow, Admin.key_show),
    "key_list": (KeyList, Admin.key_list),
    "key_revoke": (KeyRevoke, Admin.key_revoke),
    "usage": (UsageList, Admin.usage),
    "verify": (Verify, Admin.verify),
    "durable": (Durable, Admin.durable),
    "export_begin": (ExportBegin, Admin.export_begin),
    "export_page": (ExportPage, Admin.export_page),
}
"""Every operation by name: its arguments, and what runs it."""

READS: Final = frozenset({"wallet_list", "wallet_show", "key_show", "key_list", "usage"})
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


def _amount(name: str, text: str) -> Pico:
    """An amount of money that is more than nothing."""
    amount = parse(text)
    if amount == 0:
        raise ValueError(f"{name}: expected more than 0")
    return amount


def _created_at(created: dict[str, int] | None, which: str, at_ms: int) -> str | None:
    """When it was made: what is not in the store yet was made just now, and its line is its first."""
    return None if created is None else _iso(created.get(which, at_ms))


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
