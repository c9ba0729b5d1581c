import msgspec
import pytest
from attrs import define, field

from accounting.records import Receipt
from pricing.usage import Meter
from proxy.dialects import passthrough, sse
from proxy.dialects.passthrough import BODY_BYTES_MAX, BODY_TAIL, BODY_WITHHELD_MAX, Passthrough, Whole
from proxy.errors import StreamBroken
from tests.dialects.common import receipt


@define(eq=False)
class Tap:
    """Withholds from the frame `data: end` on; is ended by `data: stop`; a frame weighs what it says."""

    ended: bool = False
    may_go_on: bool = False
    went_on: bool = False
    standing: int = 0
    looked: list = field(factory=list)

    def look(self, block):
        self.looked.append(block)
        self.standing = len(self.looked)
        self.ended = b"data: stop" in block
        at = block.find(b"data: end")
        return (block, b"") if at < 0 else (block[:at], block[at:])

    def finish(self, rest):
        if rest:
            raise StreamBroken("upstream_error", "cut")
        return b"data: more\n\n"

    def end(self, withheld, _receipt):
        return b"<" + withheld + b">"

    def weigh(self, frame):
        said = sse.data_of(frame)
        return None if said == b"over" else 0 if said == b"end" else int(said or 0)

    def length(self, cut, _receipt):
        return b"%d|%b|%b" % (cut.standing, cut.shown, cut.limit.encode())


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


def test_a_stream_that_goes_on_behind_its_end_is_relayed_in_order_and_the_end_withheld_anew():
    tap = Tap(may_go_on=True)
    relay = Passthrough(tap, 65536)
    assert relay.feed(b"data: a\n\ndata: end\n\n") == b"data: a\n\n"
    assert relay.feed(b": c\n\n") == b""
    tap.went_on = True
    assert relay.feed(b"data: b\n\ndata: end 2\n\n") == b"data: end\n\n: c\n\ndata: b\n\n"
    tap.went_on = False
    assert relay.feed(b"data: stop\n\n") == b""
    assert relay.ended
    tap.went_on = True
    assert relay.feed(b"data: d\n\n") == b"data: end 2\n\ndata: stop\n\ndata: d\n\n"
    relay.finish()
    assert relay.end(None) == b"<data: more\n\n>"


def test_what_is_released_can_be_cut_like_all_else():
    tap = Tap(may_go_on=True)
    relay = Passthrough(tap, 65536)
    relay.feed(frames_of(1))
    assert relay.feed(frames_of("end")) == b""
    tap.went_on = True
    fed = relay.feed(frames_of(3))
    assert fed == frames_of("end", 3)
    assert relay.cut(fed, 2, "wallet") == frames_of("end")
    relay.finish()
    assert relay.end(None) == b"2|" + frames_of("end") + b"|wallet"


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


def frames_of(*words):
    return b"".join(b"data: %b\n\n" % str(word).encode() for word in words)


@pytest.mark.parametrize(
    ("covered", "given"),
    [(-1, ()), (0, (0,)), (4, (0,)), (5, (0, 5, 0)), (7, (0, 5, 0)), (8, (0, 5, 0, 3)), (99, (0, 5, 0, 3))],
)
def test_frames_are_given_up_to_the_first_that_is_not_covered_or_says_that_all_is_over(covered, given):
    relay = Passthrough(Tap(), 65536)
    relay.feed(frames_of(1))
    fed = relay.feed(frames_of(0, 5, 0, 3, "over", 0))
    assert relay.cut(fed, covered, "wallet") == frames_of(*given)
    relay.finish()
    assert relay.end(None) == b"1|" + frames_of(*given) + b"|wallet"


def test_a_cut_without_anything_new_stands_behind_what_was_given_last():
    relay = Passthrough(Tap(), 65536)
    relay.feed(frames_of(1))
    relay.feed(frames_of(2, "end", 3))
    assert relay.feed(frames_of(4)) == b""
    assert relay.feed(b"data: tor") == b""
    assert relay.cut(b"", 99, "key_cap") == b""
    relay.finish()
    assert relay.end(None) == b"1|" + frames_of(2) + b"|key_cap"


def test_a_cut_stream_takes_nothing_any_more():
    relay = Passthrough(Tap(), 65536)
    fed = relay.feed(frames_of(1))
    with pytest.raises(RuntimeError, match="fed last"):
        relay.cut(fed + fed, 99, "wallet")
    relay.cut(fed, 99, "wallet")
    assert relay.ended
    with pytest.raises(RuntimeError, match="cut off"):
        relay.feed(frames_of(1))
    with pytest.raises(RuntimeError, match="cut off"):
        relay.cut(b"", 99, "wallet")


def test_a_body_cannot_be_cut():
    with pytest.raises(RuntimeError, match="one piece"):
        Whole(bool, Meter()).cut(b"", 1, "wallet")


def collect(body, step, *, full=True):
    seen, meter = [], Meter()

    def read(whole_body):
        seen.append(whole_body)
        return full

    whole = Whole(read, meter)
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


def test_of_a_body_without_content_what_was_counted_in_advance_is_taken_back():
    _, _, _, meter = collect(b"x" * 1000, 300, full=False)
    assert (meter.content_frames, meter.content_bytes) == (0, 0)


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


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_in_some_values_nothing_is_said(value):
    assert passthrough.is_nothing(value)


@pytest.mark.parametrize("value", [0, 0.0, True, " ", [None], {"a": ""}])
def test_in_all_others_something_may_be_said(value):
    assert not passthrough.is_nothing(value)


def test_a_cut_says_what_was_used_up_and_what_it_cost():
    assert passthrough.said_of("key_cap", receipt(1)) == {
        "x-credits-limit": "key_cap",
        "x-credits-cost-micro": 1,
    }
    for unknown in (None, Receipt("r", None, 0, 0)):
        assert passthrough.said_of("wallet", unknown) == {"x-credits-limit": "wallet"}
