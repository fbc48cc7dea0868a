"""Checks every precondition of the agent, one after the other, and reports each in one line.

The checks live for one run of `sealci-agent doctor`, which a person or the chart's `helm test` starts. The doctor uses
the settings and the permissions of the agent, so each finding is also true for the agent.
"""

from __future__ import annotations

from contextlib import aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING

from agent.cluster.api.client import Client
from agent.cluster.checks import cluster
from agent.domain.check_result import failed, warning
from agent.domain.errors import SettingsError
from agent.domain.references.image_reference import image_reference
from agent.objects import checks as objects
from agent.scheduler.stream import checks as scheduler
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from agent.domain.check_result import Finding
    from agent.settings import PolicySettings, Settings

PARTS = ("cluster", "objects", "scheduler")


async def examine(
    settings: Settings, *, parts: tuple[str, ...] = PARTS, image: str = "", seconds: float
) -> AsyncGenerator[Finding]:
    """Yield the finding of each check as soon as the check ends.

    The probe pod runs `image` for at most `seconds`. If `image` is "", the pod runs the image that the settings name.
    """
    for finding in check_images(settings.policy):
        yield finding
    metrics = Metrics()
    if "scheduler" in parts:
        async with aclosing(scheduler.check_scheduler(settings, version("sealci-agent"), metrics)) as findings:
            async for finding in findings:
                yield finding
    cache_key = settings.caches.sign_key_file if settings.caches.store == "objects" else None
    if "objects" in parts and (settings.objects.issuer != "none" or parts == ("objects",)):
        async with aclosing(objects.check_store(settings.objects, cache_key)) as findings:
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


def check_images(policy: PolicySettings) -> Iterator[Finding]:
    """Yield a warning if image patterns of the policy name no registry.

    Such a pattern stands for docker.io, but a node may be set up to pull short image names from another registry.
    """
    patterns = [each for each in policy.images if each not in ("*", "**")]
    if short := [each for each in patterns if not image_reference(each).named_host]:
        detail = f"policy.images: {', '.join(short)}: without a registry, which means docker.io"
        yield warning("policy: images", detail, "write the registry, as in docker.io/library/debian:*")
