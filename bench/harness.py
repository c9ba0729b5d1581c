"""One measurement: the client drives a target by a plan, while /proc is read at both ends of the window."""

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Timer
from typing import Any, Final

from attrs import asdict, define, evolve, field, frozen

from bench.processes import Cores, Gone, Machine, Used, environment, pinned, quiet, running, used
from bench.programs import Programs
from bench.shapes import Shape
from bench.targets import Target

Figures = dict[str, Any]

GRACE_SECONDS: Final = 60.0
"""How much longer than its plan a client may take before it is killed."""

CLEAR_SECONDS: Final = 3.0
"""How long answers of an earlier measurement may go on before they are cut off."""

REST_SECONDS: Final = 60.0
REST_LOOKS: Final = 3
BACKLOG_LOOKS: Final = 60
"""How long, and how many looks at the provider in a row without a request, until an earlier measurement is over. The
second where answers had to be cut off: a gateway that was overrun asks on for clients that have long left, from a
backlog of its own, and may pause for seconds before it tries again."""

SHARES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
ENDS: Final = ("hold", "leave")
"""Modes in which the work lies in beginning and ending streams: their CPU time is not that of events."""

BUSY: Final = 0.9
"""A core that is used to that share is taken as full: the rest goes to the kernel, to us, and to neighbours."""

ASKED_SHARE: Final = 0.1
ASKED_FEW: Final = 2
"""How far a provider may be asked more or less often than its gateway was: a retry or a probe is nobody's trick."""

PROVIDERS: Final = (b"provider", b"bench.upstream")
"""What the command line of a stand-in provider has in it."""


@frozen
class Plan:
    """How the client drives; see `native/client.c`.

    Attributes:
        mode: `loop`, `open`, `once`, `hold` or `leave`.
        connections: at once, or at most.
        seconds: length of the window.
        ramp, warm: before it, until all have begun and until it counts.
        drain: after it, for what is under way.
        rate: requests a second, of `open`.
        expect: events of a whole answer.
    """

    mode: str
    connections: int
    seconds: float
    ramp: float = 0.0
    warm: float = 0.5
    drain: float = 5.0
    rate: float = 0.0
    expect: int = 0

    @property
    def whole_seconds(self) -> float:
        """The longest that it can take."""
        return self.ramp + self.warm + self.seconds + self.drain


@frozen
class ProviderAt:
    """The stand-in provider.

    Attributes:
        port: on this machine.
        pid: its process, where we know it.
        said: what a reader of the figures has to know of it.
    """

    port: int
    pid: int | None
    said: str = ""

    def adopted(self, core: int | None) -> "ProviderAt":
        """This one, which somebody else has started, as ours: its time counts as the harness's, on the same core."""
        pid = self.stats().get("pid")
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            command = b""
        if not any(
            name in command for name in PROVIDERS
        ):  # such as one that counts in a container of its own
            return evolve(
                self, said="our provider's process was not found: its time is not counted, nor is it pinned"
            )
        if core is not None:
            try:
                os.sched_setaffinity(pid or 0, {core})
            except OSError:
                return evolve(self, pid=pid, said="our provider is somebody else's process: it is not pinned")
        return evolve(self, pid=pid)

    def stats(self) -> Figures:
        """What it has seen since it was asked last."""
        return self._get("/bench/stats")

    def clear(self, seconds: float = CLEAR_SECONDS, most: float = REST_SECONDS) -> bool:
        """Wait until nothing of an earlier measurement goes on: some gateways read on for clients that have left.

        Args:
            seconds: after which answers that are under way are cut off.
            most: after which it is left at that.

        Returns:
            Whether it has come to rest.
        """
        began, looks, enough = time.monotonic(), 0, REST_LOOKS
        while True:
            seen = self.stats()
            looks = 0 if seen.get("open") or seen.get("requests") else looks + 1
            if looks >= enough:
                return True
            waited = time.monotonic() - began
            if waited >= most:
                return False
            if seen.get("open") and waited >= seconds:
                self._get("/bench/drop")
                enough = BACKLOG_LOOKS
            time.sleep(0.1)

    def _get(self, path: str) -> Figures:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            found: Figures = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError):
            return {}
        finally:
            connection.close()
        return found


