"""The sandbox's own count of calls, held against the books after any number of kills: none missing, none twice."""

from collections import Counter, defaultdict
from datetime import datetime
from decimal import Decimal

from attrs import define, field

from tests.crashes.lives import LEAST_INPUT, PRICE
from tests.loopback import buckets, everything

STARTING_MS = 200
"""No process asks a provider so soon after its birth; what the sandbox hears until then was sent by the one before."""


@define(eq=False)
class Account:
    """Books and bills after all those lives.

    Attributes:
        lives: as they were lived.
        gate: the last of them, which is alive.
    """

    lives: object
    gate: object
    records: list = field(init=False)
    calls: dict = field(init=False)

    def __attrs_post_init__(self):
        self.records = everything(self.gate)
        self.calls = {call["id"]: call for call in self.lives.provider.calls()}

    def check(self):
        """Everything; a failure says what is wrong."""
        found = self.gate.admin("verify")[1]
        assert found["ok"], found
        self.check_records()
        self.check_calls()
        self.check_clients()
        self.check_money()

    @property
    def named(self):
        """Records that say which call they are about, by its id."""
        return {record["upstream_id"]: record for record in self.records if record["upstream_id"]}

    def check_records(self):
        """Nothing twice: no attempt, no call."""
        attempts = Counter((record["request_id"], record["attempt"]) for record in self.records)
        assert max(attempts.values()) == 1, "an attempt was settled twice"
        ids = [record["upstream_id"] for record in self.records if record["upstream_id"]]
        assert len(ids) == len(set(ids)), "a call stands in the books twice"
        assert set(ids) <= self.calls.keys(), "a record is about a call that was never made"
        nameless = [record for record in self.records if not record["upstream_id"]]
        # who leaves before the provider has answered at all pays an estimate
        assert {record["status"] for record in nameless} <= {"killed", "hung_up"}
        for name, record in self.named.items():
            mine, theirs = buckets(record), self.calls[name]["usage"]
            if record["usage_source"] == "reported":
                assert mine == theirs, (record, self.calls[name])
            elif record["usage_source"] == "estimated":
                # as for output: on so busy a machine the provider is ahead of what was read when the client left
                assert mine["input"] >= theirs["input"], (record, self.calls[name])
                assert mine["output"] > 0 or not theirs["output"], (record, self.calls[name])

    def check_calls(self):
        """Nothing missing: each call has a record, by its name or, where a kill came first, by whose it is and when."""
        customers = {customer.key_id: customer.number for customer in self.lives.customers}
        named = self.named
        offsets = defaultdict(set)
        for name, record in named.items():
            if any(self.calls[name]["usage"].values()):
                offset = _input(self.calls[name]) - customers[record["key_id"]]
                offsets[self.calls[name]["dialect"]].add(offset)
        assert all(len(found) == 1 for found in offsets.values()), "a record is about another customer's call"
        nameless = Counter(
            (self._life_of(record), customers[record["key_id"]])
            for record in self.records
            if not record["upstream_id"]
        )
        left = Counter()
        for name in self.calls.keys() - named.keys():
            call = self.calls[name]
            life = self._heard_in(call)
            if any(call["usage"].values()):
                nameless[life, _input(call) - min(offsets[call["dialect"]])] -= 1
            else:
                left[life] += 1  # it was cut off before it said whose it is, or was refused
        missing = {who: count for who, count in nameless.items() if count < 0}
        assert not missing, f"calls without a record, by life and customer: {missing}"
        for life, count in left.items():
            assert count <= sum(more for (when, _), more in nameless.items() if when == life), life

    def check_clients(self):
        """What a client saw complete is in the books, whole, by the provider's own report."""
        by_request = defaultdict(list)
        for record in self.records:
            by_request[record["request_id"]].append(record)
        for request in self.complete:
            assert request in by_request, f"{request} was answered and is not in the books"
            last = max(by_request[request], key=lambda record: record["attempt"])
            assert (last["status"], last["usage_source"]) == ("complete", "reported"), last

    def check_money(self):
        """Every acknowledged top-up once, and what is left is what came in less what was charged."""
        shown = self.gate.admin("wallet_show", wallet=self.lives.wallet)[1]
        sources = Counter(grant["source"] for grant in shown["grants"])
        refs = Counter({source.rpartition(":")[2]: count for source, count in sources.items()})
        lost = [ref for ref in self.lives.banker.acknowledged if refs[ref] != 1]
        assert not lost, f"acknowledged top-ups that are not there, or twice: {lost}"
        assert max(refs.values()) == 1
        assert len(refs) - 1 - len(self.lives.banker.acknowledged) in (0, 1), (
            "one may not have been acknowledged"
        )
        came_in = Decimal(1000) + (len(refs) - 1) * Decimal(PRICE)
        charged = sum(Decimal(record["cost"]) for record in self.records)
        assert Decimal(shown["balance"]) == came_in - charged
        assert Decimal(shown["held"]) == 0

    @property
    def complete(self):
        return [request for customer in self.lives.customers for request in customer.complete]

    def told(self):
        """The figures, for people."""
        killed = sum(record["status"] == "killed" for record in self.records)
        archived = len(list((self.lives.state / "archive").glob("*.gz")))
        return (
            f"{self.lives.told()}; {len(self.calls)} calls, {len(self.records)} records of which {killed} settled "
            f"by recovery, {len(self.complete)} answers seen complete, {len(self.lives.banker.acknowledged)} top-ups, "
            f"{archived} segments in the archive"
        )

    def _life_of(self, record):
        began = datetime.fromisoformat(record["created_at"]).timestamp() * 1000
        return sum(birth.wall_ms <= began for birth in self.lives.births)

    def _heard_in(self, call):
        return sum(birth.monotonic_ms + STARTING_MS <= call["received_ms"] for birth in self.lives.births)


def _input(call):
    usage = call["usage"]
    whole = usage["input"] + usage["cache_read"] + usage["cache_write_5m"] + usage["cache_write_1h"]
    return whole - LEAST_INPUT
