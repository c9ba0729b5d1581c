"""The money path by itself: hold and settle with the real journal, loading into DuckDB, recovery, in figures.

Everything is the production code on a real disk in a temporary directory; no HTTP. CPU time is this process's own,
so a busy machine changes little of it; the delay of the event loop is wall time and is what a caller would feel.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from attrs import define, evolve, field, frozen

from accounting.bill import Terms
from accounting.books import Books
from accounting.disk import OsDisk
from accounting.journal import Journal, Past
from accounting.records import (
    Attempt,
    Ending,
    Grant,
    GrantKind,
    Key,
    Leg,
    Record,
    Spender,
    UsageRecord,
    Wallet,
)
from accounting.recovery import recover
from accounting.store import NAME, Store
from bench.rounds import Progress
from pricing.price import Bounds, Price, Rates, Tier
from pricing.usage import Reported, Source, Usage
from proxy import books
from proxy.app import SWITCH_SECONDS
from proxy.config import Config
from proxy.telemetry import Telemetry

TEXT: Final = "hold and settle, loading into the store, recovery: the money path without HTTP"


@frozen
class Sizes:
    """How much is done.

    Attributes:
        holds: that are made and settled.
        warm: before they count.
        loaded, recovered: records.
        idle_seconds: for which the event loop is watched with nothing to do.
    """

    holds: int = 20_000
    warm: int = 1_000
    loaded: int = 400_000
    recovered: int = 1_000_000
    idle_seconds: float = 2.0


ROWS: Final = 6
"""Of the table, one after another."""

TOGETHER: Final = 20
"""Holds between two looks at the clock, which costs a hundredth of one hold."""
ALONE: Final = 1_000
"""Holds during which the recorder has nothing to do: what a hold and its settlement cost by themselves."""
SLICE: Final = 20_000
SEGMENT_BYTES: Final = 64 * 2**20
CREDIT: Final = 10**21

PRICE: Final = Price(
    "lab/model",
    "p_0123456789abcdef",
    (Tier(0, Rates(input=3_000_000, cache_read=300_000, cache_write_5m=3_750_000, output=15_000_000)),),
    1_200_000,
)
TERMS: Final = Terms(
    model="lab/model",
    provider="lab",
    account="main",
    dialect="anthropic",
    stream=True,
    price=PRICE,
    stops_billing="yes",
    visible=True,
    bounds=Bounds(input=20_000, output=4_000, cache_writes="5m"),
    text_bytes=18_000,
    dense_bytes_per_token=2,
    tokens_per_second_max=200,
)
REPORT: Final = Reported((Usage(input=3_000, cache_read=9_000, output=300),), final=True)
SPENDER: Final = Spender("wallet_1", "key_1")


class _Client:
    """Stays to the end."""

    client_gone = False


def run(progress: Progress, sizes: Sizes | None = None) -> dict[str, Any]:
    """Measure all three, and give the figures."""
    sizes = sizes or Sizes()
    rolling = msgspec.structs.replace(TERMS, slice_tokens=256)
    rows = []
    for case, terms, turn in (
        ("full hold", TERMS, ALONE),
        ("full hold, beside sync and load", TERMS, TOGETHER),
        ("rolling hold, 2 extensions", rolling, ALONE),
    ):
        progress.step(case)
        rows.append(trio.run(_hold_and_settle, case, terms, turn, sizes))
    progress.step("loading")
    rows.append(trio.run(_load, sizes))
    return {"rows": [*rows, *_recovery(sizes.recovered, progress)]}


def as_table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | figure | |", "|---|---|---|"]
    for row in figures["rows"]:
        for index, (name, value) in enumerate(row["figures"].items()):
            shown = f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}"
            lines.append(f"| {row['case'] if not index else ''} | {shown} | {name} |")
    return "\n".join(lines)


# -- hold and settle -------------------------------------------------------------------------------


async def _hold_and_settle(case: str, terms: Terms, turn: int, sizes: Sizes) -> dict[str, Any]:
    """Requests one after the other into the real journal; after so many the recorder has its turn."""
    with tempfile.TemporaryDirectory() as state:
        config = evolve(Config(), books=evolve(Config().books, state_dir=state))
        async with books.opened(config, Telemetry(books.wall_ms, trio.current_time, "error")) as opened:
            ledger = opened.books
            wallet = await ledger.create_wallet("bench")
            await ledger.top_up(wallet.wallet, CREDIT, GrantKind.PAID, "bench")
            await ledger.create_key(Key("key_1", wallet.wallet, "d", "h", ledger.clock()))
            spender = Spender(wallet.wallet, "key_1")
            for number in range(sizes.warm):
                _one(ledger, spender, f"warm_{number}", terms)
            took, cpu = [], []
            names = [f"req_{number:020d}" for number in range(sizes.holds)]
            sys.setswitchinterval(SWITCH_SECONDS)
            for number in range(0, sizes.holds, TOGETHER):
                if turn == TOGETHER:
                    await trio.lowlevel.checkpoint()  # it goes on beside what follows
                elif number % turn == 0:
                    await opened.load()
                before = time.thread_time_ns()
                for name in names[number : number + TOGETHER]:
                    began = time.perf_counter_ns()
                    _one(ledger, spender, name, terms)
                    took.append(time.perf_counter_ns() - began)
                cpu.append((time.thread_time_ns() - before) / TOGETHER)
            took.sort()
            cpu.sort()
    return {
        "case": f"hold and settle, {case}",
        "figures": {
            "µs of CPU, median": cpu[len(cpu) // 2] / 1000,
            "µs of CPU, mean": sum(cpu) / len(cpu) / 1000,
            "µs of wall time, p99": took[sizes.holds * 99 // 100] / 1000,
        },
    }


def _one(ledger: Books, spender: Spender, request: str, terms: Terms) -> None:
    """What a request does with money: A and S are in the journal at the end, nothing is waited for."""
    with ledger.hold(request, ledger.claim(spender), 10**12, _Client()) as hold:
        hold.attempt(terms)
        hold.sending()
        hold.answered(200, "msg_0123456789abcdef")
        if terms.slice_tokens:
            for _ in range(2):
                hold.meter.saw(1, 500)
                hold.cover(b"x", _no_cut)
        hold.meter.report(REPORT)
        hold.cover(b"x", _no_cut)


def _no_cut(_chunk: bytes, _content_bytes: int, limit: str) -> bytes:
    raise AssertionError(limit)


# -- loading ---------------------------------------------------------------------------------------


@define(eq=False)
class _Delay:
    """How late the event loop is: a task that wants to run every 2 ms."""

    late: list[float] = field(factory=list)

    async def watch(self) -> None:
        while True:
            due = time.perf_counter() + 0.002
            await trio.sleep(0.002)
            self.late.append(time.perf_counter() - due)

    def ms(self, share: float) -> float:
        return sorted(self.late)[int(len(self.late) * share)] * 1000


async def _load(sizes: Sizes) -> dict[str, Any]:
    """Slices into a fresh store in a worker thread, while the loop's own delay is watched."""
    entries = list(_records(sizes.loaded))
    with tempfile.TemporaryDirectory() as state:
        store = Store.open(Path(state) / NAME, memory_limit="256MB", schema_dir=books.SCHEMA)
        idle, busy = _Delay(), _Delay()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idle.watch)
            await trio.sleep(sizes.idle_seconds)
            nursery.cancel_scope.cancel()
        began, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.watch)
            for start in range(0, len(entries), SLICE):
                await trio.to_thread.run_sync(partial(store.load, entries[start : start + SLICE]))
            nursery.cancel_scope.cancel()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        store.close()
    return {
        "case": f"loading {len(entries):,} records into DuckDB",
        "figures": {
            "records/s": len(entries) / seconds,
            "µs of CPU each": cpu / len(entries) * 1e6,
            "ms of loop delay, p99": busy.ms(0.99),
            "ms of loop delay, p99, idle": idle.ms(0.99),
        },
    }


