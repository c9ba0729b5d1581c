"""From a model's name to offers: who serves it, for how much, within what bounds, or why not."""

from datetime import date, timedelta

import msgspec
import pytest
from attrs import define
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.records import Spender
from pricing.catalog import Catalog, Listing, Model, Vendor
from pricing.money import marked_up
from pricing.price import Bounds, Rates, Tier, affordable_output
from pricing.usage import Usage
from proxy.config import Account, Config, Markup, Pricing, Provider
from proxy.errors import Kind, Rejected
from proxy.routing import AUDIO_BYTES_PER_SECOND_MIN, Router, input_bounds
from proxy.types import Ask, Caller, Measures
from tests.values import evolve


def vendor(name, kind, dialect, rank, stops="yes"):
    return Vendor(
        name=name,
        dialect=dialect,
        kind=kind,
        base_url=f"https://{name}.example",
        stops_billing=stops,
        source="",
        rank=rank,
    )


def priced(input_=None, output=None, valid_from=None):
    return Listing((Tier(0, Rates(input=input_, output=output)),), valid_from=valid_from)


def model(id_, dialect="openai_chat", **more):
    vendor_name, _, name = id_.partition("/")
    facts = {
        "context_window": 10_000,
        "output_max": 8_000,
        "output_field": "max_tokens",
        "reasoning": "none",
        "image_tokens_max": 0,
        "audio_tokens_per_second_max": 0,
        "message_tokens": 4,
        "tools_tokens": 50,
        "dense_bytes_per_token": 2,
        "tokens_per_second_max": 100,
        "prices": (priced(3, 15),),
    }
    return Model(id=id_, vendor=vendor_name, name=name, wire_name=name, dialect=dialect, **{**facts, **more})


TODAY, CHANGE = date(2026, 11, 21), date(2026, 12, 1)
VENDORS = (
    vendor("openai", "openai", "openai_chat", 1),
    vendor("anthropic", "anthropic", "anthropic", 2),
    vendor("google", "gemini", "gemini", 3, stops="no"),
    vendor("sandbox", "openai", "openai_chat", 9),
)
MODELS = (
    model("openai/gpt", aliases=("gpt-latest",)),
    model("openai/thinker", reasoning="on"),
    model("openai/sees", image_tokens_max=1000, audio_tokens_per_second_max=30),
    model("openai/unpriced", prices=(priced(3),)),
    model("openai/coming", prices=(priced(3, 15, CHANGE),)),
    model("openai/rising", prices=(priced(3, 15), priced(30, 150, CHANGE))),
    model("anthropic/claude", "anthropic"),
    model("google/gemini", "gemini"),
    model("sandbox/chat", parameters=True),
)
CATALOG = Catalog.of(VENDORS, MODELS)
OPENAI = Provider("openai", "openai", account=(Account("one"), Account("two")))
RESELLER = Provider(
    "reseller", "openai", base_url="https://re.example/v1", vendor="openai", markup_ppm=1_200_000
)
ANTHROPIC = Provider("anthropic", "anthropic")
GOOGLE = Provider("google", "gemini")
SANDBOX = Provider(
    "sandbox", "openai", base_url="http://127.0.0.1:1/v1", vendor="sandbox", stops_billing="yes"
)
PROVIDERS = (OPENAI, RESELLER, ANTHROPIC, GOOGLE, SANDBOX)
CALLER = Caller(Spender("w", "k"))
LOTS = 10**15


def router(*providers, **more):
    return Router(CATALOG, Config(provider=providers or PROVIDERS, **more), lambda: TODAY)


def ask(name="gpt", dialect="openai_chat", **measures):
    facts = {"text_bytes": 100, **measures}
    return Ask(dialect, name, stream=True, measures=Measures(**facts), fields={"x": msgspec.Raw(b"1")})


def offers(name="gpt", *, caller=CALLER, available=LOTS, to=None, dialect="openai_chat", **measures):
    return (to or router()).offers(ask(name, dialect, **measures), caller, available)


def refused(name="gpt", **more):
    with pytest.raises(Rejected) as error:
        offers(name, **more)
    return error.value


# -- who serves it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt", "openai/gpt", "gpt-latest", "models/gpt", "openai/gpt-latest"])
def test_every_form_of_a_name_means_the_same_model(name):
    assert {offer.model.id for offer in offers(name)} == {"openai/gpt"}


def test_a_bare_name_is_tried_at_every_provider_and_account_in_the_operators_order():
    assert [(offer.provider, offer.account) for offer in offers("gpt")] == [
        ("openai", "one"),
        ("openai", "two"),
        ("reseller", "default"),
    ]
    turned = router(RESELLER, OPENAI)
    assert [offer.provider for offer in offers("gpt", to=turned)] == ["reseller", "openai", "openai"]


