"""The regression guard: what fixed requests make the gateway do is compared with what was recorded, without a clock."""

import hashlib
import json
import os
import sys

import pytest
from attrs import define

from bench import baseline, counters
from bench.baseline import COUNTERS, OPEN, SOCKETS, as_table, closeness, compare, load, save
from bench.counters import measure, measure_apart

BEFORE = {
    "per event": {"sends": 1.0, "C calls": 100.0, "bytecodes": 1600.0, "decodings": 0.0, "task steps": 10.0}
}


def recorded(found=BEFORE):
    return {**baseline._versions(), "counters": found}


def test_the_gateway_does_no_more_than_the_baseline_allows():
    problems = compare(measure_apart(), load())
    assert problems == [], (
        "what is meant is recorded by `python -m bench baseline`; a cheaper way has to be recorded too; "
        + closeness(load())
    )


def test_the_baseline_says_what_matters_most():
    found = load()["counters"]
    assert found["per event"]["sends"] == 1.0, "one send for one read"
    assert found["per read of 32 events"]["sends"] == 1.0, "also where it brings many events"
    assert found["per event"]["decodings"] == 0.0, "only the usage frame is decoded"
    assert found["per read of 32 events"]["decodings"] == 0.0
    assert found["per plain request"]["syncs"] == 2.0, "the attempt and its settlement are durable"
    assert found[SOCKETS] == {"connections": 2.0, "without TCP_NODELAY": 0.0}
    assert found["per plain request"]["output bytes"] == 0.0, "nothing is logged on the hot path"
    assert found[OPEN]["bytes held"] < 20_000, "the kernel's buffers come on top"
    assert set(found) == {*counters.COURSES, SOCKETS, OPEN}
    assert all(set(found[course]) == set(COUNTERS) for course in counters.COURSES)


# -- something slow is planted -----------------------------------------------------------------------


def nothing(_chunk=b""):
    pass


CARELESS = {
    "decodes every frame": lambda chunk: [
        json.loads(frame[6:]) for frame in chunk.split(b"\n\n") if frame.startswith(b"data: {")
    ],
    "nothing": nothing,
    "copies": lambda chunk: sum(chunk[at : at + 9] == b"" for at in range(1000)),
    "calls": lambda _chunk: (nothing(), nothing(), nothing(), nothing(), nothing(), nothing(), nothing()),
    "keeps": lambda _chunk: [float(at) for at in range(20)],
    "hashes": lambda chunk: hashlib.pbkdf2_hmac("sha256", chunk, b"salt", 1000),
    "prints": lambda _chunk: print("an event", file=sys.stderr),  # noqa: T201 - it is what must be caught
    "writes": lambda _chunk: os.write(2, b"an event"),
}
"""What a careless change might do for each event."""


@define
class Slower:
    """A reply that does what a careless change might do, and is otherwise the real one."""

    reply: object
    how: str
    kept: object = None

    def __getattr__(self, name):
        return getattr(self.reply, name)

    async def write(self, chunk):
        if self.how == "sends twice" and len(chunk) > 1:
            await self.reply.write(chunk[:1])
            chunk = chunk[1:]
        if self.how in CARELESS:
            self.kept = CARELESS[self.how](chunk)
        await self.reply.write(chunk)


def planted(how):
    def wrap(respond):
        async def slower(gateway, path, request, reply):
            await respond(gateway, path, request, Slower(reply, how))

        return slower

    return wrap


@pytest.mark.parametrize(
    ("how", "caught"),
    [("decodes every frame", "1 decodings"), ("sends twice", "2 sends")],
)
def test_a_planted_slowness_is_caught(how, caught):
    found = measure(planted(how), ["per event"], repeats=1)
    problems = compare(found, {**load(), "counters": {"per event": load()["counters"]["per event"]}})
    assert any(f"per event: {caught}, more than" in problem for problem in problems), problems


@pytest.fixture(scope="module")
def through_a_wrapper():
    """What events cost where the reply is wrapped and nothing else is done."""
    return measure(planted("nothing"), ["per event"], repeats=2 * counters.REPEATS)


