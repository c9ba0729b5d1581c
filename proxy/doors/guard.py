"""The strict reader that every byte of a client passes before any other parser sees it. Sans-IO.

Two parsers that disagree about where a request ends are how requests are smuggled, and the lenient one
behind us (h11) takes obs-fold, bare LF and `Transfer-Encoding` beside `Content-Length`. So this one decides:

- llhttp (httptools) parses the head, as it arrives; what it refuses never goes on. What it allows and we do
  not (absolute targets, `..`, a second credential, a websocket with a body …) is checked here.
- A head goes on whole, and only once all of it has been checked; but for a wish to speak something else than HTTP or
  a websocket, which is ignored: the parser behind would stand still at it.
- A body goes on up to its very last byte and not one further: what follows is held back until the answer to
  this request is complete. So the parser behind us never holds two requests at once, and the connection can
  go on reading (and notice that the client has left) while an answer is under way.

`feed` takes bytes as they were read; `take` gives those that may go on now, or raises `Refused`. A door of ours
that needs no parser behind this one reads `head` once the head was taken, and the body by `take_body`.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import unquote_to_bytes

import httptools
import msgspec
from attrs import define, field

from proxy.doors.chunks import Chunks

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""All others that llhttp knows (CONNECT, PRI, SOURCE …) mean protocols that are not spoken here."""

ONCE: Final = frozenset(
    {
        "authorization", "content-encoding", "content-length", "content-type", "expect", "host",
        "transfer-encoding", "upgrade", "x-api-key", "x-goog-api-key", "x-user-key",
    }
)  # fmt: skip
"""Headers of which a second one would leave open which of the two counts."""

HEADERS_MAX: Final = 256
"""Several times what any client sends; each costs work before anybody is known."""

FRAMING_PER_BYTE: Final = 16
"""Bytes of chunk sizes and extensions for each byte of a chunked body, beyond one head's worth: chunks of a single
byte take five. Else extensions and trailers would be an upload that no limit on bodies sees."""

_END_OF_LINES: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(r"([A-Z]+) ([\x21-\x7e]+) HTTP/(1\.[01])")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_PLAIN_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9_-][A-Za-z0-9_.:-]*)+")
"""Paths in which there is nothing to check; nearly all are such."""
_WEBSOCKET_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
"""Sixteen bytes in base64."""
_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")


class Refused(Exception):
    """A request that is not let in.

    Args:
        status: HTTP status.
        message: a sentence for whoever wrote the client; it repeats nothing of what was sent.
        headers: more of them for the answer, by lower-case name.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


_REASONS: Final = {
    400: (b"Bad Request", "invalid_request_error"),
    408: (b"Request Timeout", "request_timeout"),
    417: (b"Expectation Failed", "invalid_request_error"),
    431: (b"Request Header Fields Too Large", "headers_too_large"),
    503: (b"Service Unavailable", "overloaded"),
}


def refusal(refused: Refused, request_id: str | None = None) -> bytes:
    """The whole answer to a request that was not let in; in OpenAI's shape, for its dialect is not known."""
    reason, body = _REASONS[refused.status][0], refusal_body(refused)
    lines = [
        b"HTTP/1.1 %d %s" % (refused.status, reason),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(f"{name}: {value}".encode("ascii") for name, value in refused.headers.items()),
    ]
    if request_id is not None:
        lines.append(b"x-request-id: " + request_id.encode("ascii"))
    return b"\r\n".join([*lines, b"", body])


def refusal_body(refused: Refused) -> bytes:
    """What such an answer says."""
    code = _REASONS[refused.status][1]
    error = {"message": refused.message, "type": "invalid_request_error", "param": None, "code": code}
    return msgspec.json.encode({"error": error})


Stage = Literal["head", "body", "read", "upgrading", "upgraded"]
"""Where in its connection the reading stands.

read: the request is complete; what follows waits for `next_request`.
upgrading: a websocket was asked for; what follows waits for `upgrade`.
"""
# no Enum: until Python 3.12 a member takes ten times as long to look up, and each request asks twenty times