# -- recovery --------------------------------------------------------------------------------------


def _recovery(records: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """A journal of so many records, opened with the store up to date, and without one."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        _write_journal(state, records)
        for case in ("and no store: all of it is loaded", "and the store up to date"):
            progress.step(f"recovery, {case}")
            began, cpu = time.perf_counter(), time.process_time()
            recovered = recover(
                state,
                disk=OsDisk(),
                open_store=lambda: Store.open(state / NAME, memory_limit="256MB", schema_dir=books.SCHEMA),
                clock=books.wall_ms,
                segment_bytes=SEGMENT_BYTES,
                load_records_max=SLICE,
            )
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            found = recovered.journal.seq
            recovered.close()
            yield {
                "case": f"recovery of {found:,} records, {case}",
                "figures": {"s": seconds, "s of CPU": cpu, "µs a record": seconds / found * 1e6},
            }


def _write_journal(state: Path, records: int) -> None:
    disk = OsDisk()
    directory = state / "journal"
    disk.make_dir(directory)
    journal: Journal | None = None
    past = Past()
    for _, record in _records(records):
        if journal is None:
            journal = Journal.open(
                disk, directory, past, segment_bytes=SEGMENT_BYTES * 16, clock=books.wall_ms
            )
        journal.append(record)
    assert journal is not None
    sync = journal.begin_sync()
    sync.run()
    journal.synced(sync)
    journal.close()


def _records(most: int) -> Iterator[tuple[int, Record]]:
    """What a gateway writes: wallets, grants, and then attempts with their settlements."""
    seqs = count(1)
    for number in range(20):
        yield next(seqs), Wallet(f"wallet_{number}", "bench", "USD", 1)
        yield (
            next(seqs),
            Grant(f"grant_{number}", f"wallet_{number}", CREDIT, GrantKind.PAID, f"ref:{number}", 1),
        )
    usage = Usage(input=3_000, cache_read=9_000, output=300)
    for number in range((most - 40) // 2):
        wallet, request = f"wallet_{number % 20}", f"req_{number:020d}"
        yield next(seqs), Attempt(
            request, 1, wallet, "key_1", 10**12, "lab/model", "lab", "main", "anthropic", True, PRICE.version,
            PRICE.markup_ppm, 1_700_000_000_000 + number,
        )  # fmt: skip
        yield next(seqs), UsageRecord(
            request=request, number=1, wallet=wallet, key="key_1", model="lab/model", provider="lab",
            account="main", dialect="anthropic", stream=True, outcome=Ending.COMPLETE, status=200,
            source=Source.REPORTED, usage=usage, price_version=PRICE.version, markup_ppm=PRICE.markup_ppm,
            held=10**12, price=19_440_000_000, charged=19_440_000_000, cost=16_200_000_000, loss=0, currency="USD",
            started_ms=1_700_000_000_000 + number, ended_ms=1_700_000_000_900 + number,
            first_byte_ms=1_700_000_000_300 + number, legs=(Leg(f"grant_{number % 20}", 19_440_000_000),),
            upstream_id="msg_0123456789abcdef",
        )  # fmt: skip
