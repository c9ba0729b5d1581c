"""Fate: what happens to gateways, disks, indexes, providers and clocks, most of it where it hurts."""

from typing import Final

import trio
from attrs import define

from accounting.recovery import AlreadyRunning, recover
from tests.simulation.disk import STATE, ProcessDisk
from tests.simulation.index import MemoryIndex
from tests.simulation.life import Life, Trap
from tests.simulation.scheduler import ticks
from tests.simulation.settings import ACCOUNTS, PROVIDERS

ROTATION: Final = frozenset({"create", "allocate", "truncate", "rename", "sync_dir", "unlink"})
"""Operations on files that only happen when segments are made, sealed and archived, and at a start."""


@define(eq=False)
class Fate:
    """A world's. What is in `plan.faults` is a method here.

    Attributes:
        over: nothing bad happens any more.
        crashes: how often a gateway was killed.
    """

    world: object
    over: bool = False
    crashes: int = 0
    slow_disk_until: float = 0.0
    slow_index_until: float = 0.0

    async def run(self):
        """Let happen what is planned."""
        world, began = self.world, trio.current_time()
        for fault in world.plan.faults:
            await trio.sleep_until(began + fault.at)
            if self.over:
                return
            world.event("fault", fault.what)
            world.counts[f"fault {fault.what}"] += 1
            getattr(self, fault.what)(fault.seconds)

    def end(self):
        """Nothing bad happens any more."""
        self.over = True
        self.crashes = self.world.plan.crashes_max
        self.slow_disk_until = self.slow_index_until = 0.0
        self.world.troubles.clear()
        self.world.rows.failing.clear()
        self.world.playwright.calm = True
        self.world.process.life.trap = None

    def thread_seconds(self, work):
        """How long a piece of work takes in a thread."""
        name, rng, now = getattr(work, "__qualname__", ""), self.world.rng, trio.current_time()
        if name.startswith(("Sync.", "Chore.", "Journal.")):
            return ticks(
                rng.choice((0.0, 0.04, 0.07, 0.1) if now >= self.slow_disk_until else (0.3, 3.0, 14.0))
            )
        return 0.04 if now >= self.slow_index_until else 5.0

    # -- ends of gateways ------------------------------------------------------------------------------

    @property
    def may_crash(self):
        return self.crashes < self.world.plan.crashes_max

    def _crashed(self):
        self.crashes += 1

    def lay_recovery_trap(self, life):
        """A start after a crash may itself be interrupted."""
        rng = self.world.rng
        if life.number > 1 and self.may_crash and rng.random() < 0.4:
            self._lay(life, Trap(frozenset(), rng.randrange(45), rng.random() < 0.5, rng.random() < 0.5))

    def _lay(self, life, trap):
        life.trap = trap
        trap.snapped = self._crashed

    def between(self, life):
        """A gateway is gone; what may happen until the next one comes up."""
        world, rng = self.world, self.world.rng
        if self.over or not world.plan.crashes_max:
            return
        if life.because == "exit" and rng.random() < 0.3:
            world.lose_power()  # all was synced: nothing may be missing
        if rng.random() < 0.1:
            rows = world.rows.records
            del rows[0 if rng.random() < 0.3 else rng.randrange(len(rows) + 1) :]
            world.counts["index set back"] += 1
            world.event("index set back", len(rows))

    def kill(self, _seconds):
        if self.may_crash:
            self._crashed()
            self.world.process.life.end("kill")

    def power(self, _seconds):
        if self.may_crash:
            self._crashed()
            self.world.process.life.end("power loss", power=True)

    def stop(self, _seconds):
        self.world.process.stop.set()

    def trap(self, _seconds):
        life, rng = self.world.process.life, self.world.rng
        if self.may_crash and life.trap is None:
            operations = rng.choice(
                (ROTATION, ROTATION, frozenset({"fdatasync"}), frozenset({"index"}), frozenset())
            )
            few = 6 if operations is ROTATION else 25
            self._lay(life, Trap(operations, rng.randrange(few), rng.random() < 0.5, rng.random() < 0.5))

    def intruder(self, _seconds):
        """Somebody starts a second gateway on the same books: it is refused, and changes nothing."""
        world, process = self.world, self.world.process
        if not process.serving or world.troubles.any:
            return
        before = {path: bytes(inode.cache) for path, inode in world.files.now.items()}
        life = Life(0, world.rng)
        disk = ProcessDisk(world.files, life, world.troubles, world.rng, world.auditor.heard)
        try:
            recover(
                STATE,
                disk=disk,
                open_store=lambda: MemoryIndex(world.rows, life),
                clock=world.wall,
                segment_bytes=world.plan.segment_bytes,
                load_records_max=10,
            )
        except AlreadyRunning:
            pass
        else:
            world.fail("two gateways have the same books open")
        if before != {path: bytes(inode.cache) for path, inode in world.files.now.items()}:
            world.fail("a second gateway was refused, and has changed files")

    # -- disk and index --------------------------------------------------------------------------------

    def full(self, seconds):
        troubles = self.world.troubles
        troubles.full_until = max(troubles.full_until, trio.current_time() + seconds)

    def pwrite_error(self, _seconds):
        self.world.troubles.fail("pwrite", after=self.world.rng.randrange(4))

    def sync_error(self, _seconds):
        rng = self.world.rng
        self.world.troubles.fail("fdatasync", after=rng.randrange(4), times=rng.choice((1, 1, 1, 2, 4)))

    def file_error(self, _seconds):
        rng = self.world.rng
        self.world.troubles.fail(
            rng.choice((*sorted(ROTATION), "read", "read_at", "open", "lock")),
            after=rng.randrange(3),
            times=rng.choice((1, 1, 5)),
        )

    def short_writes(self, _seconds):
        self.world.troubles.short = self.world.rng.randrange(1, 8)

    def slow_disk(self, seconds):
        self.slow_disk_until = trio.current_time() + seconds

    def slow_index(self, seconds):
        self.slow_index_until = trio.current_time() + seconds

    def index_error(self, _seconds):
        rng = self.world.rng
        self.world.rows.failing += rng.choices(("before", "after", "open"), k=rng.randrange(1, 5))

    # -- providers and clocks --------------------------------------------------------------------------

    def limited(self, seconds):
        rng, until = self.world.rng, trio.current_time() + seconds
        for name in PROVIDERS:
            for one in ACCOUNTS[name]:
                if rng.random() < 0.6:
                    self.world.playwright.limited_until[name, one] = until

    def failing(self, seconds):
        name = self.world.rng.choice(tuple(PROVIDERS))
        self.world.playwright.failing_until[name] = trio.current_time() + seconds

    def clock_jump(self, seconds):
        self.world.shift_ms += int(self.world.rng.choice((-1, 1)) * seconds * 3000)
