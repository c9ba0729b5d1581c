"""One measurement: the client drives a target by a plan, while /proc is read at both ends of the window."""

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Timer
from typing import Any, Final

from attrs import asdict, define, frozen

from bench.processes import Cores, Machine, Used, environment, pinned, running, used
from bench.programs import Programs
from bench.shapes import Shape
from bench.targets import Target

Figures = dict[str, Any]

GRACE_SECONDS: Final = 60.0
"""How much longer than its plan a client may take before it is killed."""

CLEAR_SECONDS: Final = 3.0
"""How long answers of an earlier measurement may go on before they are cut off."""

SHARES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
ENDS: Final = ("hold", "leave")
"""Modes in which the work lies in beginning and ending streams: their CPU time is not that of events."""

BUSY: Final = 0.9
"""A core that is used to that share is taken as full: the rest goes to the kernel, to us, and to neighbours."""


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
    """The stand-in provider: its port on this machine, and its process, if it is ours."""

    port: int
    pid: int | None

    def stats(self) -> Figures:
        """What it has seen since it was asked last."""
        return self._get("/bench/stats")

    def clear(self, seconds: float = CLEAR_SECONDS) -> None:
        """Return when it has no answer under way: some gateways read on for clients that have left."""
        until = time.monotonic() + seconds
        while self.stats().get("open"):
            if time.monotonic() > until:
                self._get("/bench/drop")
                return
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
            killer.start()
            try:
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
        if self.provider is not None:
            self.provider.clear()
        rested = used(target.pid) if target.pid is not None else None
        with self.client(target, target.request(shape, load), plan) as client:
            client.mark("begin")
            before = _Look.take(target, self.provider, client)
            client.mark("end")
            after = _Look.take(target, self.provider, client)
            figures = client.finish()
        return self._with_costs(figures, plan, rested, before, after)

    def _with_costs(
        self, figures: Figures, plan: Plan, rested: Used | None, before: "_Look", after: "_Look"
    ) -> Figures:
        """The client's figures, with rates, and with what /proc says."""
        seconds = figures["seconds"]
        figures["answers_per_second"] = figures["answers"] / seconds
        figures["events_per_second"] = figures["events"] / seconds
        figures["steal"] = after.machine.steal_since(before.machine)
        harness = [after.client.cpu_seconds - before.client.cpu_seconds]
        if before.provider is not None and after.provider is not None:
            harness.append(after.provider.cpu_seconds - before.provider.cpu_seconds)
        # pinned, they share a core; else the busier of the two may fill one
        busy = sum(harness) if self.cores.harness is not None else max(harness)
        figures["harness_share"] = busy / (after.client.at - before.client.at)
        if before.target is not None and after.target is not None and rested is not None:
            cpu = after.target.cpu_seconds - before.target.cpu_seconds
            figures["gateway_share"] = cpu / (after.target.at - before.target.at)
            for unit in ("answer", "event"):
                if figures[f"{unit}s"] and plan.mode not in ENDS:
                    figures[f"cpu_us_per_{unit}"] = cpu * 1e6 / figures[f"{unit}s"]
            if plan.mode == "hold":
                figures["kb_per_stream"] = (
                    (after.target.rss_bytes - rested.rss_bytes) / plan.connections / 1024
                )
        figures |= self._said_by_provider(figures.pop("left"))
        return figures

    def _said_by_provider(self, left: list[list[int]]) -> Figures:
        """Its own delays, and how long after a client had left it saw its connection closed."""
        stats = self.provider.stats() if self.provider is not None else {}
        if not stats:
            return {}
        closed = dict(stats["closed"])
        late = sorted((closed[number] - at) / 1e6 for number, at in left if number in closed)
        found: Figures = {"provider_lag_ms": stats["lag_ms"]}
        if left:
            found |= {"hangups": len(left), "hangups_seen": len(late), "hangup_ms": percentiles(late)}
        return found


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
            used(client.process.pid),
        )


def percentiles(ordered: list[float]) -> dict[str, float] | None:
    """Percentiles of values that are in order, by nearest rank; `None` of none."""
    if not ordered:
        return None
    last = len(ordered) - 1
    found = {name: ordered[min(int(len(ordered) * share), last)] for name, share in SHARES.items()}
    return {"count": len(ordered), "mean": statistics.fmean(ordered), **found, "max": ordered[-1]}


def was_the_limit(figures: Figures) -> bool:
    """Whether provider and clients had no time left while the gateway had: then its rates say nothing."""
    return bool(figures["harness_share"] >= BUSY and figures.get("gateway_share", 0.0) < BUSY)
