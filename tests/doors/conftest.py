"""Fixtures that serve an ASGI app on a real loopback socket, and talk to it byte by byte."""

import re
import ssl

import attrs
import pytest
import trio

from proxy.config import RequestLimits, Server
from proxy.doors.server import bind, serve_app

PATIENCE_SECONDS = 8
QUICK = Server(
    keep_alive_seconds=5,
    header_seconds=5,
    body_seconds_min=5,
    write_seconds=5,
    drain_seconds=5,
)


async def echo(scope, receive, send):
    """Read the body, answer with what came."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    answer = b"%s %s %s" % (scope["method"].encode(), scope["raw_path"], body)
    await answer_with(send, answer)


async def answer_with(send, body=b"", status=200, headers=()):
    lines = [(b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@attrs.frozen
class Answer:
    status: int
    headers: dict
    body: bytes
    raw: bytes


class Client:
    """One connection to a server under test."""

    def __init__(self, stream):
        self.stream = stream
        self._read = b""

    async def send(self, data):
        await self.stream.send_all(data)

    async def answer(self, *, head_only=False):
        """Read one whole answer."""
        while b"\r\n\r\n" not in self._read:
            await self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        headers = {name.decode().lower(): value.decode() for name, value in lines}
        if head_only or status in {100, 101, 204}:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            length = int(headers["content-length"])
            while len(self._read) < length:
                await self._more()
            body, self._read = self._read[:length], self._read[length:]
        return Answer(status, headers, body, head)

    async def _chunks(self):
        body = b""
        while True:
            while not (found := re.match(rb"([0-9a-fA-F]+)\r\n", self._read)):
                await self._more()
            size, begin = int(found[1], 16), found.end()
            while len(self._read) < begin + size + 2:
                await self._more()
            body += self._read[begin : begin + size]
            self._read = self._read[begin + size + 2 :]
            if not size:
                return body

    async def read(self):
        """What comes next, or nothing if the server has closed."""
        if self._read:
            read, self._read = self._read, b""
            return read
        try:
            return await self.stream.receive_some()
        except trio.BrokenResourceError:
            return b""

    async def rest(self):
        """All that comes until the server closes."""
        read = b""
        while more := await self.read():
            read += more
        return read

    async def _more(self):
        more = await self.stream.receive_some()
        assert more, f"closed in the middle of {self._read!r}"
        self._read += more


class Running:
    """A server under test."""

    def __init__(self):
        self.address = None
        self.logged = []
        self.shutdown = trio.Event()
        self.ended = trio.Event()
        self.clients = []

    def log(self, level, event, **fields):
        self.logged.append((level, event, fields))

    async def connect(self, ssl_context=None):
        stream = await trio.open_tcp_stream(*self.address)
        self.clients.append(Client(stream))
        if ssl_context is not None:
            stream = self.clients[-1].stream = trio.SSLStream(stream, ssl_context, https_compatible=True)
            await stream.do_handshake()
        return self.clients[-1]

    async def run(self, app, settings, limits, ssl_context, task_status):
        async def started(addresses):
            self.address = addresses[0]
            task_status.started()

        async with trio.open_nursery() as nursery:

            async def serve(task_status=trio.TASK_STATUS_IGNORED):
                await serve_app(
                    app,
                    bind("127.0.0.1", 0, settings.backlog),
                    settings,
                    limits,
                    shutdown=self.shutdown.wait,
                    log=self.log,
                    ssl_context=ssl_context,
                    new_id=lambda: "req_refused",
                    task_status=task_status,
                )

            await started(await nursery.start(serve))
        self.ended.set()


@pytest.fixture(params=["fast", "hypercorn"])
def door(request):
    """Which door serves; what is said of doors is true of both."""
    return request.param


@pytest.fixture
async def serving(door):
    """Give a function that serves an app with changed settings; what it gives can be connected to."""
    servers = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:

            async def start(app=echo, limits=None, ssl_context=None, **settings):
                running = Running()
                servers.append(running)

                async def run(task_status=trio.TASK_STATUS_IGNORED):
                    await running.run(
                        app,
                        attrs.evolve(QUICK, **{"door": door, **settings}),
                        limits or RequestLimits(),
                        ssl_context,
                        task_status,
                    )

                await nursery.start(run)
                return running

            yield start
            for server in servers:
                for client in server.clients:
                    await trio.aclose_forcefully(client.stream)
            nursery.cancel_scope.cancel()


@pytest.fixture
def answering():
    """Give `answer_with`, for apps that tests write themselves."""
    return answer_with


CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgLdzqRgyQdWQJclJN
MtiqhMYJ9ECyZUF1eDsk6F7PUiShRANCAARZnjDaH5f7m/EGKwsAKJNpWl3j5YA+
1B11hQ47BwlT/2dSX44LgORyCvqMv3BW89jgEpWJ0wICAWq3Osn08VKe
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUZib/B5MS6/Jq8BKHt6jBmdFn0KYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA1NTk0NloYDzIxMjYxMDI4
MDU1OTQ2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARZnjDaH5f7m/EGKwsAKJNpWl3j5YA+1B11hQ47BwlT/2dSX44LgORy
CvqMv3BW89jgEpWJ0wICAWq3Osn08VKeo28wbTAdBgNVHQ4EFgQULLJFCxGSsNrv
IlPs2iOebEMDlkMwHwYDVR0jBBgwFoAULLJFCxGSsNrvIlPs2iOebEMDlkMwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgdam3E2Nr8At9EdBV/iv9KFjWESxFx9WEcP1AYzBWA6sCIQDW
R2Vzxils3YKXTff9hfWRQsG1rowucq1wa4kXllmxdg==
-----END CERTIFICATE-----
"""
"""Of localhost, signed by itself, for these tests alone."""


@pytest.fixture
def tls(tmp_path):
    """Contexts of a server and of a client."""
    path = tmp_path / "localhost.pem"
    path.write_text(CERTIFICATE)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE  # trust is not what is tested
    client.set_alpn_protocols(["h2", "http/1.1"])
    return server, client
