"""The commands as a user runs them: processes, files, signals, and who may write while a gateway runs or does not."""

import csv
import json
import re
import signal
import stat
import threading
import tomllib

import httpx
import pytest

from tests.accounting.test_export import parsed
from tests.conftest import cli, running


def as_json(*arguments, **more):
    return json.loads(cli(*arguments, "--json", **more).stdout)


def test_the_demo_says_in_one_line_of_json_where_everything_is(demo):
    assert demo.facts.keys() >= {
        "base_url", "admin_url", "admin_token_file", "state_dir", "key", "wallet", "sandbox_url",
    }  # fmt: skip
    assert demo.get("/v1/credits").json()["balance"] != "0.00"


def test_the_demo_ignores_provider_keys_in_the_environment(tmp_path):
    env = {"OPENAI_API_KEY": "sk-not-to-be-used", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    with running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path, env=env) as demo:
        assert demo.chat().status_code == 200
        assert "sk-not-to-be-used" not in demo.log_path.read_text()


def test_the_state_directory_and_the_admin_token_are_private(demo):
    assert stat.S_IMODE(demo.state.stat().st_mode) == 0o700
    token = demo.state / "admin-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_the_admin_listener_refuses_without_its_token(demo):
    url = f"{demo.facts['admin_url']}/admin/wallet_list"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {demo.key}"}):
        assert httpx.post(url, headers=headers, trust_env=False).status_code == 401
    assert httpx.get(f"{demo.facts['admin_url']}/metrics", trust_env=False).status_code == 401


def test_the_api_listener_has_no_admin_routes(demo):
    answer = demo.post("/admin/wallet_list", {}, key=demo.admin_token)
    assert answer.status_code == 404


def test_books_without_a_gateway_wallet_topup_key_usage_verify(tmp_path):
    state = ("--state", tmp_path / "state")
    wallet = as_json("wallet", "create", "--name", "alice", *state)["wallet"]
    first = as_json("topup", "--wallet", wallet, "--amount", "10.00", "--ref", "inv-1", *state)
    again = as_json("topup", "--wallet", wallet, "--amount", "10.00", "--ref", "inv-1", *state)
    made = as_json("key", "create", "--wallet", wallet, "--rpm", "60", "--models", "openai/*", *state)

    assert (first["already"], again["already"]) == (False, True)
    assert again["balance"] == "10.00"
    assert made.keys() >= {"key", "key_id", "wallet"}
    assert as_json("wallet", "list", *state)["data"][0]["balance"] == "10.00"
    keys = as_json("key", "list", *state)["data"]
    assert [key["key_id"] for key in keys] == [made["key_id"]]
    assert made["key"] not in json.dumps(keys)
    assert as_json("key", "revoke", made["key_id"], *state)["revoked"] is True
    assert as_json("usage", *state)["data"] == []
    assert as_json("verify", *state) == {"ok": True, "findings": []}
    shown = as_json("wallet", "show", wallet, *state)
    assert shown["grants"][0]["remaining"] == "10.00"
    assert shown["keys"][0]["revoked"] is True


def test_a_ref_used_for_another_amount_is_refused(tmp_path):
    state = ("--state", tmp_path / "state")
    wallet = as_json("wallet", "create", *state)["wallet"]
    cli("topup", "--wallet", wallet, "--amount", "10", "--ref", "a", *state)
    done = cli("topup", "--wallet", wallet, "--amount", "20", "--ref", "a", *state, check=False)
    assert done.returncode == 1
    assert "used before" in done.stderr


