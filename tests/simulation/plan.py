"""What a world is made of: everything that is decided before it begins, from its seed."""

from typing import Final

from attrs import evolve, frozen

from pricing.money import PICO
from proxy.config import Holds
from tests.simulation.clients import Call
from tests.simulation.scheduler import stream, ticks
from tests.simulation.settings import BORDER, PROVIDERS, config_of
from tests.simulation.wire import Asked

CALLS: Final = 80
"""Calls in a world; with what clients try again, some hundred requests."""

PLACE_BYTES: Final = 8448
"""Room that one place takes in the worst case: here, and as a carry in the next segment."""

SEGMENT_BYTES: Final = 40_000
"""The smallest segments that one request always fits into; real ones are 25 times as large, at least."""

MODELS: Final = {
    "sandbox-chat": "openai_chat",
    "sandbox-thinker": "openai_chat",
    "sandbox-claude": "anthropic",
    "sandbox-gemini": "gemini",
}

FAULTS: Final = {
    "kill": 3, "power": 3, "stop": 2, "trap": 6, "full": 3, "pwrite_error": 1, "sync_error": 2, "file_error": 2,
    "short_writes": 1, "slow_disk": 2, "index_error": 3, "slow_index": 2, "limited": 3, "failing": 2, "clock_jump": 1,
    "intruder": 1,
}  # fmt: skip
"""How often which fault happens; each is a method of `fate.Fate`."""

CHANGES: Final = ("revoke", "freeze", "limit", "gift", "job", "job")
"""What operators do beside crediting payments; see `operators.Operators.change`."""


@frozen
class Fault:
    """Something bad that happens at a time, and maybe for some seconds."""

    at: float
    what: str
    seconds: float


@frozen
class KeyPlan:
    """A key of the wallet with this number, and its limits."""

    wallet: int
    limits: dict


@frozen
class Plan:
    """A world before it begins.

    Attributes:
        begins_ms: wall clock; all prices change at a border that lies near.
        wallets: what is put on each at first.
        clients: of each client its calls.
        top_ups: (when, wallet, amount, reference); some references come twice.
        changes: (when, what, which).
        crashes_max: how often a gateway may be killed.
    """

    seed: int
    config: object
    begins_ms: int
    wallets: list
    keys: list
    clients: list
    top_ups: list
    changes: list
    faults: list
    crashes_max: int
    segment_bytes: int
    durability: str
    relaxed_seconds: float
    load_seconds: float
    load_records_max: int
    unloaded_max: int
    progress_seconds: float
    progress_tokens: int
    drain_seconds: float
    heartbeats: bool
    unsynced_seconds_max: float = 10.0
    expiry_seconds: float = 10.0


