"""The part of a scheduler that signs no requests for an object store. It keeps no state."""

from __future__ import annotations

from typing import Any

import grpc

from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc


class SignsNothing(agent_pb2_grpc.SchedulerServicer):
    """The base class of schedulers in tests. It refuses the calls of an agent that has no credentials."""

    async def GrantObjects(self, request: wire.GrantRequest, context: Any) -> wire.GrantReply:  # noqa: N802 - the contract's name
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"nothing is signed for {request.action_id}")
        raise AssertionError("abort raises")

    async def CompleteObjects(self, request: wire.CompleteRequest, context: Any) -> wire.CompleteReply:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"nothing is signed for {request.action_id}")
        raise AssertionError("abort raises")
