"""What the sandbox received and would invoice: the other party's books, to hold the gateway's against."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from pricing.usage import NO_USAGE, Usage, total
from proxy.sandbox.answers import Said

CALLS_MAX: Final = 100_000
"""Calls that are kept, about 100 MB; the oldest that has ended leaves first and counts on in the totals."""

STRINGS_MAX: Final = 10_000
"""Directive strings with `times` that are counted; the one seen longest ago is forgotten first."""

ACCOUNT_CHARACTERS: Final = 4
"""Of a credential that are kept, its last ones: enough to tell accounts apart, too few to be one."""

BILLED_BUCKETS: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")


@define(eq=False)
class Call:
    """One call: what was asked, how far it came, what it costs. Times are monotonic milliseconds.

    Attributes:
        id: equals the request-id header of the answer.
        order: 1 for the first call that this server ever received.
        action: `generate` or `count`; the latter is free.
        status: of the answer, once it is decided.
        finished: the whole answer was sent.
        hung_up: the caller closed before that.
        broke: the answer was broken off by a directive (`error`, `cut`, `stall`).
        tokens: generated so far.
        tokens_sent: of those, in frames that were sent.
        closed_ms: when the caller's closing was noticed, before the end or (`no_close`) after it.
        ended_ms: when the sandbox was done with the call.
    """

    id: str
    order: int
    dialect: str
    received_ms: float
    action: str = "generate"
    model: str | None = None
    account: str | None = None
    stream: bool = False
    status: int | None = None
    finished: bool = False
    hung_up: bool = False
    broke: str | None = None
    tokens: int = 0
    tokens_sent: int = 0
    first_byte_ms: float | None = None
    closed_ms: float | None = None
    ended_ms: float | None = None
    _said: Said | None = None
    _whole: bool = False

    def begin(self, said: Said, *, whole: bool) -> None:
        """The bill begins: `whole` if it is for the whole answer whatever comes (not streamed)."""
        self._said = said
        self._whole = whole

    def bill_whole(self) -> None:
        """The answer is billed to its end: it was sent, or the caller left and the bill runs on."""
        self._whole = True

    def closed(self, now_ms: float) -> None:
        """The caller has closed the connection."""
        self.closed_ms = now_ms
        self.hung_up = not self.finished

    @property
    def usage(self) -> Usage:
        """What would be invoiced if it ended now."""
        if self._said is None:
            return NO_USAGE
        if self._whole and not self._said.endless:
            return self._said.usage
        return self._said.used_after(self.tokens)

    def shown(self) -> dict[str, Any]:
        """The call as `/sandbox/calls` shows it."""
        usage = self.usage
        return {
            "id": self.id,
            "received_at": self.order,
            "dialect": self.dialect,
            "action": self.action,
            "model": self.model,
            "account": self.account,
            "stream": self.stream,
            "status": self.status,
            "usage": {name: getattr(usage, name) for name in BILLED_BUCKETS},
            "finished": self.finished,
            "hung_up": self.hung_up,
            "broke": self.broke,
            "tokens": self.tokens,
            "tokens_sent": self.tokens_sent,
            "received_ms": _rounded(self.received_ms),
            "first_byte_ms": _rounded(self.first_byte_ms),
            "closed_ms": _rounded(self.closed_ms),
            "ended_ms": _rounded(self.ended_ms),
        }


@define(eq=False)
class Calls:
    """All calls of one server, in the order in which they came.

    Args:
        unique: makes 32 hexadecimal digits from an order number; no two servers' may be alike.
    """

    _unique: Callable[[int], str]
    _kept: OrderedDict[int, Call] = field(factory=OrderedDict)
    _order: int = 0
    _dropped: int = 0
    _dropped_usage: Usage = NO_USAGE
    _failed: OrderedDict[str, int] = field(factory=OrderedDict)

    def receive(self, dialect: str, now_ms: float) -> tuple[Call, str]:
        """Note a new call; its 32 unique digits come with it."""
        self._order += 1
        unique = self._unique(self._order)
        call = Call(f"req_{unique[:24]}", self._order, dialect, now_ms)
        self._kept[self._order] = call
        if len(self._kept) > CALLS_MAX:
            self._drop_one()
        return call, unique

    def shall_fail(self, text: str, times: int | None) -> bool:
        """Whether a call that is told to fail still does, and count that it did.

        Args:
            text: the directive string.
            times: how many of its calls fail; `None` is all of them.
        """
        if times is None:
            return True
        failed = self._failed.pop(text, 0)
        self._failed[text] = min(failed + 1, times)
        if len(self._failed) > STRINGS_MAX:
            self._failed.popitem(last=False)
        return failed < times

    def reset(self) -> None:
        """Forget every call and what `times` has counted. Order numbers go on, so that ids stay unique."""
        self._kept.clear()
        self._failed.clear()
        self._dropped = 0
        self._dropped_usage = NO_USAGE

    def shown(self, *, after: int = 0, request_id: str | None = None) -> dict[str, Any]:
        """The calls after an order number, or the one of that id, and the totals over all of them."""
        usage = total((self._dropped_usage, *(call.usage for call in self._kept.values())))
        wanted = [
            call.shown()
            for call in self._kept.values()
            if call.order > after and (request_id is None or call.id == request_id)
        ]
        return {
            "data": wanted,
            "total": {
                "calls": self._dropped + len(self._kept),
                "open": sum(call.ended_ms is None for call in self._kept.values()),
                "usage": {name: getattr(usage, name) for name in BILLED_BUCKETS},
            },
            "dropped": self._dropped,
        }

    def _drop_one(self) -> None:
        """Drop the oldest call that has ended, or the oldest of all where none has."""
        ended = (order for order, call in self._kept.items() if call.ended_ms is not None)
        call = self._kept.pop(next(ended, next(iter(self._kept))))
        self._dropped += 1
        self._dropped_usage = total((self._dropped_usage, call.usage))


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
