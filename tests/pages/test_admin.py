"""The admin listener: nothing without the token, everything in JSON, and no secret ever told twice."""

import json
import re

import pytest
from attrs import frozen

from accounting.ports import Overloaded
from proxy.keys import digest_of
from tests.pages.conftest import TOKEN
from tests.test_request_path import body

ROUTES = (
    ("GET", "/metrics"),
    ("GET", "/admin/accounts"),
    ("POST", "/admin/wallet_list"),
    ("POST", "/admin/nothing"),
)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "token", [None, "", " ", "Bearer", "Bearer ", "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}x",
              f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \u00e9\u00ff", f"Bearer {TOKEN}\u00e9"]
)  # fmt: skip
async def test_without_the_token_nothing_is_said_or_done(desk, method, path, token):
    answer = await desk.ask(method, path, b"{}", token)
    assert (answer.status, answer.json["error"]["code"]) == (401, "no_key")
    assert TOKEN.encode() not in answer.content


async def test_a_key_of_the_api_is_not_the_token(desk, world):
    assert (await desk.call("wallet_list", f"Bearer {world.secret}")).status == 401


async def test_a_wallet_from_its_making_to_a_call_with_its_key(desk, world):
    wallet = (await desk.call("wallet_create", name="alice")).json["wallet"]
    first = (await desk.call("top_up", wallet=wallet, amount="2.50", ref="a")).json
    again = (await desk.call("top_up", wallet=wallet, amount="2.50", ref="a")).json
    assert (first["already"], again["already"]) == (False, True)
    assert first["grant"] == again["grant"]
    assert again["balance"] == "2.50"
    made = (await desk.call("key_create", wallet=wallet, rpm=5, expires="2099-01-01")).json
    assert world.ledger.key_by_digest(digest_of(made["key"])).requests_per_minute == 5
    shown = (await desk.call("wallet_show", wallet=wallet)).json
    assert [grant["remaining"] for grant in shown["grants"]] == ["2.50"]
    assert [key["key_id"] for key in shown["keys"]] == [made["key_id"]]
    listed = await desk.call("key_list", wallet=wallet)
    assert made["key"] not in f"{shown}{listed.content}"
    assert (await desk.call("key_revoke", key_id=made["key_id"])).json["revoked"] is True
    assert world.ledger.key_by_digest(digest_of(made["key"])).revoked


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff", b'"x"', b'{"name": "\xff"}', b"[" * 100_000,
                                     b'{"name": ' + b"[" * 200_000])  # fmt: skip
async def test_what_is_no_object_in_json_is_refused(desk, content):
    answer = await desk.ask("POST", "/admin/wallet_create", content)
    assert (answer.status, answer.json["error"]["code"]) == (400, "bad_request")


async def test_no_body_at_all_is_an_operation_without_arguments(desk):
    assert (await desk.ask("POST", "/admin/wallet_list")).status == 200


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/", 404, "unknown_route"), ("GET", "/admin/wallet_list", 405, "wrong_method"),
    ("POST", "/metrics", 405, "wrong_method"), ("POST", "/v1/chat/completions", 404, "unknown_route"),
])  # fmt: skip
async def test_what_is_no_route_here_is_refused_in_json(desk, method, path, status, code):
    answer = await desk.ask(method, path)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)


async def test_usage_shows_the_operator_what_callers_do_not_see(desk, world):
    await world.ask(body())
    found = (await desk.call("usage")).json
    assert {"provider", "account", "provider_cost", "loss", "flags"} <= found["data"][0].keys()
    assert (await desk.call("usage", request="req_1")).json["data"] == found["data"]


async def test_books_that_take_nothing_on_are_a_503(desk, world):
    def full(*_args, **_more):
        raise Overloaded("the disk is too slow")

    world.journal.write = full
    answer = await desk.call("wallet_create")
    assert (answer.status, answer.json["error"]["code"]) == (503, "overloaded")


async def test_our_own_fault_is_a_500_in_json_and_a_line_in_the_log_without_its_words(
    desk, world, monkeypatch
):
    monkeypatch.setattr(type(desk.admin), "_wallet", lambda *_: {}["sk-secret"])
    answer = await desk.call("wallet_list")
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal")
    [line] = [json.loads(line) for line in world.log]
    assert (line["event"], line["level"]) == ("admin_failed", "error")
    assert line["traceback"].endswith("KeyError")
    assert b"sk-secret" not in answer.content


async def test_resting_accounts_are_as_the_pool_says(desk):
    desk.resting.append({"provider": "p", "account": "one", "because": "429"})
    assert (await desk.ask("GET", "/admin/accounts")).json == {"object": "list", "data": desk.resting}


async def test_metrics_are_prometheus_text_and_only_go_up(desk, world):
    def samples(text):
        return dict(
            re.findall(r"^(farebox_\S+?_total\S*|farebox_\S+_(?:bucket|count)\S*) (\S+)$", text, re.MULTILINE)
        )

    await world.ask(body())
    before = await desk.ask("GET", "/metrics")
    assert before.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    await world.ask(body(), request_id="req_2")
    after = samples((await desk.ask("GET", "/metrics")).content.decode())
    before = samples(before.content.decode())
    assert before.keys() <= after.keys()
    assert all(float(after[name]) >= float(value) for name, value in before.items())
    name = 'farebox_requests_total{dialect="openai_chat",kind="ok",status="200"}'
    assert (before[name], after[name]) == ("1", "2")


@frozen
class Found:
    invariant: str
    what: str
    where: str


async def test_verify_names_what_is_wrong(desk):
    assert (await desk.call("verify")).json == {"ok": True, "findings": []}
    desk.findings = (Found("I7", "charged more than held", "request r"),)
    assert (await desk.call("verify")).json == {
        "ok": False,
        "findings": [{"invariant": "I7", "what": "charged more than held", "where": "request r"}],
    }


async def test_nothing_secret_is_logged(desk, world):
    made = (await desk.call("key_create", wallet="w")).json
    await desk.call("wallet_list", f"Bearer {made['key']}")
    await world.ask(body(messages=[{"role": "user", "content": "the prompt"}]))
    logged = "".join(world.log)
    assert '"event":"request"' in logged
    for secret in (TOKEN, made["key"], world.secret, "the prompt", "sk-provider"):
        assert secret not in logged
