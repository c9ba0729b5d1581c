"""URLs and headers of each kind of provider: what travels, what never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Rejected
from proxy.types import Ask, Measures, Secret
from proxy.upstreams.http1 import lines_of
from proxy.upstreams.providers import TRAVELLING, URLS_MAX, Way, anthropic, gemini, openai
from tests.offers import model, offer
from tests.values import evolve

OFFER = offer(model("google/gemini-x", "gemini"))
ASK = Ask("openai_chat", "m", stream=False, measures=Measures(text_bytes=1), fields={})
STREAM = evolve(ASK, stream=True)
COUNT = evolve(ASK, free=True)
KEY = Secret("the-key")
KINDS = (openai, anthropic, gemini)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1/chat/completions"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434/v1/chat/completions"),
        ("https://api.groq.com/openai/v1/", "https://api.groq.com/openai/v1/chat/completions"),
    ],
)
def test_an_openai_base_url_is_taken_as_sdks_take_it(base, url):
    assert openai.url(base, STREAM, OFFER) == url


def test_openai_has_no_route_to_count_on_and_none_that_generates_is_taken_instead():
    with pytest.raises(Rejected):
        openai.url("https://api.openai.com/v1", COUNT, OFFER)


@pytest.mark.parametrize("base", ["https://api.anthropic.com", "https://api.anthropic.com/v1/"])
def test_an_anthropic_base_url_works_with_and_without_version(base):
    assert anthropic.url(base, STREAM, OFFER) == "https://api.anthropic.com/v1/messages"
    assert anthropic.url(base, COUNT, OFFER) == "https://api.anthropic.com/v1/messages/count_tokens"


def test_gemini_names_model_and_action_in_the_path_and_streams_as_events():
    base = "https://generativelanguage.googleapis.com"
    models = f"{base}/v1beta/models/gemini-x"
    assert gemini.url(base, ASK, OFFER) == f"{models}:generateContent"
    assert gemini.url(base, STREAM, OFFER) == f"{models}:streamGenerateContent?alt=sse"
    assert (
        gemini.url(base, evolve(STREAM, gemini_array=True), OFFER)
        == f"{models}:streamGenerateContent?alt=sse"
    )
    assert gemini.url(f"{base}/v1/", COUNT, OFFER) == f"{base}/v1/models/gemini-x:countTokens"


@given(st.text(max_size=60))
def test_no_model_name_can_choose_another_path_on_gemini(name):
    url = gemini.url("https://host", ASK, evolve(OFFER, wire_name=f"gemini-x@{name}"))
    assert url.startswith("https://host/v1beta/models/gemini-x@")
    assert url.endswith(":generateContent")
    inner = url.removeprefix("https://host/v1beta/models/gemini-x@").removesuffix(":generateContent")
    assert not set(inner) & set("/:?# \r\n\\")


def test_each_kind_carries_the_credential_in_its_own_header_only():
    assert dict(openai.headers(KEY, ASK))["authorization"] == "Bearer the-key"
    assert dict(anthropic.headers(KEY, ASK))["x-api-key"] == "the-key"
    assert dict(gemini.headers(KEY, ASK))["x-goog-api-key"] == "the-key"
    for kind in KINDS:
        assert sum("the-key" in value for _, value in kind.headers(KEY, ASK)) == 1
        assert "the-key" not in kind.url("https://host", STREAM, OFFER)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_credentials_gets_none(kind):
    names = {name for name, _ in kind.headers(Secret(""), ASK)}
    assert not names & {"authorization", "x-api-key", "x-goog-api-key"}


@pytest.mark.parametrize("kind", KINDS)
def test_compression_is_declined_and_we_say_who_we_are(kind):
    headers = dict(kind.headers(KEY, ASK))
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "farebox"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_to_an_account_is_what_its_kind_says(kind):
    way = Way(kind, "https://host/v1", KEY)
    own = evolve(ASK, headers=(("anthropic-beta", "theirs"),))
    for ask in (ASK, STREAM, own, ASK, own, STREAM):
        assert way.url(ask, OFFER) == kind.url("https://host/v1", ask, OFFER)
        assert way.headers(ask) == kind.headers(KEY, ask)
    other = evolve(OFFER, wire_name="another")
    assert way.url(ASK, other) == kind.url("https://host/v1", ASK, other)
    assert way.headers(ASK) is way.headers(STREAM)


def test_a_way_shows_no_credential_and_remembers_no_end_of_urls():
    way = Way(gemini, "https://host", KEY)
    way.headers(ASK)
    for number in range(URLS_MAX + 5):
        way.url(ASK, evolve(OFFER, wire_name=f"m@{number}"))
    assert len(way._urls) <= URLS_MAX
    assert "the-key" not in repr(way)


def test_a_way_to_openai_has_no_route_to_count_on_however_often_it_is_asked():
    way = Way(openai, "https://host", KEY)
    way.url(ASK, OFFER)
    for _ in range(2):
        with pytest.raises(Rejected):
            way.url(COUNT, OFFER)


NEVER = (
    "authorization", "x-api-key", "x-user-key", "x-goog-api-key", "api-key", "cookie", "host", "connection",
    "content-length", "transfer-encoding", "x-forwarded-for", "forwarded", "x-credits-live",
    "openai-organization", "openai-project", "x-stainless-retry-count",
    "user-agent", "accept-encoding", "x-session-id",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NEVER)
def test_nothing_outside_the_list_travels_even_if_a_dialect_lets_it_through(kind, name):
    ask = evolve(ASK, headers=((name, "the-callers"),))
    assert "the-callers" not in {value for _, value in kind.headers(KEY, ask)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_on_the_list_travels(kind):
    ask = evolve(ASK, headers=tuple((name, f"its {name}") for name in sorted(TRAVELLING)))
    sent = kind.headers(KEY, ask)
    assert {f"its {name}" for name in TRAVELLING} <= {value for _, value in sent}
    assert len({name for name, _ in sent}) == len(sent)


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "\u2028", "ä", "a\0", "x" * 5000])
def test_a_value_that_is_no_plain_text_does_not_travel(value):
    ask = evolve(ASK, headers=(("anthropic-beta", value),))
    assert "anthropic-beta" not in dict(anthropic.headers(KEY, ask))


def test_a_list_that_ends_in_a_blank_travels_without_it():
    """Two headers of one name are joined; where the second is empty, that could not be sent."""
    ask = evolve(ASK, headers=(("openai-beta", "x, "), ("accept", " ")))
    sent = dict(openai.headers(Secret("k"), ask))
    assert (sent["openai-beta"], sent["accept"]) == ("x,", "")
    assert lines_of(openai.headers(Secret("k"), ask))


def test_anthropic_is_told_a_version_where_the_caller_names_none():
    assert dict(anthropic.headers(KEY, ASK))["anthropic-version"] == anthropic.VERSION
    theirs = evolve(ASK, headers=(("anthropic-version", "2026-10-21"),))
    assert dict(anthropic.headers(KEY, theirs))["anthropic-version"] == "2026-10-21"