@pytest.mark.parametrize("name", ["reseller/gpt", "reseller/openai/gpt", "reseller/gpt-latest"])
def test_a_providers_name_before_it_reaches_that_provider_alone(name):
    assert {offer.provider for offer in offers(name)} == {"reseller"}


def test_a_canonical_id_goes_to_the_provider_of_that_name_first_and_fails_over_to_others():
    turned = router(RESELLER, OPENAI)
    assert [offer.provider for offer in offers("openai/gpt", to=turned)] == ["openai", "openai", "reseller"]


def test_a_providers_own_name_for_a_model_is_what_it_is_sent():
    renamed = evolve(SANDBOX, names={"sandbox/chat": "their-chat"})
    assert offers("chat", to=router(renamed))[0].wire_name == "their-chat"
    assert offers("chat@tokens=5", to=router(renamed))[0].wire_name == "their-chat@tokens=5"
    assert offers("chat@tokens=5")[0].wire_name == "chat@tokens=5"


def test_a_provider_serves_the_patterns_that_it_names_or_all_of_its_vendors():
    narrow = evolve(OPENAI, models=("openai/think*",))
    assert refused("gpt", to=router(narrow)).kind is Kind.UNKNOWN_MODEL
    assert offers("thinker", to=router(narrow))
    everything = Provider("all", "openai", base_url="https://x.example", models=("*",))
    assert {served.model.id for served in router(everything).models()} == {
        "openai/gpt",
        "openai/thinker",
        "openai/sees",
        "openai/rising",
        "sandbox/chat",
    }
    bound = evolve(everything, vendor="sandbox")
    assert {served.model.id for served in router(bound).models()} == {"sandbox/chat"}


def test_an_unknown_name_is_a_404_with_the_nearest_one():
    error = refused("opnai/gpt")
    assert (error.status, error.param) == (404, "model")
    assert "'openai/gpt'" in error.message
    assert "/v1/models" in refused("zzzzzzzz").message
    assert len(refused("x" * 10**6).message) < 500


def test_a_model_without_a_price_or_a_provider_is_a_404_that_says_so():
    assert "no price" in refused("unpriced").message
    assert "no provider" in refused("claude", dialect="anthropic", to=router(OPENAI)).message
    assert refused("openai/gpt", to=Router(CATALOG, Config(), lambda: TODAY)).status == 404


def test_a_key_may_use_only_the_models_of_its_patterns():
    caller = evolve(CALLER, models=("openai/th*", "sandbox/*"))
    assert offers("thinker", caller=caller)
    assert refused("gpt", caller=caller).status == 403
    assert {served.model.id for served in router().models(caller)} == {"openai/thinker", "sandbox/chat"}


@pytest.mark.parametrize(
    ("name", "dialect", "route"),
    [
        ("claude", "openai_chat", "/v1/messages"),
        ("gpt", "anthropic", "/v1/chat/completions"),
        ("gemini", "anthropic", "/v1beta/models/"),
    ],
)
def test_another_dialects_model_is_a_400_that_names_what_is_missing(name, dialect, route):
    error = refused(name, dialect=dialect)
    assert error.status == 400
    assert "Translation between dialects is not offered yet" in error.message
    assert route in error.message


def test_a_key_without_the_model_is_not_told_its_dialect():
    assert refused("claude", caller=evolve(CALLER, models=("openai/*",))).status == 403


@pytest.mark.parametrize(
    ("measures", "what"),
    [
        ({"images": 1}, "images"),
        ({"audio_bytes": 1}, "audio"),
        ({"audio_output": True}, "write audio"),
        ({"image_output": True}, "write images"),
    ],
)
def test_what_a_model_has_no_price_for_is_refused(measures, what):
    error = refused("gpt", **measures)
    assert error.status == 400
    assert what in error.message


def test_what_is_listed_can_be_used_and_nothing_else():
    for served in router().models():
        assert offers(served.model.id, dialect=served.model.dialect)
    assert "openai/unpriced" not in {served.model.id for served in router().models()}
    assert router().find("gpt-latest").id == "openai/gpt"


def test_base_urls_are_the_operators_or_the_vendors():
    assert router().base_urls() == {
        "openai": "https://openai.example",
        "reseller": "https://re.example/v1",
        "anthropic": "https://anthropic.example",
        "google": "https://google.example",
        "sandbox": "http://127.0.0.1:1/v1",
    }


