"""Where an answer goes: headers leave with the first byte, a gone client silences it, heartbeats never interleave."""

import pytest
import trio

from proxy.alarms import Alarms
from proxy.doors.fast_reply import FastReply
from proxy.doors.heads import status_line
from proxy.doors.reply import DoorReply
from proxy.doors.wire import Gone
from tests.doors.memory import Answers


class OneAtATime:
    """Takes its time over what is sent, and nothing else meanwhile."""

    def __init__(self, slow):
        self.slow, self._busy = slow, False

    async def take(self, sent, one):
        assert not self._busy, "half of one would stand in the middle of the other"
        self._busy = True
        await trio.sleep(self.slow)
        self._busy = False
        sent.append(one)


class Messages(OneAtATime):
    """What an ASGI server was sent."""

    def __init__(self, slow):
        super().__init__(slow)
        self.messages = []

    async def send(self, message):
        await self.take(self.messages, message)

    @property
    def silent(self):
        return self.messages == []

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def complete(self):
        return [message.get("more_body") for message in self.messages[1:]] == [True, False]


class Carrier(OneAtATime):
    """A fast connection that remembers what a client would have read."""

    def __init__(self, slow, nursery):
        super().__init__(slow)
        self.wire, self.sent = self, []
        self.nursery = nursery
        self.alarms = Alarms(pytest.fail)
        self.alarm = self.alarms.new()
        self.chunks = True
        self.now = self.alarms.now

    async def send(self, data):
        await self.take(self.sent, data)

    def send_now(self, data):
        assert not self._busy, "half of one would stand in the middle of the other"
        if self.slow:
            return data
        self.sent.append(data)
        return b""

    send_rest = send

    def opening(self, status, *, whole):  # noqa: ARG002 - as of the real one
        return status_line(status)

    def cancel(self):
        self.nursery.cancel_scope.cancel()

    def beside(self, task):
        self.nursery.start_soon(task)

    @property
    def silent(self):
        return self.sent == []

    @property
    def _answer(self):
        return Answers(b"".join(self.sent)).all[0]

    @property
    def status(self):
        return self._answer.status

    @property
    def body(self):
        return self._answer.body

    @property
    def headers(self):
        return self._answer.headers

    @property
    def complete(self):
        return self._answer.complete


class Answering:
    """A reply inside its request's nursery."""

    def __init__(self, kind, slow=0.0):
        self.kind, self.slow = kind, slow

    async def __aenter__(self):
        self.manager = trio.open_nursery()
        self.nursery = await self.manager.__aenter__()
        headers = {"x-request-id": "req_1"}
        if self.kind == "hypercorn":
            self.wire = Messages(self.slow)
            self.reply = DoorReply(self.wire.send, self.nursery, headers=headers)
        else:
            self.wire = Carrier(self.slow, self.nursery)
            self.server = trio.CancelScope()
            self.nursery.start_soon(self._serve)
            self.reply = FastReply(self.wire, headers=headers)
        return self.reply

    async def _serve(self):
        with self.server:
            await self.wire.alarms.run()

    async def __aexit__(self, *exc):
        if self.kind == "fast":
            self.server.cancel()
        return await self.manager.__aexit__(*exc)


@pytest.fixture
def answering(door):
    """Give a reply of each door."""
    return lambda slow=0.0: Answering(door, slow)


async def test_headers_leave_with_the_first_byte_and_not_before(answering, autojump_clock):
    answer = answering()
    async with answer as reply:
        reply.note({"x-credits-model": "m"})
        reply.start(200, {"content-type": "text/event-stream"})
        assert answer.wire.silent
        assert not reply.started
        await reply.write(b"data: 1\n\n")
        assert reply.started
        await reply.end(b"data: 2\n\n")
    assert answer.wire.status == 200
    assert {"x-request-id", "x-credits-model", "content-type"} <= answer.wire.headers.keys()
    assert "content-length" not in answer.wire.headers
    assert answer.wire.body == b"data: 1\n\ndata: 2\n\n"
    assert answer.wire.complete


async def test_an_answer_in_one_piece_gets_its_length_and_late_headers(answering, autojump_clock):
    answer = answering()
    async with answer as reply:
        reply.start(200, {})
        await reply.end(b"whole", {"x-credits-cost-micro": "5"})
    assert answer.wire.headers["content-length"] == "5"
    assert answer.wire.headers["x-credits-cost-micro"] == "5"


async def test_nothing_is_written_for_no_bytes(answering, autojump_clock):
    answer = answering()
    async with answer as reply:
        reply.start(200, {})
        await reply.write(b"")
    assert answer.wire.silent


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\x00b", "a\x7f"])
@pytest.mark.parametrize("where", ["noted", "started", "ended", "written"])
async def test_no_header_can_be_smuggled_in(answering, autojump_clock, value, where):
    answer, bad = answering(), {"x-a": value}
    async with answer as reply:
        reply.note(bad if where == "noted" else {})
        reply.start(200, bad if where in ("started", "written") else {})
        with pytest.raises(ValueError, match="header"):
            await (
                reply.write(b"x")
                if where == "written"
                else reply.end(b"x", bad if where == "ended" else None)
            )
        assert not reply.started
    assert answer.wire.silent


