"""What nobody owns any more is deleted: at the start, every minute, and by `sealci-agent cleanup`.

Looks only at the shared watch, so a sweep that finds nothing costs no request. A pod of this pool is remains when it
belongs to this agent and to no session that lives, or to a dead agent whose sessions nobody can adopt, or when it ended
so long ago that no living agent can still be reading it. Secrets go with their pods.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from agent.cluster.environment.deletion import delete_pod
from agent.cluster.pod import labels, session_annotation
from agent.cluster.pod.timestamps import parse_timestamp
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.environment.backend import Pods

log = structlog.get_logger(__name__)

# Another replica keeps the pod of an action that has ended until the scheduler has stored all of it, which takes as
# long as an outage of the scheduler.
ABANDONED = timedelta(hours=1)
# So long after a create was given up its pod may still be made, seconds.
LATE = 600.0


class Sweep:
    """Deletes remains, again and again. `departed` says whose sessions nobody can adopt any more, if that can be."""

    def __init__(self, pods: Pods, interval: float, departed: Callable[[str], bool] | None = None) -> None:
        self.pods = pods
        self.departed = departed
        self.interval = interval
        self.asked: set[str] = set()  # UIDs whose deletion the API has taken on
        self.stuck: set[str] = set()  # UIDs that were asked to go the last time
        self.remaining = 0

    async def run(self) -> None:
        """Sweep at once and then at the interval, until cancelled."""
        await self.pods.watch.synced.wait()
        while True:
            await self.once()
            await asyncio.sleep(self.interval)

    async def once(self) -> None:
        """Delete what is remains now."""
        watch, metrics = self.pods.watch, self.pods.metrics
        there = {pod["metadata"]["uid"] for pod in watch.pods.values()}
        metrics.swept.labels("pod").inc(len(self.asked - there))
        self.asked &= there
        self.forget_left()
        found = [pod for pod in watch.pods.values() if self.remains(pod)]
        tried = {pod["metadata"]["uid"] for pod in found if await self.sweep(pod)}
        self.remaining = len(tried & self.stuck)
        self.stuck = tried
        metrics.remains.set(self.remaining)

    async def sweep(self, pod: Object) -> bool:
        """Ask for the deletion of a pod; by force when it is still there since the last time.

        Returns False when it is no longer the pod that was judged: it is judged anew the next time.
        """
        metadata, metrics = pod["metadata"], self.pods.metrics
        name, uid, version = (metadata[key] for key in ("name", "uid", "resourceVersion"))
        grace = 0 if uid in self.stuck else None
        if uid in self.asked:
            metrics.cleanup_failures.inc()
            held_by = metadata.get("finalizers") or "its node"
            log.warning("a pod that was swept is still there", pod=name, waits_for=held_by)
        else:
            log.warning("sweeping a pod that nobody owns", pod=name, forced=grace == 0)
        try:
            # Only as it was judged: what another agent has claimed meanwhile is its pod.
            asked = await delete_pod(
                self.pods.client, self.pods.watch.path, name, uid, grace, self.interval, version=version
            )
        except ClusterError as error:
            metrics.cleanup_failures.inc()
            log.warning("a pod could not be swept", pod=name, error=error.message)
            return True
        if asked:
            self.asked.add(uid)
        return uid in self.asked

    def forget_left(self) -> None:
        """Forget what was given away and is gone; a pod whose creation was under way may come to light late."""
        here = {session_annotation.nonce_of(pod) for pod in self.pods.watch.pods.values()}
        old = time.monotonic() - LATE
        self.pods.left = {nonce: at for nonce, at in self.pods.left.items() if nonce in here or at > old}

    def remains(self, pod: Object) -> bool:
        """Whether nobody will ever look after this pod."""
        metadata = pod["metadata"]
        if metadata["name"] in self.pods.held or metadata["name"] in self.pods.claimed:
            return False
        if metadata.get("labels", {}).get(labels.AGENT) == self.pods.agent_id:
            return session_annotation.nonce_of(pod) not in self.pods.left
        if self.departed is not None and self.departed(metadata.get("labels", {}).get(labels.AGENT, "")):
            return True
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            return False
        return datetime.now(UTC) - ended_at(pod) > ABANDONED


def ended_at(pod: Object) -> datetime:
    """Return when the last container of a pod ended; when it was created, if none was started."""
    states = [each.get("state", {}) for each in pod.get("status", {}).get("containerStatuses", ())]
    finished = [parse_timestamp(state.get("terminated", {}).get("finishedAt")) for state in states]
    known = [at for at in (*finished, parse_timestamp(pod["metadata"]["creationTimestamp"])) if at is not None]
    return max(known)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up found: names of pods and stale Leases, and for what could not be deleted why."""

    pods: tuple[str, ...]
    leases: tuple[str, ...]
    failed: dict[str, str]


async def cleanup(client: Client, namespace: str, pool: str, *, dry_run: bool) -> Cleaned:
    """Delete every pod of a pool, whoever owns it, and its stale Leases. For who knows that no agent of it lives.

    One that cannot be deleted stops nothing.

    Raises:
        ClusterError: the pods or the Leases cannot be listed.
    """
    query = {"labelSelector": labels.pool_selector(pool)}
    paths = {
        "pods": f"/api/v1/namespaces/{namespace}/pods",
        "leases": f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    }
    listed = {kind: await client.request("list", kind, path, query=query) for kind, path in paths.items()}
    found = {kind: list(answer.get("items", ())) for kind, answer in listed.items()}
    found["leases"] = [lease for lease in found["leases"] if overdue(lease, client.now())]
    deleted: dict[str, list[str]] = {"pods": [], "leases": []}
    failed = {}
    for kind, items in found.items():
        for each in sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp"))):
            name, uid = each["metadata"]["name"], each["metadata"]["uid"]
            try:
                if not dry_run and kind == "pods":
                    await delete_pod(client, paths[kind], name, uid, None, 30.0)
                elif not dry_run:
                    await client.request("delete", kind, f"{paths[kind]}/{name}", body={"preconditions": {"uid": uid}})
            except ClusterError as error:
                failed[name] = error.message
            else:
                deleted[kind].append(name)
    return Cleaned(tuple(deleted["pods"]), tuple(deleted["leases"]), failed)


def overdue(lease: Object, now: datetime) -> bool:
    """Whether a Lease should long have been renewed, by the cluster's clock."""
    spec = lease.get("spec", {})
    renewed = parse_timestamp(spec.get("renewTime"))
    return renewed is None or now - renewed > timedelta(seconds=2 * float(spec.get("leaseDurationSeconds") or 15))
