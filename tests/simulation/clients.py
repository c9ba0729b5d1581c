"""Clients: they ask, read fast or slowly, leave or stay, try again, and remember what they saw."""

import math
import re
from typing import Final

import trio
from attrs import define, field

from proxy.types import Path
from tests.simulation.wire import LANGUAGES, REQUESTS, Asked

HEARTBEATS: Final = (b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n', b"\r\n", b"\n")

COST: Final = re.compile(rb'(?:"x-credits-cost-micro"|"cost": ?"[^"]*", ?"cost_micro"): ?(\d+)')
"""What an answer has cost; not what it had cost by then."""

ROUTES: Final = {
    "openai_chat": lambda _asked: Path("openai_chat"),
    "anthropic": lambda asked: Path("anthropic", "count" if asked.free else "generate"),
    "gemini": lambda asked: Path(
        "gemini",
        "count" if asked.free else "stream" if asked.stream else "generate",
        asked.model,
        sse=not asked.array,
    ),
}


@define(eq=False)
class Call:
    """What a client wants, over all its tries.

    Attributes:
        leaves: seconds after which it hangs up, or `None`.
        slow: seconds that it takes to read what it is sent, each time.
        stops_reading: it reads nothing more after its first bytes.
        tries: how often it asks at most.
    """

    number: int
    dialect: str
    asked: Asked
    key: int
    headers: dict
    leaves: float | None = None
    slow: float = 0.0
    stops_reading: bool = False
    tries: int = 1


@define(eq=False)
class Seen:
    """What a client saw of one try; also the ASGI `send` that its bytes come through.

    Attributes:
        id: of the request.
        content_at: when the first byte of an answer's body came, heartbeats not counted.
        over: the answer was finished, as far as the client can tell.
        left: the client has hung up.
        lost: the connection broke.
        routed_ms: wall clock when it was routed, and its price pinned.
    """

    id: str
    call: Call
    life: object
    promised: object
    number: int
    began: float
    key: int = 0
    status: int = 0
    headers: dict = field(factory=dict)
    body: bytearray = field(factory=bytearray)
    content_at: float | None = None
    over: bool = False
    left: bool = False
    left_at: float = math.inf
    lost: bool = False
    refused: bool = False
    routed_ms: int = 0
    hang_up: object = None
    write_seconds: float = 60.0

    @property
    def complete(self):
        """The client has every reason to think that this is the whole answer."""
        if not self.over or self.status != 200:
            return False
        if not self.call.asked.stream:
            return True
        return LANGUAGES[self.call.dialect].saw_end(bytes(self.body))

    @property
    def cost_micro(self):
        """What the client was told that the answer costs, in a header or in the last report of usage."""
        if not self.call.asked.stream:
            return int(self.headers["x-credits-cost-micro"])
        told = COST.findall(self.body[-2048:])
        return int(told[-1]) if told else None

    async def send(self, message):
        """Take what the gateway sends (ASGI)."""
        dies = self.life.touch("reply")
        if self.left:
            await trio.lowlevel.checkpoint()
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            await trio.lowlevel.checkpoint()
            return
        body, last = message["body"], not message["more_body"]
        self.body += body
        self.over = last
        if self.status == 200 and ((body and body not in HEARTBEATS) or last) and b'"error"' not in body:
            if self.content_at is None:
                self.content_at = trio.current_time()
            self.promised(self, last)
        if dies:
            self.life.fall("reply")
        if self.call.stops_reading and body:
            await trio.sleep(self.write_seconds)
            self.left_at = trio.current_time()
            self.hang_up()
        elif self.call.slow:
            await trio.sleep(self.call.slow)
        else:
            await trio.lowlevel.checkpoint()


@define(eq=False)
class Request:
    """Implements `proxy.types.Request`."""

    id: str
    headers: dict
    content: bytes
    seen: Seen
    wall: object
    upload: float
    method: str = "POST"
    path: str = "/"
    query: str = ""

    async def body(self, _bytes_max, _room):
        if self.upload:
            await trio.sleep(self.upload)
        else:
            await trio.lowlevel.checkpoint()
        self.seen.routed_ms = self.wall()
        return self.content


def request_of(seen, secret, wall, upload):
    """The request of one try."""
    call = seen.call
    asked = call.asked
    asked.tag = f"call-{call.number}-{seen.number}"
    carrier = {
        "openai_chat": ("authorization", f"Bearer {secret}"),
        "anthropic": ("x-api-key", secret),
        "gemini": ("x-goog-api-key", secret),
    }[call.dialect]
    return Request(
        seen.id, {carrier[0]: carrier[1], **call.headers}, REQUESTS[call.dialect](asked), seen, wall, upload
    )