# -- for how much ----------------------------------------------------------------------------------


def test_markups_a_keys_own_then_the_providers_then_a_patterns_then_the_general():
    pricing = Pricing(
        markup_ppm=1_500_000, markup=(Markup("openai/th*", 2_000_000), Markup("*er", 3_000_000))
    )
    to = router(pricing=pricing)
    assert [offer.price.markup_ppm for offer in offers("gpt", to=to)] == [1_500_000, 1_500_000, 1_200_000]
    assert offers("thinker", to=to)[0].price.markup_ppm == 2_000_000
    caller = evolve(CALLER, markup_ppm=0)
    assert {offer.price.markup_ppm for offer in offers("thinker", to=to, caller=caller)} == {0}
    assert to.models(caller)[0].price.markup_ppm == 0
    assert offers("gpt")[0].price.version == CATALOG.version


def test_counting_tokens_is_free_and_may_always_be_hung_up_on():
    free = evolve(ask("claude", "anthropic"), free=True, stream=False)
    (offer,) = router().offers(free, CALLER, 0)
    assert router().first_hold((offer,)) == 0
    assert offer.abortable


def test_the_hold_is_the_dearest_offers():
    several = offers("gpt", output=100)
    assert router().first_hold(several) == several[-1].price.ceiling(several[-1].bounds)
    assert router().first_hold(several) > several[0].price.ceiling(several[0].bounds)


@define
class Calendar:
    """Tells a day and counts how often it was asked."""

    day: date
    asked: int = 0

    def __call__(self):
        self.asked += 1
        return self.day


def on(calendar):
    return Router(CATALOG, Config(provider=PROVIDERS), calendar)


def test_a_price_changes_with_its_day_and_not_before():
    eve, day = (on(Calendar(one)) for one in (CHANGE - timedelta(days=1), CHANGE))
    assert {offer.price.tiers[0].rates.input for offer in offers("rising", to=eve)} == {3}
    assert {offer.price.tiers[0].rates.input for offer in offers("rising", to=day)} == {30}
    assert day.first_hold(offers("rising", to=day, output=9)) == 10 * eve.first_hold(
        offers("rising", to=eve, output=9)
    )
    listed = {served.model.id: served.price for served in eve.models()}
    assert listed["openai/rising"].tiers[0].rates.input == 3
    assert offers("gpt", to=eve) == offers("gpt", to=day)


def test_a_day_that_begins_later_does_not_change_what_was_offered():
    calendar = Calendar(CHANGE - timedelta(days=1))
    several = offers("rising", to=on(calendar), output=10)
    held = on(calendar).first_hold(several)
    calendar.day = CHANGE
    assert on(calendar).first_hold(several) == held
    assert {offer.price.tiers[0].rates.input for offer in several} == {3}


def test_a_model_is_served_from_the_day_on_which_its_price_begins():
    eve, day = (on(Calendar(one)) for one in (CHANGE - timedelta(days=1), CHANGE))
    assert "no price" in refused("coming", to=eve).message
    assert refused("openai/coming", to=eve).status == 404
    assert "openai/coming" not in {served.model.id for served in eve.models()}
    assert "openai/coming" not in refused("openai/comin", to=eve).message
    assert offers("coming", to=day)
    assert "openai/coming" in {served.model.id for served in day.models()}
    assert day.find("coming").id == "openai/coming"


def test_the_day_is_read_once_for_each_question():
    calendar = Calendar(TODAY)
    to = on(calendar)
    assert calendar.asked == 0
    assert len(offers("rising", to=to)) > 1
    assert calendar.asked == 1
    to.models()
    assert calendar.asked == 2
    refused("nothing-like-it", to=to)
    assert calendar.asked == 3


# -- within what bounds ----------------------------------------------------------------------------


def test_input_is_bounded_by_bytes_messages_tools_and_never_more_than_the_window():
    gpt = CATALOG.models["openai/gpt"]
    sees = CATALOG.models["openai/sees"]
    assert input_bounds(gpt, Measures(text_bytes=100, messages=3, tools=2)).input == 100 + 12 + 50
    assert input_bounds(gpt, Measures(text_bytes=10**9)).input == 10_000
    assert input_bounds(gpt, Measures(text_bytes=1, unbounded=True)).input == 10_000
    bounds = input_bounds(sees, Measures(text_bytes=0, images=2, audio_bytes=AUDIO_BYTES_PER_SECOND_MIN + 1))
    assert bounds == Bounds(input=2060, output=0, image=True, audio=True)
    assert input_bounds(sees, Measures(text_bytes=0, unbounded=True)).audio
    assert input_bounds(gpt, Measures(text_bytes=0, cache_writes="1h")).cache_writes == "1h"


