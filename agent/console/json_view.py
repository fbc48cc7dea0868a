"""The view for programs: one JSON object per line. `docs/run.md` lists the objects and their keys."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, TextIO

from agent.console.formatting import path_text
from agent.console.view import View
from agent.domain import events as session_events
from agent.pipeline import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.pipeline.events import PipelineEvent


class JsonView(View):
    """Writes one JSON object per line. The texts of an action's `log` objects, put together, are its log.

    With `timestamps`, each object has the time at which the scheduler stored its event, in seconds since the epoch.
    """

    def __init__(self, stream: TextIO, *, timestamps: bool = False) -> None:
        self.stream = stream
        self.timestamps = timestamps
        self.time = 0.0
        self.decoders: dict[str, codecs.IncrementalDecoder] = {}
        self.sources: dict[str, session_events.Source] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write the JSON object of an event. Write nothing for an event of a kind that has no object."""
        self.time = event.time
        match event.body:
            case events.Submitted(name=name, folder=folder):
                self.write_line({"event": "submitted", "pipeline": event.pipeline, "name": name, "folder": folder})
            case events.LogText(data=data, source=source, service=service):
                if self.sources.setdefault(event.action, source) is not source:
                    self.finish_text(event.action)
                    self.sources[event.action] = source
                self.write_log(event.action, self.decoder(event.action).decode(data), service)
            case events.WaitingForAgent(detail=detail):
                self.write("waiting", event.action, detail=detail)
            case session_events.StageChanged(stage=stage, detail=detail):
                self.write("stage", event.action, stage=stage.value, detail=detail)
            case session_events.ServiceChanged(name=name, state=state, exit_code=code, message=message):
                self.write("service", event.action, name=name, state=state.value, exit_code=code, message=message)
            case session_events.CacheResult() as result:
                self.write_cache(event.action, result)
            case session_events.CommandFinished(index=index, exit_code=code, seconds=seconds):
                self.write("command", event.action, index=index, exit_code=code, seconds=round(seconds, 3))
            case events.FileStored(path=path, size=size, sha256=sha256):
                self.write("artifact", event.action, path=path_text(path), size=size, sha256=sha256.hex())
            case events.ActionEnded(outcome=outcome):
                self.finish_text(event.action)
                self.write(
                    "finished",
                    event.action,
                    outcome=outcome.result.value,
                    stage=outcome.stage.value,
                    reason=outcome.reason.value if outcome.reason else None,
                    fault=(outcome.reason.fault if outcome.reason else "") or None,
                    exit_code=outcome.exit_code,
                    message=outcome.message,
                )

    def write_cache(self, action: str, result: session_events.CacheResult) -> None:
        """Write the `cache` object of a result."""
        self.write(
            "cache",
            action,
            key=result.key,
            result=result.kind.value,
            used_key=result.used_key,
            bytes=result.bytes,
            seconds=round(result.seconds, 3),
            message=result.message,
        )

    def decoder(self, action: str) -> codecs.IncrementalDecoder:
        """Return the decoder of an action's log. The decoder joins a character that arrives in two pieces."""
        if action not in self.decoders:
            self.decoders[action] = codecs.getincrementaldecoder("utf-8")("replace")
        return self.decoders[action]

    def finish_text(self, action: str) -> None:
        """Write the incomplete character that the decoder of an action's log may still keep.

        Called where text from another source follows in the log, and at the end of the action.
        """
        self.write_log(action, self.decoder(action).decode(b"", final=True))

    def write_log(self, action: str, text: str, service: str = "") -> None:
        """Write a `log` object, unless the text is empty.

        The key `source` names the origin of the text, such as the commands or the agent. The object of a service also
        has the key `service` with its name.
        """
        if text:
            more = {"service": service} if service else {}
            self.write("log", action, text=text, source=self.sources[action].value, **more)

    def write(self, kind: str, action: str, **values: object) -> None:
        """Write a JSON object about an action. `kind` is the value of its key `event`."""
        self.write_line({"event": kind, "action": action, **values})

    def write_line(self, values: Mapping[str, object]) -> None:
        """Write one object, and flush so that a reading program gets it now."""
        time = {"time": round(self.time, 3)} if self.timestamps else {}
        self.stream.write(json.dumps({**values, **time}) + "\n")
        self.stream.flush()
