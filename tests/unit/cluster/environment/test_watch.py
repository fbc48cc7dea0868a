"""The shared watch over pods: which changes it reports, that it misses no change, and how it recovers."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from agent.cluster.api.timings import ApiTimings
from agent.cluster.environment.watch import PodState, PodWatch
from agent.domain.errors import ClusterError
from agent.domain.json import Object
from tests.fakes.api import HANG, FakeApi, pod_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


# A client for tests in which the watch makes no request.
NO_CLIENT = SimpleNamespace(timings=ApiTimings())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make every pause of the watch before a new list request end at once.

    Return a list to which each pause appends its upper limit in seconds. The real pause is random, up to this limit.
    """
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        waits.append(high)
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    return waits


@asynccontextmanager
async def watching(api: FakeApi) -> AsyncIterator[PodWatch]:
    async with api.serving() as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        task = asyncio.create_task(watch.run(), name="pod watch")
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled(), task


async def wait_for_phase(watched: PodState, phase: str | None) -> None:
    """Wait until a pod has the phase `phase`. If `phase` is None, wait until the pod is gone."""
    while (watched.pod or {"status": {"phase": None}})["status"].get("phase") != phase:
        await watched.wait_for_change(watched.version)


async def test_the_watch_lists_its_pool_and_then_follows_it(api: FakeApi) -> None:
    api.pods["old"] = pod_of("old", phase="Running") | {}
    api.pods["old"]["metadata"]["resourceVersion"] = "7"
    async with watching(api) as watch:
        await watch.synced.wait()
        watched = watch.watch("old")
        assert watched.pod is not None
        await api.status("old", phase="Succeeded")
        await wait_for_phase(watched, "Succeeded")
        new = watch.watch("new")
        assert new.pod is None
        await api.put(pod_of("new", phase="Pending"), "ADDED")
        await wait_for_phase(new, "Pending")
        await api.remove("new")
        await wait_for_phase(new, None)
        assert list(watch.pods) == ["old"]
    selector = "app.kubernetes.io/managed-by=sealci-agent,sealci.dev/pool=default"
    assert {request.query["labelSelector"] for request in api.requests} == {selector}
    assert [request.verb for request in api.requests] == ["list", "watch"]
    assert api.requests[1].query["allowWatchBookmarks"] == "true"
    assert 240 <= int(api.requests[1].query["timeoutSeconds"]) <= 290


async def test_the_next_list_reports_a_deletion_that_the_watch_missed(api: FakeApi) -> None:
    await api.put(pod_of("a", phase="Running"))
    async with watching(api) as watch:
        await watch.synced.wait()
        watched = watch.watch("a")
        await api.until("the watch is open", lambda: api.watches == 1)
        await api.remove("a", silently=True)
        await api.cut()
        await wait_for_phase(watched, None)


@pytest.mark.parametrize("status", [410, 403, 500, HANG])
async def test_a_watch_that_cannot_be_opened_leads_to_a_new_list(
    api: FakeApi, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        if status == HANG:
            # The code under test adds 30 s to this random lifetime. So the first watch ends after 0.1 s.
            lifetimes = iter([-29.9])
            impatient.setattr(random, "randint", lambda low, high: next(lifetimes, high))
        await refused_once(api, status)
    assert len(api.requests_for("list")) == 2


async def refused_once(api: FakeApi, status: int) -> None:
    api.answer("watch", "pods", status, "no")
    async with watching(api) as watch:
        await api.until("the watch is open", lambda: api.watches == 1)
        assert watch.synced.is_set()


async def test_an_error_event_leads_to_a_new_list(api: FakeApi) -> None:
    error = '{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}\n'
    api.answer("watch", "pods", 200, body=error)
    async with watching(api):
        await api.until("the watch is open", lambda: api.watches == 1)
    assert len(api.requests_for("list")) == 2


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ("{", 0),  # The connection breaks in the middle of an event.
        ("garbage\n", 1),
        ('{"type": "MODIFIED"}\n', 1),
        ('{"type": "MODIFIED", "object": {}}\n', 1),
    ],
)
async def test_a_watch_with_an_unreadable_event_is_opened_again(api: FakeApi, body: str, errors: int) -> None:
    api.answer("watch", "pods", 200, body=body)
    async with watching(api) as watch:
        await api.until("the watch is open", lambda: api.watches == 1)
        counted = watch.metrics.registry.get_sample_value("sealci_agent_internal_errors_total", {"where": "watch"})
    assert counted == errors


