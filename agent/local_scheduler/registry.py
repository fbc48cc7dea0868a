"""The pipelines of the scheduler, in memory. Each change is stored before watchers are notified.

The registry decides what follows from an action's end: which actions may start, which are cancelled, and when the
pipeline has ended. The registry does not know agents. The dispatcher reports to the registry what agents do. The
registry lives as long as the scheduler.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import AgentError, Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.local_scheduler.action_state import ActionState, ActionStatus
from agent.local_scheduler.records import ActionRecord, PipelineRun
from agent.local_scheduler.storage.changes import ActionFiles, Change, StoredPipeline
from agent.local_scheduler.storage.inputs import inputs_error
from agent.local_scheduler.storage.secret_files import SecretFiles
from agent.local_scheduler.storage.store import KEPT_PIPELINES, Store, StoreFailed
from agent.pipeline import events, parser
from agent.pipeline.events import ActionEnded, ActionPlan, Ended, PipelineEvent, Submitted
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.structure.conditions import Condition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from agent.domain.actions import Key
    from agent.local_scheduler.storage.changes import LoadedPipeline
    from agent.pipeline.events import EventBody, FileStored, Transfer
    from agent.pipeline.parser import Pipeline
    from agent.pipeline.wire import local_pb2 as wire

log = structlog.get_logger()

PIPELINE_ID = re.compile(r"[a-z0-9]{8,32}")
NOT_RUN = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED)


class PipelineUnknown(AgentError):
    """No pipeline has this id."""


class StaleAttempt(AgentError):
    """An agent transfers files of an attempt that is over or that another agent has claimed."""


class PipelineIdInvalid(AgentError):
    """A pipeline id does not match `PIPELINE_ID`."""


class PipelineExists(AgentError):
    """Another pipeline has this id."""


def not_run(ended: ActionRecord, waiting: ActionRecord) -> Outcome | None:
    """Return the outcome of an action that cannot run because of an action that has ended. None if it still can.

    An action that runs only after a failure has nothing to do after successes. That is no failure of the pipeline.
    """
    succeeded = ended.state.outcome is not None and ended.state.outcome.result is Result.SUCCEEDED
    if waiting.plan.when is Condition.SUCCESS and not succeeded:
        return replace(NOT_RUN, message=f"not run: it needs {ended.plan.name}, which did not succeed")
    outcomes = waiting.needed_outcomes
    if outcomes is not None and not waiting.plan.when.holds(outcomes):
        return Outcome(Result.SUCCEEDED, Stage.ADMISSION, message="not run: everything that it needs succeeded")
    return None


class PipelineRegistry:
    """All pipelines of the scheduler, by id, in the order of submission. The server owns the only instance."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.secret_files = SecretFiles(store.root / "secrets")
        self.runs: dict[str, PipelineRun] = {}
        self.closing = False

    async def open(self) -> None:
        """Read the stored pipelines.

        Raises:
            StoreFailed: the folder cannot be read.
        """
        for loaded in await self.store.open():
            try:
                self.runs[loaded.pipeline.id] = self.restore(loaded)
            except PipelineFileError as error:
                log.error(
                    "a stored pipeline cannot be read by this version", pipeline=loaded.pipeline.id, why=str(error)
                )

    def close(self) -> None:
        """End all watches with `StoreFailed`."""
        self.closing = True
        for run in self.runs.values():
            run.wake_watchers()

    def restore(self, loaded: LoadedPipeline) -> PipelineRun:
        """Build the `PipelineRun` of a stored pipeline.

        Raises:
            PipelineFileError: this version does not accept the pipeline's text.
        """
        pipeline = loaded.pipeline
        secrets = {} if pipeline.ended else self.secret_files.read(pipeline.id)
        parsed = parser.parse(pipeline.text, pipeline.source)
        run = PipelineRun(pipeline, parsed.name, secrets=secrets, position=loaded.position)
        states = {each.name: each for each in loaded.actions}
        for plan in parsed.actions:
            state = states[plan.name]
            files = loaded.files.get(plan.name, [])
            run.records[plan.name] = ActionRecord(plan, state, run, stored_seq=state.seq, files=files)
        return run

    # ---- methods for pipelines

    async def submit(self, run_id: str, pipeline: Pipeline, secrets: Mapping[str, str]) -> PipelineRun:
        """Store and return a new pipeline. Return the existing run if the same pipeline has this id already.

        Raises:
            PipelineIdInvalid: the id is malformed.
            PipelineExists: another pipeline has the id.
            StoreFailed: the pipeline could not be stored.
        """
        if not PIPELINE_ID.fullmatch(run_id):
            raise PipelineIdInvalid(f"{run_id!r} is not a pipeline id: 8 to 32 characters of a-z and 0-9")
        if (found := self.runs.get(run_id)) is not None:
            if found.pipeline.text != pipeline.text:
                raise PipelineExists(f"another pipeline has the id {run_id}")
            return found
        stored = StoredPipeline(run_id, pipeline.source, pipeline.text, time.time())
        values = {name: secrets.get(name, "") for name in pipeline.secrets}
        run = PipelineRun(stored, pipeline.name, secrets=values)
        run.records = {plan.name: ActionRecord(plan, ActionState(run_id, plan.name), run) for plan in pipeline.actions}
        if self.store.durable and run.secrets:
            await asyncio.to_thread(self.secret_files.write, run_id, run.secrets)
        self.runs[run_id] = run
        plans = tuple(ActionPlan(plan.name, plan.needs, plan.commands) for plan in pipeline.actions)
        folder = str(self.store.folder(run_id).absolute())
        change = Change(
            pipeline=stored,
            states=[record.state for record in run.records.values()],
            events=[self.event(run, Submitted(pipeline.name, plans, folder))],
        )
        self.drop_oldest()
        await self.store.save_and_wait(change)
        run.wake_watchers()
        return run

    def drop_oldest(self) -> None:
        """Drop ended pipelines beyond the newest `KEPT_PIPELINES`. The store drops the same pipelines."""
        ended = [run_id for run_id, run in self.runs.items() if run.pipeline.ended]
        for run_id in ended[: max(0, len(ended) - KEPT_PIPELINES)]:
            del self.runs[run_id]

    def get(self, run_id: str) -> PipelineRun:
        """Return a pipeline.

        Raises:
            PipelineUnknown: no pipeline has the id.
        """
        try:
            return self.runs[run_id]
        except KeyError:
            raise PipelineUnknown(f"no pipeline has the id {run_id!r}") from None

    async def watch(self, run_id: str, after: int = 0) -> AsyncIterator[wire.PipelineEvent]:
        """Yield the events after position `after` as they are stored, up to the pipeline's last event.

        Raises:
            PipelineUnknown: no pipeline has the id.
            StoreFailed: nothing more can be stored, or the scheduler stops.
        """
        run = self.get(run_id)
        while True:
            # `changed` is taken before the read. An event that is stored during the read therefore ends the wait below.
            changed = run.changed
            found = await self.store.events(run_id, after)
            for event in found:
                yield event
                after = event.position
                if event.WhichOneof("event") == "ended":
                    return
            if not found:
                if self.closing:
                    raise StoreFailed("the scheduler stops")
                await self.store.wait_until(changed)

    # ---- methods for actions

    def find(self, action_id: str) -> ActionRecord | None:
        """Return an action by its id, None when it is unknown."""
        run_id, _, name = action_id.partition("/")
        run = self.runs.get(run_id)
        return run.records.get(name) if run else None

    def open_records(self) -> Iterator[ActionRecord]:
        """Yield the actions that have not ended, oldest pipeline first, in the order of the pipeline file."""
        for run in self.runs.values():
            if not run.pipeline.ended:
                yield from (record for record in run.records.values() if record.state.status is not ActionStatus.ENDED)

    @property
    def has_special(self) -> bool:
        """Whether a pipeline that has not ended has an action that not every agent can run."""
        open_runs = (run for run in self.runs.values() if not run.pipeline.ended)
        return any(record.plan.is_special for run in open_runs for record in run.records.values())

    def ready_records(self) -> list[ActionRecord]:
        """Return the waiting actions whose `needs` have all ended, with outcomes that fit the action's condition.

        End the actions whose inputs are missing.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        while True:
            ready = [record for record in self.open_records() if record.is_ready]
            unusable = [(record, error) for record in ready if (error := inputs_error(record)) is not None]
            if not unusable:
                return ready
            # The end of these actions can make actions ready that run after a failure.
            for record, error in unusable:
                self.end_action(record, Outcome(Result.FAILED, Stage.ADMISSION, error.reason, message=str(error)))

    def event(self, run: PipelineRun, body: EventBody, record: ActionRecord | None = None) -> PipelineEvent:
        """Build the next event of a pipeline. If `record` is given, the event is about this action."""
        run.position += 1
        name, attempt = (record.plan.name, record.state.attempt) if record else ("", 0)
        return PipelineEvent(run.pipeline.id, run.position, time.time(), body, name, attempt)

    def update(
        self,
        record: ActionRecord,
        state: ActionState,
        bodies: Sequence[EventBody] = (),
        *,
        then: Callable[[], None] = lambda: None,
        files: Sequence[FileStored] | None = None,
    ) -> None:
        """Change the state of an action and queue the change for the store.

        `bodies` become events of the pipeline. `then` is called after the change is stored. `files` replaces the list
        of the action's files. If the action ended, the actions that cannot run any more because of its outcome end too.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        new_attempt = state if state.attempt > record.state.attempt else None
        record.state = state
        run = record.run
        new_events = [self.event(run, body, record) for body in bodies]
        states = [state]
        ended_pipeline = None
        if state.status is ActionStatus.ENDED:
            for other in self.end_dependents(record):
                states.append(other.state)
                new_events.append(self.event(run, ActionEnded(other.state.outcome or NOT_RUN, 0.0), other))
            if run.all_ended:
                new_events.append(self.event(run, Ended()))
                ended_pipeline = run.pipeline = replace(run.pipeline, ended=True)

        def on_stored() -> None:
            record.stored_seq = state.seq
            if ended_pipeline is not None:
                run.secrets = {}
                self.secret_files.delete(run.pipeline.id)
            run.wake_watchers()
            then()

        new_files = ActionFiles(run.pipeline.id, record.plan.name, files) if files is not None else None
        self.store.save(Change(ended_pipeline, states, new_events, new_files, new_attempt), on_stored)

    def end_dependents(self, record: ActionRecord) -> list[ActionRecord]:
        """End the waiting actions that directly or indirectly need an action and whose condition can no longer hold.

        Return these actions.
        """
        found = []
        for other in record.run.records.values():
            if record.plan.name not in other.plan.needs or other.state.status is not ActionStatus.WAITING:
                continue
            if (outcome := not_run(record, other)) is not None:
                other.state = other.state.with_outcome(outcome)
                found += [other, *self.end_dependents(other)]
        return found

    def end_action(self, record: ActionRecord, outcome: Outcome) -> None:
        """End an action by a decision of the scheduler.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        seconds = record.state.elapsed(time.time())
        self.update(record, record.state.with_outcome(outcome), [events.ActionEnded(outcome, seconds)])

    # ---- methods for the files of actions

    def record_for_transfer(self, key: Key) -> ActionRecord:
        """Return the action for which an agent uploads artifacts or downloads inputs.

        Raises:
            StaleAttempt: the attempt is over, or another agent has claimed it.
        """
        record = self.find(key.action_id)
        if record is None or record.state.status is not ActionStatus.RUNNING or record.state.attempt != key.attempt:
            raise StaleAttempt(f"attempt {key.attempt} of {key.action_id} is not running")
        if key.claim != record.state.claim:
            raise StaleAttempt(f"claim {record.state.claim} owns {key.action_id}, not {key.claim}")
        return record

    def transfers(self, run_id: str) -> dict[str, Transfer]:
        """Return the progress of the uploads and downloads that run now, by action name."""
        running = ((record.plan.name, record.upload or record.download) for record in self.get(run_id).records.values())
        return {name: each.transfer() for name, each in running if each is not None}

    async def store_files(self, record: ActionRecord, files: Sequence[FileStored]) -> None:
        """Store the list of an action's files, and return when the list is stored.

        The files are in the action's folder already.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        before = set(record.files)
        record.files = list(files)
        stored = asyncio.Event()
        new_files = [each for each in files if each not in before]
        self.update(record, record.state, new_files, then=stored.set, files=files)
        await self.store.wait_until(stored)
