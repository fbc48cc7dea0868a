"""Where environments come from, on Kubernetes: the cluster's side of `execution.backend`.

`Pods` lives as long as the agent and holds what all environments share: the client, the watch, the settings, and which
of them are here.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from agent.cluster.environment.environment import PodEnvironment
from agent.cluster.pod import manifest, recreate, session_annotation
from agent.cluster.pod.labels import pod_name
from agent.cluster.pod.setup_status import SetupLimits
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.environment.debugging import Workbench
    from agent.cluster.environment.watch import PodWatch
    from agent.domain.actions import Action
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics


class Pods:
    """Where environments come from, on Kubernetes."""

    def __init__(self, settings: Settings, client: Client, watch: PodWatch, metrics: Metrics, agent_id: str) -> None:
        self.settings = settings
        self.client = client
        self.watch = watch
        self.metrics = metrics
        self.agent_id = agent_id
        self.user_namespaces = False
        self.known = False  # whether it is settled what the cluster can do
        self.workbench: Workbench | None = None
        self.owner: Object | None = None
        self.held: dict[str, PodEnvironment] = {}
        self.claimed: set[str] = set()  # asked for, and not held yet: no remains
        self.left: dict[str, float] = {}  # given away and perhaps not seen to be claimed yet: nonce, and since when
        self.copies = asyncio.Semaphore(settings.artifacts.parallel)
        policy = settings.policy
        self.limits = SetupLimits(
            pending=policy.pending_timeout,
            pull_grace=policy.pull_grace,
            registry_grace=policy.registry_grace,
            start=policy.pull_timeout,
            clone=policy.clone_timeout,
        )

    @property
    def reachable(self) -> bool:
        """Whether the cluster answers, and tells what becomes of pods."""
        return not self.trouble

    @property
    def trouble(self) -> str:
        """Why nothing can be made of an action now, for people; "" when it can."""
        if not self.client.reachable:
            return "the cluster does not answer"
        if self.watch.trouble:
            return f"the cluster does not tell of pods: {self.watch.trouble}"
        return "" if self.watch.synced.is_set() and self.known else "the cluster has not answered yet"

    def environment(self, action: Action) -> PodEnvironment:
        """Return the environment of this attempt, not yet made."""
        return PodEnvironment(self, self.plan(action, secrets.token_hex(16)))

    def adopted(self, pod: Object) -> PodEnvironment:
        """Return the environment of a pod that this agent has just claimed.

        Raises:
            ValueError: the pod does not tell what it is.
        """
        environment = PodEnvironment(self, self.plan(*session_annotation.read(pod)))
        environment.uid = pod["metadata"]["uid"]
        environment.asked = True
        environment.model = recreate.recreation_manifest(pod, self.settings)
        self.left.pop(environment.plan.nonce, None)
        self.watch.take("MODIFIED", pod)
        return environment

    def plan(self, action: Action, nonce: str) -> manifest.Plan:
        """Return what is known of the environment of an attempt."""
        settings = self.settings
        return manifest.Plan(
            action=action,
            name=pod_name(settings.agent.pool, action.key.action_id, action.key.attempt),
            namespace=settings.cluster.namespace,
            agent_id=self.agent_id,
            nonce=nonce,
            timeout=action.timeout or settings.policy.default_timeout,
            user_namespace=self.user_namespaces and settings.environment.profile == "baseline",
            owner=self.owner,
            keep_files=self.workbench is not None and self.workbench.holds,
            upload_tree=self.workbench is not None and self.workbench.tree is not None,
        )

    def superseded(self, pod: Object) -> PodEnvironment | None:
        """Return the environment that another agent has claimed, if the pod is one of this agent's."""
        held = self.held.get(pod["metadata"]["name"])
        if held is None or not held.uid or held.uid != pod["metadata"]["uid"] or held.left:
            return None
        return held if session_annotation.claim_of(pod) > held.plan.action.key.claim else None
