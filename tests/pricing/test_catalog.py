"""A catalogue never changes, is known by its content, and finds a model under each of its names."""

from datetime import date, timedelta
from hashlib import sha256

import attrs
import msgspec
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.catalog import NOTICE_DAYS, Catalog, Listing, Model, Vendor, check, notices
from pricing.price import Rates, Tier

TODAY = date(2026, 11, 21)


def vendor(name="acme", **more):
    facts = {
        "dialect": "openai_chat",
        "kind": "openai",
        "base_url": "https://api.example",
        "stops_billing": "yes",
        "source": "its page",
    }
    return Vendor(name=name, **{**facts, **more})


def listing(input_=1_000_000, output=4_000_000, **more):
    return Listing((Tier(0, Rates(input=input_, output=output)),), checked=date(2026, 11, 1), **more)


def model(id_="acme/swift-1", rates=None, tiers=None, checked=date(2026, 11, 1), until=None, **more):
    tiers = tiers or (Tier(0, rates or Rates(input=1_000_000, output=4_000_000)),)
    facts = {
        "vendor": id_.partition("/")[0],
        "name": "Swift 1",
        "wire_name": id_.partition("/")[2],
        "dialect": "openai_chat",
        "context_window": 1_000,
        "output_max": 100,
        "output_field": "max_completion_tokens",
        "reasoning": "none",
        "image_tokens_max": 0,
        "audio_tokens_per_second_max": 0,
        "message_tokens": 8,
        "tools_tokens": 64,
        "dense_bytes_per_token": 2,
        "tokens_per_second_max": 300,
        "prices": (Listing(tiers, "its page", checked, until=until),),
    }
    return Model(id=id_, **{**facts, **more})


def catalog(*models, vendors=None):
    return Catalog.of(tuple(vendors or [vendor(one) for one in sorted({m.vendor for m in models})]), models)


# --- Names ---


def found(names, *models, vendors=None):
    hit = catalog(*models, vendors=vendors).find(names)
    return hit and (hit.model.id, hit.wire_name)


@pytest.mark.parametrize("name", ["acme/swift-1", "swift-1", "models/swift-1", "models/acme/swift-1"])
def test_a_model_is_found_with_and_without_prefix(name):
    assert found(name, model()) == ("acme/swift-1", "swift-1")


@pytest.mark.parametrize(
    "name",
    ["", "/", "acme/", "models/", "swift", "Swift-1", "acme/swift-2", "other/swift-1", "swift-1 ", "@"],
)
def test_what_is_no_name_of_a_model_is_not_found(name):
    assert found(name, model()) is None


@pytest.mark.parametrize("prefix", ["", "acme/", "models/"])
def test_an_alias_is_sent_as_the_vendor_calls_the_model(prefix):
    assert found(prefix + "swift-one", model(aliases=("swift-one",))) == ("acme/swift-1", "swift-1")


@pytest.mark.parametrize("prefix", ["", "acme/", "models/"])
def test_a_name_that_the_vendor_knows_is_sent_as_it_was_asked_for(prefix):
    dated = model(wire_names=("swift-1-2026-01-01",))
    assert found(prefix + "swift-1-2026-01-01", dated) == ("acme/swift-1", "swift-1-2026-01-01")


def test_a_wire_name_of_its_own_is_what_travels():
    plain = model("acme/swift", wire_name="acme.swift-v1")
    for name in ("acme/swift", "acme.swift-v1", "acme/acme.swift-v1"):
        assert found(name, plain) == ("acme/swift", "acme.swift-v1")
    assert found("swift", plain) is None


def test_a_bare_name_belongs_to_the_vendor_of_lowest_rank():
    vendors = [vendor("acme", rank=2), vendor("zeta", rank=1)]
    both = (model("acme/swift-1"), model("zeta/swift-1"))
    assert found("swift-1", *both, vendors=vendors) == ("zeta/swift-1", "swift-1")
    assert found("acme/swift-1", *both, vendors=vendors) == ("acme/swift-1", "swift-1")


