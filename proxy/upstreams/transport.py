"""The connections to providers: httpx's own transport on HTTP/1.1, set up so that nothing queues or leaks.

This is the seam where a transport of our own comes to stand (httpcore's pool walks all its connections for
each request, which is most of a busy gateway's CPU). Until then its known faults are closed here:

- HTTP/1.1 only: one answer per connection, so that closing the connection stops that answer and no other.
- No limit on connections: httpcore queues what is above it, in front of providers that are well. How much is
  under way at once is decided where requests are admitted.
- A request that is cancelled just after a connection was assigned to it leaves that connection in the pool
  for good, neither open nor closed (encode/httpcore#1093). They are taken out again.
- A stale connection is not tried again behind our back (`retries=0`): each attempt stands in the books.
"""

import socket
import ssl
from typing import Final

import httpx

KEPT_MAX: Final = 256
"""Idle connections that are kept for the next request, over all providers; each costs a descriptor."""

KEPT_SECONDS: Final = 15.0
"""How long: below the idle time-outs of the load balancers in front of providers, which are 60 s and more."""

UNACKNOWLEDGED_MS: Final = 30_000
"""A provider that takes no byte of a request for that long is gone; the kernel then breaks the connection."""


class Transport(httpx.AsyncHTTPTransport):
    """httpx's transport, with connections that were orphaned by a cancelled request taken out of its pool."""

    def __init__(self, verify: ssl.SSLContext | bool = True) -> None:
        super().__init__(
            verify=verify,
            trust_env=False,
            http1=True,
            http2=False,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=KEPT_MAX, keepalive_expiry=KEPT_SECONDS
            ),
            retries=0,
            socket_options=_socket_options(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see httpx."""
        try:
            return await super().handle_async_request(request)
        except BaseException:
            self._forget_orphans()
            raise

    def _forget_orphans(self) -> None:
        """Take connections out of the pool that nobody uses and that were never opened."""
        in_use = {id(request.connection) for request in self._pool._requests}  # noqa: SLF001 - no public way
        for connection in self._pool.connections:
            if id(connection) not in in_use and not (
                connection.is_idle() or connection.is_closed() or connection.has_expired()
            ):
                self._pool._connections.remove(connection)  # noqa: SLF001 - no public way


def _socket_options() -> list[tuple[int, int, int]]:
    """Notice a dead provider in the long silence of a reasoning model, and one that stops reading."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_MS),  # Linux; elsewhere our own deadlines alone decide
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