class Head(msgspec.Struct, eq=False, gc=False):
    """A head that was checked. A struct, since one is made for each request.

    Attributes:
        method: in upper case.
        target: path and query as they were sent.
        version: `1.0` or `1.1`.
        headers: by lower-case name; those that came several times are joined with `, `.
        raw: as it goes on.
    """

    method: str
    target: str
    version: str
    headers: dict[str, str]
    raw: bytes

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The headers one by one, in order; only an app wants them so."""
        return _fields(_lines(self.raw)[1:])


class _Body(msgspec.Struct, eq=False):
    """What llhttp says about one request; of its head only that it is well-formed matters, for it is cut by lines."""

    parts: list[bytes] = []
    complete: bool = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.complete = True


_NOTHING_READ: Final = _Body()


@define(eq=False)
class Guard:
    """Reads one connection's bytes.

    Attributes:
        header_bytes_max: size of request line and headers together.
        stage: where the reading stands.
        body_bytes: how much of the present body has gone on.
        head: of the present request, once it was taken.
    """

    header_bytes_max: int
    stage: Stage = "head"
    body_bytes: int = 0
    head: Head | None = None
    _pending: bytes = b""
    """Never much more than one head or one read; what comes in one piece is not copied."""
    _fed: int = 0
    """How much of what is pending llhttp has seen; heads only."""
    _skipped: bool = False
    _left: int | None = None
    """Bytes of the body still to come; `None` where it is chunked."""
    _chunks: Chunks = field(init=False)
    """Of a chunked body."""
    _framing: int = 0
    """Bytes of a chunked body so far that are not body."""
    _raw_head: bytes = b""
    _body: _Body = _NOTHING_READ
    _parser: httptools.HttpRequestParser | None = None
    """One of its own for each request: nothing of one is left when the next begins. None between them."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that were read and have not gone on."""
        return len(self._pending)

    @property
    def idle(self) -> bool:
        """No byte of a request has come since the last one was answered."""
        return self.stage == "head" and not self._pending

    @property
    def body_over(self) -> bool:
        """Nothing of the present request is still to come."""
        return self.stage == "read"

    @property
    def asked(self) -> tuple[str, dict[str, str]]:
        """Target and headers as far as they were read, to word a refusal; nothing of them was checked."""
        first, *lines = (self._raw_head or self._pending).decode("latin-1").split("\r\n")
        return [*first.split(" "), ""][1], dict(_fields(lines))

    def rest(self) -> bytes:
        """Give up everything that was read and has not gone on: another guard takes over."""
        return self._cut(len(self._pending))

    def feed(self, data: bytes) -> None:
        """Take bytes as they were read."""
        self._pending += data

    def take(self) -> bytes:
        """Give the bytes that may go on now; nothing (`b""`) if more must come or happen first.

        Raises:
            Refused: the request is not let in; the connection is of no further use.
        """
        if not self._pending:
            return b""
        if self.stage == "head":
            return self._take_head()
        if self.stage == "body":
            taken = self._take_chunked()[0] if self._left is None else self._take_counted()
            self.body_bytes += len(taken)
            return taken
        if self.stage == "upgraded":
            return self._cut(len(self._pending))
        return b""

    def take_body(self, data: bytes = b"") -> bytes:
        """Give what there is of the body itself, without the framing of chunks.

        Args:
            data: what was read since; goes on without being copied where it can.

        Raises:
            Refused: the framing is broken, or there is more of it than body.
        """
        self._pending += data
        taken = b"".join(self._take_chunked()[1]) if self._left is None else self._take_counted()
        self.body_bytes += len(taken)
        return taken

    def forget_head(self) -> None:
        """Let go of head and parser: the request was read in whole, and its answer may take an hour."""
        self._raw_head, self.head = b"", None
        self._end_parsing()

    def next_request(self) -> None:
        """The answer is complete: another request may come."""
        assert self.stage == "read", self.stage  # noqa: S101 - our own mistake
        self.stage, self.body_bytes = "head", 0
        self._fed, self._skipped, self._framing = 0, False, 0
        self.forget_head()

    def upgrade(self) -> None:
        """The websocket was granted: from here on bytes pass as they are."""
        self.stage = "upgraded"

    def _end_parsing(self) -> None:
        self._body, self._parser = _NOTHING_READ, None

    def _take_head(self) -> bytes:
        if self._pending[0] == 0x0D and not self._skip_empty_line():
            return b""
        fed = self._fed
        border = self._pending.find(_END_OF_LINES, fed - 3 if fed > 3 else 0)
        end = len(self._pending) if border < 0 else border + 4
        if end > self.header_bytes_max:
            raise Refused(431, f"Request line and headers may have {self.header_bytes_max} bytes.")
        if border < 0:
            self._parse(self._pending[fed:])
            self._fed = end
            return b""
        self._raw_head = raw = self._cut(end)
        self._parse(raw[fed:])
        head = _checked(raw)
        if "upgrade" not in head.headers:
            self.stage, self._left = _what_follows(head)
        elif _asks_for_websocket(head):
            self.stage, self._left = "upgrading", None
        else:
            head = _without_upgrade(head)
            self.stage, self._left = _what_follows(head)
            self._end_parsing()
            self._parse(head.raw)  # from such a head on, httptools would take nothing more for this request's
        if self._left is None:
            self._chunks = Chunks()
        self.head = head
        return head.raw

    def _skip_empty_line(self) -> bool:
        """Drop one empty line before a request (RFC 9112 §2.2); false if the line must still arrive."""
        if self._fed:
            return True
        if len(self._pending) == 1:
            return False
        if self._skipped or self._pending[1] != 0x0A:
            raise Refused(400, "The request begins with an empty line.")
        self._cut(2)
        self._skipped = True
        return bool(self._pending) and (self._pending[0] != 0x0D or self._skip_empty_line())

    def _take_counted(self) -> bytes:
        assert self._left is not None  # noqa: S101 - our own mistake
        taken = self._cut(self._left)
        self._left -= len(taken)
        if not self._left:
            self.stage = "read"
        return taken

    def _take_chunked(self) -> tuple[bytes, list[bytes]]:
        """Have llhttp read some of a chunked body, without ever showing it a byte of what follows.

        Gives the bytes as they came, and the parts of the body in them.
        """
        size = self._chunks.follow(self._pending)
        self._parse(self._pending[:size])
        if self._body.complete != self._chunks.over:
            raise Refused(400, "The request's chunks can be read in two ways.")
        parts, self._body.parts = self._body.parts, []
        body_bytes = sum(map(len, parts))
        self._framing += size - (FRAMING_PER_BYTE + 1) * body_bytes
        if self._framing > self.header_bytes_max:
            raise Refused(400, "The body has more framing than content.")
        if self._body.complete:
            self.stage = "read"
        return self._cut(size), parts

    def _parse(self, piece: bytes) -> None:
        if self._parser is None:
            self._body = _Body()
            self._parser = httptools.HttpRequestParser(self._body)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            return  # the head is complete; whether the upgrade is one of ours is checked there
        except httptools.HttpParserError:
            raise Refused(400, "The request is not well-formed HTTP/1.1.") from None

    def _cut(self, size: int) -> bytes:
        """Give the first bytes of what is pending: so many, or all there are."""
        cut, self._pending = self._pending[:size], self._pending[size:]
        return cut


