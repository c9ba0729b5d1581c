"""Try accounts until one begins to answer; then hand its bytes on, under deadlines, and close in time.

Failover ends at the first relayed byte. What a stream says before its first content (a start event, pings) is
kept, so an overload that follows it can still move on to another account. Each attempt stands in the books
before it is sent, and what a hang-up does is decided at the moment when its first byte leaves:

- before: the request is cancelled and the attempt is void;
- after, where hanging up stops the bill and all of it is visible: cancelled too, and the connection closed;
- after, elsewhere: the reply falls mute and the answer is read to its end: the bill is the reported one.

No attempt is begun for a client that is gone.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from types import ModuleType, TracebackType
from typing import Any, Final, NoReturn, Protocol

import trio
from attrs import define, field

from accounting.bill import Terms
from accounting.hold import Hold
from accounting.ports import Overloaded
from accounting.records import Ending
from proxy.config import Account, Config
from proxy.dialects.scrub import scrub
from proxy.errors import Kind, Rejected, StreamBroken, UpstreamFailed
from proxy.pool import Pool, Rest
from proxy.types import Ask, Dialect, Offer, Reply
from proxy.upstreams.client import Call, Client, ConnectionWasStale, Exchange, NotInTime, Take
from proxy.upstreams.failures import Leave, ProviderFailed, judge, private
from proxy.upstreams.providers import Way, anthropic, gemini, openai

KINDS: Final[Mapping[str, ModuleType]] = {"openai": openai, "anthropic": anthropic, "gemini": gemini}

ERROR_SECONDS: Final = 5.0
"""How long an error answer may take to arrive; what is there by then is read."""

CATCH_UP_SECONDS: Final = 2.0
"""How long the rest of an answer is read that a client kept us from reading before it left."""

CATCH_UP_BYTES: Final = 2**23
"""And how much of it: more than that, buffers on the way hardly hold."""

ROUND_TRIP_SECONDS: Final = 0.25
"""So long it takes at most until what a provider has in store arrives."""

PRESENT_BYTES: Final = 4096
"""Pieces of an answer are smaller while it is being written."""

NEVER: Final = -1
"""No number of frames: whatever the meter has seen is new."""

Log = Callable[..., None]
"""`log(level, event, **fields)`."""


class Metered(Protocol):
    """Counts content as it is fed to a translator; the hold's meter."""

    content_frames: int


def _no_log(_level: str, _event: str, **_fields: Any) -> None:
    """Where nobody listens."""


@define(eq=False)
class Upstreams:
    """Brings answers; one for the whole gateway.

    Attributes:
        config: deadlines, failover, what a hang-up does, and the providers' credentials.
        client: reaches providers.
        pool: which accounts rest.
        dialects: by name.
        base_urls: where each provider is, by its name (`Router.base_urls`).
        log: for the operator.
    """

    config: Config
    client: Client
    pool: Pool
    dialects: Mapping[Any, Dialect]
    base_urls: Mapping[str, str]
    log: Log = _no_log
    _ways: Mapping[tuple[str, str], Way] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._ways = {
            (provider.name, account.name): Way(
                KINDS[provider.kind], self.base_urls[provider.name], account.api_key
            )
            for provider in self.config.provider
            for account in provider.account or (Account(name="default"),)
            if provider.name in self.base_urls
        }

    def answer(self, ask: Ask, offers: tuple[Offer, ...], hold: Hold, reply: Reply) -> "Attempts":
        """Try the offers in order until one begins to answer.

        Entering the context raises:
            Rejected: the provider refused the request itself, or the books take nothing on.
            UpstreamFailed: all failed (502), were too slow (504), or rest (503).
        """
        return Attempts(self, ask, offers, hold, reply)

    def call(self, ask: Ask, offer: Offer) -> Call:
        """The request as this offer's provider wants it."""
        way = self._ways[offer.provider, offer.account]
        return Call(
            way.url(ask, offer), way.headers(ask), self.dialects[offer.dialect].write_request(ask, offer)
        )

    def private(self, offer: Offer) -> tuple[str, ...]:
        """What of the operator's must not appear in anything that a caller is told."""
        way = self._ways[offer.provider, offer.account]
        return private(way.base_url, (way.secret.reveal(),))

    def let_rest(self, offer: Offer, leave: Leave, now: float) -> None:
        """Leave an account alone for a while, and tell the operator."""
        self.pool.rest(
            Rest(
                provider=offer.provider,
                account=offer.account,
                model=None if leave.whole else offer.wire_name,
                since=now,
                until=now + leave.seconds,
                because=leave.because,
                hard=leave.hard,
            )
        )
        self.log(
            "error" if leave.hard and leave.whole else "warning",
            "account_rests",
            provider=offer.provider,
            account=offer.account,
            model=None if leave.whole else offer.model.id,
            because=leave.because,
            seconds=leave.seconds,
        )


