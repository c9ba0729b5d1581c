"""No reachable usage costs more than was held: requests of every kind, against what the sandbox makes of them.

Bodies are drawn freely in three dialects and go the whole request path. The usage comes from the sandbox's own code,
which reads the request as it arrives upstream and looks at no bound of ours (tests/sandboxed.py); with a tokenizer
turned up to one token for every byte. Whatever happens, a wallet never pays more than it has, nor anybody more than
the exact price; and what a provider bills beyond all reason is the operator's, and an alarm.
"""

import base64
import json
from collections import Counter

import trio
import trio.testing
from attrs import evolve, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.records import Ending, Grant, Spender
from pricing.money import PPM, marked_up
from pricing.price import Rates, Tier
from pricing.usage import Source
from proxy.config import Config, Holds
from proxy.routing import Router
from proxy.types import Caller
from proxy.types import Path as Route
from tests.fakes import ANTHROPIC, OPENAI, TODAY, World
from tests.sandboxed import Model, Sandboxed

PLENTY = 10**16
PAUSE = 0.1
"""Seconds between two reads, where a client is to leave between them."""

# -- models ----------------------------------------------------------------------------------------

_rate = st.integers(0, 10**7)
_rates = st.builds(
    Rates, input=_rate, cache_read=_rate, cache_write_5m=_rate, cache_write_1h=_rate, output=_rate
)
models = st.builds(
    Model,
    rates=_rates,
    dear=st.none() | st.builds(Tier, above=st.integers(1, 600), rates=_rates),
    habit=st.sampled_from(["none", "none", "5m", "1h"]),
    window=st.sampled_from([200_000, 200_000, 700]),
    output_max=st.sampled_from([40, 700, 5_000]),
    bytes_per_token=st.sampled_from([1, 1, 4]),
    media_tokens=st.sampled_from([1, 64, 1_000]),
    json_characters=st.sampled_from([1, 4]),
)

# -- requests --------------------------------------------------------------------------------------

_letters = st.sampled_from(["a", "Z", " ", "7", '"', "\\", "\n", "\x01", "é", "漢", "😀", "<", "\u2028"])
texts = st.text(_letters, max_size=40)
long_texts = st.builds(lambda piece, times: piece * times, texts, st.sampled_from([1, 1, 1, 30]))
PIXEL = base64.b64encode(b"\x89PNG\r\n" + bytes(40)).decode()
SOUND = base64.b64encode(bytes(600)).decode()  # a second or more, which is the least that is billed
names = st.sampled_from(["look_up", "add", "日本"[:1] + "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
schemas = st.builds(
    lambda words, text: {
        "type": "object",
        "description": text,
        "properties": {word: {"type": "string", "description": text} for word in words},
        "required": words,
    },
    st.lists(st.sampled_from(["place", "when", "wie"]), unique=True, max_size=3),
    texts,
)


def sometimes(name, strategy):
    """A field that is there half of the time."""
    return st.just({}) | st.builds(lambda value: {name: value}, strategy)


def merged(*parts):
    return st.builds(lambda *found: {name: value for part in found for name, value in part.items()}, *parts)


@frozen
class Drawn:
    """A request, and what the provider is told to make of it.

    Attributes:
        path: where it goes; a Gemini path without its model.
        fields: of the body.
        thinks: it turns reasoning on.
        marks: the class of cache write that it allows.
    """

    path: Route
    model: str
    fields: dict
    thinks: bool
    marks: str = "none"

    def sent(self, directives):
        """Path and body, with directives in the model's name."""
        name = f"{self.model}@{directives}" if directives else self.model
        if self.path.dialect == "gemini":
            return evolve(self.path, model=name), json.dumps(self.fields).encode()
        # as many ways to escape as there are to write JSON
        return self.path, json.dumps({"model": name, **self.fields}, ensure_ascii=len(name) % 2 == 0).encode()


_openai_tool = st.builds(
    lambda name, schema, text: {
        "type": "function",
        "function": {"name": name, "description": text, "parameters": schema},
    },
    names,
    schemas,
    texts,
)
_openai_part = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}),
    st.just({"type": "image_url", "image_url": {"url": "https://a.example/x.png", "detail": "high"}}),
    st.just({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}),
)
_openai_message = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text},
              st.sampled_from(["system", "developer", "user", "assistant"]), long_texts),
    st.builds(lambda parts: {"role": "user", "content": parts}, st.lists(_openai_part, min_size=1, max_size=4)),
    st.builds(lambda text, name: {"role": "user", "content": text, "name": name}, texts, names),
    st.builds(
        lambda name, value: {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(value)}}
            ],
        },
        names,
        values,
    ),
    st.builds(lambda text: {"role": "tool", "tool_call_id": "c", "content": text}, texts),
)  # fmt: skip
_efforts = st.sampled_from(["low", "high", "none"])
openai_requests = st.builds(
    lambda fields, stream: Drawn(
        OPENAI,
        "sandbox-chat",
        fields | ({"stream": True} if stream else {}),
        thinks=fields.get("reasoning_effort", "none") != "none",
        marks="5m" if "prompt_cache_options" in fields else "none",
    ),
    merged(
        st.builds(lambda found: {"messages": found}, st.lists(_openai_message, min_size=1, max_size=4)),
        sometimes("max_completion_tokens", st.integers(1, 900)),
        sometimes("n", st.integers(1, 3)),
        sometimes("tools", st.lists(_openai_tool, min_size=1, max_size=2, unique_by=str)),
        sometimes("tool_choice", st.sampled_from(["auto", "required", "none"])),
        sometimes("stop", st.just("e") | st.lists(st.sampled_from(["ri", ".", " the "]), min_size=1)),
        sometimes("reasoning_effort", _efforts),
        sometimes("prompt_cache_options", st.just({"mode": "auto"})),
        sometimes(
            "response_format",
            st.builds(
                lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
                schemas,
            )
            | st.just({"type": "json_object"}),
        ),
        sometimes("service_tier", st.sampled_from(["auto", "default"])),
    ),
    st.booleans(),
)

