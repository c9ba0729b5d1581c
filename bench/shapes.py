"""What is asked for: the bytes of a request, with what the provider is to answer in its text."""

import base64
import json
import random
from typing import Any, Final

from attrs import frozen

CONTEXT_BYTES: Final = 2**20
IMAGES: Final = 4
IMAGE_BYTES: Final = 768 * 1024
"""A picture of that size is 1 MB as base64."""

MAX_TOKENS: Final = 100_000
WORDS: Final = 'the quick brown fox jumps over the lazy dog and runs away from \\ the "wolf" '


@frozen
class Shape:
    """An answer as the provider is to give it.

    Attributes:
        events: of a stream; 0 is one plain body.
        gap_us: between two of them; 0: as fast as they go.
        first_us: before the first, the provider's own time.
    """

    events: int = 0
    gap_us: int = 0
    first_us: int = 0

    @property
    def stream(self) -> bool:
        """Whether it is one."""
        return self.events > 0

    @property
    def seconds(self) -> float:
        """How long it takes by itself."""
        return (self.first_us + self.events * self.gap_us) / 1e6

    @property
    def told(self) -> str:
        """What stands in the text of the request; the number is put in for each by the client."""
        kind = "stream" if self.stream else "plain"
        return f"bench={kind},{self.events},{self.gap_us},{self.first_us},#0000000;"


def body(shape: Shape, model: str, load: str = "small") -> bytes:
    """The JSON of a request: `small`, with 1 MB of `context`, or with `images`."""
    told = f"{shape.told} Say hello, and then say some words."
    content: Any = told
    if load == "context":
        content = f"{told}\n{WORDS * (CONTEXT_BYTES // len(WORDS))}"
    elif load == "images":
        content = [{"type": "text", "text": told}, *(_image(number) for number in range(IMAGES))]
    fields: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS if shape.stream else 16,
        "stream": shape.stream,
    }
    return json.dumps(fields).encode()


def _image(number: int) -> dict[str, Any]:
    """Random bytes that pass for a picture: base64 of real ones looks no different."""
    picture = b"\x89PNG\r\n\x1a\n" + random.Random(number).randbytes(IMAGE_BYTES)
    data = base64.b64encode(picture).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def request(path: str, host: str, headers: dict[str, str], content: bytes) -> bytes:
    """The bytes of a POST."""
    named = {
        "host": host,
        "content-type": "application/json",
        "content-length": str(len(content)),
        **headers,
    }
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode() + content
