"""The import table of the house: who may import whom, held by reading the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PURE = frozenset(
    {"asyncio", "threading", "socket", "time", "random", "secrets", "os", "subprocess", "select"}
)
"""Standard modules that bring clocks, randomness or I/O; pure rooms take those as arguments."""

ANYTHING = frozenset({"*"})

# The most specific row that fits a module holds. `accounting` as an entry allows the whole package; stdlib is free.
TABLE: dict[str, tuple[frozenset[str], bool]] = {
    # row: (what it may import, whether it is pure)
    "pricing": (frozenset({"pricing", "attrs", "attr", "msgspec"}), True),
    "pricing.load": (frozenset({"pricing", "attrs", "msgspec"}), True),
    "accounting": (frozenset({"pricing", "accounting.records"}), True),
    **dict.fromkeys(
        (
            "accounting.ledger",
            "accounting.records",
            "accounting.bill",
            "accounting.audit",
            "accounting.checks",
            "accounting.export",
            "accounting.invoice",
            "accounting.checks",
            "accounting.ports",
            "accounting.claims",
            "accounting.purse",
            "accounting.refusals",
            "accounting.rolling",
            "accounting.spending",
        ),
        (frozenset({"pricing", "accounting", "attrs", "msgspec"}), True),
    ),
    **dict.fromkeys(
        (
            "accounting.books",
            "accounting.pen",
            "accounting.hold",
            "accounting.disk",
            "accounting.journal",
            "accounting.lines",
            "accounting.carries",
            "accounting.segment",
            "accounting.archive",
            "accounting.backup",
            "accounting.scan",
            "accounting.recorder",
            "accounting.recovery",
        ),
        (frozenset({"pricing", "accounting", "attrs", "msgspec", "trio"}), False),
    ),
    "accounting.store": (frozenset({"pricing", "accounting", "attrs", "msgspec", "duckdb"}), False),
    "accounting.reports": (frozenset({"pricing", "accounting", "attrs", "msgspec"}), False),
    "proxy.types": (
        frozenset({"attrs", "msgspec", "pricing", "accounting.records", "proxy.errors"}),
        True,
    ),
    "proxy.errors": (frozenset({"attrs", "accounting.records"}), True),
    "proxy.dialects": (
        frozenset(
            {
                "pricing",
                "attrs",
                "msgspec",
                "accounting.records",
                "proxy.dialects",
                "proxy.errors",
                "proxy.types",
            }
        ),
        True,
    ),
    **dict.fromkeys(
        ("proxy.keys", "proxy.routing", "proxy.pool", "proxy.limits"),
        (
            frozenset(
                {
                    "pricing",
                    "accounting.records",
                    "attrs",
                    "msgspec",
                    "proxy.errors",
                    "proxy.types",
                    "proxy.config",
                }
            ),
            True,
        ),
    ),
    "proxy.config": (frozenset({"attrs", "cattrs", "proxy.types"}), False),
    "proxy.upstreams": (
        frozenset(
            {
                "trio",
                "attrs",
                "proxy.readiness",
                "msgspec",
                "accounting.bill",
                "accounting.hold",
                "accounting.ports",
                "accounting.records",
                "pricing",
                "proxy.dialects",
                "proxy.pool",
                "proxy.errors",
                "proxy.config",
                "proxy.types",
                "proxy.upstreams",
            }
        ),
        False,
    ),
    "proxy.upstreams.client": (
        frozenset(
            {
                "trio",
                "attrs",
                "httpx",
                "proxy.errors",
                "proxy.config",
                "proxy.types",
                "proxy.upstreams",
                "accounting.records",
            }
        ),
        False,
    ),
    "proxy.upstreams.http1": (
        frozenset({"trio", "attrs", "httptools", "proxy.errors", "proxy.upstreams"}),
        False,
    ),
    **dict.fromkeys(
        ("proxy.upstreams.transport", "proxy.upstreams.proxied"),
        (frozenset({"trio", "attrs", "httpx", "proxy.errors", "proxy.upstreams"}), False),
    ),
    "proxy.upstreams.providers": (
        frozenset(
            {"attrs", "msgspec", "pricing", "proxy.types", "proxy.errors", "proxy.upstreams.providers"}
        ),
        True,
    ),
    "proxy.serve": (
        frozenset(
            {
                "trio",
                "attrs",
                "accounting.hold",
                "accounting.ports",
                "proxy.credit",
                "proxy.headers",
                "proxy.errors",
                "proxy.gateway",
                "proxy.limits",
                "proxy.types",
            }
        ),
        False,
    ),
    "proxy.gateway": (
        frozenset(
            {
                "attrs",
                "accounting.books",
                "accounting.hold",
                "proxy.config",
                "proxy.keys",
                "proxy.limits",
                "proxy.routing",
                "proxy.telemetry",
                "proxy.types",
                "proxy.waiting",
            }
        ),
        False,
    ),
    "proxy.alarms": (frozenset({"trio", "attrs"}), False),
    "proxy.readiness": (frozenset({"trio", "attrs", "outcome", "proxy.alarms"}), False),
    "proxy.descriptors": (frozenset({"attrs", "proxy.config"}), False),
    "proxy.background": (frozenset({"trio", "attrs"}), False),
    "proxy.waiting": (frozenset({"trio", "attrs", "accounting.refusals"}), False),
    "proxy.credit": (
        frozenset(
            {
                "accounting",
                "pricing",
                "attrs",
                "proxy.errors",
                "proxy.types",
                "proxy.gateway",
                "proxy.routing",
            }
        ),
        True,
    ),
    "proxy.headers": (frozenset({"accounting", "pricing", "attrs", "proxy.limits", "proxy.types"}), True),
    "proxy.telemetry": (
        frozenset({"attrs", "msgspec", "pricing.money", "accounting.records", "proxy.errors", "proxy.types"}),
        False,
    ),
    "proxy.shown": (frozenset({"accounting", "pricing", "attrs"}), True),
    "proxy.doors": (
        frozenset(
            {
                "attrs",
                "trio",
                "msgspec",
                "proxy.alarms",
                "proxy.config",
                "proxy.doors",
                "proxy.errors",
                "proxy.readiness",
                "proxy.types",
            }
        ),
        False,
    ),
    **dict.fromkeys(
        tuple(
            f"proxy.doors.{name}"
            for name in ("server", "connection", "guard", "house", "apps", "fast_door", "http2")
        ),
        (
            frozenset(
                {
                    "attrs",
                    "httptools",
                    "trio",
                    "hypercorn",
                    "h11",
                    "msgspec",
                    "proxy.alarms",
                    "proxy.config",
                    "proxy.doors",
                    "proxy.errors",
                    "proxy.types",
                }
            ),
            False,
        ),
    ),
    "proxy.doors.fork": (
        frozenset({"attrs", "proxy.doors", "proxy.errors", "proxy.types", "proxy.gateway"}),
        True,
    ),
    "proxy.doors.quart_door": (
        frozenset(
            {
                "attrs",
                "trio",
                "quart",
                "quart_trio",
                "hypercorn",
                "werkzeug",
                "proxy.doors",
                "proxy.errors",
                "proxy.types",
                "proxy.config",
                "proxy.gateway",
                "proxy.serve",
            }
        ),
        False,
    ),
    "proxy.pages": (
        frozenset(
            {
                "attrs",
                "msgspec",
                "quart",
                "quart_trio",
                "trio",
                "werkzeug",
                "accounting",
                "pricing",
                "proxy.pages",
                "proxy.admin",
                "proxy.errors",
                "proxy.types",
                "proxy.gateway",
                "proxy.headers",
                "proxy.keys",
                "proxy.config",
                "proxy.routing",
                "proxy.shown",
                "proxy.telemetry",
                "proxy.limits",
                "proxy.doors",
            }
        ),
        False,
    ),
    "proxy.admin": (
        frozenset(
            {
                "attrs",
                "msgspec",
                "accounting",
                "pricing",
                "proxy.keys",
                "proxy.types",
                "proxy.errors",
                "proxy.config",
                "proxy.shown",
            }
        ),
        False,
    ),
    "proxy.sandbox": (
        frozenset(
            {
                "attrs",
                "msgspec",
                "trio",
                "hypercorn",
                "pricing",
                "proxy.dialects",
                "proxy.sandbox",
                "proxy.types",
            }
        ),
        False,
    ),
    "proxy.admin_client": (frozenset({"attrs", "msgspec", "httpx", "proxy.errors", "proxy.types"}), False),
    "proxy.doctor": (frozenset({"attrs", "msgspec", "proxy.admin_client"}), False),
    "proxy.config_template": (frozenset({"attrs", "proxy.config"}), False),
    "proxy.app": (ANYTHING, False),
    "proxy.books": (ANYTHING, False),
    "proxy.cli": (ANYTHING, False),
    "proxy.cli_books": (ANYTHING, False),
    "proxy.terminal": (ANYTHING, False),
    "proxy.upkeep": (ANYTHING, False),
    "proxy.__main__": (ANYTHING, False),
}

THIRD_PARTY_OWNERS = {
    "duckdb": {"accounting.store"},
    "httpx": {
        "proxy.upstreams.client",
        "proxy.upstreams.transport",
        "proxy.upstreams.proxied",
        "proxy.admin_client",
    },
    "httptools": {"proxy.upstreams.http1", "proxy.doors.guard"},
    "trio_websocket": {"proxy.upstreams.websocket"},
    "cattrs": {"proxy.config"},
    "click": {"proxy.cli", "proxy.cli_books", "proxy.terminal"},
}
"""Libraries that only these modules may import."""

PACKAGES = ("pricing", "accounting", "proxy")


def _modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in MODULES else node.module), node.lineno


def _row(module):
    name = module
    while name and name not in TABLE:
        name = name.rpartition(".")[0]
    return TABLE.get(name, (frozenset({"pricing", "accounting", "attrs"}), False))


def _allowed(module, imported):
    allowed, pure = _row(module)
    top = imported.partition(".")[0]
    if top in sys.stdlib_module_names:
        return not (pure and top in PURE)
    if imported == module or allowed == ANYTHING:
        return True
    # importing a package's own docstring-only __init__ is harmless, but names nobody; so a prefix must match
    return any(imported == entry or imported.startswith(f"{entry}.") for entry in allowed)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_the_table_allows(module):
    breaches = [
        f"{MODULES[module].relative_to(ROOT)}:{line}: {module} may not import {imported}"
        for imported, line in _imports(MODULES[module])
        if not _allowed(module, imported)
    ]
    assert not breaches


@pytest.mark.parametrize("library", THIRD_PARTY_OWNERS)
def test_a_library_is_known_to_its_owner_alone(library):
    importers = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name, _ in _imports(path))
    }
    assert importers <= THIRD_PARTY_OWNERS[library]


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if name.startswith(("pricing", "proxy.dialects", "accounting.ledger"))],
)
def test_sans_io_rooms_have_no_async_functions(module):
    found = [
        node.lineno
        for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8")))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not found


@pytest.mark.parametrize("module", MODULES)
def test_every_file_opens_with_one_sentence_that_says_what_it_is_for(module):
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text("utf-8")))
    assert docstring, f"{module} has no docstring"
    assert docstring.split("\n\n")[0].rstrip().endswith((".", ":")), docstring.split("\n\n")[0]


def test_nothing_imports_tests_bench_or_data():
    breaches = [
        (module, imported)
        for module, path in MODULES.items()
        for imported, _ in _imports(path)
        if imported.partition(".")[0] in {"tests", "bench", "data"}
    ]
    assert not breaches


def test_the_request_path_fits_on_a_screen():
    tree = ast.parse(MODULES["proxy.serve"].read_text("utf-8"))
    serve = next(
        node for node in tree.body if isinstance(node, ast.AsyncFunctionDef) and node.name == "serve"
    )
    assert serve.end_lineno - serve.lineno < 50


def test_the_import_graph_has_no_cycles():
    graph = {
        module: {name for name, _ in _imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for imported in graph[module]:
                visit(imported, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])
