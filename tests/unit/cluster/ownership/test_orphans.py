"""The agent's sweep and the command `sealci-agent cleanup` delete orphans, and nothing else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.cluster.ownership.orphans import ABANDONED_AFTER, CleanupResult, Sweep, cleanup
from agent.domain.actions import Action, Key
from agent.domain.json import Object
from agent.settings import Settings
from tests.fakes.api import pod_of
from tests.fakes.shared_api import SharedApi

if TYPE_CHECKING:
    from agent.cluster.api.client import Client

LONG_AGO = "2026-01-01T08:00:00Z"
ACTION = Action(Key("build"), "alpine", ("true",))


def ended(name: str, ago: timedelta, *, agent: str = "agent-2", phase: str = "Succeeded") -> Object:
    at = (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"terminated": {"exitCode": 0, "finishedAt": at}}
    pod = pod_of(name, agent=agent, phase=phase, containerStatuses=[{"name": "action", "state": state}])
    pod["metadata"]["creationTimestamp"] = LONG_AGO
    return pod


def swept(backend: PodBackend) -> float | None:
    return backend.metrics.registry.get_sample_value("sealci_agent_swept_total", {"kind": "pod"})


async def sweep_and_list(sweep: Sweep) -> tuple[float | None, float | None, float | None]:
    """Run a sweep and update the watch.

    Return three metrics, each None without a sample: orphans that are left, failed deletions and deleted pods.
    """
    await sweep.run_once()
    await sweep.backend.watch.list()
    sample = sweep.backend.metrics.registry.get_sample_value
    return sample("sealci_agent_remains"), sample("sealci_agent_cleanup_failures_total"), swept(sweep.backend)


async def backend_of(client: Client, agent: str = "agent-1") -> PodBackend:
    """Return a backend for `agent`. Its watch has listed the pods that exist now."""
    watch = PodWatch(client, "ci", "default", client.metrics)
    await watch.list()
    watch.synced.set()
    return PodBackend(Settings.model_validate({"cluster": {"namespace": "ci"}}), client, watch, agent, ClusterFacts())


async def test_the_sweep_deletes_orphans_only(api: SharedApi) -> None:
    hour = ABANDONED_AFTER
    never_started = pod_of("refused-long-ago", agent="agent-2", phase="Failed")
    never_started["metadata"]["creationTimestamp"] = LONG_AGO
    for pod in (
        pod_of("mine-without-session", agent="agent-1", phase="Running"),
        ended("mine-ended", timedelta(), agent="agent-1"),
        pod_of("theirs-running", agent="agent-2", phase="Running"),
        ended("theirs-just-ended", timedelta(seconds=5)),
        ended("theirs-failed-within-the-hour", hour - timedelta(minutes=1), phase="Failed"),
        ended("theirs-abandoned", hour + timedelta(minutes=1)),
        never_started,
    ):
        await api.put(pod)
    async with api.serving() as client:
        backend = await backend_of(client)
        held = backend.environment(ACTION)
        await held.create()
        sweep = Sweep(backend, 60.0)
        await sweep.run_once()
        assert sorted(api.pods) == sorted(
            ["theirs-running", "theirs-just-ended", "theirs-failed-within-the-hour", held.plan.name]
        )
        assert swept(backend) == 0, "a pod counts as swept when it is gone"
        await backend.watch.list()
        await sweep.run_once()
        assert swept(backend) == 4
        assert backend.metrics.registry.get_sample_value("sealci_agent_remains") == 0


async def test_a_sweep_that_finds_nothing_costs_no_request(api: SharedApi) -> None:
    async with api.serving() as client:
        backend = await backend_of(client)
        before = len(api.requests)
        await Sweep(backend, 60.0).run_once()
        assert len(api.requests) == before


async def test_an_orphan_that_is_still_there_is_deleted_by_force(api: SharedApi) -> None:
    api.slow_removal = True
    await api.put(pod_of("mine", agent="agent-1", phase="Running"))
    async with api.serving() as client:
        backend = await backend_of(client)
        sweep = Sweep(backend, 60.0)
        seen = [await sweep_and_list(sweep) for _ in range(3)]
        assert [(each.body or {}).get("gracePeriodSeconds") for each in api.requests_for("delete")] == [None, 0]
        assert api.pods == {}
        assert seen == [(0, 0, 0), (1, 1, 0), (0, 1, 1)]


async def test_a_pod_that_changed_since_it_was_judged_is_judged_anew(api: SharedApi) -> None:
    api.slow_removal = True
    await api.put(pod_of("mine", agent="agent-1", phase="Running"))
    async with api.serving() as client:
        backend = await backend_of(client)
        api.answer("delete", "pods", 409, "the precondition does not match")
        sweep = Sweep(backend, 60.0)
        seen = [await sweep_and_list(sweep) for _ in range(2)]
        assert [(each.body or {}).get("gracePeriodSeconds") for each in api.requests_for("delete")] == [None, None]
        assert seen == [(0, 0, 0), (0, 0, 0)]


async def test_a_pod_that_was_handed_over_during_its_creation_is_no_orphan(api: SharedApi) -> None:
    """The agent hands its session over before the API server has answered the request that creates the pod.

    So the agent does not know the UID of the pod, and the watch reports the pod later.
    """
    async with api.serving() as client:
        backend = await backend_of(client)
        environment = backend.environment(ACTION)
        api.answer("create", "pods", 504, "it took too long", applied=True)
        creating = asyncio.create_task(environment.create(), name="create")
        await api.until("a pod is created", lambda: bool(api.pods))
        environment.disown()
        creating.cancel()
        await asyncio.wait({creating})
        await environment.remove()
        sweep = Sweep(backend, 60.0)
        await sweep.run_once()
        await backend.watch.list()
        await sweep.run_once()
        assert list(api.pods) == [environment.plan.name]
        assert api.requests_for("delete") == []


async def test_another_pod_of_the_same_name_is_not_deleted(api: SharedApi) -> None:
    await api.put(pod_of("mine", "uid-1", agent="agent-1"))
    async with api.serving() as client:
        backend = await backend_of(client)
        api.pods["mine"]["metadata"]["uid"] = "uid-2"
        await Sweep(backend, 60.0).run_once()
        assert list(api.pods) == ["mine"]


async def test_a_failed_deletion_does_not_stop_the_sweep(api: SharedApi) -> None:
    for name in ("a", "b"):
        await api.put(pod_of(name, agent="agent-1"))
    async with api.serving() as client:
        backend = await backend_of(client)
        api.answer("delete", "/a", 403, "forbidden")
        await Sweep(backend, 60.0).run_once()
        assert list(api.pods) == ["a"]
        assert backend.metrics.registry.get_sample_value("sealci_agent_cleanup_failures_total") == 1


async def test_the_first_sweep_waits_for_the_first_list(api: SharedApi) -> None:
    await api.put(pod_of("mine", agent="agent-1"))
    async with api.serving() as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        settings = Settings.model_validate({"cluster": {"namespace": "ci"}})
        backend = PodBackend(settings, client, watch, "agent-1", ClusterFacts())
        task = asyncio.create_task(Sweep(backend, 60.0).run(), name="sweep")
        await watch.list()
        assert api.requests_for("delete") == []
        watch.synced.set()
        await api.until("every pod is deleted", lambda: not api.pods)
        task.cancel()
        await asyncio.wait({task})


async def test_cleanup_names_a_failed_deletion_and_goes_on(api: SharedApi) -> None:
    for name in ("a", "b"):
        await api.put(pod_of(name, agent="agent-1", phase="Running"))
    async with api.serving() as client:
        api.answer("delete", "/a", 403, "forbidden")
        found = await cleanup(client, "ci", "default", dry_run=False)
        assert (found.pods, list(found.failed)) == (("b",), ["a"])
        assert "forbidden" in found.failed["a"]
    assert list(api.pods) == ["a"]


@pytest.mark.parametrize("ago", [5, 3600])
async def test_cleanup_deletes_stale_leases(api: SharedApi, ago: int) -> None:
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
async def test_cleanup_deletes_all_pods_of_the_pool(api: SharedApi, dry_run: bool) -> None:
    for name, agent in (("a", "agent-1"), ("b", "agent-2")):
        await api.put(pod_of(name, agent=agent, phase="Running"))
    async with api.serving() as client:
        assert await cleanup(client, "ci", "default", dry_run=dry_run) == CleanupResult(("a", "b"), (), {})
    assert list(api.pods) == (["a", "b"] if dry_run else [])
    assert api.requests_for("list")[0].query["labelSelector"].endswith("sealci.dev/pool=default")


async def test_pods_of_dead_agents_are_orphans_if_sessions_cannot_be_adopted(api: SharedApi) -> None:
    """With the classic protocol, no agent can adopt. With the stream protocol, other agents adopt the pods instead."""
    for agent in ("agent-2", "agent-3"):
        await api.put(pod_of(f"of-{agent}", agent=agent, phase="Running"))
    async with api.serving() as client:
        backend = await backend_of(client)
        await Sweep(backend, 60.0, lambda agent: agent == "agent-2").run_once()
        assert list(api.pods) == ["of-agent-3"]


async def test_the_pods_of_an_agent_are_deleted_when_its_lease_runs_out_not_at_the_next_sweep(api: SharedApi) -> None:
    dead: set[str] = set()
    for agent in ("agent-2", "agent-3"):
        await api.put(pod_of(f"of-{agent}", agent=agent, phase="Running"))
    async with api.serving() as client:
        backend = await backend_of(client)
        sweep = Sweep(backend, 3600.0, dead.__contains__, poll=0.01)
        task = asyncio.create_task(sweep.run(), name="sweep")
        await asyncio.sleep(0.05)
        assert sorted(api.pods) == ["of-agent-2", "of-agent-3"]
        dead.add("agent-2")
        await api.until("the pod of the dead agent is deleted", lambda: list(api.pods) == ["of-agent-3"])
        task.cancel()
        await asyncio.wait({task})


async def test_a_pod_that_was_deleted_between_two_sweeps_gets_its_grace(api: SharedApi) -> None:
    api.slow_removal = True
    await api.put(pod_of("theirs", agent="agent-2", phase="Running"))
    async with api.serving() as client:
        backend = await backend_of(client)
        sweep = Sweep(backend, 60.0, lambda agent: agent == "agent-2")
        await sweep.sweep_gone()
        await sweep.sweep_gone()
        seen = [await sweep_and_list(sweep) for _ in range(3)]
        assert [(each.body or {}).get("gracePeriodSeconds") for each in api.requests_for("delete")] == [None, 0]
        assert seen == [(0, 0, 0), (1, 1, 0), (0, 1, 1)]
