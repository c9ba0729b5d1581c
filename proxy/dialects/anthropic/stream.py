"""Watch Anthropic's streams and answers go by: usage, errors, where content begins and where the end does.

A stream is `message_start`, content blocks, `message_delta` (one or more; the one with a `stop_reason` states
the final usage) and `message_stop`; `ping` and `error` may come at any time. Nearly all frames are content
deltas and are never decoded: two searches over a block tell that it holds nothing else. What they find is a
hint only (a text may speak of a `"message_delta"`): what counts is the type of the event, once it is decoded.

Content is counted so that no token can go by uncounted: the data of whole frames, less the opening of a delta up
to its text, and the brackets that must close it. Comments and pings count for nothing, wherever they stand. Where
a block holds nothing but deltas that open alike, a few searches tell that, and its size is worked out at once.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec
from attrs import define, field

from accounting.records import Receipt
from proxy.dialects.anthropic import errors
from proxy.dialects.anthropic.length import NO_BLOCK, length
from proxy.dialects.anthropic.usage import RunningUsage
from proxy.dialects.passthrough import Cut, costed, truncated
from proxy.dialects.sse import Framer, data_of, frames, only_data
from proxy.errors import Kind, StreamBroken
from proxy.types import MeterLike

_MESSAGE: Final = b'"message_'
_ERROR: Final = b'"error"'
_DELTA: Final = b'"content_block_delta"'
_START: Final = b'"content_block_start"'
_STOP: Final = b'"content_block_stop"'

_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_EVENT: Final = re.compile(rb"event: ?content_block_delta\r?\n")
_HEAD: Final = re.compile(
    rb'data: ?\{(?:"type": ?"content_block_delta", ?|"index": ?\d+, ?){0,2}'
    rb'"delta": ?\{(?:"type": ?"\w+", ?)?"\w+": ?"'
)
"""A delta up to its text: nothing of it can be content, whose quotes are all escaped."""

_CLOSING: Final = len(b'"}}\n\n')
"""The least that follows the text of a delta."""

_SILENT: Final = frozenset({"ping", "content_block_stop", "message_delta", "message_stop"})
"""Events that carry nothing. (Those that end a message are withheld, and never come to be weighed.)"""


class _Event(msgspec.Struct):
    """The part of an event (or of a whole answer) that decides anything; the rest is skipped over."""

    type: Any = None
    index: Any = None
    message: Any = None
    delta: Any = None
    usage: Any = None
    content: msgspec.Raw = msgspec.Raw(b"")


_events: Final = msgspec.json.Decoder(_Event)


@define(eq=False)
class Tap:
    """What is known about a stream so far; a `passthrough.Tap`.

    Attributes:
        standing: `None` before `message_start`; then the last block of frames with any content block in it, from
            which can be told whether one is open.
    """

    may_go_on: ClassVar[bool] = False
    went_on: ClassVar[bool] = False
    _meter: MeterLike
    _model: str
    ended: bool = field(default=False, init=False)
    standing: bytes | None = field(default=None, init=False)
    _usage: RunningUsage = field(factory=RunningUsage, init=False)
    _final: bool = field(default=False, init=False)
    _broken: StreamBroken | None = field(default=None, init=False)
    _head: bytes = field(default=b"", init=False)
    """How the last delta began, up to its text, with the name of the event."""
    _lines: int = field(default=0, init=False)
    """How many lines such a frame has."""

    def look(self, block: bytes) -> tuple[bytes, bytes]:
        """Look at whole frames: meter them, and say from where on they are the end.

        Raises:
            StreamBroken: the block begins with an error event.
        """
        if _MESSAGE not in block and _ERROR not in block:
            self._count(block)
            return block, b""
        position = 0
        end: int | None = None
        content: list[bytes] = []
        for frame in frames(block):
            is_content, is_end = True, False
            if (_MESSAGE in frame or _ERROR in frame) and (data := data_of(frame)):
                try:
                    is_content, is_end = self._event(data)
                except StreamBroken as broken:
                    if position == 0:
                        raise
                    self._broken, self.ended = broken, True
                    block = block[:position]
                    break
            if is_content:
                content.append(frame)
            if is_end and end is None:
                end = position
            position += len(frame)
        self._count(b"".join(content))
        return (block, b"") if end is None else (block[:end], block[end:])

    def finish(self, rest: bytes) -> bytes:
        """The provider's bytes are over: see that they came to their end.

        Raises:
            StreamBroken: they broke off, or ended with an error.
        """
        last = b""
        if not self.ended and rest.strip():  # a provider that closes may save itself the last blank line
            try:
                last = b"".join(self.look(rest.rstrip(b"\r\n") + b"\n\n"))
            except _NotAnEvent:
                raise truncated() from None
        if self._broken is not None:
            raise self._broken
        if not self.ended:
            raise truncated()
        return last

    def end(self, withheld: bytes, receipt: Receipt | None) -> bytes:
        """The withheld end, with the cost in its last report of usage."""
        return costed(withheld, "usage", receipt)

    def weigh(self, frame: bytes) -> int:
        """Say how much content a frame carries: as `_count` counts it."""
        data = data_of(frame)
        if not data:
            return 0
        try:
            event = _events.decode(data)
        except _UNDECODABLE:
            return 1 + len(only_data(frame))
        if event.type == "message_start":
            return 1 + len(only_data(frame)) if _part(event.message, "content") else 0
        return 0 if event.type in _SILENT else 1 + _size(only_data(frame))

    def length(self, cut: Cut, receipt: Receipt | None) -> bytes:
        """The end of an answer that was cut: its open block closed, and `max_tokens`."""
        begun = cut.standing is not None or any(
            event.type == "message_start" for event in _known_events(cut.shown)
        )
        block = _open_block(cut.shown, cut.standing or b"")
        return length(begun=begun, block=block, model=self._model, limit=cut.limit, receipt=receipt)

    def _count(self, block: bytes) -> None:
        """Show the meter what content goes by. Pings, comments and frames that only open and close are none."""
        deltas = block.count(_DELTA)
        if (
            deltas
            and self._head
            and block.count(self._head) == deltas
            and block.count(b"\n") == deltas * self._lines
        ):
            # so there are no other frames, and no other lines
            self.standing = block
            self._meter.saw(deltas, len(block) - deltas * (len(self._head) + _CLOSING))
            return
        for frame in frames(block):
            self._count_one(frame, block)

    def _count_one(self, frame: bytes, block: bytes) -> None:
        """Count one frame of a block. One that may hold content is not decoded."""
        data = only_data(frame)
        delta = _DELTA in data
        if delta:
            self._learn(frame)
        known = delta or _START in data
        weight = 1 + _size(data) if known else self.weigh(frame)
        if known or _STOP in data:
            self.standing = block
        if weight:
            self._meter.saw(1, weight - 1)

    def _learn(self, frame: bytes) -> None:
        """Learn how deltas open from one that has no line but its event's name and its data."""
        event = _EVENT.match(frame)
        head = _HEAD.match(frame, event.end() if event is not None else 0)
        lines = 2 + (event is not None)
        if head is not None and frame.count(b"\n") == lines:
            self._head, self._lines = frame[: head.end()], lines

    def _event(self, data: bytes) -> tuple[bool, bool]:
        """Take in one event that may matter; say if it is content, and if the end begins with it."""
        try:
            event = _events.decode(data)
        except _UNDECODABLE as error:
            raise _NotAnEvent from error
        match event.type:
            case "message_start":
                self.standing = b"" if self.standing is None else self.standing
                self._report(_part(event.message, "usage"))
                return bool(_part(event.message, "content")), False
            case "message_delta":
                stops = _part(event.delta, "stop_reason") is not None
                # Without a count of what was written since the start it is no last word on the bill.
                told = _part(event.usage, "output_tokens") is not None or bool(
                    _part(event.usage, "iterations")
                )
                self._final |= stops and told
                self._report(event.usage)
                return False, stops
            case "message_stop":
                self.ended = True
                return False, True
            case "error":
                raise errors.broken(data)
            case _:
                return True, False

    def _report(self, usage: Any) -> None:
        self._usage.take(usage)
        reported = self._usage.reported(final=self._final)
        if reported is not None:
            self._meter.report(reported)


