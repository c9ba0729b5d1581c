"""The client against a real server on loopback: what it sends, how it fails, how it lets go."""

import random
import time
from collections import Counter
from itertools import pairwise

import pytest
import trio

from accounting.records import Ending
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.upstreams.client import TARGETS_MAX, Call, ConnectionWasStale, HttpClient, NotInTime
from proxy.upstreams.http1 import TURNS
from proxy.upstreams.origin import Bounds
from tests.upstreams.scripted import (
    CHUNKED,
    SHORT,
    call_to,
    cancelled_at,
    chunk,
    endless,
    nothing,
    origins,
    read_all,
    server_context,
    serving,
    settled,
    short_answers,
    silent,
    trusting,
    until_closed,
)


def pooled(client):
    return origins(client).open


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
        assert len(client.http.cookies.jar) == 0
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
        assert pooled(client) == 1


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
        assert pooled(client) == 0


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


async def test_after_one_stale_connection_the_next_try_is_on_a_new_one():
    """Whatever forgot one kept connection has forgotten all of them."""
    all_asked, asked = trio.Event(), []

    async def script(server, stream):
        await server.read_request(stream)
        asked.append(stream)
        if len(asked) == 4:
            all_asked.set()
        await all_asked.wait()
        await stream.send_all(SHORT)
        await server.read_request(stream)
        await stream.aclose()

    async def ask(client, server):
        await read_all(await client.send(call_to(server), nothing))

    async with serving(script) as (server, client):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask, client, server)
        assert origins(client).kept == 4
        with pytest.raises(ConnectionWasStale):
            await client.send(call_to(server), nothing)
        exchange = await client.send(call_to(server), nothing, fresh=True)
        assert (exchange.status, len(asked)) == (200, 5)
        await read_all(exchange)
        assert pooled(client) == 1


async def test_what_is_not_wanted_any_more_once_there_is_a_connection_is_not_sent(monkeypatch):
    async def script(server, stream):
        await server.read_request(stream)
        pytest.fail("it was sent")

    async with serving(script) as (server, client):
        lend = origins(client).lend

        async def slowly(*args):
            connection = await lend(*args)
            await trio.sleep(0.02)
            return connection

        monkeypatch.setattr(type(origins(client)), "lend", lambda _self, *args: slowly(*args))
        with pytest.raises(NotInTime):
            await client.send(call_to(server), forbidden, trio.current_time() + 0.01)
        assert settled(client)


def forbidden():
    raise AssertionError("nothing may be sent")


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
        assert pooled(client) == 0


# -- what is taken where it arrives ------------------------------------------------------------------


def in_pieces(count, end=b"0\r\n\r\n", each=lambda number: chunk(b"%d;" % number)):
    """An answer that comes in so many pieces, each after a moment."""

    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(CHUNKED)
        for number in range(count):
            await trio.sleep(0.001)
            await stream.send_all(each(number))
        await stream.send_all(end)
        await trio.sleep_forever()

    return script


async def all_of(exchange, take=None):
    """Everything, whoever got it."""
    whole, taken = [], []

    def takes(data):
        taken.append(data)
        whole.append(data)
        return take is None or take(data)

    with trio.fail_after(5):
        while (data := await exchange.read(take=takes)) != b"":
            if data is not None:
                whole.append(data)
    return b"".join(whole), taken


NUMBERS = b"".join(b"%d;" % number for number in range(50))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_what_arrives_is_taken_in_order_and_the_connection_is_kept(scheme, tmp_path):
    tls = server_context(tmp_path / "pem") if scheme == "https" else None
    async with serving(in_pieces(50), tls, verify=trusting()) as (server, client):
        exchange = await client.send(call_to(server, scheme=scheme), nothing)
        whole, taken = await all_of(exchange)
        assert whole == NUMBERS
        assert taken
        assert settled(client)
        assert origins(client).kept == 1


async def test_whoever_declines_has_lost_nothing_and_may_go_on():
    declines = random.Random(5)
    async with serving(in_pieces(50)) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        whole, taken = await all_of(exchange, lambda _: declines.random() < 0.5)
        assert whole == NUMBERS
        assert taken
        assert settled(client)


