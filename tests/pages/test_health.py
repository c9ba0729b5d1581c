"""Health: alive as long as it answers, ready as long as it should get requests."""

import pytest
from quart_trio import QuartTrio

from proxy.pages import health


@pytest.fixture
def reasons():
    return []


@pytest.fixture
def client(reasons):
    app = QuartTrio("health", static_folder=None)
    app.register_blueprint(health.build(lambda: reasons[0] if reasons else None))
    return app.test_client()


async def test_it_is_ready_as_long_as_there_is_no_reason_against_it(client):
    assert await (await client.get("/health")).get_json() == {"status": "ok"}
    answer = await client.get("/health/ready")
    assert (answer.status_code, await answer.get_json()) == (200, {"status": "ready", "db": "ok"})


@pytest.mark.parametrize(("reason", "db"), [("draining", "ok"), ("the disk is gone", "failed")])
async def test_it_is_alive_but_says_why_it_is_not_ready(client, reasons, reason, db):
    reasons.append(reason)
    assert (await client.get("/health")).status_code == 200
    answer = await client.get("/health/ready")
    assert answer.status_code == 503
    assert await answer.get_json() == {"status": "unready", "db": db, "reason": reason}


async def test_health_needs_no_key_and_has_a_request_id_behind_the_door(page):
    answer = await page.get("/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert answer.headers["x-request-id"] == "req_page_1"
