"""A fast connection without sockets: bytes in, in pieces of our choosing; bytes out; what reached the request path."""

import itertools
from functools import cache
from math import inf
from unittest.mock import patch

import attrs
import httptools
import trio
import trio.testing
from hypercorn.trio.worker_context import WorkerContext

from proxy.alarms import Alarms
from proxy.config import RequestLimits, Server
from proxy.doors import fast_door
from proxy.doors.fork import Door
from proxy.doors.house import House
from proxy.doors.wire import Gone
from proxy.errors import Failure
from tests.fakes import World


class Socket:
    """Where a real connection has one."""

    def fileno(self):
        return -1

    def getpeername(self):
        return ("127.0.0.1", 1)

    getsockname = getpeername


class Stream:
    socket = Socket()


class Hangups:
    """Nobody hangs up but by the end of its bytes."""

    def add(self, sock, left):
        pass

    remove = watch = unwatch = lambda self, *_: None  # noqa: ARG005 - a method


class Wire:
    """Gives pieces in turn, then the end, or silence until it is woken; a number is so many seconds of silence."""

    def __init__(self, pieces, *, stays):
        self.sock = Socket()
        self.pieces = list(pieces)
        self.stays = stays
        self.sent = []
        self.finished = self.closed = self.reset = False
        self._waiting = None

    async def read(self, *, soon=False):  # noqa: ARG002 - as of the real one
        await trio.lowlevel.checkpoint()
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, bytes):
                return piece
            if not await self._silence(piece):
                return b"" if self.closed else None
        if not self.stays or self.closed:
            return b""
        await self._silence(inf)
        return b"" if self.closed else None

    async def _silence(self, seconds):
        """Wait; false if it was cut short by a call of `wake`."""
        with trio.CancelScope() as self._waiting:
            await trio.sleep(seconds)
            return True
        return False

    def wake(self):
        if self._waiting is not None:
            self._waiting.cancel()

    def read_now(self):
        return b""

    async def send(self, data):
        await trio.lowlevel.checkpoint()
        assert not self.send_now(data)

    def send_now(self, data):
        if self.closed or self.finished:
            raise Gone
        self.sent.append(data)
        return b""

    def hand_on(self):
        pass

    def finish(self):
        self.finished = True

    async def say_goodbye(self):
        self.close()

    def close(self, *, reset=False):
        self.reset = self.reset or (reset and not self.closed)
        self.closed = True
        self.wake()


class Answers:
    """What llhttp, as a client, makes of what was sent.

    Args:
        data: all of it.
        methods: of the requests in turn, as far as they are not POST; an answer to HEAD ends with its head.
    """

    def __init__(self, data, methods=()):
        self.all = []
        at, methods = 0, list(methods)
        while at < len(data):
            one = Answer(ends_with_its_head=methods[:1] == ["HEAD"])
            parser = httptools.HttpResponseParser(one)
            # one byte at a time, so that it is known where an answer ends
            while at < len(data) and not one.complete:
                parser.feed_data(data[at : at + 1])
                at += 1
            one.status = parser.get_status_code()
            if one.complete and one.ends_with_its_head and one.headers.get("connection") == "close":
                one.body, at = data[at:], len(data)  # what should not be there, is this one's
            self.all.append(one)
            if one.status != 100:
                del methods[:1]

    @property
    def statuses(self):
        return [one.status for one in self.all]


class Answer:
    def __init__(self, *, ends_with_its_head=False):
        self.status, self.headers, self.body, self.complete = 0, {}, b"", False
        self.ends_with_its_head = ends_with_its_head

    def on_header(self, name, value):
        assert name.decode() not in self.headers
        self.headers[name.decode()] = value.decode()

    def on_headers_complete(self):
        self.complete = self.ends_with_its_head

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.complete = True


@attrs.define(eq=False)
class Seen:
    """What became of a connection.

    Attributes:
        requests: what reached the request path: method, path, query, headers, and the body if it was read.
        sent: what the client got, one item for each send.
        logged: errors.
        reset: the connection was closed so that nobody takes what was sent for all there is.
    """

    requests: list
    sent: list
    logged: list
    reset: bool = False

    @property
    def answers(self):
        return self.answers_to(())

    def answers_to(self, methods):
        return Answers(b"".join(self.sent), methods).all


async def echo(gateway, path, request, reply, requests):
    """Read the body and say how long it is; word what is refused, as the request path does."""
    try:
        body = await request.body(100_000)
    except Failure as failure:
        wording = gateway.dialects[path.dialect].error(failure, request.id)
        reply.start(wording.status, dict(wording.headers))
        await reply.end(wording.body)
        return
    requests.append((request.method, request.path, request.query, dict(request.headers), body))
    reply.start(200, {"content-type": "text/plain"})
    await reply.end(b"%d" % len(body))


@cache
def gateway():
    return World((200, [])).gateway


async def pages(scope, receive, send):
    """Everything that is not the API's."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % len(body)})


def converse(pieces, *, respond=echo, app=pages, stays=False, **settings):
    """Let one connection read pieces, on virtual time; gives what became of it.

    Args:
        pieces: as they are read, one by one; between them numbers, of seconds in which nothing comes.
        respond: the request path.
        app: what answers everything else.
        stays: the client waits after its last byte, instead of closing.
        settings: of the server.
    """
    seen = Seen([], [], [])

    async def main():
        ids = itertools.count()

        async def recording(gateway, path, request, reply):
            await respond(gateway, path, request, reply, seen.requests)

        door = Door(gateway(), recording, lambda: f"req_{next(ids)}", seen.logged.append)
        house = House(
            app,
            None,
            WorkerContext(None),
            {},
            attrs.evolve(Server(), **settings),
            RequestLimits(),
            lambda *line, **fields: seen.logged.append((line, fields)),
            lambda: "req_refused",
            door,
        )
        house.alarms, house.hangups = Alarms(house.failed), Hangups()
        wire = Wire(pieces, stays=stays)
        with patch.object(fast_door, "wire_of", lambda *_: wire):
            connection = fast_door.FastConnection(house, Stream())
        async with trio.open_nursery() as house.helpers:
            house.helpers.start_soon(house.alarms.run)
            with trio.fail_after(10_000):
                await connection.run()
            house.helpers.cancel_scope.cancel()
        assert wire.closed
        assert not house.connections
        seen.sent, seen.reset = wire.sent, wire.reset

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seen
