"""Threads for work that may take its time: they step back whenever the event loop wants their core.

Where cores are few, loading the store and serving requests share one. The kernel would give each its turn, of some
milliseconds: a thread of lower priority gives way at once instead. It is not the lowest that there is: a gateway that
is busy all the time still leaves these threads a tenth of the core, which is more than they need.

Threads of their own, for a priority that was lowered cannot be raised again.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

import trio
from attrs import define, field

T = TypeVar("T")

NICENESS: Final = 10
"""More than the process has; `NICEST` is the most that there is."""

NICEST: Final = 19


@define(eq=False)
class Background:
    """Some such threads; they end with the context.

    Attributes:
        threads: how many at most.
    """

    threads: int
    _pool: ThreadPoolExecutor = field(init=False)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self.threads, "background", initializer=_step_back)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False)  # nothing runs any more: whoever called `run` has waited for it

    async def run(self, work: Callable[[], T]) -> T:
        """Run something in one of the threads; what it returns or raises. Once begun it is not cancelled."""
        await trio.lowlevel.checkpoint_if_cancelled()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere this is the whole process's
        thread = threading.get_native_id()
        usual = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(usual + NICENESS, NICEST))
