"""What the tests of all dialects share: recordings, receipts, asks, and what a stream truly shows."""

import functools
import json
from pathlib import Path

from accounting.records import Ending, Receipt, UsageRecord
from pricing.usage import NO_USAGE, Meter, Source
from proxy.config import RequestLimits
from proxy.dialects import sse
from proxy.dialects.anthropic import Anthropic
from proxy.dialects.gemini import Gemini
from proxy.dialects.openai_chat import OpenAIChat
from proxy.errors import StreamBroken
from proxy.types import Ask, Measures

RECORDINGS = Path(__file__).parents[1] / "recordings"
_LIMITS = RequestLimits()
DIALECTS = {
    "openai_chat": OpenAIChat(_LIMITS),
    "anthropic": Anthropic(_LIMITS),
    "gemini": Gemini(_LIMITS),
}
STREAMS = tuple(sorted(path.name for path in RECORDINGS.glob("*.sse")))

NOT_WRITTEN = frozenset({"role", "type", "id", "index"})
"""Fields within a piece of content that a model does not write."""


@functools.cache
def recording(name):
    return (RECORDINGS / name).read_bytes()


def dialect_of(name):
    """The dialect of a recording."""
    return {"openai": "openai_chat"}.get(start := name.partition("_")[0], start)


def choices_of(name):
    return 2 if "two_" in name else 1


def ask(dialect, *, stream=True, choices=1, **more):
    measures = Measures(text_bytes=1, choices=choices)
    return Ask(dialect=dialect, model="m", stream=stream, measures=measures, fields={}, **more)


def translator(dialect, meter=None, *, cost_so_far=None, **more):
    return DIALECTS[dialect].passthrough(
        ask(dialect, **more), Meter() if meter is None else meter, cost_so_far
    )


def receipt(charged=1_234_567, *, usage=NO_USAGE, request="r", outcome=Ending.COMPLETE, started_ms=0):
    record = UsageRecord(
        request=request,
        number=1,
        wallet="w",
        key="k",
        model="m",
        provider="p",
        account="a",
        dialect="d",
        stream=True,
        outcome=outcome,
        status=200,
        source=Source.REPORTED,
        usage=usage,
        price_version="v",
        markup_ppm=10**6,
        held=charged,
        price=charged,
        charged=charged,
        cost=0,
        loss=0,
        currency="USD",
        started_ms=started_ms,
        ended_ms=started_ms + 1,
    )
    return Receipt(request, record, balance=0, held=0)


class Run:
    """One answer fed through a translator, in the pieces that it was cut into."""

    def __init__(self, dialect, pieces, *, receipt=None, **asked):
        self.meter = Meter()
        self.written = b""
        self.tail = None
        self.failure = None
        stream = translator(dialect, self.meter, **asked)
        try:
            for piece in pieces:
                self.written += stream.feed(piece)
            self.ended = stream.ended
            stream.finish()
            self.tail = stream.end(receipt)
        except StreamBroken as broken:
            self.failure = broken

    @property
    def outcome(self):
        failure = None if self.failure is None else (self.failure.kind, self.failure.message)
        return self.written, self.tail, failure, self.meter.reported


def payloads(block):
    """The data of all frames that have any."""
    return [data for frame in sse.frames(block) if (data := sse.data_of(frame))]


def objects(block):
    """The JSON objects that whole frames carry."""
    return [json.loads(data) for data in payloads(block) if data.startswith(b"{")]


def shown_bytes(dialect, block):
    """The true bytes of all that a model wrote into whole frames: text, names, arguments, whatever shows."""
    return sum(_written(piece) for frame in objects(block) for piece in PIECES[dialect](frame))


def _openai_pieces(frame):
    return [
        {name: value for name, value in choice.items() if name in ("delta", "text")}
        for choice in frame.get("choices", ())
    ]


def _anthropic_pieces(frame):
    known = frame.get("type") in ("ping", "message_start", "message_delta", "message_stop")
    return (
        []
        if known
        else [{name: frame[name] for name in ("delta", "content_block", "novel") if name in frame}]
    )


def _gemini_pieces(frame):
    return [candidate.get("content", {}) for candidate in frame.get("candidates", ())]


PIECES = {"openai_chat": _openai_pieces, "anthropic": _anthropic_pieces, "gemini": _gemini_pieces}


def _written(value):
    match value:
        case dict():
            return sum(_written(inner) for name, inner in value.items() if name not in NOT_WRITTEN)
        case list():
            return sum(map(_written, value))
        case str():
            return len(value.encode())
        case None | bool():
            return 0
        case _:
            return len(str(value))
