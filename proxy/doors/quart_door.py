"""The QuartTrio app: API requests go straight into the request path, everything else Quart's ordinary way.

Quart's view would have to return before its answer is sent, in a generator that a disconnect may end before
its first step; `RESPONSE_TIMEOUT` would cut long streams, and `MAX_CONTENT_LENGTH` refuse images. So API
requests branch off in `asgi_http_class`, before Quart makes anything of them: one function, `respond`, owns
the whole life of such a request, inside one nursery.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Blueprint, Request, Response, request
from quart.wrappers.request import Body
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers.request import TrioBody, TrioRequest
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from proxy.doors.fork import REQUEST_ID, Door, Log, Respond, Whole, fork
from proxy.doors.heads import checked
from proxy.doors.house import places
from proxy.doors.reply import DoorReply
from proxy.doors.request import DoorRequest
from proxy.doors.routes import Refusal, dialect_of
from proxy.errors import Failure, Kind, Rejected
from proxy.gateway import Gateway
from proxy.types import Path

PAGE_BODY_BYTES_MAX: Final = 2**20
"""Forms and small JSON; bodies of API requests do not pass Quart."""

_KINDS: Final = {
    400: Kind.BAD_REQUEST,
    404: Kind.UNKNOWN_ROUTE,
    405: Kind.WRONG_METHOD,
    413: Kind.TOO_LARGE,
}
_SENTENCES: Final = {
    Kind.BAD_REQUEST: "{} is not understood.",
    Kind.UNKNOWN_ROUTE: "There is no route {}.",
    Kind.WRONG_METHOD: "{} is not offered; see the allow header.",
    Kind.TOO_LARGE: "The body of {} is too large.",
}


class _Body(TrioBody):
    """A body that knows whether anybody wants it."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, max_content_length)
        self.wanted = trio.Event()

    def __await__(self) -> Generator[Any, None, Any]:
        self._want()
        return super().__await__()

    def __aiter__(self) -> Body:
        self._want()
        return super().__aiter__()

    def _want(self) -> None:
        if self._must_raise is None:  # else it is refused by its announced length
            self.wanted.set()


class _Request(TrioRequest):
    """A request to a page."""

    body_class = _Body


class _Connection(TrioASGIHTTPConnection):
    """One request at the fork: to `respond`, to a refusal, or to Quart."""

    app: "DoorApp"

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Take the fork."""
        scope: Any = self.scope
        if REQUEST_ID in scope:  # the fast door has taken it before
            await super().__call__(receive, send)
            return
        door, asked = self.app.door, _request_of(scope, receive, self.app.door)
        found = fork(door, asked)
        if isinstance(found, Path):
            await self._respond(found, asked, send)
        elif found is not None:
            await _send_whole(send, found)
        else:
            scope[REQUEST_ID] = asked.id
            await super().__call__(receive, send)

    async def handle_messages(  # type: ignore[override]  # quart_trio's own has the nursery too
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Pass the body on; Quart asks for it at once, and then there would be a 100 before any routing."""
        if "expect" in request.headers and isinstance(request.body, _Body):
            await request.body.wanted.wait()
        await super().handle_messages(nursery, request, receive)

    async def _respond(self, path: Path, asked: DoorRequest, send: Any) -> None:
        door = self.app.door
        async with trio.open_nursery() as nursery:
            headers = door.headers(asked.path, asked.id, path.dialect)
            reply = DoorReply(send, nursery, headers=headers)

            async def watch() -> None:
                await asked.disconnect()
                reply.hang_up()

            asked.client_left = reply.hang_up
            asked.body_read = lambda: nursery.start_soon(watch)
            await door.respond(door.gateway, path, asked, reply)
            nursery.cancel_scope.cancel()  # the watcher has nothing more to watch