def _lines(raw: bytes) -> list[str]:
    """Cut a head that llhttp has checked into request line and headers."""
    return raw[:-4].decode("latin-1").split("\r\n")


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    """Cut lines that llhttp has checked into names and values."""
    fields = []
    for line in lines:
        name, _, value = line.partition(":")
        fields.append((name.lower(), value.strip(" \t")))
    return fields


def _headers(lines: list[str]) -> dict[str, str]:
    """The same by name."""
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    return headers if len(headers) == len(lines) else joined(_fields(lines))


def joined(fields: list[tuple[str, str]]) -> dict[str, str]:
    """Headers by name, those that came several times joined.

    Raises:
        Refused: one came twice of which there can be only one.
    """
    known: dict[str, str] = {}
    for name, value in fields:
        if name not in known:
            known[name] = value
        elif name in ONCE:
            raise Refused(400, f"There is more than one {name} header.")
        else:
            known[name] += f", {value}"
    return known


def _checked(raw: bytes) -> Head:
    """Check a head that llhttp allows, but for what it says of its body."""
    first, *lines = _lines(raw)
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise Refused(400, "The request line is not HTTP/1.1.")
    if len(lines) > HEADERS_MAX:
        raise Refused(431, f"There may be {HEADERS_MAX} headers.")
    method, target, version = line.groups()
    known = _headers(lines)
    if method not in METHODS:
        raise Refused(400, "This method is not offered.")
    check_target(target.encode("ascii"))
    if version == "1.1" and "host" not in known:
        raise Refused(400, "There is no host header.")
    if not _HOST.fullmatch(known.get("host", "none")):
        raise Refused(400, "The host header is malformed.")
    if "expect" in known and version == "1.1" and known["expect"].lower() != "100-continue":
        raise Refused(417, "The only expectation that can be met is 100-continue.")
    return Head(method, target, version, known, raw)


