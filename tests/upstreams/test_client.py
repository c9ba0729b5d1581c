"""The httpx client against a real server on loopback: what it sends, how it fails, how it lets go."""

import ssl
import time
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, field

from accounting.records import Ending
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.upstreams.client import Call, ConnectionWasStale, HttpClient

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


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
        while len(body) < int(headers["content-length"]):
            more = await stream.receive_some()
            if not more:
                return False
            body += more
        self.heads.append((lines[0], headers))
        self.bodies.append(body)
        return True


@asynccontextmanager
async def serving(script, tls=None):
    server = Server(script)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        client = HttpClient(connect_seconds=5.0, verify=tls)
        try:
            yield server, client
        finally:
            await client.aclose()
            nursery.cancel_scope.cancel()


def call_to(server, path="/v1/chat/completions", scheme="http", **more):
    headers = more.pop("headers", (("authorization", "Bearer secret"), ("accept-encoding", "identity")))
    return Call(f"{scheme}://127.0.0.1:{server.port}{path}", headers, more.pop("body", b'{"model":"m"}'))


def nothing():
    """Where nobody wants to know."""


def pooled(client):
    return client._http._transport._pool.connections


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


# -- what is sent ----------------------------------------------------------------------------------


async def test_nothing_is_sent_but_what_was_given_and_what_http_needs():
    async with serving(short_answers) as (server, client):
        exchange = await client.send(call_to(server, "/v1/x?alt=sse"), nothing)
        assert (exchange.status, await read_all(exchange)) == (200, b"hi")
        await exchange.aclose()
    line, headers = server.heads[0]
    assert line == "POST /v1/x?alt=sse HTTP/1.1"
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "authorization": "Bearer secret",
        "accept-encoding": "identity",
        "content-length": "13",
    }
    assert server.bodies == [b'{"model":"m"}']


async def test_sending_is_called_once_before_the_first_byte_arrives():
    said = []

    async def script(server, stream):
        await server.read_request(stream)
        said.append("arrived")
        await stream.send_all(SHORT)

    async with serving(script) as (server, client):
        await read_all(await client.send(call_to(server), lambda: said.append("sending")))
    assert said == ["sending", "arrived"]


async def test_a_redirect_is_not_followed():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        assert exchange.status == 302
        await exchange.aclose()
    assert len(server.heads) == 1


async def test_cookies_are_not_kept():
    async def script(server, stream):
        while await server.read_request(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")

    async with serving(script) as (server, client):
        for _ in range(2):
            await read_all(await client.send(call_to(server), nothing))
        assert len(client._http.cookies.jar) == 0
    assert "cookie" not in server.heads[1][1]


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with serving(short_answers) as (server, client):
        assert await read_all(await client.send(call_to(server), nothing)) == b"hi"


async def test_an_answer_is_not_decompressed():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\0\0"
        )

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        assert exchange.headers["content-encoding"] == "gzip"
        assert await read_all(exchange) == b"\x1f\x8b\0\0"


async def test_a_connection_is_used_again_after_a_whole_answer():
    async with serving(short_answers) as (server, client):
        for _ in range(3):
            exchange = await client.send(call_to(server), nothing)
            await read_all(exchange)
            await exchange.aclose()
        assert server.connections == 1
        assert len(pooled(client)) == 1


# -- how it fails ----------------------------------------------------------------------------------


async def test_a_closed_port_is_unreached_and_nothing_was_sent():
    async with serving(short_answers) as (_, client):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        said = []
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(Call(f"http://127.0.0.1:{port}/", (), b""), lambda: said.append(1))
        assert (failed.value.kind, failed.value.ending) == (Kind.UPSTREAM_ERROR, Ending.UNREACHED)
        assert failed.value.try_another
        assert not isinstance(failed.value, ConnectionWasStale)
        assert said == []


async def test_a_connection_that_closes_without_an_answer_is_unreached():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.aclose()

    async with serving(script) as (server, client):
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server), nothing)
        assert failed.value.ending is Ending.UNREACHED
        assert not isinstance(failed.value, ConnectionWasStale)
        assert pooled(client) == []


async def test_a_kept_connection_that_closes_without_an_answer_is_stale():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await stream.aclose()

    async with serving(script) as (server, client):
        await read_all(await client.send(call_to(server), nothing))
        with pytest.raises(ConnectionWasStale):
            await client.send(call_to(server), nothing)


async def test_what_is_no_http_is_a_failed_provider():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(b"SSH-2.0-OpenSSH\r\n\r\n")

    async with serving(script) as (server, client):
        with pytest.raises(UpstreamFailed):
            await client.send(call_to(server), nothing)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://", "nonsense", "http://[::1"])
async def test_an_url_that_is_none_is_a_failed_provider(url):
    async with serving(short_answers) as (_, client):
        with pytest.raises(UpstreamFailed):
            await client.send(Call(url, (), b""), nothing)


async def test_a_credential_with_a_line_break_is_not_sent_and_not_told():
    async with serving(short_answers) as (server, client):
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server, headers=(("authorization", "Bearer s3cret\nx: y"),)), nothing)
        assert "s3cret" not in str(failed.value)
        assert failed.value.__cause__ is None
        assert failed.value.__suppress_context__
    assert server.heads == []


