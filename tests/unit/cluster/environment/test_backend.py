"""Environments on a fake API server: created, re-created, found after a lost response, and deleted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.api import exec as execs
from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment import creation
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.environment import PodEnvironment
from agent.cluster.environment.watch import PodWatch
from agent.cluster.pod.labels import SESSION
from agent.cluster.requests import create_pod
from agent.domain.actions import Action, Key, Resources, Service
from agent.domain.errors import ActionFailed, Reason
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed, Waiting
from agent.settings import Settings
from tests.fakes.api import HANG, FakeApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACTION = Action(Key("build"), "alpine", ("true",), secrets={"TOKEN": "hunter2-hunter2"})
RUNNING = [
    {"name": name, "started": True, "state": {"running": {"startedAt": "2026-11-24T08:00:00Z"}}}
    for name in ("helper", "action")
]


pytestmark = pytest.mark.usefixtures("no_backoff")


@asynccontextmanager
async def backend_on(api: FakeApi, **cluster: Any) -> AsyncIterator[PodBackend]:
    settings = Settings.model_validate({"cluster": {"namespace": "ci", **cluster}, "policy": {"pending_timeout": 5}})
    async with api.serving(**cluster) as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        task = asyncio.create_task(watch.run(), name="pod watch")
        await api.until("the watch is open", lambda: api.watches == 1)
        try:
            yield PodBackend(settings, client, watch, "agent-1", ClusterFacts())
        finally:
            task.cancel()
            await asyncio.wait({task})


async def observed(environment: PodEnvironment, kind: type[Observation]) -> Observation:
    """Wait for the next observation of type `kind` and return it."""
    observations = environment.observations()
    try:
        async for seen in observations:
            if isinstance(seen, kind):
                return seen
    finally:
        await observations.aclose()
    raise AssertionError(f"no {kind} was observed")


async def test_an_environment_costs_three_requests_and_leaves_nothing(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        name = environment.plan.name
        assert (environment.name, backend.registry.owned_names) == (f"ci/{name}", (name,))
        await environment.create()
        assert isinstance(await observed(environment, Waiting), Waiting)
        await api.status(name, phase="Running", containerStatuses=RUNNING)
        await observed(environment, Running)
        secret = environment.plan.secret_name
        assert api.secrets[secret]["metadata"]["ownerReferences"][0]["uid"] == api.pods[name]["metadata"]["uid"]
        await environment.remove()
        assert (api.pods, api.secrets, backend.registry.owned_names) == ({}, {}, ())
        assert not backend.watch.is_watched(name)
    requests = [
        (request.verb, request.path.rsplit("/", 1)[-1])
        for request in api.requests
        if request.verb in ("create", "delete", "get")
    ]
    assert requests == [("create", "pods"), ("create", "secrets"), ("delete", name)]


async def test_an_environment_can_be_recreated_after_its_removal(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        name = environment.plan.name
        await environment.create()
        await api.status(name, phase="Failed", reason="OutOfcpu")
        lost = await observed(environment, Lost)
        assert isinstance(lost, Lost)
        assert lost.unstarted
        await environment.remove()
        # The Secret of the first pod still exists. Garbage collection of a Secret can take longer than the creation of
        # the next pod with the same name.
        secret = environment.plan.secret_name
        api.secrets[secret] = {"metadata": {"name": secret, "ownerReferences": [{"uid": "gone"}]}}
        await environment.create()
        assert backend.registry.owned_names == (name,), "the sweep would delete the pod as an orphan"
        secret = environment.plan.secret_name
        assert api.secrets[secret]["metadata"]["ownerReferences"][0]["uid"] == api.pods[name]["metadata"]["uid"]
        await api.status(name, phase="Running", containerStatuses=RUNNING)
        await observed(environment, Running)
        await environment.remove()
        assert (api.pods, list(backend.registry.owned_names)) == ({}, [])


async def test_late_watch_events_of_a_replaced_pod_are_ignored(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(replace(ACTION, secrets={}))
        await environment.create()
        earlier = deepcopy(api.pods[environment.plan.name])
        await environment.remove()
        original = create_pod

        async def late_event_in_between(*arguments: Any) -> Any:
            answer = await original(*arguments)
            # This makes the watch forget that the earlier pod was deleted, as if the DELETED event had not arrived yet.
            backend.watch.deleted_uids.clear()
            backend.watch.apply_event("MODIFIED", earlier)
            return answer

        monkeypatch.setattr(creation, "create_fitting_pod", late_event_in_between)
        await environment.create()
        backend.watch.apply_event("DELETED", earlier)
        assert environment.pod_state.pod is not None
        assert environment.pod_state.pod["metadata"]["uid"] == environment.uid
        await environment.remove()


async def test_a_create_request_whose_answer_was_lost_finds_its_pod(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(replace(ACTION, secrets={}))
        await environment.create()
        pod = api.pods[environment.plan.name]
        pod["metadata"]["annotations"]["cni.example.org/ip"] = "10.0.0.1"
        await environment.create()
        assert environment.uid == pod["metadata"]["uid"]
        await environment.remove()
        assert api.pods == {}


async def test_a_pod_of_another_session_is_neither_taken_nor_deleted(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        one, two = backend.environment(ACTION), backend.environment(ACTION)
        await one.create()
        with pytest.raises(ActionFailed, match="already exists"):
            await two.create()
        await two.remove()
        assert api.pods[one.plan.name]["metadata"]["annotations"][SESSION].find(one.plan.nonce) > 0
        assert api.requests_for("delete") == []


async def test_create_waits_for_the_end_of_an_earlier_pod_of_the_same_name(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.slow_removal = True
    async with backend_on(api, delete_timeout=0.05) as backend:
        old = backend.environment(ACTION)
        await old.create()
        await backend.client.request("delete", "pods", f"{old.path}/{old.plan.name}")
        new = asyncio.create_task(backend.environment(ACTION).create())
        await api.until("the pod is requested a fourth time", lambda: len(api.requests_for("create", "pods")) > 3)
        assert not new.done()
        await api.remove(old.plan.name)
        await new
        assert len(api.pods) == 1


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (422, 'Pod "x" is invalid: spec.containers[0].image: Required value', Reason.INVALID_CONFIGURATION),
        (403, 'pods is forbidden: User "a" cannot create resource "pods"', Reason.CLUSTER_UNAVAILABLE),
    ],
)
async def test_a_refused_pod_fails_the_set_up_with_the_message_of_the_api_server(
    api: FakeApi, status: int, message: str, reason: Reason
) -> None:
    async with backend_on(api) as backend:
        api.answer("create", "pods", status, message)
        environment = backend.environment(ACTION)
        with pytest.raises(ActionFailed) as failed:
            await environment.create()
        assert failed.value.reason is reason
        assert message in failed.value.log
        await environment.remove()
        assert api.requests_for("delete") == []


async def test_a_pod_that_finds_no_room_is_reported_with_what_its_services_request(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        db = Service("db", "postgres", resources=Resources("2", "1Gi"))
        services = backend.environment(replace(ACTION, services=(db, Service("queue", "redis")))).services
        more = "2 services add cpu 2100m and memory 1280Mi to the request of the pod; the largest is db with cpu 2 and "
        for reason in (Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED):
            seen = services.with_states(None, SetupFailed(reason, "no room"), 0.0)
            assert seen == SetupFailed(reason, f"no room; {more}memory 1Gi")
            assert services.explain(reason, "no room") == f"no room; {more}memory 1Gi"
        assert services.explain(Reason.IMAGE_PULL_FAILED, "no image") == "no image"
        assert backend.environment(ACTION).services.explain(Reason.UNSCHEDULABLE, "no room") == "no room"


async def test_remove_finds_and_deletes_the_pod_of_an_unanswered_create_request(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        task = asyncio.create_task(environment.create())
        await api.until("the Secret is requested", lambda: len(api.requests_for("create", "secrets")) == 1)
        task.cancel()
        await asyncio.wait({task})
        # The agent does not know the pod's UID, as if the response of the API server had never arrived.
        environment.uid = ""
        await environment.remove()
        assert api.pods == {}


@pytest.mark.parametrize("ours", [True, False], ids=["by the agent", "by others"])
async def test_only_an_interrupt_by_others_waits_for_the_status_of_the_pod(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    async def done(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(execs, "run", done)
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        name, nonce = environment.plan.name, environment.plan.nonce
        await api.status(name, phase="Running", containerStatuses=RUNNING)
        assert await observed(environment, Running) == Running()
        if ours:
            assert await environment.interrupt(1.0)
        told = {"exitCode": 143, "message": f"sealci {nonce} started 1\nsealci {nonce} told_to_end 143\n"}
        ended = {"name": "action", "state": {"terminated": told}}
        await api.status(name, phase="Running", containerStatuses=[RUNNING[0], ended])
        # The first observations can still show the running pod, until the watch reports the new status.
        seen = [each async for each in until_not_running(environment)]
        assert isinstance(seen[-1], Exited if ours else Running)
        await environment.remove()


async def until_not_running(environment: PodEnvironment) -> AsyncIterator[Observation]:
    """Yield the observations of the environment up to the first one that is not a plain `Running`."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            yield seen
            if seen != Running():
                return


