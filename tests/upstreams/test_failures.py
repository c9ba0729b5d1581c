"""What a provider's error answer means, and what of it a caller may read."""

import pytest

from proxy.config import Failover
from proxy.errors import Kind, Rejected
from proxy.types import ProviderError
from proxy.upstreams.failures import ProviderFailed, judge

FAILOVER = Failover(rest_limited_seconds=30, rest_limited_seconds_max=300, rest_refused_seconds=600)


def judged(status, message="no", headers=None, **more):
    return judge(status, headers or {}, ProviderError(status, message, **more), FAILOVER, ())


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, None, 30),
        ({"retry-after": "12"}, None, 12),
        ({"retry-after": "1.5"}, None, 1.5),
        ({"retry-after-ms": "2500", "retry-after": "9"}, None, 2.5),
        ({}, 17.0, 17),
        ({"retry-after": "5"}, 17.0, 5),
        ({"retry-after": "99999"}, None, 300),
        ({"retry-after": "-5"}, None, 30),
        ({"retry-after": "soon"}, None, 30),
        ({"retry-after": "nan"}, None, 30),
        ({"retry-after": "1e9"}, None, 30),
        ({"retry-after": "٣"}, None, 30),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:40 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, None, 40),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:40 GMT"}, None, 30),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:40 GMT"}, None, 30),
    ],
)
def test_a_429_rests_the_model_there_for_as_long_as_it_says_within_bounds(headers, body, seconds):
    failed = judged(429, headers=headers, retry_after_seconds=body)
    assert isinstance(failed, ProviderFailed)
    assert (failed.leave.seconds, failed.leave.hard, failed.leave.whole) == (seconds, True, False)
    assert failed.kind is Kind.NO_HEALTHY_UPSTREAM


@pytest.mark.parametrize(
    ("status", "more", "whole"),
    [
        (401, {}, True),
        (402, {}, True),
        (403, {}, False),
        (429, {"code": "insufficient_quota"}, True),
        (400, {"code": "API_KEY_INVALID"}, True),
        (400, {"message": "API key not valid. Please pass a valid API key."}, True),
        (400, {"message": "Your credit balance is too low to access the Anthropic API."}, True),
    ],
)
def test_a_refused_credential_rests_for_long(status, more, whole):
    failed = judged(status, **more)
    assert isinstance(failed, ProviderFailed)
    assert (failed.leave.seconds, failed.leave.hard, failed.leave.whole) == (600, True, whole)
    assert failed.status == 503


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_request_that_quotes_a_billing_sentence_cannot_rest_an_account(status):
    refused = judged(status, "messages.0: 'Your credit balance is too low', 'API key not valid'")
    assert isinstance(refused, Rejected)
    assert refused.status == status


@pytest.mark.parametrize("status", [0, 100, 204, 301, 302, 405, 408, 410, 418, 500, 502, 503, 504, 529, 599])
def test_any_other_status_is_the_providers_failure_and_rests_softly(status):
    failed = judged(status)
    assert isinstance(failed, ProviderFailed)
    assert (failed.status, failed.try_another, failed.leave.hard) == (502, True, False)
    assert "no" not in failed.message.split()


def test_a_404_is_our_configuration_unless_it_names_a_field():
    assert isinstance(judged(404, "The model `x` does not exist", code="model_not_found"), ProviderFailed)
    assert isinstance(judged(404, param="model"), ProviderFailed)
    assert isinstance(judged(400, code="model_not_found"), ProviderFailed)
    refused = judged(404, param="file_id")
    assert isinstance(refused, Rejected)
    assert (refused.status, refused.param) == (404, "file_id")


def test_an_empty_message_still_says_something():
    assert judged(422, "").message == "The provider refused the request (status 422)."


def test_what_the_operator_is_told_is_a_status_and_a_code_and_no_text():
    failed = judged(500, "prompt: my secret", code="server error\n{x}")
    assert failed.leave.because == "500 servererrorx"
