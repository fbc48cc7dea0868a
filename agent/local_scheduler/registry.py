"""The pipelines that the scheduler knows, in memory, each change of them stored before anybody is told.

The registry decides what follows from an action's end: which others may start, which never will, and when the pipeline has
ended. It knows no agents; the dispatcher writes into it what they do. It lives as long as the scheduler.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import AgentError, Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.local_scheduler.action_state import ActionState, ActionStatus
from agent.local_scheduler.secret_files import SecretFiles
from agent.local_scheduler.store import KEPT_PIPELINES, Change, Store, StoredPipeline, StoreFailed
from agent.pipeline import events, parser
from agent.pipeline.events import ActionEnded, ActionPlan, Ended, FileStored, PipelineEvent, Submitted
from agent.pipeline.yaml_document import PipelineFileError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from agent.domain.actions import Key
    from agent.local_scheduler.agent_stream import AgentStream
    from agent.local_scheduler.store import LoadedPipeline
    from agent.local_scheduler.uploads import Upload
    from agent.pipeline.events import EventBody, Transfer
    from agent.pipeline.parser import Pipeline, PipelineAction
    from agent.pipeline.wire import local_pb2 as wire

log = structlog.get_logger()

PIPELINE_ID = re.compile(r"[a-z0-9]{8,32}")


class PipelineUnknown(AgentError):
    """There is no such pipeline here."""


class StaleAttempt(AgentError):
    """Somebody speaks for an attempt that is not theirs any more."""


class PipelineExists(AgentError):
    """Another pipeline has this id."""


@dataclass(eq=False, slots=True)
class ActionRecord:
    """An action of a pipeline. `stream` is the agent that has it now; `stored_seq` what may be acknowledged."""

    plan: PipelineAction
    state: ActionState
    run: PipelineRun
    stream: AgentStream | None = None
    sent_to_agent: bool = False
    stored_seq: int = 0
    grace_timer: asyncio.TimerHandle | None = None
    files: list[FileStored] = field(default_factory=list)
    upload: Upload | None = None
    upload_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def action_id(self) -> str:
        """The action's name among all pipelines."""
        return self.state.action_id


@dataclass(eq=False, slots=True)
class PipelineRun:
    """A pipeline that was submitted. `changed` is set, and replaced, whenever more of its events are stored."""

    pipeline: StoredPipeline
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    records: dict[str, ActionRecord] = field(default_factory=dict)
    position: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def all_ended(self) -> bool:
        """Whether every action has ended."""
        return all(record.state.status is ActionStatus.ENDED for record in self.records.values())

    def wake_watchers(self) -> None:
        """Wake everybody who watches."""
        self.changed.set()
        self.changed = asyncio.Event()


