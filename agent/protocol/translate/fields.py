"""Translation of single fields: keys, durations, cursors, enums, text for people.

Each table of an enum is complete in both directions, which a test checks.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NoReturn, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.unknown_fields import UnknownFieldSet

from agent.domain import actions as domain
from agent.domain import events, log_cursor, outcome, session_state
from agent.domain.errors import ActionFailed, Reason, Rejection, Stage
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

Member = TypeVar("Member", bound=Enum)

# Maximum number of bytes of an action's id. The contract (Action.action_id) names the same limit.
MAX_ACTION_ID = 256
# Largest number of seconds that protobuf allows in a Duration.
MAX_DURATION = 315_576_000_000
# Maximum number of seconds between TERM and KILL after a cancellation. Without a limit, a scheduler could keep the
# commands running for ever.
MAX_GRACE = 86400.0
# Maximum number of characters of a text for people.
MAX_TEXT = 16 << 10

# protobuf puts all enum values of a file into one scope. Therefore some values have a prefix or another name in the
# contract.
STAGES = {
    Stage.ADMISSION: wire.STAGE_ADMISSION,
    Stage.SETUP: wire.STAGE_SETUP,
    Stage.COMMANDS: wire.STAGE_COMMANDS,
    Stage.ARTIFACTS: wire.STAGE_ARTIFACTS,
}
REASONS = {
    reason: wire.Reason.Value("CANCELLED_BY_REQUEST" if reason is Reason.CANCELLED else reason.value)
    for reason in Reason
}
RESULTS = {result: wire.Result.Value(result.name) for result in outcome.Result}
REJECTIONS = {why: wire.Rejected.Why.Value(why.name) for why in Rejection}
SOURCES = {source: wire.LogChunk.Source.Value(source.name) for source in events.Source}
WHENS = {when: wire.ArtifactRules.When.Value(when.name) for when in domain.When}
ON_EXITS = {on_exit: wire.Service.OnExit.Value(on_exit.name) for on_exit in domain.OnExit}
SERVICE_LOGS = {log: wire.Service.Log.Value(log.name) for log in domain.ServiceLog}
SERVICE_STATES = {state: wire.ServiceChanged.State.Value(state.name) for state in events.ServiceState}
CACHE_SAVES = {
    domain.When.SUCCESS: wire.Cache.ON_SUCCESS,
    domain.When.ALWAYS: wire.Cache.ALWAYS,
    domain.When.NEVER: wire.Cache.NEVER,
}
CACHE_KINDS = {kind: wire.CacheResult.Kind.Value(kind.name) for kind in events.CacheKind}
STATUSES = {status: wire.Health.Status.Value(status.name) for status in session_state.Readiness}


def invalid(field: str, found: str, allowed: str) -> NoReturn:
    """Raise the error for an invalid field.

    Raises:
        ActionFailed: always.
    """
    raise ActionFailed(
        Stage.ADMISSION, Reason.INVALID_CONFIGURATION, f"field {field}: {found} is not allowed; allowed is {allowed}"
    )


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Refuse a message that has a field of a newer version, at any depth. The agent must not run a part of an action.

    Raises:
        ActionFailed: the message has such a field.
    """
    # Zero-length unknown groups count too. One field is enough for the error, so the others are not read.
    if unknown := UnknownFieldSet(message):
        name = f"{path}number {unknown[0].field_number}"
        invalid(
            name,
            "a field that this version of the agent does not know",
            "what this version knows; a scheduler "
            "sends such an action only to an agent whose registration names the feature (Register.features)",
        )
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            refuse_unknown_fields(each, f"{path}{field.name}.")


def member(field: str, value: int, table: Mapping[Member, int]) -> Member:
    """Return the enum member for a number in a protobuf message.

    Raises:
        ActionFailed: no member has this number.
    """
    for candidate, number in table.items():
        if number == value:
            return candidate
    names = ", ".join(f"{number} ({candidate.name})" for candidate, number in table.items())
    invalid(field, str(value), f"one of {names}")


def key(message: wire.Action | wire.Ack | wire.Resume | wire.Discard | wire.Event | wire.SessionState) -> domain.Key:
    """Return the key of the session that a message names. The key is not checked."""
    return domain.Key(message.action_id, message.attempt, message.claim)


def checked_key(message: wire.Action | wire.Resume | wire.Event | wire.SessionState) -> domain.Key:
    """Return the key of the session that a message names, after a check.

    Raises:
        ActionFailed: the key is invalid.
    """
    size = len(message.action_id.encode())
    if not 0 < size <= MAX_ACTION_ID:
        invalid("action_id", f"a text of {size} bytes", f"1 to {MAX_ACTION_ID} bytes")
    if message.attempt < 1:
        invalid("attempt", str(message.attempt), "1 or more")
    if message.claim < 1:
        invalid("claim", str(message.claim), "1 or more")
    return key(message)


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def duration(value: float) -> Duration:
    """Return seconds as a protobuf duration. Negative seconds and NaN become 0, larger values the largest Duration."""
    if not 0 < value < MAX_DURATION:
        return Duration(seconds=MAX_DURATION if value > 0 else 0)
    whole, nanos = divmod(round(value * 1e9), 10**9)
    return Duration(seconds=whole, nanos=nanos)


def human_text(text: str) -> str:
    """Return text for people as valid UTF-8, truncated after `MAX_TEXT` characters."""
    valid = text.encode("utf-8", "replace").decode()
    return valid if len(valid) <= MAX_TEXT else f"{valid[:MAX_TEXT]} ... ({len(valid) - MAX_TEXT} more characters)"


def cursor(field: str, data: bytes) -> log_cursor.Cursor:
    """Return a cursor of the log. Empty data is the start of the log.

    Raises:
        ActionFailed: the data is not a cursor.
    """
    try:
        return log_cursor.Cursor.decode(data)
    except ValueError as error:
        invalid(field, str(error), "a cursor that an agent has sent")
