import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.records import Ending, Key, Leg, UsageRecord, Wallet
from accounting.reports import COLUMNS, PAGE_MAX, Page, Query, Reader
from accounting.store import Store
from pricing.usage import NO_USAGE, Source, Usage
from proxy.config import DATA

RECORD = UsageRecord(
    request="r0", number=1, wallet="w1", key="k1", model="lab/a", provider="lab", account="main",
    dialect="openai_chat", stream=True, outcome=Ending.COMPLETE, status=200, source=Source.REPORTED,
    usage=NO_USAGE, price_version="p_1", markup_ppm=10**6, held=100, price=0, charged=0, cost=0, loss=0,
    currency="USD", started_ms=5, ended_ms=6,
)  # fmt: skip


class Tail:
    """The recorder's unloaded records, over a store; `load` moves them, as the loader would."""

    def __init__(self, store, records):
        self.store = store
        self.waiting = list(enumerate(records, 1))
        self.during_query = lambda: None

    def unloaded_usage(self):
        return self.waiting

    def usage_of(self, request):
        return tuple(record for _, record in self.waiting if record.request == request)

    def load(self, count=None):
        count = len(self.waiting) if count is None else count
        loaded, self.waiting = self.waiting[:count], self.waiting[count:]
        if loaded:
            self.store.load(loaded)

    async def ask(self, sql, parameters):
        self.during_query()
        return self.store.query(sql, list(parameters))


@pytest.fixture
def reader_of(tmp_path):
    opened = []

    def make(records):
        store = Store.open(tmp_path / "books.duckdb", memory_limit="64MB", schema_dir=DATA / "schema")
        opened.append(store)
        tail = Tail(store, records)
        return Reader(tail.ask, tail), tail

    yield make
    for store in opened:
        store.close()


FULL = replace(
    RECORD,
    stream=False,
    outcome=Ending.STALLED,
    source=Source.ESTIMATED,
    usage=Usage(input=2**40, cache_read=3, output=4, reasoning=2, web_searches=1),
    usage_legs=(Usage(input=1), Usage(output=4, cache_read=3)),
    held=10**30,
    price=10**20,
    charged=10**20,
    cost=7,
    first_byte_ms=6,
    legs=(Leg("g1", 10**20 - 1), Leg("g2", 1)),
    flags=("no_report", "odd"),
    upstream_id="up-1",
    budget="task",
)


async def test_a_record_comes_out_of_the_store_as_it_went_in(reader_of):
    records = (FULL, replace(RECORD, number=2))
    reader, tail = reader_of(records)
    assert await reader.usage_of("r0") == records
    tail.load()
    assert await reader.usage_of("r0") == records


async def test_the_attempts_of_a_request_come_in_order_half_loaded_or_not(reader_of):
    records = [replace(RECORD, number=number) for number in (1, 2, 3)]
    reader, tail = reader_of([*records, replace(RECORD, request="r1")])
    for _ in range(5):
        assert await reader.usage_of("r0") == tuple(records)
        tail.load(1)


async def test_a_request_of_another_wallet_is_not_shown(reader_of):
    reader, _ = reader_of([RECORD])
    assert await reader.usage_of("r0", "w1") == (RECORD,)
    assert await reader.usage_of("r0", "w2") == ()
    assert await reader.usage_of("nobody's") == ()


async def test_a_record_that_is_loaded_while_the_store_is_asked_is_neither_missed_nor_seen_twice(reader_of):
    records = tuple(replace(RECORD, request=f"r{number}") for number in range(4))
    reader, tail = reader_of(records)
    tail.during_query = lambda: tail.load(2)
    assert (await reader.page(Query())).records == records[::-1]
    assert await reader.usage_of("r3") == (records[3],)


async def test_pages_come_newest_first_and_stay_put_while_records_come_in(reader_of):
    records = [replace(RECORD, request=f"r{number}") for number in range(7)]
    reader, tail = reader_of(records)
    tail.load(4)
    first = await reader.page(Query(limit=3))
    assert [one.request for one in first.records] == ["r6", "r5", "r4"]
    tail.waiting += [(8 + number, replace(RECORD, request="new")) for number in range(3)]
    second = await reader.page(Query(limit=3, cursor=first.next_cursor))
    assert [one.request for one in second.records] == ["r3", "r2", "r1"]
    tail.load()
    third = await reader.page(Query(limit=3, cursor=second.next_cursor))
    assert third == Page((records[0],), None)


