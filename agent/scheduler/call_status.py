"""What the end of a gRPC call means for the connection to the scheduler.

Both protocols use this module, `stream` and `classic`. gRPC errors are translated here, so no other module handles gRPC
errors. Only `SentStatus` keeps state. A `SentStatus` lives as long as its call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from agent.domain.errors import Refused, SchedulerError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from grpc import aio

    Call = aio.StreamUnaryCall[Any, Any] | aio.StreamStreamCall[Any, Any]

T = TypeVar("T")

UNTRUSTED_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# Codes of a call that the scheduler has closed. gRPC reports CANCELLED to the agent when a server process ends
# abruptly.
CLOSED_CODES = frozenset({grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
UNREACHABLE_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# The details of the status that grpc.aio gives a call when a write fails (grpc issue 36066).
FAILED_WRITE = "Internal error from Core"
# The `kind` of a connection that the agent ended itself, because its credential files were replaced.
ROTATED = "rotated"


class ConnectionBroken(SchedulerError):
    """A connection to the scheduler ended or could not be opened. `kind` is the cause as a metric labels it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def error_of_status(code: grpc.StatusCode, details: str) -> ConnectionBroken | Refused:
    """Return the error that stands for the status of a call that ended."""
    sentence = f"{code.name}: {details}" if details else code.name
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(f"the scheduler does not support this protocol ({sentence})", permanent=True)
    if code in UNTRUSTED_CODES:
        return ConnectionBroken("unauthenticated", sentence)
    if code in CLOSED_CODES:
        return ConnectionBroken("closed", "the scheduler closed the stream" if code is grpc.StatusCode.OK else sentence)
    return ConnectionBroken("unavailable" if code in UNREACHABLE_CODES else "error", sentence)


class SentStatus:
    """Keeps the status with which the scheduler ends a call.

    If a write fails while the call ends, grpc.aio replaces the status that the scheduler has sent (grpc issue 36066).
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.first: tuple[grpc.StatusCode, str] | None = None
        call.add_done_callback(self.record)

    def record(self, call: Call) -> None:
        """Keep the status. The call has just ended, so its status is known."""
        self.first = (result_now(call.code()), result_now(call.details()) or "")

    async def read(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the call and return its code and its details."""
        code, details = await self.call.code(), await self.call.details() or ""
        if details == FAILED_WRITE and self.first is not None:
            return self.first
        return code, details


def result_now(known: Awaitable[T]) -> T:
    """Return the result of a coroutine that does not have to wait."""
    steps = known.__await__()
    try:
        next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the status of a call that has ended is not known")
