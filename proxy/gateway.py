"""The Gateway: the record of collaborators that the request path is given; built once, in `app.py`."""

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

from accounting.books import Books
from accounting.hold import Hold
from proxy.config import Config
from proxy.keys import KeyRing
from proxy.limits import Limits
from proxy.routing import Router
from proxy.telemetry import Telemetry
from proxy.types import AnswerContext, Ask, Dialect, DialectName, Offer, Reply
from proxy.waiting import Waiting


class Upstreams(Protocol):
    """Whatever can bring an answer; `proxy.upstreams.answer.Upstreams`, or a fake."""

    def answer(self, ask: Ask, offers: tuple[Offer, ...], hold: Hold, reply: Reply) -> AnswerContext:
        """Try the offers in order until one begins to answer."""
        ...


@frozen
class Gateway:
    """Everything that a request needs, as arguments."""

    config: Config
    books: Books
    keys: KeyRing
    limits: Limits
    router: Router
    upstreams: Upstreams
    telemetry: Telemetry
    waiting: Waiting
    dialects: Mapping[DialectName, Dialect] = field()