def test_a_prefix_wins_over_a_bare_name_that_looks_like_it():
    vendors = [vendor("acme", rank=2), vendor("zeta", rank=1)]
    relabelled = model("zeta/x", wire_name="acme/swift-1")
    assert found("acme/swift-1", model(), relabelled, vendors=vendors) == ("acme/swift-1", "swift-1")


def test_a_vendors_own_name_may_hold_slashes():
    hosted = model("acme/meta/llama-3")
    assert found("meta/llama-3", hosted) == ("acme/meta/llama-3", "meta/llama-3")
    assert found("acme/meta/llama-3", hosted) == ("acme/meta/llama-3", "meta/llama-3")


def test_parameters_travel_on_in_the_wire_name():
    sandbox = model("sandbox/chat", wire_name="sandbox-chat", parameters=True)
    for name in ("sandbox/chat", "sandbox-chat", "models/sandbox-chat"):
        assert found(f"{name}@tokens=5,gap_ms=10", sandbox) == (
            "sandbox/chat",
            "sandbox-chat@tokens=5,gap_ms=10",
        )
    assert found("sandbox-chat@a@b", sandbox) == ("sandbox/chat", "sandbox-chat@a@b")
    assert found("sandbox-chat@", sandbox) == ("sandbox/chat", "sandbox-chat@")


def test_a_model_without_parameters_takes_none():
    assert found("swift-1@tokens=5", model()) is None


def test_a_name_with_an_at_sign_of_its_own_is_a_name():
    dated = model(wire_names=("swift-1@20260101",))
    assert found("swift-1@20260101", dated) == ("acme/swift-1", "swift-1@20260101")


# --- Content and version ---


def test_the_version_is_the_hash_of_the_content():
    one = catalog(model())
    assert one.version == "p_" + sha256(one.content).hexdigest()[:16]
    assert msgspec.json.decode(one.content)["models"]["acme/swift-1"]["name"] == "Swift 1"


def test_the_order_of_entries_does_not_change_the_version():
    models = (model("acme/a"), model("acme/b"), model("zeta/c"))
    vendors = (vendor("acme"), vendor("zeta"))
    assert Catalog.of(vendors, models).version == Catalog.of(vendors[::-1], models[::-1]).version


@pytest.mark.parametrize(
    "change",
    [
        {"tiers": (Tier(0, Rates(input=1_000_001, output=4_000_000)),)},
        {"context_window": 1_001},
        {"aliases": ("other",)},
        {"reasoning": "off"},
        {"until": date(2026, 12, 31)},
        {"prices": (listing(), listing(valid_from=date(2999, 1, 1)))},
    ],
)
def test_any_fact_changes_the_version(change):
    assert catalog(model()).version != catalog(model(**change)).version


def test_a_rate_that_is_not_written_is_not_the_same_as_zero():
    free = Rates(input=1, output=1, cache_read=0)
    assert catalog(model(rates=Rates(input=1, output=1))).version != catalog(model(rates=free)).version


def test_a_catalogue_cannot_be_changed():
    one = catalog(model())
    with pytest.raises(TypeError):
        one.models["acme/swift-2"] = model()
    with pytest.raises(TypeError):
        del one.vendors["acme"]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.version = "p_0"


def test_models_come_in_the_order_of_their_ids():
    assert list(catalog(model("zeta/a"), model("acme/b"), model("acme/a")).models) == [
        "acme/a",
        "acme/b",
        "zeta/a",
    ]


def test_a_price_carries_version_markup_and_the_vendors_habits():
    one = catalog(model(cache_writes="5m"))
    price = one.price(one.models["acme/swift-1"], 1_250_000, TODAY)
    assert (price.model, price.version, price.markup_ppm) == ("acme/swift-1", one.version, 1_250_000)
    assert price.cache_writes == "5m"
    assert price.tiers == one.models["acme/swift-1"].tiers_on(TODAY)


