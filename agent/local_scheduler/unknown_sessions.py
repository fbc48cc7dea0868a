"""Sessions that agents hold and this scheduler does not know: it has lost its memory, or never was asked.

Whoever submitted the action submits it again when it finds it unknown. Until then a session is neither told to go on
nor dropped, and what it sends is not acknowledged; after the grace nobody wants it. Lives as long as the scheduler.
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
    """Those that wait, by the id of their action; `grace` is seconds."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.waiting: dict[str, tuple[AgentStream, SessionState, asyncio.TimerHandle]] = {}

    def wait(self, stream: AgentStream, session: SessionState) -> None:
        """Let a session wait, in place of an older claim's or stream's."""
        action_id = session.key.action_id
        older = self.claim(action_id)
        if older is not None and older[1].key.claim > session.key.claim:
            stream.discard(session.key, f"claim {older[1].key.claim} owns the attempt", claimed_by_other=True)
            stream, session = older
        log.warning("an agent holds an action that nobody submitted", action=action_id, agent=stream.agent_id)
        timer = asyncio.get_running_loop().call_later(self.grace, self.give_up, action_id)
        self.waiting[action_id] = (stream, session, timer)

    def holds(self, key: Key) -> bool:
        """Whether exactly this session waits."""
        found = self.waiting.get(key.action_id)
        return found is not None and found[1].key == key

    def claim(self, action_id: str) -> tuple[AgentStream, SessionState] | None:
        """Return who runs an action that was submitted, and let it wait no longer."""
        found = self.waiting.pop(action_id, None)
        if found is None:
            return None
        stream, session, timer = found
        timer.cancel()
        return stream, session

    def give_up(self, action_id: str) -> None:
        """Have a session dropped; one whose agent is away is dropped when it comes back and waits in vain again."""
        found = self.claim(action_id)
        if found is not None:
            stream, session = found
            stream.discard(session.key, "the scheduler does not know this action")

    def stop(self) -> None:
        """Forget all, and their timers."""
        for action_id in list(self.waiting):
            self.claim(action_id)
