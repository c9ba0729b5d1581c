"""The bench's stand-in provider: OpenAI chat completions over bare epoll, so lean that it is not what is measured.

Run as `python -m bench.upstream`; prints its port. The model's name says what to answer: `plain` one JSON body,
`stream-EVENTS-GAP_US` a stream of that many events with that many microseconds between two of them (0: all at once).
"""

import heapq
import select
import socket
import sys
import time
from collections import deque
from typing import Final

EVENT: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" word word word word word word"},"finish_reason":null}],'
    b'"usage":null}\n\n'
)
FINISH: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
)
USAGE: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)
PLAIN: Final = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello from the bench."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}}'
)
PLAIN_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: bench\r\ncontent-length: %d\r\n\r\n%s"
    % (len(PLAIN), PLAIN)
)
STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"
BURST: Final = 16
"""Events in one chunk where there is no gap: about what a fast provider's socket coalesces."""


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection:
    """One client connection: what it has sent so far, what is still to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = b""
        self.outbox: deque[bytes] = deque()
        self.left = 0
        self.total = 0
        self.gap = 0.0
        self.writable_wanted = False
        self.closed = False


class Server:
    """The loop."""

    def __init__(self, host: str) -> None:
        self.listener = socket.create_server((host, 0), backlog=4096)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[float, int, Connection]] = []
        self.count = 0

    def run(self) -> None:
        """Serve until standard input closes."""
        self.epoll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
        while True:
            wait = max(self.due[0][0] - time.monotonic(), 0) if self.due else -1
            for fd, events in self.epoll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == sys.stdin.fileno():
                    return
                elif connection := self.connections.get(fd):
                    if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                        self.read(connection)
                    if events & select.EPOLLOUT and not connection.closed:
                        self.flush(connection)
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
            self.epoll.register(sock.fileno(), select.EPOLLIN)

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
        while (end := connection.inbox.find(b"\r\n\r\n")) >= 0:
            head = connection.inbox[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(connection.inbox) < end + 4 + length:
                return
            body = connection.inbox[end + 4 : end + 4 + length]
            connection.inbox = connection.inbox[end + 4 + length :]
            self.answer(connection, body)

    def answer(self, connection: Connection, body: bytes) -> None:
        """Begin the answer that the model's name asks for."""
        at = body.find(b"stream-")
        if at < 0:
            connection.outbox.append(PLAIN_ANSWER)
            self.flush(connection)
            return
        _, events, gap = body[at : body.index(b'"', at)].split(b"-")
        connection.total = connection.left = int(events)
        connection.gap = int(gap) / 1e6
        connection.outbox.append(STREAM_HEAD)
        if connection.gap:
            self.schedule(connection, time.monotonic())
        else:
            self.refill(connection)
        self.flush(connection)

    def refill(self, connection: Connection) -> None:
        """Queue the next bursts of a stream without gaps."""
        while connection.left and len(connection.outbox) < 4:
            burst = min(BURST, connection.left)
            connection.left -= burst
            connection.outbox.append(chunk(EVENT * burst))
            if not connection.left:
                self.finish(connection)

    def finish(self, connection: Connection) -> None:
        """Queue the end of a stream."""
        total = connection.total
        connection.outbox.append(chunk(FINISH + USAGE % (total, total + 10)) + END)

    def schedule(self, connection: Connection, at: float) -> None:
        """Come back for the next event."""
        self.count += 1
        heapq.heappush(self.due, (at, self.count, connection))

    def tick(self) -> None:
        """Write every event that is due."""
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            at, _, connection = heapq.heappop(self.due)
            if connection.closed:
                continue
            connection.left -= 1
            connection.outbox.append(chunk(EVENT))
            if connection.left:
                self.schedule(connection, at + connection.gap)
            else:
                self.finish(connection)
            self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """Write what can be written."""
        while connection.outbox:
            data = connection.outbox.popleft()
            try:
                sent = connection.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close(connection)
                return
            if sent < len(data):
                connection.outbox.appendleft(data[sent:])
                self.want_writable(connection, wanted=True)
                return
            if not connection.gap:
                self.refill(connection)
        self.want_writable(connection, wanted=False)

    def want_writable(self, connection: Connection, *, wanted: bool) -> None:
        """Ask epoll for room, or no longer."""
        if connection.writable_wanted != wanted:
            connection.writable_wanted = wanted
            self.epoll.modify(connection.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def close(self, connection: Connection) -> None:
        """Forget a connection."""
        connection.closed = True
        self.connections.pop(connection.sock.fileno(), None)
        connection.sock.close()


if __name__ == "__main__":
    server = Server("127.0.0.1")
    print(server.port, flush=True)
    server.run()
