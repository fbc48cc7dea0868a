"""Claim a warm pod for an action, and deliver the order. A `Claims` lives as long as the agent and keeps no state.

A claim is one patch with the resource version of the pod. If anything fails, the pod is deleted before the action gets
another pod. The deletion names the version at which the pod was still this agent's. So an agent that adopts the pod
never runs the action a second time.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.pod import labels
from agent.cluster.pod.manifest import HELPER
from agent.cluster.requests import delete_pod
from agent.cluster.warm import shape
from agent.cluster.warm.delivery import DELIVERY_SECONDS, NotBegun, Unclear, ask_begun, deliver, delivery_exec
from agent.cluster.warm.standby_exec import StandbyExec
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.cluster.api.exec import ExecStream
    from agent.cluster.pod.manifest import Plan
    from agent.cluster.warm.pool import WarmPod
    from agent.domain.json import Object
    from agent.settings import Settings

NOT_FOUND, CONFLICT = 404, 409
# Number of patches of one claim. A status of the pod may be newer than the version that the agent knows.
MAX_PATCHES = 3
# Seconds until an agent that adopts a pod, or whose delivery broke, gives up its question to the pod.
ASK_SECONDS = 20.0
# Seconds between two tries to delete a pod after a failed claim.
DISCARD_PAUSE = 0.5


class Superseded(ClusterError):
    """Another agent has adopted the session of the pod."""


class Claims:
    """Gives warm pods to actions. `path` is the path of the pods of the namespace."""

    def __init__(self, settings: Settings, client: Client, path: str) -> None:
        self.settings = settings
        self.client = client
        self.path = path

    def open_standby(self, pod: WarmPod) -> StandbyExec:
        """Open an exec in a pod that is ready, for the delivery to come."""
        target = ContainerRef(pod.pool.plan.namespace, pod.name, HELPER)
        seconds = 2 * self.settings.warm.max_age
        return StandbyExec(pod.name, lambda: delivery_exec(self.client, target, seconds))

    @asynccontextmanager
    async def exec_in(self, pod: WarmPod, target: ContainerRef) -> AsyncIterator[ExecStream]:
        """Yield the standby exec of a pod, or a new exec if the pod has none."""
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(pod.standby.take()) if pod.standby else None
            if opened is None:
                opened = await stack.enter_async_context(delivery_exec(self.client, target, DELIVERY_SECONDS))
            yield opened

    async def start(self, pod: WarmPod, plan: Plan) -> Object:
        """Claim a pod and start the action of `plan` in it. Return the claimed pod when the commands have begun.

        Raises:
            NotBegun: no command has run and none will. The pod is being deleted.
            Superseded: another agent has adopted the session.
            Unclear: the commands may have begun.
        """
        try:
            claim = asyncio.create_task(self.claim(pod, plan), name=f"claim of {pod.name}")
            async with cancelled_on_exit(claim):
                await self.deliver(pod, plan, claim)
                claimed = claim.result()
        except Unclear:
            raise
        except ClusterError as error:
            await self.discard(pod.name, pod.uid, plan.agent_id)
            raise NotBegun(error.message) from error
        return claimed

    async def claim(self, pod: WarmPod, plan: Plan) -> Object:
        """Write the session into the pod. Return the pod as the API server has it then.

        Raises:
            ClusterError: the pod was not claimed, or it is not the pod that this agent created.
        """
        found, created = pod.state.pod, pod.created
        for _ in range(MAX_PATCHES):
            if found is None or created is None:
                break
            body = shape.claim_patch(found, created, plan, pod.pool.settings, self.client.now())
            try:
                claimed = await self.client.request("patch", "pods", f"{self.path}/{pod.name}", body=body)
            except ClusterError as error:
                if error.status != CONFLICT:
                    raise
                found = await self.read(pod.name)
                if found is None or not shape.is_idle(found) or not shape.is_ready(found):
                    break
            else:
                if claimed["metadata"]["uid"] != pod.uid or shape.fingerprint(claimed) != shape.fingerprint(created):
                    raise ClusterError("the pod was changed after its creation")
                if not shape.is_ready(claimed):
                    raise ClusterError("the pod does not run any more")
                return claimed
        raise ClusterError("the pod does not wait for an order any more")

    async def deliver(self, pod: WarmPod, plan: Plan, claim: asyncio.Task[Object]) -> None:
        target = ContainerRef(plan.namespace, pod.name, HELPER)
        order = shape.order_of(plan, pod.pool.settings)
        try:
            await deliver(self.exec_in(pod, target), order, plan.nonce, claim)
        except Unclear as error:
            if not await ask_begun(self.client, target, ASK_SECONDS):
                raise NotBegun(error.message) from error

    async def read(self, name: str) -> Object | None:
        try:
            return await self.client.request("get", "pods", f"{self.path}/{name}")
        except ClusterError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def discard(self, name: str, uid: str, agent_id: str) -> None:
        """Delete a pod in which no command has run, while it certainly is still this agent's.

        Raises:
            Superseded: another agent has adopted the session.
            Unclear: the pod could not be deleted.
        """
        end = asyncio.get_running_loop().time() + self.settings.cluster.retry_for
        while True:
            try:
                found = await self.read(name)
                if found is None or found["metadata"]["uid"] != uid:
                    return
                meta = found["metadata"]
                if meta.get("labels", {}).get(labels.AGENT) != agent_id:
                    raise Superseded("another agent has adopted the session")
                version = meta["resourceVersion"]
                if await delete_pod(self.client, self.path, name, uid, None, 0.0, version=version):
                    return
                why = "the pod has changed"
            except Superseded:
                raise
            except ClusterError as error:
                why = error.message
            if asyncio.get_running_loop().time() >= end:
                raise Unclear(f"a warm pod could not be deleted after a failed delivery: {why}")
            await asyncio.sleep(DISCARD_PAUSE)
