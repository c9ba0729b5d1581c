import pytest

from bench.soak import Sample, as_table, verdict
from tests.bench.reports import figures

MB = 2**20


def samples(rss, descriptors):
    return [Sample(float(at), int(rss(at)), int(descriptors(at)), 0.0) for at in range(100)]


def judged(rss=lambda _at: 80 * MB, descriptors=lambda _at: 300, after=50, **failed):
    return verdict(samples(rss, descriptors), 40, after, {"streams": figures(**failed)})


def test_what_does_not_grow_is_flat():
    assert judged() == {"flat": True, "because": [], "rss_mb": [80.0, 80.0], "descriptors": [300, 300]}


def test_growth_in_the_first_quarter_is_no_leak():
    assert judged(rss=lambda at: (40 + 60 * min(at, 25) / 25) * MB)["flat"]


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"rss": lambda at: (80 + at / 2) * MB}, "memory grew from 93.5 to 118.5 MB"),
        ({"descriptors": lambda at: 300 + 2 * at}, "descriptors grew from 354 to 454"),
        ({"after": 400}, "360 descriptors more were open afterwards than before"),
        ({"failed": 2, "trouble": "closed"}, "streams: 2 answers failed: closed"),
        ({"short": 2}, "streams: 2 answers had another number of events"),
        ({"cut": 3}, "streams: 3 answers were not whole in time"),
        ({"late": 4}, "streams: 4 requests found no connection free"),
        ({"answers": 0}, "streams: nothing was answered"),
        ({"after": None}, "its process has ended, after 99 s or later"),
    ],
)
def test_each_leak_is_named(changed, because):
    found = judged(**changed)
    assert not found["flat"]
    assert found["because"] == [because]


def test_clients_that_leave_are_always_on_their_way():
    found = verdict(samples(lambda _at: MB, lambda _at: 9), 9, 9, {"leavers": figures(cut=5)})
    assert found["flat"]


def test_answers_that_nobody_was_asked_for_have_not_passed():
    found = verdict(samples(lambda _at: MB, lambda _at: 9), 9, 9, {"requests": figures(asked=100)}, 3)
    assert found["because"] == ["the provider was asked 3 times for 100 requests"]


def test_a_process_that_ends_at_once_has_not_passed():
    assert verdict([], 9, None, {})["because"] == ["its process ended at once"]


def test_memory_that_breathes_is_flat_and_what_grows_beneath_is_a_leak():
    def breath(at):
        return 80 + 30 * (at % 20) / 20

    assert judged(rss=lambda at: breath(at) * MB)["flat"]
    assert not judged(rss=lambda at: (breath(at) + at / 4) * MB)["flat"]


def test_a_single_peak_is_no_leak():
    assert judged(rss=lambda at: (80 if at != 90 else 500) * MB)["flat"]


@pytest.mark.parametrize(("seconds", "said"), [(10.0, True), (600.0, False)])
def test_a_short_soak_says_that_it_says_little(seconds, said):
    found = {
        "target": "farebox",
        "seconds": seconds,
        "streams": figures(),
        "requests": figures(late=7),
        "rested": {"descriptors": 40},
        "after": {"descriptors": 50},
        "verdict": judged(),
    }
    assert ("of little weight" in as_table(found)) is said
    assert "Verdict: **flat**" in as_table(found)
    assert "| requests that found no connection free | 7 |" in as_table(found)
