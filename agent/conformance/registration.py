"""Checks of registrations. They need no action."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from agent.conformance import points
from agent.conformance.player import Breach, Options, Player, Target
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.conformance.findings import Findings

UNKNOWN_VERSION = 4_000_000_000
REFUSED_CODES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# A field with number 1000, which no version of the contract has, with a text of two bytes.
UNKNOWN_FIELD = b"\xc2\x3e\x02hi"


@asynccontextmanager
async def playing(target: Target, options: Options, pod: str = "") -> AsyncIterator[Player]:
    """Yield a player and close its stream in the end."""
    player = Player(target, options, pod or uuid.uuid4().hex)
    try:
        yield player
    finally:
        await player.close()


async def check_registrations(target: Target, options: Options, findings: Findings) -> None:
    """Check everything about registrations except the first answer."""
    if target.metadata():
        await findings.check(points.TOKEN, check_token(target, options))
    await findings.check(points.FIRST, check_first(target, options))
    await findings.check(points.VERSION, check_version(target, options))
    await findings.check(points.REPLACED, check_replaced(target, options))


async def check_token(target: Target, options: Options) -> None:
    async with playing(target, options) as player:
        await player.open(metadata=())
        await player.write(wire.AgentMessage(register=wire.Register(agent_id=player.agent_id, protocol_version=1)))
        await player.until(lambda: player.end is not None or bool(player.messages), "the end of the stream")
        if player.code not in REFUSED_CODES:
            raise Breach(f"a call without the token was answered with {player.end or 'a message'}")


async def check_first(target: Target, options: Options) -> None:
    async with playing(target, options) as player:
        await player.open()
        await player.write(wire.AgentMessage(health=wire.Health(status=wire.Health.READY, slots=1)))
        try:
            await player.until(
                lambda: player.end is not None or bool(player.messages), "the end", seconds=options.quiet
            )
        except Breach:
            return
        if player.messages:
            kind = player.messages[0].WhichOneof("message")
            raise Breach(f"a stream that began with Health was answered with {kind}")


async def check_version(target: Target, options: Options) -> None:
    async with playing(target, options) as player:
        await player.open()
        register = wire.Register(agent_id=player.agent_id, protocol_version=UNKNOWN_VERSION, pool=options.pool, slots=1)
        await player.write(wire.AgentMessage(register=register))
        await player.until(lambda: bool(player.messages), "the message Refused")
        first = player.messages[0]
        if first.WhichOneof("message") != "refused":
            kind = first.WhichOneof("message")
            raise Breach(f"protocol version {UNKNOWN_VERSION} was answered with {kind}")
        if first.refused.why != wire.Refused.PROTOCOL_VERSION:
            raise Breach(f"protocol version {UNKNOWN_VERSION} was refused with {first.refused.why}")
        await player.until(lambda: player.end is not None, "the end of the stream after Refused")


async def check_replaced(target: Target, options: Options) -> None:
    async with playing(target, options) as older, playing(target, options, older.pod) as newer:
        await older.register()
        await newer.register()
        await older.until(lambda: older.end is not None, "the end of the stream that a newer one of the pod replaces")
        if newer.end is not None:
            raise Breach(f"the newer stream of the pod ended with {newer.end}")


def longest_wait(registered: wire.Registered, options: Options) -> float:
    """Return the seconds that the scheduler has to answer a session that it does not know."""
    return min(translate.seconds(registered.resume_grace), options.wait) + options.timeout


async def check_unknown_session(target: Target, options: Options) -> None:
    """Check the answer to a session that the scheduler never sent. It may come as late as the resume grace ends."""
    async with playing(target, options) as player:
        state = wire.SessionState(action_id=f"conformance-{uuid.uuid4().hex}", attempt=3, claim=2, last_seq=5)
        key = (state.action_id, state.attempt, state.claim)
        registered = await player.register([state])
        await player.health(wire.Health.DRAINING, running=1)
        await player.until(
            lambda: bool(player.received("discard", key) or player.received("resume", key)),
            "Discard or Resume for a session that the scheduler does not know",
            seconds=longest_wait(registered, options),
        )
        for message in player.received("resume", key):
            if message.resume.seq:
                raise Breach(f"Resume from event {message.resume.seq} of a session that the scheduler does not know")
