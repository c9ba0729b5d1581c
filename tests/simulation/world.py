"""A world from a seed: gateways that come and go, clients, providers, operators, and what happens to them.

`run(seed)` plays it to its end and says what was wrong. Everything in it is decided by the seed: the plan before it
begins (`plan.py`), what happens in it by random generators for each part, the order of tasks by trio's own.
"""

import hashlib
from collections import Counter
from datetime import UTC, date, datetime

import trio
from attrs import define, field

from accounting.journal import BooksFailed
from accounting.recovery import RecoveryError
from tests.simulation import oracle, scheduler
from tests.simulation.auditor import Auditor
from tests.simulation.clients import Seen
from tests.simulation.disk import Files, ProcessDisk, Troubles
from tests.simulation.fate import Fate
from tests.simulation.index import IndexFailed, Rows
from tests.simulation.life import Killed, Life
from tests.simulation.operators import Operators, secret_of
from tests.simulation.plan import CALLS, Plan, plan_of
from tests.simulation.process import Process
from tests.simulation.provider import Providers, request_of
from tests.simulation.scheduler import ticks
from tests.simulation.scripts import Playwright
from tests.simulation.settings import ACCOUNTS, PROVIDERS

DIALECTS = {"openai": "openai_chat", "anthropic": "anthropic", "gemini": "gemini"}
WORLD_SECONDS = 3000.0
"""No world takes as long; one that does hangs."""

STARTS_MAX = 60

LOST_SECONDS = 1.0
"""On a disk that is well no line waits so long for its sync, not even where nobody waits for that."""

QUIET_SECONDS = 15.0
"""A disk that was not slow for so long is well."""


@define(eq=False)
class Outcome:
    """What became of a world.

    Attributes:
        wrong: what should not have been, in the order in which it was found.
        events: what happened.
        digest: of everything that happened, and of all files at the end.
        counts: how much of what there was.
        errors: exceptions that came out.
    """

    seed: int
    wrong: list
    events: list
    digest: str
    counts: Counter
    errors: list


def run(seed, calls=CALLS, *, trace=False) -> Outcome:
    """Play the world of a seed."""
    world = World(plan_of(seed, calls), trace)
    try:
        scheduler.run(f"{seed}/tasks", world.main)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever comes out is what is wrong with this world
        world.fail(f"the world ended with {error!r}", error)
    return world.outcome()


