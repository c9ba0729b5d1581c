"""Look at OpenAI's answers going by: where the usage stands, where the end begins, what is an error.

A relayed block costs a few searches at the speed of C; only frames with usage or an error are decoded. That
is safe because inside a JSON string every quote is escaped: `"usage":{` or `"error"` can only be structure,
and `data: [DONE]` at the start of a line only framing, whatever the model writes.

Servers that call themselves compatible differ in where they put the usage: in a last frame without choices
(OpenAI), in the frame with the finish reason, or as a running total in every frame. What is withheld begins
with the first frame after which no content can come: usage once every choice has finished, or `[DONE]`.

Some of them also leave out `[DONE]`. A stream that stops after such a last report of usage is complete, and
gets its `[DONE]` here; every other one is truncated.

Content is counted so that no token can go by uncounted: the data of whole frames, less what literally is the same
frame after frame around the text. Comments count for nothing, wherever they stand. What comes before the first
frame that says anything is no content; an answer of which none was counted is empty.
"""

import re
from typing import Any, ClassVar, Final, Literal, Self

import msgspec
from attrs import define, field, frozen
from msgspec.structs import replace

from accounting.records import Ending, Receipt
from pricing.usage import Reported
from proxy.dialects.body import Object, encode
from proxy.dialects.openai_chat.errors import Said, said, said_by
from proxy.dialects.openai_chat.length import DONE, length
from proxy.dialects.openai_chat.usage import UsualUsage, read_usage, usual
from proxy.dialects.passthrough import Cut, is_nothing, reported, rewritten, take_apart, truncated, with_cost
from proxy.dialects.sse import (
    Bare,
    Framer,
    count_data_lines,
    data_of,
    frame_at,
    frames,
    last_border,
    only_data,
)
from proxy.errors import Kind, StreamBroken, UpstreamFailed
from proxy.types import Ask, MeterLike

PRELUDE_BYTES_MAX: Final = 2**16
"""So much may come before the first content; no provider is known to send more than a few hundred bytes."""

FEW_BYTES: Final = 2**12
"""Blocks up to that size are looked at frame by frame; to search through all of a larger one costs less."""

EMPTY_BODY_MAX: Final = 2**14
"""No answer without any content in it is longer; of longer ones the choices are never decoded."""

NO_EVENT: Final = (b"{", b"[", b"<")
"""What begins so, in place of a stream, is JSON or a page of HTML."""

QUOTE: Final = ord('"')
EMPTY_STRING: Final = len('""')

_SPECIAL: Final = (b'"usage":{', b'"usage": {', b'"error"', b"[DONE]")
_CHOICES: Final = (b'"choices":[', b'"choices": [')
_FINISHED: Final = (b'"finish_reason":"', b'"finish_reason": "')

# What stands around the content of an ordinary frame: all up to the text, and all nulls behind it.
_HEAD: Final = re.compile(
    rb'\A(.*?"delta": ?)'
    rb'(\{(?:"role": ?"assistant", ?|"\w+": ?null, ?)*'
    rb'(?:"tool_calls": ?\[\{"index": ?\d+, ?(?:"type": ?"function", ?)?"function": ?\{"arguments"|"\w+"): ?")?',
    re.DOTALL,
)
_TAIL: Final = re.compile(
    rb'(?:\}\}\]|(?:, ?"\w+": ?null)+)?\}, ?"(?:logprobs|finish_reason)": ?null'
    rb'(?:[,\]} ]+"(?:finish_reason|logprobs|native_finish_reason|stop_reason|index|usage)": ?(?:null|\d))*'
    rb'(?:[,\]} ]+"obfuscation": ?")?'
)
_TEXT_BEFORE: Final = re.compile(
    rb'"(?:text|content|message|reasoning\w*|refusal|tool_calls|function_call|arguments|audio|data)": ?["{\[]'
)
"""What may be content stands before the delta: such a head is not the same for all, even if it comes again."""