# --- Prices with a day ---


days = st.dates(date(2026, 1, 1), date(2028, 12, 31))


@settings(max_examples=60)
@given(begins=st.lists(days, min_size=1, max_size=4, unique=True).map(sorted), day=days, always=st.booleans())
def test_the_price_of_a_day_is_the_last_one_that_has_begun(begins, day, always):
    listings = [listing(number, valid_from=begin) for number, begin in enumerate(begins, 1)]
    prices = ([listing(0)] if always else []) + listings
    begun = [0] * always + [number for number, begin in enumerate(begins, 1) if begin <= day]
    found = model(prices=tuple(prices)).tiers_on(day)
    assert [tier.rates.input for tier in found] == begun[-1:]


@settings(max_examples=60)
@given(begins=days, day=days)
def test_a_dated_price_changes_nothing_before_its_day(begins, day):
    without = model(prices=(listing(1),))
    told = model(prices=(listing(1), listing(2, valid_from=begins)))
    for one in (without, told):
        price = catalog(one).price(one, 1_000_000, min(day, begins - timedelta(days=1)))
        assert price.tiers == without.prices[0].tiers
    assert catalog(told).price(told, 1_000_000, begins).tiers == told.prices[1].tiers


def test_a_price_that_was_taken_stays_what_it_was_whatever_the_day():
    told = model(prices=(listing(1), listing(2, valid_from=date(2026, 12, 1))))
    one = catalog(told)
    before = one.price(told, 1_000_000, date(2026, 11, 30))
    one.price(told, 1_000_000, date(2026, 12, 1))
    assert before.tiers[0].rates.input == 1


def test_the_version_covers_prices_that_are_not_in_force_yet():
    versions = {
        catalog(model(prices=prices)).version
        for prices in (
            (listing(1),),
            (listing(1), listing(2, valid_from=date(2026, 12, 1))),
            (listing(1), listing(2, valid_from=date(2026, 12, 2))),
            (listing(1), listing(3, valid_from=date(2026, 12, 1))),
            (listing(1, valid_from=date(2026, 12, 1)),),
        )
    }
    assert len(versions) == 5


def test_the_kept_content_tells_the_price_of_each_day():
    told = model(prices=(listing(1), listing(2, valid_from=date(2026, 12, 1))))
    prices = msgspec.json.decode(catalog(told).content)["models"]["acme/swift-1"]["prices"]
    assert [one["valid_from"] for one in prices] == [None, "2026-12-01"]
    assert [one["tiers"][0]["rates"]["input"] for one in prices] == [1, 2]


def test_there_is_no_price_before_the_first_one_begins():
    coming = model(prices=(listing(valid_from=date(2026, 12, 1)),))
    assert coming.tiers_on(date(2026, 11, 30)) == ()
    assert coming.listing_on(date(2026, 11, 30)) is None
    with pytest.raises(ValueError, match="acme/swift-1 has no price on 2026-11-30"):
        catalog(coming).price(coming, 1_000_000, date(2026, 11, 30))


# --- What cannot be ---


def test_the_same_model_twice_is_refused():
    with pytest.raises(ValueError, match="acme/swift-1 is there twice"):
        catalog(model(), model())


def test_a_name_that_another_model_of_the_vendor_has_is_refused():
    with pytest.raises(ValueError, match="acme/b: a is already a name of acme/a"):
        catalog(model("acme/a"), model("acme/b", aliases=("a",)))


