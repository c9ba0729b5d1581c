"""The text of `farebox init`: every setting, its default and what it means, made from the settings themselves."""

import textwrap
from collections.abc import Iterator
from typing import Any

from attrs import NOTHING, fields

from proxy import config
from proxy.config import Config

_HEAD = """\
# Settings of Farebox. Every line that begins with # is a default or an example: uncomment what you change.
# Without a [[provider]] the gateway serves the vendors whose keys stand in the environment:
# OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY (and OPENAI_BASE_URL, ANTHROPIC_BASE_URL, GEMINI_BASE_URL).
"""

_EXAMPLES = """\
# One table for each place where answers come from; the order is the order in which bare model names are looked up.
# [[provider]]
# name = "openai"
# kind = "openai"
# [[provider.account]]
# name = "main"
# api_key_env = "OPENAI_API_KEY"
#
# [[pricing.markup]]                       # the first pattern that matches a model wins
# models = "openai/gpt-4*"
# ppm = 600000                             # 60 % of list price
#
# [[provider]]
# name = "local"
# kind = "openai"                          # anything that speaks OpenAI's chat completions
# base_url = "http://127.0.0.1:11434/v1"
# models = ["mine/*"]                      # priced in a file of your own, see pricing.files
# vendor = "mine"
"""


def template() -> str:
    """A whole `farebox.toml`, all of it commented out, so that it reads as it stands."""
    lines = [_HEAD]
    for name, default, meaning in config.settings(Config):
        if "." not in name:
            lines += [*_comment(meaning), f"# {name} = {_toml(default)}", ""]
    for table in fields(Config):
        if table.name == "provider" or table.default is NOTHING or not hasattr(table.default, "factory"):
            continue
        lines += [f"[{table.name}]", *_table(f"{table.name}.")]
    lines += ["# Providers", *_table("provider.", example=True), "", _EXAMPLES]
    return "\n".join(lines)


def _table(prefix: str, *, example: bool = False) -> Iterator[str]:
    for name, default, meaning in config.settings(Config):
        if name.startswith(prefix) and not name.startswith("pricing.markup."):
            shown = name.removeprefix(prefix)
            yield from _comment(f"{shown}: {meaning}" if example else meaning)
            if not example:
                yield f"# {shown} = {_toml(default)}"
                yield ""


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, 108):
        yield f"# {line}"


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case str():
            return f'"{value}"'
        case tuple() | list():
            return "[" + ", ".join(_toml(one) for one in value) + "]"
        case _:
            return '""  # not set'
