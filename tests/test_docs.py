"""README says what the code does: settings, errors, routes, commands, dependencies and the map are compared with it.

`python tests/test_docs.py` writes the two tables that are made from the code into README.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from quart import Quart  # noqa: E402 - the path is set so that this file can be run

from accounting import bill  # noqa: E402
from pricing.load import load_catalog  # noqa: E402
from proxy.cli import farebox  # noqa: E402
from proxy.config import DATA, settings  # noqa: E402
from proxy.doors import routes  # noqa: E402
from proxy.errors import TABLE  # noqa: E402
from proxy.pages import account, health, models  # noqa: E402
from proxy.telemetry import COUNTERS  # noqa: E402
from proxy.types import Secret  # noqa: E402
from tests.fakes import World  # noqa: E402

README = ROOT / "README.md"
SECTIONS = ("settings", "errors", "metrics", "rolling", "bills", "map")


def rendered(section):
    tables = {
        "settings": settings_table,
        "errors": errors_table,
        "metrics": metrics_table,
        "rolling": rolling_table,
        "bills": bills_table,
        "map": the_map,
    }
    return tables[section]()


def rolling_table():
    """Where a hold may roll, model by model, as the catalogue's facts decide it."""
    catalog = load_catalog(DATA)
    lines = [
        "| models of | every stream | unless reasoning is asked for | only with reasoning switched off | never |",
        "|---|---|---|---|---|",
    ]
    for vendor in catalog.vendors.values():
        columns = {"none": [], "off": [], "on": [], "always": []}
        for model in catalog.models.values():
            if model.vendor == vendor.name:
                column = model.reasoning if vendor.stops_billing == "yes" else "always"
                columns[column].append(f"`{model.id.partition('/')[2]}`")
        cells = " | ".join(", ".join(sorted(names)) for names in columns.values())
        lines.append(f"| {vendor.name} | {cells} |")
    return "\n".join(lines)


def bills_table():
    """Which usage is charged when an answer ends in which way."""
    lines = [bill.COLUMNS, ("---",) * len(bill.COLUMNS), *bill.table()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def metrics_table():
    lines = ["| counter | what it counts |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in COUNTERS.items())])


def the_map():
    """Every file with the sentence that it opens with, room by room."""
    lines = ["```"]
    for package in ("pricing", "accounting", "proxy"):
        for folder in [
            ROOT / package,
            *sorted(path for path in (ROOT / package).rglob("*") if path.is_dir()),
        ]:
            files = sorted(folder.glob("*.py"))
            if not files:
                continue
            lines.append(f"{folder.relative_to(ROOT)}/".ljust(28) + sentence(folder / "__init__.py"))
            lines += [
                f"  {path.name}".ljust(28) + sentence(path) for path in files if path.name != "__init__.py"
            ]
    return "\n".join([*lines, "```"])


def sentence(path):
    """The first sentence of a file's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return re.split(r"(?<=[.])\s|:\n", " ".join(docstring.split("\n\n")[0].split()) + " ")[0].rstrip(".: ")


def settings_table():
    lines = ["| setting | default | what it means |", "|---|---|---|"]
    for name, default, meaning in settings():
        lines.append(f"| `{name}` | {shown(default)} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def shown(default):
    if default is None or isinstance(default, Secret) or default in ((), {}):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float | str):
        return f"`{default}`" if default != "" else ""
    return "required"


def errors_table():
    lines = [
        "| situation | status | OpenAI `code` | Anthropic `type` | Gemini `status` | `x-should-retry` |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in TABLE.items():
        retry = "" if row.should_retry is None else str(row.should_retry).lower()
        name = kind.value.replace("_", " ")
        lines.append(
            f"| {name} | {row.status} | {row.openai_code} | {row.anthropic_type} | {row.gemini_status} | {retry} |"
        )
    return "\n".join(lines)


def between(text, section):
    found = re.search(rf"<!-- {section}:.*?-->\n(.*?)\n?<!-- /{section} -->", text, re.DOTALL)
    assert found, f"README has no section {section}"
    return found[1]


def test_the_tables_in_readme_are_what_the_code_says():
    text = README.read_text("utf-8")
    for section in SECTIONS:
        assert between(text, section) == rendered(section), "run: python tests/test_docs.py"


def test_every_route_is_in_readme():
    world = World()
    app = Quart("docs", static_folder=None)
    app.register_blueprint(models.build(world.gateway))
    app.register_blueprint(account.build(world.gateway, None))
    app.register_blueprint(health.build(lambda: None))
    rules = {re.sub(r"<[^>]+>", "{}", rule.rule) for rule in app.url_map.iter_rules()}
    rules |= set(routes.FIXED)
    text = re.sub(r"\{[^}]+\}", "{}", README.read_text("utf-8"))
    assert sorted(rule for rule in rules if f"`{rule}`" not in text) == []


def test_every_command_and_option_is_in_readme():
    text = README.read_text("utf-8")
    for name, command in farebox.commands.items():
        assert f"`farebox {name}" in text, name
        for inner in getattr(command, "commands", {}):
            assert re.search(rf"farebox {name} [a-z\\|]*{inner}", text), (name, inner)


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = README.read_text("utf-8").partition("## What it stands on")[2]
    for requirement in project["dependencies"]:
        name = re.match(r"[a-z0-9-]+", requirement)[0]
        assert re.search(rf"^\| {name} \| .{{15,}} \|$", text, re.MULTILINE), name
        assert "<" in requirement, f"{requirement} has no upper bound"
        assert ">=" in requirement, f"{requirement} has no lower bound"


def test_the_changelog_has_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_command_that_ci_runs_is_the_one_in_readme():
    text = README.read_text("utf-8")
    block = re.search(r"<!-- command two -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    assert block
    assert "pytest" in block[1]
    assert "command two" in (ROOT / ".ci/run").read_text()


def test_nothing_that_ships_names_a_path_of_a_machine():
    hits = [
        str(path)
        for folder in ("proxy", "accounting", "pricing", "data", "bench", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".toml", ".md", ".sql", ".html"}
        and re.search(r"(?<![\w.])/(home|root|Users)/\w", path.read_text("utf-8"))
        and path != Path(__file__)
    ]
    assert hits == []


def write():
    text = README.read_text("utf-8")
    for section in SECTIONS:
        found = re.search(rf"<!-- {section}:.*?-->\n(.*?)<!-- /{section} -->", text, re.DOTALL)
        text = f"{text[: found.start(1)]}{rendered(section)}\n{text[found.end(1) :]}"
    README.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
