"""Our connections under httpx: any of its users finds what they know, whatever they send and however it fails."""

import httpx
import pytest
import trio

from proxy.upstreams.origin import Bounds
from proxy.upstreams.transport import Transport, plain_client, trust
from tests.upstreams.scripted import (
    CHUNKED,
    SHORT,
    chunk,
    listening,
    server_context,
    short_answers,
    silent,
    trusting,
    until_closed,
)


@pytest.fixture
def http():
    """Makes clients over a transport, and says whether all of its slots are free."""

    def make(**more):
        transport = Transport(more.pop("context", None) or trusting(), Bounds(**more))
        return plain_client(transport, 5.0)

    return make


def settled(client):
    origins = client._transport.origins
    return origins.idle() and origins.open == origins.kept


def at(server, path="/", scheme="http"):
    return f"{scheme}://127.0.0.1:{server.port}{path}"


class pieces(httpx.AsyncByteStream):  # noqa: N801 - it reads as one
    """A body that is streamed; an object and not a generator, as some are left in the middle."""

    def __init__(self, *given):
        self.given = list(given)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.lowlevel.checkpoint()
        if not self.given:
            raise StopAsyncIteration
        piece = self.given.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece


async def read_chunks(stream, data):
    """The body of a request in chunks; `data` is what has come of it."""
    while not data.endswith(b"0\r\n\r\n"):
        data += await stream.receive_some()
    return data


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_any_method_goes_out_and_its_answer_comes_back(http, method):
    async with listening(short_answers) as server, http() as client:
        for _ in range(2):
            answer = await client.request(method, at(server, "/a?b=c d"), headers={"x-a": "b"})
            assert (answer.status_code, answer.text, answer.http_version) == (200, "hi", "HTTP/1.1")
            assert answer.reason_phrase == "OK"
        assert server.connections == 1
        assert settled(client)
    line, headers = server.heads[0]
    assert line == f"{method} /a?b=c%20d HTTP/1.1"
    assert headers["x-a"] == "b"
    assert headers["host"] == f"127.0.0.1:{server.port}"


async def test_a_head_has_no_body(http):
    async with listening(short_answers) as server, http() as client:

        async def script(server, stream):
            while await server.read_request(stream):
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")

        server.script = script
        for _ in range(2):
            answer = await client.head(at(server))
            assert (answer.headers["content-length"], answer.content) == ("5", b"")
        assert server.connections == 1


async def test_a_body_of_known_length_is_sent_as_it_is(http):
    async with listening(short_answers) as server, http() as client:
        for size in (0, 10, 1_000_000):
            assert (await client.post(at(server), content=b"x" * size)).text == "hi"
            assert server.bodies[-1] == b"x" * size
        body = {"content": pieces(b"ab", b"", b"cd"), "headers": {"content-length": "4"}}
        assert (await client.post(at(server), **body)).text == "hi"
        assert server.bodies[-1] == b"abcd"


async def test_a_streamed_body_is_sent_in_chunks(http):
    seen = []

    async def script(_server, stream):
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some()
        head, _, rest = data.partition(b"\r\n\r\n")
        seen.append((head.lower(), await read_chunks(stream, rest)))
        await stream.send_all(SHORT)

    async with listening(script) as server, http() as client:
        answer = await client.post(at(server), content=pieces(b"ab", b"", b"cde"))
        assert answer.text == "hi"
        assert settled(client)
    assert b"transfer-encoding: chunked" in seen[0][0]
    assert seen[0][1] == b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"


@pytest.mark.parametrize("given", [(b"abc",), (b"abcde",), ()])
async def test_a_body_of_another_length_than_said_is_our_fault(http, given):
    async with listening(silent) as server, http() as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.post(at(server), content=pieces(*given), headers={"content-length": "4"})
        assert client._transport.origins.open == 0
        assert settled(client)


async def test_an_error_of_the_body_itself_is_the_callers(http):
    async with listening(silent) as server, http() as client:
        with pytest.raises(KeyError):
            await client.post(at(server), content=pieces(b"a", KeyError()))
        await until_closed(server)
        assert settled(client)


@pytest.mark.parametrize(
    "headers",
    [
        [("x", "a\r\nb: c")],
        [("x", "a\0")],
        [("x\r\ny", "a")],
        [("transfer-encoding", "gzip")],
        [("transfer-encoding", "chunked"), ("content-length", "1")],
        [("content-length", "1"), ("content-length", "1")],
        [("content-length", "one")],
        [("host", "a"), ("host", "b")],
    ],
)
async def test_what_cannot_be_sent_is_not_sent(http, headers):
    async with listening(short_answers) as server, http() as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get(at(server), headers=headers)
        assert server.heads == []
        assert settled(client)


@pytest.mark.parametrize("method", ["GET /x", "", "A\r\nB", "CONNECT"])
async def test_a_method_that_is_none_is_not_sent(http, method):
    async with listening(short_answers) as server, http() as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.request(method, at(server))
        assert server.heads == []


async def test_other_schemes_are_not_spoken(http):
    async with http() as client:
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://127.0.0.1/")


