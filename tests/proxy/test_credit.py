"""Credit for one request: what is set aside, and what a 402 tells."""

from datetime import date
from types import SimpleNamespace

import pytest
from attrs import define, evolve, field

from accounting.books import Books
from accounting.claims import Claim
from accounting.ledger import Ledger
from accounting.records import Grant, GrantKind, Key, Spender, Wallet
from accounting.spending import Budget
from pricing.catalog import Catalog, Listing, Model, Vendor
from pricing.price import Rates, Tier
from proxy import credit
from proxy.config import Config, Pricing, Provider
from proxy.errors import Kind, Rejected
from proxy.routing import Router
from proxy.types import Ask, Caller, Measures, Path
from proxy.waiting import Waiting

MODEL = Model(
    id="openai/m",
    vendor="openai",
    name="M",
    wire_name="m",
    dialect="openai_chat",
    context_window=100_000,
    output_max=50_000,
    output_field="max_tokens",
    reasoning="none",
    image_tokens_max=0,
    audio_tokens_per_second_max=0,
    message_tokens=0,
    tools_tokens=0,
    dense_bytes_per_token=1,
    tokens_per_second_max=1,
    prices=(Listing((Tier(0, Rates(input=1_000_000, output=2_000_000)),)),),
)
VENDOR = Vendor("openai", "openai_chat", "openai", "https://o.example", "yes", "")
SPENDER = Spender("w", "k")
CALLER = Caller(SPENDER)
CHAT = Path("openai_chat")
MICRO = 10**6


@define(eq=False)
class FakeWriter:
    records: list = field(factory=list)

    def reserve(self, places):
        pass

    def release(self, places):
        pass

    def write(self, record, *, reserved=False):  # noqa: ARG002 - the writer's signature
        self.records.append(record)
        return len(self.records)


def house(micro=100, url="https://pay.example"):
    """Books with a wallet of so many micro-units, where a token of input costs one and of output two."""
    ledger = Ledger()
    ledger.replay(Wallet("w", "w", "USD", 0))
    if micro:
        ledger.replay(Grant("g", "w", micro * MICRO, GrantKind.PAID, "s", 0))
    config = Config(provider=(Provider("openai", "openai"),), pricing=Pricing(top_up_url=url))
    return SimpleNamespace(
        books=Books(ledger, FakeWriter(), lambda: 0, lambda: 0.0, lambda prefix: prefix),
        router=Router(Catalog.of((VENDOR,), (MODEL,)), config, lambda: date(2026, 11, 21)),
        config=config,
        waiting=Waiting(0, 1),
    )


def hold(gateway, text=10, output=10, request="r", choices=1):
    measures = Measures(text_bytes=text, output=output, choices=choices)
    ask = Ask("openai_chat", "m", stream=False, measures=measures, fields={})
    claim = gateway.books.claim(SPENDER)
    offers = gateway.router.offers(ask, CALLER, gateway.books.available_to(claim))
    return at_once(credit.hold(gateway, request, claim, offers, SimpleNamespace(client_gone=False)))


def at_once(coroutine):
    """What a coroutine gives that never waits."""
    with pytest.raises(StopIteration) as over:
        coroutine.send(None)
    return over.value.value


