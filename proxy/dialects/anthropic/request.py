"""Read and write requests of Anthropic's Messages API: what a body can cost, and what of it may travel.

The body is taken apart along every path that leads to a priced thing (messages and their blocks, system,
tools) and encoded again from there; tool input, schemas and metadata stay raw. What it can cost is added up:

* text counts by its UTF-8 bytes, what is opaque (tool input, signatures, schemas) by the bytes of its JSON;
* images are counted; documents that are not text make the input unbounded: a full context window is held;
* `cache_control` anywhere makes the dearest input rate that of a cache write, by its `ttl`.

Refused by name is what we could not bound or bill: tools that run at the provider, files and containers that
are stored there, other service tiers, speeds and regions, other models as a fallback. Also compaction by the
provider: its summary is sampled in an iteration of its own, outside `max_tokens`, so that no hold made from
this body would be the maximum. Edits that clear (coding agents send them) only shorten a prompt, and pass.

Bodies and messages of the shape that nearly everybody sends are read quickly (`usual`), with the same result.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from attrs import define
from msgspec import UNSET

from pricing.price import CacheWrites
from proxy.dialects import body as read
from proxy.dialects.anthropic import usual
from proxy.dialects.anthropic.usual import BLOCK_TOKENS, TOOL_CALL_TOKENS
from proxy.dialects.body import FieldLists, Object
from proxy.dialects.guard import BodyLimits, bad, guard
from proxy.dialects.usual import UNUSUAL, as_written, beyond_guard, put_back, take
from proxy.types import Ask, Measures, Offer, Path

_STORED: Final = "it refers to something stored at the provider, which cannot be told apart by wallet yet."
_TIER: Final = "only the standard tier has a price here."
_OTHER_MODEL: Final = "it would bill another model than the one that was asked for."
_OTHER_PAYER: Final = "requests are billed to the wallet of the key."
_AT_PROVIDER: Final = "it runs at the provider and bills on its own, which has no bound here yet."

BODY: Final = FieldLists(
    priced=(
        "model",
        "messages",
        "max_tokens",
        "system",
        "tools",
        "thinking",
        "stream",
        "cache_control",
        "service_tier",
        "speed",
        "inference_geo",
        "context_management",
        "diagnostics",
        "output_config",
        "tool_choice",
    ),
    known=("metadata", "stop_sequences", "temperature", "top_k", "top_p"),
    ours=("cache", "no_cache"),
    forbidden={
        "container": _STORED,
        "thread": _STORED,
        "mcp_servers": _AT_PROVIDER,
        "compaction": "its summary is written outside max_tokens, so that nothing could be held for it.",
        "fallbacks": _OTHER_MODEL,
        "fallback_credit_token": _OTHER_MODEL,
        "billing_policy": _OTHER_PAYER,
        "user_profile_id": _OTHER_PAYER,
        "workspace_id": _OTHER_PAYER,
    },
)

MESSAGE: Final = FieldLists(priced=("role", "content"), known=("clear_at", "output_config"))

BLOCK: Final = FieldLists(
    priced=("type", "text", "source", "content", "cache_control", "tool"),
    known=(
        "citations",
        "thinking",
        "signature",
        "data",
        "id",
        "name",
        "input",
        "caller",
        "tool_use_id",
        "toolset_name",
        "is_error",
        "title",
        "context",
        "encrypted_content",
        "tool_name",
        "transformations",
    ),
)

SOURCE: Final = FieldLists(priced=("type", "media_type", "data", "url", "content", "file_id"))

TOOL: Final = FieldLists(
    priced=("type", "name", "description", "input_schema", "cache_control"),
    known=(
        "defer_loading",
        "strict",
        "eager_input_streaming",
        "allowed_callers",
        "input_examples",
        "configs",
        "display_width_px",
        "display_height_px",
        "display_number",
        "enable_zoom",
        "max_characters",
    ),
)

CLIENT_TOOLS: Final[Mapping[str, int]] = {
    "custom": 0,
    "bash": 1_000,
    "text_editor": 2_000,
    "memory": 2_000,
    "computer": 3_000,
    "computer_toolset": 8_000,
    "browser_toolset": 8_000,
}
"""Tools that the client runs, by type without its date: tokens that their hidden definition adds to a prompt.
A few times what is documented (bash 245, text editor 700, computer use about 1,200)."""

SERVER_TOOLS: Final = frozenset(
    {
        "web_search",
        "web_fetch",
        "code_execution",
        "tool_search_tool_bm25",
        "tool_search_tool_regex",
        "advisor",
        "mcp_toolset",
    }
)
"""Tools that run at the provider: each step reads the whole prompt again, some bill per use."""

SHORTENING_EDITS: Final = ("clear_tool_uses_", "clear_thinking_")
"""Context edits that only take away from a prompt. Every other one (`compact_…`) samples on its own."""

TEXT_BLOCKS: Final = frozenset(
    {
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "search_result",
        "tool_reference",
        "tool_removal",
        "browser_state",
        "compaction",
        "fallback",
        # The history of server tools, as an earlier answer gave it: it is text, or encrypted text.
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_listing",
        "web_search_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
    }
)
"""Blocks that hold nothing but text, identifiers and JSON: their bytes bound their tokens."""

DECIDING: Final = ("thinking", "context_management", "diagnostics")
"""Objects that are only looked into: should a name stand in them twice, what was read is what is sent."""

TRAVELLING_HEADERS: Final = ("anthropic-version", "anthropic-beta")

MODEL_BYTES_MAX: Final = 256


def read_request(
    path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str, limits: BodyLimits
) -> Ask:
    """Read and check a request for `/v1/messages` or its `count_tokens`.

    Raises:
        Rejected: 400 or 413, naming the field.
    """
    free = path.action == "count"
    ask = _read_usual(headers, body, limits, free=free)
    return ask if ask is not None else _read_any(headers, body, unknown_fields, limits, free=free)


def _read_usual(headers: Mapping[str, str], body: bytes, limits: BodyLimits, *, free: bool) -> Ask | None:
    """Read a request of the usual shape; `None` for any other, which is then read by the long way.

    Raises:
        Rejected: by the guard, before which the long way would do nothing.
    """
    taken = take(body, usual.BODY, limits)
    if taken is None:
        return None
    said, fields = taken
    content_bytes = read.size(fields["messages"]) + (read.size(fields["system"]) if "system" in fields else 0)
    tools = 0 if said.tools is UNSET else len(said.tools)
    if (
        (said.max_tokens is None and not free)
        or len(said.messages) > limits.messages_max
        or tools > limits.tools_max
        or read.utf8_size(said.model) > MODEL_BYTES_MAX
        or not put_back(fields, "messages", said.messages)
        or not put_back(fields, "system", said.system)
        or not put_back(fields, "tools", said.tools)
        or not put_back(fields, "thinking", said.thinking)
    ):
        return None
    total = usual.Sum()
    total.messages(said.messages)
    if said.system is not UNSET:
        total.content(said.system)
    if said.tools is not UNSET:
        total.tools(said.tools)
    total.opaque += [fields[name] for name in ("output_config", "tool_choice") if name in fields]
    if total.opaque or not beyond_guard(body, content_bytes, len(said.messages) + total.blocks, limits):
        guard(body, limits)
    thinking = said.thinking
    return Ask(
        dialect="anthropic",
        model=said.model,
        stream=bool(said.stream) and not free,
        measures=Measures(
            text_bytes=total.text_bytes,
            messages=len(said.messages),
            tools=tools,
            images=total.images,
            output=said.max_tokens,
            stop_bytes=read.size(fields["stop_sequences"]) if "stop_sequences" in fields else 0,
            cache_writes=total.cache_writes,
            reasoning=None if thinking is UNSET else thinking.type != "disabled",
            thinking=usual.budget(thinking),
        ),
        fields=fields,
        free=free,
        live_cost=read.wants_live_cost(headers),
        headers=read.travelling(headers, TRAVELLING_HEADERS),
    )


def _read_any(
    headers: Mapping[str, str], body: bytes, unknown_fields: str, limits: BodyLimits, *, free: bool
) -> Ask:
    fields = dict(BODY.admit(read.read_object(body, limits), unknown_fields))
    model = read.required(read.string(fields, "model", bytes_max=MODEL_BYTES_MAX), "model")
    stream = read.boolean(fields, "stream") or False
    output = read.integer(fields, "max_tokens")
    if not free:
        read.required(output, "max_tokens")
    for name in DECIDING:
        if (value := read.obj(fields, name)) is not None:
            fields[name] = read.encode(value)
    _check_modes(fields)
    tally = Tally(limits)
    if (stops := fields.get("stop_sequences")) is not None:
        tally.stop_bytes = read.size(stops)
    fields["messages"] = tally.messages_of(fields)
    if not read.is_null(fields.get("system")):
        fields["system"] = tally.content(fields["system"], "system")
    if not read.is_null(fields.get("tools")):
        fields["tools"] = tally.tools_of(fields)
    tally.mark(fields, "")
    for name in ("output_config", "tool_choice"):  # a schema to answer in is part of the prompt
        if (raw := fields.get(name)) is not None:
            tally.text_bytes += read.size(raw)
    return Ask(
        dialect="anthropic",
        model=model,
        stream=stream and not free,
        measures=tally.measures(output, *_reasoning(fields)),
        fields=fields,
        free=free,
        live_cost=read.wants_live_cost(headers),
        headers=read.travelling(headers, TRAVELLING_HEADERS),
    )


def write_request(ask: Ask, offer: Offer) -> bytes:
    """Write the body that goes upstream: the ask's fields, the model's name there and the bounds in force.

    A bound on thinking goes only where the caller's own stands, and stays below the one on output, as it must.
    """
    fields: dict[str, object] = dict(ask.fields)
    fields["model"] = offer.wire_name
    if ask.free:
        return read.write(fields)
    if offer.output_limit is not None:
        fields["max_tokens"] = offer.output_limit
    if offer.thinking_limit is not None and ask.measures.thinking is not None:
        output = ask.measures.output if offer.output_limit is None else offer.output_limit
        budget = offer.thinking_limit if output is None else min(offer.thinking_limit, output - 1)
        fields["thinking"] = {**(read.obj(dict(ask.fields), "thinking") or {}), "budget_tokens": budget}
    return read.write(fields)


def _check_modes(fields: Object) -> None:
    """Refuse what has another price than the one we know, and take out of the body what says nothing."""
    tier = read.string(fields, "service_tier")
    if tier == "auto":
        # "Whatever you have": of the two tiers that this allows, only one has a price here.
        fields["service_tier"] = read.encode("standard_only")
    elif tier not in (None, "standard_only"):
        raise bad(f"service_tier is not offered: {_TIER}", "service_tier")
    if read.string(fields, "speed") not in (None, "standard"):
        raise bad("speed is not offered: only standard speed has a price here.", "speed")
    if read.string(fields, "inference_geo") not in (None, "global"):
        raise bad("inference_geo is not offered: only global routing has a price here.", "inference_geo")
    for index, edit in enumerate(_edits(fields)):
        at = f"context_management.edits[{index}].type"
        kind = read.required(read.string(edit, "type", at.removesuffix("type")), at)
        if not kind.startswith(SHORTENING_EDITS):
            raise bad(f"{at} {kind[:64]} is not offered: {BODY.forbidden['compaction']}", at)
    diagnostics = read.obj(fields, "diagnostics")
    if diagnostics and not read.is_null(diagnostics.get("previous_message_id")):
        raise bad(
            f"diagnostics.previous_message_id is not offered: {_STORED}", "diagnostics.previous_message_id"
        )


def _edits(fields: Object) -> list[Object]:
    management = read.obj(fields, "context_management")
    if management is None:
        return []
    return read.objects(management, "edits", "context_management.") or []


def _reasoning(fields: Object) -> tuple[bool | None, int | None]:
    """Whether thinking is switched on, off, or left; and the caller's own bound on it, where there is one."""
    thinking = read.obj(fields, "thinking")
    if thinking is None:
        return None, None
    kind = read.required(read.string(thinking, "type", "thinking."), "thinking.type")
    budget = read.integer(thinking, "budget_tokens", "thinking.")
    return kind != "disabled", budget if kind == "enabled" else None


