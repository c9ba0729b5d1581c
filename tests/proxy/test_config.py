"""Settings: what stands in the file holds, what is wrong is named, and secrets do not show."""

import tomllib

import pytest

from proxy import config
from proxy.config import Config, ConfigError, load, settings
from proxy.config_template import template


def from_text(tmp_path, text, environ=None):
    path = tmp_path / "farebox.toml"
    path.write_text(text)
    return load(path, environ or {})


def test_without_a_file_the_defaults_hold_and_there_is_no_provider():
    assert load(None, {}) == Config()


def test_the_template_is_valid_and_changes_nothing(tmp_path):
    assert from_text(tmp_path, template()) == Config()


def test_the_template_says_every_setting_and_its_default():
    text = template()
    for name, default, _ in settings():
        section, _, key = name.rpartition(".")
        if section in ("provider", "provider.account", "pricing.markup"):
            continue
        assert f"# {key} = " in text, name
        if isinstance(default, int | float | str):
            shown = str(default).lower() if isinstance(default, bool) else str(default)
            assert shown in text


def test_the_template_uncommented_is_what_the_defaults_are(tmp_path):
    lines = []
    for line in template().partition("# Providers")[0].splitlines():
        bare = line.removeprefix("# ")
        is_setting = (
            line.startswith("# ")
            and " = " in bare
            and "# not set" not in bare
            and bare.split(" = ")[0].isidentifier()
        )
        lines.append(bare if is_setting else "" if line.startswith("#") else line)
    tomllib.loads("\n".join(lines))
    assert from_text(tmp_path, "\n".join(lines)) == Config()


def test_every_setting_says_what_it_means():
    for name, _, meaning in settings():
        assert len(meaning) > 15, name
        assert meaning.endswith("."), name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[listen]\nport = '80'", ("listen.port", "int")),
        ("[listen]\nport = true", ("listen.port", "int")),
        ("[listen]\nport = 1.5", ("listen.port", "int")),
        ("[listen]\nhost = 5", ("listen.host", "str")),
        ("[listen]\nhots = 'x'", ("hots", "host")),
        ("[server]\nwrite_seconds = 0", ("write_seconds", "server")),
        ("[limits]\nbody_bytes_max = -1", ("body_bytes_max",)),
        ("unknown_fields = 'maybe'", ("unknown_fields",)),
        ("colour = 1", ("colour",)),
        ("[listen]\nport = 65536", ("listen", "port", "65535")),
        ("[listen]\nadmin_port = -1", ("listen", "admin_port")),
        ("[books]\nstate_dir = ' '", ("books", "state_dir", "not empty")),
        ("[books]\ndurability = 'none'", ("books", "durability", "standard")),
        ("[books]\nstore_memory = 'lots'", ("books", "store_memory", "64MB or more")),
        ("[books]\nstore_memory = '61MiB'", ("books", "store_memory", "64MB or more", "61MiB")),
        ("[outbound]\nproxy = 'ftp://a'", ("outbound", "proxy", "socks5://")),
        ("[outbound]\ncertificate = 'c.pem'", ("outbound.certificate", "both or neither")),
        ("[keys]\nprefix = ''", ("keys", "prefix")),
        ("[keys]\nprefix = 'a b'", ("keys", "prefix")),
        ("[deadlines]\nidle_seconds = nan", ("deadlines", "idle_seconds")),
        ("[[provider]]\nname = 'a'\nkind = 'openai'\nbase_url = 'localhost:11434'", ("base_url", "http://")),
        ("[[provider]]\nname = 'a'\nkind = 'openai'\nbase_url = 'http://a/v1?key=x'", ("base_url", "query")),
        (
            "[[provider]]\nname='a'\nkind='openai'\n[[provider.account]]\nname='x'\napi_key='y'\napi_key_env='SET'",
            ("account 'x'", "not both"),
        ),
        ("[[provider]]\nname = 'a'", ("kind",)),
        ("[[provider]]\nname = 'a b'\nkind = 'openai'", ("provider.name", "a b")),
        ("[[provider]]\nname = 'a'\nkind = 'openai'\n[[provider]]\nname = 'a'\nkind = 'openai'", ("twice",)),
        ("[[provider]]\nname = 'a'\nkind = 'openai'\nmarkup_ppm = -5", ("markup_ppm",)),
        ("[listen]\ntls_key = 'k.pem'", ("tls_certificate",)),
        ("[pricing]\nmarkup_ppm = 1e6", ("markup_ppm", "int")),
        ("[[pricing.markup]]\nmodels = '*'", ("ppm",)),
        ("listen = 3", ("listen",)),
        (
            "[[provider]]\nname='a'\nkind='openai'\n[[provider.account]]\nname='x'\napi_key_env='NOT_SET'",
            ("NOT_SET",),
        ),
        (
            "[[provider]]\nname='a'\nkind='openai'\n[[provider.account]]\nname='x'\n[[provider.account]]\nname='x'",
            ("account.name",),
        ),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_key(tmp_path, text, named):
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text, {"SET": "sk-set"})
    message = str(caught.value)
    assert "farebox.toml" in message
    assert [name for name in named if name not in message] == []


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(ConfigError, match="cannot be read"):
        load(config.Path("nowhere/farebox.toml"), {})


