"""The regression guard: what fixed requests make the gateway do is compared with what was recorded, without a clock."""

import json

import pytest
from attrs import define

from bench import counters
from bench.counters import SOCKETS, TOLERANCES, as_table, compare, load, measure, measure_apart, save

BEFORE = {"per event": {"sends": 1.0, "C calls": 100.0, "decodings": 0.0}}


def recorded(found=BEFORE):
    return {
        "python": counters._python(),
        "tolerances": TOLERANCES,
        "slack": counters.SLACK,
        "counters": found,
    }


def test_the_gateway_does_no_more_than_the_baseline_allows():
    problems = compare(measure_apart(), load())
    assert problems == [], (
        "what is meant is recorded by `python -m bench baseline`; a cheaper way has to be recorded too"
    )


def test_the_baseline_says_what_matters_most():
    found = load()["counters"]
    assert found["per event"]["sends"] == 1.0, "one send for one read"
    assert found["per read of 32 events"]["sends"] == 1.0, "also where it brings many events"
    assert found["per event"]["decodings"] == 0.0, "only the usage frame is decoded"
    assert found["per read of 32 events"]["decodings"] == 0.0
    assert found["per plain request"]["syncs"] == 2.0, "the attempt and its settlement are durable"
    assert found[SOCKETS] == {"connections": 2.0, "without TCP_NODELAY": 0.0}
    assert set(found) == {*counters.COURSES, SOCKETS}


# -- something slow is planted -----------------------------------------------------------------------


@define
class Slower:
    """A reply that does what a careless change might do, and is otherwise the real one."""

    reply: object
    how: str

    def __getattr__(self, name):
        return getattr(self.reply, name)

    async def write(self, chunk):
        if self.how == "decodes every frame":
            for frame in chunk.split(b"\n\n"):
                if frame.startswith(b"data: {"):
                    json.loads(frame[6:])
        if self.how == "sends twice" and len(chunk) > 1:
            await self.reply.write(chunk[:1])
            chunk = chunk[1:]
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
        ("C calls", 116.0, "per event: 116 C calls, more than the 100 of the baseline"),
        ("C calls", 114.0, None),
    ],
)
def test_each_counter_has_its_tolerance(counter, now, problem):
    found = {"per event": {**BEFORE["per event"], counter: now}}
    assert compare(found, recorded()) == ([problem] if problem else [])


def test_calls_are_compared_under_the_python_that_they_were_recorded_with():
    found = {"per event": {**BEFORE["per event"], "C calls": 500.0, "sends": 3.0}}
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
