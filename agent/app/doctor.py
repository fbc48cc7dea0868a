"""Why does nothing work? Every precondition of the agent, tried one after the other, a line each.

Lives for one run of `sealci-agent doctor`, by a person or as the chart's `helm test`. It uses the settings and the
rights of the agent, so that what it finds holds for the agent too.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING

from agent.cluster.api.client import Client
from agent.cluster.checks import cluster
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
    """Yield what is found, as it is found. The probe runs `image` (none: the agent's) and may take `seconds`."""
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


async def report(findings: AsyncGenerator[Finding], *, say: Callable[[str], None], as_json: bool) -> bool:
    """Say each finding in a line as it comes, and a sum at the end; returns whether none failed."""
    counts: Counter[Verdict] = Counter()
    async with aclosing(findings):
        async for finding in findings:
            counts[finding.verdict] += 1
            say(json.dumps(spelled(finding)) if as_json else line(finding))
    well = not counts[Verdict.FAILED]
    total = {each.value: counts[each] for each in Verdict}
    if as_json:
        say(json.dumps({"event": "finished", "well": well, **total}))
    else:
        say(", ".join(f"{number} {name}" for name, number in total.items() if number))
    return well


def spelled(finding: Finding) -> dict[str, str]:
    """Return a finding as the object that stands in one line of JSON."""
    return {
        "event": "check",
        "check": finding.check,
        "verdict": finding.verdict.value,
        "detail": finding.detail,
        "advice": finding.advice,
    }


def line(finding: Finding) -> str:
    """Return a finding as one line of text."""
    verdict = finding.verdict.value if finding.verdict is not Verdict.FAILED else "FAILED"
    detail = " ".join(finding.detail.split())
    return f"{verdict:<8} {finding.check:<25} {detail}{f' -> {finding.advice}' if finding.advice else ''}"