def test_a_secret_of_the_wrong_type_is_refused_without_being_shown(tmp_path):
    text = "[[provider]]\nname='a'\nkind='openai'\n[[provider.account]]\nname='x'\napi_key = 123456789"
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text)
    assert "123456789" not in str(caught.value)


def test_a_proxys_password_is_never_shown(tmp_path):
    found = from_text(tmp_path, "[outbound]\nproxy = 'http://me:hunter2@proxy:3128'")
    assert found.outbound.proxy.reveal() == "http://me:hunter2@proxy:3128"
    assert "hunter2" not in repr(found)
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, "[outbound]\nproxy = 'http://me:hunter2@proxy:3128/path'")
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_the_file_or_the_environment_and_never_show(tmp_path):
    text = """
    [[provider]]
    name = "a"
    kind = "openai"
    [[provider.account]]
    name = "one"
    api_key = "sk-in-the-file"
    [[provider.account]]
    name = "two"
    api_key_env = "SOME_KEY"
    """
    loaded = from_text(tmp_path, text, {"SOME_KEY": "sk-in-the-environment"})
    assert [account.api_key.reveal() for account in loaded.provider[0].account] == [
        "sk-in-the-file",
        "sk-in-the-environment",
    ]
    assert "sk-in" not in f"{loaded!r} {loaded}"


def test_the_environment_makes_providers_only_where_the_file_names_none(tmp_path):
    environ = {"OPENAI_API_KEY": "a", "GEMINI_API_KEY": "b", "GEMINI_BASE_URL": "http://127.0.0.1:1"}
    found = [(one.name, one.kind, one.base_url) for one in load(None, environ).provider]
    assert found == [("openai", "openai", None), ("google", "gemini", "http://127.0.0.1:1")]
    named = from_text(tmp_path, "[[provider]]\nname = 'x'\nkind = 'openai'", environ)
    assert [one.name for one in named.provider] == ["x"]


@pytest.mark.parametrize("secret", ["sk-two words", "sk-line\\nend", "sk-ümläut"])
def test_a_secret_that_no_header_can_carry_is_refused_without_being_shown(tmp_path, secret):
    text = f"[[provider]]\nname='a'\nkind='openai'\n[[provider.account]]\nname='x'\napi_key = \"{secret}\""
    with pytest.raises(ConfigError, match="api_key") as caught:
        from_text(tmp_path, text)
    assert "sk-" not in str(caught.value)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        load(None, {"OPENAI_API_KEY": secret.replace("\\n", "\n")})
    assert "sk-" not in str(caught.value)


def test_a_line_end_after_a_secret_in_the_environment_is_not_part_of_it():
    [provider] = load(None, {"OPENAI_API_KEY": " sk-from-a-file\n"}).provider
    assert provider.account[0].api_key.reveal() == "sk-from-a-file"


def test_a_bad_url_in_the_environment_names_its_variable():
    with pytest.raises(ConfigError, match=r"OPENAI_BASE_URL.*http://"):
        load(None, {"OPENAI_API_KEY": "sk", "OPENAI_BASE_URL": "localhost"})
