"""Gemini as the vendor speaks it: reading requests, wording answers, streams and errors. Pure.

Field names come in two spellings, `generationConfig` and `generation_config`, as Google's servers take both.
"""

# ruff: noqa: ARG002 - a Voice is given all that any vendor may need; each looks at its own part

import base64
import itertools
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

FINISH: Final = {"stop": "STOP", "stopped": "STOP", "length": "MAX_TOKENS", "tools": "STOP"}

CANDIDATES_MAX: Final = 8
"""Google's own limit for `candidateCount`."""

ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    402: ("FAILED_PRECONDITION", "Billing is not enabled on project sandbox-project-414243."),
    403: ("PERMISSION_DENIED", "Permission denied on project sandbox-project-414243."),
    404: ("NOT_FOUND", "Requested entity was not found."),
    405: ("UNIMPLEMENTED", "Method not allowed."),
    413: ("INVALID_ARGUMENT", "Request payload size exceeds the limit."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota) on sandbox-project-414243."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: ("INTERNAL", "An internal error has occurred."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out. Please try again."),
}

INVALID_KEY: Final = "API_KEY_INVALID"
REASONS: Final = {
    INVALID_KEY: "API key not valid. Please pass a valid API key.",
    "CREDENTIALS_MISSING": "Request is missing required authentication credential.",
}


