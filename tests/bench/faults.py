"""Results of two fault tests as rows of the benchmark.

One test counts the log lines that are lost during connection resets and an adoption. The other test counts the pods
that are left after random faults.

`quick` runs the tests in the size of `make test`, `soak` in the size of `make soak`. The tests themselves fail if a
line is lost or a pod is left. Only the benchmark reports how soon pods are deleted.
"""

from __future__ import annotations

import asyncio
import re
import sys

from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import end_process

TESTS = ("tests/faults/cluster/test_long_log.py", "tests/faults/cluster/test_churn.py")
LINES = re.compile(r"(\d+) lines over (\d+) resets and an adoption: lost=(\d+) doubled=(\d+) reordered=(\d+)")
CHURN = re.compile(r"(\d+) actions in (\d+) s; \d+ in a later attempt; remains (\d+)")
GONE = re.compile(r"gone after the commands' end: p50 ([0-9.]+) s, p99 ([0-9.]+) s")
FAULTS = re.compile(r"faults: (\d+): ")
HOUR = 3600.0


async def quick(namespace: str = "") -> list[Row]:
    """Run the fault tests with 50,000 lines and 60 actions, which takes two to three minutes. Return the rows."""
    return rows(await tests("not soak"))


async def soak(namespace: str = "") -> list[Row]:
    """Run the fault tests with a million lines and a thousand actions, which takes half an hour. Return the rows."""
    return rows(await tests("soak"))


async def tests(marker: str) -> str:
    """Run the tests that the pytest marker expression `marker` selects. Return the output of pytest."""
    command = (sys.executable, "-m", "pytest", "-s", "-m", marker, *TESTS)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(HOUR):
            output, _ = await process.communicate()
    finally:
        await end_process(process)
    assert process.returncode == 0, output.decode()
    return output.decode()


def rows(text: str) -> list[Row]:
    """Return rows with the numbers that the tests have printed in `text`."""
    lines, resets, *wrong = numbers(LINES, text)
    actions, seconds, remains = numbers(CHURN, text)
    middle, late = numbers(GONE, text)
    (faults,) = numbers(FAULTS, text)
    what = f"{actions:.0f} actions under {faults:.0f} faults"
    return [
        row(
            f"of {lines:.0f} lines lost, doubled or reordered",
            "",
            [sum(wrong)],
            target="<= 0",
            note=f"over {resets:.0f} resets of the stream and an adoption",
        ),
        row(f"remains after {what}", "", [remains], target="<= 0", note=f"in {seconds:.0f} s"),
        row(f"{what}: end -> gone, p99", "s", [late], target="<= 5", note=f"p50 {middle:.1f} s"),
    ]


def numbers(pattern: re.Pattern[str], text: str) -> list[float]:
    """Return the numbers in the groups of the first match of `pattern` in `text`, the output of pytest."""
    found = pattern.search(text)
    assert found is not None, f"the tests did not print {pattern.pattern}: {text}"
    return [float(each) for each in found.groups()]
