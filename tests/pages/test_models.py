"""Models and their prices: public, shaped by the caller's dialect, narrowed and priced by its key."""

from decimal import Decimal
from functools import partial

import msgspec
import pytest
from attrs import evolve

from proxy.config import Config, Markup, Pricing
from proxy.pages import models
from tests.fakes import World
from tests.pages.conftest import Page
from tests.test_request_path import STREAM

GEMINI_LISTS = ("/genai/v1beta/models", "/genai/v1/models", "/v1beta/models")


async def test_models_are_public_and_shaped_by_the_dialect(page):
    openai = (await page.get("/v1/models")).json
    assert openai["object"] == "list"
    assert {"id", "object", "created", "owned_by"} <= openai["data"][0].keys()
    assert {one["object"] for one in openai["data"]} == {"model"}
    anthropic = (await page.get("/v1/models", anthropic_version="2023-06-01")).json
    ids = [one["id"] for one in anthropic["data"]]
    assert anthropic["has_more"] is False
    assert (anthropic["first_id"], anthropic["last_id"]) == (ids[0], ids[-1])
    assert {one["type"] for one in anthropic["data"]} == {"model"}
    assert all(one["created_at"].endswith("Z") and one["display_name"] for one in anthropic["data"])
    assert ids == [one["id"] for one in openai["data"]]


@pytest.mark.parametrize("path", GEMINI_LISTS)
async def test_gemini_lists_say_which_models_its_routes_can_use(page, path):
    shown = {one["name"]: one for one in (await page.get(path)).json["models"]}
    assert shown["models/sandbox/gemini"]["supportedGenerationMethods"] == [
        "generateContent",
        "streamGenerateContent",
        "countTokens",
    ]
    assert shown["models/sandbox/chat"]["supportedGenerationMethods"] == []
    assert shown["models/sandbox/gemini"]["inputTokenLimit"] == 200_000
    assert shown["models/sandbox/gemini"]["displayName"]


@pytest.mark.parametrize(
    "name", ["sandbox/chat", "sandbox-chat", "models/sandbox-chat", "sandbox/chat@tokens=5"]
)
async def test_a_model_is_found_by_any_of_its_names(page, name):
    assert (await page.get(f"/v1/models/{name}")).json["id"] == "sandbox/chat"
    assert (await page.get(f"/v1/models/{name}", anthropic_version="x")).json["id"] == "sandbox/chat"
    assert (await page.get(f"/v1beta/models/{name}")).json["name"] == "models/sandbox/chat"


async def test_an_unknown_model_is_refused_in_the_callers_dialect(page):
    openai = await page.get("/v1/models/nothing")
    assert (openai.status, openai.json["error"]["code"]) == (404, "model_not_found")
    anthropic = await page.get("/v1/models/nothing", anthropic_version="2023-06-01")
    assert (anthropic.status, anthropic.json["error"]["type"]) == (404, "not_found_error")
    assert (
        anthropic.headers["request-id"] == anthropic.headers["x-request-id"] == anthropic.json["request_id"]
    )
    gemini = await page.get("/v1beta/models/nothing")
    assert (gemini.status, gemini.json["error"]["status"]) == (404, "NOT_FOUND")


async def test_a_key_sees_only_the_models_that_it_may_use_at_its_own_prices(page):
    mine = page.key(models=("sandbox/cha*",), markup_ppm=2_000_000)
    everybodys = {one["id"]: one for one in (await page.get("/api/models")).json["data"]}
    [one] = (await page.get("/api/models", mine)).json["data"]
    assert one["id"] == "sandbox/chat"
    assert one["output_cost_per_1m"] == 8.0 == 2 * everybodys["sandbox/chat"]["output_cost_per_1m"]
    assert one["pricing"]["tiers"][0]["cache_read"] == "0.20"
    assert (await page.get("/v1/models/sandbox-claude", mine)).status == 404
    assert (await page.get("/v1/models", mine, anthropic_version="x")).json["first_id"] == "sandbox/chat"
    [gemini] = (await page.get("/v1beta/models", mine)).json["models"]
    assert gemini["name"] == "models/sandbox/chat"


async def test_a_key_that_may_use_nothing_gets_empty_lists(page):
    none = page.key(models=("nobody/*",))
    assert (await page.get("/v1/models", none)).json["data"] == []
    shown = (await page.get("/v1/models", none, anthropic_version="x")).json
    assert (shown["first_id"], shown["last_id"], shown["data"]) == (None, None, [])


async def test_a_key_in_the_query_counts_on_gemini_routes_alone(page):
    mine = page.key(models=("sandbox/gemini",))
    assert len((await page.get(f"/v1beta/models?key={mine}")).json["models"]) == 1
    assert len((await page.get(f"/v1/models?key={mine}")).json["data"]) > 1


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/sandbox-chat", "/api/models", "/v1/credits/pricing", *GEMINI_LISTS]
)
async def test_a_bad_key_is_refused_even_where_none_is_needed(page, path):
    assert (await page.get(path, "nonsense")).status == 401


