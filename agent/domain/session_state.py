"""What agent and scheduler exchange about sessions and about the agent's health. Each value belongs to one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.log_cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.actions import Action, Cancel, Key


class Feature(Enum):
    """A part of the contract that not every agent and not every scheduler has. The values are the contract's words.

    Both sides name their features when an agent registers. A scheduler sends an action that needs a feature only to an
    agent that has named the feature.
    """

    SERVICES = "services"
    INPUTS = "inputs"
    OBJECTS = "objects"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session that the agent reports to the scheduler. The scheduler answers with `Resume` or with a discard.

    `last_seq` is the highest event number so far. `adopted`: the agent took the session over from another agent and
    needs every field of `Resume`.
    """

    key: Key
    last_seq: int = 0
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """The resume point of a session: what the scheduler has stored of it.

    `seq` is the number of the last stored event. `cursor` is the last stored cursor. `stage` is the last stored stage,
    None for none. `command` is the last command whose start is stored, 0 for none. `cancel` is a stop request that the
    session has to follow, None without one. `secrets` is set only for adopted sessions, because the adopting agent
    cannot read the Secret that the former agent created. `service_cursors` holds the last stored cursor of the log of
    each service. `action` is the whole action of an adopted session, None if the scheduler does not send it. An agent
    needs it to begin an action whose former agent was lost before the first command, and to copy its inputs.
    """

    key: Key
    seq: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    stage: Stage | None = None
    command: int = 0
    cancel: Cancel | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    service_cursors: Mapping[str, bytes] = field(default_factory=dict)
    action: Action | None = None


class Readiness(Enum):
    """Whether the scheduler may send actions to an agent. `DEGRADED`: the agent cannot use its cluster."""

    READY = "ready"
    DRAINING = "draining"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class WarmImage:
    """Warm pods of one image, one class and one size that wait for an action. `idle` is their number."""

    image: str
    cpu: str
    memory: str
    idle: int
    environment_class: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """A health report of an agent.

    `running` is the number of used slots. A slot is used until the pod is deleted. `message` is the cause of
    `DEGRADED`. `remains` is the number of orphans and other objects that the agent could not delete so far. `warm` are
    the shapes of which warm pods wait.
    """

    status: Readiness
    slots: int
    running: int = 0
    cluster_reachable: bool = True
    message: str = ""
    remains: int = 0
    warm: tuple[WarmImage, ...] = ()
