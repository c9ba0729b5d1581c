"""The same dialect on both sides: bytes are relayed as they are, a tap looks at them, the end is withheld.

Streams: whole frames go on byte for byte, as many in one piece as one read brought. What a dialect knows
about its streams is a Tap: it is shown every block of whole frames, feeds the meter, and says from where on
the block is the end. That, and all that follows, waits here until the books are durable: `end(receipt)`
gives it, and there the tap may add what the answer cost.

A stream whose credit is used up is cut: of what is to be relayed the frames go on that are covered, the
provider's own end is dropped, and the tap writes one in its place, as for an answer that reached its length.
Nothing is kept for that while all is well but the last block that was given, and a note of the tap's from
before it; what was open at the cut is found out by decoding those.

Other bodies: withheld whole while they are small, so that a broken one can still become an error and the
cost can stand in a header; of large ones the last part.
"""

import re
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from attrs import define, field, frozen

from accounting.records import Receipt
from pricing.money import Pico, micro_up, show
from proxy.dialects.body import Object, encode
from proxy.dialects.scrub import scrub
from proxy.dialects.sse import Framer, data_of, frames
from proxy.errors import Kind, StreamBroken
from proxy.types import MeterLike

BODY_WITHHELD_MAX: Final = 2**20
"""Bodies up to that size are withheld whole: what clients get from a model in one piece nearly always is."""

BODY_TAIL: Final = 2**16
"""Of larger ones so much is withheld. More than any report of usage, so no client has a whole body early."""

BODY_BYTES_MAX: Final = 2**26
"""No answer in one piece is larger: it is kept until its end, because its usage can stand anywhere."""

_FIRST_OBJECT: Final = re.compile(rb"^data: ?\{(?=\")", re.MULTILINE)


@frozen
class Cut:
    """Where a stream was cut off.

    Attributes:
        standing: the tap's note from before the last frames that the client was given.
        shown: those frames; maybe none.
        limit: what was used up, for the client to know.
    """

    standing: Any
    shown: bytes
    limit: str


class Tap(Protocol):
    """What one dialect knows about its own streams. Has state: one per answer."""

    @property
    def ended(self) -> bool:
        """The terminal event was seen, or an error that `finish` is going to raise."""
        ...

    @property
    def may_go_on(self) -> bool:
        """Nothing that was seen so far is surely the end: even where `ended`, what follows is looked at."""
        ...

    @property
    def went_on(self) -> bool:
        """The block that was looked at last shows that what is withheld from before it was not the end."""
        ...

    @property
    def standing(self) -> Any:
        """What a `Cut` has to know of all that was looked at so far; immutable, and free to read."""
        ...

    def look(self, block: bytes) -> tuple[bytes, bytes]:
        """Look at one or more whole frames and show the meter what they say.

        Returns:
            What is to be relayed now, and what is to be withheld. Mostly `(block, b"")`; from the first
            block with a withheld part on, the Passthrough withholds everything, and only the metering
            counts, until the tap says that it `went_on`: then what is withheld goes before what is to be
            relayed. A block may be rewritten here, where the dialect has to (a JSON array in place of
            events).

        Raises:
            StreamBroken: the provider reported an error. Where good frames stand before it, give those, be
                `ended`, and raise it from `finish`: the client should have them.
        """
        ...

    def finish(self, rest: bytes) -> bytes:
        """The provider's bytes are over.

        Args:
            rest: what came after the last whole frame (`b""` in a sound stream).

        Returns:
            What of the rest is to be withheld with the end, as whole frames; mostly nothing.

        Raises:
            StreamBroken: the stream was cut short, or ended with an error.
        """
        ...

    def end(self, withheld: bytes, receipt: Receipt | None) -> bytes:
        """The withheld end as the caller is to see it, with the cost where the dialect has a place for it."""
        ...

    def weigh(self, frame: bytes) -> int | None:
        """Say how much content a whole frame carries, its bytes and one for itself: never too little.

        Returns:
            0 for a frame without content; `None` for one that says that an answer is finished, which may not
            pass where a stream is cut.
        """
        ...

    def length(self, cut: Cut, receipt: Receipt | None) -> bytes:
        """Write the end of an answer that was cut: all that is open is closed, as by its length, and the cost said."""
        ...


