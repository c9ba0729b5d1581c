"""OpenAI's chat completions, the dialect that most clients and servers speak."""

from collections.abc import Callable, Mapping
from functools import partial

from attrs import define, field

from pricing.money import Pico
from proxy.dialects.guard import BodyLimits
from proxy.dialects.openai_chat import errors, request, stream
from proxy.dialects.passthrough import Passthrough, Whole
from proxy.errors import Failure
from proxy.types import Ask, DialectName, MeterLike, Offer, Path, Prelude, ProviderError, Translator, Wording

__all__ = ["OpenAIChat"]


@define(eq=False)
class OpenAIChat:
    """A `types.Dialect`. Stateless; `limits` bound what a request and one event may be."""

    limits: BodyLimits
    name: DialectName = field(default="openai_chat", init=False)
    heartbeat: bytes = field(default=b": keep-alive\n\n", init=False)

    def read_request(self, path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str) -> Ask:
        """Read and check a request; see `request.read_request`."""
        return request.read_request(path, headers, body, unknown_fields, self.limits)

    def write_request(self, ask: Ask, offer: Offer) -> bytes:
        """Write the body that goes upstream."""
        return request.write_request(ask, offer)

    def prelude(self) -> Prelude:
        """A fresh look-out for the start of content."""
        return stream.StreamPrelude()

    def passthrough(
        self, ask: Ask, meter: MeterLike, cost_so_far: Callable[[], Pico] | None = None
    ) -> Translator:
        """A fresh translator; with `cost_so_far`, for callers who asked for it, the cost goes along."""
        if not ask.stream:
            return Whole(partial(stream.read_body, meter=meter), meter)
        live = cost_so_far if ask.live_cost else None
        return Passthrough(stream.StreamTap(ask, meter), self.limits.frame_bytes_max, live)

    def error(self, failure: Failure, request_id: str) -> Wording:
        """Word a failure as an answer."""
        return errors.error(failure, request_id)

    def error_event(
        self,
        failure: Failure,
        request_id: str,  # noqa: ARG002 - other dialects say the id
        path: Path | None = None,  # noqa: ARG002 - this one streams in one form
    ) -> bytes:
        """Word a failure as the last event of a stream that has begun."""
        return errors.error_event(failure)

    def read_error(self, status: int, body: bytes) -> ProviderError:
        """Read a provider's error answer."""
        return errors.read_error(status, body)