@define(eq=False)
class Tally:
    """Walks through a body and adds up what it can cost.

    What its methods return is the walked value encoded again: what was measured and nothing else. A body is
    large and is walked once, so this reads, counts and writes.
    """

    limits: BodyLimits
    text_bytes: int = 0
    messages: int = 0
    tools: int = 0
    images: int = 0
    unbounded: bool = False
    stop_bytes: int = 0
    cache_writes: CacheWrites = "none"

    def measures(self, output: int | None, reasoning: bool | None, thinking: int | None) -> Measures:
        """What was added up, as the bounds are made from it."""
        return Measures(
            text_bytes=self.text_bytes,
            messages=self.messages,
            tools=self.tools,
            images=self.images,
            unbounded=self.unbounded,
            output=output,
            stop_bytes=self.stop_bytes,
            cache_writes=self.cache_writes,
            reasoning=reasoning,
            thinking=thinking,
        )

    def mark(self, fields: Object, at: str) -> None:
        """Note what a `cache_control`, if there is one, makes of the input's price."""
        control = read.obj(fields, "cache_control", at)
        if control is None:
            return
        fields["cache_control"] = read.encode(control)
        lifetime = read.string(control, "ttl", f"{at}cache_control.")
        if lifetime not in (None, "5m", "1h"):
            raise bad(f'{at}cache_control.ttl must be "5m" or "1h".', f"{at}cache_control.ttl")
        if lifetime == "1h":
            self.cache_writes = "1h"
        elif self.cache_writes == "none":
            self.cache_writes = "5m"

    def messages_of(self, fields: Object) -> msgspec.Raw:
        """Walk through `messages`."""
        return self._usual_messages(fields) or self._messages(fields)

    def _usual_messages(self, fields: Object) -> msgspec.Raw | None:
        """Read messages of the usual shape."""
        try:
            messages = usual.MESSAGES.decode(fields["messages"])
        except (KeyError, *UNUSUAL):
            return None
        written = as_written(fields["messages"], messages)
        if written is None or len(messages) > self.limits.messages_max:
            return None
        total = usual.Sum(cache_writes=self.cache_writes)
        total.messages(messages)
        self.messages = len(messages)
        self.text_bytes += total.text_bytes
        self.images += total.images
        self.cache_writes = total.cache_writes
        return written

    def _messages(self, fields: Object) -> msgspec.Raw:
        turns = read.required(
            read.objects(fields, "messages", items_max=self.limits.messages_max), "messages"
        )
        self.messages = len(turns)
        return read.encode([self._message(turn, f"messages[{index}].") for index, turn in enumerate(turns)])

    def _message(self, message: Object, at: str) -> Object:
        message = dict(MESSAGE.admit(message, "pass", at))
        role = read.required(read.string(message, "role", at), f"{at}role")
        if not read.is_null(message.get("content")):
            message["content"] = self.content(message["content"], f"{at}content")
        elif role != "system":  # such a turn may set nothing but options
            raise bad(f"{at}content is required.", f"{at}content")
        self._rest(message, ("role", "content"))
        return message

    def content(self, raw: msgspec.Raw, param: str) -> msgspec.Raw:
        """Walk through what is either a string or an array of blocks."""
        if read.is_string(raw):
            self.text_bytes += BLOCK_TOKENS + read.text_size(raw, param)
            return raw
        if not read.is_array(raw):
            raise bad(f"{param} must be a string or an array of blocks, not {read.shown(raw)}.", param)
        blocks = read.decode(raw, read.RAWS, param, "an array of blocks")
        return read.encode([self._block(block, f"{param}[{index}]") for index, block in enumerate(blocks)])

    def _block(self, raw: msgspec.Raw, param: str) -> Object:
        at = f"{param}."
        block = dict(BLOCK.admit(read.as_object(raw, param), "pass", at))
        kind = read.required(read.string(block, "type", at), f"{at}type")
        self.mark(block, at)
        self.text_bytes += BLOCK_TOKENS
        if kind == "text":
            self.text_bytes += read.text_size(read.required(block.get("text"), f"{at}text"), f"{at}text")
            self._rest(block, ("type", "text", "cache_control"))
        elif kind in TEXT_BLOCKS:
            self.text_bytes += TOOL_CALL_TOKENS if kind.endswith("tool_use") else 0
            self._rest(block, ("type", "cache_control"))
        elif kind in ("image", "document"):
            block["source"] = read.encode(self._source(block, kind, at))
            self._rest(block, ("type", "source", "cache_control"))
        elif kind == "tool_result":
            self.text_bytes += TOOL_CALL_TOKENS
            if not read.is_null(block.get("content")):
                block["content"] = self.content(block["content"], f"{at}content")
            self._rest(block, ("type", "content", "cache_control"))
        elif kind == "tool_addition":
            block["tool"] = read.encode(self._added_tool(block, at))
        elif kind == "container_upload":
            raise bad(f"{at}type container_upload is not offered: {_STORED}", f"{at}type")
        else:
            self._unknown(block, kind, at)
        return block

    def _rest(self, fields: Object, counted: tuple[str, ...]) -> None:
        """Count all other fields by the bytes of their JSON."""
        for name, raw in fields.items():
            if name not in counted:
                self.text_bytes += read.size(raw)

    def _unknown(self, block: Object, kind: str, at: str) -> None:
        """A block that we have never heard of, or one that may hold pages: it may fill the context window."""
        if kind != "web_fetch_tool_result" and any(b'"file_id"' in bytes(raw) for raw in block.values()):
            raise bad(f"{at}type {kind[:64]} is not offered: {_STORED}", f"{at}type")
        self.unbounded = True
        self._rest(block, ("type", "cache_control"))

    def _source(self, block: Object, kind: str, at: str) -> Object:
        source = dict(
            SOURCE.admit(read.required(read.obj(block, "source", at), f"{at}source"), "pass", f"{at}source.")
        )
        form = read.required(read.string(source, "type", f"{at}source."), f"{at}source.type")
        if form == "file" or not read.is_null(source.get("file_id")):
            raise bad(f"{at}source.file_id is not offered: {_STORED}", f"{at}source.file_id")
        if kind == "image":
            self.images += 1
            if form not in ("base64", "url"):
                self.unbounded = True
        elif form == "text":
            self._rest(source, ("type", "media_type"))
        elif form == "content" and not read.is_null(source.get("content")):
            source["content"] = self.content(source["content"], f"{at}source.content")
        else:  # a PDF has as many pages as it likes
            self.unbounded = True
        return source

    def _added_tool(self, block: Object, at: str) -> Object:
        """A tool that joins in the middle of a conversation: by reference, or defined on the spot."""
        tool = read.required(read.obj(block, "tool", at), f"{at}tool")
        form = read.required(read.string(tool, "type", f"{at}tool."), f"{at}tool.type")
        if form == "tool_definition":
            definition = read.required(read.obj(tool, "definition", f"{at}tool."), f"{at}tool.definition")
            self.tools += 1
            return {**tool, "definition": read.encode(self._tool(definition, f"{at}tool.definition."))}
        if form != "tool_reference":
            raise bad(f"{at}tool.type {form[:64]} is not offered: {_AT_PROVIDER}", f"{at}tool.type")
        self._rest(tool, ("type",))
        return tool

    def tools_of(self, fields: Object) -> msgspec.Raw:
        """Walk through `tools`."""
        tools = read.objects(fields, "tools", items_max=self.limits.tools_max) or []
        self.tools += len(tools)
        return read.encode([self._tool(tool, f"tools[{index}].") for index, tool in enumerate(tools)])

    def _tool(self, tool: Object, at: str) -> Object:
        tool = dict(TOOL.admit(tool, "pass", at))
        kind = read.string(tool, "type", at) or "custom"
        family = _undated(kind)
        if family in SERVER_TOOLS:
            raise bad(f"{at}type {kind[:64]} is not offered: {_AT_PROVIDER}", f"{at}type")
        if family not in CLIENT_TOOLS:
            raise bad(f"{at}type {kind[:64]} is not a tool that is known here.", f"{at}type")
        self.mark(tool, at)
        self.text_bytes += TOOL_CALL_TOKENS + CLIENT_TOOLS[family]
        self._rest(tool, ("type", "cache_control"))
        return tool


def _undated(kind: str) -> str:
    """A tool's type without the date of its version: `bash_20250124` is `bash`."""
    family, _, date = kind.rpartition("_")
    return family if len(date) == 8 and date.isdigit() else kind
