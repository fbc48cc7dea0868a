"""Choose the view of a pipeline from the option `--output`, the stream and the environment variables.

The command chooses once, before the pipeline starts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console

from agent.console.json_view import JsonView
from agent.console.line_view import LineView
from agent.console.live_view import LiveView
from agent.console.reports import final_summary
from agent.console.terminal_text import without_ci_commands
from agent.console.view import QuietView, View

if TYPE_CHECKING:
    from collections.abc import Mapping


# Variables that GitHub Actions and Azure Pipelines set. Both obey commands in the output of their jobs.
OBEYING_CI = ("GITHUB_ACTIONS", "TF_BUILD")
OUTPUTS = ("auto", "plain", "json")


def open_view(
    output: str,
    stream: TextIO,
    environ: Mapping[str, str] | None = None,
    *,
    quiet: bool = False,
    timestamps: bool = False,
) -> View:
    """Return the view for a value of the option `--output`: `auto` is the live view on a terminal, and lines otherwise.

    A dumb terminal and a CI system (variable `CI`) get lines too. With `quiet` only failures are shown. With
    `timestamps` each line and each JSON object has its time, and there is no live view.

    Raises:
        ValueError: `output` is not one of `OUTPUTS`.
    """
    environ = dict(os.environ) if environ is None else environ
    if any(environ.get(name) for name in OBEYING_CI):
        stream = cast("TextIO", CiStream(stream))
    if output not in OUTPUTS:
        raise ValueError(f"--output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    if output == "json":
        return JsonView(stream, timestamps=timestamps)
    terminal = output == "auto" and stream.isatty() and environ.get("TERM") != "dumb"
    if quiet:
        console = terminal_console(stream, environ) if terminal else LineView(stream).console
        return QuietView(lambda report: final_summary.print_summary(console, report, quiet=True))
    if terminal and not timestamps and environ.get("CI", "").lower() in ("", "0", "false"):
        return LiveView(terminal_console(stream, environ))
    return LineView(stream, timestamps=timestamps)


class CiStream:
    """A stream whose reader is a CI system. An action must not be able to give this system commands by its log.

    The view writes whole lines. `without_ci_commands` inserts a space into each text that the CI system would obey.
    JSON stays valid, because such texts occur only inside strings of JSON.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(without_ci_commands(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def terminal_console(stream: TextIO, environ: Mapping[str, str]) -> Console:
    """Return a console for a terminal. The variable `NO_COLOR` turns colours off and keeps bold and dim text."""
    return Console(
        file=stream, force_terminal=True, no_color=bool(environ.get("NO_COLOR")), highlight=False, emoji=False
    )
