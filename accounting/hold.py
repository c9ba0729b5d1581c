"""Hold: credit set aside for one request; it writes what the ledger decided and settles once, on leaving.

    with books.hold(request_id, spender, amount, reply) as hold:
        hold.attempt(terms)          A is in the journal before anything is sent
        hold.sending()               the first byte is about to leave: from here on it costs
        …                            hold.meter learns what is used; hold.cover(chunk, cut) stands before every
                                     write: it lets the hold grow (X), or cuts the answer off
        await hold.journaled()       A is on the platter before the client's first byte
                                     leaving settles: S (or V, where nothing was sent), synchronously
    await hold.settled()             S is on the platter before the client sees the end

Nothing here that moves money awaits, so no cancellation can fall between a debit and its record. Room for A
and S is taken before A is written, so that settling never fails for want of it. The two awaits are for
durability alone. Leaving never raises: an error in it is settled at the estimate and flagged on the record.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, Self

import trio
from attrs import define, field
from msgspec import Struct
from msgspec.structs import replace

from accounting.bill import Bill, Terms, bill, estimate, is_empty, recovered, waived, with_call, within
from accounting.claims import Claim
from accounting.ledger import OpenAttempt
from accounting.pen import Pen
from accounting.ports import Client, Overloaded
from accounting.records import (
    Attempt,
    Ending,
    Extension,
    Job,
    Progress,
    Receipt,
    UsageRecord,
    Void,
)
from accounting.refusals import Insufficient, KeyRevoked, WalletFrozen
from accounting.rolling import ALL, Reach
from pricing.money import Pico, marked_up
from pricing.usage import Meter, Source, Usage

PLACES: Final = 2
"""Room that an attempt needs before it begins: for its A, and for its S or V."""

Cut = Callable[[bytes, int, str], bytes]
"""Ends an answer inside a chunk: the chunk, how much of its content is covered, and what is used up."""


class _Open(Struct, eq=False, gc=False):
    """The attempt that is under way. A struct, since one is made for each."""

    terms: Terms
    known: OpenAttempt
    """As the ledger has it."""
    reach: Reach
    began: float
    sent: bool = False
    status: int = 0
    upstream_id: str | None = None
    first_byte_ms: int | None = None

    @property
    def attempt(self) -> Attempt:
        return self.known.attempt


@define(eq=False)
class Hold:
    """Credit set aside for one request, from `Books.hold` until the end of its `with`.

    Attributes:
        held: how much, by now.
        meter: what the attempt under way has used so far; emptied when the next one begins.
        exhausted: what the credit was short of when the answer was cut off; `None`: it was not.
        error: what went wrong in settling, if anything; the request is settled nevertheless.
    """

    _books: Pen
    request: str
    claim: Claim
    held: Pico
    _client: Client
    meter: Meter = field(factory=Meter, init=False)
    exhausted: str | None = None
    _receipt: Receipt | None = None
    error: Exception | None = None
    _open: _Open | None = None
    _number: int = 0
    _last: UsageRecord | None = None
    _relayed: bool = False
    _seen: int = 0
    """Content, bytes and frames together, that had gone by at the last look."""
    _closed: bool = False
    _places: int = 0
    _seq_attempt: int = 0
    _seq_end: int = 0
    _unwritten: Exception | None = None
    _content_due: int = ALL
    _seconds_due: float = 0.0
    _content_at: float = 0.0
    """When content was last seen."""

    # -- attempts ----------------------------------------------------------------------------------

    def attempt(self, terms: Terms, *, job: bool = False) -> None:
        """Begin an attempt: room for its end is taken, then A is written. Nothing may be sent before.

        Args:
            terms: what it is made under.
            job: it is for work that may outlive its connection (see `accepted`).

        Raises:
            Overloaded: there is no room; nothing was begun.
        """
        if self._closed or self._open is not None:
            raise RuntimeError(f"request {self.request}: an attempt begins inside another or after the hold")
        books, claim = self._books, self.claim
        writer, now = books.writer, books.now()
        task = claim.budget and books.ledger.task(claim.spender.wallet, claim.budget.id, claim.at_ms)
        attempt = Attempt(
            self.request,
            self._number + 1,
            claim.spender.wallet,
            claim.spender.key,
            self.held,
            terms.model,
            terms.provider,
            terms.account,
            terms.dialect,
            terms.stream,
            terms.price.version,
            terms.price.markup_ppm,
            books.clock(),
            "job" if job else "call",
            claim.at_ms,
            "" if claim.budget is None else claim.budget.id,
            None if task is None else task.max,
        )
        places = PLACES + job
        writer.reserve(places)
        self._places += places
        self._seq_attempt = books.seq = writer.write(attempt, reserved=True)
        self._places -= 1
        known = books.ledger.apply_attempt(attempt)
        self._number += 1
        self._open = opened = _Open(terms, known, Reach(terms), now)
        self._reset()
        self._progress_due(opened, now)

    def sending(self) -> None:
        """The first byte of the request is about to leave: from here on it is settled, not voided."""
        opened = self._open or self._nothing_open()
        if not opened.sent:
            opened.sent = True
            opened.began = self._books.now()

    def answered(self, status: int, upstream_id: str | None) -> None:
        """The provider has answered with this status, and calls the answer so."""
        opened = self._open or self._nothing_open()
        opened.sent = True
        opened.status = status
        opened.upstream_id = upstream_id

    def attempt_failed(self, ending: Ending, status: int) -> None:
        """The attempt is over and another may follow: the customer pays nothing for it, the operator may."""
        opened = self._open or self._nothing_open()
        opened.status = status or opened.status
        self._end(opened, ending, free=True)
        self._reset()

    def accepted(self, job: str, usage: Usage) -> None:
        """The provider has taken the work on as this job, at a price known beforehand; leaving keeps it open.

        Its hold stays until `Books.settle_job`, over restarts.
        """
        opened = self._open or self._nothing_open()
        price, legs = opened.terms.price, (usage,)
        cost = price.list_cost(legs)
        record = Job(
            self.request,
            opened.attempt.number,
            job,
            usage,
            marked_up(cost, price.markup_ppm),
            cost,
            self._books.clock(),
        )
        self._seq_end = self._books.put_down(record, reserved=True)
        self._places -= 1

    def cover(self, chunk: bytes, cut: Cut) -> bytes:
        """Stand between feed and write: let nothing pass that the hold does not cover.

        Notes what is relayed, writes progress when due, lets the hold grow and shrink. What cannot be covered is
        never given: `exhausted` then says why, and nothing more may be relayed.

        Args:
            chunk: what is to be written now; its content has been metered.
            cut: ends the answer inside the chunk; gives what of it may be written.

        Raises:
            Overloaded: the books have failed, and what it costs can no longer be written down.
            RuntimeError: no attempt is open.
        """
        opened, books = self._open or self._nothing_open(), self._books
        if books.failed:
            raise Overloaded("the books have failed", trigger="failed")
        if opened.first_byte_ms is None:
            opened.first_byte_ms = books.clock()
            opened.sent = True
        meter, reach = self.meter, opened.reach
        if reach.may_shrink and meter.reported is not None:
            self._shrink(opened)
        seen = meter.content_bytes + meter.content_frames
        if seen > reach.covered and self.exhausted is None:
            chunk = self._roll(opened, seen, chunk, cut)
        now = books.now()
        if seen != self._seen:
            self._seen, self._content_at = seen, now
        if chunk:
            self._relayed = True
        if seen >= self._content_due or now >= self._seconds_due:
            self._write_progress(opened)
        return chunk

    def cost_so_far(self) -> Pico:
        """What the customer would owe if the answer ended here; for callers who want to watch."""
        opened = self._open or self._nothing_open()
        return min(self._bill_now(opened).price, self.held)

    # -- durability --------------------------------------------------------------------------------

    async def journaled(self) -> None:
        """Wait until A is on the platter: before the client's first byte. Raises `Overloaded`.

        No checkpoint where it is there already, which it mostly is: the provider took longer than the disk.
        """
        if self._seq_attempt and self._books.durability != "relaxed":
            await self._books.writer.durable(self._seq_attempt)

    async def may_be_sent(self) -> None:
        """With durability `strict`, wait until A is on the platter: before the request is sent. As `journaled`."""
        if self._books.durability == "strict":
            await self.journaled()

    async def settled(self) -> None:
        """Wait until the end of every attempt is on the platter: before the client's last byte.

        Raises:
            Overloaded: it never will be; the client must not be told that all is well.
        """
        if self._unwritten is not None:
            raise Overloaded("the books could not be written") from self._unwritten
        if self._seq_end and self._books.durability != "relaxed":
            await self._books.writer.durable(self._seq_end)

    @property
    def receipt(self) -> Receipt:
        """What became of it. Raises RuntimeError until the hold is left."""
        if self._receipt is None:
            raise RuntimeError(f"request {self.request}: the hold has not been left")
        return self._receipt

    # -- leaving -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Settle what is open and close the hold, once; never raises."""
        if self._closed:
            return
        self._closed = True
        books, wallet, opened = self._books, self.claim.spender.wallet, self._open
        goes_on = opened is not None and opened.known.job is not None
        try:
            if opened is not None and not goes_on:
                usual = exc is None and self.exhausted is None
                self._end(opened, Ending.COMPLETE if usual else self._ending(exc), free=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, the hold must close
            self.error = self._unwritten = error
        if self._places:  # an A or its end could not be written
            books.writer.release(self._places)
            self._places = 0
        if goes_on:
            books.ledger.keep(self.request)
        else:
            books.ledger.give_back(self.request)
        books.expire_due(wallet)  # what this hold leaned on may have expired
        balance, held, currency = books.ledger.standing(wallet)
        self._receipt = Receipt(self.request, self._last, balance, held, currency)
        books.freed(wallet)

    def _ending(self, exc: BaseException | None) -> Ending:
        if exc is None and self.exhausted is not None:
            return Ending.EXHAUSTED
        try:
            return _ending(exc, self._client)
        except Exception as error:  # noqa: BLE001 - an exception or a client that cannot be asked
            self.error = error
            return Ending.INTERNAL

    def _end(self, opened: _Open, ending: Ending, *, free: bool) -> None:
        """Write and apply the end of an attempt: V if nothing was sent, else S. `free`: it failed over."""
        self._open = None
        record: Void | UsageRecord
        if opened.sent:
            record = self._settlement(opened, ending, free=free)
            self._last = record
        else:
            record = Void(self.request, opened.attempt.number, self._books.clock(), ending.value)
        try:
            self._seq_end = self._books.seq = self._books.writer.write(record, reserved=True)
            self._places -= 1
        except Exception as error:  # noqa: BLE001 - the journal failed: memory stays right, nobody is told "done"
            self._unwritten = self.error = error
        ledger = self._books.ledger
        ledger.apply_settled(record) if isinstance(record, UsageRecord) else ledger.apply(record)

    def _settlement(self, opened: _Open, ending: Ending, *, free: bool) -> UsageRecord:
        """Make out S: by the rule, else by the estimate, else by the last progress."""
        now = self._books.now()
        elapsed = now - opened.began
        try:
            made = bill(
                opened.terms,
                self.meter,
                ending,
                elapsed_seconds=elapsed,
                relayed=self._relayed,
                gone=self._client.client_gone,
                quiet_seconds=now - self._content_at,
            )
            if made.price and not self.meter.content_frames:
                made = self._waived_if_empty(opened, made, ending)
            if made.price > self.held and opened.reach.is_part and not free:  # the report may say more
                most = min(made.price, opened.reach.full)
                self._extend(opened, most, most)
            return self._record(opened, ending, made, free=free)
        except Exception as error:  # noqa: BLE001 - an answer that went out is billed, whatever broke in here
            self.error = error
        flag = f"settle_error:{type(self.error).__name__}"
        try:
            made = replace(self._estimated(opened, elapsed), flags=(flag,))
        except Exception as error:  # noqa: BLE001 - the last progress needs no arithmetic
            self.error = error
            made = replace(
                recovered(opened.known.progress), flags=(flag, f"settle_error:{type(error).__name__}")
            )
        return self._record(opened, ending, made, free=free)

    def _waived_if_empty(self, opened: _Open, made: Bill, ending: Ending) -> Bill:
        """The bill, waived where it is for an empty completion and this key may have another for nothing that day."""
        claim, books = self.claim, self._books
        if not is_empty(opened.terms, self.meter, ending):
            return made
        had = books.ledger.empties(claim.spender.key, claim.at_ms)
        return waived(made) if had < books.empty_free_per_key_day else made

    def _estimated(self, opened: _Open, elapsed: float) -> Bill:
        """The bill without the report, which is the likeliest thing to have broken the rule."""
        terms, seen = opened.terms, self.meter
        meter = Meter(None, seen.content_frames, seen.content_bytes)
        known = estimate(
            terms, meter, elapsed_seconds=elapsed, hidden=not terms.visible, because="settle_error"
        )
        cost = terms.price.list_cost(known.legs)
        return Bill(known.legs, known.source, marked_up(cost, terms.price.markup_ppm), cost)

    def _record(self, opened: _Open, ending: Ending, made: Bill, *, free: bool) -> UsageRecord:
        if free:
            made = replace(made, price=0, flags=(*made.flags, "failed_over"))
        elif made.source is Source.ESTIMATED:
            made = within(made, self.held)
        return self._books.ledger.settlement(
            opened.known,
            made,
            ending,
            self._books.clock(),
            status=opened.status,
            first_byte_ms=opened.first_byte_ms,
            upstream_id=opened.upstream_id,
        )

    # -- rolling -----------------------------------------------------------------------------------

    def _roll(self, opened: _Open, seen: int, chunk: bytes, cut: Cut) -> bytes:
        """Let the hold grow over what has gone by; where it cannot, cut the answer at what it covers."""
        reach, reported = opened.reach, self.meter.reported
        if reported is not None and reported.final:  # nothing follows, and what it costs is known
            price = opened.terms.price
            needed = wanted = min(price.cost(with_call(price, reported.legs)), reach.full)
        else:
            needed, wanted = reach.needed(seen), reach.wanted(seen)
        limit = self._extend(opened, needed, wanted)
        reach.reach(self.held)
        if limit is None:
            return chunk
        self.exhausted = limit
        return cut(chunk, max(reach.covered - self._seen, 0), limit)

    def _extend(self, opened: _Open, needed: Pico, wanted: Pico) -> str | None:
        """Let the hold grow to what is wanted, or as far as it goes; says what it is short of for what is needed."""
        if wanted <= self.held:
            return None
        amount, limit = wanted, "books"
        try:
            self._books.ledger.check_extension(self.request, wanted)
        except Insufficient as short:
            amount, limit = self.held + short.available, short.limit
        except WalletFrozen:
            return "wallet_frozen"
        except KeyRevoked:
            return "key_revoked"
        if amount > self.held:
            self._resize(opened, amount)
        if self.held >= needed:
            return None
        return self._short_of(needed) or limit

    def _short_of(self, needed: Pico) -> str | None:
        """What stands in the way of no more than what is needed."""
        try:
            self._books.ledger.check_extension(self.request, needed)
        except Insufficient as short:
            return short.limit
        return None

    def _shrink(self, opened: _Open) -> None:
        amount = opened.reach.shrunk(self.meter, self.held)
        if amount is not None:
            self._resize(opened, amount)
            opened.reach.reach(self.held)
            self._books.freed(self.claim.spender.wallet)

    def _resize(self, opened: _Open, amount: Pico) -> None:
        """Write X and apply it; where there is no room for it, the hold stays as it is."""
        books = self._books
        extension = Extension(self.request, opened.attempt.number, amount, books.clock())
        try:
            books.put_down(extension)
        except (Overloaded, OSError):
            return
        self.held = amount

    # -- progress ----------------------------------------------------------------------------------

    def _write_progress(self, opened: _Open) -> None:
        """P: what it would cost if we stopped now, so that a kill can be settled; left out without room."""
        books = self._books
        self._progress_due(opened, books.now())
        try:
            made = self._bill_now(opened)
            progress = Progress(
                self.request,
                opened.attempt.number,
                min(made.price, self.held),
                made.cost,
                made.usage,
                made.source,
                self._relayed,
                books.clock(),
            )
            books.put_down(progress)
        except Exception as error:  # noqa: BLE001 - progress is a courtesy to recovery; the answer goes on without it
            if not isinstance(error, Overloaded):
                self.error = error
            return

    def _bill_now(self, opened: _Open) -> Bill:
        """The bill if the answer ended here, by no fault of the caller's."""
        gone = self._client.client_gone
        return bill(
            opened.terms,
            self.meter,
            Ending.HUNG_UP if gone else Ending.SHUTDOWN,
            elapsed_seconds=self._books.now() - opened.began,
            relayed=self._relayed,
            gone=gone,
        )

    def _progress_due(self, opened: _Open, now: float) -> None:
        books = self._books
        self._seconds_due = now + books.progress_seconds
        self._content_due = self._seen + books.progress_tokens * (opened.terms.dense_bytes_per_token + 1)

    def _reset(self) -> None:
        """Begin to count anew, in the same meter: whoever has it sees the attempt under way and no other."""
        meter = self.meter
        meter.reported = None
        meter.content_frames = meter.content_bytes = self._seen = 0
        self._content_at = self._books.now()

    def _nothing_open(self) -> NoReturn:
        raise RuntimeError(f"request {self.request}: no attempt is open")


def _ending(exc: BaseException | None, client: Client) -> Ending:
    """What leaving a hold in this way means for the bill.

    An exception that knows says so in its attribute `ending`; a group is what its gravest member is: our own
    fault, then what a member says, then cancellation.
    """
    if exc is None:
        return Ending.COMPLETE
    if isinstance(exc, BaseExceptionGroup):
        endings = {_ending(member, client) for member in exc.exceptions}
        cancelled = {Ending.HUNG_UP, Ending.SHUTDOWN}
        known = endings - cancelled
        if Ending.INTERNAL in known or len(known) > 1:
            return Ending.INTERNAL
        return (known or endings).pop()
    stated = getattr(exc, "ending", None)
    if isinstance(stated, Ending):
        return stated
    if isinstance(exc, trio.Cancelled) or not isinstance(exc, Exception):
        return Ending.HUNG_UP if client.client_gone else Ending.SHUTDOWN
    return Ending.INTERNAL
