"""Read and write requests of OpenAI's chat completions: what a body can cost, and what of it may travel.

Messages and their parts, tools and the fields that bound the output are taken apart and encoded again; the
rest travels as raw JSON. What a body can cost is added up so:

* strings of content count by their UTF-8 bytes, everything else that may become text (tool calls, schemas,
  fields that we do not know) by the bytes of its JSON, which are never fewer;
* images and audio are counted; a file, and any part that we do not know, makes the input unbounded: a full
  context window is held;
* links to images pass on as they are and are never followed here.

Refused by name is what could not be bounded, priced or told apart by wallet: service tiers, tools that run
at the provider, other models as a fallback, references to what is stored there (files, earlier audio,
prompts), and `store: true`, which would put one customer's conversation among all others' of the operator's
account. So is `prediction`: what the model rejects of it is billed as output, and no field bounds that.

Bodies and messages of the shape that nearly everybody sends are read quickly (`usual`), with the same result.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec
from attrs import define
from msgspec import UNSET

from pricing.price import CacheWrites
from proxy.dialects import body as read
from proxy.dialects.body import FieldLists, Object
from proxy.dialects.guard import BodyLimits, bad, guard
from proxy.dialects.openai_chat import usual
from proxy.dialects.openai_chat.usual import CHOICES_MAX
from proxy.dialects.usual import UNUSUAL, beyond_guard, put_back, take
from proxy.types import Ask, Measures, Offer, Path

_STORED: Final = "it refers to something stored at the provider, which cannot be told apart by wallet yet."
_AT_PROVIDER: Final = "it runs at the provider and bills on its own, which has no bound here yet."
_OTHER_MODEL: Final = "it could run, and bill, another model or offer than the one that was asked for."
_BOUND: Final = "the field that bounds the output here is max_completion_tokens."

FIELDS: Final = FieldLists(
    priced=(
        "model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
        "tools", "functions", "modalities", "audio", "reasoning_effort", "reasoning", "thinking",
        "service_tier", "store", "response_format", "prompt_cache_options",
    ),
    known=(
        "frequency_penalty", "function_call", "logit_bias", "logprobs", "metadata", "parallel_tool_calls",
        "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "seed", "stop",
        "temperature", "tool_choice", "top_logprobs", "top_p", "user", "verbosity",
    ),
    ours=("cache", "no_cache", "usage"),
    forbidden={
        "prediction": "rejected predictions are billed as output that no field bounds.",
        "web_search_options": _AT_PROVIDER,
        "search_parameters": _AT_PROVIDER,
        "enable_search": _AT_PROVIDER,
        "plugins": _AT_PROVIDER,
        "mcp_servers": _AT_PROVIDER,
        "container": _STORED,
        "conversation": _STORED,
        "previous_response_id": _STORED,
        "prompt": _STORED,
        "models": _OTHER_MODEL,
        "route": _OTHER_MODEL,
        "provider": _OTHER_MODEL,
        "speed": "only the standard speed has a price here.",
        "inference_geo": "only the standard region has a price here.",
        "background": "answers in the background are not offered.",
        "best_of": "answers that are not shown are billed; ask for n.",
        "max_output_tokens": _BOUND,
        "max_new_tokens": _BOUND,
    },
)  # fmt: skip
"""`plugins`, `models`, `route` and the like belong to aggregators that call themselves compatible."""

MESSAGE: Final = FieldLists(
    priced=("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"),
    known=("annotations", "reasoning", "reasoning_content", "reasoning_details"),
)
PART: Final = FieldLists(priced=("type", "text", "refusal", "image_url", "input_audio", "file"))
IMAGE: Final = FieldLists(priced=("url", "detail"))
AUDIO: Final = FieldLists(priced=("data", "format"))
FILE: Final = FieldLists(priced=("file_data", "filename"), forbidden={"file_id": _STORED})
SPOKEN: Final = FieldLists(priced=("voice", "format"), forbidden={"id": _STORED})
TOOL: Final = FieldLists(priced=("type", "function", "custom"))
STREAM_OPTIONS: Final = FieldLists(priced=("include_usage",), known=("include_obfuscation",))

TOOL_TYPES: Final = frozenset({"function", "custom"})
"""Tools that the caller runs. All others run at the provider."""

NOT_TEXT: Final = (FIELDS.known - {"tool_choice"}) | {
    "model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "modalities",
    "reasoning_effort", "service_tier", "store",
}  # fmt: skip
"""Fields that never become text for the model; whatever is not here is counted as if it did."""

MODEL_BYTES_MAX: Final = 256

STANDARD_TIERS: Final = frozenset({"auto", "default"})
"""Both are sent as `default`: with `auto` the project's settings may choose a dearer tier."""

