"""A provider on loopback that follows a script, byte by byte, and what tests of the way there share."""

import ssl
import time
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from proxy.upstreams.client import Call, HttpClient

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"

CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHecgNDCILHWdCOHB
OiCd/hF33QXNjXYBYwVysNKKB5OhRANCAAQi+uiwNTGCCJrqueBf2Gnr/fc6DOmW
KKRpn0elw++hThgqCF4L0dHGygkWYUn6zyVZn08JlGigks5QzrEawdFk
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBejCCASCgAwIBAgIUYGyY38cUwd2WG5ZWhdgdsCf1RJQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAx
MDAwMDAwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQi+uiwNTGCCJrqueBf2Gnr/fc6DOmWKKRpn0elw++hThgqCF4L0dHG
ygkWYUn6zyVZn08JlGigks5QzrEawdFko04wTDAPBgNVHRMBAf8EBTADAQH/MB0G
A1UdDgQWBBQgNQMhH6uSr3SQIXQMDErIyMviJTAaBgNVHREEEzARgglsb2NhbGhv
c3SHBH8AAAEwCgYIKoZIzj0EAwIDSAAwRQIgF+r2l4zVgiDInSQOvBAz42d5bDU/
SZMEuegIDO414tgCIQDH1+UJt19OKIncbThnX31/ibTbSyLlY7aQ2bvo/He6Rg==
-----END CERTIFICATE-----
"""
"""Of localhost and 127.0.0.1, signed by itself, for these tests alone."""
PUBLIC = CERTIFICATE[CERTIFICATE.index("-----BEGIN CERT") :]


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


@define(eq=False)
class Server:
    """Hands each connection's bytes to a script, and notes what came and when the other side closed."""

    script: object
    port: int = 0
    connections: int = 0
    heads: list = field(factory=list)
    bodies: list = field(factory=list)
    closed: list = field(factory=list)

    async def handle(self, stream):
        self.connections += 1
        try:
            await self.script(self, stream)
            with trio.move_on_after(5):
                while await stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.closed.append(time.monotonic())

    async def read_request(self, stream):
        """Read one request; gives `False` where there is none any more."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(body) < int(headers.get("content-length", 0)):
            more = await stream.receive_some()
            if not more:
                return False
            body += more
        self.heads.append((lines[0], headers))
        self.bodies.append(body)
        return True


@asynccontextmanager
async def listening(script, tls=None, host="127.0.0.1"):
    """A server; `tls` is its context, where it has one."""
    server = Server(script)
    async with trio.open_nursery() as nursery:
        if tls is None:
            (listener,) = await trio.open_tcp_listeners(0, host=host, backlog=512)
            server.port = listener.socket.getsockname()[1]
        else:
            (listener,) = await trio.open_ssl_over_tcp_listeners(0, tls, host=host)
            server.port = listener.transport_listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(script, tls=None, host="127.0.0.1", connect_seconds=5.0, **client):
    """A server and a client for it."""
    async with listening(script, tls, host) as server:
        made = HttpClient(connect_seconds=connect_seconds, **client)
        try:
            yield server, made
        finally:
            await made.aclose()


def call_to(server, path="/v1/chat/completions", scheme="http", host="127.0.0.1", **more):
    headers = more.pop("headers", (("authorization", "Bearer secret"), ("accept-encoding", "identity")))
    return Call(f"{scheme}://{host}:{server.port}{path}", headers, more.pop("body", b'{"model":"m"}'))


def nothing():
    """Where nobody wants to know."""


def origins(client):
    return client._transport.origins


def settled(client):
    """Whether no slot is taken and nobody waits; connections that are open are kept ones."""
    return origins(client).idle() and origins(client).open == origins(client).kept


async def read_all(exchange):
    data = b""
    while more := await exchange.read():
        data += more
    return data


async def short_answers(server, stream):
    while await server.read_request(stream):
        await stream.send_all(SHORT)


async def endless(server, stream):
    await server.read_request(stream)
    await stream.send_all(CHUNKED)
    while True:
        await stream.send_all(chunk(b"data: x\n\n"))
        await trio.sleep(0.005)


async def silent(server, stream):
    await server.read_request(stream)
    await stream.receive_some()


async def until_closed(server, count=1, seconds=2):
    with trio.fail_after(seconds):
        while len(server.closed) < count:
            await trio.sleep(0.001)
    return server.closed[count - 1]


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the nth step of a task."""

    def __init__(self, task, n, scope):
        self.task, self.left, self.scope = task, n, scope

    def before_task_step(self, task):
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def cancelled_at(n, work):
    """Run `work()`, cancelled at its nth step; whether it got so far."""
    with trio.CancelScope() as scope:
        instrument = CancelAt(trio.lowlevel.current_task(), n, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.left <= 0


def server_context(path, *, client_certificates=False):
    """A server's TLS; `path` is a file for its certificate."""
    path.write_text(CERTIFICATE)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=PUBLIC)
    return context


def trusting():
    """A client's TLS that trusts it."""
    return ssl.create_default_context(cadata=PUBLIC)
