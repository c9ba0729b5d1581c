"""The shape of Gemini requests that nearly everybody sends, and what their contents can cost.

Whatever is not of this shape is read by `request`, which also says why the fields are what they are.
"""

from typing import Annotated, Final, Literal

import msgspec
from attrs import define, field
from msgspec import UNSET, Meta, Raw, UnsetType

from proxy.dialects.body import INT_MAX, is_null, size, texts_size
from proxy.dialects.usual import Closed

PART_TOKENS: Final = 16
"""Added per part, for the words that the provider puts around it."""

FUNCTION_TOKENS: Final = 64
"""Added per function call, response and declaration instead: the wording around those is longer."""

CANDIDATES_MAX: Final = 8
"""The API's own bound on `candidateCount`."""


class FunctionResponse(Closed):
    """What the caller's function gave."""

    name: Raw
    response: Raw
    id: Raw | UnsetType = UNSET


class Blob(Closed, rename="camel"):
    """An image within the body."""

    mime_type: Annotated[str, Meta(pattern="^image/")]
    data: str


class Part(Closed, rename="camel"):
    """A piece of content."""

    text: str | UnsetType = UNSET
    inline_data: Blob | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET
    function_response: FunctionResponse | UnsetType = UNSET
    thought: Raw | UnsetType = UNSET
    thought_signature: Raw | UnsetType = UNSET


class Content(Closed):
    """One turn, or the system's instruction."""

    parts: list[Part]
    role: Literal["user", "model", "function", "system"] | UnsetType = UNSET


class Thinking(Closed, rename="camel"):
    """Whether to think, and how much."""

    thinking_budget: Annotated[int, Meta(ge=-1, le=INT_MAX)] | UnsetType = UNSET
    thinking_level: str | UnsetType = UNSET
    include_thoughts: bool | UnsetType = UNSET


class Generation(Closed, rename="camel"):
    """How to answer."""

    max_output_tokens: Annotated[int, Meta(ge=1, le=INT_MAX)] | None = None
    candidate_count: Annotated[int, Meta(ge=1, le=CANDIDATES_MAX)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop_sequences: list[str] | UnsetType = UNSET
    response_mime_type: str | None = None
    thinking_config: Thinking | UnsetType = UNSET


class Body(Closed, rename="camel"):
    """A request."""

    contents: list[Content]
    system_instruction: Content | UnsetType = UNSET
    generation_config: Generation | UnsetType = UNSET


NOTHING: Final = Generation()
"""What is said of how to answer where nothing is said."""

BODY: Final = msgspec.json.Decoder(Body)
CONTENTS: Final = msgspec.json.Decoder(list[Content])


def reasoning(thinking: Thinking | UnsetType) -> tuple[bool | None, int | None]:
    """Whether thinking is switched on, off, or left; and the caller's own bound on it, where there is one."""
    if thinking is UNSET:
        return None, None
    if thinking.thinking_budget is not UNSET:  # -1 leaves it to the model
        budget = thinking.thinking_budget
        return budget != 0, budget if budget > 0 else None
    return None if thinking.thinking_level is UNSET else True, None


@define(eq=False)
class Sum:
    """Adds up what decoded contents can cost.

    Attributes:
        texts: everything that counts by its UTF-8 bytes.
        opaque: everything that counts by the bytes of its JSON.
        parts, functions: by how much there is wording around them.
        turns: contents.
    """

    texts: list[str] = field(factory=list)
    opaque: list[Raw] = field(factory=list)
    turns: int = 0
    parts: int = 0
    functions: int = 0
    images: int = 0

    @property
    def text_bytes(self) -> int:
        """All of it but the images."""
        wording = self.parts * PART_TOKENS + self.functions * FUNCTION_TOKENS
        return wording + texts_size(self.texts) + sum(map(size, self.opaque))

    def contents(self, contents: list[Content]) -> None:
        """Add turns."""
        self.turns += len(contents)
        for content in contents:
            self.parts += len(content.parts)
            for part in content.parts:
                if part.text is not UNSET:
                    self.texts.append(part.text)
                if part.inline_data is not UNSET:
                    self.images += 1
                if part.function_call is not UNSET and not is_null(part.function_call):
                    self.functions += 1
                    self.opaque.append(part.function_call)
                if part.function_response is not UNSET:
                    self._response(part.function_response)
                for other in (part.thought, part.thought_signature):
                    if other is not UNSET and not is_null(other):
                        self.opaque.append(other)

    def _response(self, response: FunctionResponse) -> None:
        self.functions += 1
        self.opaque += (response.name, response.response)
        if response.id is not UNSET:
            self.opaque.append(response.id)
