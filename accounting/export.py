"""The books for other tools: every table, page by page, and the general ledger as plain-text accounting.

A page is a run of lines of JSON that the store itself has written, so that a running gateway only passes text on.
Amounts stand in it as exact decimals of the currency, in strings: no reader of JSON makes a float of them. Whoever
asks for all pages up to one seq sees the books as of then, however much is written meanwhile: rows are only ever
added, wallets and keys aside, of which the newest state is given.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from attrs import define, field, frozen

from accounting.records import Account
from accounting.reports import SEQ_MAX, Ask
from pricing.usage import BUCKETS

PAGE_ROWS: Final = 2000
"""Rows of one page: about two megabytes, and a few milliseconds of whoever passes them on."""

Kind = Literal["text", "whole", "amount", "flag", "texts", "json", "legs"]

TYPES: Final[dict[Kind, str]] = {
    "text": "VARCHAR",
    "whole": "BIGINT",
    "amount": "DECIMAL(38, 12)",
    "flag": "BOOLEAN",
    "texts": "VARCHAR[]",
    "json": "VARCHAR",
    "legs": 'STRUCT("grant" VARCHAR, amount DECIMAL(38, 12))[]',
}
"""What a column becomes in a file; in one of plain text the last three are JSON."""

NESTED: Final = frozenset({"texts", "json", "legs"})


@frozen
class Table:
    """One table, as it is given away.

    Attributes:
        name: of the file.
        source: in the store.
        columns: their names in the file, and what they are; `grant` is `grant_` in the store.
        order: the column of the store that rows are counted by.
        tie: another one, where several rows may have the same.
        where: which rows.
    """

    name: str
    source: str
    columns: dict[str, Kind]
    order: str = "seq"
    tie: str = ""
    where: str = "true"

    def page_sql(self) -> str:
        """Ask for a page: upto, after, tie and most in; (order, tie, JSON) out."""
        values = ", ".join(f"'{name}': {_value(name, kind)}" for name, kind in self.columns.items())
        tie, order = self.tie or "''", f"{self.order}, {self.tie}" if self.tie else self.order
        # the rows first, so that only those become JSON
        return f"""
            SELECT {self.order}, {tie}, to_json({{{values}}})::VARCHAR FROM (
                SELECT * FROM {self.source}
                WHERE {self.order} <= $1 AND {self.order} >= $2 AND ({self.order} > $2 OR {tie} > $3)
                  AND {self.where}
                ORDER BY {order} LIMIT $4
            ) ORDER BY 1, 2"""  # noqa: S608 - names of ours


def _value(name: str, kind: Kind) -> str:
    column = f'"{name}_"' if name == "grant" else f'"{name}"'
    match kind:
        case "amount":
            return _exact(column)
        case "legs":
            return f"[{{'grant': leg.grant_, 'amount': {_exact('leg.amount')}}} for leg in {column}]"
        case _:
            return column


def _exact(pico: str) -> str:
    """Picos as an exact decimal of the currency, in SQL."""
    one = 10**12
    whole, rest = f"(abs({pico}) // {one})::VARCHAR", f"lpad((abs({pico}) % {one})::VARCHAR, 12, '0')"
    return f"if({pico} < 0, '-', '') || {whole} || '.' || {rest}"


_USAGE: Final[dict[str, Kind]] = {
    **dict.fromkeys(("request",), "text"),
    "number": "whole",
    **dict.fromkeys(("wallet", "key", "model", "provider", "account", "dialect"), "text"),
    "stream": "flag",
    "outcome": "text",
    "status": "whole",
    "source": "text",
    "price_version": "text",
    "markup_ppm": "whole",
    **dict.fromkeys(("held", "price", "charged", "cost", "loss"), "amount"),
    "currency": "text",
    **dict.fromkeys(("started_ms", "first_byte_ms", "ended_ms"), "whole"),
    **dict.fromkeys(("upstream_id", "budget"), "text"),
    "flags": "texts",
    **dict.fromkeys(BUCKETS, "whole"),
    "usage_legs": "json",
    "legs": "legs",
}  # fmt: skip

TABLES: Final = (
    Table(
        "wallet",
        "wallet",
        {"wallet": "text", "name": "text", "currency": "text", "frozen": "flag", "created_ms": "whole",
         "at_ms": "whole", "seq": "whole"},
        order="created_seq",
    ),
    Table(
        "api_key",
        "api_key",  # without the digest, which opens nothing and is nobody's business
        {"key": "text", "wallet": "text", "hint": "text", "name": "text", "requests_per_minute": "whole",
         "tokens_per_minute": "whole", "concurrency": "whole", "models": "texts", "markup_ppm": "whole",
         "cap": "amount", "cap_window": "text", "clamp": "flag", "expires_ms": "whole", "revoked": "flag",
         "created_ms": "whole", "at_ms": "whole", "seq": "whole"},
        order="created_seq",
    ),
    Table(
        "grant",
        "grant_",
        {"seq": "whole", "grant": "text", "wallet": "text", "amount": "amount", "kind": "text",
         "source_key": "text", "at_ms": "whole", "expires_ms": "whole"},
    ),
    Table(
        "transfer",
        "transfer",
        {"seq": "whole", "first_seq": "whole", "transfer": "text", "wallet": "text", "debit": "text",
         "credit": "text", "amount": "amount", "currency": "text", "kind": "text", "ref": "text",
         "at_ms": "whole", "grant": "text"},
        tie="transfer",
    ),
    Table(
        "attempt",
        "attempt",
        {"seq": "whole", "request": "text", "number": "whole", "wallet": "text", "key": "text",
         "hold": "amount", "hold_ms": "whole", "budget": "text", "budget_max": "amount", "model": "text",
         "provider": "text", "account": "text", "dialect": "text", "stream": "flag", "price_version": "text",
         "markup_ppm": "whole", "kind": "text", "at_ms": "whole"},
    ),
    Table(
        "extension",
        "extension",
        {"seq": "whole", "request": "text", "number": "whole", "hold": "amount", "at_ms": "whole"},
    ),
    Table(
        "job",
        "job",
        {"seq": "whole", "request": "text", "number": "whole", "job": "text", "usage": "json",
         "cost": "amount", "list_cost": "amount", "at_ms": "whole"},
    ),
    Table("usage", "usage", {"seq": "whole", **_USAGE}),
    Table(
        "void",
        "void",
        {"seq": "whole", "request": "text", "number": "whole", "because": "text", "at_ms": "whole"},
    ),
)  # fmt: skip
"""Everything that is in the store, each with what identifies its rows."""

INVOICED: Final = Table(
    "invoiced",
    "usage",
    {"request": "text", "number": "whole", "upstream_id": "text", "provider": "text", "model": "text",
     "cost": "amount", "started_ms": "whole", **dict.fromkeys(BUCKETS, "whole")},
    where="upstream_id IS NOT NULL",
)  # fmt: skip
"""What a provider's invoice is compared with (`accounting/invoice.py`)."""

