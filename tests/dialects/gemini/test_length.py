import msgspec

from pricing.usage import Usage
from proxy.dialects.gemini.length import length
from tests.dialects.common import objects, receipt, translator

SAMPLE = {
    "modelVersion": msgspec.Raw(b'"gemini-3"'),
    "responseId": msgspec.Raw(b'"r1"'),
    "x": msgspec.Raw(b"1"),
}


def end(*, choices=1, sample=SAMPLE, finished=(), told=None):
    (response,) = objects(length(choices, sample, finished, "wallet", told))
    return response


def test_every_candidate_that_is_open_reaches_its_length():
    assert end(choices=3, finished={1})["candidates"] == [
        {"content": {"parts": [{"text": ""}], "role": "model"}, "finishReason": "MAX_TOKENS", "index": index}
        for index in (0, 2)
    ]


def test_the_last_response_is_as_the_streams_own():
    response = end(told=receipt(1_500_000, usage=Usage(input=10, cache_read=20, output=5, reasoning=2)))
    del response["candidates"]
    assert response == {
        "usageMetadata": {
            "promptTokenCount": 30,
            "cachedContentTokenCount": 20,
            "candidatesTokenCount": 3,
            "thoughtsTokenCount": 2,
            "totalTokenCount": 35,
            "cost": "0.0000015",
            "cost_micro": 2,
        },
        "modelVersion": "gemini-3",
        "responseId": "r1",
        "x-credits-limit": "wallet",
        "x-credits-cost-micro": 2,
    }


def test_without_a_record_and_without_a_stream_it_says_no_more_than_it_knows():
    assert end(sample={}).keys() == {"candidates", "x-credits-limit"}


def test_a_candidate_that_had_finished_before_the_cut_keeps_its_reason():
    def frame(index, more=b""):
        candidate = b'{"content":{"parts":[{"text":"x"}]},"index":%d%b}' % (index, more)
        return b'data: {"candidates":[%b]}\r\n\r\n' % candidate

    finish = frame(0, b',"finishReason":"STOP"')
    for reads in ([frame(0) + frame(1), finish, frame(1)], [frame(0), frame(1), finish]):
        stream = translator("gemini", choices=2)
        assert all(map(stream.feed, reads))
        assert stream.feed(b"data: {}") == b"", "no whole frame: all that was relayed has been given"
        assert stream.cut(b"", 0, "wallet") == b""
        (response,) = objects(stream.end(None))
        assert [candidate["index"] for candidate in response["candidates"]] == [1]


def test_comments_weigh_nothing():
    stream = translator("gemini")
    relay = stream.feed(b': c\r\n\r\ndata: {"candidates":[{"content":{"parts":[{"text":"x"}]}}]}\r\n\r\n')
    assert stream.cut(relay, 0, "wallet") == b": c\r\n\r\n"
