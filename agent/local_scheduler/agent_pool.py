"""Record which agents are connected and which agent has which action.

The pool lives as long as the dispatcher. It is not stored, because agents report their sessions when they register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.local_scheduler.agent_stream import AgentStream, pod_of

if TYPE_CHECKING:
    from agent.domain.session_state import Feature
    from agent.local_scheduler.records import ActionRecord


class AgentPool:
    """The newest stream of each connected agent, by the name of the agent's pod. The dispatcher owns the only instance.

    An agent has an action if the action id is in the `sessions` of the agent's stream. At most one agent has an action.
    """

    def __init__(self) -> None:
        self.streams: dict[str, AgentStream] = {}

    def add(self, stream: AgentStream) -> None:
        """Add a stream, and close an older stream of the same agent pod."""
        if (older := self.streams.get(stream.pod)) is not None:
            older.close()
        self.streams[stream.pod] = stream

    def remove(self, stream: AgentStream) -> bool:
        """Close and remove a stream. Return False when the agent's pod has a newer stream or no stream."""
        stream.close()
        if self.streams.get(stream.pod) is not stream:
            return False
        del self.streams[stream.pod]
        return True

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()

    def least_loaded(
        self, features: frozenset[Feature] = frozenset(), environment_class: str = "", image: str = ""
    ) -> AgentStream | None:
        """Return the stream of the agent with the largest share of free slots, among those with features and class.

        Agents with a warm pod of the image and the class come first. Return None when no such agent has a free slot.
        """
        free = [each for each in self.streams.values() if each.free_slots > 0 and each.has(features, environment_class)]

        def rank(stream: AgentStream) -> tuple[bool, float]:
            return stream.has_warm(image, environment_class), stream.free_slots / stream.slots

        return max(free, key=rank, default=None)

    def missing_features(self, features: frozenset[Feature]) -> frozenset[Feature]:
        """Return those of the features that stand between an action and every agent. Empty if an agent has them all.

        If no single agent has all features, but each feature has an agent, all features are returned.
        """
        offers = [each.features for each in self.streams.values() if not each.closed]
        if any(features <= offer for offer in offers):
            return frozenset()
        return features.difference(*offers) or features

    def missing_for(self, features: frozenset[Feature], environment_class: str) -> str:
        """Return why no connected agent can run an action with these features and this class, "" if one can."""
        connected = [each for each in self.streams.values() if not each.closed]
        if any(each.has(features, environment_class) for each in connected):
            return ""
        if missing := sorted(each.value for each in self.missing_features(features)):
            return f"no connected agent has the feature {', '.join(missing)}"
        classes = sorted({name for each in connected for name in each.classes})
        if environment_class not in classes:
            there_are = f"; there are: {', '.join(classes)}" if classes else ""
            return f"no connected agent has the class {environment_class}{there_are}"
        names = ", ".join(sorted(each.value for each in features))
        return f"no connected agent has both the class {environment_class} and the feature {names}"

    def stream_of(self, record: ActionRecord) -> AgentStream | None:
        """Return the stream of the agent that has an action, None when no connected agent has it."""
        stream = self.streams.get(pod_of(record.agent_id))
        # After a reconnect, the agent's new stream has only the actions that the agent has named in its registration.
        return stream if stream is not None and record.action_id in stream.sessions else None

    def bind(self, record: ActionRecord, stream: AgentStream) -> None:
        """Record that the agent of a stream has an action and that no other agent has it."""
        if (older := self.stream_of(record)) is not None:
            older.sessions.discard(record.action_id)
        record.agent_id = stream.agent_id
        stream.sessions.add(record.action_id)

    def unbind(self, record: ActionRecord, stream: AgentStream) -> None:
        """Record that the agent of a stream no longer has an action."""
        stream.sessions.discard(record.action_id)
        record.agent_id = ""
