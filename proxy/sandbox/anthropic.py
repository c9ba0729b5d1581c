"""Anthropic messages as the vendor speaks them: requests, answers, streams and errors. Pure."""

# ruff: noqa: ARG002 - a Voice is given all that any vendor may need; each looks at its own part

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pricing.usage import Usage
from proxy.sandbox.answers import Choice, Said, ToolCall
from proxy.sandbox.wire import (
    REPLY_TOKENS,
    Asked,
    Frame,
    Ids,
    Prompt,
    Refused,
    Tool,
    account_headers,
    directives_of,
    encode,
    grouped,
    mapping,
    objects,
    read_object,
    stop_list,
    whole_number,
)
from proxy.types import DialectName, Headers

FINISH: Final = {"stop": "end_turn", "stopped": "stop_sequence", "length": "max_tokens", "tools": "tool_use"}

ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: (
        "rate_limit_error",
        "This request would exceed your organization's rate limit (5a4db0c5-ed00-4000-8000-0123456789ab).",
    ),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service unavailable"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}

PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


class Anthropic:
    """POST /v1/messages and /v1/messages/count_tokens."""

    name: DialectName = "anthropic"

    def read(self, path: str, query: Mapping[str, str], body: bytes) -> Asked:
        """Read a request; see `Voice.read`."""
        fields = read_object(body, "The request body is not valid JSON")
        counting = path.endswith("/count_tokens")
        metadata = mapping(fields.get("metadata"), "metadata")
        told = metadata.get("sandbox")
        user = metadata.get("user_id")
        if told is None and isinstance(user, str) and user.startswith("sandbox:"):
            told = user.removeprefix("sandbox:")
        base, directives = directives_of(fields.get("model"), told)
        bound = whole_number(fields.get("max_tokens"), "max_tokens", 0)
        if bound is None and not counting:
            raise Refused(400, "max_tokens: Field required")
        messages = objects(fields.get("messages"), "messages")
        if not messages:
            raise Refused(400, "messages: at least one message is required")
        prompt = Prompt()
        tools = tuple(_tools(fields, prompt))
        _read_content(fields.get("system"), "system", prompt)
        for message in messages:
            if message.get("role") not in ("user", "assistant", "system"):
                raise Refused(400, "messages: Unexpected role; allowed are 'user' and 'assistant'")
            prompt.message()
            _read_content(message.get("content"), "messages.content", prompt)
        structured, schema = _format(fields, prompt)
        prompt.tokens += REPLY_TOKENS
        prompt.mark(fields.get("cache_control"))  # at the top it marks all that can be cached
        thinking = mapping(fields.get("thinking"), "thinking")
        return Asked(
            dialect=self.name,
            model=str(fields["model"]),
            directives=directives,
            seed=prompt.seed(base, directives.text),
            input_tokens=prompt.tokens,
            action="count" if counting else "generate",
            stream=fields.get("stream") is True,
            marked_5m=prompt.marked_5m,
            marked_1h=prompt.marked_1h,
            output_max=bound,
            stops=stop_list(fields.get("stop_sequences"), "stop_sequences"),
            tools=tools,
            forced=_forced(fields.get("tool_choice"), tools),
            answered=_has_tool_result(messages[-1]),
            reasoning=thinking.get("type") in ("enabled", "adaptive"),
            thoughts_shown=thinking.get("display") != "omitted",
            structured=structured,
            schema=schema,
        )

    def credential(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """Find the key in `x-api-key` or the bearer token."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = headers.get("x-api-key", "").strip() or (token.strip() if scheme.lower() == "bearer" else "")
        if not key:
            raise Refused(401, "x-api-key header is required")
        if key.endswith("-invalid"):
            raise Refused(401)
        return key

    def headers(self, ids: Ids, *, stream: bool, array: bool = False) -> Headers:
        """The headers of a good answer."""
        kind = "text/event-stream; charset=utf-8" if stream else "application/json"
        return (("content-type", kind), ("cache-control", "no-cache"), *_headers(ids))

    def whole(self, asked: Asked, said: Said, ids: Ids) -> bytes:
        """The body of an answer that is not streamed."""
        choice = said.choices[0]
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            thought = "".join(choice.thought) if asked.thoughts_shown else ""
            content.append({"type": "thinking", "thinking": thought, "signature": _signature(asked)})
        if choice.text_tokens:
            content.append({"type": "text", "text": choice.content})
        content += [_tool_use(call, ids, number) for number, call in enumerate(choice.tools)]
        message = _message(asked, ids, content)
        message["stop_reason"] = FINISH[choice.finish]
        message["stop_sequence"] = choice.stop
        if said.report:
            message["usage"] = _usage(said.usage)
        return encode(message)

    def frames(self, asked: Asked, said: Said, ids: Ids) -> Iterator[Frame]:
        """message_start, the content blocks (a ping after the first start), message_delta, message_stop."""
        choice = said.choices[0]
        started = _message(asked, ids, [])
        if said.report:
            started["usage"] = _usage(said.used_after(min(choice.tokens, 1)))
        yield Frame(_event("message_start", {"message": started}), prelude=True)
        pinged = False
        for index, block in enumerate(_blocks(asked, said, ids)):
            opening, frames = block
            start = _event("content_block_start", {"index": index, "content_block": opening})
            yield Frame(start if pinged else start + PING)
            pinged = True
            yield from _deltas(index, frames)
            yield Frame(_event("content_block_stop", {"index": index}))
        ending: dict[str, Any] = {
            "delta": {"stop_reason": FINISH[choice.finish], "stop_sequence": choice.stop}
        }
        if said.report:
            ending["usage"] = _final_usage(said.usage)
        yield Frame(_event("message_delta", ending))
        yield Frame(_event("message_stop", {}))

    def count(self, tokens: int) -> bytes:
        """The answer to token counting."""
        return encode({"input_tokens": tokens})

    def error(self, refused: Refused, ids: Ids, *, array: bool = False) -> tuple[Headers, bytes]:
        """Word an error."""
        extra: list[tuple[str, str]] = []
        if refused.retry_after is not None:
            extra.append(("retry-after", str(refused.retry_after)))
        extra.append(
            ("x-should-retry", "true" if refused.status == 429 or refused.status >= 500 else "false")
        )
        remaining = 0 if refused.status == 429 else None
        headers = (("content-type", "application/json"), *_headers(ids, remaining), *extra)
        return headers, encode(_error(refused, ids))

    def error_frame(self, refused: Refused, asked: Asked, ids: Ids, *, first: bool) -> bytes:
        """An error in mid-stream."""
        return b"event: error\ndata: %s\n\n" % encode(_error(refused, ids))

    def ping(self, asked: Asked) -> bytes:
        """A sign of life."""
        return PING

    def overloaded(self) -> int:
        """The status of an overload."""
        return 529


def _read_content(content: Any, param: str, prompt: Prompt) -> None:
    """Take a string or a list of blocks, with the cache marks on them."""
    if isinstance(content, str):
        prompt.text(content)
        return
    for block in objects(content, param):
        match block.get("type"):
            case "text":
                prompt.text(str(block.get("text", "")))
            case "tool_use":
                prompt.text(str(block.get("name", "")))
                prompt.json(block.get("input"))
            case "tool_result":
                _read_content(block.get("content"), f"{param}.tool_result", prompt)
            case "thinking":
                prompt.text(str(block.get("thinking", "")))
            case "image" | "document":
                prompt.media()
            case _:
                pass  # blocks of server tools and the like: taken, and not counted
        prompt.mark(block.get("cache_control"))


def _tools(fields: dict[str, Any], prompt: Prompt) -> Iterator[Tool]:
    for tool in objects(fields.get("tools"), "tools"):
        prompt.json({name: value for name, value in tool.items() if name != "cache_control"})
        prompt.mark(tool.get("cache_control"))
        if tool.get("type", "custom") == "custom" and isinstance(name := tool.get("name"), str):
            yield Tool(name, tool.get("input_schema"))


def _forced(choice: Any, tools: tuple[Tool, ...]) -> tuple[str, ...] | None:
    asked = mapping(choice, "tool_choice")
    if asked.get("type") == "any":
        return tuple(tool.name for tool in tools)
    if asked.get("type") == "tool":
        return (str(asked.get("name")),)
    return None


def _format(fields: dict[str, Any], prompt: Prompt) -> tuple[bool, Any]:
    config = mapping(fields.get("output_config"), "output_config")
    wanted = mapping(config.get("format"), "output_config.format")
    if wanted.get("type") != "json_schema":
        return False, None
    prompt.json(wanted)
    return True, wanted.get("schema")


def _has_tool_result(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def _message(asked: Asked, ids: Ids, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": asked.model,
        "id": f"msg_01{ids.unique[:22]}",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _tool_use(call: ToolCall, ids: Ids, number: int) -> dict[str, Any]:
    try:
        arguments = read_object(call.arguments.encode(), "")
    except Refused:
        arguments = {}  # broken off by the output bound: the vendor then shows what it could parse
    return {
        "type": "tool_use",
        "id": f"toolu_01{number:02x}{ids.unique[:20]}",
        "name": call.name,
        "input": arguments,
    }


def _signature(asked: Asked) -> str:
    """A signature of the vendor's shape; nobody can check it, and it must come back unharmed."""
    return base64.b64encode(b"sandbox-thinking-" + asked.seed.to_bytes(8, "big") * 8).decode()


DeltaFrames = Iterator[tuple[bytes, int]]
"""The `delta` objects of a block, encoded, each with its tokens; `b""` for tokens that are not shown."""


def _blocks(asked: Asked, said: Said, ids: Ids) -> Iterator[tuple[dict[str, Any], DeltaFrames]]:
    """The content blocks of an answer: how each opens, and its deltas."""
    choice = said.choices[0]
    size = asked.directives.frame_tokens
    if choice.reasoning:
        yield {"type": "thinking", "thinking": "", "signature": ""}, _thinking(asked, choice, size)
    if choice.text_tokens or said.endless:
        yield (
            {"type": "text", "text": ""},
            (
                (b'{"type":"text_delta","text":%s}' % encode(text) if text else b"", count)
                for text, count in grouped(choice.text, size)
            ),
        )
    for number, call in enumerate(choice.tools):
        yield {**_tool_use(call, ids, number), "input": {}}, _arguments(call, size)


def _thinking(asked: Asked, choice: Choice, size: int) -> DeltaFrames:
    for text, count in grouped(choice.thought, size):
        shown = b'{"type":"thinking_delta","thinking":%s}' % encode(text) if asked.thoughts_shown else b""
        yield shown, count
    yield b'{"type":"signature_delta","signature":%s}' % encode(_signature(asked)), 0


def _arguments(call: ToolCall, size: int) -> DeltaFrames:
    yield b'{"type":"input_json_delta","partial_json":""}', 0
    for text, count in grouped(call.pieces, size):
        yield b'{"type":"input_json_delta","partial_json":%s}' % encode(text), count


def _deltas(index: int, frames: DeltaFrames) -> Iterator[Frame]:
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":' % index
    for delta, count in frames:
        yield Frame(head + delta + b"}\n\n" if delta else b"", count)


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), encode({"type": kind, **fields}))


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's counts are disjoint; thinking is within the output."""
    counts: dict[str, Any] = {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
        "service_tier": "standard",
    }
    if usage.reasoning:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return counts


