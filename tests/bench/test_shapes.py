import json

import pytest

from bench.shapes import Shape, body, request
from bench.upstream import TOLD


def test_what_is_asked_for_stands_in_the_text_and_is_found_there():
    content = body(Shape(100, 20_000, 50_000), "m").replace(b"#0000000", b"0000002a")
    kind, *numbers = TOLD.search(content).groups()
    assert (kind, [int(one) for one in numbers[:3]], int(numbers[3], 16)) == (
        b"stream",
        [100, 20_000, 50_000],
        42,
    )


@pytest.mark.parametrize(("load", "least", "most"), [("small", 100, 400), ("context", 1_000_000, 1_200_000)])
def test_bodies_are_as_large_as_they_should_be(load, least, most):
    content = body(Shape(), "m", load)
    assert least < len(content) < most
    assert json.loads(content)["messages"][0]["content"].startswith("bench=plain,")


def test_images_are_base64_of_a_megabyte_each():
    text, *images = json.loads(body(Shape(5), "m", "images"))["messages"][0]["content"]
    assert text["text"].startswith("bench=stream,5,")
    assert [len(image["image_url"]["url"]) // 10**6 for image in images] == [1, 1, 1, 1]
    assert len({image["image_url"]["url"] for image in images}) == 4


def test_a_request_says_its_length():
    found = request("/v1/x", "h:1", {"authorization": "Bearer k"}, b"{}")
    head, _, content = found.partition(b"\r\n\r\n")
    assert content == b"{}"
    assert b"content-length: 2" in head
    assert b"authorization: Bearer k" in head


def test_a_stream_lasts_as_long_as_its_gaps():
    assert Shape(100, 10_000, 500_000).seconds == 1.5
    assert not Shape().stream
