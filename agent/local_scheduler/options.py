"""The options of the local scheduler. The command line creates one object per server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.objects.store import ObjectStore


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """The timeouts of the local scheduler in seconds, and the maximum number of attempts of an action.

    `health_interval`: how often agents report health. After three intervals without a message, a stream is closed.
    `resume_grace`: how long the actions of a lost agent wait for that agent or for an adopting agent.
    `register_timeout`: how long a new stream may take to send its registration.
    `stop_grace`: how long running calls may take to end when the server stops.
    `objects`: the object store of the agents, None if the scheduler reads none.
    """

    health_interval: float = 10.0
    resume_grace: float = 60.0
    attempts: int = 3
    register_timeout: float = 15.0
    stop_grace: float = 2.0
    objects: ObjectStore | None = None