_marks = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"},
                          {"type": "ephemeral", "ttl": "1h"}])  # fmt: skip
_text_block = st.builds(lambda text, mark: {"type": "text", "text": text} | mark, long_texts,
                        sometimes("cache_control", _marks))  # fmt: skip
_image_block = st.just(
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
)
_anthropic_block = st.one_of(
    _text_block,
    _image_block,
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "c2ln"}, texts),
    st.builds(
        lambda name, value: {"type": "tool_use", "id": "t", "name": name, "input": {"x": value}},
        names,
        values,
    ),
    st.builds(
        lambda blocks, mark: {"type": "tool_result", "tool_use_id": "t", "content": blocks} | mark,
        texts | st.lists(_text_block | _image_block, max_size=2),
        sometimes("cache_control", _marks),
    ),
)
_anthropic_message = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant"]),
    long_texts | st.lists(_anthropic_block, min_size=1, max_size=4),
)
_anthropic_tool = st.builds(
    lambda name, schema, text, mark: {"name": name, "description": text, "input_schema": schema} | mark,
    names,
    schemas,
    texts,
    sometimes("cache_control", _marks),
)


def marks_of(fields):
    text = json.dumps(fields)
    return "1h" if '"ttl": "1h"' in text else "5m" if '"ephemeral"' in text else "none"


anthropic_requests = st.builds(
    lambda fields, stream: Drawn(
        ANTHROPIC,
        "sandbox-claude",
        fields | ({"stream": True} if stream else {}),
        thinks="thinking" in fields,
        marks=marks_of(fields),
    ),
    merged(
        st.builds(lambda found: {"messages": found}, st.lists(_anthropic_message, min_size=1, max_size=4)),
        st.builds(lambda most: {"max_tokens": most}, st.integers(0, 900)),
        sometimes("system", texts | st.lists(_text_block, min_size=1, max_size=2)),
        sometimes("tools", st.lists(_anthropic_tool, min_size=1, max_size=2, unique_by=str)),
        sometimes("tool_choice", st.sampled_from([{"type": "any"}, {"type": "auto"}])),
        sometimes("stop_sequences", st.lists(st.sampled_from(["ri", ".", " the "]), min_size=1)),
        sometimes("thinking", st.just({"type": "enabled", "budget_tokens": 20})),
        sometimes("cache_control", _marks),
        sometimes("service_tier", st.sampled_from(["auto", "standard_only"])),
    ),
    st.booleans(),
)

