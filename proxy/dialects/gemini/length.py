"""Write the end of a Gemini stream that was cut off: one response in which every open candidate reached its length."""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from accounting.records import Receipt
from proxy.dialects.body import Object, encode
from proxy.dialects.gemini.usage import write_usage
from proxy.dialects.passthrough import said_of, with_cost

_SAME: Final = ("modelVersion", "responseId")
"""What every response of a stream says alike."""

_NOTHING_MORE: Final[Mapping[str, Any]] = {"parts": [{"text": ""}], "role": "model"}
"""As Google ends its answers: SDKs that keep a conversation drop a turn in which a content has no parts."""


def length(
    choices: int, sample: Object, finished: Collection[int], limit: str, receipt: Receipt | None
) -> bytes:
    """Write the end of a cut stream, as an event.

    Args:
        choices: how many candidates were asked for.
        sample: any response of the stream; empty where none has come.
        finished: candidates that the client was told to be finished.
        limit: what was used up.
        receipt: what the answer used and cost; without a record neither is said.
    """
    response: dict[str, Any] = {
        "candidates": [
            {"content": _NOTHING_MORE, "finishReason": "MAX_TOKENS", "index": index}
            for index in range(choices)
            if index not in finished
        ]
    }
    if receipt is not None and receipt.record is not None:
        usage: Object = {name: encode(count) for name, count in write_usage(receipt.record.usage).items()}
        response["usageMetadata"] = with_cost(usage, receipt)
    response |= {name: sample[name] for name in _SAME if name in sample}
    response |= said_of(limit, receipt)
    return b"data: " + msgspec.json.encode(response) + b"\r\n\r\n"
