"""The bench's client: many requests at once over bare epoll, measured from outside; prints one line of JSON.

Run as `python -m bench.load PORT KEY MODEL CONCURRENCY SECONDS [STREAM]`. Each connection asks, reads the whole answer
and asks again until the time is over; what is under way then is read to its end.
"""

import json
import select
import socket
import sys
import time
from typing import Any, Final

DRAIN_SECONDS: Final = 30.0


def percentile(values: list[float], share: float) -> float | None:
    """The value below which a share of all lies."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Client:
    """One connection and what has been measured on it."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.address, self.request = address, request
        self.sock: socket.socket
        self.head = b""
        self.tail = b""
        self.sent_at = 0.0
        self.first_at = 0.0
        self.length: int | None = None
        self.chunked = False
        self.got = 0
        self.events = 0
        self.idle = True
        self.tail_at = 0.0

    def connect(self) -> None:
        self.sock = socket.create_connection(self.address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)

    def ask(self) -> None:
        self.head, self.tail, self.length, self.got, self.events = b"", b"", None, 0, 0
        self.first_at = 0.0
        self.idle = False
        self.sent_at = time.perf_counter()
        self.sock.send(self.request)


class Load:
    """All connections, and the totals."""

    def __init__(self, port: int, key: str, model: str, concurrency: int, *, stream: bool) -> None:
        fields: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": "Say hello, and then say some words."}],
            "max_tokens": 100_000 if stream else 16,
            "stream": stream,
        }
        body = json.dumps(fields).encode()
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer %s\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (key.encode(), len(body), body)
        )
        self.clients = [Client(("127.0.0.1", port), request) for _ in range(concurrency)]
        self.stream = stream
        self.answers = self.failed = self.events = 0
        self.first: list[float] = []
        self.whole: list[float] = []
        self.gaps: list[float] = []

    def run(self, seconds: float) -> dict[str, Any]:
        """Drive until the time is over; gives the figures."""
        epoll = select.epoll()
        by_fd = {}
        for client in self.clients:
            client.connect()
            by_fd[client.sock.fileno()] = client
            epoll.register(client.sock.fileno(), select.EPOLLIN)
        began = time.perf_counter()
        for client in self.clients:
            client.ask()
        until = began + seconds
        while time.perf_counter() < until + DRAIN_SECONDS and not all(client.idle for client in self.clients):
            for fd, _ in epoll.poll(0.2):
                client = by_fd[fd]
                if self.read(client) and time.perf_counter() < until:
                    client.ask()
        took = time.perf_counter() - began
        return {
            "seconds": took,
            "answers": self.answers,
            "failed": self.failed + sum(not client.idle for client in self.clients),
            "events": self.events,
            "answers_per_second": self.answers / took,
            "events_per_second": self.events / took,
            "first_byte_ms": self.shown(self.first),
            "whole_answer_ms": self.shown(self.whole),
            "read_gap_ms": self.shown(self.gaps),
        }

    @staticmethod
    def shown(values: list[float]) -> dict[str, float | None]:
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        found = {name: percentile(values, share) for name, share in shares.items()}
        return {name: None if value is None else value * 1000 for name, value in found.items()}

    def read(self, client: Client) -> bool:
        """Take bytes; true when an answer is over and the connection is free."""
        try:
            data = client.sock.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        now = time.perf_counter()
        if not data:
            self.failed += 1
            client.idle = True
            client.sock.close()  # leaves epoll too; else it would be readable for ever
            return False
        if client.length is None and not client.chunked:
            client.head += data
            head, found, data = client.head.partition(b"\r\n\r\n")
            if not found:
                return False
            lowered = head.lower()
            if not head.startswith(b"HTTP/1.1 200"):
                self.failed += 1
            client.chunked = b"transfer-encoding: chunked" in lowered
            if not client.chunked:
                at = lowered.index(b"content-length:")
                client.length = int(lowered[at + 15 :].split(b"\r\n", 1)[0])
        if data:
            if not client.first_at:
                client.first_at = now
                self.first.append(now - client.sent_at)
            elif self.stream:
                self.gaps.append(now - client.tail_at)
            client.tail_at = now
        client.got += len(data)
        joined = client.tail + data
        if self.stream:
            # an event ends in a blank line; what an earlier read has counted must not count again
            client.events += joined.count(b"}\n\n") - client.tail.count(b"}\n\n")
        client.tail = joined[-8:]
        over = joined.endswith(b"\r\n0\r\n\r\n") if client.chunked else client.got >= (client.length or 0)
        if over:
            self.answers += 1
            self.events += client.events
            self.whole.append(now - client.sent_at)
            client.idle, client.chunked = True, False
        return over


def main() -> None:
    port, key, model, concurrency, seconds = sys.argv[1:6]
    load = Load(int(port), key, model, int(concurrency), stream="stream" in model)
    print(json.dumps(load.run(float(seconds))))


if __name__ == "__main__":
    main()
