import msgspec
import pytest
from attrs import define, field

from accounting.records import Ending, Receipt, UsageRecord
from pricing.usage import NO_USAGE, Meter, Source
from proxy.dialects import passthrough
from proxy.dialects.passthrough import BODY_BYTES_MAX, BODY_TAIL, BODY_WITHHELD_MAX, Passthrough, Whole
from proxy.errors import StreamBroken


def receipt(charged=1_234_567):
    record = UsageRecord(
        request="r",
        number=1,
        wallet="w",
        key="k",
        model="m",
        provider="p",
        account="a",
        dialect="openai_chat",
        stream=True,
        outcome=Ending.COMPLETE,
        status=200,
        source=Source.REPORTED,
        usage=NO_USAGE,
        price_version="v",
        markup_ppm=10**6,
        held=charged,
        price=charged,
        charged=charged,
        cost=0,
        loss=0,
        currency="USD",
        started_ms=0,
        ended_ms=1,
    )
    return Receipt("r", record, balance=0, held=0)


@define(eq=False)
class Tap:
    """Withholds from the frame `data: end` on; is ended by `data: stop`."""

    ended: bool = False
    looked: list = field(factory=list)

    def look(self, block):
        self.looked.append(block)
        self.ended = b"data: stop" in block
        at = block.find(b"data: end")
        return (block, b"") if at < 0 else (block[:at], block[at:])

    def finish(self, rest):
        if rest:
            raise StreamBroken("upstream_error", "cut")
        return b"data: more\n\n"

    def end(self, withheld, _receipt):
        return b"<" + withheld + b">"


def test_frames_are_relayed_as_they_are_until_the_end_and_the_end_is_withheld():
    relay = Passthrough(Tap(), 65536)
    assert relay.feed(b"data: a\n\ndata: ") == b"data: a\n\n"
    assert relay.feed(b"b") == b""
    assert relay.feed(b"\n\ndata: c\n\ndata: end\n\n") == b"data: b\n\ndata: c\n\n"
    assert relay.feed(b"data: d\n\n") == b""
    relay.finish()
    assert relay.end(None) == b"<data: end\n\ndata: d\n\ndata: more\n\n>"


def test_after_the_terminal_event_bytes_do_not_matter():
    tap = Tap()
    relay = Passthrough(tap, 65536)
    relay.feed(b"data: stop\n\n")
    assert relay.ended
    assert relay.feed(b"data: late\n\n") == b""
    assert tap.looked == [b"data: stop\n\n"]


def test_an_end_that_goes_on_for_ever_breaks_the_stream():
    relay = Passthrough(Tap(), 100)
    relay.feed(b"data: end\n\n")
    relay.feed(b"data: d\n\n" * 21)
    with pytest.raises(StreamBroken, match="too long"):
        relay.feed(b"data: d\n\n")


def test_a_frame_that_is_cut_off_is_for_the_tap_to_judge():
    relay = Passthrough(Tap(), 100)
    relay.feed(b"data: hal")
    with pytest.raises(StreamBroken):
        relay.finish()


def test_the_live_cost_goes_into_the_first_object_of_each_block_and_nowhere_else():
    costs = iter([1, 2_000_001])
    relay = Passthrough(Tap(), 65536, lambda: next(costs))
    block = b': c\n\ndata: {"a":"data: {"}\n\ndata: {"b":1}\n\n'
    assert relay.feed(block) == block.replace(b'{"a', b'{"credits":{"cost_micro":1},"a', 1)
    assert relay.feed(b": c\n\ndata: {}\n\n") == b": c\n\ndata: {}\n\n"
    assert relay.feed(b'data: {"c":1}\r\n\r\n') == b'data: {"credits":{"cost_micro":3},"c":1}\r\n\r\n'


def collect(body, step):
    seen, meter = [], Meter()
    whole = Whole(seen.append, meter)
    relayed = [whole.feed(body[at : at + step]) for at in range(0, len(body), step)]
    whole.finish()
    return b"".join(relayed), whole.end(None), seen, meter


def test_a_body_up_to_a_megabyte_is_withheld_whole():
    body = b"x" * BODY_WITHHELD_MAX
    relayed, end, seen, meter = collect(body, 65_521)
    assert (relayed, end, seen) == (b"", body, [body])
    assert (meter.content_frames, meter.content_bytes) == (1, len(body))


def test_of_a_larger_body_the_last_part_is_withheld():
    body = bytes(range(256)) * 6000
    relayed, end, seen, meter = collect(body, 65_521)
    assert relayed + end == body
    assert len(end) == BODY_TAIL
    assert seen == [body]
    assert meter.content_bytes == len(body)


def test_a_body_has_a_bound():
    whole = Whole(lambda _: None, Meter())
    for _ in range(BODY_BYTES_MAX // 2**23):
        whole.feed(b"x" * 2**23)
    assert not whole.ended
    with pytest.raises(StreamBroken, match="too large"):
        whole.feed(b"x")


def test_a_reported_error_without_words_says_that_much():
    assert str(passthrough.reported("", None)) == "The provider reported an error in its answer"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_rewritten_frame_keeps_its_other_lines_and_its_line_ends(newline):
    frame = newline.join([b"event: e", b'data: {"a":', b"data: 1}", b"", b""])
    fields = passthrough.take_apart(frame)
    assert {name: bytes(raw) for name, raw in fields.items()} == {"a": b"1"}
    again = passthrough.rewritten(frame, {**fields, "b": msgspec.Raw(b'"x"')})
    assert again == newline.join([b"event: e", b'data: {"a":1,"b":"x"}', b"", b""])


@pytest.mark.parametrize(
    "frame", [b": c\n\n", b"data: [DONE]\n\n", b"data: {\n\n", b"data: [1]\n\n", b"data: {\xff}\n\n"]
)
def test_a_frame_without_an_object_is_not_taken_apart(frame):
    assert passthrough.take_apart(frame) is None


def test_the_cost_is_exact_and_the_operators_own_is_taken_out():
    usage = {
        "total_tokens": msgspec.Raw(b"1"),
        "cost": msgspec.Raw(b"0.5"),
        "cost_details": msgspec.Raw(b"{}"),
    }
    told = passthrough.with_cost(usage, receipt(1_234_567))
    assert msgspec.json.decode(msgspec.json.encode(told)) == {
        "total_tokens": 1,
        "cost": "0.000001234567",
        "cost_micro": 2,
    }
    assert passthrough.with_cost(usage, None) is usage