@pytest.mark.parametrize("sent", [b"", chunk(b"data: x\n\n"), chunk(b"data: x\n\n")[:-3], b"zz\r\n"])
async def test_a_cut_answer_is_a_broken_stream(sent):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED + sent)
        await stream.aclose()

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        with pytest.raises(StreamBroken):
            await read_all(exchange)
        await exchange.aclose()
        assert await exchange.read() == b""
        assert pooled(client) == []


# -- how fast it lets go ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", [silent, endless])
async def test_a_cancelled_request_closes_the_providers_connection_within_100_ms(script):
    async with serving(script) as (server, client):
        began = 0.0
        with trio.move_on_after(0.05):
            exchange = await client.send(call_to(server), nothing)
            try:
                while await exchange.read():
                    pass
            finally:
                began = time.monotonic()
                await exchange.aclose()
        began = began or time.monotonic()
        assert await until_closed(server) - began < 0.1
        assert pooled(client) == []


async def test_leaving_an_answer_in_the_middle_closes_its_connection_within_100_ms():
    async with serving(endless) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        assert await exchange.read()
        began = time.monotonic()
        await exchange.aclose()
        assert time.monotonic() - began < 0.1
        assert await until_closed(server) - began < 0.1
        assert await exchange.read() == b""
        assert pooled(client) == []


async def test_leaving_under_cancellation_closes_all_the_same():
    async with serving(endless) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        await exchange.read()
        with trio.CancelScope() as scope:
            scope.cancel()
            await exchange.aclose()
        await until_closed(server)
        assert pooled(client) == []


async def test_a_request_that_is_cancelled_before_it_is_sent_is_not_said_to_have_been():
    async with serving(short_answers) as (server, client):
        await read_all(await client.send(call_to(server), nothing))
        said = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send(call_to(server), lambda: said.append(1))
        assert said == []
        assert len(server.heads) == 1


class CancelAt(trio.abc.Instrument):
    def __init__(self, task, n, scope):
        self.task, self.left, self.scope = task, n, scope

    def before_task_step(self, task):
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


@pytest.mark.parametrize("warm", [False, True], ids=["new connection", "kept connection"])
async def test_cancelled_at_every_checkpoint_nothing_stays_behind(warm):
    async def script(server, stream):
        while await server.read_request(stream):
            await stream.send_all(CHUNKED + chunk(b"one") + chunk(b"two"))
            await trio.sleep(0.001)
            await stream.send_all(chunk(b"three") + b"0\r\n\r\n")

    async with serving(script) as (server, client):
        for n in range(1, 100):
            if warm:
                await read_all(await client.send(call_to(server), nothing))
            with trio.CancelScope() as scope:
                instrument = CancelAt(trio.lowlevel.current_task(), n, scope)
                trio.lowlevel.add_instrument(instrument)
                try:
                    exchange = await client.send(call_to(server), nothing)
                    try:
                        await exchange.read()
                        await exchange.read()
                        await exchange.read()
                        await exchange.read()
                    finally:
                        await exchange.aclose()
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert all(connection.is_idle() for connection in pooled(client)), n
            assert len(pooled(client)) <= 1
            if not warm:
                await client._http._transport._pool.aclose()
            if instrument.left > 0:
                break
        else:
            pytest.fail("it never ended")
        assert n > 5
        await client.aclose()
        await until_closed(server, server.connections)


async def test_cancelled_in_the_tls_handshake_the_connection_is_closed():
    async def script(server, stream):
        await stream.receive_some(1)

    async with serving(script, tls=ssl.create_default_context()) as (server, client):
        with trio.move_on_after(0.05):
            await client.send(call_to(server, scheme="https"), nothing)
        await until_closed(server)
        assert pooled(client) == []


async def test_certificates_and_host_names_are_checked():
    async with serving(short_answers) as (_, client):
        context = client._http._transport._pool._ssl_context
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


async def test_a_body_that_the_provider_does_not_read_can_be_cancelled():
    async def script(server, stream):
        await stream.receive_some(10)
        await trio.sleep_forever()

    async with serving(script) as (server, client):
        began = time.monotonic()
        with trio.move_on_after(0.05):
            await client.send(call_to(server, body=b"x" * 32 * 2**20), nothing)
        assert time.monotonic() - began < 1
        assert pooled(client) == []


async def test_an_early_answer_to_a_large_body_is_seen():
    async def script(server, stream):
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        with trio.move_on_after(1):
            while await stream.receive_some():
                pass

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server, body=b"x" * 2**20), nothing)
        assert exchange.status == 413
        await exchange.aclose()


async def test_a_kept_connection_that_closes_late_has_lost_a_request_and_was_not_stale(monkeypatch):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await trio.sleep(0.05)
        await stream.aclose()

    monkeypatch.setattr("proxy.upstreams.client.STALE_SECONDS", 0.02)
    async with serving(script) as (server, client):
        await read_all(await client.send(call_to(server), nothing))
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server), nothing)
        assert not isinstance(failed.value, ConnectionWasStale)