BY_NAME: Final = {table.name: table for table in (*TABLES, INVOICED)}

Place = tuple[int, str]
"""Where a page ends, and the next one begins."""

START: Final[Place] = (0, "")


@frozen
class Page:
    """Rows as lines of JSON, each with its newline; and where to go on, or `None` after the last."""

    lines: str
    after: Place | None


async def page(ask: Ask, table: Table, upto: int, after: Place = START, most: int = PAGE_ROWS) -> Page:
    """One page of a table.

    Args:
        ask: asks the store.
        table: which.
        upto: rows behind this seq are left out.
        after: where the page before has ended.
        most: rows of it.
    """
    rows = await ask(table.page_sql(), (min(upto, SEQ_MAX), *after, most))
    last = (int(rows[-1][0]), str(rows[-1][1])) if len(rows) == most else None
    return Page("".join([f"{row[2]}\n" for row in rows]), last)


# -- plain-text accounting -----------------------------------------------------------------------------


class Posting(msgspec.Struct, frozen=True):
    """A row of `transfer`, as a page has it."""

    seq: int
    first_seq: int
    transfer: str
    wallet: str
    debit: Account
    credit: Account
    amount: str
    currency: str
    kind: str
    ref: str
    at_ms: int
    grant: str | None = None


_POSTINGS: Final = msgspec.json.Decoder(Posting)

