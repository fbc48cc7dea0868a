"""Nudges on a scripted API server: the end of a pod with them, and the same end when the API server refuses them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.cluster.capabilities import ClusterFacts, learn_facts
from agent.cluster.ending import nudger as nudgers
from agent.cluster.ending.nudger import NudgeSwitch
from agent.cluster.ending.plan import MAX_CHANGING_PODS, resize
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.domain.actions import Action, Key
from agent.domain.log_cursor import Cursor
from agent.domain.observations import FINAL, Exited
from agent.settings import Settings
from tests.fakes.api import HANG, FakeApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.cluster.environment.environment import PodEnvironment

ACTION = Action(Key("build"), "alpine", ("true",))
POD = "/api/v1/namespaces/ci/pods/p"
REFUSALS = {
    "right": (403, 'pods "p" is forbidden: User "a" cannot patch resource "pods/resize" in API group ""'),
    "quota": (403, 'pods "p" is forbidden: exceeded quota: q, requested: requests.cpu=1m'),
    "limit range": (403, 'pods "p" is forbidden: minimum cpu usage per Container is 10m, but request is 9m'),
    "webhook": (403, 'admission webhook "w" denied the request: no resize'),
    "webhook that is down": (422, "failed calling webhook"),
    "not served": (404, "the server could not find the requested resource"),
    "wrong method": (405, "the server does not allow this method on the requested resource"),
}


@asynccontextmanager
async def backend_on(api: FakeApi, **environment: Any) -> AsyncIterator[PodBackend]:
    settings = Settings.model_validate({"cluster": {"namespace": "ci"}, "environment": environment})
    async with api.serving() as client:
        watch = PodWatch(client, "ci", "default", client.metrics)
        task = asyncio.create_task(watch.run(), name="pod watch")
        await api.until("the watch is open", lambda: api.watches == 1)
        try:
            yield PodBackend(settings, client, watch, "agent-1", ClusterFacts())
        finally:
            task.cancel()
            await asyncio.wait({task})


@dataclass
class Kubelet:
    """Plays the kubelet of one pod, which looks only after a nudge. Lives for one test."""

    api: FakeApi
    environment: PodEnvironment

    async def show(self, phase: str, *, helper: bool, action: bool) -> None:
        record = f"sealci {self.environment.plan.nonce} completed 1\n"
        ended = {"terminated": {"exitCode": 0, "message": record}}
        running = {"running": {"startedAt": "2026-11-24T08:00:00Z"}}
        states = {"helper": running if helper else ended, "action": running if action else ended}
        statuses = [{"name": name, "state": state} for name, state in states.items()]
        await self.api.status(self.environment.plan.name, phase=phase, containerStatuses=statuses)

    async def run(self, nudges: int) -> None:
        """Run the commands. Show their end after this number of nudges, and the final phase after one more."""
        api = self.api
        await self.show("Running", helper=True, action=True)
        log = await api.begin_log(self.environment.plan.name)
        log.write(b"hello\n")
        log.end()
        await api.notify()
        await api.until("nudged", lambda: len(api.requests_for("patch", "resize")) >= nudges)
        await self.show("Running", helper=True, action=False)
        await api.until("deleted", lambda: bool(api.requests_for("delete")))
        await api.until("nudged", lambda: len(api.requests_for("patch", "resize")) >= nudges + bool(nudges))
        if nudges:
            await self.show("Succeeded", helper=False, action=False)
        else:
            await api.remove(self.environment.plan.name)


async def run_to_end(environment: PodEnvironment) -> None:
    """Read the log and the observations to their end, as a session does, and remove the environment."""

    async def read_log() -> None:
        async with aclosing(environment.log(Cursor())) as items:
            async for _ in items:
                pass

    reading = asyncio.create_task(read_log())
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            if isinstance(seen, FINAL):
                assert isinstance(seen, Exited)
    await reading
    await environment.remove()


def counted(client: Client, result: str) -> float | None:
    return client.metrics.registry.get_sample_value("sealci_agent_kubelet_nudges_total", {"result": result})


async def test_the_end_of_the_log_and_the_deletion_make_the_kubelet_look(api: FakeApi) -> None:
    api.slow_removal = True
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Kubelet(api, environment).run(2))
            tasks.create_task(run_to_end(environment))
        sent = [(each.verb, each.body or {}) for each in api.requests if each.verb in ("patch", "delete")]
        assert [verb for verb, _ in sent] == ["patch", "patch", "delete", "patch", "delete"]
        nudges = [body for verb, body in sent if verb == "patch"]
        assert nudges == [resize(environment.uid, millicores) for millicores in (9, 8, 7)]
        deletions = [body for verb, body in sent if verb == "delete"]
        assert [body.get("gracePeriodSeconds") for body in deletions] == [None, 0]
        assert {body["preconditions"]["uid"] for body in deletions} == {environment.uid}
        assert (api.pods, counted(backend.client, "accepted")) == ({}, 3)


@pytest.mark.parametrize("how", ["setting", "version"])
async def test_switched_off_nothing_is_patched_and_the_kubelet_ends_the_pod(api: FakeApi, how: str) -> None:
    api.slow_removal = True
    async with backend_on(api, nudge_kubelet=how != "setting") as backend:
        if how == "version":
            backend.facts.set_nudges(False)
        environment = backend.environment(ACTION)
        await environment.create()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Kubelet(api, environment).run(0))
            tasks.create_task(run_to_end(environment))
        assert api.requests_for("patch") == []
        assert len(api.requests_for("delete")) == 1


@pytest.mark.parametrize(("minor", "useful"), [("35", False), ("36", True), ("37+", True)])
async def test_the_version_of_the_cluster_decides_whether_nudges_help(api: FakeApi, minor: str, useful: bool) -> None:
    facts = ClusterFacts()
    async with api.serving() as client:
        api.answer("get", "/version", 200, body=f'{{"major": "1", "minor": "{minor}"}}')
        await learn_facts(facts, client, Settings())
    assert (facts.nudges, facts.user_namespaces) == (useful, True)


@pytest.mark.parametrize("why", REFUSALS)
async def test_a_refusal_ends_all_nudges_for_a_while_with_one_log_entry(api: FakeApi, why: str) -> None:
    status, message = REFUSALS[why]
    async with api.serving() as client:
        switch = NudgeSwitch(client, lambda: True, list, off_seconds=0.05)
        api.answer("patch", "resize", status, message, times=2)
        with capture_logs() as logs:
            assert not await switch.send(POD, "u", 9)
            assert not switch.on
            assert not await switch.send(POD, "u", 8)
        assert len(api.requests_for("patch")) == 1
        assert [each["log_level"] for each in logs] == ["warning"]
        assert message in logs[0]["error"]
        assert counted(client, "refused") == 1
        await asyncio.sleep(0.06)
        assert switch.on
        assert not await switch.send(POD, "u", 8)
        assert counted(client, "refused") == 2


@pytest.mark.parametrize(
    ("status", "message", "more"),
    [(404, 'pods "p" not found', False), (409, "the object has been modified", True), (503, "busy", False)],
)
async def test_a_failure_of_one_nudge_switches_nothing_off(api: FakeApi, status: int, message: str, more: bool) -> None:
    async with api.serving() as client:
        switch = NudgeSwitch(client, lambda: True, list)
        api.answer("patch", "resize", status, message)
        assert await switch.send(POD, "u", 9) is more
        assert (switch.on, counted(client, "failed")) == (True, 1)


async def test_a_nudge_without_an_answer_is_given_up(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nudgers, "REQUEST_SECONDS", 0.05)
    async with api.serving() as client:
        switch = NudgeSwitch(client, lambda: True, list)
        api.answer("patch", "resize", HANG)
        assert not await switch.send(POD, "u", 9)
        assert (switch.on, counted(client, "failed")) == (True, 1)


async def test_a_nudge_never_waits_for_the_rate_limit(api: FakeApi) -> None:
    async with api.serving(requests_per_second=0.5) as client:
        switch = NudgeSwitch(client, lambda: True, list)
        await client.bucket.acquire()
        waiting = asyncio.create_task(client.bucket.acquire())
        await asyncio.sleep(0)
        assert await switch.send(POD, "u", 9)
        assert (api.requests, counted(client, "skipped")) == ([], 1)
        waiting.cancel()


async def test_a_refused_nudge_changes_neither_the_outcome_nor_the_deletion(api: FakeApi) -> None:
    api.slow_removal = True
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        api.answer("patch", "resize", *REFUSALS["right"], times=9)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Kubelet(api, environment).run(0))
            tasks.create_task(run_to_end(environment))
        assert len(api.requests_for("patch")) <= 1
        assert len(api.requests_for("delete")) == 1


async def test_commands_that_may_still_run_keep_their_grace_period(api: FakeApi) -> None:
    api.slow_removal = True
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        await Kubelet(api, environment).show("Running", helper=True, action=True)
        removing = asyncio.create_task(environment.remove())
        await api.until("deleted", lambda: bool(api.requests_for("delete")))
        await asyncio.sleep(0.05)
        await api.remove(environment.plan.name)
        await removing
        assert api.requests_for("patch") == []
        assert len(api.requests_for("delete")) == 1


async def test_an_adopting_agent_continues_at_the_present_request_and_a_disowned_pod_is_left_alone(
    api: FakeApi,
) -> None:
    async with backend_on(api) as backend:
        former = backend.environment(ACTION)
        await former.create()
        pod = api.pods[former.plan.name]
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "7m"
        former.ending.log_ended()
        former.disown()
        environment = backend.environment_of(pod)
        environment.ending.log_ended()
        await api.until("nudged", lambda: bool(api.requests_for("patch", "resize")))
        environment.release()
        await asyncio.sleep(0.3)
        assert [each.body for each in api.requests_for("patch", "resize")] == [resize(pod["metadata"]["uid"], 6)]


async def test_a_busy_node_gets_no_nudges(api: FakeApi) -> None:
    async with backend_on(api) as backend:
        environments = [
            backend.environment(Action(Key(f"build-{number}"), "alpine", ("true",)))
            for number in range(MAX_CHANGING_PODS + 1)
        ]
        for each in environments:
            await each.create()
            await api.status(each.plan.name, phase="Pending")
            while not (each.pod_state.pod or {"spec": {}})["spec"].get("nodeName"):
                await each.pod_state.wait_for_change(each.pod_state.version)
        environments[0].ending.log_ended()
        assert environments[0].ending.task is None
        assert counted(backend.client, "skipped") == 1
        environments.pop().release()
        environments[0].ending.log_ended()
        assert environments[0].ending.task is not None
        for each in environments:
            each.release()