_NOTHING_SAID: Final = frozenset(
    {
        "delta", "message", "index", "finish_reason", "native_finish_reason", "stop_reason", "matched_stop", "logprobs",
        "content_filter_results", "content_filter_offsets",
    }
)  # fmt: skip
"""Fields of a choice beside its delta (or message) in which no part of the answer stands."""

ABOUT_THE_ACCOUNT: Final = frozenset(
    {
        "401", "402", "403", "429", "503", "529", "access_terminated", "account_deactivated",
        "authentication_error", "billing_hard_limit_reached", "billing_not_active", "insufficient_quota",
        "invalid_api_key", "overloaded", "overloaded_error", "permission_denied", "rate_limit_error",
        "rate_limit_exceeded", "requests", "server_overloaded", "slow_down", "tokens", "unavailable",
    }
)  # fmt: skip
"""Codes and types that say that this account, or the whole provider, takes no requests now."""

ABOUT_THE_REQUEST: Final = frozenset(
    {
        "400", "413", "422", "bad_request", "content_filter", "content_policy_violation",
        "context_length_exceeded", "invalid_argument", "invalid_prompt", "invalid_request_error",
    }
)  # fmt: skip
"""Those that another account would say, too."""


@frozen
class Pattern:
    """One ordinary frame of an answer; nearly all that follow differ from it in their text alone.

    That is told by comparing what stands before the text and behind it, which is cheaper than to search for all
    that could make a frame special: without a quote and a line break in what differs, nothing of that is there.

    Attributes:
        opening: all up to the text, its quote included.
        behind: from the text's other quote to where padding may stand (OpenAI obfuscates the length of frames).
        closing: all behind that.
        around_bytes: how much of a frame is no content, as `StreamTap` counts it.
    """

    opening: bytes
    behind: bytes
    closing: bytes
    around_bytes: int

    @classmethod
    def of(cls, frame: bytes, text: int, tail: int, padding: int) -> Self | None:
        """Make one of a frame, given where its text, its tail and its padding begin; `None`: it is not so simple."""
        stop, quoted = frame.find(b'"', text), frame[padding - 1 : padding] == b'"'
        closing = frame.find(b'"', padding) if quoted else padding
        if stop + 1 != tail or frame[text - 1 : text] != b'"' or closing < 0 or count_data_lines(frame) != 1:
            return None
        if any(needle in frame for needle in (*_SPECIAL, *_FINISHED)):
            return None
        pattern = cls(frame[:text], frame[stop:padding], frame[closing:], text + padding - tail)
        return pattern if pattern.count(frame) == 1 else None

    def count(self, block: bytes) -> int:
        """How many frames a block has, if all of them are so; else 0."""
        opening, behind, closing = self.opening, self.behind, self.closing
        starts, find = block.startswith, block.find
        count = start = 0
        while start < len(block):
            text = start + len(opening)
            stop, after = find(b'"', text), find(b"\n", text) + len(b"\n\n")
            padding, end = stop + len(behind), after - len(closing)
            if not (
                starts(opening, start) and starts(behind, stop) and padding <= end and starts(closing, end)
            ):
                return 0
            if padding < end and find(b'"', padding, end) >= 0:
                return 0
            count, start = count + 1, after
        return count


