"""One frozen tree of settings, from `farebox.toml` and the environment: every default and every limit stands here.

This is the only place that reads the environment. A bad file is refused with its name, the key and what was
expected (`ConfigError`), before anything is opened.
"""

import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import cattrs
from attrs import Attribute, evolve, field, fields, frozen, has
from attrs.validators import ge, gt, instance_of, le, matches_re, optional

from proxy.types import Secret, StopsBilling

DATA: Path = Path(__file__).with_name("_data")
"""Prices, models and the schema, as installed; in a checkout it is `data/` at the top."""
if not DATA.is_dir():
    DATA = Path(__file__).resolve().parents[1] / "data"


class ConfigError(Exception):
    """A setting is wrong; the message names file, key and what was expected."""


def _positive(default: float) -> float:
    return field(default=default, validator=gt(0))


def _port(default: int) -> int:
    return field(default=default, validator=[ge(0), le(65_535)])


def _not_empty(_instance: object, attribute: "Attribute[Any]", value: str | None) -> None:
    if value is not None and not value.strip():
        raise ConfigError(f"{attribute.name}: expected a text that is not empty")


def _store_memory(_instance: object, attribute: "Attribute[Any]", value: str) -> None:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([KMGT])(i?)B", value)
    if found is None or float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2]) < 64e6:
        raise ConfigError(
            f"{attribute.name}: expected 64MB or more, like 256MB or 1.5GiB, not {value!r:.100}"
        )


def _http_url(_instance: object, attribute: "Attribute[Any]", value: str | None) -> None:
    if value is not None and not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
        raise ConfigError(
            f"{attribute.name}: expected http://… or https://… without a query, not {value!r:.100}"
        )


def _sendable(_instance: object, attribute: "Attribute[Any]", value: Secret) -> None:
    if not re.fullmatch(r"[!-~]*", value.reveal()):  # it travels in a header; what it is stays untold
        raise ConfigError(
            f"{attribute.name}: expected ASCII letters, digits and signs, without spaces or line ends"
        )


def _proxy(_instance: object, attribute: "Attribute[Any]", value: Secret) -> None:
    if not re.fullmatch(r"((https?|socks5)://[^\s/?#]+/?)?", value.reveal()):  # it may hold a password
        raise ConfigError(f"{attribute.name}: expected http://…, https://… or socks5://… without a path")


@frozen
class Listen:
    """Where the gateway and the admin API listen.

    Attributes:
        host: address of the API.
        port: port of the API; 0 is any free one.
        admin_host: address of the admin API and the metrics; loopback unless you know better.
        admin_port: port of the admin API; 0 is any free one.
        allowed_hosts: values of the `Host` header that are answered; empty: all.
        tls_certificate: PEM file with the certificate chain, to speak TLS; needs `tls_key`.
        tls_key: PEM file with its private key.
    """

    host: str = "127.0.0.1"
    port: int = _port(8080)
    admin_host: str = "127.0.0.1"
    admin_port: int = _port(8081)
    allowed_hosts: tuple[str, ...] = ()
    tls_certificate: str | None = None
    tls_key: str | None = None


@frozen
class Server:
    """How client connections are kept. Hypercorn's own defaults are made for other work.

    Attributes:
        door: which code reads HTTP/1.1 and answers API requests: `fast` is ours, `hypercorn` goes through its classes.
        http2: offer HTTP/2 to clients over TLS; hypercorn speaks it.
        backlog: connections that the kernel may queue.
        keep_alive_seconds: how long an idle connection stays; longer than SDK pools keep theirs.
        keep_alive_requests: requests that one connection may carry.
        header_bytes_max: size of request line and headers together.
        header_seconds: time that a client has to send them.
        body_seconds_min: time that any upload gets.
        body_bytes_per_second_min: rate that it must keep after that.
        write_seconds: a client that takes no byte for that long is gone.
        drain_seconds: streams may run on for that long after SIGTERM.
    """

    door: Literal["fast", "hypercorn"] = "fast"
    http2: bool = False
    backlog: int = field(default=2048, validator=ge(1))
    keep_alive_seconds: float = _positive(75.0)
    keep_alive_requests: int = field(default=1_000_000, validator=ge(1))
    header_bytes_max: int = field(default=65_536, validator=ge(1024))
    header_seconds: float = _positive(10.0)
    body_seconds_min: float = _positive(10.0)
    body_bytes_per_second_min: int = field(default=1024, validator=ge(1))
    write_seconds: float = _positive(60.0)
    drain_seconds: float = _positive(30.0)