def test_the_callers_output_bound_stands_times_its_choices():
    offer = offers("gpt", output=100, choices=3)[0]
    assert (offer.bounds.output, offer.output_limit, offer.output_assumed) == (300, None, False)
    assert offers("gpt", output=0)[0].bounds.output == 0


def test_a_callers_bound_beyond_the_models_is_lowered_to_it():
    offer = offers("gpt", output=10**6)[0]
    assert (offer.bounds.output, offer.output_limit, offer.output_assumed) == (8_000, 8_000, True)


@pytest.mark.parametrize(
    ("available", "limit", "sent"),
    [
        (LOTS, 8_000, None),
        (4 * 15 * 5_000, 5_000, 5_000),
        (4 * 15 * 100, 4_096, 4_096),
        (0, 4_096, 4_096),
    ],
)
def test_without_a_bound_output_is_the_models_own_or_a_quarter_of_what_is_available(available, limit, sent):
    offer = offers("gpt", available=available)[0]
    assert (offer.bounds.output, offer.output_limit, offer.output_assumed) == (limit, sent, True)


def test_without_a_bound_several_choices_share_the_quarter():
    offer = offers("gpt", available=4 * 15 * 10_000, choices=2)[0]
    assert (offer.bounds.output, offer.output_limit) == (10_000, 5_000)


def test_a_free_model_is_bounded_by_itself():
    free = Catalog.of(VENDORS, (model("openai/free", prices=(priced(0, 0),)),))
    to = Router(free, Config(provider=(OPENAI,)), lambda: TODAY)
    assert offers("free", to=to, available=0)[0].output_limit is None
    assert to.affordable_output(offers("free", to=to), 0) == 8_000


@settings(max_examples=60)
@given(
    text=st.integers(0, 20_000),
    output=st.none() | st.integers(0, 10**7),
    choices=st.integers(1, 8),
    available=st.integers(0, 10**7),
    markup=st.integers(0, 3_000_000),
    read=st.floats(0, 1),
    written=st.floats(0, 1),
)
def test_no_usage_within_what_was_sent_costs_more_than_the_hold(
    *, text, output, choices, available, markup, read, written
):
    to = router()
    caller = evolve(CALLER, markup_ppm=markup)
    several = offers(
        "gpt", to=to, caller=caller, available=available, text_bytes=text, output=output, choices=choices
    )
    held = to.first_hold(several)
    for offer in several:
        per_choice = offer.output_limit if offer.output_limit is not None else min(output or 8_000, 8_000)
        if output == 0:
            per_choice = 0
        usage = Usage(
            input=int(read * min(text, 10_000)), output=int(written * per_choice * choices), requests=1
        )
        assert offer.price.cost((usage,)) <= held


@settings(max_examples=60)
@given(available=st.integers(0, 10**7), markup=st.integers(300_000, 3_000_000), choices=st.integers(1, 5))
def test_what_is_called_affordable_is_and_two_tokens_more_are_not(available, markup, choices):
    to, caller = router(), evolve(CALLER, markup_ppm=markup)
    tokens = to.affordable_output(offers("gpt", to=to, caller=caller, choices=choices), available)
    without = to.first_hold(offers("gpt", to=to, caller=caller, choices=choices, output=0))
    if without > available:
        assert tokens == 0
        return
    assert to.first_hold(offers("gpt", to=to, caller=caller, choices=choices, output=tokens)) <= available
    if tokens < 8_000:
        more = offers("gpt", to=to, caller=caller, choices=choices, output=tokens + 2)
        assert to.first_hold(more) > available


# -- what is offered is what it would come to step by step ------------------------------------------