async def test_what_taking_raises_is_raised_where_the_answer_is_read():
    def fail(_data):
        raise KeyError("ours")

    async with serving(in_pieces(5)) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        with trio.fail_after(2), pytest.raises(KeyError, match="ours"):
            while True:
                await exchange.read(take=fail)
        await exchange.aclose()
        assert pooled(client) == 0
        assert settled(client)


@pytest.mark.parametrize("end", [b"garbage\r\n", b""])
async def test_an_answer_that_breaks_while_it_is_taken_is_broken(end):
    async def script(server, stream):
        await in_pieces(5, end)(server, _Closing(stream))

    class _Closing:
        def __init__(self, stream):
            self.receive_some, self.send, self.close = stream.receive_some, stream.send_all, stream.aclose

        async def send_all(self, data):
            await (self.send(data) if data != end or end else self.close())

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        with pytest.raises(StreamBroken):
            await all_of(exchange)
        assert pooled(client) == 0


async def test_a_provider_that_never_pauses_keeps_nobody_else_waiting():
    """Taking goes on for some turns only; then others have theirs."""
    async with serving(endless) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        turns, taken = [], []

        async def other():
            while True:
                turns.append(len(taken))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with trio.move_on_after(0.3):
                while True:
                    if (
                        data := await exchange.read(take=lambda data: taken.append(data) is None)
                    ) is not None:
                        taken.append(data)
            nursery.cancel_scope.cancel()
        assert taken
        assert max(after - before for before, after in pairwise(turns)) <= 3 * TURNS
        await exchange.aclose()


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
        assert pooled(client) == 0


async def test_leaving_an_answer_in_the_middle_closes_its_connection_within_100_ms():
    async with serving(endless) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        assert await exchange.read()
        began = time.monotonic()
        await exchange.aclose()
        assert time.monotonic() - began < 0.1
        assert await until_closed(server) - began < 0.1
        assert await exchange.read() == b""
        assert pooled(client) == 0


async def test_leaving_under_cancellation_closes_all_the_same():
    async with serving(endless) as (server, client):
        exchange = await client.send(call_to(server), nothing)
        await exchange.read()
        with trio.CancelScope() as scope:
            scope.cancel()
            await exchange.aclose()
        await until_closed(server)
        assert pooled(client) == 0


async def test_a_request_that_is_cancelled_before_it_is_sent_is_not_said_to_have_been():
    async with serving(short_answers) as (server, client):
        await read_all(await client.send(call_to(server), nothing))
        said = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send(call_to(server), lambda: said.append(1))
        assert said == []
        assert len(server.heads) == 1


@pytest.mark.parametrize("warm", [False, True], ids=["new connection", "kept connection"])
async def test_cancelled_at_every_checkpoint_nothing_stays_behind(warm):
    async def script(server, stream):
        while await server.read_request(stream):
            await stream.send_all(CHUNKED + chunk(b"one") + chunk(b"two"))
            await trio.sleep(0.001)
            await stream.send_all(chunk(b"three") + b"0\r\n\r\n")

    async with serving(script) as (server, client):

        async def work():
            exchange = await client.send(call_to(server), nothing)
            try:
                while await exchange.read():
                    pass
            finally:
                await exchange.aclose()

        for n in range(1, 100):
            if warm:
                await work()
            reached = await cancelled_at(n, work)
            assert settled(client), n
            assert pooled(client) <= 1
            if not reached:
                break
            if not warm:
                origins(client).close()
                await client.aclose()
                client = HttpClient(connect_seconds=5.0)  # noqa: PLW2901
        else:
            pytest.fail("it never ended")
        assert n > 2
        await client.aclose()
        await until_closed(server, server.connections)


async def test_cancelled_in_the_tls_handshake_the_connection_is_closed():
    async def script(server, stream):
        await stream.receive_some(1)

    async with serving(script, verify=trusting()) as (server, client):
        with trio.move_on_after(0.05):
            await client.send(call_to(server, scheme="https"), nothing)
        await until_closed(server)
        assert pooled(client) == 0
        assert settled(client)


async def test_a_body_that_the_provider_does_not_read_can_be_cancelled():
    async def script(server, stream):
        await stream.receive_some(10)
        await trio.sleep_forever()

    async with serving(script) as (server, client):
        began = time.monotonic()
        with trio.move_on_after(0.05):
            await client.send(call_to(server, body=b"x" * 32 * 2**20), nothing)
        assert time.monotonic() - began < 1
        assert pooled(client) == 0


