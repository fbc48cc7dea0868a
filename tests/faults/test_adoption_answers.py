"""Answers of the scheduler to the report of an adopted session: resume, discard, or no answer before the agent stops.

The agent has claimed the pod of a dead agent and reported the session to the scheduler.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.cluster.pod import labels as labels_module
from agent.domain.actions import Action, ArtifactRules, Cancel, Key, When
from agent.domain.errors import ActionFailed
from agent.domain.json import Object
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.shared_api import SharedApi
from tests.flow.test_app import World, running

if TYPE_CHECKING:
    from pathlib import Path

    from agent.app.agent import App

ACTION = Action(Key("build"), "alpine", ("echo hello",), artifacts=ArtifactRules(when=When.NEVER))
FORMER = "pod-a.0"
ADOPTING: Object = {
    "agent": {"adoption": True, "id": "pod-a", "slots": 3},
    "cluster": {"lease_duration": "4s", "lease_renew": "1s"},
}


class Estate(World):
    """A World with a second agent that has died and left a pod."""

    api: SharedApi

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.api = SharedApi()
        self.scheduler.answers_sessions = False
        self.name = ""

    async def orphan(self, action: Action = ACTION) -> None:
        """Create the pod of `action` as if its agent had died before the agent created the action's Secret."""
        client = self.api.client()
        watch = PodWatch(client, "ci", "default", client.metrics)
        environment = PodBackend(self.settings(**ADOPTING), client, watch, FORMER, ClusterFacts()).environment(action)
        if action.secrets:
            self.api.answer("create", "secrets", 403, "the agent is dead")
            with pytest.raises(ActionFailed, match="the agent is dead"):
                await environment.create()
        else:
            await environment.create()
        await client.close()
        self.name = environment.plan.name

    async def run_commands(self) -> None:
        """Set the status of the pod to running."""
        await self.api.begin_log(self.name)
        await self.api.status(self.name, phase="Running", containerStatuses=[running("helper"), running("action")])

    async def until_reported(self) -> None:
        """Wait until the agent has reported the adopted session to the scheduler."""
        await self.scheduler.until(
            "the agent has reported an adopted session",
            lambda: bool(self.scheduler.peers and self.scheduler.peer.adopted),
        )
        state = self.scheduler.peer.adopted[-1]
        assert (state.action_id, state.attempt, state.claim, state.adopted) == ("build", 1, 2, True)

    async def adopted(self) -> None:
        """Start the pod of a dead agent, and wait until the living agent has adopted its session.

        The living agent has then claimed the pod and reported the session to the scheduler.
        """
        await self.ready()
        await self.orphan()
        await self.run_commands()
        await self.until_reported()

    def resume(self, **more: Any) -> None:
        """Send the message Resume for the adopted session.

        The message states that the scheduler has stored three events, the last with the number 3.
        """
        self.scheduler.stored["build", 1] = [wire.Event(action_id="build", attempt=1, seq=seq) for seq in (1, 2, 3)]
        self.scheduler.peer.send(resume=wire.Resume(action_id="build", attempt=1, claim=2, seq=3, **more))

    def discard(self, **more: Any) -> None:
        """Send the message Discard for the adopted session."""
        self.scheduler.peer.send(discard=wire.Discard(action_id="build", attempt=1, claim=2, **more))

    def label(self) -> tuple[str, str]:
        """Return the values of two labels of the pod: the agent and the claim."""
        labels = self.api.pods[self.name]["metadata"]["labels"]
        return labels[labels_module.AGENT], labels[labels_module.CLAIM]


@pytest.fixture
def estate(tmp_path: Path) -> Estate:
    return Estate(tmp_path)


async def test_an_adopted_session_resumes_where_the_scheduler_says(estate: Estate) -> None:
    async with estate.agent(**ADOPTING) as app:
        await estate.adopted()
        estate.resume(stage=wire.STAGE_COMMANDS)
        await estate.end(estate.name)
        outcome = await estate.outcome()
        assert (outcome.result, outcome.exit_code) == (wire.SUCCEEDED, 0)
        assert estate.scheduler.log_of(ACTION.key) == b"hello\n"
        assert [event.seq for event in estate.events()] == list(range(1, len(estate.events()) + 1))
        await estate.api.until("every pod is deleted", lambda: not estate.api.pods)
        await app.sessions.idle()
        assert (app.pods.registry.owned_names, app.pods.registry.claimed_names) == ((), frozenset())
    assert estate.api.leases == {}, "the Lease was not given back"
    assert estate.scheduler.breaches == []


async def test_the_pod_of_a_discarded_session_is_deleted(estate: Estate) -> None:
    async with estate.agent(**ADOPTING) as app:
        await estate.adopted()
        estate.discard(message="ended")
        await estate.api.until("every pod is deleted", lambda: not estate.api.pods)
        await app.sessions.idle()
        assert app.pods.registry.owned_names == ()
    assert estate.events() == []


