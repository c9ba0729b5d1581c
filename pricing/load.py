"""Reads the catalogue's TOML files into a Catalog, or says which file, which key and what was expected.

Every file has the same form, whether it ships with us (`models.toml`, `prices/*.toml`) or is the operator's:
any of the tables `[vendor.…]`, `[family.…]`, `[model."vendor/name"]`, `[price."vendor/name"]`. A model takes
what it does not say itself from its family. `data/README.md` describes each key.

Prices are decimal strings and their unit is in the key (`per_million` tokens, or `each`): a number would be a
float, and a price whose unit has to be guessed is wrong by a million sooner or later. Unknown keys are
refused, so that a typo cannot make something free. A price that changes on a known day stands once for each
time: `[[price."vendor/name"]]` with `from`.
"""

import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
from attrs import define, field
from msgspec import UNSET, Struct, UnsetType

from pricing.catalog import (
    Catalog,
    DialectName,
    Listing,
    Model,
    OutputField,
    ProviderKind,
    Reasoning,
    StatesInput,
    StopsBilling,
    Vendor,
    check,
)
from pricing.money import Pico, parse
from pricing.price import RATE_NAMES, CacheWrites, Rates, Tier

__all__ = ["PriceError", "check", "load_catalog"]

EACH_NAMES: Final = ("requests", "web_searches", "seconds", "characters", "images")
PER_MILLION_NAMES: Final = tuple(name for name in RATE_NAMES if name not in EACH_NAMES)
MILLION: Final = 10**6
EPOCH: Final = date(1970, 1, 1)

FILE_BYTES_MAX: Final = 4 * 2**20
"""Larger than any catalogue and small enough to read by mistake."""


class PriceError(ValueError):
    """A file of the catalogue is wrong.

    Attributes:
        file: its path.
        key: where in it, or `""` for the file as a whole.
        problem: what was expected, and what was found.
    """

    def __init__(self, file: Path, key: str, problem: str) -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}")
        self.file = file
        self.key = key
        self.problem = problem


class _VendorEntry(Struct, frozen=True, forbid_unknown_fields=True):
    dialect: DialectName
    kind: ProviderKind
    base_url: str
    stops_billing: StopsBilling
    source: str
    rank: int = 100
    states_input: StatesInput = "end"


class _Behaviour(Struct, frozen=True, forbid_unknown_fields=True):
    """What a model may take from its family."""

    dialect: DialectName | UnsetType = UNSET
    context_window: int | UnsetType = UNSET
    output_max: int | UnsetType = UNSET
    output_field: OutputField | UnsetType = UNSET
    reasoning: Reasoning | UnsetType = UNSET
    image_tokens_max: int | UnsetType = UNSET
    audio_tokens_per_second_max: int | UnsetType = UNSET
    message_tokens: int | UnsetType = UNSET
    tools_tokens: int | UnsetType = UNSET
    dense_bytes_per_token: int | UnsetType = UNSET
    tokens_per_second_max: int | UnsetType = UNSET
    cache_writes: CacheWrites | UnsetType = UNSET
    parameters: bool | UnsetType = UNSET
    thinking_tokens_min: int | UnsetType = UNSET


