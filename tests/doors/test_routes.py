"""Which path means what, in whose dialect, and which one is promised for later."""

import pytest

from proxy.doors.routes import FIXED, Refusal, dialect_of, is_api, route
from proxy.errors import Kind
from proxy.types import Path


@pytest.mark.parametrize("path", FIXED)
@pytest.mark.parametrize("query", ["", "beta=true", "x=%2F..%2F"])
def test_a_fixed_route_is_itself_whatever_the_query_says(path, query):
    assert route("POST", path, query) == FIXED[path]


@pytest.mark.parametrize("prefix", ["/v1beta", "/v1", "/genai/v1beta", "/genai/v1"])
@pytest.mark.parametrize("models", ["", "models/"])
@pytest.mark.parametrize(
    ("verb", "action"),
    [("generateContent", "generate"), ("streamGenerateContent", "stream"), ("countTokens", "count")],
)
def test_gemini_is_spoken_under_every_prefix(prefix, models, verb, action):
    found = route("POST", f"{prefix}/models/{models}gemini-2.5-pro:{verb}", "")
    assert found == Path("gemini", action, "gemini-2.5-pro")


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("google%2Fgemini-2.5-pro", "google/gemini-2.5-pro"),
        ("a:b", "a:b"),
        ("a%3Ab", "a:b"),
        ("sandbox-gemini@tokens=5,gap_ms=1", "sandbox-gemini@tokens=5,gap_ms=1"),
    ],
)
def test_a_models_name_may_hold_slashes_colons_and_parameters(raw, model):
    assert route("POST", f"/v1beta/models/{raw}:generateContent", "").model == model


@pytest.mark.parametrize(
    ("query", "sse"), [("alt=sse", True), ("key=x&alt=sse", True), ("alt=json", False), ("", False)]
)
def test_events_are_given_to_whoever_asks_for_them(query, sse):
    assert route("POST", "/v1/models/m:streamGenerateContent", query).sse is sse


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai_chat"),
        ("/v1/messages", "anthropic"),
        ("/v1beta/models/m:countTokens", "gemini"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH", "TRACE"])
def test_another_method_is_refused_in_the_routes_dialect(path, dialect, method):
    found = route(method, path, "")
    assert (found.dialect, found.failure.kind, found.allow) == (dialect, Kind.WRONG_METHOD, "POST, OPTIONS")


@pytest.mark.parametrize(
    "path",
    ["/v1/responses", "/v1/responses/resp_1", "/v1/completions", "/v1/embeddings", "/v1/images/generations",
     "/v1/audio/speech", "/v1/videos/v_1/content", "/v1/realtime", "/v1beta/models/m:embedContent",
     "/genai/v1beta/models/m:batchEmbedContents"],
)  # fmt: skip
def test_what_comes_later_says_so(path):
    found = route("POST", path, "")
    assert isinstance(found, Refusal)
    assert found.failure.status == 404
    assert "yet" in found.failure.message


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/models", "/v1/models/gpt-4o", "/v1/chat/completions/", "/V1/messages", "/v1/models/m:other",
     "/v1/models/:generateContent", "/metrics", "/admin/x", "/v1/responsesx"],
)  # fmt: skip
def test_everything_else_is_left_to_the_pages(path):
    assert route("POST", path, "") is None


def test_errors_of_unknown_paths_are_shaped_by_prefix_or_header():
    assert dialect_of("/genai/x", {}) == "gemini"
    assert dialect_of("/v1/x", {"anthropic-version": "2023-06-01"}) == "anthropic"
    assert dialect_of("/v1/x", {}) == "openai_chat"


def test_only_the_api_is_open_to_browsers_of_any_origin():
    assert is_api("/v1/models")
    assert is_api("/api/models")
    assert not is_api("/health")
