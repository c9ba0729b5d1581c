"""The gateway's app over fakes, with a request path of the test's own."""

import itertools

import attrs

from proxy.doors import quart_door
from tests.fakes import World


def gate(respond, pages=(), **config):
    """An app whose API requests go to `respond`; ids are counted from `req_0`."""
    ids = itertools.count()
    gateway = World((200, [])).gateway
    gateway = attrs.evolve(gateway, config=attrs.evolve(gateway.config, **config))
    return quart_door.build(
        gateway, pages, respond=respond, new_id=lambda: f"req_{next(ids)}", log=lambda *_, **__: None
    )
