"""`sealci-agent run`: a pipeline from a file to its outcomes, with a scheduler in memory and the agent's own engine.

Everything starts and ends here: whatever happens, the actions are cancelled, the engine is asked to stop and is waited
for, so that nothing is left in the cluster. Only a second interruption leaves at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.local.dispatch import Rules

if TYPE_CHECKING:
    pass

START_TIMEOUT = 60.0
STOP_TIMEOUT = 300.0
RULES = Rules(health_interval=5.0, resume_grace=30.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the scheduler of a run is: plaintext on this machine, with a token that only this run has."""

    address: str
    token_file: Path


class Interruptions:
    """Ctrl-C, counted: the first asks to end, the second insists."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def interrupt(self) -> None:
        """Count one."""
        (self.second if self.first.is_set() else self.first).set()

    @contextlib.contextmanager
    def listening(self) -> object:
        """Count the signals of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield self
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
