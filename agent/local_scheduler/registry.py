"""The pipelines that the scheduler knows, in memory, each change of them stored before anybody is told.

The book decides what follows from an action's end: which others may start, which never will, and when the pipeline has
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
from agent.local_scheduler.action_state import Progress, State
from agent.local_scheduler.secret_files import KeptSecrets
from agent.local_scheduler.store import KEPT_PIPELINES, Change, Store, StoredPipeline, StoreFailed
from agent.pipeline import events, parser
from agent.pipeline.events import ActionEnded, ActionPlan, Ended, FileStored, PipelineEvent, Submitted
from agent.pipeline.yaml_document import FileWrong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from agent.domain.actions import Key
    from agent.local_scheduler.agent_stream import AgentStream
    from agent.local_scheduler.store import Loaded
    from agent.local_scheduler.uploads import Upload
    from agent.pipeline.events import Happening, Transfer
    from agent.pipeline.parser import Pipeline, PipelineAction
    from agent.pipeline.wire import local_pb2 as wire

log = structlog.get_logger()

PIPELINE_ID = re.compile(r"[a-z0-9]{8,32}")


class PipelineUnknown(AgentError):
    """There is no such pipeline here."""


class NotCurrent(AgentError):
    """Somebody speaks for an attempt that is not theirs any more."""


class PipelineExists(AgentError):
    """Another pipeline has this id."""


@dataclass(eq=False, slots=True)
class Entry:
    """An action of a pipeline. `stream` is the agent that has it now; `stored_seq` what may be acknowledged."""

    plan: PipelineAction
    progress: Progress
    run: Run
    stream: AgentStream | None = None
    sent: bool = False
    stored_seq: int = 0
    lost: asyncio.TimerHandle | None = None
    files: list[FileStored] = field(default_factory=list)
    upload: Upload | None = None
    uploading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def action_id(self) -> str:
        """The action's name among all pipelines."""
        return self.progress.action_id