@frozen
class RequestLimits:
    """How large a request may be, and how many at once.

    Attributes:
        body_bytes_max: size of a request body.
        depth_max: nesting of the JSON in a request.
        items_max: elements and fields in the JSON of a request, all together.
        messages_max: messages in one request.
        tools_max: tools in one request.
        frame_bytes_max: size of one event from a provider.
        requests_max: requests under way in the whole gateway.
        muted_max: answers that are read to their end for clients who left, in all.
        muted_per_key_max: the same for one key.
        connections_max: open connections of clients.
        uploads_bytes_max: memory of all bodies that are being read; more are refused (503).
    """

    body_bytes_max: int = field(default=32 * 2**20, validator=ge(1024))
    depth_max: int = field(default=64, validator=ge(8))
    items_max: int = field(default=200_000, validator=ge(1))
    messages_max: int = field(default=4096, validator=ge(1))
    tools_max: int = field(default=512, validator=ge(1))
    frame_bytes_max: int = field(default=4 * 2**20, validator=ge(65_536))
    requests_max: int = field(default=10_000, validator=ge(1))
    muted_max: int = field(default=1000, validator=ge(1))
    muted_per_key_max: int = field(default=16, validator=ge(1))
    connections_max: int = field(default=20_000, validator=ge(1))
    uploads_bytes_max: int = field(default=2**30, validator=ge(2**20))


@frozen
class Deadlines:
    """Seconds that each stage of an answer may take.

    Attributes:
        connect_seconds: time to connect to a provider.
        first_content_seconds: time until the first content of a streamed answer.
        first_content_reasoning_seconds: the same time where reasoning may be hidden, and for answers in one
            piece.
        idle_seconds: time between content; pings do not count as content.
        idle_reasoning_seconds: the same time where reasoning may be hidden.
        total_seconds: time for a whole answer.
        heartbeat_seconds: silence after which a stream gets a heartbeat.
        close_seconds: time that a provider has to close after the end of its answer.
    """

    connect_seconds: float = _positive(5.0)
    first_content_seconds: float = _positive(60.0)
    first_content_reasoning_seconds: float = _positive(600.0)
    idle_seconds: float = _positive(90.0)
    idle_reasoning_seconds: float = _positive(600.0)
    total_seconds: float = _positive(3600.0)
    heartbeat_seconds: float = _positive(15.0)
    close_seconds: float = _positive(1.0)


@frozen
class Outbound:
    """How providers are reached.

    Attributes:
        proxy: URL of a proxy that all requests to providers go through, local ones too: `http`, `https`, or `socks5`
            (for which `farebox[socks]` has to be installed). Variables of the environment are not looked at.
        ca_file: PEM file with the authorities that vouch for providers' certificates, instead of the usual ones.
        certificate: PEM file with a certificate that providers are shown; needs `key`.
        key: PEM file with its private key.
    """

    proxy: Secret = field(factory=lambda: Secret(""), repr=False, eq=False, validator=_proxy)
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None


@frozen
class Failover:
    """When another account is tried, and how long one that failed is left alone.

    Attributes:
        attempts_max: accounts that one request may be sent to.
        rest_limited_seconds: rest of an account after a 429 that does not say how long.
        rest_limited_seconds_max: longest rest after a 429, whatever it says.
        rest_refused_seconds: rest after a 401, 402 or 403: the credential itself is at fault.
        rest_failed_seconds: rest after a 5xx, or when it could not be reached.
        error_bytes_max: how much of a provider's error answer is read.
    """

    attempts_max: int = field(default=3, validator=ge(1))
    rest_limited_seconds: float = _positive(30.0)
    rest_limited_seconds_max: float = _positive(600.0)
    rest_refused_seconds: float = _positive(600.0)
    rest_failed_seconds: float = _positive(5.0)
    error_bytes_max: int = field(default=65_536, validator=ge(1024))


