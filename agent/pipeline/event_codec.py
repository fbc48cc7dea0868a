"""Convert events of pipelines to messages of `local.proto` and back.

Pure functions. The store keeps the same messages without the bytes of logs, which are in the log files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain import events as session_events
from agent.domain.errors import Reason, Stage
from agent.domain.events import CacheKind, ServiceState, Source
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.pipeline import events
from agent.pipeline.wire import local_pb2 as wire

if TYPE_CHECKING:
    from agent.pipeline.events import EventBody, PipelineEvent


def encode(event: PipelineEvent) -> wire.PipelineEvent:
    message = wire.PipelineEvent(
        pipeline=event.pipeline,
        position=event.position,
        time=event.time,
        action=event.action,
        attempt=event.attempt,
    )
    fill(message, event.body)
    return message


def fill(message: wire.PipelineEvent, body: EventBody) -> None:  # noqa: C901 - one case for each kind of event
    """Copy `body` into the field of `message` that belongs to this kind of event."""
    match body:
        case events.Submitted():
            plans = (wire.ActionPlan(name=p.name, needs=p.needs, commands=p.commands) for p in body.actions)
            message.submitted.CopyFrom(wire.Submitted(name=body.name, actions=plans, folder=body.folder))
        case events.WaitingForAgent():
            message.waiting.detail = body.detail
        case events.Started():
            message.started.agent = body.agent
        case session_events.Accepted():
            message.accepted.environment = body.environment
        case session_events.StageChanged():
            message.stage.CopyFrom(wire.Stage(stage=body.stage.value, detail=body.detail))
        case session_events.ServiceChanged():
            message.service.CopyFrom(
                wire.Service(name=body.name, state=body.state.value, exit_code=body.exit_code, message=body.message)
            )
        case session_events.CacheResult():
            message.cache.CopyFrom(
                wire.Cache(
                    key=body.key,
                    kind=body.kind.value,
                    used_key=body.used_key,
                    bytes=body.bytes,
                    seconds=body.seconds,
                    message=body.message,
                )
            )
        case session_events.CommandStarted():
            message.command_started.index = body.index
        case session_events.CommandFinished():
            message.command_finished.CopyFrom(
                wire.CommandFinished(index=body.index, exit_code=body.exit_code, seconds=body.seconds)
            )
        case events.LogText():
            message.log.CopyFrom(
                wire.Log(
                    data=body.data,
                    source=body.source.value,
                    offset=body.offset,
                    length=len(body.data),
                    service=body.service,
                )
            )
        case events.FileStored():
            message.file.CopyFrom(wire.File(path=body.path, size=body.size, sha256=body.sha256))
        case session_events.ArtifactSummary():
            left_out = (wire.LeftOut(path=each.path, why=each.why) for each in body.left_out)
            message.summary.CopyFrom(
                wire.Summary(files=body.files, bytes=body.bytes, left_out_files=body.left_out_files, left_out=left_out)
            )
        case events.ActionEnded():
            message.finished.CopyFrom(encode_outcome(body.outcome, body.seconds))
        case events.Ended():
            message.ended.SetInParent()


def encode_outcome(outcome: Outcome, seconds: float = 0.0) -> wire.Finished:
    """Return an outcome as a message. `seconds` is the duration of the attempt."""
    return wire.Finished(
        result=outcome.result.value,
        stage=outcome.stage.value,
        reason=outcome.reason.value if outcome.reason else "",
        exit_code=outcome.exit_code,
        command=outcome.command,
        message=outcome.message,
        seconds=seconds,
    )


def decode_outcome(message: wire.Finished) -> Outcome:
    """Return the outcome of a message.

    Raises:
        ValueError: a result, stage or reason is unknown to this version.
    """
    return Outcome(
        result=Result(message.result),
        stage=Stage(message.stage),
        reason=Reason(message.reason) if message.reason else None,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        command=message.command,
        message=message.message,
    )


def decode(message: wire.PipelineEvent) -> PipelineEvent | None:
    """Return the event of a message, None when a newer scheduler sent a kind that this version does not know.

    Raises:
        ValueError: a value of an enum is unknown to this version.
    """
    body = read(message)
    if body is None:
        return None
    return events.PipelineEvent(message.pipeline, message.position, message.time, body, message.action, message.attempt)


def read_service(message: wire.Service) -> session_events.ServiceChanged:
    return session_events.ServiceChanged(
        message.name,
        ServiceState(message.state),
        message.exit_code if message.HasField("exit_code") else None,
        message.message,
    )


def read_cache(message: wire.Cache) -> session_events.CacheResult:
    return session_events.CacheResult(
        message.key, CacheKind(message.kind), message.used_key, message.bytes, message.seconds, message.message
    )


def read(message: wire.PipelineEvent) -> EventBody | None:  # noqa: C901 - one case for each kind of event
    """Return the body of an event, None for an unknown kind."""
    match message.WhichOneof("event"):
        case "submitted":
            plans = (events.ActionPlan(p.name, tuple(p.needs), tuple(p.commands)) for p in message.submitted.actions)
            return events.Submitted(message.submitted.name, tuple(plans), message.submitted.folder)
        case "waiting":
            return events.WaitingForAgent(message.waiting.detail)
        case "started":
            return events.Started(message.started.agent)
        case "accepted":
            return session_events.Accepted(message.accepted.environment)
        case "stage":
            return session_events.StageChanged(Stage(message.stage.stage), message.stage.detail)
        case "service":
            return read_service(message.service)
        case "cache":
            return read_cache(message.cache)
        case "command_started":
            return session_events.CommandStarted(message.command_started.index, Cursor())
        case "command_finished":
            done = message.command_finished
            return session_events.CommandFinished(done.index, done.exit_code, done.seconds, Cursor())
        case "log":
            log = message.log
            return events.LogText(log.data, Source(log.source), log.offset, log.service)
        case "file":
            return events.FileStored(message.file.path, message.file.size, message.file.sha256)
        case "summary":
            left_out = tuple(session_events.LeftOut(each.path, each.why) for each in message.summary.left_out)
            summary = message.summary
            return session_events.ArtifactSummary(summary.files, summary.bytes, left_out, summary.left_out_files)
        case "finished":
            return events.ActionEnded(decode_outcome(message.finished), message.finished.seconds)
        case "ended":
            return events.Ended()
        case _:
            return None
