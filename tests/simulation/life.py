"""The life of one process: it ends at an instant, and from then on nothing that it does has any effect.

A killed process does not run its `finally`. A task here does, when it is cancelled; so every port of a dead
process raises `Killed`, and neither the disk nor a client nor a provider ever hears of it again. What is left of
its tasks winds down among themselves.
"""

from typing import Final

import trio
from attrs import define, field

EARLY: Final = 0.5
"""How often the work of a thread is done when it is asked for, rather than when it is waited for no longer."""


class Killed(BaseException):
    """The process is gone. No `except Exception` may see it."""


@define(eq=False)
class Trap:
    """Ends a life at a port's operation, counted among those that it is set for.

    Attributes:
        operations: names of operations (`pwrite`, `rename` …); empty: all.
        countdown: how many of them pass before it snaps.
        power: the machine goes down, not only the process.
        after: the operation is done first.
    """

    operations: frozenset
    countdown: int
    power: bool
    after: bool = False
    snapped: object = None

    def snaps(self, operation) -> bool:
        if self.operations and operation not in self.operations:
            return False
        self.countdown -= 1
        return self.countdown < 0


@define(eq=False)
class Life:
    """One process, from its start to its end.

    Attributes:
        number: which one in its world.
        alive: it has not ended yet.
        power_lost: it ended with the whole machine.
        trap: what may end it in the middle of an operation.
        scopes: what is cancelled when it ends.
        at_end: called when it ends, once.
    """

    number: int
    rng: object
    trap: Trap | None = None
    alive: bool = True
    power_lost: bool = False
    because: str = ""
    scopes: dict = field(factory=dict)
    at_end: list = field(factory=list)
    over: trio.Event = field(factory=trio.Event)

    def end(self, because, *, power=False):
        """Die. Nothing runs in here but what belongs to the world."""
        if not self.alive:
            return
        self.alive, self.because, self.power_lost = False, because, power
        self.over.set()
        for callback in self.at_end:
            callback()
        for scope in tuple(self.scopes):
            scope.cancel()

    def touch(self, operation) -> bool:
        """A port is used. Says whether the process dies once the operation is done; raises if it is dead before."""
        if not self.alive:
            raise Killed
        trap = self.trap
        if trap is None or not trap.snaps(operation):
            return False
        self.trap = None
        if trap.snapped is not None:
            trap.snapped()
        if trap.after:
            self._after = trap
            return True
        self.end(f"trap at {operation}", power=trap.power)
        raise Killed

    _after: Trap | None = None

    def fall(self, operation):
        """Die behind an operation for which `touch` said so."""
        self.end(f"trap behind {operation}", power=self._after.power)
        raise Killed

    async def pause(self, seconds):
        """Let time pass, whatever is cancelled meanwhile; a death ends it."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await self.over.wait()
        if not self.alive:
            raise Killed


@define(eq=False)
class Threads:
    """Runs work as a thread would: it takes its time, cannot be cancelled, and may be killed before or after it.

    Attributes:
        life: of the process.
        seconds: how long a piece of work takes, by its name.
    """

    life: Life
    seconds: object

    async def run_in_thread(self, work):
        await trio.lowlevel.checkpoint_if_cancelled()
        life, took = self.life, self.seconds(work)
        early = life.rng.random() < EARLY
        error = result = None
        if not early:
            await life.pause(took)
        if life.touch("thread"):
            life.fall("thread")
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - it comes out when the thread is joined
            error = raised
        if early:
            await life.pause(took)
        if error is not None:
            raise error
        return result