async def test_a_hang_up_cancels_the_request_unless_it_is_to_fall_mute(answering, autojump_clock):
    reached = []
    async with answering() as reply:
        reply.hang_up()
        await trio.lowlevel.checkpoint()
        reached.append("after")
    assert reached == []


async def test_a_mute_reply_writes_nothing_and_says_so_once(answering, autojump_clock):
    answer, told = answering(), []
    async with answer as reply:
        reply.when_gone(lambda: told.append(1))
        reply.mute_when_gone(mute=True)
        reply.start(200, {})
        reply.hang_up()
        reply.hang_up()
        assert reply.client_gone
        await reply.write(b"data: 1\n\n")
        await reply.end(b"data: 2\n\n")
    assert answer.wire.silent
    assert told == [1]


async def test_a_client_that_is_gone_is_not_kept_once_muting_ends(answering, autojump_clock):
    reached = []
    async with answering() as reply:
        reply.mute_when_gone(mute=True)
        reply.hang_up()
        reply.mute_when_gone(mute=False)
        await trio.lowlevel.checkpoint()
        reached.append("after")
    assert reached == []


async def test_silence_is_broken_by_heartbeats_and_status_200_comes_first(answering, autojump_clock):
    answer = answering()
    async with answer as reply:
        async with reply.keep_alive(b": keep-alive\n\n", 15):
            await trio.sleep(50)
            reply.start(502, {"content-type": "application/json"})
            await reply.write(b"data: 1\n\n")
        await trio.sleep(100)
        await reply.end(b"")
    assert answer.wire.status == 200
    assert answer.wire.headers["content-type"].startswith("text/event-stream")
    assert answer.wire.body == b": keep-alive\n\n" * 3 + b"data: 1\n\n"


async def test_a_heartbeat_never_falls_into_a_frame(answering, autojump_clock):
    answer = answering(slow=20.0)
    async with answer as reply, reply.keep_alive(b": keep-alive\n\n", 1):
        reply.start(200, {})
        await reply.write(b"data: one\n\n")
        await reply.write(b"data: two\n\n")
    assert b": keep-alive\n\ndata: two" in answer.wire.body or b"one\n\ndata: two" in answer.wire.body
    assert answer.wire.body.replace(b": keep-alive\n\n", b"") == b"data: one\n\ndata: two\n\n"


async def test_a_heartbeat_whose_turn_comes_too_late_is_none(answering, autojump_clock):
    answer = answering(slow=20.0)
    async with answer as reply:
        reply.start(200, {})
        async with reply.keep_alive(b": keep-alive\n\n", 1):
            await reply.write(b"data: one\n\n")
        await trio.sleep(100)
        await reply.end(b"data: two\n\n")
    assert answer.wire.body == b"data: one\n\ndata: two\n\n"


class Leaving(Carrier):
    """A connection whose client is found to be gone by a send: at once, or when it had to be waited for."""

    async def take(self, _sent, _one):
        await trio.sleep(self.slow)
        raise Gone

    def send_now(self, data):
        if self.slow:
            return data
        raise Gone


@pytest.mark.parametrize("mute", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("slow", [0.0, 20.0])
async def test_a_client_that_is_found_gone_by_a_send_has_hung_up(autojump_clock, mute, last, slow):
    told, reached = [], []
    async with trio.open_nursery() as nursery:
        reply = FastReply(Leaving(slow, nursery), headers={})
        reply.mute_when_gone(mute=mute)
        reply.when_gone(lambda: told.append(1))
        reply.start(200, {})
        if last:
            await reply.end(b"data: 1\n\n")
            assert not reply.complete
        else:
            await reply.write(b"data: 1\n\n")
            reached.append("after")
    # once the end is on its way nobody has left: there is nothing more to cancel or to mute
    assert reply.client_gone == (not last)
    assert told == [1] * (mute and not last)
    assert reached == ["after"] * (mute and not last)


async def test_without_a_heartbeat_silence_is_silence(answering, autojump_clock):
    answer = answering()
    async with answer as reply, reply.keep_alive(b"", 1):
        await trio.sleep(100)
    assert answer.wire.silent


async def test_a_heartbeat_that_falls_due_as_the_stream_fails_is_not_written_into_the_error(
    answering, autojump_clock
):
    """Both wake in the same instant; whichever comes first, the answer is whole."""
    for _ in range(100):
        answer = answering()
        async with answer as reply:
            async with reply.keep_alive(b": keep-alive\n\n", 5):
                await trio.sleep(5)
            early = reply.started
            reply.start(400, {"content-type": "application/json"})
            await reply.end(b"{}")
        written = answer.wire.body
        if early:
            assert (answer.wire.status, written) == (200, b": keep-alive\n\n{}")
        else:
            assert (answer.wire.status, written) == (400, b"{}")
            assert answer.wire.headers["content-length"] == "2"
