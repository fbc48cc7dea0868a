"""What nobody owns is deleted, and nothing else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.cluster.environment.backend import Pods
from agent.cluster.environment.watch import PodWatch
from agent.cluster.ownership import orphans as sweeps
from agent.cluster.ownership.orphans import Cleaned, Sweep, cleanup
from agent.domain.actions import Action, Key
from agent.domain.json import Object
from agent.settings import Settings
from tests.fakes.api import pod_of
from tests.fakes.shared_api import SharedApi

LONG_AGO = "2026-01-01T08:00:00Z"
ACTION = Action(Key("build"), "alpine", ("true",))


def ended(name: str, ago: timedelta, *, agent: str = "agent-2", phase: str = "Succeeded") -> Object:
    at = (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"terminated": {"exitCode": 0, "finishedAt": at}}
    pod = pod_of(name, agent=agent, phase=phase, containerStatuses=[{"name": "action", "state": state}])
    pod["metadata"]["creationTimestamp"] = LONG_AGO
    return pod


def swept(pods: Pods) -> float | None:
    return pods.metrics.registry.get_sample_value("sealci_agent_swept_total", {"kind": "pod"})


async def again(sweep: Sweep) -> tuple[float | None, float | None, float | None]:
    """Sweep once, let the watch see it; returns what remains, the failures and what was swept so far."""
    await sweep.once()
    await sweep.pods.watch.list()
    sample = sweep.pods.metrics.registry.get_sample_value
    return sample("sealci_agent_remains"), sample("sealci_agent_cleanup_failures_total"), swept(sweep.pods)


async def here(api: SharedApi, client: Any) -> Pods:
    """Return pods of agent-1 whose watch knows what the API has now."""
    watch = PodWatch(client, "ci", "default", client.metrics)
    await watch.list()
    watch.synced.set()
    return Pods(Settings.model_validate({"cluster": {"namespace": "ci"}}), client, watch, client.metrics, "agent-1")


async def test_what_is_remains_and_what_is_not(api: SharedApi) -> None:
    hour = sweeps.ABANDONED
    never_started = pod_of("refused-long-ago", agent="agent-2", phase="Failed")
    never_started["metadata"]["creationTimestamp"] = LONG_AGO
    for pod in (
        pod_of("mine-forgotten", agent="agent-1", phase="Running"),
        ended("mine-ended", timedelta(), agent="agent-1"),
        pod_of("theirs-running", agent="agent-2", phase="Running"),
        ended("theirs-just-ended", timedelta(seconds=5)),
        ended("theirs-failed-within-the-hour", hour - timedelta(minutes=1), phase="Failed"),
        ended("theirs-abandoned", hour + timedelta(minutes=1)),
        never_started,
    ):
        await api.put(pod)
    async with api.serving() as client:
        pods = await here(api, client)
        held = pods.environment(ACTION)
        await held.create()
        sweep = Sweep(pods, 60.0)
        await sweep.once()
        assert sorted(api.pods) == sorted(
            ["theirs-running", "theirs-just-ended", "theirs-failed-within-the-hour", held.plan.name]
        )
        assert swept(pods) == 0, "swept is what is gone"
        await pods.watch.list()
        await sweep.once()
        assert swept(pods) == 4
        assert pods.metrics.registry.get_sample_value("sealci_agent_remains") == 0


async def test_a_sweep_that_finds_nothing_costs_no_request(api: SharedApi) -> None:
    async with api.serving() as client:
        pods = await here(api, client)
        before = len(api.requests)
        await Sweep(pods, 60.0).once()
        assert len(api.requests) == before


async def test_what_is_still_there_the_next_time_is_forced(api: SharedApi) -> None:
    api.slow_removal = True
    await api.put(pod_of("mine", agent="agent-1", phase="Running"))
    async with api.serving() as client:
        pods = await here(api, client)
        sweep = Sweep(pods, 60.0)
        seen = [await again(sweep) for _ in range(3)]
        assert [(each.body or {}).get("gracePeriodSeconds") for each in api.requests_for("delete")] == [None, 0]
        assert api.pods == {}
        assert seen == [(0, 0, 0), (1, 1, 0), (0, 1, 1)]


async def test_what_changed_since_it_was_judged_is_judged_anew_and_is_no_failure(api: SharedApi) -> None:
    api.slow_removal = True
    await api.put(pod_of("mine", agent="agent-1", phase="Running"))
    async with api.serving() as client:
        pods = await here(api, client)
        api.answer("delete", "pods", 409, "the precondition does not match")
        sweep = Sweep(pods, 60.0)
        seen = [await again(sweep) for _ in range(2)]
        assert [(each.body or {}).get("gracePeriodSeconds") for each in api.requests_for("delete")] == [None, None]
        assert seen == [(0, 0, 0), (0, 0, 0)]


async def test_what_was_handed_over_while_it_was_being_created_is_not_remains(api: SharedApi) -> None:
    """Its create is under way when it is left: no UID is known, and the pod comes to light only later."""
    async with api.serving() as client:
        pods = await here(api, client)
        left = pods.environment(ACTION)
        api.answer("create", "pods", 504, "it took too long", applied=True)
        creating = asyncio.create_task(left.create(), name="create")
        await api.until("a pod is created", lambda: bool(api.pods))
        left.leave()
        creating.cancel()
        await asyncio.wait({creating})
        await left.remove()
        sweep = Sweep(pods, 60.0)
        await sweep.once()
        await pods.watch.list()
        await sweep.once()
        assert list(api.pods) == [left.plan.name]
        assert api.requests_for("delete") == []


async def test_another_pod_of_the_name_is_not_touched(api: SharedApi) -> None:
    await api.put(pod_of("mine", "uid-1", agent="agent-1"))
    async with api.serving() as client:
        pods = await here(api, client)
        api.pods["mine"]["metadata"]["uid"] = "uid-2"
        await Sweep(pods, 60.0).once()
        assert list(api.pods) == ["mine"]


async def test_one_failure_does_not_stop_the_sweep(api: SharedApi) -> None:
    for name in ("a", "b"):
        await api.put(pod_of(name, agent="agent-1"))
    async with api.serving() as client:
        pods = await here(api, client)
        api.answer("delete", "/a", 403, "forbidden")
        await Sweep(pods, 60.0).once()
        assert list(api.pods) == ["a"]
        assert pods.metrics.registry.get_sample_value("sealci_agent_cleanup_failures_total") == 1


async def test_the_first_sweep_waits_for_the_first_list(api: SharedApi) -> None:
    await api.put(pod_of("mine", agent="agent-1"))
    async with api.serving() as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        pods = Pods(Settings.model_validate({"cluster": {"namespace": "ci"}}), client, watch, client.metrics, "agent-1")
        task = asyncio.create_task(Sweep(pods, 60.0).run(), name="sweep")
        await watch.list()
        assert api.requests_for("delete") == []
        watch.synced.set()
        await api.until("every pod is deleted", lambda: not api.pods)
        task.cancel()
        await asyncio.wait({task})


async def test_what_cannot_be_cleaned_up_is_named_and_stops_nothing(api: SharedApi) -> None:
    for name in ("a", "b"):
        await api.put(pod_of(name, agent="agent-1", phase="Running"))
    async with api.serving() as client:
        api.answer("delete", "/a", 403, "forbidden")
        found = await cleanup(client, "ci", "default", dry_run=False)
        assert (found.pods, list(found.failed)) == (("b",), ["a"])
        assert "forbidden" in found.failed["a"]
    assert list(api.pods) == ["a"]


@pytest.mark.parametrize("ago", [5, 3600])
async def test_cleanup_takes_the_leases_that_nobody_renews(api: SharedApi, ago: int) -> None:
    renewed = (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lease = {"spec": {"holderIdentity": "agent-1", "leaseDurationSeconds": 15, "renewTime": renewed}}
    labels = {"app.kubernetes.io/managed-by": "sealci-agent", "sealci.dev/pool": "default"}
    async with api.serving() as client:
        path = "/apis/coordination.k8s.io/v1/namespaces/ci/leases"
        await client.request("create", "leases", path, body=lease | {"metadata": {"name": "l", "labels": labels}})
        found = await cleanup(client, "ci", "default", dry_run=False)
    assert found.leases == (() if ago == 5 else ("l",))
    assert bool(api.leases) is (ago == 5)


@pytest.mark.parametrize("dry_run", [True, False])
async def test_cleanup_takes_the_whole_pool(api: SharedApi, dry_run: bool) -> None:
    for name, agent in (("a", "agent-1"), ("b", "agent-2")):
        await api.put(pod_of(name, agent=agent, phase="Running"))
    async with api.serving() as client:
        assert await cleanup(client, "ci", "default", dry_run=dry_run) == Cleaned(("a", "b"), (), {})
    assert list(api.pods) == (["a", "b"] if dry_run else [])
    assert api.requests_for("list")[0].query["labelSelector"].endswith("sealci.dev/pool=default")


async def test_sessions_of_the_dead_that_nobody_can_adopt_are_remains(api: SharedApi) -> None:
    """Over the classic wire, that is; over the stream they are claimed."""
    for agent in ("agent-2", "agent-3"):
        await api.put(pod_of(f"of-{agent}", agent=agent, phase="Running"))
    async with api.serving() as client:
        pods = await here(api, client)
        await Sweep(pods, 60.0, lambda agent: agent == "agent-2").once()
        assert list(api.pods) == ["of-agent-3"]
