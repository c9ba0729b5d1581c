"""The plain routes through Quart, over a gateway on fakes: models, prices, credit, usage, key, health, admin."""

from decimal import Decimal
from types import SimpleNamespace

import msgspec
import pytest
from quart_trio import QuartTrio

from accounting.hold import Overloaded
from accounting.records import Key
from accounting.reports import Reader
from proxy.admin import Admin
from proxy.keys import digest_of, new_key
from proxy.pages import account, admin, health, models
from proxy.types import Secret
from tests.fakes import World
from tests.test_request_path import STREAM, body

TOKEN = "the-admin-token"


@pytest.fixture
def world(autojump_clock):
    return World(STREAM, requests_per_minute=60, concurrency=3)


async def nothing(_sql, _parameters):
    return []


class Tail:
    def __init__(self, journal):
        self.journal = journal

    def unloaded_usage(self):
        return self.journal.unloaded_usage()

    def usage_of(self, request):
        return tuple(one for _, one in self.unloaded_usage() if one.request == request)


class Page:
    """The app's blueprints in a plain Quart app: the fork in front of them has tests of its own."""

    def __init__(self, world):
        self.app = QuartTrio("pages", static_folder=None)
        reader = Reader(nothing, Tail(world.journal))
        self.app.register_blueprint(models.build(world.gateway))
        self.app.register_blueprint(account.build(world.gateway, reader))
        self.app.register_error_handler(Exception, self.failed)
        self.world = world

    async def failed(self, error):
        return {"status": error.status, "message": error.message, "param": error.param}, error.status

    async def get(self, path, key=None, **headers):
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        answer = await self.app.test_client().get(path, headers=headers)
        return answer.status_code, msgspec.json.decode(await answer.get_data(as_text=False))

    async def post(self, path, content):
        answer = await self.app.test_client().post(path, data=content)
        return answer.status_code, msgspec.json.decode(await answer.get_data(as_text=False))


@pytest.fixture
def page(world):
    return Page(world)


async def test_models_are_public_and_shaped_by_the_dialect(page):
    _, openai = await page.get("/v1/models")
    assert openai["object"] == "list"
    assert {"id", "object", "created", "owned_by"} <= openai["data"][0].keys()
    _, anthropic = await page.get("/v1/models", **{"anthropic-version": "2026-10-21"})
    assert anthropic["has_more"] is False
    assert anthropic["data"][0]["type"] == "model"
    _, gemini = await page.get("/genai/v1beta/models")
    assert all(one["name"].startswith("models/") for one in gemini["models"])


async def test_a_model_is_found_by_any_of_its_names_and_an_unknown_one_is_a_404(page):
    for name in ("sandbox/chat", "sandbox-chat", "models/sandbox-chat"):
        assert (await page.get(f"/v1/models/{name}"))[1]["id"] == "sandbox/chat"
    assert (await page.get("/v1/models/nothing"))[0] == 404


async def test_a_key_sees_only_the_models_that_it_may_use_at_its_prices(page, world):
    secret = new_key("fb_sk_", lambda size: b"\x09" * size)
    world.books.put_down(
        Key("k2", "w", digest_of(secret), "fb…", 0, models=("sandbox/cha*",), markup_ppm=2_000_000)
    )
    _, everybody = await page.get("/api/models")
    _, mine = await page.get("/api/models", secret)
    assert [one["id"] for one in mine["data"]] == ["sandbox/chat"]
    listed = next(one for one in everybody["data"] if one["id"] == "sandbox/chat")
    assert Decimal(mine["data"][0]["pricing"]["tiers"][0]["output"]) == 2 * Decimal(
        listed["pricing"]["tiers"][0]["output"]
    )
    assert (await page.get("/v1/models/sandbox-claude", secret))[0] == 404


async def test_a_bad_key_is_refused_even_where_none_is_needed(page):
    assert (await page.get("/v1/models", "nonsense"))[0] == 401