def test_a_model_of_an_unknown_vendor_is_refused():
    with pytest.raises(ValueError, match="no vendor acme"):
        catalog(model(), vendors=[vendor("zeta")])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"id_": "acme"}, "acme/name"),
        ({"id_": "acme/"}, "acme/name"),
        ({"vendor": "zeta"}, "zeta/name"),
        ({"output_max": 1_001}, "output_max 1001"),
        ({"output_max": 0}, "output_max"),
        ({"context_window": 0}, "context_window"),
        ({"dense_bytes_per_token": 0}, "dense_bytes_per_token"),
        ({"image_tokens_max": -1}, "image_tokens_max"),
        ({"prices": ()}, "prices"),
        ({"prices": (listing(), listing())}, "one after the other"),
        ({"prices": (listing(valid_from=date(2026, 12, 1)), listing())}, "one after the other"),
        ({"name": ""}, "name"),
        ({"dialect": "openai"}, "dialect"),
        ({"output_field": "maxTokens"}, "output_field"),
        ({"reasoning": "sometimes"}, "reasoning"),
        ({"cache_writes": "30m"}, "cache_writes"),
    ],
)
def test_a_model_with_an_impossible_fact_does_not_exist(wrong, named):
    with pytest.raises(ValueError, match=named):
        model(**wrong)


# --- Reasoning ---


@pytest.mark.parametrize(
    ("reasoning", "switched_on", "left_alone", "switched_off"),
    [
        ("none", False, False, False),
        ("off", True, False, False),
        ("on", True, True, False),
        ("always", True, True, True),
    ],
)
def test_reasoning_is_hidden_where_it_may_happen(reasoning, switched_on, left_alone, switched_off):
    one = model(reasoning=reasoning)
    assert one.hides_reasoning(True) is switched_on
    assert one.hides_reasoning(None) is left_alone
    assert one.hides_reasoning(False) is switched_off


# --- Suspicious prices ---


def said(*models, reference=None, today=TODAY):
    """Everything that there is to say, wrong or only soon."""
    looked_at = catalog(*models)
    return (*notices(looked_at, today), *check(looked_at, today, reference))


def test_an_ordinary_price_raises_no_question():
    usual = Rates(
        input=3_000_000,
        cache_read=300_000,
        cache_write_5m=3_750_000,
        cache_write_1h=6_000_000,
        output=15_000_000,
    )
    assert said(model(rates=usual)) == ()


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        (Rates(output=1_000_000), "no price for input"),
        (Rates(input=1_000_000), "no price for output"),
        (Rates(input=0, output=1_000_000), "input is free"),
        (Rates(input=1_000_000, output=0), "output is free"),
        (Rates(input=1_000_000, cache_read=1_000_001, output=2_000_000), "reading from the cache costs more"),
        (Rates(input=1_000_000, cache_write_5m=999_999, output=2_000_000), "writing to the cache costs less"),
        (
            Rates(input=1_000_000, cache_write_5m=2_000_000, cache_write_1h=1_500_000, output=2_000_000),
            "for an hour costs less",
        ),
        (Rates(input=2_000_000, output=1_000_000), "output costs less than input"),
        (Rates(input=1_000_000, output=10_000_001), "more than 10 times as much as input"),
        (Rates(input=3, output=15), "is the unit right?"),
        (Rates(input=3 * 10**12, output=15 * 10**12), "is the unit right?"),
    ],
)
def test_an_odd_price_is_named(rates, sentence):
    findings = said(model(rates=rates))
    assert any(line.startswith("acme/swift-1: ") and sentence in line for line in findings), findings


def test_what_is_odd_in_a_coming_price_is_named_with_its_day():
    coming = model(prices=(listing(), listing(0, valid_from=date(2028, 1, 1))))
    assert said(coming) == ("acme/swift-1: input is free from 2028-01-01",)
    assert said(coming, today=date(2026, 12, 1)) == said(coming)


def test_a_price_that_is_over_is_not_looked_at():
    assert said(model(prices=(listing(0), listing(valid_from=date(2026, 11, 21))))) == ()


def test_an_odd_tier_is_named_with_its_threshold():
    tiers = (Tier(0, Rates(input=1_000_000, output=4_000_000)), Tier(128, Rates(input=1_000_000, output=0)))
    assert said(model(tiers=tiers)) == ("acme/swift-1: output is free above 128 tokens",)


