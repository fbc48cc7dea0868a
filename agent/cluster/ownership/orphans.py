"""The deletion of orphans: pods with which no agent works any more.

Two parts of the program delete orphans: the sweep of each agent and the command `sealci-agent cleanup`. The sweep is a
task that lives as long as the agent and runs at an interval. It reads only the shared watch, so a sweep that finds
nothing costs no request. A pool is the group of agents with one scheduler and one namespace. A pod of the pool is an
orphan in three cases:

- The pod belongs to this agent, but none of this agent's sessions uses the pod, and it is no warm pod that waits.
- The agent of the pod is gone, and no other agent can adopt the session (continue the action). If the setting
  `agent.adoption` is off, this is so as soon as the Lease of the agent has run out. A warm pod has no session.
- The pod ended so long ago that no agent still reads its log or its files.

The cluster deletes the Secret of a pod together with the pod.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from agent.cluster.pod import labels, session_annotation
from agent.cluster.pod.fields import parse_timestamp
from agent.cluster.requests import delete_pod
from agent.cluster.warm.shape import is_idle
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.environment.backend import PodBackend

log = structlog.get_logger(__name__)

# Time until an ended pod of another agent is an orphan. The other agent keeps the pod until the scheduler has stored
# all events of its session, which can take as long as an outage of the scheduler.
ABANDONED_AFTER = timedelta(hours=1)
# Seconds to retry the deletion of a pod in `cleanup`.
CLEANUP_RETRY_SECONDS = 30.0
# Seconds between two checks whether the agents of the pods are gone, if sessions cannot be adopted.
GONE_POLL_SECONDS = 1.0


class Sweep:
    """Deletes orphans at an interval. Owned by the application, lives as long as the agent.

    `is_gone` returns whether the agent with an id is gone. It is None if sessions can be adopted. `has_died` returns
    the same in both cases, for the warm pods of that agent.
    """

    def __init__(
        self,
        backend: PodBackend,
        interval: float,
        is_gone: Callable[[str], bool] | None = None,
        has_died: Callable[[str], bool] = lambda _: False,
        poll: float = GONE_POLL_SECONDS,
    ) -> None:
        self.backend = backend
        self.registry = backend.registry
        self.watch = backend.watch
        self.metrics = backend.metrics
        self.is_gone = is_gone
        self.has_died = has_died
        self.interval = interval
        self.poll = poll
        self.accepted_uids: set[str] = set()  # UIDs of pods whose deletion the API server has accepted
        self.tried_uids: set[str] = set()  # UIDs of pods whose deletion the last sweep requested
        # UIDs of pods that belonged to gone agents, and whose deletion was requested since the last sweep.
        self.early_uids: set[str] = set()
        self.remaining = 0

    async def run(self) -> None:
        """Sweep at once and then every `interval` seconds, until cancelled."""
        await self.watch.synced.wait()
        while True:
            await self.run_once()
            if self.is_gone is None:
                await asyncio.sleep(self.interval)
            else:
                await self.watch_agents()

    async def watch_agents(self) -> None:
        """Delete the pods of each agent whose Lease runs out, until the next sweep is due."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.interval
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(self.poll, left))
            await self.sweep_gone()

    async def sweep_gone(self) -> None:
        """Delete those pods of gone agents whose deletion was not requested yet."""
        if self.is_gone is None:
            return
        pods = list(self.watch.pods.values())
        agents = {pod["metadata"].get("labels", {}).get(labels.AGENT, "") for pod in pods} - {self.backend.agent_id}
        gone = {agent for agent in agents if self.is_gone(agent)}
        known = self.tried_uids | self.early_uids | self.accepted_uids
        for pod in pods:
            metadata = pod["metadata"]
            is_theirs = metadata.get("labels", {}).get(labels.AGENT, "") in gone
            if is_theirs and metadata["uid"] not in known and self.is_orphan(pod) and await self.sweep(pod):
                self.early_uids.add(metadata["uid"])

    async def run_once(self) -> None:
        """Delete all orphans that the watch shows."""
        pods = list(self.watch.pods.values())
        uids = {pod["metadata"]["uid"] for pod in pods}
        self.metrics.swept.labels("pod").inc(len(self.accepted_uids - uids))
        self.accepted_uids &= uids
        self.registry.expire_handed_over({session_annotation.nonce_of(pod) for pod in pods})
        orphans = [pod for pod in pods if self.is_orphan(pod)]
        # The deletion of these pods was requested since the last sweep. Only the next sweep judges whether the pods are
        # gone.
        early, self.early_uids = self.early_uids, set()
        tried = {uid for pod in orphans if (uid := pod["metadata"]["uid"]) in early or await self.sweep(pod)}
        self.remaining = len(tried & self.tried_uids)
        self.tried_uids = tried
        self.metrics.remains.set(self.remaining)

    async def sweep(self, pod: Object) -> bool:
        """Request the deletion of a pod. Force the deletion if the last sweep requested it already.

        Return False if the pod has changed since the watch showed it. The next sweep judges the pod anew.
        """
        metadata = pod["metadata"]
        name, uid, version = (metadata[key] for key in ("name", "uid", "resourceVersion"))
        grace = 0 if uid in self.tried_uids else None
        if uid in self.accepted_uids:
            self.metrics.cleanup_failures.inc()
            waits_for = metadata.get("finalizers") or "its node"
            log.warning("an orphaned pod is still there after its deletion", pod=name, waits_for=waits_for)
        else:
            log.warning("deleting an orphaned pod", pod=name, forced=grace == 0)
        try:
            # The request names this version of the pod, so that it fails if another agent has claimed the pod
            # meanwhile.
            accepted = await delete_pod(
                self.backend.client, self.watch.path, name, uid, grace, self.interval, version=version
            )
        except ClusterError as error:
            self.metrics.cleanup_failures.inc()
            log.warning("an orphaned pod could not be deleted", pod=name, error=error.message)
            return True
        if accepted:
            self.accepted_uids.add(uid)
        return uid in self.accepted_uids

    def is_orphan(self, pod: Object) -> bool:
        """Return whether no agent will ever drive or delete this pod."""
        name, agent = pod["metadata"]["name"], pod["metadata"].get("labels", {}).get(labels.AGENT, "")
        if self.registry.owns(name) or name in self.registry.claimed_names or self.backend.warm.owns(name):
            return False
        if agent == self.backend.agent_id:
            return not self.registry.is_handed_over(session_annotation.nonce_of(pod))
        if self.is_gone is not None and self.is_gone(agent):
            return True
        if is_idle(pod) and self.has_died(agent):
            return True
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            return False
        return datetime.now(UTC) - end_of(pod) > ABANDONED_AFTER


