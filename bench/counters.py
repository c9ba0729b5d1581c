"""The regression guard: what fixed requests make the gateway do, counted exactly and without a clock.

A gateway runs here with its real doors, request path, books and transport. Client and provider are this file: whenever
the event loop has nothing left to do and is about to wait (trio tells its instruments), the next step of a fixed course
is taken over loopback sockets, so that the gateway meets the same bytes in the same order every time, however busy the
machine is. Threads run inline, so nothing overtakes anything.

Counted are: steps of tasks, turns of the loop, function calls, sends, receives (and those that found nothing),
changes of epoll sets, JSON decodings, writes to the journal, its bytes and syncs, all through Python's profiling hook
and trio's instruments, so that no part of the gateway has to know; and, in a second pass, blocks of memory that stay
allocated with the cyclic collector off. Each is a difference between two places in a course, divided by the events or
requests between them.

`bench/baseline.json` has what was counted last, and how far each counter may be off. A change that makes the gateway
do more on its hot path fails the test that compares; what is meant is recorded by `python -m bench baseline`.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import trio
import trio.abc
import trio.lowlevel
from attrs import define, evolve, field

from bench.processes import environment
from bench.shapes import Shape, body, request
from bench.upstream import END, EVENT, FINISH, PLAIN_ANSWER, STREAM_HEAD, chunk
from proxy import app
from proxy.config import Account, Config, Provider
from proxy.types import Secret

BASELINE: Final = Path(__file__).with_name("baseline.json")
Counts = dict[str, float]
Found = dict[str, Counts]

SECONDS_MAX: Final = 60
"""A course takes a few seconds; one that has come to a standstill is ended."""

IDLE_POLL_MS: Final = 100
"""How long bytes on loopback may take: at most a moment, on a machine that is very busy."""

REPEATS: Final = 2
"""The least of so many counts is taken: if a byte is late, the gateway looks once more than it has to."""

SEGMENT_BYTES: Final = 2**22
"""Of the journal: all of it is read at each mark, and none is filled."""

SENDS: Final = frozenset({"send", "sendall", "sendmsg", "sendto"})
RECEIVES: Final = frozenset({"recv", "recv_into", "recvmsg", "recvfrom"})
EPOLL: Final = frozenset({"register", "modify", "unregister"})
DECODERS: Final = frozenset({"decode", "json_decode"})
WRITES: Final = frozenset({"pwrite", "pwritev"})
SYNCS: Final = frozenset({"fdatasync", "fsync"})

EXACT: Final = 0.0
TOLERANCES: Final = {
    "sends": EXACT,
    "receives": EXACT,
    "receives in vain": EXACT,
    "decodings": EXACT,
    "journal writes": EXACT,
    "syncs": EXACT,
    # ids and amounts have the same length nearly always
    "journal bytes": 0.02,
    "epoll changes": EXACT,
    # what Python and trio do for one call of ours varies with their versions
    "task steps": 0.05,
    "loop turns": 0.05,
    "Python calls": 0.15,
    "C calls": 0.15,
    "blocks": 0.20,
    # what refers to itself stays until the collector finds it: it costs a search, and memory that is no longer warm
    "cyclic garbage": EXACT,
}
"""By counter, the share that it may be above the baseline, or below before the baseline is worth recording again."""

OF_PYTHON: Final = frozenset({"Python calls", "C calls", "blocks"})
"""What another version of Python counts differently: compared under the version that it was recorded with."""

SLACK: Final = {"Python calls": 2.0, "C calls": 2.0, "blocks": 1.0, "task steps": 0.05, "loop turns": 0.05}
"""So much is always allowed: a share of next to nothing is nothing."""


# -- counting --------------------------------------------------------------------------------------


@define(eq=False)
class Tally(trio.abc.Instrument):
    """Counts what the gateway does, and takes the next step of the course whenever it does nothing.

    Attributes:
        course: yields to let the gateway go on.
        profiled: count calls too; not where allocations are counted.
        until: when it is given up; monotonic seconds.
    """

    course: Generator[None, None, None]
    profiled: bool
    until: float
    counts: Counter[str] = field(factory=Counter)
    error: BaseException | None = None
    _over: bool = False

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See trio."""
        self.counts["task steps"] += 1

    def before_io_wait(self, timeout: float) -> None:
        """See trio. With a time-out of zero there are tasks to run."""
        self.counts["loop turns"] += 1
        if timeout <= 0 or self._over:
            return
        self.profile(on=False)
        if time.monotonic() > self.until:  # it is being cancelled, and has no ear for a signal any more
            self._over = True
            return
        try:
            next(self.course)
        except StopIteration:
            self._stop()
        except Exception as error:  # noqa: BLE001 - raised again when the gateway has come down
            self.error = error
            self._stop()
        finally:
            self.profile(on=not self._over)

    def _stop(self) -> None:
        """The course is over: the gateway goes down as it always does."""
        self._over = True
        signal.raise_signal(signal.SIGTERM)

    def profile(self, *, on: bool) -> None:
        """Count calls from now on, or no longer."""
        if self.profiled:
            sys.setprofile(self._seen if on else None)

    def _seen(self, frame: FrameType, event: str, what: Any) -> None:
        counts = self.counts
        if event == "call":
            counts["Python calls"] += 1
            code = frame.f_code
            if code.co_name == "loads" and code.co_filename.endswith("json/__init__.py"):
                counts["decodings"] += 1
        elif event == "c_call":
            counts["C calls"] += 1
            kind = _kind(what)
            if kind is not None:
                counts[kind] += 1
        elif event == "c_exception" and _kind(what) == "receives":
            counts["receives in vain"] += 1


