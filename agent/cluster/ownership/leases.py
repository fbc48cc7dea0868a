"""Who of the pool is alive: one Lease per agent, and the observer's own clock.

Lives as long as the agent. Each agent renews its Lease; as in client-go, a Lease is dead when its record has not
changed for its duration on the *observer's* monotonic clock, counted only while the observer's own renewals succeed: an
outage of the API, or clocks an hour apart, make nobody dead. A Lease that was given back makes its owner departed at
once.
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
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.settings import Settings

log = structlog.get_logger(__name__)

FORGOTTEN = 600.0
# A renewal that comes later than this many intervals was missed: what the others did meanwhile was not seen.
MISSED = 1.6
REFUSALS = frozenset({401, 403})
REFUSED_AFTER = 2


class Leases(Reflector):
    """The Leases of a pool; `departed` says whose sessions may be adopted. `on_change` is told of every change."""

    def __init__(self, client: Client, settings: Settings, agent_id: str) -> None:
        namespace = settings.cluster.namespace
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        super().__init__(client, "leases", path, labels.pool_selector(settings.agent.pool), client.metrics)
        self.settings = settings
        self.agent_id = agent_id
        self.owner: Object | None = None
        self.name = f"sealci-{hashlib.sha256(f'{settings.agent.pool}/{agent_id}'.encode()).hexdigest()[:16]}"
        self.seen: dict[str, tuple[str, float]] = {}
        self.given_back: dict[str, float] = {}
        self.absent: dict[str, float] = {}
        self.known: dict[str, Object] = {}
        self.renewed = 0.0
        self.failing = False
        self.healthy_since = 0.0
        self.held = asyncio.Event()
        self.refusals = 0
        self.refused = asyncio.Event()
        # The own renewals come back on the watch: one that tells nothing for this long is dead.
        self.silence = 2 * settings.cluster.lease_duration
        self.on_change: Callable[[], None] = lambda: None

    # ---- one's own

    async def keep(self) -> None:
        """Renew the own Lease, and remove those that nobody will ask for, until cancelled."""
        interval = self.settings.cluster.lease_renew
        while True:
            began, asked = time.monotonic(), 0.0
            try:
                # A request into a black hole must not hold back the next one: the others wait only for so long.
                async with asyncio.timeout(interval):
                    await self.renew()
                self.renewed_now()
                await self.tidy()
            except ClusterError as error:
                self.note_refusal(error)
                # Longer than the Lease allows no server's wish is granted: the others would take this agent for dead.
                asked = min(error.retry_after or 0.0, self.settings.cluster.lease_duration / 3)
                self.failed(error.message)
            except TimeoutError:
                self.refusals = 0
                self.client.mark_unreachable()
                self.failed("no answer in time")
            took = time.monotonic() - began
            await asyncio.sleep(max(asked, interval * random.uniform(0.9, 1.1) - took))  # noqa: S311 - jitter

    def note_refusal(self, error: Exception) -> None:
        """Take note that the cluster does not let this agent do anything; once may be a moment of the API's own."""
        self.refusals = self.refusals + 1 if isinstance(error, ClusterError) and error.status in REFUSALS else 0
        if self.refusals >= REFUSED_AFTER:
            self.refused.set()

    def failed(self, why: str) -> None:
        """Say that the own Lease was not renewed: aloud only the first time in an outage."""
        first, self.failing = not self.failing, True
        (log.warning if first else log.debug)("the agent's Lease could not be renewed", error=why)

    def renewed_now(self) -> None:
        """Take note of a renewal; after one that was missed, judging others begins anew."""
        self.refusals = 0
        self.refused.clear()
        now = time.monotonic()
        if self.failing:
            self.failing = False
            log.info("the agent's Lease is renewed again", alive=self.alive)
        if now - self.renewed > MISSED * self.settings.cluster.lease_renew:
            self.healthy_since = now
        self.renewed = now
        self.held.set()

    async def renew(self) -> None:
        """Write the own Lease, making it where it is missing."""
        body = self.body()
        try:
            await self.client.request("patch", "leases", f"{self.path}/{self.name}", body=body)
        except ClusterError as error:
            if error.status != 404:
                raise
            await self.client.request("create", "leases", self.path, body=body)

    def body(self) -> Object:
        """Return the own Lease."""
        metadata: Object = {
            "name": self.name,
            "labels": {
                labels.MANAGED_BY: labels.OWNER,
                labels.POOL: self.settings.agent.pool,
                labels.AGENT: self.agent_id,
            },
        }
        if self.owner:
            metadata["ownerReferences"] = [self.owner]
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
        """Give the own Lease back, so that the heirs need not wait."""
        try:
            await self.client.request("delete", "leases", f"{self.path}/{self.name}")
        except ClusterError as error:
            if error.status != 404:
                log.warning("the agent's Lease could not be given back", error=error.message)

    # ---- the others'

    def on_update(self, name: str, found: Object | None) -> None:
        """Note when a record changed, on this process's clock."""
        now = time.monotonic()
        if found is None:
            if lease := self.known.pop(name, None):
                self.given_back[holder(lease)] = now
            self.seen.pop(name, None)
        else:
            self.known[name] = found
            record = found["metadata"]["resourceVersion"]
            if self.seen.get(name, ("", 0.0))[0] != record:
                self.seen[name] = (record, now)
        self.given_back = {agent: at for agent, at in self.given_back.items() if now - at < FORGOTTEN}
        if found is None:
            self.on_change()

    @property
    def alive(self) -> bool:
        """Whether the others see this agent alive: its Lease has not run out."""
        return self.held.is_set() and time.monotonic() - self.renewed <= self.settings.cluster.lease_duration

    @property
    def steady(self) -> bool:
        """Whether the own renewals succeed and are seen, so that a judgement of others means something.

        A process that was frozen, or whose loop was held, has renewals of others still to read: not so then.
        """
        now, longest = time.monotonic(), MISSED * self.settings.cluster.lease_renew
        seen = self.seen.get(self.name, ("", 0.0))[1]
        return self.held.is_set() and now - self.renewed <= longest and now - seen <= longest

    def departed(self, agent_id: str) -> bool:
        """Whether this agent is dead or has left, as far as can be told now."""
        if agent_id == self.agent_id or not self.steady:
            self.absent.pop(agent_id, None)
            return False
        if agent_id.partition(".")[0] == self.agent_id.partition(".")[0]:
            return True  # an earlier start of this very pod: there is one process in it
        name = next((each for each, lease in self.objects.items() if holder(lease) == agent_id), None)
        if name is not None:
            self.absent.pop(agent_id, None)
            return self.dead(name)
        # The watch over pods may be ahead of this one: a Lease that was never seen may just not have come yet.
        since = self.absent.setdefault(agent_id, time.monotonic())
        patience = self.settings.cluster.lease_duration
        return agent_id in self.given_back or time.monotonic() - max(since, self.healthy_since) > patience

    def dead(self, name: str) -> bool:
        """Whether a Lease has not changed for its duration, while this agent could see it change."""
        lease = self.objects[name]
        duration = float(lease.get("spec", {}).get("leaseDurationSeconds") or 15)
        changed = max(self.seen[name][1], self.healthy_since)
        return time.monotonic() - changed > duration

    def forgotten(self) -> list[Object]:
        """Return Leases of agents that are dead for so long that nobody will ask for them."""
        now = time.monotonic()
        if not self.steady:
            return []
        return [
            lease
            for name, lease in self.objects.items()
            if name != self.name and self.dead(name) and now - self.seen[name][1] > FORGOTTEN
        ]

    async def tidy(self) -> None:
        """Remove the Leases of agents that died long ago, as they were seen; other agents do it too."""
        for lease in self.forgotten():
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
    """Return the agent that a Lease speaks of."""
    return str(lease.get("spec", {}).get("holderIdentity") or "")