def end_of(pod: Object) -> datetime:
    """Return when the last container of a pod ended. If no container started, return when the pod was created."""
    states = [each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", ())]
    finished = [parse_timestamp(state.get("terminated", {}).get("finishedAt")) for state in states]
    times = [at for at in (*finished, parse_timestamp(pod["metadata"]["creationTimestamp"])) if at is not None]
    return max(times)


@dataclass(frozen=True, slots=True)
class CleanupResult:
    """What `cleanup` deleted, or would delete: names of pods and of stale Leases. `failed` maps a name to the error."""

    pods: tuple[str, ...]
    leases: tuple[str, ...]
    failed: dict[str, str]


async def cleanup(client: Client, namespace: str, pool: str, *, leases: bool = True, dry_run: bool) -> CleanupResult:
    """Delete every pod of a pool, whatever agent owns it, and with `leases` the pool's stale Leases.

    The caller must know that no agent of the pool is alive. A failed deletion does not stop the others.

    Raises:
        ClusterError: the pods or the Leases cannot be listed.
    """
    query = {"labelSelector": labels.pool_selector(pool)}
    paths = {"pods": f"/api/v1/namespaces/{namespace}/pods"}
    if leases:
        paths["leases"] = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    answers = {kind: await client.request("list", kind, path, query=query) for kind, path in paths.items()}
    found = {kind: list(answer.get("items", ())) for kind, answer in answers.items()}
    found["leases"] = [lease for lease in found.get("leases", ()) if is_stale(lease, client.now())]
    deleted: dict[str, list[str]] = {"pods": [], "leases": []}
    failed = {}
    for kind, items in found.items():
        for each in sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp"))):
            name, uid = each["metadata"]["name"], each["metadata"]["uid"]
            try:
                if not dry_run and kind == "pods":
                    await delete_pod(client, paths[kind], name, uid, None, CLEANUP_RETRY_SECONDS)
                elif not dry_run:
                    await client.request("delete", kind, f"{paths[kind]}/{name}", body={"preconditions": {"uid": uid}})
            except ClusterError as error:
                failed[name] = error.message
            else:
                deleted[kind].append(name)
    return CleanupResult(tuple(deleted["pods"]), tuple(deleted["leases"]), failed)


def is_stale(lease: Object, now: datetime) -> bool:
    """Return whether a Lease was not renewed for twice its duration, by the cluster's clock `now`."""
    spec = lease.get("spec", {})
    renewed = parse_timestamp(spec.get("renewTime"))
    return renewed is None or now - renewed > timedelta(seconds=2 * float(spec.get("leaseDurationSeconds") or 15))
