"""A recorder on a disk and a store that can be slow, or fail: what its tests share."""

from contextlib import asynccontextmanager

import trio
from attrs import define, field

from accounting.recorder import Recorder
from tests.accounting.journal_fakes import (
    FakeDisk,
    fresh,
    reopened,
)


@define(eq=False)
class FakeStore:
    """A store of a list; it is slow, or fails, as it is told."""

    loaded: list = field(factory=list)
    slices: list[int] = field(factory=list)
    error: Exception | None = None
    committed_before_error: bool = False
    seconds: float = 0.0
    reopened: int = 0

    def load(self, records):
        if self.error is None or self.committed_before_error:
            assert records[0][0] == len(self.loaded) + 1, "a line is loaded twice, or left out"
            self.loaded += records
            self.slices.append(len(records))
        if self.error is not None:
            raise self.error
        return len(self.loaded)

    def reopen(self):
        self.reopened += 1
        if self.error is not None and not self.committed_before_error:
            raise self.error
        self.error = None
        return len(self.loaded)


@define(eq=False)
class World:
    """A recorder on a fake disk and a fake store; work in threads takes virtual time."""

    disk: FakeDisk = field(factory=FakeDisk)
    store: FakeStore = field(factory=FakeStore)
    sync_seconds: float = 0.001
    events: list = field(factory=list)
    works: list[str] = field(factory=list)
    segment_bytes: int = 2**20
    recorder: Recorder = None

    async def in_thread(self, work):
        name = getattr(work, "__qualname__", repr(work))
        self.works.append(name)
        await trio.sleep(self.store.seconds if "_load_once" in name else self.sync_seconds)
        return work()

    def build(self, *, again=False, **settings):
        make = reopened if again else fresh
        journal = make(self.disk, segment_bytes=self.segment_bytes)
        self.recorder = Recorder(
            journal,
            self.store,
            trio.current_time,
            self.in_thread,
            loaded=len(self.store.loaded),
            log=lambda event, **fields: self.events.append((event, fields)),
            **{"load_seconds": 0.25, **settings},
        )
        return self.recorder

    def syncs(self):
        return sum("Sync.run" in name for name in self.works)


def triggered(trigger):
    return lambda error: error.trigger == trigger


@asynccontextmanager
async def running(recorder, *, ends=None):
    """The recorder's task for as long as the block, closed at its end in any case; yields the nursery.

    `ends` is the error that it must end with.
    """
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(recorder.run)
            try:
                yield nursery
            finally:
                recorder.close()
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        if ends is None or not isinstance(error, ends):
            raise
    else:
        assert ends is None, "it ended well"
