"""A whole gateway on fakes: the real request path, books, dialects, routing and upstreams; scripted bytes and clocks.

Nothing here opens a socket or waits in real time. A provider's answer is a list of steps: bytes to give, seconds to
wait, or an exception to raise. The reply remembers what a client would have seen.
"""

import itertools
import math
from datetime import date
from functools import cache
from pathlib import Path

import trio
from attrs import define, evolve, field

from accounting.books import Books
from accounting.ledger import Ledger
from accounting.ports import Overloaded
from accounting.records import Grant, GrantKind, Key, UsageRecord, Wallet
from pricing.load import load_catalog
from pricing.money import PICO
from proxy.config import Account, Config, Provider
from proxy.dialects.anthropic import Anthropic
from proxy.dialects.gemini import Gemini
from proxy.dialects.openai_chat import OpenAIChat
from proxy.errors import Kind, StreamBroken
from proxy.gateway import Gateway
from proxy.keys import KeyRing, digest_of, new_key
from proxy.limits import Ceilings, Limits
from proxy.pool import Pool
from proxy.routing import Router
from proxy.serve import respond
from proxy.telemetry import Telemetry
from proxy.types import Path as Route
from proxy.types import Secret
from proxy.upstreams.answer import Upstreams
from proxy.upstreams.client import NotInTime
from proxy.waiting import Waiting

DATA = Path(__file__).resolve().parents[1] / "data"
TODAY = date(2026, 11, 21)
OPENAI, ANTHROPIC, GEMINI = Route("openai_chat"), Route("anthropic"), Route("gemini", model="sandbox-gemini")


def dialects(config):
    limits = config.limits
    return {"openai_chat": OpenAIChat(limits), "anthropic": Anthropic(limits), "gemini": Gemini(limits)}


@cache
def catalog():
    return load_catalog(DATA)


class MemoryJournal:
    """A journal in memory whose syncs take a checkpoint, like real ones."""

    def __init__(self):
        self.records = []
        self.reserved = 0
        self.room = 10**9

    def reserve(self, places):
        if self.reserved + places > self.room:
            raise Overloaded("no room", trigger="journal")
        self.reserved += places

    def release(self, places):
        self.reserved -= places
        assert self.reserved >= 0

    def write(self, record, *, reserved=False):
        if reserved:
            self.reserved -= 1
            assert self.reserved >= 0
        self.records.append(record)
        return len(self.records)

    async def durable(self, _seq):
        await trio.lowlevel.checkpoint()

    def of(self, kind):
        return [record for record in self.records if isinstance(record, kind)]

    def unloaded_usage(self):
        return [(seq, one) for seq, one in enumerate(self.records, 1) if isinstance(one, UsageRecord)]


def sends_in_time(send):
    """A client's `send`, given up when its time is over."""

    async def in_time(self, call, sending, until=math.inf, *, fresh=False):
        getattr(self, "fresh", []).append(fresh)
        with trio.CancelScope(deadline=until):
            return await send(self, call, sending)
        raise NotInTime

    return in_time


def reads_in_time(read):
    """An exchange's `read`, given up when its time is over."""

    async def in_time(self, until=math.inf, _take=None):
        with trio.CancelScope(deadline=until):
            return await read(self)

    return in_time


@define(eq=False)
class Exchange:
    """A scripted answer; see the module."""

    status: int
    headers: dict
    steps: list
    closed_at: float | None = None
    over: bool = False

    def forget_headers(self):
        self.headers = None

    def ready(self):
        """Bytes that follow others without a pause are there already."""
        if self.over or not self.steps or not isinstance(self.steps[0], bytes):
            return None
        return self.steps.pop(0)

    @reads_in_time
    async def read(self):
        while self.steps:
            step = self.steps[0]
            if isinstance(step, int | float):
                await trio.sleep(step)
                self.steps.pop(0)
                continue
            self.steps.pop(0)
            await trio.lowlevel.checkpoint()
            if isinstance(step, BaseException):
                raise step
            return step
        await trio.lowlevel.checkpoint()
        self.over = True
        return b""

    async def aclose(self):
        if self.closed_at is None:
            self.closed_at = trio.current_time()


