"""Our connections as a transport of httpx, for all that is not a call of a model.

It speaks HTTP/1.1 and takes any request of httpx's: bodies of known length and streamed ones, all four time-outs
of its `timeout` extension. A request whose kept connection turns out to be closed is not sent a second time behind
anybody's back: that is for the caller to decide.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from math import inf
from typing import Any, Final

import httpx
import trio
from attrs import define, field

from proxy.errors import StreamBroken
from proxy.upstreams.http1 import Answer, NoAnswer, line_of
from proxy.upstreams.origin import Bounds, Connection, NoSlot, Origins
from proxy.upstreams.wire import Address, Unreachable, Wire, connect

Certificate = str | tuple[str, str]
"""File of a certificate with its key, or one file for each."""

_PORTS: Final = {"http": 80, "https": 443}


def trust(verify: ssl.SSLContext | None, certificate: Certificate | None = None) -> ssl.SSLContext:
    """The TLS settings of a client: whom to trust (as httpx does, without a look at the environment), what to show."""
    context = verify if verify is not None else httpx.create_ssl_context(trust_env=False)
    if isinstance(certificate, str):
        context.load_cert_chain(certificate)
    elif certificate is not None:
        context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["http/1.1"])
    return context


def plain_client(transport: httpx.AsyncBaseTransport, connect_seconds: float) -> httpx.AsyncClient:
    """An httpx client that does nothing by itself: no redirects, cookies, proxies or time-outs but for connecting."""
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=connect_seconds),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


@define(eq=False)
class Transport(httpx.AsyncBaseTransport):
    """See httpx.

    Args:
        context: for TLS.
        bounds: how many connections there may be.

    Attributes:
        origins: the connections themselves, for who needs no objects of httpx's.
    """

    context: ssl.SSLContext
    bounds: Bounds = field(factory=Bounds)
    origins: Origins = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.origins = Origins(self._dial, self.bounds)

    async def _dial(self, address: Address, seconds: float) -> Wire:
        return await connect(address, self.context, seconds)

    def client(self, connect_seconds: float) -> httpx.AsyncClient:
        """An httpx client over this transport; closing it closes both."""
        return plain_client(self, connect_seconds)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see httpx."""
        head, left = _head(request)
        seconds = _seconds(request)
        with _as_httpx(request):
            connection = await self.origins.lend(_address(request.url), seconds("connect"), seconds("pool"))
            try:
                answer = await _exchange(connection, request, head, left, seconds)
            except BaseException:
                connection.close()
                raise
        return httpx.Response(
            answer.status,
            headers=answer.raw,
            stream=_Body(answer, seconds("read"), request),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": answer.reason},
        )

    async def aclose(self) -> None:
        """Close all connections."""
        self.origins.close()


def _address(url: httpx.URL) -> Address:
    if url.scheme not in _PORTS or not url.raw_host:
        raise httpx.UnsupportedProtocol(f"Request URL has an unsupported protocol {url.scheme!r}.")
    return Address(url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme], url.scheme == "https")


def _seconds(request: httpx.Request) -> Callable[[str], float]:
    """The request's time-outs, by name."""
    given: dict[str, float | None] = request.extensions.get("timeout", {})

    def seconds(name: str) -> float:
        value = given.get(name)
        return inf if value is None else value

    return seconds


def _head(request: httpx.Request) -> tuple[bytes, int | None]:
    """A request's head, and the length of its body; `None` for one in chunks."""
    headers = request.headers
    first = f"{request.method} {request.url.raw_path.decode('ascii')} HTTP/1.1\r\n"
    lengths, coding = headers.get_list("content-length"), headers.get("transfer-encoding")
    if len(first.split()) != 3 or request.method == "CONNECT":
        raise httpx.LocalProtocolError("a method or target that cannot be sent", request=request)
    if len(lengths) > 1 or len(headers.get_list("host")) != 1:
        raise httpx.LocalProtocolError("a header that stands there once or not at all", request=request)
    if coding is not None and (lengths or coding.lower() != "chunked"):
        raise httpx.LocalProtocolError("a body that ends in two ways, or in none", request=request)
    try:
        lines = [line_of(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.raw]
        length = int(lengths[0]) if lengths else 0
    except ValueError as error:
        raise httpx.LocalProtocolError(str(error), request=request) from None
    return "".join([first, *lines, "\r\n"]).encode("latin-1"), (length if coding is None else None)


async def _exchange(
    connection: Connection,
    request: httpx.Request,
    head: bytes,
    left: int | None,
    seconds: Callable[[str], float],
) -> Answer:
    answer = Answer(connection, bodiless=request.method == "HEAD")
    source = _Source(answer, connection.wire, request, head, left, seconds("write"))
    await answer.upload(source.send)
    with _within(seconds("read"), httpx.ReadTimeout("no answer in time", request=request)):
        await answer.head()
    return answer


@define(eq=False)
class _Source:
    """Sends a request whose body httpx hands out piece by piece."""

    _answer: Answer
    _wire: Wire
    _request: httpx.Request
    _head: bytes
    _left: int | None
    _write_seconds: float

    async def send(self) -> None:
        """Send head and body, the head together with the first piece."""
        stream = self._request.stream
        assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - so httpx has it
        pieces = aiter(stream)
        try:
            async for piece in pieces:
                if piece:
                    await self._put_piece(piece)
        finally:
            if isinstance(pieces, AsyncGenerator):  # most are; left to the garbage collector it would warn
                await pieces.aclose()
        if self._left:
            raise httpx.LocalProtocolError("a body shorter than its length says", request=self._request)
        if self._left is None:
            await self._put(b"0\r\n\r\n")
        elif self._head:
            await self._put(b"")

    async def _put_piece(self, piece: bytes) -> None:
        if self._left is None:
            self._head += b"%x\r\n" % len(piece)
            await self._put(piece + b"\r\n")
            return
        self._left -= len(piece)
        if self._left < 0:
            raise httpx.LocalProtocolError("a body longer than its length says", request=self._request)
        await self._put(piece)

    async def _put(self, body: bytes) -> None:
        head, self._head = self._head, b""
        if not self._wire.send(head, body):
            with _within(self._write_seconds, httpx.WriteTimeout("not taken in time", request=self._request)):
                await self._answer.flush()


@define(eq=False)
class _Body(httpx.AsyncByteStream):
    """The body of an answer; an object and not a generator, so that leaving it in the middle leaves nothing open."""

    _answer: Answer
    _read_seconds: float
    _request: httpx.Request

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _as_httpx(self._request):
            try:
                data = self._answer.ready()
                if data is None:
                    with _within(
                        self._read_seconds, httpx.ReadTimeout("no more in time", request=self._request)
                    ):
                        data = await self._answer.read()
            except BaseException:
                await self._answer.aclose()
                raise
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        await self._answer.aclose()


@contextmanager
def _within(seconds: float, error: Exception) -> Iterator[None]:
    with trio.move_on_after(seconds) as patience:
        yield
    if patience.cancelled_caught:
        raise error


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """Map our errors to httpx's."""
    try:
        yield
    except Unreachable as error:
        kind: Any = httpx.ConnectError if error.in_time else httpx.ConnectTimeout
        raise kind(str(error), request=request) from error
    except NoSlot as error:
        raise httpx.PoolTimeout(str(error), request=request) from error
    except (NoAnswer, StreamBroken) as error:
        raise httpx.RemoteProtocolError(str(error), request=request) from error
    except trio.ClosedResourceError as error:
        raise httpx.TransportError(str(error), request=request) from error
