"""Which pods of other agents an agent adopts, and what an adoption changes in the pod.

The fake API server checks resource versions, as a real API server does.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.environment import PodEnvironment
from agent.cluster.environment.watch import UNREAD, PodWatch
from agent.cluster.ownership import adoption_record
from agent.cluster.ownership.adoption import Adoption
from agent.cluster.ownership.adoption_record import MOST_LOST
from agent.cluster.ownership.orphans import Sweep
from agent.cluster.pod import labels as labels_module
from agent.domain.actions import Action, ArtifactRules, Cache, Key, When
from agent.domain.errors import ActionFailed, Reason
from agent.domain.json import Object
from agent.domain.session_state import Resume
from agent.settings import Settings
from tests.fakes.api import encode_event
from tests.fakes.shared_api import SharedApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client

DEAD = "uid-dead.1"
ACTION = Action(Key("build"), "alpine", ("true",))


class FakeLeases:
    """Leases in which the test decides which agents are gone."""

    def __init__(self, *gone: str) -> None:
        self.gone = set(gone)
        self.left: set[str] = set()
        self.on_change: Any = None

    def is_gone(self, agent: str) -> bool:
        return agent in self.gone

    def has_left(self, agent: str) -> bool:
        return agent in self.left


class AdoptingAgent:
    """The parts of an agent that adopt pods of dead agents and delete orphans."""

    def __init__(self, client: Client, agent: str = "uid-adopter.1") -> None:
        settings = Settings.model_validate({"cluster": {"namespace": "ci"}})
        self.watch = PodWatch(client, "ci", "default", client.metrics, agent)
        self.backend = PodBackend(settings, client, self.watch, agent, ClusterFacts())
        self.taken: list[PodEnvironment] = []
        self.open = True
        leases: Any = FakeLeases(DEAD)
        self.busy = False
        self.adoption = Adoption(self.backend, leases, self.take, open_for=lambda: self.open)
        self.sweep = Sweep(self.backend, 60.0)

    def take(self, environment: PodEnvironment) -> bool:
        """Take over the session of a pod and return True.

        If the test has set `busy`, release the pod and return False. An agent does so while an earlier session of the
        same attempt still ends.
        """
        if self.busy:
            environment.release()
        else:
            self.taken.append(environment)
        return not self.busy

    async def list_pods(self) -> None:
        """Update the agent's watch with a new list of all pods."""
        await self.watch.list()

    def sample(self, name: str) -> float | None:
        return self.backend.metrics.registry.get_sample_value(f"sealci_agent_{name}")


@pytest.fixture
async def client(api: SharedApi) -> AsyncIterator[Client]:
    async with api.serving() as client:
        yield client


async def orphan(client: Client, action: Action = ACTION, agent: str = DEAD) -> PodEnvironment:
    """Create a pod in the name of `agent`, as if that agent had died directly afterwards."""
    environment = AdoptingAgent(client, agent).backend.environment(action)
    await environment.create()
    return environment


@pytest.fixture
async def dead(client: Client) -> PodEnvironment:
    return await orphan(client)


def labels(api: SharedApi, name: str) -> tuple[str, str]:
    found = api.pods[name]["metadata"]["labels"]
    return found[labels_module.AGENT], found[labels_module.CLAIM]