async def test_prices_of_so_many_tokens_are_exact(page):
    status, found = await page.get(
        "/v1/credits/pricing?models=sandbox/chat&input_tokens=1000&output_tokens=10"
    )
    assert status == 200
    [one] = found["data"]
    _, catalogue = await page.get("/api/models")
    tier = next(one for one in catalogue["data"] if one["id"] == "sandbox/chat")["pricing"]["tiers"][0]
    expected = (1000 * Decimal(tier["input"]) + 10 * Decimal(tier["output"])) / 10**6
    assert Decimal(one["cost"]) == expected
    assert Decimal(one["credits"]) == 100 * expected
    status, same = await page.post(
        "/v1/credits/pricing", b'{"models": ["sandbox/chat"], "input_tokens": 1000, "output_tokens": 10}'
    )
    assert (status, same) == (200, found)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"models": 5}', b'{"input_tokens": -1}', b'{"input_tokens": 1e30}', b'{"x": 1}',
                b'{"publishable_key": "fb_pk_1"}', b'{"models": ["none"]}'],
)  # fmt: skip
async def test_bad_questions_about_prices_are_refused(page, content):
    assert (await page.post("/v1/credits/pricing", content))[0] in (400, 404)


async def test_credit_is_shown_exactly_and_only_with_a_key(page, world):
    for path in ("/v1/credits", "/v1/credits/balance"):
        status, found = await page.get(path, world.secret)
        assert status == 200
        assert (found["balance"], found["balance_micro"], found["credits"]) == (
            "100.00",
            100_000_000,
            "10000.00",
        )
        assert (await page.get(path))[0] == 401


async def test_usage_is_there_at_once_adds_up_and_is_nobody_elses(page, world):
    await world.ask(body())
    status, one = await page.get("/v1/usage/req_1", world.secret)
    assert (status, one["status"], one["attempts"]) == (200, "complete", 1)
    _, balance = await page.get("/v1/credits", world.secret)
    assert Decimal(balance["balance"]) + Decimal(one["cost"]) == 100

    _, listed = await page.get("/v1/usage", world.secret)
    assert [record["request_id"] for record in listed["data"]] == ["req_1"]

    other = await world.books.create_wallet("other")
    secret = new_key("fb_sk_", lambda size: b"\x0a" * size)
    world.books.put_down(Key("k3", other.wallet, digest_of(secret), "fb…", 0))
    assert (await page.get("/v1/usage/req_1", secret))[0] == 404
    assert (await page.get("/v1/usage", secret))[1]["data"] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=1e3",
        "cursor=x",
        "cursor=1;2",
        "from=soon",
        "to=",
        "group_by=day",
    ],
)
async def test_bad_questions_about_usage_are_refused(page, world, query):
    assert (await page.get(f"/v1/usage?{query}", world.secret))[0] == 400


@pytest.mark.parametrize(
    "moment", ["2026-11-21", "2026-11-21T10:00:00Z", "2026-11-21T10:00:00+02:00", "1795000000"]
)
async def test_moments_are_iso_or_unix_seconds(page, world, moment):
    assert (await page.get(f"/v1/usage?from={moment}", world.secret))[0] == 200