@frozen
class Books:
    """Where the books live and how hard they are kept.

    Attributes:
        state_dir: directory of journal, store, lock and token; made with mode 0700.
        segment_bytes: size of a journal segment; preallocated.
        durability: what waits for the disk. `standard`: the first byte of an answer and its end. `strict`: also the
            request, before it goes to a provider. `relaxed`: neither; the disk is synced every `relaxed_seconds`.
        relaxed_seconds: how often that is; a power cut may lose so much, a killed process nothing.
        load_seconds: how often new records are loaded into the store; reports know of them before.
        load_records_max: records that one transaction of the store takes at most.
        unloaded_max: records that may wait for the store before new requests are refused (503).
        unsynced_seconds_max: age of the oldest record that is not on disk before new requests are refused (503).
        progress_seconds: how often an answer under way is written down.
        progress_tokens: or after how many tokens, if that is sooner.
        store_memory: DuckDB's memory limit, 64MB or more. What it has read or written stays in memory until then.
    """

    state_dir: str = field(default="farebox-state", validator=_not_empty)
    segment_bytes: int = field(default=64 * 2**20, validator=ge(2**20))
    durability: Literal["relaxed", "standard", "strict"] = "standard"
    relaxed_seconds: float = _positive(0.05)
    load_seconds: float = _positive(2.0)
    load_records_max: int = field(default=20_000, validator=ge(1))
    unloaded_max: int = field(default=500_000, validator=ge(100))
    unsynced_seconds_max: float = _positive(10.0)
    progress_seconds: float = _positive(2.0)
    progress_tokens: int = field(default=1000, validator=ge(1))
    store_memory: str = field(default="256MB", validator=_store_memory)


@frozen
class Holds:
    """How credit is set aside.

    Attributes:
        slice_tokens: output tokens that a rolling hold begins with, and grows by at least.
        hold_wait_seconds: how long a request may wait for credit that other requests hold; 0: it is refused at once.
        waiting_max: requests of one wallet that may wait so at a time.
        empty_free_per_key_day: completions without a single token that are free, for each key and day; 0: none.
    """

    slice_tokens: int = field(default=1024, validator=ge(16))
    hold_wait_seconds: float = field(default=0.0, validator=ge(0))
    waiting_max: int = field(default=100, validator=ge(1))
    empty_free_per_key_day: int = field(default=10, validator=ge(0))


@frozen
class Account:
    """One credential at a provider.

    Attributes:
        name: how you call it; stands on records.
        api_key: the credential itself.
        api_key_env: or the environment variable that holds it.
    """

    name: str
    api_key: Secret = field(factory=lambda: Secret(""), repr=False, eq=False, validator=_sendable)
    api_key_env: str | None = None


@frozen
class Provider:
    """One `[[provider]]`: where requests for its models go.

    Attributes:
        name: unique; the prefix that always reaches it (`name/model`).
        kind: `openai` (and anything compatible), `anthropic` or `gemini`.
        base_url: without it, the vendor's own.
        account: the credentials, as `[[provider.account]]`, tried in order.
        models: patterns of catalogue ids that it serves; empty: all of the vendor's that have a price.
        vendor: whose catalogue entries it serves; by default the kind's own vendor.
        names: catalogue id to the model's name there, where it differs.
        markup_ppm: parts per million of list price for its models, where not the general one.
        stops_billing: whether hanging up ends the bill there, if the data does not know or is wrong.
        states_input: whether its streams state the input for good at their `start` or `end`, likewise.
        stream_options: whether `stream_options` may be sent (some compatible servers refuse it).
        region: where it runs, for the record.
    """

    name: str
    kind: Literal["openai", "anthropic", "gemini"]
    base_url: str | None = field(default=None, validator=_http_url)
    account: tuple[Account, ...] = ()
    models: tuple[str, ...] = ()
    vendor: str | None = None
    names: dict[str, str] = field(factory=dict)
    markup_ppm: int | None = field(default=None, validator=optional(ge(0)))
    stops_billing: StopsBilling | None = None
    states_input: Literal["start", "end"] | None = None
    stream_options: bool = True
    region: str | None = None


