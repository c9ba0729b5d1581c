"""What the books say: one frozen type per kind of journal line, and what callers are shown of them.

Every line is `{"c": crc, "s": seq, "t": kind, …fields}`; `accounting/journal.py` owns `c`, `s` and `t`, this file
the fields. Amounts are picos, times are wall clock in milliseconds (stamped, never decreasing, never used for
order: order is by seq). A type here never loses or renames a field, and a new field has a default, else old
journals could not be read.

These are msgspec's structs, not attrs classes as elsewhere in this house: one is made, encoded and, after a
crash, decoded again for every request, which takes a fifth of the time so.
"""

from enum import StrEnum
from typing import Final, Literal

import msgspec

from pricing.money import Pico
from pricing.usage import Source, Usage


class Spender(msgspec.Struct, frozen=True, gc=False):
    """Whose money and by which key."""

    wallet: str
    key: str


class Ending(StrEnum):
    """How an answer (or an attempt at one) ended; what `accounting/bill.py` decides by."""

    COMPLETE = "complete"
    """The provider's terminal event was seen, or a whole body."""
    NEVER_SENT = "never_sent"
    """Ended before a byte of the request left for the provider."""
    REFUSED = "refused"
    """The provider answered with an error before generating anything."""
    UNREACHED = "unreached"
    """No answer: connect error, or connection lost before a status line."""
    TIMED_OUT = "timed_out"
    """Our deadline for the first content passed."""
    BROKEN = "broken"
    """The provider's answer broke off, or reported an error in the middle."""
    STALLED = "stalled"
    """Our idle or total deadline passed in the middle of an answer, muted or not."""
    HUNG_UP = "hung_up"
    """The client left and we closed the provider's connection, which stops the bill there."""
    EXHAUSTED = "exhausted"
    """The credit did not cover what came next: we ended the answer as "length" and closed the connection."""
    SHUTDOWN = "shutdown"
    """We were told to stop and the drain time was over."""
    INTERNAL = "internal"
    """Our own fault."""
    KILLED = "killed"
    """The process died; found open by recovery."""


class GrantKind(StrEnum):
    """Paid credit is a liability, promotional credit an expense; promotional burns first."""

    PAID = "paid"
    PROMO = "promo"


class Wallet(msgspec.Struct, frozen=True, gc=False):
    """W: a wallet was made, or its frozen state changed. The newest line for an id holds."""

    wallet: str
    name: str
    currency: str
    at_ms: int
    frozen: bool = False


CapWindow = Literal["lifetime", "day", "week", "month"]
"""Calendar windows in UTC; a week begins on Monday."""


class Key(msgspec.Struct, frozen=True, gc=False):
    """K: a key was made, limited or revoked. The newest line for an id holds, whole.

    Attributes:
        digest: SHA-256 of the key in hex; the key itself is shown once and kept nowhere.
        hint: its first and last few characters, to recognise it by.
        models: patterns of canonical model ids, empty for all.
        cap: most that its requests may spend in one window, or `None`.
        cap_window: how long such a window is; a request counts in the one in which its hold was taken.
        clamp: a bound on output that the credit cannot bear is lowered, not refused.
    """

    key: str
    wallet: str
    digest: str
    hint: str
    at_ms: int
    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    models: tuple[str, ...] = ()
    markup_ppm: int | None = None
    expires_ms: int | None = None
    revoked: bool = False
    cap: Pico | None = None
    cap_window: CapWindow = "lifetime"
    clamp: bool = False


class Grant(msgspec.Struct, frozen=True, gc=False):
    """G: money came in. `source_key` is unique over all time: the same payment twice is one grant."""

    grant: str
    wallet: str
    amount: Pico
    kind: GrantKind
    source_key: str
    at_ms: int
    expires_ms: int | None = None


class Account(StrEnum):
    """The general ledger's accounts."""

    WALLET_PAID = "wallet_paid"
    WALLET_PROMO = "wallet_promo"
    PSP_CLEARING = "psp_clearing"
    PROMO_EXPENSE = "promo_expense"
    REVENUE = "revenue"
    PARTNER_PAYABLE = "partner_payable"
    UPSTREAM_COST = "upstream_cost"
    UPSTREAM_PAYABLE = "upstream_payable"
    BREAKAGE = "breakage"
    OPERATOR_LOSS = "operator_loss"
    CHARGEBACK = "chargeback"
    ADJUSTMENT = "adjustment"


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """T: an amount moved from one account to another; single debit, single credit, never changed.

    `grant` names the grant that shrinks (expiry); `wallet` whose accounts are meant where they are a wallet's.
    """

    transfer: str
    wallet: str
    debit: Account
    credit: Account
    amount: Pico
    currency: str
    kind: str
    ref: str
    at_ms: int
    grant: str | None = None


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """A: a request is about to be sent to a provider; written before its first byte.

    Attributes:
        number: 1 for the first attempt of a request, and so on.
        hold: what is set aside for the request as it begins; an `Extension` changes it.
        kind: `call`, or `job` for work that outlives a connection.
        hold_ms: when the hold of the request was taken, which decides the window of a cap; 0: `at_ms`.
        budget: the task that it belongs to, or `""`; its scope is the wallet.
        budget_max: what that task may spend, as this request had it.
    """

    request: str
    number: int
    wallet: str
    key: str
    hold: Pico
    model: str
    provider: str
    account: str
    dialect: str
    stream: bool
    price_version: str
    markup_ppm: int
    at_ms: int
    kind: Literal["call", "job"] = "call"
    hold_ms: int = 0
    budget: str = ""
    budget_max: Pico | None = None


