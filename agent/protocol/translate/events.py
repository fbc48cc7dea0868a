"""Translation of the events of a session.

The outbox sends an event again after every reconnect. An event that cannot be encoded would break every stream, so
`event_message` accepts everything that the domain can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.domain import actions as domain
from agent.domain import events
from agent.domain.outcome import Outcome
from agent.protocol.translate.caches import cache_result, cache_result_message
from agent.protocol.translate.fields import (
    REASONS,
    REJECTIONS,
    RESULTS,
    SOURCES,
    STAGES,
    checked_key,
    cursor,
    duration,
    human_text,
    member,
    seconds,
)
from agent.protocol.translate.services import service_changed, service_changed_message
from agent.protocol.wire import agent_pb2 as wire

# Maximum number of files in `left_out`. `MAX_WHY` limits the characters of each file's reason. With paths of 4 KiB, the
# message has a fifth of the size that gRPC allows. A message that is larger than gRPC allows would end the stream.
MAX_LEFT_OUT = 100
MAX_WHY = 1024


@dataclass(frozen=True, slots=True)
class Numbered:
    """An event with its number in its session. `event` is None for a kind of event that this version does not know."""

    key: domain.Key
    seq: int
    event: events.Event | None


# ---- functions for the agent, which writes events


def event_message(key: domain.Key, seq: int, event: events.Event) -> wire.Event:
    message = wire.Event(action_id=key.action_id, attempt=key.attempt, claim=key.claim, seq=seq)
    match event:
        case events.LogChunk():
            message.log.data = event.data
            message.log.source = SOURCES[event.source]
            message.log.service = event.service
            message.log.cursor = event.service_cursor if event.cursor is None else event.cursor.encode()
        case events.StageChanged():
            message.stage.stage = STAGES[event.stage]
            message.stage.detail = human_text(event.detail)
        case events.ServiceChanged():
            message.service.CopyFrom(service_changed_message(event))
        case events.CacheResult():
            message.cache.CopyFrom(cache_result_message(event))
        case events.CommandStarted():
            message.command_started.index = event.index
            message.command_started.cursor = event.cursor.encode()
        case events.CommandFinished():
            message.command_finished.CopyFrom(command_finished_message(event))
        case events.Accepted():
            message.accepted.environment = human_text(event.environment)
        case events.Rejected():
            message.rejected.why = REJECTIONS[event.why]
            message.rejected.message = human_text(event.message)
        case events.ArtifactSummary():
            message.artifacts.CopyFrom(summary_message(event))
        case events.Finished():
            message.finished.CopyFrom(outcome_message(event.outcome))
    return message


def command_finished_message(event: events.CommandFinished) -> wire.CommandFinished:
    return wire.CommandFinished(
        index=event.index,
        exit_code=event.exit_code,
        duration=duration(event.seconds),
        cursor=event.cursor.encode(),
    )


def summary_message(summary: events.ArtifactSummary) -> wire.ArtifactSummary:
    return wire.ArtifactSummary(
        files=summary.files,
        bytes=summary.bytes,
        left_out=[
            wire.LeftOut(path=each.path, why=human_text(each.why)[:MAX_WHY]) for each in summary.left_out[:MAX_LEFT_OUT]
        ],
        left_out_files=summary.left_out_files,
    )


def outcome_message(outcome: Outcome) -> wire.Outcome:
    return wire.Outcome(
        result=RESULTS[outcome.result],
        stage=STAGES[outcome.stage],
        reason=REASONS[outcome.reason] if outcome.reason is not None else wire.REASON_UNSPECIFIED,
        exit_code=outcome.exit_code,
        command=outcome.command,
        message=human_text(outcome.message),
    )


# ---- functions for a scheduler, which reads events


def event(message: wire.Event) -> Numbered:
    """Return an event with its number.

    Raises:
        ActionFailed: a field is invalid.
    """
    return Numbered(checked_key(message), message.seq, event_of(message))


def event_of(message: wire.Event) -> events.Event | None:
    """Return the event without its number, or None for a kind of event that this version does not know."""
    match message.WhichOneof("event"):
        case "log":
            return log_chunk(message.log)
        case "service":
            return service_changed(message.service)
        case "cache":
            return cache_result(message.cache)
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


def log_chunk(message: wire.LogChunk) -> events.LogChunk:
    source = member("log.source", message.source, SOURCES)
    if source is events.Source.SERVICE:
        return events.LogChunk(message.data, None, source, message.service, message.cursor)
    place = cursor("log.cursor", message.cursor) if message.cursor else None
    return events.LogChunk(message.data, place, source)


def summary(message: wire.ArtifactSummary) -> events.ArtifactSummary:
    left_out = tuple(events.LeftOut(each.path, each.why) for each in message.left_out)
    return events.ArtifactSummary(message.files, message.bytes, left_out, message.left_out_files)


def outcome(message: wire.Outcome) -> Outcome:
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