@frozen
class Markup:
    """One `[[pricing.markup]]`: what models that match a pattern cost, in parts per million of list price.

    Attributes:
        models: a pattern of catalogue ids, such as `openai/gpt-4*`.
        ppm: what they cost, in parts per million of list price.
    """

    models: str
    ppm: int = field(validator=[instance_of(int), ge(0)])


@frozen
class Pricing:
    """What is charged.

    Attributes:
        markup_ppm: what callers pay, in parts per million of list price: 1000000 is list, 600000 is 60 % of it.
        markup: by model pattern; the first that matches wins over `markup_ppm`.
        files: more price files of the operator, in the format of `data/prices`; they win over ours.
        top_up_url: where callers whose credit does not suffice are sent.
    """

    markup_ppm: int = field(default=1_000_000, validator=ge(0))
    markup: tuple[Markup, ...] = ()
    files: tuple[str, ...] = ()
    top_up_url: str | None = None


@frozen
class Keys:
    """How keys look.

    Attributes:
        prefix: how new keys begin.
    """

    prefix: str = field(default="fb_sk_", validator=matches_re(r"[A-Za-z0-9_-]{1,32}"))


@frozen
class Config:
    """The whole tree.

    Attributes:
        listen, server, limits, deadlines, outbound, failover, books, holds, pricing, keys: see there.
        provider: where answers come from; without any, the environment's provider keys decide.
        unknown_fields: what happens to request fields that we do not know: `pass`, `drop` or `refuse`.
        on_hangup_hidden: what a hang-up does where reasoning is hidden or the bill runs on: `mute` reads the answer
            to its end and bills the report, `abort` closes the connection and bills an estimate.
        log_level: `debug`, `info`, `warning` or `error`.
    """

    listen: Listen = field(factory=Listen)
    server: Server = field(factory=Server)
    limits: RequestLimits = field(factory=RequestLimits)
    deadlines: Deadlines = field(factory=Deadlines)
    outbound: Outbound = field(factory=Outbound)
    failover: Failover = field(factory=Failover)
    books: Books = field(factory=Books)
    holds: Holds = field(factory=Holds)
    pricing: Pricing = field(factory=Pricing)
    keys: Keys = field(factory=Keys)
    provider: tuple[Provider, ...] = ()
    unknown_fields: Literal["pass", "drop", "refuse"] = "pass"
    on_hangup_hidden: Literal["mute", "abort"] = "mute"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


