from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.bill import TABLE, Report, Rule, Ruling, bill, estimate, recovered, rule
from accounting.records import Ending, Progress
from pricing.price import Bounds, Price, Rates, Tier
from pricing.usage import NO_USAGE, Estimated, Meter, Reported, Source, Usage
from tests.accounting.ledger_fakes import PRICE, terms

E, R = Ending, Rule
CELLS = list(product(Ending, Report, (False, True), ("yes", "no", "unknown"), (False, True), (False, True)))

WITHOUT_A_LAST_WORD = {
    # ending: (nothing relayed and the client there, nothing relayed and the client gone, bytes relayed);
    # each is (charge, cost)
    E.COMPLETE: (("estimate", "estimate"),) * 3,
    E.NEVER_SENT: (("nothing", "nothing"),) * 3,
    E.REFUSED: (("nothing", "nothing"), ("nothing", "nothing"), ("estimate", "estimate")),
    E.UNREACHED: (("nothing", "estimate"), ("nothing", "estimate"), ("estimate", "estimate")),
    E.TIMED_OUT: (("nothing", "estimate"), ("estimate", "estimate"), ("estimate", "estimate")),
    E.STALLED: (("nothing", "estimate"), ("estimate", "estimate"), ("estimate", "estimate")),
    E.BROKEN: (("nothing", "estimate"), ("nothing", "estimate"), ("estimate", "estimate")),
    E.SHUTDOWN: (("nothing", "estimate"), ("nothing", "estimate"), ("estimate", "estimate")),
    E.INTERNAL: (("nothing", "estimate"), ("nothing", "estimate"), ("estimate", "estimate")),
    E.HUNG_UP: (("estimate", "estimate"),) * 3,
    E.KILLED: (("progress", "progress"),) * 3,
}
FINAL_IS_FREE = {
    # where the caller pays nothing although the provider said its last word (the operator pays by it)
    E.REFUSED: (True, True, False),
    E.UNREACHED: (True, True, False),
    E.BROKEN: (True, True, False),
    E.SHUTDOWN: (True, True, False),
    E.INTERNAL: (True, True, False),
    E.TIMED_OUT: (True, False, False),
    E.STALLED: (True, False, False),
}


@pytest.mark.parametrize("ending", Ending)
def test_every_cell_of_an_ending_rules_as_the_house_says(ending):
    for one, report, relayed, stops, visible, gone in CELLS:
        if one is not ending:
            continue
        ruled = rule(ending, report, relayed=relayed, stops_billing=stops, visible=visible, gone=gone)
        column = 2 if relayed else int(gone)
        if report is Report.FINAL and ending not in (E.NEVER_SENT, E.KILLED):
            free = FINAL_IS_FREE.get(ending, (False,) * 3)[column]
            expected = Ruling(R.NOTHING if free else R.REPORT, R.REPORT)
        elif ending is E.HUNG_UP and stops == "yes" and visible:
            expected = Ruling(R.SEEN, R.SEEN)
        else:
            charge, cost = WITHOUT_A_LAST_WORD[ending][column]
            expected = Ruling(R(charge), R(cost))
        assert ruled == expected, (report, relayed, stops, visible, gone)


def test_customer_and_operator_differ_only_where_the_customer_pays_nothing():
    assert all(row.charge in (row.cost, R.NOTHING) for row in TABLE)


def test_an_unknown_stop_counts_as_no():
    for ending, report, relayed, _stops, visible, gone in CELLS:
        ruled = [
            rule(ending, report, relayed=relayed, stops_billing=stops, visible=visible, gone=gone)
            for stops in ("no", "unknown")
        ]
        assert ruled[0] == ruled[1]


# -- bills -----------------------------------------------------------------------------------------


def meter(report=None, frames=0, size_bytes=0):
    return Meter(report, frames, size_bytes)


def billed(ending=E.COMPLETE, seen=None, *, elapsed=0.0, relayed=True, gone=False, **changes):
    return bill(
        terms(**changes), seen or meter(), ending, elapsed_seconds=elapsed, relayed=relayed, gone=gone
    )


FINAL = Reported((Usage(input=100, cache_read=10, output=20),), final=True, flags=frozenset({"odd"}))
STARTED = Reported((Usage(input=100, cache_read=10, output=1),), final=False)


def test_a_final_report_is_the_bill_for_customer_and_operator():
    made = billed(seen=meter(FINAL, 999, 99_999), elapsed=9.0, visible=False)
    assert (made.legs, made.source, made.flags) == (FINAL.legs, Source.REPORTED, ("odd",))
    assert made.cost == made.price == 100 * 3 + 10 * 1 + 20 * 15


