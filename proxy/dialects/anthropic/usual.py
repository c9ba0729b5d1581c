"""The shape of Messages requests that nearly everybody sends, and what their messages, system and tools can cost.

Whatever is not of this shape is read by `request`, which also says why the fields are what they are.
"""

from typing import Annotated, Final, Literal

import msgspec
from attrs import define, field
from msgspec import UNSET, Meta, Raw, UnsetType

from pricing.price import CacheWrites
from proxy.dialects.body import INT_MAX, size, texts_size
from proxy.dialects.usual import Closed

BLOCK_TOKENS: Final = 16
"""Added per block, for the words that the provider puts around it."""

TOOL_CALL_TOKENS: Final = 64
"""Added per tool call, result and declaration instead: the wording around those is longer."""

_Bound = Annotated[int, Meta(ge=0, le=INT_MAX)]


class Cache(Closed):
    """A mark of what shall be cached, and for how long."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | UnsetType = UNSET


class Marked(Closed, kw_only=True):
    """What may have such a mark."""

    cache_control: Cache | UnsetType = UNSET


class Text(Marked, tag="text"):
    """A block that is text."""

    text: str


class Inline(Closed, tag="base64"):
    """An image within the body."""

    media_type: str
    data: str


class Linked(Closed, tag="url"):
    """An image elsewhere."""

    url: str


class Image(Marked, tag="image"):
    """A block that is an image."""

    source: Inline | Linked


class Thinking(Closed, tag="thinking"):
    """A block of an earlier answer's thinking."""

    thinking: Raw
    signature: Raw


class ToolUse(Marked, tag="tool_use"):
    """A call of the caller's tool."""

    id: Raw
    name: Raw
    input: Raw


class ToolResult(Marked, tag="tool_result"):
    """What such a tool gave."""

    tool_use_id: Raw
    content: str | list[Text | Image] | UnsetType = UNSET
    is_error: Raw | UnsetType = UNSET


Block = Text | Image | Thinking | ToolUse | ToolResult


class Message(Closed):
    """One turn."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(Marked):
    """A tool that the caller runs."""

    name: Raw
    type: Literal["custom"] | UnsetType = UNSET
    description: Raw | UnsetType = UNSET
    input_schema: Raw | UnsetType = UNSET


class Reasoning(Closed):
    """Whether to think, and how much."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: _Bound | UnsetType = UNSET


class Metadata(Closed):
    """Whose request it is."""

    user_id: str | None = None


class Body(Closed):
    """A request."""

    model: str
    messages: list[Message]
    max_tokens: _Bound | None = None
    system: str | list[Text] | UnsetType = UNSET
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: Metadata | None = None
    thinking: Reasoning | UnsetType = UNSET
    tools: list[Tool] | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    output_config: Raw | UnsetType = UNSET


def budget(thinking: Reasoning | UnsetType) -> int | None:
    """The caller's own bound on thinking, where there is one."""
    if thinking is UNSET or thinking.type != "enabled" or thinking.budget_tokens is UNSET:
        return None
    return thinking.budget_tokens


BODY: Final = msgspec.json.Decoder(Body)
MESSAGES: Final = msgspec.json.Decoder(list[Message])


@define(eq=False)
class Sum:
    """Adds up what decoded content can cost.

    Attributes:
        texts: everything that counts by its UTF-8 bytes.
        opaque: everything that counts by the bytes of its JSON.
        blocks, calls: by how much there is wording around them.
    """

    texts: list[str] = field(factory=list)
    opaque: list[Raw] = field(factory=list)
    blocks: int = 0
    calls: int = 0
    images: int = 0
    cache_writes: CacheWrites = "none"

    @property
    def text_bytes(self) -> int:
        """All of it but the images."""
        wording = self.blocks * BLOCK_TOKENS + self.calls * TOOL_CALL_TOKENS
        return wording + texts_size(self.texts) + sum(map(size, self.opaque))

    def messages(self, messages: list[Message]) -> None:
        """Add a conversation."""
        for message in messages:
            self.content(message.content)

    def content(self, content: str | list[Text] | list[Text | Image] | list[Block]) -> None:
        """Add a string, or blocks."""
        if isinstance(content, str):
            self.texts.append(content)
            self.blocks += 1
            return
        self.blocks += len(content)
        for block in content:
            if isinstance(block, Text):
                self.texts.append(block.text)
            elif isinstance(block, Image):
                self.images += 1
            elif isinstance(block, Thinking):
                self.opaque += (block.thinking, block.signature)
                continue
            elif isinstance(block, ToolUse):
                self.calls += 1
                self.opaque += (block.id, block.name, block.input)
            else:
                self._result(block)
            if block.cache_control is not UNSET:
                self._mark(block.cache_control)

    def tools(self, tools: list[Tool]) -> None:
        """Add declarations of tools."""
        self.calls += len(tools)
        for tool in tools:
            self.opaque += [
                raw for raw in (tool.name, tool.description, tool.input_schema) if raw is not UNSET
            ]
            if tool.cache_control is not UNSET:
                self._mark(tool.cache_control)

    def _result(self, block: ToolResult) -> None:
        self.calls += 1
        self.opaque.append(block.tool_use_id)
        if block.is_error is not UNSET:
            self.opaque.append(block.is_error)
        if block.content is not UNSET:
            self.content(block.content)

    def _mark(self, mark: Cache) -> None:
        if mark.ttl == "1h":
            self.cache_writes = "1h"
        elif self.cache_writes == "none":
            self.cache_writes = "5m"
