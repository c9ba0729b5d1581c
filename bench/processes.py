"""The processes of a run: provider, gateway, clients; each on its own, bound to loopback, and ended at the end."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """Ours, with the checkout on the path, no proxy in the way and no settings of somebody's own gateway."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("FAREBOX_")
    }
    return {**kept, "PYTHONPATH": str(ROOT)}


def pinned(core: int | None, command: list[str]) -> list[str]:
    """A command bound to one core, where there are several and `taskset` is at hand."""
    if core is None or (os.cpu_count() or 1) < 2 or shutil.which("taskset") is None:
        return command
    return ["taskset", "-c", str(core), *command]


@contextmanager
def upstream(core: int | None) -> Iterator[int]:
    """The stand-in provider; gives its port."""
    command = pinned(core, [sys.executable, "-m", "bench.upstream"])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@contextmanager
def gateway(port: int, core: int | None) -> Iterator["Gateway"]:
    """Farebox in front of it, everything on: keys, holds, journal with fsync, metering."""
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        home = Path(folder)
        (home / "farebox.toml").write_text(
            f"""
            log_level = "warning"
            [listen]
            admin_port = 0
            [[provider]]
            name = "bench"
            kind = "openai"
            base_url = "http://127.0.0.1:{port}/v1"
            models = ["sandbox/chat"]
            stops_billing = "yes"
            [provider.names]
            "sandbox/chat" = "bench"
            [[provider.account]]
            name = "one"
            api_key = "sk-bench"
            """
        )
        command = [
            sys.executable,
            "-m",
            "proxy",
            "serve",
            "--port",
            "0",
            "--json",
            "--state",
            str(home / "state"),
        ]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                pinned(core, command),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=home,
                env=environment(),
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError((home / "log").read_text()[-4000:])
            yield Gateway(process.pid, json.loads(line), home)
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


class Gateway:
    """A running gateway, seen from outside."""

    def __init__(self, pid: int, facts: dict[str, Any], home: Path) -> None:
        self.pid, self.facts, self.home = pid, facts, home
        self.port = int(facts["base_url"].rpartition(":")[2])
        wallet = self.command("wallet", "create")["wallet"]
        self.command("topup", "--wallet", wallet, "--amount", "100000000")
        self.key = self.command("key", "create", "--wallet", wallet)["key"]

    def command(self, *arguments: str) -> dict[str, Any]:
        """Run a `farebox` command against it."""
        command = [sys.executable, "-m", "proxy", *arguments, "--json", "--state", str(self.home / "state")]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment(), cwd=self.home, timeout=120
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def cpu_seconds(self) -> float:
        """User and system time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_bytes(self) -> int:
        """Its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0


def start_load(port: int, key: str, model: str, concurrency: int, seconds: float, core: int | None) -> Any:
    """Start the client; `finish` gives its figures."""
    command = [sys.executable, "-m", "bench.load", str(port), key, model, str(concurrency), str(seconds)]
    return subprocess.Popen(pinned(core, command), stdout=subprocess.PIPE, text=True, env=environment())


def finish(process: Any, seconds: float) -> dict[str, Any]:
    """Wait for the client and read its figures."""
    out, _ = process.communicate(timeout=seconds + 120)
    if process.returncode:
        raise RuntimeError(f"the client ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found
