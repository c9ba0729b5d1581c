"""Serves an ASGI app on sockets that are already bound, drains on request, and then returns.

Hypercorn's `worker_serve` names its `TCPServer` from its own module, so a connection class of ours could only
get in there by assigning to that module, for every server in the process. This is the part of it that we
need, with hypercorn's own lifespan and worker context: no global is changed, h2c and QUIC cannot be reached, and
the order of going down is ours. `settings.door` says whose connection class reads HTTP/1.1.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext

from proxy.alarms import Alarms
from proxy.config import RequestLimits, Server
from proxy.doors.connection import Connection
from proxy.doors.fast_door import FastConnection
from proxy.doors.fork import Door, Log
from proxy.doors.hangups import hangups
from proxy.doors.house import App, House, contained
from proxy.doors.wire import Stream

Address = tuple[str, int]

LIFESPAN_SECONDS: Final = 30.0
"""An app that takes longer to come up or go down hangs."""


def bind(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Bind and listen on every address of a host; port 0 is one free port for all of them.

    Raises:
        OSError: unknown host, or the port is taken.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, (address, *_) in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # inherited by what is accepted: a peer that vanished without a word is noticed in the end
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port or sockets[0].getsockname()[1]))
            sock.listen(backlog)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def serve_app(
    app: App,
    sockets: list[socket.socket],
    settings: Server,
    limits: RequestLimits,
    *,
    shutdown: Callable[[], Awaitable[None]],
    log: Log,
    ssl_context: ssl.SSLContext | None = None,
    new_id: Callable[[], str] | None = None,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown()` returns, then let running requests end and return.

    From then on nothing is accepted, idle connections are closed, and requests under way have `drain_seconds`
    before they are cancelled. Clients that stand still cannot hold this up.

    Args:
        app: an ASGI application, with or without a lifespan. If it has a `door` (a `Door`), the fast door answers
            what that says without asking the app.
        sockets: as `bind` gives them; closed at the end.
        settings: how connections are kept.
        limits: how many connections, and how much of a refused upload is read.
        shutdown: returns when it is time to go down.
        log: takes a level, an event's name and fields.
        ssl_context: to speak TLS; HTTP/1.1 and, if the settings say so, HTTP/2.
        new_id: makes request ids for requests that the app never sees.
        task_status: started with the addresses that are served.
    """
    config = _hypercorn(settings, log)
    door = getattr(app, "door", None)
    known = door if isinstance(door, Door) else None
    house = House(app, config, WorkerContext(None), {}, settings, limits, log, new_id, known)
    lifespan = Lifespan(ASGIWrapper(app), config, house.state)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            with _lifespan_may_have_returned():
                await lifespan.wait_for_startup()
            await _serve(house, _listeners(sockets, ssl_context, settings), shutdown, task_status)
            with _lifespan_may_have_returned():
                await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()


def _lifespan_may_have_returned() -> suppress:
    """An app without a lifespan may return from it at once; what is told to it then finds a closed channel."""
    return suppress(trio.BrokenResourceError, trio.ClosedResourceError)


async def _serve(
    house: House,
    listeners: list[Any],
    shutdown: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[list[Address]],
) -> None:
    kind = FastConnection if house.settings.door == "fast" else Connection

    async def handle(stream: Stream) -> None:
        with contained(house.failed):  # even to begin with a connection the system may refuse
            await kind(house, stream).run()

    addresses = [_address(listener) for listener in listeners]
    house.alarms, house.hangups = Alarms(house.failed), hangups(house.failed)
    async with trio.open_nursery() as house.helpers:
        house.helpers.start_soon(house.alarms.run)
        house.helpers.start_soon(house.hangups.run)
        async with trio.open_nursery() as handling:
            async with trio.open_nursery() as accepting:
                await accepting.start(
                    partial(trio.serve_listeners, handle, listeners, handler_nursery=handling)
                )
                task_status.started(addresses)
                await shutdown()
                accepting.cancel_scope.cancel()
            house.going_down = True
            await house.context.terminated.set()
            for connection in tuple(house.connections):
                connection.stop_if_idle()
            handling.cancel_scope.deadline = trio.current_time() + house.settings.drain_seconds
        house.helpers.cancel_scope.cancel()


def _listeners(
    sockets: list[socket.socket], ssl_context: ssl.SSLContext | None, settings: Server
) -> list[trio.SocketListener | trio.SSLListener[trio.SocketStream]]:
    plain = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    if ssl_context is None:
        return list(plain)
    ssl_context.set_alpn_protocols([*(["h2"] if settings.http2 else []), "http/1.1"])
    # not `https_compatible`, which would close without TLS's word for the end
    return [trio.SSLListener(one, ssl_context) for one in plain]


def _address(listener: trio.SocketListener | trio.SSLListener[trio.SocketStream]) -> Address:
    plain = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
    assert isinstance(plain, trio.SocketListener)  # noqa: S101 - for the type checker
    name = plain.socket.getsockname()
    return name[0], name[1]


def _hypercorn(settings: Server, log: Log) -> HypercornConfig:
    config = HypercornConfig()
    config.include_server_header = False
    config.h11_max_incomplete_size = settings.header_bytes_max  # the guard has refused more before
    config.keep_alive_max_requests = settings.keep_alive_requests
    config.startup_timeout = config.shutdown_timeout = LIFESPAN_SECONDS
    config._log = _Log(log)  # type: ignore[assignment]  # noqa: SLF001 - its logger_class wants files or stderr
    return config


class _Log:
    """Hypercorn's Logger, writing to ours: about the lifespan, for whoever answers a request logs it."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def access(self, *_args: Any) -> None:
        """Requests are logged by the app."""

    async def info(self, *_args: Any) -> None:
        """Nothing that we would not know."""

    async def warning(self, message: str, *_args: Any) -> None:
        self._log("warning", "server", because=message)

    async def exception(self, message: str, *_args: Any) -> None:
        self._log("error", "server", because=message)
