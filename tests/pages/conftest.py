"""The plain routes behind the real door, and the admin listener, over a gateway on fakes, by Quart's test client."""

import itertools

import msgspec
import pytest
from quart_trio import QuartTrio

from accounting.records import Key
from accounting.reports import Reader
from proxy.admin import Admin
from proxy.doors import quart_door
from proxy.keys import digest_of, new_key
from proxy.pages import account, admin, health, models
from proxy.serve import respond
from proxy.types import Secret
from tests.fakes import World
from tests.test_request_path import STREAM

TOKEN = "the-admin-token"


async def nothing(_sql, _parameters):
    """A store that has loaded nothing yet."""
    return []


class Tail:
    def __init__(self, journal):
        self.journal = journal

    def unloaded_usage(self):
        return self.journal.unloaded_usage()

    def usage_of(self, request):
        return tuple(one for _, one in self.unloaded_usage() if one.request == request)


class Answered:
    """What came back."""

    def __init__(self, answer, content):
        self.status = answer.status_code
        self.headers = answer.headers
        self.content = content

    @property
    def json(self):
        return msgspec.json.decode(self.content)


class Page:
    def __init__(self, world):
        ids = itertools.count(1)
        self.world = world
        self.lines = []
        self.app = quart_door.build(
            world.gateway,
            [models.build(world.gateway), account.build(world.gateway, Reader(nothing, Tail(world.journal)))],
            [health.build(lambda: None)],
            respond=respond,
            new_id=lambda: f"req_page_{next(ids)}",
            log=lambda *line, **fields: self.lines.append((line, fields)),
        )

    async def ask(self, method, path, content=None, key=None, **headers):
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.app.test_client().open(path, method=method, data=content, headers=headers)
        return Answered(answer, await answer.get_data(as_text=False))

    async def get(self, path, key=None, **headers):
        return await self.ask("GET", path, None, key, **headers)

    async def post(self, path, content, key=None, **headers):
        return await self.ask("POST", path, content, key, **headers)

    def key(self, wallet="w", **fields):
        """A key of its own in the books, the secret of which is given."""
        number = sum(1 for _ in self.world.ledger.keys())
        secret = new_key("fb_sk_", lambda size: bytes([100 + number]) * size)
        self.world.books.put_down(Key(f"key_{number}", wallet, digest_of(secret), "fb…", 0, **fields))
        return secret


class Desk:
    def __init__(self, world):
        self.world = world
        self.findings = ()
        self.resting = []

        async def verify():
            return self.findings

        self.admin = Admin(
            world.books, Reader(nothing, Tail(world.journal)), verify, "fb_sk_", lambda size: b"\x03" * size
        )
        self.telemetry = world.gateway.telemetry
        self.app = QuartTrio("desk", static_folder=None)
        self.app.register_blueprint(
            admin.build(self.admin, self.telemetry, Secret(TOKEN), lambda: self.resting)
        )

    async def ask(self, method, path, content=None, token=f"Bearer {TOKEN}"):
        headers = {} if token is None else {"authorization": token}
        answer = await self.app.test_client().open(path, method=method, data=content, headers=headers)
        return Answered(answer, await answer.get_data(as_text=False))

    async def call(self, operation, token=f"Bearer {TOKEN}", **arguments):
        return await self.ask("POST", f"/admin/{operation}", msgspec.json.encode(arguments), token)


@pytest.fixture
def world(autojump_clock):
    return World(STREAM, requests_per_minute=60, tokens_per_minute=10_000, concurrency=3)


@pytest.fixture
def page(world):
    return Page(world)


@pytest.fixture
def desk(world):
    return Desk(world)
