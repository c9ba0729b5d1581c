"""The catalogue's files: what ships is complete and plausible; what is wrong is named with file and key."""

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pricing.catalog import notices
from pricing.load import (
    EACH_NAMES,
    PER_MILLION_NAMES,
    PriceError,
    _Behaviour,
    _File,
    _ModelEntry,
    _PriceEntry,
    _VendorEntry,
    check,
    load_catalog,
)
from pricing.money import PICO

DATA = Path(__file__).parents[2] / "data"
TODAY = date(2026, 11, 21)

MODELS = """
[vendor.acme]
dialect = "openai_chat"
kind = "openai"
base_url = "https://api.example"
stops_billing = "yes"
source = "its page"

[family.swift]
context_window = 1000
output_max = 100
output_field = "max_completion_tokens"
reasoning = "none"
image_tokens_max = 0
audio_tokens_per_second_max = 0
message_tokens = 8
tools_tokens = 64
dense_bytes_per_token = 2
tokens_per_second_max = 300

[model."acme/swift-1"]
name = "Swift 1"
family = "swift"
released = 2026-01-02
"""

PRICES = """
currency = "USD"
source = "its page"
checked = 2026-11-01

[price."acme/swift-1"]
per_million = { input = "3.00", cache_read = "0.30", output = "15.00" }
"""


@pytest.fixture
def data(tmp_path):
    """A small catalogue that is right; tests make it wrong."""

    class Data:
        path = tmp_path / "data"

        def models(self, text):
            (self.path / "models.toml").write_text(text)

        def prices(self, text, name="acme"):
            (self.path / "prices" / f"{name}.toml").write_text(text)

        def load(self, *extra):
            return load_catalog(self.path, extra)

        def another(self, text, name="ours.toml"):
            file = tmp_path / name
            file.write_text(text)
            return file

    (tmp_path / "data" / "prices").mkdir(parents=True)
    data = Data()
    data.models(MODELS)
    data.prices(PRICES)
    return data


def refused(data, *extra):
    with pytest.raises(PriceError) as caught:
        data.load(*extra)
    return caught.value


# --- What ships ---


@pytest.fixture(scope="module")
def shipped():
    return load_catalog(DATA)


ASKED_FOR = [
    "gpt-5.4",
    "gpt-5.4-mini",
    "gpt-5.4-nano",
    "gpt-5.2",
    "gpt-5.1",
    "gpt-5",
    "gpt-5-mini",
    "gpt-5-nano",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4.1-nano",
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4-turbo",
    "openai/gpt-4o",
    "openai/gpt-4o-mini",
    "anthropic/claude-sonnet-4-20250514",
    "anthropic/claude-haiku-4-5-20251001",
    "anthropic/claude-sonnet-4.6",
    "claude-sonnet-4-6",
    "claude-3-5-sonnet-20241022",
    "claude-3-opus-20240229",
    "claude-3-haiku-20240307",
    "claude-opus-5-5",
    "google/gemini-2.0-flash",
    "gemini-1.5-pro-latest",
    "gemini-1.5-flash-latest",
    "models/gemini-3.5-flash",
    "models/gemini-3.1-pro-preview",
    "models/gemini-3.1-flash-lite",
    "models/gemini-3-flash-preview",
    "models/gemini-2.5-pro",
    "models/gemini-2.5-flash",
    "models/gemini-2.5-flash-lite",
    "sandbox/chat",
    "sandbox/claude",
    "sandbox/gemini",
    "sandbox/thinker",
]
"""Every text model that the pages name which Farebox was founded on, as they write it."""


@pytest.mark.parametrize("name", ASKED_FOR)
def test_every_model_that_people_were_promised_has_a_price(shipped, name):
    found = shipped.find(name)
    assert found is not None
    rates = found.model.tiers_on(TODAY)[0].rates
    assert rates.input
    assert rates.output


def test_nothing_that_ships_looks_like_a_mistake(shipped):
    assert check(shipped, TODAY) == ()


