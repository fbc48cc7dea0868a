"""The end of the agent: drain, then hand the sessions over or stop them.

One `Shutdown` lives as long as the agent. The first request drains: the agent accepts no more actions and waits for its
sessions. A session that takes longer than the drain timeout is handed over to the other agents of the pool. If the pool
cannot adopt sessions, or after a second request, the sessions are stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from agent.aio import cancelled_on_exit, first_of

if TYPE_CHECKING:
    from agent.app.timings import AppTimings
    from agent.cluster.ownership.leases import Leases
    from agent.execution.registry import SessionRegistry
    from agent.scheduler.stream.health import HealthReporter
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Seconds in which a stopped session must end, in addition to its grace period and to the time limits for both deletions
# of its pod. The first deletion is graceful, the second is forced.
CLEANUP_MARGIN = 60.0


class Shutdown:
    """Takes requests to stop and ends the sessions. `hands_over`: whether other agents adopt running sessions."""

    def __init__(
        self,
        settings: Settings,
        sessions: SessionRegistry,
        leases: Leases,
        health: HealthReporter,
        timings: AppTimings,
        *,
        hands_over: bool,
    ) -> None:
        self.settings = settings
        self.sessions = sessions
        self.leases = leases
        self.health = health
        self.timings = timings
        self.hands_over = hands_over
        self.requested = asyncio.Event()
        self.at_once = asyncio.Event()

    def request(self, why: str) -> None:
        """Ask the agent to accept no more actions, and to exit when its sessions have ended or were handed over.

        A second request stops the sessions. `why` is the cause of the request, for the log.
        """
        if self.requested.is_set():
            log.warning("stopping at once", why=why)
            self.at_once.set()
            return
        self.sessions.drain(why)
        self.health.notify()
        self.requested.set()

    async def end_sessions(self) -> int:
        """Wait until the sessions end. Hand over or stop the sessions that take too long.

        Returns the number of sessions that were handed over.
        """
        handed_over = 0
        # The API server denies access when the agent's Helm release, and with it the agent's rights, was deleted.
        denied = self.leases.access_denied
        idle = asyncio.create_task(self.idle(), name="sessions end")
        async with cancelled_on_exit(idle):
            await first_of(idle, self.at_once, denied, timeout=self.settings.agent.drain_timeout)
            if not idle.done() and self.hands_over and not self.at_once.is_set():
                handed_over = self.sessions.hand_over()
            elif not idle.done():
                log.warning("ending sessions", running=self.sessions.used)
                self.sessions.cancel_all("the agent was stopped")
            await first_of(idle, denied, timeout=self.longest_end)
            if denied.is_set() and not idle.done():
                log.warning(
                    "the Kubernetes API denies access (401/403): the Helm release was probably uninstalled; exiting"
                )
                await first_of(idle, timeout=self.timings.last_events)
                # The agent has lost its right to delete pods. Kubernetes' garbage collector deletes the pods, because
                # their owner was deleted with the Helm release.
                self.sessions.disown_all()
            self.sessions.abandon()
        return handed_over

    async def idle(self) -> None:
        """Wait until no session is left.

        A rejected action has a report and no session. The scheduler gets a few seconds to store such reports. It gives
        an action without a stored report to another agent anyway.
        """
        while self.sessions.used:
            self.sessions.changed.clear()
            await self.sessions.changed.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timings.last_events):
                await self.sessions.idle()

    @property
    def longest_end(self) -> float:
        """Return the number of seconds in which stopped sessions must end and clean up."""
        return self.settings.environment.grace + 2 * self.settings.cluster.delete_timeout + CLEANUP_MARGIN
