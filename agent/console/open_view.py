"""Which view shows a pipeline, and the one for programs: one JSON object a line.

The choice is made once, from the option, the stream and the environment of the process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from agent.console import final_summary
from agent.console.json_view import JsonView
from agent.console.line_view import LineView
from agent.console.live_view import LiveView
from agent.console.view import QuietView, View

if TYPE_CHECKING:
    from collections.abc import Mapping


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
