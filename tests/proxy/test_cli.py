"""The commands without a running gateway: what they print, what they refuse in one sentence, and their exit status."""

import gc
import json
import os
import runpy
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from accounting.store import NAME, Store
from proxy import app, cli
from proxy.admin_client import Unreachable
from proxy.config import DATA, ConfigError
from tests.conftest import clean_env


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty directory; gives its output, or with `status` what it died with."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env=dict.fromkeys(os.environ.keys() - clean_env().keys()))

    def run(*arguments, status=0):
        done = runner.invoke(cli.farebox, [str(argument) for argument in arguments])
        if status == 0 and done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, done.output
        return done

    return run


@pytest.fixture
def as_json(run):
    return lambda *arguments, **more: json.loads(run(*arguments, "--json", **more).stdout)


def dies(monkeypatch, capsys, error):
    """What `main` says and exits with when a command raises."""

    def fails(**_more):
        raise error

    monkeypatch.setattr(cli, "farebox", fails)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ConfigError("the sentence"), app.Unavailable("the sentence"), Unreachable("the sentence"),
     ExceptionGroup("g", [ExceptionGroup("h", [app.Unavailable("the sentence")])])],
)  # fmt: skip
def test_an_expected_failure_is_one_sentence_and_status_1(monkeypatch, capsys, error):
    assert dies(monkeypatch, capsys, error) == (1, "farebox: the sentence\n")


def test_an_unexpected_failure_is_not_hidden(monkeypatch, capsys):
    with pytest.raises(ZeroDivisionError):
        dies(monkeypatch, capsys, ZeroDivisionError())
    with pytest.raises(ExceptionGroup):
        dies(monkeypatch, capsys, ExceptionGroup("g", [ValueError(), TypeError()]))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.exceptions.Abort()])
def test_an_interrupted_command_exits_as_shells_expect(monkeypatch, capsys, error):
    assert dies(monkeypatch, capsys, error)[0] == 130


def test_a_reader_that_has_seen_enough_is_no_error_of_ours(monkeypatch, capsys, tmp_path):
    with (tmp_path / "out").open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert dies(monkeypatch, capsys, BrokenPipeError())[0] == 1


