"""The doctor: sees every refusal, is not fooled by one that is missing, and leaves no key behind."""

import json
from decimal import Decimal

import pytest

from proxy import doctor
from proxy.admin_client import Answer, Unreachable

MODELS = [
    {"id": "a/dear", "dialect": "openai_chat", "output_cost_per_1m": 9.0},
    {"id": "a/cheap", "dialect": "openai_chat", "output_cost_per_1m": 1.0},
    {"id": "b/other", "dialect": "anthropic", "output_cost_per_1m": 0.1},
]


class Gateway:
    """A gateway as the doctor sees it; `broken` names what it does not enforce."""

    def __init__(self, broken=()):
        self.broken = broken
        self.wallets = {}
        self.keys = {}
        self.usage = {}

    # the admin side

    def call(self, operation, arguments):
        return getattr(self, operation)(**json.loads(arguments))

    def wallet_list(self):
        return {"data": [{"wallet": one, "name": name} for one, (name, _) in self.wallets.items()]}

    def wallet_create(self, name):
        wallet = f"w{len(self.wallets)}"
        self.wallets[wallet] = (name, Decimal(0))
        return {"wallet": wallet}

    def wallet_show(self, wallet):
        return {"available": str(self.wallets[wallet][1])}

    def top_up(self, wallet, amount, promo):
        assert promo
        name, balance = self.wallets[wallet]
        self.wallets[wallet] = (name, balance + Decimal(amount))

    def key_create(self, wallet, name, rpm):
        assert name == "doctor"
        key = f"key-{len(self.keys)}"
        self.keys[key] = {"wallet": wallet, "rpm": rpm, "made": 0, "revoked": False}
        return {"key": key, "key_id": key}

    def key_revoke(self, key_id):
        self.keys[key_id]["revoked"] = True
        return {}

    # the API side

    def send(self, _method, url, headers, body=None):
        if url.endswith("/api/models"):
            return self.answer(200, {"data": MODELS})
        secret = headers["authorization"].removeprefix("Bearer ")
        key = self.keys.get(secret)
        if key is None or key["revoked"]:
            return self.refuse(401, "invalid_api_key")
        if "/v1/usage/" in url:
            return self.answer(200, {"cost_micro": self.usage[url.rpartition("/")[2]]})
        return self.chat(key, json.loads(body)["model"])

    def chat(self, key, model):
        key["made"] += 1
        name, balance = self.wallets[key["wallet"]]
        if key["rpm"] is not None and key["made"] > key["rpm"] and "429" not in self.broken:
            return self.refuse(429, "rate_limit_exceeded")
        if balance <= 0 and "402" not in self.broken:
            return self.refuse(402, "insufficient_credits")
        if model != "a/cheap":
            return self.refuse(404, "model_not_found")
        request = f"req_{len(self.usage)}"
        self.usage[request] = 30 if "usage" not in self.broken else 31
        self.wallets[key["wallet"]] = (name, balance - Decimal("0.00003"))
        return Answer(200, {"x-request-id": request, "x-credits-cost-micro": "30"}, b"{}")

    def refuse(self, status, code):
        return self.answer(status, {"error": {"code": code, "message": "no"}})

    def answer(self, status, body):
        return Answer(status, {}, json.dumps(body).encode())


def test_a_sound_gateway_passes_every_step_with_the_cheapest_model():
    gateway = Gateway()
    steps = doctor.examine(gateway, "http://gate", None)
    assert [step.status for step in steps] == [401, 402, 404, 200, 200, 429]
    assert all(step.ok for step in steps)
    assert "a/cheap" in steps[3].answer


def test_every_key_that_it_makes_is_revoked_again():
    gateway = Gateway()
    doctor.examine(gateway, "http://gate", None)
    assert gateway.keys
    assert all(key["revoked"] for key in gateway.keys.values())


def test_keys_are_revoked_even_when_the_gateway_breaks_in_the_middle():
    gateway = Gateway()
    gateway.refuse = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        doctor.examine(gateway, "http://gate", "a/cheap")
    assert all(key["revoked"] for key in gateway.keys.values())


@pytest.mark.parametrize(("broken", "step"), [("402", 1), ("429", 5), ("usage", 4)])
def test_a_limit_that_is_not_enforced_is_seen(broken, step):
    steps = doctor.examine(Gateway({broken}), "http://gate", None)
    assert [number for number, one in enumerate(steps) if not one.ok] == [step]


def test_its_wallets_are_made_once_and_filled_only_when_little_is_left():
    gateway = Gateway()
    for _ in range(10):
        assert all(step.ok for step in doctor.examine(gateway, "http://gate", None))
    assert sorted(name for name, _ in gateway.wallets.values()) == ["doctor", "doctor (empty)"]
    assert max(balance for _, balance in gateway.wallets.values()) < 2


def test_an_answer_that_is_no_error_of_ours_is_not_taken_for_one():
    gateway = Gateway()
    gateway.refuse = lambda status, _code: Answer(status, {}, b"<html>\xff")
    first = doctor.examine(gateway, "http://gate", "a/cheap")[0]
    assert (first.status, first.ok) == (401, False)
    assert first.answer.startswith("<html>")


def test_without_a_model_that_it_can_ask_the_paid_call_fails_in_words():
    gateway = Gateway()
    steps = doctor.examine(gateway, "http://gate", "b/other")
    assert [step.ok for step in steps] == [True, True, True, False, True]
    assert "model_not_found" in steps[3].answer


@pytest.mark.parametrize("content", [b"<html>", b"\xff", b"{}", b'{"data": [1]}', b'{"data": 5}'])
def test_what_is_no_gateway_is_said(content):
    gateway = Gateway()
    gateway.send = lambda *_: Answer(200, {}, content)
    with pytest.raises(Unreachable, match="http://gate is no gateway"):
        doctor.examine(gateway, "http://gate", None)
