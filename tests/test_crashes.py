"""Stops and disasters of real processes: a drain under a crowd, disks that fail, a store that breaks or crawls."""

import signal
import time

import httpx
import pytest
import trio

from tests.conftest import running
from tests.loopback import (
    CONTENT,
    DIALECTS,
    LAST,
    Connection,
    Heard,
    buckets,
    everything,
    providers,
    question,
)

DRAIN_SECONDS = 2.5
QUICK = question("openai", "openai_yes", "tokens=1", stream=False)


def configured(path, url, *, server="", books=""):
    """A gateway's settings, with the sandbox as all its providers."""
    path.write_text(
        f"""
        log_level = "warning"
        [listen]
        admin_port = 0
        [server]
        {server}
        [books]
        segment_bytes = 1_048_576
        {books}
        {providers(url)}
        """
    )
    return ("--config", path, "--state", path.parent / "state")


# Told to stop


async def listen_on(url, key, told, number, heard):
    """One client: a stream in one dialect or another, where hanging up stops the bill or not."""
    dialect, stops = DIALECTS[number % 3], ("yes", "no")[number % 2]
    async with Connection(url, key) as connection:
        await connection.ask(*question(dialect, f"{dialect}_{stops}", told, most=5000), heard=heard)


def readiness(gate):
    return httpx.get(f"{gate.facts['admin_url']}/health/ready", trust_env=False)


async def streams_begun(heards):
    """Return when each has its first content."""
    with trio.fail_after(30):
        while not all(CONTENT[DIALECTS[number % 3]] in heard.body for number, heard in enumerate(heards)):
            await trio.sleep(0.01)


async def nobody_listens(url):
    """Return when a new connection is refused."""
    host, port = url.removeprefix("http://").split(":")
    with trio.fail_after(5):
        while True:
            try:
                (await trio.open_tcp_stream(host, int(port))).socket.close()
            except OSError:
                return
            await trio.sleep(0.01)


@pytest.mark.parametrize("crowd", [200])
async def test_sigterm_lets_streams_finish_settles_the_rest_and_exits_with_0(tmp_path, box, crowd):
    config = configured(tmp_path / "farebox.toml", box.url, server=f"drain_seconds = {DRAIN_SECONDS}")
    lasting, ending = [Heard() for _ in range(crowd // 2)], [Heard() for _ in range(crowd // 2)]
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as gate:
        wallet, key = gate.new_wallet("1000.00")
        async with trio.open_nursery() as nursery, Connection(gate.base_url, key) as idle:
            for told, heards in (("endless,gap_ms=300", lasting), ("tokens=10,gap_ms=250", ending)):
                for number, heard in enumerate(heards):
                    nursery.start_soon(listen_on, gate.base_url, key, told, number, heard)
                await streams_begun(heards)
            await idle.ask(*QUICK)
            told_at = time.monotonic()
            gate.process.send_signal(signal.SIGTERM)
            await nobody_listens(gate.base_url)
            ready = await trio.to_thread.run_sync(readiness, gate)
            assert (ready.status_code, "draining" in ready.text) == (503, True)
            with pytest.raises(OSError, match="connect"):  # its connection was idle, and is closed
                for _ in range(2):
                    await idle.ask(*QUICK)
        assert await trio.to_thread.run_sync(gate.process.wait, 10) == 0
        assert time.monotonic() - told_at < DRAIN_SECONDS + 5

    assert sum(heard.whole and heard.ended > told_at for heard in ending) >= crowd // 20
    assert not any(heard.whole for heard in lasting), "a stream that was cut looks complete"
    with running("serve", "--port", "0", *config, tmp_path=tmp_path) as gate:
        assert gate.verify()["ok"]
        records = {record["request_id"]: record for record in everything(gate)}
        assert gate.admin("wallet_show", wallet=wallet)[1]["held"] == "0.00"
    calls = {call["id"]: call for call in box.calls()}
    assert {record["upstream_id"] for record in records.values()} == calls.keys()
    assert len(records) == len(calls) == crowd + 1
    for number, heard in enumerate((*lasting, *ending)):
        record = records[heard.request]
        if heard.whole:
            assert heard.has_ended(DIALECTS[number % len(lasting) % 3])
            assert (record["status"], record["usage_source"]) == ("complete", "reported")
            assert buckets(record) == calls[record["upstream_id"]]["usage"]
        else:
            assert LAST[DIALECTS[number % len(lasting) % 3]] not in heard.body
            # the last of them may have been settled when its client was cut off
            assert record["status"] in ("shutdown", "shutdown" if number < len(lasting) else "complete")
            assert float(record["cost"]) > 0
    assert "settled_after_a_kill" not in (tmp_path / "log").read_text()
