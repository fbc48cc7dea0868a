"""Every series of the agent, in one object that is handed to who counts.

One `Metrics` lives as long as the process (tests make their own, with a registry of its own). Label sets are bounded by
enums, never by ids; every combination exists from the first scrape, so that `rate()` and alerts work at once. Failures
of users are told from failures of the infrastructure by the label `fault`. The README's table holds the same names,
labels and texts; a test keeps them equal.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from agent.domain.errors import Reason, Rejection, Stage
from agent.domain.outcome import Result
from agent.settings import MetricsSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

disable_created_metrics()  # type: ignore[no-untyped-call]

DEFAULTS = MetricsSettings()
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

PHASES = ("schedule", "pull", "clone", "commands", "artifacts", "cleanup")
REQUESTS = (
    ("create", "pods"),
    ("get", "pods"),
    ("list", "pods"),
    ("watch", "pods"),
    ("delete", "pods"),
    ("get", "pods/log"),
    ("create", "pods/exec"),
    ("create", "secrets"),
    ("delete", "secrets"),
    ("list", "events"),
    ("get", "version"),
    ("patch", "pods"),
    ("list", "leases"),
    ("watch", "leases"),
    ("create", "leases"),
    ("patch", "leases"),
    ("delete", "leases"),
)
RANKS = ("alive", "going", "new")
CODES = ("2xx", "4xx", "5xx", "error")
DISCONNECTS = ("closed", "unavailable", "unauthenticated", "refused", "silent", "rotated", "error")
DROPS = ("line_limit", "total_limit")
LIVES = ("setup", "commands", "artifacts", "cleanup")
FILE_FAILURES = ("lost", "timeout", "broken", "refused")
FAULTS = ("user", "infrastructure")


class Metrics:
    """The series, by what they answer: is there room, what flows, where does time go, is it healthy, is it clean."""

    def __init__(self, version: str = "0", settings: MetricsSettings = DEFAULTS) -> None:
        self.registry = CollectorRegistry()
        self.settings = settings
        self.count_capacity(version)
        self.count_flow()
        self.count_stream()
        self.count_bytes()
        self.count_cluster()
        self.count_itself()
        self.zero()

    def count_capacity(self, version: str) -> None:
        """Is there room?"""
        labels = ("version", "commit", "python")
        self.build_info = self.gauge("build_info", "Always 1; the labels say what runs", *labels)
        self.build_info.labels(version, os.environ.get("SEALCI_COMMIT", ""), platform.python_version()).set(1)
        self.slots = self.gauge("slots", "Sessions that this agent runs at once")
        self.slots_used = self.gauge("slots_used", "Slots in use, environments that are being cleaned included")
        self.slots_available = self.gauge("slots_available", "Slots that an action could have now; 0 while draining")
        self.draining = self.gauge("draining", "1 while the agent takes nothing new because it leaves")

    def count_flow(self) -> None:
        """What comes, what goes, how long does it take, and whose fault is it?"""
        self.actions_received = self.counter("actions_received", "Actions that arrived, repeats excluded")
        self.actions_rejected = self.counter("actions_rejected", "Actions not taken here", "reason")
        self.actions_running = self.gauge("actions_running", "Sessions by what they are doing now", "stage")
        self.actions_completed = self.counter(
            "actions_completed",
            "Outcomes; `fault` says whose a failure is: user or infrastructure",
            *("result", "stage", "reason", "fault"),
        )
        buckets = self.settings
        self.action_duration = self.histogram(
            "action_duration_seconds", "From the arrival of an action to its outcome", buckets.action_buckets, "result"
        )
        self.phase_duration = self.histogram(
            "phase_duration_seconds", "Where the time of an action goes", buckets.phase_buckets, "phase"
        )
        self.command_duration = self.histogram(
            "command_duration_seconds", "One command, as its markers in the log tell", buckets.phase_buckets
        )
        self.adopted = self.counter("sessions_adopted", "Sessions taken over from agents that died or left")
        self.handed_over = self.counter("sessions_handed_over", "Sessions left for another agent to adopt")
        self.superseded = self.counter("sessions_superseded", "Sessions that another agent adopted from this one")
        self.unreadable = self.gauge("sessions_unreadable", "Pods without an agent that tell no session, left alone")

    def count_stream(self) -> None:
        """Is the scheduler there?"""
        self.stream_connected = self.gauge("stream_connected", "1 while registered with the scheduler")
        self.stream_reconnects = self.counter("stream_reconnects", "Streams that ended or never began", "reason")
        self.stream_messages = self.counter("stream_messages", "Messages of the stream", "direction", "type")
        self.events_unacknowledged = self.gauge("events_unacknowledged", "Events kept until they are acknowledged")
        self.calls_waiting = self.gauge("calls_waiting", "Actions of a classic scheduler that wait for a slot")
        self.health_sent = self.gauge("health_last_sent_timestamp_seconds", "When health was last sent; 0: never")
        self.health_answered = self.gauge(
            "health_last_answered_timestamp_seconds", "When the scheduler last answered one; 0: never"
        )

    def count_bytes(self) -> None:
        """What is carried: logs and files."""
        self.log_bytes = self.counter("log_bytes", "Bytes of log sent, as masked; repeats excluded")
        self.log_gaps = self.counter("log_gaps", "Gaps where the node has, or may have, thrown log away", "kind")
        self.log_dropped_bytes = self.counter("log_dropped_bytes", "Bytes of log over a limit", "reason")
        self.log_reopened = self.counter("log_reopened", "Followers of a log that were opened again after a cut")
        self.artifact_files = self.counter("artifact_files", "Files that the scheduler has stored")
        self.artifact_bytes = self.counter("artifact_bytes", "Bytes of files that the scheduler has stored")
        self.artifact_retries = self.counter("artifact_retries", "Copies of files that broke and were made again")
        self.artifact_failures = self.counter("artifact_failures", "Sessions whose files could not be had", "reason")

    def count_cluster(self) -> None:
        """Does Kubernetes answer, and is it left clean?"""
        self.degraded = self.gauge("degraded", "1 while the agent takes nothing new because of the cluster")
        self.cluster_reachable = self.gauge("cluster_reachable", "1 while the Kubernetes API answers")
        self.requests = self.counter("k8s_requests", "Requests to the Kubernetes API", "verb", "resource", "code")
        self.request_duration = self.histogram(
            "k8s_request_duration_seconds",
            "From a request to the head of its answer",
            self.settings.request_buckets,
            *("verb", "resource"),
        )
        self.request_wait = self.histogram(
            "k8s_request_wait_seconds",
            "How long a request was held back by the agent's own limit",
            self.settings.request_buckets,
            "rank",
        )
        self.watch_restarts = self.counter("watch_restarts", "Watches that ended and were opened again")
        self.environments = self.gauge("environments", "Environments of this agent that exist")
        self.swept = self.counter("swept", "Orphans that a sweep removed", "kind")
        self.cleanup_failures = self.counter("cleanup_failures", "Removals that did not succeed in time")
        self.remains = self.gauge("remains", "Objects that could not be removed so far")

    def count_itself(self) -> None:
        """Is the agent well?"""
        self.internal_errors = self.counter("internal_errors", "Errors that should not happen", "where")
        self.loop_lag = self.histogram(
            "event_loop_lag_seconds", "How late the event loop ran what was due, once a second", LAG_BUCKETS
        )
        self.tasks = self.gauge("asyncio_tasks", "Tasks of the event loop")
        ProcessCollector(registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Make a gauge of this agent."""
        return Gauge(f"sealci_agent_{name}", text, labels, registry=self.registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Make a counter of this agent; its name gets `_total`."""
        return Counter(f"sealci_agent_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        """Make a histogram of this agent."""
        return Histogram(f"sealci_agent_{name}", text, labels, registry=self.registry, buckets=tuple(buckets))

    def zero(self) -> None:
        """Make every label combination exist."""
        touch(self.actions_rejected, (each.value for each in Rejection))
        for stage in Stage:
            self.actions_completed.labels(Result.SUCCEEDED.value, stage.value, "", "")
            for reason in Reason:
                result = Result.CANCELLED if reason is Reason.CANCELLED else Result.FAILED
                self.actions_completed.labels(result.value, stage.value, reason.value, fault(reason))
        touch(self.action_duration, (each.value for each in Result))
        touch(self.phase_duration, PHASES)
        touch(self.stream_reconnects, DISCONNECTS)
        touch(self.log_dropped_bytes, DROPS)
        touch(self.log_gaps, ("certain", "possible"))
        touch(self.actions_running, LIVES)
        touch(self.artifact_failures, FILE_FAILURES)
        touch(self.request_wait, RANKS)
        touch(self.swept, ("pod", "lease"))
        touch(self.internal_errors, ("session", "stream", "watch", "sweep", "http"))
        for direction, kinds in MESSAGES.items():
            for kind in kinds:
                self.stream_messages.labels(direction, kind)
        for verb, resource in REQUESTS:
            self.request_duration.labels(verb, resource)
            for code in CODES:
                self.requests.labels(verb, resource, code)

    def text(self) -> bytes:
        """Render all series in the Prometheus text format."""
        return generate_latest(self.registry)


MESSAGES = {
    "sent": ("register", "health", "event", "adopted"),
    "received": ("registered", "refused", "action", "cancel", "ack", "resume", "discard", "drain", "unknown"),
}


def fault(reason: Reason | None) -> str:
    """Say whose fault an outcome is; "" for a success and for what was asked for."""
    if reason is None or reason is Reason.CANCELLED:
        return ""
    return FAULTS[reason.infrastructure]


def touch(metric: MetricWrapperBase, values: Iterable[str]) -> None:
    """Make the series of a metric with one label exist."""
    for value in values:
        metric.labels(value)
