"""Checks every precondition of the agent, one after the other, and reports each in one line.

The checks live for one run of `sealci-agent doctor`, which a person or the chart's `helm test` starts. The doctor uses
the settings and the permissions of the agent, so each finding is also true for the agent.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING

from agent.cluster.api.client import Client
from agent.cluster.checks import cluster
from agent.console import terminal_text
from agent.domain.check_result import Verdict, failed
from agent.domain.errors import SettingsError
from agent.scheduler.stream import checks as scheduler
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agent.domain.check_result import Finding
    from agent.settings import Settings

PARTS = ("cluster", "scheduler")


async def examine(
    settings: Settings, *, parts: tuple[str, ...] = PARTS, image: str = "", seconds: float
) -> AsyncGenerator[Finding]:
    """Yield the finding of each check as soon as the check ends.

    The probe pod runs `image` for at most `seconds`. If `image` is "", the pod runs the image that the settings name.
    """
    metrics = Metrics()
    if "scheduler" in parts:
        async with aclosing(scheduler.check_scheduler(settings, version("sealci-agent"), metrics)) as findings:
            async for finding in findings:
                yield finding
    if "cluster" in parts:
        try:
            client = await Client.connect(settings.cluster, metrics)
        except SettingsError as error:
            yield failed("cluster", str(error), "set cluster.kubeconfig, or run in a pod with a service account")
            return
        try:
            image = image or settings.environment.image
            async with aclosing(cluster.examine(client, settings, image, seconds)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            await client.close()


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
