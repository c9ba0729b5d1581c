"""Where an answer goes: headers leave with the first byte, a gone client silences it, heartbeats never interleave."""

import pytest
import trio

from proxy.doors.reply import DoorReply


class Wire:
    def __init__(self, *, slow=0.0):
        self.messages = []
        self.slow = slow

    async def send(self, message):
        await trio.sleep(self.slow)
        self.messages.append(message)

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}


class Answering:
    """A reply inside its request's nursery."""

    def __init__(self, **wire):
        self.wire = Wire(**wire)

    async def __aenter__(self):
        self.manager = trio.open_nursery()
        self.nursery = await self.manager.__aenter__()
        self.reply = DoorReply(self.wire.send, self.nursery, {"x-request-id": "req_1"})
        return self.reply

    async def __aexit__(self, *exc):
        return await self.manager.__aexit__(*exc)


async def test_headers_leave_with_the_first_byte_and_not_before(autojump_clock):
    answering = Answering()
    async with answering as reply:
        reply.note({"x-credits-model": "m"})
        reply.start(200, {"content-type": "text/event-stream"})
        assert answering.wire.messages == []
        assert not reply.started
        await reply.write(b"data: 1\n\n")
        assert reply.started
        await reply.end(b"data: 2\n\n")
    assert answering.wire.messages[0]["status"] == 200
    assert {"x-request-id", "x-credits-model", "content-type"} <= answering.wire.headers.keys()
    assert "content-length" not in answering.wire.headers
    assert answering.wire.body == b"data: 1\n\ndata: 2\n\n"
    assert [message.get("more_body") for message in answering.wire.messages[1:]] == [True, False]


async def test_an_answer_in_one_piece_gets_its_length_and_late_headers(autojump_clock):
    answering = Answering()
    async with answering as reply:
        reply.start(200, {})
        await reply.end(b"whole", {"x-credits-cost-micro": "5"})
    assert answering.wire.headers["content-length"] == "5"
    assert answering.wire.headers["x-credits-cost-micro"] == "5"


async def test_nothing_is_written_for_no_bytes(autojump_clock):
    answering = Answering()
    async with answering as reply:
        reply.start(200, {})
        await reply.write(b"")
    assert answering.wire.messages == []


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\x00b", "a\x7f"])
async def test_no_header_can_be_smuggled_in(autojump_clock, value):
    async with Answering() as reply:
        with pytest.raises(ValueError, match="header"):
            reply.note({"x-a": value})


async def test_a_hang_up_cancels_the_request_unless_it_is_to_fall_mute(autojump_clock):
    reached = []
    async with Answering() as reply:
        reply.hang_up()
        await trio.lowlevel.checkpoint()
        reached.append("after")
    assert reached == []


async def test_a_mute_reply_writes_nothing_and_says_so_once(autojump_clock):
    answering, told = Answering(), []
    async with answering as reply:
        reply.when_gone(lambda: told.append(1))
        reply.mute_when_gone(mute=True)
        reply.start(200, {})
        reply.hang_up()
        reply.hang_up()
        assert reply.client_gone
        await reply.write(b"data: 1\n\n")
        await reply.end(b"data: 2\n\n")
    assert answering.wire.messages == []
    assert told == [1]


async def test_a_client_that_is_gone_is_not_kept_once_muting_ends(autojump_clock):
    reached = []
    async with Answering() as reply:
        reply.mute_when_gone(mute=True)
        reply.hang_up()
        reply.mute_when_gone(mute=False)
        await trio.lowlevel.checkpoint()
        reached.append("after")
    assert reached == []


async def test_silence_is_broken_by_heartbeats_and_status_200_comes_first(autojump_clock):
    answering = Answering()
    async with answering as reply:
        async with reply.keep_alive(b": keep-alive\n\n", 15):
            await trio.sleep(50)
            reply.start(502, {"content-type": "application/json"})
            await reply.write(b"data: 1\n\n")
        await trio.sleep(100)
        await reply.end(b"")
    assert answering.wire.messages[0]["status"] == 200
    assert answering.wire.headers["content-type"].startswith("text/event-stream")
    assert answering.wire.body == b": keep-alive\n\n" * 3 + b"data: 1\n\n"


async def test_a_heartbeat_never_falls_into_a_frame(autojump_clock):
    answering = Answering(slow=20.0)
    async with answering as reply, reply.keep_alive(b": keep-alive\n\n", 1):
        reply.start(200, {})
        await reply.write(b"data: one\n\n")
        await reply.write(b"data: two\n\n")
    assert b": keep-alive\n\ndata: two" in answering.wire.body or b"one\n\ndata: two" in answering.wire.body
    assert answering.wire.body.replace(b": keep-alive\n\n", b"") == b"data: one\n\ndata: two\n\n"


async def test_without_a_heartbeat_silence_is_silence(autojump_clock):
    answering = Answering()
    async with answering as reply, reply.keep_alive(b"", 1):
        await trio.sleep(100)
    assert answering.wire.messages == []


async def test_a_heartbeat_that_falls_due_as_the_stream_fails_is_not_written_into_the_error(autojump_clock):
    """Both wake in the same instant; whichever comes first, the answer is whole."""
    for _ in range(100):
        answering = Answering()
        async with answering as reply:
            async with reply.keep_alive(b": keep-alive\n\n", 5):
                await trio.sleep(5)
            early = reply.started
            reply.start(400, {"content-type": "application/json"})
            await reply.end(b"{}")
        written = answering.wire.body
        if early:
            assert (answering.wire.messages[0]["status"], written) == (200, b": keep-alive\n\n{}")
        else:
            assert (answering.wire.messages[0]["status"], written) == (400, b"{}")
            assert answering.wire.headers["content-length"] == "2"
