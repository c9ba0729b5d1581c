"""A caller's own money: exact, there at once, and nobody else's."""

from decimal import Decimal

import pytest
import trio
from msgspec.structs import replace

from accounting.records import Ending, Spender
from pricing.money import PICO
from tests.fakes import World
from tests.pages.conftest import Page
from tests.test_request_path import DONE, FINISH, ROLE, body, delta, usage


class Client:
    client_gone = False


OWN = ("/v1/credits", "/v1/credits/balance", "/v1/usage", "/v1/usage/req_1", "/v1/key")


@pytest.mark.parametrize("path", OWN)
async def test_without_a_key_nothing_is_told(page, path):
    answer = await page.get(path)
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["x-should-retry"] == "false"
    revoked = page.key(revoked=True)
    assert (await page.get(path, revoked)).status == 401


@pytest.mark.parametrize("carrier", ["authorization", "x_api_key", "x_user_key", "x_goog_api_key"])
async def test_every_carrier_of_a_key_works_here_too(page, carrier):
    value = page.world.secret if carrier != "authorization" else f"Bearer {page.world.secret}"
    assert (await page.get("/v1/credits", **{carrier: value})).status == 200


@pytest.mark.parametrize("path", ["/v1/credits", "/v1/credits/balance"])
async def test_balances_are_exact_decimals_and_integers_that_promise_no_more_than_there_is(page, world, path):
    with world.books.hold("held", world.books.claim(Spender("w", "k")), 1_500_001, Client()):
        found = (await page.get(path, world.secret)).json
    assert found == {
        "object": "balance",
        "balance": "100.00",
        "held": "0.000001500001",
        "available": "99.999998499999",
        "currency": "USD",
        "credits": "10000.00",
        "balance_micro": 100_000_000,
        "held_micro": 2,
        "available_micro": 99_999_998,
    }


async def test_usage_is_there_at_once_and_adds_up_with_the_balance(page, world):
    await world.ask(body())
    one = (await page.get("/v1/usage/req_1", world.secret)).json
    assert (one["status"], one["attempts"], one["usage_source"]) == ("complete", 1, "reported")
    assert (one["input_tokens"], one["output_tokens"], one["cache_read_input_tokens"]) == (10, 5, 0)
    assert one["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    assert (one["cost"], one["cost_micro"]) == ("0.00003", 30)  # 10 at 1.00 and 5 at 4.00 per million
    left = (await page.get("/v1/credits", world.secret)).json["balance"]
    assert Decimal(left) + Decimal(one["cost"]) == 100


async def test_usage_of_another_wallet_is_not_there(page, world):
    await world.ask(body())
    other = await world.books.create_wallet("other")
    stranger = page.key(other.wallet)
    answer = await page.get("/v1/usage/req_1", stranger)
    unknown = await page.get("/v1/usage/req_2", stranger)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert answer.json["error"]["message"].replace("req_1", "req_2") == unknown.json["error"]["message"]
    assert (await page.get("/v1/usage", stranger)).json == {"object": "list", "data": [], "next_cursor": None}


async def test_another_key_of_the_wallet_sees_the_wallets_usage(page, world):
    await world.ask(body())
    assert (await page.get("/v1/usage/req_1", page.key())).status == 200


async def test_callers_do_not_see_what_is_the_operators(page, world):
    await world.ask(body())
    shown = (await page.get("/v1/usage/req_1", world.secret)).json
    assert (
        not {"provider", "account", "provider_cost", "loss", "flags", "upstream_id", "wallet"} & shown.keys()
    )
    [listed] = (await page.get("/v1/usage", world.secret)).json["data"]
    assert not {"provider", "account", "provider_cost", "loss", "flags", "upstream_id"} & listed.keys()


async def test_a_request_that_failed_over_is_one_request_with_two_attempts(autojump_clock):
    world = World((500, [b"{}"]), (200, [ROLE, delta(), FINISH, usage(7, 3), DONE]), accounts=("one", "two"))
    await world.ask(body())
    assert [record.charged > 0 for record in world.settled] == [False, True]
    one = (await Page(world).get("/v1/usage/req_1", world.secret)).json
    assert (one["attempts"], one["attempt"], one["status"]) == (2, 2, "complete")
    assert (one["cost"], one["input_tokens"], one["output_tokens"]) == ("0.000019", 7, 3)


async def test_pages_of_usage_run_from_new_to_old_and_miss_nothing(page, world):
    for number in range(1, 6):
        await world.ask(body(), request_id=f"req_{number}")
    seen, cursor = [], ""
    while cursor is not None:
        query = f"limit=2&cursor={cursor}" if cursor else "limit=2"
        found = (await page.get(f"/v1/usage?{query}", world.secret)).json
        seen += [one["request_id"] for one in found["data"]]
        cursor = found["next_cursor"]
    assert seen == ["req_5", "req_4", "req_3", "req_2", "req_1"]


@pytest.mark.parametrize(
    ("model", "count"), [("sandbox/chat", 1), ("sandbox-chat", 1), ("sandbox/claude", 0), ("gone", 0)]
)
async def test_usage_of_one_model_is_found_by_any_of_its_names(page, world, model, count):
    await world.ask(body())
    assert len((await page.get(f"/v1/usage?model={model}", world.secret)).json["data"]) == count


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=-1", "limit"), ("limit=1e3", "limit"),
        ("limit=", "limit"), ("limit=%D9%A3", "limit"), ("cursor=x", "cursor"), ("cursor=1;2", "cursor"),
        ("cursor=", "cursor"), ("cursor=" + "9" * 20, "cursor"), ("from=soon", "from"), ("to=", "to"),
        ("from=99999999999999", "from"), ("group_by=day", "group_by"), ("group_by=", "group_by"),
    ],
)  # fmt: skip
async def test_bad_questions_about_usage_are_refused_by_name(page, world, query, param):
    answer = await page.get(f"/v1/usage?{query}", world.secret)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "query",
    ["cursor=9223372036854775808", "from=0001-01-01T00:00:00%2B23:59", "from=9999-12-31", "to=99999999999"],
)
async def test_questions_at_the_edge_are_answered(page, world, query):
    assert (await page.get(f"/v1/usage?{query}", world.secret)).status == 200


