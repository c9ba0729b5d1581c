"""Puts a comparison into README: the table with its date and what was on, and the plots beside it in the repository."""

from pathlib import Path
from typing import Any, Final

from bench import compare, plot
from bench.processes import ROOT

README: Final = ROOT / "README.md"
PLOTS: Final = ROOT / "bench" / "plots"
SHOWN: Final = {
    "cpu": "CPU per event and per answer of nginx, Farebox and others",
    "rates": "events and answers per second on one core",
}
"""Which of a report's plots, and what they say to whoever cannot see them."""

BEGIN: Final = "<!-- comparison: made by `python -m bench readme` -->"
END: Final = "<!-- end of the comparison -->"


def put(figures: dict[str, Any], readme: Path = README, plots: Path = PLOTS) -> list[Path]:
    """Write table and plots in place of those from before; gives what was written.

    Raises:
        ValueError: README has no place for them.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no place for the comparison, between {BEGIN} and {END}")
    drawn, written = plot.plots(figures), [readme]
    plots.mkdir(exist_ok=True)
    pictures = []
    for name, text in SHOWN.items():
        if name in drawn:
            written.append(plots / f"{name}.svg")
            written[-1].write_text(drawn[name])
            pictures.append(f"![{text}]({written[-1].relative_to(readme.parent).as_posix()})")
    shown = "\n\n".join([compare.as_table(figures), *pictures])
    readme.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")
    return written
