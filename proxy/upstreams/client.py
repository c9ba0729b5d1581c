"""The way to providers: sends one request and hands back an open answer, or says how it failed.

Redirects are not followed (they would carry the credential elsewhere), cookies are not kept, proxies of the
environment are not used, TLS certificates are always checked. There are no time-outs here but for connecting:
deadlines are the caller's, by content and not by bytes.

A request to a provider goes straight to the connection: httpx's objects for request and answer would cost more
than all that happens between them. For everything else `http` is an ordinary `httpx.AsyncClient` over the same
connections. Where a proxy stands in between, all goes through httpx's own transport.
"""

import re
import ssl
from collections.abc import Callable
from math import inf
from typing import Final

import httpx
import trio
from attrs import define, field, frozen

from proxy.errors import UpstreamFailed
from proxy.types import Headers
from proxy.upstreams.exchange import (
    STALE_SECONDS,
    Call,
    Client,
    ConnectionWasStale,
    Exchange,
    NotInTime,
    Take,
    misconfigured,
    unreached,
)
from proxy.upstreams.http1 import NoAnswer, ask, lines_of
from proxy.upstreams.origin import Bounds, NoSlot
from proxy.upstreams.proxied import Proxied
from proxy.upstreams.transport import Certificate, Transport, trust
from proxy.upstreams.wire import Address, Unreachable

__all__ = [
    "STALE_SECONDS",
    "Call",
    "Client",
    "ConnectionWasStale",
    "Exchange",
    "HttpClient",
    "NotInTime",
    "Take",
]

CLOSE_SECONDS: Final = 1.0
"""Bound of the shield under which everything is closed; closing sockets takes none of it."""

TARGETS_MAX: Final = 1024
"""Addresses, and sets of headers, that are remembered; with models in the path there may be some hundreds."""

_is_target: Final = re.compile(r"/[!-~]*").fullmatch


@frozen
class _Target:
    """A URL, read.

    Attributes:
        address: of its origin.
        first: request line and host.
    """

    address: Address
    first: str


@define(eq=False)
class HttpClient:
    """Client for all providers; closed by `aclose`.

    Args:
        connect_seconds: for name look-up and TCP together, and again for TLS; and for a free connection, where as
            many as may be are in use.
        verify: certificates of a private authority instead of the usual ones.
        certificate: what the other side is shown: the file of a certificate, or that and the file of its key.
        proxy: URL of a proxy, `http`, `https` or `socks5`, that everything goes through.
        bounds: how many connections there may be.

    Attributes:
        http: an httpx client on the same connections, for requests that are no calls of a model.
    """

    connect_seconds: float
    verify: ssl.SSLContext | None = None
    certificate: Certificate | None = None
    proxy: str | None = field(default=None, repr=False)
    bounds: Bounds = field(factory=Bounds)
    http: httpx.AsyncClient = field(init=False)
    _transport: Transport | None = field(default=None, init=False)
    _proxied: Proxied | None = field(default=None, init=False)
    _targets: dict[str, _Target] = field(factory=dict, init=False)
    _lines: dict[Headers, str] = field(factory=dict, init=False, repr=False)
    """What headers look like on the wire: an account's are the same for nearly all of its requests."""

    def __attrs_post_init__(self) -> None:
        context = trust(self.verify, self.certificate)
        if self.proxy is None:
            self._transport = Transport(context, self.bounds)
            self.http = self._transport.client(self.connect_seconds)
        else:
            self._proxied = Proxied(self.proxy, context, self.connect_seconds, self.bounds)
            self.http = self._proxied.http

    async def send(
        self, call: Call, sending: Callable[[], None], until: float = inf, *, fresh: bool = False
    ) -> Exchange:
        """See `Client.send`."""
        if self._transport is None:
            assert self._proxied is not None  # noqa: S101 - for the type checker
            return await self._proxied.send(call, sending, until)
        try:
            target = self._targets.get(call.url) or self._read(call.url)
            lines = self._lines.get(call.headers) or self._write(call.headers)
        except (httpx.InvalidURL, ValueError):
            # without the cause: it may quote a header, and so the credential
            raise misconfigured() from None
        head = f"{target.first}content-length: {len(call.body)}\r\n{lines}\r\n".encode("latin-1")
        origins = self._transport.origins
        began = origins.now()
        if fresh:
            origins.close_kept(target.address)
        try:
            connection = origins.lend_kept(target.address, began)
            if connection is None:
                seconds = min(self.connect_seconds, until - began)
                connection = await origins.lend(target.address, seconds, seconds)
                began = origins.now()
                if began >= until:  # nobody would wait for what is sent now
                    connection.keep()
                    raise NotInTime
            return await ask(connection, head, call.body, sending, until)
        except NoAnswer as error:
            raise _unanswered(error, origins.now() - began) from error
        except (Unreachable, NoSlot, trio.ClosedResourceError) as error:
            raise _unreachable(error) from error

    def _read(self, url: str) -> _Target:
        """Read a URL.

        Raises:
            ValueError, httpx.InvalidURL: it is none of ours.
        """
        parsed = httpx.URL(url)
        host, target = parsed.raw_host.decode("ascii"), parsed.raw_path.decode("ascii")
        if parsed.scheme not in {"http", "https"} or not host or _is_target(target) is None:
            raise ValueError("not the URL of a provider")
        address = Address(
            host, parsed.port or (443 if parsed.scheme == "https" else 80), parsed.scheme == "https"
        )
        read = _Target(address, f"POST {target} HTTP/1.1\r\nhost: {parsed.netloc.decode('ascii')}\r\n")
        if len(self._targets) >= TARGETS_MAX:
            self._targets.clear()
        self._targets[url] = read
        return read

    def _write(self, headers: Headers) -> str:
        """Write headers, and remember how.

        Raises:
            ValueError: they cannot be sent.
        """
        lines = lines_of(headers)
        if len(self._lines) >= TARGETS_MAX:
            self._lines.clear()
        self._lines[headers] = lines
        return lines

    def forget_idle(self) -> None:
        """Close connections that were kept for too long; to be called now and then, for when nothing is asked."""
        if self._transport is not None:
            self._transport.origins.expire()

    async def aclose(self) -> None:
        """Close all connections."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.http.aclose()


def _unanswered(error: NoAnswer, after_seconds: float) -> UpstreamFailed:
    """What it means that a request left and no answer came."""
    if error.odd:
        return unreached("The provider's answer cannot be read.")
    soon = after_seconds < STALE_SECONDS
    kind = ConnectionWasStale if error.reused and not error.heard and soon else UpstreamFailed
    return unreached("The provider closed the connection without an answer.", kind)


def _unreachable(error: Exception) -> UpstreamFailed:
    """What it means that no connection came about."""
    if isinstance(error, NoSlot):
        return unreached("All connections to the provider are in use.")
    if isinstance(error, Unreachable) and not error.in_time:
        return unreached("The provider could not be reached in time.")
    return unreached("The provider could not be reached.")
