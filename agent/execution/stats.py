"""What the metrics count of a session, collected while the session runs and added to the metrics at its end.

A `SessionStats` belongs to one `Session` and lives as long as this session. A session ends without an outcome when
another agent has adopted it. Such a session is not counted, so that no action is counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.telemetry.metrics import fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.events import CacheResult
    from agent.domain.outcome import Outcome
    from agent.execution.logs.pipeline import LogStream
    from agent.telemetry.metrics import Metrics

# Metric labels of the stages whose time a session measures. Package `cluster` measures set-up and clean-up, in finer
# phases.
PHASES = {Stage.COMMANDS: "commands", Stage.ARTIFACTS: "artifacts"}


class SessionStats:
    """The counters of one session, owned by its `Session`.

    `files_failed` is the metric label for the reason why files were not stored.
    """

    def __init__(self) -> None:
        self.upload_retries = 0
        self.input_retries = 0
        self.input_files = 0
        self.input_bytes = 0
        self.input_seconds: float | None = None
        self.cache_results: list[tuple[str, CacheResult]] = []
        # Number and bytes of files that the pod moved by itself, by direction.
        self.objects: dict[str, tuple[int, int]] = {}
        self.object_fallbacks = 0
        self.internal_errors = 0
        self.files_failed = ""
        self.command_seconds: list[float] = []
        self.left_out_of_lines = 0
        self.left_out_of_total = 0
        self.log_gaps = 0
        self.missing = 0

    def upload_retried(self) -> None:
        self.upload_retries += 1

    def input_retried(self) -> None:
        self.input_retries += 1

    def inputs_received(self, files: int, size: int, seconds: float) -> None:
        """Count files of other actions that were copied into the environment, in `seconds` for all of them."""
        self.input_files, self.input_bytes, self.input_seconds = files, size, seconds

    def cache_used(self, operation: str, result: CacheResult) -> None:
        """Count a result of a cache. `operation` is `restore` or `save`."""
        self.cache_results.append((operation, result))

    def objects_moved(self, direction: str, files: int, size: int) -> None:
        """Count files that the pod has put into the object store (`put`) or read from it (`got`)."""
        self.objects[direction] = files, size

    def fell_back(self) -> None:
        """Count that the files go through the scheduler, because the object store failed."""
        self.object_fallbacks += 1
        self.files_failed = ""

    def internal_error(self) -> None:
        self.internal_errors += 1

    def files_not_stored(self, why: str) -> None:
        self.files_failed = why

    def command_finished(self, seconds: float) -> None:
        self.command_seconds.append(seconds)

    def log_ended(self, stream: LogStream) -> None:
        """Copy from the ended stream how much of the log it left out, and how many gaps it reported."""
        self.left_out_of_lines = stream.left_out_of_lines
        self.left_out_of_total = stream.left_out_of_total
        self.log_gaps = stream.gaps
        self.missing = stream.missing

    def add_to(self, metrics: Metrics) -> None:
        metrics.log_dropped_bytes.labels("line_limit").inc(self.left_out_of_lines)
        metrics.log_dropped_bytes.labels("total_limit").inc(self.left_out_of_total)
        metrics.log_dropped_bytes.labels("gap").inc(self.missing)
        metrics.log_gaps.labels("certain").inc(self.log_gaps)
        metrics.artifact_retries.inc(self.upload_retries)
        metrics.input_retries.inc(self.input_retries)
        metrics.input_files.inc(self.input_files)
        metrics.input_bytes.inc(self.input_bytes)
        if self.input_seconds is not None:
            metrics.phase_duration.labels("inputs").observe(self.input_seconds)
        for operation, result in self.cache_results:
            metrics.cache_operations.labels(operation, result.kind.value).inc()
            metrics.cache_bytes.labels(operation).inc(result.bytes)
            if result.seconds:
                metrics.cache_seconds.labels(operation).observe(result.seconds)
        for direction, (files, size) in self.objects.items():
            metrics.objects.labels(direction).inc(files)
            metrics.object_bytes.labels(direction).inc(size)
        metrics.object_fallbacks.inc(self.object_fallbacks)
        if self.files_failed:
            metrics.artifact_failures.labels(self.files_failed).inc()
        for seconds in self.command_seconds:
            metrics.command_duration.observe(seconds)
        metrics.internal_errors.labels("session").inc(self.internal_errors)


def count_outcome(metrics: Metrics, outcome: Outcome, seconds: float) -> None:
    """Count an outcome, and the seconds from the arrival of the action to this outcome."""
    reason = outcome.reason.value if outcome.reason else ""
    labels = (outcome.result.value, outcome.stage.value, reason, fault(outcome.reason))
    metrics.actions_completed.labels(*labels).inc()
    metrics.action_duration.labels(outcome.result.value).observe(seconds)


def count_stages(metrics: Metrics, stage_seconds: Mapping[Stage, float]) -> None:
    for stage, phase in PHASES.items():
        if stage in stage_seconds:
            metrics.phase_duration.labels(phase).observe(stage_seconds[stage])
