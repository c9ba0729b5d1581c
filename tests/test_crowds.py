"""More clients than there is room for: those who are served go on being served."""

import json
import socket
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import httpx

from tests.conftest import running

REQUEST = {"model": "sandbox-chat", "messages": [{"role": "user", "content": "hello"}]}

FEW = ("sh", "-c", 'ulimit -n 300 && exec "$@"', "sh")


def test_connections_that_ask_for_nothing_take_no_descriptor_from_the_books(tmp_path):
    """Nobody needs a key for those, and one process's default limit is often no more than a thousand."""
    with (
        running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path, under=FEW) as gate,
        httpx.Client(base_url=gate.base_url, trust_env=False, timeout=30) as client,
        ExitStack() as idle,
    ):
        answer = partial(
            client.post, "/v1/chat/completions", json=REQUEST, headers={"authorization": f"Bearer {gate.key}"}
        )
        assert answer().status_code == 200
        address = urlsplit(gate.base_url)
        for _ in range(600):
            idle.enter_context(socket.create_connection((address.hostname, address.port)))
        for _ in range(10):
            assert answer().status_code == 200
        assert gate.verify()["ok"]
        idle.close()
        assert httpx.get(f"{gate.base_url}/health/ready", trust_env=False).status_code == 200
    assert gate.process.returncode == 0
    told = [json.loads(line) for line in gate.log_path.read_text().splitlines()]
    few = [line["because"] for line in told if line["event"] == "descriptors_few"]
    assert few == ["with 300 descriptors 57 requests and 58 connections fit"]
    assert "store_failed" not in {line["event"] for line in told}