@contextmanager
def provider(programs: Programs, core: int | None, port: int = 0) -> Iterator[ProviderAt]:
    """The stand-in provider for the length of a `with`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command, pipe = [*programs.provider, str(port)], subprocess.PIPE
        with running(command, core=core, log=Path(folder) / "log", stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError((Path(folder) / "log").read_text())
            yield ProviderAt(int(line), process.pid)


@define(eq=False)
class Client:
    """A client process that has been started; `finish` gives its figures."""

    process: "subprocess.Popen[str]"
    plan: Plan

    def mark(self, name: str) -> None:
        """Return when it has written a mark."""
        assert self.process.stdout is not None
        if self.process.stdout.readline() != f"{name}\n":
            raise RuntimeError(f"the client ended before it wrote {name!r}")

    def finish(self) -> Figures:
        """Wait for its end."""
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"the client ended with {self.process.returncode}")
        found: Figures = json.loads(out)
        return found


@define(eq=False)
class Harness:
    """What every measurement needs.

    Attributes:
        programs: which client runs.
        cores: whose core is whose.
        provider: the stand-in, if there is one.
    """

    programs: Programs
    cores: Cores
    provider: ProviderAt | None
    _before: Target | None = field(default=None, init=False)
    """Whoever was measured last."""

    @contextmanager
    def client(self, target: Target, content: bytes, plan: Plan) -> Iterator[Client]:
        """A client that drives a target; ended at the end whatever happens."""
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            path = Path(folder) / "request"
            path.write_bytes(content)
            settings = {"host": target.host, "port": target.port, "request": path, **asdict(plan)}
            command = [*self.programs.client, *(f"{name}={value}" for name, value in settings.items())]
            process = subprocess.Popen(
                pinned(self.cores.harness, command), stdout=subprocess.PIPE, text=True, env=environment()
            )
            killer = Timer(plan.whole_seconds + GRACE_SECONDS, process.kill)
            killer.daemon = True  # should a signal come before it is cancelled, nobody waits for it
            try:
                killer.start()
                yield Client(process, plan)
            finally:
                killer.cancel()
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    def measure(self, target: Target, shape: Shape, plan: Plan, load: str = "small") -> Figures:
        """Drive a target by a plan; gives everything that was seen."""
        alone = self._alone()
        self._before = target
        rested = used(target.pid) if target.pid is not None else None
        with self.client(target, target.request(shape, load), plan) as client:
            client.mark("begin")
            before = _Look.take(target, self.provider, client)
            client.mark("end")
            after = _Look.take(target, self.provider, client)
            figures = client.finish()
        figures["alone"] = alone
        left = figures.pop("left")
        figures = self._with_costs(figures, plan, rested, before, after)
        if target.ours and self.provider is not None:
            figures |= said_by_provider(self.provider.stats(), left)
        return {**figures, "note": "; ".join(doubts(figures))}

    def _alone(self) -> bool:
        """Wait until nothing is left of the measurement before; says whether it came to that.

        A gateway that was overrun does not know of clients that have left, and goes on for them for half a minute: it
        would have half of the core, and ask the provider.
        """
        rested = self.provider is None or self.provider.clear()
        if self._before is not None and self._before.pid is not None:
            with suppress(Gone):
                rested = quiet(self._before.pid, REST_SECONDS) and rested
        return rested

    def _with_costs(
        self, figures: Figures, plan: Plan, rested: Used | None, before: "_Look", after: "_Look"
    ) -> Figures:
        """The client's figures, with rates, and with what /proc says; `None` where that cannot be."""
        seconds = figures["seconds"]
        figures["answers_per_second"] = figures["answers"] / seconds
        figures["events_per_second"] = figures["events"] / seconds
        figures["steal"] = after.machine.steal_since(before.machine)
        harness = [after.client.cpu_seconds - before.client.cpu_seconds]
        if before.provider is not None and after.provider is not None:
            harness.append(after.provider.cpu_seconds - before.provider.cpu_seconds)
        # pinned, they share a core; else the busier of the two may fill one
        together = self.cores.shared or self.cores.harness is not None
        busy = sum(harness) if together else max(harness)
        figures["harness_share"] = busy / (after.client.at - before.client.at)
        figures["one_core"] = self.cores.shared
        if before.target is not None and after.target is not None and rested is not None:
            figures |= costs(figures, plan, rested, before.target, after.target)
        return figures