def _kind(what: Any) -> str | None:
    """What a C function is to us. Writing to a descriptor is sending: files are written by `pwrite` here."""
    name, owner = what.__name__, getattr(what, "__self__", None)
    if (name in SENDS and isinstance(owner, socket.socket)) or what in (os.write, os.writev):
        return "sends"
    if (name in RECEIVES and isinstance(owner, socket.socket)) or what in (os.read, os.readv):
        return "receives"
    if name in DECODERS and "msgspec" in f"{getattr(what, '__module__', '')} {type(owner).__module__}":
        return "decodings"
    if name in EPOLL and isinstance(owner, select.epoll):
        return "epoll changes"
    if name in WRITES:
        return "journal writes"
    return "syncs" if name in SYNCS else None


# -- the other sides -------------------------------------------------------------------------------


@define(eq=False)
class Sides:
    """A client and a provider that do one thing at a time; every wait of theirs lets the gateway go on.

    Attributes:
        key: for the gateway.
        port: the gateway's, once it listens.
        listener: the provider's.
    """

    key: str
    listener: socket.socket
    port: int = 0
    _client: socket.socket | None = None
    _provider: socket.socket | None = None

    def ask(self, shape: Shape) -> Generator[None, None, None]:
        """The client asks, and the request arrives at the provider."""
        if self._client is None:
            self._client = socket.create_connection(("127.0.0.1", self.port))
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"authorization": f"Bearer {self.key}"}
        content = body(shape, "sandbox-chat")
        self._client.sendall(request("/v1/chat/completions", "127.0.0.1", headers, content))
        yield
        while not self._arrived():
            yield

    def _arrived(self) -> bool:
        """Whether the request has come, on the connection from before or on a new one."""
        assert self._client is not None
        known = [self.listener, self._client, *([self._provider] if self._provider is not None else [])]
        ready, _, _ = select.select(known, [], [], IDLE_POLL_MS / 1000)
        if self._client in ready:
            raise RuntimeError(f"the gateway asked nobody, and answered {self._client.recv(2000)!r}")
        if self.listener in ready:
            if self._provider is not None:
                self._provider.close()
            self._provider, _ = self.listener.accept()
            self._provider.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._provider.setblocking(True)
            ready, _, _ = select.select([self._provider], [], [], IDLE_POLL_MS / 1000)
        if self._provider not in ready or self._provider is None:
            return False
        return b"\r\n\r\n" in self._provider.recv(1 << 16)

    def give(self, data: bytes) -> None:
        """The provider sends."""
        assert self._provider is not None
        self._provider.sendall(data)

    def get(self, marker: bytes, count: int = 1) -> Generator[None, None, None]:
        """The gateway goes on, and the client reads until a marker has come so often."""
        assert self._client is not None
        seen = b""
        yield
        while seen.count(marker) < count:
            ready, _, _ = select.select([self._client], [], [], IDLE_POLL_MS / 1000)
            if not ready:
                yield
                continue
            data = self._client.recv(1 << 18)
            if not data or b"HTTP/1.1 4" in data or b"HTTP/1.1 5" in data:
                raise RuntimeError(f"the gateway answered {data[:2000]!r}")
            seen += data

    def no_delay(self) -> Counts:
        """How many connections the gateway has with the two of us, and how many of them may hold bytes back.

        Its sockets are found among all objects of the process: whoever made them, and wherever they are kept.
        """
        ours = (self._client, self._provider)
        ends = [one.getsockname() for one in ours if one is not None]
        theirs = [
            one
            for one in gc.get_objects()
            if isinstance(one, socket.socket)
            and one not in ours
            and one.fileno() >= 0
            and _peer_of(one) in ends
        ]
        held = sum(not one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in theirs)
        return {"connections": float(len(theirs)), "without TCP_NODELAY": float(held)}

    def close(self) -> None:
        """Hang up, on both sides."""
        for one in (self._client, self._provider):
            if one is not None:
                one.close()