@pytest.mark.parametrize("amount", ["-1", "0", "1e3", "NaN", "1,000", "0.0000000000001", "9" * 12])
def test_an_amount_that_is_no_plain_decimal_is_refused(tmp_path, amount):
    state = ("--state", tmp_path / "state")
    wallet = as_json("wallet", "create", *state)["wallet"]
    done = cli("topup", "--wallet", wallet, "--amount", amount, *state, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert as_json("wallet", "show", wallet, *state)["balance"] == "0.00"


def test_commands_reach_a_running_gateway_and_take_effect_at_once(demo):
    state = ("--state", demo.state)
    wallet = as_json("wallet", "create", *state)["wallet"]
    as_json("topup", "--wallet", wallet, "--amount", "1.00", *state)
    made = as_json("key", "create", "--wallet", wallet, *state)
    assert demo.chat(made["key"]).status_code == 200
    as_json("key", "revoke", made["key_id"], *state)
    assert demo.chat(made["key"]).status_code == 401
    assert as_json("verify", *state)["ok"] is True
    assert len(as_json("usage", "--wallet", wallet, *state)["data"]) == 1


def test_the_books_of_a_running_gateway_are_copied_given_away_and_compared(tmp_path):
    with running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path) as demo:
        state = ("--state", demo.state)
        for _ in range(5):
            assert demo.chat().status_code == 200
        as_json("backup", tmp_path / "copy", *state)
        assert demo.chat().status_code == 200
        as_json("export", "--csv", tmp_path / "csv", *state)
        ledger = cli("export", "--beancount", "-", *state).stdout
        (tmp_path / "calls.json").write_text(json.dumps({"data": demo.calls()[:3] + demo.calls()[4:]}))
        done = cli("verify", "--invoice", tmp_path / "calls.json", *state, check=False)
        assert (done.returncode, done.stdout.count("I14"), "is not in it" in done.stdout) == (1, 1, True)
        done = cli("rebuild", *state, check=False)
        assert (done.returncode, "another process" in done.stderr) == (1, True)
        assert demo.chat().status_code == 200
    assert sum(parsed(ledger)[1].values()) == 0
    assert len(list(csv.DictReader((tmp_path / "csv" / "usage.csv").read_text().splitlines()))) == 6
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"journal", "archive", "prices"}
    assert as_json("verify", "--state", tmp_path / "copy")["ok"] is True
    assert len(as_json("usage", "--state", tmp_path / "copy")["data"]) == 5


