"""Requests and an app for tests of servers."""

import trio

HEAD = b"POST /x HTTP/1.1\r\nhost: a\r\n"
HELLO = HEAD + b"content-length: 5\r\n\r\nhello"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def until(condition):
    while not condition():
        await trio.lowlevel.checkpoint()


class Streaming:
    """An app that reads its body, then sends until it is cancelled or told that the client left."""

    def __init__(self, chunk=b"x" * 65_536):
        self.chunk = chunk
        self.sent = 0
        self.began = trio.Event()
        self.disconnected = trio.Event()
        self.returned = trio.Event()
        self.cancelled = False

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        while (await receive()).get("more_body"):
            pass
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watch, receive, nursery)
                await send({"type": "http.response.start", "status": 200, "headers": []})
                self.began.set()
                while True:
                    await send({"type": "http.response.body", "body": self.chunk, "more_body": True})
                    self.sent += 1
                    await trio.lowlevel.checkpoint()
        except BaseException:
            self.cancelled = True
            raise
        finally:
            self.returned.set()

    async def watch(self, receive, nursery):
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()
        nursery.cancel_scope.cancel()
