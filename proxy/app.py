"""The composition root: opens the books and the upstreams, builds the doors, runs until told to stop.

The order of going up is the order of trust, and going down is the reverse: signals first (so that none falls into
money), then the books, then upstreams, then doors. At the end doors drain, the journal is flushed and sealed, and
the lock is let go. What a command does to books that nobody runs goes through the same opening and closing.
"""

import gc
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from attrs import define, evolve, field
from quart_trio import QuartTrio

from accounting.records import GrantKind
from pricing.load import load_catalog
from pricing.money import parse, show
from proxy import books, descriptors
from proxy.admin import Admin, KeyCreate
from proxy.admin_client import ADDRESS_FILE, TOKEN_FILE, Address, AdminClient, Unreachable
from proxy.books import OpenBooks, Unavailable
from proxy.config import DATA, Account, Config, Listen, Provider
from proxy.dialects.anthropic import Anthropic
from proxy.dialects.gemini import Gemini
from proxy.dialects.openai_chat import OpenAIChat
from proxy.doors import quart_door
from proxy.doors.server import bind, serve_app
from proxy.gateway import Gateway
from proxy.keys import KeyRing
from proxy.limits import Ceilings, Limits
from proxy.pages import account as account_page
from proxy.pages import admin as admin_page
from proxy.pages import health as health_page
from proxy.pages import models as models_page
from proxy.pool import Pool
from proxy.routing import Router
from proxy.sandbox.app import build as build_sandbox
from proxy.serve import respond
from proxy.telemetry import Telemetry
from proxy.types import Dialect, DialectName, Secret
from proxy.upstreams.answer import Upstreams
from proxy.upstreams.client import HttpClient
from proxy.upstreams.origin import Bounds
from proxy.waiting import Waiting

__all__ = [
    "Unavailable",
    "demo_config",
    "dialects",
    "operate",
    "run_demo",
    "run_gateway",
    "run_sandbox",
    "running",
    "today",
]

Ready = Callable[[dict[str, Any]], None]
"""Told once where everything listens."""

DEMO_WALLET: Final = "demo"
DEMO_CREDIT: Final = "10.00"
SANDBOX_KINDS: Final = ("openai", "anthropic", "gemini")
EXPIRY_SECONDS: Final = 60.0
"""How often grants are looked over for some that have expired."""

YOUNG_OBJECTS_MAX: Final = 10_000
"""So many new objects before the cyclic collector looks at them; Python's own 700 are two or three requests."""

