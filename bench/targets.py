"""What is measured: the provider itself, nginx in front of it, Farebox, a gateway that runs already, and peers.

Each is a `Target`, for as long as a `with` lasts. `direct` asks the provider without anything between: the ceiling of
the harness itself. nginx passes bytes on, unbuffered, and does nothing else: the floor of what a relay costs. Farebox
has everything on that it has for paying users.
"""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from bench.processes import environment, running
from bench.shapes import Shape, body, request

READY_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 120
CREDIT: Final = "100000000"

NGINX_ON: Final = (
    "one worker, proxy_buffering off, keep-alive to the provider, TCP_NODELAY; nothing is counted"
)
KEY_LIMITS: Final = {"--rpm": 10**9, "--tpm": 10**9}
"""The highest that can be set, and so high that they never bite: counted they are all the same."""

FAREBOX_ON: Final = (
    "keys with limits per minute of requests and tokens, none of which is ever met, rolling holds, journal with "
    "fdatasync (durability = standard) on {disk}, metering, loading into the store, the usual log; requests_max is "
    "raised to {streams:,} and connections_max to {connections:,}, so that all streams may come, store_memory is "
    "{store_memory}, all else is as by default; TLS is off on both sides, as for all the others"
)
IN_MEMORY: Final = ("tmpfs", "ramfs")
"""File systems without a disk: fdatasync costs nothing there."""

FOUND: Final = "as it was found; what it needs for a stream is told by one that was just started"
UNKNOWN_PROVIDER: Final = (
    "the provider behind it is not ours: its answers are as long and as quick as it pleases, and neither events nor "
    "gaps nor hang-ups can be told; for these have the gateway ask http://127.0.0.1:PORT/v1, and say "
    "--provider-port PORT"
)


class NotHereError(Exception):
    """A target cannot be had on this machine; the message says why, and how."""