class PipelineRegistry:
    """All pipelines, by id."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.secret_files = SecretFiles(store.root / "secrets")
        self.runs: dict[str, PipelineRun] = {}
        self.closing = False

    async def open(self) -> None:
        """Read what is stored.

        Raises:
            StoreFailed: it cannot be read.
        """
        for loaded in await self.store.open():
            try:
                self.runs[loaded.pipeline.id] = self.restore(loaded)
            except PipelineFileError as error:
                log.error(
                    "a stored pipeline cannot be read by this version", pipeline=loaded.pipeline.id, why=str(error)
                )

    def close(self) -> None:
        """End all watches."""
        self.closing = True
        for run in self.runs.values():
            run.wake_watchers()

    def restore(self, loaded: LoadedPipeline) -> PipelineRun:
        """Return a pipeline as it was when it was last stored."""
        stored = loaded.pipeline
        secrets = {} if stored.ended else self.secret_files.read(stored.id)
        run = PipelineRun(stored, secrets=secrets, position=loaded.position)
        known = {each.name: each for each in loaded.actions}
        for plan in parser.parse(stored.text, stored.source).actions:
            state = known[plan.name]
            record = ActionRecord(plan, state, run, stored_seq=state.seq, files=loaded.files.get(plan.name, []))
            run.records[plan.name] = record
        return run

    # ---- people

    async def submit(self, run_id: str, asked: Pipeline, secrets: Mapping[str, str]) -> PipelineRun:
        """Queue a pipeline; one that exists is returned.

        Raises:
            ValueError: the id is none.
            PipelineExists: the id is another's.
            StoreFailed: it could not be stored.
        """
        if not PIPELINE_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is not an id of a pipeline: 8 to 32 characters of a-z and 0-9")
        if (found := self.runs.get(run_id)) is not None:
            if found.pipeline.text != asked.text:
                raise PipelineExists(f"another pipeline has the id {run_id}")
            return found
        stored = StoredPipeline(run_id, asked.source, asked.text, time.time())
        run = PipelineRun(stored, secrets={name: secrets.get(name, "") for name in asked.secrets})
        run.records = {plan.name: ActionRecord(plan, ActionState(run_id, plan.name), run) for plan in asked.actions}
        if self.store.durable and run.secrets:
            await asyncio.to_thread(self.secret_files.write, run_id, run.secrets)
        self.runs[run_id] = run
        plans = tuple(ActionPlan(plan.name, plan.needs, plan.commands) for plan in asked.actions)
        folder = str(self.store.folder(run_id).absolute())
        change = Change(
            pipeline=stored,
            states=[record.state for record in run.records.values()],
            events=[self.event(run, Submitted(asked.name, plans, folder))],
        )
        self.drop_oldest()
        await self.store.save_and_wait(change)
        run.wake_watchers()
        return run

    def drop_oldest(self) -> None:
        """Forget, as the store does, what ended long ago."""
        ended = [run_id for run_id, run in self.runs.items() if run.pipeline.ended]
        for run_id in ended[: max(0, len(ended) - KEPT_PIPELINES)]:
            del self.runs[run_id]

    def get(self, run_id: str) -> PipelineRun:
        """Return a pipeline.

        Raises:
            PipelineUnknown: there is none.
        """
        try:
            return self.runs[run_id]
        except KeyError:
            raise PipelineUnknown(f"there is no pipeline {run_id!r}") from None

    async def watch(self, run_id: str, after: int = 0) -> AsyncIterator[wire.PipelineEvent]:
        """Yield the events after a position as they are stored, the last of the pipeline included.

        Raises:
            PipelineUnknown: there is none.
            StoreFailed: no more can be stored, or the scheduler stops.
        """
        run = self.get(run_id)
        while True:
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

    # ---- actions

    def find(self, action_id: str) -> ActionRecord | None:
        """Return an action, None when it is not known."""
        run_id, _, name = action_id.partition("/")
        run = self.runs.get(run_id)
        return run.records.get(name) if run else None

    def open_records(self) -> Iterator[ActionRecord]:
        """Yield the actions that have not ended, oldest pipeline first, in the order of their files."""
        for run in self.runs.values():
            if not run.pipeline.ended:
                yield from (record for record in run.records.values() if record.state.status is not ActionStatus.ENDED)

    def ready_records(self) -> Iterator[ActionRecord]:
        """Yield the actions that wait for nothing but a slot."""
        for record in self.open_records():
            needed = (record.run.records[need].state.outcome for need in record.plan.needs)
            if record.state.status is ActionStatus.WAITING and all(
                outcome is not None and outcome.result is Result.SUCCEEDED for outcome in needed
            ):
                yield record

    def event(self, run: PipelineRun, body: EventBody, record: ActionRecord | None = None) -> PipelineEvent:
        """Number an event."""
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
        """Save what changed about an action; `then` is called when it is stored.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        new_attempt = state if state.attempt > record.state.attempt else None
        record.state = state
        run = record.run
        told = [self.event(run, body, record) for body in bodies]
        changed = [state]
        ended = None
        if state.status is ActionStatus.ENDED:
            for other in self.cancel_dependents(record):
                changed.append(other.state)
                told.append(self.event(run, ActionEnded(other.state.outcome or NOT_RUN, 0.0), other))
            if run.all_ended:
                told.append(self.event(run, Ended()))
                ended = run.pipeline = StoredPipeline(
                    run.pipeline.id, run.pipeline.source, run.pipeline.text, run.pipeline.submitted, ended=True
                )

        def stored() -> None:
            record.stored_seq = state.seq
            if ended is not None:
                run.secrets = {}
                self.secret_files.drop(run.pipeline.id)
            run.wake_watchers()
            then()

        where = (run.pipeline.id, record.plan.name, files) if files is not None else None
        self.store.save(Change(ended, changed, told, where, new_attempt), stored)

    def cancel_dependents(self, record: ActionRecord) -> list[ActionRecord]:
        """End the actions that need one that did not succeed, and those that need them; return them."""
        outcome = record.state.outcome
        if outcome is None or outcome.result is Result.SUCCEEDED:
            return []
        found = []
        for other in record.run.records.values():
            if record.plan.name in other.plan.needs and other.state.status is ActionStatus.WAITING:
                message = f"not run: it needs {record.plan.name}, which did not succeed"
                other.state = other.state.with_outcome(
                    Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message)
                )
                found += [other, *self.cancel_dependents(other)]
        return found

    def end_action(self, record: ActionRecord, outcome: Outcome) -> None:
        """End an action by the scheduler's own decision."""
        seconds = record.state.elapsed(time.time())
        self.update(record, record.state.with_outcome(outcome), [events.ActionEnded(outcome, seconds)])

    # ---- files

    def record_for_upload(self, key: Key) -> ActionRecord:
        """Return the action that files are sent of.

        Raises:
            StaleAttempt: they are not wanted: the attempt is over, or another agent's.
        """
        record = self.find(key.action_id)
        if record is None or record.state.status is not ActionStatus.RUNNING or record.state.attempt != key.attempt:
            raise StaleAttempt(f"attempt {key.attempt} of {key.action_id} is not running")
        if key.claim != record.state.claim:
            raise StaleAttempt(f"claim {record.state.claim} owns {key.action_id}, not {key.claim}")
        return record

    def transfers(self, run_id: str) -> dict[str, Transfer]:
        """Return what is being copied right now, by action."""
        records = self.get(run_id).records.values()
        return {record.plan.name: record.upload.transfer() for record in records if record.upload is not None}

    async def store_files(self, record: ActionRecord, files: Sequence[FileStored]) -> None:
        """Take note of the files that are in place now; returns when that is stored.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        before = set(record.files)
        record.files = list(files)
        stored = asyncio.Event()
        self.update(record, record.state, [each for each in files if each not in before], then=stored.set, files=files)
        await self.store.wait_until(stored)


NOT_RUN = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED)