@pytest.mark.parametrize(
    ("name", "per_million"),
    [
        ("gpt-4o", {"input": "2.5", "cache_read": "1.25", "output": "10"}),
        ("claude-opus-5-5", {"input": "4", "cache_read": "0.2", "cache_write_1h": "8", "output": "20"}),
        (
            "claude-sonnet-4-6",
            {"input": "3", "cache_write_5m": "3.75", "cache_write_1h": "6", "output": "15"},
        ),
        ("gemini-2.5-flash", {"input": "0.3", "audio_input": "1", "output": "2.5"}),
    ],
)
def test_a_shipped_price_is_the_vendors_per_million(shipped, name, per_million):
    rates = shipped.find(name).model.tiers_on(TODAY)[0].rates
    for bucket, dollars in per_million.items():
        assert getattr(rates, bucket) * 10**6 == int(float(dollars) * 10**6) * (PICO // 10**6)


@pytest.mark.parametrize(
    ("name", "above"), [("gpt-5.4", 272_000), ("gemini-2.5-pro", 200_000), ("claude-haiku-5-5", 100_000)]
)
def test_a_long_context_costs_more_where_the_vendor_says_so(shipped, name, above):
    first, long = shipped.find(name).model.tiers_on(TODAY)
    assert long.above == above
    assert long.rates.input > first.rates.input


def test_every_shipped_model_speaks_a_language_that_its_output_field_belongs_to(shipped):
    fields = {
        "openai_chat": {"max_completion_tokens", "max_tokens"},
        "anthropic": {"max_tokens"},
        "gemini": {"maxOutputTokens"},
    }
    for model in shipped.models.values():
        assert model.output_field in fields[model.dialect], model.id


def test_every_shipped_price_has_a_source_and_a_day_on_which_it_was_seen(shipped):
    for model in shipped.models.values():
        for listing in model.prices:
            assert listing.source, model.id
            assert date(2026, 1, 1) <= listing.checked <= TODAY, model.id


def test_whether_hanging_up_ends_the_bill_is_known_from_somewhere(shipped):
    known = {name: vendor.stops_billing for name, vendor in shipped.vendors.items()}
    assert known == {"openai": "yes", "anthropic": "yes", "google": "no", "sandbox": "yes"}
    assert all(vendor.source for vendor in shipped.vendors.values())


def test_the_sandbox_speaks_every_dialect_and_takes_parameters(shipped):
    models = [model for model in shipped.models.values() if model.vendor == "sandbox"]
    assert {model.dialect for model in models} == {"openai_chat", "anthropic", "gemini"}
    assert all(model.parameters for model in models)
    assert not any(model.parameters for model in shipped.models.values() if model.vendor != "sandbox")


def test_a_vendor_that_writes_its_cache_unasked_has_a_price_for_it(shipped):
    for model in shipped.models.values():
        if model.cache_writes != "none":
            tiers = [tier for listing in model.prices for tier in listing.tiers]
            assert all(tier.rates.cache_write_5m for tier in tiers), model.id


def test_each_key_of_the_files_is_described():
    described = (DATA / "README.md").read_text()
    keys = {*PER_MILLION_NAMES, *EACH_NAMES, "above"}
    for shape in (_VendorEntry, _Behaviour, _ModelEntry, _PriceEntry, _File):
        keys |= set(shape.__struct_encode_fields__)
    missing = {key for key in keys if f"`{key}" not in described and f"[{key}." not in described}
    assert missing == set()


def test_the_example_of_an_operators_own_file_works(data):
    example = (DATA / "README.md").read_text().partition("```toml\n")[2].partition("```")[0]
    both = load_catalog(DATA, (data.another(example),))
    assert both.find("ollama/llama3.3").model.output_field == "max_tokens"
    assert both.find("gpt-4o") is not None


# --- What a model takes from where ---


def test_a_model_takes_from_its_family_what_it_does_not_say(data):
    model = data.load().models["acme/swift-1"]
    assert (model.context_window, model.tools_tokens, model.dialect) == (1000, 64, "openai_chat")
    assert (model.wire_name, model.created) == ("swift-1", 1_767_312_000)
    assert model.prices[0].checked == date(2026, 11, 1)


def test_what_a_model_says_itself_wins(data):
    data.models(
        MODELS + 'dialect = "anthropic"\noutput_max = 7\nwire_name = "swift-one"\nparameters = true\n'
    )
    model = data.load().models["acme/swift-1"]
    assert (model.dialect, model.output_max, model.wire_name, model.parameters) == (
        "anthropic",
        7,
        "swift-one",
        True,
    )


def test_a_model_needs_no_family_if_it_says_everything_itself(data):
    family = MODELS[MODELS.index("[family.swift]") : MODELS.index("[model")]
    model = MODELS[MODELS.index("[model") :].replace('family = "swift"', family.partition("\n")[2])
    data.models(MODELS[: MODELS.index("[family")] + model)
    assert data.load().models["acme/swift-1"].tools_tokens == 64


def test_what_neither_says_is_asked_for(data):
    data.models(MODELS.replace("tools_tokens = 64\n", ""))
    error = refused(data)
    assert (error.file.name, error.key) == ("models.toml", 'model."acme/swift-1".tools_tokens')
    assert "here or in its family" in error.problem


def test_a_price_may_have_a_source_and_a_date_of_its_own(data):
    data.prices(PRICES + 'source = "a letter"\nchecked = 2026-11-02\nuntil = 2026-12-31\n')
    (listing,) = data.load().models["acme/swift-1"].prices
    assert (listing.source, listing.checked, listing.until) == (
        "a letter",
        date(2026, 11, 2),
        date(2026, 12, 31),
    )


def test_a_decimal_per_million_is_picos_per_token_exactly(data):
    data.prices(PRICES.replace("3.00", "0.000001").replace("0.30", "0"))
    rates = data.load().models["acme/swift-1"].tiers_on(TODAY)[0].rates
    assert (rates.input, rates.cache_read, rates.output) == (1, 0, 15_000_000)
    assert rates.cache_write_5m is None


def test_a_price_for_each_is_picos_for_one(data):
    data.prices(PRICES + 'each = { web_searches = "0.01", requests = "0.000000000001" }\n')
    rates = data.load().models["acme/swift-1"].tiers_on(TODAY)[0].rates
    assert (rates.web_searches, rates.requests) == (PICO // 100, 1)


def test_a_tier_keeps_what_each_costs_unless_it_says_otherwise(data):
    long = 'above = 500, per_million = { input = "6", cache_read = "0.6", output = "30" }'
    data.prices(
        PRICES
        + 'each = { web_searches = "0.01", requests = "0.02" }\n'
        + f'tiers = [{{ {long}, each = {{ requests = "0.03" }} }}]\n'
    )
    first, second = data.load().models["acme/swift-1"].tiers_on(TODAY)
    assert (second.above, second.rates.input, second.rates.web_searches) == (
        500,
        6_000_000,
        first.rates.web_searches,
    )
    assert second.rates.requests == PICO * 3 // 100


# --- Prices with a day ---


FIRST = """
[[price."acme/swift-1"]]
per_million = { input = "3.00", output = "15.00" }
"""
SECOND = """
[[price."acme/swift-1"]]
from = 2026-12-01
per_million = { input = "6.00", output = "30.00" }
source = "a letter"
checked = 2026-11-02
"""
HEAD = PRICES[: PRICES.index("[price")]


def test_a_price_may_change_on_a_day(data):
    data.prices(HEAD + FIRST + SECOND)
    model = data.load().models["acme/swift-1"]
    assert model.tiers_on(date(2026, 11, 30))[0].rates.input == 3_000_000
    assert model.tiers_on(date(2026, 12, 1))[0].rates.input == 6_000_000
    assert [(one.source, one.checked) for one in model.prices] == [
        ("its page", date(2026, 11, 1)),
        ("a letter", date(2026, 11, 2)),
    ]


def test_the_order_of_dated_prices_does_not_change_the_version(data):
    data.prices(HEAD + FIRST + SECOND)
    before = data.load().version
    data.prices(HEAD + SECOND + FIRST)
    assert data.load().version == before


def test_one_price_in_a_list_is_the_same_as_without(data):
    data.prices(HEAD + FIRST)
    before = data.load().version
    data.prices(HEAD + FIRST.replace("[[", "[").replace("]]", "]"))
    assert data.load().version == before


def test_a_dated_price_changes_the_version_before_its_day(data):
    data.prices(HEAD + FIRST)
    before = data.load().version
    data.prices(HEAD + FIRST + SECOND)
    assert data.load().version != before


def test_a_price_that_begins_later_is_none_until_then(data):
    data.prices(HEAD + SECOND)
    model = data.load().models["acme/swift-1"]
    assert model.tiers_on(date(2026, 11, 30)) == ()
    assert model.tiers_on(date(2026, 12, 1))


def test_an_operators_price_replaces_all_of_ours_whatever_their_days(data):
    data.prices(HEAD + FIRST + SECOND)
    ours = data.another(HEAD + FIRST.replace("3.00", "4.00"))
    (listing,) = data.load(ours).models["acme/swift-1"].prices
    assert listing.tiers[0].rates.input == 4_000_000


@pytest.mark.parametrize(
    ("written", "key", "expected"),
    [
        (FIRST + FIRST, "[1]", "another price begins on the same day"),
        (SECOND + SECOND, "[1]", "another price begins on the same day"),
        (FIRST + SECOND.replace("2026-12-01", '"soon"'), "[1].from", "a date such as 2026-12-01"),
        (FIRST + SECOND.replace("2026-12-01", "2026-12-01T00:00:00Z"), "[1].from", "expected `date`"),
        (FIRST + SECOND.replace("from", "form"), "[1]", "unknown field `form` (expected one of: per_million"),
        (FIRST + SECOND.replace('"6.00"', "6.00"), "[1].per_million.input", "a decimal in quotes"),
        (FIRST + SECOND + "until = 2026-11-30\n", "[1]", "lies before the first day"),
        ('\n[price]\n"acme/swift-1" = []\n', "", "expected a price in the list"),
        ('\n[price]\n"acme/swift-1" = [1]\n', "", "a table"),
    ],
)
def test_a_wrong_dated_price_is_named_with_file_and_key(data, written, key, expected):
    data.prices(HEAD + written)
    error = refused(data)
    assert (error.file.name, error.key) == ("acme.toml", f'price."acme/swift-1"{key}')
    assert expected in error.problem


@pytest.mark.parametrize(
    ("name", "day", "input_", "cache_read", "output"),
    [
        ("gemini-4-argon", date(2026, 12, 1), 4, "0.2", 20),
        ("gemini-4-carbon", date(2026, 12, 1), 4, "0.2", 20),
        ("gemini-3.8-flash", date(2027, 1, 1), "1.5", "0.15", "7.5"),
        ("gemini-3.7-flash", date(2027, 1, 1), "1.5", "0.15", "7.5"),
        ("gemini-3.6-flash", date(2027, 1, 1), "1.5", "0.15", "7.5"),
    ],
)
def test_an_introductory_price_doubles_on_its_day(shipped, name, day, input_, cache_read, output):
    model = shipped.find(name).model
    after = model.tiers_on(day)[0].rates
    for bucket, dollars in (("input", input_), ("cache_read", cache_read), ("output", output)):
        assert getattr(after, bucket) * 10**6 == Decimal(dollars) * PICO
        assert getattr(after, bucket) == 2 * getattr(model.tiers_on(day - timedelta(days=1))[0].rates, bucket)


def test_what_is_known_to_change_soon_is_told(shipped):
    told = [line for line in notices(shipped, TODAY) if "the price changes on" in line]
    assert {line.partition(":")[0] for line in told} == {
        "google/gemini-4-argon",
        "google/gemini-4-carbon",
        "google/gemini-3.8-flash",
        "google/gemini-3.7-flash",
        "google/gemini-3.6-flash",
    }
    assert "openai/gpt-5.6-sol: the price is promised until 2026-11-21 only" in notices(shipped, TODAY)


# --- The version ---


def test_layout_comments_and_order_do_not_change_the_version(data):
    before = data.load().version
    data.prices(
        "# a comment\nchecked=2026-11-01\nsource='its page'\ncurrency='USD'\n"
        "[price.'acme/swift-1'.per_million]\noutput='15'\ninput='3.0'\ncache_read='0.300'\n"
    )
    assert data.load().version == before


def test_where_an_entry_stands_does_not_change_the_version(data):
    before = data.load().version
    head, price = PRICES[: PRICES.index("[price")], PRICES[PRICES.index("[price") :]
    data.models(head + price + MODELS)
    data.prices("")
    assert data.load().version == before


def test_a_price_changes_the_version(data):
    before = data.load().version
    data.prices(PRICES.replace("15.00", "15.01"))
    assert data.load().version != before


# --- The operator's own files ---


def test_an_operators_price_replaces_ours_whole(data):
    ours = data.another(PRICES.replace("3.00", "4.00").replace('cache_read = "0.30", ', ""))
    rates = data.load(ours).models["acme/swift-1"].tiers_on(TODAY)[0].rates
    assert (rates.input, rates.cache_read) == (4_000_000, None)


def test_the_last_of_the_operators_files_wins(data):
    one = data.another(PRICES.replace("3.00", "4.00"), "one.toml")
    two = data.another(PRICES.replace("3.00", "5.00"), "two.toml")
    assert data.load(one, two).models["acme/swift-1"].tiers_on(TODAY)[0].rates.input == 5_000_000


def test_a_model_without_a_price_is_refused(data):
    data.prices("")
    error = refused(data)
    assert (error.file.name, error.key) == ("models.toml", 'model."acme/swift-1"')
    assert "no price, no service" in error.problem


def test_a_price_without_a_model_is_refused(data):
    error = refused(data, data.another(PRICES.replace("swift-1", "swft-1")))
    assert (error.file.name, error.key) == ("ours.toml", 'price."acme/swft-1"')


def test_the_same_entry_in_two_of_our_files_is_refused(data):
    data.prices(PRICES, "more")
    error = refused(data)
    assert (error.file.name, error.key) == ("more.toml", 'price."acme/swift-1"')
    assert "acme.toml already" in error.problem


# --- What is wrong is named ---


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        (
            'input = "3.00"',
            "input = 3.00",
            "per_million.input",
            'a decimal in quotes such as "3.00", got 3.0',
        ),
        ('input = "3.00"', "input = 3", "per_million.input", "a decimal in quotes"),
        ('input = "3.00"', "input = true", "per_million.input", "a decimal in quotes"),
        ('input = "3.00"', 'input = "-3"', "per_million.input", "plain decimal"),
        ('input = "3.00"', 'input = "3e0"', "per_million.input", "plain decimal"),
        ('input = "3.00"', 'input = ""', "per_million.input", "plain decimal"),
        ('input = "3.00"', 'input = "0.0000003"', "per_million.input", "at most 6 decimal places"),
        ("input =", "inptu =", "per_million.inptu", "unknown rate (expected one of: input, cache_read"),
        ("output =", "requests =", "per_million.requests", "unknown rate"),
        ("per_million", "per_milion", "", "`per_milion` (expected one of: per_million, each, tiers"),
        ("per_million", "each", "each.input", "unknown rate (expected one of: requests, web_searches"),
        (
            '{ input = "3.00", cache_read = "0.30", output = "15.00" }',
            "{}",
            "",
            "zero is a price only if written",
        ),
        ('{ input = "3.00", cache_read = "0.30", output = "15.00" }', "3", "per_million", "a table"),
        ('source = "its page"\n', "", "", "expected source and checked"),
        ("checked = 2026-11-01\n", "", "", "expected source and checked"),
    ],
)
def test_a_wrong_price_is_named_with_file_and_key(data, old, new, key, expected):
    assert old in PRICES
    data.prices(PRICES.replace(old, new))
    error = refused(data)
    whole = 'price."acme/swift-1"' + (f".{key}" if key else "")
    assert (error.file.name, error.key) == ("acme.toml", whole)
    assert expected in error.problem
    assert str(error) == f"{error.file}: {whole}: {error.problem}"


