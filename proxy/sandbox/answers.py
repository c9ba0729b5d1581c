"""What the sandbox says and what it uses for it: pure, and the same for the same request in every dialect.

Words come from a fixed list, chosen by a number that the conversation, the model and the directives give. One
piece of text is one token: so `max_tokens=5` gives five pieces, and a bill can be checked by counting.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from attrs import evolve, field, frozen
from msgspec.structs import replace

from pricing.usage import Usage
from proxy.sandbox.directives import Directives
from proxy.sandbox.schemas import sample
from proxy.sandbox.wire import Asked, Refused, Tool

_WORD_LIST: Final = """
amber anchor apple arch autumn badge barrel basin beacon birch bottle branch bridge bright brook button cabin
candle canvas cedar chalk cherry circle clear clover cobalt copper coral cotton cradle crystal curtain daisy
delta dune early eastern ember fable feather fern field flint forest fossil garden gentle ginger glass golden
granite gravel hammer harbor hazel hollow honest ivory jasper kettle ladder lantern linen little lively maple
marble meadow mellow mirror morning mossy narrow needle northern oaken ocean olive orchard paper pebble pepper
pillow pine plain planet polar prairie quartz quiet rabbit ribbon ripple river rocket saddle sailor sandy
scarf season shadow shell signal silver simple slate smooth sparrow spring stone summer sunny teapot thicket
timber tulip valley velvet village violet walnut water western willow window winter wooden yellow
"""
WORDS: Final = tuple(_WORD_LIST.split())

SENTENCE_TOKENS: Final = 12
"""A full stop after so many words, so that it reads like text."""

STRUCTURED_TOKEN_CHARACTERS: Final = 4
"""JSON (tool arguments, structured answers) is cut into tokens of this many characters."""

DEFAULT_TOKENS_LEAST: Final = 24
DEFAULT_TOKENS_SPREAD: Final = 32
DEFAULT_REASONING_TOKENS: Final = 16


@frozen
class Words:
    """Text of `count` tokens (`None`: without end); iterating makes it anew, always the same."""

    seed: int
    count: int | None

    def __iter__(self) -> Iterator[str]:
        return itertools.islice(self._endless(), self.count)

    def _endless(self) -> Iterator[str]:
        state, size, words = self.seed % 2**64, len(WORDS), WORDS
        for index in itertools.count():
            # A linear congruential step (Knuth's constants): even, repeatable, cheap.
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            word = words[(state >> 33) % size]
            place = index % SENTENCE_TOKENS
            if place == 0:
                word = word.capitalize()
            elif place == SENTENCE_TOKENS - 1:
                word += "."
            yield f" {word}" if index else word


@frozen
class ToolCall:
    """One call of a tool: its arguments as JSON, cut into tokens."""

    name: str
    pieces: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """The JSON; broken off where the answer ran into its bound."""
        return "".join(self.pieces)


@frozen
class Choice:
    """One of the answers that were asked for.

    Attributes:
        thought: reasoning, before everything else.
        text: pieces, one per token; may be endless.
        tools: calls after the text.
        finish: why it ended: `stop`, `length`, `tools`, or `stopped` by the stop sequence in `stop`.
        tokens: all that was generated, reasoning included.
        reasoning: how many of them were reasoning.
    """

    thought: Iterable[str]
    text: Iterable[str]
    tools: tuple[ToolCall, ...]
    finish: str
    tokens: int
    reasoning: int
    stop: str | None = None

    @property
    def text_tokens(self) -> int:
        """How many of the tokens are text."""
        return self.tokens - self.reasoning - sum(len(call.pieces) for call in self.tools)

    @property
    def content(self) -> str:
        """The whole text; not for endless answers."""
        return "".join(self.text)


@frozen
class Said:
    """The answer to a request.

    Attributes:
        choices: at least one.
        read: what the request itself used: input and cache.
        usage: of the whole answer, as the invoice has it.
        report: whether it is reported to the caller.
        endless: the text never ends.
    """

    choices: tuple[Choice, ...]
    read: Usage
    usage: Usage
    report: bool = True
    endless: bool = False
    scale: int = field(default=1)

    def used_after(self, tokens: int) -> Usage:
        """What is used when that many tokens, over all choices, have been generated."""
        reasoning = sum(choice.reasoning for choice in self.choices)
        return replace(self.read, output=tokens * self.scale, reasoning=min(reasoning, tokens) * self.scale)


def answer(asked: Asked) -> Said:
    """Decide what is said.

    Raises:
        Refused: a directive names a tool that the request does not declare.
    """
    told = asked.directives
    tools = _tools_to_call(asked)
    endless = told.endless and asked.stream and not tools
    choices = tuple(
        _choice(asked, tools, asked.seed + index, endless=endless) for index in range(asked.choices)
    )
    read, scale = _read(asked), 2 if told.usage == "double" else 1
    if scale == 2:
        read = Usage(**{name: 2 * count for name, count in read.counts().items()})
    output = sum(choice.tokens for choice in choices) * scale
    reasoning = sum(choice.reasoning for choice in choices) * scale
    if told.usage == "over":
        bound = asked.output_max if asked.output_max is not None else output
        output = max(output, 2 * bound * asked.choices + 1)
    return Said(
        choices=choices,
        read=read,
        usage=replace(read, output=output, reasoning=reasoning),
        report=told.usage != "none",
        endless=endless,
        scale=scale,
    )


def _choice(asked: Asked, tools: tuple[Tool, ...], seed: int, *, endless: bool) -> Choice:
    told = asked.directives
    room = asked.output_max
    reasoning = told.reasoning
    if reasoning is None:
        reasoning = DEFAULT_REASONING_TOKENS if asked.reasoning else 0
    if room is not None and not endless:
        reasoning = min(reasoning, room)
        room -= reasoning
    thought = Words(seed ^ 0x5EED, reasoning)
    if endless:
        return Choice(thought, Words(seed, None), (), "length", reasoning, reasoning)
    text, wanted = _text(asked, tools, seed)
    calls = tuple(_call(tool, seed) for tool in tools)
    cut_text = wanted if room is None else min(wanted, room)
    cut_calls, spent = _cut(calls, None if room is None else room - cut_text)
    length = cut_text < wanted or cut_calls != calls
    text = Words(seed, cut_text) if isinstance(text, Words) else tuple(text)[:cut_text]
    finish = "length" if length else "tools" if calls else "stop"
    tokens = reasoning + cut_text + spent
    choice = Choice(thought, text, cut_calls, finish, tokens, reasoning)
    return _stopped(choice, asked.stops, cut_text) if asked.stops and not tools else choice


def _text(asked: Asked, tools: tuple[Tool, ...], seed: int) -> tuple[Iterable[str], int]:
    """The text before its bound is applied, and its number of tokens."""
    told = asked.directives
    if tools:
        count = told.tokens or 0
        return Words(seed, count), count
    if asked.structured:
        value = sample(asked.schema, iter(Words(seed, None))) if asked.schema is not None else None
        pieces = _json_pieces(value if value is not None else {"answer": next(iter(Words(seed, 1)))})
        return pieces, len(pieces)
    count = told.tokens if told.tokens is not None else DEFAULT_TOKENS_LEAST + seed % DEFAULT_TOKENS_SPREAD
    return Words(seed, count), count


def _tools_to_call(asked: Asked) -> tuple[Tool, ...]:
    """Which tools this answer calls: none once a tool's result is there, so that a round trip ends."""
    declared = {tool.name: tool for tool in asked.tools}
    for name in asked.directives.tool:
        if name not in declared:
            there_are = ", ".join(declared) or "none"
            raise Refused(400, f"sandbox: tool={name}: not declared; the request declares: {there_are}")
    if asked.answered or not declared:
        return ()
    if asked.directives.tool:
        return tuple(declared[name] for name in asked.directives.tool)
    if asked.forced is None:
        return ()
    allowed = [declared[name] for name in asked.forced if name in declared]
    return tuple(allowed[:1]) or asked.tools[:1]


