"""The books for other tools: every row once and as it was, page by page; and a general ledger that balances."""

import re
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.export import BY_NAME, INVOICED, START, TABLES, TYPES, Beancount, Table, page
from accounting.records import Account, Grant, GrantKind, Key, Leg, Transfer
from accounting.store import NAME, Store
from pricing.money import PICO, show
from pricing.usage import BUCKETS, Usage
from proxy.config import DATA
from tests.accounting.journal_fakes import attempt, calls, extension, grant, job, settled, void, wallet, work

KEY = Key("k1", "w1", "ab" * 32, "fb_sk_…abcd", 5, "laptop", 60, None, 4, ("openai/*", "x"), 900_000)


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / NAME, memory_limit="64MB", schema_dir=DATA / "schema")
    yield store
    store.close()


def asker(store):
    async def ask(sql, parameters):
        return store.query(sql, list(parameters))

    return ask


def load(store, *records, after=0):
    store.load(list(enumerate(records, after + 1)))


async def rows(store, name, upto=10**9, most=2000):
    """All rows of a table, page by page."""
    found, after = [], START
    while after is not None:
        got = await page(asker(store), BY_NAME[name], upto, after, most)
        assert got.lines.count("\n") <= most
        found += msgspec.json.Decoder().decode_lines(got.lines)
        after = got.after
    return found


# -- tables ----------------------------------------------------------------------------------------------


async def test_every_column_of_the_store_is_given_away_but_digests(store):
    """A column that a later migration adds must be added here, or left out on purpose."""
    left_out = {"api_key": {"digest", "created_seq"}, "wallet": {"created_seq"}}
    given = {
        table.source: {f"{name}_" if name == "grant" else name for name in table.columns} for table in TABLES
    }
    there = {}
    for name, column in store.query(
        "SELECT table_name, column_name FROM duckdb_columns() c JOIN duckdb_tables() t USING (table_name)"
    ):
        there.setdefault(name, set()).add(column)
    for name in ("meta", "migration"):
        del there[name]
    assert given == {name: columns - left_out.get(name, set()) for name, columns in there.items()}


async def test_a_row_comes_out_as_it_went_in(store):
    record = replace(
        settled(1, 10**25),
        usage=Usage(input=2**40, output=7),
        usage_legs=(Usage(input=1), Usage(output=2)),
        legs=(Leg("g1", 10**25 - 1), Leg("g2", 1)),
        flags=("beyond_hold", 'odd "flag"\n'),
        first_byte_ms=None,
        budget="task",
    )
    load(store, wallet(), grant(), attempt(1), record)
    (found,) = await rows(store, "usage")
    assert list(found) == list(BY_NAME["usage"].columns)
    for name, kind in BY_NAME["usage"].columns.items():
        if kind == "amount":
            assert found[name] == f"{getattr(record, name) // PICO}.{getattr(record, name) % PICO:012d}"
        elif kind in ("text", "whole", "flag") and name not in (*BUCKETS, "seq"):
            assert found[name] == getattr(record, name), name
    assert (found["seq"], found["input"], found["output"], found["images"]) == (4, 2**40, 7, 0)
    assert found["flags"] == list(record.flags)
    assert [leg.get("output") for leg in found["usage_legs"]] == [0, 2]
    assert found["legs"] == [
        {"grant": "g1", "amount": "9999999999999.999999999999"},
        {"grant": "g2", "amount": "0.000000000001"},
    ]


async def test_every_table_has_its_rows(store):
    expiry = Transfer("t1", "w1", Account.WALLET_PAID, Account.BREAKAGE, 5, "USD", "expiry", "x", 7, "g1")
    load(store, wallet(), KEY, grant(1, 7 * PICO), work(1), extension(1), job(1), attempt(2), void(2), expiry)
    found = {table.name: await rows(store, table.name) for table in TABLES}
    assert {name: len(some) for name, some in found.items()} == {
        "wallet": 1, "api_key": 1, "grant": 1, "transfer": 2, "attempt": 2, "extension": 1, "job": 1, "usage": 0,
        "void": 1,
    }  # fmt: skip
    assert found["grant"][0]["amount"] == "7.000000000000"
    assert found["api_key"][0]["models"] == ["openai/*", "x"]
    assert found["api_key"][0]["cap"] is None
    assert "ab" * 32 not in str(found)
    assert found["transfer"][1]["grant"] == "g1"
    assert found["job"][0]["usage"]["seconds"] == 4


