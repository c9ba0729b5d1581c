"""Watch Gemini's streams and answers go by: usage, errors, where content begins and where the end does.

A stream is a row of responses, each with a piece of content and a running total of usage. Nothing says that
it is over but the close of the connection, or a silence where it should come. A `finishReason` on every candidate
(or a `blockReason` on the prompt) only says that it may be: some servers have one in every response, some where
a tool of theirs begins. So what stands behind the last piece of content, that piece included, is withheld while
all are finished, and goes on where more content follows. Of a stream that went on so, no report is taken for the
last word before its close. Every response is looked at: the usage is in all of them, they are few and large, and
all but a handful of fields are skipped over without being built.

An error may come as an event, or as bare JSON behind the last event.
"""

from typing import Any, Final

import msgspec
from attrs import define, field

from accounting.records import Receipt
from proxy.dialects.gemini import errors
from proxy.dialects.gemini.length import length
from proxy.dialects.gemini.usage import RunningUsage
from proxy.dialects.passthrough import Cut, Passthrough, costed, is_nothing, take_apart, truncated
from proxy.dialects.sse import Bare, Framer, data_of, frames
from proxy.errors import Kind, StreamBroken
from proxy.types import MeterLike

_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_CANDIDATES: Final = b'"candidates"'

_EMPTY_MAX: Final = 128
"""No content without anything in it is longer, however it is spaced out."""


class _Candidate(msgspec.Struct):
    index: Any = 0
    content: msgspec.Raw = msgspec.Raw(b"")
    finishReason: Any = None  # noqa: N815 - its name on the wire


class _Response(msgspec.Struct):
    """The part of a response that decides anything; the rest is skipped over."""

    candidates: list[_Candidate] | None = None
    usageMetadata: Any = None  # noqa: N815
    promptFeedback: Any = None  # noqa: N815
    error: Any = None


_responses: Final = msgspec.json.Decoder(_Response)


