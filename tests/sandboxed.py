"""A provider for tests.fakes.World that answers as the sandbox does, in process, and keeps what it would invoice.

What an answer uses is decided by the sandbox's own code from the request as it arrives there: no bound of ours is
looked at. How it cuts text into tokens is turned up to the most that any tokenizer can do, a token for every byte.
"""

from contextlib import contextmanager
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

import trio
from attrs import define, evolve, field, frozen

from pricing.catalog import Catalog, Listing
from pricing.price import Tier
from pricing.usage import Usage
from proxy.sandbox import answers, wire
from proxy.sandbox.anthropic import Anthropic
from proxy.sandbox.gemini import Gemini
from proxy.sandbox.openai_chat import OpenAIChat
from proxy.sandbox.wire import Ids, Refused
from tests.fakes import Exchange, catalog, sends_in_time

IDS = Ids("req_sandbox", "0123456789abcdef" * 2, 1)


@frozen
class Model:
    """What the models here are like, and how they are priced: the same for all three dialects.

    Attributes:
        rates, dear: picos by bucket; `dear`, where there is any, above so many tokens of context.
        habit: the class of cache write that the vendor makes unasked.
        window, output_max: as in the catalogue; the provider keeps to both.
        bytes_per_token, media_tokens, json_characters: how the provider counts text, media and its own JSON.
    """

    rates: object
    dear: Tier | None = None
    habit: str = "none"
    window: int = 200_000
    output_max: int = 2_000
    bytes_per_token: int = 1
    media_tokens: int = 64
    json_characters: int = 4

    @property
    def most(self):
        """Most tokens of one answer."""
        return min(self.output_max, self.window)

    def catalog(self):
        """The catalogue of these tests: the sandbox's models, so priced and so bounded."""
        tiers = (Tier(0, self.rates), *([self.dear] if self.dear else []))
        known = catalog()
        models = tuple(
            evolve(
                model,
                prices=(Listing(tiers),),
                cache_writes=self.habit,
                context_window=self.window,
                output_max=self.most,
                image_tokens_max=self.media_tokens,
                audio_tokens_per_second_max=self.media_tokens,
                dense_bytes_per_token=1,
            )
            for model in known.models.values()
            if model.vendor == "sandbox"
        )
        return Catalog.of(tuple(known.vendors.values()), models)

    def price(self, usage: Usage) -> int:
        """What an invoice comes to at list price; by hand, not as the gateway works it out."""
        rates = self.dear.rates if self.dear and usage.context > self.dear.above else self.rates
        plain = {
            "input": rates.input,
            "cache_read": rates.cache_read,
            "cache_write_5m": rates.cache_write_5m,
            "cache_write_1h": rates.cache_write_1h,
            "output": rates.output,
        }
        assert usage.counts().keys() <= {*plain, "reasoning"}
        return sum(getattr(usage, name) * each for name, each in plain.items())


@define(eq=False)
class Sandboxed:
    """Answers calls in place of a scripted provider."""

    model: Model
    reads: int = 1
    """Frames that come in one read."""
    pause: float = 0.0
    """Seconds between two reads."""
    calls: list = field(factory=list)
    invoices: list = field(factory=list)
    exchanges: list = field(factory=list)

    @contextmanager
    def counting(self):
        """Count tokens as this model does."""
        model = self.model
        with (
            patch.object(wire, "BYTES_PER_TOKEN", model.bytes_per_token),
            patch.object(wire, "IMAGE_TOKENS", model.media_tokens),
            patch.object(answers, "STRUCTURED_TOKEN_CHARACTERS", model.json_characters),
        ):
            yield

    @sends_in_time
    async def send(self, call, sending):
        """As `upstreams.client.Client.send`."""
        await trio.lowlevel.checkpoint()
        sending()
        self.calls.append(call)
        with self.counting():
            return self._answer(call)

    def _answer(self, call):
        url = urlsplit(call.url)
        voice = _voice(url.path)
        try:
            asked = voice.read(url.path, dict(parse_qsl(url.query)), call.body)
            if asked.input_tokens > self.model.window:
                raise Refused(400, "The prompt is longer than the context window.")
            # the model's own maximum holds where the request names none
            bound = self.model.most if asked.output_max is None else asked.output_max
            asked = evolve(asked, output_max=min(bound, self.model.most))
            said = answers.answer(asked)
        except Refused as refused:
            headers, body = voice.error(refused, IDS)
            return self._open(Invoice(None, [0]), refused.status, dict(headers), [body])
        headers = dict(voice.headers(IDS, stream=asked.stream))
        if not asked.stream:
            return self._open(Invoice(said, []), 200, headers, [voice.whole(asked, said, IDS)])
        steps, tokens, reached, data = [], [], 0, b""
        frames = list(voice.frames(asked, said, IDS))
        for number, frame in enumerate(frames, 1):
            reached += frame.tokens
            data += frame.data
            if data and (number % self.reads == 0 or number == len(frames)):
                steps += [data, self.pause] if self.pause else [data]
                tokens.append(reached)
                data = b""
        return self._open(Invoice(said, tokens), 200, headers, steps)

    def _open(self, invoice, status, headers, steps):
        exchange = Exchange(status, headers, steps)
        invoice.begin(exchange)
        self.invoices.append(invoice)
        self.exchanges.append(exchange)
        return exchange


@define(eq=False)
class Invoice:
    """What the provider wants for one answer.

    Attributes:
        said: the answer, or `None` for a refusal.
        tokens: generated by the time of each read of a stream.
    """

    said: object
    tokens: list
    _exchange: Exchange | None = None
    _reads: int = 0

    def begin(self, exchange):
        self._exchange = exchange
        self._reads = sum(isinstance(step, bytes) for step in exchange.steps)

    @property
    def whole(self) -> Usage:
        """The usage that a provider bills which writes to the end."""
        return self.said.usage

    def so_far(self, but=0) -> Usage:
        """The usage of what was read of a stream before it was closed; without its last reads, if so asked."""
        left = sum(isinstance(step, bytes) for step in self._exchange.steps)
        read = max(self._reads - left - but, 0)
        return self.said.used_after(self.tokens[read - 1] if read else 0)


def _voice(path):
    if path.endswith("/chat/completions"):
        return OpenAIChat()
    return Anthropic() if path.endswith("/messages") else Gemini()
