"""The shape of chat completions that nearly everybody sends, and what its messages can cost.

Whatever is not of this shape is read by `request`, which also says why the fields are what they are.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from proxy.dialects.body import INT_MAX, size, texts_size
from proxy.dialects.guard import BodyLimits
from proxy.dialects.usual import Closed, as_written

CHOICES_MAX: Final = 128
"""What OpenAI itself takes for `n`."""

LINKS: Final = ("data:", "https:", "http:")
"""How a link to an image begins."""

_Bound = Annotated[int, Meta(ge=1, le=INT_MAX)]
_Choices = Annotated[int, Meta(ge=1, le=CHOICES_MAX)]
_Fraction = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-100, le=100)]


class Text(Closed, tag="text"):
    """A part that is text."""

    text: str


class Link(Closed):
    """Where an image is, or the image itself as a data URL."""

    url: str
    detail: str | UnsetType = UNSET


class Image(Closed, tag="image_url"):
    """A part that is an image."""

    image_url: Link


class Message(Closed):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Text | Image] | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    name: Raw | UnsetType = UNSET
    tool_calls: Raw | UnsetType = UNSET
    tool_call_id: Raw | UnsetType = UNSET


class StreamOptions(Closed):
    """What is asked of a stream."""

    include_usage: bool


class Tool(Closed):
    """A tool that the caller runs."""

    type: Literal["function"]
    function: Raw


class Body(Closed):
    """A request."""

    model: Annotated[str, Meta(min_length=1)]
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Bound | None = None
    max_completion_tokens: _Bound | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: _Fraction | None = None
    n: _Choices | None = None
    stop: str | list[str] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    user: str | None = None
    reasoning_effort: str | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    tools: list[Tool] | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET


OPAQUE: Final = frozenset({"tools", "tool_choice", "response_format"})
"""Fields of `Body` that become text for the model and are counted by their JSON."""

BODY: Final = msgspec.json.Decoder(Body)
MESSAGES: Final = msgspec.json.Decoder(list[Message])


class Measured(msgspec.Struct, frozen=True):
    """What messages can cost; a struct because one is made for every request.

    Attributes:
        written: as they travel.
        text_bytes, images: as in `Measures`.
        pieces: messages and parts.
        opaque: some value in them is raw.
    """

    written: Raw
    text_bytes: int
    images: int
    pieces: int
    opaque: bool


def measure(raw: Raw, messages: list[Message], limits: BodyLimits) -> Measured | None:
    """Measure messages, given as they stand and decoded; `None` where they are not as usual as they look."""
    written = as_written(raw, messages) if 0 < len(messages) <= limits.messages_max else None
    if written is None:
        return None
    framing = 0
    texts: list[str] = []
    links: list[str] = []
    for message in messages:
        framing += len(message.role) + len('""')
        content = message.content
        if isinstance(content, str):
            texts.append(content)
        elif content:
            for part in content:
                if isinstance(part, Text):
                    texts.append(part.text)
                else:
                    links.append(part.image_url.url)
        if message.refusal is None:
            framing += len("null")
    if not all(map(_is_link, links)):
        return None
    opaque = [
        raw
        for message in messages
        for raw in (message.name, message.tool_calls, message.tool_call_id)
        if raw is not UNSET
    ]
    return Measured(
        written=written,
        text_bytes=framing + texts_size(texts) + sum(map(size, opaque)),
        images=len(links),
        pieces=len(messages) + len(texts) + len(links),
        opaque=bool(opaque),
    )


def _is_link(url: str) -> bool:
    return url[:6].lower().startswith(LINKS)
