"""Requests through an HTTP or SOCKS proxy: by httpx's own transport, set up so that nothing queues or leaks.

Its known faults are closed here:

- A request that is cancelled just after a connection was assigned to it leaves that connection in the pool
  for good, neither open nor closed (encode/httpcore#1093). They are taken out again.
- A request that is cancelled during the TLS handshake leaves its socket open. It is closed.
- Under its answers lie six nested async generators, and one that is left in the middle is finalised by the garbage
  collector, at some time, with a warning. So leaving an answer closes its connection first and then lets the
  generators run into that.
- An answer that breaks off in its head is reported as one that never came. What is read is noted.

A stale connection is not tried again behind our back (`retries=0`): each attempt stands in the books.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextvars import ContextVar
from math import inf
from typing import Any, Final, cast

import httpx
import trio
from attrs import define, field, frozen

from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.upstreams.exchange import (
    STALE_SECONDS,
    Call,
    ConnectionWasStale,
    Exchange,
    NotInTime,
    Take,
    misconfigured,
    unreached,
)
from proxy.upstreams.origin import Bounds
from proxy.upstreams.transport import plain_client

STAGES: Final = 4
"""TCP and TLS to the proxy, its word that it has a connection, and TLS through that: each may take its time."""

CLOSE_SECONDS: Final = 1.0
"""Bound of the shield under which a connection is closed; closing a socket takes none of it."""


@define(eq=False)
class Proxied:
    """Client through a proxy.

    Args:
        proxy: its URL; `socks5` needs the package `socksio`.
        context: for TLS.
        connect_seconds: for name look-up and TCP together, and again for TLS.
        bounds: how many connections are kept, and how long.

    Attributes:
        http: an httpx client through the same proxy.
    """

    _proxy: str = field(repr=False)
    _context: ssl.SSLContext
    _connect_seconds: float
    _bounds: Bounds
    http: httpx.AsyncClient = field(init=False)
    _timeout: dict[str, float | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._timeout = httpx.Timeout(None, connect=self._connect_seconds).as_dict()
        self.http = plain_client(_Transport(self._proxy, self._context, self._bounds), self._connect_seconds)

    async def send(self, call: Call, sending: Callable[[], None], until: float = inf) -> Exchange:
        """See `exchange.Client.send`; which connection is taken is httpx's own affair."""
        with trio.CancelScope(deadline=until):
            return await self._send(call, sending)
        raise NotInTime

    async def _send(self, call: Call, sending: Callable[[], None]) -> Exchange:
        with trio.move_on_after(self._connect_seconds * STAGES) as patience:
            watch = _Watch(sending, patience)
            request = self._request(call, watch)
            watching = _watching.set(watch)
            try:
                return _Exchange(await self.http.send(request, stream=True, auth=None))
            except httpx.HTTPError as error:
                watch.close()
                # without the cause: it may quote a header, and so the credential
                raise _failed(error, watch) from None
            except BaseException:
                watch.close()
                raise
            finally:
                _watching.reset(watching)
        raise unreached("The provider could not be reached in time.")

    def _request(self, call: Call, watch: "_Watch") -> httpx.Request:
        """Build the request from nothing: no header of httpx's own but those that HTTP needs."""
        try:
            url = httpx.URL(call.url)
            fixed = [("host", url.netloc.decode("ascii")), ("content-length", str(len(call.body)))]
            return httpx.Request(
                "POST",
                url,
                headers=[*fixed, *call.headers],
                stream=_Body(call.body),
                extensions={"trace": watch.trace, "timeout": self._timeout},
            )
        except (httpx.InvalidURL, ValueError):
            # without the cause: it may quote a header, and so the credential
            raise misconfigured() from None


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's transport, with connections that were orphaned by a cancelled request taken out of its pool."""

    def __init__(self, proxy: str, context: ssl.SSLContext, bounds: Bounds) -> None:
        super().__init__(
            verify=context,
            trust_env=False,
            http1=True,
            http2=False,
            # no limit on connections: how much is under way at once is decided where requests are admitted
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=bounds.kept_max,
                keepalive_expiry=bounds.kept_seconds,
            ),
            proxy=proxy,
            retries=0,
        )
        self._pool._network_backend = _Backend(self._pool._network_backend)  # type: ignore[assignment]  # noqa: SLF001 - no public way

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


class _Body(httpx.AsyncByteStream):
    """A body in one piece; httpx's own is an async generator, left hanging when sending is cancelled."""

    def __init__(self, body: bytes) -> None:
        self._left: bytes | None = body

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        body, self._left = self._left, None
        if body is None:
            raise StopAsyncIteration
        return body