@define(eq=False)
class Passthrough:
    """A `types.Translator` for streams, around a dialect's tap.

    Attributes:
        tap: the dialect's.
        frame_bytes_max: of one event; a longer one breaks the stream. The withheld end is bounded by twice
            that.
        cost_so_far: what the answer has cost by now; where given, the first JSON frame of each relayed
            block gets `"credits":{"cost_micro":…}` as its first field.
    """

    _tap: Tap
    _frame_bytes_max: int
    _cost_so_far: Callable[[], Pico] | None = None
    _framer: Framer = field(init=False)
    _withheld: bytearray = field(factory=bytearray, init=False)
    _standing: Any = field(init=False)
    _given: bytes = field(default=b"", init=False)
    _cut: Cut | None = field(default=None, init=False)

    @_framer.default
    def _framer_default(self) -> Framer:
        return Framer(self._frame_bytes_max)

    @_standing.default
    def _standing_default(self) -> Any:
        return self._tap.standing

    @property
    def ended(self) -> bool:
        """The provider's terminal event was seen, or the answer cut: there is nothing to be waited for.

        What comes nevertheless may be fed; mostly it does not matter (see `Tap.may_go_on`).
        """
        return self._tap.ended or self._cut is not None

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they were read; give the whole frames that may be written now.

        Raises:
            StreamBroken: the provider reported an error, or a frame or the end outgrew its bound.
            RuntimeError: the answer was cut.
        """
        if self._cut is not None:
            raise RuntimeError("the answer was cut off: nothing may be fed any more")
        if self._tap.ended and not self._tap.may_go_on:
            return b""
        block = self._framer.feed(chunk)
        if not block:
            return b""
        standing = self._tap.standing
        relay, end = self._tap.look(block)
        if self._withheld:
            if self._tap.went_on:
                relay = bytes(self._withheld) + relay
                self._withheld.clear()
            else:
                self._withhold(relay)
                relay = b""
        if end:
            self._withhold(end)
        if not relay:
            return b""
        self._standing, self._given = standing, relay
        return relay if self._cost_so_far is None else self._with_cost(relay)

    def cut(self, relay: bytes, content_bytes: int, limit: str) -> bytes:
        """End the answer here: the credit does not cover what follows.

        Args:
            relay: what `feed` gave last, while nobody has been given it; `b""` where that was nothing.
            content_bytes: how much of its content is covered.
            limit: what is used up.

        Returns:
            The whole frames of `relay` that are covered.

        Raises:
            RuntimeError: the answer was cut before, or `relay` is not what was fed last.
        """
        if self._cut is not None:
            raise RuntimeError("the answer was cut off before")
        shown = self._given
        if relay:
            to_give, looked_at = frames(relay), frames(shown)  # they differ by the live cost, if that is said
            if len(to_give) != len(looked_at):
                raise RuntimeError("what is to be cut is not what was fed last")
            count = self._covered(looked_at, content_bytes)
            relay, shown = b"".join(to_give[:count]), b"".join(looked_at[:count])
        self._cut = Cut(self._standing, shown, limit)
        return relay

    def finish(self) -> None:
        """The provider's bytes are over; of a cut answer they do not matter.

        Raises:
            StreamBroken: before the dialect's terminal event.
        """
        if self._cut is None:
            self._withhold(self._tap.finish(self._framer.rest))

    def end(self, receipt: Receipt | None) -> bytes:
        """What was withheld, with the cost where the dialect has a place for it; of a cut answer our own end."""
        if self._cut is not None:
            return self._tap.length(self._cut, receipt)
        return self._tap.end(bytes(self._withheld), receipt)

    def _covered(self, candidates: list[bytes], content_bytes: int) -> int:
        """How many of these frames, from the first on, have no more content than that."""
        for count, frame in enumerate(candidates):
            weight = self._tap.weigh(frame)
            if weight is None or weight > content_bytes:
                return count
            content_bytes -= weight
        return len(candidates)

    def _withhold(self, frames: bytes) -> None:
        self._withheld += frames
        if len(self._withheld) > 2 * self._frame_bytes_max:
            raise StreamBroken(Kind.UPSTREAM_ERROR, "The provider went on for too long after its last word.")

    def _with_cost(self, relay: bytes) -> bytes:
        match = _FIRST_OBJECT.search(relay)
        if match is None or self._cost_so_far is None:
            return relay
        at = match.end()
        return b'%b"credits":{"cost_micro":%d},%b' % (relay[:at], micro_up(self._cost_so_far()), relay[at:])


@define(eq=False)
class Whole:
    """A `types.Translator` for bodies in one piece.

    Attributes:
        read: looks at the complete body, shows the meter its usage, and says whether there is any content in it;
            raises `StreamBroken` where it is not complete, or an error under status 200.
        meter: is shown the size of what goes by, for a body that breaks off; of a complete one without content
            that is taken back.
    """

    _read: Callable[[bytes], bool]
    _meter: MeterLike
    _body: bytearray = field(factory=bytearray, init=False)
    _written: int = field(default=0, init=False)

    @property
    def ended(self) -> bool:
        """Only the provider's own end of body says so."""
        return False

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes; give nothing up to 1 MB, and beyond that all but the last 64 kB.

        Raises:
            StreamBroken: the body outgrew its bound.
        """
        if not self._body and chunk:
            self._meter.saw(1, 0)
        self._body += chunk
        self._meter.saw(0, len(chunk))
        size = len(self._body)
        if size <= BODY_WITHHELD_MAX:
            return b""
        if size > BODY_BYTES_MAX:
            raise StreamBroken(Kind.UPSTREAM_ERROR, "The provider's answer is too large.")
        start, self._written = self._written, size - BODY_TAIL
        return bytes(memoryview(self._body)[start : self._written])

    def cut(self, _relay: bytes, _content_bytes: int, _limit: str) -> bytes:
        """Never: nothing says how much of a body is content, so its hold is the full one from the start.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("an answer in one piece cannot be cut off")

    def finish(self) -> None:
        """The provider's bytes are over: read the usage.

        Raises:
            StreamBroken: they ended in the middle of the body, or are an error.
        """
        if not self._read(bytes(self._body)):
            self._meter.saw(-1, -len(self._body))

    def end(self, _receipt: Receipt | None) -> bytes:
        """What was withheld, as it came; the cost stands in a header."""
        return bytes(memoryview(self._body)[self._written :])