def _size(data: bytes) -> int:
    """An upper bound of the bytes of content in the data of a frame."""
    head = _HEAD.match(data)
    return len(data) if head is None else max(len(data) - head.end() - _CLOSING, 0)


def _part(value: Any, name: str) -> Any:
    """A field of an object; `None` where it is missing, null, or the value is no object."""
    return value.get(name) if isinstance(value, dict) else None


class _NotAnEvent(StreamBroken):
    """A frame that should matter cannot be read."""

    def __init__(self) -> None:
        super().__init__(Kind.UPSTREAM_ERROR, "The provider sent an event that is not JSON.")


def _known_events(block: bytes) -> Iterator[_Event]:
    """The events of whole frames, the last one first; what is none is left out."""
    for frame in reversed(frames(block)):
        try:
            yield _events.decode(data_of(frame))
        except _UNDECODABLE:
            continue


def _open_block(*blocks: bytes) -> int:
    """Index of the content block that is open behind these frames, the newest first, or `NO_BLOCK`."""
    for event in (event for block in blocks for event in _known_events(block)):
        if event.type in ("content_block_start", "content_block_delta"):
            return event.index if isinstance(event.index, int) else 0
        if event.type == "content_block_stop":
            break
    return NO_BLOCK


@define(eq=False)
class Prelude:
    """Waits for the first content: until then another account could still answer."""

    _framer: Framer

    def feed(self, chunk: bytes) -> bool:
        """True once content has begun.

        Raises:
            UpstreamFailed: the stream began with an error.
        """
        for frame in frames(self._framer.feed(chunk)):
            data = data_of(frame)
            if not data:
                continue
            try:
                kind = _events.decode(data).type
            except _UNDECODABLE:
                return True  # whatever it is, it is not a beginning that can be waited out
            if kind == "error":
                raise errors.failed(data)
            if kind not in ("message_start", "ping"):
                return True
        return False


def read_body(body: bytes, meter: MeterLike) -> bool:
    """Look at an answer in one piece; says whether there is any content in it.

    Raises:
        StreamBroken: it is cut off, or an error in spite of its status.
    """
    try:
        event = _events.decode(body)
    except _UNDECODABLE:
        raise truncated() from None
    if event.type == "error":
        raise errors.broken(body)
    usage = RunningUsage()
    usage.take(event.usage)
    reported = usage.reported(final=True)
    if reported is not None:
        meter.report(reported)
    return bytes(memoryview(event.content)[:8]).translate(None, b" \t\r\n") != b"[]"
