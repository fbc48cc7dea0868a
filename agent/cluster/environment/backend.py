"""The Kubernetes side of `execution.ports.Backend`: makes an environment for an action, or for a pod of a dead agent.

One `PodBackend` lives as long as the agent. What all environments share is in one `Context`. The `EnvironmentRegistry`
records which environments the agent owns.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.cluster.ending.nudger import NudgeSwitch
from agent.cluster.environment.context import Context, EnvironmentTimings
from agent.cluster.environment.environment import PodEnvironment
from agent.cluster.environment.registry import EnvironmentRegistry
from agent.cluster.pod import manifest, session_annotation
from agent.cluster.pod.labels import pod_name
from agent.cluster.pod.recreate import secret_of_older_agent
from agent.cluster.pod.setup_status import SetupLimits
from agent.cluster.warm.warm_pods import WarmPods
from agent.domain.json import Object
from agent.objects.cache import CacheStore
from agent.objects.cache_entries import CacheLayout
from agent.objects.store import ObjectStore
from agent.settings import settings_of_class

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.capabilities import ClusterFacts
    from agent.cluster.environment.interactive.debugging import DebugOptions
    from agent.cluster.environment.registry import OwnedEnvironment
    from agent.cluster.environment.watch import PodWatch
    from agent.domain.actions import Action
    from agent.objects.grants import Issuer
    from agent.settings import Settings

TIMINGS = EnvironmentTimings()
# Number of logs of services that the agent follows at once. Each needs a connection to the API server.
MAX_LIVE_LOGS = 100


def cache_of(settings: Settings) -> CacheLayout | None:
    """Return the cache in the object store or on a claim, None if the agent has none."""
    caches = settings.caches
    if caches.store == "none" or caches.sign_key_file is None:
        return None
    if caches.store == "claim":
        return CacheLayout(caches.sign_key_file)
    return CacheStore(ObjectStore(settings.objects), caches.sign_key_file)


class PodBackend:
    """Makes environments as pods. Owned by the application, lives as long as the agent."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        watch: PodWatch,
        agent_id: str,
        facts: ClusterFacts,
        *,
        debug: DebugOptions | None = None,
        issuer: Issuer | None = None,
        timings: EnvironmentTimings = TIMINGS,
    ) -> None:
        self.settings = settings
        self.client = client
        self.watch = watch
        self.metrics = client.metrics
        self.agent_id = agent_id
        self.facts = facts
        self.debug = debug
        self.registry = EnvironmentRegistry(self.metrics)
        # A person who starts `run` waits for one pipeline only.
        self.warm = WarmPods(settings, client, watch, self.plan, facts.known, enabled=debug is None)
        policy = settings.policy
        self.context = Context(
            settings=settings,
            client=client,
            watch=watch,
            limits=SetupLimits(
                pending=policy.pending_timeout,
                pull_grace=policy.pull_grace,
                registry_grace=policy.registry_grace,
                start=policy.pull_timeout,
                clone=policy.clone_timeout,
                services=settings.services.timeout,
            ),
            copies=asyncio.Semaphore(settings.artifacts.parallel),
            live_logs=asyncio.Semaphore(MAX_LIVE_LOGS),
            nudges=NudgeSwitch(client, lambda: settings.environment.nudge_kubelet and facts.nudges, watch.watched_pods),
            warm=self.warm,
            debug=debug,
            cache=cache_of(settings),
            issuer=issuer,
            timings=timings,
        )
        self.class_contexts = {
            name: replace(self.context, settings=settings_of_class(settings, name))
            for name in settings.environment.classes
        }

    @property
    def reachable(self) -> bool:
        """Return whether the agent can run an action in the cluster now."""
        return not self.trouble

    @property
    def trouble(self) -> str:
        """Return why the agent cannot run an action in the cluster now, for people. "" if it can."""
        if not self.client.reachable:
            return "the cluster does not answer"
        if self.watch.trouble:
            return f"the watch of pods fails: {self.watch.trouble}"
        return "" if self.watch.synced.is_set() and self.facts.known.is_set() else "the cluster has not answered yet"

    def context_of(self, action: Action) -> Context:
        """Return the context of the environments of an action's class."""
        found = self.class_contexts.get(action.environment_class)
        return self.context if found is None else found

    def environment(self, action: Action) -> PodEnvironment:
        """Return a new environment for the attempt that `action` describes. Its pod does not exist yet, or is warm."""
        plan = self.plan(action, secrets.token_hex(16))
        return PodEnvironment(self.context_of(action), self.registry, plan, reserved=self.warm.reserve(plan))

    def environment_of(self, pod: Object) -> PodEnvironment:
        """Return the environment of a pod that this agent has just claimed.

        Raises:
            ValueError: the session annotation of the pod cannot be read.
        """
        action, nonce = session_annotation.read(pod)
        log_key = session_annotation.log_key_of(pod)
        existing = {"name": pod["metadata"]["name"], "existing_secret": secret_of_older_agent(pod)}
        plan = replace(self.plan(action, nonce), **existing, log_key=log_key)
        environment = PodEnvironment(self.context_of(action), self.registry, plan, adopted=pod)
        self.registry.take_back(nonce)
        # The pod in the answer to the claim is newer than the pod that the watch has.
        self.watch.apply_event("MODIFIED", pod)
        return environment

    def plan(self, action: Action, nonce: str) -> manifest.Plan:
        """Return the `Plan` from which the pod and the Secret of an attempt are made.

        `nonce` identifies the environment.
        """
        settings = self.context_of(action).settings
        return manifest.Plan(
            action=action,
            name=pod_name(settings.agent.pool, action.key.action_id, action.key.attempt),
            namespace=settings.cluster.namespace,
            agent_id=self.agent_id,
            nonce=nonce,
            log_key=secrets.randbits(32) or 1,
            timeout=action.timeout or settings.policy.default_timeout,
            user_namespace=self.facts.user_namespaces and settings.environment.profile == "baseline",
            owner=self.facts.owner,
            upload_tree=self.debug is not None and self.debug.tree is not None,
        )

    def find_superseded(self, pod: Object) -> OwnedEnvironment | None:
        """Return the owned environment of this pod if another agent has claimed the pod, else None."""
        environment = self.registry.find_owned(pod["metadata"]["name"])
        if environment is None or environment.disowned:
            return None
        if not environment.uid or environment.uid != pod["metadata"]["uid"]:
            return None  # `pod` is an earlier pod with the same name
        return environment if session_annotation.claim_of(pod) > environment.plan.action.key.claim else None
