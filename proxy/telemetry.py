"""Log and metrics: one JSON line per request from an allow-list of fields, and counters in Prometheus' text form.

Nothing is logged that is not named here: no bodies, no headers, no query strings, so a key or a prompt cannot get
into a log by accident. Our own faults are logged with kind and place, without the values of variables and without
the exception's words, which often quote what was asked.
"""

import sys
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Final, Self

import msgspec
from attrs import define, field

from accounting.records import UsageRecord
from pricing.money import micro_up
from proxy.errors import Failure, Kind
from proxy.types import Path, Reply, Request

LEVELS: Final = ("debug", "info", "warning", "error")

_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}

LOGGED: Final = frozenset(
    {
        "account", "action", "because", "cost_micro", "dialect", "error", "event", "host", "hung_up", "kind",
        "level", "method", "model", "outcome", "path", "port", "provider", "request", "seconds", "seq", "signal",
        "status", "traceback", "ts_ms", "until_ms", "wallet",
    }
)  # fmt: skip
"""The only fields that a log line can have."""

ALARMING: Final = ("beyond_hold", "settle_error", "unpriced", "unknown_counter", "tier:", "total_mismatch")
"""Flags on a record that the operator must hear of at once."""

COUNTERS: Final = {
    "farebox_requests_started_total": "Requests that have begun, by dialect.",
    "farebox_requests_total": "Requests that are over, by dialect, status and kind of failure.",
    "farebox_refused_total": "Requests refused for want of credit or of room in the books, by kind and limit.",
    "farebox_hung_up_total": "Requests whose client left before the end, by dialect.",
    "farebox_attempts_total": "Settled attempts at providers, by outcome and source of the usage.",
    "farebox_charged_micro_total": "What wallets were charged, in millionths, by currency.",
    "farebox_cost_micro_total": "What answers cost at list price, in millionths, by currency.",
    "farebox_loss_micro_total": "What providers billed beyond holds, in millionths, by currency.",
    "farebox_flags_total": "What was odd about settlements, by flag.",
    "farebox_trouble_total": "What went wrong inside, by event.",
}
"""Every counter there is; another name is our own mistake."""

HISTOGRAMS: Final = {"farebox_request_seconds": "How long requests took, answers and all."}

BUCKETS_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)
"""Upper bounds of a histogram's buckets; one more takes the rest."""

CANCELLED_STATUS: Final = 499
"""What stands in the log for a request that got no end; nginx has made this number known. It is never sent."""

Labels = tuple[tuple[str, str], ...]


@define(eq=False)
class Counter:
    """One series: a counter of `COUNTERS` under certain labels."""

    value: float = 0


@define(eq=False)
class _Histogram:
    """How many observations fell into each bucket, and their sum."""

    counts: list[int] = field(factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))
    total: float = 0.0

    def samples(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*BUCKETS_SECONDS, "+Inf"), self.counts, strict=True):
            below += count
            yield _sample(f"{name}_bucket", (("le", str(bound)),), below)
        yield _sample(f"{name}_sum", (), self.total)
        yield _sample(f"{name}_count", (), below)


@define(eq=False)
class Metrics:
    """Counters, gauges and a histogram; names are fixed, labels are few and bounded."""

    _counters: dict[str, dict[Labels, Counter]] = field(factory=lambda: {name: {} for name in COUNTERS})
    _histograms: dict[str, _Histogram] = field(factory=lambda: {name: _Histogram() for name in HISTOGRAMS})
    _gauges: dict[str, tuple[str, Callable[[], float]]] = field(factory=dict)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter of `COUNTERS`."""
        self.counter(name, **labels).value += amount

    def counter(self, name: str, **labels: str) -> Counter:
        """Give the counter itself, to whoever adds to it for every request and keeps it."""
        return self._counters[name].setdefault(tuple(sorted(labels.items())), Counter())

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Name something that is read when asked for."""
        self._gauges[name] = (text, read)

    def seconds(self, name: str, value: float) -> None:
        """Add one observation to a histogram of `HISTOGRAMS`."""
        histogram = self._histograms[name]
        histogram.counts[bisect_left(BUCKETS_SECONDS, value)] += 1
        histogram.total += value

    def text(self) -> str:
        """Everything in Prometheus' text form."""
        lines = []
        for name, series in self._counters.items():
            lines += _head(name, "counter", COUNTERS[name])
            lines += [_sample(name, labels, series[labels].value) for labels in sorted(series)]
        for name, histogram in self._histograms.items():
            lines += _head(name, "histogram", HISTOGRAMS[name])
            lines += histogram.samples(name)
        for name, (text, read) in self._gauges.items():
            lines += [*_head(name, "gauge", text), _sample(name, (), read())]
        return "\n".join(lines) + "\n"


