"""A sink that records what every session sends, and acknowledges it when the test wants."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.events import ArtifactSummary, CommandStarted, Finished, LogChunk, StageChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.errors import Stage
    from agent.domain.events import Event
    from agent.domain.outcome import Outcome


class RecordingEventSink:
    """Gives every session an outlet that keeps its events; `acknowledges` cleared holds `wait_until_stored` back."""

    def __init__(self) -> None:
        self.outlets: dict[tuple[str, int], RecordingSessionSink] = {}
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()
        self.upload_errors: list[Exception] = []
        self.poisoned: set[str] = set()

    def open(self, key: Key, *, adopted: bool = False) -> RecordingSessionSink:
        """Return the outlet of a session."""
        outlet = RecordingSessionSink(self, key)
        self.outlets[key.attempt_key] = outlet
        return outlet

    def __getitem__(self, action_id: str) -> RecordingSessionSink:
        return self.outlets[action_id, 1]


class RecordingSessionSink:
    """What one session has sent."""

    def __init__(self, sink: RecordingEventSink, key: Key) -> None:
        self.sink = sink
        self.key = key
        self.events: list[Event] = []
        self.uploads: list[list[FilePart]] = []
        self.settling = asyncio.Event()
        self.closed = 0

    async def send(self, event: Event) -> None:
        """Record an event."""
        if self.key.action_id in self.sink.poisoned:
            raise RuntimeError("poisoned")
        assert not self.closed, event
        assert not any(isinstance(each, Finished) for each in self.events), "finished is the last event"
        self.events.append(event)

    async def wait_until_stored(self) -> None:
        """Wait for the acknowledgement."""
        self.settling.set()
        await self.sink.acknowledges.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Record an upload, or break it."""
        self.uploads.append([])
        async for part in parts:
            self.uploads[-1].append(part)
        if self.sink.upload_errors:
            raise self.sink.upload_errors.pop(0)

    def restart(self, seq: int) -> None:
        """Forget what a scheduler has forgotten."""
        del self.events[seq:]

    def close(self) -> None:
        """Note the end."""
        self.closed += 1

    # ---- what a test asks

    @property
    def outcome(self) -> Outcome:
        """The one outcome."""
        (finished,) = [event for event in self.events if isinstance(event, Finished)]
        return finished.outcome

    @property
    def log(self) -> bytes:
        """All log, in order."""
        return b"".join(event.data for event in self.events if isinstance(event, LogChunk))

    @property
    def stages(self) -> list[Stage]:
        """The stages, each once."""
        stages = [event.stage for event in self.events if isinstance(event, StageChanged)]
        return [stage for number, stage in enumerate(stages) if number == 0 or stages[number - 1] is not stage]

    @property
    def started(self) -> list[int]:
        """The commands that were started."""
        return [event.index for event in self.events if isinstance(event, CommandStarted)]

    @property
    def summaries(self) -> list[ArtifactSummary]:
        """The summaries of artifacts."""
        return [event for event in self.events if isinstance(event, ArtifactSummary)]
