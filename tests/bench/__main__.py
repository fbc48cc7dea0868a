"""Measure the agent on a running cluster: `make bench`.

By default all experiments but `kwok`, `objects` and `soak` run. `make bench BENCH=NAME` runs one experiment. The
program prints the rows of each experiment, and all rows at the end. The exit code is 0 even if a row misses its target.
The option `--out` names the folder for the result files.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tests.bench import bulk, burst, crowd, fair, faults, growth, kwok, lines, objects, rate, report, start, wall, warm
from tests.e2e.lab import new_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.bench.rows import Row

EXPERIMENTS: dict[str, Callable[[str], Coroutine[None, None, list[Row]]]] = {
    "wall": wall.measure,
    "warm": warm.measure,
    "start": start.measure,
    "rate": rate.measure,
    "kwok": kwok.measure,
    "crowd": crowd.measure,
    "fair": fair.measure,
    "growth": growth.measure,
    "burst": burst.measure,
    "lines": lines.measure,
    "bulk": bulk.measure,
    "objects": objects.measure,
    "faults": faults.quick,
    "soak": faults.soak,
}
LONG = ("kwok", "objects", "soak")
DEFAULT = [name for name in EXPERIMENTS if name not in LONG]


def main() -> None:
    """Run the experiments that the command line names, by default those in DEFAULT."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[[], *EXPERIMENTS], help=f"one of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the results")
    asked = parser.parse_args()
    console = Console(width=report.WIDTH)
    rows: list[Row] = []
    began = time.monotonic()
    for name in asked.name or DEFAULT:
        started = time.monotonic()
        with new_namespace() as namespace:
            found = asyncio.run(EXPERIMENTS[name](namespace))
        rows += found
        console.print(f"\n{name}: {time.monotonic() - started:.0f} s", style="bold")
        console.print(report.table(found))
    seconds = time.monotonic() - began
    report.write(rows, seconds, asked.out)
    console.print(f"\nall: {seconds:.0f} s, results in {asked.out}", style="bold")
    console.print(report.table(rows))


if __name__ == "__main__":
    main()
