"""The seam under httpx: nothing queues, and a cancelled request leaves no connection behind in the pool."""

import httpx
import pytest
import trio

from proxy.upstreams.transport import KEPT_MAX, Transport


def request(port):
    return httpx.Request("POST", f"http://127.0.0.1:{port}/", content=b"")


async def hold_open(_stream):
    await trio.sleep_forever()


async def test_a_request_cancelled_before_it_could_connect_leaves_nothing_in_the_pool():
    transport = Transport()
    with trio.CancelScope() as scope:
        scope.cancel()
        await transport.handle_async_request(request(9))
    assert transport._pool.connections == []
    await transport.aclose()


async def test_connections_of_other_requests_stay_when_one_is_cancelled():
    transport = Transport()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, hold_open, listeners)
        nursery.start_soon(transport.handle_async_request, request(port))
        with trio.move_on_after(0.02):
            await transport.handle_async_request(request(port))
        assert len(transport._pool.connections) == 1
        nursery.cancel_scope.cancel()
    assert transport._pool.connections == []
    await transport.aclose()


async def test_more_requests_than_are_kept_do_not_queue():
    transport = Transport()
    arrived = 0
    everyone = trio.Event()

    async def count(_stream):
        nonlocal arrived
        arrived += 1
        if arrived == KEPT_MAX + 10:
            everyone.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=512)
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, count, listeners)
        for _ in range(KEPT_MAX + 10):
            nursery.start_soon(transport.handle_async_request, request(port))
        with trio.fail_after(20):
            await everyone.wait()
        nursery.cancel_scope.cancel()
    await transport.aclose()


async def test_a_failed_connect_is_not_tried_again_behind_our_back():
    transport = Transport()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(request(port))
    assert transport._pool.connections == []
    await transport.aclose()
