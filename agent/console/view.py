"""The interface of everything that shows a pipeline.

A view exists while `sealci-agent run` or `submit` follows a pipeline. A view only shows events, and no result depends
on a view. The follower calls the methods of a view one at a time, on a thread, because a full pipe or a stopped
terminal blocks these methods.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent.pipeline.events import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.console.reports.run_report import Report
    from agent.pipeline.events import PipelineEvent

    TransferSource = Callable[[], Mapping[str, Transfer]]


def no_transfers() -> Mapping[str, Transfer]:
    """Return an empty mapping. `submit` uses this function, because a remote scheduler does not report transfers."""
    return {}


class Moving:
    """What the agent of a run copies itself at this moment, by the name of the action. Lives as long as the run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.transfers: dict[str, Transfer] = {}
        self.began: dict[str, float] = {}

    def show(self, action_id: str, what: str, done: int, size: int) -> None:
        """Store that `done` of `size` bytes of `what` have been moved for an action. The size 0 ends the display."""
        name, now, path = action_id.partition("/")[2], self.clock(), what.encode("utf-8", "surrogateescape")
        current = self.transfers.pop(name, None)
        if not size:
            return
        if current is None or current.path != path:
            self.began[name] = now
        self.transfers[name] = Transfer(0, done, path, done, size, now - self.began[name])


class View:
    """Shows one pipeline. This base class shows nothing.

    `transfers` returns, by the action's name, the progress of the copy that runs now. The command `run` sets
    `transfers`, because only a scheduler and an agent in the same process report this progress.
    """

    transfers: TransferSource = staticmethod(no_transfers)

    def show(self, event: PipelineEvent) -> None:
        """Show the next event."""

    def tick(self) -> None:
        """Draw again what changes with time, such as durations. Called several times a second."""

    def hold(self) -> None:
        """Release the terminal for other output, until the next call of `tick`."""

    def close(self, report: Report) -> None:
        """Show the result. Called once, after the last event."""

    def abandon(self) -> None:
        """Release the terminal without writing to it, because a write failed. This is the last call of the view."""


class QuietView(View):
    """Shows nothing until the pipeline has ended. `write` is then called with the report and decides what to show."""

    def __init__(self, write: Callable[[Report], None]) -> None:
        self.write = write

    def close(self, report: Report) -> None:
        self.write(report)
