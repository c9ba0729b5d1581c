"""HTTP/1.1 with a provider: one request and its answer over one connection, at the price of its system calls.

Rules that keep one answer from being taken for another:

- A connection is given back only after the exact end of an answer, its length or last chunk and not one byte
  more, to a request that was sent in whole. Anything else closes it. So nothing odd outlives its own request.
- Every answer has a parser of its own.
- httptools is given the head alone, then the chunks; a body of known length is counted here. So it is always
  known where an answer ends, to the byte. httptools itself refuses what is ambiguous (two lengths, a length with
  chunks, folded lines, spaces before colons, bare line feeds); other transfer codings are refused here.

Everything is bounded: the head, its fields, answers of status 1xx, and what chunked bodies carry beside content.

Waiting costs more than a system call, so reading tries the call first and waits only where it would block; but
after some turns in a row it steps back, so that one quick provider does not keep all others waiting.
"""

import re
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final, Protocol

import httptools
import trio
from attrs import define, field

from proxy.errors import Kind, StreamBroken
from proxy.upstreams.exchange import NotInTime, Take
from proxy.upstreams.wire import Wire

HEAD_BYTES_MAX: Final = 65_536
"""Status line and headers together; also what a chunked body may carry between two pieces of content."""

HEADERS_MAX: Final = 256
"""Fields of a head; providers send up to forty."""

INFORMATIONAL_MAX: Final = 16
"""Answers of status 1xx before the one that counts."""

TURNS: Final = 32
"""Reads in a row without waiting; a large one counts as several, so others wait for a fraction of a millisecond."""

TURN_BYTES: Final = 8192
"""So much more of a read is one turn more."""

_CHUNKED: Final = -1
_UNTIL_CLOSE: Final = -2
"""How the rest of a body is counted, where it is not counted in bytes."""

_NOTHING, _BYTES, _TURN = 0, 1, 2
"""What must be waited for: bytes to arrive, or a turn of everybody else."""

_OURS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
    }
)
"""Headers that say where a message ends or whose connection it is; never a caller's."""

_is_name: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_value: Final = re.compile(r"(?:[!-~\x80-\xff]+(?:[\t ]+[!-~\x80-\xff]+)*)?").fullmatch
_is_reason: Final = re.compile(rb"[\t -~\x80-\xff]*").fullmatch


class NoAnswer(Exception):
    """A request was sent, or begun to be, and no answer came.

    Attributes:
        reused: its connection had carried an answer before.
        heard: whether any byte came.
        odd: what came was not HTTP.
    """

    def __init__(self, message: str, *, reused: bool, heard: bool, odd: bool) -> None:
        super().__init__(message)
        self.reused = reused
        self.heard = heard
        self.odd = odd


class Odd(Exception):
    """What came is not the HTTP that we speak."""


class Lent(Protocol):
    """A connection that is ours until it is kept or closed; see `origin.Connection`."""

    wire: Wire
    reused: bool

    def keep(self) -> None:
        """Give it back for the next request."""
        ...

    def close(self) -> None:
        """Close it; more than once is the same as once."""
        ...


def lines_of(headers: tuple[tuple[str, str], ...]) -> str:
    """Write a caller's headers.

    Raises:
        ValueError: a name or value cannot be sent, or is not the caller's to set.
    """
    lines = []
    for name, value in headers:
        if name.lower() in _OURS:
            raise ValueError("a header that is not the caller's to set")
        lines.append(line_of(name, value))
    return "".join(lines)


def line_of(name: str, value: str) -> str:
    """Write one header.

    Raises:
        ValueError: it cannot be sent; the error does not quote it, as it may be a credential.
    """
    if _is_name(name) is None or _is_value(value) is None:
        raise ValueError("a header that cannot be sent")
    return f"{name}: {value}\r\n"