@dataclass(eq=False, slots=True)
class Run:
    """A pipeline that was submitted. `changed` is set, and replaced, whenever more of its events are stored."""

    stored: StoredPipeline
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    entries: dict[str, Entry] = field(default_factory=dict)
    position: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether every action has ended."""
        return all(entry.progress.state is State.ENDED for entry in self.entries.values())

    def tell(self) -> None:
        """Wake everybody who watches."""
        self.changed.set()
        self.changed = asyncio.Event()


class Book:
    """All pipelines, by id."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept_secrets = KeptSecrets(store.root / "secrets")
        self.runs: dict[str, Run] = {}
        self.closing = False

    async def open(self) -> None:
        """Read what is stored.

        Raises:
            StoreFailed: it cannot be read.
        """
        for loaded in await self.store.open():
            try:
                self.runs[loaded.pipeline.id] = self.restore(loaded)
            except FileWrong as error:
                log.error(
                    "a stored pipeline cannot be read by this version", pipeline=loaded.pipeline.id, why=str(error)
                )

    def close(self) -> None:
        """End all watches."""
        self.closing = True
        for run in self.runs.values():
            run.tell()

    def restore(self, loaded: Loaded) -> Run:
        """Return a pipeline as it was when it was last stored."""
        stored = loaded.pipeline
        secrets = {} if stored.ended else self.kept_secrets.read(stored.id)
        run = Run(stored, secrets=secrets, position=loaded.position)
        known = {each.name: each for each in loaded.actions}
        for plan in parser.parse(stored.text, stored.source).actions:
            progress = known[plan.name]
            entry = Entry(plan, progress, run, stored_seq=progress.seq, files=loaded.files.get(plan.name, []))
            run.entries[plan.name] = entry
        return run

    # ---- people

    async def submit(self, run_id: str, asked: Pipeline, secrets: Mapping[str, str]) -> Run:
        """Queue a pipeline; one that exists is returned.

        Raises:
            ValueError: the id is none.
            PipelineExists: the id is another's.
            StoreFailed: it could not be stored.
        """
        if not PIPELINE_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is not an id of a pipeline: 8 to 32 characters of a-z and 0-9")
        if (found := self.runs.get(run_id)) is not None:
            if found.stored.text != asked.text:
                raise PipelineExists(f"another pipeline has the id {run_id}")
            return found
        stored = StoredPipeline(run_id, asked.source, asked.text, time.time())
        run = Run(stored, secrets={name: secrets.get(name, "") for name in asked.secrets})
        run.entries = {plan.name: Entry(plan, Progress(run_id, plan.name), run) for plan in asked.actions}
        if self.store.durable and run.secrets:
            await asyncio.to_thread(self.kept_secrets.write, run_id, run.secrets)
        self.runs[run_id] = run
        plans = tuple(ActionPlan(plan.name, plan.needs, plan.commands) for plan in asked.actions)
        folder = str(self.store.folder(run_id).absolute())
        change = Change(
            pipeline=stored,
            progress=[entry.progress for entry in run.entries.values()],
            events=[self.event(run, Submitted(asked.name, plans, folder))],
        )
        self.forget_old()
        await self.store.stored(change)
        run.tell()
        return run

    def forget_old(self) -> None:
        """Forget, as the store does, what ended long ago."""
        ended = [run_id for run_id, run in self.runs.items() if run.stored.ended]
        for run_id in ended[: max(0, len(ended) - KEPT_PIPELINES)]:
            del self.runs[run_id]

    def get(self, run_id: str) -> Run:
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
                await self.store.until(changed)

    # ---- actions

    def find(self, action_id: str) -> Entry | None:
        """Return an action, None when it is not known."""
        run_id, _, name = action_id.partition("/")
        run = self.runs.get(run_id)
        return run.entries.get(name) if run else None

    def entries(self) -> Iterator[Entry]:
        """Yield the actions that have not ended, oldest pipeline first, in the order of their files."""
        for run in self.runs.values():
            if not run.stored.ended:
                yield from (entry for entry in run.entries.values() if entry.progress.state is not State.ENDED)

    def ready(self) -> Iterator[Entry]:
        """Yield the actions that wait for nothing but a slot."""
        for entry in self.entries():
            needed = (entry.run.entries[need].progress.outcome for need in entry.plan.needs)
            if entry.progress.state is State.WAITING and all(
                outcome is not None and outcome.result is Result.SUCCEEDED for outcome in needed
            ):
                yield entry

    def event(self, run: Run, happening: Happening, entry: Entry | None = None) -> PipelineEvent:
        """Number an event."""
        run.position += 1
        name, attempt = (entry.plan.name, entry.progress.attempt) if entry else ("", 0)
        return PipelineEvent(run.stored.id, run.position, time.time(), happening, name, attempt)

    def record(
        self,
        entry: Entry,
        progress: Progress,
        happenings: Sequence[Happening] = (),
        *,
        then: Callable[[], None] = lambda: None,
        files: Sequence[FileStored] | None = None,
    ) -> None:
        """Save what changed about an action; `then` is called when it is stored.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        new_attempt = progress if progress.attempt > entry.progress.attempt else None
        entry.progress = progress
        run = entry.run
        told = [self.event(run, happening, entry) for happening in happenings]
        changed = [progress]
        ended = None
        if progress.state is State.ENDED:
            for other in self.never(entry):
                changed.append(other.progress)
                told.append(self.event(run, ActionEnded(other.progress.outcome or NOT_RUN, 0.0), other))
            if run.ended:
                told.append(self.event(run, Ended()))
                ended = run.stored = StoredPipeline(
                    run.stored.id, run.stored.source, run.stored.text, run.stored.submitted, ended=True
                )

        def stored() -> None:
            entry.stored_seq = progress.seq
            if ended is not None:
                run.secrets = {}
                self.kept_secrets.drop(run.stored.id)
            run.tell()
            then()

        where = (run.stored.id, entry.plan.name, files) if files is not None else None
        self.store.save(Change(ended, changed, told, where, new_attempt), stored)

    def never(self, entry: Entry) -> list[Entry]:
        """End the actions that need one that did not succeed, and those that need them; return them."""
        outcome = entry.progress.outcome
        if outcome is None or outcome.result is Result.SUCCEEDED:
            return []
        found = []
        for other in entry.run.entries.values():
            if entry.plan.name in other.plan.needs and other.progress.state is State.WAITING:
                message = f"not run: it needs {entry.plan.name}, which did not succeed"
                other.progress = other.progress.ended(
                    Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message)
                )
                found += [other, *self.never(other)]
        return found

    def end(self, entry: Entry, outcome: Outcome) -> None:
        """End an action by the scheduler's own decision."""
        seconds = entry.progress.seconds(time.time())
        self.record(entry, entry.progress.ended(outcome), [events.ActionEnded(outcome, seconds)])

    # ---- files

    def uploader(self, key: Key) -> Entry:
        """Return the action that files are sent of.

        Raises:
            NotCurrent: they are not wanted: the attempt is over, or another agent's.
        """
        entry = self.find(key.action_id)
        if entry is None or entry.progress.state is not State.RUNNING or entry.progress.attempt != key.attempt:
            raise NotCurrent(f"attempt {key.attempt} of {key.action_id} is not running")
        if key.claim != entry.progress.claim:
            raise NotCurrent(f"claim {entry.progress.claim} owns {key.action_id}, not {key.claim}")
        return entry

    def transfers(self, run_id: str) -> dict[str, Transfer]:
        """Return what is being copied right now, by action."""
        entries = self.get(run_id).entries.values()
        return {entry.plan.name: entry.upload.transfer() for entry in entries if entry.upload is not None}

    async def uploaded(self, entry: Entry, files: Sequence[FileStored]) -> None:
        """Take note of the files that are in place now; returns when that is stored.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        before = set(entry.files)
        entry.files = list(files)
        stored = asyncio.Event()
        self.record(entry, entry.progress, [each for each in files if each not in before], then=stored.set, files=files)
        await self.store.until(stored)


NOT_RUN = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED)
