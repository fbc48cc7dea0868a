"""Finds out by one Lease per agent which agents of the pool are alive. A `Leases` lives as long as the agent.

Each agent renews its own Lease and watches the others. As in client-go, an agent is dead when its Lease has not changed
for its duration on the observer's monotonic clock. The observer counts only the time in which its own renewals succeed.
An outage of the API server, or a clock that is an hour off, therefore makes no agent dead. An agent that deletes its
own Lease is gone at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from agent.cluster.api.reflector import Reflector
from agent.cluster.pod import labels
from agent.cluster.pod.fields import parse_timestamp
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.capabilities import ClusterFacts
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Seconds until the Lease of a dead agent is deleted, and until the agent drops its record of a deleted Lease.
EXPIRED_AFTER_SECONDS = 600.0
# Number of renewal intervals after which a renewal counts as missed. The agent then cannot judge the other agents,
# because it may not have seen their renewals either.
MISSED_INTERVALS = 1.6
# Status codes that deny access.
DENIED_CODES = frozenset({401, 403})
# Number of denials in a row that set `access_denied`. A temporary fault of the API server can cause a single denial.
DENIED_AFTER = 2
# Duration in seconds of a Lease without `leaseDurationSeconds`.
DEFAULT_DURATION = 15


class Leases(Reflector):
    """The Leases of a pool, and the renewal of the agent's own. Owned by the application, lives as long as the agent.

    `is_gone` decides whose sessions may be adopted. `on_change` is called when a Lease is deleted. `acquired` is set
    after the first renewal. `access_denied` is set while the API server denies access to the agent.
    """

    def __init__(
        self,
        client: Client,
        settings: Settings,
        agent_id: str,
        facts: ClusterFacts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        namespace = settings.cluster.namespace
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        super().__init__(client, "leases", path, labels.pool_selector(settings.agent.pool), client.metrics)
        self.settings = settings
        self.agent_id = agent_id
        self.facts = facts
        self.clock = clock
        self.name = f"sealci-{hashlib.sha256(f'{settings.agent.pool}/{agent_id}'.encode()).hexdigest()[:16]}"
        self.acquired = asyncio.Event()
        self.access_denied = asyncio.Event()
        # The watch also reports the agent's own renewals, so a watch that is silent for this long is broken.
        self.silence = 2 * settings.cluster.lease_duration
        self.on_change: Callable[[], None] = lambda: None
        # For each Lease name: the resource version and the time of the last change, in seconds of `clock`.
        self._changed_at: dict[str, tuple[str, float]] = {}
        self._newest: dict[str, Object] = {}
        # For the agent id of each deleted Lease: the time of the deletion, in seconds of `clock`.
        self._deleted_at: dict[str, float] = {}
        # For each agent id without a Lease: the time when this agent first missed the Lease, in seconds of `clock`.
        self._missing_since: dict[str, float] = {}
        self._renewed_at = 0.0
        self._healthy_since = 0.0
        self._failing = False
        self._denials = 0

    # ---- the agent's own Lease

    async def keep(self) -> None:
        """Renew the agent's own Lease and delete expired Leases of others, until cancelled."""
        interval = self.settings.cluster.lease_renew
        while True:
            began, pause = self.clock(), 0.0
            try:
                # A request without an answer must not delay the next request, because the Lease runs out meanwhile.
                async with asyncio.timeout(interval):
                    await self.renew()
                self.record_renewal()
                await self.delete_expired()
            except ClusterError as error:
                self.count_denial(error)
                # After a longer pause, even if the API server asks for one, the other agents would treat this agent as
                # dead.
                pause = min(error.retry_after or 0.0, self.settings.cluster.lease_duration / 3)
                self.log_failure(error.message)
            except TimeoutError:
                self._denials = 0
                self.client.mark_unreachable()
                self.log_failure("no answer in time")
            took = self.clock() - began
            await asyncio.sleep(max(pause, interval * random.uniform(0.9, 1.1) - took))  # noqa: S311 - jitter

    def count_denial(self, error: Exception) -> None:
        """Count a failed renewal if `error` is a denial. Set `access_denied` after `DENIED_AFTER` denials in a row."""
        denied = isinstance(error, ClusterError) and error.status in DENIED_CODES
        self._denials = self._denials + 1 if denied else 0
        if self._denials >= DENIED_AFTER:
            self.access_denied.set()

    def log_failure(self, why: str) -> None:
        """Log that the agent's Lease was not renewed. Only the first failure of an outage is a warning."""
        first, self._failing = not self._failing, True
        (log.warning if first else log.debug)("the agent's Lease could not be renewed", error=why)

    def record_renewal(self) -> None:
        """Record a renewal of the agent's own Lease.

        If the previous renewal was missed, restart the clock that measures how long each other Lease has not changed.
        """
        self._denials = 0
        self.access_denied.clear()
        now = self.clock()
        if self._failing:
            self._failing = False
            log.info("the agent's Lease is renewed again", alive=self.alive)
        if now - self._renewed_at > MISSED_INTERVALS * self.settings.cluster.lease_renew:
            self._healthy_since = now
        self._renewed_at = now
        self.acquired.set()

    async def renew(self) -> None:
        """Write the agent's own Lease. Create the Lease if it is missing.

        Raises:
            ClusterError: the API server refuses or does not answer.
        """
        body = self.body()
        try:
            await self.client.request("patch", "leases", f"{self.path}/{self.name}", body=body)
        except ClusterError as error:
            if error.status != 404:
                raise
            await self.client.request("create", "leases", self.path, body=body)

    def body(self) -> Object:
        """Return the agent's own Lease as of now."""
        metadata: Object = {
            "name": self.name,
            "labels": {
                labels.MANAGED_BY: labels.OWNER,
                labels.POOL: self.settings.agent.pool,
                labels.AGENT: self.agent_id,
            },
        }
        if self.facts.owner:
            metadata["ownerReferences"] = [self.facts.owner]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.agent_id,
                "leaseDurationSeconds": max(1, round(self.settings.cluster.lease_duration)),
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }

    async def release(self) -> None:
        """Delete the agent's own Lease, so that other agents adopt the remaining sessions without a wait."""
        try:
            await self.client.request("delete", "leases", f"{self.path}/{self.name}")
        except ClusterError as error:
            if error.status != 404:
                log.warning("the agent's Lease could not be deleted", error=error.message)

    # ---- the other agents' Leases

    def on_update(self, name: str, found: Object | None) -> None:
        now = self.clock()
        if found is None:
            if lease := self._newest.pop(name, None):
                self._deleted_at[holder(lease)] = now
            self._changed_at.pop(name, None)
        else:
            self._newest[name] = found
            version = found["metadata"]["resourceVersion"]
            if self._changed_at.get(name, ("", 0.0))[0] != version:
                self._changed_at[name] = (version, now)
        self._deleted_at = {agent: at for agent, at in self._deleted_at.items() if now - at < EXPIRED_AFTER_SECONDS}
        if found is None:
            self.on_change()

    @property
    def alive(self) -> bool:
        """Return whether the other agents see this agent as alive: its Lease has not run out."""
        return self.acquired.is_set() and self.clock() - self._renewed_at <= self.settings.cluster.lease_duration

    @property
    def starting(self) -> bool:
        """Return whether the agent has not yet created its Lease, and no try has failed."""
        return not self.acquired.is_set() and not self._failing

    @property
    def can_judge_others(self) -> bool:
        """Return whether the agent's own renewals succeed and the watch reports them.

        If this process was frozen or its event loop was blocked, it has not yet read the renewals of other agents.
        """
        now, longest = self.clock(), MISSED_INTERVALS * self.settings.cluster.lease_renew
        seen = self._changed_at.get(self.name, ("", 0.0))[1]
        return self.acquired.is_set() and now - self._renewed_at <= longest and now - seen <= longest

    def is_gone(self, agent_id: str) -> bool:
        """Return whether the agent with this id is dead or has deleted its Lease.

        False while this agent cannot judge others, for example because its own watch of Leases is broken.
        """
        if agent_id == self.agent_id or not self.can_judge_others:
            self._missing_since.pop(agent_id, None)
            return False
        # Both ids begin with the name of this agent's pod. The other id belongs to an earlier agent process of the pod,
        # which has ended, because the pod runs one agent process at a time.
        if agent_id.partition(".")[0] == self.agent_id.partition(".")[0]:
            return True
        name = next((each for each, lease in self.objects.items() if holder(lease) == agent_id), None)
        if name is not None:
            self._missing_since.pop(agent_id, None)
            return self.has_run_out(name)
        # The watch over pods may be ahead of this watch: the Lease of a new agent may not have arrived yet.
        since = self._missing_since.setdefault(agent_id, self.clock())
        grace = self.settings.cluster.lease_duration
        return agent_id in self._deleted_at or self.clock() - max(since, self._healthy_since) > grace

    def has_left(self, agent_id: str) -> bool:
        """Return whether the agent with this id deleted its Lease, which an agent does when it stops."""
        return agent_id in self._deleted_at

    def has_run_out(self, name: str) -> bool:
        """Return whether a Lease has not changed for its duration, while this agent could see changes."""
        duration = float(self.objects[name].get("spec", {}).get("leaseDurationSeconds") or DEFAULT_DURATION)
        changed = max(self._changed_at[name][1], self._healthy_since)
        return self.clock() - changed > duration

    def expired_leases(self) -> list[Object]:
        """Return the Leases of agents that died more than `EXPIRED_AFTER_SECONDS` ago.

        No component needs these Leases.
        """
        if not self.can_judge_others:
            return []
        return [
            lease
            for name, lease in self.objects.items()
            if name != self.name and self.has_run_out(name) and self.age(name) > EXPIRED_AFTER_SECONDS
        ]

    def age(self, name: str) -> float:
        """Return the seconds since the last change of a Lease.

        This agent has seen changes only since its own start. The renewal time in the Lease may be older, but comes from
        the clock of the other agent. This age alone does not show that an agent is dead, so the caller first checks
        `has_run_out`.
        """
        seen = self.clock() - self._changed_at[name][1]
        renewed = parse_timestamp(self.objects[name].get("spec", {}).get("renewTime"))
        return seen if renewed is None else max(seen, (self.client.now() - renewed).total_seconds())

    async def delete_expired(self) -> None:
        """Delete expired Leases, if they have not changed meanwhile. All agents of the pool do this.

        Raises:
            ClusterError: the API server refuses or does not answer.
        """
        for lease in self.expired_leases():
            meta = lease["metadata"]
            body: Object = {
                "kind": "DeleteOptions",
                "apiVersion": "v1",
                "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
            }
            try:
                await self.client.request("delete", "leases", f"{self.path}/{meta['name']}", body=body)
            except ClusterError as error:
                if error.status not in (404, 409):
                    raise
            else:
                self.client.metrics.swept.labels("lease").inc()


def holder(lease: Object) -> str:
    """Return the id of the agent that holds a Lease."""
    return str(lease.get("spec", {}).get("holderIdentity") or "")
