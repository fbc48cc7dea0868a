"""The report of a failed set-up of a pod: what failed, where, why, and what the user can do.

If the agent cannot read the cause, the report still states that the set-up failed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.environment import failure_report
from agent.cluster.environment.context import EnvironmentTimings
from agent.cluster.pod.setup_status import STARTING
from agent.domain.errors import ClusterError, Reason
from agent.domain.json import Object
from agent.domain.observations import Lost, SetupFailed, Waiting
from tests.fakes.api import FakeApi, pod_of

if TYPE_CHECKING:
    from agent.cluster.api.client import Client

TIMINGS = EnvironmentTimings(slow_start_seconds=6.0, events_interval_seconds=15.0)
PATH = "/api/v1/namespaces/ci/pods"
PULL = SetupFailed(Reason.IMAGE_PULL_FAILED, "the image of action cannot be pulled: not found")


def pod() -> Object:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "fatal: not found\n"}}
    return pod_of(
        "p",
        "uid-1",
        phase="Pending",
        initContainerStatuses=[{"name": "repository", "image": "agent:1", "state": ended}],
        containerStatuses=[{"name": "action", "image": "nope:1", "state": waiting}],
    )


async def add_report(client: Client, pod: Object | None, failure: SetupFailed | Lost) -> SetupFailed | Lost:
    return await failure_report.add_report(client, PATH, pod, failure, TIMINGS.events_retry_seconds)


def event(message: str, at: str, count: int = 1) -> Object:
    told = {"type": "Warning", "reason": "Failed", "message": message, "count": count, "lastTimestamp": at}
    return told | {"involvedObject": {"uid": "uid-1"}}


async def test_a_report_has_failure_containers_events_and_advice_in_order(api: FakeApi) -> None:
    api.events = [event("second", "2026-11-24T08:00:02Z", 3), event("first", "2026-11-24T08:00:01Z")]
    async with api.serving() as client:
        found = await add_report(client, pod(), PULL)
    assert (found.reason, found.message) == (PULL.reason, PULL.message)
    assert found.log.splitlines() == [
        "The environment could not be set up: the image of action cannot be pulled: not found",
        "",
        "Containers:",
        "  repository (agent:1): terminated: exit code 1: Error: fatal: not found",
        "  action (nope:1): waiting: ImagePullBackOff: Back-off pulling image",
        "",
        "Events of the pod:",
        "  Warning Failed: first",
        "  Warning Failed (x3): second",
        "",
        failure_report.ADVICE[Reason.IMAGE_PULL_FAILED],
    ]


@pytest.mark.parametrize(
    "message",
    [
        'failed to resolve reference "x.invalid/a:1": dial tcp: lookup x.invalid: no such host',
        "dial tcp: lookup docker.io on [::1]:53: read udp: connection refused",
        "dial tcp 203.0.113.1:443: connect: network is unreachable",
        "dial tcp 203.0.113.1:443: i/o timeout",
    ],
)
def test_the_report_of_an_image_that_the_node_cannot_reach_names_the_missing_way_out(message: str) -> None:
    text = failure_report.report_text(None, replace(PULL, message=message), [], "")
    way_out = failure_report.WAY_OUT[Reason.IMAGE_PULL_FAILED]
    assert text.endswith(f"\n\n{way_out}\n\n{failure_report.ADVICE[Reason.IMAGE_PULL_FAILED]}")


@pytest.mark.parametrize(
    "output",
    [
        "fatal: unable to access 'https://x.invalid/': Could not resolve host: x.invalid",
        "fatal: unable to look up x.invalid (port 9418) (Temporary failure in name resolution)",
        "ssh: connect to host 203.0.113.1 port 22: Network is unreachable",
        "fatal: unable to connect to 127.0.0.1: errno=Connection refused",
    ],
)
def test_the_report_of_a_clone_that_reaches_no_host_names_the_missing_way_out(output: str) -> None:
    text = failure_report.report_text(None, SetupFailed(Reason.REPOSITORY_FAILED, "exit code 1"), [], output)
    assert failure_report.WAY_OUT[Reason.REPOSITORY_FAILED] in text


def test_a_report_names_no_missing_way_out_if_the_host_answered() -> None:
    denied = SetupFailed(Reason.REPOSITORY_FAILED, "exit code 1")
    text = failure_report.report_text(None, denied, [], "fatal: Authentication failed")
    assert "way out" not in text


async def test_a_failed_clone_shows_its_output(api: FakeApi) -> None:
    api.logs["p", "repository"] = b"Cloning https://example.org/r\nfatal: \xff not found\n"
    async with api.serving() as client:
        found = await add_report(client, pod(), SetupFailed(Reason.REPOSITORY_FAILED, "not found"))
    assert "Output of the clone:\n  Cloning https://example.org/r\n  fatal: � not found\n" in found.log
    assert api.requests_for("get", "/log")[0].query == {
        "container": "repository",
        "limitBytes": "65536",
        "tailLines": "200",
    }


async def test_a_report_names_unreadable_events_and_leaves_out_unreadable_output(api: FakeApi) -> None:
    async with api.serving() as client:
        api.answer("list", "events", 403, "forbidden")
        api.answer("get", "log", 500)
        found = await add_report(client, pod(), SetupFailed(Reason.REPOSITORY_FAILED, "not found"))
    assert found.log.startswith("The environment could not be set up: not found\n")
    assert "Events of the pod:\n  they cannot be read: list events: forbidden (HTTP 403)\n" in found.log
    assert "Output" not in found.log


async def test_the_report_of_a_pod_that_is_gone_needs_no_request(api: FakeApi) -> None:
    async with api.serving() as client:
        found = await add_report(client, None, Lost(Reason.POD_DELETED, "the pod was deleted"))
    assert found.log == "The environment was lost: the pod was deleted\n\n" + failure_report.ADVICE[Reason.POD_DELETED]
    assert api.requests == []


async def test_the_report_of_a_pod_without_a_started_container_has_the_message_of_its_status(api: FakeApi) -> None:
    bare = pod_of("p", phase="Failed", message="Pod was rejected: Node didn't have enough resource: cpu")
    text = failure_report.report_text(bare, Lost(Reason.UNSCHEDULABLE, "refused", log="more words"), [], "")
    assert "\n\nmore words\n" in text
    assert "  none was started: Pod was rejected: Node didn't have enough resource: cpu" in text


def test_a_report_has_only_the_newest_events() -> None:
    events = [event(f"message {number:02}", f"2026-11-24T08:00:{number:02}Z") for number in range(30)]
    lines = list(failure_report.event_lines(events))
    assert len(lines) == failure_report.MAX_EVENTS
    assert lines[-1].endswith("message 29")


def test_events_of_the_newer_api_may_have_null_values() -> None:
    newer = {"type": "Warning", "reason": "X", "message": "m", "count": None, "lastTimestamp": None, "eventTime": "t"}
    assert list(failure_report.event_lines([newer])) == ["Warning X: m"]


def test_the_report_of_a_refused_pod_has_the_message_of_the_api_server_and_advice() -> None:
    text = failure_report.refusal_text(ClusterError("create pods: exceeded quota", reason=Reason.QUOTA_EXCEEDED))
    assert "  create pods: exceeded quota" in text
    assert text.endswith(failure_report.ADVICE[Reason.QUOTA_EXCEEDED])


# ---- explanations of a slow start


SANDBOX = "Failed to create pod sandbox: cni plugin\n not initialized"


def event_of(reason: str, message: str, at: str) -> Object:
    return event(message, at) | {"reason": reason}


async def test_an_event_explains_a_slow_start_and_a_quick_start_costs_no_request(api: FakeApi) -> None:
    api.events = [
        event_of("FailedCreatePodSandBox", SANDBOX, "2026-11-24T08:00:02Z"),
        event_of("Scheduled", "assigned", "2026-11-24T08:00:03Z"),
    ]
    starting = Waiting(STARTING)
    async with api.serving() as client:
        events = failure_report.StartupEvents(client, PATH, TIMINGS, 30.0)
        assert events.recheck(0.0) is None
        assert await events.describe_wait(pod(), starting, 100.0) == starting
        assert events.recheck(100.0) == TIMINGS.slow_start_seconds
        assert api.requests_for("list") == []
        expected = Waiting(
            f"{STARTING}: FailedCreatePodSandBox: Failed to create pod sandbox: cni plugin not initialized"
        )
        assert await events.describe_wait(pod(), starting, 100.0 + TIMINGS.slow_start_seconds) == expected
        assert await events.describe_wait(pod(), starting, 101.0 + TIMINGS.slow_start_seconds) == expected
        assert len(api.requests_for("list")) == 1
        assert await events.describe_wait(pod(), Waiting("pulling"), 120.0) == Waiting("pulling")
        assert events.recheck(120.0) is None


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("FailedCreatePodSandBox", Reason.CLUSTER_UNAVAILABLE), ("Pulling", Reason.IMAGE_PULL_FAILED)],
)
async def test_a_failure_of_the_node_is_not_reported_as_a_failure_of_the_image(
    api: FakeApi, reason: str, expected: Reason
) -> None:
    api.events = [event_of(reason, "because of X", "2026-11-24T08:00:02Z")]
    late = SetupFailed(Reason.IMAGE_PULL_FAILED, f"{STARTING}: not done within 600 s")
    async with api.serving() as client:
        found = await add_report(client, pod(), late)
    assert found.reason is expected
    assert found.message == f"{STARTING}: not done within 600 s: {reason}: because of X"


# ---- a pod sandbox that the kubelet cannot start

UNMAPPED = (
    'Failed to create pod sandbox: rpc error: code = Unknown desc = failed to start sandbox "{id}": '
    + "failed to create containerd task: failed to create shim task: OCI runtime create failed: " * 5
    + "unable to setup user: cannot setuid to unmapped uid 1000650000 in user namespace"
)
NO_BLOCK = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to create network namespace for sandbox"
    ' "{id}": failed to start noop process for unshare: fork/exec /proc/self/exe: invalid argument'
)
NO_NETWORK = (
    'Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "{id}":'
    " cni plugin not initialized"
)
SANDBOX_READY = {"type": "PodReadyToStartContainers", "status": "True"}


def tries(message: str, seconds: list[int]) -> list[Object]:
    """Return one Kubernetes event for each failed try of the kubelet to create the pod's sandbox.

    `seconds` are the times of the tries, within one minute. In the event of each try, another id replaces `{id}` in
    `message`.
    """
    reason = "FailedCreatePodSandBox"
    return [
        event_of(reason, message.replace("{id}", f"{second:064x}"), f"2026-11-24T08:00:{second:02}Z")
        for second in seconds
    ]


async def wait(api: FakeApi, timeline: dict[float, list[Object]], **status: Any) -> tuple[float, object]:
    """Let a pod start until its start fails or the timeline ends. Return the time and the last observation.

    `timeline` maps a time in seconds to the Kubernetes events that exist from then on. `status` is the pod's status.
    """
    starting = pod_of("p", "uid-1", phase="Pending", **status)
    async with api.serving() as client:
        events = failure_report.StartupEvents(client, PATH, TIMINGS, 30.0)
        now = 0.0
        while True:
            api.events = next(known for at, known in sorted(timeline.items(), reverse=True) if at <= now)
            found = await events.describe_wait(starting, Waiting(STARTING), 100.0 + now)
            if now >= max(timeline) or not isinstance(found, Waiting):
                return now, found
            now += max(0.1, events.recheck(100.0 + now) or 0.0)


@pytest.mark.parametrize(
    ("message", "reason", "text"),
    [
        (UNMAPPED, Reason.INVALID_CONFIGURATION, "a user or group id lies beyond the pod's user namespace: Failed"),
        (NO_BLOCK, Reason.CLUSTER_UNAVAILABLE, "the node cannot start the pod: Failed to create pod sandbox"),
    ],
)
async def test_a_sandbox_that_fails_again_and_again_fails_within_the_grace(
    api: FakeApi, message: str, reason: Reason, text: str
) -> None:
    timeline = {0.0: tries(message, [0]), 14.0: tries(message, [0, 14]), 28.0: tries(message, [0, 14, 28]), 60.0: []}
    at, found = await wait(api, timeline)
    assert isinstance(found, SetupFailed)
    assert at < 31.0
    assert found.reason is reason
    assert found.message.startswith(text)
    assert len(api.requests_for("list")) == 3


async def test_a_combined_event_counts_as_the_same_error(api: FakeApi) -> None:
    combined = event_of(
        "FailedCreatePodSandBox",
        "(combined from similar events): " + NO_BLOCK.replace("{id}", "ab" * 32),
        "2026-11-24T08:00:20Z",
    )
    _, found = await wait(api, {0.0: [*tries(NO_BLOCK, [0]), combined], 60.0: []})
    assert isinstance(found, SetupFailed)


@pytest.mark.parametrize(
    ("timeline", "status"),
    [
        pytest.param({0.0: tries(NO_NETWORK, [0, 14, 28]), 90.0: []}, {}, id="network"),
        pytest.param({0.0: tries(NO_BLOCK, [0]), 90.0: []}, {}, id="one try"),
        pytest.param(
            {0.0: tries(NO_BLOCK, [0, 9]), 90.0: []}, {"conditions": [SANDBOX_READY]}, id="the sandbox is ready"
        ),
        pytest.param(
            {0.0: [*tries(NO_BLOCK, [0, 9]), event_of("Pulling", "image", "2026-11-24T08:00:20Z")], 90.0: []},
            {},
            id="an image is pulled",
        ),
        pytest.param({0.0: tries(UNMAPPED, [0, 9]), 20.0: tries(NO_BLOCK, [20, 29]), 45.0: []}, {}, id="another error"),
    ],
)
async def test_a_sandbox_that_may_still_start_is_waited_for(
    api: FakeApi, timeline: dict[float, list[Object]], status: dict[str, Any]
) -> None:
    _, found = await wait(api, timeline, **status)
    assert isinstance(found, Waiting)
