"""One frozen tree of settings, from `farebox.toml` and the environment: every default and every limit stands here.

This is the only place that reads the environment. A bad file is refused with its name, the key and what was
expected (`ConfigError`), before anything is opened.
"""

from pathlib import Path
from typing import Literal

from attrs import field, frozen
from attrs.validators import ge, gt, in_, instance_of, optional

from proxy.types import Secret, StopsBilling

DATA: Path = Path(__file__).with_name("_data")
"""Prices, models and the schema, as installed; in a checkout it is `data/` at the top."""
if not DATA.is_dir():
    DATA = Path(__file__).resolve().parents[1] / "data"


class ConfigError(Exception):
    """A setting is wrong; the message names file, key and what was expected."""


def _positive(default: float) -> float:
    return field(default=default, validator=gt(0))  # type: ignore[no-any-return, call-overload]


@frozen
class Listen:
    """Where the gateway and the admin API listen.

    Attributes:
        host, port: of the API; port 0 is any free one.
        admin_host, admin_port: of the admin API and metrics; loopback unless you know better.
        allowed_hosts: `Host` headers that are answered; empty: all.
        tls_certificate, tls_key: PEM files; both or neither.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    admin_host: str = "127.0.0.1"
    admin_port: int = 8081
    allowed_hosts: tuple[str, ...] = ()
    tls_certificate: str | None = None
    tls_key: str | None = None


@frozen
class Server:
    """How client connections are kept. Hypercorn's own defaults are made for other work.

    Attributes:
        backlog: connections that the kernel may queue.
        keep_alive_seconds: how long an idle connection stays; longer than SDK pools keep theirs.
        keep_alive_requests: requests on one connection.
        header_bytes_max: of request line and headers together.
        header_seconds: to send them.
        body_seconds_min, body_bytes_per_second_min: an upload gets that many seconds, then must keep that rate.
        write_seconds: a client that takes no byte for that long is gone.
        drain_seconds: streams may run on for that long after SIGTERM.
    """

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
        body_bytes_max: of a request body.
        depth_max: nesting of its JSON.
        items_max: elements of any one array or object in it, and of all that we decode.
        messages_max, tools_max: in one request.
        frame_bytes_max: of one event from a provider.
        requests_max: under way in the whole gateway.
        muted_max, muted_per_key_max: answers that are read on for clients who left.
        connections_max: of clients.
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


@frozen
class Deadlines:
    """Seconds that each stage of an answer may take; the `reasoning` ones where reasoning may be hidden."""

    connect_seconds: float = _positive(5.0)
    first_content_seconds: float = _positive(60.0)
    first_content_reasoning_seconds: float = _positive(600.0)
    idle_seconds: float = _positive(90.0)
    idle_reasoning_seconds: float = _positive(600.0)
    total_seconds: float = _positive(3600.0)
    heartbeat_seconds: float = _positive(15.0)
    close_seconds: float = _positive(1.0)


@frozen
class Books:
    """Where the books live and how hard they are kept.

    Attributes:
        state_dir: directory of journal, store, lock and token; made with mode 0700.
        segment_bytes: size of a journal segment; preallocated.
        durability: `standard` waits for the disk before the first and the last byte of an answer. The only one so far.
        load_seconds: how often new records are loaded into the store.
        load_records_max: at most so many in one transaction.
        unloaded_max: records that may wait for the store before new requests are refused (503).
        unsynced_seconds_max: age of the oldest record not on disk before they are.
        progress_seconds, progress_tokens: how often an answer under way is written down.
        store_memory: DuckDB's memory limit.
    """

    state_dir: str = "farebox-state"
    segment_bytes: int = field(default=64 * 2**20, validator=ge(2**20))
    durability: str = field(default="standard", validator=in_(("standard",)))
    load_seconds: float = _positive(0.25)
    load_records_max: int = field(default=20_000, validator=ge(1))
    unloaded_max: int = field(default=500_000, validator=ge(100))
    unsynced_seconds_max: float = _positive(10.0)
    progress_seconds: float = _positive(2.0)
    progress_tokens: int = field(default=1000, validator=ge(1))
    store_memory: str = "256MB"


@frozen
class Account:
    """One credential at a provider.

    Attributes:
        name: how the operator calls it; stands on records.
        api_key: the credential itself.
        api_key_env: or the environment variable that holds it.
    """

    name: str
    api_key: Secret = field(factory=lambda: Secret(""), repr=False)
    api_key_env: str | None = None


@frozen
class Provider:
    """One `[[provider]]`: where requests for its models go.

    Attributes:
        name: unique; the prefix that always reaches it (`name/model`).
        kind: `openai` (and anything compatible), `anthropic` or `gemini`.
        base_url: without it, the vendor's own.
        accounts: tried in order.
        models: patterns of catalogue ids that it serves; empty: all of the vendor's that have a price.
        vendor: whose catalogue entries it serves; by default the kind's own vendor.
        names: catalogue id to the model's name there, where it differs.
        markup_ppm: parts per million of list price for its models, where not the general one.
        stops_billing: whether hanging up ends the bill there, if the data does not know or is wrong.
        stream_options: whether `stream_options` may be sent (some compatible servers refuse it).
        region: shown on offers.
    """

    name: str
    kind: Literal["openai", "anthropic", "gemini"]
    base_url: str | None = None
    accounts: tuple[Account, ...] = ()
    models: tuple[str, ...] = ()
    vendor: str | None = None
    names: dict[str, str] = field(factory=dict)
    markup_ppm: int | None = field(default=None, validator=optional(ge(0)))
    stops_billing: StopsBilling | None = None
    stream_options: bool = True
    region: str | None = None


@frozen
class Markup:
    """One `[[markup]]`: what models that match a pattern cost, in parts per million of list price."""

    models: str
    ppm: int = field(validator=[instance_of(int), ge(0)])


@frozen
class Pricing:
    """What is charged.

    Attributes:
        markup_ppm: parts per million of list price: 1_000_000 is list, 600_000 is 60 % of it.
        markups: by model pattern; the first that matches wins over `markup_ppm`.
        files: more price files of the operator, in the format of `data/prices`; they win over ours.
        top_up_url: told to callers whose credit does not suffice.
    """

    markup_ppm: int = field(default=1_000_000, validator=ge(0))
    markups: tuple[Markup, ...] = ()
    files: tuple[str, ...] = ()
    top_up_url: str | None = None


@frozen
class Keys:
    """How keys look.

    Attributes:
        prefix: of new keys.
    """

    prefix: str = "fb_sk_"


@frozen
class Config:
    """The whole tree.

    Attributes:
        unknown_fields: what happens to request fields that we do not know: `pass`, `drop` or `refuse`.
        on_hangup_hidden: what a hang-up does where reasoning is hidden or the bill runs on: `mute` reads the answer
            to its end and bills the report, `abort` closes the connection and bills an estimate.
        log_level: `debug`, `info`, `warning` or `error`.
    """

    listen: Listen = field(factory=Listen)
    server: Server = field(factory=Server)
    limits: RequestLimits = field(factory=RequestLimits)
    deadlines: Deadlines = field(factory=Deadlines)
    books: Books = field(factory=Books)
    pricing: Pricing = field(factory=Pricing)
    keys: Keys = field(factory=Keys)
    providers: tuple[Provider, ...] = ()
    unknown_fields: Literal["pass", "drop", "refuse"] = "pass"
    on_hangup_hidden: Literal["mute", "abort"] = "mute"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