def check_target(target: bytes) -> None:
    """Check that a target is a plain absolute path with a query, which every reader understands alike.

    Raises:
        Refused: another form, or a path that some reader would resolve to another one.
    """
    if _PLAIN_PATH.fullmatch(target):
        return
    if not target.startswith(b"/"):
        raise Refused(400, "The target must be a path: proxying and CONNECT are not offered.")
    if b"#" in target or b"\\" in target or _PERCENT.search(target):
        raise Refused(400, "The target holds characters that must be percent-encoded.")
    path = target.partition(b"?")[0]
    try:
        decoded = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise Refused(400, "The path is not UTF-8.") from None
    if _CONTROL.search(decoded):
        raise Refused(400, "The path holds control characters or backslashes.")
    segments = decoded.split("/")[1:]
    if "" in segments[:-1] or "." in segments or ".." in segments:
        raise Refused(400, "The path holds empty or dotted segments.")


def _asks_for_websocket(head: Head) -> bool:
    """Whether the upgrade that a head asks for is to a websocket; any other is ignored (RFC 9110 §7.8).

    Raises:
        Refused: it is, but not as it should be; the parser behind would refuse it without a word.
    """
    headers, wanted = head.headers, head.headers["upgrade"].lower()
    if "websocket" not in {token.strip() for token in wanted.split(",")} or head.version == "1.0":
        return False
    # of several connection headers the parser behind knows the last one only
    options = dict(head.fields).get("connection", "").lower()
    if wanted != "websocket" or "upgrade" not in {token.strip() for token in options.split(",")}:
        raise Refused(400, "A websocket is asked for alone, and the connection header says so.")
    if head.method != "GET" or "content-length" in headers or "transfer-encoding" in headers:
        raise Refused(400, "A websocket is asked for by a GET without a body.")
    if headers.get("sec-websocket-version") != "13":
        message = "The only version of websockets spoken here is 13."
        raise Refused(400, message, {"sec-websocket-version": "13"})
    if not _WEBSOCKET_KEY.fullmatch(headers.get("sec-websocket-key", "")):
        raise Refused(400, "The sec-websocket-key is not 16 bytes in base64.")
    return True


def _without_upgrade(head: Head) -> Head:
    """Leave out the wish for an upgrade, so that nobody behind makes anything of it."""
    lines = [line for line in head.raw[:-4].split(b"\r\n") if not line.lower().startswith(b"upgrade:")]
    headers = {name: value for name, value in head.headers.items() if name != "upgrade"}
    raw = b"\r\n".join([*lines, b"", b""])
    return Head(head.method, head.target, head.version, headers, raw)


def _what_follows(head: Head) -> tuple[Stage, int | None]:
    """Check what a head says of what follows; gives the next stage, and the body's length (`None`: chunks)."""
    headers = head.headers
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or head.version != "1.1" or coding.lower() != "chunked":
            raise Refused(400, "The only transfer-encoding understood is chunked, without a content-length.")
        return "body", None
    if length is None:
        return "read", 0
    if not _LENGTH.fullmatch(length):
        raise Refused(400, "The content-length is not a number of bytes.")
    left = int(length)
    return ("body" if left else "read"), left
