"""The real `openai` SDK against a running gateway: answer, stream, tools, usage, every error class, hanging up."""

import json
import time

import openai
import pytest

MODEL = "sandbox-chat"
ASK = [{"role": "user", "content": "Tell me something."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(demo):
    with openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key=demo.new_wallet()[1], max_retries=0) as client:
        yield client


def with_key(demo, key):
    return openai.OpenAI(base_url=f"{demo.base_url}/v1", api_key=key, max_retries=0)


def test_an_answer_arrives_and_its_usage_is_in_the_books_at_once(demo, client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_completion_tokens=20
    )
    answer = raw.parse()

    assert answer.choices[0].message.content
    record = demo.usage(raw.headers["x-request-id"], client.api_key)
    assert record["output_tokens"] == answer.usage.completion_tokens
    assert record["input_tokens"] == answer.usage.prompt_tokens
    assert record["cost_micro"] == int(raw.headers["x-credits-cost-micro"])
    assert record["usage_source"] == "reported"


def test_a_stream_without_usage_asked_for_shows_none_and_is_billed_exactly(demo, client):
    with client.chat.completions.with_streaming_response.create(
        model=f"{MODEL}@tokens=30", messages=ASK, stream=True
    ) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        request = response.headers["x-request-id"]

    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    assert all(chunk["choices"] for chunk in chunks)
    assert demo.usage(request, client.api_key)["output_tokens"] == 30


def test_a_stream_with_usage_asked_for_ends_with_usage_and_exact_cost(demo, client):
    raw = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}@tokens=30", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(raw.parse())

    usage = chunks[-1].usage
    record = demo.usage(raw.headers["x-request-id"], client.api_key)
    assert usage.completion_tokens == 30
    assert usage.model_extra["cost"] == record["cost"]
    assert usage.model_extra["cost_micro"] == record["cost_micro"]


def test_a_tool_round_trip_works(client):
    first = client.chat.completions.create(model=f"{MODEL}@tool=get_weather", messages=ASK, tools=[TOOL])
    call = first.choices[0].message.tool_calls[0]
    assert first.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    json.loads(call.function.arguments)

    second = client.chat.completions.create(
        model=MODEL,
        messages=[
            *ASK,
            first.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
        tools=[TOOL],
    )
    assert second.choices[0].message.content


def test_streamed_tool_arguments_arrive_whole(client):
    with client.chat.completions.stream(
        model=f"{MODEL}@tool=get_weather", messages=ASK, tools=[TOOL]
    ) as stream:
        final = stream.get_final_completion()
    json.loads(final.choices[0].message.tool_calls[0].function.arguments)


def test_cached_and_reasoning_tokens_are_reported_and_billed_apart(demo, client):
    raw = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}@tokens=20,reasoning=15,cached=50",
        messages=[{"role": "user", "content": "word " * 400}],
    )
    usage, record = raw.parse().usage, demo.usage(raw.headers["x-request-id"], client.api_key)
    assert usage.prompt_tokens_details.cached_tokens == record["cache_read_input_tokens"] > 0
    assert usage.prompt_tokens == record["input_tokens"] + record["cache_read_input_tokens"]
    assert record["reasoning_tokens"] == usage.completion_tokens_details.reasoning_tokens == 15


def test_models_are_listed_and_found_in_their_three_forms(client):
    ids = [model.id for model in client.models.list()]
    assert "openai/gpt-4o-mini" in ids
    assert client.models.retrieve("gpt-4o-mini").id == client.models.retrieve("openai/gpt-4o-mini").id


def test_no_valid_key_is_an_authentication_error(demo):
    with with_key(demo, "fb_sk_nonsense") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_no_credit_is_a_402_that_a_machine_can_act_on(demo):
    with (
        with_key(demo, demo.new_wallet(amount="0.000001")[1]) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=1000)
    assert caught.value.status_code == 402
    assert caught.value.code == "insufficient_credits"
    assert caught.value.type == "insufficient_credits"
    metadata = caught.value.body["metadata"]
    assert metadata["limit"] == "wallet"
    assert metadata["shortfall_micro"] > 0
    assert metadata["affordable_max_tokens"] >= 0


def test_a_model_that_the_key_may_not_use_is_a_permission_error(demo):
    with (
        with_key(demo, demo.new_wallet(models=["openai/gpt-4o"])[1]) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.chat.completions.create(model=MODEL, messages=ASK)


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=ASK)
    assert caught.value.code == "model_not_found"


def test_a_model_of_another_dialect_is_refused_by_name_until_translation_lands(client):
    with pytest.raises(openai.BadRequestError, match="Translation"):
        client.chat.completions.create(model="sandbox-claude", messages=ASK)


def test_a_bad_request_is_a_400_that_names_the_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=-5)
    assert caught.value.param == "max_completion_tokens"


def test_too_many_requests_is_a_rate_limit_error_with_its_wait(demo):
    with with_key(demo, demo.new_wallet(rpm=1)[1]) as client:
        client.chat.completions.create(model=MODEL, messages=ASK)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=MODEL, messages=ASK)
    assert float(caught.value.response.headers["retry-after"]) > 0
    assert int(caught.value.response.headers["retry-after-ms"]) > 0
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize(
    ("directive", "status"),
    [("status=400", 400), ("status=500", 502)],
)
def test_a_providers_own_errors_become_ours(client, directive, status):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=f"{MODEL}@{directive}", messages=ASK)
    assert caught.value.status_code == status


def test_an_error_in_mid_stream_raises_and_never_looks_like_success(client):
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=f"{MODEL}@tokens=50,fail_at=10", messages=ASK, stream=True))


def test_a_cut_connection_raises_and_never_looks_like_success(client):
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model=f"{MODEL}@tokens=50,cut_at=10", messages=ASK, stream=True))


def test_hanging_up_in_mid_stream_is_charged_for_what_was_seen(demo, client):
    raw = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}@endless=1,gap_ms=5", messages=ASK, stream=True, max_completion_tokens=100_000
    )
    stream = raw.parse()
    for _, _chunk in zip(range(20), stream, strict=False):
        pass
    stream.close()

    record = settled(demo, raw.headers["x-request-id"], client.api_key)
    assert record["status"] == "hung_up"
    assert record["output_tokens"] >= 15
    assert demo.get("/v1/credits", client.api_key).json()["held_micro"] == 0


def settled(demo, request, key, seconds=10):
    """The usage record of a request, as soon as it is settled."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = demo.get(f"/v1/usage/{request}", key)
        if answer.status_code == 200:
            return answer.json()
        time.sleep(0.02)  # a real process settles; there is no clock to move
    pytest.fail(f"{request} was not settled within {seconds} s")