@pytest.mark.parametrize(
    ("tiers", "key", "expected"),
    [
        ('{ above = 0, per_million = { input = "1" } }', "tiers[0].above", "more than 0"),
        ('{ above = -1, per_million = { input = "1" } }', "tiers[0].above", "more than 0"),
        ('{ above = 5, per_million = { input = "1" } }', "tiers[0].per_million", "['cache_read', 'output']"),
        ('{ above = "5" }', "tiers[0].above", "expected `int`"),
        ("{ abov = 5 }", "tiers[0]", "unknown field `abov`"),
        ('{ per_million = { input = "1" } }', "tiers[0]", "required field `above`"),
        (
            '{ above = 5, per_million = { input = 1.0, cache_read = "1", output = "1" } }',
            "tiers[0].per_million.input",
            "a decimal in quotes",
        ),
    ],
)
def test_a_wrong_tier_is_named_with_file_and_key(data, tiers, key, expected):
    data.prices(PRICES + f"tiers = [{tiers}]\n")
    error = refused(data)
    assert error.key == f'price."acme/swift-1".{key}'
    assert expected in error.problem


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ('name = "Swift 1"\n', "", 'model."acme/swift-1"', "required field `name`"),
        (
            'name = "Swift 1"',
            'nmae = "Swift 1"',
            'model."acme/swift-1"',
            "unknown field `nmae` (expected one of:",
        ),
        ('name = "Swift 1"', 'name = ""', 'model."acme/swift-1"', "name"),
        (
            'family = "swift"',
            'family = "swfit"',
            'model."acme/swift-1".family',
            "expected one of: swift; not 'swfit'",
        ),
        ("released = 2026-01-02", "released = 2026", 'model."acme/swift-1".released', "expected `date`"),
        ("output_max = 100\n", "output_max = 1001\n", 'model."acme/swift-1"', "output_max 1001 is more than"),
        ("output_max = 100\n", "output_max = 1.5\n", 'family."swift".output_max', "expected `int`"),
        ('reasoning = "none"', 'reasoning = "never"', 'family."swift".reasoning', "'never'"),
        ("tools_tokens", "tool_tokens", 'family."swift"', "unknown field `tool_tokens`"),
        ('stops_billing = "yes"', "stops_billing = true", 'vendor."acme".stops_billing', "expected `str`"),
        ('kind = "openai"', 'kind = "bedrock"', 'vendor."acme".kind', "'bedrock'"),
        ("[vendor.acme]", "[vendors.acme]", "", "unknown field `vendors` (expected one of: currency"),
        ("[vendor.acme]", '[vendor."ac/me"]', 'vendor."ac/me"', "without a slash"),
        ("acme/swift-1", "acme", 'model."acme"', "vendor/name, with a vendor out of: acme"),
        ("acme/swift-1", "amce/swift-1", 'model."amce/swift-1"', "vendor/name, with a vendor out of: acme"),
    ],
)
def test_a_wrong_model_family_or_vendor_is_named_with_file_and_key(data, old, new, key, expected):
    assert old in MODELS
    data.models(MODELS.replace(old, new))
    error = refused(data)
    assert (error.file.name, error.key) == ("models.toml", key)
    assert expected in error.problem


