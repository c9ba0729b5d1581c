"""The ledger under any sequence of events, against a model that only knows sums; and made anew from its records."""

from datetime import UTC, datetime, timedelta

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from accounting.bill import Bill
from accounting.claims import Claim
from accounting.ledger import Ledger
from accounting.records import (
    Attempt,
    Carry,
    Ending,
    Extension,
    Grant,
    GrantKind,
    Job,
    Key,
    Progress,
    Spender,
    UsageRecord,
    Void,
    Wallet,
)
from accounting.refusals import DuplicateGrant, Insufficient, KeyRevoked, UnknownTask, WalletFrozen
from accounting.spending import EMPTY_FREE, Budget
from pricing.usage import NO_USAGE, Source, Usage

DAY = 86_400_000
WALLETS, KEYS, TASKS = ("w1", "w2"), ("k1", "k2", "k3"), ("t1", "t2")
OWNER = {"k1": "w1", "k2": "w1", "k3": "w2"}

# -- the model -------------------------------------------------------------------------------------


@define(eq=False)
class Asked:
    """A request: what it holds, and what is open of it."""

    wallet: str
    key: str
    at_ms: int
    held: int
    task: "TaskModel | None"
    budget: Budget | None
    max_cost: int | None
    number: int = 0
    open: bool = False
    job: bool = False
    """A provider has taken it on: it lives by its records alone."""
    progress: int | None = None
    cost_if_finished: int = 0


@define(eq=False)
class TaskModel:
    max: int
    last_ms: int
    spent: int = 0
    written: int | None = None
    """The maximum as some record has it; `None`: no record knows of the task."""


@define(eq=False)
class Model:
    """What should be so, by the simplest definition of each."""

    now: int = 1_700_000_000_000
    grants: list = field(factory=list)
    """[wallet, expires, is paid, place, left, id]; left shrinks."""
    charges: list = field(factory=list)
    """(wallet, key, when its hold was taken, amount, was an empty one)."""
    caps: dict = field(factory=lambda: dict.fromkeys(KEYS, (None, "lifetime")))
    revoked: set = field(factory=set)
    frozen: set = field(factory=set)
    asked: dict = field(factory=dict)
    tasks: dict = field(factory=dict)

    def balance(self, wallet):
        return sum(left for owner, *_, left, _ in self.grants if owner == wallet)

    def holds(self, **of):
        return [one for one in self.asked.values() if all(getattr(one, at) == is_ for at, is_ in of.items())]

    def held(self, wallet):
        return sum(one.held for one in self.holds(wallet=wallet))

    def within_cap(self, key, at_ms):
        window = self.caps[key][1]
        here = window_of(window, at_ms)
        spent = sum(
            amount for _, k, when, amount, _ in self.charges if k == key and window_of(window, when) == here
        )
        return spent, sum(one.held for one in self.holds(key=key) if window_of(window, one.at_ms) == here)

    def task(self, wallet, budget):
        """The task of that name, if it is remembered."""
        task = self.tasks.get((wallet, budget))
        if task is None:
            return None
        open_ = bool(self.holds(task=task))
        if not open_ and task.written is None:
            return None
        return task if open_ or self.now - task.last_ms <= 30 * DAY else None

    def rooms(self, wallet, key, budget, max_cost, at_ms):
        """(limit, what it leaves now, what it leaves once nothing is held)."""
        balance = self.balance(wallet)
        yield "wallet", balance - self.held(wallet), balance
        cap = self.caps[key][0]
        if cap is not None:
            spent, held = self.within_cap(key, at_ms)
            yield "key_cap", cap - spent - held, cap - spent
        if budget is not None:
            task = self.task(wallet, budget.id)
            if task is None:
                yield "budget", budget.max, budget.max
            else:
                most = task.max if budget.max is None else min(task.max, budget.max)
                held = sum(one.held for one in self.holds(task=task))
                yield "budget", most - task.spent - held, most - task.spent
        if max_cost is not None:
            yield "max_cost", max_cost, max_cost

    def limit(self, rooms, more, already=0):
        """What stands in the way of so much more, or `None`."""
        rooms = [
            (limit, max(now - already if limit == "max_cost" else now, 0), unheld)
            for limit, now, unheld in rooms
        ]
        full = [room for room in rooms if more > room[1]]
        if not full:
            return None
        for_good = [room for room in full if more > room[2] - already]
        return min(for_good, key=lambda room: room[1])[0] if for_good else "in_flight"

    def burn(self, wallet, amount):
        """Take a charge out of the grants; gives what each paid."""
        paid = []
        for grant in sorted(self.grants, key=lambda one: (one[1] is None, one[1] or 0, one[2], one[3])):
            part = min(grant[4], amount) if grant[0] == wallet else 0
            if part:
                grant[4] -= part
                amount -= part
                paid.append((grant[5], part))
        assert amount == 0, "the model itself overspent"
        return paid

    def charge(self, request, amount, *, empty=False):
        one = self.asked[request]
        self.charges.append((one.wallet, one.key, one.at_ms, amount, empty))
        if one.task is not None:
            one.task.spent += amount
        return self.burn(one.wallet, amount)


