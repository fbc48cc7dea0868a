"""A submission of actions to the scheduler of a lab, and the reports of its actions.

A Submission and its Reports live as long as the test that has submitted the actions.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.e2e.lab import Lab


@dataclass
class Report:
    """The events of one action, and its log and files in the scheduler's `folder`."""

    name: str
    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def finished(self) -> dict[str, Any]:
        """Return the event with the outcome. Fail if there is no such event or more than one."""
        found = [event for event in self.events if event["event"] == "finished"]
        assert len(found) == 1, f"{self.name}: {len(found)} outcomes in {self.events}"
        return found[0]

    @property
    def outcome(self) -> tuple[str, str | None, int | None]:
        return self.finished["outcome"], self.finished["reason"], self.finished["exit_code"]

    @property
    def log(self) -> bytes:
        """Return the log of the action that the scheduler has stored."""
        return (self.folder / f"{self.name}.log").read_bytes()

    @property
    def text(self) -> str:
        """Return the stored log of the action as text."""
        return self.log.decode("utf-8", "replace")

    @property
    def files(self) -> dict[str, Path]:
        """Return the paths of the stored artifacts. The keys are the artifacts' paths in the action's workspace."""
        top = self.folder / self.name
        return {
            os.fsdecode(os.path.relpath(os.fsencode(path), os.fsencode(top))): path
            for path in top.rglob("*")
            if path.is_file()
        }

    @property
    def commands(self) -> list[tuple[int, int]]:
        """Return index and exit code of each command that has ended."""
        return [(event["index"], event["exit_code"]) for event in self.events if event["event"] == "command"]

    def __str__(self) -> str:
        return f"{self.finished}\n{self.text[-4000:]}"


@dataclass
class Submission:
    """A process of `sealci-agent submit`, and the reports of the actions that this process has submitted."""

    lab: Lab
    process: subprocess.Popen[str]
    names: tuple[str, ...]
    reports: dict[str, Report] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    reader: threading.Thread | None = None
    errors: str = ""
    cancelled: bool = False

    def read(self) -> None:
        """Read the events that `sealci-agent submit` prints, until that process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            with self.changed:
                if event["event"] == "submitted":
                    for report in self.reports.values():
                        report.folder = Path(event["folder"])
                else:
                    self.reports[event["action"]].events.append(event)
                self.changed.notify_all()

    def until(self, action: str, condition: Any, timeout: float = 60) -> Any:
        """Wait until `condition` is true for the report of `action`. Return the value of the condition."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not (found := condition(self.reports[action])):
                left = deadline - time.monotonic()
                assert left > 0, f"the condition did not become true; last events: {self.reports[action].events[-5:]}"
                self.changed.wait(left)
        return found

    def until_running(self, action: str, text: str = "") -> None:
        """Wait until a log event of `action` contains `text`. By default, wait for any log event."""
        self.until(action, lambda report: any(e["event"] == "log" and text in e["text"] for e in report.events))

    def wait(self, timeout: float = 180) -> dict[str, Report]:
        """Wait for the end of all actions, then check each report with `Lab.check`. Return the reports."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.reader is not None
        self.reader.join(10)
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process.stderr.close()
        assert not self.errors or self.cancelled, self.errors
        for report in self.reports.values():
            self.lab.check(report)
        return self.reports

    def abandon(self) -> None:
        """Kill the process `sealci-agent submit`. The submitted actions continue."""
        self.process.kill()
        assert self.reader is not None
        self.reader.join(10)
        self.process.communicate(timeout=10)

    def cancel(self) -> None:
        """Send SIGINT to the process `sealci-agent submit`, as Ctrl-C does."""
        self.cancelled = True
        self.process.send_signal(signal.SIGINT)