class Extension(msgspec.Struct, frozen=True, gc=False):
    """X: from here on so much is set aside for the request, which may be more than before, or less."""

    request: str
    number: int
    hold: Pico
    at_ms: int


class Progress(msgspec.Struct, frozen=True, gc=False):
    """P: the cost so far of an answer that is under way, so that a killed process can settle it.

    `usage` is what the cost is the price of; `source` whether the provider said so or we counted.
    """

    request: str
    number: int
    cost: Pico
    list_cost: Pico
    usage: Usage
    source: Source
    relayed: bool
    at_ms: int


class Job(msgspec.Struct, frozen=True, gc=False):
    """J: a provider has taken work on that outlives its connection; what a watcher needs to take it up again.

    Attributes:
        job: the provider's id of it.
        usage, cost, list_cost: what it uses and costs if it finishes; known beforehand.
    """

    request: str
    number: int
    job: str
    usage: Usage
    cost: Pico
    list_cost: Pico
    at_ms: int


class Leg(msgspec.Struct, frozen=True, gc=False):
    """Which grant paid how much of a charge."""

    grant: str
    amount: Pico


class UsageRecord(msgspec.Struct, frozen=True, gc=False):
    """S: an attempt was settled; self-contained. One per attempt, the row of `usage`.

    Attributes:
        outcome: how it ended. For an attempt that failed over: with `charged` zero.
        status: the HTTP status that the provider gave, or 0 where there was none.
        usage: the sum of all legs of the answer, for show.
        usage_legs: the legs that were priced, where there is more than one.
        charged: what the wallet paid: never above `held`.
        price: what the answer cost the customer before the hold capped it (`charged = min(price, held)`).
        cost: what it costs the operator at list price.
        loss: `price − charged`: a provider's surprise beyond the hold, the operator's.
        legs: which grants paid; their sum is `charged`.
        held: what was set aside for the request at its end.
        flags: what was odd, for the operator.
        budget: the task that it belonged to, or `""`.
        started_ms, first_byte_ms, ended_ms: wall clock; `first_byte_ms` is `None` where none came.
    """

    request: str
    number: int
    wallet: str
    key: str
    model: str
    provider: str
    account: str
    dialect: str
    stream: bool
    outcome: Ending
    status: int
    source: Source
    usage: Usage
    price_version: str
    markup_ppm: int
    held: Pico
    price: Pico
    charged: Pico
    cost: Pico
    loss: Pico
    currency: str
    started_ms: int
    ended_ms: int
    first_byte_ms: int | None = None
    usage_legs: tuple[Usage, ...] = ()
    legs: tuple[Leg, ...] = ()
    flags: tuple[str, ...] = ()
    upstream_id: str | None = None
    budget: str = ""


class Void(msgspec.Struct, frozen=True, gc=False):
    """V: the attempt was never sent; its hold is released and nothing is charged."""

    request: str
    number: int
    at_ms: int
    because: str = ""


class Mark(msgspec.Struct, frozen=True, gc=False):
    """M: everything up to this seq is on the platter."""

    synced_upto: int
    at_ms: int


class Carry(msgspec.Struct, frozen=True, gc=False):
    """C: opens a segment; an attempt that is still open, so that older segments may leave.

    `hold` is what is set aside for it by now; `None`: what it began with.
    """

    attempt: Attempt
    progress: Progress | None
    at_ms: int
    hold: Pico | None = None
    job: Job | None = None


class CarryHead(msgspec.Struct, frozen=True, gc=False):
    """C0: the first line of a segment: the last seq of the one before, and how many carries follow.

    `last_crc` is the CRC of the line `last_seq`, in hex: the chain from segment to segment.
    """

    last_seq: int
    open_attempts: int
    at_ms: int
    last_crc: str = ""


Record = (
    Wallet
    | Key
    | Grant
    | Transfer
    | Attempt
    | Progress
    | Extension
    | Job
    | UsageRecord
    | Void
    | Mark
    | Carry
    | CarryHead
)

LETTERS: Final[dict[type, str]] = {
    Wallet: "W",
    Key: "K",
    Grant: "G",
    Transfer: "T",
    Attempt: "A",
    Progress: "P",
    Extension: "X",
    Job: "J",
    UsageRecord: "S",
    Void: "V",
    Mark: "M",
    Carry: "C",
    CarryHead: "C0",
}
"""The journal's letter for each kind of line."""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What the caller is told about a settled request, and about the wallet after it.

    Attributes:
        record: the attempt that answered (the last one), or `None` where nothing was sent or held.
        balance, held: of the wallet, after settlement.
    """

    request: str
    record: UsageRecord | None
    balance: Pico
    held: Pico
    currency: str = "USD"
