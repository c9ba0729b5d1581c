"""What the tests of the money rooms share: a journal that can fail, clocks that are turned by hand."""

from collections.abc import Callable

from attrs import define, field

from accounting.bill import Terms
from accounting.books import Books
from accounting.claims import Claim
from accounting.ledger import Ledger
from accounting.ports import Overloaded
from accounting.records import (
    LETTERS,
    Attempt,
    Extension,
    Grant,
    GrantKind,
    Job,
    Progress,
    Record,
    Spender,
    Transfer,
    UsageRecord,
    Void,
    Wallet,
)
from pricing.price import Bounds, Price, Rates, Tier

SPENDER = Spender("w1", "k1")
CLAIM = Claim(SPENDER)
RATES = Rates(input=3, cache_read=1, cache_write_5m=4, cache_write_1h=6, output=15)
PRICE = Price("lab/model", "p_0123456789abcdef", (Tier(0, RATES),))


@define(eq=False)
class FakeWriter:
    """A journal of a list; it refuses, fails or runs out of room as it is told."""

    records: list[Record] = field(factory=list)
    reserved: int = 0
    room: int = 10**9
    fails: Callable[[Record], BaseException | None] = field(default=lambda _record: None)
    synced: list[int] = field(factory=list)
    durable_fails: BaseException | None = None

    def reserve(self, places: int) -> None:
        if self.reserved + places > self.room:
            raise Overloaded("no room")
        self.reserved += places

    def release(self, places: int) -> None:
        assert self.reserved >= places
        self.reserved -= places

    def write(self, record: Record, *, reserved: bool = False) -> int:
        error = self.fails(record)
        if error is not None:
            raise error
        if reserved:
            assert self.reserved > 0, "a reserved place is used that nobody reserved"
            self.reserved -= 1
        elif self.reserved + 1 > self.room:
            raise Overloaded("no room")
        self.records.append(record)
        return len(self.records)

    async def durable(self, seq: int) -> None:
        if self.durable_fails is not None:
            raise self.durable_fails
        self.synced.append(seq)

    def kinds(self) -> str:
        shown = (Attempt, Extension, Job, Progress, Transfer, UsageRecord, Void)
        return "".join(LETTERS[type(record)] for record in self.records if isinstance(record, shown))


def no_cut(_chunk: bytes, _content_bytes: int, limit: str) -> bytes:
    """For answers that nothing is to be cut from."""
    raise AssertionError(f"the answer is cut off: {limit}")


@define(eq=False)
class FakeClient:
    client_gone: bool = False


@define(eq=False)
class World:
    """Books over fakes; `ms` and `seconds` are what the clocks say."""

    writer: FakeWriter = field(factory=FakeWriter)
    ms: int = 1_000
    seconds: float = 0.0
    ids: int = 0
    books: Books = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.books = Books(Ledger(), self.writer, lambda: self.ms, lambda: self.seconds, self.new_id)

    def new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}_{self.ids}"

    @property
    def ledger(self) -> Ledger:
        return self.books.ledger

    def fund(
        self, amount: int, wallet: str = "w1", kind: GrantKind = GrantKind.PAID, **more: object
    ) -> Grant:
        """Give a wallet credit, making it first where it does not exist; written like everything else."""
        if wallet not in {known.wallet for known in self.ledger.wallets()}:
            self.books.put_down(Wallet(wallet, "", "USD", self.ms))
        name = self.new_id("grant")
        grant = Grant(name, wallet, amount, kind, f"test:{name}", self.ms, **more)  # type: ignore[arg-type]
        self.ledger.check_grant(grant)
        self.books.put_down(grant)
        return grant

    def replayed(self) -> Ledger:
        """A ledger that knows only what was written."""
        ledger = Ledger()
        for record in self.writer.records:
            ledger.replay(record)
        return ledger


def terms(**changes: object) -> Terms:
    """Terms of a visible stream on a provider that stops billing, unless told otherwise."""
    usual: dict[str, object] = {
        "model": "lab/model",
        "provider": "lab",
        "account": "main",
        "dialect": "openai_chat",
        "stream": True,
        "price": PRICE,
        "stops_billing": "yes",
        "visible": True,
        "bounds": Bounds(input=1000, output=500),
        "text_bytes": 900,
        "dense_bytes_per_token": 3,
        "tokens_per_second_max": 100,
    }
    return Terms(**(usual | changes))  # type: ignore[arg-type]
