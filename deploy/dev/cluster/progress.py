"""Run jobs in two parallel sequences ("lanes"), and show one line with the remaining time.

A job of one lane runs at the same time as a job of the other lane, so at most two jobs use a core each. The durations
of jobs are recorded in the cache, and the next run estimates its time from them. On a terminal, the progress line is
redrawn. Elsewhere each job prints plain lines.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.dev.cluster import console

# Seconds between two drawings of the progress line.
REDRAW_SECONDS = 1.0
# Seconds. A job that ended sooner found its result in the cache, and its duration is not recorded.
WORTH_RECORDING = 2.0


@dataclass(frozen=True)
class Job:
    """One piece of work. `seconds` is its duration on a machine with two cores and no other load.

    `needs` names jobs of the other lane that must end before this job begins.
    """

    name: str
    work: Callable[[], object]
    seconds: float
    needs: tuple[str, ...] = ()


class Lanes:
    """Runs sequences of jobs in parallel, once. `record` is the file of the durations that earlier runs recorded."""

    def __init__(self, lanes: Sequence[Sequence[Job]], record: Path) -> None:
        self.lanes = lanes
        self.record = record
        self.recorded: dict[str, float] = read_durations(record)
        self.began: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.failures: list[Exception] = []
        self.stopped = threading.Event()
        self.changed = threading.Condition()

    def run(self) -> None:
        """Run all jobs. If one fails, no further job begins, and the first failure is raised."""
        threads = [threading.Thread(target=self.run_lane, args=(lane,), daemon=True) for lane in self.lanes]
        redraws = sys.stderr.isatty()
        if redraws:
            console.hush.set()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                with self.changed:
                    self.changed.wait(REDRAW_SECONDS)
                if redraws:
                    draw(self.line(time.monotonic()))
        finally:
            # After Ctrl-C, threads can still run here. Otherwise all threads have ended.
            self.stop()
            for thread in threads:
                thread.join()
            if redraws:
                draw("")
                console.hush.clear()
        write_durations(self.record, self.recorded | {n: s for n, s in self.took.items() if s > WORTH_RECORDING})
        if self.failures:
            raise self.failures[0]

    def run_lane(self, lane: Sequence[Job]) -> None:
        """Run the jobs of one lane, one after the other, until a job of any lane fails."""
        for job in lane:
            with self.changed:
                while not self.stopped.is_set() and not set(job.needs) <= set(self.took):
                    self.changed.wait()
                if self.stopped.is_set():
                    return
                self.began[job.name] = time.monotonic()
            try:
                job.work()
            except Exception as error:  # noqa: BLE001 - `run` raises it in the main thread
                self.failures.append(error)
                self.stop()
                return
            with self.changed:
                self.took[job.name] = time.monotonic() - self.began[job.name]
                self.changed.notify_all()

    def stop(self) -> None:
        """Let no further job begin, and end the long commands of jobs that run."""
        with self.changed:
            self.stopped.set()
            self.changed.notify_all()
        console.terminate_long_commands()

    def seconds_left(self, now: float) -> float:
        """Return the estimated time until the longer lane ends.

        A job that runs longer than estimated has an estimated rest of 0 s.
        """
        return max(sum(self.job_seconds_left(job, now) for job in lane) for lane in self.lanes)

    def job_seconds_left(self, job: Job, now: float) -> float:
        if job.name in self.took:
            return 0.0
        expected = self.recorded.get(job.name, job.seconds)
        return max(0.0, expected - (now - self.began.get(job.name, now)))

    def line(self, now: float) -> str:
        """Return the progress line: jobs that have ended, jobs that run, and remaining time."""
        jobs = [job.name for lane in self.lanes for job in lane]
        running = [name for name in jobs if name in self.began and name not in self.took]
        return f"[{len(self.took)} of {len(jobs)}] {', '.join(running)} · {time_left(self.seconds_left(now))}"


def time_left(seconds: float) -> str:
    """Return the remaining time as a text. It is rounded to minutes or to ten seconds, because it is an estimate."""
    if seconds >= 90:
        return f"about {round(seconds / 60)} min left"
    return f"about {max(10, round(seconds, -1)):.0f} s left"


def draw(line: str) -> None:
    """Replace the terminal's current line by `line`."""
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def read_durations(record: Path) -> dict[str, float]:
    """Return the recorded durations. For a missing or damaged file, return an empty dict.

    This is no error, because the durations only improve estimates.
    """
    try:
        durations = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): float(v) for k, v in durations.items()} if isinstance(durations, dict) else {}


def write_durations(record: Path, durations: dict[str, float]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({name: round(seconds, 1) for name, seconds in durations.items()}, indent=2), "utf-8")
    partial.replace(record)