async def test_prices_of_so_many_tokens_are_exact(page):
    question = {"models": ["sandbox/chat"], "input_tokens": 1001, "output_tokens": 7}
    posted = await page.post("/v1/credits/pricing", msgspec.json.encode(question))
    [one] = posted.json["data"]
    # 1001 at 1.00 and 7 at 4.00 per million
    assert (one["cost"], one["credits"], one["cost_micro"]) == ("0.001029", "0.1029", 1029)
    got = await page.get("/v1/credits/pricing?models=sandbox/chat&input_tokens=1001&output_tokens=7")
    assert got.json == posted.json
    assert posted.json["partner_share"] == "0.00"


async def test_prices_carry_the_markup_of_the_model_and_round_up_once(autojump_clock):
    pricing = Pricing(markup_ppm=1_000_001, markup=(Markup("sandbox/claude", 600_000),))
    page = Page(World(STREAM, config=evolve(Config(), pricing=pricing)))
    question = b'{"models": ["sandbox-chat", "sandbox-claude"], "input_tokens": 1, "output_tokens": 0}'
    chat, claude = (await page.post("/v1/credits/pricing", question)).json["data"]
    assert (chat["markup_ppm"], chat["cost"], chat["cost_micro"]) == (1_000_001, "0.000001000001", 2)
    assert (claude["markup_ppm"], claude["cost"]) == (600_000, "0.0000018")


async def test_without_a_question_prices_of_a_million_tokens_of_every_model_are_told(page):
    for answer in (await page.get("/v1/credits/pricing"), await page.post("/v1/credits/pricing", b"")):
        chat = next(one for one in answer.json["data"] if one["model"] == "sandbox/chat")
        assert Decimal(chat["cost"]) == 5


@pytest.mark.parametrize("query", ["models=sandbox-chat,sandbox-claude", "models=sandbox-chat&models=sandbox-claude",
                                   "models[]=sandbox-chat&models[]=sandbox-claude"])  # fmt: skip
async def test_several_models_can_be_asked_for_in_each_way_of_writing_a_list(page, query):
    found = (await page.get(f"/v1/credits/pricing?{query}")).json["data"]
    assert [one["model"] for one in found] == ["sandbox/chat", "sandbox/claude"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400), (b"[]", 400), (b"\xff", 400), (b'{"models": ["\xff"]}', 400), (b'{"models": 5}', 400),
        (b'{"models": [5]}', 400),
        (b'{"input_tokens": -1}', 400), (b'{"input_tokens": 1e30}', 400), (b'{"output_tokens": 2147483649}', 400),
        (b'{"output_tokens": 1.5}', 400), (b'{"x": 1}', 400), (b'{"publishable_key": "fb_pk_1"}', 400),
        (b'{"models": ["none"]}', 404), (b'{"models": ["sandbox-chat", "none"]}', 404),
        (b'{"models": [' + b",".join([b'"sandbox-chat"'] * 1001) + b"]}", 400),
        (b'{"x":' + b"[" * 200_000, 400),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_bad_questions_about_prices_are_refused(page, content, status):
    answer = await page.post("/v1/credits/pricing", content)
    assert answer.status == status
    assert answer.json["error"]["message"]


async def test_many_names_in_one_question_are_looked_up_in_one_list(page, monkeypatch):
    listed = []
    router = type(page.world.router)
    plain = router.models
    monkeypatch.setattr(router, "models", lambda *args: listed.append(args) or plain(*args))
    question = msgspec.json.encode({"models": ["sandbox-chat"] * models.NAMES_MAX})
    assert len((await page.post("/v1/credits/pricing", question)).json["data"]) == models.NAMES_MAX
    assert len(listed) == 1


async def test_a_body_that_is_too_large_for_a_page_is_refused_in_words(page):
    answer = await page.post("/v1/credits/pricing", b" " * (2**20 + 1))
    assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("DELETE", "/v1/models", 405), ("GET", "/v1/nothing", 404)]
)
async def test_what_is_not_a_route_is_refused_in_each_dialect_with_a_request_id(page, method, path, status):
    openai, anthropic = await page.ask(method, path), await page.ask(method, path, anthropic_version="x")
    assert (openai.status, anthropic.status) == (status, status)
    assert openai.json["error"]["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
    assert anthropic.json["type"] == "error"
    assert openai.headers["x-request-id"] != anthropic.headers["x-request-id"]


async def test_our_own_fault_is_a_500_with_the_requests_id_and_nothing_else(page, monkeypatch):
    monkeypatch.setattr(type(page.world.router), "models", partial(lambda *_: {}["sk-secret"]))
    answer = await page.get("/v1/models")
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] in answer.json["error"]["message"]
    assert b"sk-secret" not in answer.content
    assert page.lines
    assert "sk-secret" not in str(page.lines)
