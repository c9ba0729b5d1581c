"""Listens to everything that is written to the journal, and keeps books of its own from that.

It reads lines by itself, knows nothing of the ledger, and checks what each line may say at the moment when it is
written: no wallet is overdrawn, no attempt is settled twice or beyond its hold, marks tell the truth, and the head
of a segment carries what is open. After a crash it is told how far the journal still reaches.
"""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
from attrs import define, field

NOTED: Final = ("C0", "C", "M")
"""Lines about the journal itself; they have no seq of their own."""


class Said(msgspec.Struct, gc=False):
    """The fields of any line that matter here."""

    s: int
    t: str
    request: str = ""
    number: int = 0
    wallet: str = ""
    key: str = ""
    hold: int | None = None
    amount: int = 0
    charged: int = 0
    price: int = 0
    held: int = 0
    loss: int = 0
    cost: int = 0
    outcome: str = ""
    source: str = ""
    status: int = 0
    usage: dict[str, int] | None = None
    price_version: str = ""
    markup_ppm: int | None = None
    model: str = ""
    provider: str = ""
    account: str = ""
    flags: tuple[str, ...] = ()
    upstream_id: str | None = None
    grant: str | None = None
    source_key: str = ""
    digest: str = ""
    revoked: bool = False
    frozen: bool = False
    synced_upto: int = 0
    last_seq: int = 0
    open_attempts: int = 0
    attempt: msgspec.Raw = msgspec.Raw(b"")
    progress: msgspec.Raw = msgspec.Raw(b"")
    job: msgspec.Raw = msgspec.Raw(b"")
    budget: str = ""
    budget_max: int | None = None
    cap: int | None = None
    cap_window: str = ""
    relayed: bool = False
    started_ms: int = 0
    ended_ms: int = 0
    at_ms: int = 0
    hold_ms: int = 0

    def __repr__(self):
        told = msgspec.structs.asdict(self).items()
        return " ".join(f"{name}={value}" for name, value in told if value and name not in CARRIED)


CARRIED: Final = ("attempt", "progress", "job")

_decoder: Final = msgspec.json.Decoder(Said)


@define(eq=False)
class Attempt:
    """What the journal says of one attempt."""

    said: Said
    body: bytes
    hold: int
    progress: Said | None = None
    progress_body: bytes = b"null"
    job_body: bytes = b"null"
    end: Said | None = None


@define(eq=False)
class Purse:
    granted: int = 0
    charged: int = 0
    expired: int = 0
    held: int = 0

    @property
    def left(self):
        return self.granted - self.charged - self.expired


