"""Bugs to plant: each changes production classes for the length of a `with`, and a world has to notice.

They are the mistakes that gateways of this kind have made, or that this one could make tomorrow. Each has a test
that says after how many seeds it was found; one that no seed finds would be a hole in the oracle.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import trio
from attrs import evolve
from msgspec.structs import replace

from accounting import archive, recovery
from accounting.books import Books
from accounting.carries import Carried, Carries
from accounting.hold import Hold
from accounting.journal import Journal
from accounting.ledger import Ledger
from accounting.recorder import Recorder
from accounting.records import Attempt, Extension, UsageRecord
from accounting.scan import Scan
from pricing.usage import Meter, Reported
from proxy.limits import Limits
from proxy.routing import Router
from proxy.upstreams.answer import Attempts
from tests.simulation.disk import ProcessDisk

Patches = dict


def _patch(owner, **changes):
    """Patches for one class or module: each is given the original and gives what stands in its place."""
    return [(owner, name, change) for name, change in changes.items()]


def no_hold_taken():
    """The hold is checked for and not set aside."""
    return _patch(
        Ledger, take=lambda take: lambda self, request, claim, _amount: take(self, request, claim, 0)
    )


def journaled_after_sending():
    """A is written when the provider has answered, not before the request leaves."""
    waiting = {}

    def attempt(original):
        def later(self, *arguments, **more):
            waiting[self.request] = lambda: original(self, *arguments, **more)

        return later

    def answered(original):
        def now(self, *arguments):
            waiting.pop(self.request)()
            return original(self, *arguments)

        return now

    return _patch(Hold, attempt=attempt, sending=lambda _: lambda _self: None, answered=answered)


def usage_added():
    """Reports of usage are running totals, and are added up."""

    def report(original):
        def add(self, reported):
            before = self.reported
            if before is not None and before.legs:
                legs = (replace(reported.legs[0], output=reported.legs[0].output + before.legs[0].output),)
                reported = Reported(legs, reported.final, reported.flags)
            original(self, reported)

        return add

    return _patch(Meter, report=report)


def hold_leaked_on_cancel():
    """Whoever is cancelled settles, and keeps the hold."""

    def leave(original):
        def leak(self, kind, error, traceback):
            give_back = Ledger.give_back
            if isinstance(error, trio.Cancelled):
                Ledger.give_back = lambda _self, _request: None
            try:
                return original(self, kind, error, traceback)
            finally:
                Ledger.give_back = give_back

        return leak

    return _patch(Hold, __exit__=leave)


def settled_twice_after_sync_error():
    """What was not synced when a sync failed is written once more, as something new."""

    def sync_failed(original):
        def again(self, sync, error):
            lost = [record for _, record in self._unsynced if isinstance(record, UsageRecord)]
            original(self, sync, error)
            for record in lost:
                self.append(record)

        return again

    return _patch(Journal, sync_failed=sync_failed)


def carry_forgotten():
    """A new segment begins without what is open."""

    def head(original):
        return lambda self, seq, crc, _carries: original(self, seq, crc, Carries())

    return _patch(Journal, _head=head)


def extension_forgotten():
    """A new segment carries what an attempt began with, not what is set aside for it by now."""
    return _patch(Carried, line=lambda line: lambda self, at_ms: replace(line(self, at_ms), hold=None))


def marked_before_sync():
    """The mark is written, and waiters are told, before the sync has run."""

    async def try_sync(self):
        sync = self.journal.begin_sync()
        self._flying_upto = sync.upto
        done = self.journal.synced(sync)
        try:
            await self.run_in_thread(sync.run)
        except OSError as error:
            self.journal.sync_failed(sync, error)
            return None
        return sync.upto if done else None

    return _patch(Recorder, _try_sync=lambda _: try_sync)


def durable_returns_early():
    """Nobody waits for the platter."""

    async def durable(_self, _seq):
        await trio.lowlevel.checkpoint()

    return _patch(Recorder, durable=lambda _: durable)


def first_byte_not_waited_for():
    """The client's first byte leaves before A is on the platter."""

    async def journaled(_self):
        await trio.lowlevel.checkpoint()

    return _patch(Hold, journaled=lambda _: journaled)


