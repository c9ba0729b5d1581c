"""What the sandbox's dialects have in common: a request as read, a frame to send, an error to word."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec
from attrs import define, field, frozen

from proxy.sandbox.directives import BadDirectiveError, Directives, parse
from proxy.types import DialectName, Headers

BYTES_PER_TOKEN: Final = 4
"""The pseudo-tokenizer: a text is its UTF-8 bytes divided by this, rounded up: never more than its bytes."""

MESSAGE_TOKENS: Final = 4
"""Framing of one message; with `REPLY_TOKENS` never above the 8 that a message may cost beyond its bytes."""

REPLY_TOKENS: Final = 3
"""Framing of the answer that is asked for, once per request."""

IMAGE_TOKENS: Final = 64
"""Any image, document or recording; what is inside is not looked at."""

CHOICES_MAX: Final = 128
"""OpenAI's own limit for `n`."""


class Refused(Exception):
    """The request is answered with an error.

    Args:
        status: HTTP status; names the vendor's error type.
        message: what the vendor would say; `None` for the dialect's usual words for that status.
        param: the field at fault.
        code: OpenAI's code, or Google's `reason`, where it is not the usual one.
        retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


@frozen
class Tool:
    """A function that the request declares, with the schema of its arguments."""

    name: str
    schema: Any


@define(eq=False)
class Prompt:
    """Counts the tokens of a request while it is read, and hashes what is said in it.

    Attributes:
        tokens: so far.
        marked_5m, marked_1h: tokens up to the last mark (`cache_control`) of that lifetime.
    """

    tokens: int = 0
    marked_5m: int = 0
    marked_1h: int = 0
    _hash: Any = field(factory=lambda: hashlib.blake2b(digest_size=8))

    def text(self, text: str) -> None:
        """Take a piece of text."""
        encoded = text.encode("utf-8", "surrogatepass")
        self.tokens += -(-len(encoded) // BYTES_PER_TOKEN)
        self._hash.update(b"%d:" % len(encoded) + encoded)

    def json(self, value: Any) -> None:
        """Take a JSON value that the model reads as text: a schema, a tool's input."""
        self.text(msgspec.json.encode(value).decode())

    def message(self) -> None:
        """Take the framing of one message."""
        self.tokens += MESSAGE_TOKENS

    def media(self) -> None:
        """Take an image, a document or a recording."""
        self.tokens += IMAGE_TOKENS
        self._hash.update(b"media")

    def mark(self, control: Any) -> None:
        """Note a cache mark after what was taken so far; anything but an object is no mark."""
        if isinstance(control, dict):
            if control.get("ttl") == "1h":
                self.marked_1h = self.tokens
            else:
                self.marked_5m = self.tokens

    def seed(self, model: str, directives: str) -> int:
        """Name what was said: the same conversation, model and directives give the same number."""
        whole = self._hash.copy()
        whole.update(f"{model}\n{directives}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(whole.digest(), "big")


@frozen
class Asked:
    """A request as the sandbox read it.

    Attributes:
        action: `generate`, or `count` (tokens only, free).
        model: as sent, directives and all; it is echoed like that.
        seed: chooses the answer.
        input_tokens: of the whole request.
        marked_5m, marked_1h: as in `Prompt`.
        output_max: tokens that one choice may have, or `None`.
        tools: declared.
        forced: tool calls are demanded: the names to choose from, or `None`.
        answered: the last message is not a user's own words but a tool's result.
        reasoning: the request turns reasoning on.
        thoughts_shown: the reasoning's text is wanted in the answer (Anthropic, Gemini).
        structured: the answer must be JSON; `schema` says what.
        usage_wanted: OpenAI's stream is to end with a usage report.
        sse: a stream is wanted as events, not as Gemini's array.
    """

    dialect: DialectName
    model: str
    directives: Directives
    seed: int
    input_tokens: int
    action: Literal["generate", "count"] = "generate"
    stream: bool = False
    marked_5m: int = 0
    marked_1h: int = 0
    output_max: int | None = None
    choices: int = 1
    stops: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    forced: tuple[str, ...] | None = None
    answered: bool = False
    reasoning: bool = False
    thoughts_shown: bool = True
    structured: bool = False
    schema: Any = None
    usage_wanted: bool = True
    sse: bool = True


@frozen
class Frame:
    """Bytes of a stream, and how far the model has come when they leave.

    Attributes:
        data: whole events, or nothing (reasoning that is not shown).
        tokens: generated since the frame before, over all choices.
        prelude: leaves at once, before any token is there.
    """

    data: bytes
    tokens: int = 0
    prelude: bool = False


@frozen
class Ids:
    """The ids of one call.

    Attributes:
        request: stands in the request-id header and in `/sandbox/calls`.
        unique: 32 hexadecimal digits from which the dialect makes the ids in the body.
        created: wall clock in seconds.
    """

    request: str
    unique: str
    created: int


class Voice(Protocol):
    """One dialect, as a vendor speaks it. Pure; every implementation is stateless."""

    name: DialectName

    def read(self, path: str, query: Mapping[str, str], body: bytes) -> Asked:
        """Read a request.

        Raises:
            Refused: what the vendor itself would refuse.
        """
        ...

    def credential(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """Find the caller's credential.

        Raises:
            Refused: missing, or of the kind that the sandbox calls invalid.
        """
        ...

    def headers(self, ids: Ids, *, stream: bool, array: bool = False) -> Headers:
        """The headers of a good answer: all that the vendor sends, what a gateway must strip included."""
        ...

    def whole(self, asked: Asked, said: Any, ids: Ids) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def frames(self, asked: Asked, said: Any, ids: Ids) -> Iterator[Frame]:
        """The stream; made as it is sent, for it may be endless."""
        ...

    def count(self, tokens: int) -> bytes:
        """The answer to token counting."""
        ...

    def error(self, refused: Refused, ids: Ids, *, array: bool = False) -> tuple[Headers, bytes]:
        """Word an error; its status is `refused.status`."""
        ...

    def error_frame(self, refused: Refused, asked: Asked, ids: Ids, *, first: bool) -> bytes:
        """Word an error in mid-stream; `first`: nothing else has been sent."""
        ...

    def ping(self, asked: Asked) -> bytes:
        """A sign of life, or nothing where the vendor sends none."""
        ...

    def overloaded(self) -> int:
        """The status with which this vendor says that it is overloaded."""
        ...


def read_object(body: bytes, complaint: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        body: as received.
        complaint: what the vendor says about a body that is none.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Refused(400, complaint) from None
    if not isinstance(value, dict):
        raise Refused(400, complaint)
    return value


def directives_of(model: Any, metadata: Any) -> tuple[str, Directives]:
    """Read the directives of a request; see `directives.parse`."""
    if not isinstance(model, str) or not model:
        raise Refused(400, "you must provide a model parameter", param="model")
    if metadata is not None and not isinstance(metadata, str):
        raise Refused(400, "metadata.sandbox: expected a string of directives", param="metadata")
    try:
        return parse(model, metadata)
    except BadDirectiveError as error:
        raise Refused(400, f"sandbox: {error}", param="model") from None


def objects(value: Any, param: str) -> list[dict[str, Any]]:
    """A list of objects, or a refusal that names the field; nothing is an empty list."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(400, f"{param}: expected an array of objects", param=param)
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    """An object, or a refusal that names the field; nothing is an empty object."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, f"{param}: expected an object", param=param)
    return value


def whole_number(value: Any, param: str, least: int, most: int | None = None) -> int | None:
    """A whole number within its bounds, or `None` where none was sent."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, f"{param}: expected an integer", param=param)
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise Refused(400, f"{param}: expected {limit}, got {value}", param=param)
    return value


def stop_list(value: Any, param: str) -> tuple[str, ...]:
    """Stop sequences: none, one, or a list of them."""
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(stop, str) and stop for stop in listed):
        raise Refused(400, f"{param}: expected a string or an array of strings", param=param)
    return tuple(listed)


def encode(value: Any) -> bytes:
    """Encode as compact JSON."""
    return msgspec.json.encode(value)


def account_headers(kind: str, ids: Ids) -> Headers:
    """What the vendors' front doors add to every answer, and a gateway must keep to itself."""
    cookie = f"__cf_bm={ids.unique}-{ids.created}-1.0.1.1-sandbox; path=/; HttpOnly; Secure; SameSite=None"
    return (
        ("set-cookie", cookie),
        ("cf-ray", f"{ids.unique[:16]}-SBX"),
        ("cf-cache-status", "DYNAMIC"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("alt-svc", 'h3=":443"; ma=86400'),
        ("via", f"1.1 {kind}"),
    )


def grouped(pieces: Iterable[str], size: int) -> Iterator[tuple[str, int]]:
    """Join pieces into frames of `size` tokens: their text and how many they are."""
    if size == 1:
        for piece in pieces:
            yield piece, 1
        return
    rest = iter(pieces)
    while group := tuple(itertools.islice(rest, size)):
        yield "".join(group), len(group)