CACHE_MARK: Final = b'"cache_control"'
"""Anthropic's mark of what shall be cached, which compatible servers take in messages and tools."""

TRAVELS: Final = ("openai-beta",)
"""The caller's headers that go upstream; content type and the like are the client's own."""

_fraction = partial(read.number, low=0, high=1)
_penalty = partial(read.number, low=-100, high=100)


def _stop(fields: Object, name: str, at: str = "") -> object:
    return read.string(fields, name, at) if read.is_string(fields[name]) else read.strings(fields, name, at)


TYPES: Final[Mapping[str, read.Check]] = {
    "frequency_penalty": _penalty,
    "logit_bias": read.obj,
    "logprobs": read.boolean,
    "metadata": read.string_map,
    "parallel_tool_calls": read.boolean,
    "presence_penalty": _penalty,
    "prompt_cache_key": read.string,
    "safety_identifier": read.string,
    "seed": partial(read.integer, low=-(2**63), high=2**63 - 1),
    "stop": _stop,
    "temperature": partial(read.number, low=0, high=100),
    "top_logprobs": read.integer,
    "top_p": _fraction,
    "user": read.string,
    "verbosity": read.string,
}
"""Types of what passes through; ranges are the provider's business where they do not touch the bill."""


def read_request(
    path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str, limits: BodyLimits
) -> Ask:
    """Read and check a request.

    Raises:
        Rejected: 413 or 400; the field at fault is named.
    """
    if path.model is None:
        ask = _read_usual(headers, body, limits)
        if ask is not None:
            return ask
    return _read_any(path, headers, body, unknown_fields, limits)


def _read_usual(headers: Mapping[str, str], body: bytes, limits: BodyLimits) -> Ask | None:
    """Read a request of the usual shape; `None` for any other, which is then read by the long way.

    Raises:
        Rejected: by the guard, before which the long way would do nothing.
    """
    taken = take(body, usual.BODY, limits)
    if taken is None or CACHE_MARK in body:
        return None
    said, fields = taken
    messages = usual.measure(fields["messages"], said.messages, limits)
    output = said.max_tokens if said.max_completion_tokens is None else said.max_completion_tokens
    if (
        messages is None
        or said.max_tokens not in (None, output)
        or read.utf8_size(said.model) > MODEL_BYTES_MAX
    ):
        return None
    text_bytes, opaque = messages.text_bytes, messages.opaque
    tools = 0 if said.tools is UNSET else len(said.tools)
    if not usual.OPAQUE.isdisjoint(fields):
        if tools > limits.tools_max or not put_back(fields, "tools", said.tools):
            return None
        text_bytes += sum(read.size(fields[name]) for name in usual.OPAQUE & fields.keys())
        opaque = True
    if opaque or not beyond_guard(body, read.size(fields["messages"]), messages.pieces, limits):
        guard(body, limits)
    fields["messages"] = messages.written
    if said.stream_options is not None:
        fields["stream_options"] = read.encode(said.stream_options)
    return Ask(
        dialect="openai_chat",
        model=said.model,
        stream=said.stream or False,
        measures=Measures(
            text_bytes=text_bytes,
            messages=len(said.messages),
            tools=tools,
            images=messages.images,
            output=output,
            choices=said.n or 1,
            stop_bytes=read.size(fields["stop"]) if "stop" in fields else 0,
            reasoning=None if said.reasoning_effort is None else said.reasoning_effort != "none",
        ),
        fields=fields,
        usage_wanted=said.stream_options is not None and said.stream_options.include_usage,
        live_cost=read.wants_live_cost(headers),
        headers=read.travelling(headers, TRAVELS),
    )


def _read_any(
    path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str, limits: BodyLimits
) -> Ask:
    whole = read.read_object(body, limits)
    usage = _wants_usage(whole)
    fields = dict(FIELDS.admit(whole, unknown_fields))
    model = path.model or read.required(read.string(fields, "model", bytes_max=MODEL_BYTES_MAX), "model")
    if not model:
        raise bad("model must not be empty.", "model")
    stream = read.boolean(fields, "stream") or False
    _standard_tier(fields)
    if read.boolean(fields, "store"):
        raise bad(f"store: true is not offered: {_STORED}", "store")
    read.check_types(fields, TYPES)
    options = read.obj(fields, "stream_options")
    if options is not None:
        options = STREAM_OPTIONS.admit(options, at="stream_options.")
        usage = bool(read.boolean(options, "include_usage", "stream_options.")) or usage
        fields["stream_options"] = read.encode(options)
    measures = _Reader(limits).measures(fields)
    return Ask(
        dialect="openai_chat",
        model=model,
        stream=stream,
        measures=measures,
        fields=fields,
        usage_wanted=usage,
        live_cost=read.wants_live_cost(headers),
        headers=read.travelling(headers, TRAVELS),
    )


