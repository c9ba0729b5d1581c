"""What the rooms of proxy hand each other: Ask, Caller, Offer, and the protocols between them."""

from collections.abc import Awaitable, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Protocol

import msgspec
from attrs import field, frozen
from msgspec.structs import replace

from accounting.records import Receipt, Spender
from pricing.catalog import Model
from pricing.money import Pico
from pricing.price import Bounds, CacheWrites, Price
from proxy.errors import Failure

DialectName = Literal["openai_chat", "anthropic", "gemini"]
StopsBilling = Literal["yes", "no", "unknown"]
Headers = tuple[tuple[str, str], ...]
"""Names in lower case, in order."""


class Secret:
    """A string that cannot be printed, logged, compared with `==` or pickled by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself; call it where it is sent or hashed and nowhere else."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not to be pickled or copied")


@frozen
class KeyLimits:
    """What a key may do per unit of time; `None` is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@frozen
class Caller:
    """Who asks: a key, its wallet, and what it may use.

    Attributes:
        spender: wallet and key id, as the books know them.
        clamp: a bound on output that the credit cannot bear is lowered, not refused.
        models: patterns (`*` allowed) of canonical model ids that this key may use; empty: all.
        markup_ppm: this key's own markup, or `None` for the operator's.
        expires_ms: wall clock in ms after which the key is refused, or `None`.
    """

    spender: Spender
    limits: KeyLimits = field(factory=KeyLimits)
    models: tuple[str, ...] = ()
    markup_ppm: int | None = None
    expires_ms: int | None = None
    clamp: bool = False


class Measures(msgspec.Struct, frozen=True, gc=False):
    """What a request can make a provider read and write, measured from its body alone; no model facts yet.

    A struct, as are `Ask` and `Offer`, and not an attrs class as elsewhere: every request makes one of each, and
    they are made in a tenth of the time.

    Attributes:
        text_bytes: UTF-8 bytes of everything that becomes text tokens (messages, system, tools, schemas).
        messages: turns; each may cost a few tokens of framing.
        tools: declared functions; any tool adds a preamble.
        images: inline or linked images.
        audio_bytes: decoded bytes of inline audio.
        unbounded: input that no count of bytes bounds (documents, files by URL, video): a full context window.
        output: the caller's own bound on output tokens per choice, or `None`.
        choices: how many answers were asked for (`n`, `candidateCount`).
        stop_bytes: JSON of the stop sequences: what a model may write, and bill, that nobody is shown.
        cache_writes: the dearest class of cache write that the body marks.
        reasoning: whether the request turns reasoning on (`True`) or off (`False`), or leaves it (`None`).
        thinking: the caller's own bound on tokens of reasoning (a part of `output`), or `None`.
        audio_output, image_output: whether output may be audio or images.
    """

    text_bytes: int
    messages: int = 0
    tools: int = 0
    images: int = 0
    audio_bytes: int = 0
    unbounded: bool = False
    output: int | None = None
    choices: int = 1
    stop_bytes: int = 0
    cache_writes: CacheWrites = "none"
    reasoning: bool | None = None
    thinking: int | None = None
    audio_output: bool = False
    image_output: bool = False


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One request, read and checked.

    Attributes:
        dialect: the language of the caller.
        model: the model as the caller named it, prefix and all.
        stream: whether the answer is wanted as a stream.
        measures: what it can cost, before model facts.
        fields: the body's top-level fields in canonical spelling, values as raw JSON; what goes upstream is made
            from these and from nothing else.
        free: nothing is generated (token counting); no hold, no charge.
        usage_wanted: the caller asked for the usage frame of a stream (OpenAI); else it is not shown.
        live_cost: the caller asked for the cost so far in the stream.
        gemini_array: a Gemini stream was asked for without `alt=sse`, as one JSON array.
        betas, version, extra_headers: what of the caller's headers travels on (allow-list of the contract).
    """

    dialect: DialectName
    model: str
    stream: bool
    measures: Measures
    fields: Mapping[str, msgspec.Raw]
    free: bool = False
    usage_wanted: bool = True
    live_cost: bool = False
    gemini_array: bool = False
    headers: Headers = ()

    def answered(self) -> "Ask":
        """The same without its fields: once an answer has begun nobody needs them, and they may be megabytes."""
        return replace(self, fields={}, headers=())


class Offer(msgspec.Struct, frozen=True, gc=False):
    """One way to answer an Ask: an account at a provider, the model's name there, and what it may cost.

    Attributes:
        provider: the operator's name for the provider.
        kind: what it speaks and how it wants to be addressed (`openai`, `anthropic`, `gemini`).
        account: the operator's name for the credential; unique within the provider.
        dialect: the wire language there.
        model: the catalogue's entry.
        wire_name: the model's name there.
        price: for this caller.
        bounds: the box that any usage must lie in; the hold is the dearest offer's ceiling of it.
        output_limit: output tokens per choice to send in the model's own field, or `None` where the caller's own
            number stands or the model's own maximum is the bound.
        output_assumed: the bound is ours, not the caller's (said in a header).
        clamped: the caller's bound was lowered because the credit could not bear it.
        thinking_limit: bound on reasoning to send in place of the caller's own, where the output's was lowered.
        slice_tokens: where the hold may roll, output tokens that it begins with; 0: it is the full one.
        states_input: the provider states the input for good at the start of a stream.
        holds_back: it may keep content back while it is written.
        stops_billing: whether hanging up ends the bill, for this call.
        visible: every billed token can be seen going by (no hidden reasoning).
        region: where it runs, if the operator says so.
        choices: how many answers were asked for; `bounds.output` is over all of them.
        stream_options: whether the provider takes OpenAI's `stream_options`.
    """

    provider: str
    kind: str
    account: str
    dialect: DialectName
    model: Model
    wire_name: str
    price: Price
    bounds: Bounds
    output_limit: int | None = None
    output_assumed: bool = False
    clamped: bool = False
    thinking_limit: int | None = None
    slice_tokens: int = 0
    states_input: bool = False
    holds_back: bool = False
    stops_billing: StopsBilling = "unknown"
    visible: bool = False
    region: str | None = None
    choices: int = 1
    stream_options: bool = True

    @property
    def abortable(self) -> bool:
        """Whether a client that hangs up may take the provider's connection with it."""
        return self.stops_billing == "yes" and self.visible

    @property
    def first_hold(self) -> Pico:
        """What is set aside before the request is sent: for all of its bounds or, where it rolls, for a slice."""
        bounds = self.bounds
        if self.slice_tokens:
            bounds = replace(bounds, output=min(bounds.output, self.slice_tokens))
        return self.price.ceiling(bounds)