async def test_the_pauses_between_lists_grow_while_the_cluster_does_not_answer(
    api: FakeApi, at_once: list[float]
) -> None:
    api.answer("list", "pods", 503, times=8)
    async with watching(api) as watch:
        await watch.synced.wait()
    assert at_once[:8] == [0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


async def test_a_server_that_ends_every_watch_at_once_is_not_asked_in_a_tight_loop(
    api: FakeApi, at_once: list[float]
) -> None:
    api.answer("watch", "pods", 200, body="", times=3)
    api.answer("watch", "pods", 403, "no", times=3)
    async with watching(api):
        await api.until("the watch is open", lambda: api.watches == 1)
    assert at_once[:6] == [0.4, 0.8, 1.6, 3.2, 6.4, 10.0]


async def test_after_the_cut_of_a_long_watch_no_list_is_needed(api: FakeApi) -> None:
    api.timings = ApiTimings(watch_steady=0.0)
    async with watching(api) as watch:
        await api.until("the watch is open", lambda: api.watches == 1)
        await api.put(pod_of("a", phase="Running"), "ADDED")
        await wait_for_phase(watch.watch("a"), "Running")
        await api.cut()
        await api.until("the watch is requested a second time", lambda: len(api.requests_for("watch")) == 2)
    assert len(api.requests_for("list")) == 1
    assert api.requests_for("watch")[1].query["resourceVersion"] == str(api.version)


async def test_a_bookmark_moves_the_version_on(api: FakeApi) -> None:
    api.timings = ApiTimings(watch_steady=0.0)
    bookmark = '{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "777"}}}\n'
    api.answer("watch", "pods", 200, body=bookmark)
    async with watching(api):
        await api.until("the watch is open", lambda: api.watches == 1)
    assert [each.query["resourceVersion"] for each in api.requests_for("watch")] == ["100", "777"]


async def test_events_longer_than_any_buffer_arrive(api: FakeApi) -> None:
    async with watching(api) as watch:
        await watch.synced.wait()
        pod = pod_of("big", phase="Running", message="x" * 3_000_000)
        await api.put(pod, "ADDED")
        await wait_for_phase(watch.watch("big"), "Running")


# ---- events, passed to the watch without an API server


@pytest.fixture
def watch() -> PodWatch:
    return PodWatch(NO_CLIENT, "ci", "default", None)  # type: ignore[arg-type]  # no request is made


def version(pod: Object, number: int, **status: str) -> Object:
    pod = deepcopy(pod)
    pod["metadata"]["resourceVersion"] = str(number)
    pod["status"] = status
    return pod


async def test_an_older_version_of_a_pod_is_ignored(watch: PodWatch) -> None:
    pod, watched = pod_of("a"), watch.watch("a")
    watch.apply_event("ADDED", version(pod, 10, phase="Running"))
    watch.apply_event("MODIFIED", version(pod, 9, phase="Pending"))
    assert watched.pod is not None
    assert (watched.version, watched.pod["status"]["phase"]) == (1, "Running")
    watch.apply_event("MODIFIED", version(pod, 100, phase="Succeeded"))
    assert watched.pod["status"]["phase"] == "Succeeded"


async def test_a_new_pod_replaces_an_earlier_pod_of_the_same_name(watch: PodWatch) -> None:
    watched = watch.watch("a")
    watch.apply_event("ADDED", version(pod_of("a", "uid-1"), 10, phase="Running"))
    watch.apply_event("ADDED", version(pod_of("a", "uid-2"), 13, phase="Pending"))
    assert watched.pod is not None
    assert watched.pod["metadata"]["uid"] == "uid-2"
    # This event of the first pod comes late. The agent has re-created the pod before the watch reported the end of the
    # first pod.
    watch.apply_event("MODIFIED", version(pod_of("a", "uid-1"), 11, phase="Failed"))
    watch.apply_event("DELETED", version(pod_of("a", "uid-1"), 12))
    assert watched.pod["metadata"]["uid"] == "uid-2"
    watch.apply_event("DELETED", version(pod_of("a", "uid-2"), 14))
    assert watch.pods == {}
    assert watched.version == 3


async def test_the_deletion_of_an_unknown_pod_changes_nothing(watch: PodWatch) -> None:
    watched = watch.watch("a")
    watch.apply_event("DELETED", version(pod_of("a"), 1))
    assert watched.version == 0


async def test_the_watch_keeps_only_the_fields_that_the_agent_reads(watch: PodWatch) -> None:
    pod = version(pod_of("a"), 1, phase="Running")
    pod["metadata"] |= {"managedFields": [{}] * 9, "deletionTimestamp": "t", "deletionGracePeriodSeconds": 0}
    pod["spec"] |= {"containers": [{"command": ["x" * 100_000]}]}
    watch.apply_event("ADDED", pod)
    kept = watch.pods["a"]
    assert kept["spec"] == {"nodeName": "node-1"}
    assert kept["metadata"].keys() >= {"name", "uid", "labels", "deletionTimestamp", "deletionGracePeriodSeconds"}
    assert "managedFields" not in kept["metadata"]


async def test_no_change_is_missed_between_a_read_and_the_wait(watch: PodWatch) -> None:
    watched = watch.watch("a")
    seen = watched.version
    watch.apply_event("ADDED", version(pod_of("a"), 1))
    await watched.wait_for_change(seen)
    await watched.wait_for_change(watched.version, timeout=0.01)  # Without a change, the wait ends by its timeout.
    watch.forget("a")
    watch.apply_event("MODIFIED", version(pod_of("a"), 2))
    assert watched.version == 1
    again = watch.watch("a")
    assert again.pod is watch.pods["a"]


async def test_a_failed_list_is_not_taken_for_an_empty_list(api: FakeApi) -> None:
    await api.put(pod_of("a", phase="Running"))
    async with api.serving() as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        await watch.list()
        api.answer("list", "pods", 500)
        with pytest.raises(ClusterError):
            await watch.list()
        assert list(watch.pods) == ["a"]


# ---- pods of other agents


def line(kind: str, pod: Object) -> bytes:
    """Return a watch event of type `kind` as the line that the API server writes."""
    given = pod["metadata"]
    metadata = {key: given[key] for key in ("name", "namespace", "uid", "resourceVersion")}
    whole = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata | given,
        "spec": pod["spec"],
        "status": pod["status"],
    }
    return json.dumps({"type": kind, "object": whole}, separators=(",", ":")).encode()