async def test_a_pod_that_is_still_there_after_its_deletion_is_deleted_by_force(api: FakeApi) -> None:
    api.slow_removal = True
    async with backend_on(api, delete_timeout=0.05) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        await environment.remove()
        assert [(request.body or {}).get("gracePeriodSeconds") for request in api.requests_for("delete")] == [None, 0]
        assert all(
            (request.body or {})["preconditions"]["uid"] == environment.uid for request in api.requests_for("delete")
        )
        assert api.pods == {}


async def test_a_pod_that_cannot_be_deleted_is_counted_and_left_to_the_sweep(api: FakeApi) -> None:
    api.slow_removal, api.force_works = True, False
    async with backend_on(api, delete_timeout=0.05) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        await environment.remove()
        assert backend.metrics.registry.get_sample_value("sealci_agent_cleanup_failures_total") == 1
        assert backend.registry.owned_names == ()


async def test_remove_ends_although_the_api_server_hangs(api: FakeApi) -> None:
    async with backend_on(api, delete_timeout=0.05, request_timeout=0.05) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        api.answer("delete", "pods", HANG, times=1000)
        await environment.remove()
        assert backend.metrics.registry.get_sample_value("sealci_agent_cleanup_failures_total") == 1


async def test_a_failed_set_up_has_a_report_with_the_events(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        name = environment.plan.name
        await environment.create()
        event = {
            "type": "Warning",
            "reason": "Failed",
            "message": "the registry refused",
            "involvedObject": {"uid": environment.uid},
        }
        api.events.append(event)
        waiting = {"waiting": {"reason": "InvalidImageName", "message": "couldn't parse"}}
        await api.status(
            name, phase="Pending", containerStatuses=[{"name": "action", "image": "Alpine", "state": waiting}]
        )
        seen = await observed(environment, SetupFailed)
        assert isinstance(seen, SetupFailed)
        assert "the registry refused" in seen.log
        await environment.remove()


async def test_a_pod_of_a_class_is_made_and_made_again_with_the_settings_of_the_class(api: FakeApi) -> None:
    classes = {"gpu": {"default_memory": "1Gi", "pod_template": {"spec": {"nodeSelector": {"gpu": "yes"}}}}}
    async with backend_on(api) as backend:
        settings = Settings.model_validate(
            backend.settings.model_dump() | {"environment": {"profile": "restricted", "classes": classes}}
        )
        facts = ClusterFacts()
        classed = PodBackend(settings, backend.client, backend.watch, "agent-1", facts)
        environment = classed.environment(replace(ACTION, environment_class="gpu"))
        await environment.create()
        pod = api.pods[environment.plan.name]
        assert pod["spec"]["nodeSelector"] == {"gpu": "yes"}
        (action,) = (each for each in pod["spec"]["containers"] if each["name"] == "action")
        assert action["resources"]["requests"]["memory"] == "1Gi"
        adopted = classed.environment_of(deepcopy(pod))
        assert adopted.context.settings.policy.default_memory == "1Gi"
        environment.release()
        await adopted.remove()