@frozen
class Wording:
    """A failure in a dialect's own words, ready to be sent."""

    status: int
    headers: Headers
    body: bytes


class Translator(Protocol):
    """Turns a provider's bytes into the caller's, and shows the meter what goes by. Sans-IO."""

    @property
    def ended(self) -> bool:
        """The provider's terminal event was seen, or what must be one unless more content follows."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes as they were read; give what may be written now: whole frames, or nothing (`b""`).

        Raises:
            StreamBroken: the provider reported an error, or broke the dialect's framing.
        """
        ...

    def cut(self, relay: bytes, content_bytes: int, limit: str) -> bytes:
        """End the answer here, by no wish of the provider's: the credit does not cover what follows.

        Args:
            relay: what `feed` gave last, and nobody has been given yet.
            content_bytes: how much of its content is covered.
            limit: what is used up (`wallet`, `key_cap` …); stands in the end.

        Returns:
            The whole frames of `relay` that are covered. From here on nothing may be fed, `finish` has nothing to
            complain about, and `end` gives the dialect's own ending for an answer that reached its length.
        """
        ...

    def finish(self) -> None:
        """The provider's bytes are over.

        Raises:
            StreamBroken: they ended without the dialect's terminal event, or in the middle of a body.
        """
        ...

    def end(self, receipt: Receipt | None) -> bytes:
        """What was withheld until the books are durable, the cost added where the dialect has a place for it."""
        ...


class Prelude(Protocol):
    """Looks at the first frames of a stream, to know until when another account could still answer."""

    def feed(self, chunk: bytes) -> bool:
        """True once content has begun (or the answer is over), so that the bytes kept so far may be relayed.

        Raises:
            UpstreamFailed: the stream began with an error (overloaded …).
        """
        ...


class Dialect(Protocol):
    """One wire language, both ways. Every implementation is stateless; what has state is made per answer."""

    @property
    def name(self) -> DialectName:
        """What it is called here."""
        ...

    @property
    def heartbeat(self) -> bytes:
        """Written between whole frames of a silent stream; the one form that no SDK of this dialect chokes on."""
        ...

    def read_request(self, path: "Path", headers: Mapping[str, str], body: bytes, unknown_fields: str) -> Ask:
        """Read and check a request.

        Raises:
            Rejected: unreadable, of the wrong type, conflicting, impossible, or naming what is not offered yet.
        """
        ...

    def write_request(self, ask: Ask, offer: Offer) -> bytes:
        """Write the body that goes upstream: the ask's fields, with model, output bound and usage report set."""
        ...

    def prelude(self) -> Prelude:
        """A fresh look-out for the start of content."""
        ...

    def passthrough(
        self, ask: Ask, meter: "MeterLike", cost_so_far: Callable[[], Pico] | None = None
    ) -> Translator:
        """A fresh translator from this dialect to itself; who asked for it gets the cost so far in the stream."""
        ...

    def error(self, failure: Failure, request_id: str) -> Wording:
        """Word a failure as an answer."""
        ...

    def error_event(self, failure: Failure, request_id: str, path: "Path | None" = None) -> bytes:
        """Word a failure as the end of a stream that has begun, in the form that this route streams in."""
        ...

    def read_error(self, status: int, body: bytes) -> "ProviderError":
        """Read a provider's error answer."""
        ...


