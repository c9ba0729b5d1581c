"""The bench's command line: `python -m bench list | run SCENARIO … | compare | readme | plot | baseline | provider`.

    python -m bench list
    python -m bench run requests paced --seconds 5 --rounds 5
    python -m bench run saturated --start litellm --peer mine=http://127.0.0.1:9000 --peer-key mine=sk-…
    python -m bench run requests --url http://127.0.0.1:8080 --key fb_sk_… --model NAME [--pid PID]
    python -m bench run paced --url http://127.0.0.1:8080 --key … --model NAME --provider-port 9000
    python -m bench compare --start litellm
    python -m bench readme
    python -m bench plot [REPORT.json …]

Without `--url` a gateway is started for the run, with everything on. A gateway that runs already is measured behind
its own provider, as far as that goes, or behind ours: have it ask http://127.0.0.1:9000/v1, with any key, for any
model, and give `--provider-port 9000`; our provider is started with the run, or found where `python -m bench provider`
has started it. Each scenario is run direct (the ceiling of our own provider and clients), through nginx, through
Farebox and through every peer, in rounds whose order rotates. Figures are medians over the rounds, written to
`bench/results/` and shown as Markdown tables.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import compare, counters, ledger, peers, plot, readme, report, soak, start, targets
from bench.harness import ENDS, Figures, Harness, ProviderAt, provider
from bench.processes import Cores
from bench.programs import programs
from bench.rounds import DIRECT, NGINX, Series, Start
from bench.scenarios import SCENARIOS

NOT_YET: Final = 2
UNKNOWN_PROVIDER: Final = (
    "the provider behind it is not ours: its answers are as long and as quick as it pleases, and neither events nor "
    "gaps nor hang-ups can be told; for these have the gateway ask http://127.0.0.1:PORT/v1, and say "
    "--provider-port PORT"
)
FAREBOX: Final = "farebox"
URL: Final = "url"
TRANSLATION: Final = "one dialect on the client's side and another on the provider's"
OTHERS: Final = {
    "translation": f"{TRANSLATION}: not there yet",
    "ledger": ledger.TEXT,
    "start": start.TEXT,
    "soak": soak.TEXT,
}
"""Scenarios with a course of their own."""


class Shown:
    """A progress bar on standard error; a text on it says what is under way."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)
        self._begun = False

    def step(self, text: str) -> None:
        """The one before is done, the next begins."""
        self._progress.update(self._task, advance=int(self._begun), description=text)
        self._begun = True


