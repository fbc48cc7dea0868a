"""Translation of the agent's state: its features, its sessions, and its health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import session_state as domain
from agent.protocol.translate.fields import STATUSES, checked_key, human_text, member
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

# Maximum number of kinds of warm pods in one health report.
MAX_WARM = 100


def features(names: Iterable[str]) -> frozenset[domain.Feature]:
    """Return the features that a registration names. Names of a newer version are left out."""
    known = {each.value: each for each in domain.Feature}
    return frozenset(known[name] for name in names if name in known)


def session_state_message(value: domain.SessionState) -> wire.SessionState:
    return wire.SessionState(
        action_id=value.key.action_id,
        attempt=value.key.attempt,
        claim=value.key.claim,
        last_seq=value.last_seq,
        adopted=value.adopted,
    )


def session_state(message: wire.SessionState) -> domain.SessionState:
    """Return the session that an agent reports in a message.

    Raises:
        ActionFailed: the key is invalid.
    """
    return domain.SessionState(checked_key(message), message.last_seq, message.adopted)


def health_message(value: domain.Health) -> wire.Health:
    return wire.Health(
        status=STATUSES[value.status],
        slots=value.slots,
        running=value.running,
        cluster_reachable=value.cluster_reachable,
        message=human_text(value.message),
        remains=value.remains,
        warm=[
            wire.WarmPool(
                image=human_text(each.image),
                cpu=each.cpu,
                memory=each.memory,
                idle=each.idle,
                environment_class=each.environment_class,
            )
            for each in value.warm[:MAX_WARM]
        ],
    )


def health(message: wire.Health) -> domain.Health:
    """Return the health of an agent. An unknown status becomes DEGRADED, so the agent gets no action."""
    status = domain.Readiness.DEGRADED
    if message.status in STATUSES.values():
        status = member("status", message.status, STATUSES)
    return domain.Health(
        status=status,
        slots=message.slots,
        running=message.running,
        cluster_reachable=message.cluster_reachable,
        message=message.message,
        remains=message.remains,
        warm=tuple(
            domain.WarmImage(each.image, each.cpu, each.memory, each.idle, each.environment_class)
            for each in message.warm[:MAX_WARM]
        ),
    )
