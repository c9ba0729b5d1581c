"""Fixtures that several files share: a real gateway in a process of its own, and what is known of it."""

import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import httpx
import pytest
from hypothesis import settings

from proxy.config import Server
from tests import on_door
from tests.loopback import Provider, streaming

# no test is timed: these machines are shared; and what fails once fails again
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

DOORS = ("fast", "hypercorn")

ROOT = Path(__file__).resolve().parents[1]
WITH_GATEWAYS = (ROOT / "tests", ROOT / "tests/bench")
"""Where tests may start gateways: on the other door, CI collects no others."""
READY_SECONDS = 60
STOP_SECONDS = 30


def pytest_addoption(parser):
    parser.addoption("--door", choices=DOORS, default=DOORS[0], help="which door every gateway in a test has")


def pytest_configure(config):
    on_door.use(config.getoption("--door"))


def pytest_collection_modifyitems(items):
    """Mark every test that starts a gateway: it is these that have another door with `--door`."""
    for item in items:
        used = [definition.func for one in item._fixtureinfo.name2fixturedefs.values() for definition in one]
        if any(_starts_a_gateway(function, set()) for function in [item.function, *used]):
            item.add_marker("door")
            assert item.path.parent in WITH_GATEWAYS, f"{item.nodeid}: CI looks for it in {WITH_GATEWAYS}"


def _starts_a_gateway(something, looked_at):
    """Whether a function, or anything that it names among the tests' own, comes to `begin`."""
    if something is begin:
        return True
    if something in looked_at or not str(getattr(something, "__module__", "")).startswith("tests."):
        return False
    looked_at.add(something)
    if isinstance(something, type):
        return any(_starts_a_gateway(one, looked_at) for one in vars(something).values() if callable(one))
    function = inspect.unwrap(something)
    known = getattr(function, "__globals__", {})
    named = [known[name] for name in _names(getattr(function, "__code__", None)) if name in known]
    return any(_starts_a_gateway(one, looked_at) for one in named if callable(one))


def _names(code):
    """Every name in a function and in those that are written in it."""
    if not isinstance(code, CodeType):
        return
    yield from code.co_names
    for inner in code.co_consts:
        yield from _names(inner)


def farebox():
    """The command, on the door that this session tests."""
    door = Server().door
    return [sys.executable, "-m", *(["proxy"] if door == DOORS[0] else ["tests.on_door", door])]


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
        [*farebox(), *map(str, arguments)],
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


class Starting:
    """A `farebox` process that has not said yet where it listens; it may be killed before it does."""

    def __init__(self, arguments, process, log):
        self.arguments = arguments
        self.process = process
        self.log = log
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def ready(self):
        """Wait until it says where it listens; gives it as `Running`."""
        try:
            facts = json.loads(self._lines.get(timeout=READY_SECONDS))
        except (queue.Empty, json.JSONDecodeError):
            self.kill()
            pytest.fail(f"farebox {self.arguments} did not become ready:\n{self.log.read_text()[-4000:]}")
        return Running(self.process, facts, self.log)

    def kill(self):
        """As `kill -9`; returns when it is dead."""
        self.process.kill()
        self.process.wait()


def begin(*arguments, log, env=None, cwd=None, under=()):
    """Start `farebox ARGUMENTS --json` and wait for nothing; `under` is a command that runs it."""
    log = Path(log)
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [*map(str, under), *farebox(), *map(str, arguments), "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=cwd or log.parent,
            env={**clean_env(), **(env or {})},
        )
    return Starting(arguments, process, log)


@contextmanager
def running(*arguments, tmp_path, env=None, under=()):
    """A gateway (or sandbox) for the length of a `with`."""
    started = begin(*arguments, env=env, log=tmp_path / "log", under=under).ready()
    try:
        yield started
    finally:
        end(started.process)


def end(process):
    """Ask a process to stop, and see that it does."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A demo gateway for the whole session of this worker; tests make wallets of their own in it."""
    tmp_path = tmp_path_factory.mktemp("demo")
    with running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory):
    """The address of a sandbox for the whole session of this worker; it is told apart what came since when."""
    tmp_path = tmp_path_factory.mktemp("sandbox")
    with running("sandbox", "--port", "0", tmp_path=tmp_path) as started:
        yield started.base_url


@pytest.fixture
def box(sandbox):
    """What that sandbox received, and would invoice, from now on."""
    with Provider(sandbox) as provider:
        yield provider


@pytest.fixture(scope="session")
def gate(tmp_path_factory, sandbox):
    """A gateway with short deadlines, for the whole session of this worker; nothing in it may go wrong."""
    tmp_path = tmp_path_factory.mktemp("gate")
    config = streaming(tmp_path / "farebox.toml", sandbox)
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as started:
        yield started
        assert started.verify()["ok"]
        log = started.log_path.read_text()
        assert '"level":"error"' not in log, log


@pytest.fixture
def say(capsys):
    """Prints figures for people, past pytest's capture."""

    def say(text):
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return say