@define(eq=False)
class Telemetry:
    """Where log lines and counts go.

    Attributes:
        clock: wall clock in milliseconds.
        now: monotonic seconds.
        level: the lowest level that is written.
        out: where lines go; standard error by default, so that standard output stays for data.
    """

    clock: Callable[[], int]
    now: Callable[[], float]
    level: str = "info"
    out: IO[str] = field(factory=lambda: sys.stderr)
    metrics: Metrics = field(factory=Metrics)
    _settlements: dict[tuple[str, str, str], tuple[Counter, Counter, Counter]] = field(
        factory=dict, init=False, repr=False
    )
    """Attempts, charges and costs of settlements that end alike; so for `_started` and `_ended` of requests."""
    _started: dict[str, Counter] = field(factory=dict, init=False, repr=False)
    _ended: dict[tuple[str, str, int], Counter] = field(factory=dict, init=False, repr=False)

    def log(self, level: str, event: str, **fields: Any) -> None:
        """Write one line, if its level is on.

        Raises:
            AssertionError: a field is not on the allow-list; that is our own mistake and tests find it.
        """
        if not fields.keys() <= LOGGED:
            raise AssertionError(f"not on the log's allow-list: {sorted(fields.keys() - LOGGED)}")
        if not self.writes(level):
            return
        line = {"ts_ms": self.clock(), "level": level, "event": event}
        line |= {name: value for name, value in fields.items() if value is not None}
        with suppress(
            OSError, ValueError
        ):  # a full disk or a closed pipe must not end requests, or the books
            self.out.write(msgspec.json.encode(line).decode() + "\n")

    def writes(self, level: str) -> bool:
        """Whether lines of a level are written."""
        return _RANK[level] >= _RANK[self.level]

    def trouble(self, level: str, event: str, **fields: Any) -> None:
        """Write a line about something that goes wrong inside: the fields are ours, whatever they are called."""
        self.log(level, event, because="; ".join(f"{name}={value}" for name, value in fields.items()))
        self.metrics.count("farebox_trouble_total", event=event)

    def fault(self, event: str, error: BaseException) -> None:
        """Write a line about a fault of our own, with its place."""
        self.log("error", event, traceback=_places(error))
        self.metrics.count("farebox_trouble_total", event=event)

    def settled(self, record: UsageRecord) -> None:
        """Count a settlement; what a provider billed beyond the hold, or what broke in settling, is an alarm."""
        alike = record.outcome, record.source, record.currency
        attempts, charged, cost = self._settlements.get(alike) or self._count_alike(*alike)
        attempts.value += 1
        charged.value += micro_up(record.charged)
        cost.value += micro_up(record.cost)
        if record.loss:
            loss = micro_up(record.loss)
            self.metrics.count("farebox_loss_micro_total", loss, currency=record.currency)
        if record.flags:
            self._settled_oddly(record)

    def _count_alike(self, outcome: str, source: str, currency: str) -> tuple[Counter, Counter, Counter]:
        counter = self.metrics.counter
        counters = self._settlements[outcome, source, currency] = (
            counter("farebox_attempts_total", outcome=outcome, source=source),
            counter("farebox_charged_micro_total", currency=currency),
            counter("farebox_cost_micro_total", currency=currency),
        )
        return counters

    def _settled_oddly(self, record: UsageRecord) -> None:
        for flag in record.flags:
            if flag != "failed_over":
                self.metrics.count("farebox_flags_total", flag=flag.partition(":")[0])
        alarming = [flag for flag in record.flags if flag.startswith(ALARMING)]
        if alarming:
            self.log(
                "error",
                "settlement_alarm",
                request=record.request,
                model=record.model,
                provider=record.provider,
                account=record.account,
                because=", ".join(alarming),
            )

    def started(self, dialect: str) -> None:
        """Count a request that begins."""
        counter = self._started.get(dialect)
        if counter is None:
            counter = self.metrics.counter("farebox_requests_started_total", dialect=dialect)
            self._started[dialect] = counter
        counter.value += 1

    def ended(self, dialect: str, kind: str, status: int) -> None:
        """Count a request that is over."""
        alike = dialect, kind, status
        counter = self._ended.get(alike)
        if counter is None:
            counter = self.metrics.counter(
                "farebox_requests_total", dialect=dialect, kind=kind, status=str(status)
            )
            self._ended[alike] = counter
        counter.value += 1

    def request(self, request: Request, path: Path, reply: Reply) -> "RequestLog":
        """Around one request: count it, time it, and write its line when it is over."""
        return RequestLog(self, request, path, reply)