@frozen
class _Look:
    """Everybody's use at one moment."""

    machine: Machine
    target: Used | None
    provider: Used | None
    client: Used

    @classmethod
    def take(cls, target: Target, at: ProviderAt | None, client: Client) -> "_Look":
        return cls(
            Machine.now(),
            used(target.pid) if target.pid is not None else None,
            used(at.pid) if at is not None and at.pid is not None else None,
            used(client.process.pid, ended=True),
        )


def costs(figures: Figures, plan: Plan, rested: Used, before: Used, after: Used) -> Figures:
    """What it took the gateway.

    Args:
        figures: the client's.
        plan: by which it drove.
        rested: the gateway before all of it.
        before: likewise, when the window began.
        after: when it ended.
    """
    cpu = after.cpu_seconds - before.cpu_seconds
    there = cpu >= 0  # a worker of it that ends takes its time with it
    found: Figures = {"gateway_share": cpu / (after.at - before.at) if there else None}
    for unit in ("answer", "event"):
        if figures[f"{unit}s"] and plan.mode not in ENDS:
            found[f"cpu_us_per_{unit}"] = cpu * 1e6 / figures[f"{unit}s"] if there else None
    if plan.mode == "hold":
        grown, held = after.rss_bytes - rested.rss_bytes, figures["held"]
        found["kb_per_stream"] = grown / held / 1024 if grown >= 0 and held else None
    return found


def said_by_provider(stats: Figures, left: list[list[int]]) -> Figures:
    """Its own delays, how often it was asked, and how long after a client had left it saw its connection closed.

    Args:
        stats: the provider's.
        left: of each client that hung up the number of its request, and when it was. One whose connection the
            provider has not seen closed is infinitely late: a percentile that lies there is `None`.
    """
    if not stats:
        return {}
    closed = dict(stats["closed"])
    seen = sorted((closed[number] - at) / 1e6 for number, at in left if number in closed)
    found: Figures = {"provider_lag_ms": stats["lag_ms"], "provider_requests": stats["requests"]}
    if left:
        late = percentiles([*seen, *[math.inf] * (len(left) - len(seen))]) or {}
        shown = {name: value if math.isfinite(value) else None for name, value in late.items()}
        found |= {"hangups": len(left), "hangups_seen": len(seen), "hangup_ms": shown}
    return found


def doubts(figures: Figures) -> list[str]:
    """Why figures of one measurement are missing, or worth nothing."""
    found = []
    if "gateway_share" in figures and figures["gateway_share"] is None:
        found.append("a process of the gateway ended meanwhile, and its CPU time with it")
    if "kb_per_stream" in figures and figures["kb_per_stream"] is None:
        found.append(
            "no stream was open"
            if not figures["held"]
            else "it needed no more memory with the streams than without: it had some left from before"
        )
    if not figures.get("alone", True):
        found.append("what was measured before was still at work")
    if was_asked_otherwise(figures):
        found.append(
            f"the provider was asked {figures['provider_requests']:,} times for {figures['asked']:,} requests"
        )
    return found


def was_asked_otherwise(figures: Figures) -> bool:
    """Whether the provider was asked clearly less or more often than the gateway: from a cache, or again and again."""
    asked, came = figures.get("asked"), figures.get("provider_requests")
    if asked is None or came is None:
        return False
    slack = ASKED_SHARE * asked + ASKED_FEW
    on_the_way = figures["failed"] + figures["cut"]
    return not asked - on_the_way - slack <= came <= asked + slack


def percentiles(ordered: list[float]) -> dict[str, float] | None:
    """Percentiles of values that are in order, by nearest rank; `None` of none."""
    if not ordered:
        return None
    last = len(ordered) - 1
    found = {name: ordered[min(int(len(ordered) * share), last)] for name, share in SHARES.items()}
    return {"count": len(ordered), "mean": statistics.fmean(ordered), **found, "max": ordered[-1]}


def was_the_limit(figures: Figures) -> bool:
    """Whether provider and clients had no time left while the gateway had: then its rates say nothing.

    Where all have one core, they are the limit of each other as soon as it is full.
    """
    if figures.get("one_core"):
        return bool(figures["harness_share"] + (figures.get("gateway_share") or 0.0) >= BUSY)
    return bool(figures["harness_share"] >= BUSY and (figures.get("gateway_share") or 0.0) < BUSY)