def test_a_report_of_zero_is_a_report():
    made = billed(seen=meter(Reported((NO_USAGE,), final=True), 50, 5000))
    assert (made.price, made.source) == (0, Source.REPORTED)


def test_the_markup_is_the_customers_and_rounded_up_once():
    made = billed(seen=meter(FINAL), price=PRICE.with_markup(1_500_001))
    assert (made.cost, made.price) == (610, 916)


def test_a_complete_answer_without_a_report_is_estimated_and_flagged():
    made = billed(seen=meter(None, 4, 30))
    assert (made.source, made.flags) == (Source.ESTIMATED, ("no_report",))
    assert made.usage == Usage(input=400, output=10)  # 900 bytes of text at 3, 100 tokens that are not text


@pytest.mark.parametrize(
    ("frames", "size_bytes", "output"), [(4, 30, 10), (40, 30, 40), (0, 31, 11), (0, 0, 0)]
)
def test_output_counts_by_frames_or_by_bytes_whichever_is_more(frames, size_bytes, output):
    assert billed(E.BROKEN, meter(None, frames, size_bytes)).usage.output == output


def test_what_was_hidden_counts_by_elapsed_time_unless_all_could_be_seen():
    seen = meter(STARTED, 3, 0)
    for ending in (E.HUNG_UP, E.BROKEN, E.STALLED, E.SHUTDOWN, E.INTERNAL):
        assert billed(ending, seen, elapsed=1.25).usage.output == 3
        assert billed(ending, seen, elapsed=1.25, visible=False).usage.output == 128


def test_a_body_that_never_came_counts_by_elapsed_time_too():
    assert billed(E.HUNG_UP, meter(STARTED), elapsed=2, stream=False, stops_billing="no").usage.output == 200
    assert billed(E.COMPLETE, meter(STARTED, 7, 0), elapsed=2, stream=False).usage.output == 7


def test_input_that_the_provider_stated_is_kept_as_it_was_stated():
    made = billed(E.HUNG_UP, meter(STARTED, 5, 0))
    assert made.usage == Usage(input=100, cache_read=10, output=5)
    assert made.source is Source.ESTIMATED


def test_a_partial_report_larger_than_what_was_seen_is_the_bill():
    partial = Reported((Usage(input=5), Usage(input=7, output=40)), final=False, flags=frozenset({"odd"}))
    made = billed(E.BROKEN, meter(partial, 10, 0))
    assert (made.legs, made.source, made.flags) == (partial.legs, Source.REPORTED, ("odd",))


def test_a_partial_report_of_several_legs_grows_in_its_last():
    partial = Reported((Usage(input=5, output=8), Usage(input=7, output=4)), final=False)
    made = billed(E.BROKEN, meter(partial, 20, 0))
    assert made.legs == (Usage(input=5, output=8), Usage(input=7, output=12))


def test_a_partial_report_without_input_has_not_come_to_its_input_yet():
    made = billed(E.BROKEN, meter(Reported((Usage(output=30),), final=False), 20, 0))
    assert made.usage == Usage(input=400, output=30)


def test_an_estimate_stays_inside_the_bounds_of_the_request():
    made = billed(E.STALLED, meter(None, 10**6, 10**9), elapsed=10**6, visible=False, text_bytes=10**7)
    assert (made.usage.input, made.usage.output) == (1000, 500)
    assert made.price <= PRICE.ceiling(Bounds(input=1000, output=500))


def test_a_clock_that_stands_still_or_less_adds_nothing():
    assert billed(E.STALLED, meter(STARTED), elapsed=-1.0, visible=False).legs == STARTED.legs


def test_unstated_input_counts_in_the_dearest_class_that_the_body_allows():
    def usage(writes):
        bounds = Bounds(input=10, output=5, cache_writes=writes)
        return billed(E.BROKEN, meter(), bounds=bounds, text_bytes=10, dense_bytes_per_token=1).usage

    assert usage("none") == Usage(input=10)
    assert usage("5m") == Usage(cache_write_5m=10)
    assert usage("1h") == Usage(cache_write_1h=10)


def test_media_and_searches_count_where_the_request_allows_them():
    rates = Rates(
        input=1, output=1, audio_input=5, image_input=4, audio_output=7, image_output=9, web_searches=3
    )
    bounds = Bounds(10, 5, audio=True, image=True, audio_output=True, image_output=True, web_searches=2)
    made = billed(
        E.BROKEN, meter(None, 5, 0), price=Price("m", "p", (Tier(0, rates),)), bounds=bounds, text_bytes=0
    )
    assert made.usage == Usage(audio_input=10, image_output=5, web_searches=2)