SWITCH_SECONDS: Final = 0.0005
"""How long a thread may keep the interpreter while others want it: a write to the journal lets go of it, and would
wait for a load into the store to give it back. Measured beside such loads: hold and settle 0.4 ms at p99, where
Python's own 5 ms make it 1.4 to 2.5 ms, at the same CPU time."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def today() -> date:
    """The date here."""
    return datetime.now(UTC).date()


def dialects(config: Config) -> dict[DialectName, Dialect]:
    """Every language that is spoken."""
    limits = config.limits
    return {"openai_chat": OpenAIChat(limits), "anthropic": Anthropic(limits), "gemini": Gemini(limits)}


# Running


async def run_gateway(config: Config, ready: Ready) -> int:
    """Run the gateway until SIGINT or SIGTERM.

    Returns:
        The exit status: 0 after a signal, 1 if the books failed.

    Raises:
        Unavailable: the books or the address are taken, or the books cannot be opened as they are.
    """
    with _signals() as stop:
        return await _run(_fitted(config), ready, stop)


async def run_demo(config: Config, ready: Ready) -> int:
    """Run a gateway with a sandbox provider, a wallet with credit and a key. As `run_gateway`."""
    with _signals() as stop:
        sockets = _bind(config.listen.host, 0, config)
        url = _url(sockets)
        # the sandbox's connections are ours as well
        config = evolve(
            _fitted(config, each=3), provider=tuple(_sandbox_provider(kind, url) for kind in SANDBOX_KINDS)
        )
        stop_sandbox = trio.Event()
        async with trio.open_nursery() as nursery:
            telemetry = _telemetry(config)
            await nursery.start(partial(_serve_sandbox, config, sockets, stop_sandbox, telemetry))
            try:
                return await _run(config, ready, stop, sandbox_url=url)
            finally:
                stop_sandbox.set()


async def run_sandbox(config: Config, host: str, port: int, ready: Ready) -> int:
    """Run the sandbox provider alone until a signal. As `run_gateway`."""
    with _signals() as stop:
        config = _fitted(config, each=1)
        sockets = _bind(host, port, config)
        async with trio.open_nursery() as watching:
            watching.start_soon(stop.watch)
            async with trio.open_nursery() as serving:
                await serving.start(partial(_serve_sandbox, config, sockets, stop.event, _telemetry(config)))
                ready({"base_url": _url(sockets)})
            watching.cancel_scope.cancel()
        return 0


def _fitted(config: Config, each: int = 2) -> Config:
    """The settings, with no more connections than there can be descriptors; the operator is told if that is fewer."""
    most = descriptors.granted()
    limits = descriptors.fitted(config.limits, most, each)
    if limits != config.limits:
        because = f"with {most} descriptors {limits.requests_max} requests and {limits.connections_max} connections fit"
        _telemetry(config).log("warning", "descriptors_few", because=because)
    return evolve(config, limits=limits)


def demo_config(*, state: str, host: str | None, port: int | None, admin_port: int) -> Config:
    """Settings of the demo: nothing is read from files or the environment."""
    base = Config()
    listen = Listen(
        host=host or base.listen.host,
        port=base.listen.port if port is None else port,
        admin_host=host or base.listen.admin_host,
        admin_port=admin_port,
    )
    return evolve(base, listen=listen, books=evolve(base.books, state_dir=state), log_level="warning")


@define(eq=False)
class _Stop:
    """The one signal receiver, and what it has led to."""

    _receiver: AsyncIterator[int]
    event: trio.Event = field(factory=trio.Event)
    status: int = 0

    async def watch(self) -> None:
        """Set the event at the first signal. Later ones change nothing: a deadline bounds the draining."""
        async for _ in self._receiver:
            self.event.set()

    def fail(self) -> None:
        """Stop for a reason of our own; the exit status says so."""
        self.status = 1
        self.event.set()


@contextmanager
def _signals() -> Iterator[_Stop]:
    with trio.open_signal_receiver(*SIGNALS) as receiver:
        yield _Stop(receiver)


async def _run(config: Config, ready: Ready, stop: _Stop, *, sandbox_url: str | None = None) -> int:
    """Go up, say so, wait, go down."""
    sys.setswitchinterval(SWITCH_SECONDS)
    telemetry = _telemetry(config)
    async with books.opened(config, telemetry) as opened, _client(config) as client:
        gateway, pool = _gateway(config, opened, telemetry, client)
        token = _token(opened.state)
        admin = opened.admin(config)
        draining = trio.Event()
        health = partial(health_page.build, partial(_unready, opened, draining))
        door = quart_door.build(
            gateway,
            [models_page.build(gateway), account_page.build(gateway, opened.reader)],
            [health()],
            respond=respond,
            new_id=partial(books.Ids(), "req"),
            log=telemetry.log,
        )
        desk = QuartTrio("farebox-admin", static_folder=None)
        resting = partial(_resting, pool, telemetry)
        desk.register_blueprint(admin_page.build(admin, telemetry, token, resting))
        desk.register_blueprint(health())
        listen = config.listen
        api = _bind(listen.host, listen.port, config)
        private = _bind(listen.admin_host, listen.admin_port, config)
        tls = _tls(listen)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.watch)
            nursery.start_soon(_watch_books, opened, stop)
            nursery.start_soon(_expire, opened, client)
            await nursery.start(partial(_serve, desk, private, config, trio.sleep_forever, telemetry))
            async with trio.open_nursery() as doors:
                await doors.start(partial(_serve, door, api, config, stop.event.wait, telemetry, tls))
                address = Address(_url(api, tls), _url(private), os.getpid())
                facts = _facts(address, opened.state)
                if sandbox_url is not None:
                    facts |= {**await _demo(admin), "sandbox_url": sandbox_url}
                with _address_file(opened.state, address), _out_of_the_collectors_sight():
                    ready(facts)
                    await stop.event.wait()
                    draining.set()
                    telemetry.log("info", "draining")
            # the admin listener has no long answers, and the watchers have no end of their own
            nursery.cancel_scope.cancel()
    return stop.status


@contextmanager
def _out_of_the_collectors_sight() -> Iterator[None]:
    """What is there by now stays: to look through it again and again took a sixth of a busy gateway's time.

    What comes hardly ever refers to itself, so it need not be looked through with every few requests either.
    """
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()  # else libraries find their objects left over at the end, and say so


async def _serve(
    app: Any,
    sockets: list[socket.socket],
    config: Config,
    shutdown: Callable[[], Awaitable[None]],
    telemetry: Telemetry,
    tls: ssl.SSLContext | None = None,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_app(
        app,
        sockets,
        config.server,
        config.limits,
        shutdown=shutdown,
        log=telemetry.log,
        ssl_context=tls,
        new_id=partial(books.Ids(), "req"),
        task_status=task_status,
    )


async def _serve_sandbox(
    config: Config,
    sockets: list[socket.socket],
    stop: trio.Event,
    telemetry: Telemetry,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    app = build_sandbox()
    # a provider whose streams never end must not hold up the end of the process
    quick = evolve(config, server=evolve(config.server, drain_seconds=0.5))
    await _serve(app, sockets, quick, stop.wait, telemetry, task_status=task_status)


async def _watch_books(opened: OpenBooks, stop: _Stop) -> None:
    """A gateway whose books have failed admits nothing, ends its streams with an error, and then itself."""
    await opened.recorder.wait_failed()
    opened.books.failed = True
    stop.fail()


async def _expire(opened: OpenBooks, client: HttpClient) -> None:
    while True:
        opened.books.expire_due()
        client.forget_idle()
        await trio.sleep(EXPIRY_SECONDS)


# Parts


def _gateway(
    config: Config, opened: OpenBooks, telemetry: Telemetry, client: HttpClient
) -> tuple[Gateway, Pool]:
    catalog = load_catalog(DATA, tuple(Path(file) for file in config.pricing.files))
    books.keep_catalog(opened.state, catalog)
    router, pool, spoken = Router(catalog, config, today), Pool(), dialects(config)
    limits = config.limits
    waiting = Waiting(config.holds.hold_wait_seconds, config.holds.waiting_max)
    opened.books.freed = waiting.wake
    ceilings = Ceilings(
        limits.requests_max, limits.muted_max, limits.muted_per_key_max, limits.uploads_bytes_max
    )
    gateway = Gateway(
        config=config,
        books=opened.books,
        keys=KeyRing(opened.books.ledger, config.keys.prefix, opened.books.clock),
        limits=Limits(ceilings, time.perf_counter),
        router=router,
        upstreams=Upstreams(config, client, pool, spoken, router.base_urls(), telemetry.log),
        telemetry=telemetry,
        waiting=waiting,
        dialects=spoken,
    )
    metrics = telemetry.metrics
    metrics.gauge("farebox_requests_open", "Requests under way.", lambda: gateway.limits.open)
    metrics.gauge(
        "farebox_answers_muted", "Answers read on for clients who left.", lambda: gateway.limits.muted
    )
    metrics.gauge("farebox_requests_waiting", "Requests that wait for credit to come free.", waiting.waiting)
    metrics.gauge(
        "farebox_accounts_resting", "Provider accounts at rest.", lambda: len(_resting(pool, telemetry))
    )
    return gateway, pool


def _telemetry(config: Config) -> Telemetry:
    return Telemetry(books.wall_ms, time.perf_counter, config.log_level)


@asynccontextmanager
async def _client(config: Config) -> AsyncIterator[HttpClient]:
    client = http_client(config)
    try:
        yield client
    finally:
        await client.aclose()


def http_client(config: Config) -> HttpClient:
    """The client for all providers, as the settings want it.

    Raises:
        Unavailable: what `outbound` names cannot be used.
    """
    outbound = config.outbound
    try:
        return HttpClient(
            config.deadlines.connect_seconds,
            verify=ssl.create_default_context(cafile=outbound.ca_file) if outbound.ca_file else None,
            certificate=(outbound.certificate, outbound.key)
            if outbound.certificate and outbound.key
            else None,
            proxy=outbound.proxy.reveal() or None,
            bounds=Bounds(open_max=config.limits.requests_max),
        )
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"outbound.ca_file, certificate and key cannot be used: {error}") from None
    except ImportError:
        raise Unavailable("outbound.proxy: for socks5, farebox[socks] has to be installed") from None


def _unready(opened: OpenBooks, draining: trio.Event) -> str | None:
    if draining.is_set():
        return "draining"
    health = opened.recorder.health()
    return health.failed or health.store_error


def _resting(pool: Pool, telemetry: Telemetry) -> list[dict[str, Any]]:
    now, wall_ms = trio.current_time(), telemetry.clock()
    return [
        {
            "provider": rest.provider,
            "account": rest.account,
            "model": rest.model,
            "because": rest.because,
            "until": datetime.fromtimestamp(wall_ms / 1000 + rest.until - now, UTC).isoformat(
                timespec="seconds"
            ),
            "seconds_left": round(rest.until - now, 1),
        }
        for rest in pool.resting(now)
    ]


def _bind(host: str, port: int, config: Config) -> list[socket.socket]:
    try:
        return bind(host, port, config.server.backlog)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}, port {port}: {error.strerror}; --port 0 takes a free one"
        ) from None


def _tls(listen: Listen) -> ssl.SSLContext | None:
    if listen.tls_certificate is None or listen.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(listen.tls_certificate, listen.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"listen.tls_certificate and listen.tls_key cannot be used: {error}") from None
    return context


def _url(sockets: list[socket.socket], tls: ssl.SSLContext | None = None) -> str:
    host, port, *_ = sockets[0].getsockname()
    # an address that means "all of them" cannot be connected to everywhere
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{'http' if tls is None else 'https'}://{shown}:{port}"


def _token(state: Path) -> Secret:
    """The admin token: made once, readable for the owner alone."""
    path = state / TOKEN_FILE
    try:
        token = path.read_text("ascii").strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(token + "\n")
    path.chmod(0o600)
    return Secret(token)


@contextmanager
def _address_file(state: Path, address: Address) -> Iterator[None]:
    """Say where we listen, for as long as we do."""
    path = state / ADDRESS_FILE
    path.write_bytes(msgspec.json.encode(address) + b"\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _facts(address: Address, state: Path) -> dict[str, Any]:
    return {
        "base_url": address.base_url,
        "admin_url": address.admin_url,
        "admin_token_file": str(state / TOKEN_FILE),
        "state_dir": str(state),
    }


def _sandbox_provider(kind: Any, url: str) -> Provider:
    """The sandbox in one of its dialects; it serves every vendor's models of that dialect, at their list prices."""
    return Provider(
        name=f"sandbox-{kind}",
        kind=kind,
        base_url=f"{url}/v1" if kind == "openai" else url,
        account=(Account(name="demo", api_key=Secret("sandbox-account")),),
        models=("*",),
        stops_billing="yes",
        states_input="start",
    )


