"""The command `farebox`: each command calls one function elsewhere and shows what it gives."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import click
import msgspec
import trio
from attrs import evolve
from rich.markup import escape

from accounting.journal import BooksFailed
from accounting.ports import Overloaded
from accounting.records import CapWindow
from pricing.catalog import Catalog, notices
from pricing.load import PriceError, check, load_catalog
from pricing.money import PPM
from proxy import app, cli_books, doctor
from proxy.admin_client import Unreachable
from proxy.config import DATA, Config, ConfigError
from proxy.config_template import template
from proxy.errors import Failure
from proxy.routing import Router
from proxy.shown import shown_model
from proxy.terminal import CONFIG_NAME, ask, out, show, show_table, with_config, with_json
from proxy.upkeep import ungrouped

DEMO_STATE: Final = "farebox-demo-state"


def main() -> None:
    """Run the command; every expected failure is one sentence on standard error and exit status 1 (or 2)."""
    try:
        with ungrouped():
            farebox(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ConfigError, PriceError, app.Unavailable, BooksFailed, Overloaded, Unreachable) as error:
        _die(str(error))
    except Failure as failure:
        _die(failure.message)
    except BrokenPipeError:  # whoever reads has seen enough, as in `farebox models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _die(message: str) -> None:
    click.echo(f"farebox: {message}", err=True)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="farebox")
def farebox() -> None:
    """A self-hosted AI credits gateway: one prepaid balance, every model, any app."""


def with_listener(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--host` and `--port`."""
    command = click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 is any free one.")(command)
    return click.option("--host", help="Address to listen on; by default loopback.")(command)


# Running it


@farebox.command()
@with_listener
@click.option("--admin-port", type=click.IntRange(0, 65535), default=0, help="Port of the admin listener.")
@click.option(
    "--state", type=click.Path(file_okay=False), default=DEMO_STATE, help="State directory of the demo."
)
@with_json
def demo(host: str | None, port: int | None, admin_port: int, state: str, as_json: bool) -> None:
    """Run a complete gateway that costs nothing: sandbox provider, demo wallet, a key ready to paste."""
    config = app.demo_config(state=state, host=host, port=port, admin_port=admin_port)
    _run(partial(app.run_demo, config), partial(_announce_demo, as_json))


@farebox.command()
@with_config
@with_listener
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port of the admin listener.")
@with_json
def serve(config: Config, host: str | None, port: int | None, admin_port: int | None, as_json: bool) -> None:
    """Run the gateway with the providers of farebox.toml, or of the environment."""
    listen = config.listen
    listen = evolve(
        listen,
        host=listen.host if host is None else host,
        port=listen.port if port is None else port,
        admin_port=listen.admin_port if admin_port is None else admin_port,
    )
    _run(partial(app.run_gateway, evolve(config, listen=listen)), partial(_announce, as_json))


@farebox.command()
@with_listener
@click.option(
    "--state", type=click.Path(file_okay=False), help="Not used: the sandbox keeps nothing on disk."
)
@with_json
def sandbox(host: str | None, port: int | None, state: str | None, as_json: bool) -> None:  # noqa: ARG001
    """Run the sandbox provider alone: a stand-in for OpenAI, Anthropic and Gemini; GET /sandbox explains it."""
    run = partial(app.run_sandbox, Config(), host or "127.0.0.1", 8090 if port is None else port)
    _run(run, partial(_announce, as_json))


def _run(run: Callable[..., Any], ready: Callable[[dict[str, Any]], None]) -> None:
    sys.exit(trio.run(run, ready))


def _announce(as_json: bool, facts: dict[str, Any]) -> None:
    if as_json:
        click.echo(msgspec.json.encode(facts))
        return
    console = out()
    for name, value in facts.items():
        console.print(f"[bold]{name.replace('_', ' ')}[/bold]  {escape(str(value))}")
    console.print("Ctrl-C stops it: streams may finish, the books are closed.")


