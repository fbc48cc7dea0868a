"""What all environments of an agent share, and the fixed waits of an environment.

The backend makes one `Context`, and gets one `EnvironmentTimings`. Both live as long as the agent and never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from agent.cluster.api.client import Client
    from agent.cluster.ending.nudger import NudgeSwitch
    from agent.cluster.environment.interactive.debugging import DebugOptions
    from agent.cluster.environment.watch import PodWatch
    from agent.cluster.pod.setup_status import SetupLimits
    from agent.cluster.warm.warm_pods import WarmPods
    from agent.objects.cache_entries import CacheLayout
    from agent.objects.grants import Issuer
    from agent.settings import Settings


@dataclass(frozen=True, slots=True)
class EnvironmentTimings:
    """Fixed waits of an environment, in seconds. The agent uses the defaults; tests pass shorter waits."""

    # Seconds to retry the creation of a Secret. It must be less than the time for which a set-up waits for a missing
    # Secret.
    secret_retry_seconds: float = 20.0
    # Extra seconds, after the grace period, before a pod that never ran a command is force-deleted. A kubelet does not
    # abort a hanging image pull.
    unstarted_delete_seconds: float = 10.0
    # Seconds to retry the read of a pod's events for the report of a failure.
    events_retry_seconds: float = 5.0
    # Seconds until a start counts as slow and the agent reads the pod's events for the first time.
    slow_start_seconds: float = 6.0
    # Seconds between two reads of the events of a slow start.
    events_interval_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Context:
    """What all environments of an agent share. Owned by the backend.

    `limits` bounds each part of a set-up. `copies` bounds how many environments copy files out at the same time, and
    `live_logs` how many logs of services are followed. `issuer` signs requests for the object store, None without
    one.
    """

    settings: Settings
    client: Client
    watch: PodWatch
    limits: SetupLimits
    copies: asyncio.Semaphore
    live_logs: asyncio.Semaphore
    nudges: NudgeSwitch
    warm: WarmPods
    debug: DebugOptions | None
    cache: CacheLayout | None
    issuer: Issuer | None
    timings: EnvironmentTimings
