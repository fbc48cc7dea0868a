"""The output of commands that check something: one line per finding, and a summary at the end.

`sealci-agent doctor` and `sealci-agent conformance` share it. The module keeps no state.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

from agent.console import terminal_text
from agent.domain.check_result import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agent.domain.check_result import Finding


async def report(findings: AsyncGenerator[Finding], *, write: Callable[[str], None], as_json: bool) -> bool:
    """Write a line for each finding and a summary at the end. Returns True if no check failed."""
    counts: Counter[Verdict] = Counter()
    async with aclosing(findings):
        async for finding in findings:
            counts[finding.verdict] += 1
            write(json.dumps(json_object(finding)) if as_json else text_line(finding))
    well = not counts[Verdict.FAILED]
    total = {each.value: counts[each] for each in Verdict}
    if as_json:
        write(json.dumps({"event": "finished", "well": well, **total}))
    else:
        write(", ".join(f"{number} {name}" for name, number in total.items() if number))
    return well


def json_object(finding: Finding) -> dict[str, str]:
    return {
        "event": "check",
        "check": finding.check,
        "verdict": finding.verdict.value,
        "detail": finding.detail,
        "advice": finding.advice,
    }


def text_line(finding: Finding) -> str:
    # A failed check is printed in upper case, because a failure must be visible in a long list.
    verdict = finding.verdict.value if finding.verdict is not Verdict.FAILED else "FAILED"
    detail = " ".join(finding.detail.split())
    advice = f" -> {finding.advice}" if finding.advice else ""
    return terminal_text.one_line(f"{verdict:<8} {finding.check:<25} {detail}{advice}")
