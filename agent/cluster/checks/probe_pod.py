"""The probe of the doctor: a real environment that is created, run, read and deleted as for an action.

Only a probe proves that the agent can run actions. The probe takes some seconds and uses the same code as an action.
The probe has a pool of its own, so that no agent sees the probe's pod. The pod has the shape that the settings give to
all pods, with the agent's image in place of the user's. The pod is deleted also if a check fails.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from agent.aio import cancel_and_wait
from agent.cluster.capabilities import ClusterFacts, learn_facts
from agent.cluster.checks import warm_pod
from agent.cluster.environment.backend import PodBackend
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

POD_RUNS, LOG, EXEC, USER_NAMESPACE, OUTSIDE, POD_DELETED = (
    "probe: pod runs",
    "probe: log",
    "probe: exec",
    "probe: user namespace",
    "probe: names outside",
    "probe: pod deleted",
)
# Seconds to wait for the first list of the pods. `LOG_SECONDS` is the limit for reading the log of the probe's pod, and
# `COPY_SECONDS` the limit for copying a file out of it.
WATCH_SECONDS = 20.0
LOG_SECONDS = 40.0
COPY_SECONDS = 60.0
# The program by which the third of `COMMANDS` looks up a name outside the cluster. The name is in `invalid`, a domain
# that never exists (RFC 6761), so the program contacts no host outside. A name server that can forward queries out of
# the cluster answers that there is no such name. A name server that cannot forward queries answers with an error.
OUTSIDE_LOOKUP = """\
import socket
try:
    socket.getaddrinfo("sealci-agent.invalid.", 443)
    answer = "answers"
except socket.gaierror as error:
    answer = "answers" if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else "silent"
print("names_outside", answer)
"""
COMMANDS = (
    'test -n "$PROBE"',
    "echo uid_map $(cat /proc/self/uid_map)",
    f"RES_OPTIONS='timeout:2 attempts:1' python3 -c '{OUTSIDE_LOOKUP}' || true",
    "echo works > probe",
)
RULES = ArtifactRules(paths=("probe",), when=When.ALWAYS)

ADVICE = {
    Reason.IMAGE_PULL_FAILED: "make environment.image available to the nodes (pull secrets: environment.pod_template)",
    Reason.UNSCHEDULABLE: "add nodes to the cluster, or let pods run on other nodes (environment.pod_template)",
    Reason.QUOTA_EXCEEDED: "raise the ResourceQuota of the namespace, or lower policy.default_*",
    Reason.INVALID_CONFIGURATION: "change environment.profile or pod_template, or the policy that the message names",
}
OTHER_ADVICE = "see the message; `kubectl describe` on a pod of the namespace shows more"


async def examine(client: Client, settings: Settings, image: str, seconds: float) -> AsyncGenerator[Finding]:
    """Create an environment, run it and delete it, and yield a finding for each step.

    A pod that has not run to its end after `seconds` is a failed check.
    """
    pool = f"doctor-{secrets.token_hex(4)}"
    # An action may wait long for a node, but a person waits for the result of `sealci-agent doctor`.
    pending = min(settings.policy.pending_timeout, seconds / 4)
    policy = settings.policy.model_copy(update={"pending_timeout": pending})
    own = {"agent": settings.agent.model_copy(update={"pool": pool}), "policy": policy}
    settings = settings.model_copy(update=own)
    watch = PodWatch(client, settings.cluster.namespace, pool, client.metrics)
    watching = asyncio.create_task(watch.run(), name="probe: watch")
    try:
        async with asyncio.timeout(WATCH_SECONDS):
            await watch.synced.wait()
        facts = ClusterFacts()
        await learn_facts(facts, client, settings)
        environment = PodBackend(settings, client, watch, pool, facts).environment(probe_action(pool, image))
        try:
            async with aclosing(check_run(environment, settings, seconds)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            began = time.monotonic()
            await environment.remove()
        yield await check_deletion(environment, client, time.monotonic() - began)
        if settings.warm.enabled:
            yield await warm_pod.examine(client, settings, watch, facts, probe_action(f"{pool}-warm", image), seconds)
    except TimeoutError:
        yield failed(
            POD_RUNS,
            f"pods could not be listed in {WATCH_SECONDS:g} s",
            "repair the permissions and the API server first",
        )
    finally:
        await cancel_and_wait(watching)


def probe_action(pool: str, image: str) -> Action:
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


async def check_run(environment: PodEnvironment, settings: Settings, seconds: float) -> AsyncGenerator[Finding]:
    """Create the environment, run its commands and copy its files out. Yield a finding for each of these steps."""
    began = time.monotonic()
    end: Observation | None = None
    try:
        async with asyncio.timeout(seconds):
            await environment.create()
            end = await final_observation(environment)
    except ActionFailed as error:
        yield failed(POD_RUNS, error.message, ADVICE.get(error.reason, OTHER_ADVICE))
    except TimeoutError:
        yield failed(POD_RUNS, f"the pod had not run to its end after {seconds:g} s", OTHER_ADVICE)
    if not isinstance(end, Exited):
        if isinstance(end, (SetupFailed, Lost)):
            yield failed(POD_RUNS, end.message, ADVICE.get(end.reason, OTHER_ADVICE))
        for check in (LOG, EXEC, USER_NAMESPACE, OUTSIDE):
            yield skipped(check, "the pod did not run")
        return
    if end.reason is None:
        took = time.monotonic() - began
        yield ok(POD_RUNS, f"{environment.name} was created with its Secret and run in {took:.1f} s")
    else:
        yield failed(POD_RUNS, f"its commands failed: {end.message}", OTHER_ADVICE)
    log_text, finding = await check_log(environment)
    yield finding
    yield await check_copy(environment)
    yield check_user_namespace(environment, settings, log_text)
    yield check_names_outside(log_text)


async def final_observation(environment: PodEnvironment) -> Observation | None:
    """Wait for the end of the commands. Return the final observation, or None if the observations end without one."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            if isinstance(seen, FINAL):
                return seen
    return None