def bounds_step_by_step(model, measures, output):
    """Each thing that a request can make a provider read, one after the other."""
    seconds = -(-measures.audio_bytes // AUDIO_BYTES_PER_SECOND_MIN)
    counted = measures.text_bytes + measures.messages * model.message_tokens
    if measures.tools:
        counted += model.tools_tokens
    counted += measures.images * model.image_tokens_max + seconds * model.audio_tokens_per_second_max
    may_be_anything = measures.unbounded
    return Bounds(
        input=model.context_window if may_be_anything else min(counted, model.context_window),
        output=output,
        cache_writes=measures.cache_writes,
        audio=measures.audio_bytes > 0 or (may_be_anything and model.audio_tokens_per_second_max > 0),
        image=measures.images > 0 or (may_be_anything and model.image_tokens_max > 0),
        audio_output=measures.audio_output,
        image_output=measures.image_output,
    )


def limit_step_by_step(asked, offer, caller, available, *, rolls):
    """The bound in force on output per choice, and whether it was lowered because of the credit."""
    measures, price, most = asked.measures, offer.price, offer.model.output_max
    no_output = bounds_step_by_step(offer.model, measures, 0)
    if measures.output is None:
        spend = price.ceiling(no_output) + available // 4
        limit = min(most, max(4096, affordable_output(price, no_output, spend) // measures.choices))
    else:
        limit = min(measures.output, most)
    if caller.clamp and not rolls:
        bears = affordable_output(price, no_output, available) // measures.choices
        least = 1 if measures.thinking is None else offer.model.thinking_tokens_min + 1
        if least <= bears < limit:
            return bears, True
    return limit, False


def hold_step_by_step(offer):
    """The dearest of each rate, times what may be used of it at first."""
    output = min(offer.bounds.output, offer.slice_tokens) if offer.slice_tokens else offer.bounds.output
    fixed, each = offer.price.ceiling_line(evolve(offer.bounds, output=output))
    return marked_up(fixed + output * each, offer.price.markup_ppm)


_measures = st.builds(
    Measures,
    text_bytes=st.integers(0, 20_000),
    messages=st.integers(0, 50),
    tools=st.integers(0, 3),
    images=st.integers(0, 5),
    audio_bytes=st.integers(0, 5_000),
    unbounded=st.booleans(),
    output=st.none() | st.integers(0, 10_000),
    choices=st.integers(1, 4),
    stop_bytes=st.sampled_from([0, 48, 49]),
    cache_writes=st.sampled_from(["none", "5m", "1h"]),
    reasoning=st.sampled_from([None, True, False]),
    thinking=st.none() | st.integers(1, 5_000),
)


@settings(max_examples=300)
@given(
    name=st.sampled_from(["sees", "thinker", "chat"]),
    measures=_measures,
    stream=st.booleans(),
    clamp=st.booleans(),
    markup=st.none() | st.integers(0, 3_000_000),
    available=st.integers(0, 10**6),
)
def test_bounds_and_holds_are_the_same_step_by_step(name, measures, stream, clamp, markup, available):
    if name != "sees":
        measures = evolve(measures, images=0, audio_bytes=0)
    asked = evolve(ask(name), measures=measures, stream=stream)
    caller, to = evolve(CALLER, clamp=clamp, markup_ppm=markup), router()
    several = to.offers(asked, caller, available)
    visible = name != "thinker" or measures.reasoning is False
    stops = all(one.provider != "reseller" for one in several)
    rolls = stream and stops and visible and measures.choices == 1 and measures.stop_bytes <= 48
    wanted = 8_000 if measures.output is None else measures.output
    for offer in several:
        limit, clamped = limit_step_by_step(asked, offer, caller, available, rolls=rolls)
        assert offer.bounds == bounds_step_by_step(offer.model, measures, limit * measures.choices)
        assert (offer.clamped, offer.visible, offer.choices) == (clamped, visible, measures.choices)
        assert offer.slice_tokens == (to.config.holds.slice_tokens if rolls else 0)
        assert offer.output_limit == (limit if limit < wanted else None)
        assert offer.first_hold == hold_step_by_step(offer)
    assert to.first_hold(several) == max(hold_step_by_step(offer) for offer in several)


# -- what a hang-up does ---------------------------------------------------------------------------


def stops(name, *, stream=True, to=None, dialect="openai_chat", **measures):
    return (to or router()).offers(evolve(ask(name, dialect, **measures), stream=stream), CALLER, LOTS)[0]


def test_hanging_up_never_stops_the_bill_of_what_is_not_streamed():
    assert stops("gpt", stream=False).stops_billing == "no"
    assert stops("chat", stream=False).stops_billing == "no"


def test_the_data_speaks_of_the_vendors_own_servers_only():
    assert stops("gpt").stops_billing == "yes"
    assert stops("gemini", dialect="gemini").stops_billing == "no"
    assert stops("reseller/gpt").stops_billing == "unknown"
    assert stops("gpt", to=router(evolve(OPENAI, base_url="https://openai.example"))).stops_billing == "yes"


def test_the_operator_may_know_better():
    assert stops("chat").stops_billing == "yes"
    assert stops("gpt", to=router(evolve(OPENAI, stops_billing="no"))).stops_billing == "no"


def test_hidden_reasoning_is_not_visible():
    assert stops("gpt").abortable
    assert not stops("thinker").abortable
    assert stops("thinker", reasoning=False).abortable
