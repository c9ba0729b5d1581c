"""Log and metrics: one JSON line per request from an allow-list of fields, and counters in Prometheus' text form.

Nothing is logged that is not named here: no bodies, no headers, no query strings, so a key or a prompt cannot get
into a log by accident. Tracebacks of our own faults are logged without the values of variables.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import msgspec
from attrs import define, field

from accounting.records import Receipt, UsageRecord
from pricing.money import micro_up
from proxy.errors import Failure
from proxy.types import Path, Reply, Request

LEVELS: Final = ("debug", "info", "warning", "error")

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

BUCKETS_SECONDS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)
"""Upper bounds of the histogram of request times."""


@define(eq=False)
class Metrics:
    """Counters, gauges and one histogram; names are fixed, labels are few and bounded."""

    _counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(factory=dict)
    _gauges: dict[str, Callable[[], float]] = field(factory=dict)
    _help: dict[str, str] = field(factory=dict)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        at = (name, tuple(sorted(labels.items())))
        self._counters[at] = self._counters.get(at, 0) + amount

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Name something that is read when asked for."""
        self._gauges[name] = read
        self._help[name] = text

    def seconds(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
        for bound in BUCKETS_SECONDS:
            if value <= bound:
                self.count(f"{name}_bucket", le=str(bound))
        self.count(f"{name}_bucket", le="+Inf")
        self.count(f"{name}_sum", value)
        self.count(f"{name}_count")

    def text(self) -> str:
        """Everything in Prometheus' text form."""
        lines = []
        for (name, labels), value in sorted(self._counters.items()):
            shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
            lines.append(f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}")
        for name, read in sorted(self._gauges.items()):
            lines += [f"# HELP {name} {self._help[name]}", f"# TYPE {name} gauge", f"{name} {read():g}"]
        return "\n".join(lines) + "\n"


@define(eq=False)
class RequestLog:
    """What is to be said about one request when it is over."""

    status: int = 200
    kind: str | None = None
    error: str | None = None
    receipt: Receipt | None = None

    def failed(self, failure: Failure) -> Failure:
        """It was refused or failed in a way that the caller is told; gives the failure back."""
        self.status, self.kind = failure.status, failure.kind.value
        return failure

    def crashed(self, error: Exception) -> None:
        """It was our own fault."""
        self.status, self.kind = 500, "internal"
        self.error = "".join(traceback.format_exception(error))


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

    def log(self, level: str, event: str, **fields: Any) -> None:
        """Write one line, if its level is on.

        Raises:
            AssertionError: a field is not on the allow-list; that is our own mistake and tests find it.
        """
        unknown = fields.keys() - LOGGED
        assert not unknown, f"not on the log's allow-list: {sorted(unknown)}"  # noqa: S101 - our own mistakes only
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        line = {"ts_ms": self.clock(), "level": level, "event": event}
        line |= {name: value for name, value in fields.items() if value is not None}
        self.out.write(msgspec.json.encode(line).decode() + "\n")

    def trouble(self, level: str, event: str, **fields: Any) -> None:
        """Write a line about something that goes wrong inside: the fields are ours, whatever they are called."""
        self.log(level, event, because="; ".join(f"{name}={value}" for name, value in fields.items()))
        self.metrics.count("farebox_trouble_total", event=event)

    def settled(self, record: UsageRecord) -> None:
        """Count a settlement; what a provider billed beyond the hold, or what broke in settling, is an alarm."""
        count = self.metrics.count
        count("farebox_attempts_total", outcome=record.outcome.value, source=record.source.value)
        count("farebox_charged_micro_total", micro_up(record.charged), currency=record.currency)
        count("farebox_cost_micro_total", micro_up(record.cost), currency=record.currency)
        if record.loss:
            count("farebox_loss_micro_total", micro_up(record.loss), currency=record.currency)
        for flag in record.flags:
            if flag != "failed_over":
                count("farebox_flags_total", flag=flag.partition(":")[0])
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

    @contextmanager
    def request(self, request: Request, path: Path, reply: Reply) -> Iterator[RequestLog]:
        """Around one request: count it, time it, and write its line when it is over."""
        log, began = RequestLog(), self.now()
        self.metrics.count("farebox_requests_started_total", dialect=path.dialect)
        try:
            yield log
        finally:
            seconds = self.now() - began
            self.metrics.seconds("farebox_request_seconds", seconds)
            self.metrics.count(
                "farebox_requests_total", dialect=path.dialect, status=str(log.status), kind=log.kind or "ok"
            )
            if reply.client_gone:
                self.metrics.count("farebox_hung_up_total", dialect=path.dialect)
            self.log(
                "error" if log.status == 500 else "info",
                "request",
                request=request.id,
                method=request.method,
                dialect=path.dialect,
                action=path.action,
                status=log.status,
                kind=log.kind,
                hung_up=reply.client_gone or None,
                seconds=round(seconds, 4),
                traceback=log.error,
            )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
