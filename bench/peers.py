"""Ready starts for other gateways: installed by their package names, only when asked for, into a throw-away folder.

Each is set up as its documents say for one OpenAI-compatible provider, without a database, so without accounts and
without anything that is counted or charged, on one worker. Packages are installed without running scripts of theirs
where the client can do so, at the versions that this was tried with; `--start NAME==VERSION` takes another. Processes
are given an environment with nothing in it but a path.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import evolve, frozen

from bench.processes import end, environment, pinned, running
from bench.targets import NotHereError, Target, free_port

INSTALL_SECONDS: Final = 600
START_SECONDS: Final = 120.0
KEY: Final = "sk-bench-0123456789"
ADDRESS: Final = "address"
"""A file in a peer's folder, for one that chooses its port itself."""

SPOILT: Final = {"litellm": ("1.82.7", "1.82.8", "1.107.0")}
"""Releases that were published by thieves, with code that steals credentials: never installed, whatever is asked."""


@frozen
class Peer:
    """A gateway that can be installed.

    Attributes:
        package: its name at its registry.
        version: the one that this was tried with.
        on: what it does in this set-up.
        install: puts it into a folder.
        start: its command line and target, given folder and the provider's port.
    """

    package: str
    version: str
    on: str
    install: Callable[[Path, str], None]
    start: Callable[[Path, int], tuple[list[str], Target]]


@contextmanager
def started(asked: str, folder: Path, port: int, core: int | None) -> Iterator[Target]:
    """A peer in front of the provider.

    Args:
        asked: `litellm`, `portkey` or `tensorzero`, or one of them with `==VERSION`.
        folder: where it is installed, and found again by the next call.
        port: the provider's.
        core: the gateway's.

    Raises:
        NotHereError: it cannot be installed, or does not start.
    """
    name, _, version = asked.partition("==")
    peer = PEERS[name]
    home = installed(name, version or peer.version, folder)
    (home / ADDRESS).unlink(missing_ok=True)
    command, target = peer.start(home, port)
    with running(command, core=core, log=home / "log", env=_bare(home), cwd=home) as process:
        try:
            found = evolve(_placed(target, home, process), pid=process.pid, on=peer.on)
            found.wait(START_SECONDS, lambda: process.poll() is None)
        except NotHereError as error:
            raise NotHereError(f"{error}: {(home / 'log').read_text(errors='replace')[-1000:]}") from None
        yield found


def _placed(target: Target, home: Path, process: "subprocess.Popen[str]") -> Target:
    """The target with the port that its program chose and wrote down, where it would have none from us."""
    until = time.monotonic() + START_SECONDS
    while not target.port and process.poll() is None and time.monotonic() < until:
        address = home / ADDRESS
        if address.exists() and (text := address.read_text()).endswith("\n"):
            return evolve(target, port=urlsplit(text.strip()).port or 0)
        time.sleep(0.05)
    return target


def installed(name: str, version: str, folder: Path) -> Path:
    """Install a peer, unless an earlier call did; gives its folder."""
    if version in SPOILT.get(name, ()):
        raise NotHereError(f"{name} {version} is a release with malicious code in it; it is not installed")
    home = folder / f"{name}-{version}"
    if not (home / "installed").exists():
        home.mkdir(parents=True, exist_ok=True)
        PEERS[name].install(home, version)
        (home / "installed").touch()
    return home


def _run(command: list[str], home: Path) -> None:
    """Run an installer, within its time."""
    with (home / "install.log").open("ab") as log:
        process = subprocess.Popen(
            pinned(None, command), stdout=log, stderr=log, text=True, env=_of_installers(), cwd=home
        )
        try:
            status = process.wait(INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            end(process, 5.0)
    if status:
        said = (home / "install.log").read_text(errors="replace")[-1500:]
        raise NotHereError(f"{' '.join(command[:3])} failed: {said}")


def _of_installers() -> dict[str, str]:
    """Installers may need the settings of their own clients, proxies among them."""
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {**environment(), **proxies, "PYTHONPATH": ""}


def _bare(home: Path) -> dict[str, str]:
    """What a peer gets to see of our environment."""
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(home), "LANG": "C.UTF-8"}


