"""`python -m bench SCENARIO`: run one and print what it measured, direct against through the gateway.

    python -m bench list
    python -m bench requests [--seconds 5] [--rounds 3] [--json]
    python -m bench streaming [--seconds 5] [--rounds 3] [--json]
    python -m bench ledger [--json]
    python -m bench all

The rounds alternate between direct and gateway, and the figures are medians. Direct is the ceiling of the harness
itself (our provider and our client, both in Python): no gateway can look faster than that, and none is slower for it.
"""

import argparse
import os

from bench import ledger, report
from bench.scenarios import SCENARIOS, run


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenario", choices=["list", "all", "ledger", *SCENARIOS])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternating rounds, of which the median is shown"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--no-pin", action="store_true", help="do not bind processes to cores")
    asked = parser.parse_args()
    if asked.scenario == "list":
        for name, scenario in SCENARIOS.items():
            print(f"{name:12} {scenario.text}")
        print(f"{'ledger':12} {ledger.TEXT}")
        return
    if asked.scenario in ("ledger", "all"):
        figures = ledger.run()
        path = report.save("ledger", figures)
        print(report.as_json(figures) if asked.json else f"{ledger.as_table(figures)}\n\nwritten to {path}\n")
    if asked.scenario == "ledger":
        return
    names = list(SCENARIOS) if asked.scenario == "all" else [asked.scenario]
    pin = not asked.no_pin and (os.cpu_count() or 1) > 1
    for name in names:
        figures = run(SCENARIOS[name], seconds=asked.seconds, rounds=asked.rounds, pin=pin)
        path = report.save(name, figures)
        print(report.as_json(figures) if asked.json else report.as_table(name, figures))
        if not asked.json:
            print(f"\nwritten to {path}\n")


if __name__ == "__main__":
    main()
