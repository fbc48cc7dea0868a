"""The tool `sealci-agent conformance`: the order of all checks.

The tool needs three actions. The first is rejected, played through and finished. The second is cancelled. The third
must not come to an agent that drains. The tool ends each action as failed or cancelled, because it ran no command.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from agent.aio import cancel_and_wait
from agent.conformance import points
from agent.conformance.attempt import Attempt
from agent.conformance.findings import Findings, NotChecked
from agent.conformance.life import Life
from agent.conformance.player import Breach, Options, Player, Target
from agent.conformance.registration import check_registrations, check_unknown_session, longest_wait, playing
from agent.conformance.work import NotQueued, open_source
from agent.domain.check_result import Verdict
from agent.domain.errors import AgentError
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agent.conformance.work import Source
    from agent.domain.check_result import Finding

ACTIONS = 3
# Points that every message of the scheduler is checked against.
ALWAYS = (points.HEALTH, points.FIELDS, points.FEATURES, points.SLOTS, points.ACK_SEQ, points.ACK_KEY)


class SchedulerSilent(AgentError):
    """The scheduler cannot be reached."""


async def check_conformance(target: Target, options: Options, notify: Callable[[str], None]) -> AsyncGenerator[Finding]:
    """Yield a finding for each point of the contract. `notify` shows a text to the user.

    Raises:
        SchedulerSilent: the scheduler cannot be reached.
    """
    findings = Findings()
    work = asyncio.create_task(run(target, options, findings, notify), name="conformance")
    work.add_done_callback(lambda _: findings.queue.put_nowait(None))
    try:
        while (finding := await findings.queue.get()) is not None:
            yield finding
        await work
    finally:
        await cancel_and_wait(work)


async def run(target: Target, options: Options, findings: Findings, notify: Callable[[str], None]) -> None:
    async with playing(target, options) as player:
        if not await findings.check(points.ANSWER, register(player)):
            if player.code is grpc.StatusCode.UNAVAILABLE:
                raise SchedulerSilent(f"the scheduler at {target.address} cannot be reached: {player.end}")
            return
        unknown = asyncio.create_task(
            findings.check(points.UNKNOWN, check_unknown_session(target, options)), name="conformance unknown session"
        )
        try:
            await check_registrations(target, options, findings)
            source = await open_source(target, options, notify)
            try:
                await Play(findings, player, source).run()
            finally:
                await player.close()
                await source.close()
            if not unknown.done() and player.registered is not None:
                seconds = longest_wait(player.registered, options)
                notify(f"waiting up to {seconds:g} s for the answer to a session that the scheduler does not know")
            await unknown
        finally:
            await cancel_and_wait(unknown)


async def register(player: Player) -> None:
    await player.register()


class Play:
    """The checks that need actions. `player` is registered and has reported no Health."""

    def __init__(self, findings: Findings, player: Player, source: Source) -> None:
        self.findings = findings
        self.player = player
        self.options = player.options
        self.source = source
        self.rejected = ""
        self.taken: list[str] = []

    async def run(self) -> None:
        check = self.findings.check
        try:
            await self.source.queue(ACTIONS)
        except NotQueued as error:
            self.findings.add(points.SENT, Verdict.SKIPPED, str(error))
            return
        await check(points.NOT_READY, self.not_ready())
        if not await check(points.SENT, self.first_action()):
            return
        if (action := await self.next_action()) is not None:
            await Life(self.findings, self.player, action).run()
        if (action := await self.next_action()) is not None:
            attempt = Attempt(self.player, action)
            await check(points.CANCEL, self.cancel(attempt), (points.STORED,))
            await check(points.DRAINING, self.drain(attempt), (points.STORED,))
        await check(points.LEAVE, self.leave())
        await self.last_action()
        await check(points.REJECTED, self.came_again(), (points.SENT,))
        for point in ALWAYS:
            self.findings.add(point, Verdict.OK)

    async def not_ready(self) -> None:
        """Stay without Health, then DEGRADED, while actions are queued."""
        await self.player.pause()
        await self.findings.health(self.player, wire.Health.DEGRADED)
        await self.player.pause()

    async def first_action(self) -> None:
        """Become ready, and reject the first action as an agent does whose slots are in use."""
        player = self.player
        await self.findings.health(player, wire.Health.READY)
        attempt = Attempt(player, await player.next_action())
        self.rejected = attempt.action.action_id
        why = wire.Rejected(why=wire.Rejected.NO_SLOT, message="conformance")
        await player.send(attempt.event(rejected=why))
        await self.until_rejection_acked(attempt)
        # The agent has no session of a rejected action, so the same attempt may come again.
        player.sent.pop(attempt.key)
        player.acked.pop(attempt.key, None)

    async def until_rejection_acked(self, attempt: Attempt) -> None:
        """Wait for the Ack of a rejection. A breach of another point does not end the wait."""
        wrong_ack = False
        while True:
            try:
                return await self.player.until_acked(attempt.key, 1, points.STORED)
            except Breach as breach:
                wrong_ack |= breach.point in (points.ACK_SEQ, points.ACK_KEY)
                if breach.point is not points.STORED or not wrong_ack:
                    self.findings.add(breach.point or points.STORED, Verdict.FAILED, f"{breach} (rejected)")
                if breach.point is points.STORED:
                    return None

    async def next_action(self) -> wire.Action | None:
        """Become ready with a free slot, and return the next action, None if none comes. Its slot is then in use."""
        player = self.player
        try:
            if player.end is not None or player.channel is None:
                await player.register()
            await self.findings.health(player, wire.Health.READY)
            action = await player.next_action()
            self.taken.append(action.action_id)
            await self.findings.health(player, wire.Health.READY, running=1)
        except Breach as breach:
            if breach.point is not None and breach.point is not points.SENT:
                self.findings.add(breach.point, Verdict.FAILED, str(breach))
            return None
        return action

    async def cancel(self, attempt: Attempt) -> None:
        """Accept an action, let the source cancel it, and wait for the message."""
        action_id, number, _ = attempt.key
        await attempt.begin()
        try:
            if not await self.source.cancel(action_id):
                raise NotChecked("the tool cannot cancel an action of this scheduler, see --cancel")
        except NotQueued as error:
            raise NotChecked(str(error)) from error
        await self.player.until(
            lambda: any((each.action_id, each.attempt) == (action_id, number) for each in self.player.cancels()),
            f"Cancel for action {action_id!r}",
        )

    async def drain(self, attempt: Attempt) -> None:
        """Drain while an action runs and another is queued."""
        await self.findings.health(self.player, wire.Health.DRAINING, running=1)
        await attempt.finish(wire.CANCELLED if self.findings.held(points.CANCEL) else wire.FAILED)
        await self.findings.health(self.player, wire.Health.DRAINING)
        await self.player.pause()

    async def leave(self) -> None:
        player = self.player
        if player.end is not None or player.channel is None:
            raise NotChecked("the stream had ended before")
        await player.leave()
        try:
            await player.until(lambda: player.end is not None, "the end of the stream after the agent ended its side")
        finally:
            await player.close()

    async def last_action(self) -> None:
        """Come back, take the last action and end it, so that nothing of the tool stays in the queue."""
        if (action := await self.next_action()) is None:
            return
        try:
            await Attempt(self.player, action).begin_and_finish()
            await self.findings.health(self.player, wire.Health.DRAINING)
        except Breach as breach:
            self.findings.add(breach.point or points.STORED, Verdict.FAILED, str(breach))

    async def came_again(self) -> None:
        if self.rejected not in self.taken:
            raise Breach(f"action {self.rejected!r} was rejected with NO_SLOT and did not come again")