def _pip(requirement: str) -> Callable[[Path, str], None]:
    def install(home: Path, version: str) -> None:
        _run([sys.executable, "-m", "venv", str(home / "venv")], home)
        pip = [str(home / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        _run([*pip, f"{requirement}=={version}"], home)

    return install


def _npm(package: str, **overrides: str) -> Callable[[Path, str], None]:
    def install(home: Path, version: str) -> None:
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            raise NotHereError("node and npm are not installed")
        wanted = {"private": True, "dependencies": {package: version}, "overrides": overrides}
        (home / "package.json").write_text(json.dumps(wanted))
        _run([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"], home)

    return install


# -- LiteLLM ---------------------------------------------------------------------------------------

LITELLM: Final = """
model_list:
  - model_name: bench
    litellm_params:
      model: openai/bench
      api_base: http://127.0.0.1:{provider}/v1
      api_key: {key}
litellm_settings:
  telemetry: false
  num_retries: 0
router_settings:
  disable_cooldowns: true
general_settings:
  master_key: {key}
"""


def _litellm(home: Path, port: int) -> tuple[list[str], Target]:
    own = free_port()
    (home / "config.yaml").write_text(LITELLM.format(provider=port, key=KEY))
    command = [str(home / "venv/bin/litellm"), "--config", str(home / "config.yaml"), "--host", "127.0.0.1"]
    command += ["--port", str(own), "--num_workers", "1", "--telemetry", "False"]
    return command, Target("litellm", "127.0.0.1", own, headers={"authorization": f"Bearer {KEY}"})


# -- Portkey ---------------------------------------------------------------------------------------


def _portkey(home: Path, port: int) -> tuple[list[str], Target]:
    own = free_port()
    program = home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    headers = {
        "authorization": f"Bearer {KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{port}/v1",
    }
    command = [shutil.which("node") or "node", str(program), f"--port={own}", "--headless"]
    return command, Target("portkey", "127.0.0.1", own, headers=headers)


# -- TensorZero ------------------------------------------------------------------------------------

TENSORZERO: Final = """
[gateway.observability]
enabled = false
[models.bench]
routing = ["provider"]
[models.bench.providers.provider]
type = "openai"
api_base = "http://127.0.0.1:{provider}/v1"
model_name = "bench"
api_key_location = "none"
"""

TENSORZERO_START: Final = """
import pathlib, signal, tensorzero
gateway = tensorzero._start_http_gateway(
    config_file="tensorzero.toml", clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
pathlib.Path("address").write_text(gateway.base_url + "\\n")
signal.pause()
"""
"""The wheel has the HTTP gateway in it, for its own patch of the OpenAI client; it chooses its port itself."""


def _tensorzero(home: Path, port: int) -> tuple[list[str], Target]:
    (home / "tensorzero.toml").write_text(TENSORZERO.format(provider=port))
    (home / "start.py").write_text(TENSORZERO_START)
    path = "/openai/v1/chat/completions"
    target = Target("tensorzero", "127.0.0.1", 0, "tensorzero::model_name::bench", path)
    return [str(home / "venv/bin/python"), "start.py"], target


PEERS: Final = {
    "litellm": Peer(
        "litellm[proxy]",
        "1.100.5",
        "one worker, master key, no database: nothing is counted or charged",
        _pip("litellm[proxy]"),
        _litellm,
    ),
    "portkey": Peer(
        "@portkey-ai/gateway",
        "1.15.2",
        "no keys of its own, no accounts: nothing is counted or charged",
        # with newer ones streams fail with "TypeError: immutable" (Portkey-AI/gateway#1389)
        _npm("@portkey-ai/gateway", **{"@hono/node-server": "1.13.8"}),
        _portkey,
    ),
    "tensorzero": Peer(
        "tensorzero",
        "2026.6.0",
        "observability and accounts off: nothing is counted or charged",
        _pip("tensorzero"),
        _tensorzero,
    ),
}
