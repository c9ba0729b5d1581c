"""Watch Anthropic's streams and answers go by: usage, errors, where content begins and where the end does.

A stream is `message_start`, content blocks, `message_delta` (one or more; the one with a `stop_reason` states
the final usage) and `message_stop`; `ping` and `error` may come at any time. Nearly all frames are content
deltas and are never decoded: two searches over a block tell that it holds nothing else. What they find is a
hint only (a text may speak of a `"message_delta"`): what counts is the type of the event, once it is decoded.
"""

from typing import Any, Final

import msgspec
from attrs import define, field

from accounting.records import Receipt
from proxy.dialects.anthropic import errors
from proxy.dialects.anthropic.usage import RunningUsage
from proxy.dialects.passthrough import costed, truncated
from proxy.dialects.sse import Framer, data_of, frames
from proxy.errors import Kind, StreamBroken
from proxy.types import MeterLike

_MESSAGE: Final = b'"message_'
_ERROR: Final = b'"error"'
_DELTA: Final = b'"content_block_delta"'
_START: Final = b'"content_block_start"'

_ENVELOPE: Final = len(
    b"event:content_block_delta\n"
    b'data:{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}\n\n'
)
"""The least that surrounds the content of a delta; the rest of its bytes bound its tokens."""


class _Event(msgspec.Struct):
    """The part of an event (or of a whole answer) that decides anything; the rest is skipped over."""

    type: Any = None
    message: Any = None
    delta: Any = None
    usage: Any = None


_events: Final = msgspec.json.Decoder(_Event)


@define(eq=False)
class Tap:
    """What is known about a stream so far; a `passthrough.Tap`."""

    _meter: MeterLike
    ended: bool = field(default=False, init=False)
    _usage: RunningUsage = field(factory=RunningUsage, init=False)
    _final: bool = field(default=False, init=False)
    _broken: StreamBroken | None = field(default=None, init=False)

    def look(self, block: bytes) -> tuple[bytes, bytes]:
        """Look at whole frames: meter them, and say from where on they are the end.

        Raises:
            StreamBroken: the block begins with an error event.
        """
        if _MESSAGE not in block and _ERROR not in block:
            self._count(block, len(block))
            return block, b""
        position = other = 0
        end: int | None = None
        for frame in frames(block):
            if _MESSAGE in frame or _ERROR in frame:
                try:
                    is_content, is_end = self._event(data_of(frame))
                except StreamBroken as broken:
                    if position == 0:
                        raise
                    self._broken, self.ended = broken, True
                    block = block[:position]
                    break
                other += 0 if is_content else len(frame)
                if is_end and end is None:
                    end = position
            position += len(frame)
        self._count(block, len(block) - other)
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

    def _count(self, block: bytes, size: int) -> None:
        """Show the meter what content goes by. Pings and frames that only open and close are none."""
        deltas = block.count(_DELTA)
        content = deltas + block.count(_START)
        if content:
            self._meter.saw(content, max(size - deltas * _ENVELOPE, 0))

    def _event(self, data: bytes) -> tuple[bool, bool]:
        """Take in one event that may matter; say if it is content, and if the end begins with it."""
        try:
            event = _events.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _NotAnEvent from error
        match event.type:
            case "message_start":
                self._report(_part(event.message, "usage"))
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
        return False, False

    def _report(self, usage: Any) -> None:
        self._usage.take(usage)
        reported = self._usage.reported(final=self._final)
        if reported is not None:
            self._meter.report(reported)


def _part(value: Any, name: str) -> Any:
    """A field of an object; `None` where it is missing, null, or the value is no object."""
    return value.get(name) if isinstance(value, dict) else None


class _NotAnEvent(StreamBroken):
    """A frame that should matter cannot be read."""

    def __init__(self) -> None:
        super().__init__(Kind.UPSTREAM_ERROR, "The provider sent an event that is not JSON.")


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
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return True  # whatever it is, it is not a beginning that can be waited out
            if kind == "error":
                raise errors.failed(data)
            if kind not in ("message_start", "ping"):
                return True
        return False


def read_body(body: bytes, meter: MeterLike) -> None:
    """Look at an answer in one piece.

    Raises:
        StreamBroken: it is cut off, or an error in spite of its status.
    """
    try:
        event = _events.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise truncated() from None
    if event.type == "error":
        raise errors.broken(body)
    usage = RunningUsage()
    usage.take(event.usage)
    reported = usage.reported(final=True)
    if reported is not None:
        meter.report(reported)