async def check_log(environment: PodEnvironment) -> tuple[str, Finding]:
    """Read the log of the commands. Return the text of the log, and the finding of the check."""
    data, why = bytearray(), ""
    reader = environment.markers(Cursor())
    try:
        async with asyncio.timeout(LOG_SECONDS), aclosing(environment.log(Cursor())) as items:
            async for item in items:
                if isinstance(item, LogPiece):
                    for part in reader.feed(item.data):
                        data += part if isinstance(part, bytes) else b""
                elif isinstance(item, LogLost):
                    why = item.why
    except TimeoutError:
        why = f"the log could not be read in {LOG_SECONDS:g} s"
    text = bytes(data).decode("utf-8", "replace")
    if "uid_map" in text:
        return text, ok(LOG, f"{len(data)} bytes read")
    return text, failed(
        LOG,
        why or f"the log differs from the output of the commands: {text[:100]!r}",
        "the API server must reach the kubelet of the node (port 10250)",
    )


async def check_copy(environment: PodEnvironment) -> Finding:
    """Copy a file out of the pod: the file that the commands of the probe wrote."""
    advice = "exec needs a websocket to the API server and on to the kubelet; a proxy between must allow upgrades"
    try:
        async with asyncio.timeout(COPY_SECONDS), aclosing(environment.files(RULES, COPY_SECONDS)) as parts:
            async for part in parts:
                if isinstance(part, Collected) and part.summary.files == 1:
                    return ok(
                        EXEC, f"a file of {part.summary.bytes} bytes was copied out of the pod with the right hash"
                    )
    except ClusterError as error:
        return failed(EXEC, error.message, advice)
    except TimeoutError:
        return failed(EXEC, f"no file arrived in {COPY_SECONDS:g} s", advice)
    return failed(EXEC, "the file that the commands wrote did not arrive", advice)


def check_user_namespace(environment: PodEnvironment, settings: Settings, log_text: str) -> Finding:
    """Check whether root in an action is root on its node."""
    if settings.environment.profile == "restricted":
        return ok(
            USER_NAMESPACE, f"not needed; the restricted profile runs everything as user {settings.environment.user}"
        )
    numbers = log_text.partition("uid_map")[2].split()[:3]
    if len(numbers) < 3 or not all(number.isdigit() for number in numbers):
        return skipped(USER_NAMESPACE, "the log does not contain the map of user ids")
    if numbers[1] != "0":
        return ok(USER_NAMESPACE, f"root in an action is user {numbers[1]} on its node")
    advice = "Kubernetes 1.33 or newer with a runtime that has user namespaces; or environment.profile: restricted"
    if environment.plan.user_namespace:
        return failed(
            USER_NAMESPACE,
            "requested, but the container runtime did not create one; root in an action is root on its node",
            advice,
        )
    return warning(USER_NAMESPACE, "not used; root in an action is root on its node, inside its container", advice)


def check_names_outside(log_text: str) -> Finding:
    """Check whether pods resolve names outside the cluster, without which they reach no registry and no git host."""
    answer = log_text.partition("names_outside")[2].split()[:1]
    if answer == ["answers"]:
        return ok(OUTSIDE, "the cluster's DNS answers questions about names outside the cluster")
    if answer == ["silent"]:
        detail = "the cluster's DNS resolves no names outside the cluster, so pods may have no way out"
        return warning(OUTSIDE, detail, "use images and repositories inside the cluster, or give its DNS an upstream")
    return skipped(OUTSIDE, "the log does not contain the answer of the cluster's DNS")


async def check_deletion(environment: PodEnvironment, client: Client, took: float) -> Finding:
    """Check whether the pod is gone. `took` is the number of seconds that the removal took."""
    advice = f"delete it: kubectl delete pod -n {environment.plan.namespace} {environment.plan.name}"
    if not environment.uid:
        return skipped(POD_DELETED, "no pod was created")
    try:
        await client.request("get", "pods", f"{environment.path}/{environment.plan.name}")
    except ClusterError as error:
        if error.status == 404:
            return ok(POD_DELETED, f"gone after {took:.1f} s")
        return failed(POD_DELETED, error.message, advice)
    return failed(POD_DELETED, f"{environment.name} is still there after {took:.1f} s", advice)