@define(eq=False, slots=False)
class Provider_:  # noqa: N801 - Provider is the setting of that name
    """A provider that gives scripted answers in turn, and remembers what it was asked."""

    answers: list = field(factory=list)
    calls: list = field(factory=list)
    exchanges: list = field(factory=list)

    @sends_in_time
    async def send(self, call, sending):
        await trio.lowlevel.checkpoint()
        script = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, steps, *headers = script() if callable(script) else script
        if isinstance(status, BaseException):
            raise status
        sending()
        self.calls.append(call)
        await trio.lowlevel.checkpoint()
        steps = list(steps)
        while steps and isinstance(steps[0], int | float):
            await trio.sleep(steps.pop(0))
        exchange = Exchange(
            status, {"content-type": "text/event-stream", **(headers[0] if headers else {})}, steps
        )
        self.exchanges.append(exchange)
        return exchange


class Request:
    """What a door would hand in."""

    def __init__(self, body, key, headers=None, request_id="req_1"):
        self.id = request_id
        self.method = "POST"
        self.path = "/"
        self.query = ""
        self.headers = {"authorization": f"Bearer {key}", **(headers or {})}
        self._body = body

    async def body(self, _bytes_max, _room):
        await trio.lowlevel.checkpoint()
        return self._body


class _KeptAlive:
    def __init__(self, reply, heartbeat, seconds):
        self.reply, self.heartbeat, self.seconds = reply, heartbeat, seconds
        self.scope = trio.CancelScope()

    async def __aenter__(self):
        if self.heartbeat:
            self.reply.nursery.start_soon(self.beat)

    async def __aexit__(self, *_exc):
        self.scope.cancel()

    async def beat(self):
        with self.scope:
            while not self.reply.client_gone:
                quiet = trio.current_time() - self.reply.written_at
                if quiet < self.seconds:
                    await trio.sleep(self.seconds - quiet)
                    continue
                self.reply.start(200, {"content-type": "text/event-stream"})
                await self.reply.write(self.heartbeat)


