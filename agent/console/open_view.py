"""Which view shows a pipeline, and the one for programs: one JSON object a line.

The choice is made once, from the option, the stream and the environment of the process.
"""

from __future__ import annotations

import codecs
import json
import os
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from agent.console import final_summary
from agent.console.formatting import readable
from agent.console.line_view import LineView
from agent.console.live_view import LiveView
from agent.console.view import QuietView, View
from agent.domain import actions
from agent.pipeline import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.pipeline.events import PipelineEvent

OUTPUTS = ("auto", "plain", "json")


def open_view(output: str, stream: TextIO, environ: Mapping[str, str] | None = None, *, quiet: bool = False) -> View:
    """Return the view for an `--output`: auto is live on a terminal, unless it is a dumb one or a CI system's.

    Raises:
        ValueError: there is no such output.
    """
    environ = dict(os.environ) if environ is None else environ
    if output not in OUTPUTS:
        raise ValueError(f"--output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    if output == "json":
        return JsonView(stream)
    terminal = output == "auto" and stream.isatty() and environ.get("TERM") != "dumb"
    if quiet:
        console = terminal_console(stream, environ) if terminal else LineView(stream).console
        return QuietView(lambda report: final_summary.close(console, report, quiet=True))
    if terminal and environ.get("CI", "").lower() in ("", "0", "false"):
        return LiveView(terminal_console(stream, environ))
    return LineView(stream)


def terminal_console(stream: TextIO, environ: Mapping[str, str]) -> Console:
    """Return a console on a terminal; NO_COLOR leaves only what moves, dims and thickens."""
    return Console(
        file=stream, force_terminal=True, no_color=bool(environ.get("NO_COLOR")), highlight=False, emoji=False
    )


class JsonView(View):
    """One object a line. The texts of an action's log, put together, are its log."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.decoders: dict[str, codecs.IncrementalDecoder] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write the event, if it is one of those that are written."""
        match event.happening:
            case events.Submitted(name=name, folder=folder):
                self.line({"event": "submitted", "pipeline": event.pipeline, "name": name, "folder": folder})
            case events.LogText(data=data):
                self.log(event.action, self.decoder(event.action).decode(data))
            case actions.StageChanged(stage=stage, detail=detail):
                self.write("stage", event.action, stage=stage.value, detail=detail)
            case actions.CommandFinished(index=index, exit_code=code, seconds=seconds):
                self.write("command", event.action, index=index, exit_code=code, seconds=round(seconds, 3))
            case events.FileStored(path=path, size=size, sha256=sha256):
                self.write("artifact", event.action, path=readable(path), size=size, sha256=sha256.hex())
            case events.ActionEnded(outcome=outcome):
                self.log(event.action, self.decoder(event.action).decode(b"", final=True))
                self.write(
                    "finished",
                    event.action,
                    outcome=outcome.result.value,
                    stage=outcome.stage.value,
                    reason=outcome.reason.value if outcome.reason else None,
                    exit_code=outcome.exit_code,
                    message=outcome.message,
                )

    def decoder(self, action: str) -> codecs.IncrementalDecoder:
        """Return the decoder of an action's log: a character may come in two pieces."""
        if action not in self.decoders:
            self.decoders[action] = codecs.getincrementaldecoder("utf-8")("replace")
        return self.decoders[action]

    def log(self, action: str, text: str) -> None:
        """Write text of a log."""
        if text:
            self.write("log", action, text=text)

    def write(self, kind: str, action: str, **values: object) -> None:
        """Write what happened to an action."""
        self.line({"event": kind, "action": action, **values})

    def line(self, values: Mapping[str, object]) -> None:
        """Write one object."""
        self.stream.write(json.dumps(values) + "\n")
        self.stream.flush()