@define(eq=False)
class _Watch:
    """Sees what becomes of one request, through httpx's `trace` extension."""

    _sending: Callable[[], None]
    _patience: trio.CancelScope
    """Bounds the way to the provider, and nothing from the first byte on."""
    sent_at: float | None = None
    """When the first byte was about to leave."""
    fresh: Any = None
    """The connection, if it was made for this request."""
    heard: bool = False
    """Something was read: an answer may have begun, though httpx only says that there is none."""

    @property
    def was_stale(self) -> bool:
        """Whether the connection that has just failed had probably been closed before it was used."""
        return (
            self.fresh is None
            and not self.heard
            and self.sent_at is not None
            and trio.current_time() - self.sent_at < STALE_SECONDS
        )

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take an event."""
        if event == "http11.send_request_headers.started":
            # what is said to the proxy itself has not reached the provider
            if self.sent_at is None and info["request"].method != b"CONNECT":
                # whoever was cancelled by now has sent nothing; from here to the first byte nothing waits
                await trio.lowlevel.checkpoint_if_cancelled()
                self.sent_at = trio.current_time()
                self._patience.deadline = inf
                self._sending()
        elif event in {"connection.connect_tcp.complete", "socks.connect_tcp.complete"}:
            self.fresh = info["return_value"]

    def close(self) -> None:
        """Close a connection that httpx leaves open when it is cancelled during the TLS handshake."""
        if self.fresh is not None:
            self.fresh.get_extra_info("socket").close()


_watching: Final[ContextVar[_Watch]] = ContextVar("watching")
"""What the present task has asked."""


@frozen
class _Backend:
    """What makes httpcore's connections, around its own: of each, the request's `_Watch` is told what it reads."""

    _backend: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> "_Stream":
        """See httpcore."""
        return _Stream(await self._backend.connect_tcp(*args, **kwargs))


@frozen
class _Stream:
    """One such connection."""

    _stream: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, *args: Any, **kwargs: Any) -> bytes:
        """See httpcore."""
        data: bytes = await self._stream.read(*args, **kwargs)
        if data and (watch := _watching.get(None)) is not None:
            watch.heard = True
        return data

    async def start_tls(self, *args: Any, **kwargs: Any) -> "_Stream":
        """See httpcore."""
        return _Stream(await self._stream.start_tls(*args, **kwargs))


@define(eq=False)
class _Exchange:
    """An answer of httpx's as an `exchange.Exchange`."""

    _response: httpx.Response
    status: int = field(init=False)
    headers: Mapping[str, str] = field(init=False)
    _chunks: AsyncGenerator[bytes, None] | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.status = self._response.status_code
        self.headers = self._response.headers
        self._chunks = cast(AsyncGenerator[bytes, None], self._response.aiter_raw())

    def forget_headers(self) -> None:
        """See `exchange.Exchange`; they are httpx's, and stay."""

    def ready(self) -> bytes | None:
        """See `exchange.Exchange`; httpx does not say what it has."""
        return None if self._chunks is not None else b""

    async def read(self, until: float = inf, take: Take | None = None) -> bytes | None:  # noqa: ARG002
        """See `exchange.Exchange`."""
        with trio.CancelScope(deadline=until):
            return await self._read()
        return None

    async def _read(self) -> bytes:
        if self._chunks is None:
            return b""
        try:
            async for chunk in self._chunks:
                if chunk:
                    return chunk
        except (httpx.HTTPError, httpx.StreamError) as error:
            self._chunks = None
            raise StreamBroken(Kind.UPSTREAM_ERROR, "The provider's answer broke off.") from error
        except BaseException:
            self._chunks = (
                None  # the exception has gone through all of httpx and closed the connection on its way
            )
            raise
        self._chunks = None
        return b""

    async def aclose(self) -> None:
        """See `exchange.Exchange`."""
        if self._chunks is None:
            return
        chunks, self._chunks = self._chunks, None
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._response.aclose()
            try:
                async for _ in chunks:
                    pass
            except (httpx.HTTPError, httpx.StreamError):
                pass  # what closing it was for


def _failed(error: Exception, watch: _Watch) -> UpstreamFailed:
    """Say what a failure before the status line means."""
    if isinstance(error, httpx.ConnectTimeout):
        message = "The provider could not be reached in time."
    elif watch.sent_at is not None:
        message = "The provider closed the connection without an answer."
    else:
        message = "The provider could not be reached."
    return unreached(message, ConnectionWasStale if watch.was_stale else UpstreamFailed)
