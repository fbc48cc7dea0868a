"""The waits of the agent that no setting changes. Tests pass shorter waits."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.cluster.environment.context import EnvironmentTimings
from agent.cluster.ownership.adoption import AdoptionTimings
from agent.execution.timings import SessionTimings


@dataclass(frozen=True, slots=True)
class AppTimings:
    """Waits in seconds, including the waits of sessions, environments and adoption."""

    # Seconds until the opening of the HTTP port fails.
    http_start: float = 10.0
    # Seconds between two checks of the cluster's health.
    cluster_poll: float = 1.0
    # Seconds that sessions have to send their last events if the API server denies access to the agent while the agent
    # ends. The scheduler has as many seconds to store the reports about rejected actions.
    last_events: float = 2.0
    session: SessionTimings = field(default_factory=SessionTimings)
    environment: EnvironmentTimings = field(default_factory=EnvironmentTimings)
    adoption: AdoptionTimings = field(default_factory=AdoptionTimings)
