"""Provider and client, in C and in Python: the same answers, the same figures."""

import json
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import pytest
import trio
from attrs import evolve, field, frozen

from bench import harness as bench_harness
from bench import programs as bench_programs
from bench.harness import Harness, Plan, ProviderAt, doubts, provider
from bench.processes import Cores, environment
from bench.programs import COMPILERS, programs
from bench.shapes import Shape
from bench.targets import Target
from bench.upstream import END, EVENT, STREAM_HEAD, chunk, unchunked

COMPILED = any(map(shutil.which, COMPILERS))
LANGUAGES = [
    "python",
    pytest.param("c", marks=pytest.mark.skipif(not COMPILED, reason="there is no C compiler")),
]


@pytest.fixture(scope="module", params=LANGUAGES)
def harness(request):
    found = programs(request.param)
    with provider(found, None) as at:
        yield Harness(found, Cores(None, None), at)


def measure(harness, shape, plan, load="small"):
    return harness.measure(Target("direct", "127.0.0.1", harness.provider.port), shape, plan, load)


def test_answers_in_one_piece_are_counted(harness):
    found = measure(harness, Shape(), Plan("loop", 3, 0.3, warm=0.0))
    assert found["answers"] > 20
    assert (found["failed"], found["short"], found["cut"], found["trouble"]) == (0, 0, 0, "")
    assert found["first_byte_ms"]["count"] == found["whole_answer_ms"]["count"] == found["answers"]
    assert 0 < found["first_byte_ms"]["p50"] <= found["first_byte_ms"]["p99"] <= found["first_byte_ms"]["max"]
    assert found["answers_per_second"] == pytest.approx(found["answers"] / found["seconds"])
    assert found["harness_share"] > 0


def test_every_event_of_a_stream_arrives_with_the_time_at_which_it_was_sent(harness):
    found = measure(harness, Shape(20, 5000), Plan("once", 4, 10.0, warm=0.0, expect=20))
    assert (found["answers"], found["events"], found["short"]) == (4, 80, 0)
    assert found["event_delay_ms"]["count"] == 80
    assert found["gap_stretch_ms"]["count"] == 76
    assert found["event_delay_ms"]["p50"] < 1000
    assert found["whole_answer_ms"]["p50"] >= 19 * 5
    assert found["provider_lag_ms"]["count"] == 80
    assert (found["asked"], found["provider_requests"], found["note"]) == (4, 4, "")


def test_a_stream_without_gaps_is_whole(harness):
    found = measure(harness, Shape(3000), Plan("once", 2, 20.0, warm=0.0, expect=3000))
    assert (found["answers"], found["events"], found["short"]) == (2, 6000, 0)


def test_a_stream_of_another_length_is_not_taken_for_whole(harness):
    found = measure(harness, Shape(10), Plan("once", 1, 5.0, warm=0.0, expect=11))
    assert (found["answers"], found["short"]) == (0, 1)


def test_the_providers_own_time_is_kept(harness):
    found = measure(harness, Shape(2, 1000, 60_000), Plan("once", 1, 5.0, warm=0.0, expect=2))
    assert found["first_byte_ms"]["p50"] >= 60.0


def test_what_was_added_to_the_first_byte_is_all_but_the_providers_own_time(harness):
    found = measure(harness, Shape(2, 1000, 200_000), Plan("once", 3, 5.0, warm=0.0, expect=2))
    added = found["added_first_ms"]
    assert added["count"] == 3
    assert 0 < added["p50"] < 150, "the way there and back, on a machine that may be busy"
    assert added["max"] <= found["first_byte_ms"]["max"] - 199
    assert found["send_late_ms"]["count"] == 3


def test_requests_come_at_their_rate_whether_answered_or_not(harness):
    found = measure(harness, Shape(1, 0, 100_000), Plan("open", 50, 0.5, warm=0.0, rate=40.0))
    assert 12 <= found["answers"] + found["cut"] <= 20, (
        "20 in half a second, of which the last are still under way"
    )
    assert found["late"] == 0


def test_requests_that_find_no_connection_free_are_told(harness):
    found = measure(harness, Shape(1, 0, 400_000), Plan("open", 1, 0.3, warm=0.0, rate=50.0))
    assert found["late"] >= 5


def test_held_streams_stay_open_for_the_window(harness):
    found = measure(harness, Shape(2, 60_000_000), Plan("hold", 5, 0.2, ramp=0.1, warm=0.0))
    assert (found["streams_begun"], found["held"], found["failed"], found["answers"]) == (5, 5, 0, 0)