def _peer_of(one: socket.socket) -> Any:
    try:
        return one.getpeername()
    except OSError:
        return None


# -- courses ---------------------------------------------------------------------------------------

Mark = Callable[[], None]
Course = Callable[[Sides, Mark], Generator[None, None, None]]
WARM: Final = 20
COUNTED: Final = 50
BATCH: Final = 32
STREAM: Final = Shape(events=10_000, gap_us=1)
_EVENT: Final = chunk(EVENT % 0)
_STAMP: Final = b'"content":"@'
LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


def _plain(sides: Sides, mark: Mark) -> Generator[None, None, None]:
    """Requests that are answered in one piece, one after the other on kept connections."""
    for number in range(WARM + COUNTED):
        if number == WARM:
            mark()
        yield from sides.ask(Shape())
        sides.give(PLAIN_ANSWER)
        yield from sides.get(b'"total_tokens":15')
    mark()


def _streams(sides: Sides, mark: Mark) -> Generator[None, None, None]:
    """Streams of one event: what a stream costs before and after its events."""
    for number in range(WARM + COUNTED):
        if number == WARM:
            mark()
        yield from _begin(sides)
        yield from _finish(sides)
    mark()


def _events(sides: Sides, mark: Mark) -> Generator[None, None, None]:
    """Events of one stream, each in a read of its own."""
    yield from _begin(sides)
    for number in range(2 * WARM + 2 * COUNTED):
        if number == 2 * WARM:
            mark()
        sides.give(_EVENT)
        yield from sides.get(_STAMP)
    mark()
    yield from _finish(sides)


def _batches(sides: Sides, mark: Mark) -> Generator[None, None, None]:
    """Reads of one stream that bring many events each: what does not grow with their number shows here."""
    yield from _begin(sides)
    for number in range(WARM + COUNTED):
        if number == WARM:
            mark()
        sides.give(_EVENT * BATCH)
        yield from sides.get(_STAMP, BATCH)
    mark()
    yield from _finish(sides)


def _begin(sides: Sides) -> Generator[None, None, None]:
    yield from sides.ask(STREAM)
    sides.give(STREAM_HEAD + _EVENT)
    yield from sides.get(_STAMP)


def _finish(sides: Sides) -> Generator[None, None, None]:
    sides.give(chunk(FINISH % (1000, 1010)) + END)
    yield from sides.get(LAST_CHUNK)


SOCKETS: Final = "sockets"
"""Beside the courses: the gateway's connections, and how many of them lack TCP_NODELAY."""

Courses = Mapping[str, tuple[Course, int]]
COURSES: Final[Courses] = {
    "per plain request": (_plain, COUNTED),
    "per stream": (_streams, COUNTED),
    "per event": (_events, 2 * COUNTED),
    f"per read of {BATCH} events": (_batches, COUNTED),
}
"""By name: the course, and how many units lie between its two marks."""


# -- running ---------------------------------------------------------------------------------------

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def measure(
    wrap: Wrap | None = None, courses: Iterable[str] = tuple(COURSES), repeats: int = REPEATS
) -> Found:
    """Count courses.

    Args:
        wrap: given the request path, returns another: a test plants something slow there.
        courses: their names.
        repeats: of each, of which the least is taken.

    Raises:
        RuntimeError: a course could not be run to its end.
    """
    chosen = {name: COURSES[name] for name in courses}
    rounds = [
        (_pass(chosen, wrap, profiled=True), _pass(chosen, wrap, profiled=False)) for _ in range(repeats)
    ]
    found: Found = {}
    for name, (_, units) in chosen.items():
        counts = [{**called[name], "blocks": kept[name]["blocks"]} for called, kept in rounds]
        found[name] = {
            counter: round(min(one[counter] for one in counts) / units, 4) for counter in TOLERANCES
        }
    return {**found, SOCKETS: rounds[0][1][SOCKETS]}


