import sys

import pytest

from bench import peers
from bench.peers import PEERS, Peer, installed, started
from bench.targets import NotHereError, Target

ANSWERS = """
import http.server, os, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
pathlib.Path("environment").write_text(repr(sorted(os.environ)))
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
pathlib.Path("address").write_text(f"http://127.0.0.1:{server.server_port}/v1\\n")
server.serve_forever()
"""


@pytest.fixture
def stub(monkeypatch):
    """A peer that is installed by writing a file, and chooses its port itself."""
    installs = []

    def install(home, version):
        installs.append(version)
        (home / "start.py").write_text(ANSWERS)

    def start(_home, _port):
        return [sys.executable, "start.py"], Target("stub", "127.0.0.1", 0)

    monkeypatch.setitem(peers.PEERS, "stub", Peer("stub", "1.0", "nothing", install, start))
    return installs


def test_a_peer_is_installed_started_and_ended(stub, tmp_path):
    with started("stub", tmp_path, 1, None) as target:
        assert target.ask()[0] == 200
        assert target.pid is not None
        assert target.on == "nothing"
    with pytest.raises(OSError, match="refused"):
        target.ask()


def test_what_is_installed_is_found_again(stub, tmp_path):
    for _ in range(2):
        with started("stub", tmp_path, 1, None):
            pass
    with started("stub==2.0", tmp_path, 1, None):
        pass
    assert stub == ["1.0", "2.0"]


def test_a_peer_sees_nothing_of_our_environment(stub, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with started("stub", tmp_path, 1, None):
        seen = (tmp_path / "stub-1.0/environment").read_text()
    assert "OPENAI_API_KEY" not in seen
    assert "'PATH'" in seen


def test_a_peer_that_does_not_start_says_why(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ANSWERS", "raise SystemExit('no licence')")
    with pytest.raises(NotHereError, match="no licence"), started("stub", tmp_path, 1, None):
        pass


@pytest.mark.parametrize("version", peers.SPOILT["litellm"])
def test_releases_with_malicious_code_are_never_installed(version, tmp_path):
    with pytest.raises(NotHereError, match="malicious"):
        installed("litellm", version, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*PEERS])
def test_every_peer_is_pointed_at_our_provider_alone(name, tmp_path):
    command, target = PEERS[name].start(tmp_path, 4321)
    settings = " ".join(file.read_text() for file in tmp_path.iterdir())
    assert "http://127.0.0.1:4321/v1" in f"{settings} {target.headers}"
    assert target.host == "127.0.0.1"
    assert target.port == 0 or str(target.port) in " ".join(command)


@pytest.mark.parametrize("name", [*PEERS])
def test_the_tried_version_is_a_sound_one(name):
    assert PEERS[name].version not in peers.SPOILT.get(name, ())