def test_two_gateways_cannot_hold_the_same_books(demo):
    done = cli("demo", "--port", "0", "--state", demo.state, "--json", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_doctor_sees_every_refusal_enforced(demo):
    found = as_json("doctor", "--state", demo.state)
    assert found["ok"] is True, found
    assert {step["status"] for step in found["steps"]} == {200, 401, 402, 404, 429}


def test_doctor_without_a_gateway_says_so(tmp_path):
    done = cli("doctor", "--state", tmp_path / "none", check=False)
    assert done.returncode == 1
    assert "no gateway" in done.stderr


def test_init_writes_a_file_that_serve_accepts_and_never_overwrites_one(tmp_path):
    cli("init", cwd=tmp_path)
    text = (tmp_path / "farebox.toml").read_text()
    tomllib.loads(text)
    assert "write_seconds" in text
    assert cli("init", cwd=tmp_path, check=False).returncode == 1
    assert cli("models", "--json", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[listen]\nport = 'x'\n", ["farebox.toml", "listen.port", "int"]),
        ("[listen]\nprot = 1\n", ["farebox.toml", "listen", "prot", "port"]),
        ("[[provider]]\nname = 'a'\n", ["farebox.toml", "provider", "kind"]),
        ("[[provider]]\nname = 'a'\nkind = 'x'\n", ["farebox.toml", "provider", "kind", "openai"]),
        ("[deadlines]\ntotal_seconds = 0\n", ["farebox.toml", "deadlines", "total_seconds"]),
        ("x = [", ["farebox.toml", "TOML"]),
    ],
)
def test_a_bad_file_is_refused_with_file_key_and_expectation(tmp_path, text, names):
    (tmp_path / "farebox.toml").write_text(text)
    done = cli("serve", "--port", "0", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [name for name in names if name not in done.stderr] == []


def test_serve_uses_the_vendors_whose_keys_stand_in_the_environment(tmp_path):
    with running("sandbox", "--port", "0", tmp_path=tmp_path) as sandbox:
        env = {
            "OPENAI_API_KEY": "sk-one",
            "OPENAI_BASE_URL": f"{sandbox.base_url}/v1",
            "ANTHROPIC_API_KEY": "sk-two",
            "ANTHROPIC_BASE_URL": sandbox.base_url,
        }
        state = tmp_path / "state"
        with running(
            "serve", "--port", "0", "--admin-port", "0", "--state", state, tmp_path=tmp_path, env=env
        ) as gate:
            key = gate.new_wallet()[1]
            assert gate.chat(key, model="gpt-4o-mini").status_code == 200
            body = {
                "model": "claude-sonnet-4-5",
                "max_tokens": 10,
                "messages": [{"role": "user", "content": "Hi"}],
            }
            assert gate.post("/v1/messages", body, key).status_code == 200
            vendors = {model["provider"] for model in gate.get("/api/models", key).json()["data"]}
            assert vendors == {"openai", "anthropic"}
            assert "sk-one" not in gate.log_path.read_text()


def test_serve_takes_accounts_in_order_and_rests_one_that_is_refused(tmp_path):
    with running("sandbox", "--port", "0", tmp_path=tmp_path) as sandbox:
        (tmp_path / "farebox.toml").write_text(
            f"""
            [listen]
            admin_port = 0
            [[provider]]
            name = "box"
            kind = "openai"
            base_url = "{sandbox.base_url}/v1"
            models = ["sandbox/chat"]
            [[provider.account]]
            name = "first"
            api_key = "sk-account-first"
            [[provider.account]]
            name = "second"
            api_key = "sk-account-second"
            """
        )
        config = ("--config", tmp_path / "farebox.toml", "--state", tmp_path / "state")
        with running("serve", "--port", "0", *config, tmp_path=tmp_path) as gate:
            key = gate.new_wallet()[1]
            assert (
                gate.chat(key, model="sandbox-chat@status=429,fail_key=first,retry_after=60").status_code
                == 200
            )
            resting = httpx.get(
                f"{gate.facts['admin_url']}/admin/accounts",
                headers={"authorization": f"Bearer {gate.admin_token}"},
                trust_env=False,
            ).json()["data"]
            assert [(one["account"], bool(one["because"]), bool(one["until"])) for one in resting] == [
                ("first", True, True)
            ]
            usage = gate.admin("usage")[1]["data"]
            assert {(one["account"], one["cost"] == "0.00") for one in usage} == {
                ("first", True),
                ("second", False),
            }


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_under_load_drains_and_exits_with_0(tmp_path, sig):
    with running("demo", "--port", "0", "--state", tmp_path / "state", tmp_path=tmp_path) as demo:
        key = demo.new_wallet()[1]
        done = []

        def stream():
            body = {
                "model": "sandbox-chat@tokens=40,gap_ms=20",
                "stream": True,
                "messages": [{"role": "user", "content": "Hi"}],
            }
            headers = {"authorization": f"Bearer {key}"}
            with httpx.stream(
                "POST",
                f"{demo.base_url}/v1/chat/completions",
                json=body,
                headers=headers,
                trust_env=False,
                timeout=60,
            ) as answer:
                begun.release()
                done.append(answer.read().endswith(b"data: [DONE]\n\n"))

        begun = threading.Semaphore(0)
        clients = [threading.Thread(target=stream) for _ in range(20)]
        for client in clients:
            client.start()
        for _ in clients:
            assert begun.acquire(timeout=30)
        assert demo.stop(sig) == 0
        for client in clients:
            client.join(30)
        assert done == [True] * 20
        state = ("--state", demo.state)
        assert as_json("verify", *state)["ok"] is True
        assert len(as_json("usage", *state)["data"]) == 20


def test_prices_check_finds_nothing_wrong_with_our_own_prices():
    assert as_json("prices", "check")["problems"] == []


def test_help_names_every_command():
    text = cli("--help").stdout
    for command in (
        "demo",
        "init",
        "serve",
        "sandbox",
        "wallet",
        "topup",
        "key",
        "models",
        "prices",
        "usage",
        "verify",
        "rebuild",
        "backup",
        "export",
    ):
        assert re.search(rf"^\s+{command}\b", text, re.MULTILINE), command
