import pytest

from bench import targets
from bench.targets import NotHereError, Target, nginx, running_already


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://127.0.0.1:8080", "/v1/chat/completions"),
        ("http://127.0.0.1:8080/v1/", "/v1/chat/completions"),
        ("http://localhost:8080/openai/v1", "/openai/v1/chat/completions"),
    ],
)
def test_a_gateway_that_runs_is_found_by_its_base_url(url, path):
    with running_already("url", url, "k", None) as target:
        assert (target.host, target.port, target.path) == ("127.0.0.1", 8080, path)
        assert target.headers == {"authorization": "Bearer k"}
        assert target.model == "bench"


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:1", "ftp://x"])
def test_other_addresses_are_refused_with_what_was_expected(url):
    with pytest.raises(NotHereError, match="expected http://"), running_already("url", url, None, None):
        pass


def test_a_key_is_not_shown():
    assert "secret" not in repr(Target("a", "h", 1, headers={"authorization": "secret"}))


def test_where_nginx_is_not_installed_that_is_said(monkeypatch):
    monkeypatch.setattr(targets.shutil, "which", lambda _name, **_more: None)
    with pytest.raises(NotHereError, match="not installed"), nginx(1, None):
        pass


def test_a_target_that_does_not_answer_is_given_up():
    with pytest.raises(NotHereError, match="does not answer"):
        Target("a", "127.0.0.1", 1).wait(0.1)


def test_a_target_whose_process_has_ended_is_given_up_at_once():
    with pytest.raises(NotHereError, match="does not answer"):
        Target("a", "127.0.0.1", 1).wait(60.0, lambda: False)
