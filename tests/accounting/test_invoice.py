"""A provider's list against the books: every line once, every call once, and every difference by name."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.audit import SHOWN_MAX
from accounting.invoice import Invoice, Line, Settled, read_lines, settled
from pricing.money import PICO
from pricing.usage import BUCKETS, Usage

ONE = Settled("r1", 1, "call_1", "lab", "lab/a", 5 * PICO, 1_000, Usage(input=10, output=20))


def others(count):
    return [
        replace(ONE, request=f"r{number}", upstream_id=f"call_{number}", started_ms=1_000 * number)
        for number in range(1, count + 1)
    ]


def compared(lines, books, **more):
    invoice = Invoice(lines, lambda _one, usage: usage.output * PICO, **more)
    for one in books:
        invoice.match(one)
    for one in books:
        invoice.miss(one)
    return invoice


def found(invoice):
    findings = invoice.findings()
    assert {finding.invariant for finding in findings} <= {"I14"}
    return [(finding.where, finding.what) for finding in findings]


def costs(books):
    return [Line(one.upstream_id, one.cost) for one in books]


# -- comparing -------------------------------------------------------------------------------------------


def test_a_list_that_says_what_the_books_say_has_no_findings():
    books = others(30)
    invoice = compared(costs(books), books)
    assert found(invoice) == []
    assert invoice.summary() == {
        "lines": 30, "matched": 30, "free": 0, "off": 0, "difference": "0.00", "not_invoiced": 0,
        "not_invoiced_cost": "0.00",
    }  # fmt: skip


def test_a_line_that_nobody_settled_is_named():
    invoice = compared([*costs(others(2)), Line("x", 7), Line("y", None, {"output": 3})], others(2))
    assert found(invoice) == [
        ("line x", "asks for 0.000000000007, and no settled attempt has this id"),
        ("line y", "3 output, and no settled attempt has this id"),
    ]


@pytest.mark.parametrize("line", [Line("x", 0), Line("x", None, {"output": 0}), Line("x")])
def test_a_line_that_costs_nothing_needs_nobody(line):
    invoice = compared([*costs(others(2)), line], others(2))
    assert found(invoice) == []
    assert invoice.summary()["free"] == 1


def test_a_line_that_is_there_twice_or_settled_twice_is_named():
    books = others(2)
    invoice = compared([*costs(books), *costs(books[:1]), *costs(books[:1])], books)
    assert found(invoice) == [("line call_1", "stands in it 3 times")]
    invoice = compared(costs(books), [*books, replace(ONE, request="r9", number=2)])
    assert found(invoice) == [
        ("line call_1", "is settled 2 times: request r1, attempt 1; request r9, attempt 2")
    ]


def test_what_was_settled_and_is_not_in_the_list_is_named():
    books = others(4)
    invoice = compared(costs([books[0], books[3]]), books)
    assert [where for where, _ in found(invoice)] == ["request r2, attempt 1", "request r3, attempt 1"]
    assert (invoice.missed, invoice.missed_cost) == (2, 10 * PICO)


def test_what_is_not_of_its_period_or_not_that_providers_need_not_be_in_the_list():
    books = others(5)
    books[2] = replace(books[2], provider="another")
    invoice = compared(costs([books[1], books[3]]), books)
    assert found(invoice) == []
    books[2] = replace(books[2], provider="lab", cost=0)
    assert found(compared(costs([books[1], books[3]]), books)) == []


def test_a_period_that_is_named_is_the_period():
    books = others(5)
    invoice = compared(costs(books[1:3]), books, period=(1_000, 5_000))
    assert [where for where, _ in found(invoice)] == ["request r1, attempt 1", "request r4, attempt 1"]
    assert found(compared(costs(books), books, period=(0, 1))) == []


def test_differences_are_summed_and_the_worst_come_first():
    books = others(SHOWN_MAX + 5)
    lines = [Line(one.upstream_id, one.cost + (number - 3) * 10**9) for number, one in enumerate(books)]
    invoice = compared(lines, books)
    findings = found(invoice)
    assert findings[0] == ("request r25, attempt 1, line call_25", "5.021 invoiced, 5.00 in the books")
    assert [where.split()[1] for where, _ in findings[:3]] == ["r25,", "r24,", "r23,"]
    assert findings[SHOWN_MAX:] == [("…", "and 4 more")]
    assert (invoice.off, invoice.difference) == (24, sum(range(-3, 22)) * 10**9)


def test_many_findings_of_a_sort_are_counted():
    books = others(100)
    invoice = compared(
        [*costs([books[0], books[-1]]), *(Line(f"x{number}", 1) for number in range(50))], books
    )
    assert [what for where, what in found(invoice) if where == "…"] == ["and 30 more", "and 78 more"]


def test_a_tolerance_is_for_each_line():
    books = others(3)
    lines = [
        Line(one.upstream_id, one.cost + difference)
        for one, difference in zip(books, (5, -5, 6), strict=True)
    ]
    assert [where for where, _ in found(compared(lines, books, tolerance=5))] == [
        "request r3, attempt 1, line call_3"
    ]


def test_a_line_that_says_what_was_used_is_priced_only_where_the_books_say_otherwise():
    books = [replace(ONE, upstream_id=f"c{number}") for number in range(3)]
    lines = [
        Line("c0", None, {"input": 10, "output": 20, "cache_read": 0}),
        Line("c1", None, {"output": 20}),
        Line("c2", None, {"output": 25}),
    ]
    invoice = compared(lines, books)
    assert found(invoice) == [("request r1, attempt 1, line c2", "25.00 invoiced, 5.00 in the books")]


@pytest.mark.parametrize("priced", [None, 5 * PICO])
def test_usage_that_cannot_be_priced_or_costs_the_same_is_off_all_the_same(priced):
    invoice = Invoice([Line("call_1", None, {"output": 3})], lambda _one, _usage: priced)
    invoice.match(ONE)
    invoice.miss(ONE)
    assert found(invoice) == [
        ("request r1, attempt 1, line call_1", "3 output invoiced, 10 input, 20 output in the books")
    ]


@given(st.lists(st.sampled_from(["both", "line", "books", "off", "free"]), max_size=40))
def test_every_way_in_which_they_can_differ_is_counted_once(fates):
    books = others(len(fates) + 2)
    lines = costs([books[-2], books[-1]])  # so that all others may lie in the period, save those before it
    for fate, one in zip(fates, books, strict=False):
        match fate:
            case "both":
                lines.append(Line(one.upstream_id, one.cost))
            case "off":
                lines.append(Line(one.upstream_id, one.cost + 1))
            case "line":
                lines.append(Line(f"x{one.upstream_id}", one.cost))
            case "free":
                lines.append(Line(f"x{one.upstream_id}", 0))
    invoice = compared(lines, books, period=(0, 10**9))
    summary = invoice.summary()
    assert summary["matched"] == 2 + fates.count("both") + fates.count("off")
    assert summary["off"] == fates.count("off") == invoice.difference
    assert summary["not_invoiced"] == sum(fate in ("line", "books", "free") for fate in fates)
    assert summary["free"] == fates.count("free")
    assert sum("no settled attempt" in what for _, what in found(invoice)) == min(
        fates.count("line"), SHOWN_MAX
    )
    assert bool(found(invoice)) == (set(fates) - {"both"} != set())


# -- reading ---------------------------------------------------------------------------------------------


def test_a_list_as_the_sandbox_gives_it_is_read():
    usage = {
        "input": 9,
        "cache_read": 0,
        "cache_write_5m": 0,
        "cache_write_1h": 0,
        "output": 46,
        "reasoning": 0,
    }
    data = {
        "data": [{"id": "req_1", "status": 200, "usage": usage}, {"id": "req_2", "cost": "0.25"}],
        "dropped": 0,
    }
    assert read_lines(json.dumps(data).encode()) == [Line("req_1", None, usage), Line("req_2", PICO // 4)]


def test_columns_may_stand_anywhere_among_others():
    text = '\ufeffday,cost,"id",note\r\n1,0.000001,a,"x, y"\r\n2,3,"b ""c""",\r\n'
    assert read_lines(text.encode()) == [Line("a", 10**6), Line('b "c"', 3 * PICO)]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "columns named id and cost"),
        (b"id,price\na,1\n", "columns named id and cost"),
        (b"id,cost\na,1\nb,-1\n", "line 3"),
        (b"id,cost\na,1e3\n", "1e3"),
        (b"id,cost\na\n", "line 2"),
        (b"id,cost\n,1\n", "line 2 has no id"),
        (b'id,cost\n"a,1\n', "cannot be read"),
        (b"id,cost\n\xff,1\n", "cannot be read"),
        (b"{", "expected"),
        (b"[]", "expected"),
        (b'{"data": [{"usage": {}}]}', "id"),
        (b'{"data": [{"id": "a", "cost": 0.1}]}', "cost"),
        (b'{"data": [{"id": "a", "cost": "x"}]}', "call a"),
        (b'{"data": [{"id": "a", "usage": {"tokens": 1}}]}', "call a"),
        (b'{"data": [{"id": "a", "usage": {"input": -1}}]}', "call a"),
        (b'{"data": [], "dropped": 3}', "3 calls are left out"),
    ],
)
def test_what_is_no_whole_list_is_refused_and_says_where(data, named):
    with pytest.raises(ValueError, match=named):
        read_lines(data)


def test_a_row_of_the_books_is_read_as_a_page_has_it():
    row = {
        "request": "r1", "number": 1, "upstream_id": "call_1", "provider": "lab", "model": "lab/a",
        "cost": "5.000000000000", "started_ms": 1_000, **dict.fromkeys(BUCKETS, 0), "input": 10, "output": 20,
    }  # fmt: skip
    assert settled(msgspec.json.decode(msgspec.json.encode(row))) == ONE