def _final_usage(usage: Usage) -> dict[str, Any]:
    """The totals at the end; as with the vendor, the split of cache writes stands in message_start alone."""
    counts = _usage(usage)
    del counts["cache_creation"], counts["service_tier"]
    return counts


def _error(refused: Refused, ids: Ids) -> dict[str, Any]:
    kind, message = ERRORS.get(refused.status, ERRORS[400 if refused.status < 500 else 500])
    return {
        "type": "error",
        "error": {"type": kind, "message": refused.message or message},
        "request_id": ids.request,
    }


def _headers(ids: Ids, remaining: int | None = None) -> Headers:
    reset = "2026-01-01T00:00:00Z"  # fixed, so that an answer is the same whenever it is given
    limits: list[tuple[str, str]] = []
    for kind, limit in (("requests", 4000), ("tokens", 2_400_000), ("input-tokens", 2_000_000)):
        left = limit - 1 if remaining is None else remaining
        limits += [
            (f"anthropic-ratelimit-{kind}-limit", str(limit)),
            (f"anthropic-ratelimit-{kind}-remaining", str(left)),
            (f"anthropic-ratelimit-{kind}-reset", reset),
        ]
    return (
        ("request-id", ids.request),
        ("anthropic-organization-id", "5a4db0c5-ed00-4000-8000-0123456789ab"),
        *limits,
        ("x-robots-tag", "none"),
        *account_headers("google", ids),
    )