_ACCOUNTS: Final[dict[Account, str]] = {
    Account.PSP_CLEARING: "Assets:Clearing",
    Account.PROMO_EXPENSE: "Expenses:Promotions",
    Account.REVENUE: "Income:Usage",
    Account.PARTNER_PAYABLE: "Liabilities:Partners",
    Account.UPSTREAM_COST: "Expenses:Providers",
    Account.UPSTREAM_PAYABLE: "Liabilities:Providers",
    Account.BREAKAGE: "Income:Breakage",
    Account.OPERATOR_LOSS: "Expenses:Losses",
    Account.CHARGEBACK: "Expenses:Chargebacks",
    Account.ADJUSTMENT: "Equity:Adjustments",
}
_WALLETS: Final = {Account.WALLET_PAID: "Paid", Account.WALLET_PROMO: "Promotional"}
"""Each wallet has its own: what its owner may still spend is owed."""

_NO_NAME: Final = re.compile("[^A-Za-z0-9]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f]")
"""Signs that a file of text has no room for; nobody types them."""

_OPENED: Final = "1970-01-01"
"""Every account is opened then: before anything can have happened on it."""


@define(eq=False)
class Beancount:
    """Writes transfers as entries of beancount: accounts and currencies when they are first named.

    A debit is positive. Amounts are exact, whatever their number of places.
    """

    _known: set[str] = field(factory=set, init=False)

    def head(self) -> str:
        """What the file begins with."""
        return 'option "title" "Farebox"\n'

    def entries(self, lines: str) -> Iterator[str]:
        """The entries of a page of `transfer`."""
        for posting in _POSTINGS.decode_lines(lines):
            yield self._entry(posting)

    def _entry(self, posting: Posting) -> str:
        debit, credit = (_account(account, posting.wallet) for account in (posting.debit, posting.credit))
        amount = _places(posting.amount)
        facts = {"wallet": posting.wallet, "transfer": posting.transfer, "ref": posting.ref}
        if posting.grant is not None:
            facts["grant"] = posting.grant
        text = [
            *self._opened(posting, (debit, credit)),
            f"\n{_day(posting.at_ms)} * {_quoted(posting.kind)}\n",
            f"  seq: {posting.seq}\n",
            *(f"  {name}: {_quoted(value)}\n" for name, value in facts.items()),
            f"  {debit}  {amount} {posting.currency}\n",
            f"  {credit}  {_negative(amount)} {posting.currency}\n",
        ]
        return "".join(text)

    def _opened(self, posting: Posting, accounts: Iterable[str]) -> Iterator[str]:
        if posting.currency not in self._known:
            self._known.add(posting.currency)
            yield f"\n{_OPENED} commodity {posting.currency}\n"
        for account in accounts:
            if account not in self._known:
                self._known.add(account)
                yield f"\n{_OPENED} open {account}\n"


def _account(account: Account, wallet: str) -> str:
    kind = _WALLETS.get(account)
    if kind is None:
        return _ACCOUNTS[account]
    # no other sign may stand in a name; ids are made of letters and digits, and one underscore
    name = _NO_NAME.sub(lambda sign: "-" if sign[0] == "_" else f"-{ord(sign[0]):x}-", wallet)
    return f"Liabilities:Wallets:W-{name}:{kind}"


def _places(amount: str) -> str:
    """Leave out zeros behind the second place."""
    whole, _, places = amount.partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _negative(amount: str) -> str:
    return amount[1:] if amount.startswith("-") else f"-{amount}"


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{_CONTROL.sub("�", escaped)}"'
