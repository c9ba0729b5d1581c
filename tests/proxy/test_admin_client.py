"""How commands find and ask a running gateway: what is missing or foreign is one sentence, never a traceback."""

import json

import httpx
import pytest

from proxy.admin_client import ADDRESS_FILE, TOKEN_FILE, Address, AdminClient, Unreachable
from proxy.errors import Rejected
from proxy.types import Secret

ADDRESS = Address("http://127.0.0.1:1", "http://127.0.0.1:2", 3)


class Wire:
    """Where requests go instead of a socket."""

    def __init__(self):
        self.requests = []
        self.answers = None

    def __call__(self, request):
        self.requests.append(request)
        return self.answers(request)


@pytest.fixture
def wire(monkeypatch):
    wire, plain = Wire(), httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **more: plain(transport=httpx.MockTransport(wire), **more))
    return wire


def client():
    return AdminClient(ADDRESS, Secret("the-token"))


@pytest.mark.parametrize(
    ("address", "token"),
    [
        (None, b"t"),
        (b"", b"t"),
        (b"{", b"t"),
        (b"[]", b"t"),
        (b'{"base_url": "x"}', b"t"),
        (b'{"base_url": "a", "admin_url": "b", "pid": "c"}', b"t"),
        (b'{"base_url": "\xff", "admin_url": "b", "pid": 1}', b"t"),
        (b'{"base_url": "a", "admin_url": "b", "pid": 1}', None),
        (b'{"base_url": "a", "admin_url": "b", "pid": 1}', b"\xff"),
    ],
)
def test_a_state_directory_that_names_no_gateway_is_said(tmp_path, address, token):
    for name, content in ((ADDRESS_FILE, address), (TOKEN_FILE, token)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreachable, match="no gateway has said where it listens"):
        AdminClient.of(tmp_path)


def test_the_state_directory_names_address_and_token(tmp_path):
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"base_url": "a", "admin_url": "b", "pid": 1}))
    (tmp_path / TOKEN_FILE).write_text("secret\n")
    found = AdminClient.of(tmp_path)
    assert (found.address, found.token.reveal()) == (Address("a", "b", 1), "secret")
    assert "secret" not in f"{found}{found!r}"


def test_an_operation_is_posted_with_the_token(wire):
    wire.answers = lambda _request: httpx.Response(200, json={"ok": True})
    assert client().call("verify", b"{}") == {"ok": True}
    [request] = wire.requests
    assert (request.method, str(request.url)) == ("POST", "http://127.0.0.1:2/admin/verify")
    assert request.headers["authorization"] == "Bearer the-token"


def test_what_the_gateway_refuses_is_refused_here_in_its_words(wire):
    wire.answers = lambda _request: httpx.Response(409, json={"error": {"message": "used before"}})
    with pytest.raises(Rejected, match="used before") as caught:
        client().call("top_up", b"{}")
    assert caught.value.status == 409


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (200, b'{"a": "\xff"}'),
        (404, b"{}"),
        (500, b'{"error": "x"}'),
        (502, b""),
    ],
)
def test_an_answer_that_is_not_a_gateways_is_said(wire, status, content):
    wire.answers = lambda _request: httpx.Response(status, content=content)
    with pytest.raises(Unreachable, match="no gateway's admin listener"):
        client().call("verify", b"{}")


def test_a_gateway_that_does_not_answer_is_named_without_the_token(wire):
    def answers(_request):
        raise httpx.ConnectError("connection refused")

    wire.answers = answers
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:2.*connection refused") as caught:
        client().call("verify", b"{}")
    assert "the-token" not in str(caught.value)


def test_an_address_that_is_none_is_said():
    with pytest.raises(Unreachable):
        client().send("GET", "http://[", {})
