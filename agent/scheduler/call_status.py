"""What the end of a gRPC call means for the connection to the scheduler.

Both protocols use this module, `stream` and `classic`. gRPC errors are translated here, so no other module handles gRPC
errors. The functions keep no state.
"""

from __future__ import annotations

import grpc

from agent.domain.errors import Refused, SchedulerError

UNTRUSTED_CODES = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# Codes of a call that the scheduler has closed. gRPC reports CANCELLED to the agent when a server process ends
# abruptly.
CLOSED_CODES = frozenset({grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
UNREACHABLE_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
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