def owned_by(agent: str, number: int = 10, **status: str) -> Object:
    pod = version(pod_of("a", agent=agent), number, **status)
    pod["metadata"]["namespace"] = "ci"
    return pod


@pytest.fixture
def mine() -> PodWatch:
    return PodWatch(NO_CLIENT, "ci", "default", None, "pod-1.own")  # type: ignore[arg-type]  # no request is made


def take(watch: PodWatch, line: bytes) -> Object:
    event = watch.parse_event(line)
    watch.apply_event(event["type"], event["object"])
    return watch.objects.get("a", {})


async def test_only_the_head_of_another_agents_pod_is_decoded_until_a_caller_reads_the_pod(mine: PodWatch) -> None:
    pod = owned_by("pod-2.other", phase="Running")
    kept = take(mine, line("ADDED", pod))
    assert kept["metadata"] == {
        "name": "a", "uid": "uid-a", "resourceVersion": "10", "labels": {"sealci.dev/agent": "pod-2.other"},
    }  # fmt: skip
    assert "status" not in kept
    assert mine.pods["a"] == mine.prune_fields(pod)
    assert mine.read("a") is mine.pods["a"]
    take(mine, line("MODIFIED", owned_by("pod-2.other", 11, phase="Succeeded")))
    take(mine, line("MODIFIED", owned_by("pod-2.other", 9, phase="Pending")))
    assert mine.pods["a"]["status"] == {"phase": "Succeeded"}
    take(mine, line("DELETED", owned_by("pod-2.other", 12)))
    assert mine.pods == {}
    assert mine.read("a") is None


async def test_a_pod_is_decoded_when_a_session_starts_to_watch_it(mine: PodWatch) -> None:
    take(mine, line("ADDED", owned_by("pod-2.other", phase="Running")))
    watched = mine.watch("a")
    assert watched.pod is not None
    assert watched.pod["status"] == {"phase": "Running"}


async def test_a_watched_pod_is_decoded_also_if_another_agent_has_claimed_it(mine: PodWatch) -> None:
    seen: list[str] = []
    mine.on_change = lambda pod: seen.append(pod["status"]["phase"])
    watched = mine.watch("a")
    take(mine, line("MODIFIED", owned_by("pod-2.other", phase="Running")))
    assert watched.pod is not None
    assert seen == ["Running"]


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line,
        lambda line: line.replace(b"pod-1.own", b"pod-2.other").replace(b",", b", "),
        lambda line: line.replace(b"pod-1.own", b"pod-2.other").replace(b"sealci.dev/agent", b"sealci.dev/agents"),
        lambda line: line.replace(b"pod-1.own", b"pod-2.other").replace(b'"kind":"Pod"', b'"kind":"PartialPod"'),
    ],
    ids=["of its own", "written with spaces", "without a label", "of another kind"],
)
async def test_an_event_of_another_layout_is_decoded_completely(
    mine: PodWatch, change: Callable[[bytes], bytes]
) -> None:
    kept = take(mine, change(line("ADDED", owned_by("pod-1.own", phase="Running"))))
    assert kept["status"] == {"phase": "Running"}


async def test_no_annotation_of_a_user_is_taken_for_the_label(mine: PodWatch) -> None:
    pod = owned_by("pod-2.other", phase="Running")
    pod["metadata"]["annotations"] = {"said": '"sealci.dev/agent":"pod-3.third"'}
    pod["metadata"] = {"annotations": pod["metadata"].pop("annotations"), **pod["metadata"]}
    assert take(mine, line("ADDED", pod))["metadata"]["labels"] == {"sealci.dev/agent": "pod-2.other"}
