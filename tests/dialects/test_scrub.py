"""What is taken out of a provider's sentences, and what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.scrub import MESSAGE_CHARACTERS_MAX, scrub
from proxy.upstreams.failures import private

PRIVATE = [
    "org-abc123DEF456",
    "proj_abcdef123456",
    "sk-proj-abcdefghijklmnop",
    "sk-a***********xyz",
    "AIzaSyA1234567890",
    "Bearer abc.def",
    "someone@project-1.iam.gserviceaccount.com",
    "project_number:123456789",
    "projects/my-project-42",
    "user-abcdefghij",
    "the-secret",
    "https://inner.example:8443/base",
    "inner.example:8443",
]


@pytest.mark.parametrize("secret", PRIVATE)
@pytest.mark.parametrize("around", ["{}", "Rate limit for '{}' reached.", "({}).", "a {}, b"])
def test_nothing_of_the_operators_is_left_in_a_message(secret, around):
    hidden = private("https://inner.example:8443/base", ["the-secret"])
    text = scrub(around.format(secret), hidden)
    for part in (secret, "inner.example", "abcdef", "123456", "my-project"):
        assert part not in text


def test_what_the_caller_needs_is_left():
    text = (
        "messages.3.content.0: 'max_tokens' is too large: 500000. This model supports at most 16384 (docs)."
    )
    assert scrub(text, ()) == text


@given(st.text(max_size=5000), st.lists(st.text(min_size=1, max_size=20), max_size=3))
def test_a_scrubbed_message_is_one_printable_bounded_line(text, hidden):
    scrubbed = scrub(text, hidden)
    assert len(scrubbed) <= MESSAGE_CHARACTERS_MAX
    assert scrubbed.isprintable()


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ("limit in organization org-Zk31Lm90qPwX on tokens", "Zk31Lm90qPwX"),
        ("project proj_a1B2c3D4e5 is archived", "a1B2c3D4e5"),
        ("Incorrect API key provided: sk-proj-abcDEF12345678.", "abcDEF"),
        ("key AIzaSyA1234567890abcdef is wrong", "AIzaSy"),
        ("mail bill.payer@example.com", "payer"),
        ("see https://platform.openai.com/account?org=1", "platform"),
        ("Quota for project_number:123456789 and projects/my-proj-77", "my-proj-77"),
        ("sent Authorization: Bearer abc.def", "abc.def"),
    ],
)
def test_a_providers_sentence_is_passed_on_without_its_operator(said, gone):
    words = scrub(said)
    assert gone not in words
    assert "…" in words


def test_a_providers_sentence_is_bounded_and_printable():
    words = scrub("a\r\nb\x00" + "long " * 1000)
    assert words.isprintable()
    assert len(words) <= MESSAGE_CHARACTERS_MAX