async def _demo(admin: Admin) -> dict[str, Any]:
    """The demo's wallet, with credit once, and a key for this run."""
    ledger = admin.books.ledger
    wallet = next((one for one in ledger.wallets() if one.name == DEMO_WALLET), None)
    if wallet is None:
        wallet = await admin.books.create_wallet(DEMO_WALLET)
    await admin.books.top_up(wallet.wallet, parse(DEMO_CREDIT), GrantKind.PROMO, "demo:welcome")
    made = await admin.key_create(KeyCreate(wallet=wallet.wallet, name="demo"))
    return {
        "key": made["key"],
        "wallet": wallet.wallet,
        "balance": show(admin.books.balance(wallet.wallet).balance),
    }


# Commands


def running(config: Config) -> AdminClient | None:
    """The gateway that runs on these books, if one does.

    The lock is asked first: after a kill the address that stands in the state directory may be somebody else's by
    now, and the admin token goes to nobody who does not hold the books.
    """
    state = Path(config.books.state_dir)
    try:
        client = AdminClient.of(state)
        if not books.taken(state):
            return None
        client.send("GET", f"{client.address.admin_url}/health", {})
    except (Unreachable, OSError):
        return None
    return client


def operate(config: Config, operation: str, arguments: bytes) -> dict[str, Any]:
    """Run an operation on the gateway that has the books open or, where none runs, on the books themselves.

    Raises:
        Rejected: the operation was refused.
        Unavailable: the books cannot be opened.
    """
    client = running(config)
    if client is not None:
        return client.call(operation, arguments)
    return trio.run(books.operate, config, operation, arguments, _telemetry_of_commands(config))


def _telemetry_of_commands(config: Config) -> Callable[[], Telemetry]:
    return lambda: _telemetry(evolve(config, log_level="warning"))
