"""A submitted pipeline and its actions, as the scheduler holds them in memory.

The registry makes these objects at the submission or when the scheduler starts. They live until the registry drops the
pipeline. Only `ActionState` and `StoredPipeline` are stored. The other attributes are lost when the scheduler stops.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.domain.session_state import Feature
from agent.local_scheduler.action_state import ActionStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.outcome import Outcome
    from agent.local_scheduler.action_state import ActionState
    from agent.local_scheduler.storage.changes import StoredPipeline
    from agent.local_scheduler.storage.inputs import InputReader, SelectedInput
    from agent.local_scheduler.storage.uploads import Upload
    from agent.pipeline.events import FileStored
    from agent.pipeline.parser import PipelineAction


@dataclass(eq=False, slots=True)
class ActionRecord:
    """An action of a pipeline, from the submission until the scheduler drops the pipeline.

    `agent_id` is the connected agent that has the action now, "" when none has. `sent_to_agent`: an agent may have
    received the attempt. `stored_seq` is the last event number that may be acknowledged. `grace_timer` runs while the
    action waits for its lost agent. `upload` is the upload of files that runs now, None without one. `upload_lock`
    ensures that only one upload of an action at a time moves its files into the action's folder. `waits_for` is the
    reported reason why the action stays in the queue, "" for none. `inputs` are the files of other actions, None until
    they are selected. `download` is the call that sends inputs now, None without one.
    """

    plan: PipelineAction
    state: ActionState
    run: PipelineRun
    agent_id: str = ""
    sent_to_agent: bool = False
    stored_seq: int = 0
    grace_timer: asyncio.TimerHandle | None = None
    files: list[FileStored] = field(default_factory=list)
    upload: Upload | None = None
    upload_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    inputs: tuple[SelectedInput, ...] | None = None
    download: InputReader | None = None
    waits_for: str = ""

    @property
    def action_id(self) -> str:
        """The id of the action on the agents' stream: "<pipeline id>/<name>"."""
        return self.state.action_id

    @property
    def features(self) -> frozenset[Feature]:
        """The features of the contract that an agent needs to run this action with its inputs."""
        packed = any(each.in_packs for each in self.inputs or ())
        return self.plan.features | ({Feature.OBJECT_PACKS} if packed else set())

    @property
    def needed_outcomes(self) -> list[Outcome] | None:
        """The outcomes of the actions that this action needs, None if one of them has not ended."""
        found = [self.run.records[name].state.outcome for name in self.plan.needs]
        outcomes = [each for each in found if each is not None]
        return outcomes if len(outcomes) == len(found) else None

    @property
    def is_ready(self) -> bool:
        """Whether the action waits and its `needs` have all ended, with outcomes that fit the action's condition."""
        outcomes = self.needed_outcomes if self.state.status is ActionStatus.WAITING else None
        return outcomes is not None and self.plan.when.holds(outcomes)

    def stop_grace_timer(self) -> None:
        """Cancel the grace timer, if it runs."""
        if self.grace_timer is not None:
            self.grace_timer.cancel()
            self.grace_timer = None


@dataclass(eq=False, slots=True)
class PipelineRun:
    """A submitted pipeline. `name` is the name in its file. `position` is the number of its last event.

    The event `changed` is set when more pipeline events are stored. A new asyncio event then replaces `changed`.
    """

    pipeline: StoredPipeline
    name: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    records: dict[str, ActionRecord] = field(default_factory=dict)
    position: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def all_ended(self) -> bool:
        """Whether every action has ended."""
        return all(record.state.status is ActionStatus.ENDED for record in self.records.values())

    def wake_watchers(self) -> None:
        """Let every watcher read the events that are stored now."""
        self.changed.set()
        self.changed = asyncio.Event()
