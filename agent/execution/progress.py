"""How far one session has come: its phase, its outcome, and the point from which its events and log are reported.

A `SessionProgress` belongs to one `Session` and lives as long as this session. Only its own methods change it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.log_cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume


class SessionPhase(Enum):
    """The phases of a session, in their order."""

    # Only adopted sessions have this phase. The scheduler has not yet sent the resume point.
    AWAITING_RESUME = "awaiting resume"
    # The environment is still to be created, or to be taken over.
    STARTING = "starting"
    # The environment exists. A session that reports its events again, because the scheduler lost its state, stays here.
    STARTED = "started"
    # The session has nothing more to report. Only the clean-up is left.
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class CommandsEnd:
    """How the commands of a session ended. If `files` is False, the workspace is lost for the cause `files_lost`."""

    outcome: Outcome
    files: bool
    files_lost: str = ""


class SessionProgress:
    """The progress of one session, owned by its `Session`.

    `outcome` and `commands_end` are set once and never change. `command` is the number of the last command that
    started. `inputs_copied`: this agent has copied the files of other actions into the environment.

    `log_start` is the cursor at which this agent begins to read the log, and `service_cursors` those of the logs of
    services. `stored_seq` is the number of the last event in the resume point, 0 for a new session. Acknowledgements do
    not change `stored_seq`. `log_start` and `stored_seq` are set again when the session is adopted, and after a state
    loss of the scheduler (`reset_requested`).
    """

    def __init__(self, *, adopted: bool = False) -> None:
        self.phase = SessionPhase.AWAITING_RESUME if adopted else SessionPhase.STARTING
        self.outcome: Outcome | None = None
        self.commands_end: CommandsEnd | None = None
        self.command = 0
        self.log_start = Cursor()
        self.service_cursors: Mapping[str, bytes] = {}
        self.stored_seq = 0
        self.seconds_already_run = 0.0
        self.inputs_copied = False
        self.resume_point: asyncio.Future[Resume] | None = None
        if adopted:
            self.resume_point = asyncio.get_running_loop().create_future()
        self.reset_requested = asyncio.Event()
        self.reset_point: Resume | None = None

    @property
    def awaits_resume(self) -> bool:
        return self.resume_point is not None and not self.resume_point.done()

    @property
    def environment_exists(self) -> bool:
        return self.phase is SessionPhase.STARTED

    @property
    def finished(self) -> bool:
        return self.phase is SessionPhase.FINISHED

    @property
    def cleaning_up(self) -> bool:
        """Return whether the outcome is decided, or the session was dropped."""
        return self.outcome is not None or self.finished

    # ---- resume points from the scheduler

    def resume(self, resume: Resume) -> bool:
        """Give the resume point to an adopted session that waits for it. Returns False if the session does not wait."""
        if self.resume_point is None or self.resume_point.done():
            return False
        self.resume_point.set_result(resume)
        if self.phase is SessionPhase.AWAITING_RESUME:
            self.phase = SessionPhase.STARTING
        return True

    def request_reset(self, resume: Resume) -> None:
        """Ask the session to report all events after `resume.seq` again, because the scheduler has lost them."""
        self.reset_point = resume
        self.reset_requested.set()

    def take_reset(self) -> Resume:
        """Go back to the resume point of the last reset request, and return this point."""
        assert self.reset_point is not None  # noqa: S101 - set together with `reset_requested`
        self.reset_requested.clear()
        self.go_to(self.reset_point)
        return self.reset_point

    def go_to(self, resume: Resume) -> None:
        """Continue after the last event that the scheduler has stored, which `resume` describes."""
        self.log_start, self.command, self.stored_seq = resume.cursor, resume.command, resume.seq
        self.service_cursors = resume.service_cursors

    # ---- what happened in the environment

    def environment_created(self) -> None:
        if not self.finished:
            self.phase = SessionPhase.STARTED

    def count_earlier_run(self, seconds: float) -> None:
        """Count seconds that the commands have run before this agent began to watch them."""
        self.seconds_already_run = seconds

    def command_started(self, command: int) -> None:
        self.command = command

    def commands_ended(self, end: CommandsEnd) -> CommandsEnd:
        self.commands_end = end
        return end

    # ---- the end of the session

    def decide(self, outcome: Outcome) -> Outcome:
        """Store and return the outcome. Every later call returns the first outcome and ignores its argument."""
        if self.outcome is None:
            self.outcome = outcome
        return self.outcome

    def finish(self) -> None:
        """Record that the session has nothing more to report."""
        self.phase = SessionPhase.FINISHED
