from pricing.usage import Usage
from proxy.dialects.anthropic.length import NO_BLOCK, length
from tests.dialects.common import objects, receipt, translator


def end(*, begun=True, block=NO_BLOCK, told=None):
    return objects(length(begun=begun, block=block, model="claude", limit="wallet", receipt=told))


def test_the_open_block_is_closed_first():
    assert [event["type"] for event in end()] == ["message_delta", "message_stop"]
    first, *rest = end(block=3)
    assert first == {"type": "content_block_stop", "index": 3}
    assert rest == end()


def test_the_last_report_is_as_a_providers_own():
    used = Usage(
        input=10, cache_read=20, cache_write_5m=3, cache_write_1h=4, output=5, reasoning=2, web_searches=1
    )
    delta, _ = end(told=receipt(1_500_000, usage=used))
    assert delta == {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 20,
            "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 2},
            "server_tool_use": {"web_search_requests": 1},
            "cost": "0.0000015",
            "cost_micro": 2,
        },
        "x-credits-limit": "wallet",
        "x-credits-cost-micro": 2,
    }


def test_a_message_that_never_began_is_begun():
    start, *rest = end(begun=False, told=receipt(request="req_1", usage=Usage(input=10, output=5)))
    assert start["type"] == "message_start"
    assert (start["message"]["id"], start["message"]["model"]) == ("msg_req_1", "claude")
    assert start["message"]["usage"]["input_tokens"] == 10
    assert [event["type"] for event in rest] == ["message_delta", "message_stop"]


def opened(*reads):
    """The indexes of the blocks that are closed for a stream of these reads that is cut behind the last."""
    stream = translator("anthropic")
    relay = b""
    for read in reads:
        relay = stream.feed(b"".join(b"event: e\ndata: %b\n\n" % event for event in read))
    stream.cut(relay, 10**6, "wallet")
    return [event["index"] for event in objects(stream.end(None)) if event["type"] == "content_block_stop"]


START = b'{"type":"message_start","message":{"content":[]}}'
OPEN = b'{"type":"content_block_start","index":%d,"content_block":{"type":"text","text":""}}'
DELTA = b'{"type":"content_block_delta","index":%d,"delta":{"type":"text_delta","text":"message_ content_block_stop"}}'
CLOSE = b'{"type":"content_block_stop","index":%d}'
PING = b'{"type":"ping"}'


def test_which_block_is_open_is_known_however_long_ago_it_was_opened():
    assert opened([START]) == []
    assert opened([START], [OPEN % 0]) == [0]
    assert opened([START, OPEN % 0], [DELTA % 0], [PING], [PING, PING]) == [0]
    assert opened([START, OPEN % 0, DELTA % 0], [CLOSE % 0]) == []
    assert opened([START, OPEN % 0, DELTA % 0], [CLOSE % 0], [PING], [PING]) == []
    assert opened([START, OPEN % 0], [CLOSE % 0, OPEN % 1, DELTA % 1], [PING]) == [1]
    assert opened([START, OPEN % 0], [CLOSE % 0], [OPEN % 1], [PING, CLOSE % 1]) == []


def test_a_frame_that_nobody_can_read_closes_and_opens_nothing():
    assert opened([START, OPEN % 2], [DELTA % 2, b"nonsense"]) == [2]


def test_a_message_delta_in_the_middle_passes():
    running = b'{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":3}}'
    assert opened([START, OPEN % 0], [DELTA % 0, running]) == [0]
