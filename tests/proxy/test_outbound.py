"""How providers are reached is what the settings say: through a proxy, trusting whom, showing what."""

import pytest

from proxy.app import Unavailable, http_client
from proxy.config import Config, Outbound
from proxy.errors import UpstreamFailed
from proxy.types import Secret
from proxy.upstreams.client import Call
from tests.upstreams.scripted import CERTIFICATE, PUBLIC, listening, server_context
from tests.upstreams.test_proxied import Proxy

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def script(server, stream):
    await server.read_request(stream)
    await stream.send_all(OK)


async def asked(outbound, server, scheme="https"):
    """What comes of asking by these settings."""
    client = http_client(Config(outbound=outbound))
    try:
        call = Call(f"{scheme}://127.0.0.1:{server.port}/v1/x", (), b"{}")
        return (await client.send(call, lambda: None)).status
    except UpstreamFailed:
        return None
    finally:
        await client.aclose()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "own.pem").write_text(CERTIFICATE)
    (tmp_path / "ca.pem").write_text(PUBLIC)
    return {name: str(tmp_path / f"{name}.pem") for name in ("own", "ca")}


async def test_a_private_authority_is_trusted_where_the_settings_name_it_and_only_there(tmp_path, files):
    async with listening(script, server_context(tmp_path / "pem")) as server:
        assert await asked(Outbound(ca_file=files["ca"]), server) == 200
        assert await asked(Outbound(), server) is None


async def test_a_certificate_is_shown_to_providers_that_want_one(tmp_path, files):
    context = server_context(tmp_path / "pem", client_certificates=True)
    shown = Outbound(ca_file=files["ca"], certificate=files["own"], key=files["own"])
    async with listening(script, context) as server:
        assert await asked(shown, server) == 200
        assert await asked(Outbound(ca_file=files["ca"]), server) is None


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_all_goes_through_the_proxy_that_is_named(scheme, tmp_path, files):
    proxy = Proxy()
    tls = server_context(tmp_path / "pem") if scheme == "https" else None
    async with listening(script, tls) as server, listening(proxy) as standing:
        url = Secret(f"http://127.0.0.1:{standing.port}")
        assert await asked(Outbound(proxy=url, ca_file=files["ca"]), server, scheme) == 200
        assert len(proxy.asked) == 1
        assert await asked(Outbound(ca_file=files["ca"]), server, scheme) == 200
        assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    "outbound",
    [
        lambda path: Outbound(ca_file=str(path / "none")),
        lambda _: Outbound(ca_file=__file__),
        lambda path: Outbound(certificate=str(path / "none"), key=str(path / "none")),
    ],
    ids=["no authorities", "no PEM", "no certificate"],
)
async def test_files_that_cannot_be_used_are_said_before_anything_is_served(outbound, tmp_path):
    with pytest.raises(Unavailable, match="outbound"):
        http_client(Config(outbound=outbound(tmp_path)))
