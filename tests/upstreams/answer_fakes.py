"""Scripted providers, clients and replies around the real `Upstreams` and the real books."""

import math

import msgspec
import pytest
import trio
import trio.testing
from attrs import define, field, frozen

from accounting.books import Books
from accounting.claims import Claim
from accounting.ledger import Ledger
from accounting.ports import Overloaded
from accounting.records import Attempt, Ending, Grant, GrantKind, Spender, UsageRecord, Void, Wallet
from pricing.price import Bounds, Rates
from proxy.config import Account, Config, Provider
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.pool import Pool
from proxy.types import Ask, Measures, ProviderError, Secret
from proxy.upstreams.answer import Upstreams
from tests.accounting.ledger_fakes import no_cut
from tests.fakes import sends_in_time
from tests.offers import model, offer
from tests.values import evolve

OFFER = offer(
    model(
        "lab/model",
        rates=Rates(input=1, output=2),
        context_window=10_000,
        output_max=1_000,
        reasoning="off",
        message_tokens=4,
        dense_bytes_per_token=2,
        tokens_per_second_max=100,
    ),
    bounds=Bounds(input=100, output=100),
    stops_billing="yes",
    visible=True,
)
HIDDEN = evolve(OFFER, visible=False)
STREAM = Ask("openai_chat", "model", stream=True, measures=Measures(text_bytes=10), fields={})
WHOLE = evolve(STREAM, stream=False)
CONFIG = Config(
    provider=(
        Provider(
            name="p",
            kind="openai",
            base_url="https://inner.example/v1",
            account=tuple(Account(name, api_key=Secret(f"key-of-{name}")) for name in "abcd"),
        ),
    ),
)


@frozen
class Wait:
    """The provider is silent for so long."""

    seconds: float


SILENCE = Wait(math.inf)


@frozen
class Until:
    """A wait that has begun."""

    time: float


@define(eq=False)
class FakeExchange:
    """Plays a list of bytes, waits and exceptions."""

    status: int
    headers: dict
    script: list
    closed: bool = False
    there: list = field(factory=list)
    """What has arrived already, or what reading it raises."""
    hands_on: bool = False
    """What arrives while somebody waits is handed on to him, as over a real connection."""

    def forget_headers(self):
        self.headers = None

    def ready(self):
        if not self.there:
            return None
        if isinstance(step := self.there.pop(0), bytes):
            return step
        raise step

    async def read(self, until=math.inf, take=None):
        with trio.CancelScope(deadline=until):
            return await self._read(take)
        self.closed = False  # time was up; that alone ends nothing
        return None

    async def _read(self, take):
        assert not self.closed
        try:
            await trio.lowlevel.checkpoint()
            while self.script:
                step = self.script.pop(0)
                if isinstance(step, Wait):
                    self.script.insert(0, Until(trio.current_time() + step.seconds))
                elif isinstance(step, Until):
                    self.script.insert(0, step)
                    await trio.sleep_until(step.time)
                    self.script.pop(0)
                elif isinstance(step, bytes):
                    if take is None or not self.hands_on:
                        return step
                    if not take(step):
                        return None
                else:
                    raise step
        except BaseException:
            self.closed = True
            raise
        self.closed = True
        return b""

    async def aclose(self):
        self.closed = True


def ok(*script, **headers):
    return FakeExchange(200, {"content-type": "text/event-stream", **headers}, list(script))


def refuse(status, body=b'{"message": "no"}', **headers):
    return FakeExchange(status, {name.replace("_", "-"): value for name, value in headers.items()}, [body])


@define(eq=False)
class FakeClient:
    """Answers each call with the next step of its script: an exchange, an exception, or a wait before either.

    An exception raised before the first byte stands in a tuple: `(error,)`.
    """

    script: list
    calls: list = field(factory=list)
    exchanges: list = field(factory=list)
    fresh: list = field(factory=list)

    @sends_in_time
    async def send(self, call, sending):
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        step = self.script.pop(0)
        if isinstance(step, tuple):
            raise step[0]
        await trio.lowlevel.checkpoint_if_cancelled()
        sending()
        await trio.lowlevel.checkpoint()
        if isinstance(step, Wait):
            await trio.sleep(step.seconds)
            step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        self.exchanges.append(step)
        return step

    @property
    def open(self):
        return [exchange for exchange in self.exchanges if not exchange.closed]


