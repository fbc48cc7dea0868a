"""What an agent says about itself: which sessions it holds and how it is.

Pure functions without state.
"""

from __future__ import annotations

from agent.domain import session_state as domain
from agent.protocol.translate.fields import STATUSES, checked_key, member, words
from agent.protocol.wire import agent_pb2 as wire


def session_state_message(value: domain.SessionState) -> wire.SessionState:
    """Write the name of a session that the agent holds."""
    return wire.SessionState(
        action_id=value.key.action_id,
        attempt=value.key.attempt,
        claim=value.key.claim,
        last_seq=value.last_seq,
        adopted=value.adopted,
    )


def session_state(message: wire.SessionState) -> domain.SessionState:
    """Read the name of a session that an agent holds."""
    return domain.SessionState(checked_key(message), message.last_seq, message.adopted)


def health_message(value: domain.Health) -> wire.Health:
    """Write how the agent is."""
    return wire.Health(
        status=STATUSES[value.status],
        slots=value.slots,
        running=value.running,
        cluster_reachable=value.cluster_reachable,
        message=words(value.message),
        remains=value.remains,
    )


def health(message: wire.Health) -> domain.Health:
    """Read how an agent is; a status of a newer version counts as one that takes nothing."""
    status = domain.Readiness.DEGRADED
    if message.status in STATUSES.values():
        status = member("status", message.status, STATUSES)
    return domain.Health(
        status, message.slots, message.running, message.cluster_reachable, message.message, message.remains
    )
