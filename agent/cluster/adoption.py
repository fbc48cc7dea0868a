"""Sessions of agents that are gone become this agent's: claimed by an optimistic lock, one winner each.

Lives as long as the agent. A claim raises the number that fences the older owner and writes the new agent into the
pod's labels, in one patch that names the version it saw: of two agents that try, one wins. What is claimed is handed to
`adopt`; the scheduler then says where the session goes on, or that nobody wants it any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from agent.cluster import names
from agent.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.leases import Leases
    from agent.cluster.pods import PodEnvironment, Pods

Object = dict[str, Any]
log = structlog.get_logger(__name__)

LOOK = 1.0


class Adoption:
    """Looks for sessions without an agent and claims them. `open` says whether this agent may take any more."""

    def __init__(
        self, pods: Pods, leases: Leases, adopt: Callable[[PodEnvironment], None], *, open_for: Callable[[], bool]
    ) -> None:
        self.pods = pods
        self.leases = leases
        self.adopt = adopt
        self.open_for = open_for
        self.wake = asyncio.Event()
        leases.on_change = self.wake.set

    async def run(self) -> None:
        """Look whenever a Lease changed, and every second, until cancelled."""
        await self.pods.watch.synced.wait()
        while True:
            await self.once()
            self.wake.clear()
            try:
                async with asyncio.timeout(LOOK):
                    await self.wake.wait()
            except TimeoutError:
                continue

    async def once(self) -> None:
        """Claim every session whose agent has departed."""
        for pod in list(self.pods.watch.pods.values()):
            if self.open_for() and self.orphaned(pod):
                await self.claim(pod)

    def orphaned(self, pod: Object) -> bool:
        """Whether the pod's agent is gone and nobody else has claimed it."""
        agent = pod["metadata"].get("labels", {}).get(names.AGENT, "")
        return pod["metadata"]["name"] not in self.pods.held and self.leases.departed(agent)

    async def claim(self, pod: Object) -> None:
        """Try to become the owner of a session; another agent may be quicker."""
        meta = pod["metadata"]
        claim = int(meta["labels"].get(names.CLAIM, "1")) + 1
        body: Object = {
            "metadata": {
                "resourceVersion": meta["resourceVersion"],
                "labels": {names.AGENT: self.pods.agent_id, names.CLAIM: str(claim)},
            }
        }
        try:
            answer = await self.pods.client.request(
                "patch", "pods", f"{self.pods.watch.path}/{meta['name']}", body=body
            )
            environment = self.pods.adopted(answer)
        except ClusterError as error:
            log.info("a session was not claimed", pod=meta["name"], error=error.message)
            return
        except ValueError as error:
            log.warning("a pod cannot be adopted and is left to the sweep", pod=meta["name"], error=str(error))
            return
        log.warning("adopted a session", pod=meta["name"], claim=claim, before=meta["labels"].get(names.AGENT))
        self.pods.metrics.adopted.inc()
        self.adopt(environment)
