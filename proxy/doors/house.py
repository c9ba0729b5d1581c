"""What all connections of one server share, and how an error stays in the connection that it happened in."""

import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio
from attrs import define, field
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext

from proxy.alarms import Alarms
from proxy.config import RequestLimits, Server
from proxy.doors.fork import Door, Log, dialect_asked, named
from proxy.doors.guard import Guard, Refused, refusal
from proxy.doors.hangups import Hangups
from proxy.doors.heads import Dates, whole
from proxy.errors import Kind, Rejected

READ_BYTES: Final = 65_536
"""One read; also what a client may send ahead of the answer to its request before we stop reading."""
SEND_BYTES: Final = 65_536
"""Each piece of this size has the whole write deadline: who is slow is served, who stands still is not."""
AHEAD_BYTES: Final = 262_144
"""Body that is read before the app asks for it."""
GRACE_SECONDS: Final = 1.0
"""An app that keeps the body's deadline itself answers first, in its own words."""
STRAY_SECONDS: Final = 2.0
"""A refused client has so long to stop sending before its connection is reset."""
LINGER_NOT: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""`struct linger`: on, for zero seconds; closing then resets."""

App = Callable[[Any, Any, Any], Awaitable[None]]


class Drained(Protocol):
    """A connection, as the end of serving sees it."""

    def stop_if_idle(self) -> None:
        """The server goes down: close, unless a request is under way."""
        ...


@define(eq=False)
class House:
    """What all connections of one server share.

    Attributes:
        app: the ASGI application.
        hypercorn: the settings that hypercorn's protocol classes read.
        context: tells them that the server is going down.
        state: the lifespan's, copied for each request.
        log: where errors of connections go.
        new_id: makes the id that stands on a refusal, where there is such a maker.
        door: which API requests are answered without the app; the fast door asks, `None` is an app like any other.
        connections: those that are open.
        alarms, hangups: the server's own; they run while it does.
        helpers: tasks that belong to no connection; `None` before and after serving.
        going_down: no further request is begun.
    """

    app: App
    hypercorn: HypercornConfig
    context: WorkerContext
    state: dict[str, Any]
    settings: Server
    limits: RequestLimits
    log: Log
    new_id: Callable[[], str] | None
    door: Door | None = None
    connections: set[Drained] = field(factory=set)
    dates: Dates = field(factory=Dates)
    alarms: Alarms = field(init=False)
    hangups: Hangups = field(init=False)
    helpers: trio.Nursery | None = None
    going_down: bool = False

    def refusal(self, refused: Refused, guard: Guard | None = None) -> bytes:
        """Word a refusal: in the dialect of the path that was asked for, as far as one was read."""
        request_id = self.new_id() if self.new_id is not None else None
        if self.door is None or guard is None or request_id is None:
            return refusal(refused, request_id)
        target, sent = guard.asked
        path, _, query = target.partition("?")
        dialect = dialect_asked(path, query, sent)
        if dialect == "openai_chat":
            return refusal(refused, request_id)
        failure = Rejected(Kind.BAD_REQUEST, refused.message, status=refused.status)
        wording = self.door.gateway.dialects[dialect].error(failure, request_id)
        headers = named(request_id, dialect) | dict(wording.headers) | {"connection": "close"}
        return whole(wording.status, headers | dict(refused.headers), wording.body)

    def failed(self, error: BaseException) -> None:
        """Log an error of a connection: its kinds and where it came from, never what it says or was sent."""
        self.log("error", "connection_failed", error="; ".join(places(error)))


def places(error: BaseException) -> list[str]:
    """Of each error in it: the kind and where it came from, without its words or values."""
    if isinstance(error, BaseExceptionGroup):
        return [place for one in error.exceptions for place in places(one)]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return [type(error).__name__ + where]


class contained:  # noqa: N801 - it reads as a statement: with contained(log): …
    """Keep every Exception, grouped or not, inside; let cancellation and the end of the process through."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, BaseExceptionGroup):
            ours, others = error.split(Exception)
            if ours is not None:
                self._failed(ours)
            if others is not None:
                raise others
            return True
        if isinstance(error, Exception):
            self._failed(error)
            return True
        return False


def upload_seconds(settings: Server, received_bytes: int) -> float:
    """How long a client may have taken for so much of a body."""
    return settings.body_seconds_min + received_bytes / settings.body_bytes_per_second_min