async def test_an_invoice_is_compared_with_what_has_an_id_of_the_providers(store):
    load(store, wallet(), attempt(1), replace(settled(1, 0), upstream_id=None), attempt(2), settled(2, 0))
    (found,) = await rows(store, INVOICED.name)
    assert (found["request"], found["upstream_id"]) == ("r2", "chatcmpl-1")


async def test_walking_all_pages_sees_every_row_once_and_none_behind_the_last(store):
    """Also where several transfers have the same seq, as all that one line brings about has."""
    promo = Grant("g2", "w1", 10**9, GrantKind.PROMO, "ref 2", 5)
    both = (Leg("g2", 20), Leg("g1", 10))
    load(store, wallet(), wallet("w2"), grant(), promo)
    after = 4
    for number in range(12):
        record = replace(settled(number, 30), legs=both, price=36, loss=6)
        load(store, attempt(number), record, after=after)
        after += 2
    seqs = [row["seq"] for row in await rows(store, "transfer")]
    assert len(set(seqs)) < len(seqs)
    for most in (1, 2, 5):
        for upto in (0, 5, 15, 10**12):
            for table in (BY_NAME[name] for name in ("transfer", "usage", "wallet", "void")):
                some = await rows(store, table.name, upto, most)
                (count,) = store.query(f"SELECT count(*) FROM {table.source} WHERE {table.order} <= {upto}")  # noqa: S608
                assert (len(some),) == count
                assert len({msgspec.json.encode(row) for row in some}) == len(some)
                assert [row["seq"] for row in some] == sorted(row["seq"] for row in some)


async def test_what_is_loaded_meanwhile_is_not_among_what_was_asked_for(store):
    load(store, wallet(), grant(), *calls(5))
    ask = asker(store)
    first = await page(ask, BY_NAME["usage"], 12, most=3)
    load(store, *calls(5, 6), after=12)
    second = await page(ask, BY_NAME["usage"], 12, first.after, most=3)
    assert (second.lines.count("\n"), second.after) == (2, None)


@pytest.mark.parametrize("amount", [0, 1, 10**12 - 1, 10**12, 123 * 10**11, 2**127 - 1])
async def test_an_amount_is_exact(store, amount):
    load(store, wallet(), Grant("g1", "w1", amount, GrantKind.PAID, "ref", 6))
    (found,) = await rows(store, "grant")
    assert found["amount"] == f"{amount // PICO}.{amount % PICO:012d}"


def test_every_kind_of_column_has_a_type():
    assert {kind for table in (*TABLES, INVOICED) for kind in table.columns.values()} <= TYPES.keys()
    assert isinstance(INVOICED, Table)


# -- plain-text accounting -------------------------------------------------------------------------------

ACCOUNT = re.compile(r"(Assets|Liabilities|Equity|Income|Expenses)(:[A-Z0-9][A-Za-z0-9-]*)+")
AMOUNT = re.compile(r"-?[0-9]+\.[0-9]+")
STRING = re.compile(r'"((?:[^"\\\n]|\\["\\n])*)"')


def parsed(text):
    """Read what is written as beancount would, as far as it is; gives (entries, balances)."""
    opened, currencies, entries, balances = set(), set(), [], {}
    assert text.startswith('option "title" "Farebox"\n')
    for block in text.partition("\n")[2].strip("\n").split("\n\n"):
        if not block:
            continue
        first, *more = block.split("\n")
        day, directive, rest = first.split(" ", 2)
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day)
        match directive:
            case "open":
                assert ACCOUNT.fullmatch(rest)
                assert rest not in opened, "an account is opened once"
                assert not more
                opened.add(rest)
            case "commodity":
                assert re.fullmatch("[A-Z]{3}", rest)
                assert rest not in currencies
                currencies.add(rest)
            case "*":
                entries.append(_entry(STRING.fullmatch(rest)[1], day, more, opened, currencies, balances))
    return entries, balances


def _entry(kind, day, lines, opened, currencies, balances):
    facts, postings = {"kind": kind, "day": day}, []
    for line in lines:
        assert line.startswith("  ")
        named = re.fullmatch(r"([a-z][a-z0-9_-]*): (.*)", line[2:])
        if named:
            assert not postings, "facts stand before postings"
            facts[named[1]] = int(named[2]) if named[2].isdecimal() else _text(STRING.fullmatch(named[2])[1])
        else:
            account, amount, currency = line.split()
            assert account in opened
            assert currency in currencies
            assert AMOUNT.fullmatch(amount)
            postings.append((account, Decimal(amount)))
            balances[account] = balances.get(account, 0) + Decimal(amount)
    assert len(postings) == 2
    assert sum(amount for _, amount in postings) == 0
    return facts | {"postings": postings}