async def test_an_answer_is_streamed_and_left_in_the_middle(http):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED + chunk(b"one"))
        await stream.receive_some()

    async with listening(script) as server, http() as client:
        # without the client: its answers are generators in each other, which nobody can leave in the middle
        answer = await client._transport.handle_async_request(httpx.Request("GET", at(server)))
        async for piece in answer.stream:
            assert piece == b"one"
            break
        await answer.aclose()
        await until_closed(server)
        assert settled(client)
        assert client._transport.origins.open == 0


async def test_a_reader_who_is_cancelled_leaves_no_connection_behind(http):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED)
        await stream.receive_some()

    async with listening(script) as server, http() as client:
        answer = await client._transport.handle_async_request(httpx.Request("GET", at(server)))
        with trio.move_on_after(0.01):
            async for _ in answer.stream:
                pytest.fail("there is nothing")
        await until_closed(server)
        assert settled(client)


async def test_redirects_are_not_followed_and_cookies_not_kept(http):
    async def script(server, stream):
        while await server.read_request(stream):
            await stream.send_all(
                b"HTTP/1.1 302 Found\r\nlocation: /b\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
            )

    async with listening(script) as server, http() as client:
        for _ in range(2):
            assert (await client.get(at(server))).status_code == 302
    assert [line for line, _ in server.heads] == ["GET / HTTP/1.1"] * 2
    assert "cookie" not in server.heads[1][1]


async def test_tls_is_spoken_and_trust_checked(http, tmp_path):
    async with listening(short_answers, server_context(tmp_path / "pem")) as server:
        async with http() as client:
            for _ in range(2):
                assert (await client.get(at(server, scheme="https"))).text == "hi"
            assert server.connections == 1
        async with http(context=trust(None)) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(at(server, scheme="https"))
            assert settled(client)


# -- time-outs -------------------------------------------------------------------------------------


async def test_an_answer_that_does_not_come_is_a_read_timeout(http):
    async with listening(silent) as server, http() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(at(server), timeout=httpx.Timeout(5, read=0.02))
        await until_closed(server)
        assert settled(client)


async def test_a_body_that_does_not_go_on_is_a_read_timeout(http):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED + chunk(b"one"))
        await stream.receive_some()

    async with listening(script) as server, http() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(at(server), timeout=httpx.Timeout(5, read=0.02))
        await until_closed(server)
        assert settled(client)


async def test_a_body_that_is_not_taken_is_a_write_timeout(http):
    async def script(_server, _stream):
        await trio.sleep_forever()

    async with listening(script) as server, http() as client:
        with pytest.raises(httpx.WriteTimeout):
            await client.post(at(server), content=bytes(32 * 2**20), timeout=httpx.Timeout(5, write=0.02))
        assert settled(client)


async def test_a_handshake_that_does_not_come_is_a_connect_timeout(http):
    async def script(_server, stream):
        await stream.receive_some()
        await trio.sleep_forever()

    async with listening(script) as server, http() as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get(at(server, scheme="https"), timeout=httpx.Timeout(5, connect=0.02))
        assert settled(client)


async def test_a_slot_that_does_not_become_free_is_a_pool_timeout(http):
    async with listening(silent) as server, http(connections_max=1) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.get, at(server))
        while not server.heads:
            await trio.sleep(0.001)
        with pytest.raises(httpx.PoolTimeout):
            await client.get(at(server), timeout=httpx.Timeout(5, pool=0.02))
        nursery.cancel_scope.cancel()
    assert settled(client)


# -- failures --------------------------------------------------------------------------------------


async def test_a_closed_port_is_a_connect_error(http):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with http() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/")
        assert settled(client)


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 2", b"SSH-2.0\r\n\r\n", CHUNKED + b"5\r\nab", CHUNKED + b"zz\r\n"]
)
async def test_an_answer_that_is_none_or_breaks_off_is_a_protocol_error(http, sent):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(sent)
        await stream.aclose()

    async with listening(script) as server, http() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(at(server))
        assert settled(client)
        assert client._transport.origins.open == 0


async def test_a_request_is_not_sent_twice_behind_anybodys_back(http):
    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await stream.aclose()

    async with listening(script) as server, http() as client:
        await client.get(at(server))
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(at(server))
    assert len(server.heads) == 2


async def test_an_early_refusal_of_a_streamed_body_is_seen(http):
    async def script(_server, stream):
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")

    async with listening(script) as server, http() as client:
        with trio.fail_after(5):
            answer = await client.post(at(server), content=pieces(*[b"x" * 65_536] * 1000))
        assert (answer.status_code, answer.text) == (413, "no")
        assert client._transport.origins.open == 0
        assert settled(client)


async def test_closing_closes_what_is_under_way_and_sends_nothing_more(http):
    async with listening(silent) as server:
        client = http()
        async with trio.open_nursery() as nursery:

            async def get():
                with pytest.raises(httpx.TransportError):
                    await client.get(at(server))

            nursery.start_soon(get)
            while not server.heads:
                await trio.sleep(0.001)
            await client.aclose()
        with pytest.raises(httpx.TransportError):
            await client._transport.handle_async_request(httpx.Request("GET", at(server)))
        await until_closed(server)
        assert settled(client)
