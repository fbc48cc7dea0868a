"""Claims the sessions of dead agents, so that this agent continues them. An `Adoption` lives as long as the agent.

A claim is one patch of the pod. The patch raises the claim number, which fences the former owner, and writes this
agent's id into the pod's labels. The patch names the resource version that the agent saw, so one of several agents
wins. The scheduler then sends the resume point of the session, or discards the session.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.cluster.ownership import adoption_record
from agent.cluster.pod import labels, session_annotation
from agent.cluster.warm.shape import is_idle
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.environment.backend import PodBackend
    from agent.cluster.environment.environment import PodEnvironment
    from agent.cluster.ownership.leases import Leases

log = structlog.get_logger(__name__)

CONFLICT = 409
# Maximum number of seconds that the agent waits when the API server asks for a pause.
MAX_RETRY_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AdoptionTimings:
    """Fixed waits of the adoption, in seconds. The agent uses the defaults; tests pass shorter waits."""

    # Seconds between two searches for sessions to adopt, if no Lease changes.
    poll_seconds: float = 1.0


TIMINGS = AdoptionTimings()


class Adoption:
    """Searches for pods whose agent is gone, and claims them. Owned by the application, lives as long as the agent.

    `open_for` returns whether this agent adopts another session now. `start_session` starts the session of a claimed
    pod. `start_session` returns False if the session cannot start yet. The pod then stays claimed, and the next search
    offers it again.
    """

    def __init__(
        self,
        backend: PodBackend,
        leases: Leases,
        start_session: Callable[[PodEnvironment], bool],
        *,
        open_for: Callable[[], bool],
        timings: AdoptionTimings = TIMINGS,
    ) -> None:
        self.backend = backend
        self.registry = backend.registry
        self.watch = backend.watch
        self.metrics = backend.metrics
        self.leases = leases
        self.start_session = start_session
        self.open_for = open_for
        self.timings = timings
        self.wake = asyncio.Event()
        self.unreadable_uids: set[str] = set()
        self.paused_until = 0.0
        leases.on_change = self.wake.set

    async def run(self) -> None:
        """Search for sessions to adopt after each deletion of a Lease, and every `poll_seconds`, until cancelled."""
        await self.watch.synced.wait()
        while True:
            await self.run_once()
            self.wake.clear()
            try:
                async with asyncio.timeout(self.timings.poll_seconds):
                    await self.wake.wait()
            except TimeoutError:
                continue

    async def run_once(self) -> None:
        """Claim every pod whose agent is gone."""
        pods = dict(self.watch.objects)
        self.unreadable_uids &= {pod["metadata"]["uid"] for pod in pods.values()}
        self.registry.retain_claims(pods)
        for pod in pods.values():
            if self.open_for() and time.monotonic() >= self.paused_until and self.is_adoptable(pod):
                whole_pod = self.watch.read(pod["metadata"]["name"])
                # A warm pod without an action has nothing that is worth an adoption. The sweep deletes it.
                if whole_pod is not None and not is_idle(whole_pod) and not self.is_replaced(whole_pod):
                    await self.claim(whole_pod)
        self.metrics.unreadable.set(len(self.unreadable_uids))

    def is_adoptable(self, pod: Object) -> bool:
        """Return whether the pod's agent is gone and no other agent has claimed the pod."""
        name, agent = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get(labels.AGENT, "")
        if self.registry.owns(name) or pod["metadata"]["uid"] in self.unreadable_uids:
            return False
        # A pod with this agent's own id is adoptable if the API server has applied a claim whose answer was lost.
        return name in self.registry.claimed_names if agent == self.backend.agent_id else self.leases.is_gone(agent)

    def is_replaced(self, pod: Object) -> bool:
        """Return whether the former agent has deleted this warm pod and has given its action another pod.

        The session continues in the other pod. The end of this pod must not become the outcome.
        """
        if not pod["metadata"].get("deletionTimestamp") or session_annotation.claimed_at_of(pod) is None:
            return False
        attempt = attempt_of(pod)
        others = (each for each in self.watch.pods.values() if each["metadata"]["uid"] != pod["metadata"]["uid"])
        return any(attempt_of(each) == attempt and not each["metadata"].get("deletionTimestamp") for each in others)

    async def claim(self, pod: Object) -> None:
        """Try to claim a pod and to start its session. Another agent can claim the pod first.

        A pod whose session annotation cannot be read is left alone. Such a pod may belong to a newer version of the
        agent, and the pod's own deadline ends the pod.
        """
        meta = pod["metadata"]
        try:
            action, _ = session_annotation.read(pod)
        except ValueError as error:
            log.warning("a pod cannot be adopted and is left alone", pod=meta["name"], error=str(error))
            self.unreadable_uids.add(meta["uid"])
            return
        former_agent = meta["labels"].get(labels.AGENT)
        if former_agent != self.backend.agent_id:
            claimed = await self.patch_claim(pod, action.key.claim + 1)
            if claimed is None:
                return
            pod = claimed
        try:
            environment = self.backend.environment_of(pod)
            environment.refusal = adoption_record.refusal(pod)
            started = self.start_session(environment)
        except ValueError as error:
            log.error("the session of a claimed pod cannot be read", pod=meta["name"], error=str(error))
        else:
            if not started:
                return
            claim = session_annotation.claim_of(pod)
            log.warning("adopted a session", pod=meta["name"], claim=claim, before=former_agent)
            self.metrics.adopted.inc()
        self.registry.drop_claim(meta["name"])

    async def patch_claim(self, pod: Object, claim: int) -> Object | None:
        """Write the claim into the pod. Return the claimed pod, or None if the API server did not confirm the claim."""
        meta = pod["metadata"]
        now, left = self.backend.client.now(), self.leases.has_left(meta["labels"].get(labels.AGENT, ""))
        body: Object = {
            "metadata": {
                "resourceVersion": meta["resourceVersion"],
                "labels": {labels.AGENT: self.backend.agent_id, labels.CLAIM: str(claim)},
                "annotations": {adoption_record.ANNOTATION: adoption_record.next_record(pod, now, left=left)},
            }
        }
        self.registry.add_claim(meta["name"])
        try:
            return await self.backend.client.request("patch", "pods", f"{self.watch.path}/{meta['name']}", body=body)
        except ClusterError as error:
            # A conflict is normal: another agent was faster.
            write = log.info if error.status == CONFLICT else log.warning
            write("a session was not claimed", pod=meta["name"], error=error.message)
            self.paused_until = time.monotonic() + min(error.retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
            if error.status and not error.retryable:
                self.registry.drop_claim(meta["name"])
            return None


def attempt_of(pod: Object) -> tuple[str, str]:
    """Return the labels that name the attempt of a pod."""
    found = pod["metadata"].get("labels", {})
    return found.get(labels.ACTION, ""), found.get(labels.ATTEMPT, "")
