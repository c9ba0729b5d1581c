"""Check a built wheel: our packages and data are in it, tests and bench are not, and nobody else owns our names."""

import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

OURS = ("proxy", "accounting", "pricing")
DATA = ("proxy/_data/models.toml", "proxy/_data/prices/openai.toml", "proxy/_data/schema/0001_books.sql")


def main(wheel: Path) -> None:
    """Exit with a sentence for the first thing that is wrong."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    dist_info = {top for top in tops if top.endswith(".dist-info")}
    if tops - dist_info != set(OURS) or len(dist_info) != 1:
        sys.exit(f"{wheel.name}: expected {OURS} and one dist-info, found {sorted(tops)}")
    if missing := [name for name in DATA if name not in names]:
        sys.exit(f"{wheel.name}: missing {missing}")
    if stray := [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".orig"))]:
        sys.exit(f"{wheel.name}: does not belong there: {stray}")
    for package in OURS:
        owners = set(packages_distributions().get(package, []))
        if owners != {"farebox"}:
            sys.exit(f"{package} is owned by {sorted(owners)}, not by farebox alone")
    print(f"{wheel.name}: {len(names)} files, nothing missing, nothing stray")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
