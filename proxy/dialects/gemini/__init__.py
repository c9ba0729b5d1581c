"""Google's Gemini API, both ways: the dialect of `/v1beta/models/{model}:generateContent` and the like."""

from collections.abc import Callable, Mapping
from functools import partial

from attrs import field, frozen

from pricing.money import Pico
from proxy.dialects.gemini import errors, request, stream
from proxy.dialects.guard import BodyLimits
from proxy.dialects.passthrough import Passthrough, Whole
from proxy.dialects.sse import Framer
from proxy.errors import Failure
from proxy.types import Ask, DialectName, MeterLike, Offer, Path, ProviderError, Translator, Wording


@frozen
class Gemini:
    """A `types.Dialect`.

    Its heartbeat is a blank line: Google's Python SDK takes every other line that is not data for JSON.
    """

    limits: BodyLimits
    name: DialectName = field(default="gemini", init=False)
    heartbeat: bytes = field(default=b"\r\n", init=False)

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
        """A fresh translator; with `cost_so_far`, for callers who asked for it, the cost goes along.

        The provider is always asked for events; whoever asked for an array gets one.
        """
        if not ask.stream:
            return Whole(partial(stream.read_body, meter=meter), meter)
        live = cost_so_far if ask.live_cost else None
        events = Passthrough(stream.Tap(meter, ask.measures.choices), self.limits.frame_bytes_max, live)
        return stream.Elements(events) if ask.gemini_array else events

    def error(self, failure: Failure, request_id: str) -> Wording:
        """Word a failure as an answer."""
        return errors.error(failure, request_id)

    def error_event(self, failure: Failure, request_id: str, path: Path | None = None) -> bytes:
        """Word a failure as the last event of a stream, or the last element of one that is a JSON array."""
        if path is not None and path.action == "stream" and not path.sse:
            return errors.error_element(failure, request_id)
        return errors.error_event(failure, request_id)

    def read_error(self, status: int, body: bytes) -> ProviderError:
        """Read a provider's error answer."""
        return errors.read_error(status, body)