_gemini_part = st.one_of(
    st.builds(lambda text: {"text": text}, long_texts),
    st.just({"inlineData": {"mimeType": "image/png", "data": PIXEL}}),
    st.just({"inline_data": {"mime_type": "audio/wav", "data": SOUND}}),
    st.builds(lambda name, value: {"functionCall": {"name": name, "args": {"x": value}}}, names, values),
    st.builds(
        lambda name, value: {"functionResponse": {"name": name, "response": {"x": value}}}, names, values
    ),
)
_gemini_content = st.builds(
    lambda role, parts: {"role": role, "parts": parts},
    st.sampled_from(["user", "model"]),
    st.lists(_gemini_part, min_size=1, max_size=4),
)
_gemini_tool = st.builds(
    lambda name, schema, text: {
        "functionDeclarations": [{"name": name, "description": text, "parameters": schema}]
    },
    names,
    schemas,
    texts,
)
_generation = merged(
    sometimes("maxOutputTokens", st.integers(1, 900)) | sometimes("max_output_tokens", st.integers(1, 900)),
    sometimes("candidateCount", st.integers(1, 3)),
    sometimes("stopSequences", st.lists(st.sampled_from(["ri", "."]), min_size=1)),
    sometimes("thinkingConfig", st.sampled_from([{"thinkingBudget": 20}, {"includeThoughts": True,
                                                                         "thinkingBudget": 900}])),
    st.just({})
    | st.builds(lambda schema: {"responseMimeType": "application/json", "responseSchema": schema}, schemas),
)  # fmt: skip
gemini_requests = st.builds(
    lambda fields, action, sse: Drawn(
        Route("gemini", action=action, sse=sse),
        "sandbox-gemini",
        fields,
        thinks="thinkingConfig" in fields.get("generationConfig", {}),
    ),
    merged(
        st.builds(lambda found: {"contents": found}, st.lists(_gemini_content, min_size=1, max_size=4)),
        sometimes("generationConfig", _generation),
        sometimes("systemInstruction", st.builds(lambda text: {"parts": [{"text": text}]}, texts)),
        sometimes("tools", st.lists(_gemini_tool, min_size=1, max_size=2, unique_by=str)),
        sometimes("toolConfig", st.just({"functionCallingConfig": {"mode": "ANY"}})),
    ),
    st.sampled_from(["generate", "stream", "stream"]),
    st.booleans(),
)
requests = openai_requests | anthropic_requests | gemini_requests

CLASSES = ["none", "5m", "1h"]


@st.composite
def directives(draw, request, habit):
    """What a provider can do with such a request: think where it was asked to, write the caches that it may."""
    told = []
    tokens = draw(st.none() | st.sampled_from([0, 1, 30, 900, 900, 6_000]))
    if tokens is not None:
        told.append(f"tokens={tokens}")
    if request.thinks and draw(st.booleans()):
        told.append(f"reasoning={draw(st.sampled_from([1, 200, 3_000]))}")
    if draw(st.booleans()):
        told.append(f"cached={draw(st.sampled_from([0, 30, 100]))}")
    if request.path.dialect != "gemini" and draw(st.booleans()):
        allowed = max(CLASSES.index(request.marks), CLASSES.index(habit))
        if allowed:
            told.append(f"cache_write={draw(st.sampled_from([0, 60, 100]))}")
        if allowed == 2 and request.path.dialect == "anthropic":
            told.append(f"cache_write_1h={draw(st.sampled_from([0, 60, 100]))}")
    told.append(f"frame_tokens={draw(st.sampled_from([1, 1, 7, 400]))}")
    return ",".join(told)


@frozen
class Play:
    """One request of one model's, by one wallet: all that an example needs."""

    request: Drawn
    directives: str
    model: Model
    share: float | None
    """What the wallet has: so much of the way from the first hold to the full one; `None`: plenty."""
    markup_ppm: int
    stops: str
    states_input: str
    slice_tokens: int
    reads: int
    leaves: int | None
    """The read of a stream after which the client leaves, or `None`."""