def _announce_demo(as_json: bool, facts: dict[str, Any]) -> None:
    if as_json:
        _announce(as_json, facts)
        return
    base, key = facts["base_url"], facts["key"]
    console = out()
    console.print(
        f"[bold]Farebox is running[/bold] at {base} with a sandbox provider: nothing here costs money."
    )
    state = escape(facts["state_dir"])
    console.print(f"wallet {facts['wallet']}  balance {facts['balance']} USD  state {state}")
    console.print(f"key    [bold]{key}[/bold]\n")
    click.echo(
        f"""# curl
curl {base}/v1/chat/completions -H "Authorization: Bearer {key}" -H "content-type: application/json" \\
  -d '{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
curl -N {base}/v1/chat/completions -H "Authorization: Bearer {key}" -H "content-type: application/json" \\
  -d '{{"model": "gpt-4o-mini", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
curl {base}/v1/credits/balance -H "Authorization: Bearer {key}"

# Python, with the openai package
from openai import OpenAI
client = OpenAI(base_url="{base}/v1", api_key="{key}")
answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "Hello!"}}])
print(answer.choices[0].message.content)

# anything that speaks to Anthropic, Claude Code among them
export ANTHROPIC_BASE_URL={base}
export ANTHROPIC_AUTH_TOKEN={key}

# anything that speaks to Gemini
export GOOGLE_GEMINI_BASE_URL={base}/genai
export GEMINI_API_KEY={key}

Ctrl-C stops it: streams may finish, the books are closed."""
    )


# Settings


@farebox.command()
@click.option(
    "--path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(CONFIG_NAME),
    help="Where to write it.",
)
def init(path: Path) -> None:
    """Write a commented farebox.toml with every setting and its default."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise click.ClickException(f"{path} is there already; nothing was written.") from None
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"Wrote {path}. Name a provider in it, or set OPENAI_API_KEY …; then: farebox serve")


# The books


@farebox.group()
def wallet() -> None:
    """Wallets: who has how much."""


@wallet.command("create")
@click.option("--name", default="", help="A name to recognise it by.")
@click.option("--currency", default="USD", help="Three letters.")
@with_config
@with_json
def wallet_create(config: Config, as_json: bool, **asked: Any) -> None:
    """Make a wallet."""
    show(ask(config, "wallet_create", asked), as_json)


@wallet.command("list")
@with_config
@with_json
def wallet_list(config: Config, as_json: bool) -> None:
    """List all wallets."""
    show(
        ask(config, "wallet_list", {}),
        as_json,
        columns=("wallet", "name", "currency", "balance", "held", "available", "frozen"),
    )


@wallet.command("show")
@click.argument("wallet_id")
@with_config
@with_json
def wallet_show(config: Config, wallet_id: str, as_json: bool) -> None:
    """Show one wallet with its grants and keys."""
    show(ask(config, "wallet_show", {"wallet": wallet_id}), as_json)


@wallet.command("freeze")
@click.argument("wallet_id")
@with_config
@with_json
def wallet_freeze(config: Config, wallet_id: str, as_json: bool) -> None:
    """Freeze a wallet: it takes no new requests; what is under way is settled."""
    show(ask(config, "wallet_freeze", {"wallet": wallet_id, "frozen": True}), as_json)


@wallet.command("thaw")
@click.argument("wallet_id")
@with_config
@with_json
def wallet_thaw(config: Config, wallet_id: str, as_json: bool) -> None:
    """Let a frozen wallet take requests again."""
    show(ask(config, "wallet_freeze", {"wallet": wallet_id, "frozen": False}), as_json)


@farebox.command()
@click.option("--wallet", required=True, help="Whose.")
@click.option("--amount", required=True, help="A decimal such as 10.00.")
@click.option(
    "--ref", help="Your own reference; the same one twice is one top-up. Without it one is made and printed."
)
@click.option("--promo", is_flag=True, help="Promotional credit: an expense, burned before paid credit.")
@click.option("--expires", help="When it expires: 2027-01-31 or 2027-01-31T12:00:00Z.")
@with_config
@with_json
def topup(config: Config, as_json: bool, **asked: Any) -> None:
    """Put credit into a wallet."""
    show(ask(config, "top_up", asked), as_json)


@farebox.group()
def key() -> None:
    """Keys: who may spend from a wallet, and how fast."""


def with_limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each limit of a key."""
    for option in reversed(
        (
            click.option("--rpm", type=int, help="Requests per minute."),
            click.option("--tpm", type=int, help="Tokens per minute."),
            click.option("--concurrency", type=int, help="Requests under way at once."),
            click.option(
                "--models", help="Comma-separated patterns such as openai/*,anthropic/claude-haiku-*."
            ),
            click.option("--expires", help="When it expires: 2027-01-31 or 2027-01-31T12:00:00Z."),
            click.option("--markup-ppm", type=int, help="What it pays, in parts per million of list price."),
            click.option("--cap", help="Most that it may spend in one window: a decimal such as 10.00."),
            click.option(
                "--cap-window",
                type=click.Choice(get_args(CapWindow)),
                help="How long such a window is; days, weeks (from Monday) and months of UTC.",
            ),
        )
    ):
        command = option(command)
    return command


