"""A sandbox and gateways over loopback: how they are set up and asked, and what stands in books and bills."""

import json
import socket
import struct
import time

import httptools
import httpx
import pytest
import trio

PATIENCE_SECONDS = 15
"""Whoever waits for another process gives up after this; nothing here takes so long."""

DIALECTS = ("openai", "anthropic", "gemini")
MODELS = {"openai": "sandbox-chat", "anthropic": "sandbox-claude", "gemini": "sandbox-gemini"}
CONTENT = {"openai": b'"delta":{"content":"', "anthropic": b'"text_delta"', "gemini": b'"text":"'}
LAST = {
    "openai": b"data: [DONE]\n\n",
    "anthropic": b'{"type":"message_stop"}\n\n',
    "gemini": b'"finishReason"',
}
"""What the end of a stream has in it that was not cut off."""

BUCKETS = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning")


# Setting up


def provider(name, kind, url, *, stops, accounts=("one",)):
    """A `[[provider]]` that is the sandbox."""
    base = f"{url}/v1" if kind == "openai" else url
    lines = [
        f'[[provider]]\nname = "{name}"\nkind = "{kind}"\nbase_url = "{base}"',
        f'models = ["sandbox/*"]\nstops_billing = "{stops}"',
        *(f'[[provider.account]]\nname = "{one}"\napi_key = "sk-{one}"' for one in accounts),
    ]
    return "\n".join(lines)


def providers(url):
    """Every dialect with a provider whose bill a hang-up stops (`…_yes`), and one where it does not (`…_no`)."""
    known = [
        provider(f"{kind}_{stops}", kind, url, stops=stops) for kind in DIALECTS for stops in ("yes", "no")
    ]
    known.append(provider("openai_unknown", "openai", url, stops="unknown"))
    known.append(provider("pair", "openai", url, stops="yes", accounts=("pair-1", "pair-2")))
    return "\n".join(known)


DENSE = """
currency = "USD"
source = "invented"
checked = 2026-11-21

[model."sandbox/dense"]
name = "Sandbox dense"
family = "sandbox"
wire_name = "sandbox-dense"
output_field = "max_completion_tokens"
dense_bytes_per_token = 4
released = 2026-11-21

[price."sandbox/dense"]
per_million = { input = "1.00", cache_read = "0.10", output = "4.00" }
"""
"""An operator's own prices, and a model whose tokens are as short as the data allows: JSON, cut every four bytes."""

STREAMING = {
    "write_seconds": 1.0,
    "muted_max": 24,
    "muted_per_key_max": 2,
    "heartbeat_seconds": 0.3,
    "content_seconds": 2.0,
    "reasoning_seconds": 3.0,
}
"""The deadlines and bounds of the gateways by which streams are tested: short ones."""


def streaming(path, url, *, hidden="mute"):
    """Settings for tests of streams; gives the arguments that name them and a state directory beside them."""
    prices = path.with_name("prices.toml")
    prices.write_text(DENSE)
    path.write_text(
        f"""
        on_hangup_hidden = "{hidden}"
        log_level = "warning"
        [listen]
        admin_port = 0
        [server]
        write_seconds = {STREAMING["write_seconds"]}
        [limits]
        muted_max = {STREAMING["muted_max"]}
        muted_per_key_max = {STREAMING["muted_per_key_max"]}
        [deadlines]
        heartbeat_seconds = {STREAMING["heartbeat_seconds"]}
        first_content_seconds = {STREAMING["content_seconds"]}
        first_content_reasoning_seconds = {STREAMING["reasoning_seconds"]}
        idle_seconds = {STREAMING["content_seconds"]}
        idle_reasoning_seconds = {STREAMING["reasoning_seconds"]}
        [failover]
        rest_failed_seconds = 0.05
        [pricing]
        files = ["{prices}"]
        {providers(url)}
        """
    )
    return ("--config", path, "--state", path.parent / "state")


# Asking


def question(dialect, provider, told="", *, stream=True, most=1000, model=None, text="Tell me something."):
    """Path and body of a request, with directives for the sandbox."""
    name = f"{provider}/{model or MODELS[dialect]}" + (f"@{told}" if told else "")
    if dialect == "gemini":
        action = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"/v1beta/models/{name}:{action}", {
            "contents": [{"role": "user", "parts": [{"text": text}]}],
            "generationConfig": {"maxOutputTokens": most},
        }
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    said = [{"role": "user", "content": text}]
    return path, {"model": name, "messages": said, "max_tokens": most, "stream": stream}


def address_of(url):
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def request_bytes(host, key, path, body, headers=None):
    content = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n{more}\r\n"
    )
    return head.encode() + content


class Client:
    """One blocking connection of which every byte, and its end, is in our hands."""

    def __init__(self, gate, key, path, body, *, receive_bytes=None):
        self.sock = socket.socket()
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(address_of(gate.base_url))
        self.sock.sendall(request_bytes("gateway", key, path, body))
        self.seen = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def read(self, marker=b"\r\n\r\n", count=1):
        """Read until a marker has come so often."""
        while self.seen.count(marker) < count:
            data = self.sock.recv(65_536)
            assert data, self.seen
            self.seen += data
        return self.seen

    @property
    def request_id(self):
        head = self.read().partition(b"\r\n\r\n")[0].decode().lower()
        return next(line[14:] for line in head.split("\r\n") if line.startswith("x-request-id: "))

    def hang_up(self, how):
        """By FIN or RST; gives the moment, in monotonic milliseconds."""
        at = time.monotonic() * 1000
        if how == "fin":
            self.sock.shutdown(socket.SHUT_WR)
        else:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
        return at


