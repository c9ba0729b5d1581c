"""Runs ASGI apps for hypercorn's protocol classes: a mailbox for each request, errors kept in their connection."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio
from attrs import define, field
from hypercorn.config import Config as HypercornConfig

from proxy.doors.house import AHEAD_BYTES, App, House, contained

Message = dict[str, Any]


class Owner(Protocol):
    """The connection that apps are run for."""

    async def body_wanted(self) -> None:
        """The app of the present request asks for its body."""
        ...

    def abort(self, *, reset: bool = False) -> None:
        """Close at once."""
        ...


@define(eq=False)
class Mailbox:
    """What an app receives: bounded by bytes, but a goodbye always finds room."""

    _wanted: Callable[[], Awaitable[None]]
    """Called before the first wait of the app: it asks for the body."""
    _messages: deque[Message] = field(factory=deque)
    _bytes: int = 0
    _asked: bool = False
    _goodbye: Message | None = None
    _finished: bool = False
    _arrived: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _room: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    @property
    def said_goodbye(self) -> bool:
        """The client has left, or has all of its answer."""
        return self._goodbye is not None

    async def put(self, message: Message) -> None:
        """Add a message; waits while too much is unread, unless the app has finished or the client left."""
        if self._finished:
            return
        if message["type"].endswith(".disconnect"):
            self._goodbye = message
            self._room.unpark_all()
        else:
            self._messages.append(message)
            self._bytes += _size(message)
        self._arrived.unpark_all()
        while self._bytes > AHEAD_BYTES and self._goodbye is None and not self._finished:
            await self._room.park()

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        if not self._asked:
            self._asked = True
            await self._wanted()
        while not self._messages and self._goodbye is None:
            await self._arrived.park()
        if not self._messages:
            await trio.lowlevel.checkpoint()
            assert self._goodbye is not None  # noqa: S101 - for the type checker
            return self._goodbye
        message = self._messages.popleft()
        self._bytes -= _size(message)
        self._room.unpark_all()
        return message

    def finish(self) -> None:
        """The app has returned: nothing is kept any more."""
        self._finished = True
        self._messages.clear()
        self._room.unpark_all()


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")


@define(eq=False)
class Tasks:
    """Hypercorn's TaskGroup: starts the app of each request, and keeps its errors in the connection."""

    _house: House
    _nursery: trio.Nursery
    _connection: Owner

    async def spawn_app(
        self, app: Any, _config: HypercornConfig, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        """Start the app of a request; gives where its messages go."""
        mailbox = Mailbox(self._connection.body_wanted)
        self._nursery.start_soon(self._run, app, scope, mailbox, send)
        return mailbox.put

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run something of the protocol's own; without it the connection is of no use."""

        async def run() -> None:
            try:
                await func(*args)
            except Exception as error:  # noqa: BLE001 - see the file's docstring
                self._house.failed(error)
                self._connection.abort()

        self._nursery.start_soon(run)

    async def _run(
        self, app: App, scope: Any, mailbox: Mailbox, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        try:
            with contained(self._house.failed):
                await app(scope, mailbox.receive, send)
            mailbox.finish()
            await send(None)  # completes or cuts the answer, as far as it is needed
        except Exception as error:  # noqa: BLE001 - see the file's docstring
            self._house.failed(error)
            self._connection.abort()
        finally:
            mailbox.finish()
