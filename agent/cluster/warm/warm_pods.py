"""Keep warm pods ready, and give them to actions.

One `WarmPods` lives as long as the agent. It creates pods until each pool has as many as it wants, replaces old ones,
and deletes all of them when the agent drains. A warm pod gets one action at most: it leaves its pool when an action
reserves it, and after a failed claim or delivery it is deleted. Only then does the action get another pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.cluster.api.rate_limit import Priority
from agent.cluster.requests import create_fitting_pod, delete_pod
from agent.cluster.warm import shape
from agent.cluster.warm.claim import Claims
from agent.cluster.warm.pool import Pool, Pools, WarmPod, new_name, now
from agent.domain.actions import Action, Key, Resources
from agent.domain.errors import ClusterError
from agent.domain.session_state import WarmImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.ending.nudger import WatchedPod
    from agent.cluster.pod.manifest import Plan
    from agent.cluster.warm.pool import Watch
    from agent.domain.json import Object
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Seconds between two looks at the pools, if nothing happens before.
LOOK_SECONDS = 5.0
# Seconds between two creations, so that the pools never compete with actions for the API server.
PACE_SECONDS = 0.1
# Largest number of warm pods that start at the same time.
MAX_STARTING = 4
# Seconds that a warm pod may wait for a node. The room is then better left to actions.
UNSCHEDULABLE_SECONDS = 20.0
# Seconds without new warm pods after an action found no room.
ROOM_SECONDS = 60.0
# Seconds to retry the deletion of a warm pod. Afterwards the sweep deletes the pod.
DELETE_SECONDS = 10.0
# Warm pods live for at least this share of `warm.max_age`, so that not all of a pool are replaced at the same time.
SHORTEST_LIFE = 0.8
# Seconds until the sweep takes care of a pod that is still there after its deletion.
LEAVING_SECONDS = 120.0
# Number of warm pods that one action may try. It then gets a pod of its own.
MAX_TRIES = 3


class WarmPods:
    """All warm pods of one agent. Owned by the backend, lives as long as the agent.

    `plan_of` returns the plan of an action. `cluster_known` is set when the agent knows enough to create
    pods. `on_change` is called when the number of waiting pods may have changed.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        watch: Watch,
        plan_of: Callable[[Action, str], Plan],
        cluster_known: asyncio.Event,
        *,
        enabled: bool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.client = client
        self.metrics = client.metrics
        self.watch = watch
        self.plan_of = plan_of
        self.cluster_known = cluster_known
        self.enabled = enabled and settings.warm.enabled
        self.on_change = on_change
        self.pools = Pools(settings)
        self.claims = Claims(settings, client, watch.path)
        # Pods that a session tries to start or whose deletion was requested, each with the time since then.
        self.leaving: dict[str, tuple[WatchedPod, float]] = {}
        self.reserved: dict[str, WarmPod] = {}  # pods that a session holds and has not claimed yet
        self.wake = asyncio.Event()
        self.deleting = 0  # number of requests to delete a pod
        self.empty = asyncio.Event()
        self.empty.set()
        self.draining = False
        self.counted: list[WarmImage] = []
        self.no_room_until = 0.0

    # ---- for the parts of the agent that see pods

    def owns(self, name: str) -> bool:
        """Return whether the pod is an unclaimed warm pod of this agent, so that no sweep may delete it."""
        return name in self.reserved or name in self.leaving or any(pod.name == name for pod in self.pools.pods())

    def pod_changed(self, pod: Object) -> None:
        """Look at the pools soon, if the changed pod is a warm pod."""
        if self.enabled and shape.is_idle(pod):
            self.wake.set()

    def counts(self) -> list[WarmImage]:
        """Return the number of waiting pods of each kind that has any."""
        found: Counter[WarmImage] = Counter()
        for pool in self.pools.by_key.values():
            found[pool.kind] += len(pool.ready)
        return [replace(kind, idle=idle) for kind, idle in found.items() if idle]

    # ---- for sessions

    def reserve(self, plan: Plan, tries: int = 0) -> WarmPod | None:
        """Take a waiting pod for the action of `plan` out of its pool. None if the action needs a pod of its own.

        `tries` is the number of warm pods that the action has tried already.
        """
        if not self.enabled or self.draining:
            return None
        why = shape.ineligible(plan, self.pools.settings_of(plan))
        pool = None if why else self.pools.find(plan, now(), count=not tries)
        pod = self.choose(pool) if pool is not None and tries < MAX_TRIES else None
        if pod is None:
            self.count(why or ("cold_empty" if pool is not None else "cold_no_pool"))
            self.wake.set()
            return None
        pod.pool.pods.remove(pod)
        self.reserved[pod.name] = pod
        self.wake.set()
        self.changed()
        return pod

    def choose(self, pool: Pool) -> WarmPod | None:
        """Return the oldest pod of a pool that waits for an order and may be given away."""
        limit = self.settings.warm.stale_tags
        stable = shape.has_stable_image(pool.image, self.settings)
        for pod in pool.ready:
            if pod.state.pod is None or not shape.is_ready(pod.state.pod):
                continue
            if pod.age(now()) <= (pod.seconds if stable else min(limit, pod.seconds)):
                return pod
        return None

    def give_back(self, pod: WarmPod) -> None:
        """Put a reserved pod back into its pool. The session has sent no request about it."""
        if self.reserved.pop(pod.name, None) is not None:
            pod.pool.pods.append(pod)
            self.changed()

    async def start(self, pod: WarmPod, plan: Plan) -> Object:
        """Give the action of `plan` to a reserved pod. Return the pod when the commands have begun.

        Raises:
            NotBegun: no command has run and none will. The pod is being deleted.
            Superseded: another agent has adopted the session.
            Unclear: the commands may have begun.
        """
        began = now()
        self.leaving[pod.name] = pod.state, now()
        self.reserved.pop(pod.name, None)
        try:
            claimed = await self.claims.start(pod, plan)
        except ClusterError as error:
            self.count("cold_lost")
            self.metrics.warm_pod_seconds.labels("wasted").inc(pod.age(now()))
            log.warning("a warm pod was not used", pod=pod.name, error=error.message)
            raise
        self.leaving.pop(pod.name, None)
        self.count("warm")
        self.metrics.warm_claim_seconds.observe(now() - began)
        self.metrics.warm_pod_seconds.labels("claimed").inc(pod.age(now()))
        return claimed

    def count(self, result: str) -> None:
        self.metrics.warm_claims.labels(result).inc()

    async def make_room(self) -> bool:
        """Delete the oldest warm pod, because an action finds no room in the cluster. Return whether there was one."""
        self.no_room_until = now() + ROOM_SECONDS
        oldest = min((pod for pod in self.pools.pods() if pod.created), key=lambda pod: pod.born, default=None)
        if oldest is None:
            return False
        log.info("a warm pod makes room for an action", pod=oldest.name)
        await self.delete(oldest)
        return True

    async def relieve(self, pod: Object | None) -> bool:
        """Make room if the pod of an action has no node. Return whether a warm pod was deleted."""
        return self.enabled and pod is not None and bool(shape.unschedulable(pod)) and await self.make_room()

    def drain(self) -> None:
        """Delete all warm pods, and create no more."""
        self.draining = True
        self.wake.set()

    async def wait_until_empty(self, seconds: float) -> None:
        """Wait until the deletion of all warm pods was requested, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.empty.wait()

    # ---- the loop that keeps the pools

    async def run(self) -> None:
        """Keep the pools until cancelled. Does nothing if the settings name no warm pods."""
        if not self.enabled:
            return
        await self.watch.synced.wait()
        await self.cluster_known.wait()
        for pool in self.settings.warm.pools:
            size = Resources(pool.cpu, pool.memory, pool.ephemeral_storage)
            asked = Action(Key(""), pool.image, (), resources=size, environment_class=pool.environment_class)
            self.pools.configure(pool, shape.idle_plan(self.plan_of(asked, ""), self.settings), now())
        try:
            while True:
                self.wake.clear()
                await self.look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self.wake.wait()
        finally:
            # Each connection may need a second to close, if the API server does not answer.
            await asyncio.gather(*(pod.close_standby() for pod in (*self.pools.pods(), *self.reserved.values())))

    async def look(self) -> None:
        """Look at all warm pods once, and create and delete what the pools need."""
        for pod in list(self.pools.pods()):
            await self.judge(pod)
        for name, (state, since) in list(self.leaving.items()):
            if state.pod is None or now() - since > LEAVING_SECONDS:
                self.leaving.pop(name)
                self.watch.forget(name)
        for pod in list(self.pools.pods()) if self.draining else self.pools.surplus(now()):
            await self.delete(pod)
        while not self.draining and now() >= self.no_room_until and self.may_start():
            missing = self.pools.missing(now())
            if not missing:
                break
            await self.create(missing[0])
            await asyncio.sleep(PACE_SECONDS)
        self.changed()

    def may_start(self) -> bool:
        """Return whether one more pod may start now. New pods of actions go first."""
        starting = sum(not pod.ready for pod in self.pools.pods())
        return starting < MAX_STARTING and not self.client.bucket.waiters

    async def judge(self, pod: WarmPod) -> None:
        """Find out whether a pod is ready, and delete a pod that cannot become ready or has ended."""
        if pod.created is None:
            return
        found = pod.state.pod
        if found is None:
            # The watch may show a new pod later than the answer to the request.
            if pod.ready or pod.age(now()) > LOOK_SECONDS:
                await self.forget(pod)
            return
        why = shape.start_failure(found)
        if not why and not pod.ready:
            if shape.is_ready(found):
                pod.ready = True
                pod.standby = self.claims.open_standby(pod)
                pod.pool.succeed(pod.age(now()))
                return
            blocked = shape.unschedulable(found)
            limit = UNSCHEDULABLE_SECONDS if blocked else self.settings.policy.pull_timeout
            why = (blocked or "it did not start in time") if pod.age(now()) > limit else ""
        if why:
            log.warning("a warm pod cannot be used", pod=pod.name, image=pod.pool.image, error=why)
            if not pod.ready:
                pod.pool.pause(why, now())
            await self.delete(pod)

    async def create(self, pool: Pool) -> None:
        """Create a pod of a pool."""
        name = new_name()
        life = self.settings.warm.max_age * random.uniform(SHORTEST_LIFE, 1.0)  # noqa: S311 - no secret
        pod = WarmPod(name, pool, self.watch.watch(name), now(), life)
        pool.pods.append(pod)
        body = shape.idle_pod(replace(pool.plan, name=name), pool.settings, pool.key)
        try:
            pod.created = await create_fitting_pod(self.client, self.watch.path, body, Priority.REFILL)
        except ClusterError as error:
            if pool.trouble != error.message:
                log.warning("a warm pod was not created", image=pool.image, error=error.message)
            pool.pause(error.message, now())
        finally:
            if pod.created is None:
                # If the API server has created the pod all the same, the sweep deletes it.
                await self.forget(pod)

    async def delete(self, pod: WarmPod) -> None:
        """Delete a pod that no action has claimed. If this fails, the sweep deletes the pod later."""
        if pod not in pod.pool.pods or not pod.uid:
            return
        pod.pool.pods.remove(pod)
        self.leaving[pod.name] = pod.state, now()
        self.metrics.warm_pod_seconds.labels("wasted").inc(pod.age(now()))
        self.deleting += 1
        self.changed()
        await pod.close_standby()
        try:
            await delete_pod(self.client, self.watch.path, pod.name, pod.uid, None, DELETE_SECONDS)
        except ClusterError as error:
            log.warning("a warm pod was not deleted; the sweep will retry", pod=pod.name, error=error.message)
            self.leaving.pop(pod.name, None)
            self.watch.forget(pod.name)
        finally:
            self.deleting -= 1
            self.changed()

    async def forget(self, pod: WarmPod) -> None:
        if pod in pod.pool.pods:
            pod.pool.pods.remove(pod)
        await pod.close_standby()
        self.watch.forget(pod.name)
        self.changed()

    def changed(self) -> None:
        """Update the metrics, and report the number of waiting pods if it has changed."""
        ready = sum(pod.ready for pod in self.pools.pods())
        self.metrics.warm_pods.labels("idle").set(ready)
        total = sum(1 for _ in self.pools.pods())
        self.metrics.warm_pods.labels("starting").set(total - ready)
        (self.empty.clear if total or self.deleting else self.empty.set)()
        counted = self.counts()
        if counted != self.counted:
            self.counted = counted
            self.on_change()