class _ModelEntry(_Behaviour, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    released: date
    family: str | None = None
    wire_name: str | None = None
    wire_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class _TierEntry(Struct, frozen=True, forbid_unknown_fields=True):
    above: int
    per_million: dict[str, Any] = {}
    each: dict[str, Any] = {}


class _PriceEntry(Struct, frozen=True, forbid_unknown_fields=True):
    per_million: dict[str, Any] = {}
    each: dict[str, Any] = {}
    tiers: tuple[_TierEntry, ...] = ()
    source: str | None = None
    checked: date | None = None
    valid_from: date | None = msgspec.field(name="from", default=None)
    until: date | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A file as a whole. `currency`, `source` and `checked` hold for every price in it."""

    currency: Literal["USD"] | None = None
    source: str | None = None
    checked: date | None = None
    vendor: dict[str, Any] = {}
    family: dict[str, Any] = {}
    model: dict[str, Any] = {}
    price: dict[str, Any] = {}


OPTIONAL: Final = {"cache_writes": "none", "parameters": False, "thinking_tokens_min": 0}
"""What neither a model nor its family needs to say."""

Entry = TypeVar("Entry", bound=Struct)
Read = TypeVar("Read")


@define(eq=False)
class _Tables:
    """Every entry of every file, by table and key, with the file that it stands in."""

    vendors: dict[str, tuple[Path, _VendorEntry]] = field(factory=dict)
    families: dict[str, tuple[Path, _Behaviour]] = field(factory=dict)
    models: dict[str, tuple[Path, _ModelEntry]] = field(factory=dict)
    prices: dict[str, tuple[Path, tuple[_PriceEntry, ...]]] = field(factory=dict)

    def add(self, path: Path, replace: bool) -> None:
        """Take in a file. An entry that is there already is replaced, or else refused."""
        file = _read(path)
        if file.price and file.currency is None:
            raise PriceError(path, "currency", 'expected currency = "USD" in a file that has prices')
        _put(self.vendors, path, "vendor", _entries(path, "vendor", file.vendor, _VendorEntry), replace)
        _put(self.families, path, "family", _entries(path, "family", file.family, _Behaviour), replace)
        _put(self.models, path, "model", _entries(path, "model", file.model, _ModelEntry), replace)
        _put(self.prices, path, "price", _prices(path, file), replace)


def load_catalog(data_dir: Path, extra_files: tuple[Path, ...] = ()) -> Catalog:
    """Read `models.toml` and `prices/*.toml` below a directory, and then the operator's own files.

    Args:
        data_dir: where our data is.
        extra_files: files of the same form; what they say about a vendor, family, model or price replaces,
            entry by entry, what was read before them.

    Raises:
        PriceError: a file cannot be read or says something wrong, a model has no price, or a price no model.
    """
    tables = _Tables()
    prices = sorted((data_dir / "prices").glob("*.toml"))
    for path in (data_dir / "models.toml", *prices):
        tables.add(path, replace=False)
    for path in extra_files:
        tables.add(path, replace=True)
    vendors = tuple(_vendor(name, *entry) for name, entry in tables.vendors.items())
    models = tuple(_model(tables, model_id) for model_id in tables.models)
    for model_id, (path, _) in tables.prices.items():
        if model_id not in tables.models:
            raise PriceError(
                path, _quoted("price", model_id), f'expected a [model."{model_id}"] for this price'
            )
    try:
        return Catalog.of(vendors, models)
    except ValueError as error:
        raise PriceError(data_dir, "", str(error)) from None


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise PriceError(path, "", f"expected a file that can be read ({error.strerror})") from None
    if len(raw) > FILE_BYTES_MAX:
        raise PriceError(path, "", f"expected at most {FILE_BYTES_MAX} bytes")
    try:
        content = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PriceError(path, "", f"expected TOML in UTF-8: {error}") from None
    return _convert(path, "", content, _File)


def _convert(path: Path, key: str, raw: object, shape: type[Entry]) -> Entry:
    try:
        return msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at `$")
        inner = at.rstrip("`").removeprefix(".")
        where = ".".join(part for part in (key, inner) if part)
        said = said.replace("`object`", "a table").replace("`array`", "a list").replace(" | null`", "`")
        if "RFC3339" in said:
            said = "expected a date such as 2026-12-01"
        if "unknown field" in said:
            said += f" (expected one of: {', '.join(shape.__struct_encode_fields__)})"
        raise PriceError(path, where, said[:1].lower() + said[1:]) from None


def _entries(path: Path, name: str, raw: Mapping[str, object], shape: type[Entry]) -> dict[str, Entry]:
    return {key: _convert(path, _quoted(name, key), entry, shape) for key, entry in raw.items()}


def _prices(path: Path, file: _File) -> dict[str, tuple[_PriceEntry, ...]]:
    """The prices of a file, several for a model if they have days; each with the source that holds for it."""
    prices = {}
    for model_id, raw in file.price.items():
        written = raw if isinstance(raw, list) else [raw]
        if not written:
            raise PriceError(path, _quoted("price", model_id), "expected a price in the list")
        entries = (
            _convert(path, _price_key(model_id, number, len(written)), entry, _PriceEntry)
            for number, entry in enumerate(written)
        )
        prices[model_id] = tuple(
            msgspec.structs.replace(
                entry, source=entry.source or file.source, checked=entry.checked or file.checked
            )
            for entry in entries
        )
    return prices


def _put(
    table: dict[str, tuple[Path, Read]], path: Path, name: str, entries: Mapping[str, Read], replace: bool
) -> None:
    for key, entry in entries.items():
        if key in table and not replace:
            raise PriceError(path, _quoted(name, key), f"it stands in {table[key][0]} already")
        table[key] = (path, entry)


def _price_key(model_id: str, number: int, count: int) -> str:
    return _quoted("price", model_id) + (f"[{number}]" if count > 1 else "")


def _quoted(table: str, key: str) -> str:
    return f'{table}."{key}"'


def _vendor(name: str, path: Path, entry: _VendorEntry) -> Vendor:
    if not name or "/" in name:
        raise PriceError(path, _quoted("vendor", name), "expected a name without a slash")
    return Vendor(name=name, **msgspec.structs.asdict(entry))


def _model(tables: _Tables, model_id: str) -> Model:
    path, entry = tables.models[model_id]
    key = _quoted("model", model_id)
    vendor, slash, local = model_id.partition("/")
    if not slash or not local or vendor not in tables.vendors:
        known = ", ".join(sorted(tables.vendors))
        raise PriceError(path, key, f"expected an id of the form vendor/name, with a vendor out of: {known}")
    if model_id not in tables.prices:
        raise PriceError(path, key, f'expected a [price."{model_id}"]: no price, no service')
    said: dict[str, Any] = {"dialect": tables.vendors[vendor][1].dialect, **OPTIONAL}
    said |= _family(tables, path, key, entry.family) | _behaviour(entry)
    for name in _Behaviour.__struct_fields__:
        if name not in said:
            raise PriceError(path, f"{key}.{name}", "expected a value, here or in its family")
    prices = _listings(model_id, *tables.prices[model_id])
    try:
        return Model(
            id=model_id,
            vendor=vendor,
            name=entry.name,
            wire_name=entry.wire_name or local,
            prices=prices,
            wire_names=tuple(sorted(entry.wire_names)),
            aliases=tuple(sorted(entry.aliases)),
            created=(entry.released - EPOCH).days * 86_400,
            **said,
        )
    except ValueError as error:
        raise PriceError(path, key, str(error.args[0])) from None


def _family(tables: _Tables, path: Path, key: str, family: str | None) -> dict[str, Any]:
    if family is None:
        return {}
    if family not in tables.families:
        known = ", ".join(sorted(tables.families))
        raise PriceError(path, f"{key}.family", f"expected one of: {known}; not {family!r}")
    return _behaviour(tables.families[family][1])


def _behaviour(entry: _Behaviour) -> dict[str, Any]:
    values = ((name, getattr(entry, name)) for name in _Behaviour.__struct_fields__)
    return {name: value for name, value in values if value is not UNSET}


def _listings(model_id: str, path: Path, prices: tuple[_PriceEntry, ...]) -> tuple[Listing, ...]:
    """A model's prices in the order of their days."""
    by_day: dict[date, Listing] = {}
    for number, price in enumerate(prices):
        key = _price_key(model_id, number, len(prices))
        day = price.valid_from or date.min
        if day in by_day:
            raise PriceError(path, key, "expected a `from` of its own: another price begins on the same day")
        by_day[day] = _listing(path, key, price)
    return tuple(by_day[day] for day in sorted(by_day))


def _listing(path: Path, key: str, price: _PriceEntry) -> Listing:
    if not price.source or price.checked is None:
        raise PriceError(path, key, "expected source and checked, here or at the top of the file")
    tiers = _tiers(path, key, price)
    try:
        return Listing(tiers, price.source, price.checked, price.valid_from, price.until)
    except ValueError as error:
        raise PriceError(path, key, str(error)) from None


def _tiers(path: Path, key: str, price: _PriceEntry) -> tuple[Tier, ...]:
    if not price.per_million and not price.each:
        raise PriceError(path, key, "expected rates in per_million or each; zero is a price only if written")
    tiers = [Tier(above=0, rates=_rates(path, key, price.per_million, price.each))]
    for number, entry in enumerate(price.tiers):
        where = f"{key}.tiers[{number}]"
        if entry.above <= tiers[-1].above:
            raise PriceError(path, f"{where}.above", f"expected more than {tiers[-1].above}: tiers ascend")
        if missing := sorted(price.per_million.keys() ^ entry.per_million.keys()):
            # a rate that a tier leaves out would quietly fall back to another one
            raise PriceError(
                path, f"{where}.per_million", f"expected the same rates as below it; differs in {missing}"
            )
        rates = _rates(path, where, entry.per_million, {**price.each, **entry.each})
        tiers.append(Tier(above=entry.above, rates=rates))
    return tuple(tiers)


def _rates(path: Path, key: str, per_million: Mapping[str, Any], each: Mapping[str, Any]) -> Rates:
    rates: dict[str, Pico] = {}
    for table, written, known in (
        ("per_million", per_million, PER_MILLION_NAMES),
        ("each", each, EACH_NAMES),
    ):
        for name, text in written.items():
            where = f"{key}.{table}.{name}"
            if name not in known:
                raise PriceError(path, where, f"unknown rate (expected one of: {', '.join(known)})")
            rates[name] = _rate(path, where, text, MILLION if table == "per_million" else 1)
    return Rates(**rates)


def _rate(path: Path, key: str, text: object, units: int) -> Pico:
    """Picos for one unit, exactly, from the decimal price of so many units."""
    if not isinstance(text, str):
        raise PriceError(path, key, f'expected a decimal in quotes such as "3.00", got {text!r}')
    try:
        rate, rest = divmod(parse(text), units)
    except ValueError as error:
        raise PriceError(path, key, f"expected a decimal price: {error}") from None
    if rest:
        raise PriceError(path, key, f"expected at most 6 decimal places per million, got {text!r}")
    return rate