def write_request(ask: Ask, offer: Offer) -> bytes:
    """Write the body that goes upstream.

    The bound on the output, the offer's or else the caller's, goes into the field that the model takes,
    whichever the caller used. A stream is asked to report its usage, unless the provider does not take the
    option.
    """
    fields: dict[str, object] = {"model": None, **ask.fields}
    fields["model"] = offer.wire_name
    fields.pop("max_tokens", None)
    fields.pop("max_completion_tokens", None)
    options = fields.pop("stream_options", None)
    bound = offer.output_limit if offer.output_limit is not None else ask.measures.output
    if bound is not None:
        fields[offer.model.output_field] = bound
    if offer.stream_options and (ask.stream or options is not None):
        said = read.obj(dict(ask.fields), "stream_options")
        if ask.stream:
            fields["stream_options"] = {**(said or {}), "include_usage": True}
        elif said is not None:
            fields["stream_options"] = said
    return read.write(fields)


def _wants_usage(whole: Object) -> bool:
    """The older way to ask aggregators for usage, which some clients still use: `usage: {include: true}`."""
    usage = whole.get("usage")
    if usage is None or not read.is_object(usage):
        return False
    return read.boolean(read.as_object(usage, "usage"), "include", "usage.") or False


def _standard_tier(fields: Object) -> None:
    tier = read.string(fields, "service_tier")
    if tier is None:
        fields.pop("service_tier", None)
    elif tier in STANDARD_TIERS:
        fields["service_tier"] = read.encode("default")
    else:
        raise bad("service_tier is not offered: only the standard tier has a price here.", "service_tier")


def _output(fields: Object) -> int | None:
    """The caller's bound per choice; in whichever field, but not two of them in two."""
    current = read.integer(fields, "max_completion_tokens", low=1)
    older = read.integer(fields, "max_tokens", low=1)
    if current is not None and older is not None and current != older:
        raise bad(
            "max_tokens and max_completion_tokens say different things; send one of them.", "max_tokens"
        )
    return current if current is not None else older


def _reasoning(fields: Object) -> bool | None:
    """Whether reasoning is switched on, off, or left: by OpenAI's field, or those of compatible servers."""
    effort = read.string(fields, "reasoning_effort")
    if effort is not None:
        return effort != "none"
    reasoning = read.obj(fields, "reasoning")
    if reasoning:
        fields["reasoning"] = read.encode(reasoning)
        effort, enabled = read.string(reasoning, "effort", "reasoning."), reasoning.get("enabled")
        return effort != "none" and not (enabled is not None and bytes(enabled) == b"false")
    thinking = read.obj(fields, "thinking")
    if thinking:
        fields["thinking"] = read.encode(thinking)
        return read.string(thinking, "type", "thinking.") != "disabled"
    return None


def _cache_writes(fields: Object) -> CacheWrites:
    """The dearest cache write that the body allows.

    By OpenAI's option, or by a mark, of which the lifetime is not read here.
    """
    for name in ("messages", "tools"):
        if name in fields and CACHE_MARK in bytes(fields[name]):
            return "1h"
    return "none" if read.is_null(fields.get("prompt_cache_options")) else "5m"