@define(eq=False)
class FakeReply:
    """A client that may leave; does to its request what the reply's mute switch says."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    client_gone: bool = False
    muted: bool = False
    switches: list = field(factory=list)

    def mute_when_gone(self, mute):
        self.muted = mute
        self.switches.append(mute)
        if self.client_gone and not mute:
            self.scope.cancel()

    def hang_up(self):
        self.client_gone = True
        if not self.muted:
            self.scope.cancel()


@define(eq=False)
class FakeWriter:
    records: list = field(factory=list)
    full: bool = False

    def reserve(self, places):  # noqa: ARG002 - the writer's signature
        if self.full:
            raise Overloaded("full", retry_after_seconds=7)

    def release(self, places):
        pass

    def write(self, record, *, reserved=False):  # noqa: ARG002 - the writer's signature
        self.records.append(record)
        return len(self.records)

    async def durable(self, seq):  # noqa: ARG002 - the writer's signature
        await trio.lowlevel.checkpoint()


class FakePrelude:
    def feed(self, chunk):
        if b"overloaded" in chunk:
            raise UpstreamFailed(
                Kind.UPSTREAM_ERROR, "org-12345678 is overloaded at inner.example", try_another=True
            )
        return b"content" in chunk


class FakeDialect:
    name = "openai_chat"

    def write_request(self, ask, offer):  # noqa: ARG002 - a dialect's signature
        return offer.wire_name.encode()

    def prelude(self):
        return FakePrelude()

    def read_error(self, status, body):
        try:
            return ProviderError(status=status, **msgspec.json.decode(body))
        except (msgspec.DecodeError, TypeError):
            return ProviderError(status=status, message="")


@define(eq=False)
class World:
    """An Upstreams with a scripted provider and real books of one wallet."""

    script: list
    config: Config = CONFIG
    pool: Pool = field(factory=Pool)
    reply: FakeReply = field(factory=FakeReply)
    writer: FakeWriter = field(factory=FakeWriter)
    log: list = field(factory=list)
    client: FakeClient = field(init=False)
    upstreams: Upstreams = field(init=False)
    books: Books = field(init=False)
    hold: object = field(init=False, default=None)

    def __attrs_post_init__(self):
        self.client = FakeClient(list(self.script))
        self.upstreams = Upstreams(
            config=self.config,
            client=self.client,
            pool=self.pool,
            dialects={"openai_chat": FakeDialect()},
            base_urls={"p": "https://inner.example/v1"},
            log=lambda level, event, **fields: self.log.append((level, event, fields)),
        )
        ledger = Ledger()
        ledger.replay(Wallet("w", "w", "USD", 0))
        ledger.replay(Grant("g", "w", 10**6, GrantKind.PAID, "s", 0))
        self.books = Books(ledger, self.writer, lambda: 0, trio.current_time, lambda prefix: prefix)

    def answer(self, ask=STREAM, offers=(OFFER,)):
        self.hold = self.books.hold("r", Claim(Spender("w", "k")), 1000, self.reply)
        return self.upstreams.answer(ask, tuple(offers), self.hold, self.reply)

    async def run(self, ask=STREAM, offers=(OFFER,), each=lambda _chunk: None):
        """The middle of `serve`: gives all bytes that were relayed."""
        relayed = b""
        with self.reply.scope:
            context = self.answer(ask, offers)
            with self.hold:
                async with context as answer:
                    async for chunk in Pieces(answer):
                        relayed += self.hold.cover(chunk, no_cut)
                        self.hold.meter.saw(chunk.count(b"content"), len(chunk))
                        each(chunk)
                        await trio.lowlevel.checkpoint()
        return relayed

    @property
    def ends(self):
        """How each attempt ended in the books."""
        return [
            "void" if isinstance(record, Void) else (record.outcome, record.status, record.charged)
            for record in self.writer.records
            if not isinstance(record, Attempt)
        ]

    @property
    def accounts(self):
        return [record.account for record in self.writer.records if isinstance(record, Attempt)]

    def balanced(self):
        attempts = sum(isinstance(record, Attempt) for record in self.writer.records)
        ends = sum(isinstance(record, Void | UsageRecord) for record in self.writer.records)
        assert attempts == ends
        assert self.books.ledger.held("w") == 0
        assert not self.client.open


@define
class Pieces:
    """An answer, one piece at a time: whoever takes one declines the next until it is asked for."""

    answer: object

    def __aiter__(self):
        return self

    async def __anext__(self):
        taken = []
        over = await self.answer.hand_on(lambda chunk: bool(taken.append(chunk)))
        assert over == (not taken)
        if over:
            raise StopAsyncIteration
        return taken[0]


def two(offer=OFFER):
    return offer, evolve(offer, account="b")


async def comes_to_a_standstill(world, take):
    """Hand an answer on until a deadline ends it."""
    async with world.answer() as answer:
        with pytest.raises(StreamBroken) as broken:
            while not await answer.hand_on(take):
                pass
    assert broken.value.ending is Ending.STALLED
