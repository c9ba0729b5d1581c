"""The client in Python, for machines without a C compiler: as `native/client.c`, and ten times as slow.

Run as `python -m bench.load NAME=VALUE …`; names, marks and figures are described there.
"""

import json
import re
import resource
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.upstream import shown

STAMP: Final = re.compile(rb"@([0-9a-f]{16})([0-9a-f]{16})")
NUMBER: Final = b"#0000000"
AGAIN_NS: Final = 50_000_000
"""After a failure a connection comes again so much later; a server that refuses is not to be hammered."""

LAST: Final = b"\r\n0\r\n\r\n"
STAMP_BYTES: Final = 33


class Connection:
    """One connection and what has been measured on it."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.state = "idle"
        self.again = 0
        self.reset(0)

    def reset(self, asked: int) -> None:
        self.asked, self.sent_at, self.first, self.last_read, self.last_delay = asked, 0, 0, 0, -1
        self.out, self.head, self.tail = b"", b"", b""
        self.status, self.length, self.chunked, self.close_after = 0, -1, False, False
        self.got = self.events = self.number = 0
        self.timed = False


class Load:
    """All connections, and the totals."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.address = (settings.get("host", "127.0.0.1"), int(settings["port"]))
        self.request = Path(settings["request"]).read_bytes()
        self.mode = settings.get("mode", "loop")
        self.count, self.expect = int(settings.get("connections", 1)), int(settings.get("expect", 0))
        self.seconds, self.drain = float(settings.get("seconds", 1)), float(settings.get("drain", 5))
        self.ramp, self.warm = float(settings.get("ramp", 0)), float(settings.get("warm", 0))
        self.rate = float(settings.get("rate", 0))
        self.epoll = select.epoll()
        self.connections = [Connection() for _ in range(self.count)]
        self.by_fd: dict[int, Connection] = {}
        self.free = self.connections[::-1] if self.mode == "open" else []
        self.measuring, self.asking = False, True
        self.started = self.busy = self.numbers = 0
        self.counted = dict.fromkeys(
            ("answers", "failed", "short", "late", "reconnects", "events", "bytes", "streams_begun"), 0
        )
        self.trouble = ""
        self.left: list[tuple[int, int]] = []
        self.times: dict[str, list[int]] = {
            name: []
            for name in (
                "first_byte_ms",
                "added_first_ms",
                "send_late_ms",
                "whole_answer_ms",
                "event_delay_ms",
                "gap_stretch_ms",
                "read_gap_ms",
            )
        }

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, one: Connection, at: int) -> None:
        one.reset(at)
        one.sent_at = time.monotonic_ns()
        self.time("send_late_ms", one.sent_at - at)
        self.busy += 1
        self.numbers += 1
        one.number = self.numbers
        one.out = self.request.replace(NUMBER, b"%08x" % one.number, 1)
        if one.sock is None:
            one.sock = socket.socket()
            one.sock.setblocking(False)
            one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.by_fd[one.sock.fileno()] = one
            one.sock.connect_ex(self.address)
            one.state = "connecting"
            self.epoll.register(one.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        else:
            one.state = "head"
            self.put(one)

    def put(self, one: Connection) -> None:
        assert one.sock is not None
        try:
            one.out = one.out[one.sock.send(one.out) :]
        except BlockingIOError:
            pass
        except OSError:
            one.out = b""  # the answer, or its absence, says what it was
        if one.out:
            self.epoll.modify(one.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def forget(self, one: Connection) -> None:
        if one.sock is not None:
            self.by_fd.pop(one.sock.fileno(), None)
            one.sock.close()
            one.sock = None
        self.rest(one)

    def rest(self, one: Connection) -> None:
        if one.state != "idle":
            self.busy -= 1
            one.state = "idle"

    def fail(self, one: Connection, why: str) -> None:
        self.note(why)
        self.counted["failed"] += 1
        self.forget(one)
        one.again = time.monotonic_ns() + AGAIN_NS
        if self.mode == "open":
            self.free.append(one)

    def note(self, why: str) -> None:
        self.trouble = self.trouble or why[:300]

    def start_due(self, began: int) -> int:
        """Start what is due by now; says when to come again."""
        now = time.monotonic_ns()
        soonest = now + 50_000_000
        if self.mode == "open":
            while self.asking:
                due = began + int(self.started * 1e9 / self.rate)
                if due > now:
                    return min(due, soonest)
                self.started += 1
                if self.free:
                    self.ask(self.free.pop(), due)
                else:
                    self.counted["late"] += 1
            return soonest
        while self.started < self.count:
            due = began + int(self.started * self.ramp * 1e9 / self.count)
            if due > now:
                return min(due, soonest)
            self.ask(self.connections[self.started], time.monotonic_ns())
            self.started += 1
        if self.asking and self.mode != "once":
            for one in self.connections:
                if one.again and one.state == "idle":
                    if one.again > now:
                        soonest = min(soonest, one.again)
                    else:
                        one.again = 0
                        self.ask(one, now)
        return soonest

    # -- reading -----------------------------------------------------------------------------------

    def poll(self, until: int) -> None:
        for fd, events in self.epoll.poll(max((until - time.monotonic_ns()) / 1e9, 0)):
            if one := self.by_fd.get(fd):
                self.on_event(one, events)

    def on_event(self, one: Connection, events: int) -> None:
        assert one.sock is not None
        if events & select.EPOLLOUT or one.state == "connecting":
            error = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.fail(one, f"connect: error {error}")
                return
            if one.state == "connecting":
                one.state = "head"
            self.epoll.modify(one.sock.fileno(), select.EPOLLIN)
            self.put(one)
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = one.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if one.state != "idle":
                self.on_data(one, data)
        elif one.state == "idle":
            self.forget(one)
            self.counted["reconnects"] += 1
        elif one.state == "body" and one.length < 0 and not one.chunked:
            self.finish(one, time.monotonic_ns())
        else:
            self.fail(one, f"closed in its {one.state}")

    def on_data(self, one: Connection, data: bytes) -> None:
        now = time.monotonic_ns()
        if self.measuring:
            self.counted["bytes"] += len(data)
        if one.state == "head":
            one.head += data
            head, found, data = one.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.read_head(one, head.lower())
            if not data and one.length != 0:
                return
        if not one.first:
            one.first = now
            if one.status == 200:
                self.time("first_byte_ms", now - one.asked)
        else:
            self.time("read_gap_ms", now - one.last_read)
        one.last_read = now
        one.got += len(data)
        joined = one.tail + data
        if one.status == 200:
            self.scan(one, joined, len(one.tail), now)
        elif data:
            self.note(f"answered: {one.status} {data[:200].decode(errors='replace')}")
        one.tail = joined[-(STAMP_BYTES - 1) :]
        if (one.length >= 0 and one.got >= one.length) or (one.chunked and joined.endswith(LAST)):
            self.finish(one, now)
        elif self.mode == "leave" and self.asking and one.events >= 2 + one.number % 5:
            self.leave(one)

    def read_head(self, one: Connection, head: bytes) -> None:
        one.state = "body"
        one.status = int(head[9:12])
        one.chunked = b"\r\ntransfer-encoding: chunked" in head
        at = head.find(b"\r\ncontent-length:")
        one.length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 and not one.chunked else -1
        one.close_after = b"\r\nconnection: close" in head or (one.length < 0 and not one.chunked)

    def scan(self, one: Connection, joined: bytes, before: int, now: int) -> None:
        """Count the events by their stamps; one that began in an earlier read is read with its rest."""
        new = joined.count(b"@", before)
        if new and not one.events:
            self.counted["streams_begun"] += 1
        one.events += new
        if self.measuring:
            self.counted["events"] += new
        for found in STAMP.finditer(joined):
            if found.end() <= before:
                continue  # whole in an earlier read
            written, arrived = int(found[1], 16), int(found[2], 16)
            delay = max(now - written, 0)
            if not one.timed:
                one.timed = True
                self.time("added_first_ms", max((now - one.sent_at) - (written - arrived), 0))
            self.time("event_delay_ms", delay)
            if one.last_delay >= 0:
                self.time("gap_stretch_ms", max(delay - one.last_delay, 0))
            one.last_delay = delay

    def time(self, name: str, value: int) -> None:
        if self.measuring:
            self.times[name].append(value)

    def finish(self, one: Connection, now: int) -> None:
        if one.status != 200:
            self.note(f"answered: {one.status} without a body")  # one with a body has been noted already
            self.counted["failed"] += 1
        elif self.expect and one.events != self.expect:
            self.counted["short"] += 1
        elif self.measuring:
            self.counted["answers"] += 1
            self.time("whole_answer_ms", now - one.asked)
        if one.close_after:
            self.forget(one)
        else:
            self.rest(one)
        if not self.asking or self.mode in ("once", "hold"):
            return
        if self.mode == "open":
            self.free.append(one)
        else:
            self.ask(one, time.monotonic_ns())

    def leave(self, one: Connection) -> None:
        now = time.monotonic_ns()
        self.forget(one)
        if self.measuring:
            self.left.append((one.number, now))
        one.again = now + 2_000_000

    # -- the course of it --------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Drive until the time is over; gives the figures."""
        began = time.monotonic_ns()
        opened = began + int(self.ramp * 1e9)
        if self.mode == "hold":
            self.measuring = True
            until = opened + int(self.drain * 1e9)
            while self.counted["streams_begun"] < self.count and time.monotonic_ns() < until:
                self.poll(self.start_due(began))
        elif self.mode != "once":
            until = opened + int(self.warm * 1e9)
            while time.monotonic_ns() < until:
                self.poll(min(self.start_due(began), until))
        self.measuring = True
        print("begin", flush=True)
        window = began if self.mode == "once" else time.monotonic_ns()
        until = window + int(self.seconds * 1e9)
        while time.monotonic_ns() < until:
            self.poll(min(self.start_due(began), until))
            if self.mode == "once" and self.started == self.count and not self.busy:
                break
        took = (time.monotonic_ns() - window) / 1e9
        self.measuring = self.asking = False
        print("end", flush=True)
        until = time.monotonic_ns() + (0 if self.mode == "hold" else int(self.drain * 1e9))
        while self.busy and time.monotonic_ns() < until:
            self.poll(until)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": took,
            **self.counted,
            "asked": self.numbers,
            "held": sum(one.state == "body" and one.events > 0 for one in self.connections),
            "cut": 0 if self.mode == "hold" else self.busy,
            "client_cpu_seconds": used.ru_utime + used.ru_stime,
            "trouble": self.trouble,
            **{name: shown(values) for name, values in self.times.items()},
            "left": self.left,
        }


def main() -> None:
    settings = dict(one.split("=", 1) for one in sys.argv[1:])
    print(json.dumps(Load(settings).run()))


if __name__ == "__main__":
    main()
