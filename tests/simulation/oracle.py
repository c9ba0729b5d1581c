"""What must be true: of a gateway at rest, of its books against themselves, clients, providers and operators."""

import math
from typing import Final

import msgspec
from attrs import evolve

from accounting.ledger import Ledger
from accounting.records import LETTERS
from accounting.scan import scan
from tests.simulation.auditor import day_of
from tests.simulation.disk import STATE, ProcessDisk, Troubles
from tests.simulation.life import Life
from tests.simulation.scripts import hides_reasoning
from tests.simulation.settings import BORDER

RATES: Final = {
    "sandbox/chat": (1_000_000, 100_000, 1_000_000, 1_000_000, 4_000_000),
    "sandbox/thinker": (2_000_000, 200_000, 2_000_000, 2_000_000, 10_000_000),
    "sandbox/claude": (3_000_000, 300_000, 3_750_000, 6_000_000, 15_000_000),
    "sandbox/gemini": (500_000, 50_000, 500_000, 500_000, 3_000_000),
}
"""Picos a token, before the border: input, read from a cache, written to one for 5 minutes and an hour, output."""

BUCKETS: Final = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")

SEEN: Final = frozenset({"hung_up", "exhausted", "stalled", "broken", "shutdown"})
"""Endings in the middle of an answer."""

UNRELAYED: Final = frozenset(
    {"refused", "unreached", "timed_out", "broken", "stalled", "shutdown", "internal"}
)
"""Endings that cost a client nothing who has seen nothing of an answer."""