def test_names_that_clash_are_refused(data):
    again = MODELS[MODELS.index("[model") :].replace("swift-1", "swift-2") + 'aliases = ["swift-1"]\n'
    data.models(MODELS + again)
    data.prices(PRICES + PRICES[PRICES.index("[price") :].replace("swift-1", "swift-2"))
    assert "swift-1 is already a name of acme/swift-1" in refused(data).problem


@pytest.mark.parametrize("currency", ["", 'currency = "EUR"\n', "currency = 1\n"])
def test_a_file_with_prices_says_that_they_are_in_dollars(data, currency):
    data.prices(PRICES.replace('currency = "USD"\n', currency))
    assert refused(data).key == "currency"


@pytest.mark.parametrize("content", [b"[price", b"a = 1\na = 2", b"source = '\xff'", b"x" * 5 * 2**20])
def test_a_file_that_is_no_toml_is_named(data, content):
    (data.path / "prices" / "bad.toml").write_bytes(content)
    error = refused(data)
    assert (error.file.name, error.key) == ("bad.toml", "")
    assert "expected" in error.problem


def test_a_file_that_is_not_there_is_named(data, tmp_path):
    error = refused(data, tmp_path / "none.toml")
    assert error.file.name == "none.toml"
    assert "can be read" in error.problem
    with pytest.raises(PriceError, match=r"models\.toml"):
        load_catalog(tmp_path / "nowhere")