@key.command("create")
@click.option("--wallet", required=True, help="Whose money it spends.")
@click.option("--name", default="", help="A name to recognise it by.")
@with_limits
@click.option(
    "--clamp", is_flag=True, help="Lower a bound on output that the credit cannot bear, not refuse it."
)
@with_config
@with_json
def key_create(
    config: Config, as_json: bool, models: str | None, cap_window: str | None, **asked: Any
) -> None:
    """Make a key; it is shown once."""
    asked["models"] = _patterns(models)
    if cap_window is not None:
        asked["cap_window"] = cap_window
    show(ask(config, "key_create", asked), as_json)


REMOVABLE: Final = ("rpm", "tpm", "concurrency", "models", "expires", "markup_ppm", "cap")


def with_removals(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each limit that can be taken away."""
    for name in reversed(REMOVABLE):
        option = f"--no-{name.replace('_', '-')}"
        command = click.option(option, is_flag=True, help=f"Take --{option[5:]} away.")(command)
    return command


@key.command("change")
@click.argument("key_id")
@click.option("--name", help="A name to recognise it by.")
@with_limits
@click.option("--clamp/--no-clamp", default=None, help="Lower a bound on output that the credit cannot bear.")
@with_removals
@with_config
@with_json
def key_change(config: Config, as_json: bool, key_id: str, **asked: Any) -> None:
    """Change a key's limits, from the next request on; what is not named stays."""
    removed = [name for name in REMOVABLE if asked.pop(f"no_{name}")]
    changes = {name: value for name, value in asked.items() if value is not None}
    for name in removed:
        if name in changes:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} and --no-{option} contradict each other.")
        changes[name] = None
    if "models" in changes:
        changes["models"] = _patterns(changes["models"])
    show(ask(config, "key_change", {"key_id": key_id, **changes}), as_json)


