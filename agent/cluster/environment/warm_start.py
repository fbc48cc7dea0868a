"""The start of an action in a warm pod, and what an adopting agent does about a start that was interrupted.

A `WarmStart` lives as long as its environment. An action tries a few warm pods, and then gets a pod of its own. It gets
another pod only when it is certain that no command has run in the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod import labels, session_annotation
from agent.cluster.pod.fields import container_status, helper_status, is_running
from agent.cluster.pod.manifest import ACTION
from agent.cluster.warm.claim import ASK_SECONDS, Superseded
from agent.cluster.warm.delivery import NotBegun, Unclear, ask_begun
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage

if TYPE_CHECKING:
    from agent.cluster.environment.context import Context
    from agent.cluster.environment.environment import PodEnvironment
    from agent.cluster.pod.manifest import Plan
    from agent.cluster.warm.pool import WarmPod
    from agent.domain.json import Object
    from agent.domain.session_state import Resume

UNKNOWN = "it is not known whether the commands began, so they are not started again"


class WarmStart:
    """The warm pod of one environment. `reserved` is a warm pod that no request has named yet."""

    def __init__(self, context: Context, plan: Plan, reserved: WarmPod | None) -> None:
        self.warm_pods = context.warm
        self.reserved = reserved
        key = plan.action.key
        # The name of the pod if no warm pod runs the action.
        self.own_name = labels.pod_name(context.settings.agent.pool, key.action_id, key.attempt)
        self.tries = 0

    async def run(self, environment: PodEnvironment) -> bool:
        """Start the action in a warm pod. Return False if it needs a pod of its own.

        Raises:
            ActionFailed: it is unknown whether the commands began, or another agent has adopted the session.
        """
        key = environment.plan.action.key
        if environment.context.watch.find_other_pod(key.action_id, key.attempt):
            self.give_back()
        while (pod := self.reserved) is not None:
            environment.use_pod(pod.name, pod.uid)
            self.reserved = None
            self.tries += 1
            try:
                environment.pod_began(await self.warm_pods.start(pod, environment.plan))
            except NotBegun:
                self.reserved = self.warm_pods.reserve(environment.plan, self.tries)
            except Superseded as error:
                environment.disown()
                raise ActionFailed(Stage.SETUP, Reason.INTERNAL, error.message) from error
            except Unclear as error:
                raise ActionFailed(Stage.SETUP, Reason.INTERNAL, UNKNOWN, log=f"{UNKNOWN}: {error.message}") from error
            else:
                return True
        environment.use_pod(self.own_name, "")
        return False

    def give_back(self) -> None:
        """Put a pod that no request has named back into its pool."""
        if self.reserved is not None:
            self.warm_pods.give_back(self.reserved)
            self.reserved = None

    async def has_begun(self, environment: PodEnvironment, pod: Object, resume: Resume) -> bool:
        """Return whether the commands of an adopted pod have begun. If not, they cannot begin any more.

        Raises:
            ActionFailed: the pod does not answer.
        """
        status = pod.get("status", {})
        both = is_running(helper_status(status)) and is_running(container_status(status, ACTION))
        if session_annotation.claimed_at_of(pod) is None or resume.command or resume.cursor.offset or not both:
            return True
        try:
            return await ask_begun(environment.client, environment.helper_container, ASK_SECONDS)
        except Unclear as error:
            raise ActionFailed(Stage.SETUP, Reason.INTERNAL, UNKNOWN, log=f"{UNKNOWN}: {error.message}") from error

    async def discard(self, environment: PodEnvironment, pod: Object) -> None:
        """Delete an adopted pod whose commands have not begun, so that the action can begin in another pod.

        Raises:
            ActionFailed: the pod is not this agent's any more, or is being deleted, or cannot be deleted.
        """
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            # The former agent may have deleted the pod because it gave the action another one.
            raise ActionFailed(Stage.SETUP, Reason.INTERNAL, UNKNOWN)
        try:
            await self.warm_pods.claims.discard(meta["name"], meta["uid"], meta["labels"][labels.AGENT])
        except Superseded as error:
            environment.disown()
            raise ActionFailed(Stage.SETUP, Reason.INTERNAL, error.message) from error
        except ClusterError as error:
            raise ActionFailed(Stage.SETUP, error.reason, error.message) from error
