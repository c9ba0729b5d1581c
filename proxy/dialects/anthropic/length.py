"""Write the end of an Anthropic stream that was cut off: close the open block, say `max_tokens`, stop the message."""

from typing import Any, Final

import msgspec

from accounting.records import Receipt
from pricing.usage import NO_USAGE
from proxy.dialects.anthropic.usage import write_usage
from proxy.dialects.body import Object, encode
from proxy.dialects.passthrough import said_of, with_cost

NO_BLOCK: Final = -1


def length(*, begun: bool, block: int, model: str, limit: str, receipt: Receipt | None) -> bytes:
    """Write the end of a cut stream.

    Args:
        begun: the client has been given a `message_start`; else one is made up, since no SDK does without.
        block: index of the content block that is open, or `NO_BLOCK`.
        model: as the caller named it.
        limit: what was used up.
        receipt: what the answer used and cost; without a record zeros stand in the report, which must be there.
    """
    record = None if receipt is None else receipt.record
    usage = write_usage(NO_USAGE if record is None else record.usage)
    report: Object = {name: encode(count) for name, count in usage.items()}
    end = b""
    if not begun:
        request = "" if receipt is None else receipt.request
        end += _event({"type": "message_start", "message": _message(request, model, usage)})
    if block != NO_BLOCK:
        end += _event({"type": "content_block_stop", "index": block})
    end += _event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": with_cost(report, receipt),
            **said_of(limit, receipt),
        }
    )
    return end + _event({"type": "message_stop"})


def _message(request: str, model: str, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{request}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }


def _event(fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), msgspec.json.encode(fields))
