"""Judges what a fast connection makes of any bytes: against the guard that lets them in, and against h11."""

from itertools import pairwise

import attrs
import h11

from proxy.doors.guard import Guard, Refused
from proxy.doors.routes import route
from proxy.types import Path
from tests.doors.memory import converse

REFUSALS = {400, 408, 417, 431}
"""Only the door says these to the requests that are tried here, apart from a 400 for a body that breaks."""


@attrs.frozen
class Accepted:
    """A request that the guard lets in whole.

    Attributes:
        raw: its bytes, to the last one.
    """

    head: object
    raw: bytes
    body: bytes

    @property
    def api(self):
        """It goes to the request path."""
        return _is_api(self.head)

    @property
    def last(self):
        tokens = [token.strip() for token in self.head.headers.get("connection", "").lower().split(",")]
        return self.head.version == "1.0" or "close" in tokens


def _is_api(head):
    path, _, query = head.target.partition("?")
    return isinstance(route(head.method, path, query), Path)


@attrs.define
class Model:
    """What the guard makes of bytes: whole requests, then perhaps a refusal, an upgrade, or part of a request."""

    accepted: list
    refused: int | None = None
    upgraded: bool = False
    unfinished: object = None


def model_of(data):
    """Run the guard over all of it."""
    guard, found = Guard(65_536), Model([])
    guard.feed(data)
    rest = data
    while not found.accepted or not found.accepted[-1].last:
        try:
            rest = bytes(guard._pending)
            head = guard.take()
            if not head:
                return found
            if guard.stage == "upgrading":
                found.upgraded = True
                return found
            found.unfinished = guard.head
            body = guard.take_body() if guard.stage == "body" else b""
        except Refused as refused:
            found.refused = refused.status
            return found
        if guard.stage == "body":
            return found
        found.unfinished = None
        raw = rest[: len(rest) - guard.pending_bytes]
        found.accepted.append(Accepted(guard.head, raw, body))
        guard.next_request()
    return found


def agrees_with_h11(request):
    """Another parser sees exactly one request in these bytes, the same one, and nothing behind it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=200_000)
    connection.receive_data(request.raw.removeprefix(b"\r\n"))
    body = b""
    event = connection.next_event()
    assert isinstance(event, h11.Request), event
    assert (event.method.decode(), event.target.decode()) == (request.head.method, request.head.target)
    fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    fields = [one for one in fields if one[0] != "upgrade"]  # what is not granted is not heard
    ours = [(name, value) for name, value in request.head.fields]
    if any(name == "transfer-encoding" for name, _ in ours):  # h11 writes it anew
        fields = [one for one in fields if one[0] != "transfer-encoding"]
        ours = [one for one in ours if one[0] != "transfer-encoding"]
    assert fields == ours
    while not isinstance(event, h11.EndOfMessage):
        event = connection.next_event()
        assert isinstance(event, h11.Data | h11.EndOfMessage), event
        if isinstance(event, h11.Data):
            body += event.data
    assert body == request.body
    assert connection.trailing_data == (b"", False)


def judge(data, cuts=()):
    """Converse with a connection, and look at everything that came of it."""
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    pieces = [data[a:b] for a, b in pairwise(borders) if a < b]
    model = model_of(data)
    for request in model.accepted:
        agrees_with_h11(request)
    if model.upgraded:
        return  # goes on to the other door, which has tests of its own
    heads = [request.head for request in model.accepted]
    if model.unfinished is not None:
        heads.append(model.unfinished)
    seen = converse(pieces)
    assert seen.logged == []
    answers = [answer for answer in seen.answers_to(head.method for head in heads) if answer.status != 100]
    assert all(answer.complete for answer in answers)
    # a refusal ends its connection, so that its words confuse nobody, though it be HEAD that was asked
    assert not any(
        answer.ends_with_its_head and answer.body for answer in answers if answer.status not in REFUSALS
    )
    # what was answered before its body was read (too large, compressed) does not get that far
    bodies = iter([request.body for request in model.accepted if request.api])
    assert all(body in bodies for *_, body in seen.requests), "only whole requests, each once, in order"
    statuses = [answer.status for answer in answers]
    if model.refused is not None:
        assert statuses, "a refusal is never silent"
        *statuses, refusal = statuses
        # what is answered without its body may be, before the body turns out to be broken; then it is the last
        assert refusal == model.refused or _ended_early(answers, heads)
        assert refusal != 200 or not _is_api(heads[len(answers) - 1])
    assert REFUSALS.isdisjoint(statuses)
    assert len(statuses) <= len(model.accepted) + (model.unfinished is not None)
    assert len(statuses) >= len(model.accepted) or _ended_early(answers, heads)


def _ended_early(answers, heads):
    """An answer that came before the end of its upload ends the connection."""
    if not answers or answers[-1].headers.get("connection") != "close":
        return False
    return not {"content-length", "transfer-encoding"}.isdisjoint(heads[len(answers) - 1].headers)