async def test_a_key_sees_its_own_limits_and_what_remains(page, world):
    _, found = await page.get("/v1/key", world.secret)
    assert found["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "concurrency": 3}
    assert found["remaining"] == {"requests": 60, "concurrency": 3}
    assert world.secret not in str(found)


async def test_health_says_why_it_is_not_ready(autojump_clock):
    reason = []
    app = QuartTrio("health", static_folder=None)
    app.register_blueprint(health.build(lambda: reason[0] if reason else None))
    client = app.test_client()
    assert await (await client.get("/health")).get_json() == {"status": "ok"}
    assert await (await client.get("/health/ready")).get_json() == {"status": "ready", "db": "ok"}
    reason.append("the disk is gone")
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert (await answer.get_json())["reason"] == "the disk is gone"


# The admin listener


class Desk:
    def __init__(self, world):
        reader = Reader(nothing, Tail(world.journal))
        self.findings = ()

        async def verify():
            return self.findings

        self.admin = Admin(world.books, reader, verify, "fb_sk_", lambda size: b"\x03" * size)
        self.app = QuartTrio("desk", static_folder=None)
        resting = [{"account": "one", "because": "429"}]
        self.app.register_blueprint(
            admin.build(self.admin, world.gateway.telemetry, Secret(TOKEN), lambda: resting)
        )

    async def call(self, operation, arguments=b"{}", token=f"Bearer {TOKEN}"):
        headers = {} if token is None else {"authorization": token}
        answer = await self.app.test_client().post(f"/admin/{operation}", data=arguments, headers=headers)
        return answer.status_code, msgspec.json.decode(await answer.get_data(as_text=False))


@pytest.fixture
def desk(world):
    return Desk(world)


@pytest.mark.parametrize(
    "token", [None, "", "Bearer", "Bearer wrong", TOKEN, f"bearer {TOKEN}", "Bearer \u00e9\u00ff"]
)
async def test_without_the_token_nothing_is_said_or_done(desk, token):
    status, found = await desk.call("wallet_list", token=token)
    assert (status, found["error"]["code"]) == (401, "no_key")


async def test_wallets_top_ups_and_keys(desk, world):
    _, made = await desk.call("wallet_create", b'{"name": "alice"}')
    wallet = made["wallet"]
    top_up = msgspec.json.encode({"wallet": wallet, "amount": "2.50", "ref": "a"})
    assert (await desk.call("top_up", top_up))[1]["already"] is False
    status, again = await desk.call("top_up", top_up)
    assert (status, again["already"], again["balance"]) == (200, True, "2.50")
    other = msgspec.json.encode({"wallet": wallet, "amount": "3.00", "ref": "a"})
    assert (await desk.call("top_up", other))[0] == 409
    _, key = await desk.call(
        "key_create", msgspec.json.encode({"wallet": wallet, "rpm": 5, "expires": "2099-01-01"})
    )
    assert world.ledger.key_by_digest(digest_of(key["key"])).requests_per_minute == 5
    _, listed = await desk.call("key_list", msgspec.json.encode({"wallet": wallet}))
    assert key["key"] not in str(listed)
    _, revoked = await desk.call("key_revoke", msgspec.json.encode({"key_id": key["key_id"]}))
    assert revoked["revoked"] is True
    assert world.ledger.key_by_digest(digest_of(key["key"])).revoked


@pytest.mark.parametrize(
    ("operation", "arguments", "status"),
    [
        ("nothing", {}, 404),
        ("wallet_create", {"name": 5}, 400),
        ("wallet_create", {"name": "x" * 201}, 400),
        ("wallet_create", {"currency": "usd"}, 400),
        ("wallet_show", {"wallet": "none"}, 404),
        ("wallet_show", {}, 400),
        ("top_up", {"wallet": "none", "amount": "1"}, 404),
        ("top_up", {"wallet": "w", "amount": "0"}, 400),
        ("top_up", {"wallet": "w", "amount": "-1"}, 400),
        ("top_up", {"wallet": "w", "amount": 1.5}, 400),
        ("top_up", {"wallet": "w", "amount": "1", "ref": ""}, 400),
        ("top_up", {"wallet": "w", "amount": "1", "expires": "never"}, 400),
        ("key_create", {"wallet": "none"}, 404),
        ("key_create", {"wallet": "w", "rpm": 0}, 400),
        ("key_create", {"wallet": "w", "concurrency": -1}, 400),
        ("key_create", {"wallet": "w", "markup_ppm": -1}, 400),
        ("key_revoke", {"key_id": "none"}, 404),
        ("usage", {"limit": 0}, 400),
        ("usage", {"cursor": "x"}, 400),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_and_nothing_is_written(
    desk, world, operation, arguments, status
):
    before = len(world.journal.records)
    found, answer = await desk.call(operation, msgspec.json.encode(arguments))
    assert (found, bool(answer["error"]["message"])) == (status, True)
    assert len(world.journal.records) == before


async def test_usage_shows_the_operator_what_callers_do_not_see(desk, world):
    await world.ask(body())
    _, found = await desk.call("usage")
    assert {"provider", "account", "provider_cost", "loss", "flags"} <= found["data"][0].keys()
    _, one = await desk.call("usage", b'{"request": "req_1"}')
    assert one["data"] == found["data"]


async def test_verify_names_what_is_wrong(desk):
    assert (await desk.call("verify"))[1] == {"ok": True, "findings": []}
    desk.findings = (SimpleNamespace(invariant="I7", what="charged more than held", where="request r"),)
    _, found = await desk.call("verify")
    assert found["ok"] is False
    assert found["findings"] == [{"invariant": "I7", "what": "charged more than held", "where": "request r"}]


async def test_books_that_take_nothing_on_are_a_503(desk, world):
    def full(*_args, **_more):
        raise Overloaded("the disk is too slow")

    world.journal.write = full
    status, found = await desk.call("wallet_create")
    assert (status, found["error"]["code"]) == (503, "overloaded")


async def test_resting_accounts_and_metrics_are_behind_the_token(desk):
    client = desk.app.test_client()
    for path in ("/admin/accounts", "/metrics"):
        assert (await client.get(path)).status_code == 401
        answer = await client.get(path, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