@define(eq=False)
class _Reader:
    """Goes through one body, adds up what it can cost, and puts back what it took apart."""

    limits: BodyLimits
    text_bytes: int = 0
    images: int = 0
    audio_bytes: int = 0
    unbounded: bool = False

    def measures(self, fields: Object) -> Measures:
        """Measure the fields, and replace `messages` and `tools` by what was read of them."""
        messages = self._usual_messages(fields) or self._messages(fields)
        tools = self._tools(fields)
        self.text_bytes += sum(read.size(raw) for name, raw in fields.items() if name not in NOT_TEXT)
        modalities = read.strings(fields, "modalities") or []
        spoken = read.obj(fields, "audio")
        if spoken is not None and "voice" in spoken and read.is_object(spoken["voice"]):
            raise bad(f"audio.voice is not offered: {_STORED}", "audio.voice")
        return Measures(
            text_bytes=self.text_bytes,
            messages=messages,
            tools=tools,
            images=self.images,
            audio_bytes=self.audio_bytes,
            unbounded=self.unbounded,
            output=_output(fields),
            choices=read.integer(fields, "n", low=1, high=CHOICES_MAX) or 1,
            stop_bytes=read.size(fields["stop"]) if "stop" in fields else 0,
            cache_writes=_cache_writes(fields),
            reasoning=_reasoning(fields),
            audio_output="audio" in modalities,
            image_output="image" in modalities,
        )

    def _usual_messages(self, fields: Object) -> int:
        """Read messages of the usual shape; give their number, or 0 where they are not."""
        try:
            messages = usual.MESSAGES.decode(fields["messages"])
        except (KeyError, *UNUSUAL):
            return 0
        measured = usual.measure(fields["messages"], messages, self.limits)
        if measured is None:
            return 0
        fields["messages"] = measured.written
        self.text_bytes += measured.text_bytes
        self.images += measured.images
        return len(messages)

    def _messages(self, fields: Object) -> int:
        messages = read.required(
            read.objects(fields, "messages", items_max=self.limits.messages_max), "messages"
        )
        if not messages:
            raise bad("messages must not be empty.", "messages")
        fields["messages"] = read.encode(
            [self._message(message, f"messages[{index}].") for index, message in enumerate(messages)]
        )
        return len(messages)

    def _tools(self, fields: Object) -> int:
        tools = read.objects(fields, "tools", items_max=self.limits.tools_max)
        if tools is not None:
            for index, tool in enumerate(tools):
                at = f"tools[{index}]."
                TOOL.admit(tool, at=at)
                kind = read.required(read.string(tool, "type", at), f"{at}type")
                if kind not in TOOL_TYPES:
                    raise bad(f"{at}type: {kind[:64]!r} is not offered: {_AT_PROVIDER}", f"{at}type")
            fields["tools"] = read.encode(tools)
        functions = read.array(fields, "functions", items_max=self.limits.tools_max)
        return len(tools or ()) + len(functions or ())

    def _message(self, message: Object, at: str) -> Object:
        message = dict(MESSAGE.admit(message, at=at))
        read.required(read.string(message, "role", at), f"{at}role")
        spoken = read.obj(message, "audio", at)
        if spoken is not None:
            SPOKEN.admit(spoken, at=f"{at}audio.")
        self.text_bytes += sum(read.size(raw) for name, raw in message.items() if name != "content")
        content = message.get("content")
        if content is None or read.is_null(content):
            return message
        if read.is_array(content):
            parts = read.objects(message, "content", at)
            message["content"] = read.encode(
                [self._part(part, f"{at}content[{index}].") for index, part in enumerate(parts or ())]
            )
        elif read.is_string(content):
            self.text_bytes += read.text_size(content, f"{at}content")
        else:
            raise bad(f"{at}content must be a string or an array of parts.", f"{at}content")
        return message

    def _part(self, part: Object, at: str) -> Object:
        part = dict(PART.admit(part, at=at))
        kind = read.required(read.string(part, "type", at), f"{at}type")
        measured = {
            "text": self._text, "refusal": self._text, "image_url": self._image, "input_audio": self._audio,
            "file": self._file,
        }.get(kind)  # fmt: skip
        # What stands in no field of its kind, or in a part of no kind that we know, is counted as text.
        self.text_bytes += sum(read.size(raw) for name, raw in part.items() if name not in ("type", kind))
        if measured is None:
            self.unbounded = True
        elif read.is_null(part.get(kind)):
            raise bad(f"{at}{kind} is required.", f"{at}{kind}")
        else:
            part[kind] = measured(part[kind], f"{at}{kind}")
        return part

    def _text(self, raw: msgspec.Raw, param: str) -> msgspec.Raw:
        self.text_bytes += read.text_size(raw, param)
        return raw

    def _image(self, raw: msgspec.Raw, param: str) -> msgspec.Raw:
        """An inline image, or a link that the provider follows. Some clients send the bare URL."""
        self.images += 1
        if read.is_string(raw):
            _check_link(raw, param)
            return raw
        image = IMAGE.admit(read.as_object(raw, param), at=f"{param}.")
        _check_link(read.required(image.get("url"), f"{param}.url"), f"{param}.url")
        return read.encode(image)

    def _audio(self, raw: msgspec.Raw, param: str) -> msgspec.Raw:
        audio = AUDIO.admit(read.as_object(raw, param), at=f"{param}.")
        data = read.required(audio.get("data"), f"{param}.data")
        if not read.is_string(data):
            raise bad(f"{param}.data must be a string of base64.", f"{param}.data")
        if b":" in bytes(memoryview(data)[:16]):
            raise bad(f"{param}.data must be base64: links to audio are not followed.", f"{param}.data")
        self.audio_bytes += (read.size(data) - 2) * 3 // 4 + 3
        return read.encode(audio)

    def _file(self, raw: msgspec.Raw, param: str) -> msgspec.Raw:
        self.unbounded = True
        return read.encode(FILE.admit(read.as_object(raw, param), at=f"{param}."))


def _check_link(url: msgspec.Raw, param: str) -> None:
    start = bytes(memoryview(url)[:8]).lower()
    if not start.startswith((b'"data:', b'"https:', b'"http:')):
        raise bad(f"{param} must be a data URL or a link that begins with https://.", param)