@contextmanager
def bar(total: int | None) -> Iterator[Shown]:
    """A progress bar for the length of a `with`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Shown(progress, total)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse arguments, run, print; gives the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in {**SCENARIOS, **OTHERS}:
        words.insert(0, "run")  # a scenario's name alone runs it
    asked = parser().parse_args(words)
    try:
        status: int = asked.do(asked)
    except targets.NotHereError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """What can be asked."""
    top = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="the scenarios").set_defaults(do=_list)
    run = commands.add_parser("run", help="run scenarios and print what they measured")
    run.add_argument("scenarios", nargs="+", choices=[*SCENARIOS, *OTHERS, "all"], metavar="SCENARIO")
    run.set_defaults(do=_run)
    versus = commands.add_parser("compare", help="the table of targets: run what it needs, and judge")
    versus.add_argument("--of", type=Path, metavar="REPORT", help="judge a report again instead of running")
    versus.add_argument("--strict", action="store_true", help="exit with 1 where a target is not met")
    versus.set_defaults(do=_compare)
    for command in (run, versus):
        _add_common(command)
    shown = commands.add_parser("readme", help="put the last comparison into README: table, plot and date")
    shown.add_argument("report", nargs="?", type=Path, help="by default the newest of `compare`")
    shown.set_defaults(do=_readme)
    drawn = commands.add_parser("plot", help="draw reports as SVG, beside them")
    drawn.add_argument("reports", nargs="*", type=Path, help="by default the newest of each scenario")
    drawn.set_defaults(do=_plot)
    base = commands.add_parser("baseline", help="count the work of fixed requests; no clock is read")
    base.add_argument("--check", action="store_true", help="compare with the baseline instead of writing it")
    base.set_defaults(do=_baseline)
    alone = commands.add_parser("provider", help="run the stand-in provider alone, for a gateway of yours")
    alone.add_argument("--port", type=int, default=0)
    alone.add_argument("--programs", choices=("auto", "c", "python"), default="auto")
    alone.set_defaults(do=_provider)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--seconds", type=_positive(float), help="length of one measurement (5; of the soak 600)")
    add(
        "--rounds",
        type=_positive(int),
        default=5,
        help="alternating rounds, of which the median is shown (5)",
    )
    add(
        "--connections-max",
        type=_positive(int),
        metavar="N",
        help="shrink cases with more; the report says so",
    )
    add(
        "--targets",
        type=_names,
        metavar="A,B",
        help="only these of: direct, nginx, farebox, and the peers' names",
    )
    add("--url", help="drive this running gateway instead of starting one")
    add("--key", help="the key for it")
    add("--model", help="what the provider's model is called there")
    add("--pid", type=int, help="its process, for CPU time and memory")
    add(
        "--provider-port",
        type=int,
        metavar="PORT",
        help="have our provider listen there (or find it there): for gateways set up by hand",
    )
    add("--peer", type=_pair, action="append", default=[], metavar="NAME=URL", help="measure this one too")
    add("--peer-key", type=_pair, action="append", default=[], metavar="NAME=KEY")
    add("--peer-model", type=_pair, action="append", default=[], metavar="NAME=MODEL")
    add("--peer-pid", type=_pair, action="append", default=[], metavar="NAME=PID")
    add(
        "--start",
        type=_peer,
        action="append",
        default=[],
        metavar="NAME[==VERSION]",
        help=f"install and start: {', '.join(peers.PEERS)}",
    )
    add("--peers-dir", type=Path, metavar="DIR", help="keep what --start installs there, for the next time")
    add(
        "--programs",
        choices=("auto", "c", "python"),
        default="auto",
        help="provider and clients in C or Python",
    )
    add("--no-pin", action="store_true", help="do not bind processes to cores")
    add("--json", action="store_true", help="print JSON instead of tables")


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        number = kind(text)
        if number <= 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, not {text}")
        return number

    return read


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    if name in (DIRECT, NGINX, FAREBOX, URL, *peers.PEERS):
        raise argparse.ArgumentTypeError(f"{name} is the name of one of our own targets")
    return name, value


def _peer(text: str) -> str:
    if text.partition("==")[0] not in peers.PEERS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(peers.PEERS)}, not {text!r}")
    return text


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split(","))


# -- commands --------------------------------------------------------------------------------------


def _list(_asked: argparse.Namespace) -> int:
    for name, scenario in SCENARIOS.items():
        print(f"{name:12} {scenario.text}")
    for name, text in OTHERS.items():
        print(f"{name:12} {text}")
    return 0


def _run(asked: argparse.Namespace) -> int:
    names = list(dict.fromkeys(asked.scenarios))
    if "all" in names:
        names = [name for name in {**SCENARIOS, **OTHERS} if name != "translation"]
    status = 0
    for name in names:
        if name == "translation":
            print(
                f"{TRANSLATION}: the gateway does not translate yet, so there is nothing to measure",
                file=sys.stderr,
            )
            status = NOT_YET
        elif name == "ledger":
            _show(asked, name, ledger.run(), ledger.as_table)
        elif name == "start":
            _show(asked, name, _measure_start(asked), start.as_table)
        elif name == "soak":
            figures = _measure_soak(asked)
            _show(asked, name, figures, soak.as_table)
            status = status or int(not figures["verdict"]["flat"])
        else:
            _show(asked, name, _measure(asked, name), report.as_tables)
    return status


def _compare(asked: argparse.Namespace) -> int:
    if asked.of is not None:
        figures: Figures = json.loads(asked.of.read_text())
        print(compare.as_table(figures))
    else:
        figures = _measure_compare(asked)
        _show(asked, compare.NAME, figures, compare.as_table)
    return int(asked.strict and not compare.met(figures))


def _plot(asked: argparse.Namespace) -> int:
    reports = asked.reports or [
        path for name in (compare.NAME, *SCENARIOS, "soak") if (path := report.newest(name)) is not None
    ]
    written = [file for path in reports for file in plot.write(path)]
    for file in written:
        print(file)
    if not written:
        print("there is no report to draw: run a scenario first", file=sys.stderr)
    return int(not written)


def _readme(asked: argparse.Namespace) -> int:
    path = asked.report or report.newest(compare.NAME)
    if path is None:
        print("there is no comparison to show: run `python -m bench compare` first", file=sys.stderr)
        return 1
    for file in readme.put(json.loads(path.read_text())):
        print(file)
    return 0


def _baseline(asked: argparse.Namespace) -> int:
    found = counters.measure_apart()
    if not asked.check:
        counters.save(found)
        print(counters.as_table(found))
        return 0
    problems = counters.compare(found, counters.load())
    print("\n".join(problems) if problems else "as in the baseline")
    return int(bool(problems))


def _provider(asked: argparse.Namespace) -> int:
    with provider(programs(asked.programs), None, asked.port) as at:
        print(f"http://127.0.0.1:{at.port}/v1", flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()  # until it is closed
    return 0


def _show(asked: argparse.Namespace, name: str, figures: Figures, table: Callable[[Figures], str]) -> None:
    path = report.save(name, figures)
    print(report.as_json(figures) if asked.json else f"{table(figures)}\n\nwritten to {path}\n")


# -- measuring -------------------------------------------------------------------------------------


@contextmanager
def _harness(asked: argparse.Namespace) -> Iterator[Harness]:
    """Client and provider; a gateway that runs already has one of its own, unless it was set up for ours."""
    found, cores = programs(asked.programs), Cores.choose(pin=not asked.no_pin)
    if asked.url and asked.provider_port is None:
        yield Harness(found, cores, None)
        return
    if asked.provider_port and (there := ProviderAt(asked.provider_port, None)).stats():
        yield Harness(found, cores, there)  # `python -m bench provider` was there before
        return
    with provider(found, cores.harness, asked.provider_port or 0) as at:
        yield Harness(found, cores, at)


@contextmanager
def _series(asked: argparse.Namespace, harness: Harness) -> Iterator[Series]:
    with ExitStack() as stack:
        folder = asked.peers_dir
        if asked.start and folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-peers-")))
        starts = _starts(asked, harness, folder.resolve() if folder else None)
        if asked.targets:
            if unknown := asked.targets - set(starts):
                known = ", ".join(starts)
                raise targets.NotHereError(f"no such target: {', '.join(sorted(unknown))}; there are {known}")
            starts = {name: one for name, one in starts.items() if name in asked.targets}
        yield stack.enter_context(
            Series(harness, starts, asked.seconds or 5.0, asked.rounds, asked.connections_max)
        )


def _starts(asked: argparse.Namespace, harness: Harness, folder: Path | None) -> Mapping[str, Start]:
    """Every target of a run, by name, in the order of the tables."""
    found: dict[str, Start] = {}
    core, at = harness.cores.gateway, harness.provider
    if at is not None:
        found[DIRECT] = partial(targets.direct, at.port, core)
        found[NGINX] = partial(targets.nginx, at.port, core)
    if asked.url:
        found[URL] = partial(targets.running_already, URL, asked.url, asked.key, asked.model, asked.pid)
    elif at is not None:
        found[FAREBOX] = partial(targets.farebox, at.port, core)
    if at is not None and folder is not None:
        for name in asked.start:
            found[name.partition("==")[0]] = partial(peers.started, name, folder, at.port, core)
    keys, models, pids = dict(asked.peer_key), dict(asked.peer_model), dict(asked.peer_pid)
    for name, url in asked.peer:
        pid = int(pids[name]) if name in pids else None
        found[name] = partial(targets.running_already, name, url, keys.get(name), models.get(name), pid)
    return found


def _about(harness: Harness, series: Series) -> Figures:
    return {
        "date": f"{report.now():%Y-%m-%d}",
        "seconds": series.seconds,
        "rounds": series.rounds,
        "cores": harness.cores.said,
        "programs": harness.programs.kind,
        "on": series.on,
        "said": [*series.said, *([UNKNOWN_PROVIDER] if harness.provider is None else [])],
    }


def _measure(asked: argparse.Namespace, name: str) -> Figures:
    scenario = SCENARIOS[name]
    with _harness(asked) as harness, _series(asked, harness) as series:
        if harness.provider is None and any(case.plan(1.0).mode in ENDS for case in scenario.cases):
            raise targets.NotHereError(f"{name} cannot be measured here: {UNKNOWN_PROVIDER}")
        steps = sum(len(series.measured(case)) for case in scenario.cases) * asked.rounds
        with bar(steps) as shown:
            cases = [series.run(case, shown) for case in scenario.cases]
        return {"scenario": name, **_about(harness, series), "cases": cases}


def _measure_compare(asked: argparse.Namespace) -> Figures:
    with _harness(asked) as harness, _series(asked, harness) as series:
        at, few = harness.provider, min(asked.rounds, compare.FRESH_ROUNDS_MAX)
        starts = few if at is not None and FAREBOX in series.names else 0
        planned = [
            (key, case, compare.names(key, series.measured(case)), few if case.fresh else asked.rounds)
            for key, case in compare.CASES.items()
        ]
        with bar(sum(len(names) * rounds for _, _, names, rounds in planned) + 2 * starts) as shown:
            cases = {key: series.run(case, shown, names, rounds) for key, case, names, rounds in planned}
            begun = start.run(at.port, harness.cores.gateway, starts, shown) if at and starts else None
        return {"scenario": compare.NAME, **_about(harness, series), "cases": cases, "start": begun}


def _measure_start(asked: argparse.Namespace) -> Figures:
    with _harness(asked) as harness, bar(2 * asked.rounds) as shown:
        if harness.provider is None:
            raise targets.NotHereError("a gateway that runs already cannot be started: leave --url out")
        return {
            "scenario": "start",
            **start.run(harness.provider.port, harness.cores.gateway, asked.rounds, shown),
        }


def _measure_soak(asked: argparse.Namespace) -> Figures:
    with _harness(asked) as harness, _series(asked, harness) as series, bar(None) as shown:
        names = series.names if asked.targets else [URL if asked.url else FAREBOX]
        if len(names) > 1:
            raise targets.NotHereError(f"a soak takes one target, not {', '.join(names)}")
        if asked.url and asked.pid is None:
            raise targets.NotHereError(
                "the soak looks at memory and descriptors: name the process with --pid"
            )
        begin = series.starts[names[0]]
        if names == [FAREBOX] and harness.provider is not None:
            at, core = harness.provider, harness.cores.gateway
            begin = partial(targets.farebox, at.port, core, store_memory=soak.STORE_MEMORY)
        with begin() as target:
            found = soak.run(harness, target, asked.seconds or soak.SECONDS, shown)
            return {"scenario": "soak", "date": f"{report.now():%Y-%m-%d}", **found}


if __name__ == "__main__":
    sys.exit(main())