class Gemini:
    """POST /v1beta/models/{model}:generateContent, :streamGenerateContent, :countTokens; also under /v1."""

    name: DialectName = "gemini"

    def read(self, path: str, query: Mapping[str, str], body: bytes) -> Asked:
        """Read a request; see `Voice.read`."""
        fields = read_object(body, "Invalid JSON payload received.")
        model, _, method = path.partition("/models/")[2].rpartition(":")
        if method == "countTokens":
            fields = mapping(_get(fields, "generateContentRequest"), "generateContentRequest") or fields
        base, directives = directives_of(model, mapping(fields.get("labels"), "labels").get("sandbox"))
        if directives.cache_write is not None or directives.cache_write_1h is not None:
            raise Refused(400, "sandbox: cache_write: Gemini has no cache writes within a request")
        contents = objects(fields.get("contents"), "contents")
        if not contents:
            raise Refused(400, "* GenerateContentRequest.contents: contents is not specified")
        prompt = Prompt()
        tools = tuple(_tools(fields, prompt))
        _read_content(mapping(_get(fields, "systemInstruction"), "systemInstruction"), prompt)
        for content in contents:
            prompt.message()
            _read_content(content, prompt)
        config = mapping(_get(fields, "generationConfig"), "generationConfig")
        structured, schema = _format(config, prompt)
        thinking = mapping(_get(config, "thinkingConfig"), "thinkingConfig")
        budget = _get(thinking, "thinkingBudget")
        return Asked(
            dialect=self.name,
            model=model,
            directives=directives,
            seed=prompt.seed(base, directives.text),
            input_tokens=prompt.tokens + REPLY_TOKENS,
            action="count" if method == "countTokens" else "generate",
            stream=method == "streamGenerateContent",
            output_max=whole_number(_get(config, "maxOutputTokens"), "maxOutputTokens", 1),
            choices=whole_number(_get(config, "candidateCount"), "candidateCount", 1, CANDIDATES_MAX) or 1,
            stops=stop_list(_get(config, "stopSequences"), "stopSequences"),
            tools=tools,
            forced=_forced(fields, tools),
            answered=_has_result(contents[-1]),
            reasoning=bool(thinking) and budget != 0,
            thoughts_shown=_get(thinking, "includeThoughts") is True,
            structured=structured,
            schema=schema,
            sse=query.get("alt") == "sse",
        )

    def credential(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str:
        """Find the key in `x-goog-api-key`, `?key=` or the bearer token."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = headers.get("x-goog-api-key", "").strip() or query.get("key", "")
        key = key or (token.strip() if scheme.lower() == "bearer" else "")
        if not key:
            raise Refused(401, code="CREDENTIALS_MISSING")
        if key.endswith("-invalid"):
            raise Refused(400, code=INVALID_KEY)  # with Google a bad key is a 400
        return key

    def headers(self, ids: Ids, *, stream: bool, array: bool = False) -> Headers:
        """The headers of a good answer."""
        kind = "text/event-stream" if stream and not array else "application/json; charset=UTF-8"
        return (("content-type", kind), *_headers(ids))

    def whole(self, asked: Asked, said: Said, ids: Ids) -> bytes:
        """The body of an answer that is not streamed."""
        candidates = []
        for index, choice in enumerate(said.choices):
            parts: list[dict[str, Any]] = []
            if choice.reasoning and asked.thoughts_shown:
                parts.append({"text": "".join(choice.thought), "thought": True})
            if choice.text_tokens:
                parts.append({"text": choice.content})
            parts += [_function_call(asked, call) for call in choice.tools]
            content = {"parts": parts, "role": "model"} if parts else {"role": "model"}
            candidates.append({"content": content, "finishReason": FINISH[choice.finish], "index": index})
        body: dict[str, Any] = {"candidates": candidates}
        if said.report:
            body["usageMetadata"] = _usage(said.usage, said.usage.output, said.usage.reasoning)
        return encode({**body, **_envelope(asked, ids)})

    def frames(self, asked: Asked, said: Said, ids: Ids) -> Iterator[Frame]:
        """One response after another, each with the totals so far; the last has the finish reasons."""
        write = _Writer(asked, said, ids)
        size = asked.directives.frame_tokens
        parts = [_parts(asked, choice, size) for choice in said.choices]
        for row in itertools.zip_longest(*parts):
            for index, part in enumerate(row):
                if part is not None:
                    yield write.part(index, *part)
        yield write.end()

    def count(self, tokens: int) -> bytes:
        """The answer to token counting."""
        return encode({"totalTokens": tokens, "promptTokensDetails": _modality(tokens)})

    def error(self, refused: Refused, ids: Ids, *, array: bool = False) -> tuple[Headers, bytes]:
        """Word an error; where an array was to come, it stands in one."""
        body = encode({"error": _error(refused)})
        headers = (("content-type", "application/json; charset=UTF-8"), *_headers(ids))
        return headers, b"[%s\n]\n" % body if array else body

    def error_frame(self, refused: Refused, asked: Asked, ids: Ids, *, first: bool) -> bytes:
        """An error in mid-stream: one more event, bare JSON after the events, or the array's last element."""
        body = encode({"error": _error(refused)})
        if not asked.sse:
            return b"%s%s\n]\n" % (b"[" if first else b",\r\n", body)
        return body + b"\n" if asked.directives.bare_error else b"data: %s\r\n\r\n" % body

    def ping(self, asked: Asked) -> bytes:
        """Google sends none."""
        return b""

    def overloaded(self) -> int:
        """The status of an overload."""
        return 503


class _Writer:
    """Writes the responses of one stream, each with the running totals."""

    def __init__(self, asked: Asked, said: Said, ids: Ids) -> None:
        self._said = said
        self._sse = asked.sse
        self._envelope = encode(_envelope(asked, ids))[1:]
        self._tokens = 0
        self._thoughts = 0
        self._first = True

    def part(self, index: int, part: bytes, tokens: int, thought: bool) -> Frame:
        """Write one part of a candidate; nothing where it is not shown."""
        self._tokens += tokens
        self._thoughts += tokens if thought else 0
        if not part:
            return Frame(b"", tokens)
        candidate = b'{"content":{"parts":[%s],"role":"model"},"index":%d}' % (part, index)
        scale = self._said.scale
        return Frame(self._response(candidate, self._tokens * scale, self._thoughts * scale), tokens)

    def end(self) -> Frame:
        """Write the last response."""
        candidates = b",".join(
            b'{"content":{"parts":[{"text":""}],"role":"model"},"finishReason":"%s","index":%d}'
            % (FINISH[choice.finish].encode(), index)
            for index, choice in enumerate(self._said.choices)
        )
        usage = self._said.usage
        data = self._response(candidates, usage.output, usage.reasoning)
        return Frame(data if self._sse else data + b"\n]\n")

    def _response(self, candidates: bytes, output: int, reasoning: int) -> bytes:
        usage = b""
        if self._said.report:
            usage = b',"usageMetadata":%s' % encode(_usage(self._said.read, output, reasoning))
        body = b'{"candidates":[%s]%s,%s' % (candidates, usage, self._envelope)
        if self._sse:
            return b"data: %s\r\n\r\n" % body
        opening, self._first = (b"[" if self._first else b",\r\n"), False
        return opening + body


def _get(fields: dict[str, Any], name: str) -> Any:
    """A field in either spelling."""
    if name in fields:
        return fields[name]
    return fields.get("".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name))


def _read_content(content: dict[str, Any], prompt: Prompt) -> None:
    for part in objects(content.get("parts"), "contents.parts"):
        call = mapping(_get(part, "functionCall"), "functionCall")
        result = mapping(_get(part, "functionResponse"), "functionResponse")
        if isinstance(text := part.get("text"), str):
            prompt.text(text)
        elif call:
            prompt.text(str(call.get("name", "")))
            prompt.json(call.get("args"))
        elif result:
            prompt.text(str(result.get("name", "")))
            prompt.json(result.get("response"))
        else:
            prompt.media()