def test_a_call_with_a_price_of_its_own_is_counted_once():
    price = Price("m", "p", (Tier(0, Rates(input=1, output=1, requests=1000)),))
    assert billed(seen=meter(FINAL), price=price).usage.requests == 1
    counted = Reported((Usage(output=1, requests=1),), final=True)
    assert billed(seen=meter(counted), price=price).legs == counted.legs
    assert billed(seen=meter(FINAL)).usage.requests == 0


def test_a_counter_without_a_price_is_charged_at_nothing_and_flagged():
    made = billed(seen=meter(Reported((Usage(output=1, web_searches=2),), final=True)))
    assert (made.price, made.flags) == (15, ("unpriced:web_searches",))


def test_our_own_50x_is_free_and_its_cost_is_the_operators():
    for ending in (E.UNREACHED, E.TIMED_OUT, E.BROKEN, E.INTERNAL, E.SHUTDOWN):
        made = billed(ending, meter(STARTED), relayed=False)
        assert (made.price, made.cost, made.source) == (0, 100 * 3 + 10 + 15, Source.REPORTED)
    refused = billed(E.REFUSED, relayed=False)
    assert (refused.price, refused.cost, refused.usage, refused.source) == (0, 0, NO_USAGE, Source.NONE)


def test_a_killed_attempt_is_billed_at_its_last_progress():
    usage = Usage(output=3)
    made = recovered(Progress("r", 1, 7, 5, usage, Source.ESTIMATED, True, 1))
    assert (made.price, made.cost, made.usage, made.source) == (7, 5, usage, Source.RECOVERED)
    nothing = recovered(None)
    assert (nothing.price, nothing.cost, nothing.source) == (0, 0, Source.RECOVERED)


# -- hanging up is no discount ---------------------------------------------------------------------

_rates = st.builds(
    Rates,
    input=st.integers(0, 50),
    cache_read=st.none() | st.integers(0, 50),
    cache_write_5m=st.none() | st.integers(0, 90),
    cache_write_1h=st.none() | st.integers(0, 90),
    output=st.integers(0, 90),
)


@st.composite
def interrupted(draw):
    """An answer as a provider would bill it to the end of what it generated, and what of it could be seen."""
    rates = draw(_rates)
    dense = draw(st.integers(1, 6))
    writes = draw(st.sampled_from(["none", "5m", "1h"]))
    text_tokens = draw(st.integers(0, 200))
    other_tokens = draw(st.integers(0, 50))
    text_bytes = text_tokens * dense + draw(st.integers(0, 300))
    allowed = [
        "input",
        "cache_read",
        *["cache_write_5m"] * (writes != "none"),
        *["cache_write_1h"] * (writes == "1h"),
    ]
    read = dict.fromkeys(allowed, 0)
    for part in (text_tokens, other_tokens):
        read[draw(st.sampled_from(allowed))] += part
    shown = draw(st.integers(0, 100))
    visible = draw(st.booleans())
    speed, elapsed = draw(st.integers(1, 200)), draw(st.floats(0, 20))
    hidden = 0 if visible else draw(st.integers(0, int(speed * elapsed)))
    by_frame = draw(st.booleans())
    one = terms(
        price=Price("m", "p", (Tier(0, rates),), draw(st.integers(0, 3_000_000))),
        visible=visible,
        stops_billing=draw(st.sampled_from(["yes", "no", "unknown"])),
        bounds=Bounds(
            text_bytes + other_tokens, shown + hidden + draw(st.integers(0, 100)), cache_writes=writes
        ),
        text_bytes=text_bytes,
        dense_bytes_per_token=dense,
        tokens_per_second_max=speed,
    )
    seen = meter(None, shown if by_frame else 0, 0 if by_frame else shown * dense + draw(st.integers(0, 20)))
    usage = Usage(**read, output=shown + hidden, reasoning=hidden)
    if draw(st.booleans()):
        seen.report(Reported((Usage(**read, output=draw(st.integers(0, shown))),), final=False))
    return one, seen, usage, elapsed


@settings(max_examples=400, deadline=None)
@given(interrupted(), st.sampled_from([E.HUNG_UP, E.BROKEN, E.STALLED, E.SHUTDOWN]))
def test_an_estimate_is_never_cheaper_than_the_report_nor_above_the_hold(answer, ending):
    one, seen, usage, elapsed = answer
    made = bill(one, seen, ending, elapsed_seconds=elapsed, relayed=True)
    assert made.price >= one.price.cost((usage,))
    assert made.price <= one.price.ceiling(one.bounds)


def test_an_estimate_is_of_a_type_of_its_own():
    assert isinstance(estimate(terms(), meter(), elapsed_seconds=0, hidden=False, because="x"), Estimated)
    assert estimate(terms(), meter(STARTED), elapsed_seconds=0, hidden=False, because="x") is STARTED