@define(eq=False)
class StreamTap:
    """The tap of a chat completion stream (`passthrough.Tap`).

    Attributes:
        ended: `[DONE]` was seen, or an error that is raised by `finish`.
        standing: the choices that are finished.
    """

    may_go_on: ClassVar[bool] = False
    went_on: ClassVar[bool] = False
    _ask: Ask
    _meter: MeterLike
    ended: bool = field(default=False, init=False)
    standing: frozenset[int] = field(default=frozenset(), init=False)
    _reported: Reported | None = field(default=None, init=False)
    _failure: StreamBroken | None = field(default=None, init=False)
    _spoken: bool = field(default=False, init=False)
    _last_word: bool = field(default=False, init=False)
    _usual: bool | None = field(default=None, init=False)
    _head: bytes = field(default=b"", init=False)
    _key: bytes = field(default=b"", init=False)
    _tail: bytes = field(default=b"", init=False)
    _sample: bytes = field(default=b"", init=False)
    _pattern: Pattern | None = field(default=None, init=False)

    def look(self, block: bytes) -> tuple[bytes, bytes]:
        """Relay a block of whole frames, but for the end."""
        pattern, size = self._pattern, len(block)
        if pattern is not None and size <= FEW_BYTES and (count := pattern.count(block)):
            self._meter.saw(count, size - count * pattern.around_bytes)
            return block, b""
        start = self._first_special(block)
        if start < 0:
            self._saw(block)
            return block, b""
        self._saw(block[:start])
        relay, end = [block[:start]], list[bytes]()
        for frame in frames(block[start:]):
            shown = self._take_in(frame)
            if self._failure is not None:
                return self._break_off(b"".join(relay)), b""
            (end if self._last_word or self.ended else relay).append(shown)
            if self.ended:
                break
        return b"".join(relay), b"".join(end)

    def finish(self, rest: bytes) -> bytes:
        """Raise what was reported, or say whether the stream was whole."""
        if self._failure is not None:
            raise self._failure
        if self.ended:
            return b""
        rest = b"\n".join(line for line in rest.splitlines() if not line.startswith(b":")).strip()
        last = b""
        if take_apart(rest) is not None:  # only its blank line is missing
            last = b"".join(self.look(rest + b"\n\n"))
            rest = b""
            if self._failure is not None:
                raise self._failure
        if (not rest and self._last_word) or data_of(rest) == b"[DONE]":
            self._conclude()
            return last + DONE
        raise _broken_by(rest)

    def end(self, withheld: bytes, receipt: Receipt | None) -> bytes:
        """The end: usage without choices only for those who asked for it, the cost in the last report."""
        end: list[bytes] = []
        costed = False
        for frame in reversed(frames(withheld)):
            fields = take_apart(frame) if b'"usage"' in frame else None
            usage = None if fields is None else _object(fields.get("usage"))
            if fields is None or usage is None:
                end.append(frame)
            elif _choices(fields) or self._ask.usage_wanted:
                report = usage if costed else with_cost(usage, receipt)
                end.append(rewritten(frame, {**fields, "usage": encode(report)}))
                costed = True
        return b"".join(reversed(end))

    def weigh(self, frame: bytes) -> int | None:
        """Say how much content a frame carries: as `_saw` counts it."""
        fields = take_apart(frame)
        choices = [] if fields is None else _choices(fields)
        if any(choice.get("finish_reason") for choice in choices):
            return None
        if not data_of(frame) or (fields is not None and _is_silent(fields)):
            return 0
        return 1 + self._size(only_data(frame))

    def length(self, cut: Cut, receipt: Receipt | None) -> bytes:
        """The end of an answer that was cut: a length for every choice that is not finished."""
        finished = cut.standing | _finished_in(cut.shown)
        return length(self._ask, self._sample, finished, cut.limit, receipt)

    def _first_special(self, block: bytes) -> int:
        """Where the first frame begins that has to be looked at; -1 where all is plain content."""
        if self._usual is None and count_data_lines(block):
            # A server that writes its JSON with other spaces than all others do gets every frame looked at.
            self._usual = any(choices in block for choices in _CHOICES)
        if self._usual is False or (self.standing and self._is_finished):
            return 0  # behind the finish there are few frames, and the usage is in one of them, however it is spaced
        # From the end, because the search from the left is four times slower in text that is full of quotes.
        found = [needle for needle in _SPECIAL if block.rfind(needle) >= 0]
        if found == [b"[DONE]"]:  # the usage may be spaced like no other, behind the finish
            found += [needle for needle in _FINISHED if needle in block]
        return last_border(block, 0, min(block.find(needle) for needle in found)) if found else -1

    def _take_in(self, frame: bytes) -> bytes:
        """Take in one frame; give it back, or nothing where it is not for this caller."""
        data = data_of(frame)
        if data == b"[DONE]":
            self._conclude()
            return frame
        fields = take_apart(frame) if b'"usage"' in frame or b'"error"' in frame else None
        if fields is None:
            self._saw(frame)
            return frame
        usage = _usage_of(fields)
        if error := _decoded(fields.get("error")):
            words = said(error) if isinstance(error, dict) else Said(str(error))
            self._failure = reported(words.message, words.code or words.type)
            # nothing follows an error; but no provider reads nothing, so such a report has not come to the input yet
            self._report(fields, usage, final=usage is not None and bool(usage.get("prompt_tokens")))
            return b""
        choices = _choices(fields)
        if choices or usage is None:
            self._saw(frame)
        if usage is None:
            return frame
        over = self._is_finished
        if self._report(fields, usage, final=over):
            self._last_word = self._last_word or over
        return frame if choices or over or self._ask.usage_wanted else b""

    @property
    def _is_finished(self) -> bool:
        return len(self.standing) >= self._ask.measures.choices

    def _report(self, fields: Object, usage: dict[str, Any] | None, *, final: bool) -> bool:
        """Show the meter a frame's usage; says whether it is a report."""
        tier = _decoded(fields.get("service_tier"))
        report = None if usage is None else read_usage(usage, tier=tier, final=final)
        if report is not None:
            self._reported = report
            self._meter.report(report)
        return report is not None

    def _conclude(self) -> None:
        """The stream is whole: the newest report is the provider's last word."""
        self.ended = True
        if self._reported is not None and not self._reported.final:
            self._reported = replace(self._reported, final=True)
            self._meter.report(self._reported)

    def _break_off(self, relay: bytes) -> bytes:
        """Give what came before an error; the error is raised now, or by `finish` if there is anything."""
        if not relay and self._failure is not None:
            raise self._failure
        self.ended = True
        return relay

    def _saw(self, part: bytes) -> None:
        """Count content: its frames, and an upper bound of its bytes."""
        count, whole = count_data_lines(part), part
        if not count:
            return
        if part.count(b"\n") != 2 * count:  # there is more than data and blank lines
            part = only_data(part)
        for finished in _FINISHED:  # "" says nothing
            if part.rfind(finished) >= 0 and part.count(finished) > part.count(finished + b'"'):
                self.standing |= _finished_in(part)
        if not self._spoken:
            part = self._from_first_word(part)
            count = count_data_lines(part)
            if not count:
                return
        if not self._head or part.rfind(self._head + self._key) < 0:
            self._learn(part, whole)
        self._meter.saw(count, self._size(part))

    def _size(self, part: bytes) -> int:
        """An upper bound of the bytes of content in whole frames.

        What stands around the content is nearly the same in every frame of an answer. It is learned from one
        frame and taken off wherever it comes again; both pieces hold unescaped quotes, so neither can be
        found inside content.
        """
        size = len(part)
        if self._head:  # the frame that only says who speaks has the same head, but another key
            size -= part.count(self._head) * len(self._head)
            size -= part.count(self._head + self._key) * len(self._key)
        if self._tail:
            size -= part.count(self._tail) * len(self._tail)
        return size

    def _from_first_word(self, part: bytes) -> bytes:
        """The frames of a part from the first on that says anything; nothing where none does."""
        parts = frames(part)
        for number, frame in enumerate(parts):
            if not data_of(frame):
                continue
            self._sample = frame
            fields = take_apart(frame)
            if fields is None or not _is_silent(fields):
                self._spoken = True
                return b"".join(parts[number:])
        return b""

    def _learn(self, part: bytes, whole: bytes) -> None:
        """Learn what stands around the content from the last frame with a delta. In `whole` is also what is no data."""
        start, end = frame_at(part, max(part.rfind(b'"delta":'), 0))
        frame = part[start:end]
        head = _HEAD.match(frame)
        if head is None:  # there is none
            return
        self._sample = frame
        self._pattern = None
        if _TEXT_BEFORE.search(head.group(1)):
            self._head = self._key = self._tail = b""
            return
        tail = _TAIL.search(frame, head.end())
        self._head, self._key = head.group(1), head.group(2) or b""
        self._tail = tail.group() if tail is not None and tail.group() not in head.group() else b""
        if tail is not None and self._usual:
            data = whole.rfind(frame.rstrip())
            start, end = frame_at(whole, data)
            before, named = data - start, whole[start:end]
            pattern = Pattern.of(named, before + head.end(), before + tail.start(), before + tail.end())
            if pattern is not None and self._size(frame) == len(named) - pattern.around_bytes:
                self._pattern = pattern


