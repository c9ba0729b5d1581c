"""The regression guard: what fixed requests make the gateway do, counted exactly and without a clock.

A gateway runs here with its real doors, request path, books and transport. Client and provider are this file: whenever
the event loop has nothing left to do and is about to wait (trio tells its instruments), the next step of a fixed course
is taken over loopback sockets, so that the gateway meets the same bytes in the same order every time, however busy the
machine is. Threads run inline, so nothing overtakes anything.

Counted are: steps of tasks, turns of the loop, function calls, sends, receives (and those that found nothing),
changes of epoll sets, JSON decodings, writes to the journal, its bytes and syncs, what is written to standard output
and error; in a second pass bytecodes and the blocks of memory that they allocate; in a third, without any hook,
blocks that stay allocated with the cyclic collector off; and in a fourth what Python has allocated for each stream that
is open. `tally.py` says how, and what cannot be seen that way. Each
is a difference between two places in a course, divided by the events or requests between them; of bytecodes and what
they allocate there are few units, and their median is taken.

`baseline.py` compares with what was counted last. A change that makes the gateway do more on its hot path fails the
test that does so; what is meant is recorded by `python -m bench baseline`.
"""

import gc
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import trio
import trio.lowlevel
from attrs import define, evolve

from bench.baseline import COUNTERS, HELD, OPEN, SOCKETS, Counts, Found
from bench.processes import environment
from bench.shapes import Shape, body, request
from bench.tally import Hook, Tally
from bench.upstream import END, EVENT, FINISH, PLAIN_ANSWER, STREAM_HEAD, chunk
from proxy import app
from proxy.config import Account, Config, Provider
from proxy.types import Secret

SECONDS_MAX: Final = 60
"""A pass takes a few seconds; one that has come to a standstill is ended."""

IDLE_POLL_MS: Final = 2000
"""How long bytes on loopback may take on a machine that is very busy; as a rule they are there. What comes later is
never seen, for whoever has nothing to do waits for bytes as well."""

REPEATS: Final = 3
"""The least of so many counts is taken: if a byte is late, the gateway looks once more than it has to."""

SEGMENT_BYTES: Final = 2**22
"""Of the journal: all of it is read at each mark, and none is filled."""

FEWER: Final = 10
"""Of the units of a course so many times fewer are counted in bytecodes, which takes long and varies little."""

BY_BYTECODE: Final = ("bytecodes", "allocations")
KEPT: Final = "blocks kept"


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
Course = Callable[[Sides, Mark, int], Generator[None, None, None]]
WARM: Final = 20
COUNTED: Final = 50
BATCH: Final = 32
STREAM: Final = Shape(events=10_000, gap_us=1)
_EVENT: Final = chunk(EVENT % 0)
_STAMP: Final = b'"content":"@'
LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


def _plain(sides: Sides, mark: Mark, counted: int) -> Generator[None, None, None]:
    """Requests that are answered in one piece, one after the other on kept connections."""
    for number in range(WARM + counted):
        if number >= WARM:
            mark()
        yield from sides.ask(Shape())
        sides.give(PLAIN_ANSWER)
        yield from sides.get(b'"total_tokens":15')
    mark()


def _streams(sides: Sides, mark: Mark, counted: int) -> Generator[None, None, None]:
    """Streams of one event: what a stream costs before and after its events."""
    for number in range(WARM + counted):
        if number >= WARM:
            mark()
        yield from _begin(sides)
        yield from _finish(sides)
    mark()


def _events(sides: Sides, mark: Mark, counted: int) -> Generator[None, None, None]:
    """Events of one stream, each in a read of its own."""
    yield from _begin(sides)
    for number in range(2 * WARM + counted):
        if number >= 2 * WARM:
            mark()
        sides.give(_EVENT)
        yield from sides.get(_STAMP)
    mark()
    yield from _finish(sides)


def _batches(sides: Sides, mark: Mark, counted: int) -> Generator[None, None, None]:
    """Reads of one stream that bring many events each: what does not grow with their number shows here."""
    yield from _begin(sides)
    for number in range(WARM + counted):
        if number >= WARM:
            mark()
        sides.give(_EVENT * BATCH)
        yield from sides.get(_STAMP, BATCH)
    mark()
    yield from _finish(sides)


def _open(sides: Sides, mark: Mark, counted: int) -> Generator[None, None, None]:
    """Streams that have had their first event and stay open, each with connections of its own."""
    others = []
    for number in range(WARM + counted):
        if number >= WARM:
            mark()
        others.append(Sides(sides.key, sides.listener, sides.port))
        yield from _begin(others[-1])
    mark()
    for other in others:
        yield from _finish(other)
        other.close()


def _begin(sides: Sides) -> Generator[None, None, None]:
    yield from sides.ask(STREAM)
    sides.give(STREAM_HEAD + _EVENT)
    yield from sides.get(_STAMP)


