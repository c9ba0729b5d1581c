"""The first token waits for nobody's acknowledgement: no connection of the gateway holds small writes back.

Head and first event are two small writes, of the provider and of the gateway. Without TCP_NODELAY the kernel keeps the
second until the first was acknowledged, and the other side's kernel puts that off for 40 ms: each answer's first token
comes so much later. How late it is cannot be told on a busy machine; whether the option is set on every connection can.
"""

import gc
import json
import signal
import socket
import sys

import pytest
import trio
from attrs import evolve

from proxy import app
from proxy.config import Account, Config, Provider
from proxy.types import Secret
from tests.loopback import request_bytes
from tests.upstreams.scripted import CERTIFICATE, CHUNKED, chunk, server_context, trusting

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word %d "}}]}\n\n'
LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}\n\n'
    b"data: [DONE]\n\n"
)
EVENTS = 5
PATIENCE_SECONDS = 20


class Sides:
    """The provider and the client: each event is sent when the one before has arrived.

    Attributes:
        looked_at: how many connections of the gateway there are.
        held: the other ends of those that may hold bytes back.
    """

    def __init__(self, context):
        self.context = context
        self.arrived = trio.Semaphore(0)
        self.ends = []
        self.looked_at, self.held = 0, set()

    async def provide(self, stream):
        if self.context is not None:
            await stream.do_handshake()
        self.ends.append(plain(stream).socket.getsockname())
        with trio.move_on_after(PATIENCE_SECONDS):
            for _ in range(2):
                data = b""
                while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                    data += await stream.receive_some()
                await stream.send_all(CHUNKED)  # the head, by itself
                for number in range(EVENTS):
                    await stream.send_all(chunk(EVENT % number))
                    await self.arrived.acquire()
                    self.look()
                await stream.send_all(chunk(LAST) + b"0\r\n\r\n")
            await stream.receive_some()

    async def ask(self, port, key):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        self.ends.append(stream.socket.getsockname())
        if self.context is not None:
            stream = trio.SSLStream(stream, trusting(), server_hostname="127.0.0.1", https_compatible=True)
        body = {
            "model": "sandbox-chat",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "max_tokens": 100,
        }
        for _ in range(2):
            await stream.send_all(request_bytes("127.0.0.1", key, "/v1/chat/completions", body))
            seen = b""
            for number in range(EVENTS):
                while b"word %d " % number not in seen:
                    more = await stream.receive_some()
                    assert more, seen
                    seen += more
                self.arrived.release()
            while not seen.endswith(b"0\r\n\r\n"):
                seen += await stream.receive_some()
        await trio.aclose_forcefully(stream)

    def look(self):
        """Find the gateway's ends among all objects of the process, whoever made them and keeps them."""
        found = [
            one for one in gc.get_objects() if isinstance(one, socket.socket) and peer_of(one) in self.ends
        ]
        theirs = [one for one in found if one.getsockname() not in self.ends]
        self.looked_at = max(self.looked_at, len(theirs))
        self.held |= {
            one.getpeername() for one in theirs if not one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        }


def plain(stream):
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


def peer_of(one):
    try:
        return one.getpeername()
    except OSError:  # it listens, or is closed
        return None


def configured(tmp_path, door, provider, certificate):
    base = Config()
    known = Provider(
        name="one",
        kind="openai",
        base_url=f"{'https' if certificate else 'http'}://127.0.0.1:{provider}/v1",
        account=(Account("one", Secret("sk-one")),),
        models=("sandbox/chat",),
        stops_billing="yes",
    )
    return evolve(
        base,
        listen=evolve(base.listen, port=0, admin_port=0, tls_certificate=certificate, tls_key=certificate),
        books=evolve(base.books, state_dir=str(tmp_path / "state")),
        server=evolve(base.server, door=door),
        provider=(known,),
        log_level="error",
    )


def key_of(config):
    def command(operation, **arguments):
        return app.operate(config, operation, json.dumps(arguments).encode())

    wallet = command("wallet_create", name="one")["wallet"]
    command("top_up", wallet=wallet, amount="10")
    return command("key_create", wallet=wallet)["key"]


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("door", ["fast", "hypercorn"])
def test_no_connection_holds_a_small_write_back(tmp_path, monkeypatch, door, encrypted):
    pem = tmp_path / "pem"
    context = server_context(pem) if encrypted else None
    pem.write_text(CERTIFICATE)
    # whom we trust comes from no setting: the provider's own certificate has to be put in
    monkeypatch.setattr("httpx.create_ssl_context", lambda **_: trusting())
    provider = socket.create_server(("127.0.0.1", 0))
    config = configured(tmp_path, door, provider.getsockname()[1], str(pem) if encrypted else None)
    key = key_of(config)

    async def main():
        sides = Sides(context)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(provider))
        if context is not None:
            listener = trio.SSLListener(listener, context, https_compatible=True)
        ready = trio.Event()
        facts = {}

        def noted(found):
            facts.update(found)
            ready.set()

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as providing:
                providing.start_soon(trio.serve_listeners, sides.provide, [listener])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(app.run_gateway, config, noted)
                    await ready.wait()
                    await sides.ask(int(facts["base_url"].rpartition(":")[2]), key)
                    signal.raise_signal(signal.SIGTERM)
                providing.cancel_scope.cancel()
        return sides

    switching = sys.getswitchinterval()
    try:
        sides = trio.run(main)
    finally:
        sys.setswitchinterval(switching)  # a gateway has a process to itself otherwise
    assert sides.looked_at == 2, "the client's connection and the provider's"
    assert not sides.held