def window_of(window, at_ms):
    """A name for the window in which a moment lies."""
    when = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
    return {
        "lifetime": 0,
        "day": when.date(),
        "week": when.isocalendar()[:2],
        "month": (when.year, when.month),
    }[window]


# -- the machine -----------------------------------------------------------------------------------

amounts = st.integers(0, 40) | st.integers(0, 40) | st.integers(0, 1_000)
pick = st.integers(0, 99)


def seldom(strategy):
    """Mostly nothing, so that requests are refused now and then, and not nearly always."""
    return st.none() | st.none() | st.none() | strategy


def some(**of):
    """Only where there is such a request."""
    return precondition(lambda self: self.chosen(0, **of) is not None)


class Machine(RuleBasedStateMachine):
    """Everything that happens to books: decided by the ledger, written, applied."""

    def __init__(self):
        super().__init__()
        self.model = Model()
        self.ledger = Ledger()
        self.journal = []
        self.count = 0

    @initialize(
        money=st.tuples(*[st.integers(0, 1_000)] * 2),
        soon=st.tuples(*[st.integers(0, 500)] * 2),
        caps=st.lists(st.none() | st.integers(50, 1_000), min_size=3, max_size=3),
        windows=st.lists(st.sampled_from(["lifetime", "day", "week", "month"]), min_size=3, max_size=3),
    )
    def begin(self, money, soon, caps, windows):
        """Some credit, some that expires within a day, and keys with and without caps."""
        for wallet in WALLETS:
            self.write(Wallet(wallet, "", "USD", self.model.now))
        for key, cap, window in zip(KEYS, caps, windows, strict=True):
            self.model.caps[key] = (cap, window)
            self.write(self.key(key))
        for wallet, amount, expiring in zip(WALLETS, money, soon, strict=True):
            if amount:
                self.top_up(wallet, amount, promo=amount % 2 == 0, expires=None)
            if expiring:
                self.top_up(wallet, expiring, promo=expiring % 2 == 0, expires=DAY)

    def write(self, record):
        """As the books do it: written, and then applied."""
        self.journal.append(record)
        self.ledger.apply(record)

    def fresh(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def key(self, key):
        cap, window = self.model.caps[key]
        revoked = key in self.model.revoked
        return Key(
            key, OWNER[key], f"d_{key}", "", self.model.now, cap=cap, cap_window=window, revoked=revoked
        )

    def chosen(self, number, **of):
        """One of the requests, by a number that hypothesis likes to make small."""
        found = [
            name for name, one in self.model.asked.items()
            if all(getattr(one, at) == is_ for at, is_ in of.items())
        ]  # fmt: skip
        return found[number % len(found)] if found else None

    def opened(self, request):
        return next(one for one in self.ledger.open_attempts() if one.attempt.request == request)

    # -- money in and out --------------------------------------------------------------------------

    @rule(
        wallet=st.sampled_from(WALLETS),
        amount=st.integers(1, 1_000),
        promo=st.booleans(),
        expires=st.none() | st.sampled_from([1, DAY, 3 * DAY, 40 * DAY]),
    )
    def top_up(self, wallet, amount, promo, expires):
        model, name = self.model, self.fresh("g")
        expires_ms = None if expires is None else model.now + expires
        kind = GrantKind.PROMO if promo else GrantKind.PAID
        grant = Grant(name, wallet, amount, kind, f"src_{name}", model.now, expires_ms)
        self.ledger.check_grant(grant)
        self.write(grant)
        model.grants.append([wallet, expires_ms, not promo, len(model.grants), amount, name])
        with pytest.raises(DuplicateGrant):
            self.ledger.check_grant(replace(grant, grant=f"{name}_again"))

    @rule(
        more=st.sampled_from([0, 1, 1_000, DAY // 3, DAY, 6 * DAY, 31 * DAY, 45 * DAY]),
        wallet=st.none() | st.sampled_from(WALLETS),
    )
    def time_goes_by_and_credit_expires(self, more, wallet):
        """At most what is available, soonest first."""
        model = self.model
        model.now += more
        for one in WALLETS if wallet is None else (wallet,):
            free = model.balance(one) - model.held(one)
            due = [g for g in model.grants if g[0] == one and g[1] is not None and g[1] <= model.now]
            for grant in sorted(due, key=lambda g: (g[1], g[2], g[3])):
                gone = max(min(grant[4], free), 0)
                grant[4] -= gone
                free -= gone
        for transfer in self.ledger.expire_due(model.now, wallet):
            self.write(transfer)

    # -- who may spend -----------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        cap=st.none() | st.integers(0, 1_000),
        window=st.sampled_from(["lifetime", "day", "week", "month"]),
        what=st.sampled_from(["limit"] * 3 + ["thaw"] * 5 + ["freeze", "revoke"]),
    )
    def the_operator_decides(self, key, cap, window, what):
        model, wallet = self.model, OWNER[key]
        if what == "limit":
            model.caps[key] = (cap, window)
            self.ledger.check_key(self.key(key))
            self.write(self.key(key))
        elif what == "revoke":  # for good
            model.revoked.add(key)
            self.write(self.key(key))
        else:
            (model.frozen.add if what == "freeze" else model.frozen.discard)(wallet)
            self.write(Wallet(wallet, "", "USD", model.now, what == "freeze"))

    # -- a request ---------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        amount=amounts,
        task=seldom(st.sampled_from(TASKS)),
        most=seldom(amounts) | st.integers(100, 1_000),
        max_cost=seldom(amounts),
        begins=st.sampled_from([None, False, False, True]),
    )
    def take(self, key, amount, task, most, max_cost, begins):
        model, wallet, name = self.model, OWNER[key], self.fresh("r")
        budget = None if task is None else Budget(task, most)
        claim = Claim(Spender(wallet, key), model.now, budget, max_cost)
        known = model.task(wallet, task) if budget is not None else None
        if wallet in model.frozen:
            expected = WalletFrozen
        elif key in model.revoked:
            expected = KeyRevoked
        elif budget is not None and known is None and most is None:
            expected = UnknownTask
        else:
            limit = model.limit(model.rooms(wallet, key, budget, max_cost, model.now), amount)
            expected = Insufficient if limit else None
        if expected is not None:
            with pytest.raises(expected) as refused:
                self.ledger.take(name, claim, amount)
            if expected is Insufficient:
                assert refused.value.limit == limit
                assert 0 <= refused.value.available < amount
            return
        self.ledger.take(name, claim, amount)
        if budget is not None:
            if known is None:
                known = model.tasks[wallet, task] = TaskModel(most, model.now)
            known.last_ms = model.now
            known.max = known.max if most is None else min(known.max, most)
        model.asked[name] = Asked(wallet, key, model.now, amount, known, budget, max_cost)
        if begins is not None:
            self.begin_attempt(name, job=begins)

    @some(open=False)
    @rule(number=pick, job=st.booleans())
    def attempt(self, number, job):
        self.begin_attempt(self.chosen(number, open=False), job=job)

    def begin_attempt(self, request, *, job):
        one = self.model.asked[request]
        one.number, one.open, one.progress = one.number + 1, True, None
        task, most = "", None
        if one.task is not None:
            # what is in force: the request that set it may leave no record
            task, asked = one.budget.id, one.budget.max
            most = one.task.max if asked is None else min(one.task.max, asked)
            one.task.max = one.task.written = most
        self.write(
            Attempt(
                request,
                one.number,
                one.wallet,
                one.key,
                one.held,
                "m",
                "p",
                "a",
                "openai_chat",
                True,
                "v",
                10**6,
                self.model.now,
                "job" if job else "call",
                one.at_ms,
                task,
                most,
            )
        )

    @some(open=True, job=False)
    @rule(number=pick, amount=amounts)
    def extend(self, number, amount):
        """Up, if it fits; or down."""
        self.extend_one(self.chosen(number, open=True, job=False), amount)

    def extend_one(self, request, amount):
        model, one = self.model, self.model.asked[request]
        expected, limit = None, None
        if amount > one.held:
            rooms = model.rooms(one.wallet, one.key, one.budget, one.max_cost, one.at_ms)
            limit = model.limit(rooms, amount - one.held, already=one.held)
            expected = Insufficient if limit else None
            expected = KeyRevoked if one.key in model.revoked else expected
            expected = WalletFrozen if one.wallet in model.frozen else expected
        if expected is not None:
            with pytest.raises(expected) as refused:
                self.ledger.check_extension(request, amount)
            if expected is not Insufficient:
                return
            assert refused.value.limit == limit
            amount = one.held + refused.value.available  # as far as it goes
        self.ledger.check_extension(request, amount)
        self.write(Extension(request, one.number, amount, model.now))
        one.held = amount

    @some(open=True, job=False)
    @rule(number=pick, cost=amounts)
    def progress(self, number, cost):
        request = self.chosen(number, open=True, job=False)
        one = self.model.asked[request]
        one.progress = min(cost, one.held)
        self.write(
            Progress(
                request, one.number, one.progress, cost, NO_USAGE, Source.ESTIMATED, True, self.model.now
            )
        )

    @some(open=True, job=False)
    @rule(number=pick, cost=amounts)
    def fail_over(self, number, cost):
        """The customer pays nothing, and the hold goes on."""
        self.fail_over_one(self.chosen(number, open=True, job=False), cost)

    def fail_over_one(self, request, cost):
        record = self.settlement(request, 0, cost, Ending.BROKEN)
        assert (record.charged, record.legs) == (0, ())
        self.model.asked[request].open = False

    @some(open=True, job=False)
    @rule(number=pick, price=amounts, empty=st.booleans())
    def settle(self, number, price, empty):
        self.settle_one(self.chosen(number, open=True, job=False), price, empty=empty)

    def settle_one(self, request, price, *, empty):
        self.settled(request, price, EMPTY_FREE if empty else None)
        self.ledger.give_back(request)
        del self.model.asked[request]

    def settled(self, request, price, flag=None):
        """At its price, or at what is held if that is less; by the grants in their order."""
        one = self.model.asked[request]
        price = 0 if flag else price
        record = self.settlement(request, price, price, Ending.COMPLETE, flag)
        charged = min(price, one.held)
        paid = self.model.charge(request, charged, empty=bool(flag))
        assert (record.charged, record.loss, record.held) == (charged, price - charged, one.held)
        assert [(leg.grant, leg.amount) for leg in record.legs] == paid

    def settlement(self, request, price, cost, ending, flag=None):
        flags = (flag,) if flag else ()
        made = Bill((Usage(output=1),), Source.REPORTED, price, cost, flags)
        record = self.ledger.settlement(self.opened(request), made, ending, self.model.now)
        self.write(record)
        return record

    @some(open=True, job=False)
    @rule(number=pick)
    def void(self, number):
        """Never sent."""
        request = self.chosen(number, open=True, job=False)
        self.write(Void(request, self.model.asked[request].number, self.model.now))
        self.ledger.give_back(request)
        del self.model.asked[request]

    @some(open=False)
    @rule(number=pick)
    def give_back(self, number):
        """A request ends between two attempts, or before the first."""
        request = self.chosen(number, open=False)
        self.ledger.give_back(request)
        self.ledger.give_back(request)  # twice is once
        del self.model.asked[request]

    @rule(
        key=st.sampled_from(KEYS),
        amount=st.integers(0, 200),
        price=st.integers(0, 200),
        task=seldom(st.sampled_from(TASKS)),
        then=st.sampled_from(["settle", "settle", "extend", "fail over"]),
        to=amounts,
    )
    def a_whole_request(self, key, amount, price, task, then, to):
        """From its hold to its end in one step, as most of them go."""
        before = set(self.model.asked)
        self.take(key, amount, task, 500, None, begins=False)
        for request in set(self.model.asked) - before:
            if then == "extend":
                self.extend_one(request, to)
            if then == "fail over":
                self.fail_over_one(request, price)
                self.begin_attempt(request, job=False)
            self.settle_one(request, price, empty=price % 9 == 8)

    # -- jobs --------------------------------------------------------------------------------------

    @some(open=True, job=False)
    @rule(number=pick, cost=amounts)
    def accepted(self, number, cost):
        """A provider takes work on: from here on the request is gone, and its attempt stays."""
        request = self.chosen(number, open=True, job=False)
        if self.opened(request).attempt.kind == "job":
            one = self.model.asked[request]
            one.job, one.cost_if_finished = True, cost
            self.write(Job(request, one.number, "video", NO_USAGE, cost, cost, self.model.now))
            self.ledger.keep(request)

    @some(job=True)
    @rule(number=pick, finished=st.booleans())
    def job_ends(self, number, finished):
        """Its hold closes with it; nobody gives it back."""
        request = self.chosen(number, job=True)
        if finished:
            self.settled(request, self.model.asked[request].cost_if_finished)
        else:
            self.write(Void(request, self.model.asked[request].number, self.model.now, "failed"))
        del self.model.asked[request]

    # -- restarts ----------------------------------------------------------------------------------

    @rule()
    def a_segment_begins(self):
        """What is open is said once more."""
        for opened in self.ledger.open_attempts():
            self.write(Carry(opened.attempt, opened.progress, self.model.now, opened.hold, opened.job))

    @rule()
    @precondition(lambda self: self.journal)
    def the_process_dies(self):
        """All that is left are the records: calls are settled at their last progress, jobs go on."""
        model = self.model
        for request, one in list(model.asked.items()):
            if not one.open:
                self.ledger.give_back(request)  # so it never was
                del model.asked[request]
        for task in model.tasks.values():
            task.max = (
                task.max if task.written is None else task.written
            )  # lowered by whom no record tells of
        before = self.ledger.state()
        self.ledger = Ledger()
        for record in self.journal:
            self.ledger.replay(record)
        assert self.ledger.state() == before
        for opened in self.ledger.open_attempts():
            request = opened.attempt.request
            if opened.job is None:
                record = self.ledger.settle_recovered(opened, model.now)
                self.journal.append(record)
                one = model.asked[request]
                paid = model.charge(request, min(one.progress or 0, one.held))
                assert isinstance(record, UsageRecord)
                assert [(leg.grant, leg.amount) for leg in record.legs] == paid
                del model.asked[request]

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def no_wallet_is_overspent(self):
        for wallet in WALLETS if self.journal else ():
            granted = sum(
                one.amount for one in self.journal if isinstance(one, Grant) and one.wallet == wallet
            )
            settled = sum(
                one.charged for one in self.journal if isinstance(one, UsageRecord) and one.wallet == wallet
            )
            assert settled + self.ledger.held(wallet) <= granted
            assert self.ledger.available(wallet) >= 0

    @invariant()
    def the_books_are_as_the_model_says(self):
        ledger, model = self.ledger, self.model
        for wallet in WALLETS if self.journal else ():
            assert ledger.balance(wallet) == model.balance(wallet)
            assert ledger.held(wallet) == model.held(wallet)
            left = {grant.grant: left for grant, left in ledger.grants(wallet)}
            assert left == {g[5]: g[4] for g in model.grants if g[0] == wallet and g[4]}
        for key in KEYS if self.journal else ():
            assert ledger.spent_within_cap(key, model.now) == model.within_cap(key, model.now)
            empty = sum(
                e and when // DAY == model.now // DAY for _, k, when, _, e in model.charges if k == key
            )
            assert ledger.empties(key, model.now) == empty
        open_ = {one.attempt.request: one.hold for one in ledger.open_attempts()}
        assert open_ == {name: one.held for name, one in model.asked.items() if one.open}
        assert ledger.holds_open() == len(model.asked)

    @invariant()
    def tasks_are_as_the_model_says(self):
        for wallet in WALLETS if self.journal else ():
            for task in TASKS:
                known, expected = (
                    self.ledger.task(wallet, task, self.model.now),
                    self.model.task(wallet, task),
                )
                assert (known is None) == (expected is None)
                if known is not None:
                    assert (known.max, known.tally.spent) == (expected.max, expected.spent)
                    assert known.tally.held == sum(one.held for one in self.model.holds(task=expected))


SHORT = settings(max_examples=100, stateful_step_count=50)


def test_no_sequence_of_events_brings_the_ledger_away_from_the_model():
    run_state_machine_as_test(Machine, settings=SHORT)


@pytest.mark.long
def test_no_long_sequence_of_events_brings_the_ledger_away_from_the_model():
    run_state_machine_as_test(Machine, settings=settings(max_examples=3_000, stateful_step_count=150))