def terms(offer: Offer, ask: Ask) -> Terms:
    """What the books are told about an attempt."""
    return Terms(  # by name throughout, Python would make a dictionary for them first
        offer.model.id,
        offer.provider,
        offer.account,
        offer.dialect,
        ask.stream,
        price=offer.price,
        stops_billing=offer.stops_billing,
        visible=offer.visible,
        bounds=offer.bounds,
        text_bytes=ask.measures.text_bytes,
        dense_bytes_per_token=offer.model.dense_bytes_per_token,
        tokens_per_second_max=offer.model.tokens_per_second_max,
        choices=offer.choices,
        slice_tokens=offer.slice_tokens,
        states_input=offer.states_input,
        holds_back=offer.holds_back,
    )


@define(eq=False)
class Attempts:
    """The context around one answer: entered by trying, left by closing the provider's connection."""

    _up: Upstreams
    _ask: Ask
    _offers: tuple[Offer, ...]
    _hold: Hold
    _reply: Reply
    _now: Callable[[], float] = field(init=False)
    _ends_at: float = field(init=False)
    _status: int = field(default=0, init=False)
    _answer: "OpenAnswer | None" = field(default=None, init=False)

    async def __aenter__(self) -> "OpenAnswer":
        up = self._up
        self._now = trio.lowlevel.current_clock().current_time  # trio's own way there is three calls longer
        now = self._now()
        self._ends_at = now + up.config.deadlines.total_seconds
        untried = list(self._offers)
        again: set[int] = set()
        failed: UpstreamFailed | None = None
        for _ in range(up.config.failover.attempts_max):
            offer = up.pool.next(untried, now)
            if offer is None:
                break
            if self._has_left(failed):
                await trio.lowlevel.checkpoint()
                raise UpstreamFailed(Kind.UPSTREAM_ERROR, "The client is gone.", try_another=False)
            untried.remove(offer)
            try:
                self._answer = await self._attempt(offer, now, fresh=id(offer) in again)
            except ConnectionWasStale as stale:
                failed = stale
                if id(offer) not in again:
                    # it says nothing about the account: once more, on a new connection
                    again.add(id(offer))
                    untried.insert(0, offer)
            except UpstreamFailed as failure:
                failed = failure
                self._learn(offer, failure)
                if not failure.try_another:
                    break
            else:
                self._ask = self._ask.answered()
                return self._answer
            now = self._now()
        raise self._nobody(failed)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        answer = self._answer
        if answer is not None:
            if isinstance(exc, StreamBroken):  # it may quote an error in mid-stream, and that a credential
                exc.message = scrub(exc.message, self._up.private(answer.offer))
            elif isinstance(exc, trio.Cancelled) and answer.behind and self._reply.client_gone:
                self._reply.mute_when_gone(mute=True)
                await answer.catch_up()
            await answer.aclose()

    def _has_left(self, failed: UpstreamFailed | None) -> bool:
        """Close the attempt before in the books, and see whether the client is gone.

        In this order: whoever left while a provider was refusing pays nothing for that.
        """
        if failed is not None:
            self._hold.attempt_failed(failed.ending, self._status)
        self._reply.mute_when_gone(mute=False)  # cancels the request if the client is gone
        return self._reply.client_gone

    async def _attempt(self, offer: Offer, began: float, *, fresh: bool) -> "OpenAnswer":
        """Send the request to one account, and wait until it begins to answer.

        Args:
            offer: of the account.
            began: the time now.
            fresh: on a new connection.

        Raises:
            UpstreamFailed, Rejected: it did not; its connection is closed.
        """
        up = self._up
        call = up.call(self._ask, offer)
        try:
            self._hold.attempt(terms(offer, self._ask))
        except Overloaded as error:
            raise Rejected(
                Kind.OVERLOADED,
                f"The accounting can take no more requests for now: {error.because}.",
                retry_after_seconds=error.retry_after_seconds,
                metadata={"trigger": error.trigger},
            ) from error
        first_content, idle = self._patience(offer)
        until = min(began + first_content, self._ends_at)
        self._status, exchange = 0, None
        try:
            await self._hold.may_be_sent()
            exchange = await up.client.send(call, partial(self._sending, offer), until, fresh=fresh)
            self._status = exchange.status
            self._hold.answered(exchange.status, _upstream_id(offer, exchange))
            if not 200 <= exchange.status < 300:
                await self._refuse(offer, exchange, until)
            self._check_encoding(exchange)
            # of an answer that is no stream the status is enough
            kept = await self._until_content(offer, exchange, until) if self._ask.stream else b""
        except BaseException as error:
            if exchange is not None:
                await exchange.aclose()  # it shields itself, where it waits for anything
            if isinstance(error, NotInTime):
                raise _timed_out() from None
            raise
        up.pool.succeeded(offer, began)
        return OpenAnswer(
            offer,
            exchange,
            kept,
            self._hold.meter,
            self._ask.stream,
            idle,
            self._ends_at,
            up.config,
            self._now,
        )

    def _sending(self, offer: Offer) -> None:
        """The first byte is about to leave: from here on it costs, and a hang-up may only mute the reply."""
        self._hold.sending()
        abort = offer.abortable or self._up.config.on_hangup_hidden == "abort"
        self._reply.mute_when_gone(mute=not abort)

    def _patience(self, offer: Offer) -> tuple[float, float]:
        """Seconds to the first content, and between content: more where the provider may think unseen."""
        deadlines = self._up.config.deadlines
        if not self._ask.stream or offer.model.hides_reasoning(self._ask.measures.reasoning):
            return deadlines.first_content_reasoning_seconds, deadlines.idle_reasoning_seconds
        return deadlines.first_content_seconds, deadlines.idle_seconds

    async def _refuse(self, offer: Offer, exchange: Exchange, until: float) -> NoReturn:
        """Raise what an answer means that is not one of success."""
        up, status = self._up, exchange.status
        try:
            body = await self._error_body(exchange, until)
        except BaseException:
            self._hold.attempt_failed(Ending.REFUSED, status)  # so it was, whoever left meanwhile
            raise
        error = up.dialects[offer.dialect].read_error(status, body)
        raise judge(status, exchange.headers, error, up.config.failover, up.private(offer))

    def _check_encoding(self, exchange: Exchange) -> None:
        """Raise if the body is compressed."""
        encoding = exchange.headers.get("content-encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            # to decode it would let a few bytes become gigabytes, and hold streams back
            because = "compressed its answer although asked not to"
            seconds = self._up.config.failover.rest_failed_seconds
            leave = Leave(seconds, because, hard=False, whole=True)
            message = "The provider's answer cannot be read."
            raise ProviderFailed(Kind.UPSTREAM_ERROR, message, leave, ending=Ending.BROKEN)

    async def _error_body(self, exchange: Exchange, until: float) -> bytes:
        """As much of an error answer as comes in time, within its bound."""
        body, bytes_max = bytearray(), self._up.config.failover.error_bytes_max
        until = min(until, self._now() + ERROR_SECONDS)
        try:
            while len(body) < bytes_max and (chunk := await exchange.read(until)):
                body += chunk
        except StreamBroken:
            pass  # the status says enough
        return bytes(body[:bytes_max])

    async def _until_content(self, offer: Offer, exchange: Exchange, until: float) -> bytes:
        """Read a stream up to where its content begins.

        Raises:
            UpstreamFailed: it failed before that.
            NotInTime: no content came by then.
        """
        prelude, kept = self._up.dialects[offer.dialect].prelude(), bytearray()
        try:
            while len(kept) < self._up.config.limits.frame_bytes_max:
                chunk = await exchange.read(until)
                if chunk is None:
                    raise NotInTime
                if not chunk:
                    raise _broken("The provider's answer ended before it began.")
                kept += chunk
                if prelude.feed(chunk):
                    break
        except StreamBroken as broken:
            raise _broken(broken.message) from broken
        except UpstreamFailed as failure:
            failure.message = scrub(failure.message, self._up.private(offer))
            raise
        return bytes(kept)

    def _learn(self, offer: Offer, failure: UpstreamFailed) -> None:
        """Let the account rest as the failure says, or for a short while where it says nothing."""
        if failure.kind is Kind.REFUSED_UPSTREAM:
            return  # a stream that began with an error about the request: the account is well
        if isinstance(failure, ProviderFailed):
            leave = failure.leave
        else:
            seconds = self._up.config.failover.rest_failed_seconds
            unreached = failure.ending is Ending.UNREACHED
            leave = Leave(seconds, failure.ending.value, hard=False, whole=unreached)
        self._up.let_rest(offer, leave, self._now())

    def _nobody(self, failed: UpstreamFailed | None) -> UpstreamFailed:
        """What the caller is told when no account answered: the last failure, or when to come again.

        The last attempt is still open in the books; it is settled by the ending of this failure.
        """
        if failed is not None and failed.kind is not Kind.NO_HEALTHY_UPSTREAM:
            return failed
        now = self._now()
        wait = math.ceil(max(self._up.pool.ready_at(self._offers, now) - now, 1.0))
        return UpstreamFailed(
            Kind.NO_HEALTHY_UPSTREAM,
            failed.message if failed is not None else "No account is available at the provider for now.",
            try_another=False,
            retry_after_seconds=wait,
            ending=failed.ending if failed is not None else Ending.NEVER_SENT,
        )


@define(eq=False)
class OpenAnswer:
    """A provider's answer, being read: bytes as they came, under the idle and total deadlines.

    Idle is the time spent waiting for the provider without any new content; pings do not count as content,
    and the time in which a slow client keeps us from reading does not count as idle.

    Attributes:
        behind: the client keeps us from reading on; the provider may have written more than was seen.
    """

    offer: Offer
    _exchange: Exchange
    _kept: bytes
    _meter: Metered
    _stream: bool
    _idle_seconds: float
    _ends_at: float
    _config: Config
    _now: Callable[[], float]
    status: int = field(init=False)
    headers: Mapping[str, str] = field(init=False)
    behind: bool = field(default=False, init=False)
    _idle_left: float = field(init=False)
    _frames: int = field(default=NEVER, init=False)
    """Content that had gone by when idle time last began; the first wait begins it."""
    _close_at: float = field(default=math.inf, init=False)
    _take: Take = field(init=False)
    _handing: bool = field(default=False, init=False)
    _waiting_since: float = field(init=False)
    """From when on idle time is to be counted."""
    _declined: bool = field(init=False)
    _fresh: bool = field(init=False)
    """Content has come while we waited, so the deadline that was set is not the one that counts."""

    def __attrs_post_init__(self) -> None:
        self.status = self._exchange.status
        given = self._exchange.headers
        headers: dict[str, str] = {}
        for name in KINDS[self.offer.kind].ANSWER_HEADERS:
            if name in given:
                headers[name] = given[name]
        self.headers = headers
        self._exchange.forget_headers()

    async def hand_on(self, take: Take) -> bool:
        """Hand on what comes, as it was read, until `take` declines.

        Args:
            take: given each piece; must not wait, for it may be called where another task runs.

        Returns:
            True at the end of the answer, false where `take` has declined to take more for now.

        Raises:
            StreamBroken: the connection broke, or no content came for too long.
        """
        self._take = take
        self._waiting_since = self._now()
        try:
            while True:
                # what is here already need not be waited for
                chunk, self._kept = self._kept or self._exchange.ready(), b""
                if chunk is None:
                    chunk = await self._wait()
                if not chunk:
                    return chunk is not None
                if not self._hand(chunk):
                    return False
        except StreamBroken:
            if self._handing or not self._is_closing:
                raise
            return True

    def _hand(self, chunk: bytes) -> bool:
        self._handing = True  # what is raised now is not the provider's doing
        more = self._take(chunk)
        self._handing = False
        if not self._stream and not chunk.isspace():
            self._frames = NEVER  # a body has no pings, and its content is metered at its end
        return more

    async def _wait(self) -> bytes | None:
        """Read on under the deadlines; `b""` at the end, or where it should have come; `None`: declined.

        A provider that always has something to read comes by here now and then as well.
        """
        while True:
            now = self._count_idle()
            self._declined = self._fresh = False
            until = min(now + self._idle_left, self._ends_at, self._close_at)
            chunk = await self._exchange.read(until, self._take_meanwhile) if now < until else None
            self._count_idle()
            if chunk is not None or self._declined:
                return chunk
            if self._is_closing:
                return b""
            if not self._fresh:
                raise _standstill()

    def _count_idle(self) -> float:
        """Take what has passed without content from the time that is left for that; gives the time."""
        now = self._now()
        if not self._note_content():
            self._idle_left = max(self._idle_left - (now - self._waiting_since), 0.0)
        self._waiting_since = now
        return now

    def _take_meanwhile(self, chunk: bytes) -> bool:
        """Hand on what comes while `_wait` waits; new content makes the wait begin anew."""
        more = self._hand(chunk)
        if self._note_content():
            self._waiting_since, self._fresh = self._now(), True
        self._declined = not more
        return more

    def _note_content(self) -> bool:
        """Whether content was metered since this was asked last; if so, idle time begins anew."""
        if self._meter.content_frames == self._frames:
            return False
        self._frames, self._idle_left = self._meter.content_frames, self._idle_seconds
        self._close_at = math.inf  # what seemed to be the end was none
        return True

    async def in_time(self, writing: Awaitable[None], *, more: bool) -> None:
        """Wait for a client that reads slowly, but no longer than an answer may take.

        Args:
            writing: what to wait for.
            more: of the answer would be taken, if the client did not keep us from it.

        Raises:
            StreamBroken: it took longer; by then nothing more can be written.
        """
        self.behind = more
        with trio.move_on_at(self._ends_at) as patience:
            await writing
        if patience.cancelled_caught:
            raise _standstill()
        self.behind = False

    async def catch_up(self) -> None:
        """Take what was written while a client that has left kept us from reading: it was generated, and is billed.

        As long as there is more than a moment's worth at a time, we are behind.
        """
        with trio.move_on_after(CATCH_UP_SECONDS, shield=True), suppress(StreamBroken):
            size, left = PRESENT_BYTES, CATCH_UP_BYTES
            while size >= PRESENT_BYTES and left > 0:
                chunk = self._exchange.ready()
                if chunk is None:
                    chunk = await self._exchange.read(self._now() + ROUND_TRIP_SECONDS)
                    size = len(chunk or b"")
                if not chunk or not self._hand(chunk):
                    return
                left -= len(chunk)

    def expect_close(self) -> None:
        """The terminal event was seen: the provider has a moment to close, then the answer is over.

        Unless there is more content after all.
        """
        self._note_content()
        if not self._is_closing:
            self._close_at = self._now() + self._config.deadlines.close_seconds

    def aclose(self) -> Awaitable[None]:
        """Close the provider's connection, unless the answer was read to its end."""
        return self._exchange.aclose()  # it shields itself, where it waits for anything

    @property
    def _is_closing(self) -> bool:
        return self._close_at < math.inf


def _upstream_id(offer: Offer, exchange: Exchange) -> str | None:
    """What the provider calls this answer; for reconciling bills. Foreign text, so bounded."""
    names: tuple[str, ...] = KINDS[offer.kind].REQUEST_ID
    for name in names:
        value = exchange.headers.get(name)
        if value and value.isascii() and value.isprintable():
            return value[:200]
    return None


def _standstill() -> StreamBroken:
    message = "The provider's answer came to a standstill."
    return StreamBroken(Kind.TIMEOUT, message, ending=Ending.STALLED)


def _timed_out() -> UpstreamFailed:
    return UpstreamFailed(
        Kind.TIMEOUT,
        "The provider did not begin to answer in time.",
        try_another=False,  # it has the request and may bill it: a second one would be billed as well
        ending=Ending.TIMED_OUT,
    )


def _broken(message: str) -> UpstreamFailed:
    return UpstreamFailed(Kind.UPSTREAM_ERROR, message, try_another=True, ending=Ending.BROKEN)
