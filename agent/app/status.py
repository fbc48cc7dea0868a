"""The state of the agent: health for the scheduler, readiness for Kubernetes, and the status page for people.

One `AgentStatus` lives as long as the agent. It stores only the rows of ended sessions. Each call reads everything else
from the parts of the agent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.domain.session_state import Health, Readiness
from agent.http.status_page import Snapshot, page, session_row

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.environment.backend import PodBackend
    from agent.cluster.ownership.leases import Leases
    from agent.cluster.ownership.orphans import Sweep
    from agent.execution.registry import SessionRegistry
    from agent.execution.session import Session
    from agent.http.status_page import SessionRow
    from agent.scheduler.classic.connection import ClassicConnection
    from agent.scheduler.stream.connection import Connection, Identity
    from agent.settings import Settings

# Maximum number of ended sessions that the status page shows.
RECENT_SESSIONS = 50


class AgentStatus:
    """Reads the health of the agent from its parts. `bind` must be called before any other method."""

    sessions: SessionRegistry
    connection: Connection | ClassicConnection

    def __init__(
        self, settings: Settings, identity: Identity, client: Client, pods: PodBackend, leases: Leases, sweep: Sweep
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.client = client
        self.pods = pods
        self.leases = leases
        self.sweep = sweep
        self.recent: deque[SessionRow] = deque(maxlen=RECENT_SESSIONS)

    def bind(self, sessions: SessionRegistry, connection: Connection | ClassicConnection) -> None:
        """Set the parts of the agent that are built after this object, because they get the health from this object."""
        self.sessions = sessions
        self.connection = connection

    def add_recent(self, session: Session) -> None:
        """Keep the row of an ended session for the status page."""
        self.recent.appendleft(session_row(session))

    @property
    def trouble(self) -> str:
        """Return why the agent cannot use the cluster, for people. "" if it can.

        An agent whose Lease is not renewed accepts no action, because other agents may adopt its sessions.
        """
        if self.pods.trouble or self.leases.alive or not self.settings.agent.adoption:
            return self.pods.trouble
        if self.leases.starting:
            return "the agent is starting: it has no Lease yet"
        return "the agent's Lease could not be renewed"

    def health(self) -> Health:
        """Return the health that the scheduler gets."""
        trouble = self.trouble
        status = Readiness.DRAINING if self.sessions.draining else Readiness.DEGRADED if trouble else Readiness.READY
        return Health(
            status=status,
            slots=self.settings.agent.slots,
            running=self.sessions.used,
            cluster_reachable=self.client.reachable,
            message=trouble,
            remains=self.sweep.remaining,
            warm=tuple(self.pods.warm.counts()),
        )

    def not_ready(self) -> str:
        """Return why the agent accepts no action now. "" if it accepts actions."""
        if self.sessions.draining:
            return "draining"
        if self.trouble:
            return self.trouble
        return "" if self.connection.registered else "not registered with the scheduler"

    def page(self) -> str:
        """Return the status page as HTML."""
        running = [session for session in self.sessions.sessions.values() if session.progress.outcome is None]
        return page(
            Snapshot(
                version=self.identity.version,
                pool=self.settings.agent.pool,
                agent_id=self.identity.agent_id,
                health=self.health(),
                not_ready=self.not_ready(),
                finished=self.sessions.finished,
                warm=self.pods.warm.enabled,
                running=[session_row(session) for session in running],
                recent=list(self.recent),
                classes=tuple(self.settings.environment.classes),
            )
        )