def test_every_hang_up_is_seen_by_the_provider(harness):
    found = measure(harness, Shape(1000, 5000), Plan("leave", 3, 0.5, warm=0.1, drain=0.5))
    assert found["hangups"] > 5
    assert found["hangups_seen"] >= found["hangups"] - 3, (
        "the last ones may have come after the provider was asked"
    )
    assert found["hangup_ms"]["p50"] < 1000


@pytest.mark.parametrize("load", ["context", "images"])
def test_large_requests_arrive(harness, load):
    found = measure(harness, Shape(), Plan("loop", 2, 0.3, warm=0.0), load)
    assert found["answers"] > 0
    assert found["failed"] == 0


def test_answers_that_a_gateway_reads_on_are_cut_off_before_the_next_measurement(harness, monkeypatch):
    monkeypatch.setattr(bench_harness, "BACKLOG_LOOKS", 8)
    with socket.create_connection(("127.0.0.1", harness.provider.port)) as gateway:
        body = b"bench=stream,9999,10000,0,0;"
        gateway.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        assert gateway.recv(10)
        began = time.monotonic()
        assert harness.provider.clear(0.0)
        looks = (time.monotonic() - began) / 0.1
        assert looks > 8 - 1 > bench_harness.REST_LOOKS, "it may try again after a pause"
        while gateway.recv(65_536):
            pass
    assert harness.provider.stats()["open"] == 0


@frozen
class Asked(ProviderAt):
    """A provider that an overrun gateway still asks, for clients that have left: once between two looks."""

    backlog: Iterator[int] = field(factory=lambda: repeat(1))

    def stats(self):
        if next(self.backlog, None):
            self._get("/of/a/client/that/has/left")
        return super().stats()


def test_a_measurement_begins_when_an_overrun_gateway_has_worked_off_its_backlog(harness):
    at, backlog = harness.provider, iter([1] * 10)
    assert Asked(at.port, at.pid, backlog=backlog).clear(most=30.0)
    assert list(backlog) == []
    assert at.stats()["requests"] == 0, "none of them is counted with what comes next"


def test_a_gateway_that_does_not_come_to_rest_is_not_waited_for_for_ever_and_is_said(harness):
    at = harness.provider
    assert not Asked(at.port, at.pid).clear(most=0.3)
    found = measure(harness, Shape(), Plan("once", 2, 0.1, warm=0.0))
    assert doubts(found) == []
    assert doubts({**found, "alone": False}) == ["what was measured before was still at work"]


def test_a_measurement_waits_for_the_gateway_before_it_which_may_go_on_for_clients_that_have_left(harness):
    """It would have half of the core of the next one."""
    briefly = Shape(), Plan("once", 1, 0.05, warm=0.0)
    at = Target("direct", "127.0.0.1", harness.provider.port)
    busy = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as process:
        gateway = evolve(at, pid=process.pid)
        try:
            harness.measure(gateway, *briefly)
            assert harness.measure(at, *briefly)["alone"]
            assert select.select([process.stdout], [], [], 0)[0], "it has done all that it had to do"
            harness.measure(gateway, *briefly)
        finally:
            process.kill()
    assert harness.measure(at, *briefly)["alone"], "it has ended"


# -- a server that cuts its answers, and one that fails ----------------------------------------------


def drive(language, port, tmp_path, **settings):
    """The command line of a client that asks that port."""
    (tmp_path / "request").write_bytes(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    named = {"host": "127.0.0.1", "port": port, "request": tmp_path / "request", **settings}
    return [*programs(language).client, *(f"{name}={value}" for name, value in named.items())]


async def figures_of(language, answer, tmp_path, *, pieces, **settings):
    """Serve every request with these bytes, in pieces; gives the client's figures."""

    async def serve(stream):
        while await stream.receive_some(65_536):
            for piece in pieces(answer):
                await stream.send_all(piece)
            if b"close" in answer:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            trio.serve_tcp,
            serve,
            0,
        )
        port = listeners[0].socket.getsockname()[1]
        command = drive(language, port, tmp_path, **settings)
        done = await trio.run_process(command, capture_stdout=True, env=environment())
        nursery.cancel_scope.cancel()
    return json.loads(done.stdout.splitlines()[-1])


def bytewise(data):
    return [data[at : at + 1] for at in range(len(data))]


def whole(data):
    return [data]


