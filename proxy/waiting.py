"""Requests that wait for credit which others hold: first come, first served, for each wallet, within bounds."""

from collections import deque
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio
from attrs import define, field

from accounting.refusals import Insufficient

T = TypeVar("T")
Args = TypeVarTuple("Args")


@define(eq=False)
class Waiting:
    """The queues of all wallets.

    Attributes:
        seconds: how long a request may wait; 0: none does.
        most: how many may wait at a time for one wallet.
    """

    seconds: float
    most: int
    _queues: dict[str, deque[trio.Event]] = field(factory=dict)

    def wake(self, wallet: str) -> None:
        """Something of a wallet's credit has come free: whoever is first looks again."""
        queue = self._queues.get(wallet)
        if queue:
            queue[0].set()

    async def until_it_fits(self, wallet: str, take: Callable[[*Args], T], *args: *Args) -> T:
        """Take credit, now or when it has come free.

        Nobody overtakes: while others wait, who comes later stands behind them, whether its hold would fit or not.

        Args:
            wallet: whose.
            take: sets the credit aside, synchronously; called again each time some has come free.
            args: what it is called with.

        Raises:
            Insufficient: it does not fit, not even after waiting, or too many wait already.
        """
        queue = self._queues.get(wallet)
        if not queue:
            try:
                return take(*args)
            except Insufficient as short:
                if not self._worthwhile(short):
                    raise
            queue = self._queues.setdefault(wallet, deque())
        elif len(queue) >= self.most:
            raise Insufficient("in_flight", wallet, 0, 0)
        turn = trio.Event()
        queue.append(turn)
        try:
            with trio.move_on_after(self.seconds):
                while True:
                    await turn.wait()  # only the first in the queue is ever woken
                    try:
                        return take(*args)
                    except Insufficient as short:
                        if not self._worthwhile(short):
                            raise
                    turn = queue[0] = trio.Event()
            return take(*args)  # its time is over: this says what is missing
        finally:
            queue.remove(turn)
            if queue:
                queue[0].set()
            else:
                self._queues.pop(wallet, None)

    def waiting(self) -> int:
        """How many wait, in all."""
        return sum(map(len, self._queues.values()))

    def _worthwhile(self, short: Insufficient) -> bool:
        """Whether what is missing can come free: open holds alone stand in the way."""
        return self.seconds > 0 and short.limit == "in_flight"
