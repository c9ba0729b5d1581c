"""A body is read when it is asked for, and refused as early as it can be."""

import pytest
import trio

from proxy.config import Server
from proxy.doors.request import DoorRequest
from proxy.errors import Rejected


class Incoming:
    """An ASGI `receive` that gives a script: messages, or seconds to wait before the next one."""

    def __init__(self, *script):
        self.script = list(script)
        self.asked = 0

    async def receive(self):
        self.asked += 1
        while isinstance(self.script[0], float | int):
            await trio.sleep(self.script.pop(0))
        return self.script.pop(0)


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


LEFT = {"type": "http.disconnect"}


def asked(incoming, headers=None, **settings):
    return DoorRequest("req_1", "POST", "/x", "", headers or {}, incoming.receive, Server(**settings))


async def refusal(request, bytes_max=100):
    with pytest.raises(Rejected) as caught:
        await request.body(bytes_max)
    return caught.value.status


async def test_a_body_is_given_whole_and_then_the_door_may_watch(autojump_clock):
    incoming, read = Incoming(part(b"he"), part(b""), part(b"llo", more=False), LEFT), []
    request = asked(incoming)
    request.body_read = lambda: read.append(incoming.asked)
    assert await request.body(5) == b"hello"
    assert read == [3]
    await request.disconnect()


@pytest.mark.parametrize("headers", [{"content-length": "101"}, {"content-length": "99999999999"}])
async def test_a_body_announced_as_too_large_is_refused_before_it_is_read(autojump_clock, headers):
    incoming = Incoming()
    assert await refusal(asked(incoming, headers)) == 413
    assert incoming.asked == 0


async def test_a_body_that_turns_out_too_large_is_refused_where_it_does(autojump_clock):
    incoming = Incoming(part(b"x" * 60), part(b"x" * 60), part(b"", more=False))
    assert await refusal(asked(incoming)) == 413
    assert incoming.asked == 2


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "identity, gzip", "GZIP"])
async def test_a_compressed_body_is_refused_before_it_is_read(autojump_clock, coding):
    incoming = Incoming()
    assert await refusal(asked(incoming, {"content-encoding": coding})) == 415
    assert incoming.asked == 0


async def test_a_body_that_says_it_is_not_compressed_is_read(autojump_clock):
    request = asked(Incoming(part(b"a", more=False)), {"content-encoding": "Identity"})
    assert await request.body(5) == b"a"


async def test_a_body_that_stops_is_refused_after_its_time(autojump_clock):
    request = asked(Incoming(part(b"a"), 60), body_seconds_min=10, body_bytes_per_second_min=10)
    began = trio.current_time()
    assert await refusal(request) == 408
    assert trio.current_time() - began == pytest.approx(10.1)


async def test_a_body_that_keeps_the_least_rate_is_read_however_long_it_takes(autojump_clock):
    script = [step for _ in range(20) for step in (5, part(b"x" * 100))]
    request = asked(
        Incoming(*script, part(b"", more=False)), body_seconds_min=10, body_bytes_per_second_min=10
    )
    assert len(await request.body(10_000)) == 2000


async def test_a_client_that_leaves_in_its_body_ends_the_request(autojump_clock):
    request, left, reached = asked(Incoming(part(b"a"), LEFT)), [], []
    with trio.CancelScope() as scope:
        request.client_left = lambda: (left.append(1), scope.cancel())
        await request.body(100)
        reached.append(1)
    assert (left, reached) == ([1], [])


async def test_a_client_that_leaves_in_its_body_is_refused_where_nothing_cancels(autojump_clock):
    assert await refusal(asked(Incoming(part(b"a"), LEFT))) == 400
