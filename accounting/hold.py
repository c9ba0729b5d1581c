"""Hold: credit set aside for one request; it writes what the ledger decided and settles once, on leaving.

    with books.hold(request_id, spender, amount, reply) as hold:
        hold.attempt(terms)          A is in the journal before anything is sent
        hold.sending()               the first byte is about to leave: from here on it costs
        …                            hold.meter learns what is used, hold.cover(chunk) what is relayed
        await hold.journaled()       A is on the platter before the client's first byte
                                     leaving settles: S (or V, where nothing was sent), synchronously
    await hold.settled()             S is on the platter before the client sees the end

Nothing here that moves money awaits, so no cancellation can fall between a debit and its record. Room for A
and S is taken before A is written, so that settling never fails for want of it. The two awaits are for
durability alone. Leaving never raises: an error in it is settled at the estimate and flagged on the record.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

import trio
from attrs import define, evolve, field, frozen

from accounting.bill import Bill, Terms, bill, estimate, recovered
from accounting.ledger import (
    DuplicateGrant,
    Insufficient,
    KeyRevoked,
    Ledger,
    State,
    UnknownKey,
    WalletFrozen,
)
from accounting.records import (
    Attempt,
    Ending,
    Grant,
    GrantKind,
    Key,
    Progress,
    Receipt,
    Record,
    Spender,
    UsageRecord,
    Void,
    Wallet,
)
from pricing.money import Pico, marked_up
from pricing.usage import Meter

__all__ = [
    "Balance",
    "Books",
    "Client",
    "Hold",
    "Insufficient",
    "KeyRevoked",
    "Overloaded",
    "Snapshot",
    "Terms",
    "WalletFrozen",
    "Writer",
]

PLACES: Final = 2
"""Room that an attempt needs before it begins: for its A, and for its S or V."""

_FAR: Final = 2**62
"""More frames or bytes than any answer has: no progress is due."""


class Overloaded(Exception):
    """The books can take no more for now, or have failed.

    Args:
        because: why, in a few words, for the log and the caller.
        retry_after_seconds: when trying again may help.
    """

    def __init__(self, because: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(because)
        self.because = because
        self.retry_after_seconds = retry_after_seconds


class Writer(Protocol):
    """Where records go; `accounting.recorder.Recorder`, or a fake."""

    def reserve(self, places: int) -> None:
        """Take room for later records. Raises `Overloaded` if one of them could find none."""
        ...

    def release(self, places: int) -> None:
        """Give room back that is no longer needed."""
        ...

    def write(self, record: Record, *, reserved: bool = False) -> int:
        """Write a record and say its seq; with `reserved` it uses up a reserved place and surely finds room.

        Raises:
            Overloaded: no room, or the books have failed. A reserved place is then still reserved.
        """
        ...

    async def durable(self, seq: int) -> None:
        """Return once all up to `seq` is on the platter. Raises `Overloaded` if the books have failed."""
        ...


class Client(Protocol):
    """Who the answer is for; a `Reply`, or a fake."""

    @property
    def client_gone(self) -> bool:
        """The client has left."""
        ...


@frozen
class Balance:
    """What a wallet has, in picos; `available` is what a new hold may take."""

    balance: Pico
    held: Pico
    available: Pico
    currency: str


@frozen
class Snapshot:
    """The ledger as it was when `seq` was the last record that had changed it."""

    seq: int
    state: State


@define(eq=False)
class Books:
    """The ledger and its journal, as one: what the rest of the house asks about money.

    Attributes:
        ledger: as recovered.
        writer: where records go.
        clock: wall clock in ms, never decreasing; only stamped.
        now: monotonic seconds; for elapsed time.
        new_id: a fresh unique id with this prefix.
        progress_seconds, progress_tokens: how often an answer under way is written down.
        seq: of the last record that the ledger has taken in.
    """

    ledger: Ledger
    writer: Writer
    clock: Callable[[], int]
    now: Callable[[], float]
    new_id: Callable[[str], str]
    progress_seconds: float = field(default=2.0, kw_only=True)
    progress_tokens: int = field(default=1000, kw_only=True)
    seq: int = field(default=0, kw_only=True)

    def hold(self, request: str, spender: Spender, amount: Pico, client: Client) -> "Hold":
        """Set credit aside for a request; zero is legal (free calls).

        Raises:
            Insufficient, WalletFrozen, KeyRevoked, UnknownWallet: nothing was set aside.
        """
        try:
            revoked = self.ledger.key(spender.key).revoked
        except UnknownKey:
            revoked = False  # keys are checked at the door; here we only catch one revoked since then
        if revoked:
            raise KeyRevoked(spender.key)
        self.ledger.take(request, spender.wallet, amount)
        return Hold(self, request, spender, amount, client)

    def balance(self, wallet: str) -> Balance:
        """What a wallet has. Raises `UnknownWallet`."""
        balance, held = self.ledger.balance(wallet), self.ledger.held(wallet)
        return Balance(balance, held, max(balance - held, 0), self.ledger.wallet(wallet).currency)

    def available(self, wallet: str) -> Pico:
        """What a new hold may take. Raises `UnknownWallet`."""
        return max(self.ledger.available(wallet), 0)

    def snapshot(self) -> Snapshot:
        """Ledger and seq in one synchronous step, to compare the store with once it is loaded so far."""
        return Snapshot(self.seq, self.ledger.state())

    async def create_wallet(self, name: str, currency: str = "USD") -> Wallet:
        """Make a wallet; returns once it is durable. Raises `Overloaded`."""
        wallet = Wallet(self.new_id("wallet"), name, currency, self.clock())
        self.ledger.check_wallet(wallet)
        await self.writer.durable(self.put_down(wallet))
        return wallet

    async def freeze_wallet(self, wallet: str, *, frozen: bool = True) -> Wallet:
        """Freeze or thaw a wallet; open holds settle in any case. Returns once it is durable."""
        changed = evolve(self.ledger.wallet(wallet), frozen=frozen, at_ms=self.clock())
        await self.writer.durable(self.put_down(changed))
        return changed

    async def top_up(
        self, wallet: str, amount: Pico, kind: GrantKind, source_key: str, expires_ms: int | None = None
    ) -> tuple[Grant, bool]:
        """Grant credit once per `source_key`; returns once it is durable.

        Returns:
            The grant, and whether this source had been credited before (then nothing was done; its wallet and
            amount may be others than asked for).

        Raises:
            UnknownWallet, ValueError, Overloaded: nothing was granted.
        """
        grant = Grant(self.new_id("grant"), wallet, amount, kind, source_key, self.clock(), expires_ms)
        try:
            self.ledger.check_grant(grant)
        except DuplicateGrant as duplicate:
            await self.writer.durable(self.seq)  # the first of the two may still be on its way to the platter
            return duplicate.existing, True
        await self.writer.durable(self.put_down(grant))
        return grant, False

    async def create_key(self, key: Key) -> Key:
        """Make a key; returns once it is durable. Raises `UnknownWallet`, ValueError, `Overloaded`."""
        return await self._put_key(key, new=True)

    async def change_key(self, key: Key) -> Key:
        """Replace what is known of a key, whole. Raises `UnknownKey` and as `create_key`."""
        self.ledger.key(key.key)
        return await self._put_key(key)

    async def revoke_key(self, key: str) -> Key:
        """Refuse a key from now on; returns once that is durable. Raises `UnknownKey`, `Overloaded`."""
        return await self._put_key(evolve(self.ledger.key(key), revoked=True, at_ms=self.clock()))

    def expire_due(self, wallet: str | None = None) -> int:
        """Write off what has expired, as far as open holds allow and there is room; call it now and then.

        Returns:
            How many records were written. What found no room comes with a later call.
        """
        transfers = self.ledger.expire_due(self.clock(), wallet)
        for count, transfer in enumerate(transfers):
            try:
                self.put_down(transfer)
            except (Overloaded, OSError):
                return count
        return len(transfers)

    def put_down(self, record: Record, *, reserved: bool = False) -> int:
        """Write a record that the ledger has decided on, and apply it; one synchronous step. Says its seq."""
        seq = self.writer.write(record, reserved=reserved)
        self.seq = seq
        self.ledger.apply(record)
        return seq

    async def _put_key(self, key: Key, *, new: bool = False) -> Key:
        self.ledger.check_key(key, new=new)
        await self.writer.durable(self.put_down(key))
        return key


@define(eq=False)
class _Open:
    """The attempt that is under way."""

    terms: Terms
    attempt: Attempt
    began: float
    sent: bool = False
    status: int = 0
    upstream_id: str | None = None
    first_byte_ms: int | None = None
    progress: Progress | None = None


@define(eq=False)
class Hold:
    """Credit set aside for one request, from `Books.hold` until the end of its `with`.

    Attributes:
        held: how much.
        meter: what the attempt under way has used so far; emptied when the next one begins.
        error: what went wrong in settling, if anything; the request is settled nevertheless.
    """

    _books: Books
    request: str
    spender: Spender
    held: Pico
    _client: Client
    meter: Meter = field(factory=Meter, init=False)
    _receipt: Receipt | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    _open: _Open | None = field(default=None, init=False)
    _number: int = field(default=0, init=False)
    _last: UsageRecord | None = field(default=None, init=False)
    _relayed: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _places: int = field(default=0, init=False)
    _seq_attempt: int = field(default=0, init=False)
    _seq_end: int = field(default=0, init=False)
    _unwritten: Exception | None = field(default=None, init=False)
    _frames_due: int = field(default=_FAR, init=False)
    _bytes_due: int = field(default=_FAR, init=False)
    _seconds_due: float = field(default=0.0, init=False)

    # -- attempts ----------------------------------------------------------------------------------

    def attempt(self, terms: Terms) -> None:
        """Begin an attempt: room for its end is taken, then A is written. Nothing may be sent before.

        Raises:
            Overloaded: there is no room; nothing was begun.
        """
        if self._closed or self._open is not None:
            raise RuntimeError(f"request {self.request}: an attempt begins inside another or after the hold")
        books, writer = self._books, self._books.writer
        attempt = Attempt(
            self.request,
            self._number + 1,
            self.spender.wallet,
            self.spender.key,
            self.held,
            terms.model,
            terms.provider,
            terms.account,
            terms.dialect,
            terms.stream,
            terms.price.version,
            terms.price.markup_ppm,
            books.clock(),
        )
        writer.reserve(PLACES)
        self._places += PLACES
        self._seq_attempt = books.seq = writer.write(attempt, reserved=True)
        self._places -= 1
        books.ledger.apply_attempt(attempt)
        self._number += 1
        self._open = _Open(terms, attempt, books.now())
        self._reset()

    def sending(self) -> None:
        """The first byte of the request is about to leave: from here on it is settled, not voided."""
        opened = self._now_open()
        if not opened.sent:
            opened.sent = True
            opened.began = self._books.now()

    def answered(self, status: int, upstream_id: str | None) -> None:
        """The provider has answered with this status, and calls the answer so."""
        opened = self._now_open()
        opened.sent = True
        opened.status = status
        opened.upstream_id = upstream_id

    def attempt_failed(self, ending: Ending, status: int) -> None:
        """The attempt is over and another may follow: the customer pays nothing for it, the operator may."""
        opened = self._now_open()
        opened.status = status or opened.status
        self._end(opened, ending, free=True)
        self._reset()

    def cover(self, chunk: bytes) -> bytes:
        """Stand between feed and write: note what is relayed, write progress when due, pass the chunk on.

        Raises:
            RuntimeError: no attempt is open.
        """
        opened = self._open
        if opened is None:
            raise RuntimeError(f"request {self.request}: nothing is open that could be relayed")
        if opened.first_byte_ms is None:
            opened.first_byte_ms = self._books.clock()
            opened.sent = True
        if chunk:
            self._relayed = True
        meter = self.meter
        if (
            meter.content_frames >= self._frames_due
            or meter.content_bytes >= self._bytes_due
            or self._books.now() >= self._seconds_due
        ):
            self._write_progress(opened)
        return chunk

    def cost_so_far(self) -> Pico:
        """What the customer would owe if the answer ended here; for callers who want to watch."""
        opened = self._now_open()
        return min(self._bill_now(opened).price, self.held)

    # -- durability --------------------------------------------------------------------------------

    async def journaled(self) -> None:
        """Wait until A is on the platter: before the client's first byte. Raises `Overloaded`."""
        if self._seq_attempt:
            await self._books.writer.durable(self._seq_attempt)

    async def settled(self) -> None:
        """Wait until the end of every attempt is on the platter: before the client's last byte.

        Raises:
            Overloaded: it never will be; the client must not be told that all is well.
        """
        if self._unwritten is not None:
            raise Overloaded("the books could not be written") from self._unwritten
        if self._seq_end:
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
        books, wallet = self._books, self.spender.wallet
        try:
            if self._open is not None:
                self._end(self._open, self._ending(exc), free=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, the hold must close
            self.error = self._unwritten = error
        if self._places:  # an A or its end could not be written
            books.writer.release(self._places)
            self._places = 0
        books.ledger.give_back(self.request)
        books.expire_due(wallet)  # what this hold leaned on may have expired
        self._receipt = Receipt(
            self.request,
            self._last,
            books.ledger.balance(wallet),
            books.ledger.held(wallet),
            books.ledger.wallet(wallet).currency,
        )

    def _ending(self, exc: BaseException | None) -> Ending:
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
        self._books.ledger.apply(record)

    def _settlement(self, opened: _Open, ending: Ending, *, free: bool) -> UsageRecord:
        """Make out S: by the rule, else by the estimate, else by the last progress."""
        elapsed = self._books.now() - opened.began
        try:
            made = bill(
                opened.terms,
                self.meter,
                ending,
                elapsed_seconds=elapsed,
                relayed=self._relayed,
                gone=self._client.client_gone,
            )
            return self._record(opened, ending, made, free=free)
        except Exception as error:  # noqa: BLE001 - an answer that went out is billed, whatever broke in here
            self.error = error
        flag = f"settle_error:{type(self.error).__name__}"
        try:
            made = evolve(self._estimated(opened, elapsed), flags=(flag,))
        except Exception as error:  # noqa: BLE001 - the last progress needs no arithmetic
            self.error = error
            made = evolve(recovered(opened.progress), flags=(flag, f"settle_error:{type(error).__name__}"))
        return self._record(opened, ending, made, free=free)

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
        attempt, books = opened.attempt, self._books
        price = 0 if free else made.price
        charged = min(price, self.held)
        flags = made.flags
        if price > charged:
            flags += ("beyond_hold",)
        if free:
            flags += ("failed_over",)
        return UsageRecord(
            request=self.request,
            number=attempt.number,
            wallet=attempt.wallet,
            key=attempt.key,
            model=attempt.model,
            provider=attempt.provider,
            account=attempt.account,
            dialect=attempt.dialect,
            stream=attempt.stream,
            outcome=ending,
            status=opened.status,
            source=made.source,
            usage=made.usage,
            price_version=attempt.price_version,
            markup_ppm=attempt.markup_ppm,
            held=self.held,
            price=price,
            charged=charged,
            cost=made.cost,
            loss=price - charged,
            currency=books.ledger.wallet(attempt.wallet).currency,
            started_ms=attempt.at_ms,
            ended_ms=books.clock(),
            first_byte_ms=opened.first_byte_ms,
            usage_legs=made.legs if len(made.legs) > 1 else (),
            legs=books.ledger.burn(attempt.wallet, charged),
            flags=flags,
            upstream_id=opened.upstream_id,
        )

    # -- progress ----------------------------------------------------------------------------------

    def _write_progress(self, opened: _Open) -> None:
        """P: what it would cost if we stopped now, so that a kill can be settled; left out without room."""
        self._progress_due()
        books = self._books
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
        opened.progress = progress

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

    def _progress_due(self) -> None:
        books, meter, opened = self._books, self.meter, self._open
        self._seconds_due = books.now() + books.progress_seconds
        self._frames_due = meter.content_frames + books.progress_tokens
        if opened is not None:
            self._bytes_due = meter.content_bytes + books.progress_tokens * opened.terms.dense_bytes_per_token

    def _reset(self) -> None:
        """Begin to count anew, in the same meter: whoever has it sees the attempt under way and no other."""
        meter = self.meter
        meter.reported = None
        meter.content_frames = meter.content_bytes = 0
        self._progress_due()

    def _now_open(self) -> _Open:
        if self._open is None:
            raise RuntimeError(f"request {self.request}: no attempt is open")
        return self._open


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