def day_of(at_ms):
    """The day of a time, as a date."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date()


def same_window(window, one, other):
    """Whether two days lie in the same window of a cap."""
    match window:
        case "day":
            return one == other
        case "week":
            return one.isocalendar()[:2] == other.isocalendar()[:2]
        case "month":
            return (one.year, one.month) == (other.year, other.month)
    return True


@define(eq=False)
class Account:
    """Books made from lines."""

    purses: dict = field(factory=dict)
    attempts: dict = field(factory=dict)
    last: dict = field(factory=dict)
    """The newest attempt of each request."""
    open: dict = field(factory=dict)
    grants: dict = field(factory=dict)
    keys: dict = field(factory=dict)
    wallets: dict = field(factory=dict)
    tasks: dict = field(factory=dict)
    """Of each task (wallet, id): charged, held, and the largest maximum that it was named with."""
    days: dict = field(factory=dict)
    """Of each key and day: charged and held."""

    def take(self, said: Said, body: bytes) -> str | None:
        """Take in one record; says what is wrong with it, if anything."""
        match said.t:
            case "A":
                return self._attempt(said, body)
            case "S" | "V":
                return self._end(said)
            case "P" | "X" | "J":
                return self._news(said, body)
            case _:
                return self._operators(said)

    def _operators(self, said):
        match said.t:
            case "G":
                if said.source_key in self.grants:
                    return f"{said.source_key} is granted twice"
                self.grants[said.source_key] = said
                self.purses[said.wallet].granted += said.amount
            case "T":
                self.purses[said.wallet].expired += said.amount
            case "W":
                self.purses.setdefault(said.wallet, Purse())
                self.wallets[said.wallet] = said
            case "K":
                self.keys[said.key] = said
        return self._check(said.wallet)

    def _news(self, said, body):
        opened = self.open.get(said.request)
        if opened is None or opened.said.number != said.number:
            return "nothing is open there"
        if said.t == "P":
            opened.progress, opened.progress_body = said, body
        elif said.t == "J":
            opened.job_body = body
        else:
            grown = said.hold > opened.hold
            self._move(opened.said, 0, said.hold - opened.hold)
            opened.hold = said.hold
            return self._check(opened.said.wallet) or (self._check_limits(opened.said) if grown else None)
        return None

    def _attempt(self, said, body):
        if said.request in self.open:
            return "another attempt of the request is open"
        if (said.request, said.number) in self.attempts:
            return "there was such an attempt"
        opened = Attempt(said, body, said.hold)
        self.attempts[said.request, said.number] = self.open[said.request] = self.last[said.request] = opened
        if said.budget:
            task = self.tasks.setdefault((said.wallet, said.budget), [0, 0, 0])
            task[2] = max(task[2], said.budget_max or 0)
        self._move(said, 0, said.hold)
        return self._check(said.wallet) or self._check_limits(said)

    def _move(self, said, charged, held):
        """What an attempt has cost, or holds, changes."""
        purse = self.purses[said.wallet]
        purse.charged += charged
        purse.held += held
        day = self.days.setdefault((said.key, day_of(said.hold_ms or said.at_ms)), [0, 0])
        day[0] += charged
        day[1] += held
        if said.budget:
            task = self.tasks[said.wallet, said.budget]
            task[0] += charged
            task[1] += held

    def within_cap(self, key, window, day):
        """What a key has spent and holds in the window of a day."""
        inside = [sums for (of, at), sums in self.days.items() if of == key and same_window(window, at, day)]
        return sum(sums[0] for sums in inside), sum(sums[1] for sums in inside)

    def _check_limits(self, said):
        key = self.keys.get(said.key)
        if key is not None and key.cap is not None:
            spent, held = self.within_cap(said.key, key.cap_window, day_of(said.hold_ms or said.at_ms))
            if spent + held > key.cap:
                return f"key {said.key} has spent {spent} and holds {held}, of a cap of {key.cap}"
        if said.budget:
            spent, held, most = self.tasks[said.wallet, said.budget]
            if spent + held > most:
                return f"task {said.budget} has spent {spent} and holds {held}, of {most}"
        return None

    def _end(self, said):
        opened = self.open.get(said.request)
        if opened is None or opened.said.number != said.number:
            return "it is not open, or ended before"
        del self.open[said.request]
        opened.end = said
        self._move(opened.said, said.charged, -opened.hold)
        if said.t == "S":
            if said.wallet != opened.said.wallet:
                return "it is charged to another wallet"
            if said.held != opened.hold:
                return f"it says that {said.held} was held, and it was {opened.hold}"
            if not 0 <= said.charged <= opened.hold:
                return f"{said.charged} is charged of a hold of {opened.hold}"
            if said.price - said.charged != said.loss or said.loss < 0:
                return f"price {said.price}, charged {said.charged}, loss {said.loss}"
        return self._check(opened.said.wallet)

    def _check(self, wallet):
        purse = self.purses[wallet]
        if purse.left < purse.held:
            return f"wallet {wallet} is overdrawn: {purse.left} left, {purse.held} held"
        return None


@define(eq=False)
class Place:
    """Where a line was written."""

    path: object
    inode: object
    start: int
    data: bytes


@define(eq=False)
class Auditor:
    """See the module.

    Attributes:
        fail: told what is wrong.
        named: says whether a file's name is on the platter.
        lines: (letter, body) of every record, in order of seq.
        account: books made from them.
        now: the time.
        volatile: a power loss has happened, and lines above `promised` may be gone.
        lost_after: those that are older than this may not.
    """

    fail: Callable[[str], None]
    named: Callable[[object, object], bool]
    now: Callable[[], float]
    lines: list = field(factory=list)
    account: Account = field(factory=Account)
    written_at: list = field(factory=list)
    volatile: bool = False
    lost_after: float = -math.inf
    promised: int = 0
    """The highest seq that was marked, or that anybody was told of."""
    heads: int = 0
    records: int = 0
    _places: dict = field(factory=dict)
    """Where each line stands that is not known to be on the platter."""
    _left_out: dict = field(factory=dict)
    """What the head of a file has still to carry, until its first record."""
    _pending: dict = field(factory=dict)
    """Bytes of a line that is not whole yet, by file."""

    def heard(self, path, inode, data, offset):
        """A write went well."""
        if path.parent.name != "journal" or data[:1] == b"\0":
            return
        try:
            self._hear(path, inode, data, offset)
        except Exception as error:  # noqa: BLE001 - whoever writes must not take it for a fault of the disk
            self.fail(f"{path.name}, byte {offset}: {error!r} at {data!r}")

    def _hear(self, path, inode, data, offset):
        started, before = self._pending.pop(inode, (offset, b""))
        if before and started + len(before) == offset:
            data, offset = before + data, started
        end = data.rfind(b"\n") + 1
        if end < len(data):
            self._pending[inode] = (offset + end, bytes(data[end:]))
        for text in data[:end].splitlines(keepends=True):
            said = _decoder.decode(text)
            body = b"{" + text[text.index(b',"t":"') + 8 + len(said.t) : -1]
            if said.t == "C0":
                self._head(said, path, inode)
            elif said.t == "C":
                self._carry(said, inode)
            elif said.t == "M":
                self._mark(said)
            else:
                self._record(said, body, Place(path, inode, offset, text))
            offset += len(text)

    # -- records ---------------------------------------------------------------------------------------

    def _record(self, said, body, place):
        seq, lines = said.s, self.lines
        left = self._left_out.pop(place.inode, None)
        if left:
            self.fail(f"the head of {place.path.name} leaves out {sorted(left)}")
        self.records += 1
        self._places.setdefault(seq, []).append(place)
        if seq <= len(lines):
            if lines[seq - 1] == (said.t, body):
                return
            if not self.volatile or seq <= self.promised:
                self.fail(f"line {seq} is written again, with another content: {place.data!r}")
                return
            self.cut(seq - 1)
        if seq != len(lines) + 1:
            self.fail(f"line {seq} follows on line {len(lines)}")
            return
        lines.append((said.t, body))
        self.written_at.append(self.now())
        wrong = self.account.take(said, body)
        if wrong is not None:
            self.fail(f"line {seq}: {wrong}: {place.data.decode().strip()}")

    def cut(self, upto):
        """The journal ends here after all: a power loss took the rest."""
        if upto < self.promised:
            self.fail(f"lines {upto + 1} to {self.promised} were promised, and are gone")
        if upto < len(self.lines) and not self.volatile:
            self.fail(f"lines {upto + 1} to {len(self.lines)} are gone without a power loss")
        if upto < len(self.lines) and self.written_at[upto] < self.lost_after:
            age = self.now() - self.written_at[upto]
            self.fail(f"line {upto + 1} was {age:.2f} s old, and was lost with power")
        del self.lines[upto:], self.written_at[upto:]
        self._places = {seq: places for seq, places in self._places.items() if seq <= upto}
        self.account = self.as_of(upto)

    def as_of(self, upto) -> Account:
        """The books as they were at a line."""
        account = Account()
        for seq, (letter, body) in enumerate(self.lines[:upto], 1):
            said = _decoder.decode(b'{"s":%d,"t":"%s",%s' % (seq, letter.encode(), body[1:]))
            account.take(said, body)
        return account

    def interrupted(self):
        """The process that wrote is gone; what it had begun to write is torn."""
        self._pending.clear()
        self._left_out.clear()

    def settled_down(self, upto):
        """A recovery is over, and says how far the journal reaches; what is there is on the platter."""
        if upto > len(self.lines):
            self.fail(f"the journal is said to reach to line {upto}, and ends after {len(self.lines)}")
        elif upto < len(self.lines):
            self.cut(upto)
        self.volatile, self.lost_after = False, -math.inf

    # -- promises --------------------------------------------------------------------------------------

    def on_platter(self, seq) -> bool:
        """Whether a power loss now would leave this line."""
        places = self._places.get(seq)
        if places is None:
            return True
        for place in places:
            inode, end = place.inode, place.start + len(place.data)
            if inode.platter[place.start : end] == place.data and self.named(place.path, inode):
                return True
        return False

    def promise(self, seq, to_whom):
        """Somebody was told something that rests on this line: it must be on the platter, with all before."""
        if seq > len(self.lines):
            self.fail(f"{to_whom} rests on line {seq}, which was never written")
            return
        for at in range(self.promised + 1, seq + 1):
            if not self.on_platter(at):
                self.fail(f"{to_whom} rests on line {seq}, and line {at} is not on the platter")
                return
        self._keep(seq)

    def _mark(self, said):
        for at in range(self.promised + 1, min(said.synced_upto, len(self.lines)) + 1):
            if not self.on_platter(at):
                self.fail(f"a mark says that {said.synced_upto} is on the platter, and line {at} is not")
                return
        self._keep(said.synced_upto)

    def _keep(self, seq):
        for at in range(self.promised + 1, seq + 1):
            self._places.pop(at, None)
        self.promised = max(self.promised, seq)

    # -- heads -----------------------------------------------------------------------------------------

    def _head(self, said, path, inode):
        self.heads += 1
        account = self.account if said.last_seq == len(self.lines) else self.as_of(said.last_seq)
        self._left_out[inode] = dict(account.open)
        if said.open_attempts != len(account.open):
            self.fail(
                f"the head of {path.name}, at line {said.last_seq}, says that {said.open_attempts} attempts are "
                f"open, and {len(account.open)} are: {sorted(account.open)}"
            )

    def _carry(self, said, inode):
        first = msgspec.json.decode(said.attempt, type=dict)
        opened = self._left_out.get(inode, {}).pop(first["request"], None)
        if opened is None:
            self.fail(f"a head carries {first['request']}, which is not open there")
            return
        hold = first["hold"] if said.hold is None else said.hold
        if bytes(said.attempt) != opened.body:
            self.fail(f"a head carries {first['request']} otherwise than it began")
        elif bytes(said.progress) != opened.progress_body:
            self.fail(f"a head carries {first['request']} with another progress")
        elif hold != opened.hold:
            self.fail(f"a head carries {first['request']} with a hold of {hold}, and it is {opened.hold}")
        elif (bytes(said.job) or b"null") != opened.job_body:
            self.fail(f"a head carries {first['request']} with another job")
