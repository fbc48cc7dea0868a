"""Which environments this agent owns, has claimed, or has handed over to another agent.

One `EnvironmentRegistry` lives as long as the agent. The backend, its environments, the adoption and the sweep share
the registry. Only its methods change the sets of owned, claimed and handed-over environments, so every change of
ownership goes through this module.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Container

    from agent.cluster.pod.manifest import Plan
    from agent.telemetry.metrics import Metrics

# Seconds after a hand-over until the agent forgets a pod that its watch has not shown. The API server may still create
# a pod after the agent has stopped waiting for the answer to the create request.
LATE_CREATION_SECONDS = 600.0


class OwnedEnvironment(Protocol):
    """The part of an environment that other modules read through the registry."""

    @property
    def plan(self) -> Plan:
        """Return the `Plan` from which the environment is made. `plan.name` is the name of the pod."""

    @property
    def uid(self) -> str:
        """Return the UID of the pod, "" before the API server has confirmed the pod."""

    @property
    def disowned(self) -> bool:
        """Return whether the environment was handed over to another agent."""


class EnvironmentRegistry:
    """The environments of one agent by state of ownership. The registry lives as long as the agent.

    Owned: a session of this agent drives the environment. Claimed: the agent has patched its own id into the pod of a
    dead agent, or has tried to, and no session drives the pod yet. Handed over: the agent has given up the environment,
    but the watch may still show the pod as the agent's own. The sweep never deletes an owned, claimed or handed-over
    pod of this agent.
    """

    def __init__(self, metrics: Metrics, late_creation_seconds: float = LATE_CREATION_SECONDS) -> None:
        self.metrics = metrics
        self.late_creation_seconds = late_creation_seconds
        self._owned: dict[str, OwnedEnvironment] = {}
        self._claimed: set[str] = set()
        # Monotonic time of each hand-over by the nonce of the session. The keys are not UIDs, because an agent may hand
        # over a pod whose creation is not confirmed yet.
        self._handed_over: dict[str, float] = {}

    # ---- owned environments

    @property
    def owned_names(self) -> tuple[str, ...]:
        """Return the names of the owned pods."""
        return tuple(self._owned)

    def owns(self, name: str) -> bool:
        return name in self._owned

    def find_owned(self, name: str) -> OwnedEnvironment | None:
        """Return the owned environment whose pod has this name, or None."""
        return self._owned.get(name)

    def own(self, environment: OwnedEnvironment) -> None:
        """Register an environment as owned. It replaces a registered environment whose pod has the same name."""
        self._owned[environment.plan.name] = environment
        self.metrics.environments.set(len(self._owned))

    def release(self, environment: OwnedEnvironment) -> bool:
        """Unregister an owned environment.

        Return False if the environment is not registered, or if another environment has replaced it.
        """
        if self._owned.get(environment.plan.name) is not environment:
            return False
        del self._owned[environment.plan.name]
        self.metrics.environments.set(len(self._owned))
        return True

    # ---- claimed pods

    @property
    def claimed_names(self) -> frozenset[str]:
        """Return the names of the claimed pods."""
        return frozenset(self._claimed)

    def add_claim(self, name: str) -> None:
        """Register a pod as claimed, before the API server has confirmed the claim."""
        self._claimed.add(name)

    def drop_claim(self, name: str) -> None:
        """Unregister a claimed pod, because a session owns the pod now, or the API server has refused the claim."""
        self._claimed.discard(name)

    def retain_claims(self, names: Container[str]) -> None:
        """Drop the claims on all pods except `names`."""
        self._claimed = {name for name in self._claimed if name in names}

    # ---- pods that were handed over

    def hand_over(self, nonce: str) -> None:
        """Record that this agent has handed over the pod whose session has this nonce."""
        self._handed_over[nonce] = time.monotonic()

    def take_back(self, nonce: str) -> None:
        """Forget that the pod with this nonce was handed over, because this agent has adopted the pod again."""
        self._handed_over.pop(nonce, None)

    def is_handed_over(self, nonce: str) -> bool:
        return nonce in self._handed_over

    def expire_handed_over(self, visible_nonces: Container[str]) -> None:
        """Forget handed-over pods that the watch does not show, `late_creation_seconds` after the hand-over."""
        oldest = time.monotonic() - self.late_creation_seconds
        self._handed_over = {
            nonce: since for nonce, since in self._handed_over.items() if nonce in visible_nonces or since > oldest
        }
