"""The stand-in provider in Python, for machines without a C compiler: as `native/provider.c`, and ten times as slow.

Run as `python -m bench.upstream [PORT]`; prints its port and serves until standard input closes. What to answer stands
in the text of the request, as `bench=KIND,EVENTS,GAP_US,FIRST_US,ID;`: see there.
"""

import heapq
import json
import os
import re
import select
import socket
import sys
import time
from collections import deque
from typing import Any, Final

TOLD: Final = re.compile(rb"bench=([a-z]+),(\d+),(\d+),(\d+),([0-9a-f]{1,8});")
EVENT: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":"@%032x"},"finish_reason":null}],'
    b'"usage":null}\n\n'
)
FINISH: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
PLAIN: Final = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello from the bench."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'
)
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: bench\r\ncontent-length: %d\r\n\r\n"
)
PLAIN_ANSWER: Final = HEAD % len(PLAIN) + PLAIN
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"
BURST: Final = 64
"""Events that a stream without gaps may write before others have their turn."""


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def unchunked(data: bytes) -> tuple[bytes, int] | None:
    """The content of a body in chunks and how long it is as sent, or `None` while it is not whole."""
    at, content = 0, []
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        if len(data) < line + 2 + size + 2:
            return None
        content.append(data[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
        if not size:
            return b"".join(content), at
    return None


class Connection:
    """One client connection: what it has sent so far, what is still to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox: deque[bytes] = deque()
        self.left = self.total = self.number = 0
        self.arrived = self.gap = self.due = 0
        self.stream = self.writing = self.begun = self.scheduled = False
        self.wants_write = self.closed = False


class Server:
    """The loop."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[int, int, Connection]] = []
        self.count = 0
        self.forget()

    def forget(self) -> None:
        self.requests = self.events = 0
        self.closed: list[tuple[int, int]] = []
        self.lag: list[int] = []

    def run(self) -> None:
        """Serve until standard input closes."""
        self.epoll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
        while True:
            wait = max((self.due[0][0] - time.monotonic_ns()) / 1e9, 0) if self.due else -1
            for fd, events in self.epoll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == sys.stdin.fileno():
                    return
                elif connection := self.connections.get(fd):
                    if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                        self.close(connection)
                        continue
                    if events & select.EPOLLIN:
                        self.read(connection)
                    if events & select.EPOLLOUT and not connection.closed:
                        self.room(connection)
            self.tick()

    def accept(self) -> None:
        """Take every connection that waits."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = Connection(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def read(self, connection: Connection) -> None:
        """Take bytes, and answer each whole request."""
        try:
            data = connection.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
            return
        connection.inbox += data
        while not connection.closed and (end := connection.inbox.find(b"\r\n\r\n")) >= 0:
            head = bytes(connection.inbox[:end]).lower()
            if b"transfer-encoding: chunked" in head:
                found = unchunked(bytes(connection.inbox[end + 4 :]))
                if found is None:
                    return
                body, length = found
            else:
                at = head.find(b"content-length:")
                length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
                if len(connection.inbox) < end + 4 + length:
                    return
                body = bytes(connection.inbox[end + 4 : end + 4 + length])
            del connection.inbox[: end + 4 + length]
            if head.startswith(b"get /bench/stats"):
                self.tell(connection)
            elif head.startswith(b"get /bench/drop"):
                self.drop(connection)
            else:
                self.answer(connection, body)

    def tell(self, connection: Connection) -> None:
        """Say what has been seen, and forget it."""
        found: dict[str, Any] = {
            "pid": os.getpid(),
            "requests": self.requests,
            "events": self.events,
            "open": sum(one.writing for one in self.connections.values()),
            "lag_ms": shown(self.lag),
            "closed": self.closed,
        }
        self.forget()
        body = json.dumps(found).encode()
        self.put(connection, HEAD % len(body) + body)

    def drop(self, asking: Connection) -> None:
        """Hang up on every answer that is under way."""
        for connection in list(self.connections.values()):
            if connection.writing:
                self.close(connection)
        self.put(asking, HEAD % 2 + b"{}")

    def answer(self, connection: Connection, body: bytes) -> None:
        """Begin the answer that is asked for."""
        self.requests += 1
        told = TOLD.search(body)
        kind, *numbers = told.groups() if told else (b"plain", b"0", b"0", b"0", b"0")
        total, gap, first = map(int, numbers[:3])
        stream = kind == b"stream" and total > 0
        if not stream and not first:
            self.put(connection, PLAIN_ANSWER)
            return
        connection.number = int(numbers[3], 16)
        connection.stream, connection.writing, connection.begun = stream, True, False
        connection.left = connection.total = total
        connection.arrived = time.monotonic_ns()
        connection.gap, connection.due = gap * 1000, connection.arrived + first * 1000
        if stream:
            self.put(connection, STREAM_HEAD)
        self.schedule(connection)

    def schedule(self, connection: Connection) -> None:
        """Come back for the next event."""
        if not connection.scheduled and not connection.closed:
            connection.scheduled = True
            self.count += 1
            heapq.heappush(self.due, (connection.due, self.count, connection))

    def tick(self) -> None:
        """Write every event that is due by now."""
        now = time.monotonic_ns()
        while self.due and self.due[0][0] <= now:
            _, _, connection = heapq.heappop(self.due)
            connection.scheduled = False
            if connection.writing and not connection.closed and not connection.outbox:
                self.write(connection)

    def write(self, connection: Connection) -> None:
        """Write what is due of one answer; one that its client holds up goes on when there is room."""
        if connection.gap or not connection.begun:
            self.lag.append(time.monotonic_ns() - connection.due)
        if not connection.stream:
            connection.writing, connection.number = False, 0
            self.put(connection, PLAIN_ANSWER)
            return
        connection.begun = True
        for _ in range(1 if connection.gap else BURST):
            if not connection.left or connection.outbox or connection.closed:
                break
            connection.left -= 1
            self.events += 1
            self.put(connection, chunk(EVENT % (time.monotonic_ns() << 64 | connection.arrived)))
        connection.due += connection.gap
        if not connection.left:
            self.finish(connection)
        elif not connection.outbox:
            self.schedule(connection)

    def finish(self, connection: Connection) -> None:
        """Write the end of a stream."""
        total = connection.total
        connection.writing, connection.number = False, 0
        self.put(connection, chunk(FINISH % (total, total + 10)) + END)

    def put(self, connection: Connection, data: bytes) -> None:
        """Write, or keep what does not go."""
        if connection.closed:
            return
        if not connection.outbox:
            data = data[self.send(connection, data) :]
        if data and not connection.closed:
            connection.outbox.append(data)
            self.want_write(connection, wanted=True)

    def room(self, connection: Connection) -> None:
        """There is room again: write what was kept, and go on."""
        while connection.outbox and not connection.closed:
            data = connection.outbox.popleft()
            sent = self.send(connection, data)
            if sent < len(data):
                connection.outbox.appendleft(data[sent:])
                return
        if connection.closed:
            return
        self.want_write(connection, wanted=False)
        if connection.writing and connection.left:
            self.schedule(connection)
        elif connection.writing:
            self.finish(connection)

    def send(self, connection: Connection, data: bytes) -> int:
        try:
            return connection.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close(connection)
            return len(data)

    def want_write(self, connection: Connection, *, wanted: bool) -> None:
        """Ask epoll for room, or no longer."""
        if connection.wants_write != wanted:
            connection.wants_write = wanted
            events = select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLOUT if wanted else 0)
            self.epoll.modify(connection.sock.fileno(), events)

    def close(self, connection: Connection) -> None:
        """Forget a connection."""
        if connection.number:
            self.closed.append((connection.number, time.monotonic_ns()))
        connection.closed = True
        connection.writing = False
        connection.outbox.clear()
        self.connections.pop(connection.sock.fileno(), None)
        connection.sock.close()


def shown(nanoseconds: list[int]) -> dict[str, float] | None:
    """The same figures of a list of times as the C programs give, in milliseconds."""
    if not nanoseconds:
        return None
    ordered, count = sorted(nanoseconds), len(nanoseconds)
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
    found = {name: ordered[min(int(count * share), count - 1)] / 1e6 for name, share in shares.items()}
    return {"count": count, "mean": sum(ordered) / count / 1e6, **found, "max": ordered[-1] / 1e6}


if __name__ == "__main__":
    server = Server(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(server.port, flush=True)
    server.run()
