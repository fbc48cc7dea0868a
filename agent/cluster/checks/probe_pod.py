"""A real environment, made as for an action and taken through its whole life: the only proof that one can be had.

A probe lives for seconds. It is made by the code that makes every environment, in a pool of its own, so that no agent
sees it; its pod has the shape that these settings give all pods, with the agent's image in the place of the user's.
Whatever fails, the pod is removed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.capabilities import user_namespaces
from agent.cluster.environment.watch import PodWatch
from agent.domain.actions import Action, ArtifactRules, Key, Resources, When
from agent.domain.check_result import Finding, failed, ok, skipped, warning
from agent.domain.errors import ActionFailed, ClusterError, Reason
from agent.domain.log_cursor import Cursor
from agent.domain.observations import FINAL, Collected, Exited, LogLost, LogPiece, Lost, SetupFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.cluster.api.client import Client
    from agent.cluster.environment.environment import PodEnvironment
    from agent.domain.observations import Observation
    from agent.settings import Settings

CREATED, LOGGED, COPIED, NAMESPACED, DELETED = (
    "probe: pod runs",
    "probe: log",
    "probe: exec",
    "probe: user namespace",
    "probe: pod deleted",
)
WATCH_SECONDS = 20.0
LOG_SECONDS = 40.0
COPY_SECONDS = 60.0
# The map of user ids is the proof of a user namespace: "<first id inside> <first id on the node> <how many>".
COMMANDS = ('test -n "$PROBE"', "echo uid_map $(cat /proc/self/uid_map)", "echo works > probe")
RULES = ArtifactRules(paths=("probe",), when=When.ALWAYS)

ADVICE = {
    Reason.IMAGE_PULL_FAILED: "make environment.image reachable for the nodes (pull secrets: environment.pod_template)",
    Reason.UNSCHEDULABLE: "give the cluster room, or let pods go where there is some (environment.pod_template)",
    Reason.QUOTA_EXCEEDED: "raise the ResourceQuota of the namespace, or lower policy.default_*",
    Reason.INVALID_CONFIGURATION: "what refuses the pod is named: change environment.profile or pod_template, or it",
}
OTHERWISE = "see the message; `kubectl describe` on a pod of the namespace tells more"


async def examine(client: Client, settings: Settings, image: str, seconds: float) -> AsyncGenerator[Finding]:
    """Make an environment and yield what became of each part of its life; it may take `seconds` to come up."""
    pool = f"doctor-{secrets.token_hex(4)}"
    # Waits that an action may well afford are too long for who looks on.
    pending = min(settings.policy.pending_timeout, seconds / 4)
    policy = settings.policy.model_copy(update={"pending_timeout": pending})
    own = {"agent": settings.agent.model_copy(update={"pool": pool}), "policy": policy}
    settings = settings.model_copy(update=own)
    watch = PodWatch(client, settings.cluster.namespace, pool, client.metrics)
    watching = asyncio.create_task(watch.run(), name="probe: watch")
    try:
        async with asyncio.timeout(WATCH_SECONDS):
            await watch.synced.wait()
        pods = PodBackend(settings, client, watch, client.metrics, pool)
        pods.user_namespaces = await user_namespaces(client, settings)
        environment = pods.environment(action(pool, image))
        try:
            async with aclosing(lived(environment, settings, seconds)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            began = time.monotonic()
            await environment.remove()
        yield await deleted(environment, client, time.monotonic() - began)
    except TimeoutError:
        yield failed(CREATED, f"pods could not be listed in {WATCH_SECONDS:g} s", "mend the rights and the API first")
    finally:
        watching.cancel()
        await asyncio.wait({watching})


def action(pool: str, image: str) -> Action:
    """Return what the probe runs."""
    return Action(
        key=Key(pool),
        image=image,
        commands=COMMANDS,
        name="doctor",
        secrets={"PROBE": secrets.token_hex(8)},
        resources=Resources(),
        timeout=60.0,
        artifacts=RULES,
    )


async def lived(environment: PodEnvironment, settings: Settings, seconds: float) -> AsyncGenerator[Finding]:
    """Take the environment from its creation to its files."""
    began = time.monotonic()
    seen: Observation | None = None
    try:
        async with asyncio.timeout(seconds):
            await environment.create()
            seen = await final(environment)
    except ActionFailed as error:
        yield failed(CREATED, error.message, ADVICE.get(error.reason, OTHERWISE))
    except TimeoutError:
        yield failed(CREATED, f"the pod had not run to its end after {seconds:g} s", OTHERWISE)
    if not isinstance(seen, Exited):
        if isinstance(seen, (SetupFailed, Lost)):
            yield failed(CREATED, seen.message, ADVICE.get(seen.reason, OTHERWISE))
        for check in (LOGGED, COPIED, NAMESPACED):
            yield skipped(check, "the pod did not run")
        return
    if seen.reason is None:
        took = time.monotonic() - began
        yield ok(CREATED, f"{environment.name}, with its Secret, made and run in {took:.1f} s")
    else:
        yield failed(CREATED, f"its commands failed: {seen.message}", OTHERWISE)
    text, finding = await logged(environment)
    yield finding
    yield await copied(environment)
    yield namespaced(environment, settings, text)


async def final(environment: PodEnvironment) -> Observation | None:
    """Wait for the end of the commands."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            if isinstance(seen, FINAL):
                return seen
    return None


