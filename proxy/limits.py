"""What a key may do at once and per minute, and what the gateway bears in all: GCRA, decided synchronously.

GCRA keeps one number per limit, the *theoretical arrival time*: when the bucket would be empty again. A request
of cost *c* moves it by *c* emission intervals and is refused when it would then lie more than one period ahead. A
fresh key may so spend its whole minute at once, and over time never more than its rate.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from attrs import define, field, frozen
from msgspec import Struct

from pricing.price import Bounds
from pricing.usage import Usage
from proxy.errors import Kind, Rejected
from proxy.types import Caller, KeyLimits

PERIOD_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0
"""What is told to a caller whose requests are too many at once: when one of them ends is not known."""

_NO_LIMITS: Final = KeyLimits()


class Hanging(Protocol):
    """The part of a Reply that matters here: it says when its client is gone."""

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once, when the client is gone and the answer is read on."""
        ...


class Settled(Protocol):
    """The part of a Receipt's record that matters here."""

    @property
    def usage(self) -> Usage:
        """What the answer used."""
        ...


class Receipted(Protocol):
    """The part of a Receipt that matters here: the record, or `None` where nothing was sent."""

    @property
    def record(self) -> Settled | None:
        """What was settled."""
        ...


class Spending(Protocol):
    """The part of a Hold that matters here: a context manager, and once it is left it has a receipt."""

    def __enter__(self) -> Any:
        """Spend."""
        ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Settle."""
        ...

    @property
    def receipt(self) -> Receipted:
        """What became of it."""
        ...


Spent = TypeVar("Spent", bound=Spending)


@frozen
class Ceilings:
    """Bounds of the whole gateway; from `config.RequestLimits`."""

    requests_max: int
    muted_max: int
    muted_per_key_max: int
    uploads_bytes_max: int = 2**30


@define(eq=False)
class Uploads:
    """Memory for bodies that are being read: they may be large, and come as slowly as is just allowed.

    Attributes:
        bytes_max: of all together.
        taken: of these.
    """

    bytes_max: int
    taken: int = 0

    def take(self, count: int) -> None:
        """See `types.Room`."""
        if self.taken + count > self.bytes_max:
            message = "Too many large requests are being sent at once."
            raise Rejected(Kind.OVERLOADED, message, retry_after_seconds=RETRY_SECONDS)
        self.taken += count

    def give_back(self, count: int) -> None:
        """See `types.Room`."""
        self.taken -= count


@frozen
class Standing:
    """How a caller stands with one limit, for the rate-limit headers."""

    limit: int
    remaining: int
    reset_seconds: float


class Limited(Rejected):
    """429, with how the caller stands."""

    standing: dict[str, Standing]


@define(eq=False)
class _Bucket:
    """One limit of one key, by GCRA."""

    limit: int
    arrival: float = 0.0

    @property
    def interval(self) -> float:
        return PERIOD_SECONDS / self.limit

    def take(self, cost: int, now: float) -> float:
        """Take `cost`, or say in how many seconds it may be tried again (0.0: taken)."""
        arrival = max(self.arrival, now) + cost * self.interval
        wait = arrival - now - PERIOD_SECONDS
        # a cost above the whole limit passes when the bucket is full, else it could never pass
        if wait > 1e-9 and not (cost > self.limit and self.arrival <= now):
            return wait if cost <= self.limit else max(self.arrival - now, 0.001)
        self.arrival = arrival
        return 0.0

    def give_back(self, cost: int, now: float) -> None:
        """Undo part of a cost that turned out smaller."""
        self.arrival = max(self.arrival - cost * self.interval, now)

    def standing(self, now: float) -> Standing:
        ahead = max(self.arrival - now, 0.0)
        return Standing(self.limit, max(int((PERIOD_SECONDS - ahead) / self.interval + 1e-6), 0), ahead)


@define(eq=False)
class _KeyState:
    """What one key has under way."""

    limits: KeyLimits
    requests: _Bucket | None = None
    tokens: _Bucket | None = None
    open: int = 0
    muted: int = 0

    def obey(self, limits: KeyLimits) -> None:
        """Changed limits hold from the next request on."""
        self.limits = limits
        self.requests = _bucket(self.requests, limits.requests_per_minute)
        self.tokens = _bucket(self.tokens, limits.tokens_per_minute)

    def standing(self, now: Callable[[], float]) -> dict[str, Standing]:
        if self.requests is None and self.tokens is None:
            return {}
        buckets, at = {"requests": self.requests, "tokens": self.tokens}, now()
        return {name: bucket.standing(at) for name, bucket in buckets.items() if bucket is not None}


class Slot(Struct, eq=False):
    """A place among the requests under way; a context manager that gives it back.

    A struct, since one is made for each request.
    """

    _limits: "Limits"
    _state: _KeyState
    _muted: bool = False
    _released: bool = False
    _tokens_taken: int = 0

    def __enter__(self) -> Self:
        """The place was taken by `Limits.admit`."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the place back."""
        self._released = True
        self._limits.release(self._state, muted=self._muted)
        if exc_type is not None and self._tokens_taken:
            self.true_up(None)

    def fall_mute(self) -> None:
        """The client is gone and the answer is read on; once the place is given back it no longer matters."""
        if not self._muted and not self._released:
            self._muted = True
            self._limits.muted += 1
            self._state.muted += 1

    def tokens(self, bounds: Bounds) -> None:
        """Take the most that the request can use from the key's tokens per minute.

        Raises:
            Rejected: 429, with the time to wait.
        """
        bucket = self._state.tokens
        if bucket is None:
            return
        most = bounds.input + bounds.output
        wait = bucket.take(most, self._limits.now())
        if wait:
            raise self._limits.limited(
                self._state, f"This key may use {bucket.limit} tokens per minute.", wait
            )
        self._tokens_taken = most

    def spending(self, hold: Spent) -> AbstractContextManager[Spent]:
        """Within this context, spend from a hold; its tokens are trued up whichever way the answer ends.

        A client that hangs up has used what it has seen: else leaving early would be a way around the limit.
        """
        return _TruedUp(self, hold) if self._tokens_taken else hold

    def true_up(self, record: Settled | None) -> None:
        """Replace the most by what was used in fact (`None`: nothing)."""
        bucket, taken, self._tokens_taken = self._state.tokens, self._tokens_taken, 0
        if bucket is not None and taken:
            used = record.usage.context + record.usage.output if record is not None else 0
            bucket.give_back(max(taken - used, 0), self._limits.now())

    def standing(self) -> dict[str, Standing]:
        """How the caller stands, by `requests` and `tokens`, where limits exist."""
        return self._state.standing(self._limits.now)


