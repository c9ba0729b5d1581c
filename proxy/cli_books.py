"""Commands about the books as a whole: checked, made anew, copied, given to other tools."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from attrs import asdict
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pricing.load import load_catalog
from pricing.money import parse
from proxy import upkeep
from proxy.config import DATA, Config
from proxy.terminal import ask, show, show_table, with_config, with_json


@click.command()
@click.option(
    "--invoice",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare it with a provider's list of calls, too: JSON, or CSV with the columns id and cost.",
)
@click.option("--tolerance", default="0", help="With --invoice: a difference of one line that is none.")
@click.option(
    "--from", "begins", help="With --invoice: when its period begins; by default with its first call."
)
@click.option(
    "--to", "ends", help="With --invoice: when its period has ended; by default with its last call."
)
@with_config
@with_json
def verify(
    config: Config, as_json: bool, invoice: Path | None, tolerance: str, begins: str | None, ends: str | None
) -> None:
    """Check every invariant of the books; exit status 1 names what does not hold."""
    period = _period(begins, ends)
    found = ask(config, "verify", {})
    if invoice is not None:
        try:
            findings, found["invoice"] = upkeep.compare(
                config,
                invoice.read_bytes(),
                load_catalog(DATA, tuple(Path(file) for file in config.pricing.files)),
                tolerance=parse(tolerance),
                period=period,
            )
        except ValueError as error:
            raise click.ClickException(f"{invoice}: {error}") from None
        found["findings"] += [asdict(finding) for finding in findings]
        found["ok"] = not found["findings"]
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _show_findings(found)
    sys.exit(0 if found["ok"] else 1)


def _show_findings(found: dict[str, Any]) -> None:
    if "invoice" in found:
        show(found["invoice"], as_json=False)
    if found["ok"]:
        click.echo("All invariants hold.")
    else:
        show_table(found["findings"], ("invariant", "what", "where"))


def _period(begins: str | None, ends: str | None) -> tuple[int, int] | None:
    """A period in ms; what is not named is open."""
    if begins is None and ends is None:
        return None
    return (0 if begins is None else _ms("--from", begins)), (2**62 if ends is None else _ms("--to", ends))


def _ms(option: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"{option}: expected 2027-01-31 or 2027-01-31T12:00:00Z, not {text!r}."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@click.command()
@with_config
@with_json
def rebuild(config: Config, as_json: bool) -> None:
    """Make the store (DuckDB) anew from archive and journal, while no gateway runs."""
    with _progress("reading the journal") as told:
        last = upkeep.rebuild(config, told)
    show({"rebuilt": True, "records": last}, as_json)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@with_config
@with_json
def backup(config: Config, as_json: bool, directory: Path) -> None:
    """Copy the books, also of a running gateway, into a new directory: all that a start on it needs."""
    copied = upkeep.backup(config, directory)
    show(
        {
            "directory": str(directory),
            "records": copied.last_seq,
            "files": copied.files,
            "bytes": copied.size,
        },
        as_json,
    )


@click.command("export")
@click.option(
    "--beancount",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="The general ledger, as one file; - is standard output.",
)
@click.option(
    "--parquet", type=click.Path(file_okay=False, path_type=Path), help="All tables, into a new directory."
)
@click.option("--csv", type=click.Path(file_okay=False, path_type=Path), help="The same, as CSV.")
@with_config
@with_json
def export_command(
    config: Config, as_json: bool, beancount: str | None, parquet: Path | None, csv: Path | None
) -> None:
    """Give the books to other tools, also of a running gateway."""
    if sum(one is not None for one in (beancount, parquet, csv)) != 1:
        raise click.UsageError("Name one of --beancount, --parquet and --csv.")
    with _progress("waiting for what is written to be loaded") as told:
        if beancount == "-":
            upkeep.export_ledger(config, sys.stdout, told)
            return
        if beancount is not None:
            written = upkeep.export_ledger_file(config, Path(beancount), told)
        elif parquet is not None:
            written = upkeep.export_tables(config, parquet, "parquet", told)
        else:
            assert csv is not None  # noqa: S101 - one of the three was named
            written = upkeep.export_tables(config, csv, "csv", told)
    show({"object": "list", "data": [{"file": str(path)} for path in written]}, as_json, columns=("file",))


@contextmanager
def _progress(waiting: str) -> Iterator[upkeep.Told]:
    """Show on a terminal how far it is; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(waiting, total=None)
        yield lambda what, count: progress.update(task, description=f"{what}: {count:,}")


COMMANDS: Final = (verify, rebuild, backup, export_command)
