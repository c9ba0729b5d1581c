"""`python -m tests.simulation SEED` plays one world; `--seeds A..B` many; `--trace` tells what happens."""

# ruff: noqa: T201 - a command prints

import gc
import sys
import time
import traceback
from collections import Counter

from tests.simulation.world import run


def main(arguments):
    trace = "--trace" in arguments
    arguments = [one for one in arguments if one != "--trace"]
    if arguments[0] == "--seeds":
        first, _, last = arguments[1].partition("..")
        seeds = range(int(first), int(last))
    else:
        seeds = [int(one) for one in arguments]
    gc.freeze()  # what was imported stays: no need to look through it again and again
    began, totals, failed = time.process_time(), Counter(), 0
    for seed in seeds:
        outcome = run(seed, trace=trace)
        totals.update(outcome.counts)
        for wrong in outcome.wrong[:3]:
            print(f"seed {seed}: {wrong}")
        if outcome.wrong:
            failed += 1
            print(f"    python -m tests.simulation {seed} --trace")
            if len(seeds) == 1:
                for error in outcome.errors:
                    traceback.print_exception(error)
    seconds = time.process_time() - began
    print(
        f"{len(seeds)} worlds, {failed} failed, {seconds:.2f} s of CPU, {len(seeds) / seconds:.1f} a second"
    )
    print(", ".join(f"{name}: {count}" for name, count in sorted(totals.items())))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
