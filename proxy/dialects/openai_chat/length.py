"""Write the end of a chat completion that was cut off: a length for every choice, the usage, and `[DONE]`."""

from collections.abc import Collection
from typing import Any, Final

import msgspec

from accounting.records import Receipt
from proxy.dialects.body import Object, encode
from proxy.dialects.openai_chat.usage import write_usage
from proxy.dialects.passthrough import said_of, take_apart, with_cost
from proxy.types import Ask

DONE: Final = b"data: [DONE]\n\n"

_SAME: Final = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
"""What every chunk of an answer says alike."""

_UNSAID: Final = (b"", b'""', b"0", b"null")
"""Azure's first chunk, which is about the prompt, has its names empty."""


def length(ask: Ask, sample: bytes, finished: Collection[int], limit: str, receipt: Receipt | None) -> bytes:
    """Write the end of a cut stream.

    Args:
        ask: what was asked for: how many choices, and whether the usage is wanted.
        sample: any frame of the stream with a piece of an answer, or `b""` where none has come.
        finished: choices that the client was told to be finished.
        limit: what was used up.
        receipt: what the answer used and cost; without a record neither is said.
    """
    alike = _alike(ask, sample, receipt)
    said = said_of(limit, receipt)
    end = [
        _frame({**alike, "choices": [_choice(index)], **said})
        for index in range(ask.measures.choices)
        if index not in finished
    ]
    if ask.usage_wanted and receipt is not None and receipt.record is not None:
        usage: Object = {name: encode(count) for name, count in write_usage(receipt.record.usage).items()}
        end.append(_frame({**alike, "choices": [], "usage": with_cost(usage, receipt)}))
    return b"".join((*end, DONE))


def _alike(ask: Ask, sample: bytes, receipt: Receipt | None) -> dict[str, Any]:
    """What our chunks have in common with the stream's own; made up only where nothing has come of it."""
    record = None if receipt is None else receipt.record
    made_up: dict[str, Any] = {
        "id": f"chatcmpl-{'' if receipt is None else receipt.request}",
        "object": "chat.completion.chunk",
        "created": 0 if record is None else record.started_ms // 1000,
        "model": ask.model,
    }
    fields = take_apart(sample) or {}
    return made_up | {name: fields[name] for name in _SAME if bytes(fields.get(name, b"")) not in _UNSAID}


def _choice(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}


def _frame(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"
