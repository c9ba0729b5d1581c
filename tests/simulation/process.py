"""One gateway process: production code put together as `proxy.app` does it, with a world in place of its ports."""

import math

import trio
from attrs import define, field

from accounting.books import Books
from accounting.recorder import Recorder
from accounting.recovery import recover
from proxy.doors.reply import DoorReply
from proxy.gateway import Gateway
from proxy.keys import KeyRing
from proxy.limits import Ceilings, Limits
from proxy.pool import Pool
from proxy.routing import Router
from proxy.serve import respond
from proxy.telemetry import Telemetry
from proxy.upstreams.answer import Upstreams
from proxy.waiting import Waiting
from tests.simulation.clients import ROUTES, request_of
from tests.simulation.disk import STATE, ProcessDisk
from tests.simulation.index import MemoryIndex
from tests.simulation.life import Killed, Threads
from tests.simulation.provider import Network
from tests.simulation.settings import catalog, dialects


@define(eq=False)
class Log:
    """Where telemetry writes; a line about a fault of our own is one that must not be."""

    world: object
    life: object

    def write(self, text):
        if '"traceback"' in text and self.life.alive:
            self.world.fail(f"a fault of our own: {text.strip()}")


@define(eq=False)
class Process:
    """A gateway, from its start to its end.

    Attributes:
        serving: it takes requests; `since` when.
        sound: its books have not failed.
    """

    world: object
    life: object
    disk: ProcessDisk
    serving: bool = False
    since: float = math.inf
    sound: bool = True
    gateway: Gateway = None
    books: Books = None
    recorder: Recorder = None
    recovered: object = None
    network: Network = None
    requests: dict = field(factory=dict)
    stop: trio.Event = field(factory=trio.Event)

    async def run(self):
        """Recover, serve until told to stop or until the books fail, drain, close. Raises what goes wrong."""
        world, life = self.world, self.life
        plan = world.plan
        life.at_end.append(self._at_end)
        self.network = Network(world.providers, life, world.sent)
        self.recovered = recover(
            STATE,
            disk=self.disk,
            open_store=lambda: MemoryIndex(world.rows, life),
            clock=world.wall,
            segment_bytes=plan.segment_bytes,
            load_records_max=plan.load_records_max,
        )
        world.recovered(self)
        self._compose()
        try:
            async with trio.open_nursery() as nursery:
                life.scopes[nursery.cancel_scope] = None
                await nursery.start(self.recorder.run)
                nursery.start_soon(self._watch_books)
                nursery.start_soon(self._expire)
                self.serving, self.since = True, trio.current_time()
                world.changed()
                await self.stop.wait()
                self.serving = False
                await self._drain()
                world.drained(self)
                self.recorder.close()
                nursery.cancel_scope.cancel()
        finally:
            self.serving = False
            if life.alive:
                self.recovered.close()
        world.closed(self)

    @property
    def served_seconds(self):
        """How long it has taken requests, or had until it died with the machine."""
        return trio.current_time() - self.since if self.sound else 0.0

    def _compose(self):
        world, plan = self.world, self.world.plan
        config = plan.config
        threads = Threads(self.life, world.thread_seconds)
        recovered = self.recovered
        clock = _Clock(world.wall, recovered.last_ms)
        telemetry = Telemetry(clock, trio.current_time, "error", Log(world, self.life))
        self.recorder = Recorder(
            recovered.journal,
            recovered.store,
            trio.current_time,
            threads.run_in_thread,
            loaded=recovered.journal.seq,
            sync_seconds=plan.relaxed_seconds if plan.durability == "relaxed" else 0.0,
            load_seconds=plan.load_seconds,
            load_records_max=plan.load_records_max,
            unloaded_max=plan.unloaded_max,
            unsynced_seconds_max=plan.unsynced_seconds_max,
            log=lambda event, **fields: world.event("books", event, **fields),
            on_settled=telemetry.settled,
        )
        self.books = Books(
            recovered.ledger,
            self.recorder,
            clock,
            trio.current_time,
            world.new_id,
            progress_seconds=plan.progress_seconds,
            progress_tokens=plan.progress_tokens,
            durability=plan.durability,
            empty_free_per_key_day=config.holds.empty_free_per_key_day,
            seq=recovered.journal.seq,
        )
        waiting = Waiting(config.holds.hold_wait_seconds, config.holds.waiting_max)
        self.books.freed = waiting.wake
        router = Router(catalog(), config, world.today)
        spoken = dialects(config.limits)
        limits = config.limits
        self.gateway = Gateway(
            config=config,
            books=self.books,
            keys=KeyRing(recovered.ledger, config.keys.prefix, self.books.clock),
            limits=Limits(
                Ceilings(limits.requests_max, limits.muted_max, limits.muted_per_key_max), trio.current_time
            ),
            router=router,
            upstreams=Upstreams(config, self.network, Pool(), spoken, router.base_urls()),
            telemetry=telemetry,
            waiting=waiting,
            dialects=spoken,
        )

    async def serve(self, seen, secret, upload):
        """What a door does with one request; returns when it is over or the process is gone."""
        life, call = self.life, seen.call
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                life.scopes[scope] = self.requests[scope] = None
                reply = (DoorReply if self.world.plan.heartbeats else SilentReply)(
                    seen.send, nursery, headers={"x-request-id": seen.id}
                )
                seen.hang_up = reply.hang_up
                if call.leaves is not None:
                    nursery.start_soon(_leave, seen, reply, call.leaves)
                request = request_of(seen, secret, self.world.wall, upload)
                await respond(self.gateway, ROUTES[call.dialect](call.asked), request, reply)
                nursery.cancel_scope.cancel()
        except BaseException as error:
            if life.alive and not _only_killed(error):
                raise
        finally:
            self.requests.pop(scope, None)
            life.scopes.pop(scope, None)
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _drain(self):
        """Let what runs run on for a while, then cancel it; as `doors.server` does."""
        until = trio.current_time() + self.world.plan.drain_seconds
        while self.requests and trio.current_time() < until and self.life.alive:
            await self.life.pause(0.25)
        for scope in tuple(self.requests):
            scope.cancel()
        while self.requests and self.life.alive:
            await self.life.pause(0.05)

    async def _watch_books(self):
        await self.recorder.wait_failed()
        if self.life.alive:
            self.sound, self.books.failed = False, True
            self.world.event("books failed")
            self.stop.set()

    async def _expire(self):
        while True:
            self.books.expire_due()
            await trio.sleep(self.world.plan.expiry_seconds)

    def _at_end(self):
        self.serving = False
        self.network.hang_up(power=self.life.power_lost)
        if self.recorder is not None:
            self.recorder.close()


class SilentReply(DoorReply):
    """A reply without heartbeats, and so without a task of its own; half of the worlds go without."""

    def keep_alive(self, _heartbeat, after_seconds):
        return super().keep_alive(b"", after_seconds)


@define(eq=False)
class _Clock:
    """Wall clock that never goes back; as `proxy.books` has it."""

    wall: object
    last_ms: int

    def __call__(self):
        self.last_ms = max(self.last_ms, self.wall())
        return self.last_ms


async def _leave(seen, reply, after):
    await trio.sleep(after)
    seen.left, seen.left_at = True, trio.current_time()
    reply.hang_up()


def _only_killed(error):
    if isinstance(error, BaseExceptionGroup):
        return all(_only_killed(member) for member in error.exceptions)
    return isinstance(error, Killed)
