"""The operator's operations: arguments that do not fit are refused by name, and nothing is written for them."""

import itertools

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.export import PAGE_ROWS
from accounting.records import Grant, GrantKind, Key
from accounting.store import StoreError
from pricing.money import PICO
from proxy.admin import OPERATIONS, READS, Admin
from proxy.errors import Kind, Rejected
from proxy.keys import digest_of
from tests.fakes import World
from tests.test_request_path import STREAM, body


class NoReports:
    """A reader of empty books that remembers what it was asked; `made` is what the store knows."""

    def __init__(self):
        self.asked = []
        self.made = {}

    async def usage_of(self, request, wallet=None):
        self.asked.append((request, wallet))
        return ()

    async def created(self, table, which=None):
        self.asked.append((table, which))
        if isinstance(self.made, Exception):
            raise self.made
        return self.made

    async def ask(self, sql, parameters):
        self.asked.append(("usage" if "FROM usage" in sql else sql, parameters))
        return [(7, "", "{}")] * 2


@pytest.fixture
def world(autojump_clock):
    return World(STREAM)


@pytest.fixture
def reader():
    return NoReports()


@pytest.fixture
def admin(world, reader):
    async def verify():
        return ()

    async def load():
        return 7

    sizes = itertools.count(3)
    return Admin(
        world.books, reader, verify, "fb_sk_", lambda size: bytes([next(sizes)]) * size, load_books=load
    )


async def refused(admin, operation, status, **arguments):
    written = len(admin.books.writer.records)
    with pytest.raises(Rejected) as caught:
        await admin.call(operation, msgspec.json.encode(arguments))
    assert caught.value.status == status, caught.value
    assert len(admin.books.writer.records) == written
    return caught.value.message


async def done(admin, operation, **arguments):
    return await admin.call(operation, msgspec.json.encode(arguments))


