"""What shows a pipeline. A view lives as long as one pipeline is watched and only shows: nothing depends on it.

Its methods are called one at a time, on a thread, because a terminal that is held or a full pipe blocks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.pipeline.events import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.console.run_report import Report
    from agent.pipeline.events import PipelineEvent


if TYPE_CHECKING:
    Gauge = Callable[[], Mapping[str, Transfer]]


def nothing() -> Mapping[str, Transfer]:
    """Tell of no transfer: where nobody can."""
    return {}


class View:
    """Something that shows a pipeline. `gauge` tells, by action, what is being copied right now."""

    gauge: Gauge = staticmethod(nothing)

    def show(self, event: PipelineEvent) -> None:
        """Show the next event."""

    def tick(self) -> None:
        """Show that time goes by; called several times a second."""

    def hold(self) -> None:
        """Leave the terminal to somebody else, until `tick` is called again."""

    def close(self, report: Report) -> None:
        """Show how it went, after the last event."""


class QuietView(View):
    """Nothing at all, unless something fails."""

    def __init__(self, write: Callable[[Report], None]) -> None:
        self.write = write

    def close(self, report: Report) -> None:
        """Write what did not succeed."""
        self.write(report)