def _patterns(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


@key.command("show")
@click.argument("key_id")
@with_config
@with_json
def key_show(config: Config, as_json: bool, key_id: str) -> None:
    """Show one key with its limits, and what it has spent under its cap; never the key itself."""
    show(ask(config, "key_show", {"key_id": key_id}), as_json)


@key.command("list")
@click.option("--wallet", help="Only of this wallet.")
@with_config
@with_json
def key_list(config: Config, as_json: bool, wallet: str | None) -> None:
    """List keys; never the keys themselves."""
    columns = ("key_id", "wallet", "hint", "name", "rpm", "concurrency", "cap", "cap_window", "cap_spent", "clamp",
               "expires_at", "revoked")  # fmt: skip
    show(ask(config, "key_list", {"wallet": wallet}), as_json, columns=columns)


@key.command("revoke")
@click.argument("key_id")
@with_config
@with_json
def key_revoke(config: Config, as_json: bool, key_id: str) -> None:
    """Revoke a key; the next request with it is refused."""
    show(ask(config, "key_revoke", {"key_id": key_id}), as_json)


@farebox.command()
@click.option("--wallet", help="Only of this wallet.")
@click.option("--request", help="All attempts of one request.")
@click.option("--model", help="Only of this model.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50)
@click.option("--cursor", help="The next_cursor of the page before.")
@with_config
@with_json
def usage(config: Config, as_json: bool, **asked: Any) -> None:
    """List usage records, newest first."""
    columns = (
        "created_at",
        "request_id",
        "model",
        "status",
        "usage_source",
        "input_tokens",
        "output_tokens",
        "cost",
    )
    show(ask(config, "usage", asked), as_json, columns=columns)


@farebox.command("doctor")
@click.option("--base-url", help="Of the gateway; by default the one that runs on this state directory.")
@click.option("--model", help="What to ask for the paid call; by default the cheapest that is served.")
@with_config
@with_json
def doctor_command(config: Config, base_url: str | None, model: str | None, as_json: bool) -> None:
    """Provoke a 401, 402, 404, 429 and one paid call against the running gateway, and show each answer."""
    admin = app.running(config)
    if admin is None:
        raise app.Unavailable(
            "no gateway runs on this state directory; start one with `farebox serve` or `demo`"
        )
    steps = doctor.examine(admin, base_url or admin.address.base_url, model)
    if as_json:
        click.echo(
            msgspec.json.encode({"ok": all(step.ok for step in steps), "steps": [s.shown() for s in steps]})
        )
    else:
        show_table([step.shown() for step in steps], ("step", "ok", "expected", "status", "answer"))
    sys.exit(0 if all(step.ok for step in steps) else 1)


for command in cli_books.COMMANDS:
    farebox.add_command(command)


# Models and prices


def _catalog(config: Config) -> Catalog:
    return load_catalog(DATA, tuple(Path(file) for file in config.pricing.files))


@farebox.command()
@with_config
@with_json
def models(config: Config, as_json: bool) -> None:
    """List the models that these settings serve, with their prices."""
    data = [shown_model(one.model, one.price) for one in Router(_catalog(config), config, app.today).models()]
    if not data:
        click.echo(
            "No provider is set up: name one in farebox.toml, or set OPENAI_API_KEY and the like.", err=True
        )
    columns = (
        "id",
        "provider",
        "context_window",
        "max_output_tokens",
        "input_cost_per_1m",
        "output_cost_per_1m",
    )
    show({"object": "list", "data": data}, as_json, columns=columns)


@farebox.group()
def prices() -> None:
    """The price list."""


@prices.command("list")
@with_config
@with_json
def prices_list(config: Config, as_json: bool) -> None:
    """List every model that has a price, served or not, at list price."""
    catalog, day = _catalog(config), app.today()
    priced = (one for one in catalog.models.values() if one.tiers_on(day))
    data = [shown_model(one, catalog.price(one, PPM, day)) for one in priced]
    columns = ("id", "context_window", "max_output_tokens", "input_cost_per_1m", "cache_read_cost_per_1m",
               "output_cost_per_1m")  # fmt: skip
    show({"object": "list", "price_version": catalog.version, "data": data}, as_json, columns=columns)


@prices.command("check")
@with_config
@with_json
def prices_check(config: Config, as_json: bool) -> None:
    """Read all price files and name what looks wrong (exit status 1), and what time brings (0)."""
    catalog = _catalog(config)
    problems, soon = check(catalog, app.today()), notices(catalog, app.today())
    if as_json:
        found = {"ok": not problems, "price_version": catalog.version, "problems": problems, "notices": soon}
        click.echo(msgspec.json.encode(found))
    else:
        nothing = f"{len(catalog.models)} models, version {catalog.version}: nothing looks wrong."
        click.echo("\n".join((*(problems or (nothing,)), *soon)))
    sys.exit(1 if problems else 0)