@st.composite
def plays(draw, small_wallets=True, leaving=False):
    request, model = draw(requests), draw(models)
    shares = st.floats(-0.1, 1.0) | st.floats(0.0, 0.5) if small_wallets else st.none()
    return Play(
        request,
        draw(directives(request, model.habit)),
        model,
        draw(shares),
        draw(st.sampled_from([PPM, 1_200_001, 600_000])),
        draw(st.sampled_from(["yes", "yes", "no", "unknown"])),
        draw(st.sampled_from(["start", "end"])),
        draw(st.sampled_from([16, 100, 1_024])),
        draw(st.sampled_from([1, 1, 5, 1_000])),
        draw(st.integers(1, 12)) if leaving else None,
    )


# -- playing it ------------------------------------------------------------------------------------


def amount_of(play, path, body):
    """What the wallet is given."""
    if play.share is None:
        return PLENTY
    world = world_of(play, PLENTY)
    ask = world.gateway.dialects[path.dialect].read_request(path, {}, body, "pass")
    offers = world.router.offers(ask, Caller(Spender("w", "k"), markup_ppm=play.markup_ppm), PLENTY)
    first, full = world.router.first_hold(offers), offers[0].price.ceiling(offers[0].bounds)
    return max(int(first + play.share * max(full - first, first)), 1)


def world_of(play, amount):
    world = World(
        (200, []),
        amount=amount,
        stops_billing=play.stops,
        states_input=play.states_input,
        config=evolve(Config(), holds=Holds(slice_tokens=play.slice_tokens)),
        markup_ppm=play.markup_ppm,
    )
    world.router = Router(play.model.catalog(), world.config, lambda: TODAY)
    world.gateway = evolve(world.gateway, router=world.router)
    world.provider = Sandboxed(play.model, play.reads, pause=0.0 if play.leaves is None else PAUSE)
    world.upstreams.client = world.provider
    return world


def played(play, path=None, body=None):
    """Serve it; gives the world and what the client got."""
    if body is None:
        path, body = play.request.sent(play.directives)
    found = []

    async def main():
        world = world_of(play, amount_of(play, path, body))

        async def client(reply):
            if play.leaves is not None:
                await trio.sleep((play.leaves - 0.5) * PAUSE)
                reply.hang_up()

        found.extend((world, await world.ask(body, path, meanwhile=client)))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found


def check(play, world, reply):
    """What must hold after any request; gives what became of it in a word."""
    world.check()
    [grant] = world.journal.of(Grant)
    balance = world.books.balance("w")
    assert 0 <= balance.balance <= grant.amount
    assert balance.held == 0
    if not world.settled:
        assert reply.status in (400, 402), reply.body
        return str(reply.status)
    [record] = world.settled
    [invoice] = world.provider.invoices
    assert record.loss == 0, (record, invoice.said)
    assert "beyond_hold" not in record.flags
    assert record.charged == record.price <= record.held <= grant.amount
    if record.outcome is Ending.REFUSED:
        assert record.charged == record.cost == 0
    elif record.outcome is Ending.COMPLETE and "empty_free" in record.flags:
        assert (record.charged, invoice.whole.output) == (0, 0)
        assert record.cost == play.model.price(invoice.whole)
    elif record.outcome is Ending.COMPLETE:
        assert record.source is Source.REPORTED
        assert record.cost == play.model.price(invoice.whole)
        assert record.charged == marked_up(play.model.price(invoice.whole), play.markup_ppm)
    else:
        assert record.outcome in (Ending.EXHAUSTED, Ending.HUNG_UP)
        # not a token for nothing, though the wallet may have held no more than this
        used = marked_up(play.model.price(invoice.so_far), play.markup_ppm)
        assert record.charged >= min(used, record.held), (record, invoice.so_far)
    return record.outcome.value


def played_and_checked(play):
    what = check(play, *played(play))
    SEEN[play.request.path.dialect, play.stops == "yes", what] += 1
    return what


# -- the property ----------------------------------------------------------------------------------

EXAMPLES = 250
quick = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
SEEN = Counter()


@quick
@given(plays(small_wallets=False))
def test_nothing_that_a_provider_can_bill_costs_more_than_was_held(play):
    """With enough credit: served, and charged to the pico what the provider's invoice comes to."""
    what = played_and_checked(play)
    assert what != "402"


@quick
@given(plays())
def test_a_small_wallet_is_served_within_what_it_has_or_told_402(play):
    played_and_checked(play)


@quick
@given(plays(small_wallets=True, leaving=True))
def test_leaving_at_any_read_is_no_cheaper_than_what_was_generated_by_then(play):
    played_and_checked(play)
