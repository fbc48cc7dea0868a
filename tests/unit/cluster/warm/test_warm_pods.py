"""An agent keeps warm pods and gives them to actions, on a scripted API server that checks resource versions."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.environment import containers
from agent.cluster.ownership.orphans import Sweep
from agent.cluster.pod.labels import ACTION as ACTION_LABEL
from agent.cluster.pod.labels import AGENT, CLASS, SESSION, WARM
from agent.cluster.warm import warm_pods
from agent.domain.actions import Key, Resources
from agent.domain.errors import ActionFailed, Reason
from agent.domain.observations import Running
from agent.domain.session_state import WarmImage
from tests.fakes.warm_agent import ACTION, IMAGE, WarmAgent, warm_agent
from tests.fakes.warm_helper import Torn

if TYPE_CHECKING:
    from agent.cluster.environment.environment import PodEnvironment
    from tests.fakes.shared_api import SharedApi

pytestmark = pytest.mark.usefixtures("no_backoff")


def verbs(api: SharedApi, name: str) -> list[str]:
    """Return the requests about one pod, in order."""
    return [f"{each.verb} {each.path.rpartition('/')[2]}" for each in api.requests if name in each.path]


async def begin(agent: WarmAgent, **changes: Any) -> PodEnvironment:
    """Create the environment of an action."""
    environment = agent.backend.environment(replace(ACTION, **changes))
    await environment.create()
    return environment


async def test_an_action_begins_in_a_warm_pod_by_one_patch_and_one_exec(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        (pod_of_pool,) = agent.warm.pools.pods()
        await agent.until(lambda: pod_of_pool.standby is not None and pod_of_pool.standby.stream is not None)
        environment = agent.backend.environment(ACTION)
        # The scheduler gets this name before the pod is claimed.
        assert environment.name == f"ci/{name}"
        assert not environment.running_for
        await environment.create()
        # The exec was opened before the action came.
        assert verbs(api, name) == ["get exec", "patch " + name]
        (order,) = api.warm[name].orders
        assert (order["commands"], order["env"]["TOKEN"]) == (["make"], "hunter2-hunter2")
        assert order["nonce"] == environment.plan.nonce
        # The value of a secret is in no object of the cluster.
        assert "hunter2" not in json.dumps([api.pods, api.secrets, [each.body for each in api.requests]])
        pod = api.pods[name]
        assert WARM not in pod["metadata"]["labels"]
        assert pod["metadata"]["labels"][ACTION_LABEL]
        assert json.loads(pod["metadata"]["annotations"][SESSION])["log_key"] == environment.plan.log_key
        async for seen in environment.observations():
            assert isinstance(seen, Running)
            break
        assert agent.claims() == {"warm": 1.0}
        # The pool is refilled, and the claimed pod is deleted after the action.
        (other,) = await agent.ready()
        assert other != name
        await environment.remove()
        assert list(api.pods) == [other]
        assert agent.backend.registry.owned_names == ()
        assert not agent.warm.leaving


@pytest.mark.parametrize("breaks", [False, True])
async def test_the_exec_is_open_before_the_action_comes(api: SharedApi, *, breaks: bool) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        await agent.until(lambda: len(api.warm_helper(name).connections) == 1)
        (pod,) = agent.warm.pools.pods()
        standby = pod.standby
        assert standby is not None
        await agent.until(lambda: standby.stream is not None)
        if breaks:
            api.warm[name].break_connections()
            await agent.until(lambda: standby.stream is None)
        environment = await begin(agent)
        assert environment.plan.name == name
        assert len(api.requests_for("get", f"{name}/exec")) == (2 if breaks else 1)
        assert standby.task.done()
        await environment.remove()
    # The agent has closed the execs of the pods that still waited.
    assert not any(helper.connections for helper in api.warm.values())


async def test_the_time_before_the_claim_does_not_count_for_the_timeout(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        await agent.ready()
        environment = await begin(agent)
        # The containers of the scripted pod have been running since 2026-11-24.
        assert environment.running_for < 60
        assert isinstance(environment.containers, containers.PodContainers)
        await environment.remove()


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"image": "debian:12"}, "cold_no_pool"),
        ({"resources": Resources(cpu="2")}, "cold_no_pool"),
        ({"resources": Resources(memory="64Mi")}, "cold_no_pool"),
        ({"env": {"UID": "0"}}, "cold_variable"),
    ],
)
async def test_an_action_of_another_shape_never_gets_the_pod(
    api: SharedApi, changes: dict[str, Any], result: str
) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = await begin(agent, **changes)
        assert environment.plan.name != name
        assert not agent.warm.leaving
        assert (agent.claims(), agent.idle) == ({result: 1.0}, [name])
        await environment.remove()


async def test_an_action_of_a_class_gets_a_warm_pod_of_its_class_and_of_no_other(api: SharedApi) -> None:
    # The restricted profile changes the order too: the variable HOME.
    classes = {"strict": {"profile": "restricted", "default_cpu": "2"}, "twin": {}}
    pools = [{"image": IMAGE, "class": "strict"}, {"image": IMAGE, "class": "twin"}]
    async with warm_agent(api, environment={"classes": classes}, warm={"pools": pools}) as agent:
        await agent.ready(2)
        names = {api.pods[name]["metadata"]["labels"][CLASS]: name for name in agent.idle}
        strict, twin = WarmImage(IMAGE, "2", "256Mi", 1, "strict"), WarmImage(IMAGE, "100m", "256Mi", 1, "twin")
        assert set(agent.warm.counts()) == {strict, twin}
        plain = await begin(agent)
        assert plain.plan.name not in names.values()
        environment = await begin(agent, key=Key("other"), environment_class="strict")
        assert environment.plan.name == names["strict"]
        assert api.pods[names["strict"]]["metadata"]["labels"][CLASS] == "strict"
        assert api.pods[names["strict"]]["spec"]["securityContext"]["runAsNonRoot"] is True
        (order,) = api.warm[names["strict"]].orders
        assert order["env"]["HOME"] == "/home/action"
        larger = await begin(agent, key=Key("larger"), environment_class="twin", resources=Resources(cpu="1"))
        assert larger.plan.name not in names.values()
        assert agent.claims() == {"cold_no_pool": 2.0, "warm": 1.0}
        for each in (plain, environment, larger):
            await each.remove()


async def test_pods_of_a_class_are_learned_only_if_the_settings_name_the_class(api: SharedApi) -> None:
    classes: dict[str, Any] = {"gpu": {}, "large": {}}
    learn = {"classes": ["large"], "max_pods": 1}
    async with warm_agent(api, environment={"classes": classes}, warm={"learn": learn}) as agent:
        for name in ("gpu", "large"):
            await (await begin(agent, key=Key(name), environment_class=name)).remove()
        (name,) = await agent.ready()
        assert api.pods[name]["metadata"]["labels"][CLASS] == "large"
        assert agent.claims() == {"cold_no_pool": 1.0, "cold_empty": 1.0}


async def test_two_actions_never_get_one_pod(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        first = agent.backend.environment(ACTION)
        second = agent.backend.environment(replace(ACTION, key=Key("other")))
        await asyncio.gather(first.create(), second.create())
        assert first.plan.name == name
        assert second.plan.name != name
        assert [len(helper.orders) for helper in api.warm.values()] == [1]
        await asyncio.gather(first.remove(), second.remove())
        assert agent.claims() == {"warm": 1.0, "cold_empty": 1.0}


async def test_a_reserved_pod_that_was_not_claimed_goes_back(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = agent.backend.environment(ACTION)
        assert not agent.warm.counts()
        await environment.remove()
        assert agent.warm.counts() == [WarmImage(IMAGE, "100m", "256Mi", 1)]
        assert list(api.pods) == [name]


# ---- a claim or a delivery that fails


async def test_a_conflict_by_a_status_is_no_reason_to_drop_the_pod(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        api.answer("patch", name, 409, "the object has been modified")
        environment = await begin(agent)
        assert environment.plan.name == name
        await environment.remove()


@pytest.mark.parametrize("applied", [True, False])
async def test_after_a_claim_without_an_answer_the_pod_is_deleted_first(api: SharedApi, *, applied: bool) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        api.answer("patch", name, 503, applied=applied)
        environment = await begin(agent)
        own = environment.plan.name
        assert own != name
        deleted = next(each for each in api.requests if each.verb == "delete" and name in each.path)
        created = next(
            each for each in api.requests_for("create", "/pods") if each.body and each.body["metadata"]["name"] == own
        )
        assert api.requests.index(deleted) < api.requests.index(created)
        assert not api.warm_helper(name).used
        assert agent.claims() == {"cold_lost": 1.0, "cold_empty": 1.0}
        await environment.remove()


@pytest.mark.parametrize("step", ["order stored", "go arrived"])
async def test_an_exec_that_breaks_before_the_commands_begin_leads_to_another_pod(api: SharedApi, step: str) -> None:
    async def tear(name: str, at: str) -> None:
        if at == step and name == first:
            raise Torn

    api.warm_step = tear
    async with warm_agent(api, warm={"pools": [{"image": IMAGE, "min": 2}]}) as agent:
        first, second = sorted(await agent.ready(2), key=lambda name: api.pods[name]["metadata"]["uid"])
        environment = await begin(agent)
        assert environment.plan.name == second
        assert first not in api.pods
        assert (len(api.warm[first].orders), len(api.warm[second].orders)) == (0, 1)
        await environment.remove()


async def test_an_exec_that_breaks_after_the_commands_began_changes_nothing(api: SharedApi) -> None:
    async def tear(name: str, at: str) -> None:
        if at == "begun":
            raise Torn

    api.warm_step = tear
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = await begin(agent)
        assert environment.plan.name == name
        assert [len(helper.orders) for helper in api.warm.values()] == [1]
        await environment.remove()


async def test_if_nothing_can_be_known_the_action_ends_and_never_begins_again(
    api: SharedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tear(name: str, at: str) -> None:
        if at in ("begun", "sealed"):
            raise Torn

    api.warm_step = tear
    monkeypatch.setattr("agent.cluster.warm.claim.ASK_SECONDS", 0.0)
    async with warm_agent(api) as agent:
        await agent.ready()
        environment = agent.backend.environment(ACTION)
        with pytest.raises(ActionFailed, match="not known whether the commands began") as failed:
            await environment.create()
        assert failed.value.reason is Reason.INTERNAL
        await environment.remove()
        assert [len(helper.orders) for helper in api.warm.values()] == [1]
        assert not api.requests_for("create", "secrets")


async def test_a_pod_that_a_person_has_changed_is_not_used(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        # `kubectl set image` and `kubectl debug` can change a running pod.
        api.pods[name]["spec"]["containers"][1]["image"] = "evil:1"
        environment = await begin(agent)
        assert environment.plan.name != name
        assert name not in api.pods
        assert not api.warm_helper(name).used
        await environment.remove()


async def test_a_pod_that_another_agent_has_adopted_is_left_alone(api: SharedApi) -> None:
    async def adopt(name: str, at: str) -> None:
        if at == "order stored":
            pod = api.pods[name]
            pod["metadata"]["labels"] |= {AGENT: "uid-b.1", "sealci.dev/claim": "2"}
            await api.put(pod)
            api.warm[name].used, api.warm[name].stored = True, None

    api.warm_step = adopt
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = agent.backend.environment(ACTION)
        with pytest.raises(ActionFailed, match="another agent has adopted"):
            await environment.create()
        await environment.remove()
        assert api.pods[name]["metadata"]["labels"][AGENT] == "uid-b.1"
        assert not api.requests_for("delete", name)
        assert not api.warm[name].orders


async def test_an_attempt_that_another_agent_runs_is_not_started_a_second_time(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = await begin(agent)
        pod = api.pods[environment.plan.name]
        pod["metadata"]["labels"][AGENT] = "uid-b.1"
        await api.put(pod)
        await agent.ready(1)
        await agent.until(lambda: agent.backend.watch.find_other_pod("build", 1) == name)
        second = agent.backend.environment(ACTION)
        with pytest.raises(ActionFailed, match="another agent runs this attempt"):
            await second.create()
        await second.remove()
        assert name in api.pods
        assert agent.warm.counts()


# ---- pods that wait


@pytest.mark.parametrize("end", ["deleted", "evicted", "oom", "helper"])
async def test_a_waiting_pod_that_ends_is_replaced_and_given_to_no_action(api: SharedApi, end: str) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        status = api.pods[name]["status"]
        killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        if end == "deleted":
            await api.remove(name)
        elif end == "evicted":
            await api.status(name, phase="Failed", reason="Evicted")
        else:
            ended = "action" if end == "oom" else "helper"
            states = [
                {**each, "state": killed} if each["name"] == ended else each for each in status["containerStatuses"]
            ]
            await api.status(name, containerStatuses=states)
        # The action may come before or after the agent has seen the end.
        await agent.until(lambda: not agent.warm.counts())
        environment = await begin(agent)
        assert environment.plan.name != name
        await agent.until(lambda: name not in api.pods)
        await environment.remove()
        assert not any(helper.orders for helper in api.warm.values())


async def test_an_old_pod_is_replaced(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        (pod,) = agent.warm.pools.pods()
        pod.born -= pod.seconds + 1
        # The agent gives no action a pod that is too old, even before the pod is deleted.
        assert agent.warm.choose(pod.pool) is None
        await agent.until(lambda: name not in api.pods)
        assert await agent.ready() != [name]
        assert agent.sample("warm_pod_seconds_total", use="wasted") > 0


async def test_a_warm_pod_fits_itself_into_a_limit_range_and_is_given_to_the_action(api: SharedApi) -> None:
    message = "minimum cpu usage per Container is 50m, but request is 10m"
    api.answer("create", "/pods", 403, f'pods "p" is forbidden: {message}')
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        assert api.pods[name]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "50m"
        environment = await begin(agent)
        assert environment.plan.name == name
        await environment.remove()


async def test_a_full_quota_takes_a_warm_pod_before_an_action_waits(
    api: SharedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with warm_agent(api, warm={"pools": [{"image": IMAGE, "min": 2}]}) as agent:
        first, second = await agent.ready(2)
        api.answer("create", "/pods", 403, "exceeded quota: pods")
        environment = await begin(agent, resources=Resources(cpu="2"))
        assert first not in api.pods
        assert second in api.pods
        # No new warm pod takes the room again.
        await agent.warm.look()
        assert agent.idle == [second]
        await environment.remove()


async def test_an_action_without_a_node_takes_the_room_of_warm_pods(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        environment = await begin(agent, resources=Resources(cpu="2"))
        pod = api.pods[environment.plan.name]
        pod["status"] = {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}],
        }
        await api.put(pod)
        async for _ in environment.observations():
            if name not in api.pods:
                break
        assert name not in api.pods
        await environment.remove()


async def test_a_refused_warm_pod_is_tried_again_only_after_a_pause(api: SharedApi) -> None:
    api.answer("create", "/pods", 403, "exceeded quota: pods", times=50)
    async with warm_agent(api) as agent:
        await agent.until(lambda: any(pool.trouble for pool in agent.warm.pools.by_key.values()))
        await agent.warm.look()
        assert len(api.requests_for("create", "/pods")) == 1
        (pool,) = agent.warm.pools.by_key.values()
        pauses = []
        for _ in range(8):
            pool.pause("again", 0.0)
            pauses.append(pool.paused_until)
        assert pauses == sorted(pauses)
        assert pauses[-1] == 600.0


async def test_a_pod_that_cannot_start_is_deleted(api: SharedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_pods, "UNSCHEDULABLE_SECONDS", 0.0)
    async with warm_agent(api) as agent:
        await agent.until(lambda: agent.idle)
        (name,) = agent.idle
        waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
        await api.status(name, containerStatuses=[{"name": "action", "state": waiting}])
        await agent.until(lambda: not agent.idle)
        (pool,) = agent.warm.pools.by_key.values()
        assert pool.trouble == "ErrImagePull: not found"


async def test_pods_are_learned_from_actions_within_the_limit(api: SharedApi) -> None:
    learn = {"images": ["debian:*"], "max_pods": 1, "idle_after": "600s"}
    async with warm_agent(api, warm={"learn": learn}) as agent:
        environment = await begin(agent)
        await environment.remove()
        (name,) = await agent.ready()
        other = await begin(agent, image="alpine:3")
        await other.remove()
        again = await begin(agent)
        assert again.plan.name == name
        await again.remove()
        assert agent.claims() == {"cold_empty": 1.0, "cold_no_pool": 1.0, "warm": 1.0}
        await agent.ready()
        (pool,) = agent.warm.pools.by_key.values()
        pool.demand.last_arrival -= 601.0
        await agent.until(lambda: not agent.idle)


async def test_a_draining_agent_deletes_its_warm_pods_at_once(api: SharedApi) -> None:
    async with warm_agent(api, warm={"pools": [{"image": IMAGE, "min": 3}]}) as agent:
        await agent.ready(3)
        agent.warm.drain()
        await agent.warm.wait_until_empty(20.0)
        assert agent.idle == []
        assert agent.warm.reserve(agent.backend.plan(ACTION, "5ea1c15ea1c15ea1")) is None


async def test_a_sweep_keeps_own_warm_pods_and_deletes_those_of_dead_agents(api: SharedApi) -> None:
    async with warm_agent(api) as agent:
        (name,) = await agent.ready()
        gone = {"uid-dead.1"}
        for other, owner in (("dead", "uid-dead.1"), ("alive", "uid-b.1"), ("lost", "uid-a.1")):
            pod = json.loads(json.dumps(api.pods[name]))
            pod["metadata"] |= {"name": other, "uid": f"uid-{other}"}
            pod["metadata"]["labels"][AGENT] = owner
            await api.put(pod, "ADDED")
        await agent.until(lambda: agent.backend.watch.read("lost") is not None)
        await Sweep(agent.backend, 60.0, None, gone.__contains__).run_once()
        assert sorted(api.pods) == sorted(["alive", name])


async def test_without_pools_nothing_is_created_and_nothing_is_counted(api: SharedApi) -> None:
    async with warm_agent(api, warm={}) as agent:
        environment = await begin(agent)
        await environment.remove()
        assert (agent.claims(), agent.idle, agent.warm.enabled) == ({}, [], False)
        assert {each.verb for each in api.requests} <= {"create", "delete", "list", "watch"}