def claim(gateway, caller=CALLER, path=CHAT, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return credit.claim(gateway, caller, path, SimpleNamespace(headers=named))


def refusal(gateway, **more):
    with pytest.raises(Rejected) as error:
        hold(gateway, **more)
    return error.value


def test_the_most_that_a_request_can_cost_is_set_aside():
    gateway = house(100)
    with hold(gateway, text=10, output=20) as held:
        assert held.held == 50 * MICRO
        assert gateway.books.ledger.available("w") == 50 * MICRO
    assert gateway.books.ledger.available("w") == 100 * MICRO


def test_a_402_says_what_is_missing_and_what_would_fit():
    error = refusal(house(100), text=10, output=50)
    assert (error.kind, error.status) == (Kind.NO_CREDIT, 402)
    assert error.metadata == {
        "limit": "wallet",
        "shortfall_micro": 10,
        "affordable_max_tokens": 45,
        "top_up_url": "https://pay.example",
    }
    assert "45" in error.message


def test_what_is_said_to_be_affordable_passes():
    gateway = house(100)
    for choices in (1, 3):
        affordable = refusal(gateway, output=50, choices=choices).metadata["affordable_max_tokens"]
        with hold(gateway, output=affordable, choices=choices):
            pass


def test_a_shortfall_is_rounded_up():
    gateway = house(100)
    gateway.books.ledger.take("other", Claim(SPENDER), 1)
    assert refusal(gateway, text=0, output=50).metadata["shortfall_micro"] == 1


def test_where_the_input_alone_is_too_much_no_output_is_affordable():
    error = refusal(house(100), text=101, output=1)
    assert error.metadata["affordable_max_tokens"] == 0
    assert "would fit" not in error.message


def test_open_holds_that_stand_in_the_way_are_named_as_such():
    gateway = house(100)
    with hold(gateway, text=10, output=40):
        error = refusal(gateway, text=10, output=40, request="r2")
        assert error.metadata["limit"] == "in_flight"
        assert refusal(gateway, text=10, output=400, request="r2").metadata["limit"] == "wallet"
    with hold(gateway, text=10, output=40, request="r2"):
        pass


def test_without_a_page_to_top_up_none_is_named():
    assert "top_up_url" not in refusal(house(1, url=None)).metadata


def test_an_empty_wallet_is_refused_before_the_body_is_read():
    with pytest.raises(Rejected) as error:
        claim(house(0))
    assert (error.value.status, error.value.metadata) == (402, {"limit": "wallet"})
    claim(house(1))


def test_a_wallet_that_is_all_held_says_so():
    gateway = house(100)
    with hold(gateway, text=0, output=50), pytest.raises(Rejected) as error:
        claim(gateway)
    assert error.value.metadata == {"limit": "in_flight"}


def test_counting_tokens_needs_no_credit():
    claim(house(0), path=Path("anthropic", action="count"))


def test_a_frozen_wallet_and_one_that_is_not_there_are_403():
    gateway = house()
    gateway.books.ledger.replay(Wallet("w", "w", "USD", 0, frozen=True))
    assert refusal(gateway).status == 403
    with pytest.raises(Rejected) as error:
        claim(gateway, evolve(CALLER, spender=Spender("nobody", "k")))
    assert error.value.status == 403


def test_a_key_that_was_revoked_on_the_way_is_a_401():
    gateway = house()
    gateway.books.ledger.replay(Key("k", "w", "00" * 32, "fb…", 0, revoked=True))
    assert refusal(gateway).status == 401


# -- caps, budgets, and what one request may cost --------------------------------------------------


def test_headers_say_what_a_request_and_its_task_may_cost():
    claimed = claim(house(), x_credits_max_cost="0.00005", x_credits_budget_id="task-7; max=2.00")
    assert (claimed.max_cost, claimed.budget) == (50 * MICRO, Budget("task-7", 2 * 10**12))
    assert claim(house(), x_credits_budget_id=" a/b:c ").budget == Budget("a/b:c", None)
    assert (claim(house()).max_cost, claim(house()).budget) == (None, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"x_credits_max_cost": ""},
        {"x_credits_max_cost": "-1"},
        {"x_credits_max_cost": "1e3"},
        {"x_credits_max_cost": "1" * 60},
        {"x_credits_budget_id": ""},
        {"x_credits_budget_id": "; max=2"},
        {"x_credits_budget_id": "a; max=x"},
        {"x_credits_budget_id": "a; max=-2"},
        {"x_credits_budget_id": "a b"},
        {"x_credits_budget_id": "a; min=2"},
        {"x_credits_budget_id": "a" * 129},
        {"x_credits_budget_id": "a; max=1; max=9"},
        {"x_credits_budget_id": "ä"},
    ],
)
def test_a_header_that_cannot_be_read_is_a_400_that_names_it(headers):
    with pytest.raises(Rejected) as error:
        claim(house(), **headers)
    assert (error.value.status, error.value.param) == (400, next(iter(headers)).replace("_", "-"))


def test_each_limit_that_stands_in_the_way_is_named():
    gateway = house(1000)
    for headers, limit in (
        ({"x_credits_max_cost": "0.00005"}, "max_cost"),
        ({"x_credits_budget_id": "t; max=0.00005"}, "budget"),
    ):
        offers = gateway.router.offers(ASKED, CALLER, 10**12)
        with pytest.raises(Rejected) as error:
            at_once(credit.hold(gateway, "r", claim(gateway, **headers), offers, GONE))
        assert error.value.metadata["limit"] == limit
        assert error.value.metadata["affordable_max_tokens"] == 20
        assert error.value.metadata["shortfall_micro"] == 60


def test_a_budget_without_a_maximum_that_nobody_knows_is_a_400():
    gateway = house(1000)
    offers = gateway.router.offers(ASKED, CALLER, 10**12)
    with pytest.raises(Rejected) as error:
        at_once(credit.hold(gateway, "r", claim(gateway, x_credits_budget_id="t"), offers, GONE))
    assert (error.value.status, error.value.param) == (400, "x-credits-budget-id")


def test_a_key_that_has_spent_its_cap_is_refused_before_the_body_is_read():
    gateway = house(1000)
    gateway.books.ledger.replay(Key("k", "w", "00" * 32, "fb…", 0, cap=0))
    with pytest.raises(Rejected) as error:
        claim(gateway)
    assert (error.value.status, error.value.metadata) == (402, {"limit": "key_cap"})


def test_what_waits_for_credit_is_not_refused_early():
    gateway = house(100)
    gateway.waiting = Waiting(5.0, 10)
    with hold(gateway, text=0, output=50):
        assert claim(gateway).spender == SPENDER


ASKED = Ask("openai_chat", "m", stream=False, measures=Measures(text_bytes=10, output=50), fields={})
GONE = SimpleNamespace(client_gone=False)
