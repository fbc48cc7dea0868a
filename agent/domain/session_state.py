"""What agent and scheduler report to each other about sessions and about the agent's health."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.log_cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.actions import Cancel, Key


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session that the agent names to the scheduler, which answers with `Resume` or a discard.

    `last_seq` is the highest number given so far; `adopted` says that nothing is known and all of `Resume` is needed.
    """

    key: Key
    last_seq: int = 0
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the scheduler wants a named session to go on.

    Everything up to `seq` is stored; `cursor` is that of the last stored event that had one, `stage` None when no stage
    is stored, `command` the last command whose start is stored (0: none). `cancel` is a request still to be obeyed.
    `secrets` come only for adopted sessions: the agent cannot read Secrets.
    """

    key: Key
    seq: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    stage: Stage | None = None
    command: int = 0
    cancel: Cancel | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Readiness(Enum):
    """Whether the scheduler may send actions."""

    READY = "ready"
    DRAINING = "draining"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Health:
    """How the agent is. `running` counts slots in use, environments being cleaned included; `message`: why degraded."""

    status: Readiness
    slots: int
    running: int = 0
    cluster_reachable: bool = True
    message: str = ""
    remains: int = 0