class _Upgrade(TrioASGIWebsocketConnection):
    """A websocket that is asked for: no route here speaks one yet, and Quart never sees it.

    Quart's own refusal would ask our error handler for words about a request that it does not have.
    """

    app: "DoorApp"

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Refuse it."""
        scope: Any = self.scope
        door, asked = self.app.door, _request_of({**scope, "method": "GET"}, receive, self.app.door)
        found = fork(door, asked)
        if not isinstance(found, Whole):
            failure = Rejected(Kind.UNKNOWN_ROUTE, "This route takes no websockets.")
            found = door.worded(Refusal(dialect_of(asked.path, asked.headers), failure), asked)
        await _send_whole(send, found, upgrade=True)


def _request_of(scope: Any, receive: Any, door: Door) -> DoorRequest:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return DoorRequest(
        id=door.new_id(),
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        receive=receive,
        settings=door.gateway.config.server,
    )


async def _send_whole(send: Any, whole: Whole, *, upgrade: bool = False) -> None:
    kind = "websocket.http.response" if upgrade else "http.response"
    length = {} if whole.status == 204 else {"content-length": str(len(whole.body))}
    lines = checked(whole.headers) | length
    encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in lines.items()]
    await send({"type": f"{kind}.start", "status": whole.status, "headers": encoded})
    await send({"type": f"{kind}.body", "body": whole.body, "more_body": False})


class DoorApp(QuartTrio):
    """QuartTrio with our fork in front, and our errors behind."""

    request_class = _Request
    asgi_http_class = _Connection
    asgi_websocket_class = _Upgrade
    door: Door

    async def worded(self, error: Exception) -> Response | HTTPException:
        """Whatever went wrong on Quart's side, in the caller's dialect."""
        if isinstance(error, HTTPException) and (error.code or 500) < 400:
            return error  # a redirect
        failure = error if isinstance(error, Failure) else self._failure_of(error)
        dialect = self.door.gateway.dialects[dialect_of(request.path, _lower(request.headers))]
        wording = dialect.error(failure, request_id())
        response = Response(wording.body, status=wording.status, headers=dict(wording.headers))
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["allow"] = ", ".join(sorted(error.valid_methods))
        return response

    def _failure_of(self, error: Exception) -> Failure:
        if isinstance(error, HTTPException) and error.code in _KINDS:
            kind = _KINDS[error.code]
            return Rejected(kind, _SENTENCES[kind].format(f"{request.method} {request.path[:200]}"))
        if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
            return Rejected(Kind.BAD_REQUEST, "The request is not understood.", status=error.code)
        self.door.log("error", "page_failed", request=request_id(), error="; ".join(places(error)))
        return Failure(Kind.INTERNAL, f"Something went wrong here. The request's id is {request_id()}.")

    async def named(self, response: Response) -> Response:
        """Put on what is on every answer."""
        headers = _lower(request.headers)
        dialect = dialect_of(request.path, headers)
        response.headers.update(self.door.headers(request.path, request_id(), dialect))
        return response


def request_id() -> str:
    """The id of the request that the present Quart view answers."""
    return str(request.scope[REQUEST_ID])  # type: ignore[typeddict-item]


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def build(
    gateway: Gateway,
    api_routes: Iterable[Blueprint],
    blueprints: Iterable[Blueprint] = (),
    *,
    respond: Respond,
    new_id: Callable[[], str],
    log: Log,
) -> DoorApp:
    """Make the ASGI app of the gateway.

    Args:
        gateway: handed on to `respond`; its dialects word what is refused here.
        api_routes: the plain JSON routes.
        blueprints: pages, health and whatever else is not the API.
        respond: `proxy.serve.respond`.
        new_id: makes request ids.
        log: takes a level, an event's name and fields.
    """
    app = DoorApp("proxy", static_folder=None)
    app.door = Door(gateway, respond, new_id, log)
    app.config["MAX_CONTENT_LENGTH"] = PAGE_BODY_BYTES_MAX
    for blueprint in (*api_routes, *blueprints):
        app.register_blueprint(blueprint)
    app.register_error_handler(Exception, app.worded)
    app.after_request(app.named)
    return app
