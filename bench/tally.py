"""What a gateway is seen to do, without any part of it knowing: through Python's hooks and trio's instruments.

Two hooks, in passes of their own, for each changes a little what the other one sees. The profiling hook tells calls,
of Python and of C functions, and so what is asked of sockets, files and decoders. The tracing hook tells each
bytecode; and since Python counts the blocks of memory that it has given away, how many more there are than one
bytecode before is how many that one has allocated.

What cannot be seen: how long one call into C takes, and what it allocates and frees before it returns. A hash over a
thousand rounds is one call, like one over a single round. Nor are blocks seen that come from one of Python's lists of
free objects, or that are larger than 512 bytes; and each call has one for its frame, which it would not need if nobody
looked. Time is what the scenarios are for.
"""

import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, Final, Literal

import trio.abc
import trio.lowlevel
from attrs import define, field

Hook = Literal["calls", "bytecodes", "memory", "none"]

SENDS: Final = frozenset({"send", "sendall", "sendmsg", "sendto"})
RECEIVES: Final = frozenset({"recv", "recv_into", "recvmsg", "recvfrom"})
EPOLL: Final = frozenset({"register", "modify", "unregister"})
DECODERS: Final = frozenset({"decode", "json_decode"})
WRITES: Final = frozenset({"pwrite", "pwritev"})
SYNCS: Final = frozenset({"fdatasync", "fsync"})


@define(eq=False)
class Tally(trio.abc.Instrument):
    """Counts what the gateway does, and takes the next step of the course whenever it does nothing.

    Attributes:
        course: yields to let the gateway go on.
        hook: what is counted beside the steps of tasks and the turns of the loop.
        until: when it is given up; monotonic seconds.
        counting: bytecodes are counted only while it is set: each takes as long as a hundred without.
    """

    course: Generator[None, None, None]
    hook: Hook
    until: float
    counts: Counter[str] = field(factory=Counter)
    counting: bool = False
    error: BaseException | None = None
    _over: bool = False
    _blocks: int = 0
    _step: Callable[..., Any] | None = None

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        """See trio."""
        self.counts["task steps"] += 1

    def before_io_wait(self, timeout: float) -> None:
        """See trio. With a time-out of zero there are tasks to run."""
        self.counts["loop turns"] += 1
        if timeout <= 0 or self._over:
            return
        self.watch(on=False)
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
            self.watch(on=not self._over)

    def _stop(self) -> None:
        """The course is over: the gateway goes down as it always does."""
        self._over = True
        signal.raise_signal(signal.SIGTERM)

    def watch(self, *, on: bool) -> None:
        """Let the hook tell from now on, or no longer."""
        if self.hook == "calls":
            sys.setprofile(self._called if on else None)
        elif self.hook == "bytecodes" and (self.counting or not on):
            self._step = self._stepped
            self._blocks = sys.getallocatedblocks()
            sys.settrace(self._entered if on else None)

    # -- calls -------------------------------------------------------------------------------------

    def _called(self, frame: FrameType, event: str, what: Any) -> None:
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

    # -- bytecodes ---------------------------------------------------------------------------------

    def _entered(self, frame: FrameType, event: str, what: Any) -> Callable[..., Any] | None:
        """A function begins, or goes on where it waited: have each of its bytecodes told."""
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped(frame, event, what)

    def _stepped(self, _frame: FrameType, event: str, _what: Any) -> Callable[..., Any] | None:
        blocks = sys.getallocatedblocks()
        if blocks > self._blocks:
            self.counts["allocations"] += blocks - self._blocks
        self._blocks = blocks
        if event == "opcode":
            self.counts["bytecodes"] += 1
        return (
            self._step
        )  # always the same, or each frame would keep a method of its own, which would be counted


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
