import pytest

from bench.soak import Sample, as_table, verdict
from tests.bench.reports import figures

MB = 2**20


def samples(rss, descriptors):
    return [Sample(float(at), int(rss(at)), int(descriptors(at)), 0.0) for at in range(100)]


def judged(rss=lambda _at: 80 * MB, descriptors=lambda _at: 300, after=50, **failed):
    return verdict(samples(rss, descriptors), 40, after, [figures(**failed)])


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
        ({"failed": 2, "trouble": "closed"}, "2 answers failed or were not whole: closed"),
    ],
)
def test_each_leak_is_named(changed, because):
    found = judged(**changed)
    assert not found["flat"]
    assert found["because"] == [because]


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
        "requests": figures(),
        "rested": {"descriptors": 40},
        "after": {"descriptors": 50},
        "verdict": judged(),
    }
    assert ("of little weight" in as_table(found)) is said
    assert "Verdict: **flat**" in as_table(found)
