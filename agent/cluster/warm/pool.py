"""The warm pods of one agent that no action has claimed: which there are, and which pool each belongs to.

A pool has one shape. Pools are made from the settings (`warm.pools`), or learned from the actions that arrive
(`warm.learn`). Only the agent that created a warm pod gives it to an action, so agents never compete for one. Nothing
here sends a request.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent.cluster.warm import shape
from agent.cluster.warm.demand import Demand
from agent.domain.references.image_reference import image_matches
from agent.domain.session_state import WarmImage
from agent.settings import settings_of_class

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from agent.cluster.ending.nudger import WatchedPod
    from agent.cluster.pod.manifest import Plan
    from agent.cluster.warm.standby_exec import StandbyExec
    from agent.domain.json import Object
    from agent.settings import Settings
    from agent.settings.warm import WarmPool

# Largest number of learned pools that an agent remembers.
MAX_LEARNED = 50
# Seconds until a pool whose pods fail is tried again, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0


class Watch(Protocol):
    """The part of the pod watch that warm pods need. Implemented by `environment.watch.PodWatch`."""

    path: str
    synced: asyncio.Event

    def watch(self, name: str) -> WatchedPod:
        """Return the state of the pod with this name, updated until `forget`."""

    def forget(self, name: str) -> None:
        """Stop updating the state that `watch` returned."""


@dataclass(eq=False)
class WarmPod:
    """One warm pod that no action has claimed. It lives until it is claimed or deleted.

    `created` is the pod as the API server created it, None while the request runs. `seconds` is its longest age.
    `standby` is None until the pod is ready.
    """

    name: str
    pool: Pool
    state: WatchedPod
    born: float
    seconds: float
    created: Object | None = None
    ready: bool = False
    standby: StandbyExec | None = None

    @property
    def uid(self) -> str:
        return str(self.created["metadata"]["uid"]) if self.created else ""

    def age(self, now: float) -> float:
        return now - self.born

    async def close_standby(self) -> None:
        if self.standby is not None:
            await self.standby.close()


@dataclass(eq=False)
class Pool:
    """The warm pods of one shape. `plan` describes a pod of the pool. `learned`: no setting names the pool.

    `settings` are those of the pool's class.
    """

    key: str
    plan: Plan
    settings: Settings
    least: int
    most: int
    learned: bool
    demand: Demand
    pods: list[WarmPod] = field(default_factory=list)
    failures: int = 0
    paused_until: float = 0.0
    trouble: str = ""

    @property
    def image(self) -> str:
        return self.plan.action.image

    @property
    def kind(self) -> WarmImage:
        """Return what the agent reports about the pool, with 0 waiting pods. The policy's defaults fill the size."""
        action, policy = self.plan.action, self.settings.policy
        cpu, memory = action.resources.cpu or policy.default_cpu, action.resources.memory or policy.default_memory
        return WarmImage(action.image, cpu, memory, 0, action.environment_class)

    @property
    def ready(self) -> list[WarmPod]:
        return [pod for pod in self.pods if pod.ready]

    def pause(self, why: str, now: float) -> None:
        """Create no pods for a while, because a pod has failed. The pause grows with each failure in a row."""
        self.trouble = why
        self.paused_until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2**self.failures)
        self.failures = min(self.failures + 1, 10)

    def succeed(self, seconds: float) -> None:
        """Record that a pod is ready after this time."""
        self.failures, self.trouble = 0, ""
        self.demand.refilled(seconds)


class Pools:
    """All pools of one agent. Owned by `WarmPods`, lives as long as the agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.by_key: dict[str, Pool] = {}
        # Settings for pods of a class. "" stands for no class.
        self.by_class = {name: settings_of_class(settings, name) for name in ("", *settings.environment.classes)}

    def settings_of(self, plan: Plan) -> Settings:
        """Return the settings for pods of the class of `plan`."""
        # Admission refuses an action of another class. A pool for it cannot exist.
        return self.by_class.get(plan.action.environment_class, self.settings)

    def pods(self) -> Iterator[WarmPod]:
        for pool in self.by_key.values():
            yield from pool.pods

    def configure(self, pool: WarmPool, plan: Plan, now: float) -> None:
        """Add a pool of the settings. `plan` is an `idle_plan` of its shape."""
        settings = self.settings_of(plan)
        key = shape.pool_key(plan, settings)
        self.by_key[key] = Pool(key, plan, settings, pool.min, pool.most, learned=False, demand=Demand(now))

    def find(self, plan: Plan, now: float, *, count: bool = True) -> Pool | None:
        """Return the pool for an action, and with `count` count the action as demand.

        A new pool is learned if the settings allow it.
        """
        key = shape.pool_key(plan, self.settings_of(plan))
        pool = self.by_key.get(key)
        if pool is None:
            pool = self.learn(key, plan, now)
        if pool is not None and count:
            pool.demand.arrived(now)
        return pool

    def learn(self, key: str, plan: Plan, now: float) -> Pool | None:
        rules, settings = self.settings.warm.learn, self.settings_of(plan)
        if not rules.max_pods or not any(image_matches(plan.action.image, each) for each in rules.images):
            return None
        if plan.action.environment_class not in ("", *rules.classes):
            return None
        idle = shape.idle_plan(plan, settings)
        if shape.pool_key(idle, settings) != key:
            # The action needs something in its pod that a warm pod does not have.
            return None
        learned = [pool for pool in self.by_key.values() if pool.learned]
        if len(learned) >= MAX_LEARNED:
            unused = [pool for pool in learned if not pool.pods]
            if not unused:
                return None
            del self.by_key[min(unused, key=lambda pool: pool.demand.last_arrival).key]
        found = Pool(key, idle, settings, 0, rules.max_pods, learned=True, demand=Demand(now))
        self.by_key[key] = found
        return found

    def missing(self, now: float) -> list[Pool]:
        """Return the pools that want one more pod, the emptiest first, while the limits of the settings allow it."""
        warm = self.settings.warm
        total = sum(len(pool.pods) for pool in self.by_key.values())
        learned = sum(len(pool.pods) for pool in self.by_key.values() if pool.learned)
        if total >= warm.max_pods:
            return []
        found = []
        for pool in self.by_key.values():
            if pool.paused_until > now or (pool.learned and learned >= warm.learn.max_pods):
                continue
            lack = self.wanted(pool, now) - len(pool.pods)
            if lack > 0:
                found.append((pool.learned, -lack, pool))
        return [pool for *_, pool in sorted(found, key=lambda each: each[:2])]

    def wanted(self, pool: Pool, now: float) -> int:
        return pool.demand.wanted(now, pool.least, pool.most, self.settings.warm.learn.idle_after)

    def surplus(self, now: float) -> list[WarmPod]:
        """Return the pods to delete: those that are too old, and those that their pool does not want any more."""
        found = [pod for pod in self.pods() if pod.age(now) > pod.seconds]
        for pool in self.by_key.values():
            young = [pod for pod in pool.pods if pod not in found]
            # One pod more than wanted may stay, so that a falling rate does not delete a pod that is wanted soon.
            spare = len(young) - max(self.wanted(pool, now), 0)
            if spare > (1 if now - pool.demand.last_arrival <= self.settings.warm.learn.idle_after else 0):
                found += sorted(young, key=lambda pod: pod.born)[:spare]
        return found


def new_name() -> str:
    return f"sealci-warm-{secrets.token_hex(8)}"


def now() -> float:
    return time.monotonic()
