"""What an agent tells of a session: its events, with their numbers.

Pure functions without state. An event that was once accepted into the outbox must be encodable for ever (it is sent
again after every reconnect), so that nothing here refuses what the domain can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain import actions as domain
from agent.domain import events
from agent.domain.outcome import Outcome
from agent.protocol.translate.fields import (
    REASONS,
    REJECTIONS,
    RESULTS,
    SOURCES,
    STAGES,
    checked_key,
    cursor,
    duration,
    member,
    seconds,
    words,
)
from agent.protocol.wire import agent_pb2 as wire

# Together with paths of 4 KiB a fifth of what gRPC lets through at the most; one byte more would end the stream.
MAX_LEFT_OUT = 100
MAX_WHY = 1024


@dataclass(frozen=True, slots=True)
class Numbered:
    """An event with its place in its session. `event` None: of a kind that this version does not know."""

    key: domain.Key
    seq: int
    event: events.Event | None


# ---- written by the agent


def event_message(key: domain.Key, seq: int, event: events.Event) -> wire.Event:
    """Write an event with its number."""
    message = wire.Event(action_id=key.action_id, attempt=key.attempt, claim=key.claim, seq=seq)
    match event:
        case events.LogChunk():
            message.log.data = event.data
            message.log.source = SOURCES[event.source]
            if event.cursor is not None:
                message.log.cursor = event.cursor.encode()
        case events.StageChanged():
            message.stage.stage = STAGES[event.stage]
            message.stage.detail = words(event.detail)
        case events.CommandStarted():
            message.command_started.index = event.index
            message.command_started.cursor = event.cursor.encode()
        case events.CommandFinished():
            message.command_finished.CopyFrom(command_finished_message(event))
        case events.Accepted():
            message.accepted.environment = words(event.environment)
        case events.Rejected():
            message.rejected.why = REJECTIONS[event.why]
            message.rejected.message = words(event.message)
        case events.ArtifactSummary():
            message.artifacts.CopyFrom(summary_message(event))
        case events.Finished():
            message.finished.CopyFrom(outcome_message(event.outcome))
    return message


def command_finished_message(event: events.CommandFinished) -> wire.CommandFinished:
    """Write the end of a command."""
    return wire.CommandFinished(
        index=event.index,
        exit_code=event.exit_code,
        duration=duration(event.seconds),
        cursor=event.cursor.encode(),
    )


def summary_message(summary: events.ArtifactSummary) -> wire.ArtifactSummary:
    """Write what was uploaded."""
    return wire.ArtifactSummary(
        files=summary.files,
        bytes=summary.bytes,
        left_out=[
            wire.LeftOut(path=each.path, why=words(each.why)[:MAX_WHY]) for each in summary.left_out[:MAX_LEFT_OUT]
        ],
        left_out_files=summary.left_out_files,
    )


def outcome_message(outcome: Outcome) -> wire.Outcome:
    """Write how an attempt ended."""
    return wire.Outcome(
        result=RESULTS[outcome.result],
        stage=STAGES[outcome.stage],
        reason=REASONS[outcome.reason] if outcome.reason is not None else wire.REASON_UNSPECIFIED,
        exit_code=outcome.exit_code,
        command=outcome.command,
        message=words(outcome.message),
    )


# ---- read by a scheduler


def event(message: wire.Event) -> Numbered:
    """Read an event with its number.

    Raises:
        ActionFailed: a field cannot be used.
    """
    return Numbered(checked_key(message), message.seq, what_happened(message))


def what_happened(message: wire.Event) -> events.Event | None:
    """Read the event itself."""
    match message.WhichOneof("event"):
        case "log":
            log = message.log
            place = cursor("log.cursor", log.cursor) if log.cursor else None
            return events.LogChunk(log.data, place, member("log.source", log.source, SOURCES))
        case "stage":
            return events.StageChanged(member("stage.stage", message.stage.stage, STAGES), message.stage.detail)
        case "command_started":
            started = message.command_started
            return events.CommandStarted(started.index, cursor("command_started.cursor", started.cursor))
        case "command_finished":
            ended = message.command_finished
            place = cursor("command_finished.cursor", ended.cursor)
            return events.CommandFinished(ended.index, ended.exit_code, seconds(ended.duration), place)
        case "accepted":
            return events.Accepted(message.accepted.environment)
        case "rejected":
            why = member("rejected.why", message.rejected.why, REJECTIONS)
            return events.Rejected(why, message.rejected.message)
        case "artifacts":
            return summary(message.artifacts)
        case "finished":
            return events.Finished(outcome(message.finished))
    return None


def summary(message: wire.ArtifactSummary) -> events.ArtifactSummary:
    """Read what was uploaded."""
    left_out = tuple(events.LeftOut(each.path, each.why) for each in message.left_out)
    return events.ArtifactSummary(message.files, message.bytes, left_out, message.left_out_files)


def outcome(message: wire.Outcome) -> Outcome:
    """Read how an attempt ended."""
    reason = None
    if message.reason != wire.REASON_UNSPECIFIED:
        reason = member("finished.reason", message.reason, REASONS)
    return Outcome(
        result=member("finished.result", message.result, RESULTS),
        stage=member("finished.stage", message.stage, STAGES),
        reason=reason,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        command=message.command,
        message=message.message,
    )
