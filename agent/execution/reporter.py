"""Everything that is sent to the scheduler about one session, in order, with secrets masked.

An `EventReporter` belongs to one `Session` and lives as long as this session. It owns the session's sink and trace, and
times the stages, because each stage begins with an event. The package `logs` masks the output of the commands.
`EventReporter` masks the agent's own texts, because paths and messages in these texts come from the author of the
action.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.events import Accepted, Finished, LogChunk, Source, StageChanged
from agent.domain.outcome import Outcome, Result
from agent.execution.logs.masking import Masker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from agent.domain.artifacts import FilePart
    from agent.domain.errors import ActionFailed
    from agent.domain.events import Event
    from agent.execution.ports import SessionSink
    from agent.telemetry.traces import Trace

# Maximum number of bytes in one log event.
MAX_CHUNK = 64 * 1024


class EventReporter:
    """Reports one session to the scheduler. Owned by its `Session`.

    `stage` is the current stage, `stage_began` its start by the monotonic clock. `stage_seconds` holds the length of
    each stage that has ended.
    """

    def __init__(self, outlet: SessionSink, secrets: Mapping[str, str], trace: Trace) -> None:
        self.outlet = outlet
        self.secrets = secrets
        self.made_masker: Masker | None = None
        self.trace = trace
        self.stage = Stage.ADMISSION
        self.stage_began = time.monotonic()
        self.stage_seconds: dict[Stage, float] = {}

    def resume(self, stage: Stage | None, secrets: Mapping[str, str]) -> None:
        """Continue an adopted session with its secrets, in the stage that the scheduler has stored.

        If `stage` is None, the scheduler has stored no stage, and the current stage does not change.
        """
        self.secrets = secrets
        self.made_masker = None
        if stage is not None:
            self.stage = stage
            self.trace.enter(stage.value)

    async def accept(self, environment: str) -> None:
        """Report that this agent runs the action, and the name of the environment."""
        await self.send(Accepted(environment))

    async def enter(self, stage: Stage, detail: str = "") -> None:
        """Report the start of a stage, or progress within the current stage."""
        if stage is not self.stage:
            now = time.monotonic()
            self.stage_seconds[self.stage] = now - self.stage_began
            self.stage, self.stage_began = stage, now
            self.trace.enter(stage.value)
        await self.send(StageChanged(stage, detail))

    async def send(self, event: Event) -> None:
        """Send an event. Waits while the session's window of unacknowledged events is full."""
        await self.outlet.send(event)

    async def write_log(self, text: str, source: Source = Source.AGENT) -> None:
        """Write lines of the agent's own into the log of the action."""
        data = self.mask(text.encode("utf-8", "surrogateescape"))
        data = data if data.endswith(b"\n") else data + b"\n"
        for start in range(0, len(data), MAX_CHUNK):
            await self.send(LogChunk(data[start : start + MAX_CHUNK], source=source))

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Send files. See `SessionSink.upload`."""
        await self.outlet.upload(parts)

    @property
    def stores_references(self) -> bool:
        """Return whether the scheduler stores files of an object store. See `SessionSink.stores_references`."""
        return self.outlet.stores_references

    @property
    def stores_packs(self) -> bool:
        """Return whether the scheduler stores the place of a file within an object. See `SessionSink.stores_packs`."""
        return self.outlet.stores_packs

    def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        """Receive the files of an input. See `SessionSink.fetch`."""
        return self.outlet.fetch(number)

    async def finish(self, outcome: Outcome) -> None:
        """Send the outcome and wait until the scheduler has stored every event."""
        self.stage_seconds[self.stage] = time.monotonic() - self.stage_began
        self.trace.decided(outcome)
        await self.send(Finished(outcome))
        await self.outlet.wait_until_stored()
        self.trace.enter("cleanup")

    def restart(self, seq: int) -> None:
        """Report again from the event after `seq`, because the scheduler has lost its state."""
        self.outlet.restart(seq)

    def close(self) -> None:
        """Close the sink and end the trace."""
        self.outlet.close()
        self.trace.end()

    def masker(self) -> Masker:
        """Return the masker of the session. The first call takes up to 0.1 s to create the masker."""
        if self.made_masker is None:
            self.made_masker = Masker(self.secrets)
        return self.made_masker

    def mask(self, text: bytes) -> bytes:
        """Return a text of the agent's own with the secrets of the action masked."""
        return self.masker().mask(text)

    def mask_text(self, text: str) -> str:
        """Return a text with secrets masked. Characters that UTF-8 cannot encode are replaced."""
        return self.mask(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def mask_outcome(self, outcome: Outcome) -> Outcome:
        return replace(outcome, message=self.mask_text(outcome.message))


async def report_without_session(outlet: SessionSink, events: tuple[Event, ...]) -> None:
    """Send `events` for an action that gets no session, and wait until the scheduler has stored them."""
    try:
        for event in events:
            await outlet.send(event)
        await outlet.wait_until_stored()
    finally:
        outlet.close()


def failed_admission(failure: ActionFailed) -> tuple[Event, ...]:
    """Return two events for an action that cannot be run: first accepted, then failed in stage ADMISSION."""
    outcome = Outcome(Result.FAILED, failure.stage, failure.reason, message=failure.message)
    text = f"The action cannot be run:\n{failure.log or failure.message}\n"
    return Accepted(""), LogChunk(text.encode()[:MAX_CHUNK], source=Source.SETUP), Finished(outcome)