@define(eq=False)
class Tap:
    """What is known about a stream so far; a `passthrough.Tap`.

    Attributes:
        choices: how many candidates were asked for. Only that many make an end at once; where the provider
            sends fewer, the close of its connection does.
        ended: every candidate is finished, and what was used is told; or there was an error.
        standing: how many responses were given to be relayed.
        went_on: in the block that was looked at last there was content behind what seemed to be the end.
    """

    _meter: MeterLike
    _choices: int = 1
    ended: bool = field(default=False, init=False)
    standing: int = field(default=0, init=False)
    went_on: bool = field(default=False, init=False)
    _usage: RunningUsage = field(factory=RunningUsage, init=False)
    _looked: int = field(default=0, init=False)
    """How many responses were looked at."""
    _begun: set[int] = field(factory=set, init=False)
    _finished: dict[int, int] = field(factory=dict, init=False)
    """The candidates that are finished, each with the number of the first response behind its content that said so."""
    _told: bool = field(default=False, init=False)
    """What was used is told, as no part of the answer has come since, and all seems to be over."""
    _sample: bytes = field(default=b"", init=False)
    _spoken: bool = field(default=False, init=False)
    _blocked: bool = field(default=False, init=False)
    _wavers: bool = field(default=False, init=False)
    """It went on before: nothing but the close is its end."""
    _broken: StreamBroken | None = field(default=None, init=False)

    @property
    def may_go_on(self) -> bool:
        """A finished answer may go on; one that ended with an error does not."""
        return self._broken is None

    def look(self, block: bytes) -> tuple[bytes, bytes]:
        """Look at whole frames: meter them, and say from where on they are the end.

        Raises:
            StreamBroken: the block begins with an error.
        """
        position = 0
        end: int | None = 0 if self._is_over else None
        given, was_told, reported = self.standing, self._told, False
        self.went_on = False
        for frame in frames(block):
            try:
                goes_on, reports = self._frame(frame)
            except StreamBroken as broken:
                if position == 0:
                    raise
                self._broken, self.ended = broken, True
                block = block[:position]
                break
            reported |= reports
            self.went_on |= goes_on
            if not self._is_over:
                end = None
            elif end is None or goes_on:
                end, given = position, self._looked - 1
            position += len(frame)
        self._wavers |= self.went_on
        if reported or was_told != self._told:
            self._report(final=self._told and not self._wavers)
        self.standing = self._looked if end is None else given
        return (block, b"") if end is None else (block[:end], block[end:])

    def finish(self, rest: bytes) -> bytes:
        """The provider's bytes are over: see that they came to their end.

        Raises:
            StreamBroken: they broke off, or ended with an error.
        """
        last = b""
        if self._broken is None and rest.strip():
            last = self._last_frame(rest)
        if self._broken is not None:
            raise self._broken
        if not self._is_over:
            raise truncated()
        if self._wavers:
            self._report(final=self._told)
        return last

    def end(self, withheld: bytes, receipt: Receipt | None) -> bytes:
        """The withheld end, with the cost in its last report of usage."""
        return costed(withheld, "usageMetadata", receipt)

    def weigh(self, frame: bytes) -> int | None:
        """Say how much content a frame carries: as `_frame` counts it."""
        response = _read(data_of(frame))
        if response is None:  # a comment; all else was refused
            return 0
        if _finished_in(response) or _is_blocked(response):
            return None
        return 0 if _is_silent(response) else 1 + _size(response)

    def length(self, cut: Cut, receipt: Receipt | None) -> bytes:
        """The end of an answer that was cut: a last response for every candidate that is not finished.

        One is, if the client was told so, and nothing of it has come since, shown or not.
        """
        shown = cut.standing + sum(bool(data_of(frame)) for frame in frames(cut.shown))
        finished = {index for index, number in self._finished.items() if number <= shown}
        return length(self._choices, take_apart(self._sample) or {}, finished, cut.limit, receipt)

    def _last_frame(self, rest: bytes) -> bytes:
        """A frame that lacks its blank line: whole, torn, or an error, which never has one."""
        try:
            return b"".join(self.look(rest.rstrip(b"\r\n") + b"\r\n\r\n"))
        except _NotAResponse:
            # a torn frame behind the end takes nothing from the answer, unless there is a piece of it in there
            if self._is_over and not self._wavers and _CANDIDATES not in rest:
                return b""
            raise truncated() from None

    @property
    def _is_over(self) -> bool:
        """All that has begun is finished: for all that is known, nothing follows."""
        return self._blocked or (bool(self._begun) and self._begun <= self._finished.keys())

    def _frame(self, frame: bytes) -> tuple[bool, bool]:
        """Take in one frame; say whether the answer goes on with it that seemed to be over, and if it reports usage."""
        data = data_of(frame)
        if not data:
            if frame.strip() and frame.lstrip()[:1] in (b"{", b"["):  # bare JSON: only errors come so
                raise errors.broken(frame)
            return False, False
        response = _read(data)
        if response is None:
            raise _NotAResponse
        if response.error is not None:
            raise errors.broken(data)
        self._sample = self._sample or frame
        self._looked += 1
        was_over = self._is_over
        content = _size(response) if self._spoken or not _is_silent(response) else 0
        if content:
            self._spoken = True
            self._meter.saw(1, content)
        # an end without words belongs to the one before
        goes_on = was_over and not _is_silent(response)
        self._take_finishes(response)
        self._blocked = _is_blocked(response) or (self._blocked and not goes_on)
        over = self._is_over
        self._usage.take(response.usageMetadata)
        reports = isinstance(response.usageMetadata, dict)
        # A report that follows the last piece of content is worth waiting for; the close would end that, too.
        self._told = over and (reports or (self._told and not goes_on))
        self.ended = self._told and (self._blocked or len(self._begun) >= self._choices)
        return goes_on or (was_over and not over), reports

    def _take_finishes(self, response: _Response) -> None:
        """Note which candidates have begun, and are finished; one with more content is so no longer."""
        for candidate in response.candidates or ():
            index = _index(candidate)
            self._begun.add(index)
            if index in self._finished and not _is_wordless(candidate):
                del self._finished[index]
            if candidate.finishReason is not None:
                self._finished.setdefault(index, self._looked)

    def _report(self, *, final: bool) -> None:
        reported = self._usage.reported(final=final)
        if reported is not None:
            self._meter.report(reported)


class _NotAResponse(StreamBroken):
    """A frame cannot be read."""

    def __init__(self) -> None:
        super().__init__(Kind.UPSTREAM_ERROR, "The provider sent an event that is not a response.")


