"""The bytes of an answer: what can be sent is, and nothing in a header can break out of its line."""

import re

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.doors import heads
from proxy.doors.heads import Dates, checked, chunk, lines, sound_line, status_line, whole

NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
SOME = st.text(st.characters(max_codepoint=300), max_size=5)


@given(st.dictionaries(SOME | st.sampled_from(["x-a", "b"]), SOME, max_size=4))
def test_headers_pass_exactly_if_each_is_one_line(headers):
    sound = all(NAME.fullmatch(name) and VALUE.fullmatch(value) for name, value in headers.items())
    if sound:
        assert checked(headers) == headers
        assert lines(headers).count(b"\n") == len(headers)
        return
    with pytest.raises(ValueError, match="the header"):
        checked(headers)


def test_a_bad_header_is_named_and_its_value_is_not():
    with pytest.raises(ValueError, match="'x-b'") as caught:
        checked({"x-a": "fine", "x-b": "se\ncret"})
    assert "cret" not in str(caught.value)


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_bytes_pass_as_text_does(name, value):
    text = name.decode("latin-1"), value.decode("latin-1")
    assert sound_line(name, value) == bool(NAME.fullmatch(text[0]) and VALUE.fullmatch(text[1]))


class Client:
    def __init__(self):
        self.body, self.complete = b"", False

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.complete = True


@given(st.lists(st.binary(max_size=300)))
def test_chunks_are_what_a_client_puts_together_again(parts):
    client = Client()
    parser = httptools.HttpResponseParser(client)
    parser.feed_data(status_line(200) + heads.CHUNKED + b"\r\n")
    for part in parts:
        assert not client.complete
        parser.feed_data(chunk(part))
    assert not client.complete
    parser.feed_data(heads.LAST_CHUNK)
    assert (client.body, client.complete) == (b"".join(parts), True)


def test_a_whole_answer_says_its_length():
    client = Client()
    parser = httptools.HttpResponseParser(client)
    parser.feed_data(whole(599, {"x-a": "ä"}, b"hello"))
    assert (parser.get_status_code(), client.body, client.complete) == (599, b"hello", True)


def test_a_date_is_made_once_a_second(monkeypatch):
    dates, now = Dates(), 1_800_000_000.2
    monkeypatch.setattr(heads.time, "time", lambda: now)
    first = dates.line()
    assert first == b"date: Fri, 15 Jan 2027 08:00:00 GMT\r\n"
    now += 0.5
    assert dates.line() is first
    now += 0.5
    assert dates.line() == b"date: Fri, 15 Jan 2027 08:00:01 GMT\r\n"