def _tools(fields: dict[str, Any], prompt: Prompt) -> Iterator[Tool]:
    for tool in objects(fields.get("tools"), "tools"):
        prompt.json(tool)
        for declared in objects(_get(tool, "functionDeclarations"), "functionDeclarations"):
            if isinstance(name := declared.get("name"), str):
                yield Tool(name, declared.get("parameters") or _get(declared, "parametersJsonSchema"))


def _forced(fields: dict[str, Any], tools: tuple[Tool, ...]) -> tuple[str, ...] | None:
    config = mapping(_get(fields, "toolConfig"), "toolConfig")
    calling = mapping(_get(config, "functionCallingConfig"), "functionCallingConfig")
    if calling.get("mode") != "ANY":
        return None
    allowed = _get(calling, "allowedFunctionNames")
    names = allowed if isinstance(allowed, list) else []
    return tuple(str(name) for name in names) or tuple(tool.name for tool in tools)


def _format(config: dict[str, Any], prompt: Prompt) -> tuple[bool, Any]:
    if _get(config, "responseMimeType") != "application/json":
        return False, None
    schema = _get(config, "responseSchema") or _get(config, "responseJsonSchema")
    if schema is not None:
        prompt.json(schema)
    return True, schema


def _has_result(content: dict[str, Any]) -> bool:
    return any(_get(part, "functionResponse") for part in objects(content.get("parts"), "contents.parts"))


def _parts(asked: Asked, choice: Choice, size: int) -> Iterator[tuple[bytes, int, bool]]:
    """The parts of one candidate: encoded (or nothing, if hidden), their tokens, whether thoughts."""
    for text, count in grouped(choice.thought, size):
        shown = b'{"text":%s,"thought":true}' % encode(text) if asked.thoughts_shown else b""
        yield shown, count, True
    for text, count in grouped(choice.text, size):
        yield (b'{"text":%s}' % encode(text) if text else b""), count, False
    for call in choice.tools:
        yield encode(_function_call(asked, call)), len(call.pieces), False


def _function_call(asked: Asked, call: ToolCall) -> dict[str, Any]:
    """A call always comes whole, with the signature that must be sent back with it."""
    try:
        arguments = read_object(call.arguments.encode(), "")
    except Refused:
        arguments = {}
    signature = base64.b64encode(b"sandbox-thought-" + asked.seed.to_bytes(8, "big") * 4).decode()
    return {"functionCall": {"name": call.name, "args": arguments}, "thoughtSignature": signature}


def _envelope(asked: Asked, ids: Ids) -> dict[str, str]:
    return {"modelVersion": asked.model, "responseId": ids.unique[:22]}


def _modality(tokens: int) -> list[dict[str, Any]]:
    return [{"modality": "TEXT", "tokenCount": tokens}]


def _usage(read: Usage, output: int, reasoning: int) -> dict[str, Any]:
    """Gemini's prompt includes what was cached; its candidates do not include the thoughts."""
    prompt = read.input + read.cache_read
    written = output - reasoning
    counts: dict[str, Any] = {"promptTokenCount": prompt}
    if read.cache_read:
        counts["cachedContentTokenCount"] = read.cache_read
    if written:
        counts["candidatesTokenCount"] = written
    counts["totalTokenCount"] = prompt + output
    counts["promptTokensDetails"] = _modality(prompt)
    if read.cache_read:
        counts["cacheTokensDetails"] = _modality(read.cache_read)
    if reasoning:
        counts["thoughtsTokenCount"] = reasoning
    return counts


def _error(refused: Refused) -> dict[str, Any]:
    status, message = ERRORS.get(refused.status, ERRORS[400 if refused.status < 500 else 500])
    message = refused.message or REASONS.get(refused.code or "", message)
    error: dict[str, Any] = {"code": refused.status, "message": message, "status": status}
    details: list[dict[str, Any]] = []
    if refused.code:
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": refused.code,
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            }
        )
    if refused.retry_after is not None:
        details.append(
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{refused.retry_after}s"}
        )
    return {**error, "details": details} if details else error


def _headers(ids: Ids) -> Headers:
    return (
        ("x-request-id", ids.request),
        ("vary", "Origin, X-Origin, Referer"),
        ("x-xss-protection", "0"),
        ("x-frame-options", "SAMEORIGIN"),
        ("x-content-type-options", "nosniff"),
        ("server-timing", "gfet4t7; dur=12"),
        ("x-goog-user-project", "sandbox-project-414243"),
        *account_headers("google", ids),
    )