@define(eq=False)
class World:
    """See the module.

    Attributes:
        files, rows: what lasts over processes: the disk, and what is in the index.
        seen: what clients saw of each request, by its id.
        shift_ms: by how much the wall clock has jumped.
    """

    plan: Plan
    tracing: bool = False
    files: Files = field(factory=Files)
    rows: Rows = field(factory=Rows)
    troubles: Troubles = field(factory=Troubles)
    wrong: list = field(factory=list)
    errors: list = field(factory=list)
    events: list = field(factory=list)
    counts: Counter = field(factory=Counter)
    seen: dict = field(factory=dict)
    asked: dict = field(factory=dict)
    power_losses: list = field(factory=list)
    shift_ms: int = 0
    finished: bool = False
    process: Process = None
    rng: object = field(init=False)
    auditor: Auditor = field(init=False)
    playwright: Playwright = field(init=False)
    providers: Providers = field(init=False)
    operators: Operators = field(init=False)
    fate: Fate = field(init=False)
    _ids: int = 0
    _changed: trio.Event = field(factory=trio.Event)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)

    def __attrs_post_init__(self):
        seed, config = self.plan.seed, self.plan.config
        self.rng = scheduler.stream(seed, "fate")
        self.auditor = Auditor(self.fail, self._named, trio.current_time)
        self.operators, self.fate = Operators(self), Fate(self)
        self.playwright = Playwright(
            scheduler.stream(seed, "providers"),
            config.deadlines,
            {name: DIALECTS[kind] for name, kind in PROVIDERS.items()},
        )
        self.providers = Providers(
            self.playwright,
            {f"sk-up-{name}-{one}": (name, one) for name in PROVIDERS for one in ACCOUNTS[name]},
            {one.name: one.stops_billing for one in config.provider},
            self.asked,
        )

    # -- the whole -------------------------------------------------------------------------------------

    async def main(self):
        """Live."""
        self._scope.deadline = WORLD_SECONDS
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._supervise)
                try:
                    await self._live(nursery)
                finally:
                    if self.process is not None:
                        self.process.life.end("the world ends")
                nursery.cancel_scope.cancel()
        if self._scope.cancelled_caught and not self.wrong:
            self.fail(f"the world hangs, with {len(self.process.requests)} requests under way")

    async def _live(self, nursery):
        plan, operators = self.plan, self.operators
        await operators.found()
        nursery.start_soon(self.fate.run)
        async with trio.open_nursery() as busy:
            for calls in plan.clients:
                if calls:
                    busy.start_soon(self._client, calls)
            for top_up in plan.top_ups:
                busy.start_soon(operators.top_up, *top_up)
            for change in plan.changes:
                busy.start_soon(operators.change, *change)
        await self._wind_up()

    async def _wind_up(self):
        """Faults are over: everything must come to rest, and all books agree."""
        self.event("wind up")
        self.fate.end()
        while True:
            process = await self.up()
            process.life.trap = None
            await process.life.pause(0.5)
            if process.serving and process.gateway.limits.open == 0 and process.recorder.failed is None:
                break
        await process.recorder.flush()
        oracle.check_at_rest(self, process)
        self.finished = True
        process.stop.set()
        await process.life.over.wait()
        oracle.check_end(self)

    def fail(self, what, error=None):
        """Something is not as it should be: the world ends here."""
        self.wrong.append(what)
        self.event("WRONG", what)
        if error is not None:
            self.errors.append(error)
        self._scope.cancel()
        if self.process is not None:  # the recorder heeds no cancellation
            self.process.life.end("the world ends")

    def event(self, kind, /, *more, **fields):
        """Something happened."""
        now = trio.current_time() if trio.lowlevel.in_trio_run() else -1.0
        self.events.append((now, kind, *more, *fields.items()))
        if self.tracing:
            said = " ".join([*map(str, more), *(f"{name}={value}" for name, value in fields.items())])
            print(f"{now:10.4f}  {kind:14} {said}")  # noqa: T201 - that is what a trace is for

    def outcome(self) -> Outcome:
        """What became of it."""
        digest = hashlib.sha256()
        for event in self.events:
            digest.update(repr(event).encode())
        for path, inode in sorted(self.files.now.items()):
            digest.update(str(path).encode() + bytes(inode.cache))
        counts = self.counts
        counts["records"] += self.auditor.records
        counts["heads"] += self.auditor.heads
        counts["provider calls"] += len(self.providers.invoice)
        counts.update(self.troubles.seen)
        return Outcome(self.plan.seed, self.wrong, self.events, digest.hexdigest(), counts, self.errors)

    # -- what others ask of it -------------------------------------------------------------------------

    def wall(self):
        """Wall clock of the machine; it may jump."""
        return self.plan.begins_ms + int(trio.current_time() * 1000) + self.shift_ms

    def today(self) -> date:
        """The day, by that clock."""
        return datetime.fromtimestamp(self.wall() / 1000, UTC).date()

    def new_id(self, prefix):
        """A fresh id."""
        self._ids += 1
        return f"{prefix}_{self._ids:06d}"

    def thread_seconds(self, work):
        """How long a piece of work takes in a thread."""
        return self.fate.thread_seconds(work)

    def _named(self, path, inode):
        names = self.files.platter
        return names.get(path) is inode or any(one is inode for one in names.values())

    def sent(self, call):
        """The first byte of a request leaves for a provider: its attempt must stand in the journal."""
        request = request_of(call)
        opened = self.auditor.account.open.get(request)
        if opened is None:
            self.fail(f"{request} is sent, and no attempt of it is open in the journal")
            return 0
        if self.plan.durability == "strict":
            self.auditor.promise(opened.said.s, f"sending {request}")
        return opened.said.number

    def shown(self, seen, last):
        """A client is shown a piece of an answer, or its end."""
        if self.plan.durability == "relaxed":
            return
        attempt = self.auditor.account.last.get(seen.id)
        if attempt is None:
            self.fail(f"{seen.id} is answered, and there is no attempt of it in the journal")
            return
        self.auditor.promise(attempt.said.s, f"the first byte of {seen.id}")
        if last and seen.complete:
            if attempt.end is None:
                self.fail(f"{seen.id} has its end, and is not settled")
            else:
                self.auditor.promise(attempt.end.s, f"the end of {seen.id}")

    # -- gateways --------------------------------------------------------------------------------------

    async def up(self):
        """The gateway, as soon as it takes requests."""
        while self.process is None or not self.process.serving:
            await self._changed.wait()
        return self.process

    def changed(self):
        """A gateway has come up, or gone."""
        self._changed.set()
        self._changed = trio.Event()

    async def _supervise(self):
        """Start a gateway whenever there is none."""
        for number in range(1, STARTS_MAX):
            life = Life(number, self.rng)
            self.fate.lay_recovery_trap(life)
            disk = ProcessDisk(self.files, life, self.troubles, self.rng, self.auditor.heard)
            self.process = Process(self, life, disk)
            self.event("start", number)
            await self._run(self.process, life)
            self._bury(life)
            if self.finished:
                return
            self.fate.between(life)
            await trio.sleep(ticks(self.rng.uniform(0.05, 1.5)))
        self.fail("the gateway does not come up any more")

    async def _run(self, process, life):
        try:
            await process.run()
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - it is judged
            if life.alive:
                if not self._may_end_with(error):
                    self.fail(f"the gateway ended with {error!r}", error)
                life.because = "failed"
        await trio.lowlevel.checkpoint_if_cancelled()

    def _may_end_with(self, error):
        """Whether the disk or the index give a gateway a reason to end with this error."""
        if isinstance(error, BaseExceptionGroup):
            return all(self._may_end_with(member) for member in error.exceptions)
        if isinstance(error, RecoveryError):
            return False
        if isinstance(error, (Killed, trio.Cancelled)):
            return True
        troubled = self.troubles.seen or self.rows.failed
        return bool(troubled) and isinstance(error, (OSError, BooksFailed, IndexFailed))

    def _bury(self, life):
        """A process is gone."""
        life.end(life.because or "exit")
        self.event("end", life.number, life.because)
        self.changed()
        self.auditor.interrupted()
        if life.power_lost:
            self.lose_power(expected=False)
        else:
            self.files.kill()

    def lose_power(self, *, expected=True):
        """The machine goes down; `expected`: whoever was there has synced everything and left."""
        self.counts["power losses"] += 1
        self.power_losses.append(trio.current_time())
        self.files.lose_power(self.rng)
        self.auditor.volatile = not expected
        quiet = self.fate.slow_disk_until < trio.current_time() - QUIET_SECONDS
        if quiet and self.process.served_seconds > 2 * LOST_SECONDS:
            self.auditor.lost_after = trio.current_time() - LOST_SECONDS

    def recovered(self, process):
        """A recovery is over."""
        found = process.recovered
        self.counts["recoveries"] += 1
        self.event("recovered", found.journal.seq, settled=len(found.findings.settled))
        self.auditor.settled_down(found.journal.seq)
        oracle.check_ledger(self, process)

    def drained(self, process):
        """A gateway was told to stop, and has no requests any more."""
        if process.life.alive and process.recorder.failed is None:
            oracle.check_ledger(self, process)

    def closed(self, process):
        """A gateway has closed its books."""
        self.counts["graceful stops"] += 1
        if process.recorder.failed is None:
            self.auditor.promise(len(self.auditor.lines), "the end of the process")

    # -- clients ---------------------------------------------------------------------------------------

    async def _client(self, calls):
        rng = scheduler.stream(self.plan.seed, f"client {calls[0].number}")
        for call in calls:
            await trio.sleep(ticks(rng.expovariate(4.0)))
            number = tries = 0
            while tries < call.tries:
                process = await self.up()
                number += 1
                seen = await self._try(process, call, number, rng)
                if seen.complete or seen.left or seen.status in (400, 401, 402, 403, 404):
                    break
                if not seen.lost or seen.body:
                    tries += 1
                elif number > 12:
                    break
                await trio.sleep(ticks(rng.uniform(0.05, 1.0)))

    async def _try(self, process, call, number, rng):
        request = f"req_{call.number}_{number}"
        now = trio.current_time()
        key = self.operators.keys[call.key]
        seen = Seen(request, call, process.life, self.shown, number, now, key=key)
        self.seen[request] = seen
        self.asked[request] = call.asked
        upload = ticks(rng.uniform(0.04, 0.3)) if rng.random() < 0.1 else 0.0
        await process.serve(seen, secret_of(key), upload)
        seen.lost = not seen.over and not seen.left
        self.counts["tries"] += 1
        self.counts[f"status {seen.status}"] += 1
        self.event("call", request, seen.status, len(seen.body), seen.complete, seen.lost)
        if seen.status == 200 and self.operators.revoked.get(key, now) < now:
            self.fail(f"{request} was answered with key {key}, which had been revoked")
        return seen
