"""Anthropic's Messages API, both ways: the dialect of `/v1/messages` and `/v1/messages/count_tokens`."""

from collections.abc import Callable, Mapping
from functools import partial

from attrs import field, frozen

from pricing.money import Pico
from proxy.dialects.anthropic import errors, request, stream
from proxy.dialects.guard import BodyLimits
from proxy.dialects.passthrough import Passthrough, Whole
from proxy.dialects.sse import Framer
from proxy.errors import Failure
from proxy.types import Ask, DialectName, MeterLike, Offer, Path, ProviderError, Translator, Wording


@frozen
class Anthropic:
    """A `types.Dialect`."""

    limits: BodyLimits
    name: DialectName = field(default="anthropic", init=False)
    heartbeat: bytes = field(default=b'event: ping\ndata: {"type": "ping"}\n\n', init=False)

    def read_request(self, path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str) -> Ask:
        """Read and check a request.

        Raises:
            Rejected: 400 or 413, naming the field.
        """
        return request.read_request(path, headers, body, unknown_fields, self.limits)

    def write_request(self, ask: Ask, offer: Offer) -> bytes:
        """Write the body that goes upstream."""
        return request.write_request(ask, offer)

    def prelude(self) -> stream.Prelude:
        """A fresh look-out for the start of content."""
        return stream.Prelude(Framer(self.limits.frame_bytes_max))

    def passthrough(
        self, ask: Ask, meter: MeterLike, cost_so_far: Callable[[], Pico] | None = None
    ) -> Translator:
        """A fresh translator; with `cost_so_far`, for callers who asked for it, the cost goes along."""
        if not ask.stream:
            return Whole(partial(stream.read_body, meter=meter), meter)
        live = cost_so_far if ask.live_cost else None
        return Passthrough(stream.Tap(meter, ask.model), self.limits.frame_bytes_max, live)

    def error(self, failure: Failure, request_id: str) -> Wording:
        """Word a failure as an answer."""
        return errors.error(failure, request_id)

    def error_event(self, failure: Failure, request_id: str, path: Path | None = None) -> bytes:  # noqa: ARG002 - one form
        """Word a failure as the last event of a stream that has begun."""
        return errors.error_event(failure, request_id)

    def read_error(self, status: int, body: bytes) -> ProviderError:
        """Read a provider's error answer."""
        return errors.read_error(status, body)
