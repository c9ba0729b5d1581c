"""The vendors' own SDKs take an answer that was cut off for an ordinary one that reached its length."""

import httpx2
import openai
import pytest
from anthropic import Anthropic
from google import genai
from google.genai import types

from proxy.dialects import sse
from tests.dialects.common import choices_of, dialect_of, recording, translator
from tests.dialects.test_cut import RECEIPT

MESSAGES = [{"role": "user", "content": "x"}]


def web(body):
    """A client whose every request is answered with this stream."""
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=body))
    return httpx2.Client(transport=transport)


def bodies(name, budgets=(0, 10**6)):
    """A recording, cut in each of its frames, and before any has come."""
    frames = sse.frames(recording(name))
    for count in range(len(frames) + 1):
        for budget in budgets:
            stream = translator(dialect_of(name), choices=choices_of(name))
            relays = [b"", *map(stream.feed, frames[:count])]
            if stream.ended:
                return
            kept = stream.cut(relays[-1], budget, "wallet")
            stream.finish()
            yield b"".join(relays[:-1]) + kept + stream.end(RECEIPT)


def completed(events):
    """The whole completion; of one that reached its length this SDK's helper tells by an error, whoever sent it."""
    try:
        return events.get_final_completion()
    except openai.LengthFinishReasonError as reached:
        return reached.completion


@pytest.mark.parametrize(
    "name", ["openai_text.sse", "openai_tools.sse", "openai_two_choices.sse", "openai_azure.sse"]
)
def test_openais_sdk_reads_every_choice_to_its_length(name):
    wanted = {"model": "m", "messages": MESSAGES, "n": choices_of(name)}
    for body in bodies(name):
        with openai.OpenAI(api_key="k", base_url="http://x", http_client=web(body)) as client:
            chunks = list(client.chat.completions.create(stream=True, **wanted))
            with client.chat.completions.stream(**wanted) as events:
                for _ in events:
                    pass
                final = completed(events)
        ours = [chunk for chunk in chunks if "x-credits-limit" in chunk.model_extra]
        for chunk in ours:
            assert [choice.finish_reason for choice in chunk.choices] == ["length"]
        reasons = [choice.finish_reason for choice in final.choices]
        assert len(reasons) == choices_of(name)
        assert all(reasons)
        assert ours or b"finish_reason" in body, "all had finished before the cut"
        assert final.usage.completion_tokens == 42
        assert final.usage.prompt_tokens_details.cached_tokens == 50
        assert final.usage.cost_micro == 6


@pytest.mark.parametrize(
    "name",
    ["anthropic_text.sse", "anthropic_tools.sse", "anthropic_thinking.sse", "anthropic_web_search.sse"],
)
def test_anthropics_sdk_reads_a_message_that_reached_max_tokens(name):
    wanted = {"model": "m", "messages": MESSAGES, "max_tokens": 100}
    for body in bodies(name):
        with Anthropic(api_key="k", base_url="http://x", http_client=web(body)) as client:
            events = list(client.messages.create(stream=True, **wanted))
            with client.messages.stream(**wanted) as stream:
                for _ in stream:
                    pass
                message = stream.get_final_message()
        assert [event.type for event in events[-2:]] == ["message_delta", "message_stop"]
        assert getattr(events[-2], "x-credits-limit") == "wallet"
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 42
        assert message.usage.input_tokens == 100
        assert message.usage.cache_read_input_tokens == 50


@pytest.mark.parametrize("name", ["gemini_text.sse", "gemini_tools.sse", "gemini_two_candidates.sse"])
def test_googles_sdk_reads_candidates_that_reached_max_tokens_and_keeps_the_turn(name):
    for body in bodies(name):
        options = types.HttpOptions(base_url="http://x", httpx_client=web(body))
        with genai.Client(api_key="k", http_options=options) as client:
            chunks = list(client.models.generate_content_stream(model="m", contents="x"))
            chat = client.chats.create(model="m")
            for _ in chat.send_message_stream("x"):
                pass
        reasons = {
            candidate.index: candidate.finish_reason
            for chunk in chunks
            for candidate in chunk.candidates
            if candidate.finish_reason
        }
        assert reasons.keys() == set(range(choices_of(name)))
        assert types.FinishReason.MAX_TOKENS in reasons.values()
        assert chunks[-1].usage_metadata.candidates_token_count == 38
        assert {turn.role for turn in chat.get_history(curated=True)} == {"user", "model"}
