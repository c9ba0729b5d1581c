"""What clients and providers say to each other, in three languages: requests, streams and bodies, as bytes.

Written by hand and not by production code, which has to understand it.
"""

from typing import Final

from attrs import define, frozen

TEXT: Final = b"abcdefghijklmnopqrstuvwxyz" * 1024


@frozen
class Tokens:
    """What an answer used, as a provider counts it: disjoint, but `reasoning`, which is a part of `output`."""

    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0


@define(eq=False)
class Asked:
    """What a client asks for; `tag` stands in its text, so that a provider's bill can name it.

    `free`: only to count the tokens of it. `thinking`: a budget for it, or -1 for none at all.
    """

    tag: str
    model: str
    stream: bool
    prompt: int
    output: int | None
    cached: str = ""
    thinking: int = 0
    array: bool = False
    usage_wanted: bool = True
    free: bool = False


def text(size, at=0):
    at %= 26
    while at + size > len(TEXT):
        return (TEXT * (size // len(TEXT) + 2))[at : at + size]
    return TEXT[at : at + size]


# -- requests --------------------------------------------------------------------------------------------


def openai_request(asked):
    bound = b"" if asked.output is None else b',"max_tokens":%d' % asked.output
    thinking = b',"reasoning_effort":"none"' if asked.thinking < 0 else b""
    stream = b',"stream":true' if asked.stream else b""
    if asked.stream and asked.usage_wanted:
        stream += b',"stream_options":{"include_usage":true}'
    return b'{"model":"%s","messages":[{"role":"user","content":"%s %s"}]%s%s%s}' % (
        asked.model.encode(),
        asked.tag.encode(),
        text(asked.prompt),
        bound,
        thinking,
        stream,
    )


def anthropic_request(asked):
    if asked.free:
        return b'{"model":"%s","messages":[{"role":"user","content":"%s %s"}]}' % (
            asked.model.encode(),
            asked.tag.encode(),
            text(asked.prompt),
        )
    mark = {"": b"", "5m": b',"cache_control":{"type":"ephemeral"}', "1h": _HOUR}[asked.cached]
    thinking = b""
    if asked.thinking > 0:
        thinking = b',"thinking":{"type":"enabled","budget_tokens":%d}' % asked.thinking
    return (
        b'{"model":"%s","max_tokens":%d,"messages":[{"role":"user","content":[{"type":"text","text":"%s %s"%s}]}]%s%s}'
        % (
            asked.model.encode(),
            asked.output,
            asked.tag.encode(),
            text(asked.prompt),
            mark,
            thinking,
            b',"stream":true' if asked.stream else b"",
        )
    )


_HOUR: Final = b',"cache_control":{"type":"ephemeral","ttl":"1h"}'


def gemini_request(asked):
    config = [] if asked.output is None or asked.free else [b'"maxOutputTokens":%d' % asked.output]
    if asked.thinking > 0 and not asked.free:
        config.append(b'"thinkingConfig":{"thinkingBudget":%d}' % asked.thinking)
    generation = b',"generationConfig":{%s}' % b",".join(config) if config else b""
    return b'{"contents":[{"role":"user","parts":[{"text":"%s %s"}]}]%s}' % (
        asked.tag.encode(),
        text(asked.prompt),
        generation,
    )


# -- answers ---------------------------------------------------------------------------------------------


class OpenAI:
    """Chunks of a chat completion."""

    newline = b"\n\n"
    terminal = b"data: [DONE]\n\n"

    def usage(self, told):
        prompt = told.input + told.cache_read
        return (
            b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
            b'"prompt_tokens_details":{"cached_tokens":%d},"completion_tokens_details":{"reasoning_tokens":%d}}'
        ) % (prompt, told.output, prompt + told.output, told.cache_read, told.reasoning)

    def chunk(self, choices, usage=b""):
        return (
            b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"sandbox-chat",'
            b'"choices":[%s]%s}\n\n'
        ) % (choices, usage)

    def start(self, _told):
        return self.chunk(
            b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        )

    def content(self, piece, told=None):
        usage = b"" if told is None else b',"usage":' + self.usage(told)
        delta = b'{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}' % piece
        return self.chunk(delta, usage)

    def end(self, told, reason, times=1):
        finish = self.chunk(b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"%s"}' % reason)
        reports = b"" if told is None else self.chunk(b"", b',"usage":' + self.usage(told)) * times
        return finish + reports + self.terminal

    def error(self, kind):
        code = {"overloaded": b"overloaded", "server": b"server_error"}[kind]
        return b'data: {"error":{"message":"Something happened.","type":"%s","code":"%s"}}\n\n' % (code, code)

    def body(self, piece, told, reason):
        usage = b"" if told is None else b',"usage":' + self.usage(told)
        return (
            b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"sandbox-chat","choices":[{"index":0,'
            b'"message":{"role":"assistant","content":"%s"},"finish_reason":"%s"}]%s}'
        ) % (piece, reason, usage)

    def failure(self, status):
        code = {429: b"rate_limit_exceeded", 500: b"server_error", 400: b"invalid_request_error"}[status]
        return b'{"error":{"message":"No.","type":"%s","code":"%s"}}' % (code, code)

    def saw_end(self, body):
        return body.endswith(self.terminal) and b'"error"' not in body[-4096:]


class Anthropic:
    """Events of a message."""

    newline = b"\n\n"
    terminal = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def usage(self, told, output=None):
        return (
            b'{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,'
            b'"cache_creation":{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d},"output_tokens":%d}'
        ) % (
            told.input,
            told.cache_write_5m + told.cache_write_1h,
            told.cache_read,
            told.cache_write_5m,
            told.cache_write_1h,
            told.output if output is None else output,
        )

    def start(self, told):
        usage = b"" if told is None else b',"usage":' + self.usage(told, 1)
        return (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
            b'"role":"assistant","model":"sandbox-claude","content":[],"stop_reason":null%s}}\n\n'
        ) % usage

    def content(self, piece, told=None):
        frame = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"%s"}}\n\n'
        ) % piece
        if told is not None:
            frame += (
                b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":null},'
                b'"usage":{"output_tokens":%d}}\n\n'
            ) % told.output
        return frame

    opening = (
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
    )

    def end(self, told, reason, times=1):
        stop = {b"stop": b"end_turn", b"length": b"max_tokens"}[reason]
        usage = b"" if told is None else b',"usage":{"output_tokens":%d}' % told.output
        last = (
            b'event: message_delta\ndata: {"type":"message_delta",'
            b'"delta":{"stop_reason":"%s","stop_sequence":null}%s}\n\n'
        ) % (stop, usage)
        closing = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        return closing + last * times + self.terminal

    def error(self, kind):
        code = {"overloaded": b"overloaded_error", "server": b"api_error"}[kind]
        return (
            b'event: error\ndata: {"type":"error","error":{"type":"%s","message":"Something happened."}}\n\n'
            % code
        )

    def body(self, piece, told, reason):
        stop = {b"stop": b"end_turn", b"length": b"max_tokens"}[reason]
        usage = b"" if told is None else b',"usage":' + self.usage(told)
        return (
            b'{"id":"msg_1","type":"message","role":"assistant","model":"sandbox-claude",'
            b'"content":[{"type":"text","text":"%s"}],"stop_reason":"%s","stop_sequence":null%s}'
        ) % (piece, stop, usage)

    def failure(self, status):
        code = {429: b"rate_limit_error", 500: b"api_error", 400: b"invalid_request_error"}[status]
        return b'{"type":"error","error":{"type":"%s","message":"No."}}' % code

    def saw_end(self, body):
        return body.endswith(self.terminal) and b'"error"' not in body[-4096:]


class Gemini:
    """Responses of a generation."""

    newline = b"\r\n\r\n"

    def usage(self, told):
        prompt = told.input + told.cache_read
        candidates = told.output - told.reasoning
        return (
            b'"usageMetadata":{"promptTokenCount":%d,"cachedContentTokenCount":%d,"candidatesTokenCount":%d,'
            b'"thoughtsTokenCount":%d,"totalTokenCount":%d}'
        ) % (prompt, told.cache_read, candidates, told.reasoning, prompt + told.output)

    def start(self, _told):
        return b""

    def response(self, piece, told, reason=b""):
        finish = b',"finishReason":"%s"' % reason if reason else b""
        usage = b"" if told is None else b"," + self.usage(told)
        return b'{"candidates":[{"content":{"parts":[{"text":"%s"}],"role":"model"}%s,"index":0}]%s}' % (
            piece,
            finish,
            usage,
        )

    def content(self, piece, told=None):
        return b"data: " + self.response(piece, told) + self.newline

    def end(self, told, reason, times=1):
        stop = {b"stop": b"STOP", b"length": b"MAX_TOKENS"}[reason]
        return (b"data: " + self.response(b"", told, stop) + self.newline) * times

    def error(self, kind):
        code, status = {"overloaded": (503, b"UNAVAILABLE"), "server": (500, b"INTERNAL")}[kind]
        return b'data: {"error":{"code":%d,"message":"Something happened.","status":"%s"}}\r\n\r\n' % (
            code,
            status,
        )

    def body(self, piece, told, reason):
        return self.response(piece, told, {b"stop": b"STOP", b"length": b"MAX_TOKENS"}[reason])

    def failure(self, status):
        code = {429: b"RESOURCE_EXHAUSTED", 500: b"INTERNAL", 400: b"INVALID_ARGUMENT"}[status]
        return b'{"error":{"code":%d,"message":"No.","status":"%s"}}' % (status, code)

    def saw_end(self, body):
        tail = body[-4096:]
        return b'"finishReason"' in tail and b'"error"' not in tail


LANGUAGES: Final = {"openai_chat": OpenAI(), "anthropic": Anthropic(), "gemini": Gemini()}
REQUESTS: Final = {
    "openai_chat": openai_request,
    "anthropic": anthropic_request,
    "gemini": gemini_request,
}
