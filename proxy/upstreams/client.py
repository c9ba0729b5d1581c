"""The only httpx: sends one request to a provider and hands back an open answer, or says how it failed.

Redirects are not followed (they would carry the credential elsewhere), cookies are not kept, proxies of the
environment are not used, TLS certificates are always checked. httpx has no time-outs here but for connecting:
deadlines are ours, by content and not by bytes. httpx's exceptions end here.

An `Exchange` is read by `read()` and not by `async for`: under httpx lie six nested async generators, and one
that is left in the middle is finalised by the garbage collector, at some time, with a warning. So leaving an
answer closes its connection first and then lets the generators run into that.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, Protocol, cast

import httpx
import trio
from attrs import define, field, frozen

from accounting.records import Ending
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.types import Headers
from proxy.upstreams.transport import Transport

STALE_SECONDS: Final = 2.0
"""A kept connection that the other side had closed says so within a round trip; later, a request was lost."""

CLOSE_SECONDS: Final = 1.0
"""Bound of the shield under which a connection is closed; closing a socket takes none of it."""


@frozen
class Call:
    """One request to a provider; its headers hold a credential, so they are not shown."""

    url: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


class Exchange(Protocol):
    """A provider's open answer.

    Attributes:
        status: HTTP status.
        headers: lower-case names.
    """

    status: int
    headers: Mapping[str, str]

    async def read(self) -> bytes:
        """The next bytes as they came, or `b""` at the end.

        Raises:
            StreamBroken: the connection broke off.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection unless the answer was read to its end; shielded, within milliseconds."""
        ...


class Client(Protocol):
    """Whatever can reach a provider; `HttpClient`, or a fake."""

    async def send(self, call: Call, sending: Callable[[], None]) -> Exchange:
        """Send a request and wait for the status line.

        Args:
            call: what to send.
            sending: called once, just before the first byte of it leaves; never, if no connection came about.

        Raises:
            UpstreamFailed: it could not be reached, or closed without an answer.
            ConnectionWasStale: the same, on a connection kept from before: the provider may be well.
        """
        ...


class ConnectionWasStale(UpstreamFailed):
    """A kept connection turned out to be closed, without a byte of an answer: worth another try there."""


@define(eq=False)
class HttpClient:
    """Client over httpx; closed by `aclose`.

    Args:
        connect_seconds: for name look-up and TCP together, and again for TLS.
        verify: certificates of a private authority instead of the usual ones.
    """

    connect_seconds: float
    verify: ssl.SSLContext | None = None
    _http: httpx.AsyncClient = field(init=False)
    _timeout: dict[str, float | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._timeout = httpx.Timeout(None, connect=self.connect_seconds).as_dict()
        self._http = httpx.AsyncClient(
            transport=Transport(self.verify if self.verify is not None else True),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=self.connect_seconds),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def send(self, call: Call, sending: Callable[[], None]) -> Exchange:
        """See `Client.send`."""
        watch = _Watch(sending)
        request = self._request(call, watch)
        try:
            response = await self._http.send(request, stream=True, auth=None)
        except httpx.HTTPError as error:
            watch.close()
            # without the cause: it may quote a header, and so the credential
            raise _failed(error, watch) from None
        except BaseException:
            watch.close()
            raise
        return _HttpExchange(response)

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
            raise UpstreamFailed(
                Kind.UPSTREAM_ERROR,
                "The provider is not set up correctly.",
                try_another=True,
                ending=Ending.UNREACHED,
            ) from None

    async def aclose(self) -> None:
        """Close all connections."""
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._http.aclose()


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
    sent_at: float | None = None
    """When the first byte was about to leave."""
    fresh: Any = None
    """The connection, if it was made for this request."""

    @property
    def was_stale(self) -> bool:
        """Whether the connection that has just failed had probably been closed before it was used."""
        return (
            self.fresh is None
            and self.sent_at is not None
            and trio.current_time() - self.sent_at < STALE_SECONDS
        )

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take an event."""
        if event == "http11.send_request_headers.started":
            if self.sent_at is None:
                # whoever was cancelled by now has sent nothing; from here to the first byte nothing waits
                await trio.lowlevel.checkpoint_if_cancelled()
                self.sent_at = trio.current_time()
                self._sending()
        elif event == "connection.connect_tcp.complete":
            self.fresh = info["return_value"]

    def close(self) -> None:
        """Close a connection that httpx leaves open when it is cancelled during the TLS handshake."""
        if self.fresh is not None:
            self.fresh.get_extra_info("socket").close()


@define(eq=False)
class _HttpExchange:
    _response: httpx.Response
    status: int = field(init=False)
    headers: Mapping[str, str] = field(init=False)
    _chunks: AsyncGenerator[bytes, None] | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.status = self._response.status_code
        self.headers = self._response.headers
        self._chunks = cast(AsyncGenerator[bytes, None], self._response.aiter_raw())

    async def read(self) -> bytes:
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
    """Say what a failure before the status line means: nothing of an answer was seen, others may be tried."""
    if isinstance(error, httpx.ConnectTimeout):
        message = "The provider could not be reached in time."
    elif watch.sent_at is not None:
        message = "The provider closed the connection without an answer."
    else:
        message = "The provider could not be reached."
    kind = ConnectionWasStale if watch.was_stale else UpstreamFailed
    return kind(Kind.UPSTREAM_ERROR, message, try_another=True, ending=Ending.UNREACHED)