def _finish(sides: Sides) -> Generator[None, None, None]:
    sides.give(chunk(FINISH % (1000, 1010)) + END)
    yield from sides.get(LAST_CHUNK)


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
    wrap: Wrap | None = None, courses: Iterable[str] = (*COURSES, OPEN), repeats: int = REPEATS
) -> Found:
    """Count courses.

    Args:
        wrap: given the request path, returns another: a test plants something slow there.
        courses: their names; `OPEN` among them.
        repeats: of each, of which the least is taken.

    Raises:
        RuntimeError: a course could not be run to its end.
    """
    names = set(courses)
    chosen = {name: course for name, course in COURSES.items() if name in names}
    found = _counted(chosen, wrap, repeats) if chosen else {}
    if OPEN in names:
        held = [_pass({OPEN: (_open, COUNTED)}, wrap, "memory")[0] for _ in range(repeats)]
        found[OPEN] = {counter: round(min(_mean(one[OPEN], counter) for one in held)) for counter in HELD}
    return found


def _counted(courses: Courses, wrap: Wrap | None, repeats: int) -> Found:
    fewer = {name: (course, counted // FEWER) for name, (course, counted) in courses.items()}
    stepped, sockets = _pass(fewer, wrap, "bytecodes")
    called = [_pass(courses, wrap, "calls")[0] for _ in range(repeats)]
    kept = [_pass(courses, wrap, "none")[0] for _ in range(repeats)]
    found: Found = {SOCKETS: sockets}
    for name in courses:
        counts = {counter: min(_mean(one[name], counter) for one in called) for counter in COUNTERS}
        counts[KEPT] = min(_mean(one[name], KEPT) for one in kept)
        counts |= {counter: _typical(stepped[name], counter) for counter in BY_BYTECODE}
        found[name] = {counter: round(value, 4) for counter, value in counts.items()}
    return found


def _mean(marks: list[Counts], counter: str) -> float:
    """Of one unit, from what was counted at its marks: one before each unit, and one behind the last."""
    return (marks[-1].get(counter, 0) - marks[0].get(counter, 0)) / (len(marks) - 1)


def _typical(marks: list[Counts], counter: str) -> float:
    """Likewise, of the unit in the middle: among few units one for which a byte came late would weigh too much."""
    return statistics.median(
        after.get(counter, 0) - before.get(counter, 0) for before, after in pairwise(marks)
    )


def _pass(courses: Courses, wrap: Wrap | None, hook: Hook) -> tuple[dict[str, list[Counts]], Counts]:
    """One gateway, on which each course is run; gives what was counted at the marks of each, and the sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        state, output = Path(folder) / "state", Path(folder) / "output"
        config = _config(state, listener.getsockname()[1])
        sides = Sides(_key(config), listener)
        found: dict[str, list[Counts]] = {name: [] for name in courses}
        sockets: Counts = {}

        def mark(name: str, counted: int) -> None:
            marks = found[name]
            tally.counting = len(marks) < counted
            if 0 < len(marks) < counted and hook != "bytecodes":
                marks.append(marks[-1])  # the ends are enough, and what we keep would count as kept
                return
            if len(marks) in (0, counted):  # what takes long to see is seen there
                tally.counts["cyclic garbage"] += gc.collect()
                # segments of before are on their way into the archive
                (journal,) = (state / "journal").glob("*.open")
                tally.counts["journal bytes"] = len(journal.read_bytes().rstrip(b"\0"))
                tally.counts["output bytes"] = output.stat().st_size
                tally.counts[KEPT] = sys.getallocatedblocks()
                if hook == "memory":
                    tally.counts["bytes held"] = _traced_bytes()
                sockets.update(sides.no_delay())
            marks.append(dict(tally.counts))

        tally = Tally(_in_turn(courses, sides, mark), hook, time.monotonic() + SECONDS_MAX)
        try:
            with _output_into(output), _inline_threads(), _wrapped(wrap), _no_collector(), _hooks_kept():
                trio.run(_serve, config, sides, tally)
        finally:
            sides.close()
        if tally.error is not None or any(len(found[name]) <= most for name, (_, most) in courses.items()):
            said = output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the courses were not run to their end; {said}") from tally.error
    return found, sockets


def _traced_bytes() -> int:
    """What was allocated since this was asked first, and is still there; without what is ours, here and at the ends."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
        return 0
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    not_ours = tracemalloc.Filter(inclusive=False, filename_pattern=str(Path(__file__).with_name("*")))
    return sum(trace.size for trace in snapshot.filter_traces([not_ours]).traces)


def _in_turn(courses: Courses, sides: Sides, mark: Callable[[str, int], None]) -> Generator[None, None, None]:
    for name, (course, counted) in courses.items():
        yield from course(sides, partial(mark, name, counted), counted)


async def _serve(config: Config, sides: Sides, tally: Tally) -> None:
    def ready(facts: dict[str, Any]) -> None:
        sides.port = int(facts["base_url"].rpartition(":")[2])
        trio.lowlevel.add_instrument(tally)
        tally.watch(on=True)

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


@contextmanager
def _hooks_kept() -> Iterator[None]:
    """At the end hooks are as they were: coverage, say, has one."""
    usual = sys.getprofile(), sys.gettrace()
    try:
        yield
    finally:
        sys.setprofile(usual[0])
        sys.settrace(usual[1])


@contextmanager
def _output_into(path: Path) -> Iterator[None]:
    """Standard output and error, Python's and those below it, go into a file for a while: it tells how much it was."""
    kept = {number: os.dup(number) for number in (1, 2)}
    with path.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        for number in kept:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, usual in kept.items():
                os.dup2(usual, number)
                os.close(usual)


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


if __name__ == "__main__":
    print(json.dumps(measure()))