class Heard:
    """An answer as it came over a `Connection`.

    Attributes:
        whole: its own end was seen, by length or last chunk; a connection that is cut has none.
        first, ended: when its first byte of a body came, and its end; monotonic seconds.
    """

    def __init__(self):
        self.status = 0
        self.headers = {}
        self.body = bytearray()
        self.whole = False
        self.first = self.ended = None

    @property
    def request(self):
        return self.headers.get("x-request-id")

    def json(self):
        return json.loads(self.body)

    def on_header(self, name, value):
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data):
        if self.first is None:
            self.first = time.monotonic()
        self.body += data

    def on_message_complete(self):
        self.whole = True
        self.ended = time.monotonic()

    def has_ended(self, dialect, *, stream=True):
        """Whether a client would take it for a complete answer."""
        marked = not stream or LAST[dialect] in self.body[-4096:]
        return self.whole and self.status == 200 and marked and b'"error"' not in self.body[-4096:]


class Connection:
    """A quick client on trio: one connection, kept from request to request for as long as it lasts."""

    def __init__(self, url, key):
        self.host, self.port = address_of(url)
        self.key = key
        self.stream = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def close(self):
        """Hang up, by FIN; nothing that is on its way can be waited for."""
        if self.stream is not None:
            self.stream.socket.close()
            self.stream = None

    async def ask(self, path, body, *, until=lambda _heard: False, headers=None, heard=None):
        """Ask, and read the answer: to its end, until the connection is cut, or until `until(heard)`: then hang up.

        Raises:
            OSError: nobody listens.
        """
        heard = heard or Heard()
        if self.stream is None:
            self.stream = await trio.open_tcp_stream(self.host, self.port)
        parser = httptools.HttpResponseParser(heard)
        try:
            await self.stream.send_all(request_bytes(self.host, self.key, path, body, headers))
            while not heard.whole and not until(heard):
                data = await self.stream.receive_some(65_536)
                if not data:
                    break
                parser.feed_data(data)
                heard.status = parser.get_status_code()
        except trio.BrokenResourceError:
            pass
        finally:
            if not heard.whole or not parser.should_keep_alive():
                self.close()
        return heard


# What the books and the bills say


class Provider:
    """The sandbox's own view: what it received since the last `mark`, and what it would invoice."""

    def __init__(self, url):
        self.url = url
        self.after = 0
        self.http = httpx.Client(trust_env=False, timeout=60)

    def __enter__(self):
        self.mark()
        return self

    def __exit__(self, *_):
        self.http.close()

    def calls(self):
        answer = self.http.get(f"{self.url}/sandbox/calls", params={"after": self.after}).json()
        assert answer["dropped"] == 0
        return answer["data"]

    def mark(self):
        self.after = max((call["received_at"] for call in self.calls()), default=self.after)

    def only_call(self, until):
        """The one call since the mark, as soon as `until` is true of it."""

        def found():
            calls = self.calls()
            assert len(calls) <= 1
            return calls[0] if calls and until(calls[0]) else None

        return eventually(found)


def eventually(find, seconds=PATIENCE_SECONDS):
    """What `find` gives, as soon as it gives anything; another process's state has no clock to move."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = find()
        if found:
            return found
        time.sleep(0.01)
    pytest.fail(f"it did not happen within {seconds} s")


def credits_of(gate, key):
    return gate.get("/v1/credits", key).json()


def slots_left(gate, key):
    return gate.get("/v1/key", key).json()["remaining"]["concurrency"]


def record_of(gate, request, key):
    """The operator's record of a request, as soon as it is settled; the caller's must say the same."""

    def found():
        return gate.admin("usage", request=request)[1]["data"]

    records = eventually(found)
    assert gate.usage(request, key)["cost_micro"] == sum(record["cost_micro"] for record in records)
    return records[-1]


def newest(gate, key, count=1):
    """The newest records of a key's wallet, as soon as there are so many."""

    def found():
        page = gate.get("/v1/usage?limit=100", key).json()["data"]
        return page if len(page) >= count else None

    return eventually(found)


def everything(gate, **query):
    """All records, newest first, page by page."""
    records, cursor = [], None
    while True:
        page = gate.admin("usage", limit=1000, **query, **({"cursor": cursor} if cursor else {}))[1]
        records += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return records


def buckets(record):
    written = record["cache_creation"]
    return {
        "input": record["input_tokens"],
        "cache_read": record["cache_read_input_tokens"],
        "cache_write_5m": written["ephemeral_5m_input_tokens"],
        "cache_write_1h": written["ephemeral_1h_input_tokens"],
        "output": record["output_tokens"],
        "reasoning": record["reasoning_tokens"],
    }


def metrics(gate):
    """What the gateway counts, by name and labels."""
    answer = httpx.get(
        f"{gate.facts['admin_url']}/metrics",
        headers={"authorization": f"Bearer {gate.admin_token}"},
        trust_env=False,
    )
    lines = (line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def muted(gate):
    """How many answers are read on for clients who left."""
    return int(metrics(gate)["farebox_answers_muted"])
