"""An attempt that the tool plays: the events that it sent, and the resume points that the scheduler must name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.conformance import points
from agent.conformance.player import Breach, Player, key_of, named
from agent.domain.log_cursor import Cursor
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from typing import Any

    from agent.conformance.player import SessionKey
    from agent.conformance.points import Point

MESSAGE = "sealci-agent conformance has run no command"


class Attempt:
    """One attempt and all its events. `player` is the agent that owns it, with the claim `claim`."""

    def __init__(self, player: Player, action: wire.Action) -> None:
        self.player = player
        self.action = action
        self.claim = action.claim
        self.events: list[wire.Event] = []
        self.cursor = b""
        self.offset = 0

    @property
    def key(self) -> SessionKey:
        return self.action.action_id, self.action.attempt, self.claim

    def event(self, **body: Any) -> wire.Event:
        """Return the next event of the attempt."""
        action_id, attempt, claim = self.key
        event = wire.Event(action_id=action_id, attempt=attempt, claim=claim, seq=len(self.events) + 1, **body)
        self.events.append(event)
        return event

    def next_cursor(self, size: int = 0) -> bytes:
        """Return the cursor behind the next `size` bytes of the log."""
        self.offset += size
        self.cursor = Cursor(self.offset, 1).encode()
        return self.cursor

    def log(self, data: bytes) -> wire.Event:
        """Return the next event, which has a piece of the log."""
        chunk = wire.LogChunk(data=data, cursor=self.next_cursor(len(data)), source=wire.LogChunk.COMMANDS)
        return self.event(log=chunk)

    async def send(self, *events: wire.Event, point: Point | None = None) -> None:
        """Send events and wait until they are acknowledged. A missing Ack breaks `point`."""
        for event in events:
            await self.player.send(event)
        await self.player.until_acked(self.key, events[-1].seq, point)

    async def begin(self) -> None:
        """Send the first events. The third repeats the stage of the second, as progress of the set-up does."""
        await self.send(
            self.event(accepted=wire.Accepted(environment="conformance/none")),
            self.event(stage=wire.StageChanged(stage=wire.STAGE_SETUP)),
            self.event(stage=wire.StageChanged(stage=wire.STAGE_SETUP, detail="conformance")),
            self.event(stage=wire.StageChanged(stage=wire.STAGE_COMMANDS)),
            self.event(command_started=wire.CommandStarted(index=1, cursor=self.next_cursor())),
            self.log(b"bytes: \xff\x00\r"),
        )

    async def begin_and_finish(self) -> None:
        await self.begin()
        await self.finish()

    async def finish(self, result: wire.Result.ValueType = wire.FAILED) -> None:
        """Send the outcome. It is never a success, because no command ran."""
        cancelled = result == wire.CANCELLED
        reason = wire.CANCELLED_BY_REQUEST if cancelled else wire.COMMAND_FAILED
        outcome = wire.Outcome(result=result, stage=wire.STAGE_COMMANDS, reason=reason, command=1, message=MESSAGE)
        if not cancelled:
            outcome.exit_code = 1
        self.event(finished=outcome)
        # A check that failed may have left events that were not sent.
        await self.send(*self.events[self.player.acked.get(self.key, 0) :], point=points.FINISHED)

    def state(self, *, adopted: bool = False) -> wire.SessionState:
        """Return the session as an agent reports it. `last_seq` also counts events that were not sent yet."""
        action_id, attempt, claim = self.key
        last_seq = 0 if adopted else len(self.events) + 2
        return wire.SessionState(action_id=action_id, attempt=attempt, claim=claim, last_seq=last_seq, adopted=adopted)

    async def reconnect(self, *, adopted: bool = False) -> wire.Resume:
        """Register again with the session and return the scheduler's Resume.

        Raises:
            Breach: the scheduler does not resume the session.
        """
        player, key = self.player, self.key
        await player.register([self.state(adopted=adopted)])
        await player.until(
            lambda: bool(player.received("resume", key) or player.received("discard", key)),
            f"Resume or Discard for {named(key)}",
        )
        if not player.received("resume", key):
            why = player.received("discard", key)[0].discard.message
            raise Breach(f"Discard came for {named(key)}, which has not ended: {why}".rstrip(": "))
        return player.received("resume", key)[0].resume

    def check_resume(self, resume: wire.Resume, stored: int) -> None:
        """Check the number of a resume point. `stored` events were acknowledged."""
        if resume.seq > len(self.events):
            raise Breach(f"Resume names event {resume.seq}, the agent sent {len(self.events)}", points.RESUME)
        if resume.seq < stored:
            raise Breach(f"Resume names event {resume.seq}, but event {stored} was acknowledged", points.RESUME)
        self.player.acked[key_of(resume)] = resume.seq