async def test_a_session_that_another_agent_claimed_is_released_on_discard(estate: Estate) -> None:
    async with estate.agent(**ADOPTING) as app:
        await estate.adopted()
        estate.discard(claimed_by_other=True, message="claim 3")
        await app.sessions.idle()
        await app.sweep.run_once()
        assert (app.pods.registry.owned_names, estate.api.requests_for("delete", "pods")) == ((), [])
        assert estate.name in estate.api.pods


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_higher_claim_on_the_pod_ends_the_session_and_keeps_the_pod(estate: Estate, resumed: bool) -> None:
    async with estate.agent(**ADOPTING) as app:
        await estate.adopted()
        if resumed:
            estate.resume(stage=wire.STAGE_COMMANDS)
            await estate.api.until("the log is requested", lambda: bool(estate.api.requests_for("get", "/log")))
        pod = json.loads(json.dumps(estate.api.pods[estate.name]))
        pod["metadata"]["labels"] |= {labels_module.AGENT: "pod-b.1", labels_module.CLAIM: "3"}
        await estate.api.put(pod)
        await app.sessions.idle()
        assert (app.pods.registry.owned_names, estate.api.requests_for("delete", "pods")) == ((), [])
        assert estate.label() == ("pod-b.1", "3")
        assert app.metrics.registry.get_sample_value("sealci_agent_sessions_superseded_total") == 1
    assert [event for event in estate.events() if event.HasField("finished")] == []


@pytest.mark.parametrize("twice", [False, True])
async def test_an_agent_that_stops_before_the_schedulers_answer_keeps_the_pod(estate: Estate, twice: bool) -> None:
    more = {**ADOPTING, "agent": {**ADOPTING["agent"], "drain_timeout": 60.0 if twice else 0.05}}
    async with estate.agent(**more) as app:
        await estate.adopted()
        app.stop("SIGTERM")
        if twice:
            app.stop("SIGTERM")
        assert await estate.left() == 0
        assert estate.api.requests_for("delete", "pods") == []
        assert estate.label()[0] == app.pods.agent_id
        assert estate.api.leases == {}, "no other agent may adopt before the Lease has expired"


async def test_a_session_handed_over_right_after_its_adoption_leaves_no_state(estate: Estate) -> None:
    async with estate.agent(**ADOPTING) as app:
        adopt, dropped = app.adoption.start_session, asyncio.Event()

        def adopt_and_drop(environment: Any) -> bool:
            taken = adopt(environment)
            assert app.sessions.hand_over() == 1
            dropped.set()
            return taken

        app.adoption.start_session = adopt_and_drop
        await estate.ready()
        await estate.orphan()
        await dropped.wait()
        await app.sessions.idle()
        assert (app.pods.registry.owned_names, app.outbox.session_outboxes) == ((), {})
        await app.sweep.run_once()
        assert estate.name in estate.api.pods


async def test_a_pending_cancel_in_the_resume_cancels_the_session(estate: Estate) -> None:
    async with estate.agent(**ADOPTING):
        await estate.adopted()
        cancel = translate.cancel_message(("build", 1), Cancel(message="not wanted"))
        estate.resume(stage=wire.STAGE_COMMANDS, pending_cancel=cancel)
        outcome = await estate.outcome()
        assert (outcome.result, outcome.message) == (wire.CANCELLED, "not wanted")
        await estate.api.until("every pod is deleted", lambda: not estate.api.pods)


async def test_the_adopting_agent_creates_a_missing_secret(estate: Estate) -> None:
    secret = Action(Key("build"), "alpine", ("x",), secrets={"TOKEN": "s3cret-value"}, artifacts=ACTION.artifacts)
    async with estate.agent(**ADOPTING):
        await estate.ready()
        await estate.orphan(secret)
        await estate.until_reported()
        assert estate.api.secrets == {}
        estate.resume(stage=wire.STAGE_SETUP, secrets={"TOKEN": "s3cret-value"})
        await estate.api.until("the Secret is created", lambda: bool(estate.api.secrets))
        (made,) = estate.api.secrets.values()
        assert made["stringData"] == {"TOKEN": "s3cret-value"}
        owners = made["metadata"]["ownerReferences"]
        assert [each["uid"] for each in owners] == [estate.api.pods[estate.name]["metadata"]["uid"]]
        await estate.run_commands()
        await estate.end(estate.name)
        assert (await estate.outcome()).result == wire.SUCCEEDED
        await estate.api.until(
            "every pod and Secret is deleted", lambda: not estate.api.pods and not estate.api.secrets
        )


async def test_a_draining_agent_adopts_nothing(estate: Estate) -> None:
    async with estate.agent(**ADOPTING) as app:
        await estate.ready()
        name = await estate.begin()
        app.stop("SIGTERM")
        await estate.scheduler.until("the agent reports DRAINING", lambda: estate.reports(wire.Health.DRAINING))
        await estate.orphan(Action(Key("other"), "alpine", ("x",), artifacts=ACTION.artifacts))
        await until_watched(app, estate.name)
        await app.adoption.run_once()
        assert estate.api.requests_for("patch", "pods") == []
        await estate.end(name)
        assert await estate.left() == 0
    assert estate.label()[0] == FORMER


async def until_watched(app: App, name: str) -> None:
    """Wait until the agent's watch has received the pod `name`."""
    watched = app.watch.watch(name)
    while watched.pod is None:
        await watched.wait_for_change(watched.version)
    app.watch.forget(name)
