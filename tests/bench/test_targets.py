from pathlib import Path

import pytest

from bench import targets
from bench.shapes import Shape
from bench.targets import Home, NotHereError, Target, file_system, nginx, placed, running_already


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
        name = url.split("/")[2]
        assert f"host: {name}\r\n" in target.request(Shape()).decode().lower()


def test_a_host_that_nobody_knows_is_told():
    with (
        pytest.raises(NotHereError, match=r"no host nobody\.invalid"),
        running_already("url", "http://nobody.invalid", None, None),
    ):
        pass


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "127.0.0.1:1", "ftp://x"])
def test_other_addresses_are_refused_with_what_was_expected(url):
    with pytest.raises(NotHereError, match="expected http://"), running_already("url", url, None, None):
        pass


def test_of_a_gateway_that_runs_it_is_said_whose_provider_it_has():
    for ours in (True, False):
        with running_already("url", "http://127.0.0.1:1", None, None, ours=ours) as target:
            assert (target.ours, target.found) == (ours, True)
            assert ("the provider behind it is not ours" in target.on) is not ours


def test_where_a_process_runs_is_what_the_kernel_says(monkeypatch):
    cores = {0: {0, 1, 2}, 7: {1}, 8: {0, 2}, 9: {0, 1, 2}}
    monkeypatch.setattr(targets.os, "sched_getaffinity", cores.__getitem__)
    assert [placed(pid) for pid in (7, 8, 9)] == ["on core 1", "on cores 0, 2", "not pinned"]
    assert "was not named" in placed(None)


def test_a_process_that_is_not_there_has_no_core(monkeypatch):
    def gone(_pid):
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(targets.os, "sched_getaffinity", gone)
    assert placed(7) == "its cores are not known (No such process)"


MOUNTS = """/dev/vda / ext4 rw 0 0
tmpfs /ram tmpfs rw 0 0
/dev/vdb /ram/on\\040disk xfs rw 0 0
none / overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/ram/state", "tmpfs"), ("/ramble", "overlay"), ("/ram/on disk/state", "xfs"), ("relative", "unknown")],
)
def test_the_file_system_of_a_folder_is_that_of_the_nearest_mount(path, kind):
    assert file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "said"),
    [("ext4", "on ext4, metering"), ("tmpfs", "on tmpfs, where that costs nothing, metering")],
)
def test_what_is_on_in_farebox_says_on_what_disk_and_with_what_settings(tmp_path, monkeypatch, kind, said):
    monkeypatch.setattr(targets, "file_system", lambda _path: kind)
    on = Home(tmp_path, "fb_sk_x", "64MB").on
    assert said in on
    assert "requests_max is raised to 20,000 and connections_max to 40,000" in on
    assert "store_memory is 64MB" in on


def test_farebox_is_given_a_key_with_limits(tmp_path, monkeypatch):
    asked = []

    def command(_home, *words):
        asked.append(words)
        return {"wallet": "w", "key": "k"}

    monkeypatch.setattr(Home, "command", command)
    assert Home.make(tmp_path, 1).key == "k"
    assert asked[-1] == ("key", "create", "--wallet", "w", "--rpm", "1000000000", "--tpm", "1000000000")
    assert "log_level" not in (tmp_path / "farebox.toml").read_text()


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