def test_a_bad_option_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["farebox", "topup"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "--wallet" in capsys.readouterr().err


def test_the_books_can_be_kept_without_a_gateway(as_json):
    wallet = as_json("wallet", "create", "--name", "alice")["wallet"]
    assert as_json("topup", "--wallet", wallet, "--amount", "2.5", "--ref", "a")["balance"] == "2.50"
    made = as_json("key", "create", "--wallet", wallet, "--models", " openai/* ,, anthropic/*", "--rpm", "5")
    assert (made["models"], made["rpm"]) == (["openai/*", "anthropic/*"], 5)
    [key] = as_json("key", "list", "--wallet", wallet)["data"]
    assert key["key_id"] == made["key_id"]
    assert as_json("key", "revoke", made["key_id"])["revoked"] is True
    assert as_json("usage", "--wallet", wallet) == {"object": "list", "data": [], "next_cursor": None}
    assert as_json("verify") == {"ok": True, "findings": []}


def test_a_key_is_changed_and_a_wallet_frozen_without_a_gateway(as_json, run):
    wallet = as_json("wallet", "create")["wallet"]
    made = as_json(
        "key", "create", "--wallet", wallet, "--rpm", "5", "--models", "openai/*", "--cap", "1.50",
        "--cap-window", "week", "--clamp",
    )  # fmt: skip
    assert (made["cap"], made["cap_window"], made["clamp"]) == ("1.50", "week", True)
    key = made["key_id"]
    changed = as_json(
        "key", "change", key, "--no-rpm", "--no-models", "--name", "n", "--expires", "2099-01-31"
    )
    assert changed == {**changed, "rpm": None, "models": [], "name": "n", "cap": "1.50", "clamp": True}
    changed = as_json("key", "change", key, "--no-cap", "--no-clamp", "--tpm", "7", "--models", "a/*, b/*")
    assert changed == {**changed, "cap": None, "clamp": False, "tpm": 7, "models": ["a/*", "b/*"]}
    changed = as_json("key", "change", key, "--cap", "3", "--no-tpm", "--no-expires", "--no-concurrency")
    assert changed == {**changed, "cap": "3.00", "cap_window": "lifetime", "tpm": None, "expires_at": None}
    assert as_json("key", "show", key) == changed == as_json("key", "list")["data"][0]
    assert changed["created_at"] == made["created_at"]
    assert as_json("wallet", "freeze", wallet)["frozen"] is True
    assert as_json("wallet", "list")["data"][0]["frozen"] is True
    assert as_json("wallet", "thaw", wallet)["frozen"] is False
    assert as_json("verify") == {"ok": True, "findings": []}
    run("key", "change", key, "--rpm", "5", "--no-rpm", status=2)
    run("key", "change", key, "--cap-window", "year", status=2)
    assert "something to change" in repr(run("key", "change", key, status=1).exception)


def test_of_a_key_only_the_options_that_are_named_are_sent(run, monkeypatch):
    asked = []

    def operate(_config, operation, arguments):
        asked.append((operation, json.loads(arguments)))
        return {}

    monkeypatch.setattr(app, "operate", operate)
    for arguments, sent in (
        (("--rpm", "5"), {"rpm": 5}),
        (("--no-cap", "--no-markup-ppm"), {"cap": None, "markup_ppm": None}),
        (("--no-models",), {"models": []}),
        (("--models", ""), {"models": []}),
        (("--no-clamp",), {"clamp": False}),
        (("--name", ""), {"name": ""}),
        ((), {}),
    ):
        run("key", "change", "k", *arguments, "--json")
        assert asked.pop() == ("key_change", {"key_id": "k", **sent})


def test_the_books_are_copied_made_anew_and_given_away(as_json, run, tmp_path):
    as_json("wallet", "create", "--name", "alice")
    copied = as_json("backup", "copy")
    assert copied == {**copied, "directory": "copy", "records": 1}
    assert as_json("verify", "--state", "copy")["ok"] is True
    assert as_json("rebuild") == {"rebuilt": True, "records": 1}
    assert (
        "alice" in run("export", "--csv", "tables").stdout or (tmp_path / "tables" / "wallet.csv").read_text()
    )
    assert "alice" in (tmp_path / "tables" / "wallet.csv").read_text()
    files = as_json("export", "--parquet", "more")["data"]
    assert {"file": "more/wallet.parquet"} in files
    assert run("export", "--beancount", "-").stdout.startswith("option ")
    run("export", "--beancount", "ledger.beancount")
    assert (tmp_path / "ledger.beancount").read_text() == run("export", "--beancount", "-").stdout
    for arguments in ((), ("--csv", "a", "--parquet", "b")):
        assert "Name one of" in run("export", *arguments, status=2).output
    assert "not empty" in str(run("backup", "copy", status=1).exception)


def test_an_invoice_is_compared_beside_the_invariants(as_json, run, tmp_path):
    as_json("wallet", "create")
    (tmp_path / "empty.csv").write_text("id,cost\n")
    found = as_json("verify", "--invoice", "empty.csv")
    assert (found["ok"], found["invoice"]["lines"]) == (True, 0)
    (tmp_path / "invoice.csv").write_text("id,cost\na,0.5\n")
    found = as_json("verify", "--invoice", "invoice.csv", status=1)
    assert [finding["invariant"] for finding in found["findings"]] == ["I14"]
    shown = run(
        "verify", "--invoice", "invoice.csv", "--from", "2026-01-01", "--to", "2026-02-01T00:00:00Z", status=1
    )
    assert "line a" in shown.stdout
    assert "difference" in shown.stdout
    (tmp_path / "odd.csv").write_text("id,price\n")
    assert "odd.csv: expected columns" in run("verify", "--invoice", "odd.csv", status=1).output
    assert "--from" in run("verify", "--invoice", "empty.csv", "--from", "May", status=2).output
    assert "plain decimal" in run("verify", "--invoice", "empty.csv", "--tolerance", "x", status=1).output


def test_reading_brings_a_store_of_an_older_version_up_to_date(as_json, tmp_path):
    as_json("wallet", "create", "--name", "alice", "--state", "state")
    (tmp_path / "state" / NAME).unlink()
    (tmp_path / "schema").mkdir()
    first = next((DATA / "schema").glob("0001_*.sql"))
    (tmp_path / "schema" / first.name).write_bytes(first.read_bytes())
    Store.open(tmp_path / "state" / NAME, memory_limit="64MB", schema_dir=tmp_path / "schema").close()
    assert as_json("usage", "--state", "state")["data"] == []
    assert as_json("verify", "--state", "state")["ok"] is True


def test_tables_show_what_is_there_whatever_it_is_called(run):
    run("wallet", "create", "--name", "[/bold] [red]odd[/red]")
    for arguments in (
        ("wallet", "list"),
        ("wallet", "show", json.loads(run("wallet", "list", "--json").stdout)["data"][0]["wallet"]),
    ):
        assert "[/bold] [red]odd[/red]" in run(*arguments).stdout


def test_verify_names_what_does_not_hold_and_exits_with_1(run, monkeypatch):
    found = {
        "ok": False,
        "findings": [{"invariant": "I7", "what": "charged [more] than held", "where": "r1"}],
    }
    monkeypatch.setattr(app, "operate", lambda *_: found)
    assert "charged [more] than held" in run("verify", status=1).stdout
    assert json.loads(run("verify", "--json", status=1).stdout) == found
    monkeypatch.setattr(app, "operate", lambda *_: {"ok": True, "findings": []})
    assert "invariants hold" in run("verify").stdout


def test_what_a_command_is_not_told_is_not_made_up(run, monkeypatch):
    asked = []

    def operate(_config, operation, arguments):
        asked.append((operation, json.loads(arguments)))
        return {"object": "list", "data": []}

    monkeypatch.setattr(app, "operate", operate)
    run("usage", "--json")
    run("topup", "--wallet", "w", "--amount", "1", "--json")
    nothing = {"request": None, "model": None, "cursor": None, "wallet": None}
    assert asked == [
        ("usage", {**nothing, "limit": 50}),
        ("top_up", {"wallet": "w", "amount": "1", "ref": None, "promo": False, "expires": None}),
    ]


def test_the_state_directory_comes_from_the_option_the_environment_or_the_file(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        app, "operate", lambda config, *_: seen.append(config.books.state_dir) or {"data": []}
    )
    run("wallet", "list")
    (tmp_path / "farebox.toml").write_text('[books]\nstate_dir = "from-file"')
    run("wallet", "list")
    run("wallet", "list", "--state", "from-option")
    (tmp_path / "other.toml").write_text('[books]\nstate_dir = "from-other"')
    run("wallet", "list", "--config", tmp_path / "other.toml")
    assert seen == ["farebox-state", "from-file", "from-option", "from-other"]


def test_init_writes_a_file_that_changes_nothing_and_never_overwrites_one(run, tmp_path):
    run("init")
    text = (tmp_path / "farebox.toml").read_text()
    run("models")
    assert "nothing was written" in run("init", status=1).stderr
    assert (tmp_path / "farebox.toml").read_text() == text
    assert "cannot be written" in run("init", "--path", tmp_path / "no" / "where", status=1).stderr


def test_models_are_those_that_are_served_and_prices_are_all(run, as_json, monkeypatch):
    listed = {one["id"] for one in as_json("prices", "list")["data"]}
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-x")
    served = {one["id"] for one in as_json("models")["data"]}
    assert {one.partition("/")[0] for one in served} == {"anthropic"}
    assert served < listed
    assert min(served) in run("models").stdout


def test_without_a_provider_models_says_what_to_do(run):
    done = run("models")
    assert "OPENAI_API_KEY" in done.stderr


def test_prices_check_exits_with_1_if_anything_looks_wrong(run, as_json, monkeypatch):
    monkeypatch.setattr(cli, "notices", lambda *_: ())
    monkeypatch.setattr(cli, "check", lambda *_: ())
    assert as_json("prices", "check")["ok"] is True
    assert "nothing looks wrong" in run("prices", "check").stdout
    monkeypatch.setattr(cli, "check", lambda *_: ("a price of zero",))
    assert run("prices", "check", status=1).stdout == "a price of zero\n"
    assert as_json("prices", "check", status=1)["problems"] == ["a price of zero"]


def test_what_time_brings_to_prices_is_said_and_is_nothing_wrong(run, as_json, monkeypatch):
    monkeypatch.setattr(cli, "check", lambda *_: ())
    monkeypatch.setattr(cli, "notices", lambda *_: ("the price changes",))
    assert "the price changes" in run("prices", "check").stdout
    assert as_json("prices", "check")["notices"] == ["the price changes"]


def test_doctor_without_a_gateway_says_so(run):
    assert isinstance(run("doctor", status=1).exception, app.Unavailable)


@pytest.mark.parametrize("command", ["demo", "serve", "sandbox"])
def test_what_runs_says_where_and_hands_on_its_exit_status(run, monkeypatch, command):
    async def runs(*arguments):
        listens.append(arguments[:-1])
        arguments[-1](
            {"base_url": "http://[::1]:5", "state_dir": "[s]", "key": "k", "wallet": "w", "balance": "1"}
        )
        return 7

    listens = []
    for name in ("run_demo", "run_gateway", "run_sandbox"):
        monkeypatch.setattr(app, name, runs)
    done = run(command, "--host", "::1", "--port", "5", "--json", status=7)
    assert json.loads(done.stdout)["base_url"] == "http://[::1]:5"
    assert "[s]" in run(command, "--port", "0", status=7).stdout
    config, *where = listens[0]
    assert (
        where == ["::1", 5]
        if command == "sandbox"
        else (config.listen.host, config.listen.port) == ("::1", 5)
    )


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(run, port):
    run("serve", "--port", port, status=2)


def test_every_command_explains_itself(run):
    def walk(command, path):
        assert command.help, path
        assert run(*path, "--help").stdout
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*path, name])

    walk(cli.farebox, [])


def test_python_m_proxy_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["farebox", "--help"])
    runpy.run_module("proxy", run_name="__main__")
    assert "one prepaid balance" in capsys.readouterr().out
    assert gc.isenabled()


def test_a_command_leaves_no_library_that_complains_at_the_end():
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "--version"],
        env=clean_env(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "version" in done.stdout
    assert done.stderr == ""


def test_what_was_imported_is_not_looked_through_by_the_collector(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "main", lambda: seen.append(gc.get_freeze_count()))
    runpy.run_module("proxy", run_name="__main__")
    assert seen[0] > 10_000
    assert (gc.get_freeze_count(), gc.isenabled()) == (0, True)