def test_a_price_that_nobody_looked_at_for_half_a_year_is_named():
    assert said(model(checked=date(2026, 5, 25))) == ()
    assert said(model(checked=date(2026, 5, 24))) == (
        "acme/swift-1: the price was last checked 181 days ago, on 2026-05-24",
    )
    assert said(model(checked=None)) == ("acme/swift-1: no date says when the price was checked",)


def test_the_end_of_a_promise_is_told_beforehand_and_afterwards():
    assert said(model(until=date(2027, 1, 20))) == ()
    assert said(model(until=date(2027, 1, 19))) == (
        "acme/swift-1: the price is promised until 2027-01-19 only",
    )
    assert said(model(until=TODAY)) == ("acme/swift-1: the price is promised until 2026-11-21 only",)
    assert said(model(until=date(2026, 11, 20))) == (
        "acme/swift-1: the price was promised until 2026-11-20 only",
    )


def changing(day, **more):
    return model(prices=(listing(**more), listing(2_000_000, 5_000_000, valid_from=day)))


@pytest.mark.parametrize("days", [1, NOTICE_DAYS - 1])
def test_a_change_is_told_beforehand_and_so_is_what_it_changes(days):
    day = TODAY + timedelta(days=days)
    changes = "input from 1.00 to 2.00 per million tokens, output from 4.00 to 5.00 per million tokens"
    assert said(changing(day)) == (f"acme/swift-1: the price changes on {day}: {changes}",)


def test_a_change_is_not_told_too_early_nor_when_it_has_happened():
    assert said(changing(TODAY + timedelta(days=NOTICE_DAYS))) == ()
    assert said(changing(TODAY)) == ()


def test_a_change_of_other_rates_is_told_too():
    day = TODAY + timedelta(days=1)
    same = model(prices=(listing(), listing(valid_from=day)))
    assert said(same) == (f"acme/swift-1: the price changes on {day}: neither input nor output",)


def test_a_promise_that_another_price_follows_at_once_needs_no_warning_of_its_own():
    until, soon = date(2026, 12, 1), date(2026, 12, 2)
    assert [line for line in said(changing(soon, until=until)) if "promised" in line] == []
    late = said(changing(soon + timedelta(days=1), until=until))
    assert "acme/swift-1: the price is promised until 2026-12-01 only" in late


def test_a_model_without_a_price_today_is_named():
    coming = model(prices=(listing(valid_from=date(2027, 6, 1)),))
    assert said(coming) == ("acme/swift-1: there is no price before 2027-06-01, so it is not served",)
    assert said(coming, reference=catalog(model())) == said(coming)


def test_a_promise_that_ends_before_it_begins_does_not_exist():
    with pytest.raises(ValueError, match="lies before the first day, 2026-12-01"):
        listing(valid_from=date(2026, 12, 1), until=date(2026, 11, 30))


@pytest.mark.parametrize(("factor", "odd"), [(1, False), (10, False), (11, True), (0.1, False), (0.09, True)])
def test_a_price_ten_times_off_the_one_that_is_known_is_named(factor, odd):
    known = catalog(model(rates=Rates(input=1_000_000, output=4_000_000)))
    ours = model(rates=Rates(input=int(1_000_000 * factor), output=int(4_000_000 * factor)))
    findings = said(ours, reference=known)
    assert ([("10 times off" in line) for line in findings] == [True, True]) is odd, findings


def test_a_model_that_the_reference_does_not_know_is_compared_with_nothing():
    assert said(model(), reference=catalog(model("acme/other"))) == ()


def test_every_finding_comes_in_the_order_of_the_models():
    free = Rates(input=0, output=0)
    lines = said(model("acme/b", rates=free), model("acme/a", rates=free))
    assert [line.partition(":")[0] for line in lines] == ["acme/a", "acme/a", "acme/b", "acme/b"]


def test_a_model_is_a_value():
    assert model() == model()
    assert evolve(model(), name="Other") != model()