@frozen
class Target:
    """Something that answers chat completions.

    Attributes:
        name: as it stands in tables.
        host, port, path: where; the path ends in `/chat/completions`.
        authority: what the `Host` header says, where that is not host and port: a server may go by its name.
        model: what it calls the provider's model.
        headers: credentials and the like.
        pid: whose CPU time and memory are counted, with its children; `None`: nobody's.
        on: what it does beside relaying.
        ours: whether the provider behind it is our stand-in; others answer as they please.
        found: somebody else has started it, so it cannot be started anew.
    """

    name: str
    host: str
    port: int
    model: str = "bench"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(factory=dict, repr=False)
    pid: int | None = None
    on: str = ""
    authority: str = ""
    ours: bool = True
    found: bool = False

    def request(self, shape: Shape, load: str = "small") -> bytes:
        """The bytes that ask it for an answer of a shape."""
        content = body(shape, self.model, load)
        return request(self.path, self.authority or f"{self.host}:{self.port}", self.headers, content)

    def ask(self, seconds: float = 60.0) -> tuple[int, bytes]:
        """Ask for one plain answer; gives status and body."""
        connection = HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            headers = {"content-type": "application/json", **self.headers}
            if self.authority:
                headers["host"] = self.authority
            connection.request("POST", self.path, body(Shape(), self.model), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def check(self) -> None:
        """Ask once.

        Raises:
            NotHereError: there is no answer, or it is a refusal; the message has what was said.
        """
        where = f"http://{self.authority or self.host}{self.path}"
        try:
            status, said = self.ask()
        except (OSError, HTTPException) as error:
            raise NotHereError(f"{where} does not answer: {error!s:.500}") from error
        if status != 200:
            raise NotHereError(f"{where} answers with {status}: {said.decode(errors='replace'):.500}")

    def wait(self, seconds: float = READY_SECONDS, alive: Callable[[], bool] = lambda: True) -> None:
        """Return once it answers.

        Raises:
            NotHereError: it does not, or its process has ended.
        """
        until = time.monotonic() + seconds
        said: object = "nothing"
        while time.monotonic() < until and alive():
            try:
                status, said = self.ask(5.0)
            except (OSError, HTTPException) as error:
                said = error
            else:
                if status == 200:
                    return
            time.sleep(0.02)
        raise NotHereError(f"{self.name} does not answer: {said!r:.500}")


Maker = Callable[[int, int | None], AbstractContextManager[Target]]
"""Makes a target: given the provider's port and the gateway's core."""


@contextmanager
def direct(port: int, _core: int | None) -> Iterator[Target]:
    """The provider itself."""
    yield Target("direct", "127.0.0.1", port, on="no gateway: the ceiling of provider and clients")


@contextmanager
def running_already(
    name: str, url: str, key: str | None, model: str | None, pid: int | None = None, *, ours: bool = False
) -> Iterator[Target]:
    """A gateway that somebody has started, at its base URL, with or without `/v1`; in front of `ours` or of another.

    Raises:
        NotHereError: not such an address.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise NotHereError(f"{name}: expected http://HOST:PORT, not {url!r}; TLS is not spoken here")
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        host = socket.gethostbyname(parts.hostname)
    except OSError as error:
        raise NotHereError(f"{name}: no host {parts.hostname}: {error.strerror}") from error
    authority = parts.netloc.rpartition("@")[2]
    on = FOUND if ours else f"{FOUND}; {UNKNOWN_PROVIDER}"
    yield Target(
        name,
        host,
        parts.port or 80,
        model or "bench",
        path,
        headers,
        pid,
        on,
        authority,
        ours=ours,
        found=True,
    )


def placed(pid: int | None) -> str:
    """On which cores a target's process may run, as the kernel says."""
    if pid is None:
        return "its process was not named, so that its CPU time, its memory and its core are not known"
    try:
        cores = os.sched_getaffinity(pid)
    except OSError as error:
        return f"its cores are not known ({error.strerror})"
    if cores >= os.sched_getaffinity(0):
        return "not pinned"
    return f"on core{'s' if len(cores) > 1 else ''} {', '.join(map(str, sorted(cores)))}"


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that a path is on, such as `ext4`, by the longest mount point above it."""
    lines = (Path("/proc/mounts").read_text() if mounts is None else mounts).splitlines()
    found = [
        (len(where), kind)
        for _, where, kind, *_ in map(str.split, lines)
        if path.is_relative_to(where.replace("\\040", " "))
    ]
    # of two on the same place the later one is on top
    return max(reversed(found), key=lambda one: one[0], default=(0, "unknown"))[1]


def free_port() -> int:
    """A port that was free a moment ago; for programs that cannot choose one themselves."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# -- nginx -----------------------------------------------------------------------------------------

NGINX: Final = """
daemon off;
worker_processes 1;
{user}
pid {home}/pid;
error_log stderr error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 10000000;
    client_max_body_size 64m;
    client_body_buffer_size 8m;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream provider {{
        server 127.0.0.1:{provider};
        keepalive 1024;
        keepalive_requests 10000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""

NGINX_PLACES: Final = ("/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin")
"""Where packages put it; not everybody's PATH has them."""


def nginx_program() -> str | None:
    """Where nginx is, if it is."""
    return shutil.which("nginx") or next(
        (found for place in NGINX_PLACES if (found := shutil.which("nginx", path=place))), None
    )


@contextmanager
def nginx(port: int, core: int | None, *, connections: int = 65_536) -> Iterator[Target]:
    """Nginx in front of the provider.

    Raises:
        NotHereError: it is not installed, or does not start.
    """
    program = nginx_program()
    if program is None:
        raise NotHereError("nginx is not installed (Debian: nginx-light)")
    with tempfile.TemporaryDirectory(prefix="bench-nginx-") as folder:
        home, own = Path(folder), free_port()
        # as root its worker would become nobody, who may not write here
        user = "user root;" if getpass.getuser() == "root" else ""
        settings = NGINX.format(home=home, port=own, provider=port, connections=connections, user=user)
        (home / "nginx.conf").write_text(settings)
        command = [program, "-p", folder, "-e", "stderr", "-c", str(home / "nginx.conf")]
        with running(command, core=core, log=home / "log") as process:
            target = Target("nginx", "127.0.0.1", own, pid=process.pid, on=NGINX_ON)
            try:
                target.wait(10.0, lambda: process.poll() is None)
            except NotHereError as error:
                raise NotHereError(f"{error}: {(home / 'log').read_text()[-500:]}") from None
            yield target


# -- Farebox ---------------------------------------------------------------------------------------

FAREBOX: Final = """
[listen]
admin_port = 0
[limits]
requests_max = {streams}
connections_max = {connections}
[books]
store_memory = "{store_memory}"
[[provider]]
name = "bench"
kind = "openai"
base_url = "http://127.0.0.1:{provider}/v1"
models = ["sandbox/chat"]
stops_billing = "yes"
[provider.names]
"sandbox/chat" = "bench"
[[provider.account]]
name = "one"
api_key = "sk-bench"
"""
FAREBOX_MODEL: Final = "sandbox-chat"
STREAMS_MAX: Final = 20_000
"""What it admits at once; by default it is 10,000, which the idle scenario would just touch."""

STORE_MEMORY: Final = "256MB"
"""As by default."""


@frozen
class Home:
    """A folder with settings, a wallet with credit and a key, for gateways that are started on it one after another."""

    folder: Path
    key: str = field(repr=False)
    store_memory: str = STORE_MEMORY

    @classmethod
    def make(cls, folder: Path, port: int, store_memory: str = STORE_MEMORY) -> "Home":
        """Set it up in front of a provider."""
        settings = FAREBOX.format(
            provider=port, streams=STREAMS_MAX, connections=2 * STREAMS_MAX, store_memory=store_memory
        )
        (folder / "farebox.toml").write_text(settings)
        home = cls(folder, "", store_memory)
        wallet = home.command("wallet", "create")["wallet"]
        home.command("topup", "--wallet", wallet, "--amount", CREDIT)
        limits = [word for name, most in KEY_LIMITS.items() for word in (name, str(most))]
        return evolve(home, key=home.command("key", "create", "--wallet", wallet, *limits)["key"])

    @property
    def on(self) -> str:
        """What is on in gateways on it, and what is not as by default."""
        disk = file_system(self.folder.resolve())
        if disk in IN_MEMORY:
            disk += ", where that costs nothing"
        return FAREBOX_ON.format(
            disk=disk, streams=STREAMS_MAX, connections=2 * STREAMS_MAX, store_memory=self.store_memory
        )

    def arguments(self, *command: str) -> list[str]:
        """The command line of a `farebox` command on it."""
        return [sys.executable, "-m", "proxy", *command, "--json", "--state", str(self.folder / "state")]

    def command(self, *command: str) -> dict[str, Any]:
        """Run a `farebox` command on it."""
        done = subprocess.run(
            self.arguments(*command),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            cwd=self.folder,
            timeout=COMMAND_SECONDS,
        )
        if done.returncode:
            raise NotHereError(f"farebox {' '.join(command[:2])} failed: {done.stderr[-1000:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @contextmanager
    def serving(self, core: int | None) -> Iterator[Target]:
        """A gateway on it.

        Raises:
            NotHereError: it does not start.
        """
        log = self.folder / "log"
        command = self.arguments("serve", "--port", "0")
        with running(command, core=core, log=log, cwd=self.folder, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise NotHereError(f"farebox does not start: {log.read_text()[-2000:]}")
            port = int(json.loads(line)["base_url"].rpartition(":")[2])
            headers = {"authorization": f"Bearer {self.key}"}
            yield Target(
                "farebox",
                "127.0.0.1",
                port,
                FAREBOX_MODEL,
                headers=headers,
                pid=process.pid,
                on=self.on,
            )


@contextmanager
def farebox(port: int, core: int | None, *, store_memory: str = STORE_MEMORY) -> Iterator[Target]:
    """Farebox in front of the provider, on books of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder,
        Home.make(Path(folder), port, store_memory).serving(core) as target,
    ):
        yield target
