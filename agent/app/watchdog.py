"""Ends the process when the event loop stands still.

A frozen loop obeys no SIGTERM, and the kubelet waits the whole grace period of the pod until it sends SIGKILL. The
watchdog thread ends the process earlier. Another replica then adopts the sessions. `Watchdog` lives as long as `serve`
runs.

The thread counts its own turns without an answer of the loop, not the seconds since the last answer. A process that was
suspended (SIGSTOP, a frozen machine) is therefore not ended when it wakes up. A call that holds the interpreter lock
stops this thread too. Then only the liveness probe helps.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING

import structlog

from agent.http.server import STALLED_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

# Exit code of the process if its event loop stood still.
STOOD_STILL = 5
# Seconds between two turns of the watchdog thread. In each turn, the thread asks the event loop for an answer.
TURN_SECONDS = 1.0
# Maximum number of stack frames in the log line about an event loop that stands still.
FRAMES = 12


class Watchdog:
    """A thread that watches the running event loop. Used as a context manager, in the thread of the loop."""

    def __init__(
        self, end: Callable[[int], None] = os._exit, turn: float = TURN_SECONDS, stalled: float = STALLED_SECONDS
    ) -> None:
        self.end = end
        self.turn = turn
        self.most_turns = stalled / turn
        self.loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self.stopped = threading.Event()
        self.turns = 0
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()

    def watch(self) -> None:
        """Ask the loop for an answer in each turn. End the process after too many turns without an answer."""
        while not self.stopped.wait(self.turn):
            try:
                self.loop.call_soon_threadsafe(self.answer)
            except RuntimeError:  # the loop is closed, so there is nothing left to watch
                return
            self.turns += 1
            if self.turns > self.most_turns:
                frame = sys._current_frames().get(self.loop_thread)  # noqa: SLF001 - no public function has it
                where = "".join(traceback.format_stack(frame, FRAMES)) if frame else ""
                log.critical("the event loop stands still: the agent ends", exit_code=STOOD_STILL, where=where)
                self.end(STOOD_STILL)
                return

    def answer(self) -> None:
        self.turns = 0