async def logged(environment: PodEnvironment) -> tuple[str, Finding]:
    """Read the log of the commands."""
    data, why = bytearray(), ""
    reader = environment.markers()
    try:
        async with asyncio.timeout(LOG_SECONDS), aclosing(environment.log(Cursor())) as items:
            async for item in items:
                if isinstance(item, LogPiece):
                    for part in reader.feed(item.data):
                        data += part if isinstance(part, bytes) else b""
                elif isinstance(item, LogLost):
                    why = item.why
    except TimeoutError:
        why = f"it could not be read in {LOG_SECONDS:g} s"
    text = bytes(data).decode("utf-8", "replace")
    if "uid_map" in text:
        return text, ok(LOGGED, f"{len(data)} bytes read")
    return text, failed(
        LOGGED, why or f"not what was written: {text[:100]!r}", "logs come from the node's kubelet (port 10250)"
    )


async def copied(environment: PodEnvironment) -> Finding:
    """Copy the file that the commands wrote."""
    advice = "exec goes over a websocket from the API server to the kubelet: no proxy between may refuse upgrades"
    try:
        async with asyncio.timeout(COPY_SECONDS), aclosing(environment.files(RULES, COPY_SECONDS)) as parts:
            async for part in parts:
                if isinstance(part, Collected) and part.summary.files == 1:
                    return ok(COPIED, f"a file of {part.summary.bytes} bytes copied out of the pod, hash checked")
    except ClusterError as error:
        return failed(COPIED, error.message, advice)
    except TimeoutError:
        return failed(COPIED, f"nothing came in {COPY_SECONDS:g} s", advice)
    return failed(COPIED, "the file that was written did not come", advice)


def namespaced(environment: PodEnvironment, settings: Settings, text: str) -> Finding:
    """Say whether root in an action is root on its node."""
    if settings.environment.profile == "restricted":
        return ok(NAMESPACED, f"not needed: the restricted profile runs everything as user {settings.environment.user}")
    words = text.partition("uid_map")[2].split()[:3]
    if len(words) < 3 or not all(word.isdigit() for word in words):
        return skipped(NAMESPACED, "the log does not tell the user ids")
    if words[1] != "0":
        return ok(NAMESPACED, f"root in an action is user {words[1]} on its node")
    advice = "Kubernetes 1.33 or newer with a runtime that has user namespaces; or environment.profile: restricted"
    if environment.plan.user_namespace:
        return failed(NAMESPACED, "asked for, but the runtime did not make one: root in an action is root", advice)
    return warning(NAMESPACED, "not used: root in an action is root on its node, inside its container", advice)


async def deleted(environment: PodEnvironment, client: Client, took: float) -> Finding:
    """Say whether the pod is gone."""
    advice = f"delete it: kubectl delete pod -n {environment.plan.namespace} {environment.plan.name}"
    if not environment.uid:
        return skipped(DELETED, "none was made")
    try:
        await client.request("get", "pods", f"{environment.path}/{environment.plan.name}")
    except ClusterError as error:
        if error.status == 404:
            return ok(DELETED, f"gone after {took:.1f} s")
        return failed(DELETED, error.message, advice)
    return failed(DELETED, f"{environment.name} is still there after {took:.1f} s", advice)