def end_not_waited_for():
    """The client's last byte leaves before S is on the platter."""

    async def settled(_self):
        await trio.lowlevel.checkpoint()

    return _patch(Hold, settled=lambda _: settled)


def recovery_acts_before_sync():
    """A recovery takes what stands in the page cache for durable, and neither syncs it nor writes it again."""

    def past(original):
        def whole(self):
            known = original(self)
            carries = known.carries.copy()
            for record in known.tail:
                carries.note(record)
            return evolve(
                known,
                synced_seq=self.last_seq,
                synced_crc=self._crcs[self.last_seq],
                tail=(),
                carries=carries,
            )

        return whole

    return _patch(recovery, _sync=lambda _: lambda _disk, _segment: None, _seal=lambda _: _no_seal) + _patch(
        Scan, past=past
    )


def _no_seal(_disk, _scanned, _number):
    return iter(())


def budget_not_rebuilt():
    """A recovery forgets which task an attempt belonged to."""

    def forget(original):
        def replay(self, record):
            if isinstance(record, Attempt):
                record = replace(record, budget="", budget_max=None)
            original(self, record)

        return replay

    return _patch(Ledger, replay=forget)


def cap_not_rebuilt():
    """A recovery counts what a key has spent on the day of the start, not of the hold."""

    def forget(original):
        def replay(self, record):
            if isinstance(record, Attempt):
                record = replace(record, key=f"{record.key}?")
            original(self, record)

        return replay

    return _patch(Ledger, replay=forget)


def sent_and_void():
    """An attempt counts as sent when the provider has answered, not when its first byte leaves."""
    return _patch(Hold, sending=lambda _: lambda _self: None)


def charged_beyond_hold():
    """The charge is not capped by the hold."""

    def settlement(original):
        def uncapped(self, opened, made, ending, now_ms, **told):
            record = original(self, opened, made, ending, now_ms, **told)
            purse = self._purse(opened.attempt.wallet)
            charged = min(record.price, purse.balance)
            return replace(record, charged=charged, loss=record.price - charged, legs=purse.burn(charged))

        return uncapped

    return _patch(Ledger, settlement=settlement)


def failed_attempts_charged():
    """The customer pays for attempts that failed over, too."""

    def end(original):
        return lambda self, opened, ending, **_free: original(self, opened, ending, free=False)

    return _patch(Hold, _end=end)


def recovered_at_hold():
    """What a dead process left open is charged in full."""

    def settle(_original):
        def full(self, opened, now_ms):
            from accounting import bill
            from accounting.records import Ending

            made = evolve(bill.recovered(opened.progress), price=opened.hold)
            record = self.settlement(opened, made, Ending.KILLED, now_ms)
            self.apply_settled(record)
            return record

        return full

    return _patch(Ledger, settle_recovered=settle)


def recovery_forgets_settling():
    """A recovery leaves open what a dead process left open."""
    return _patch(recovery, _settle=lambda _: lambda *_arguments: [])


def places_leaked():
    """Places that an attempt took and did not use are not given back."""
    return _patch(Recorder, release=lambda _: lambda _self, _places: None)


def top_up_not_idempotent():
    """A payment that is announced twice is credited twice."""

    def top_up(original):
        async def fresh(self, wallet, amount, kind, source_key, expires_ms=None):
            if self.ledger.grant_by_source(source_key) is not None:
                source_key += " again"
            return await original(self, wallet, amount, kind, source_key, expires_ms)

        return fresh

    return _patch(Books, top_up=top_up)


def muted_slots_leaked():
    """A muted answer keeps its slot when it is over."""

    def release(original):
        return lambda self, state, **_muted: original(self, state, muted=False)

    return _patch(Limits, release=release)


def rolls_without_extending():
    """A rolling hold covers what it does not cover."""
    return _patch(Hold, _roll=lambda _: lambda _self, _opened, _seen, chunk, _cut: chunk)


def slice_lost_after_error():
    """A slice that the index failed to take is not tried again."""

    def load_once(original):
        async def forgetful(self):
            if self.store_error is not None and self._tail:
                self._tail.popleft()
            return await original(self)

        return forgetful

    return _patch(Recorder, _load_once=load_once)


