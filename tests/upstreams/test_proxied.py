"""Through a proxy: what it sees, when a request counts as sent, and how all of it lets go."""

import sys
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from attrs import define, field

from accounting.records import Ending
from proxy.errors import StreamBroken, UpstreamFailed
from proxy.upstreams.client import Call, ConnectionWasStale, HttpClient
from tests.upstreams.scripted import (
    CHUNKED,
    SHORT,
    call_to,
    cancelled_at,
    chunk,
    endless,
    listening,
    nothing,
    read_all,
    server_context,
    short_answers,
    silent,
    trusting,
    until_closed,
)


@define(eq=False)
class Proxy:
    """Answers CONNECT as it is told, or plays the provider itself; notes what it was asked."""

    refusal: bytes = b""
    silent: bool = False
    asked: list = field(factory=list)
    closed: list = field(factory=list)

    async def __call__(self, _server, stream):
        try:
            await self.serve(stream)
        finally:
            self.closed.append(time.monotonic())

    async def serve(self, stream):
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return
            head += more
        self.asked.append(head)
        if self.silent:
            await stream.receive_some()
            return
        if self.refusal:
            await stream.send_all(self.refusal)
            return
        host, _, port = head.split(b" ")[1].partition(b":")
        if not head.startswith(b"CONNECT"):
            host, port = b"127.0.0.1", head.split(b"://127.0.0.1:")[1].partition(b"/")[0]
        async with await trio.open_tcp_stream(host.decode(), int(port)) as onward:
            if head.startswith(b"CONNECT"):
                await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                await onward.send_all(head)
            await between(stream, onward)


async def between(one, other):
    """Hand bytes on both ways until either side closes."""

    async def pump(source, target, scope):
        try:
            while data := await source.receive_some():
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, one, other, nursery.cancel_scope)
        nursery.start_soon(pump, other, one, nursery.cancel_scope)
    await one.aclose()


@asynccontextmanager
async def proxied(script, tls=None, proxy=None, scheme="http", connect_seconds=5.0):
    """A provider, a proxy, and a client that goes through it."""
    proxy = proxy or Proxy()
    async with listening(script, tls) as server, listening(proxy) as standing:
        url = f"{scheme}://127.0.0.1:{standing.port}"
        client = HttpClient(connect_seconds, verify=trusting(), proxy=url)
        try:
            yield server, proxy, client
        finally:
            await client.aclose()


def pooled(client):
    return client.http._transport._pool.connections


async def test_a_plain_request_goes_through_the_proxy_whole():
    said = []
    async with proxied(short_answers) as (server, proxy, client):
        exchange = await client.send(call_to(server), lambda: said.append(1))
        assert exchange.ready() is None
        assert await read_all(exchange) == b"hi"
        assert (exchange.status, exchange.ready()) == (200, b"")
        await exchange.aclose()
        assert proxy.asked[0].startswith(b"POST http://127.0.0.1:%d/v1/chat/completions " % server.port)
        assert said == [1]
        assert b"user-agent" not in proxy.asked[0].lower()


async def test_a_request_under_tls_goes_through_a_tunnel_and_the_proxy_sees_none_of_it(tmp_path):
    said = []
    async with proxied(short_answers, server_context(tmp_path / "pem")) as (server, proxy, client):
        for _ in range(2):
            exchange = await client.send(
                call_to(server, scheme="https"), lambda: said.append(len(proxy.asked))
            )
            assert await read_all(exchange) == b"hi"
            await exchange.aclose()
        assert len(proxy.asked) == server.connections == 1
        assert proxy.asked[0].startswith(b"CONNECT 127.0.0.1:%d " % server.port)
        assert b"secret" not in proxy.asked[0]
        assert said == [1, 1]  # what is said to the proxy is not sent to the provider
        assert b"host" in b"".join(name.encode() for name in server.heads[0][1])


async def test_a_proxy_that_refuses_is_an_unreached_provider(tmp_path):
    said, proxy = [], Proxy(refusal=b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
    async with proxied(short_answers, server_context(tmp_path / "pem"), proxy) as (server, _, client):
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server, scheme="https"), lambda: said.append(1))
        assert failed.value.ending is Ending.UNREACHED
        assert not isinstance(failed.value, ConnectionWasStale)
        assert said == []
        assert pooled(client) == []


async def test_a_proxy_that_says_nothing_is_an_unreached_provider_in_time(tmp_path):
    said, proxy = [], Proxy(silent=True)
    async with proxied(short_answers, server_context(tmp_path / "pem"), proxy, connect_seconds=0.02) as (
        server,
        _,
        client,
    ):
        with trio.fail_after(5), pytest.raises(UpstreamFailed, match="in time"):
            await client.send(call_to(server, scheme="https"), lambda: said.append(1))
        assert said == []
        await until_closed(proxy)
        assert pooled(client) == []


async def test_a_provider_that_thinks_longer_than_connecting_may_take_is_waited_for(tmp_path):
    async def script(server, stream):
        await server.read_request(stream)
        await trio.sleep(0.3)
        await stream.send_all(SHORT)

    async with proxied(script, server_context(tmp_path / "pem"), connect_seconds=0.05) as (server, _, client):
        exchange = await client.send(call_to(server, scheme="https"), nothing)
        assert await read_all(exchange) == b"hi"