class RequestLog(msgspec.Struct, eq=False):
    """The context around one request: what is to be said about it when it is over.

    A struct, since one is made for each request.
    """

    _telemetry: Telemetry
    _request: Request
    _path: Path
    _reply: Reply
    status: int = 200
    kind: str | None = None
    error: str | None = None
    limit: str | None = None
    _began: float = 0.0

    def failed(self, failure: Failure) -> Failure:
        """It was refused or failed in a way that the caller is told; gives the failure back."""
        self.status, self.kind = failure.status, failure.kind.value
        told = failure.metadata or {}
        self.limit = told.get("limit") or told.get("trigger")
        return failure

    def crashed(self, error: Exception) -> None:
        """It was our own fault."""
        self.status, self.kind = 500, Kind.INTERNAL.value
        self.error = _places(error)

    def __enter__(self) -> Self:
        self._began = self._telemetry.now()
        self._telemetry.started(self._path.dialect)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (
            exc_type is not None
        ):  # cancelled: by its client, by a deadline that is not its own, or by a signal
            self.status, self.kind = CANCELLED_STATUS, "cancelled"
        telemetry, dialect, kind = self._telemetry, self._path.dialect, self.kind or "ok"
        metrics, seconds = telemetry.metrics, telemetry.now() - self._began
        metrics.seconds("farebox_request_seconds", seconds)
        telemetry.ended(dialect, kind, self.status)
        if self.limit is not None:
            metrics.count("farebox_refused_total", kind=self.kind or "", limit=self.limit)
        if self._reply.client_gone:
            metrics.count("farebox_hung_up_total", dialect=dialect)
        level = "error" if self.status == 500 else "info"
        if telemetry.writes(level):
            self._write_line(level, seconds)

    def _write_line(self, level: str, seconds: float) -> None:
        self._telemetry.log(
            level,
            "request",
            request=self._request.id,
            method=self._request.method,
            dialect=self._path.dialect,
            action=self._path.action,
            status=self.status,
            kind=self.kind,
            hung_up=self._reply.client_gone or None,
            seconds=round(seconds, 4),
            traceback=self.error,
        )


def _head(name: str, kind: str, text: str) -> list[str]:
    shown = text.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {shown}", f"# TYPE {name} {kind}"]


def _sample(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    # whole and exact: a counter that is rounded when it grows seems to stand still
    number = str(int(value)) if value == int(value) else repr(value)
    return f"{name}{{{shown}}} {number}" if shown else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _places(error: BaseException) -> str:
    """Where it happened, of what kind it is, and what led to it; without words or values."""
    lines = [*traceback.format_tb(error.__traceback__), type(error).__qualname__]
    if isinstance(error, BaseExceptionGroup):
        lines += [f"\n+ {_places(one)}" for one in error.exceptions]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{_places(cause)}\n\nthen\n{''.join(lines)}" if cause is not None else "".join(lines)
