"""There are never more connections than there are descriptors for: where those run out, the process dies."""

import math

import pytest

from proxy.config import RequestLimits
from proxy.descriptors import RESERVED, fitted, granted

LIMITS = RequestLimits()


def test_where_there_are_plenty_nothing_changes():
    assert fitted(LIMITS, math.inf) == LIMITS
    assert fitted(LIMITS, 65_536) == LIMITS


@pytest.mark.parametrize("most", [256, 1024, 4096, 20_000])
@pytest.mark.parametrize("each", [1, 2, 3])
def test_where_there_are_few_all_of_them_suffice(most, each):
    few = fitted(LIMITS, most, each)
    assert 0 < few.requests_max <= few.connections_max
    assert few.connections_max + (each - 1) * few.requests_max + RESERVED <= most


def test_what_was_configured_as_less_stays_less():
    limits = RequestLimits(requests_max=10, connections_max=50)
    assert fitted(limits, 1024) == limits
    assert fitted(RequestLimits(requests_max=10), 1024).connections_max == 1024 - RESERVED - 10


def test_however_few_there_are_one_request_is_let_in():
    assert fitted(LIMITS, 1).requests_max == 1


def test_the_limit_is_raised_as_far_as_it_may_be():
    resource = pytest.importorskip("resource", reason="this system knows no such limit")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert granted() == (math.inf if before[1] == resource.RLIM_INFINITY else before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
