"""The report of a failed set-up or a failed action, for the person who reads its log: what, where, why, what to do.

A report reads the pod's events, and the output of a failed clone, at the moment of the failure. If the read fails, the
report contains the error, and the original failure stays. Only `StartupEvents` keeps state. A `StartupEvents` lives as
long as its environment.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.cluster.pod.setup_status import STARTING, sandbox_failure
from agent.cluster.supervisor.termination import RECORD
from agent.domain.errors import ClusterError, Reason
from agent.domain.json import Object
from agent.domain.observations import Lost, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.api.client import Client
    from agent.cluster.environment.context import EnvironmentTimings
    from agent.domain.observations import Observation

log = structlog.get_logger(__name__)

ADVICE = {
    Reason.IMAGE_PULL_FAILED: "Check the name and the tag of the image, and that the cluster may pull it"
    " (private registries need a pull secret in the agent's pod template).",
    Reason.UNSCHEDULABLE: "Ask for less cpu or memory, or for more room in the cluster.",
    Reason.REPOSITORY_FAILED: "Check url and ref of the repository, and the Secret named in its credentials.",
    Reason.SERVICE_FAILED: "Check the image, the variables, the ports and the health command of the service."
    " Its last lines follow.",
    Reason.INVALID_CONFIGURATION: "Change the action's configuration, or choose another image.",
    Reason.QUOTA_EXCEEDED: "The namespace of actions has a quota: wait for other actions to end, or ask for less.",
    Reason.EVICTED: "The node ran out of a resource that the action used, or was drained. Run the action again.",
    Reason.PREEMPTED: "The cluster gave the place to a pod of higher priority. Run the action again.",
    Reason.NODE_LOST: "The node went away. Run the action again.",
    Reason.POD_DELETED: "A person or a program other than the agent deleted the pod.",
    Reason.CLUSTER_UNAVAILABLE: "The agent may lack a permission, or the cluster does not answer."
    " Ask the operators of the agent.",
}
# Texts of the container runtime, git and ssh for a host that has no address or whose address no program answers.
UNREACHABLE = re.compile(
    r"no such host|server misbehaving|could not resolve host|failure in name resolution|name or service not known|"
    r"network is unreachable|no route to host|connection refused|couldn't connect to server|i/o timeout|"
    r"connection timed out",
    re.IGNORECASE,
)
WAY_OUT = {
    Reason.IMAGE_PULL_FAILED: "The node cannot reach the registry of the image, so use an image that the nodes have,"
    " or give the cluster a way out.",
    Reason.REPOSITORY_FAILED: "The pod cannot reach the host of the repository, so use a host that the cluster reaches,"
    " or give the cluster a way out.",
}
# Maximum number of events in a report.
MAX_EVENTS = 20
# Event reasons that explain no delay. Most occur in every pod. FailedScheduling no longer applies when containers
# start.
ROUTINE = ("Scheduled", "Pulled", "Created", "Started", "FailedScheduling", "Killing")
SANDBOX = "FailedCreatePodSandBox"
# Parts of a sandbox error message that differ at each try: ids of sandboxes, and the prefix of combined events.
DIFFERS = re.compile(r"\b[0-9a-f]{12,}\b|^\(combined from similar events\): ")
# Event reasons that mean a failure of the node, even if the pod was waiting for its image.
BY_NODE = (SANDBOX, "FailedMount", "FailedAttachVolume", "NetworkNotReady", "FailedPodSandBoxStatus")
# Maximum number of bytes of a container's output in a report.
MAX_OUTPUT = 64 * 1024


def refusal_text(error: ClusterError) -> str:
    """Return the report for an environment that the API server refused."""
    advice = [] if error.has_advice else advice_lines(error.reason)
    return "\n".join(["The environment could not be created.", "", f"  {error.message}", *advice])


async def add_report(
    client: Client, path: str, pod: Object | None, failure: SetupFailed | Lost, retry_seconds: float
) -> SetupFailed | Lost:
    """Return the failure with its report. If an event explains a slow start, add the event to the message."""
    events: list[Object] = []
    lines: list[str] = []
    output = ""
    if pod is not None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        try:
            events = await list_events(client, path, uid, retry_seconds)
            lines = list(event_lines(events))
        except ClusterError as error:
            lines = [f"they cannot be read: {error.message}"]
        if failure.reason is Reason.REPOSITORY_FAILED:
            output = await read_output(client, f"{path}/{name}/log", "repository")
        slow_start = isinstance(failure, SetupFailed) and failure.message.startswith(STARTING)
        if slow_start and (event := newest_cause(events)):
            by_node = event.get("reason", "") in BY_NODE
            reason = Reason.CLUSTER_UNAVAILABLE if by_node else failure.reason
            failure = replace(failure, reason=reason, message=f"{failure.message}: {summary(event)}")
    return replace(failure, log=report_text(pod, failure, lines, output))


class StartupEvents:
    """The newest event that explains a slow start, such as a missing sandbox or volume. Owned by one environment.

    A pod's status does not show the cause. While a start is not slow, this class sends no request. A sandbox that has
    failed with the same message for `grace` seconds becomes a failure.
    """

    def __init__(self, client: Client, path: str, timings: EnvironmentTimings, grace: float) -> None:
        self.client = client
        self.path = path
        self.grace = grace
        self.slow_start_seconds = timings.slow_start_seconds
        self.interval_seconds = timings.events_interval_seconds
        self.retry_seconds = timings.events_retry_seconds
        self.starting_since: float | None = None
        self.last_read = 0.0
        self.cause = ""
        self.sandbox_error: str | None = None
        self.failing_since = 0.0

    async def describe_wait(self, pod: Object | None, observation: Observation, now: float) -> Observation:
        """Return the observation, with the event that explains a slow start, if any. `now` is monotonic seconds.

        Return a failure instead if the pod's sandbox cannot be started.
        """
        if pod is None or not isinstance(observation, Waiting) or observation.detail != STARTING:
            self.starting_since = None
            return observation
        if self.starting_since is None:
            self.starting_since, self.cause, self.sandbox_error = now, "", None
            self.last_read = now - self.interval_seconds + self.slow_start_seconds
        if self.recheck_at() <= now:
            self.last_read = now
            events = await self.read(pod)
            event = newest_cause(events)
            self.cause = summary(event) if event else ""
            if failure := self.judge_sandbox(pod, events, now):
                return failure
        return Waiting(f"{STARTING}: {self.cause}") if self.cause else observation

    async def read(self, pod: Object) -> list[Object]:
        """Return the events of the pod. Empty if they cannot be read."""
        try:
            return await list_events(self.client, self.path, pod["metadata"]["uid"], self.retry_seconds)
        except ClusterError as error:
            log.info("cannot read the events of a pod", error=error.message)
            return []

    def judge_sandbox(self, pod: Object, events: list[Object], now: float) -> SetupFailed | None:
        """Return a failure if the sandbox has failed more than once, with the same message, for `grace` seconds."""
        message, count = ("", 0) if has_sandbox(pod) else repeated_sandbox_error(events)
        if message != self.sandbox_error:
            # A sandbox error that the first read of the events finds counts as present since the start of the wait.
            since = now if self.sandbox_error is not None else self.starting_since
            self.sandbox_error, self.failing_since = message, now if since is None else since
        if not message or count < 2 or now - self.failing_since < self.grace:
            return None
        event = newest_cause(events) or {}
        # Judge the whole message and not its summary, because the end of the message names the cause.
        return sandbox_failure(" ".join(event.get("message", "").split()))

    def recheck_at(self) -> float:
        """Return the time of the next read of the pod's events, in monotonic seconds."""
        at = self.last_read + self.interval_seconds
        end_of_grace = self.failing_since + self.grace
        return min(at, end_of_grace) if self.sandbox_error and self.last_read < end_of_grace else at

    def recheck(self, now: float) -> float | None:
        """Return the seconds until the next read of the events. None if the pod is not starting."""
        return None if self.starting_since is None else max(0.1, self.recheck_at() - now)


def has_sandbox(pod: Object) -> bool:
    """Return whether the kubelet reports that the pod's sandbox is ready."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "PodReadyToStartContainers" and each["status"] == "True" for each in conditions)


def repeated_sandbox_error(events: list[Object]) -> tuple[str, int]:
    """Return the newest error of a sandbox, and how often it occurred; "" and 0 if the newest event is of another kind.

    The error is the message of the event without the parts that differ at each try.
    """
    ordered = [event for event in sort_by_time(events) if event.get("reason") not in ("Scheduled", "FailedScheduling")]
    if not ordered or ordered[-1].get("reason") != SANDBOX:
        return "", 0
    errors = [(DIFFERS.sub("", event.get("message", "")), event) for event in ordered if event["reason"] == SANDBOX]
    newest = errors[-1][0]
    return newest, sum(occurrences(event) for error, event in errors if error == newest)


def occurrences(event: Object) -> int:
    """Return how often an event occurred. The older and the newer form of the Events API are understood."""
    return int(event.get("count") or (event.get("series") or {}).get("count") or 1)


def newest_cause(events: list[Object]) -> Object | None:
    """Return the newest event that can explain why a pod does not start. None if there is no such event."""
    causes = [event for event in sort_by_time(events) if event.get("reason") not in ROUTINE]
    return causes[-1] if causes else None


def summary(event: Object) -> str:
    """Return reason and message of an event in one line."""
    return f"{event.get('reason', '')}: {' '.join(event.get('message', '').split())}"[:500]


def sort_by_time(events: list[Object]) -> list[Object]:
    """Return the events, oldest first."""
    return sorted(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")


async def describe_failed_pod(client: Client, path: str, pod: Object, retry_seconds: float) -> str:
    """Return a text that describes the containers and the warning events of a pod whose commands failed."""
    lines = ["Containers:", *container_lines(pod)]
    try:
        events = await list_events(client, path, pod["metadata"]["uid"], retry_seconds)
    except ClusterError as error:
        return "\n".join([*lines, f"Its events cannot be read: {error.message}"])
    warnings = [event for event in events if event.get("type") != "Normal"]
    if warnings:
        return "\n".join([*lines, "Warnings among its events:", *event_lines(warnings)])
    return "\n".join([*lines, f"Events: {len(events)}, none of them a warning"])


def report_text(pod: Object | None, failure: SetupFailed | Lost, events: list[str], output: str) -> str:
    """Return the text of a report from its parts. `events` are lines; `output` is the output of the clone."""
    what = "The environment could not be set up" if isinstance(failure, SetupFailed) else "The environment was lost"
    parts = [f"{what}: {failure.message}"]
    if failure.log and failure.log != failure.message:
        parts += ["", failure.log]
    if output:
        parts += ["", "Output of the clone:", *(f"  {line}" for line in output.splitlines())]
    if pod is not None:
        parts += ["", "Containers:", *container_lines(pod)]
    if events:
        parts += ["", "Events of the pod:", *(f"  {each}" for each in events)]
    unreachable = UNREACHABLE.search(f"{failure.message}\n{output}")
    way_out = ["", WAY_OUT[failure.reason]] if unreachable and failure.reason in WAY_OUT else []
    return "\n".join([*parts, *way_out, *advice_lines(failure.reason)])


def advice_lines(reason: Reason) -> list[str]:
    return ["", ADVICE[reason]] if reason in ADVICE else []


def container_lines(pod: Object) -> Iterator[str]:
    """Yield a line for each container: what it waits for, or how it ended."""
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        for kind, state in each.get("state", {}).items():
            # The supervisor's record in the termination message is meant for the agent, not for people.
            details = [state.get("reason", ""), RECORD.sub("", state.get("message", ""))]
            if "exitCode" in state:
                details.insert(0, f"exit code {state['exitCode']}")
            detail = ": ".join(part.strip() for part in details if part.strip())
            yield f"  {each['name']} ({each.get('image', '')}): {kind}{f': {detail}' if detail else ''}"
    if not status.get("containerStatuses"):
        yield "  none was started" + (f": {status['message']}" if status.get("message") else "")


def event_lines(events: list[Object]) -> Iterator[str]:
    """Yield a line for each of the newest events, oldest first."""
    for event in sort_by_time(events)[-MAX_EVENTS:]:
        times = f" (x{event['count']})" if event.get("count", 1) and event.get("count", 1) > 1 else ""
        yield f"{event.get('type', '')} {event.get('reason', '')}{times}: {event.get('message', '').strip()}"


async def list_events(client: Client, path: str, uid: str, retry_seconds: float) -> list[Object]:
    """Read the events of the pod with this UID. `path` is the API path of the pods in the namespace of the pod.

    Raises:
        ClusterError: the events cannot be read, after retries for `retry_seconds`.
    """
    query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
    events_path = f"{path.rsplit('/', 1)[0]}/events"
    answer = await client.retry(
        "list events", lambda: client.request("list", "events", events_path, query=query), seconds=retry_seconds
    )
    return list(answer.get("items", ()))


async def read_output(client: Client, path: str, container: str) -> str:
    """Return the last lines of a container's output. "" if they cannot be read."""
    query = {"container": container, "limitBytes": str(MAX_OUTPUT), "tailLines": "200"}
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with client.stream("get", "pods/log", path, query=query, timeout=timeout) as response:
            return (await response.read())[:MAX_OUTPUT].decode("utf-8", "replace")
    except (ClusterError, aiohttp.ClientError, OSError, TimeoutError) as error:
        log.info("cannot read the output of a container", container=container, error=str(error))
        return ""