@pytest.mark.parametrize(
    ("from_", "to", "count"),
    [
        ("50", "51", 1),
        ("51", "60", 0),
        ("0", "50", 0),
        ("1970-01-01T00:00:50Z", "1970-01-01T00:00:51", 1),
        ("1970-01-01T01:00:50+01:00", "1970-01-02", 1),
    ],
)
async def test_moments_are_iso_or_unix_seconds_and_bound_the_list(page, world, from_, to, count):
    world.books.clock = lambda: 50_000
    await world.ask(body())
    found = await page.get(f"/v1/usage?from={from_}&to={to}", world.secret)
    assert len(found.json["data"]) == count


async def test_a_key_sees_its_own_limits_what_remains_and_when_they_are_full_again(page, world):
    key = page.key(
        requests_per_minute=6, tokens_per_minute=10_000, concurrency=3, models=("sandbox/*",), name="mine",
        expires_ms=4_102_444_800_000,
    )  # fmt: skip
    fresh = (await page.get("/v1/key", key)).json
    assert fresh["limits"] == {"requests_per_minute": 6, "tokens_per_minute": 10_000, "concurrency": 3}
    assert fresh["remaining"] == {"requests": 6, "tokens": 10_000, "concurrency": 3}
    assert fresh["resets_in_seconds"] == {"requests": 0.0, "tokens": 0.0}
    assert (fresh["models"], fresh["label"], fresh["wallet"]) == (["sandbox/*"], "mine", "w")
    assert fresh["expires_at"].startswith("2100-01-01T00:00:00")
    assert key not in str(fresh)

    await page.post("/v1/chat/completions", body(), key)
    used = (await page.get("/v1/key", key)).json
    assert (used["remaining"]["requests"], used["remaining"]["concurrency"]) == (5, 3)
    assert 9985 <= used["remaining"]["tokens"] < 10_000  # some have come back while the request ran
    assert used["resets_in_seconds"]["requests"] == pytest.approx(10, abs=0.1)


async def test_a_key_without_limits_says_so(page):
    found = (await page.get("/v1/key", page.key())).json
    assert found["limits"] == {"requests_per_minute": None, "tokens_per_minute": None, "concurrency": None}
    assert (found["remaining"], found["expires_at"], found["models"]) == ({}, None, [])


async def test_asking_about_money_takes_nothing_from_the_limits(page, world):
    for _ in range(3):
        for path in OWN:
            await page.get(path, world.secret)
    assert (await page.get("/v1/key", world.secret)).json["remaining"]["requests"] == 60


async def test_a_client_that_hangs_up_has_used_its_tokens_per_minute(page, world):
    async def leave(reply):
        while not reply.writes:
            await trio.sleep(0.01)
        reply.hang_up()

    world.provider.answers[:] = [(200, [ROLE, *[delta("word " * 10)] * 20, 100, FINISH, usage(), DONE])]
    await world.ask(body(), meanwhile=leave)
    [record] = world.settled
    assert record.outcome is Ending.HUNG_UP
    used = record.usage.context + record.usage.output
    assert used > 20
    # some seconds of the minute have passed at most; unused, all of it would be back
    assert (await page.get("/v1/key", world.secret)).json["remaining"]["tokens"] <= 10_000 - used + 10


async def test_a_key_says_what_it_may_still_spend_and_until_when(page):
    world = page.world
    world.books.put_down(replace(world.ledger.key("k"), cap=5 * PICO, cap_window="day", clamp=True))
    key = (await page.get("/v1/key", world.secret)).json
    assert key["cap"] | {"resets_at": None} == {
        "amount": "5.00",
        "window": "day",
        "spent": "0.00",
        "held": "0.00",
        "remaining": "5.00",
        "resets_at": None,
    }
    assert key["cap"]["resets_at"].endswith("T00:00:00+00:00")
    assert key["clamp"] is True
    world.books.put_down(replace(world.ledger.key("k"), cap=None))
    assert (await page.get("/v1/key", world.secret)).json["cap"] is None
