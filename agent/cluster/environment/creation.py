"""Create the pod and the Secret of an environment, and delete the pod. Nothing here keeps state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from agent.cluster.environment import failure_report
from agent.cluster.pod import action_order, manifest
from agent.cluster.pod.setup_timing import SetupTiming
from agent.cluster.requests import create_fitting_pod, delete_pod, find_own_uid
from agent.cluster.requests import create_secret as request_secret
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.cluster.environment.environment import PodEnvironment
    from agent.domain.json import Object

log = structlog.get_logger(__name__)

CONFLICT = 409


async def create(environment: PodEnvironment, notify: Callable[[str], Awaitable[None]] | None) -> None:
    """Create the pod, and then its Secret, owned by the pod. `notify` gets each reason to wait, as text for people.

    Raises:
        ActionFailed: the cluster refuses for good, or did not answer before the pending timeout.
    """
    settings, plan = environment.context.settings, environment.plan

    async def report_wait(why: str) -> None:
        if notify is not None:
            await notify(f"waiting for the cluster: {why}")

    environment.uid, environment.setup_timing = "", SetupTiming(time.monotonic())
    body = environment.recreation_manifest or manifest.pod(plan, settings)
    try:
        pod = await environment.client.retry(
            "create pod",
            lambda: create_pod(environment, body),
            seconds=settings.policy.pending_timeout,
            notify=report_wait,
        )
        environment.pod_began(pod)
        if plan.action.secrets:
            await create_secret(environment, report_wait)
    except ClusterError as error:
        text = environment.services.explain(error.reason, f"the environment cannot be created: {error.message}")
        raise ActionFailed(Stage.SETUP, error.reason, text, log=failure_report.refusal_text(error)) from error


async def create_pod(environment: PodEnvironment, body: Object) -> Object:
    """Send the request that creates the pod. If a quota refuses the pod, a warm pod makes room for the next try."""
    context, key = environment.context, environment.plan.action.key
    if context.warm.enabled and (other := context.watch.find_other_pod(key.action_id, key.attempt)):
        # A warm pod has another name, so the API server would not refuse a second pod of the attempt.
        raise ClusterError(f"the pod {other} of another agent runs this attempt", status=CONFLICT)
    try:
        return await create_fitting_pod(environment.client, environment.path, body)
    except ClusterError as error:
        if error.reason is Reason.QUOTA_EXCEEDED:
            await context.warm.make_room()
        raise


async def create_secret(environment: PodEnvironment, notify: Callable[[str], Awaitable[None]] | None = None) -> None:
    body = action_order.secret(environment.plan, environment.context.settings, environment.uid)
    await request_secret(environment.client, body, environment.context.timings.secret_retry_seconds, notify)


async def delete(environment: PodEnvironment) -> bool:
    """Delete the pod with its grace period, then by force. Return whether the pod is gone."""
    settings, client, plan = environment.context.settings, environment.client, environment.plan
    began = time.monotonic()
    limit, retry_for = settings.cluster.delete_timeout, settings.cluster.retry_for
    unstarted_limit = settings.environment.grace + environment.context.timings.unstarted_delete_seconds
    first_limit = limit if environment.containers.may_have_run else min(limit, unstarted_limit)
    for grace, seconds in ((environment.services.delete_grace, first_limit), (0, limit)):
        try:
            uid = environment.uid or await find_own_uid(client, environment.path, plan.name, plan.nonce, retry_for)
            if not uid or not await delete_pod(client, environment.path, plan.name, uid, grace, seconds):
                break
            await environment.ending.hasten_deletion()
            if await environment.containers.wait_until_gone(uid, seconds):
                break
        except ClusterError as error:
            log.warning("cannot delete a pod", pod=environment.name, error=error.message)
    else:
        return False
    environment.metrics.phase_duration.labels("cleanup").observe(time.monotonic() - began)
    return True