def plan_of(seed, calls=CALLS) -> Plan:
    """The plan of a seed."""
    rng = stream(seed, "plan")
    wallets = [rng.choice((20 * PICO, 5 * PICO, PICO // 10, PICO // 40)) for _ in range(rng.randrange(2, 5))]
    keys = [_key(rng, wallet) for wallet in range(len(wallets)) for _ in range(rng.randrange(1, 3))]
    at_once = rng.choice((2, 4, 6, 8, 10, 24))
    clients = [[] for _ in range(at_once)]
    for number in range(calls):
        clients[number % at_once].append(_call(rng, number, len(keys)))
    span = 2.0 + 1.5 * calls / at_once

    def moment():
        return ticks(rng.uniform(0, span))

    return Plan(
        seed=seed,
        config=_config(rng),
        begins_ms=int(BORDER.timestamp() * 1000) - int(rng.uniform(-0.5, 1.0) * span * 1000),
        wallets=wallets,
        keys=keys,
        clients=clients,
        top_ups=[
            (moment(), rng.randrange(len(wallets)), rng.choice((1, 10, 100)) * PICO // 100, number // 2)
            for number in range(rng.randrange(2, 10))
        ],
        changes=[(moment(), rng.choice(CHANGES), rng.randrange(64)) for _ in range(rng.randrange(0, 7))],
        faults=sorted(
            (_fault(rng, moment()) for _ in range(rng.randrange(2, 9))), key=lambda fault: fault.at
        ),
        crashes_max=0 if rng.random() < 0.15 else rng.randrange(1, 6),
        segment_bytes=max(SEGMENT_BYTES, int(at_once * 2 * PLACE_BYTES * rng.choice((0.4, 0.6, 0.8, 1.2)))),
        durability=rng.choice(("standard",) * 4 + ("strict", "relaxed")),
        relaxed_seconds=0.05,
        load_seconds=rng.choice((0.5, 2.0, 4.0)),
        load_records_max=rng.choice((7, 50, 20_000)),
        unloaded_max=rng.choice((100, 5000, 5000)),
        progress_seconds=rng.choice((0.5, 2.0)),
        progress_tokens=rng.choice((100, 1000)),
        drain_seconds=rng.choice((0.5, 5.0, 30.0)),
        heartbeats=rng.random() < 0.3,
    )


def _config(rng):
    return config_of(
        tuple(rng.choice(("yes", "yes", "no", "unknown")) for _ in PROVIDERS),
        evolve(
            Holds(),
            slice_tokens=rng.choice((16, 256, 1024)),
            hold_wait_seconds=rng.choice((0.0, 0.0, 3.0)),
            waiting_max=5,
            empty_free_per_key_day=rng.choice((0, 2)),
        ),
        rng.choice((1_000_000, 1_000_000, 600_000, 1_333_333)),
        rng.choice(("mute", "mute", "abort")),
    )


def _fault(rng, at):
    what = rng.choices(tuple(FAULTS), weights=tuple(FAULTS.values()))[0]
    return Fault(at, what, ticks(rng.uniform(0.5, 12.0)))


def _key(rng, wallet):
    limits = {}
    if rng.random() < 0.25:
        limits["cap"] = rng.choice((PICO // 100, PICO, 5 * PICO))
        limits["cap_window"] = rng.choice(("lifetime", "day", "week", "month"))
    if rng.random() < 0.3:
        limits["clamp"] = True
    if rng.random() < 0.2:
        limits["concurrency"] = 2
    if rng.random() < 0.2:
        limits["tokens_per_minute"] = 100_000
    if rng.random() < 0.2:
        limits["markup_ppm"] = rng.choice((500_000, 1_250_001))
    return KeyPlan(wallet, limits)


def _call(rng, number, keys):
    asked = _asked(rng)
    headers = {}
    if rng.random() < 0.1:
        headers["x-credits-max-cost"] = rng.choice(("0.001", "0.02", "1"))
    if rng.random() < 0.2:
        most = rng.choice(("0.01", "0.05", "1.00"))
        headers["x-credits-budget-id"] = f"task-{rng.randrange(3)}; max={most}"
    if rng.random() < 0.1:
        headers["x-credits-live"] = "1"
    reading = rng.random()
    return Call(
        number=number,
        dialect=MODELS[asked.model],
        asked=asked,
        key=rng.randrange(keys),
        headers=headers,
        leaves=ticks(rng.expovariate(0.7)) if rng.random() < 0.2 else None,
        slow=ticks(rng.uniform(0.1, 3.0)) if reading < 0.05 else 0.0,
        stops_reading=0.05 <= reading < 0.07,
        tries=rng.choice((1, 4)),
    )


def _asked(rng):
    model = rng.choice(tuple(MODELS))
    asked = Asked(
        tag="",
        model=model,
        stream=rng.random() < 0.7,
        prompt=rng.choice((10, 200, 2000)),
        output=rng.choice((None, 20, 200, 1000, 4000)),
        usage_wanted=rng.random() < 0.7,
    )
    thinks = rng.random() < 0.2
    match model:
        case "sandbox-claude":
            asked.cached = rng.choice(("", "", "5m", "1h"))
            asked.output = max(asked.output or 500, 2000 if thinks else 0)
            asked.thinking = 1024 if thinks else 0
        case "sandbox-gemini":
            asked.thinking = 512 if thinks else 0
            asked.array = asked.stream and rng.random() < 0.2
        case "sandbox-thinker":
            asked.thinking = -1 if thinks else 0
    if MODELS[model] != "openai_chat" and rng.random() < 0.08:
        asked.free, asked.stream, asked.array, asked.thinking = True, False, False, 0
    return asked
