"""Sessions of agents that are gone become this agent's: claimed by an optimistic lock, one winner each.

Lives as long as the agent. A claim raises the number that fences the older owner and writes the new agent into the
pod's labels, in one patch that names the version it saw: of two agents that try, one wins. What is claimed is handed to
`adopt`; the scheduler then says where the session goes on, or that nobody wants it any more.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from agent.cluster.pod import labels, session_annotation
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.environment.backend import PodBackend
    from agent.cluster.environment.environment import PodEnvironment
    from agent.cluster.ownership.leases import Leases

log = structlog.get_logger(__name__)

CONFLICT = 409
LOOK = 1.0
LONGEST_PAUSE = 60.0


class Adoption:
    """Looks for sessions without an agent and claims them.

    `open_for` says whether this agent may take any more; `adopt` whether it took one, which it may only later.
    """

    def __init__(
        self, pods: PodBackend, leases: Leases, adopt: Callable[[PodEnvironment], bool], *, open_for: Callable[[], bool]
    ) -> None:
        self.pods = pods
        self.leases = leases
        self.adopt = adopt
        self.open_for = open_for
        self.wake = asyncio.Event()
        self.unreadable: set[str] = set()
        self.asked_to_wait = 0.0
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
        pods = dict(self.pods.watch.objects)
        self.unreadable &= {pod["metadata"]["uid"] for pod in pods.values()}
        self.pods.claimed &= pods.keys()
        for pod in pods.values():
            if self.open_for() and time.monotonic() >= self.asked_to_wait and self.orphaned(pod):
                known = self.pods.watch.read(pod["metadata"]["name"])
                if known is not None:
                    await self.claim(known)
        self.pods.metrics.unreadable.set(len(self.unreadable))

    def orphaned(self, pod: Object) -> bool:
        """Whether the pod's agent is gone and nobody else has claimed it."""
        name, agent = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get(labels.AGENT, "")
        if name in self.pods.held or pod["metadata"]["uid"] in self.unreadable:
            return False
        # A claim whose answer got lost was made all the same.
        return name in self.pods.claimed if agent == self.pods.agent_id else self.leases.is_gone(agent)

    async def claim(self, pod: Object) -> None:
        """Try to become the owner of a session; another agent may be quicker.

        A pod that tells no session is left as it is: it may be a newer version's, and has its own deadline.
        """
        meta = pod["metadata"]
        try:
            action, _ = session_annotation.read(pod)
        except ValueError as error:
            log.warning("a pod cannot be adopted and is left alone", pod=meta["name"], error=str(error))
            self.unreadable.add(meta["uid"])
            return
        before = meta["labels"].get(labels.AGENT)
        if before != self.pods.agent_id:
            claimed = await self.ask(pod, action.key.claim + 1)
            if claimed is None:
                return
            pod = claimed
        try:
            taken = self.adopt(self.pods.adopted(pod))
        except ValueError as error:
            log.error("a session was claimed and cannot be taken", pod=meta["name"], error=str(error))
        else:
            if not taken:
                return  # it stays claimed, and is offered again at the next look
            log.warning("adopted a session", pod=meta["name"], claim=session_annotation.claim_of(pod), before=before)
            self.pods.metrics.adopted.inc()
        self.pods.claimed.discard(meta["name"])

    async def ask(self, pod: Object, claim: int) -> Object | None:
        """Write the claim into the pod as it was seen; returns the claimed pod, None when it is not ours."""
        meta = pod["metadata"]
        body: Object = {
            "metadata": {
                "resourceVersion": meta["resourceVersion"],
                "labels": {labels.AGENT: self.pods.agent_id, labels.CLAIM: str(claim)},
            }
        }
        self.pods.claimed.add(meta["name"])
        try:
            return await self.pods.client.request("patch", "pods", f"{self.pods.watch.path}/{meta['name']}", body=body)
        except ClusterError as error:
            # That another agent was quicker is as it should be.
            tell = log.info if error.status == CONFLICT else log.warning
            tell("a session was not claimed", pod=meta["name"], error=error.message)
            self.asked_to_wait = time.monotonic() + min(error.retry_after or 0.0, LONGEST_PAUSE)
            if error.status and not error.retryable:
                self.pods.claimed.discard(meta["name"])
            return None
