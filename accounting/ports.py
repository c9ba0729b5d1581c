"""What the books ask of others, and say to them: who writes, who is answered, and that no more can be taken."""

from typing import Protocol

from attrs import frozen
from msgspec import Struct

from accounting.ledger import State
from accounting.records import Record
from pricing.money import Pico


class Overloaded(Exception):
    """The books can take no more for now, or have failed.

    Args:
        because: why, in a few words, for the log and the caller.
        retry_after_seconds: when trying again may help.
        trigger: which bound was met: `unsynced` (age of the oldest record that is not on disk), `unloaded` (records
            that the store does not have), `journal` (room in it), `failed`, `closed`.
    """

    def __init__(self, because: str, retry_after_seconds: float = 1.0, trigger: str = "failed") -> None:
        super().__init__(because)
        self.because = because
        self.retry_after_seconds = retry_after_seconds
        self.trigger = trigger


class Writer(Protocol):
    """Where records go; `accounting.recorder.Recorder`, or a fake."""

    def reserve(self, places: int) -> None:
        """Take room for later records. Raises `Overloaded` if one of them could find none."""
        ...

    def release(self, places: int) -> None:
        """Give room back that is no longer needed."""
        ...

    def write(self, record: Record, *, reserved: bool = False) -> int:
        """Write a record and say its seq; with `reserved` it uses up a reserved place and surely finds room.

        Raises:
            Overloaded: no room, or the books have failed. A reserved place is then still reserved.
        """
        ...

    async def durable(self, seq: int) -> None:
        """Return once all up to `seq` is on the platter. Raises `Overloaded` if the books have failed."""
        ...


class Client(Protocol):
    """Who the answer is for; a `Reply`, or a fake."""

    @property
    def client_gone(self) -> bool:
        """The client has left."""
        ...


class Balance(Struct, frozen=True, gc=False):
    """What a wallet has, in picos; `available` is what a new hold may take. A struct: one is made for each request."""

    balance: Pico
    held: Pico
    available: Pico
    currency: str


@frozen
class Snapshot:
    """The ledger as it was when `seq` was the last record that had changed it."""

    seq: int
    state: State
