"""Who may claim what, and what a claim does, against an API that keeps versions as the real one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.environment.backend import Pods
from agent.cluster.environment.environment import PodEnvironment
from agent.cluster.environment.watch import UNREAD, PodWatch
from agent.cluster.ownership.adoption import Adoption
from agent.cluster.ownership.orphans import Sweep
from agent.cluster.pod import labels as labels_module
from agent.domain.actions import Action, Key
from agent.settings import Settings
from tests.fakes.api import encode_event
from tests.fakes.shared_api import SharedApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client

DEAD = "uid-dead.1"
ACTION = Action(Key("build"), "alpine", ("true",))


class Judge:
    """In place of the Leases: whom the test declares departed."""

    def __init__(self, *departed: str) -> None:
        self.gone = set(departed)
        self.on_change: Any = None

    def departed(self, agent: str) -> bool:
        return agent in self.gone


class Heir:
    """One agent, as far as it adopts."""

    def __init__(self, client: Client, agent: str = "uid-heir.1") -> None:
        settings = Settings.model_validate({"cluster": {"namespace": "ci"}})
        self.watch = PodWatch(client, "ci", "default", client.metrics, agent)
        self.pods = Pods(settings, client, self.watch, client.metrics, agent)
        self.taken: list[PodEnvironment] = []
        self.open = True
        leases: Any = Judge(DEAD)
        self.busy = False
        self.adoption = Adoption(self.pods, leases, self.take, open_for=lambda: self.open)
        self.sweep = Sweep(self.pods, 60.0)

    def take(self, environment: PodEnvironment) -> bool:
        """Take a session, unless its attempt is still being ended here."""
        if self.busy:
            environment.let_go()
        else:
            self.taken.append(environment)
        return not self.busy

    async def look(self) -> None:
        """List the pods, so that what is known is what is there."""
        await self.watch.list()

    def sample(self, name: str) -> float | None:
        return self.pods.metrics.registry.get_sample_value(f"sealci_agent_{name}")


@pytest.fixture
async def client(api: SharedApi) -> AsyncIterator[Client]:
    async with api.serving() as client:
        yield client


async def orphan(client: Client, action: Action = ACTION, agent: str = DEAD) -> PodEnvironment:
    """Make a pod as an agent does that dies thereupon."""
    environment = Heir(client, agent).pods.environment(action)
    await environment.create()
    return environment


@pytest.fixture
async def dead(client: Client) -> PodEnvironment:
    return await orphan(client)


def labels(api: SharedApi, name: str) -> tuple[str, str]:
    found = api.pods[name]["metadata"]["labels"]
    return found[labels_module.AGENT], found[labels_module.CLAIM]


async def test_a_claim_raises_the_number_and_says_whose_it_is(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    heir = Heir(client)
    await heir.look()
    version = api.pods[dead.plan.name]["metadata"]["resourceVersion"]
    await heir.adoption.once()
    (taken,) = heir.taken
    assert taken.plan.action.key == Key("build", 1, 2)
    assert (taken.uid, taken.plan.nonce) == (dead.uid, dead.plan.nonce)
    assert labels(api, dead.plan.name) == ("uid-heir.1", "2")
    (patch,) = api.requests_for("patch")
    assert patch.body is not None
    assert patch.body["metadata"]["resourceVersion"] == version
    await heir.adoption.once()
    assert len(heir.taken) == 1
    assert heir.sample("sessions_adopted_total") == 1


async def test_a_pod_of_which_only_the_head_was_read_is_adopted(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    heir = Heir(client)
    event = heir.watch.event(encode_event({"type": "ADDED", "object": api.pods[dead.plan.name]}))
    heir.watch.take(event["type"], event["object"])
    assert UNREAD in heir.watch.objects[dead.plan.name]
    await heir.adoption.once()
    (taken,) = heir.taken
    assert (taken.uid, taken.plan.nonce) == (dead.uid, dead.plan.nonce)
    assert labels(api, dead.plan.name) == ("uid-heir.1", "2")


async def test_of_two_agents_that_claim_one_wins(api: SharedApi, client: Client, dead: PodEnvironment) -> None:
    one, two = Heir(client, "uid-one.1"), Heir(client, "uid-two.1")
    await one.look()
    await two.look()
    await one.adoption.once()
    await two.adoption.once()
    assert (len(one.taken), len(two.taken)) == (1, 0)
    assert labels(api, dead.plan.name) == ("uid-one.1", "2")
    assert len(api.requests_for("patch")) == 2, "the second has tried, and was refused for its version"
    await two.look()
    await two.adoption.once()
    assert two.taken == []
    assert two.pods.claimed == set()


async def test_who_leaves_or_is_full_claims_nothing(api: SharedApi, client: Client, dead: PodEnvironment) -> None:
    heir = Heir(client)
    heir.open = False
    await heir.look()
    await heir.adoption.once()
    assert (heir.taken, api.requests_for("patch")) == ([], [])


async def test_what_lives_is_not_claimed(api: SharedApi, client: Client) -> None:
    await orphan(client, agent="uid-alive.1")
    heir = Heir(client)
    await heir.look()
    await heir.adoption.once()
    assert (heir.taken, api.requests_for("patch")) == ([], [])


async def test_a_claim_that_was_made_although_its_answer_got_lost_is_taken(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    heir = Heir(client)
    await heir.look()
    api.answer("patch", "pods", 504, "it took too long", applied=True)
    await heir.adoption.once()
    assert heir.taken == []
    assert labels(api, dead.plan.name) == ("uid-heir.1", "2")
    await heir.look()
    await heir.sweep.once()
    assert dead.plan.name in api.pods, "the sweep takes what was claimed for remains"
    await heir.adoption.once()
    assert [each.plan.action.key.claim for each in heir.taken] == [2]
    assert len(api.requests_for("patch")) == 1
    assert heir.pods.claimed == set()


async def test_what_cannot_be_taken_yet_stays_claimed_is_no_remains_and_is_offered_again(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    heir = Heir(client)
    heir.busy = True
    await heir.look()
    for _ in range(2):
        await heir.adoption.once()
        await heir.look()
        await heir.sweep.once()
    assert (heir.taken, heir.pods.held, heir.watch.watched) == ([], {}, {})
    assert dead.plan.name in api.pods
    heir.busy = False
    await heir.adoption.once()
    assert [each.plan.action.key.claim for each in heir.taken] == [2]
    assert len(api.requests_for("patch")) == 1


async def test_a_claim_that_failed_is_made_again(api: SharedApi, client: Client, dead: PodEnvironment) -> None:
    heir = Heir(client)
    await heir.look()
    api.answer("patch", "pods", 503, "not now")
    await heir.adoption.once()
    assert heir.taken == []
    await heir.adoption.once()
    assert len(heir.taken) == 1


async def test_a_session_that_is_gone_meanwhile_is_nobodys(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    heir = Heir(client)
    await heir.look()
    await api.remove(dead.plan.name, silently=True)
    await heir.adoption.once()
    assert (heir.taken, heir.pods.claimed) == ([], set())


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
async def test_a_pod_that_tells_no_session_is_left_and_counted_and_stops_nothing(
    api: SharedApi, client: Client, dead: PodEnvironment, annotations: dict[str, str] | None, claim: str
) -> None:
    pod = api.pods[dead.plan.name]
    pod["metadata"]["annotations"] = pod["metadata"]["annotations"] if annotations is None else annotations
    pod["metadata"]["labels"][labels_module.CLAIM] = claim
    await api.put(pod)
    other = await orphan(client, Action(Key("other"), "alpine", ("true",)))
    heir = Heir(client)
    await heir.look()
    for _ in range(2):
        await heir.adoption.once()
    assert [each.plan.name for each in heir.taken] == [other.plan.name]
    assert labels(api, dead.plan.name) == (DEAD, claim)
    assert heir.sample("sessions_unreadable") == 1
    await heir.sweep.once()
    assert dead.plan.name in api.pods
    await api.remove(dead.plan.name)
    await heir.look()
    await heir.adoption.once()
    assert heir.sample("sessions_unreadable") == 0


async def test_a_nonsensical_claim_on_a_held_session_is_no_higher_one(client: Client, dead: PodEnvironment) -> None:
    heir = Heir(client)
    await heir.look()
    await heir.adoption.once()
    pod = heir.watch.pods[dead.plan.name]
    pod["metadata"]["labels"][labels_module.CLAIM] = "x"
    assert heir.pods.superseded(pod) is None
    pod["metadata"]["labels"][labels_module.CLAIM] = "3"
    assert heir.pods.superseded(pod) is heir.taken[0]


async def test_the_sweep_leaves_what_was_given_away_and_what_another_has_claimed(
    api: SharedApi, client: Client, dead: PodEnvironment
) -> None:
    frozen = Heir(client, DEAD)
    await frozen.look()
    heir = Heir(client)
    await heir.look()
    await heir.adoption.once()
    assert labels(api, dead.plan.name) == ("uid-heir.1", "2")
    await frozen.sweep.once()  # its watch still says that the pod is its own, and nobody holds it
    assert dead.plan.name in api.pods
    heir.taken[0].leave()
    await heir.taken[0].remove()
    await heir.look()
    await heir.sweep.once()
    assert dead.plan.name in api.pods
    heir.pods.left.clear()
    await heir.sweep.once()
    assert dead.plan.name not in api.pods
