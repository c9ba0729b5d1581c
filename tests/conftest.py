"""Fixtures that several files share: a real gateway in a process of its own, and what is known of it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

# no test is timed: these machines are shared; and what fails once fails again
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS = 60
STOP_SECONDS = 30


class Running:
    """A `farebox` process that has said where it listens."""

    def __init__(self, process, facts, log):
        self.process = process
        self.facts = facts
        self.log_path = log
        self.base_url = facts.get("base_url")
        self.key = facts.get("key")
        self.wallet = facts.get("wallet")
        self.sandbox_url = facts.get("sandbox_url")
        self.state = Path(facts["state_dir"]) if facts.get("state_dir") else None

    @property
    def admin_token(self):
        return Path(self.facts["admin_token_file"]).read_text().strip()

    def admin(self, operation, **arguments):
        """Run an operation through the admin listener; gives status and body."""
        answer = httpx.post(
            f"{self.facts['admin_url']}/admin/{operation}",
            headers={"authorization": f"Bearer {self.admin_token}"},
            json=arguments,
            trust_env=False,
            timeout=60,
        )
        return answer.status_code, answer.json()

    def new_wallet(self, amount="10.00", **key):
        """A wallet with credit and a key for it; gives (wallet id, key)."""
        wallet = self.admin("wallet_create", name="test")[1]["wallet"]
        if amount:
            assert self.admin("top_up", wallet=wallet, amount=amount)[0] == 200
        status, made = self.admin("key_create", wallet=wallet, **key)
        assert status == 200, made
        return wallet, made["key"]

    def get(self, path, key=None, **more):
        return httpx.get(
            f"{self.base_url}{path}",
            headers={"authorization": f"Bearer {key or self.key}", **more.pop("headers", {})},
            trust_env=False,
            timeout=60,
            **more,
        )

    def post(self, path, body, key=None, **more):
        headers = {"authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx.post(
            f"{self.base_url}{path}", headers=headers, trust_env=False, timeout=60, **content, **more
        )

    def chat(self, key=None, model="sandbox-chat", **more):
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, **more}
        return self.post("/v1/chat/completions", body, key)

    def calls(self):
        """What the sandbox received and would invoice."""
        return httpx.get(f"{self.sandbox_url}/sandbox/calls", trust_env=False, timeout=60).json()["data"]

    def usage(self, request_id, key=None):
        answer = self.get(f"/v1/usage/{request_id}", key)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def verify(self):
        status, found = self.admin("verify")
        assert status == 200, found
        return found

    def stop(self, sig=signal.SIGTERM, seconds=STOP_SECONDS):
        """Send a signal and wait; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(seconds)


def cli(*arguments, check=True, env=None, cwd=None):
    """Run `farebox` with arguments; gives the completed process."""
    done = subprocess.run(
        [sys.executable, "-m", "proxy", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**clean_env(), **(env or {})},
        check=False,
    )
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def clean_env():
    """This environment without provider keys or proxies, with the checkout on the path."""
    dropped = ("OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_", "FAREBOX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}


def start(*arguments, env=None, cwd=None, log=None):
    """Start `farebox ARGUMENTS --json` and wait until it says where it listens."""
    log = Path(log)
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd or log.parent,
            env={**clean_env(), **(env or {})},
        )
    lines = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=READY_SECONDS)
        return Running(process, json.loads(line), log)
    except (queue.Empty, json.JSONDecodeError):
        process.kill()
        process.wait()
        process.stdout.close()
        pytest.fail(f"farebox {arguments} did not become ready:\n{log.read_text()[-4000:]}")


@contextmanager
def running(*arguments, tmp_path, env=None):
    """A gateway (or sandbox) for the length of a `with`."""
    started = start(*arguments, env=env, log=tmp_path / "log")
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            try:
                started.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()
        started.process.stdout.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A demo gateway for the whole session of this worker; tests make wallets of their own in it."""
    tmp_path = tmp_path_factory.mktemp("demo")
    with running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path) as started:
        yield started