async def reads_little(server, stream):
    await stream.receive_some(10)
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "scheme", "size"),
    [(silent, "http", 1), (reads_little, "http", 32 * 2**20), (reads_little, "https", 1)],
    ids=["no answer", "a body that is not read", "no TLS"],
)
async def test_an_answer_that_does_not_begin_in_time_is_given_up(script, scheme, size):
    async with serving(script, verify=trusting()) as (server, client):
        call = call_to(server, scheme=scheme, body=b"x" * size)
        with trio.fail_after(2), pytest.raises(UpstreamFailed if scheme == "https" else NotInTime):
            await client.send(call, nothing, trio.current_time() + 0.05)
        assert pooled(client) == 0
        assert settled(client)


async def test_a_read_that_is_not_served_in_time_says_so_and_loses_nothing():
    go_on = trio.Event()

    async def script(server, stream):
        await server.read_request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await go_on.wait()
        await stream.send_all(b"hi")
        await trio.sleep_forever()

    async with serving(script) as (server, client):
        exchange = await client.send(call_to(server), nothing, trio.current_time() + 2)
        assert await exchange.read(trio.current_time() + 0.01) is None
        assert await exchange.read(trio.current_time() - 1) is None
        go_on.set()
        with trio.fail_after(2):
            assert await read_all(exchange) == b"hi"
        assert settled(client)


async def test_what_headers_look_like_is_remembered_within_bounds():
    async with serving(short_answers) as (server, client):
        for n in range(TARGETS_MAX + 10):
            client._write((("x-n", str(n)),))
        assert len(client._lines) == 10
        for n in (9, 9, 10):
            await read_all(await client.send(call_to(server, headers=(("x-n", str(n)),)), nothing))
        assert [headers["x-n"] for _, headers in server.heads] == ["9", "9", "10"]


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


# -- TLS -------------------------------------------------------------------------------------------


async def test_tls_is_spoken_and_its_connections_are_kept(tmp_path):
    async with serving(short_answers, server_context(tmp_path / "pem"), verify=trusting()) as (
        server,
        client,
    ):
        for host in ("127.0.0.1", "localhost", "127.0.0.1", "localhost"):
            exchange = await client.send(call_to(server, scheme="https", host=host), nothing)
            assert await read_all(exchange) == b"hi"
        assert server.connections == pooled(client) == 2
        assert settled(client)


async def test_a_stream_under_tls_is_read_and_left_like_any(tmp_path):
    async with serving(endless, server_context(tmp_path / "pem"), verify=trusting()) as (server, client):
        exchange = await client.send(call_to(server, scheme="https"), nothing)
        for _ in range(5):
            assert (await exchange.read()).startswith(b"data: x\n\n")
        began = time.monotonic()
        await exchange.aclose()
        assert await until_closed(server) - began < 0.1
        assert pooled(client) == 0


@pytest.mark.parametrize(("verify", "host"), [(None, "127.0.0.1"), ("ours", "127.0.0.2")])
async def test_who_is_not_who_it_should_be_is_not_spoken_to(tmp_path, verify, host):
    async def script(_server, stream):
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        raise trio.BrokenResourceError

    said = []
    trusted = trusting() if verify else None
    async with serving(script, server_context(tmp_path / "pem"), verify=trusted, host=host) as (
        server,
        client,
    ):
        with pytest.raises(UpstreamFailed) as failed:
            await client.send(call_to(server, scheme="https", host=host), lambda: said.append(1))
        assert failed.value.ending is Ending.UNREACHED
        assert said == []
        assert settled(client)


async def test_a_certificate_of_our_own_is_shown_where_it_is_asked_for(tmp_path):
    context = server_context(tmp_path / "pem", client_certificates=True)
    for certificate, answered in ((str(tmp_path / "pem"), True), (None, False)):
        async with serving(short_answers, context, verify=trusting(), certificate=certificate) as (
            server,
            client,
        ):
            try:
                exchange = await client.send(call_to(server, scheme="https"), nothing)
                assert await read_all(exchange) == b"hi"
            except UpstreamFailed:
                assert not answered
            else:
                assert answered


