"""Sessions that agents report and that the scheduler has no record of.

Unknown sessions exist after a state loss of the scheduler, and when an agent of another scheduler connects. When the
scheduler does not know a pipeline, `submit` sends the pipeline again. The scheduler therefore waits for the pipeline of
an unknown session. While a session waits, the scheduler neither resumes nor discards the session, and acknowledges none
of its events. If the pipeline does not arrive within the grace period, the scheduler discards the session.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from agent.domain.actions import Key
    from agent.domain.session_state import SessionState
    from agent.local_scheduler.agent_stream import AgentStream

log = structlog.get_logger()


class UnknownSessions:
    """The unknown sessions that wait, by action id. The dispatcher owns the only instance. `grace` is in seconds."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.waiting: dict[str, tuple[AgentStream, SessionState, asyncio.TimerHandle]] = {}

    def wait(self, stream: AgentStream, session: SessionState) -> None:
        """Start the grace period of a session, unless a session with a higher claim waits already."""
        action_id = session.key.action_id
        older = self.pop(action_id)
        if older is not None and older[1].key.claim > session.key.claim:
            stream.discard(session.key, f"claim {older[1].key.claim} owns the attempt", claimed_by_other=True)
            stream, session = older
        log.warning("an agent reports a session of an unknown action", action=action_id, agent=stream.agent_id)
        timer = asyncio.get_running_loop().call_later(self.grace, self.on_grace_expired, action_id)
        self.waiting[action_id] = (stream, session, timer)

    def holds(self, key: Key) -> bool:
        """Return whether a session with exactly this attempt and claim waits."""
        found = self.waiting.get(key.action_id)
        return found is not None and found[1].key == key

    def pop(self, action_id: str) -> tuple[AgentStream, SessionState] | None:
        """Remove and return the waiting session of an action and its agent's stream, None when no session waits."""
        found = self.waiting.pop(action_id, None)
        if found is None:
            return None
        stream, session, timer = found
        timer.cancel()
        return stream, session

    def on_grace_expired(self, action_id: str) -> None:
        """Discard the waiting session of an action.

        If its agent is disconnected, the agent reports the session again later, and a new grace period starts.
        """
        found = self.pop(action_id)
        if found is not None:
            stream, session = found
            stream.discard(session.key, "the scheduler does not know this action")

    def stop(self) -> None:
        """Remove all sessions and cancel their timers."""
        for action_id in list(self.waiting):
            self.pop(action_id)
