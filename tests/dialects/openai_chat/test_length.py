import pytest

from pricing.usage import Usage
from proxy.dialects.openai_chat.length import length
from tests.dialects.common import ask, objects, payloads, receipt

USAGE = Usage(input=10, output=5)
SAMPLE = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":17,"model":"gpt","system_fingerprint":"fp",'
    b'"provider":"P","choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\n\n'
)


def end(*, choices=1, usage=True, sample=SAMPLE, finished=(), told=None):
    return length(ask("openai_chat", choices=choices, usage_wanted=usage), sample, finished, "wallet", told)


def test_every_choice_that_is_open_reaches_its_length():
    *chunks, done = payloads(end(choices=3, finished={1}))
    assert done == b"[DONE]"
    said = [(chunk["choices"], chunk["x-credits-limit"]) for chunk in objects(end(choices=3, finished={1}))]
    assert said == [
        ([{"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}], "wallet")
        for index in (0, 2)
    ]
    assert len(chunks) == 2


def test_our_chunks_are_the_streams_own_but_for_what_they_say():
    for chunk in objects(end(told=receipt(7, usage=USAGE))):
        assert (chunk["id"], chunk["object"], chunk["created"]) == ("c1", "chat.completion.chunk", 17)
        assert (chunk["model"], chunk["system_fingerprint"]) == ("gpt", "fp")
        assert "provider" not in chunk


@pytest.mark.parametrize(
    "sample", [b"", b": comment\n\n", b'data: {"id":"","created":0,"model":"","choices":[]}\n\n']
)
def test_where_nothing_has_come_of_the_stream_its_names_are_made_up(sample):
    for chunk in objects(end(sample=sample, told=receipt(7, request="req_1", started_ms=17_999))):
        assert (chunk["id"], chunk["object"], chunk["created"], chunk["model"]) == (
            "chatcmpl-req_1",
            "chat.completion.chunk",
            17,
            "m",
        )


def test_the_usage_is_told_with_its_cost_to_who_asked_for_it_and_to_nobody_else():
    first, last = objects(end(told=receipt(1_500_000, usage=USAGE)))
    assert first["x-credits-cost-micro"] == 2
    assert "usage" not in first
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cost": "0.0000015",
        "cost_micro": 2,
    }
    (only,) = objects(end(usage=False, told=receipt(1_500_000, usage=USAGE)))
    assert only == first


def test_without_a_record_no_usage_is_made_up():
    (only,) = objects(end())
    assert "usage" not in only
    assert "x-credits-cost-micro" not in only