async def ask(
    connection: Lent, head: bytes, body: bytes, sending: Callable[[], None], until: float = inf
) -> "Answer":
    """Send a request and wait for the head of its answer; the connection is the answer's from here on.

    Args:
        connection: lent; it is closed if this raises.
        head: with its blank line.
        body: as long as the head says.
        sending: called just before the first byte leaves; from there to that byte nothing waits.
        until: when the head has to be here; on trio's clock.

    Raises:
        NoAnswer: none came.
        NotInTime: it was not here by then.
    """
    try:
        await trio.lowlevel.checkpoint_if_cancelled()  # whoever was cancelled by now has sent nothing
        sending()
        answer = Answer(connection)
        if not answer.send(head, body):
            with trio.CancelScope(deadline=until):
                await answer.upload(answer.flush)
        await answer.head(until)
    except BaseException:
        connection.close()
        raise
    return answer


@define(eq=False, repr=False)  # some of its fields go before it does
class Answer:
    """An answer, from before its first byte to its end; implements `exchange.Exchange`.

    Args:
        connection: lent for it.
        bodiless: whatever its head says, there is no body: it is the answer to a HEAD.

    Attributes:
        status, headers: see `Exchange`; 0 and nothing until the head has come.
        raw: the headers as they came.
        reason: the words after the status.
    """

    _connection: Lent | None
    _bodiless: bool = False
    status: int = field(default=0, init=False)
    headers: dict[str, str] = field(factory=dict, init=False)
    raw: list[tuple[bytes, bytes]] = field(factory=list, init=False)
    reason: bytes = field(default=b"", init=False)
    on_body: Callable[[bytes], None] = field(init=False)
    _wire: Wire = field(init=False)
    _unsent: bool = field(default=False, init=False)
    """The request did not leave in whole: the connection is of no further use."""
    _trouble: Exception | None = field(init=False)
    """What ended the sending of a request from the other side."""

    _parser: httptools.HttpResponseParser = field(init=False)
    _parts: list[bytes] = field(factory=list, init=False)
    """Where the parser puts what it finds in chunks."""
    _head_bytes: int = field(default=0, init=False)
    _tail: bytes = field(default=b"", init=False)
    """The last few bytes, where what we look for may have begun; none before the first byte of a head."""
    _informational: int = field(default=0, init=False)
    _in_head: bool = field(default=True, init=False)
    _complete: bool = field(default=False, init=False)
    """The parser has seen the end of a message; `_beyond`: and the beginning of another."""
    _beyond: bool = field(default=False, init=False)
    _reusable: bool = field(init=False)
    _left: int = field(init=False)
    """Bytes of the body to come, or how else it ends."""
    _barren: int = field(init=False)
    """Bytes of a chunked body since the last content."""

    _first: bytes = field(default=b"", init=False)
    """What of the body came with the head."""
    _over: bool = field(default=False, init=False)
    _broken: str = field(default="", init=False)
    _turns: int = field(default=TURNS, init=False)
    _must_wait: int = field(default=_NOTHING, init=False)
    """For what, before the next read."""
    _take_it: Take | None = field(init=False)
    """Who takes what comes while `read` waits; `_declined`: and has had enough for now."""
    _declined: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        assert self._connection is not None  # noqa: S101 - for the type checker
        self._wire = self._connection.wire
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)

    # Sending the request, and waiting for the head

    def send(self, head: bytes, body: bytes) -> bool:
        """Send a request, as far as it does not block; false if the rest is to be uploaded."""
        try:
            return self._wire.send(head, body)
        except OSError:
            self._unsent = True  # the answer may say why: it is waited for all the same
            return True

    async def flush(self) -> None:
        """Wait until all that was given to the wire has left."""
        while not self._wire.flush():
            await self._wire.writable()

    async def upload(self, send: Callable[[], Awaitable[None]]) -> None:
        """Run what sends the request, and listen meanwhile: a provider may refuse a body before it has read it.

        A refusal ends the sending; another answer waits until all is sent.
        """
        self._trouble = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            try:
                self._unsent = True
                await send()
                self._unsent = False
            except (OSError, trio.ClosedResourceError):
                pass
            except Exception as error:  # noqa: BLE001 - the request's own source: its error leaves outside the nursery
                self._trouble = error
            nursery.cancel_scope.cancel()
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    async def _listen(self, sending: trio.CancelScope) -> None:
        try:
            while self._in_head:
                await self._wire.readable()
                self._receive_head()
        except (OSError, trio.ClosedResourceError):
            sending.cancel()  # `head` meets it again
        except NoAnswer as error:
            self._trouble = error
            sending.cancel()
        else:
            if self.status >= 300 or self._over:  # refused, or answered in full already
                sending.cancel()

    async def head(self, until: float = inf) -> None:
        """Wait for the head of the answer.

        Raises:
            NoAnswer: none came.
            NotInTime: it was not here by then.
        """
        try:
            while self._in_head:
                if not await self._wire.readable(until):
                    raise NotInTime
                self._receive_head()
        except (OSError, trio.ClosedResourceError) as error:
            raise self._no_answer("the connection broke") from error

    def _receive_head(self) -> None:
        data = self._wire.receive()
        if data is None:
            return
        if not data:
            raise self._no_answer("the connection was closed")
        try:
            self._feed_head(data)
        except (Odd, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise self._no_answer("what came is not the HTTP that we speak", odd=True) from error

    def _no_answer(self, message: str, *, odd: bool = False) -> NoAnswer:
        assert self._connection is not None  # noqa: S101 - for the type checker
        reused = self._connection.reused
        self._close()
        return NoAnswer(message, reused=reused, heard=self._head_bytes > 0, odd=odd)

    def _feed_head(self, data: bytes) -> None:
        while self._in_head:
            end = _end_of_head(self._tail, data)
            self._head_bytes += len(data) if end < 0 else end
            # the parser would skip blank lines, and take other protocols for HTTP
            if not self._tail and not data.startswith(b"H"):
                raise Odd("no status line")
            if self._head_bytes > HEAD_BYTES_MAX:
                raise Odd("a head without end")
            if end < 0:
                self._parser.feed_data(data)
                self._tail = (self._tail + data[-3:])[-3:]
                return
            self._parser.feed_data(data[:end])
            self._check_head()
            data = data[end:]
            if self.status >= 200:  # what is below is not the answer yet
                self._head_is_whole(data)
            else:
                self._skip_informational()
                if not data:
                    return

    def _check_head(self) -> None:
        """See to what the parser lets pass."""
        if not self.status:
            raise Odd("a blank line before its time")
        version = self._parser.get_http_version()
        if version not in {"1.1", "1.0"} or _is_reason(self.reason) is None:
            raise Odd("another status line than ours")
        if len(self.raw) > HEADERS_MAX:
            raise Odd("too many headers")
        self._reusable &= version == "1.1"

    def _skip_informational(self) -> None:
        self._informational += 1
        if self._informational > INFORMATIONAL_MAX or not 100 <= self.status != 101:
            raise Odd("a status that nobody asked for")  # 101: another protocol
        self.raw.clear()
        self.status, self.reason, self._tail = 0, b"", b""
        self._complete = False
        self._parser = httptools.HttpResponseParser(self)

    def _head_is_whole(self, rest: bytes) -> None:
        """Find out how the body ends, and take what of it is here."""
        headers = self.headers
        for raw_name, raw_value in self.raw:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        coding = headers.get("transfer-encoding")
        if self._bodiless or self.status in {204, 304}:
            self._left = 0
        elif coding is not None:
            if coding.lower() != "chunked":
                raise Odd("another transfer coding than chunks")
            self._left, self._barren = _CHUNKED, 0
        else:
            # the parser has seen to it that it is a number
            self._left = int(headers.get("content-length", _UNTIL_CLOSE))
        self._in_head, self._tail = False, b""
        if self._left == 0 or rest:
            self._first = self._take(rest)

    # Callbacks of the parser; `on_body` stands above

    def on_status(self, reason: bytes) -> None:
        """Part of the words after the status."""
        if not self.status:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those behind a chunked body say nothing that anybody asked for."""
        if not self.status:
            self.raw.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: some of what the parser knows by now is forgotten at the end of the message."""
        if not self.status:
            self.status = self._parser.get_status_code()
            self._reusable = self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        """The last chunk was seen."""
        self._complete = True

    def on_message_begin(self) -> None:
        """A message begins; only one was asked for."""
        self._beyond |= self._complete

    # Reading the body

    def forget_headers(self) -> None:
        """See `Exchange`."""
        del self.raw, self.headers

    def ready(self) -> bytes | None:
        """See `Exchange`."""
        self._must_wait = _NOTHING
        if self._first:
            first, self._first = self._first, b""
            return first
        while not self._over:
            if self._broken:
                raise StreamBroken(Kind.UPSTREAM_ERROR, self._broken)
            if self._turns <= 0:
                self._turns, self._must_wait = TURNS, _TURN
                return None
            try:
                data = self._wire.receive()
            except OSError:
                raise self._breaks("The provider's answer broke off.") from None
            if data is None:
                self._must_wait = _BYTES
                return None
            self._turns -= 1 + len(data) // TURN_BYTES
            if body := self._take(data):
                return body
        return b""

    async def read(self, until: float = inf, take: Take | None = None) -> bytes | None:
        """See `Exchange`."""
        while True:
            if self._must_wait == _BYTES:
                self._take_it, self._declined = take, False
                try:
                    if not await self._wire.readable(until, None if take is None else self._hand_on):
                        return None
                except (OSError, trio.ClosedResourceError):
                    if not self._over:  # it was not we who closed it
                        raise self._breaks("The provider's answer broke off.") from None
                finally:
                    self._take_it = None  # it holds this answer: nobody should have to search for the two
                if self._declined:
                    return None
                self._turns = TURNS
            elif self._must_wait == _TURN:
                await trio.lowlevel.checkpoint()
            if (data := self.ready()) is not None:
                return data

    def _hand_on(self) -> bool:
        """Bytes have come while `read` waits: hand them on from here; true where it has to go on itself."""
        assert self._take_it is not None  # noqa: S101 - for the type checker
        self._turns = TURNS
        while data := self.ready():
            if not self._take_it(data):
                self._declined = True
                return True
        return data is not None or self._must_wait == _TURN

    async def aclose(self) -> None:
        """See `Exchange`; it does not wait at all."""
        self._first = b""
        self._over = True
        self._close()

    def _take(self, data: bytes) -> bytes:
        """Take bytes that came after the head, or the end that is none; gives what of the body is in them."""
        left = self._left
        if not data and left != 0:
            if left != _UNTIL_CLOSE:
                raise self._breaks("The provider's answer broke off.")
            self._is_over(clean=False)
            return b""
        if left == _CHUNKED:
            return self._take_chunks(data)
        if left == _UNTIL_CLOSE:
            return data
        self._left = left - len(data)
        if self._left <= 0:
            self._is_over(clean=self._left == 0)
        return data[:left]

    def _take_chunks(self, data: bytes) -> bytes:
        parts, clean = self._parts, True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            clean = False
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]  # as _ends_there
        self._barren = 0 if body else self._barren + len(data)
        if self._complete:
            self._is_over(clean=clean and not self._beyond and _ends_there(self._tail))
        elif not clean or self._barren > HEAD_BYTES_MAX:
            self._breaks("The provider's answer is garbled.")  # what came before is still handed on
        return body

    def _is_over(self, *, clean: bool) -> None:
        """The end of the answer was seen, and nothing beyond it if that is `clean`."""
        self._over = True
        connection = self._connection
        if connection is None:
            return
        self._let_go()
        if clean and self._reusable and not self._unsent:
            connection.keep()
        else:
            connection.close()

    def _breaks(self, message: str) -> StreamBroken:
        self._broken = message
        self._close()
        return StreamBroken(Kind.UPSTREAM_ERROR, message)

    def _close(self) -> None:
        connection = self._connection
        if connection is not None:
            self._let_go()
            connection.close()

    def _let_go(self) -> None:
        self._connection = None
        del self._parser  # parser and answer hold each other: nobody should have to search for them


def _end_of_head(tail: bytes, data: bytes) -> int:
    """Where in the data a head ends, just behind its blank line; -1 if it does not."""
    if tail:
        start = tail + data[:3]
        at = start.find(b"\r\n\r\n")
        if at >= 0:
            return at + 4 - len(tail)
    at = data.find(b"\r\n\r\n")
    return at + 4 if at >= 0 else -1


def _ends_there(tail: bytes) -> bool:
    """Whether a chunked body ends with these bytes: the parser skips blank lines that come after it."""
    return tail.endswith(b"\r\n\r\n") and tail[-5] not in b"\r\n"