def loaded_before_synced():
    """The index is given what is not on the platter yet."""

    def load_once(original):
        async def eager(self):
            synced, self._synced = self._synced, self.journal.seq
            try:
                return await original(self)
            finally:
                self._synced = max(synced, self.journal.synced_upto)

        return eager

    return _patch(Recorder, _load_once=load_once)


def archived_without_sync():
    """A segment goes into the archive, and its original away, before the archive is on the platter."""

    def put_away(original):
        def careless(disk, old, archived):
            sync, sync_dir = ProcessDisk.fdatasync, ProcessDisk.sync_dir
            ProcessDisk.fdatasync = ProcessDisk.sync_dir = lambda _self, _what: None
            try:
                original(disk, old, archived)
            finally:
                ProcessDisk.fdatasync, ProcessDisk.sync_dir = sync, sync_dir
            disk.sync_dir(old.parent)

        return careless

    from accounting import journal

    return _patch(archive, put_away=put_away) + _patch(journal, put_away=put_away)


def synced_now_and_then():
    """Books that may lose some milliseconds when power fails lose half a minute."""

    def init(original):
        def slow(self):
            original(self)
            if self.sync_seconds:
                self.sync_seconds = 30.0

        return slow

    return _patch(Recorder, __attrs_post_init__=init)


def strict_not_waited_for():
    """With durability `strict`, a request leaves before A is on the platter."""

    async def may_be_sent(_self):
        await trio.lowlevel.checkpoint()

    return _patch(Hold, may_be_sent=lambda _: may_be_sent)


def extension_not_written():
    """A hold that grows says so to memory alone."""

    def put_down(original):
        def forget(self, record, *, reserved=False):
            if isinstance(record, Extension):
                self.ledger.apply(record)
                return self.seq
            return original(self, record, reserved=reserved)

        return forget

    return _patch(Books, put_down=put_down)


def yesterdays_price():
    """A call is priced by the day before."""

    def offers(original):
        def late(self, *arguments):
            today = self.today
            self.today = lambda: today() - timedelta(days=1)
            try:
                return original(self, *arguments)
            finally:
                self.today = today

        return late

    return _patch(Router, offers=offers)


def tried_on_for_nobody():
    """Another account is tried for a client that has left."""

    def has_left(self, failed):
        if failed is not None:
            self._hold.attempt_failed(failed.ending, self._status)
        return False

    return _patch(Attempts, _has_left=lambda _: has_left)


def revoked_keys_work():
    """A key that was revoked is refused until the next start."""

    def replay(original):
        def forgive(self, record):
            if getattr(record, "revoked", False):
                record = replace(record, revoked=False)
            original(self, record)

        return forgive

    return _patch(Ledger, replay=replay)


BUGS: Final[dict[str, Callable]] = {
    bug.__name__: bug
    for bug in (
        no_hold_taken,
        journaled_after_sending,
        usage_added,
        hold_leaked_on_cancel,
        settled_twice_after_sync_error,
        carry_forgotten,
        extension_forgotten,
        marked_before_sync,
        durable_returns_early,
        first_byte_not_waited_for,
        end_not_waited_for,
        recovery_acts_before_sync,
        budget_not_rebuilt,
        cap_not_rebuilt,
        sent_and_void,
        charged_beyond_hold,
        failed_attempts_charged,
        recovered_at_hold,
        recovery_forgets_settling,
        places_leaked,
        top_up_not_idempotent,
        muted_slots_leaked,
        rolls_without_extending,
        slice_lost_after_error,
        loaded_before_synced,
        archived_without_sync,
        synced_now_and_then,
        strict_not_waited_for,
        extension_not_written,
        yesterdays_price,
        tried_on_for_nobody,
        revoked_keys_work,
    )
}


@contextmanager
def planted(name) -> Iterator[None]:
    """Production code with this bug in it."""
    undo = []
    try:
        for owner, attribute, change in BUGS[name]():
            original = getattr(owner, attribute)
            undo.append((owner, attribute, original))
            setattr(owner, attribute, change(original))
        yield
    finally:
        for owner, attribute, original in reversed(undo):
            setattr(owner, attribute, original)


def seeds_until_found(name, seeds, run) -> tuple[int, str] | None:
    """The first of these seeds whose world notices the bug, and what it says."""
    with planted(name):
        for seed in seeds:
            outcome = run(seed)
            if outcome.wrong:
                return seed, outcome.wrong[0]
    return None