@define(eq=False)
class _TruedUp:
    """A hold that is spent from; once it is left, the tokens that were taken become those that were used."""

    _slot: Slot
    _hold: Any

    def __enter__(self) -> Any:
        return self._hold.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._hold.__exit__(exc_type, exc, traceback)
        finally:
            self._slot.true_up(self._hold.receipt.record)


@define(eq=False)
class Limits:
    """Every key's limits, and those of the gateway.

    Attributes:
        ceilings: of the gateway.
        now: monotonic seconds.
        uploads: room for bodies while they are read.
    """

    ceilings: Ceilings
    now: Callable[[], float]
    uploads: Uploads = field(init=False)
    open: int = 0
    muted: int = 0
    _keys: dict[str, _KeyState] = field(factory=dict)

    @uploads.default
    def _uploads_default(self) -> Uploads:
        return Uploads(self.ceilings.uploads_bytes_max)

    def admit(self, caller: Caller, reply: Hanging) -> Slot:
        """Take a place for one request.

        Raises:
            Rejected: 429 for the key's own limits, 503 for the gateway's.
        """
        if self.open >= self.ceilings.requests_max or self.muted >= self.ceilings.muted_max:
            raise Rejected(
                Kind.OVERLOADED, "The gateway is at its limit of requests.", retry_after_seconds=RETRY_SECONDS
            )
        state = self._state_of(caller)
        concurrency = caller.limits.concurrency
        if concurrency is not None and state.open >= concurrency:
            message = f"This key may have {concurrency} requests under way at once."
            raise self.limited(state, message, RETRY_SECONDS)
        if state.muted >= self.ceilings.muted_per_key_max:
            message = "Too many answers that this key's clients hung up on are still being read to their end."
            raise self.limited(state, message, RETRY_SECONDS)
        if state.requests is not None:
            wait = state.requests.take(1, self.now())
            if wait:
                message = f"This key may make {state.requests.limit} requests per minute."
                raise self.limited(state, message, wait)
        self.open += 1
        state.open += 1
        slot = Slot(self, state)
        reply.when_gone(slot.fall_mute)
        return slot

    def release(self, state: _KeyState, *, muted: bool) -> None:
        """Give a place back; called by the slot, once."""
        self.open -= 1
        state.open -= 1
        if muted:
            self.muted -= 1
            state.muted -= 1

    def standing(self, caller: Caller) -> dict[str, Standing]:
        """How a caller stands without taking anything, for `GET /v1/key`."""
        return self._state_of(caller).standing(self.now)

    def limited(self, state: _KeyState, message: str, retry_after_seconds: float) -> Limited:
        """Word a refusal by a limit of the key's own."""
        refusal = Limited(Kind.RATE_LIMITED, message, retry_after_seconds=retry_after_seconds)
        refusal.standing = state.standing(self.now)
        return refusal

    def under_way(self, caller: Caller) -> int:
        """How many requests of this key are under way."""
        return self._state_of(caller).open

    def _state_of(self, caller: Caller) -> _KeyState:
        state = self._keys.get(caller.spender.key)
        if state is None:
            state = self._keys[caller.spender.key] = _KeyState(_NO_LIMITS)
        if state.limits is not caller.limits:
            state.obey(caller.limits)
        return state


def _bucket(bucket: _Bucket | None, limit: int | None) -> _Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return _Bucket(limit)
    bucket.limit = limit
    return bucket