@define(eq=False)
class StreamPrelude:
    """Waits for the first frame that carries content (`types.Prelude`).

    Before it there may be comments, Azure's filter results, and a delta that only says who speaks. An error
    there is as good as an error status: another account may still answer.
    """

    _framer: Framer = field(factory=lambda: Framer(2 * PRELUDE_BYTES_MAX), init=False)
    _bare: Bare = field(factory=Bare, init=False)
    _size: int = field(default=0, init=False)

    def feed(self, chunk: bytes) -> bool:
        """True once content has begun or the answer is over.

        Raises:
            UpstreamFailed: the stream began with an error, or is none.
        """
        self._size += len(chunk)
        if self._size > PRELUDE_BYTES_MAX:
            self._bare.feed(chunk)
            if self._bare.start in NO_EVENT:
                raise _no_stream(self._bare.start)
            return True
        block = self._framer.feed(chunk)
        if any(_is_content(frame) for frame in frames(block)):
            return True
        if block:
            self._bare, chunk = Bare(), self._framer.rest
        if (chunk and self._bare.feed(chunk)) or self._bare.start == b"<":
            _check_is_stream(self._framer.rest)
        return False


class _UsualMessage(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw


class _UsualChoice(msgspec.Struct, frozen=True, gc=False):
    message: _UsualMessage


class UsualBody(msgspec.Struct, frozen=True, gc=False):
    """An answer in one piece as nearly all of them are; what of it decides anything, and the rest skipped over."""

    usage: UsualUsage
    choices: tuple[_UsualChoice, ...]
    service_tier: Literal["default"] | None = None
    error: None = None


_usual_bodies: Final = msgspec.json.Decoder(UsualBody)


def read_body(body: bytes, meter: MeterLike) -> bool:
    """Read the usage of an answer in one piece; says whether there is any content in it.

    Raises:
        StreamBroken: it is not one whole JSON object, or an error under status 200.
    """
    try:
        told = _usual_bodies.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return read_any_body(body, meter)
    report = usual(told.usage)
    if report is None or not _has_text(told):
        return read_any_body(body, meter)
    meter.report(report)
    return True


def _has_text(body: UsualBody) -> bool:
    """Whether the first choice surely has a text in it: a string that is more than its quotes."""
    if not body.choices:
        return False
    text = memoryview(body.choices[0].message.content)
    return len(text) > EMPTY_STRING and text[0] == QUOTE


def read_any_body(body: bytes, meter: MeterLike) -> bool:
    """As `read_body`, whatever the body is like. A usual one it reads just so, if its fields' names are UTF-8."""
    try:
        fields: Object = msgspec.json.decode(body, type=Object)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise truncated() from None
    error = _decoded(fields.get("error"))
    if error:
        words = said(error) if isinstance(error, dict) else Said(str(error))
        raise reported(words.message, words.code or words.type)
    usage = _usage_of(fields)
    report = None
    if usage is not None:
        report = read_usage(usage, tier=_decoded(fields.get("service_tier")), final=True)
    if report is not None:
        meter.report(report)
    return len(body) > EMPTY_BODY_MAX or not _is_silent(fields)


def _is_content(frame: bytes) -> bool:
    """Whether a frame of the prelude is content already (or the end, or nothing that we know)."""
    data = data_of(frame)
    if not data:
        _check_is_stream(frame)
        return False
    fields = take_apart(frame)
    if fields is None or data == b"[DONE]":
        return True
    if error := _decoded(fields.get("error")):
        raise _failed(said(error) if isinstance(error, dict) else Said(str(error)))
    return _usage_of(fields) is not None or any(
        choice.get("finish_reason") or _says_something(choice) for choice in _choices(fields)
    )


def _is_silent(fields: Object) -> bool:
    """Whether a frame or a body surely holds no part of an answer."""
    choices = _decoded(fields.get("choices"))
    return isinstance(choices, list) and not any(map(_says_something, choices))


def _says_something(choice: Any) -> bool:
    """Whether a choice holds any part of an answer, or anything that we do not know."""
    if not isinstance(choice, dict):
        return True
    said = choice.get("message" if "message" in choice else "delta")
    if not isinstance(said, dict) or not all(is_nothing(said[name]) for name in said.keys() - {"role"}):
        return True
    return not all(is_nothing(choice[name]) for name in choice.keys() - _NOTHING_SAID)


def _finished_in(part: bytes) -> frozenset[int]:
    """The choices that whole frames say to be finished."""
    return frozenset(
        index if isinstance(index := choice.get("index"), int) else 0
        for frame in frames(part)
        if b'"finish_reason"' in frame
        for choice in _choices(take_apart(frame) or {})
        if choice.get("finish_reason")
    )


def _check_is_stream(rest: bytes) -> None:
    """Refuse what is no event: an error in plain JSON, a whole answer, a page of HTML."""
    start = rest.lstrip()[:1]
    if start in (b"{", b"["):
        error = said_by(_decoded(msgspec.Raw(rest)))
        if error is not None:
            raise _failed(error)
    if start in NO_EVENT:
        raise _no_stream(start)


def _no_stream(start: bytes) -> UpstreamFailed:
    """An answer that is no stream. One in JSON may have been generated, and is billed: no second is asked for."""
    return UpstreamFailed(
        Kind.UPSTREAM_ERROR,
        "The provider did not answer with a stream.",
        try_another=start == b"<",
        ending=Ending.REFUSED if start == b"<" else Ending.BROKEN,
    )


def _failed(error: Said) -> UpstreamFailed:
    """An error before any content. Its sentence is scrubbed where the account is known."""
    named = {(error.code or "").lower(), (error.type or "").lower()}
    if not named.isdisjoint(ABOUT_THE_ACCOUNT):
        return UpstreamFailed(
            Kind.NO_HEALTHY_UPSTREAM, "The provider takes no more requests for now.", try_another=True
        )
    message = error.message or "The provider failed before it began to answer."
    if not named.isdisjoint(ABOUT_THE_REQUEST):
        return UpstreamFailed(Kind.REFUSED_UPSTREAM, message, try_another=False, param=error.param)
    return UpstreamFailed(Kind.UPSTREAM_ERROR, message, try_another=True)


def _broken_by(rest: bytes) -> StreamBroken:
    """What an unfinished stream ended with: an error in plain JSON behind the events, or nothing at all."""
    words = said_by(_decoded(msgspec.Raw(data_of(rest) or rest)))
    return truncated() if words is None else reported(words.message, words.code or words.type)


def _usage_of(fields: Object) -> dict[str, Any] | None:
    """The usage of a frame or body; Groq also has it one level deeper."""
    usage = _decoded(fields.get("usage"))
    if usage is None and "x_groq" in fields:
        groq = _decoded(fields["x_groq"])
        usage = groq.get("usage") if isinstance(groq, dict) else None
    return usage if isinstance(usage, dict) else None


def _choices(fields: Object) -> list[dict[str, Any]]:
    choices = _decoded(fields.get("choices"))
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _object(raw: msgspec.Raw | None) -> Object | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=Object)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _decoded(raw: msgspec.Raw | None) -> Any:
    """A provider's value, or `None` for what is missing, null or no JSON."""
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
