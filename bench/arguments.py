"""How the words of the command line are read; what cannot be meant is refused before anything is started."""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench import peers
from bench.processes import Gone, used
from bench.report import RESULTS
from bench.rounds import DIRECT, NGINX

FAREBOX: Final = "farebox"
URL: Final = "url"
"""Names of targets, beside those of the rounds."""


def common(command: argparse.ArgumentParser) -> None:
    """What `run` and `compare` both take."""
    add = command.add_argument
    add("--seconds", type=positive(float), help="length of one measurement (5; of the soak 600)")
    add(
        "--rounds",
        type=positive(int),
        default=5,
        help="alternating rounds, of which the median is shown (5)",
    )
    add(
        "--connections-max",
        type=positive(int),
        metavar="N",
        help="shrink cases with more; the report says so",
    )
    add(
        "--targets",
        type=names,
        metavar="A,B",
        help="only these of: direct, nginx, farebox, and the peers' names",
    )
    add("--url", type=url, help="drive this running gateway instead of starting one")
    add("--key", help="the key for it")
    add("--model", help="what the provider's model is called there")
    add("--pid", type=process, help="its process, for CPU time and memory")
    add(
        "--provider-port",
        type=port,
        metavar="PORT",
        help="have our provider listen there (or find it there): for gateways set up by hand",
    )
    some = partial(add, action="append", default=[])
    some("--peer", type=pair(url), metavar="NAME=URL", help="measure this one too")
    some("--peer-key", type=pair(str), metavar="NAME=KEY")
    some("--peer-model", type=pair(str), metavar="NAME=MODEL")
    some("--peer-pid", type=pair(process), metavar="NAME=PID")
    add(
        "--start",
        type=peer,
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
    add("--json", action="store_true", help="print JSON instead of tables, a line for each scenario")
    add("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where reports are written")


def positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """A number above zero."""

    def number(text: str) -> Any:
        found = kind(text)
        if not 0 < found < math.inf:  # nor is it nan
            raise argparse.ArgumentTypeError(f"expected more than 0, not {text}")
        return found

    return number


def pair(kind: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """A name of a peer, and what it is given."""

    def pair(text: str) -> tuple[str, Any]:
        name, found, value = text.partition("=")
        if not (name and found and value):
            raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
        if name in (DIRECT, NGINX, FAREBOX, URL, *peers.PEERS):
            raise argparse.ArgumentTypeError(f"{name} is the name of one of our own targets")
        return name, kind(value)

    return pair


def url(text: str) -> str:
    """The base URL of a gateway."""
    try:
        parts = urlsplit(text)
        good = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:  # of a port that is none
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"expected http://HOST:PORT, not {text!r}; TLS is not spoken here")
    return text


def port(text: str) -> int:
    """A port; 0 for any."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port, not {text!r}")
    return int(text)


def process(text: str) -> int:
    """A process that runs."""
    try:
        used(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected the number of a process, not {text!r}") from None
    except Gone:
        raise argparse.ArgumentTypeError(f"there is no process {text}") from None
    return int(text)


def report(text: str) -> Path:
    """A file with a report."""
    try:
        found = json.loads(Path(text).read_text())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "scenario" not in found:
        raise argparse.ArgumentTypeError(f"{text} is no report of the bench")
    return Path(text)


def peer(text: str) -> str:
    """A peer that can be installed, and its version."""
    if text.partition("==")[0] not in peers.PEERS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(peers.PEERS)}, not {text!r}")
    return text


def names(text: str) -> frozenset[str]:
    """Names with commas between them."""
    return frozenset(text.split(","))
