"""Keys: every carrier goes through one function, garbage is refused early, and nothing is ever compared as text."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from accounting.records import Key
from proxy.errors import Kind, Rejected
from proxy.keys import KeyRing, digest_of, hint_of, new_key

PREFIX = "fb_sk_"
NOW_MS = 1_000_000


def made(seed=7):
    return new_key(PREFIX, lambda size: bytes([seed]) * size)


class Store:
    def __init__(self, *keys):
        self.keys = {key.digest: key for key in keys}
        self.asked = []

    def key_by_digest(self, digest):
        self.asked.append(digest)
        return self.keys.get(digest)


def ring(*keys):
    return KeyRing(Store(*keys), PREFIX, lambda: NOW_MS)


def record(secret, **more):
    return Key(key="key_1", wallet="w_1", digest=digest_of(secret), hint="fb…", at_ms=0, **more)


def refused(headers, query="", dialect="openai_chat", keys=()):
    with pytest.raises(Rejected) as caught:
        ring(*keys).caller(headers, query, dialect)
    assert caught.value.kind is Kind.NO_KEY
    return caught.value.message


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": "Bearer {}"}, ""),
        ({"authorization": "bearer {}"}, ""),
        ({"x-api-key": "{}"}, ""),
        ({"x-user-key": "{}"}, ""),
        ({"x-goog-api-key": "{}"}, ""),
        ({}, "alt=sse&key={}"),
        ({"authorization": "Bearer {}", "x-api-key": "{}"}, ""),
    ],
)
def test_every_carrier_finds_the_caller(headers, query):
    secret = made()
    headers = {name: value.format(secret) for name, value in headers.items()}
    caller = ring(record(secret)).caller(headers, query.format(secret), "gemini")
    assert (caller.spender.wallet, caller.spender.key) == ("w_1", "key_1")


def test_the_query_carries_a_key_on_gemini_alone():
    secret = made()
    assert "No API key" in refused({}, f"key={secret}", "openai_chat", [record(secret)])


def test_two_different_keys_are_refused_whichever_is_good():
    good, other = made(1), made(2)
    message = refused({"authorization": f"Bearer {good}", "x-api-key": other}, keys=[record(good)])
    assert "Two different" in message


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer "}, {"x-api-key": "  "}])
def test_no_key_at_all_is_refused(headers):
    assert "No API key" in refused(headers)


def test_another_scheme_than_bearer_is_refused():
    assert "Bearer" in refused({"authorization": "Basic abc"})


def test_a_typing_error_is_told_from_a_key_that_is_not_known():
    secret = made()
    wrong = secret[:-8] + ("0" if secret[-8] != "0" else "1") + secret[-7:]
    keys = ring(record(secret))
    with pytest.raises(Rejected, match="not a key of this gateway"):
        keys.caller({"x-api-key": wrong}, "", "openai_chat")


def test_what_a_key_comes_to_is_made_anew_when_its_record_has_changed():
    secret = made()
    keys = ring(record(secret))
    first, again = (keys.caller({"x-api-key": secret}, "", "openai_chat") for _ in range(2))
    assert first is again
    keys.store.keys = {digest: replace(one, markup_ppm=7) for digest, one in keys.store.keys.items()}
    assert keys.caller({"x-api-key": secret}, "", "openai_chat").markup_ppm == 7


def test_an_unknown_a_revoked_and_an_expired_key_are_refused():
    secret = made()
    assert "not known" in refused({"x-api-key": secret})
    assert "revoked" in refused({"x-api-key": secret}, keys=[record(secret, revoked=True)])
    assert "expired" in refused({"x-api-key": secret}, keys=[record(secret, expires_ms=NOW_MS)])
    assert ring(record(secret, expires_ms=NOW_MS + 1)).caller({"x-api-key": secret}, "", "openai_chat")


def test_a_key_of_an_earlier_prefix_still_works():
    old = new_key("oc_sk_", lambda size: b"\x05" * size)
    assert ring(record(old)).caller({"x-api-key": old}, "", "openai_chat")


@given(st.text(max_size=300))
def test_no_text_in_a_key_header_does_anything_but_be_refused(text):
    with pytest.raises(Rejected) as caught:
        ring().caller({"authorization": f"Bearer {text}"}, "", "openai_chat")
    assert caught.value.kind is Kind.NO_KEY
    if len(text.strip()) > 12:
        assert text.strip() not in caught.value.message


def test_a_new_key_has_256_bits_in_62_letters_and_its_hint_hides_them():
    secret = made()
    assert secret.startswith(PREFIX)
    assert set(secret.removeprefix(PREFIX)) <= set(string.ascii_letters + string.digits)
    assert len(secret) == len(PREFIX) + 43 + 6
    assert len(hint_of(secret, PREFIX)) < 20
    assert made(1) != made(2)
