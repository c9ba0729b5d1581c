"""The real `anthropic` SDK against a running gateway: answer, stream, tools, usage, every error class, hanging up."""

import time

import anthropic
import pytest

MODEL = "sandbox-claude"
ASK = [{"role": "user", "content": "Tell me something."}]
TOOL = {
    "name": "get_weather",
    "description": "Look up the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def with_key(demo, key):
    return anthropic.Anthropic(base_url=demo.base_url, api_key=key, max_retries=0)


@pytest.fixture
def client(demo):
    with with_key(demo, demo.new_wallet()[1]) as client:
        yield client


def test_an_answer_arrives_and_its_usage_is_in_the_books_at_once(demo, client):
    raw = client.messages.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=20)
    answer = raw.parse()

    assert answer.content[0].text
    record = demo.usage(raw.headers["request-id"], client.api_key)
    assert record["output_tokens"] == answer.usage.output_tokens
    assert record["input_tokens"] == answer.usage.input_tokens
    assert record["cost_micro"] == int(raw.headers["x-credits-cost-micro"])


def test_a_stream_arrives_whole_and_ends_with_its_cost(demo, client):
    with client.messages.stream(model=f"{MODEL}@tokens=30", messages=ASK, max_tokens=100) as stream:
        events = list(stream)
        request = stream.response.headers["request-id"]
        final = stream.get_final_message()

    record = demo.usage(request, client.api_key)
    delta = next(event for event in events if event.type == "message_delta")
    assert final.usage.output_tokens == record["output_tokens"] == 30
    assert delta.usage.model_extra["cost"] == record["cost"]
    assert delta.usage.model_extra["cost_micro"] == record["cost_micro"]


def test_a_tool_round_trip_works(client):
    first = client.messages.create(
        model=f"{MODEL}@tool=get_weather", messages=ASK, tools=[TOOL], max_tokens=200
    )
    assert first.stop_reason == "tool_use"
    call = next(block for block in first.content if block.type == "tool_use")
    second = client.messages.create(
        model=MODEL,
        max_tokens=50,
        tools=[TOOL],
        messages=[
            *ASK,
            {
                "role": "assistant",
                "content": [block.model_dump(exclude_none=True) for block in first.content],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
            },
        ],
    )
    assert second.content[0].text


def test_cache_writes_and_reads_are_billed_apart(demo, client):
    system = [{"type": "text", "text": "word " * 2000, "cache_control": {"type": "ephemeral"}}]
    raw = client.messages.with_raw_response.create(
        model=f"{MODEL}@tokens=5,cached=50", messages=ASK, system=system, max_tokens=20
    )
    usage, record = raw.parse().usage, demo.usage(raw.headers["request-id"], client.api_key)
    assert record["cache_read_input_tokens"] == usage.cache_read_input_tokens > 0
    assert record["input_tokens"] == usage.input_tokens
    assert record["cache_creation"]["ephemeral_5m_input_tokens"] == (usage.cache_creation_input_tokens or 0)


def test_counting_tokens_is_free(demo, client):
    before = demo.get("/v1/credits", client.api_key).json()
    counted = client.messages.count_tokens(model=MODEL, messages=ASK)
    assert counted.input_tokens > 0
    assert demo.get("/v1/credits", client.api_key).json() == before


def test_models_are_listed_in_the_callers_dialect(client):
    listed = list(client.models.list())
    assert any(model.id == "sandbox/claude" and model.display_name for model in listed)


def test_no_valid_key_is_an_authentication_error(demo):
    with with_key(demo, "nonsense") as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(model=MODEL, messages=ASK, max_tokens=10)
    assert caught.value.body["error"]["type"] == "authentication_error"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_no_credit_is_a_billing_error(demo):
    with (
        with_key(demo, demo.new_wallet(amount="0.000001")[1]) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        client.messages.create(model=MODEL, messages=ASK, max_tokens=1000)
    assert caught.value.status_code == 402
    assert caught.value.body["error"]["type"] == "billing_error"
    assert caught.value.body["error"]["metadata"]["shortfall_micro"] > 0


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", messages=ASK, max_tokens=10)


def test_a_model_that_the_key_may_not_use_is_a_permission_error(demo):
    with (
        with_key(demo, demo.new_wallet(models=["openai/*"])[1]) as client,
        pytest.raises(anthropic.PermissionDeniedError),
    ):
        client.messages.create(model=MODEL, messages=ASK, max_tokens=10)


def test_a_bad_request_is_a_400_that_names_the_field(client):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=MODEL, messages=ASK, max_tokens=-1)


def test_too_many_requests_is_a_rate_limit_error(demo):
    with with_key(demo, demo.new_wallet(rpm=1)[1]) as client:
        client.messages.create(model=MODEL, messages=ASK, max_tokens=10)
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(model=MODEL, messages=ASK, max_tokens=10)
    assert caught.value.response.headers["anthropic-ratelimit-requests-limit"] == "1"


def test_a_failing_provider_is_an_internal_error(client):
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model=f"{MODEL}@status=500", messages=ASK, max_tokens=10)
    assert caught.value.status_code == 502


def test_an_error_in_mid_stream_raises(client):
    with (
        pytest.raises(anthropic.APIError),
        client.messages.stream(model=f"{MODEL}@tokens=50,fail_at=10", messages=ASK, max_tokens=100) as stream,
    ):
        list(stream)


def test_hanging_up_in_mid_stream_is_charged_for_what_was_seen(demo, client):
    with client.messages.stream(
        model=f"{MODEL}@endless=1,gap_ms=5", messages=ASK, max_tokens=100_000
    ) as stream:
        request = stream.response.headers["request-id"]
        for _, _event in zip(range(30), stream, strict=False):
            pass
    until = time.monotonic() + 10
    while (answer := demo.get(f"/v1/usage/{request}", client.api_key)).status_code != 200:
        assert time.monotonic() < until, "not settled"
        time.sleep(0.02)  # a real process settles; there is no clock to move
    record = answer.json()
    assert record["status"] == "hung_up"
    assert record["output_tokens"] >= 15