class Reply:
    """Where a client would read: what was sent, and when."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.scope = nursery.cancel_scope
        self.status = None
        self.headers = {}
        self.noted = {}
        self.body = b""
        self.writes = []
        self.ended = False
        self.mute = False
        self.client_gone = False
        self.callbacks = []
        self.written_at = trio.current_time()
        self.stall = False

    @property
    def started(self):
        return bool(self.writes)

    def when_gone(self, callback):
        self.callbacks.append(callback)

    def mute_when_gone(self, mute):
        self.mute = mute
        if self.client_gone:
            self.settle_gone()

    def hang_up(self):
        """The client leaves."""
        self.client_gone = True
        self.settle_gone()

    def settle_gone(self):
        if not self.mute:
            self.scope.cancel()
            return
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    def note(self, headers):
        self.noted.update(headers)

    def start(self, status, headers):
        if not self.started:
            self.status, self.headers = status, {**self.noted, **headers}

    async def write(self, chunk):
        if not chunk or self.client_gone:
            return
        await trio.lowlevel.checkpoint()
        if self.stall:
            await trio.sleep_forever()
        self.writes.append((trio.current_time(), chunk))
        self.body += chunk
        self.written_at = trio.current_time()

    async def end(self, tail, headers=None):
        if self.client_gone:
            return
        if not self.started:
            self.headers.update(headers or {})
        await trio.lowlevel.checkpoint()
        self.body += tail
        self.writes.append((trio.current_time(), tail))
        self.ended = True

    def keep_alive(self, heartbeat, after_seconds):
        return _KeptAlive(self, heartbeat, after_seconds)


class World:
    """A gateway with a wallet, a key and a scripted provider."""

    def __init__(
        self,
        *answers,
        amount=100 * PICO,
        config=None,
        stops_billing="yes",
        states_input=None,
        accounts=("one",),
        **limits,
    ):
        self.provider = Provider_(list(answers))
        self.journal = MemoryJournal()
        ids = itertools.count(1)
        self.ledger = Ledger()
        self.books = Books(
            self.ledger, self.journal, self.clock, trio.current_time, lambda kind: f"{kind}_{next(ids)}"
        )
        self.secret = new_key("fb_sk_", lambda size: b"\x07" * size)
        self.books.put_down(Wallet("w", "test", "USD", 0))
        self.books.put_down(Key("k", "w", digest_of(self.secret), "fb…", 0, **limits))
        if amount:
            self.books.put_down(Grant("g", "w", amount, GrantKind.PAID, "test:1", 0))
        kinds = {"openai": "sandbox/chat", "anthropic": "sandbox/claude", "gemini": "sandbox/gemini"}
        base = config or Config()
        providers = tuple(
            Provider(
                name=f"box-{kind}",
                kind=kind,
                base_url="http://box.invalid",
                account=tuple(Account(name, Secret(f"sk-provider-{name}")) for name in accounts),
                models=("sandbox/*",),
                stops_billing=stops_billing,
                states_input=states_input,
            )
            for kind in kinds
        )
        self.config = evolve(base, provider=providers)
        self.router = Router(catalog(), self.config, lambda: TODAY)
        self.log = []
        spoken = dialects(self.config)
        self.pool = Pool()
        self.upstreams = Upstreams(self.config, self.provider, self.pool, spoken, self.router.base_urls())
        limits_ = self.config.limits
        self.limits = Limits(
            Ceilings(limits_.requests_max, limits_.muted_max, limits_.muted_per_key_max), trio.current_time
        )
        self.gateway = Gateway(
            config=self.config,
            books=self.books,
            keys=KeyRing(self.ledger, "fb_sk_", self.clock),
            limits=self.limits,
            router=self.router,
            upstreams=self.upstreams,
            telemetry=Telemetry(self.clock, trio.current_time, out=_Log(self.log)),
            waiting=Waiting(base.holds.hold_wait_seconds, base.holds.waiting_max),
            dialects=spoken,
        )
        self.books.freed = self.gateway.waiting.wake

    def clock(self):
        return int(trio.current_time() * 1000)

    async def ask(self, body, path=OPENAI, *, meanwhile=None, request_id="req_1", headers=None, scope=None):
        """Serve one request; `meanwhile(reply)` runs beside it as the client."""
        async with trio.open_nursery() as clients:
            async with trio.open_nursery() as nursery:
                reply = Reply(nursery)
                if scope is not None:
                    scope.append(nursery.cancel_scope)
                if meanwhile is not None:
                    clients.start_soon(meanwhile, reply)
                await respond(self.gateway, path, Request(body, self.secret, headers, request_id), reply)
                nursery.cancel_scope.cancel()
            clients.cancel_scope.cancel()
        return reply

    @property
    def settled(self):
        return self.journal.of(UsageRecord)

    def check(self):
        """What must hold whenever nothing is under way."""
        granted = sum(grant.amount for grant in self.journal.of(Grant))
        charged = sum(record.charged for record in self.settled)
        assert self.books.balance("w").held == 0
        assert self.books.balance("w").balance == granted - charged
        assert self.journal.reserved == 0, "room was taken and not given back"
        assert self.ledger.open_attempts() == ()
        assert (self.limits.open, self.limits.muted) == (0, 0)
        for record in self.settled:
            assert record.charged <= record.held
        open_connections = [one for one in self.provider.exchanges if not one.over and one.closed_at is None]
        assert open_connections == []


class _Log:
    def __init__(self, lines):
        self.lines = lines

    def write(self, text):
        self.lines.append(text)


def broken(message="The provider's answer broke off."):
    return StreamBroken(Kind.UPSTREAM_ERROR, message)
