import pytest

from proxy.dialects.wording import retry_headers
from proxy.errors import Failure, Kind


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0, "0", "0"), (-5, "0", "0"), (0.0001, "1", "1"), (1, "1", "1000"), (1.5, "2", "1500")],
)
def test_a_delay_is_rounded_up_and_never_negative(seconds, whole, milliseconds):
    headers = dict(retry_headers(Failure(Kind.RATE_LIMITED, "m", retry_after_seconds=seconds)))
    assert headers == {"retry-after": whole, "retry-after-ms": milliseconds}


def test_whether_to_try_again_is_said_where_it_is_known():
    assert retry_headers(Failure(Kind.NO_CREDIT, "m")) == (("x-should-retry", "false"),)
    assert retry_headers(Failure(Kind.TIMEOUT, "m")) == (("x-should-retry", "true"),)
    assert retry_headers(Failure(Kind.OVERLOADED, "m")) == ()