def _call(tool: Tool, seed: int) -> ToolCall:
    value = sample(tool.schema, iter(Words(seed, None)))
    return ToolCall(tool.name, _json_pieces(value if isinstance(value, dict) else {}))


def _json_pieces(value: object) -> tuple[str, ...]:
    text, width = msgspec.json.encode(value).decode(), STRUCTURED_TOKEN_CHARACTERS
    return tuple(text[start : start + width] for start in range(0, len(text), width))


def _cut(calls: tuple[ToolCall, ...], room: int | None) -> tuple[tuple[ToolCall, ...], int]:
    """Keep what fits of the calls; the one that does not fit is broken off, those after it never begin."""
    if room is None:
        return calls, sum(len(call.pieces) for call in calls)
    kept, spent = [], 0
    for call in calls:
        pieces = call.pieces[: room - spent]
        if not pieces:
            break
        kept.append(call if pieces == call.pieces else ToolCall(call.name, pieces))
        spent += len(pieces)
    return tuple(kept), spent


def _stopped(choice: Choice, stops: tuple[str, ...], text_tokens: int) -> Choice:
    """End the text before the first stop sequence in it; the tokens of the match were generated and count."""
    pieces = tuple(choice.text)
    whole = "".join(pieces)
    found = [(place, stop) for stop in stops if (place := whole.find(stop)) >= 0]
    if not found:
        return choice
    place, stop = min(found)
    shown: list[str] = []
    generated, length = 0, 0
    for piece in pieces:
        if length < place:
            shown.append(piece[: place - length])
        length += len(piece)
        generated += 1
        if length >= place + len(stop):
            break
    # Pieces that were generated but are not shown stay as empty ones, so that one piece is still one token.
    shown += [""] * (generated - len(shown))
    return evolve(
        choice,
        text=tuple(shown),
        finish="stopped",
        stop=stop,
        tokens=choice.tokens - text_tokens + generated,
    )


def _read(asked: Asked) -> Usage:
    """How the input splits into buckets: reads come first, as a cache holds a prompt's beginning."""
    told: Directives = asked.directives
    whole = asked.input_tokens
    read = whole * told.cached // 100
    hour = max(asked.marked_1h - read, 0)
    five = max(asked.marked_5m - max(asked.marked_1h, read), 0)
    if told.cache_write_1h is not None:
        hour = min(whole * told.cache_write_1h // 100, whole - read)
    if told.cache_write is not None or told.cache_write_1h is not None:
        five = min(whole * (told.cache_write or 0) // 100, whole - read - hour)
    five = min(five, whole - read - hour)
    return Usage(input=whole - read - hour - five, cache_read=read, cache_write_5m=five, cache_write_1h=hour)
