"""Routes requests to the sessions: requests of the scheduler, and adoptions by this agent or by other agents.

One `Handlers` lives as long as the agent. The connections to the scheduler and to the cluster call `Handlers`, and
`Handlers` calls the sessions. The sessions in turn need these connections, so `Handlers` is built first and bound to
the sessions last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.app.shutdown import Shutdown
    from agent.cluster.environment.backend import PodBackend
    from agent.cluster.environment.environment import PodEnvironment
    from agent.domain.actions import Action, Cancel, Key
    from agent.domain.errors import ActionFailed
    from agent.domain.session_state import Resume
    from agent.execution.registry import SessionRegistry

# Maximum number of adopted sessions in addition to the agent's slots. Adoption needs no free slot, but must have a
# limit.
MAX_ADOPTED = 500


class Handlers:
    """Implements `scheduler.stream.inbox.Handlers`, and the callbacks of adoption and of the pod watch.

    `bind` must be called before any other method. The agent connects to its scheduler only after `bind`.
    """

    sessions: SessionRegistry
    pods: PodBackend
    shutdown: Shutdown

    def bind(self, sessions: SessionRegistry, pods: PodBackend, shutdown: Shutdown) -> None:
        """Set the objects that receive the scheduler's requests. Called once, when all parts of the agent are built."""
        self.sessions = sessions
        self.pods = pods
        self.shutdown = shutdown

    # ---- requests of the scheduler

    def registered(self, interval: float, grace: float) -> None:
        """Do nothing. The stream itself applies the health interval and the grace period that the scheduler names."""

    def action(self, action: Action) -> None:
        self.sessions.action(action)

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        self.sessions.action_failed(key, failure)

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        self.sessions.cancel(attempt_key, cancel)

    def resume(self, resume: Resume) -> None:
        self.sessions.resume(resume)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        self.sessions.discard(key, claimed_by_other, message)

    def drain(self, message: str) -> None:
        self.shutdown.request(message or "the scheduler asked for it")

    def reset(self, key: Key, resume: Resume) -> bool:
        """Report a session again after a state loss of the scheduler. Returns False if there is no such session."""
        return self.sessions.reset(key, resume)

    # ---- adoptions by this agent and by other agents

    def may_adopt(self) -> bool:
        """Return whether this agent adopts sessions now. An agent that drains adopts none."""
        sessions = self.sessions
        return not sessions.draining and sessions.used < sessions.settings.agent.slots + MAX_ADOPTED

    def adopt(self, environment: PodEnvironment) -> bool:
        """Start the session of a pod that this agent has claimed. Returns False if the session cannot start yet."""
        return self.sessions.adopt(environment.plan.action, environment)

    def pod_changed(self, pod: Object) -> None:
        """Drop the session of this pod if another agent has claimed the pod. Look at the warm pods if it is one."""
        self.pods.warm.pod_changed(pod)
        environment = self.pods.find_superseded(pod)
        if environment is not None:
            self.sessions.superseded(environment.plan.action.key.attempt_key)
