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
Farebox and through every peer, in rounds whose order rotates. Figures are medians over the rounds, shown as Markdown
tables and written to `bench/results/` as JSON and as Markdown. With `--json` each scenario is one line of JSON.

The exit status is 0 where all that was asked for was measured; 1 where something did not answer at all, did not come
up, or was judged and failed; 2 where the command line cannot be understood; 130 after Ctrl-C, 128 and the number of
the signal after another one. Whatever was started is ended, then, too.
"""

import argparse
import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import (
    arguments,
    baseline,
    compare,
    counters,
    ledger,
    peers,
    plot,
    readme,
    report,
    soak,
    start,
    targets,
)
from bench.arguments import FAREBOX, URL
from bench.harness import ENDS, Figures, Harness, ProviderAt, provider
from bench.processes import Cores, Gone, children, end_others, used
from bench.programs import Programs, programs
from bench.rounds import DIRECT, NGINX, Series, Start
from bench.scenarios import SCENARIOS
from bench.targets import Target

NOT_YET: Final = 2
INTERRUPTED: Final = 130
"""As a shell says it of what Ctrl-C has ended."""

ALIVE_SECONDS: Final = 1.0
"""How often `bench provider` looks whether its program still runs."""

ONE_CORE: Final = (
    "one core for all: what provider and clients take the gateway lacks, so that rates and delays are those of "
    "the whole, and * stands where that core was full; CPU time is the gateway's own all the same"
)
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


def main(given: Sequence[str] | None = None) -> int:
    """Parse what is given, run, print; gives the exit status."""
    words = list(sys.argv[1:] if given is None else given)
    if words and words[0] in {**SCENARIOS, **OTHERS}:
        words.insert(0, "run")  # a scenario's name alone runs it
    asked = parser().parse_args(words)
    try:
        with _signals_unwind():
            status: int = asked.do(asked)
    except (targets.NotHereError, Gone) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Make the signals that end us leave every `with`: else processes and folders, one with a key, would stay."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)  # we are going; a second one would cut the cleaning short
        sys.exit(128 + number)

    asked = (signal.SIGTERM, signal.SIGHUP)
    # what `nohup` has made us ignore stays so
    before = {one: usual for one in asked if (usual := signal.getsignal(one)) != signal.SIG_IGN}
    for one in before:
        signal.signal(one, leave)
    known = children(os.getpid())
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        end_others(known)
        raise
    finally:
        for one, usual in before.items():
            signal.signal(one, usual)


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
    versus.add_argument(
        "--of", type=arguments.report, metavar="REPORT", help="judge a report again instead of running"
    )
    versus.add_argument("--strict", action="store_true", help="exit with 1 where a target is not met")
    versus.set_defaults(do=_compare)
    for command in (run, versus):
        arguments.common(command)
    shown = commands.add_parser("readme", help="put the last comparison into README: table, plot and date")
    shown.add_argument("report", nargs="?", type=arguments.report, help="by default the newest of `compare`")
    shown.set_defaults(do=_readme)
    drawn = commands.add_parser("plot", help="draw reports as SVG, beside them")
    drawn.add_argument(
        "reports", nargs="*", type=arguments.report, help="by default the newest of each scenario"
    )
    drawn.set_defaults(do=_plot)
    base = commands.add_parser("baseline", help="count the work of fixed requests; no clock is read")
    base.add_argument("--check", action="store_true", help="compare with the baseline instead of writing it")
    base.set_defaults(do=_baseline)
    alone = commands.add_parser("provider", help="run the stand-in provider alone, for a gateway of yours")
    alone.add_argument("--port", type=arguments.port, default=0)
    alone.add_argument("--programs", choices=("auto", "c", "python"), default="auto")
    alone.set_defaults(do=_provider)
    return top


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
            with bar(ledger.ROWS) as shown:
                figures = ledger.run(shown)
            _show(asked, name, figures, ledger.as_table)
        elif name == "start":
            _show(asked, name, _measure_start(asked), start.as_table)
        elif name == "soak":
            figures = _measure_soak(asked)
            _show(asked, name, figures, soak.as_table)
            status = status or int(not figures["verdict"]["flat"])
        else:
            figures = _measure(asked, name)
            _show(asked, name, figures, report.as_tables)
            status = status or _lacking(asked, figures)
    return status


def _compare(asked: argparse.Namespace) -> int:
    if asked.of is not None:
        figures = _comparison(asked.of)
        print(compare.as_table(figures))
        lacking = 0
    else:
        figures = _measure_compare(asked)
        _show(asked, compare.NAME, figures, compare.as_table)
        lacking = _lacking(asked, figures)
    return lacking or int(asked.strict and not compare.met(figures))


def _comparison(path: Path) -> Figures:
    figures: Figures = json.loads(path.read_text())
    if figures["scenario"] != compare.NAME:
        raise targets.NotHereError(f"{path} is no comparison, but one of {figures['scenario']}")
    return figures


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
    for file in readme.put(_comparison(path)):
        print(file)
    return 0


def _baseline(asked: argparse.Namespace) -> int:
    found = counters.measure_apart()
    if not asked.check:
        baseline.save(found)
        print(baseline.as_table(found))
        return 0
    recorded = baseline.load()
    problems = baseline.compare(found, recorded)
    print("\n".join([*(problems or ["as in the baseline"]), baseline.closeness(recorded)]))
    return int(bool(problems))


def _provider(asked: argparse.Namespace) -> int:
    with ExitStack() as stack:
        at = _our_provider(asked.programs, None, asked.port, stack)
        assert at.pid is not None
        print(f"http://127.0.0.1:{at.port}/v1", flush=True)
        while True:  # until standard input is closed
            ready, _, _ = select.select([sys.stdin], [], [], ALIVE_SECONDS)
            if ready and not os.read(sys.stdin.fileno(), 1 << 16):
                return 0
            used(at.pid)  # tells if it has ended


def _show(asked: argparse.Namespace, name: str, figures: Figures, table: Callable[[Figures], str]) -> None:
    """Print, and only then save: what took minutes is not lost to a folder that may not be written."""
    text = table(figures)
    print(report.as_json(figures, indent=None) if asked.json else f"{text}\n", flush=True)
    try:
        path = report.save(name, figures, text, asked.out)
    except OSError as error:
        print(f"not saved: {error}; --out FOLDER takes another place", file=sys.stderr)
    else:
        print(f"written to {path}\n", file=sys.stderr)


def _lacking(asked: argparse.Namespace, figures: Figures) -> int:
    """1, with the reasons on standard error, where something that was asked for has not been measured."""
    reasons = report.unanswered(figures)
    # whoever has not named nginx may do without it
    optional = () if asked.targets else (NGINX,)
    reasons += [f"{name}: {why}" for name, why in figures["missing"].items() if name not in optional]
    for reason in reasons:
        print(reason, file=sys.stderr)
    return int(bool(reasons))


# -- measuring -------------------------------------------------------------------------------------


@contextmanager
def _harness(asked: argparse.Namespace) -> Iterator[Harness]:
    """Client and provider; a gateway that runs already has one of its own, unless it was set up for ours."""
    cores = Cores.choose(pin=not asked.no_pin)
    with ExitStack() as stack:
        at: ProviderAt | None = None
        if asked.provider_port and _is_ours(there := ProviderAt(asked.provider_port, None)):
            at = there.adopted(cores.harness)  # `python -m bench provider` was there before
        elif asked.provider_port is not None or not asked.url:
            at = _our_provider(asked.programs, cores.harness, asked.provider_port or 0, stack)
        yield Harness(_programs(asked.programs), cores, at)


def _programs(language: str) -> Programs:
    try:
        return programs(language)
    except RuntimeError as error:
        raise targets.NotHereError(f"--programs {language}: {error}") from error


def _is_ours(there: ProviderAt) -> bool:
    """Whether it is the stand-in that answers there, and nobody else with JSON."""
    stats: Any = there.stats()
    return isinstance(stats, dict) and "closed" in stats


def _our_provider(language: str, core: int | None, port: int, stack: ExitStack) -> ProviderAt:
    try:
        return stack.enter_context(provider(_programs(language), core, port))
    except RuntimeError as error:
        said = str(error).strip().rpartition("\n")[2]
        raise targets.NotHereError(f"our provider cannot listen on port {port}: {said}") from error


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
    ours = (
        asked.provider_port is not None
    )  # what runs already can only have been set up for a port that is named
    if asked.url:
        found[URL] = partial(_answering, URL, asked.url, asked.key, asked.model, asked.pid, ours=ours)
    elif at is not None:
        found[FAREBOX] = partial(targets.farebox, at.port, core)
    if at is not None and folder is not None:
        for name in asked.start:
            found[name.partition("==")[0]] = partial(peers.started, name, folder, at.port, core)
    keys, models, pids = dict(asked.peer_key), dict(asked.peer_model), dict(asked.peer_pid)
    for name, url in asked.peer:
        found[name] = partial(
            _answering, name, url, keys.get(name), models.get(name), pids.get(name), ours=ours
        )
    return found


@contextmanager
def _answering(
    name: str, url: str, key: str | None, model: str | None, pid: int | None, *, ours: bool
) -> Iterator[Target]:
    """A gateway that runs already, once it has answered: a wrong key is told now, and not as so many failures."""
    with targets.running_already(name, url, key, model, pid, ours=ours) as target:
        target.check()
        yield target


def _about(harness: Harness, series: Series) -> Figures:
    return {
        "date": f"{report.now():%Y-%m-%d}",
        "seconds": series.seconds,
        "rounds": series.rounds,
        "cores": harness.cores.said,
        "programs": harness.programs.kind,
        "on": series.on,
        "said": [
            *series.said,
            *([ONE_CORE] if harness.cores.shared else []),
            *([harness.provider.said] if harness.provider is not None and harness.provider.said else []),
        ],
        "missing": series.missing,
    }


def _ask_first(series: Series) -> None:
    """See that the gateway that was named with `--url` answers, before anybody is measured.

    Raises:
        NotHereError: it does not answer.
    """
    if URL in series.starts:
        with series.starts[URL]():
            pass


def _measure(asked: argparse.Namespace, name: str) -> Figures:
    scenario = SCENARIOS[name]
    with _harness(asked) as harness, _series(asked, harness) as series:
        if harness.provider is None and any(case.plan(1.0).mode in ENDS for case in scenario.cases):
            raise targets.NotHereError(f"{name} cannot be measured here: {targets.UNKNOWN_PROVIDER}")
        _ask_first(series)
        steps = sum(len(series.measured(case)) for case in scenario.cases) * asked.rounds
        with bar(steps) as shown:
            cases = [series.run(case, shown) for case in scenario.cases]
        return {"scenario": name, **_about(harness, series), "cases": cases}


def _measure_compare(asked: argparse.Namespace) -> Figures:
    with _harness(asked) as harness, _series(asked, harness) as series:
        _ask_first(series)
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