async def test_a_proxy_that_is_not_there_is_an_unreached_provider():
    client = HttpClient(5.0, verify=trusting(), proxy="http://127.0.0.1:9")
    with pytest.raises(UpstreamFailed):
        await client.send(Call("http://127.0.0.1:9/", (), b""), nothing)
    await client.aclose()


@pytest.mark.parametrize("script", [silent, endless])
async def test_a_cancelled_request_closes_the_connection(script):
    async with proxied(script) as (server, _, client):
        with trio.move_on_after(0.05):
            exchange = await client.send(call_to(server), nothing)
            try:
                while await exchange.read():
                    pass
            finally:
                await exchange.aclose()
        await until_closed(server)
        assert pooled(client) == []


async def test_leaving_an_answer_in_the_middle_closes_its_connection():
    async with proxied(endless) as (server, _, client):
        exchange = await client.send(call_to(server), nothing)
        assert await exchange.read()
        await exchange.aclose()
        await until_closed(server)
        assert (exchange.ready(), await exchange.read()) == (b"", b"")
        assert pooled(client) == []


async def test_a_cut_answer_is_a_broken_stream():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED + chunk(b"data: x\n\n"))
        await stream.aclose()

    async with proxied(script) as (server, _, client):
        exchange = await client.send(call_to(server), nothing)
        with pytest.raises(StreamBroken):
            await read_all(exchange)
        await exchange.aclose()
        assert await exchange.read() == b""
        assert pooled(client) == []


async def test_a_kept_connection_that_closes_without_an_answer_is_stale():
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await stream.aclose()

    async with proxied(script) as (server, _, client):
        await read_all(await client.send(call_to(server), nothing))
        with pytest.raises(ConnectionWasStale):
            await client.send(call_to(server), nothing)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 200 OK\r\ncontent-type: appl", b"HTTP/1.1 100 Continue\r\n\r\n", b"?"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_that_has_begun_is_never_taken_for_a_stale_connection(said, scheme, tmp_path):
    """The provider has the request, and may bill it."""

    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await stream.send_all(said)
        await stream.aclose()

    tls = server_context(tmp_path / "pem") if scheme == "https" else None
    async with proxied(script, tls) as (server, _, client):
        await read_all(await client.send(call_to(server, scheme=scheme), nothing))
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server, scheme=scheme), nothing)
        assert not isinstance(failed.value, ConnectionWasStale)


async def test_what_cannot_be_sent_is_not_sent():
    async with proxied(short_answers) as (server, proxy, client):
        for call in (Call("http://[::1", (), b""), call_to(server, headers=(("a", "é"),))):
            with pytest.raises(UpstreamFailed, match="set up"):
                await client.send(call, nothing)
        assert proxy.asked == []


async def test_cancelled_at_every_checkpoint_nothing_stays_behind(tmp_path):
    context = server_context(tmp_path / "pem")
    for n in range(1, 200):
        async with proxied(short_answers, context) as (server, _, client):
            said = []

            async def work(server=server, client=client, said=said):
                exchange = await client.send(call_to(server, scheme="https"), partial(said.append, 1))
                try:
                    await read_all(exchange)
                finally:
                    await exchange.aclose()

            reached = await cancelled_at(n, work)
            assert len(said) <= 1
            assert len(server.heads) <= len(said)
            assert all(connection.is_idle() for connection in pooled(client)), n
        if not reached:
            assert n > 10
            return
    pytest.fail("it never ended")


async def test_ordinary_requests_go_through_the_proxy_too():
    async with proxied(short_answers) as (server, proxy, client):
        assert (await client.http.get(f"http://127.0.0.1:{server.port}/x")).text == "hi"
        assert proxy.asked[0].startswith(b"GET http://127.0.0.1:")


def test_a_proxys_credentials_are_not_shown():
    assert "s3cret" not in repr(HttpClient(5.0, verify=trusting(), proxy="http://me:s3cret@127.0.0.1:9"))


async def socks(server, stream):
    """SOCKS 5 without a password (RFC 1928), for addresses of version 4."""
    assert (await stream.receive_some())[:1] == b"\x05"
    await stream.send_all(b"\x05\x00")
    asked = await stream.receive_some()
    assert asked[:3] == b"\x05\x01\x00"
    port = int.from_bytes(asked[-2:], "big")
    async with await trio.open_tcp_stream("127.0.0.1", port) as onward:
        await stream.send_all(b"\x05\x00\x00\x01" + bytes(6))
        await between(stream, onward)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_socks_proxy_works_where_its_package_is_installed(tmp_path, tls):
    pytest.importorskip("socksio")
    context, said = server_context(tmp_path / "pem") if tls else None, []
    async with proxied(short_answers, context, socks, "socks5") as (server, _, client):
        for _ in range(2):
            call = call_to(server, scheme="https" if tls else "http")
            assert await read_all(await client.send(call, lambda: said.append(1))) == b"hi"
        assert server.connections == 1
        assert said == [1, 1]


async def test_without_its_package_a_socks_proxy_is_refused_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError, match="socks"):
        HttpClient(5.0, verify=trusting(), proxy="socks5://127.0.0.1:9")
