"""Questions that pages ask of the books: SQL over the store, with what it has not loaded yet merged in.

The store lags behind the journal by up to a second; what it has not loaded yet the recorder still has in
memory. An answer is both together, told apart by seq. The tail is looked at *before* the store is asked, so a
record that is loaded in between is seen twice and counted once, and never missed.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec
from attrs import define, field, frozen
from attrs.validators import ge, le

from accounting.records import Ending, Leg, UsageRecord
from pricing.usage import BUCKETS, Source, Usage

PAGE_MAX: Final = 1000
"""Most records on one page."""

SEQ_MAX: Final = 2**63 - 1
"""The largest seq that a cursor can name: the store's BIGINT."""

Rows = Sequence[Sequence[Any]]
Ask = Callable[[str, Sequence[object]], Awaitable[Rows]]
"""Asks the store, in whatever thread it lives: SQL with `?` and its parameters in, rows out."""


class Tail(Protocol):
    """What has been written but not loaded yet; `accounting.recorder.Recorder`, or a fake."""

    def usage_of(self, request: str) -> tuple[UsageRecord, ...]:
        """The unloaded usage records of one request."""
        ...

    def unloaded_usage(self) -> Iterable[tuple[int, UsageRecord]]:
        """Every unloaded usage record with its seq, oldest first."""
        ...


@frozen
class Query:
    """Which usage records, newest first; `None` does not restrict.

    Attributes:
        model: canonical id.
        from_ms, to_ms: when the attempt began; from inclusive, to exclusive.
        limit: at most so many, 1 to `PAGE_MAX`.
        cursor: `next_cursor` of the page before; records that come in the meantime do not shift pages.
    """

    wallet: str | None = None
    key: str | None = None
    model: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    limit: int = field(default=50, validator=[ge(1), le(PAGE_MAX)])
    cursor: str | None = None

    def before(self) -> int:
        """The seq that the page ends before. Raises ValueError for what is no cursor of ours."""
        if self.cursor is None:
            return SEQ_MAX
        if not (self.cursor.isascii() and self.cursor.isdecimal() and len(self.cursor) < 20):
            raise ValueError("cursor: expected next_cursor of the page before")
        return min(int(self.cursor), SEQ_MAX)

    def fits(self, record: UsageRecord) -> bool:
        """Whether a record is one of those asked for, the cursor aside."""
        return (
            self.wallet in (None, record.wallet)
            and self.key in (None, record.key)
            and self.model in (None, record.model)
            and (self.from_ms is None or self.from_ms <= record.started_ms)
            and (self.to_ms is None or record.started_ms < self.to_ms)
        )


@frozen
class Page:
    """Records, newest first, and where the next page begins (`None`: this was the last)."""

    records: tuple[UsageRecord, ...]
    next_cursor: str | None


_PLAIN: Final = (
    "request",
    "number",
    "wallet",
    "key",
    "model",
    "provider",
    "account",
    "dialect",
    "stream",
    "status",
    "price_version",
    "markup_ppm",
    "held",
    "price",
    "charged",
    "cost",
    "loss",
    "currency",
    "started_ms",
    "first_byte_ms",
    "ended_ms",
    "upstream_id",
    "budget",
)
"""Columns that are fields of `UsageRecord` as they stand."""

COLUMNS: Final = ("seq", *_PLAIN, "outcome", "source", "flags", "usage_legs", "legs", *BUCKETS)
_SELECT: Final = f"SELECT {', '.join(COLUMNS)} FROM usage"  # noqa: S608 - names of ours

USAGE_OF_REQUEST: Final = _SELECT + " WHERE request = ?"
USAGE_PAGE: Final = (
    _SELECT
    + """
    WHERE seq < ?
      AND (?::VARCHAR IS NULL OR wallet = ?)
      AND (?::VARCHAR IS NULL OR key = ?)
      AND (?::VARCHAR IS NULL OR model = ?)
      AND (?::BIGINT IS NULL OR started_ms >= ?)
      AND (?::BIGINT IS NULL OR started_ms < ?)
    ORDER BY seq DESC
    LIMIT ?"""
)


def usage_record(row: Sequence[Any]) -> tuple[int, UsageRecord]:
    """A row of `usage` as (seq, record)."""
    named = dict(zip(COLUMNS, row, strict=True))
    usage_legs = named["usage_legs"]
    if isinstance(usage_legs, str):
        usage_legs = msgspec.json.decode(usage_legs)
    return named["seq"], UsageRecord(
        **{name: named[name] for name in _PLAIN},
        outcome=Ending(named["outcome"]),
        source=Source(named["source"]),
        flags=tuple(named["flags"]),
        usage=Usage(**{name: named[name] for name in BUCKETS}),
        usage_legs=tuple(Usage(**leg) for leg in usage_legs),
        legs=tuple(Leg(leg["grant_"], leg["amount"]) for leg in named["legs"]),
    )


CREATED: Final = {
    "wallet": "SELECT wallet, created_ms FROM wallet WHERE $1 IS NULL OR wallet = $1",
    "api_key": "SELECT key, created_ms FROM api_key WHERE $1 IS NULL OR key = $1",
}


@define(eq=False)
class Reader:
    """Reports over a store and the tail that it has not loaded yet."""

    ask: Ask
    tail: Tail

    async def usage_of(self, request: str, wallet: str | None = None) -> tuple[UsageRecord, ...]:
        """Every settled attempt of a request, first to last; of this wallet only, if one is named.

        Empty where there is none, or none is settled yet.
        """
        attempts = {record.number: record for record in self.tail.usage_of(request)}
        for row in await self.ask(USAGE_OF_REQUEST, (request,)):
            _, record = usage_record(row)
            attempts[record.number] = record
        own = [record for record in attempts.values() if wallet in (None, record.wallet)]
        return tuple(sorted(own, key=lambda record: record.number))

    async def created(self, table: Literal["wallet", "api_key"], which: str | None = None) -> dict[str, int]:
        """When wallets or keys were made, in ms, by id: all that are loaded, or one."""
        return {str(name): int(at_ms) for name, at_ms in await self.ask(CREATED[table], (which,))}

    async def page(self, query: Query) -> Page:
        """One page of usage records, newest first. Raises ValueError for what is no cursor of ours."""
        before = query.before()
        found = [
            (seq, record) for seq, record in self.tail.unloaded_usage() if seq < before and query.fits(record)
        ]
        bounds = (query.wallet, query.key, query.model, query.from_ms, query.to_ms)
        twice = [value for value in bounds for _ in range(2)]
        rows = await self.ask(USAGE_PAGE, (before, *twice, query.limit + 1))
        both = dict(found) | dict(usage_record(row) for row in rows)
        merged = sorted(both.items(), reverse=True, key=lambda one: one[0])
        shown = merged[: query.limit]
        more = len(merged) > query.limit
        return Page(tuple(record for _, record in shown), str(shown[-1][0]) if more else None)