async def test_a_last_page_that_is_exactly_full_has_no_next(reader_of):
    reader, _ = reader_of([RECORD, replace(RECORD, request="r1")])
    assert (await reader.page(Query(limit=2))).next_cursor is None
    assert await reader.page(Query(cursor="1")) == Page((), None)


async def test_pages_are_restricted_in_the_store_as_in_the_tail(reader_of):
    records = [
        replace(RECORD, request="r1", wallet="w2"),
        replace(RECORD, request="r2", key="k2"),
        replace(RECORD, request="r3", model="lab/b"),
        replace(RECORD, request="r4", started_ms=10),
        replace(RECORD, request="r5", started_ms=20),
    ]
    reader, tail = reader_of(records)
    queries = [
        (Query(wallet="w2"), ["r1"]),
        (Query(key="k2"), ["r2"]),
        (Query(model="lab/b"), ["r3"]),
        (Query(from_ms=10), ["r5", "r4"]),
        (Query(to_ms=10), ["r3", "r2", "r1"]),
        (Query(from_ms=10, to_ms=20), ["r4"]),
        (Query(wallet="w1", key="k1", model="lab/a", from_ms=11, to_ms=21), ["r5"]),
        (Query(wallet="w3"), []),
    ]
    for _ in range(2):
        for query, requests in queries:
            assert [one.request for one in (await reader.page(query)).records] == requests
        tail.load()


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.0", "²", "1" * 20, "1; DROP TABLE usage"])
async def test_what_is_no_cursor_of_ours_is_refused(cursor):
    with pytest.raises(ValueError, match="cursor"):
        await Reader(None, None).page(Query(cursor=cursor))


@pytest.mark.parametrize("limit", [0, -1, PAGE_MAX + 1])
def test_a_page_has_a_limit(limit):
    with pytest.raises(ValueError, match="limit"):
        Query(limit=limit)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_walking_all_pages_sees_every_record_once_however_much_is_loaded(data):
    """The store is a list here: what is tested is the merging."""
    count = data.draw(st.integers(0, 30))
    lines = [(seq, replace(RECORD, request=f"r{seq}")) for seq in range(1, count + 1)]
    limit = data.draw(st.integers(1, 7))
    overlap = data.draw(st.integers(0, 5))
    loaded = data.draw(st.integers(0, count))

    class Stub:
        def unloaded_usage(self):
            return lines[max(0, loaded - overlap) :]

    async def ask(_sql, parameters):
        before, most = parameters[0], parameters[-1]
        return [row_of(*line) for line in reversed(lines[:loaded]) if line[0] < before][:most]

    async def walk():
        cursor, seen = None, []
        while True:
            page = await Reader(ask, Stub()).page(Query(limit=limit, cursor=cursor))
            seen += [one.request for one in page.records]
            cursor = page.next_cursor
            if cursor is None:
                return seen

    coroutine = walk()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)  # nothing in it waits
    assert done.value.value == [f"r{seq}" for seq in range(count, 0, -1)]


def row_of(seq, record):
    values = {"seq": seq, "usage_legs": "[]", "legs": [], "flags": []}
    return [
        values[name]
        if name in values
        else getattr(record.usage if hasattr(record.usage, name) else record, name)
        for name in COLUMNS
    ]


async def test_when_wallets_and_keys_were_made_is_what_their_first_lines_say(reader_of):
    reader, tail = reader_of([])
    key = Key("k1", "w1", "d", "h", 6)
    records = [Wallet("w1", "", "USD", 5), key, Wallet("w2", "", "USD", 7)]
    tail.store.load(list(enumerate([*records, Wallet("w1", "", "USD", 9, True), replace(key, at_ms=9)], 1)))
    assert await reader.created("wallet") == {"w1": 5, "w2": 7}
    assert await reader.created("wallet", "w2") == {"w2": 7}
    assert await reader.created("api_key", "k1") == {"k1": 6}
    assert await reader.created("api_key", "none") == {}