def price(model, tokens, markup_ppm, at_ms):
    """What a call costs that was routed at this time."""
    factor = 2 if at_ms >= BORDER.timestamp() * 1000 else 1
    read, cached, five, hour, out = RATES[model]
    listed = (
        tokens.input * read
        + tokens.cache_read * cached
        + tokens.cache_write_5m * five
        + tokens.cache_write_1h * hour
        + tokens.output * out
    )
    return -(-listed * factor * markup_ppm // 1_000_000)


# -- books against themselves ------------------------------------------------------------------------------


def check_ledger(world, process):
    """Memory says what the lines of the journal come to."""
    ledger, account = process.recovered.ledger, world.auditor.account
    _check_wallets(world, ledger, account)
    now_ms = process.recovered.last_ms if process.books is None else process.books.clock()
    _check_limits(world, ledger, account, now_ms)
    opened = {one.attempt.request for one in ledger.open_attempts()}
    if opened != set(account.open):
        world.fail(f"open in memory {sorted(opened)}, in the journal {sorted(account.open)}")


def _check_wallets(world, ledger, account):
    for wallet in ledger.wallets():
        name, purse = wallet.wallet, account.purses.get(wallet.wallet)
        if purse is None:
            world.fail(f"memory knows the wallet {name}, and the journal does not")
            return
        balance, held = ledger.balance(name), ledger.held(name)
        if (balance, held) != (purse.left, purse.held):
            world.fail(f"memory says that {name} has {balance} and holds {held}, the journal {purse}")
        if not 0 <= held <= balance:
            world.fail(f"memory holds {held} of {name}, which has {balance}")


def _check_limits(world, ledger, account, now_ms):
    """Tasks and caps are as the journal has them; a task that was never used up to its record is nobody's."""
    for (wallet, name), (spent, held, _) in account.tasks.items():
        task = ledger.task(wallet, name, now_ms)
        known = (0, 0) if task is None else (task.tally.spent, task.tally.held)
        if known != (spent, held):
            world.fail(
                f"memory says that {name} of {wallet} has spent and holds {known}, the journal {spent, held}"
            )
    for key, said in account.keys.items():
        if said.cap is not None:
            known = ledger.spent_within_cap(key, now_ms)
            wanted = account.within_cap(key, said.cap_window, day_of(now_ms))
            if known != wanted:
                world.fail(f"memory says that {key} has spent and holds {known}, the journal {wanted}")


def check_at_rest(world, process):
    """Nothing is under way: nothing is held, reserved or taken."""
    ledger, gateway, journal = process.recovered.ledger, process.gateway, process.recovered.journal
    left = {
        "open holds": ledger.holds_open(),
        "open attempts": len(ledger.open_attempts()),
        "reserved places": journal.reserved,
        "requests": gateway.limits.open,
        "muted answers": gateway.limits.muted,
        "waiting": gateway.waiting.waiting(),
        "connections to providers": len(process.network.open),
    }
    for what, count in left.items():
        if count:
            world.fail(f"at rest there are {count} {what} left")
    for wallet in ledger.wallets():
        if ledger.held(wallet.wallet):
            world.fail(f"at rest {ledger.held(wallet.wallet)} of {wallet.wallet} is held")
    check_ledger(world, process)
    check_index(world)
    check_replay(world, ledger)


def check_index(world):
    """The index has every record once, in order, as the journal has it."""
    rows, lines = world.rows.records, world.auditor.lines
    if len(rows) != len(lines):
        world.fail(f"the index has {len(rows)} records, and the journal {len(lines)}")
        return
    encode = msgspec.json.Encoder().encode
    for at, (seq, record) in enumerate(rows, 1):
        if seq != at or (LETTERS[type(record)], encode(record)) != lines[at - 1]:
            world.fail(f"the index has {record} as line {seq}, and the journal {lines[at - 1]}")
            return


def check_replay(world, ledger):
    """The journal, read again from its beginning, comes to what is in memory."""
    disk = ProcessDisk(world.files, Life(0, None), Troubles(), None, lambda *_: None)
    replayed = Ledger()
    for _, record in scan(disk, STATE / "journal"):
        replayed.replay(record)
    if replayed.state() != ledger.state():
        world.fail(f"the journal replays to {replayed.state()}, and memory has {ledger.state()}")


# -- books against the world -------------------------------------------------------------------------------


def check_end(world):
    """The books against what operators, clients and providers know."""
    check_index(world)
    _check_operators(world)
    by_request = {}
    for (request, number), attempt in world.auditor.account.attempts.items():
        by_request.setdefault(request, {})[number] = attempt
    for request, seen in world.seen.items():
        _check_call(world, request, seen, by_request.get(request, {}))
    _check_invoices(world)


def _check_operators(world):
    account, operators = world.auditor.account, world.operators
    for (what, name), value in operators.acked.items():
        if not _stands(account, what, name, value):
            world.fail(f"{what} {name} was acknowledged as {value}, and stands otherwise")
    for source in account.grants:
        if source not in operators.sources:
            world.fail(f"{source} stands in the books, and nobody asked for it")
    for number in operators.revoked:
        if not account.keys[f"key_{number}"].revoked:
            world.fail(f"key {number} was revoked, and is not any more")
    for request, known in operators.jobs.items():
        _check_job(world, request, known, account.attempts.get((request, 1)))


def _stands(account, what, name, value):
    match what:
        case "grant":
            grant = account.grants.get(name)
            return grant is not None and (grant.wallet, grant.amount) == value
        case "key":
            return name in account.keys and account.keys[name].digest == value
        case "wallet":
            return name in account.purses
    raise AssertionError(what)


def _check_job(world, request, known, attempt):
    """A job that was taken on is settled once, as its watcher said."""
    if attempt is None:
        if known["accepted"] and world.plan.durability != "relaxed":
            world.fail(f"{request} was taken on, and is not in the books")
        return
    end = attempt.end
    if end is None:
        world.fail(f"{request} was never settled")
    elif known["accepted"] and known["settled"] is not None and not _may_be_lost(world, 0.0):
        as_told = end.t == "S" and end.charged == attempt.hold if known["settled"] else end.t == "V"
        if not as_told:
            world.fail(f"{request} was settled, finished: {known['settled']}, and stands as {end}")


def _check_call(world, request, seen, attempts):
    if not attempts:
        if seen.complete and not _may_be_lost(world, seen.began):
            world.fail(f"{request} was answered, and there is no record of it")
        return
    numbers = sorted(attempts)
    if numbers != list(range(1, len(numbers) + 1)):
        world.fail(f"{request} has the attempts {numbers}")
    for number in numbers:
        attempt = attempts[number]
        if attempt.end is None:
            world.fail(f"{request}, attempt {number}, was never settled")
            return
        last = number == numbers[-1]
        if attempt.end.t == "S":
            if not last and (attempt.end.charged or "failed_over" not in attempt.end.flags):
                world.fail(f"{request}, attempt {number}, failed over, and stands as {attempt.end}")
            _check_settlement(world, seen, attempt)
    if seen.complete:
        _check_answered(world, request, seen, attempts[numbers[-1]].end)


def _check_answered(world, request, seen, end):
    """A client that has seen its answer to the end was told what it cost, and no power loss changes that."""
    if end.t != "S" or end.outcome not in ("complete", "exhausted", "killed"):
        world.fail(f"{request} was answered, and stands in the books as {end}")
    elif end.outcome == "killed":
        if not _may_be_lost(world, seen.began):
            world.fail(f"{request} was answered, and its settlement is gone: {end}")
    elif seen.cost_micro not in (None, -(-end.charged // 10**6)):
        world.fail(f"{request} was told a cost of {seen.cost_micro}, and charged {end.charged}")


def _may_be_lost(world, since):
    """Whether a power loss can have taken the end of an answer: only where nothing waits for the disk."""
    return world.plan.durability == "relaxed" and any(at >= since for at in world.power_losses)


def _check_settlement(world, seen, attempt):
    said, end = attempt.said, attempt.end
    name = f"{said.request}, attempt {said.number}"
    lines = world.providers.by_attempt.get((said.request, said.number), [])
    if not lines:
        if end.outcome != "killed":
            world.fail(f"{name} was settled as {end.outcome}, and was never sent")
        return
    line = lines[0]
    markup = world.plan.keys[seen.call.key].limits.get("markup_ppm", world.plan.config.pricing.markup_ppm)
    if (said.provider, said.account, said.markup_ppm) != (line.provider, line.account, markup):
        world.fail(f"{name} stands as {said}, and was sent to {line.provider}, {line.account}")
    if end.loss and not _may_lose(seen, line, end):
        world.fail(f"{name} lost {end.loss}, and nobody was surprised ({line.script.behaviour})")
    if seen.call.asked.free:
        if end.charged or end.cost:
            world.fail(f"{name} only counted tokens, and was charged {end.charged}, at a cost of {end.cost}")
    elif end.outcome == "killed":
        _check_killed(world, name, attempt)
    elif end.outcome == "complete":
        _check_complete(world, name, seen, attempt, line)
    else:
        _check_broken_off(world, name, seen, attempt, line)


def _may_lose(seen, line, end):
    """Whether the operator may lose what a provider bills beyond the hold.

    Where it billed more than what it was asked for; or where the hold was a rolling one, and the credit did not
    suffice for what one read had brought: the provider has generated that much by then, whoever pays for it.
    """
    may_roll = line.stream and line.stops == "yes" and not hides_reasoning(seen.call.asked)
    return line.script.behaviour in ("surprise", "endless") or (may_roll and end.outcome != "complete")


def _check_killed(world, name, attempt):
    """What a dead process left open is charged as far as it had been written down."""
    most = 0 if attempt.progress is None else min(attempt.progress.cost, attempt.hold)
    if attempt.end.charged != most:
        world.fail(f"{name} was killed with a progress of {most}, and charged {attempt.end.charged}")


def _check_broken_off(world, name, seen, attempt, line):
    """Nothing is charged for nothing; and what was read is not cheaper for having been broken off or left."""
    end, script = attempt.end, line.script
    reads = not (seen.left or seen.call.slow or seen.call.stops_reading)
    nothing = end.outcome in UNRELAYED and seen.content_at is None and reads
    if end.charged and (nothing or end.outcome in ("refused", "unreached") or "failed_over" in end.flags):
        world.fail(f"{name} ended as {end.outcome} with nothing shown, and was charged {end.charged}")
    shown = seen.content_at is not None and "failed_over" not in end.flags
    if end.outcome in SEEN and shown and line.read_upto and script.behaviour not in ("surprise", "endless"):
        read = evolve(script.used, output=script.steps[line.read_upto - 1].whole)
        worth = price(attempt.said.model, read, attempt.said.markup_ppm, seen.routed_ms)
        if end.charged < min(worth, attempt.hold):
            world.fail(
                f"{name} ended as {end.outcome} when {worth} had been read, and was charged {end.charged}"
            )


def _check_complete(world, name, seen, attempt, line):
    """A whole answer is charged as the provider reports it, at the price of its day, within the hold."""
    end, script = attempt.end, line.script
    if end.upstream_id != line.id:
        world.fail(f"{name} stands as {end.upstream_id}, and the provider calls it {line.id}")
    worth = price(attempt.said.model, script.told or script.used, attempt.said.markup_ppm, seen.routed_ms)
    if "empty_free" in end.flags and not script.used.output:
        worth = 0
    if script.told is None:
        if end.source != "estimated" or end.charged < min(worth, attempt.hold):
            world.fail(f"{name} was not reported and is charged {end.charged} as {end.source}, worth {worth}")
        return
    usage = end.usage or {}
    told = tuple(usage.get(bucket, 0) for bucket in BUCKETS)
    if end.source != "reported" or told != tuple(getattr(script.told, bucket) for bucket in BUCKETS):
        world.fail(
            f"{name}: the provider reported {script.told}, and the books have {usage} ({script.behaviour})"
        )
    elif end.price != worth:
        world.fail(f"{name} is worth {worth}, and priced {end.price} ({end.flags})")
    elif end.charged != min(worth, attempt.hold):
        world.fail(f"{name} is worth {worth} under a hold of {attempt.hold}, and charged {end.charged}")


def _check_invoices(world):
    attempts = world.auditor.account.attempts
    for (request, number), lines in world.providers.by_attempt.items():
        if len(lines) > 1:
            world.fail(f"{request}, attempt {number}, was sent {len(lines)} times")
        line, attempt = lines[0], attempts.get((request, number))
        if line.arrived > world.seen[request].left_at:
            world.fail(f"{request}, attempt {number}, was sent for a client that had left")
        if attempt is None:
            seen = world.seen[request]
            lost = [at for at in world.power_losses if at >= line.arrived]
            shown = seen.content_at is not None and seen.content_at < min(lost, default=math.inf)
            allowed = {"strict": False, "standard": bool(lost) and not shown, "relaxed": bool(lost)}
            if not allowed[world.plan.durability]:
                world.fail(f"{request}, attempt {number}, is on the provider's invoice and not in the books")
            world.counts["lost to the operator"] += 1
            continue
        if attempt.end is not None and attempt.end.t == "V":
            world.fail(f"{request}, attempt {number}, was sent, and stands as void: {attempt.end}")