@pytest.mark.parametrize(
    ("operation", "arguments", "status", "named"),
    [
        ("nothing", {}, 404, "nothing"),
        ("__init__", {}, 404, "__init__"),
        ("wallet_create", {"name": 5}, 400, "name"),
        ("wallet_create", {"name": "x" * 201}, 400, "name"),
        ("wallet_create", {"currency": "usd"}, 400, "currency"),
        ("wallet_create", {"currency": "INR"}, 400, "exchange"),
        ("wallet_create", {"nmae": "x"}, 400, "nmae"),
        ("wallet_list", {"wallet": "w"}, 400, "wallet"),
        ("wallet_show", {"wallet": "none"}, 404, "none"),
        ("wallet_show", {}, 400, "wallet"),
        ("top_up", {"wallet": "none", "amount": "1"}, 404, "none"),
        ("top_up", {"wallet": "w"}, 400, "amount"),
        ("top_up", {"wallet": "w", "amount": "0"}, 400, "amount"),
        ("top_up", {"wallet": "w", "amount": "0.000000000000"}, 400, "amount"),
        ("top_up", {"wallet": "w", "amount": "-1"}, 400, "-1"),
        ("top_up", {"wallet": "w", "amount": "1e3"}, 400, "1e3"),
        ("top_up", {"wallet": "w", "amount": "1000000001"}, 400, "1000000000"),
        ("top_up", {"wallet": "w", "amount": 1.5}, 400, "amount"),
        ("top_up", {"wallet": "w", "amount": "1", "ref": ""}, 400, "ref"),
        ("top_up", {"wallet": "w", "amount": "1", "ref": "x" * 201}, 400, "ref"),
        ("top_up", {"wallet": "w", "amount": "1", "expires": "never"}, 400, "expires"),
        ("top_up", {"wallet": "w", "amount": "1", "expires": "1969-12-31"}, 400, "expires"),
        ("top_up", {"wallet": "w", "amount": "1", "promo": "yes"}, 400, "promo"),
        ("key_create", {"wallet": "none"}, 404, "none"),
        ("key_create", {"wallet": "w", "rpm": 0}, 400, "rpm"),
        ("key_create", {"wallet": "w", "rmp": 60}, 400, "rmp"),
        ("key_create", {"wallet": "w", "tpm": 10**9 + 1}, 400, "tpm"),
        ("key_create", {"wallet": "w", "tpm": 10**30}, 400, "tpm"),
        ("key_create", {"wallet": "w", "concurrency": -1}, 400, "concurrency"),
        ("key_create", {"wallet": "w", "concurrency": "5"}, 400, "concurrency"),
        ("key_create", {"wallet": "w", "markup_ppm": -1}, 400, "markup_ppm"),
        ("key_create", {"wallet": "w", "models": "openai/*"}, 400, "models"),
        ("key_create", {"wallet": "w", "models": ["x"] * 201}, 400, "models"),
        ("key_create", {"wallet": "w", "models": [""]}, 400, "models"),
        ("key_create", {"wallet": "w", "name": "x" * 201}, 400, "name"),
        ("key_create", {"wallet": "w", "expires": "1969-12-31T23:59:59Z"}, 400, "future"),
        ("key_create", {"wallet": "w", "expires": "tomorrow"}, 400, "tomorrow"),
        ("key_create", {"wallet": "w", "cap": "0"}, 400, "cap"),
        ("key_create", {"wallet": "w", "cap": "-1"}, 400, "-1"),
        ("key_create", {"wallet": "w", "cap": 5}, 400, "cap"),
        ("key_create", {"wallet": "w", "cap": "1", "cap_window": "year"}, 400, "year"),
        ("key_create", {"wallet": "w", "cap_window": "day"}, 400, "a cap beside it"),
        ("key_create", {"wallet": "w", "clamp": "yes"}, 400, "clamp"),
        ("key_change", {"key_id": "none", "rpm": 5}, 404, "none"),
        ("key_change", {"key_id": "k"}, 400, "something to change"),
        ("key_change", {"key_id": "k", "rpm": 0}, 400, "rpm"),
        ("key_change", {"key_id": "k", "rmp": 5}, 400, "rmp"),
        ("key_change", {"key_id": "k", "cap": "much"}, 400, "much"),
        ("key_change", {"key_id": "k", "cap_window": "week"}, 400, "a cap beside it"),
        ("key_change", {"key_id": "k", "cap": None, "cap_window": "day"}, 400, "a cap beside it"),
        ("key_change", {"key_id": "k", "cap_window": None}, 400, "cap_window"),
        ("key_change", {"key_id": "k", "clamp": None}, 400, "clamp"),
        ("key_change", {"key_id": "k", "name": None}, 400, "name"),
        ("key_change", {"key_id": "k", "name": "x" * 201}, 400, "name"),
        ("key_change", {"key_id": "k", "models": [""]}, 400, "models"),
        ("key_change", {"key_id": "k", "expires": "1969-12-31"}, 400, "future"),
        ("key_change", {"key_id": "k", "wallet": "other"}, 400, "wallet"),
        ("key_show", {"key_id": "none"}, 404, "none"),
        ("wallet_freeze", {"wallet": "none"}, 404, "none"),
        ("wallet_freeze", {"wallet": "w", "frozen": "no"}, 400, "frozen"),
        ("export_page", {"table": "secrets", "upto": 1}, 400, "wallet, api_key"),
        ("export_page", {"table": "usage"}, 400, "upto"),
        ("export_page", {"table": "usage", "upto": 1, "after": "x"}, 400, "after"),
        ("durable", {"seq": 5}, 400, "seq"),
        ("key_revoke", {"key_id": "none"}, 404, "none"),
        ("key_revoke", {}, 400, "key_id"),
        ("key_list", {"wallet": "none"}, 404, "none"),
        ("usage", {"wallet": "none"}, 404, "none"),
        ("usage", {"limit": 0}, 400, "limit"),
        ("usage", {"limit": 1001}, 400, "limit"),
        ("usage", {"limit": True}, 400, "limit"),
        ("verify", {"deep": True}, 400, "deep"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_by_name_and_nothing_is_written(
    admin, operation, arguments, status, named
):
    assert named in await refused(admin, operation, status, **arguments)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"null", b"5", b"\xff", b'{"name": "\xff"}', b"[" * 200_000]
)
async def test_what_is_no_object_in_json_is_refused(admin, content):
    with pytest.raises(Rejected) as caught:
        await admin.call("wallet_create", content)
    assert caught.value.kind is Kind.BAD_REQUEST


async def test_a_ref_is_one_top_up_however_often_it_is_sent(admin, world):
    first = await done(admin, "top_up", wallet="w", amount="2.50", ref="a")
    again = await done(admin, "top_up", wallet="w", amount="2.5", ref="a")
    assert (first["already"], again["already"], again["balance"]) == (False, True, "102.50")
    assert [grant.source_key for grant in world.journal.of(Grant)].count("manual:a") == 1


@pytest.mark.parametrize("other", [{"amount": "3"}, {"promo": True}, {"wallet": "other"}])
async def test_a_ref_that_was_used_for_something_else_is_a_conflict(admin, world, other):
    other_wallet = (await done(admin, "wallet_create"))["wallet"]
    await done(admin, "top_up", wallet="w", amount="2.50", ref="a")
    asked = {"wallet": "w", "amount": "2.50", "ref": "a"} | other
    if asked["wallet"] == "other":
        asked["wallet"] = other_wallet
    assert "used before, for 2.50 (paid) to wallet w" in await refused(admin, "top_up", 409, **asked)


async def test_without_a_ref_one_is_made_and_told_and_each_is_a_top_up_of_its_own(admin):
    made = [await done(admin, "top_up", wallet="w", amount="1") for _ in range(2)]
    assert made[0]["ref"] != made[1]["ref"]
    assert made[1]["balance"] == "102.00"


async def test_promotional_credit_is_kept_apart_and_burns_first(admin, world):
    await done(admin, "top_up", wallet="w", amount="1", promo=True, ref="gift")
    assert world.journal.of(Grant)[-1].kind is GrantKind.PROMO
    await world.ask(body())
    shown = await done(admin, "wallet_show", wallet="w")
    assert {one["kind"]: one["remaining"] for one in shown["grants"]} == {
        "promo": "0.99997",
        "paid": "100.00",
    }


async def test_a_date_is_utc_and_a_grant_shows_when_it_expires(admin, world):
    await done(admin, "top_up", wallet="w", amount="1", expires="2099-01-31")
    await done(admin, "top_up", wallet="w", amount="1", expires="2099-01-31T02:00:00+02:00")
    assert {grant.expires_ms for grant in world.journal.of(Grant)[1:]} == {4_073_500_800_000}
    shown = await done(admin, "wallet_show", wallet="w")
    assert shown["grants"][0]["expires_at"] == "2099-01-31T00:00:00.000+00:00"


async def test_a_key_is_shown_once_and_kept_as_a_digest(admin, world):
    made = await done(
        admin, "key_create", wallet="w", name="n", rpm=1, tpm=2, concurrency=3, models=["a/*"], markup_ppm=600_000,
        expires="2099-01-31",
    )  # fmt: skip
    key = world.ledger.key_by_digest(digest_of(made["key"]))
    assert (key.requests_per_minute, key.tokens_per_minute, key.concurrency) == (1, 2, 3)
    assert (key.models, key.markup_ppm, key.expires_ms) == (("a/*",), 600_000, 4_073_500_800_000)
    assert made["key"] not in str(await done(admin, "key_list"))
    assert made["key"] not in str(await done(admin, "wallet_show", wallet="w"))
    assert made["key"] not in str(world.journal.of(Key))


async def test_a_revoked_key_is_refused_at_once_and_may_be_revoked_again(admin, world):
    assert (await done(admin, "key_revoke", key_id="k"))["revoked"] is True
    assert (await done(admin, "key_revoke", key_id="k"))["revoked"] is True
    reply = await world.ask(body())
    assert reply.status == 401


async def test_a_key_has_a_cap_and_shows_what_it_has_spent_of_it(admin, world):
    made = await done(admin, "key_create", wallet="w", cap="2.50", cap_window="week", clamp=True)
    key = world.ledger.key(made["key_id"])
    assert (key.cap, key.cap_window, key.clamp) == (5 * PICO // 2, "week", True)
    assert (made["cap"], made["cap_spent"], made["cap_held"]) == ("2.50", "0.00", "0.00")
    await done(admin, "key_change", key_id="k", cap="1")
    await world.ask(body())
    shown = await done(admin, "key_show", key_id="k")
    assert (shown["cap"], shown["cap_window"], shown["cap_held"]) == ("1.00", "lifetime", "0.00")
    assert shown["cap_spent"] == "0.00003"
    assert shown["cap_resets_at"] is None
    without = (await done(admin, "key_create", wallet="w"))["key_id"]
    assert {
        (await done(admin, "key_show", key_id=without))[name] for name in shown if name.startswith("cap")
    } == {None}


async def test_of_a_key_only_what_is_named_changes(admin, world):
    made = await done(
        admin, "key_create", wallet="w", name="n", rpm=1, tpm=2, concurrency=3, models=["a/*"], markup_ppm=600_000,
        expires="2099-01-31", cap="5", cap_window="day", clamp=True,
    )  # fmt: skip
    before = world.ledger.key(made["key_id"])
    for changes, named in (
        ({"rpm": 9}, {"requests_per_minute": 9}),
        ({"rpm": None, "tpm": None}, {"requests_per_minute": None, "tokens_per_minute": None}),
        ({"name": "m", "models": []}, {"name": "m", "models": ()}),
        ({"expires": None, "markup_ppm": None}, {"expires_ms": None, "markup_ppm": None}),
        ({"cap": "6"}, {"cap": 6 * PICO}),
        ({"cap_window": "month"}, {"cap_window": "month"}),
        ({"clamp": False, "concurrency": 4}, {"clamp": False, "concurrency": 4}),
        ({"cap": None}, {"cap": None, "cap_window": "lifetime"}),
    ):
        await trio.sleep(0.01)
        await done(admin, "key_change", key_id=before.key, **changes)
        after = world.ledger.key(before.key)
        assert after == replace(before, **named, at_ms=after.at_ms)
        assert after.at_ms > before.at_ms
        assert world.journal.of(Key)[-1] == after
        before = after
    assert world.ledger.key_by_digest(before.digest) == before


async def test_a_revoked_key_cannot_be_changed(admin):
    await done(admin, "key_revoke", key_id="k")
    assert "revoked" in await refused(admin, "key_change", 400, key_id="k", rpm=5)


async def test_a_changed_key_holds_from_the_next_request_on(admin, world):
    await done(admin, "key_change", key_id="k", models=["other/*"])
    assert (await world.ask(body())).status == 403
    await done(admin, "key_change", key_id="k", models=[])
    assert (await world.ask(body())).status == 200


async def test_a_frozen_wallet_refuses_until_it_is_thawed(admin, world):
    assert (await done(admin, "wallet_freeze", wallet="w"))["frozen"] is True
    written = len(world.journal.records)
    assert (await done(admin, "wallet_freeze", wallet="w"))["frozen"] is True
    assert len(world.journal.records) == written, "what is so already is not written again"
    assert (await world.ask(body())).status == 403
    assert (await done(admin, "wallet_freeze", wallet="w", frozen=False))["frozen"] is False
    assert (await world.ask(body())).status == 200


async def test_when_something_was_made_does_not_change_when_it_does(admin, reader, world):
    await trio.sleep(5)
    reader.made = {"w": 1_000, "k": 2_000}
    await done(admin, "wallet_freeze", wallet="w")
    await done(admin, "key_change", key_id="k", rpm=5)
    shown = await done(admin, "wallet_show", wallet="w")
    assert shown["created_at"] == "1970-01-01T00:00:01.000+00:00"
    assert shown["keys"][0]["created_at"] == "1970-01-01T00:00:02.000+00:00"
    assert (await done(admin, "wallet_list"))["data"][0]["created_at"] == shown["created_at"]
    assert (await done(admin, "key_list"))["data"] == shown["keys"]


async def test_a_store_that_cannot_be_asked_stops_no_operation(admin, reader):
    reader.made = StoreError("broken")
    assert (await done(admin, "top_up", wallet="w", amount="1"))["created_at"] is None
    assert (await done(admin, "key_change", key_id="k", rpm=5))["created_at"] is None
    assert (await done(admin, "wallet_list"))["data"][0]["balance"] == "101.00"


async def test_what_is_durable_is_waited_for(admin, world):
    assert await done(admin, "durable") == {"seq": len(world.journal.records)}
    assert world.journal.records


async def test_a_page_is_asked_for_up_to_what_was_loaded(admin, reader):
    assert await done(admin, "export_begin") == {"upto": 7}
    page = await done(admin, "export_page", table="usage", upto=7, after=[5, "x"])
    assert page == {"lines": "{}\n{}\n", "after": None}
    assert reader.asked == [("usage", (7, 5, "x", PAGE_ROWS))]


async def test_books_that_are_only_read_are_not_exported(world, reader):
    admin = Admin(world.books, reader, None, "fb_sk_", bytes)
    with pytest.raises(Rejected, match="only read"):
        await done(admin, "export_begin")


async def test_the_attempts_of_a_request_can_be_narrowed_to_a_wallet(admin, reader):
    await done(admin, "usage", request="r", wallet="w")
    assert reader.asked == [("r", "w")]


async def test_what_only_reads_writes_nothing(admin, world):
    needed = {"wallet_show": {"wallet": "w"}, "usage": {"request": "r"}, "key_show": {"key_id": "k"}}
    before = len(world.journal.records)
    for operation in READS:
        await done(admin, operation, **needed.get(operation, {}))
    assert len(world.journal.records) == before
    assert OPERATIONS.keys() > READS


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 10**15)), max_size=12))
def test_the_balance_is_the_sum_of_what_was_granted_once_for_each_ref(top_ups):
    async def play():
        world = World(STREAM, amount=0)
        admin = Admin(world.books, NoReports(), None, "fb_sk_", bytes)
        granted = {}
        for ref, amount in top_ups:
            text = f"{amount // PICO}.{amount % PICO:012d}"
            asked = {"wallet": "w", "amount": text, "ref": str(ref)}
            if granted.setdefault(ref, amount) == amount:
                await done(admin, "top_up", **asked)
            else:
                await refused(admin, "top_up", 409, **asked)
        assert world.ledger.balance("w") == sum(granted.values())

    trio.run(play)
