"""What is measured: the provider itself, nginx in front of it, Farebox, a gateway that runs already, and peers.

Each is a `Target`, for as long as a `with` lasts. `direct` asks the provider without anything between: the ceiling of
the harness itself. nginx passes bytes on, unbuffered, and does nothing else: the floor of what a relay costs. Farebox
has everything on that it has for paying users.
"""

import getpass
import json
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

from attrs import field, frozen

from bench.processes import environment, running
from bench.shapes import Shape, body, request

READY_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 120
CREDIT: Final = "100000000"

NGINX_ON: Final = (
    "one worker, proxy_buffering off, keep-alive to the provider, TCP_NODELAY; nothing is counted"
)
FAREBOX_ON: Final = (
    "keys, limits, rolling holds, journal with fdatasync (durability = standard), metering, loading into the store; "
    "TLS is off on both sides, as for all the others"
)

FOUND: Final = "as it was found; what it needs for a stream is told by one that was just started"


class NotHereError(Exception):
    """A target cannot be had on this machine; the message says why, and how."""


@frozen
class Target:
    """Something that answers chat completions.

    Attributes:
        name: as it stands in tables.
        host, port, path: where; the path ends in `/chat/completions`.
        model: what it calls the provider's model.
        headers: credentials and the like.
        pid: whose CPU time and memory are counted, with its children; `None`: nobody's.
        on: what it does beside relaying.
    """

    name: str
    host: str
    port: int
    model: str = "bench"
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(factory=dict, repr=False)
    pid: int | None = None
    on: str = ""

    def request(self, shape: Shape, load: str = "small") -> bytes:
        """The bytes that ask it for an answer of a shape."""
        content = body(shape, self.model, load)
        return request(self.path, f"{self.host}:{self.port}", self.headers, content)

    def ask(self, seconds: float = 60.0) -> tuple[int, bytes]:
        """Ask for one plain answer; gives status and body."""
        connection = HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            headers = {"content-type": "application/json", **self.headers}
            connection.request("POST", self.path, body(Shape(), self.model), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

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
    name: str, url: str, key: str | None, model: str | None, pid: int | None = None
) -> Iterator[Target]:
    """A gateway that somebody has started, at its base URL, with or without `/v1`.

    Raises:
        NotHereError: not such an address.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise NotHereError(f"{name}: expected http://HOST:PORT, not {url!r}; TLS is not spoken here")
    path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    host = socket.gethostbyname(parts.hostname)
    yield Target(name, host, parts.port or 80, model or "bench", path, headers, pid, on=FOUND)


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
log_level = "warning"
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

    @classmethod
    def make(cls, folder: Path, port: int, store_memory: str = STORE_MEMORY) -> "Home":
        """Set it up in front of a provider."""
        settings = FAREBOX.format(
            provider=port, streams=STREAMS_MAX, connections=2 * STREAMS_MAX, store_memory=store_memory
        )
        (folder / "farebox.toml").write_text(settings)
        home = cls(folder, "")
        wallet = home.command("wallet", "create")["wallet"]
        home.command("topup", "--wallet", wallet, "--amount", CREDIT)
        return cls(folder, home.command("key", "create", "--wallet", wallet)["key"])

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
                on=FAREBOX_ON,
            )


@contextmanager
def farebox(port: int, core: int | None, *, store_memory: str = STORE_MEMORY) -> Iterator[Target]:
    """Farebox in front of the provider, on books of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder,
        Home.make(Path(folder), port, store_memory).serving(core) as target,
    ):
        yield target
