"""Every series of the agent, in one object that is handed to who counts.

One `Metrics` lives as long as the process (tests make their own, with a registry of its own). Label sets are bounded by
enums, never by ids; every combination exists from the first scrape, so that `rate()` and alerts work at once. A fault
of the user (`result="failed"` with a user's reason) is told from a fault of the infrastructure by the reason.
"""

from __future__ import annotations

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

from agent.actions import Result
from agent.errors import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

disable_created_metrics()  # type: ignore[no-untyped-call]

ACTION_BUCKETS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

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
CODES = ("2xx", "4xx", "5xx", "error")
DISCONNECTS = ("closed", "unavailable", "unauthenticated", "refused", "silent", "error")
DROPS = ("line_limit", "total_limit")


class Metrics:
    """The series, by what they answer: is there room, what flows, where does time go, is it healthy, is it clean."""

    def __init__(self, version: str = "0", *, action_buckets: Iterable[float] = ACTION_BUCKETS) -> None:
        self.registry = CollectorRegistry()

        self.build_info = self.gauge("build_info", "Constant 1, labelled with what runs", "version", "python")
        self.build_info.labels(version, platform.python_version()).set(1)
        self.slots = self.gauge("slots", "Sessions that this agent runs at once")
        self.slots_used = self.gauge("slots_used", "Slots in use, environments being cleaned included")
        self.draining = self.gauge("draining", "1 while the agent takes nothing new because it leaves")

        self.actions_received = self.counter("actions_received", "Actions that arrived, repeats excluded")
        self.actions_rejected = self.counter("actions_rejected", "Actions not taken", "reason")
        self.actions_completed = self.counter("actions_completed", "Outcomes", "result", "stage", "reason")
        self.action_duration = self.histogram(
            "action_duration_seconds", "From arrival to outcome", action_buckets, "result"
        )
        self.phase_duration = self.histogram(
            "phase_duration_seconds", "Where the time of an action goes", STAGE_BUCKETS, "phase"
        )

        self.stream_connected = self.gauge("stream_connected", "1 while registered with the scheduler")
        self.stream_reconnects = self.counter("stream_reconnects", "Streams that ended", "reason")
        self.stream_messages = self.counter("stream_messages", "Messages", "direction", "type")
        self.events_unacknowledged = self.gauge("events_unacknowledged", "Events kept until acknowledged")
        self.health_sent = self.gauge("health_last_sent_timestamp_seconds", "When health was last sent")

        self.log_bytes = self.counter("log_bytes", "Bytes of log sent, as masked; repeats excluded")
        self.log_gaps = self.counter("log_gaps", "Gaps where the node has, or may have, thrown log away", "kind")
        self.log_dropped_bytes = self.counter("log_dropped_bytes", "Bytes over a limit", "reason")
        self.log_reopened = self.counter("log_reopened", "Followers opened again after a cut")
        self.artifact_files = self.counter("artifact_files", "Files stored by the scheduler")
        self.artifact_bytes = self.counter("artifact_bytes", "Bytes of files stored by the scheduler")
        self.artifact_retries = self.counter("artifact_retries", "Copies that broke and were made again")

        self.degraded = self.gauge("degraded", "1 while the agent takes nothing new because of the cluster")
        self.cluster_reachable = self.gauge("cluster_reachable", "1 while the Kubernetes API answers")
        self.requests = self.counter("k8s_requests", "Requests to the API", "verb", "resource", "code")
        self.request_duration = self.histogram(
            "k8s_request_duration_seconds", "Until the answer's head", REQUEST_BUCKETS, "verb", "resource"
        )
        self.watch_restarts = self.counter("watch_restarts", "Watches that ended and were opened again")
        self.environments = self.gauge("environments", "Environments of this agent that exist")
        self.adopted = self.counter("sessions_adopted", "Sessions taken over from agents that died or left")
        self.handed_over = self.counter("sessions_handed_over", "Sessions left for another agent to adopt")
        self.superseded = self.counter("sessions_superseded", "Sessions that another agent adopted from this one")
        self.unreadable = self.gauge("sessions_unreadable", "Pods without an agent that tell no session, left alone")
        self.swept = self.counter("swept", "Remains that a sweep removed", "kind")
        self.cleanup_failures = self.counter("cleanup_failures", "Removals that did not succeed in time")
        self.remains = self.gauge("remains", "Objects that could not be removed so far")
        self.internal_errors = self.counter("internal_errors", "Errors that should not happen", "where")
        self.tasks = self.gauge("tasks", "Tasks of the event loop")
        ProcessCollector(registry=self.registry)

        self.zero()

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
            self.actions_completed.labels(Result.SUCCEEDED.value, stage.value, "")
            for reason in Reason:
                result = Result.CANCELLED if reason is Reason.CANCELLED else Result.FAILED
                self.actions_completed.labels(result.value, stage.value, reason.value)
        touch(self.action_duration, (each.value for each in Result))
        touch(self.phase_duration, PHASES)
        touch(self.stream_reconnects, DISCONNECTS)
        touch(self.log_dropped_bytes, DROPS)
        touch(self.log_gaps, ("certain", "possible"))
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
    "sent": ("register", "health", "event"),
    "received": ("registered", "refused", "action", "cancel", "ack", "resume", "discard", "drain", "unknown"),
}


def touch(metric: MetricWrapperBase, values: Iterable[str]) -> None:
    """Make the series of a metric with one label exist."""
    for value in values:
        metric.labels(value)