@frozen
class Path:
    """What a route says: Gemini has model and action in the path, the others only their dialect.

    Attributes:
        dialect: the caller's language.
        action: `generate`, `stream` (Gemini's streaming route) or `count` (free token counting).
        model: as it stands in the path, or `None` where the body names it.
        sse: for Gemini: `alt=sse` was asked for.
    """

    dialect: DialectName
    action: Literal["generate", "stream", "count"] = "generate"
    model: str | None = None
    sse: bool = False


@frozen
class ProviderError:
    """A provider's own error, as its dialect states it; `message` is not yet scrubbed."""

    status: int
    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None
    retry_after_seconds: float | None = None


class MeterLike(Protocol):
    """The part of `pricing.usage.Meter` that a translator uses."""

    def report(self, reported: Any) -> None:
        """Take the provider's newest word."""
        ...

    def saw(self, frames: int, size_bytes: int) -> None:
        """Count content that went by."""
        ...


class Room(Protocol):
    """Memory that all bodies share while they are being read."""

    def take(self, count: int) -> None:
        """Take so many bytes of it. Raises `Rejected` (503) where there are not so many left."""
        ...

    def give_back(self, count: int) -> None:
        """Give so many back."""
        ...


class Request(Protocol):
    """A request as a door hands it in.

    Attributes:
        id: ours, unique, stands on the receipt.
        headers: lower-case names; a header that came twice is joined with `, ` (two credentials are refused before).
    """

    id: str
    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    async def body(self, bytes_max: int, room: Room | None = None) -> bytes:
        """Read the whole body.

        Args:
            bytes_max: of the body.
            room: for one that does not come with its head, until it is complete.

        Raises:
            Rejected: longer than `bytes_max` (413), too slow, or without room (503).
        """
        ...


class _Written:
    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


WRITTEN: Final = _Written()
"""What `Reply.write` gives where nothing is left to be awaited; awaiting it does nothing."""


class Reply(Protocol):
    """Where an answer goes. Knows whether the status line has left; falls mute when the client is gone."""

    @property
    def started(self) -> bool:
        """The status line has left; errors must go in-band from here on."""
        ...

    @property
    def client_gone(self) -> bool:
        """The client has hung up, or stopped reading past the write deadline."""
        ...

    def mute_when_gone(self, mute: bool) -> None:
        """What a hang-up does: cancel the request (`False`, at first) or only silence the reply (`True`).

        Set to `False` while the client is already gone, the request is cancelled at once.
        """
        ...

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back once, synchronously, when the client is gone while the reply is to fall mute."""
        ...

    def note(self, headers: Mapping[str, str]) -> None:
        """Add headers to those that leave with the status line."""
        ...

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Note status and headers; they leave with the first byte, or with the end."""
        ...

    def write(self, chunk: bytes) -> Awaitable[None]:
        """Write whole frames; nothing for `b""` or a client that is gone.

        Returns:
            `WRITTEN` where that was done at once, else what has to be awaited next to have it done.
        """
        ...

    async def end(self, tail: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Write the withheld end and finish; `headers` are added if none have left yet."""
        ...

    def keep_alive(self, heartbeat: bytes, after_seconds: float) -> "KeptAlive":
        """Within this context, write a heartbeat (and before it status 200) after each such silence."""
        ...


class KeptAlive(Protocol):
    """An async context manager."""

    async def __aenter__(self) -> None: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


class Answer(Protocol):
    """An open reply of a provider; owned by the `async with` that opened it.

    Attributes:
        status: HTTP status (200-class; everything else was raised).
        headers: those of the provider's headers that a client needs.
        offer: who answers.
    """

    status: int
    headers: Mapping[str, str]
    offer: Offer

    async def hand_on(self, take: Callable[[bytes], bool]) -> bool:
        """Hand on bytes as they are read, under the idle and total deadlines, until `take` declines.

        Args:
            take: given each piece; true if it would take more. It must not wait, for it may run in another task.

        Returns:
            True at the end, false where `take` has declined.

        Raises:
            StreamBroken: the provider's connection broke or fell silent for too long.
        """
        ...

    async def in_time(self, writing: Awaitable[None], *, more: bool) -> None:
        """Wait for a write to a client that reads slowly, under the total deadline.

        Args:
            writing: what to wait for.
            more: of the answer would be taken, if the client did not keep us from it.

        Raises:
            StreamBroken: it has passed; nothing more can be written to that client.
        """
        ...

    def expect_close(self) -> None:
        """The terminal event was seen: the provider has one more second to close."""
        ...


class AnswerContext(Protocol):
    """What `upstreams.answer(…)` gives: an async context manager around an Answer."""

    async def __aenter__(self) -> Answer: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...
