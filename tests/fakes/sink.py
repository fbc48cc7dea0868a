"""An event sink for tests: it records the events that sessions would send to a scheduler.

A test decides when the events count as acknowledged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.events import ArtifactSummary, CommandStarted, Finished, LogChunk, StageChanged

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.errors import Stage
    from agent.domain.events import Event
    from agent.domain.outcome import Outcome


class RecordingEventSink:
    """Creates a RecordingSessionSink for every session.

    While the asyncio.Event `acknowledges` is not set, `wait_until_stored` of every session waits. `poisoned` has the
    ids of actions for whose sessions `send` raises an error.
    """

    def __init__(self) -> None:
        self.outlets: dict[tuple[str, int], RecordingSessionSink] = {}
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()
        self.upload_errors: list[Exception] = []
        self.poisoned: set[str] = set()
        self.stores_references = self.stores_packs = True
        # What `fetch` yields for each input, by its number. An error is raised.
        self.inputs: dict[int, list[FilePart | Exception]] = {}

    def open(self, key: Key, *, adopted: bool = False) -> RecordingSessionSink:
        outlet = RecordingSessionSink(self, key, adopted=adopted)
        self.outlets[key.attempt_key] = outlet
        return outlet

    def __getitem__(self, action_id: str) -> RecordingSessionSink:
        return self.outlets[action_id, 1]


class RecordingSessionSink:
    """Records the events and uploads that one session sends."""

    def __init__(self, sink: RecordingEventSink, key: Key, *, adopted: bool) -> None:
        self.sink = sink
        self.key = key
        self.adopted = adopted
        self.events: list[Event] = []
        self.uploads: list[list[FilePart]] = []
        self.settling = asyncio.Event()
        self.closed = 0

    async def send(self, event: Event) -> None:
        if self.key.action_id in self.sink.poisoned:
            raise RuntimeError("poisoned")
        assert not self.closed, event
        assert not any(isinstance(each, Finished) for each in self.events), "finished is the last event"
        self.events.append(event)

    async def wait_until_stored(self) -> None:
        self.settling.set()
        await self.sink.acknowledges.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Record the parts of an upload of the session.

        If a test has put errors into `upload_errors`, remove the first error from this list and raise the error.
        """
        self.uploads.append([])
        async for part in parts:
            self.uploads[-1].append(part)
        if self.sink.upload_errors:
            raise self.sink.upload_errors.pop(0)

    @property
    def stores_references(self) -> bool:
        return self.sink.stores_references

    @property
    def stores_packs(self) -> bool:
        return self.sink.stores_packs

    async def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        """Yield the parts of input `number` that the test has set. Raise an error among them once."""
        for part in list(self.sink.inputs[number]):
            if isinstance(part, Exception):
                self.sink.inputs[number].remove(part)
                raise part
            yield part

    def restart(self, seq: int) -> None:
        """Drop the events after the number `seq`, as if the scheduler had lost them."""
        del self.events[seq:]

    def close(self) -> None:
        self.closed += 1

    # ---- properties for assertions

    @property
    def outcome(self) -> Outcome:
        """Return the outcome that the session has sent. Fail if the session did not send exactly one outcome."""
        (finished,) = [event for event in self.events if isinstance(event, Finished)]
        return finished.outcome

    @property
    def log(self) -> bytes:
        """Return the whole log that the session has sent."""
        return b"".join(event.data for event in self.events if isinstance(event, LogChunk))

    @property
    def stages(self) -> list[Stage]:
        """Return the stages that the session has sent, in order. Successive events with the same stage count once."""
        stages = [event.stage for event in self.events if isinstance(event, StageChanged)]
        return [stage for number, stage in enumerate(stages) if number == 0 or stages[number - 1] is not stage]

    @property
    def started(self) -> list[int]:
        """Return the numbers of the commands that have started, from the events of the session."""
        return [event.index for event in self.events if isinstance(event, CommandStarted)]

    @property
    def summaries(self) -> list[ArtifactSummary]:
        return [event for event in self.events if isinstance(event, ArtifactSummary)]