async def test_a_claim_raises_the_claim_number_and_labels_the_pod_with_the_agent(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    version = api.pods[dead.plan.name]["metadata"]["resourceVersion"]
    await adopter.adoption.run_once()
    (taken,) = adopter.taken
    assert taken.plan.action.key == Key("build", 1, 2)
    assert (taken.uid, taken.plan.nonce) == (dead.uid, dead.plan.nonce)
    assert labels(api, dead.plan.name) == ("uid-adopter.1", "2")
    (patch,) = api.requests_for("patch")
    assert patch.body is not None
    assert patch.body["metadata"]["resourceVersion"] == version
    await adopter.adoption.run_once()
    assert len(adopter.taken) == 1
    assert adopter.sample("sessions_adopted_total") == 1


async def test_a_pod_of_which_only_the_head_was_decoded_is_adopted(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    event = adopter.watch.parse_event(encode_event({"type": "ADDED", "object": api.pods[dead.plan.name]}))
    adopter.watch.apply_event(event["type"], event["object"])
    assert UNREAD in adopter.watch.objects[dead.plan.name]
    await adopter.adoption.run_once()
    (taken,) = adopter.taken
    assert (taken.uid, taken.plan.nonce) == (dead.uid, dead.plan.nonce)
    assert labels(api, dead.plan.name) == ("uid-adopter.1", "2")


async def test_one_of_two_claiming_agents_wins(api: SharedApi, client: Client, dead: PodEnvironment) -> None:
    one, two = AdoptingAgent(client, "uid-one.1"), AdoptingAgent(client, "uid-two.1")
    await one.list_pods()
    await two.list_pods()
    await one.adoption.run_once()
    await two.adoption.run_once()
    assert (len(one.taken), len(two.taken)) == (1, 0)
    assert labels(api, dead.plan.name) == ("uid-one.1", "2")
    assert len(api.requests_for("patch")) == 2, "the second agent has tried, and its resource version was refused"
    await two.list_pods()
    await two.adoption.run_once()
    assert two.taken == []
    assert two.backend.registry.claimed_names == frozenset()


async def test_an_agent_that_drains_or_is_full_claims_nothing(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    adopter.open = False
    await adopter.list_pods()
    await adopter.adoption.run_once()
    assert (adopter.taken, api.requests_for("patch")) == ([], [])


async def test_a_pod_of_a_living_agent_is_not_claimed(api: SharedApi, client: Client) -> None:
    await orphan(client, agent="uid-alive.1")
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    await adopter.adoption.run_once()
    assert (adopter.taken, api.requests_for("patch")) == ([], [])


async def test_a_claim_whose_answer_was_lost_is_adopted_without_another_patch(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    api.answer("patch", "pods", 504, "it took too long", applied=True)
    await adopter.adoption.run_once()
    assert adopter.taken == []
    assert labels(api, dead.plan.name) == ("uid-adopter.1", "2")
    await adopter.list_pods()
    await adopter.sweep.run_once()
    assert dead.plan.name in api.pods, "the sweep deletes a claimed pod"
    await adopter.adoption.run_once()
    assert [each.plan.action.key.claim for each in adopter.taken] == [2]
    assert len(api.requests_for("patch")) == 1
    assert adopter.backend.registry.claimed_names == frozenset()


async def test_a_session_that_cannot_start_yet_stays_claimed_and_is_offered_again(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    adopter.busy = True
    await adopter.list_pods()
    for _ in range(2):
        await adopter.adoption.run_once()
        await adopter.list_pods()
        await adopter.sweep.run_once()
    assert (adopter.taken, adopter.backend.registry.owned_names) == ([], ())
    assert not adopter.watch.is_watched(dead.plan.name)
    assert dead.plan.name in api.pods
    adopter.busy = False
    await adopter.adoption.run_once()
    assert [each.plan.action.key.claim for each in adopter.taken] == [2]
    assert len(api.requests_for("patch")) == 1


async def test_a_failed_claim_is_repeated(api: SharedApi, client: Client, dead: PodEnvironment) -> None:
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    api.answer("patch", "pods", 503, "not now")
    await adopter.adoption.run_once()
    assert adopter.taken == []
    await adopter.adoption.run_once()
    assert len(adopter.taken) == 1


async def test_a_pod_that_is_gone_meanwhile_is_not_claimed(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    await api.remove(dead.plan.name, silently=True)
    await adopter.adoption.run_once()
    assert (adopter.taken, adopter.backend.registry.claimed_names) == ([], frozenset())


@pytest.mark.parametrize(
    ("annotations", "claim"),
    [
        ({}, "1"),
        ({labels_module.SESSION: "{"}, "1"),
        ({labels_module.SESSION: '{"version": 7}'}, "1"),
        (None, "many"),
        (None, "-1"),
        (None, ""),
    ],
)
async def test_a_pod_with_an_unreadable_session_is_counted_and_left_alone(
    api: SharedApi, client: Client, dead: PodEnvironment, annotations: dict[str, str] | None, claim: str
) -> None:
    pod = api.pods[dead.plan.name]
    pod["metadata"]["annotations"] = pod["metadata"]["annotations"] if annotations is None else annotations
    pod["metadata"]["labels"][labels_module.CLAIM] = claim
    await api.put(pod)
    other = await orphan(client, Action(Key("other"), "alpine", ("true",)))
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    for _ in range(2):
        await adopter.adoption.run_once()
    assert [each.plan.name for each in adopter.taken] == [other.plan.name]
    assert labels(api, dead.plan.name) == (DEAD, claim)
    assert adopter.sample("sessions_unreadable") == 1
    await adopter.sweep.run_once()
    assert dead.plan.name in api.pods
    await api.remove(dead.plan.name)
    await adopter.list_pods()
    await adopter.adoption.run_once()
    assert adopter.sample("sessions_unreadable") == 0


async def test_a_malformed_claim_number_does_not_supersede_an_owned_session(
    client: Client, dead: PodEnvironment
) -> None:
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    await adopter.adoption.run_once()
    pod = adopter.watch.pods[dead.plan.name]
    pod["metadata"]["labels"][labels_module.CLAIM] = "x"
    assert adopter.backend.find_superseded(pod) is None
    pod["metadata"]["labels"][labels_module.CLAIM] = "3"
    assert adopter.backend.find_superseded(pod) is adopter.taken[0]


async def test_an_adopted_action_without_artifacts_saves_its_caches(client: Client) -> None:
    action = replace(ACTION, artifacts=ArtifactRules(when=When.NEVER), caches=(Cache("k", ("p",)),))
    await orphan(client, action)
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    await adopter.adoption.run_once()
    (taken,) = adopter.taken
    # The annotation of the pod does not name the caches.
    assert not taken.expectations.wants_files
    await taken.take_over(Resume(taken.plan.action.key, action=action))
    assert taken.expectations.wants_files


async def test_the_sweep_deletes_neither_handed_over_pods_nor_pods_that_another_agent_has_claimed(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    frozen = AdoptingAgent(client, DEAD)
    await frozen.list_pods()
    adopter = AdoptingAgent(client)
    await adopter.list_pods()
    await adopter.adoption.run_once()
    assert labels(api, dead.plan.name) == ("uid-adopter.1", "2")
    # The frozen agent has no session for the pod. Its watch is outdated and still shows the frozen agent as the owner.
    await frozen.sweep.run_once()
    assert dead.plan.name in api.pods
    adopter.taken[0].disown()
    await adopter.taken[0].remove()
    await adopter.list_pods()
    await adopter.sweep.run_once()
    assert dead.plan.name in api.pods
    adopter.backend.registry.take_back(dead.plan.nonce)
    await adopter.sweep.run_once()
    assert dead.plan.name not in api.pods


async def adopt_in_turn(client: Client, count: int, *, left: bool) -> PodEnvironment:
    """Let agents adopt the same session one after another. Return the environment of the last agent.

    Each agent ends right after its adoption. If `left` is true, it left its pool in an orderly way. Otherwise it died.
    """
    before = DEAD
    for number in range(count):
        agent = AdoptingAgent(client, f"uid-adopter-{number}.1")
        leases: Any = agent.adoption.leases
        leases.gone = {before}
        leases.left = {before} if left else set()
        await agent.list_pods()
        await agent.adoption.run_once()
        (environment,) = agent.taken
        before = f"uid-adopter-{number}.1"
    return environment


async def test_a_session_whose_agents_die_one_after_another_is_given_up(client: Client, dead: PodEnvironment) -> None:
    # Attack: the log of an action makes each agent that reads the log hang. So the watchdog ends each agent.
    environment = await adopt_in_turn(client, MOST_LOST + 1, left=False)
    assert environment.uid == dead.uid
    with pytest.raises(ActionFailed, match="5 agents in a row ended within 120 s after") as failed:
        await environment.take_over(Resume(environment.plan.action.key))
    assert failed.value.reason is Reason.INTERNAL


@pytest.mark.parametrize(("count", "left"), [(MOST_LOST, False), (2 * MOST_LOST, True)])
async def test_a_session_of_few_dead_or_many_leaving_agents_goes_on(
    client: Client, dead: PodEnvironment, count: int, *, left: bool
) -> None:
    environment = await adopt_in_turn(client, count, left=left)
    assert environment.uid == dead.uid
    await environment.take_over(Resume(environment.plan.action.key))


def test_only_agents_that_end_soon_after_their_claim_count() -> None:
    def claimed(text: str) -> Object:
        return {"metadata": {"annotations": {adoption_record.ANNOTATION: text}}}

    at = datetime(2026, 11, 27, 12, tzinfo=UTC)
    soon, late = at + timedelta(seconds=119), at + timedelta(seconds=121)
    four = claimed(json.dumps({"at": at.isoformat(), "lost": 4}))
    assert adoption_record.read(claimed(adoption_record.next_record(four, soon, left=False))) == (soon, 5)
    assert adoption_record.read(claimed(adoption_record.next_record(four, late, left=False))) == (late, 0)
    assert adoption_record.read(claimed(adoption_record.next_record(four, soon, left=True))) == (soon, 4)
    for broken in ("", "[]", "{}", "[" * 10**5, '{"at": "2026-11-27T12:00:00", "lost": 9}', '{"at": 1, "lost": 1e999}'):
        assert adoption_record.read(claimed(broken)) == (None, 0)


async def test_a_warm_pod_that_was_deleted_for_another_pod_of_the_attempt_is_not_adopted(
    client: Client, api: SharedApi, dead: PodEnvironment
) -> None:
    # The former agent died after it had deleted the warm pod whose delivery failed, and had created a pod in its place.
    late = deepcopy(api.pods[dead.plan.name])
    late["metadata"] |= {"name": "sealci-warm-1", "uid": "uid-warm", "deletionTimestamp": "2026-11-24T09:00:00Z"}
    session = json.loads(late["metadata"]["annotations"][labels_module.SESSION])
    session["claimed_at"] = "2026-11-24T08:59:00+00:00"
    late["metadata"]["annotations"][labels_module.SESSION] = json.dumps(session)
    await api.put(late, "ADDED")
    agent = AdoptingAgent(client)
    await agent.list_pods()
    await agent.adoption.run_once()
    assert [each.plan.name for each in agent.taken] == [dead.plan.name]
    # Without the other pod, the end of the warm pod is the end of the session.
    await api.remove(dead.plan.name)
    alone = AdoptingAgent(client)
    await alone.list_pods()
    await alone.adoption.run_once()
    assert [each.plan.name for each in alone.taken] == ["sealci-warm-1"]
