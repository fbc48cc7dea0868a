"""Define every metric of the agent.

One `Metrics` lives as long as the process and is passed to every component that counts. A test creates a `Metrics` with
a registry of its own. Label values come from enums and constants, never from ids. Every label combination exists from
the first scrape, because `rate()` and alerts miss the first increase of a series that appears later. The label `fault`
separates failures of users from failures of the infrastructure. `docs/metrics.md` is generated from this module.
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

DEFAULT_SETTINGS = MetricsSettings()
# Upper bounds of the buckets of the event loop's lag, in seconds.
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

PHASES = ("schedule", "pull", "clone", "inputs", "services", "commands", "artifacts", "cleanup")
# Verb and resource of every request that the agent sends to the Kubernetes API.
API_REQUESTS = (
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
    ("patch", "pods/resize"),
    ("list", "leases"),
    ("watch", "leases"),
    ("create", "leases"),
    ("patch", "leases"),
    ("delete", "leases"),
)
REQUEST_PRIORITIES = ("alive", "going", "new", "refill")
RESPONSE_CODES = ("2xx", "4xx", "5xx", "error")
DISCONNECT_REASONS = ("closed", "unavailable", "unauthenticated", "refused", "silent", "rotated", "error")
# `warm`, or why an action got a pod of its own: no pool fits, the pool has no pod that waits, the claim or the delivery
# failed, and what only a pod of its own can have.
WARM_RESULTS = (
    "warm",
    "cold_no_pool",
    "cold_empty",
    "cold_lost",
    "cold_caches",
    "cold_image",
    "cold_inputs",
    "cold_repository",
    "cold_services",
    "cold_size",
    "cold_variable",
)
CACHE_RESULTS = {
    "restore": ("hit", "fallback", "miss", "skipped"),
    "save": ("saved", "exists", "skipped", "failed"),
}
NUDGE_RESULTS = ("accepted", "refused", "failed", "skipped")
LOG_DROP_REASONS = ("line_limit", "total_limit", "gap")
SESSION_STAGES = ("setup", "commands", "artifacts", "cleanup")
ARTIFACT_FAILURE_REASONS = ("lost", "timeout", "broken", "refused", "store")
OBJECT_DIRECTIONS = ("put", "got")
# Kinds of messages on the stream, by direction.
STREAM_MESSAGES = {
    "sent": ("register", "health", "event", "adopted"),
    "received": ("registered", "refused", "action", "cancel", "ack", "resume", "discard", "drain", "unknown"),
}
# Components that survive an unexpected error. An unexpected error of any other component ends the process.
SURVIVING_COMPONENTS = ("session", "stream", "watch", "http")


class Metrics:
    """All metrics of one agent, with their registry. A process has only one instance."""

    def __init__(self, version: str = "0", settings: MetricsSettings = DEFAULT_SETTINGS) -> None:
        self.registry = CollectorRegistry()
        self.settings = settings
        self.define_capacity(version)
        self.define_flow()
        self.define_stream()
        self.define_bytes()
        self.define_cluster()
        self.define_process()
        self.create_all_series()

    def define_capacity(self, version: str) -> None:
        """Create the metrics of slots, and the metric whose label shows `version`."""
        labels = ("version", "commit", "python")
        self.build_info = self.gauge("build_info", "Always 1. The labels hold the version of the agent.", *labels)
        self.build_info.labels(version, os.environ.get("SEALCI_COMMIT", ""), platform.python_version()).set(1)
        self.slots = self.gauge("slots", "Number of slots, as configured.")
        self.slots_used = self.gauge("slots_used", "Slots in use. A session keeps its slot until its pod is gone.")
        self.slots_available = self.gauge("slots_available", "Free slots. 0 while the agent drains.")
        self.draining = self.gauge("draining", "1 while the agent accepts no actions because it shuts down.")

    def define_flow(self) -> None:
        """Create the metrics of actions and sessions."""
        self.actions_received = self.counter("actions_received", "Actions received, repeated deliveries excluded.")
        self.actions_rejected = self.counter("actions_rejected", "Actions that the agent rejected.", "reason")
        self.actions_running = self.gauge("actions_running", "Running sessions by stage.", "stage")
        self.actions_completed = self.counter(
            "actions_completed",
            "Actions with an outcome. `fault` is user or infrastructure, or empty.",
            *("result", "stage", "reason", "fault"),
        )
        buckets = self.settings
        self.action_duration = self.histogram(
            "action_duration_seconds",
            "Time from the receipt of an action to its outcome.",
            buckets.action_buckets,
            "result",
        )
        self.phase_duration = self.histogram(
            "phase_duration_seconds", "Time that an action spends in each phase.", buckets.phase_buckets, "phase"
        )
        self.command_duration = self.histogram(
            "command_duration_seconds",
            "Time between the start marker and the end marker of a command.",
            buckets.phase_buckets,
        )
        self.services = self.counter(
            "services", "Services of actions with an outcome, by whether they became ready.", "result"
        )
        self.adopted = self.counter("sessions_adopted", "Sessions that this agent adopted from other agents.")
        self.handed_over = self.counter(
            "sessions_handed_over", "Sessions released at shutdown, for another agent to adopt."
        )
        self.superseded = self.counter("sessions_superseded", "Sessions of this agent that another agent adopted.")
        self.unreadable = self.gauge(
            "sessions_unreadable", "Orphaned pods with an unreadable session annotation. They are not adopted."
        )

    def define_stream(self) -> None:
        """Create the metrics of the connection to the scheduler."""
        self.stream_connected = self.gauge("stream_connected", "1 while the agent is registered with the scheduler.")
        self.stream_reconnects = self.counter(
            "stream_reconnects", "Streams that ended, and failed attempts to connect.", "reason"
        )
        self.stream_messages = self.counter(
            "stream_messages", "Messages on the stream to the scheduler.", "direction", "type"
        )
        self.events_unacknowledged = self.gauge(
            "events_unacknowledged", "Events that wait for an acknowledgement of the scheduler."
        )
        self.calls_waiting = self.gauge("calls_waiting", "Actions of a classic scheduler that wait for a slot.")
        self.health_sent = self.gauge(
            "health_last_sent_timestamp_seconds", "Unix time of the last health message to the scheduler. 0 if none."
        )
        self.health_answered = self.gauge(
            "health_last_answered_timestamp_seconds",
            "Unix time of the scheduler's last answer to a health message. 0 if none.",
        )

    def define_bytes(self) -> None:
        """Create the metrics of logs and artifacts."""
        self.log_bytes = self.counter("log_bytes", "Bytes of log sent, after masking and without repeated deliveries.")
        self.log_gaps = self.counter(
            "log_gaps", "Log gaps: parts of a log that container `helper` and the node no longer had.", "kind"
        )
        self.log_dropped_bytes = self.counter(
            "log_dropped_bytes", "Bytes of log dropped because of a limit, or missing in a gap.", "reason"
        )
        self.log_reopened = self.counter("log_reopened", "Log streams re-opened after an interruption.")
        self.artifact_files = self.counter("artifact_files", "Artifact files that the scheduler stored.")
        self.artifact_bytes = self.counter("artifact_bytes", "Bytes of artifact files that the scheduler stored.")
        self.artifact_retries = self.counter("artifact_retries", "Repeated attempts to copy the files of a session.")
        self.input_files = self.counter("input_files", "Files of other actions that were copied into a workspace.")
        self.input_bytes = self.counter("input_bytes", "Bytes of those files.")
        self.input_retries = self.counter("input_retries", "Repeated attempts to copy the inputs of a session.")
        self.cache_operations = self.counter(
            "cache_operations", "Caches of actions, by what happened to them.", "operation", "result"
        )
        self.cache_bytes = self.counter("cache_bytes", "Bytes of archives restored or saved.", "operation")
        self.cache_seconds = self.histogram(
            "cache_seconds", "Time to restore or save one cache.", self.settings.phase_buckets, "operation"
        )
        self.objects = self.counter(
            "objects", "Files that pods put into the object store as artifacts, or got from it as inputs.", "direction"
        )
        self.object_bytes = self.counter("object_bytes", "Bytes of those files.", "direction")
        self.object_fallbacks = self.counter(
            "object_fallbacks", "Sessions whose files went through the scheduler, because the object store failed."
        )
        self.artifact_failures = self.counter(
            "artifact_failures", "Sessions whose files could not be copied.", "reason"
        )

    def define_cluster(self) -> None:
        """Create the metrics of the Kubernetes API and of clean-up."""
        self.degraded = self.gauge("degraded", "1 while the agent accepts no actions because of the cluster.")
        self.cluster_reachable = self.gauge("cluster_reachable", "1 while the Kubernetes API answers requests.")
        self.requests = self.counter("k8s_requests", "Requests to the Kubernetes API.", "verb", "resource", "code")
        self.request_duration = self.histogram(
            "k8s_request_duration_seconds",
            "Time from a request to the headers of the response.",
            self.settings.request_buckets,
            *("verb", "resource"),
        )
        self.request_wait = self.histogram(
            "k8s_request_wait_seconds",
            "Time that a request waited for the client-side rate limit.",
            self.settings.request_buckets,
            "rank",
        )
        self.nudges = self.counter(
            "kubelet_nudges", "Resizes of container `helper` that make the kubelet look at a pod at once.", "result"
        )
        self.warm_pods = self.gauge("warm_pods", "Warm pods that no action has claimed.", "state")
        self.warm_claims = self.counter(
            "warm_claims",
            "Actions that got a warm pod, or a pod of their own and why. Counted only if warm pods are on.",
            "result",
        )
        self.warm_claim_seconds = self.histogram(
            "warm_claim_seconds",
            "Time from the claim of a warm pod to the start of the commands.",
            self.settings.request_buckets,
        )
        self.warm_pod_seconds = self.counter(
            "warm_pod_seconds", "Age of warm pods when an action claimed them, or when they were deleted unused.", "use"
        )
        self.watch_restarts = self.counter("watch_restarts", "Watches re-opened after they ended.")
        self.environments = self.gauge("environments", "Environments that this agent owns.")
        self.swept = self.counter("swept", "Orphans that a sweep deleted.", "kind")
        self.cleanup_failures = self.counter("cleanup_failures", "Deletions that failed or did not finish in time.")
        self.remains = self.gauge("remains", "Orphaned pods that the agent has failed to delete so far.")

    def define_process(self) -> None:
        """Create the metrics of the agent's own process."""
        self.internal_errors = self.counter(
            "internal_errors", "Unexpected errors. Each points to a defect of the agent or of its peer.", "where"
        )
        self.loop_lag = self.histogram(
            "event_loop_lag_seconds", "Delay of a timer of the event loop, measured once a second.", LAG_BUCKETS
        )
        self.tasks = self.gauge("asyncio_tasks", "Number of tasks of the event loop.")
        ProcessCollector(registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Return a new gauge with the prefix `sealci_agent_`."""
        return Gauge(f"sealci_agent_{name}", text, labels, registry=self.registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Return a new counter with the prefix `sealci_agent_`. The exposition adds the suffix `_total`."""
        return Counter(f"sealci_agent_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        """Return a new histogram with the prefix `sealci_agent_`."""
        return Histogram(f"sealci_agent_{name}", text, labels, registry=self.registry, buckets=tuple(buckets))

    def create_all_series(self) -> None:
        """Create every label combination with the value 0."""
        create_series(self.actions_rejected, (each.value for each in Rejection))
        for stage in Stage:
            self.actions_completed.labels(Result.SUCCEEDED.value, stage.value, "", "")
            for reason in Reason:
                result = Result.CANCELLED if reason is Reason.CANCELLED else Result.FAILED
                self.actions_completed.labels(result.value, stage.value, reason.value, fault(reason))
        create_series(self.action_duration, (each.value for each in Result))
        create_series(self.phase_duration, PHASES)
        create_series(self.services, ("ready", "not_ready"))
        create_series(self.stream_reconnects, DISCONNECT_REASONS)
        create_series(self.log_dropped_bytes, LOG_DROP_REASONS)
        create_series(self.log_gaps, ("certain",))
        create_series(self.actions_running, SESSION_STAGES)
        create_series(self.artifact_failures, ARTIFACT_FAILURE_REASONS)
        for operation, names in CACHE_RESULTS.items():
            for name in names:
                self.cache_operations.labels(operation, name)
        create_series(self.cache_bytes, CACHE_RESULTS)
        create_series(self.cache_seconds, CACHE_RESULTS)
        create_series(self.objects, OBJECT_DIRECTIONS)
        create_series(self.object_bytes, OBJECT_DIRECTIONS)
        create_series(self.request_wait, REQUEST_PRIORITIES)
        create_series(self.nudges, NUDGE_RESULTS)
        create_series(self.warm_pods, ("starting", "idle"))
        create_series(self.warm_claims, WARM_RESULTS)
        create_series(self.warm_pod_seconds, ("claimed", "wasted"))
        create_series(self.swept, ("pod", "lease"))
        create_series(self.internal_errors, SURVIVING_COMPONENTS)
        for direction, kinds in STREAM_MESSAGES.items():
            for kind in kinds:
                self.stream_messages.labels(direction, kind)
        for verb, resource in API_REQUESTS:
            self.request_duration.labels(verb, resource)
            for code in RESPONSE_CODES:
                self.requests.labels(verb, resource, code)

    def text(self) -> bytes:
        """Return all series in the Prometheus text format."""
        return generate_latest(self.registry)


def fault(reason: Reason | None) -> str:
    """Return the value of the label `fault` for an outcome. Success and cancellation have the value ""."""
    return "" if reason is None else reason.fault


def create_series(metric: MetricWrapperBase, values: Iterable[str]) -> None:
    """Create the series of a metric with one label, one for each value."""
    for value in values:
        metric.labels(value)