# --- words and edits that the taps share ------------------------------------------------------------------


def truncated() -> StreamBroken:
    """The provider's bytes ended too early."""
    return StreamBroken(Kind.UPSTREAM_ERROR, "The provider's answer broke off before its end.")


def reported(message: str, code: str | None = None) -> StreamBroken:
    """The provider reported an error in the middle of its answer; its sentence is scrubbed here.

    Args:
        message: the provider's own words, or `""`.
        code: its type or code for it, if it gave one.
    """
    said = ": ".join(part for part in (scrub(code or ""), scrub(message)) if part)
    return StreamBroken(
        Kind.UPSTREAM_ERROR, f"The provider reported an error in its answer{': ' if said else ''}{said}"
    )


def rewritten(frame: bytes, fields: Object) -> bytes:
    """The same frame with another JSON object as its data; its other lines and its line ends stay.

    Args:
        frame: one whole frame.
        fields: the object; raw values in it travel verbatim.
    """
    newline = b"\r\n" if frame.endswith(b"\r\n") else b"\n"
    lines = [line for line in frame.splitlines() if line and not line.startswith(b"data:")]
    lines.append(b"data: " + msgspec.json.encode(fields))
    return newline.join((*lines, b"", b""))


def take_apart(frame: bytes) -> Object | None:
    """The JSON object that a frame carries, one level deep, or `None` where it carries none."""
    try:
        return msgspec.json.decode(data_of(frame), type=Object)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def with_cost(usage: Object, receipt: Receipt | None) -> Object:
    """A usage report with what the answer cost: `cost` as an exact decimal string, `cost_micro` rounded up.

    What the operator pays (`cost_details`) is taken out.
    """
    if receipt is None or receipt.record is None:
        return usage
    charged = receipt.record.charged
    plain = {name: raw for name, raw in usage.items() if name != "cost_details"}
    return {**plain, "cost": encode(show(charged)), "cost_micro": encode(micro_up(charged))}


def costed(withheld: bytes, field: str, receipt: Receipt | None) -> bytes:
    """The withheld end of a stream, with the cost in the last usage report that it holds.

    Args:
        withheld: whole frames.
        field: where a frame of this dialect carries its report.
        receipt: what it cost; without a record nothing is added.
    """
    if receipt is None or receipt.record is None:
        return withheld
    parts = frames(withheld)
    for index in range(len(parts) - 1, -1, -1):
        fields = take_apart(parts[index])
        if fields is not None and bytes(fields.get(field, b""))[:1] == b"{":
            usage = msgspec.json.decode(fields[field], type=dict[str, msgspec.Raw])
            parts[index] = rewritten(parts[index], {**fields, field: encode(with_cost(usage, receipt))})
            break
    return b"".join(parts)


def is_nothing(value: Any) -> bool:
    """Whether a decoded value is one in which nothing can be said: nobody writes it. Zero is something."""
    return value is None or value is False or value in ("", [], {})


def said_of(limit: str, receipt: Receipt | None) -> dict[str, Any]:
    """What the frame that says "length" carries beside it, so that our cut can be told from the model's own length.

    Args:
        limit: what was used up.
        receipt: what the answer cost; without a record that is not said.
    """
    said: dict[str, Any] = {"x-credits-limit": limit}
    if receipt is not None and receipt.record is not None:
        said["x-credits-cost-micro"] = micro_up(receipt.record.charged)
    return said
