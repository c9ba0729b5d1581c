"""The sandbox's own pages: what it is and can be told (`GET /sandbox`), and the models that it lists."""

from typing import Any, Final

from proxy.sandbox.directives import KNOWN
from proxy.sandbox.wire import Ids, encode

LISTED: Final = ("sandbox-chat", "sandbox-thinker", "sandbox-claude", "sandbox-gemini")
"""What the lists of models name; any other id is answered just as well."""

CREATED: Final = 1_767_225_600
"""2026-01-01: lists do not change from day to day."""

GUIDE: Final = """\
The Farebox sandbox: a stand-in provider. It is a real HTTP server that speaks three dialects,
deterministically: the same conversation gets the same answer. Nothing leaves this machine.

  POST /v1/chat/completions                                      OpenAI
  POST /v1/messages, /v1/messages/count_tokens                   Anthropic
  POST /v1beta/models/{model}:generateContent,                   Gemini (also under /v1)
       :streamGenerateContent[?alt=sse], :countTokens
  GET  /v1/models, /v1/models/{id}, /v1beta/models               in the shape the caller's headers ask for
  GET  /sandbox/calls[?after=N][&id=REQUEST_ID]                  every call received, and its bill
  DELETE /sandbox/calls                                          forget them, and what `times` has counted
  GET  /sandbox, /health                                         this page; {"status":"ok"}

Any credential is accepted, save one that ends in "-invalid"; none at all is a 401. Any model id is
answered. If tools are declared and the last message is a user's, a forced tool_choice or `tool=name` gets a
tool call, with arguments that fit its schema; once the tool's result is there, the answer is text.

Tokens: a text is its UTF-8 bytes divided by 4, rounded up; a message costs 4 more, the answer 3 more, an
image 64. One piece of the answer's text is one output token. Output bounds and stop sequences are
respected.

Directives: comma-separated, after an @ in the model's name, in `metadata.sandbox` (OpenAI, Anthropic), in
`metadata.user_id` as "sandbox:…" (Anthropic) or in `labels.sandbox` (Gemini):

  {"model": "sandbox-chat@tokens=500,ttft_ms=200,gap_ms=5", …}

%(directives)s

What is billed: an answer that is not streamed is billed whole, whoever is there to hear it. A stream that
is hung up on is billed for its input and the tokens generated until then (`bills_on`: whole); so is one
that a directive breaks off. Refused, silent and overloaded calls cost nothing.

/sandbox/calls answers {"data":[…],"total":{…},"dropped":N}. Each call has `id` (the request-id header of
its answer), `received_at` (1, 2, 3 …), dialect, action, model, account (the last 4 characters of the
credential), stream, status, usage in disjoint buckets, finished, hung_up, broke, tokens, tokens_sent, and
monotonic times in ms: received_ms, first_byte_ms, closed_ms (when the caller's hang-up was noticed),
ended_ms. %(kept)s calls are kept.
"""


def guide(calls_max: int) -> str:
    """The page at `/sandbox`."""
    width = max(len(name) for name in KNOWN)
    lines = (f"  {name:<{width}}  {sentence}" for name, (_, sentence) in KNOWN.items())
    return GUIDE % {"directives": "\n".join(lines), "kept": f"{calls_max:,}"}


def models(dialect: str, model: str | None) -> bytes:
    """The list of models in a dialect's shape, or one entry of it."""
    write = {"anthropic": _anthropic_model, "gemini": _gemini_model}.get(dialect, _openai_model)
    if model is not None:
        return encode(write(model))
    listed = [write(name) for name in LISTED]
    match dialect:
        case "anthropic":
            ends = {"first_id": LISTED[0], "last_id": LISTED[-1]}
            return encode({"data": listed, "has_more": False, **ends})
        case "gemini":
            return encode({"models": listed})
        case _:
            return encode({"object": "list", "data": listed})


def ids_for_page(unique: str) -> Ids:
    """Ids for an answer that is no call."""
    return Ids(f"req_{unique[:24]}", unique, CREATED)


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "sandbox"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def _gemini_model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "description": "A model of the sandbox",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }
