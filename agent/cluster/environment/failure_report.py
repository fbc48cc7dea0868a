"""The log of a failed set-up, written for the person whose action it was: what, where, why, and what to do.

Reads the pod's events and the output of the clone at that one moment; nothing is kept. A failure to read them never
hides the failure that is being explained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.cluster.pod.setup_status import STARTING
from agent.cluster.supervisor.termination import RECORD
from agent.domain.errors import ClusterError, Reason
from agent.domain.json import Object
from agent.domain.observations import Lost, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.api.client import Client
    from agent.domain.observations import Observation

log = structlog.get_logger(__name__)

ADVICE = {
    Reason.IMAGE_PULL_FAILED: "Check the name and the tag of the image, and that the cluster may pull it"
    " (private registries need a pull secret in the agent's pod template).",
    Reason.UNSCHEDULABLE: "Ask for less cpu or memory, or for more room in the cluster.",
    Reason.REPOSITORY_FAILED: "Check url and ref of the repository, and the Secret named in its credentials.",
    Reason.INVALID_CONFIGURATION: "Change the action's configuration, or choose another image.",
    Reason.QUOTA_EXCEEDED: "The namespace of actions has a quota: wait for other actions, or ask for less.",
    Reason.EVICTED: "The node ran out of what the action used, or was drained; the action can be tried again.",
    Reason.PREEMPTED: "A pod of higher priority took the place; the action can be tried again.",
    Reason.NODE_LOST: "The node went away; the action can be tried again.",
    Reason.POD_DELETED: "Somebody or something other than the agent deleted the pod.",
    Reason.CLUSTER_UNAVAILABLE: "The agent may lack a right, or the cluster does not answer; ask who runs the agent.",
}
MAX_EVENTS = 20
# A start that takes this long is slow, seconds; its events are read then, and again at an interval.
EVENTS_AFTER, EVENTS_EVERY = 6.0, 15.0
# What every pod goes through says nothing of a delay, and an older trouble with finding a node is over.
ROUTINE = ("Scheduled", "Pulled", "Created", "Started", "FailedScheduling", "Killing")
# Not the image's fault, whatever was waited for.
BY_NODE = ("FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume", "NetworkNotReady", "FailedPodSandBoxStatus")
# For its events at the end a failed set-up waits so long, seconds.
PATIENCE = 5.0
MAX_OUTPUT = 64 * 1024


def refused(error: ClusterError) -> str:
    """Return the text for an environment that could not even be created."""
    return "\n".join(["The environment could not be created.", "", f"  {error.message}", *advice(error.reason)])


async def explained(client: Client, path: str, pod: Object | None, seen: SetupFailed | Lost) -> SetupFailed | Lost:
    """Return the observation with its text."""
    events: list[Object] = []
    lines: list[str] = []
    output = ""
    if pod is not None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        try:
            events = await events_of(client, path.rsplit("/", 1)[0], uid)
            lines = list(event_lines(events))
        except ClusterError as error:
            lines = [f"they cannot be read: {error.message}"]
        if seen.reason is Reason.REPOSITORY_FAILED:
            output = await output_of(client, f"{path}/{name}/log", "repository")
        if isinstance(seen, SetupFailed) and seen.message.startswith(STARTING) and (event := telling(events)):
            by_node = event.get("reason", "") in BY_NODE
            reason = Reason.CLUSTER_UNAVAILABLE if by_node else seen.reason
            seen = replace(seen, reason=reason, message=f"{seen.message}: {said(event)}")
    return replace(seen, log=text(pod, seen, lines, output))


class SlowStart:
    """What the events of a pod say whose status only says that it starts: no sandbox, no volume, a long pull.

    Lives as long as its environment, and asks for nothing while a start is as quick as it should be.
    """

    def __init__(self, client: Client, path: str) -> None:
        self.client = client
        self.path = path
        self.since: float | None = None
        self.asked = 0.0
        self.known = ""

    async def told(self, pod: Object | None, seen: Observation, now: float) -> Observation:
        """Return the observation with what the events say; `now` is monotonic seconds."""
        if pod is None or not isinstance(seen, Waiting) or seen.detail != STARTING:
            self.since = None
            return seen
        if self.since is None:
            self.since, self.asked, self.known = now, now - EVENTS_EVERY + EVENTS_AFTER, ""
        if now - self.asked >= EVENTS_EVERY:
            self.asked = now
            try:
                event = telling(await events_of(self.client, self.path.rsplit("/", 1)[0], pod["metadata"]["uid"]))
            except ClusterError as error:
                log.info("the events of a pod cannot be read", error=error.message)
                event = None
            self.known = said(event) if event else ""
        return Waiting(f"{STARTING}: {self.known}") if self.known else seen

    def recheck(self, now: float) -> float | None:
        """Return in how many seconds the events are to be read again."""
        return None if self.since is None else max(0.1, self.asked + EVENTS_EVERY - now)


def telling(events: list[Object]) -> Object | None:
    """Return the newest event that tells why a pod does not start."""
    known = [event for event in by_time(events) if event.get("reason") not in ROUTINE]
    return known[-1] if known else None


def said(event: Object) -> str:
    """Return what an event says, for one line."""
    return f"{event.get('reason', '')}: {' '.join(event.get('message', '').split())}"[:500]


def by_time(events: list[Object]) -> list[Object]:
    """Return events, oldest first."""
    return sorted(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")


async def described(client: Client, path: str, pod: Object) -> str:
    """Return what the cluster says of a pod whose commands failed: its containers, and what was warned of."""
    try:
        events = await events_of(client, path.rsplit("/", 1)[0], pod["metadata"]["uid"])
    except ClusterError as error:
        return "\n".join(["Containers:", *container_lines(pod), f"Its events cannot be read: {error.message}"])
    warnings = [event for event in events if event.get("type") != "Normal"]
    told = ["Warnings among its events:", *event_lines(warnings)] if warnings else []
    told = told or [f"Events: {len(events)}, none of them a warning"]
    return "\n".join(["Containers:", *container_lines(pod), *told])


def text(pod: Object | None, seen: SetupFailed | Lost, events: list[str], output: str) -> str:
    """Write the set-up log."""
    failed = "The environment could not be set up" if isinstance(seen, SetupFailed) else "The environment was lost"
    parts = [f"{failed}: {seen.message}"]
    if seen.log and seen.log != seen.message:
        parts += ["", seen.log]
    if output:
        parts += ["", "Output of the clone:", *(f"  {line}" for line in output.splitlines())]
    if pod is not None:
        parts += ["", "Containers:", *container_lines(pod)]
    if events:
        parts += ["", "Events of the pod:", *(f"  {each}" for each in events)]
    return "\n".join([*parts, *advice(seen.reason)])


def advice(reason: Reason) -> list[str]:
    """Say what can be done."""
    return ["", ADVICE[reason]] if reason in ADVICE else []


def container_lines(pod: Object) -> Iterator[str]:
    """Say of each container what it waits for or how it ended."""
    status = pod.get("status", {})
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        for kind, state in each.get("state", {}).items():
            # What the supervisor wrote down there is for the agent.
            words = [state.get("reason", ""), RECORD.sub("", state.get("message", ""))]
            if "exitCode" in state:
                words.insert(0, f"exit code {state['exitCode']}")
            said = ": ".join(word.strip() for word in words if word.strip())
            yield f"  {each['name']} ({each.get('image', '')}): {kind}{f': {said}' if said else ''}"
    if not status.get("containerStatuses"):
        yield "  none was started" + (f": {status['message']}" if status.get("message") else "")


def event_lines(events: list[Object]) -> Iterator[str]:
    """Say each event once, oldest first."""
    for event in by_time(events)[-MAX_EVENTS:]:
        times = f" (x{event['count']})" if event.get("count", 1) and event.get("count", 1) > 1 else ""
        yield f"{event.get('type', '')} {event.get('reason', '')}{times}: {event.get('message', '').strip()}"


async def events_of(client: Client, namespace_path: str, uid: str) -> list[Object]:
    """Read the events of a pod.

    Raises:
        ClusterError: they cannot be read.
    """
    query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": "100"}
    answer = await client.patiently(
        "list events",
        lambda: client.request("list", "events", f"{namespace_path}/events", query=query),
        seconds=PATIENCE,
    )
    return list(answer.get("items", ()))


async def output_of(client: Client, path: str, container: str) -> str:
    """Read the end of a container's output."""
    query = {"container": container, "limitBytes": str(MAX_OUTPUT), "tailLines": "200"}
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with client.stream("get", "pods/log", path, query=query, timeout=timeout) as response:
            return (await response.read())[:MAX_OUTPUT].decode("utf-8", "replace")
    except (ClusterError, aiohttp.ClientError, OSError, TimeoutError) as error:
        log.info("the output of a container cannot be read", container=container, error=str(error))
        return ""