VENDOR_KEYS: Final = (
    ("openai", "openai", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    ("anthropic", "anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    ("google", "gemini", "GEMINI_API_KEY", "GEMINI_BASE_URL"),
)
"""Provider name, kind, and the variables that make one where `farebox.toml` names none."""


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the settings.

    Args:
        path: of `farebox.toml`, or `None` for defaults only.
        environ: the environment; names of variables in the file are looked up here, and where the file names no
            provider at all, the vendors' own variables make them.

    Raises:
        ConfigError: with file, key and what was expected.
    """
    where = str(path) if path is not None else "the environment"
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: is not TOML: {error}") from None
    try:
        config = _converter().structure(tree, Config)
    except Exception as error:  # noqa: BLE001 - cattrs raises groups of anything that a constructor may raise
        problems = "; ".join(cattrs.transform_error(error, path="", format_exception=_expected))
        raise ConfigError(f"{where}: {problems.replace(' @ .', ' at ')}") from None
    providers = config.provider or tuple(_from_environment(environ))
    _check_names(providers, where)
    resolved = tuple(_with_secrets(provider, environ, where) for provider in providers)
    if (config.listen.tls_certificate is None) != (config.listen.tls_key is None):
        raise ConfigError(f"{where}: listen.tls_certificate and listen.tls_key: expected both or neither")
    if (config.outbound.certificate is None) != (config.outbound.key is None):
        raise ConfigError(f"{where}: outbound.certificate and outbound.key: expected both or neither")
    return evolve(config, provider=resolved)


def settings(tree: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting there is: its dotted name, its default and what it means, in the order of the file.

    `farebox init` and README are made from this, so neither can fall behind.
    """
    meanings = _meanings(tree.__doc__ or "")
    for attribute in fields(tree):
        name = f"{prefix}{attribute.name}"
        inner = _inner(attribute.type)
        if inner is not None:
            yield from settings(inner, f"{name}.")
        else:
            default = attribute.default
            yield (
                name,
                default.factory() if hasattr(default, "factory") else default,
                meanings[attribute.name],
            )


def _inner(annotation: Any) -> type | None:
    """The class of a table or of a list of tables, or `None` for a plain value."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and has(candidate):
            return candidate
    return None


def _meanings(docstring: str) -> dict[str, str]:
    """Read the `Attributes:` section of a docstring; several names may share a meaning."""
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(docstring).partition("Attributes:\n")[2].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 4:
            head, _, text = line.strip().partition(": ")
            names = head.split(", ")
            meanings.update(dict.fromkeys(names, text))
        elif indent > 4:
            meanings.update({name: f"{meanings[name]} {line.strip()}" for name in names})
    return meanings


def _from_environment(environ: Mapping[str, str]) -> Iterator[Provider]:
    for name, kind, key, base_url in VENDOR_KEYS:
        if environ.get(key):
            try:
                yield Provider(
                    name=name,
                    kind=kind,  # type: ignore[arg-type]
                    base_url=environ.get(base_url) or None,
                    account=(Account(name="default", api_key_env=key),),
                )
            except ConfigError as error:
                raise ConfigError(f"the variable {base_url}: {error}") from None


def _check_names(providers: tuple[Provider, ...], where: str) -> None:
    names = [provider.name for provider in providers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: provider.name: expected unique names, {name!r} is there twice")
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{where}: provider.name: expected letters, digits, - and _, not {name!r}")


def _with_secrets(provider: Provider, environ: Mapping[str, str], where: str) -> Provider:
    """Look up the variables that accounts name; a server without credentials (a local one) gets an empty one."""
    accounts = []
    for account in provider.account or (Account(name="default"),):
        if account.api_key_env is not None:
            at = f"{where}: provider {provider.name!r}, account {account.name!r}"
            value = environ.get(account.api_key_env, "").strip()
            if not value:
                raise ConfigError(f"{at}: api_key_env: expected the variable {account.api_key_env} to be set")
            if account.api_key:
                raise ConfigError(f"{at}: expected api_key or api_key_env, not both")
            try:
                account = evolve(account, api_key=Secret(value))  # noqa: PLW2901 - the same, now with its key
            except ConfigError as error:
                raise ConfigError(f"{at}: the variable {account.api_key_env}: {error}") from None
        accounts.append(account)
    if len({account.name for account in accounts}) != len(accounts):
        raise ConfigError(f"{where}: provider {provider.name!r}: account.name: expected unique names")
    return evolve(provider, account=tuple(accounts))


def _converter() -> cattrs.Converter:
    """A converter that takes what TOML says literally: no text for numbers, no numbers for text."""
    converter = cattrs.Converter(forbid_extra_keys=True)

    def strict(*kinds: type) -> Any:
        def structure(value: Any, _type: Any) -> Any:
            if type(value) not in kinds:
                raise ConfigError(
                    f"expected {' or '.join(kind.__name__ for kind in kinds)}, not {value!r:.60}"
                )
            return value

        return structure

    converter.register_structure_hook(int, strict(int))
    converter.register_structure_hook(float, strict(float, int))
    converter.register_structure_hook(str, strict(str))
    converter.register_structure_hook(bool, strict(bool))
    converter.register_structure_hook(Secret, _secret)
    return converter


def _secret(value: Any, _type: Any) -> Secret:
    if not isinstance(value, str):
        raise ConfigError(f"expected str, not {type(value).__name__}")  # the value stays untold
    return Secret(value)


def _expected(error: BaseException, kind: Any) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = ", ".join(attribute.name for attribute in fields(error.cl))
        return f"unknown setting {', '.join(sorted(error.extra_fields))} (expected one of: {known})"
    if isinstance(error, KeyError):
        return f"expected a value for {error.args[0]}"
    if isinstance(error, ConfigError | ValueError) and error.args:
        return str(error.args[0])
    return f"expected {getattr(kind, '__name__', kind)}: {error}"
