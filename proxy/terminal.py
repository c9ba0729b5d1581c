"""What the commands have in common: where settings come from, and how answers are shown."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from attrs import evolve
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from proxy import app
from proxy.config import Config, load

CONFIG_NAME: Final = "farebox.toml"

PIPE_WIDTH: Final = 240
"""Columns of a table that goes into a pipe or a file, where nobody's window is the limit."""


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` and `--state`, and hand the command a Config."""

    @click.option(
        "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), envvar="FAREBOX_CONFIG",
        help=f"Settings; by default {CONFIG_NAME} in this directory, if it is there.",
    )  # fmt: skip
    @click.option(
        "--state", type=click.Path(file_okay=False), envvar="FAREBOX_STATE",
        help="State directory: the books, the lock, the admin token.",
    )  # fmt: skip
    @wraps(command)
    def wrapped(config_path: Path | None, state: str | None, **arguments: Any) -> Any:
        if config_path is None and Path(CONFIG_NAME).is_file():
            config_path = Path(CONFIG_NAME)
        config = load(config_path, os.environ)
        if state is not None:
            config = evolve(config, books=evolve(config.books, state_dir=state))
        return command(config=config, **arguments)

    return wrapped


def with_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def ask(config: Config, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Run an operation on the running gateway, or on the books themselves."""
    return app.operate(config, operation, msgspec.json.encode(asked))


def show(answer: dict[str, Any], as_json: bool, columns: tuple[str, ...] = ()) -> None:
    """Print an answer: as JSON, as a table of its `data`, or fact by fact."""
    if as_json:
        click.echo(msgspec.json.encode(answer))
    elif columns:
        show_table(answer["data"], columns)
    else:
        show_facts(answer)


def out() -> Console:
    """Where tables and sentences go."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def show_facts(answer: dict[str, Any]) -> None:
    """Print an answer fact by fact, and what lists it has as tables."""
    table = Table(box=None, show_header=False)
    for name, value in answer.items():
        if not isinstance(value, list):
            table.add_row(name, escape(_text(value)))
    out().print(table)
    for name, value in answer.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            click.echo(f"\n{name}:")
            show_table(value, tuple(value[0]))


def show_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print these columns of some rows."""
    table = Table(box=None, header_style="bold")
    for column in columns:
        # ids are there to be copied
        table.add_column(column, overflow="fold", no_wrap=column in ("wallet", "key_id", "request_id", "id"))
    for row in rows:
        table.add_row(*(escape(_text(row.get(column))) for column in columns))
    out().print(table)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
