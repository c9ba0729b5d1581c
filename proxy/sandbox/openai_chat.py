"""OpenAI chat completions as the vendor speaks them: requests, answers, streams and errors. Pure."""

# ruff: noqa: ARG002 - a Voice is given all that any vendor may need; each looks at its own part

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pricing.usage import Usage
from proxy.sandbox.answers import Choice, Said
from proxy.sandbox.wire import (
    CHOICES_MAX,
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

FINGERPRINT: Final = "fp_5a4db0c5ed"
FINISH: Final = {"stop": "stop", "stopped": "stop", "length": "length", "tools": "tool_calls"}
BAD_REQUEST: Final = "invalid_request_error"

ERRORS: Final[Mapping[int, tuple[str, str | None, str]]] = {
    400: (BAD_REQUEST, None, "Invalid request."),
    401: (
        BAD_REQUEST,
        "invalid_api_key",
        "Incorrect API key provided: sk-…. You can find your API key in settings.",
    ),
    402: (
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, check your plan and billing.",
    ),
    403: (BAD_REQUEST, "unsupported_country_region_territory", "Country, region, or territory not supported"),
    404: (BAD_REQUEST, "model_not_found", "The model does not exist or you do not have access to it."),
    405: (BAD_REQUEST, None, "Not allowed to use this method."),
    413: (BAD_REQUEST, "request_too_large", "The request is too large."),
    429: (
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for the model in organization org-sandboxY2JHPxv5JqVpTvUQ on requests per min.",
    ),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: (
        "server_error",
        "overloaded",
        "The server is currently overloaded with other requests. Sorry about that!",
    ),
}

OWN_FIELD: Final = re.compile(r"^(?:openai/)?(?:o\d|gpt-[5-9])")
"""Models that take `max_completion_tokens` alone; sent `max_tokens` they refuse. They also reason unasked."""


class OpenAIChat:
    """POST /v1/chat/completions."""

    name: DialectName = "openai_chat"

    def read(self, path: str, query: Mapping[str, str], body: bytes) -> Asked:
        """Read a request; see `Voice.read`."""
        fields = read_object(body, "We could not parse the JSON body of your request.")
        model = fields.get("model")
        metadata = mapping(fields.get("metadata"), "metadata")
        base, directives = directives_of(model, metadata.get("sandbox"))
        stream = fields.get("stream") is True
        options = mapping(fields.get("stream_options"), "stream_options")
        if options and not stream:
            raise Refused(
                400,
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        if fields.get("max_tokens") is not None and OWN_FIELD.match(base):
            raise Refused(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                param="max_tokens",
                code="unsupported_parameter",
            )
        prompt = Prompt()
        messages = objects(fields.get("messages"), "messages")
        if not messages:
            raise Refused(400, "Missing required parameter: 'messages'.", param="messages")
        tools = tuple(_tools(fields, prompt))
        for message in messages:
            _read_message(message, prompt)
        structured, schema = _format(fields.get("response_format"), prompt)
        bounds = [whole_number(fields.get(name), name, 1) for name in ("max_completion_tokens", "max_tokens")]
        stated = [bound for bound in bounds if bound is not None]
        effort = fields.get("reasoning_effort")
        return Asked(
            dialect=self.name,
            model=str(model),
            directives=directives,
            seed=prompt.seed(base, directives.text),
            input_tokens=prompt.tokens + REPLY_TOKENS,
            stream=stream,
            output_max=min(stated) if stated else None,
            choices=whole_number(fields.get("n"), "n", 1, CHOICES_MAX) or 1,
            stops=stop_list(fields.get("stop"), "stop"),
            tools=tools,
            forced=_forced(fields.get("tool_choice"), tools),
            answered=messages[-1].get("role") in ("tool", "function"),
            reasoning=effort != "none" if isinstance(effort, str) else _reasons_unasked(base),
            structured=structured,
            schema=schema,
            usage_wanted=options.get("include_usage") is True,
        )

    def credential(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """Find the bearer token; see `Voice.credential`."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                code="",
            )
        if token.endswith("-invalid"):
            raise Refused(401)
        return token

    def headers(self, ids: Ids, *, stream: bool, array: bool = False) -> Headers:
        """The headers of a good answer; see `Voice.headers`."""
        kind = "text/event-stream; charset=utf-8" if stream else "application/json"
        return (("content-type", kind), *_headers(ids))

    def whole(self, asked: Asked, said: Said, ids: Ids) -> bytes:
        """The body of an answer that is not streamed."""
        choices = [
            {
                "index": index,
                "message": _message(choice, ids, index),
                "logprobs": None,
                "finish_reason": FINISH[choice.finish],
            }
            for index, choice in enumerate(said.choices)
        ]
        body = {
            "id": _answer_id(ids),
            "object": "chat.completion",
            "created": ids.created,
            "model": asked.model,
            "choices": choices,
            "usage": _usage(said.usage),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        if not said.report:
            del body["usage"]
        return encode(body)

    def frames(self, asked: Asked, said: Said, ids: Ids) -> Iterator[Frame]:
        """Role, content, finish, usage where it was asked for, `[DONE]`."""
        head, tail = _envelope(asked, ids)

        def event(index: int, delta: bytes, finish: str | None = None) -> bytes:
            ending = b"null" if finish is None else b'"%s"' % finish.encode()
            return b'%s[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]%s' % (
                head, index, delta, ending, tail,
            )  # fmt: skip

        for index, choice in enumerate(said.choices):
            content = b"null" if choice.tools and not choice.text_tokens else b'""'
            role = b'{"role":"assistant","content":%s,"refusal":null}' % content
            yield Frame(event(index, role), prelude=True)
        size = asked.directives.frame_tokens
        for choice in said.choices:
            for _, count in grouped(choice.thought, size):
                yield Frame(b"", count)
        parts = [_deltas(choice, ids, index, size) for index, choice in enumerate(said.choices)]
        for row in itertools.zip_longest(*parts):
            for index, part in enumerate(row):
                if part is not None:
                    delta, count = part
                    yield Frame(event(index, delta) if delta else b"", count)
        for index, choice in enumerate(said.choices):
            yield Frame(event(index, b"{}", FINISH[choice.finish]))
        if asked.usage_wanted and said.report:
            yield Frame(head + b'[],"usage":%s}\n\n' % encode(_usage(said.usage)))
        yield Frame(b"data: [DONE]\n\n")

    def count(self, tokens: int) -> bytes:
        """OpenAI counts no tokens for chat; there is no route that leads here."""
        return encode({"input_tokens": tokens})

    def error(self, refused: Refused, ids: Ids, *, array: bool = False) -> tuple[Headers, bytes]:
        """Word an error."""
        extra: list[tuple[str, str]] = []
        if refused.retry_after is not None:
            extra = [
                ("retry-after", str(refused.retry_after)),
                ("retry-after-ms", str(refused.retry_after * 1000)),
            ]
        remaining = 0 if refused.status == 429 else None
        headers = (("content-type", "application/json"), *_headers(ids, remaining), *extra)
        return headers, encode({"error": _error(refused)})

    def error_frame(self, refused: Refused, asked: Asked, ids: Ids, *, first: bool) -> bytes:
        """An error in mid-stream: an event whose data is an error object; no `[DONE]` follows."""
        return b"data: %s\n\n" % encode({"error": _error(refused)})

    def ping(self, asked: Asked) -> bytes:
        """OpenAI sends none."""
        return b""

    def overloaded(self) -> int:
        """The status of an overload."""
        return 503


def _read_message(message: dict[str, Any], prompt: Prompt) -> None:
    if not isinstance(message.get("role"), str):
        raise Refused(400, "Missing required parameter: 'messages[].role'.", param="messages")
    prompt.message()
    content = message.get("content")
    if isinstance(content, str):
        prompt.text(content)
    else:
        for part in objects(content, "messages[].content"):
            text = part.get("text", part.get("refusal"))
            if isinstance(text, str):
                prompt.text(text)
            else:
                prompt.media()
    if isinstance(name := message.get("name"), str):
        prompt.text(name)
    for call in objects(message.get("tool_calls"), "messages[].tool_calls"):
        function = mapping(call.get("function"), "messages[].tool_calls[].function")
        prompt.text(str(function.get("name", "")))
        prompt.text(str(function.get("arguments", "")))


def _tools(fields: dict[str, Any], prompt: Prompt) -> Iterator[Tool]:
    for tool in objects(fields.get("tools"), "tools"):
        prompt.json(tool)
        function = mapping(tool.get("function"), "tools[].function")
        if tool.get("type") == "function" and isinstance(name := function.get("name"), str):
            yield Tool(name, function.get("parameters"))


def _forced(choice: Any, tools: tuple[Tool, ...]) -> tuple[str, ...] | None:
    if choice == "required":
        return tuple(tool.name for tool in tools)
    if isinstance(choice, dict) and choice.get("type") == "function":
        return (str(mapping(choice.get("function"), "tool_choice.function").get("name")),)
    return None


def _format(wanted: Any, prompt: Prompt) -> tuple[bool, Any]:
    """Whether JSON is wanted, and by which schema."""
    asked = mapping(wanted, "response_format")
    if asked.get("type") == "json_schema":
        prompt.json(asked)
        return True, mapping(asked.get("json_schema"), "response_format.json_schema").get("schema")
    return asked.get("type") == "json_object", None


def _reasons_unasked(base: str) -> bool:
    return base == "sandbox-thinker" or OWN_FIELD.match(base) is not None


def _answer_id(ids: Ids) -> str:
    return f"chatcmpl-{ids.unique[:29]}"


def _call_id(ids: Ids, index: int, number: int) -> str:
    return f"call_{index:02x}{number:02x}{ids.unique[:20]}"


def _message(choice: Choice, ids: Ids, index: int) -> dict[str, Any]:
    text = choice.content
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.tools and not text else text,
        "refusal": None,
        "annotations": [],
    }
    if choice.tools:
        message["tool_calls"] = [
            {
                "id": _call_id(ids, index, number),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(choice.tools)
        ]
    return message


def _deltas(choice: Choice, ids: Ids, index: int, size: int) -> Iterator[tuple[bytes, int]]:
    """The deltas of one choice with their tokens; empty where nothing is shown of them."""
    for text, count in grouped(choice.text, size):
        yield (b'{"content":%s}' % encode(text) if text else b""), count
    for number, call in enumerate(choice.tools):
        opening = {
            "index": number,
            "id": _call_id(ids, index, number),
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        yield encode({"tool_calls": [opening]}), 0
        for text, count in grouped(call.pieces, size):
            yield (
                b'{"tool_calls":[{"index":%d,"function":{"arguments":%s}}]}' % (number, encode(text)),
                count,
            )


def _envelope(asked: Asked, ids: Ids) -> tuple[bytes, bytes]:
    """What stands before and after the choices of every chunk."""
    head = {
        "id": _answer_id(ids),
        "object": "chat.completion.chunk",
        "created": ids.created,
        "model": asked.model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    tail = b',"usage":null}\n\n' if asked.usage_wanted else b"}\n\n"
    return b"data: " + encode(head)[:-1] + b',"choices":', tail


def _usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's counts include what they detail: cached input in the prompt, reasoning in the completion."""
    details: dict[str, int] = {"cached_tokens": usage.cache_read, "audio_tokens": 0}
    written = usage.cache_write_5m + usage.cache_write_1h
    if written:
        details["cache_write_tokens"] = written
    prompt = usage.input + usage.cache_read + written
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": details,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _error(refused: Refused) -> dict[str, Any]:
    kind, code, message = ERRORS.get(refused.status, ERRORS[400 if refused.status < 500 else 500])
    if refused.code is not None:
        code = refused.code or None
    return {"message": refused.message or message, "type": kind, "param": refused.param, "code": code}


def _headers(ids: Ids, remaining: int | None = None) -> Headers:
    return (
        ("x-request-id", ids.request),
        ("openai-organization", "sandbox-organization"),
        ("openai-project", "proj_sandboxQ4Yx1n2L"),
        ("openai-processing-ms", "12"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-requests", str(9999 if remaining is None else remaining)),
        ("x-ratelimit-remaining-tokens", str(1999000 if remaining is None else remaining)),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "30ms"),
        ("access-control-expose-headers", "X-Request-ID"),
        ("x-content-type-options", "nosniff"),
        *account_headers("cloudflare", ids),
    )