def _pass(courses: Courses, wrap: Wrap | None, *, profiled: bool) -> Found:
    """One gateway, on which each course is run; gives the differences between its marks."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        state = Path(folder) / "state"
        config = _config(state, listener.getsockname()[1])
        sides = Sides(_key(config), listener)
        marks: list[Counts] = []
        sockets: Counts = {}

        def mark() -> None:
            tally.counts["cyclic garbage"] += gc.collect()
            written = sum(len(path.read_bytes().rstrip(b"\0")) for path in (state / "journal").iterdir())
            marks.append({**tally.counts, "blocks": sys.getallocatedblocks(), "journal bytes": written})
            sockets.update(sides.no_delay())

        tally = Tally(_in_turn(courses, sides, mark), profiled, time.monotonic() + SECONDS_MAX)
        try:
            with _inline_threads(), _wrapped(wrap), _no_collector():
                trio.run(_serve, config, sides, tally)
        finally:
            tally.profile(on=False)
            sides.close()
    if tally.error is not None or len(marks) != 2 * len(courses):
        raise RuntimeError("the courses were not run to their end") from tally.error
    pairs = zip(courses, marks[::2], marks[1::2], strict=True)
    found = {
        name: {counter: after.get(counter, 0) - before.get(counter, 0) for counter in TOLERANCES}
        for name, before, after in pairs
    }
    return {**found, SOCKETS: sockets}


def _in_turn(courses: Courses, sides: Sides, mark: Mark) -> Generator[None, None, None]:
    for course, _ in courses.values():
        yield from course(sides, mark)


async def _serve(config: Config, sides: Sides, tally: Tally) -> None:
    def ready(facts: dict[str, Any]) -> None:
        sides.port = int(facts["base_url"].rpartition(":")[2])
        trio.lowlevel.add_instrument(tally)
        tally.profile(on=True)

    with trio.move_on_at(trio.current_time() + tally.until - time.monotonic()):
        await app.run_gateway(config, ready)


def _config(state: Path, port: int) -> Config:
    """Everything on, and nothing that depends on how long things take."""
    base = Config()
    provider = Provider(
        name="bench",
        kind="openai",
        base_url=f"http://127.0.0.1:{port}/v1",
        account=(Account("one", Secret("sk-bench")),),
        models=("sandbox/chat",),
        stops_billing="yes",
    )
    return evolve(
        base,
        listen=evolve(base.listen, port=0, admin_port=0),
        books=evolve(
            base.books,
            state_dir=str(state),
            segment_bytes=SEGMENT_BYTES,
            load_seconds=3600.0,
            progress_seconds=3600.0,
        ),
        deadlines=evolve(base.deadlines, heartbeat_seconds=3600.0),
        provider=(provider,),
        log_level="error",
    )


def _key(config: Config) -> str:
    """A key of a wallet with credit, in new books."""

    def command(operation: str, **arguments: Any) -> dict[str, Any]:
        return app.operate(config, operation, json.dumps(arguments).encode())

    wallet = command("wallet_create", name="bench")["wallet"]
    command("top_up", wallet=wallet, amount="100000")
    return str(command("key_create", wallet=wallet)["key"])


@contextmanager
def _inline_threads() -> Iterator[None]:
    """Work for threads is done at once, so that its end comes at the same place every time."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **_more: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    usual = trio.to_thread.run_sync
    trio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    try:
        yield
    finally:
        trio.to_thread.run_sync = usual


@contextmanager
def _wrapped(wrap: Wrap | None) -> Iterator[None]:
    usual = vars(app)["respond"]
    if wrap is not None:
        vars(app)["respond"] = wrap(usual)
    try:
        yield
    finally:
        vars(app)["respond"] = usual


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure_apart(*arguments: str) -> Found:
    """Count in a process of its own, so that nothing else that runs here is counted too."""
    command = [sys.executable, "-m", "bench.counters", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "PYTHONHASHSEED": "0"},
        timeout=SECONDS_MAX * 4,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found: Found = json.loads(done.stdout)
    return found


# -- the baseline ----------------------------------------------------------------------------------


def save(found: Found, path: Path = BASELINE) -> None:
    """Record what was counted, with how far it may be off."""
    recorded = {
        "python": _python(),
        "trio": trio.__version__,
        "tolerances": TOLERANCES,
        "slack": SLACK,
        "counters": found,
    }
    path.write_text(json.dumps(recorded, indent=1) + "\n")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def load(path: Path = BASELINE) -> dict[str, Any]:
    """The record."""
    recorded: dict[str, Any] = json.loads(path.read_text())
    return recorded


def compare(found: Found, recorded: dict[str, Any]) -> list[str]:
    """What is more than the baseline allows, or so much less that it should be recorded; empty if nothing is."""
    problems = []
    elsewhere = recorded["python"] != _python()
    for course, counters in recorded["counters"].items():
        for name, before in counters.items():
            if elsewhere and name in OF_PYTHON:
                continue
            now = found[course][name]
            share, slack = recorded["tolerances"].get(name, EXACT), recorded["slack"].get(name, 0.0)
            allowed = max(abs(before) * share, slack) + 1e-9
            if abs(now - before) > allowed:
                word = "more than" if now > before else "less than"
                problems.append(f"{course}: {now:g} {name}, {word} the {before:g} of the baseline")
    return problems


def as_table(found: Found) -> str:
    """The counters as a Markdown table."""
    courses = {name: counts for name, counts in found.items() if name != SOCKETS}
    lines = [f"| counted | {' | '.join(courses)} |", "|---" * (len(courses) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{counts[name]:,.2f}' for counts in courses.values())} |"
        for name in TOLERANCES
    ]
    lines += ["", ", ".join(f"{value:g} {name}" for name, value in found[SOCKETS].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure()))
