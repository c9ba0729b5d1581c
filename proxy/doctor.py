"""`farebox doctor`: provoke every refusal that protects money, and one paid call, and look at the answers.

A limit that is configured but not enforced is worse than none, so this asks the running gateway instead of reading
its settings. It uses a wallet of its own, which gets a small promotional grant whenever less than that is left, and
revokes every key that it makes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final

import msgspec
from attrs import frozen

from proxy.admin_client import AdminClient, Answer, Unreachable

WALLET: Final = "doctor"
EMPTY_WALLET: Final = "doctor (empty)"
GRANT: Final = "1.00"
_QUESTION: Final = "Say hello."
_OUTPUT_TOKENS: Final = 16


@frozen
class Step:
    """One provocation: what was expected, what came."""

    step: str
    expected: str
    status: int
    answer: str
    ok: bool

    def shown(self) -> dict[str, Any]:
        """As a row."""
        return {
            "step": self.step,
            "ok": self.ok,
            "expected": self.expected,
            "status": self.status,
            "answer": self.answer,
        }


def examine(admin: AdminClient, base_url: str, model: str | None) -> tuple[Step, ...]:
    """Provoke a 401, 402, 404, 429 and one paid call; the paid call costs what it costs at the provider.

    Args:
        admin: the running gateway.
        base_url: where its API listens.
        model: what to ask for the paid call, or `None` for the cheapest that is served.
    """
    asked = model or _cheapest(admin, base_url)
    ask = _Asker(admin, base_url)
    steps = [_refusal("401: a key that is none", 401, "invalid_api_key", ask(asked, key="no-such-key"))]
    with _key(admin, _wallet(admin, EMPTY_WALLET)) as empty:
        steps.append(
            _refusal("402: a wallet without credit", 402, "insufficient_credits", ask(asked, key=empty))
        )
    funded = _wallet(admin, WALLET)
    if Decimal(_call(admin, "wallet_show", wallet=funded)["available"]) < Decimal(GRANT):
        _call(admin, "top_up", wallet=funded, amount=GRANT, promo=True)
    with _key(admin, funded) as key:
        steps.append(_refusal("404: an unknown model", 404, "model_not_found", ask("no/such-model", key=key)))
        steps += _paid(admin, base_url, ask(asked, key=key), asked, key)
    with _key(admin, funded, rpm=1) as slow:
        ask("no/such-model", key=slow)
        steps.append(
            _refusal(
                "429: one request per minute, two made", 429, "rate_limit_exceeded", ask(asked, key=slow)
            )
        )
    return tuple(steps)


@frozen
class _Asker:
    admin: AdminClient
    base_url: str

    def __call__(self, model: str, *, key: str) -> Answer:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_completion_tokens": _OUTPUT_TOKENS,
        }
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return self.admin.send(
            "POST", f"{self.base_url}/v1/chat/completions", headers, msgspec.json.encode(body)
        )


def _refusal(step: str, status: int, code: str, answer: Answer) -> Step:
    try:
        said = msgspec.json.decode(answer.body)["error"]
        text, right = f"{said['code']}: {said['message']}", said["code"] == code
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        text, right = answer.body[:200].decode("utf-8", "replace"), False
    return Step(step, f"{status} {code}", answer.status, text, right and answer.status == status)


def _paid(admin: AdminClient, base_url: str, answer: Answer, model: str, key: str) -> list[Step]:
    """The call itself, and its record in the books."""
    cost = answer.headers.get("x-credits-cost-micro", "none")
    said = (
        f"{model}, cost {cost} micro"
        if answer.status == 200
        else answer.body[:300].decode("utf-8", "replace")
    )
    steps = [Step("200: a paid call", "200", answer.status, said, answer.status == 200 and cost.isdigit())]
    if answer.status == 200:
        request = answer.headers.get("x-request-id", "")
        usage = admin.send("GET", f"{base_url}/v1/usage/{request}", {"authorization": f"Bearer {key}"})
        right = usage.status == 200 and str(msgspec.json.decode(usage.body).get("cost_micro")) == cost
        text = usage.body[:300].decode("utf-8", "replace")
        steps.append(Step("200: its usage record, same cost", "200", usage.status, text, right))
    return steps


def _cheapest(admin: AdminClient, base_url: str) -> str:
    """The served OpenAI-dialect model with the cheapest output."""
    answer = admin.send("GET", f"{base_url}/api/models", {})
    try:
        listed = msgspec.json.decode(answer.body)["data"]
        served = [one for one in listed if one["dialect"] == "openai_chat"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise Unreachable(f"what answers at {base_url} is no gateway of ours") from None
    if not served:
        return "no-model-is-served"
    cheapest: dict[str, Any] = min(served, key=lambda one: one.get("output_cost_per_1m", float("inf")))
    return str(cheapest["id"])


@contextmanager
def _key(admin: AdminClient, wallet: str, rpm: int | None = None) -> Iterator[str]:
    """A key that is revoked again."""
    made = _call(admin, "key_create", wallet=wallet, name="doctor", rpm=rpm)
    try:
        yield made["key"]
    finally:
        _call(admin, "key_revoke", key_id=made["key_id"])


def _wallet(admin: AdminClient, name: str) -> str:
    """The wallet of this name, made if there is none."""
    for wallet in _call(admin, "wallet_list")["data"]:
        if wallet["name"] == name:
            return str(wallet["wallet"])
    return str(_call(admin, "wallet_create", name=name)["wallet"])


def _call(admin: AdminClient, operation: str, **arguments: Any) -> dict[str, Any]:
    return admin.call(operation, msgspec.json.encode(arguments))