# -- bounds, and many at once ----------------------------------------------------------------------


async def test_more_requests_than_connections_wait_their_turn():
    async with serving(short_answers, bounds=Bounds(connections_max=3)) as (server, client):

        async def ask():
            assert await read_all(await client.send(call_to(server), nothing)) == b"hi"

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
        assert server.connections == 3
        assert settled(client)


async def test_who_waits_too_long_for_a_connection_may_try_another_account():
    async with serving(silent, connect_seconds=0.05, bounds=Bounds(connections_max=1)) as (server, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, call_to(server), nothing)
            with trio.fail_after(2):
                while not server.heads:
                    await trio.sleep(0.001)
            said = []
            with pytest.raises(UpstreamFailed, match="in use") as failed:
                await client.send(call_to(server), lambda: said.append(1))
            assert failed.value.try_another
            assert said == []
            nursery.cancel_scope.cancel()
        assert settled(client)


async def test_what_is_read_of_addresses_is_remembered_within_bounds():
    async with serving(short_answers) as (server, client):
        for n in range(TARGETS_MAX + 10):
            client._read(f"http://127.0.0.1:{server.port}/{n}")
        assert len(client._targets) == 10
        assert await read_all(await client.send(call_to(server, "/9"), nothing)) == b"hi"


async def test_a_host_of_version_six_is_written_as_it_should_be():
    client = HttpClient(connect_seconds=5.0)
    target = client._read("https://[::1]:8443/v1?a=b")
    assert target.address == ("::1", 8443, True)
    assert target.first == "POST /v1?a=b HTTP/1.1\r\nhost: [::1]:8443\r\n"
    assert client._read("https://example.org/v1").address == ("example.org", 443, True)
    await client.aclose()


async def test_after_ten_thousand_cancellations_over_real_sockets_all_slots_are_free():
    rng = random.Random(1)

    async def script(server, stream):
        while await server.read_request(stream):
            await trio.sleep(rng.choice((0, 0.001)))
            await stream.send_all(CHUNKED + chunk(b"one"))
            await trio.sleep(rng.choice((0, 0.001)))
            await stream.send_all(chunk(b"two"))
            if rng.random() < 0.1:
                return await stream.aclose()
            await stream.send_all(b"0\r\n\r\n")
        return None

    done = Counter()

    async def work():
        # on a busy machine all are cancelled but those that have time
        while done["cancelled"] < 10_000 or not (done["whole"] and done["failed"]):
            with trio.move_on_after(rng.choice((0, 0.0005, 0.002, 0.01, 0.5))) as scope:
                try:
                    body = rng.choice((b"x", bytes(4 * 2**20)) if rng.random() < 0.05 else (b"x",))
                    exchange = await client.send(call_to(server, body=body), nothing)
                    try:
                        await read_all(exchange)
                        done["whole"] += 1
                    finally:
                        await exchange.aclose()
                except (UpstreamFailed, StreamBroken):
                    done["failed"] += 1
            done["cancelled"] += scope.cancelled_caught

    async with serving(script, bounds=Bounds(connections_max=5)) as (server, client):
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(work)
        assert settled(client)
        assert pooled(client) <= 5
        await client.aclose()
        await until_closed(server, server.connections)


# -- the other client ------------------------------------------------------------------------------


async def test_ordinary_requests_share_the_connections():
    async with serving(short_answers) as (server, client):
        await read_all(await client.send(call_to(server), nothing))
        answer = await client.http.get(f"http://127.0.0.1:{server.port}/v1/models")
        assert (answer.status_code, answer.text) == (200, "hi")
        assert server.connections == 1
        assert server.heads[1][0] == "GET /v1/models HTTP/1.1"


async def test_a_closed_client_reaches_nobody():
    async with serving(short_answers) as (server, client):
        await client.aclose()
        with pytest.raises(UpstreamFailed):
            await client.send(call_to(server), nothing)
        assert server.heads == []


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "connection"])
async def test_a_header_of_ours_is_not_the_callers_to_set(name):
    async with serving(short_answers) as (server, client):
        with pytest.raises(UpstreamFailed, match="set up"):
            await client.send(call_to(server, headers=((name, "1"),)), nothing)
        assert server.heads == []