STREAM = STREAM_HEAD + b"".join(chunk(EVENT % (1 + number)) for number in range(3)) + END


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_answer_that_comes_byte_by_byte_is_counted_the_same(language, tmp_path):
    found = await figures_of(
        language, STREAM, tmp_path, pieces=bytewise, mode="once", seconds=20, connections=1, expect=3
    )
    assert (found["answers"], found["events"], found["short"], found["failed"]) == (1, 3, 0, 0)
    assert found["event_delay_ms"]["count"] == 3


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_stamp_with_a_border_of_chunks_in_it_counts_as_an_event_without_a_time(language, tmp_path):
    event = EVENT % 1
    middle = event.index(b"@") + 5
    answer = STREAM_HEAD + chunk(event[:middle]) + chunk(event[middle:]) + chunk(event) + END
    found = await figures_of(
        language, answer, tmp_path, pieces=whole, mode="once", seconds=20, connections=1, expect=2
    )
    assert (found["answers"], found["events"]) == (1, 2)
    assert found["event_delay_ms"]["count"] == 1


@pytest.mark.parametrize("language", LANGUAGES)
async def test_failures_are_counted_and_the_first_is_told(language, tmp_path):
    answer = b'HTTP/1.1 500 Oh\r\ncontent-length: 15\r\n\r\n{"error":"bad"}'
    found = await figures_of(language, answer, tmp_path, pieces=whole, mode="once", seconds=20, connections=2)
    assert (found["answers"], found["failed"]) == (0, 2)
    assert "500" in found["trouble"]
    assert "bad" in found["trouble"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_answer_without_a_length_ends_with_its_connection(language, tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello"
    found = await figures_of(language, answer, tmp_path, pieces=whole, mode="once", seconds=20, connections=2)
    assert (found["answers"], found["failed"]) == (2, 0)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_an_answer_that_is_cut_off_has_failed(language, tmp_path):
    answer = b"HTTP/1.1 200 OK\r\nx: close\r\ncontent-length: 100\r\n\r\nhello"
    found = await figures_of(language, answer, tmp_path, pieces=whole, mode="once", seconds=20, connections=1)
    assert (found["answers"], found["failed"]) == (0, 1)
    assert "closed" in found["trouble"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_where_nobody_listens_all_fails_and_the_client_ends(language, tmp_path):
    command = drive(language, 1, tmp_path, mode="loop", seconds=0.2, connections=2, drain=0)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment(), check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] == 0
    assert found["failed"] >= 2


# -- choosing ----------------------------------------------------------------------------------------


def test_without_a_compiler_python_runs_and_c_is_refused(monkeypatch):
    monkeypatch.setattr(bench_programs.shutil, "which", lambda _name: None)
    assert programs().kind == "Python"
    with pytest.raises(RuntimeError, match="no C compiler"):
        programs("c")


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    @contextmanager
    def broken():
        sources = tmp_path / "native"
        sources.mkdir()
        (sources / "common.h").write_text("")
        (sources / "provider.c").write_text("this is no C")
        monkeypatch.setattr(bench_programs, "SOURCES", sources)
        monkeypatch.setattr(bench_programs, "BUILT", (sources / "build",))
        yield

    with broken():
        assert programs().kind == "Python"
        with pytest.raises(RuntimeError, match=r"failed on provider\.c|no C compiler"):
            programs("c")


@pytest.mark.skipif(not COMPILED, reason="there is no C compiler")
def test_where_the_sources_may_not_be_written_programs_are_built_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")  # a folder in a file: not even root can make it
    closed, place = tmp_path / "file" / "build", tmp_path / "cache" / "bench"
    monkeypatch.setattr(bench_programs, "BUILT", (closed, place))
    found = programs("c")
    assert [command.rpartition("-")[0] for (command,) in (found.provider, found.client)] == [
        str(place / "provider"),
        str(place / "client"),
    ]
    assert programs("c") == found
    assert len(list(place.iterdir())) == 2, "drafts are gone, and what is built is found again"


@pytest.mark.skipif(not COMPILED, reason="there is no C compiler")
def test_where_nothing_may_be_written_the_python_programs_run(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(bench_programs, "BUILT", (tmp_path / "file" / "build",))
    assert programs().kind == "Python"
    with pytest.raises(RuntimeError, match="no place to build at"):
        programs("c")


def test_bodies_in_chunks_are_taken_apart():
    assert unchunked(b"5\r\nhello\r\n0\r\n\r\nrest") == (b"hello", 15)
    for cut in range(15):
        assert unchunked(b"5\r\nhello\r\n0\r\n\r\n"[:cut]) is None
