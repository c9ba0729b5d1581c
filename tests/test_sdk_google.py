"""The real `google-genai` SDK against a running gateway: answer, stream, tools, usage, every error class."""

import pytest
from google import genai
from google.genai import errors, types

MODEL = "sandbox-gemini"
ASK = "Tell me something."


def with_key(demo, key, base="/genai", version=None):
    options = types.HttpOptions(base_url=f"{demo.base_url}{base}", api_version=version)
    return genai.Client(api_key=key, http_options=options)


@pytest.fixture
def key(demo):
    return demo.new_wallet()[1]


@pytest.mark.parametrize(
    ("base", "version"),
    [("/genai", None), ("/genai", "v1beta"), ("/genai", "v1"), ("", None), ("", "v1beta"), ("", "v1")],
)
def test_an_answer_arrives_under_every_prefix(demo, key, base, version):
    with with_key(demo, key, base, version) as client:
        answer = client.models.generate_content(model=f"{MODEL}@tokens=7", contents=ASK)
    assert answer.text
    assert answer.usage_metadata.candidates_token_count == 7


def test_the_models_prefix_is_taken_or_left(demo, key):
    with with_key(demo, key) as client:
        assert client.models.generate_content(model=f"models/{MODEL}", contents=ASK).text


def test_the_books_have_what_the_answer_reports(demo, key):
    with with_key(demo, key) as client:
        answer = client.models.generate_content(model=f"{MODEL}@tokens=9,reasoning=4", contents=ASK)
    record = demo.usage(answer.sdk_http_response.headers["x-request-id"], key)
    usage = answer.usage_metadata
    assert record["input_tokens"] == usage.prompt_token_count
    assert record["output_tokens"] == usage.candidates_token_count + (usage.thoughts_token_count or 0)
    assert record["reasoning_tokens"] == 4


def test_a_stream_arrives_whole(demo, key):
    with with_key(demo, key) as client:
        chunks = list(client.models.generate_content_stream(model=f"{MODEL}@tokens=30", contents=ASK))
    assert "".join(chunk.text or "" for chunk in chunks)
    assert chunks[-1].usage_metadata.candidates_token_count == 30
    page = demo.get("/v1/usage?limit=1", key).json()["data"]
    assert page[0]["output_tokens"] == 30


def test_a_tool_round_trip_works(demo, key):
    tool = types.Tool(
        function_declarations=[
            types.FunctionDeclaration(
                name="get_weather",
                parameters=types.Schema(
                    type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}
                ),
            )
        ]
    )
    config = types.GenerateContentConfig(
        tools=[tool], automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True)
    )
    question = types.Content(role="user", parts=[types.Part(text=ASK)])
    with with_key(demo, key) as client:
        first = client.models.generate_content(
            model=f"{MODEL}@tool=get_weather", contents=[question], config=config
        )
        call = first.function_calls[0]
        assert call.name == "get_weather"
        result = types.Part.from_function_response(name=call.name, response={"weather": "sunny"})
        second = client.models.generate_content(
            model=MODEL,
            contents=[question, first.candidates[0].content, types.Content(role="user", parts=[result])],
            config=config,
        )
    assert second.text


def test_counting_tokens_is_free(demo, key):
    before = demo.get("/v1/credits", key).json()
    with with_key(demo, key) as client:
        assert client.models.count_tokens(model=MODEL, contents=ASK).total_tokens > 0
    assert demo.get("/v1/credits", key).json() == before


def test_no_valid_key_is_a_401(demo):
    with with_key(demo, "nonsense") as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents=ASK)
    assert caught.value.code == 401
    assert caught.value.status == "UNAUTHENTICATED"


def test_no_credit_is_a_402(demo):
    poor = demo.new_wallet(amount="0.000001")[1]
    with with_key(demo, poor) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents=ASK)
    assert caught.value.code == 402
    assert caught.value.status == "RESOURCE_EXHAUSTED"


def test_an_unknown_model_is_a_404(demo, key):
    with with_key(demo, key) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="no-such-model", contents=ASK)
    assert caught.value.code == 404


def test_a_forbidden_model_is_a_403(demo):
    narrow = demo.new_wallet(models=["openai/*"])[1]
    with with_key(demo, narrow) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents=ASK)
    assert caught.value.code == 403


def test_a_server_tool_is_refused_by_name(demo, key):
    config = types.GenerateContentConfig(tools=[types.Tool(google_search=types.GoogleSearch())])
    with with_key(demo, key) as client, pytest.raises(errors.ClientError, match="googleSearch") as caught:
        client.models.generate_content(model=MODEL, contents=ASK, config=config)
    assert caught.value.code == 400


def test_too_many_requests_is_a_429(demo):
    slow = demo.new_wallet(rpm=1)[1]
    with with_key(demo, slow) as client:
        client.models.generate_content(model=MODEL, contents=ASK)
        with pytest.raises(errors.ClientError) as caught:
            client.models.generate_content(model=MODEL, contents=ASK)
    assert caught.value.code == 429


def test_a_failing_provider_is_a_server_error(demo, key):
    with with_key(demo, key) as client, pytest.raises(errors.ServerError) as caught:
        client.models.generate_content(model=f"{MODEL}@status=500", contents=ASK)
    assert caught.value.code == 502


def test_an_error_in_mid_stream_raises(demo, key):
    with with_key(demo, key) as client, pytest.raises(errors.APIError):
        list(client.models.generate_content_stream(model=f"{MODEL}@tokens=50,fail_at=10", contents=ASK))