@pytest.mark.parametrize(
    ("how", "caught"),
    [
        ("nothing", set()),
        ("copies", {"bytecodes", "allocations"}),
        ("calls", {"Python calls", "bytecodes", "allocations"}),
        ("keeps", {"bytecodes", "allocations"}),
        ("hashes", {"C calls"}),
        ("prints", {"output bytes"}),
        ("writes", {"sends", "output bytes"}),
    ],
)
def test_a_little_work_more_for_each_event_is_caught(through_a_wrapper, how, caught):
    found = measure(planted(how), ["per event"], repeats=1 if caught else counters.REPEATS)
    problems = " ".join(compare(found, recorded(through_a_wrapper)))
    more = {name for name in COUNTERS if f" {name}, more than" in problems}
    assert caught <= more, problems
    # as a byte may be; and what an answer has come to is written down by the clock, too
    late = {"receives", "receives in vain", "epoll changes", "task steps", "loop turns"}
    assert caught or not more - late - {"journal bytes", "journal writes", "syncs"}, problems


def test_an_object_more_for_each_open_stream_is_caught():
    usual, more = (measure(planted(how), [OPEN], repeats=1) for how in ("nothing", "keeps"))
    (problem,) = compare(more, recorded({OPEN: usual[OPEN]}))
    assert "bytes held, more than the" in problem
    assert more[OPEN]["bytes held"] - usual[OPEN]["bytes held"] == pytest.approx(
        20 * sys.getsizeof(0.5), rel=0.6
    )


def test_a_course_that_the_gateway_does_not_answer_fails_with_what_it_said():
    def wrap(_respond):
        async def broken(_gateway, _path, _request, reply):
            reply.start(500, {"content-length": "0"})
            await reply.end(b"")

        return broken

    with pytest.raises(RuntimeError, match="not run to their end"):
        measure(wrap, ["per event"], repeats=1)


# -- comparing ---------------------------------------------------------------------------------------


def test_what_is_the_same_is_no_problem():
    assert compare(BEFORE, recorded()) == []


@pytest.mark.parametrize(
    ("counter", "now", "problem"),
    [
        ("sends", 2.0, "per event: 2 sends, more than the 1 of the baseline"),
        ("sends", 0.0, "per event: 0 sends, less than the 1 of the baseline"),
        ("decodings", 0.01, "per event: 0.01 decodings, more than the 0 of the baseline"),
        ("C calls", 101.5, "per event: 101.5 C calls, more than the 100 of the baseline"),
        ("C calls", 98.5, "per event: 98.5 C calls, less than the 100 of the baseline"),
        ("C calls", 100.9, None),
        ("bytecodes", 1630.0, "per event: 1630 bytecodes, more than the 1600 of the baseline"),
        ("task steps", 10.2, "per event: 10.2 task steps, more than the 10 of the baseline"),
    ],
)
def test_each_counter_has_its_tolerance(counter, now, problem):
    found = {"per event": {**BEFORE["per event"], counter: now}}
    assert compare(found, recorded()) == ([problem] if problem else [])


def test_under_another_trio_counters_are_compared_widely():
    found = {"per event": {**BEFORE["per event"], "C calls": 114.0, "task steps": 10.4}}
    other = {**recorded(), "trio": "0.1"}
    assert compare(found, other) == []
    assert "compared widely: recorded with" in closeness(other)
    assert "compared closely: recorded with" in closeness(recorded())
    found["per event"]["C calls"] = 116.0
    assert compare(found, other) == ["per event: 116 C calls, more than the 100 of the baseline"]


def test_calls_are_compared_under_the_python_that_they_were_recorded_with():
    found = {"per event": {**BEFORE["per event"], "C calls": 500.0, "bytecodes": 1.0, "sends": 3.0}}
    assert compare(found, {**recorded(), "python": "3.0"}) == [
        "per event: 3 sends, more than the 1 of the baseline"
    ]


def test_a_baseline_is_written_and_read(tmp_path):
    path = tmp_path / "baseline.json"
    save(BEFORE, path)
    assert load(path)["counters"] == BEFORE
    assert compare(BEFORE, load(path)) == []


def test_the_counters_are_shown_as_a_table():
    text = as_table(load()["counters"])
    assert "| sends |" in text
    assert "2 connections, 0 without TCP_NODELAY" in text