@define(eq=False)
class Elements:
    """A `types.Translator` that gives a stream as one JSON array, an element per response.

    Every element but the last is followed by its comma at once. The last is always withheld, so whatever ends
    the array (it, or an error) needs no comma before it.
    """

    _stream: Passthrough
    _begun: bool = field(default=False, init=False)
    _block: bytes = field(default=b"", init=False)
    """What became the elements that were given last."""

    @property
    def ended(self) -> bool:
        """What seems to be the provider's last word was seen; see `Passthrough.ended`."""
        return self._stream.ended

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they were read; give whole elements.

        Raises:
            StreamBroken: the provider reported an error, or broke the framing.
        """
        opening = b"" if self._begun else b"["
        self._begun = True
        self._block = self._stream.feed(chunk)
        return opening + _array(self._block)

    def cut(self, relay: bytes, content_bytes: int, limit: str) -> bytes:
        """End the answer here; see `Passthrough.cut`.

        Raises:
            RuntimeError: it was cut before, or `relay` is not what was fed last.
        """
        opening = b"[" if relay.startswith(b"[") else b""
        if relay != opening + _array(self._block):
            raise RuntimeError("what is to be cut is not what was fed last")
        return opening + _array(self._stream.cut(self._block, content_bytes, limit))

    def finish(self) -> None:
        """The provider's bytes are over.

        Raises:
            StreamBroken: they ended too early.
        """
        self._stream.finish()

    def end(self, receipt: Receipt | None) -> bytes:
        """The withheld elements, with the cost in the last, and the end of the array."""
        opening = b"" if self._begun else b"["
        return opening + b"\n,\n".join(_elements(self._stream.end(receipt))) + b"\n]\n"


def _array(block: bytes) -> bytes:
    """Events as elements of an array, each with its comma."""
    return b"".join(element + b"\n,\n" for element in _elements(block))


def _elements(block: bytes) -> list[bytes]:
    return [data for frame in frames(block) if (data := data_of(frame))]


@define(eq=False)
class Prelude:
    """Waits for the first content: until then another account could still answer."""

    _framer: Framer
    _bare: Bare = field(factory=Bare, init=False)

    def feed(self, chunk: bytes) -> bool:
        """True once content has begun.

        Raises:
            UpstreamFailed: the stream began with an error.
        """
        block = self._framer.feed(chunk)
        for frame in frames(block):
            data = data_of(frame) or frame.strip()
            if errors.is_error(data):
                raise errors.failed(data)
            response = _read(data) if data.startswith(b"{") else None
            if response is not None and (response.candidates or response.promptFeedback is not None):
                return True
        if block:
            self._bare, chunk = Bare(), self._framer.rest
        if (
            chunk and self._bare.feed(chunk) and errors.is_error(self._framer.rest)
        ):  # bare JSON, which no blank line ends
            raise errors.failed(self._framer.rest)
        return False


def read_body(body: bytes, meter: MeterLike) -> bool:
    """Look at an answer in one piece; says whether there is any content in it.

    Raises:
        StreamBroken: it is cut off, or an error in spite of its status.
    """
    response = _read(body)
    if response is None:
        raise truncated()
    if response.error is not None:
        raise errors.broken(body)
    usage = RunningUsage()
    usage.take(response.usageMetadata)
    reported = usage.reported(final=True)
    if reported is not None:
        meter.report(reported)
    return not _is_silent(response) or not (response.candidates or _is_blocked(response))


def _read(data: bytes) -> _Response | None:
    try:
        return _responses.decode(data)
    except _UNDECODABLE:
        return None


def _is_blocked(response: _Response) -> bool:
    feedback = response.promptFeedback
    return isinstance(feedback, dict) and feedback.get("blockReason") is not None


def _index(candidate: _Candidate) -> int:
    return candidate.index if isinstance(candidate.index, int) else 0


def _finished_in(response: _Response) -> frozenset[int]:
    """The candidates that a response says to be finished."""
    return frozenset(
        _index(candidate) for candidate in response.candidates or () if candidate.finishReason is not None
    )


def _size(response: _Response) -> int:
    """Bytes of content in a response, the JSON around it included."""
    return sum(len(memoryview(candidate.content)) for candidate in response.candidates or ())


def _is_silent(response: _Response) -> bool:
    """Whether a response surely holds no part of an answer."""
    return all(map(_is_wordless, response.candidates or ()))


def _is_wordless(candidate: _Candidate) -> bool:
    """Whether a candidate surely brings no part of an answer."""
    return len(memoryview(candidate.content)) <= _EMPTY_MAX and _is_empty(candidate.content)


def _is_empty(raw: msgspec.Raw) -> bool:
    """Whether a content surely has nothing in it."""
    try:
        content = msgspec.json.decode(raw) if memoryview(raw) else None
    except _UNDECODABLE:  # bytes that are no UTF-8 are not seen before
        return False
    if not isinstance(content, dict):
        return content is None
    parts = content.get("parts") or ()
    return (
        content.keys() <= {"parts", "role"}
        and isinstance(parts, list | tuple)
        and all(isinstance(part, dict) and all(map(is_nothing, part.values())) for part in parts)
    )