def _text(escaped):
    return re.sub(r"\\(.)", lambda sign: "\n" if sign[1] == "n" else sign[1], escaped)


async def ledger(store):
    writer, text, after = Beancount(), Beancount().head(), START
    while after is not None:
        got = await page(asker(store), BY_NAME["transfer"], 10**9, after, 3)
        text += "".join(writer.entries(got.lines))
        after = got.after
    return text


async def test_the_ledger_balances_and_says_what_each_account_has(store):
    promo = Grant("g2", "w1", 50 * PICO, GrantKind.PROMO, "ref 2", 5)
    record = replace(
        settled(2, 30 * PICO), legs=(Leg("g2", 20 * PICO), Leg("g1", 10 * PICO + 1)), price=36 * PICO, loss=6 * PICO,
        cost=12 * PICO,
    )  # fmt: skip
    expiry = Transfer(
        "g2.x1", "w1", Account.WALLET_PROMO, Account.BREAKAGE, 1, "USD", "expiry", 'a "ref"\\\n', 7, "g2"
    )
    load(store, wallet(), grant(1, 100 * PICO), promo, attempt(2), record, expiry)
    entries, balances = parsed(await ledger(store))
    assert sum(balances.values()) == 0
    assert balances == {
        "Assets:Clearing": 100,
        "Expenses:Promotions": 50,
        "Expenses:Providers": 12,
        "Liabilities:Providers": -12,
        "Expenses:Losses": 6,
        "Income:Usage": Decimal("-36.000000000001"),
        "Income:Breakage": Decimal("-0.000000000001"),
        "Liabilities:Wallets:W-w1:Paid": Decimal("-89.999999999999"),
        "Liabilities:Wallets:W-w1:Promotional": Decimal("-29.999999999999"),
    }
    assert entries[-1] == {
        "kind": "expiry", "day": "1970-01-01", "seq": 6, "wallet": "w1", "transfer": "g2.x1", "ref": 'a "ref"\\\n',
        "grant": "g2",
        "postings": [
            ("Liabilities:Wallets:W-w1:Promotional", Decimal("0.000000000001")),
            ("Income:Breakage", Decimal("-0.000000000001")),
        ],
    }  # fmt: skip
    assert [entry["seq"] for entry in entries] == sorted(entry["seq"] for entry in entries)


async def test_a_ledger_of_nothing_is_a_ledger(store):
    assert parsed(await ledger(store)) == ([], {})


def posting(**changes):
    usual = {
        "seq": 1, "first_seq": 1, "transfer": "t", "wallet": "w1", "debit": "wallet_paid", "credit": "revenue",
        "amount": "1.500000000000", "currency": "USD", "kind": "usage", "ref": "r", "at_ms": 0, "grant": None,
    }  # fmt: skip
    return msgspec.json.encode(usual | changes).decode() + "\n"


@pytest.mark.parametrize("account", list(Account))
def test_every_account_has_a_name_in_it(account):
    other = Account.REVENUE if account is not Account.REVENUE else Account.ADJUSTMENT
    text = Beancount().head() + "".join(Beancount().entries(posting(debit=account, credit=other)))
    _, balances = parsed(text)
    assert len(balances) == 2


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 10**27))
def test_whatever_is_written_the_ledger_can_be_read(ref, name, amount):
    line = posting(ref=ref, wallet=f"wallet_{name}", amount=f"{amount // PICO}.{amount % PICO:012d}")
    (entry,), _ = parsed(Beancount().head() + "".join(Beancount().entries(line)))
    assert entry["ref"] == "".join(
        "�" if (sign < " " and sign != "\n") or sign == "\x7f" else sign for sign in ref
    )
    assert entry["postings"][0][1] == Decimal(show(amount))


def test_wallets_that_are_not_alike_have_accounts_that_are_not():
    names = ["wallet_a", "wallet-a", "wallet.a", "wallet_A", "wallet__a", "walleta", "wallet_ä"]
    writer = Beancount()
    text = writer.head() + "".join("".join(writer.entries(posting(wallet=name))) for name in names)
    _, balances = parsed(text)
    assert len(balances) == len(names) + 1
