"""Checks along the life of one action: delivery, resume, adoption, fencing, the outcome.

The played agent breaks its stream, sends duplicates and gaps, and loses the action to a second played agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.conformance import points
from agent.conformance.attempt import Attempt
from agent.conformance.player import Breach, key_of
from agent.conformance.registration import UNKNOWN_FIELD, playing
from agent.conformance.uploads import check_uploads
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from agent.conformance.findings import Findings
    from agent.conformance.player import Player

SENT, ACKED, RESUMED = (points.SENT,), (points.SENT, points.STORED), (points.STORED, points.RESUME)


class Life:
    """Plays one action from `begin` to its outcome. `player` has received the action and reported its slot as used."""

    def __init__(self, findings: Findings, player: Player, action: wire.Action) -> None:
        self.findings = findings
        self.player = player
        self.attempt = Attempt(player, action)

    async def run(self) -> None:
        check = self.findings.check
        await check(points.STORED, self.attempt.begin(), SENT)
        await check(points.UNKNOWN_FIELDS, self.unknown_fields(), ACKED)
        await check(points.DUPLICATE, self.duplicate(), ACKED)
        await check(points.RESUME, self.resume(), ACKED)
        await check(points.GAP, self.gap(), RESUMED)
        async with playing(self.player.target, self.player.options) as adopting:
            if await check(points.ADOPTED, self.adopt(adopting), RESUMED):
                await check(points.FENCED, self.fence(), ACKED)
                await check_uploads(self.findings, self.attempt)
            await check(points.FINISHED, self.attempt.finish(), ACKED)
            await check(points.ENDED, self.ended(), (points.FINISHED,))

    async def connected(self) -> None:
        """Register again if the stream has ended, and report the slot as used."""
        if self.player.end is not None:
            await self.resume()
            await self.findings.health(self.player, wire.Health.READY, running=1)

    async def unknown_fields(self) -> None:
        """Send a message and an event of unknown kinds. The event has a number, so it is stored and acknowledged."""
        await self.player.write(wire.AgentMessage.FromString(UNKNOWN_FIELD))
        event = self.attempt.event()
        event.MergeFromString(UNKNOWN_FIELD)
        await self.attempt.send(event)

    async def duplicate(self) -> None:
        """Send the last piece of the log twice, then a new event."""
        await self.connected()
        before = self.player.acks_of_events
        await self.player.send(self.attempt.events[5])
        await self.player.until(lambda: self.player.acks_of_events > before, "an Ack of an event that was sent twice")
        await self.attempt.send(self.attempt.log(b"after the duplicate\n"))

    async def resume(self) -> None:
        """Break the stream and continue."""
        stored = self.player.acked.get(self.attempt.key, 0)
        resume = await self.attempt.reconnect()
        self.attempt.check_resume(resume, stored)
        await self.findings.health(self.player, wire.Health.READY, running=1)
        rest = self.attempt.events[resume.seq :]
        await self.attempt.send(*rest, self.attempt.log(b"after the reconnect\n"))

    async def gap(self) -> None:
        """Skip an event. The scheduler may end the stream or wait for the missing event, but not store the later."""
        attempt, player = self.attempt, self.player
        missing, later = attempt.log(b"missing\n"), attempt.log(b"later\n")
        before = player.acked[attempt.key]
        await player.send(later)
        try:
            await player.until(
                lambda: player.end is not None or player.acked[attempt.key] > before, "", seconds=player.options.quiet
            )
        except Breach as breach:
            if breach.point is not None:
                raise
        if (acked := player.acked[attempt.key]) > before:
            raise Breach(f"event {acked} was acknowledged, but event {missing.seq} was never sent")
        resume = await attempt.reconnect()
        if resume.seq != before:
            raise Breach(f"Resume names event {resume.seq}, but event {missing.seq} was never sent")
        await self.findings.health(player, wire.Health.READY, running=1)
        await attempt.send(missing, later)

    async def adopt(self, adopting: Player) -> None:
        """Let a second agent take over the session while the first agent still has its stream."""
        await self.connected()
        attempt = self.attempt
        stored = self.player.acked[attempt.key]
        attempt.claim, attempt.player = attempt.claim + 1, adopting
        adopting.sent[attempt.key] = len(attempt.events)
        resume = await attempt.reconnect(adopted=True)
        attempt.check_resume(resume, stored)
        expected = {"cursor": attempt.cursor, "stage": wire.STAGE_COMMANDS, "command": 1}
        for name, value in expected.items():
            if getattr(resume, name) != value:
                found = getattr(resume, name)
                raise Breach(f"field {name} of Resume is {found!r}, the stored events end with {value!r}")
        if dict(resume.secrets) != dict(attempt.action.secrets):
            missing = sorted(set(attempt.action.secrets) - set(resume.secrets))
            raise Breach(f"field secrets of Resume differs from the action's (missing: {', '.join(missing) or 'none'})")
        await self.findings.health(adopting, wire.Health.READY, running=1)

    async def fence(self) -> None:
        """Let the first agent send an event with the lower claim, then the second agent an event of that number."""
        attempt, frozen = self.attempt, self.player
        event = attempt.log(b"of the owner\n")
        stale = wire.Event()
        stale.CopyFrom(event)
        stale.claim = attempt.claim - 1
        stale.log.data = b"stale\n"
        key = key_of(stale)
        await frozen.send(stale)
        await frozen.until(
            lambda: bool(frozen.received("discard", key)) or frozen.acked.get(key, 0) >= stale.seq,
            "Discard for an event of a lower claim",
        )
        if frozen.acked.get(key, 0) >= stale.seq:
            owner = f"but claim {attempt.claim} owns it"
            raise Breach(f"event {stale.seq} of claim {stale.claim} was acknowledged, {owner}")
        if not frozen.received("discard", key)[0].discard.claimed_by_other:
            raise Breach("Discard has no claimed_by_other, so the first agent would delete the pod of the second")
        await attempt.send(event)

    async def ended(self) -> None:
        """Report a session whose outcome is stored."""
        player, key = self.attempt.player, self.attempt.key
        await player.register([self.attempt.state()])
        await player.until(
            lambda: bool(player.received("discard", key) or player.received("resume", key)),
            "Discard for a session whose attempt has ended",
        )
        if player.received("resume", key):
            raise Breach("Resume came for a session whose outcome was acknowledged")
