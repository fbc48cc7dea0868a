"""The whole agent between a scripted API server and a real gRPC server: its start, its work and its shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from agent.app.agent import App
from agent.app.serve import REFUSED, serve
from agent.app.timings import AppTimings
from agent.cluster.ending.plan import MAX_NUDGES
from agent.cluster.pod.labels import SESSION
from agent.domain.actions import Action, ArtifactRules, Cancel, Key, When
from agent.domain.json import Object
from agent.execution.timings import SessionTimings
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.settings import Settings
from tests.fakes.api import HANG, FakeApi
from tests.fakes.scheduler import FakeScheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ACTION = Action(Key("build"), "alpine", ("echo hello",), artifacts=ArtifactRules(when=When.NEVER))
DEADLINE = 30.0
REQUESTS = "sealci_agent_k8s_requests_total"
AT = "2026-11-24T08:00:00.000000001Z"
TIMINGS = AppTimings(cluster_poll=0.01, last_events=0.05, session=SessionTimings(kill_margin=0.05))


class World:
    """One agent, with the fake API server and the fake scheduler that it uses."""

    deadline = DEADLINE
    timings = TIMINGS

    def __init__(self, folder: Path) -> None:
        self.api = FakeApi()
        self.scheduler = FakeScheduler()
        self.folder = folder
        self.app: App
        self.task: asyncio.Task[int]

    def settings(self, **more: Any) -> Settings:
        """Return settings for this world's agent. `more` maps sections of the settings to the fields to override."""
        file = self.folder / "config"
        cluster = [{"name": "k", "cluster": {"server": self.api.host}}]
        contexts = [{"name": "c", "context": {"cluster": "k", "user": "u"}}]
        kubeconfig = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": cluster}
        file.write_text(json.dumps(kubeconfig | {"contexts": contexts, "users": [{"name": "u", "user": {}}]}))
        scheduler = {"address": self.scheduler.address, "tls": {"enabled": False}, "reconnect_max": 0.05}
        values: Object = {
            "scheduler": scheduler,
            "cluster": {"namespace": "ci", "kubeconfig": file, "delete_timeout": 0.5, "retry_for": 0.5},
            "http": {"host": "127.0.0.1", "port": 0},
            "agent": {"slots": 3, "adoption": False},
        }
        for section, fields in more.items():
            values[section] = values.get(section, {}) | fields
        return Settings.model_validate(values)

    @asynccontextmanager
    async def agent(self, **settings: Any) -> AsyncIterator[App]:
        """Run an agent until the end of the block.

        `settings` maps sections of the agent's settings to the fields to override.
        """
        await self.scheduler.start()
        async with self.api.serving(), asyncio.timeout(self.deadline):
            try:
                made: asyncio.Future[App] = asyncio.get_running_loop().create_future()
                self.task = asyncio.create_task(
                    serve(self.settings(**settings), made, timings=self.timings), name="agent"
                )
                self.app = await made
                yield self.app
                if not self.task.done():
                    self.app.stop("the test is over")
                    self.app.stop("at once")
                await self.left()
            finally:
                self.task.cancel()
                await asyncio.wait({self.task})
                await self.scheduler.stop()

    async def ready(self) -> None:
        """Wait until the agent has registered and reported to the scheduler that it is ready."""
        await self.scheduler.connected()
        await self.scheduler.until("the agent reports READY", lambda: self.reports(wire.Health.READY))

    def reports(self, status: wire.Health.Status.ValueType) -> bool:
        """Return whether the last health report that the scheduler got has this status."""
        health = self.scheduler.peer.health if self.scheduler.peers else []
        return bool(health) and health[-1].status == status

    async def left(self, seconds: float = 5.0) -> int:
        """Wait up to `seconds` until the agent has ended. Return its exit code."""
        async with asyncio.timeout(seconds):
            return await self.task

    async def get(self, path: str) -> tuple[int, str]:
        """Request a path on the agent's HTTP port. Return the status and the text of the response."""
        url = f"http://127.0.0.1:{self.app.http.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def made(self) -> str:
        """Wait until the agent has created a pod. Return the name of the pod."""
        await self.api.until("a pod is created", lambda: bool(self.api.pods))
        return next(iter(self.api.pods))

    async def begin(self, action: Action = ACTION) -> str:
        """Send an action to the agent and set the action's pod to running. Return the name of the pod."""
        self.scheduler.peer.send(action=translate.action_message(action))
        name = await self.made()
        await self.api.begin_log(name)
        await self.api.status(name, phase="Running", containerStatuses=[running("helper"), running("action")])
        await self.scheduler.until(
            "the stage COMMANDS is reported",
            lambda: any(event.stage.stage == wire.STAGE_COMMANDS for event in self.events() if event.HasField("stage")),
        )
        return name

    async def end(self, name: str) -> None:
        """End the commands of the pod `name` with success, after one log line."""
        nonce = json.loads(self.api.pods[name]["metadata"]["annotations"][SESSION])["nonce"]
        log = self.api.helpers[name]
        for line in ("\x1esealci:NONCE:s:1", "hello", "\x1esealci:NONCE:f:1:0", "\x1esealci:NONCE:l:0:0"):
            log.write(f"{line}\n".replace("NONCE", nonce).encode())
        log.end()
        message = f"sealci {nonce} completed 1\nsealci {nonce} end 0\n"
        terminated = {"exitCode": 0, "reason": "Completed", "message": message, "finishedAt": AT}
        ended = {"name": "action", "state": {"terminated": terminated}}
        await self.api.status(name, phase="Running", containerStatuses=[running("helper"), ended])

    def events(self) -> list[wire.Event]:
        """Return the events that the scheduler has stored for the action."""
        return self.scheduler.stored.get(("build", 1), [])

    async def outcome(self) -> wire.Outcome:
        await self.scheduler.until(
            'the event "finished" is stored', lambda: any(event.HasField("finished") for event in self.events())
        )
        return next(event.finished for event in self.events() if event.HasField("finished"))


def running(name: str) -> Object:
    """Return the status of a running container."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"name": name, "started": True, "state": {"running": {"startedAt": now}}}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_agent_registers_becomes_ready_and_serves_its_port(world: World) -> None:
    async with world.agent():
        await world.ready()
        assert await world.get("/livez") == (200, "ok\n")
        assert await world.get("/readyz") == (200, "ok\n")
        status, metrics = await world.get("/metrics")
        assert status == 200
        assert "sealci_agent_stream_connected 1.0" in metrics
        assert "sealci_agent_slots 3.0" in metrics
        register = world.scheduler.peer.register
        assert register is not None
        assert register.slots == 3


async def test_an_idle_agent_leaves_at_once_and_reports_draining(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        app.stop("SIGTERM")
        assert await world.left(2.0) == 0
    assert world.scheduler.peer.clean_end
    assert world.reports(wire.Health.DRAINING)


async def test_a_report_that_the_scheduler_does_not_acknowledge_keeps_no_idle_agent(world: World) -> None:
    world.scheduler.acknowledges = False
    async with world.agent(agent={"drain_timeout": 600}, policy={"images": ["other/*"]}) as app:
        await world.ready()
        world.scheduler.peer.send(action=translate.action_message(ACTION))
        await world.scheduler.until("the action is refused", lambda: len(world.events()) == 2)
        app.stop("SIGTERM")
        assert await world.left(5.0) == 0


async def test_an_action_runs_and_leaves_nothing_behind(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        name = await world.begin()
        await world.end(name)
        outcome = await world.outcome()
        assert outcome.result == wire.SUCCEEDED, outcome
        assert world.scheduler.log_of(ACTION.key) == b"hello\n"
        await world.api.until("every pod is deleted", lambda: not world.api.pods)
        await app.sessions.idle()
        assert app.pods.registry.owned_names == ()
        own = [each for each in world.api.requests if name in each.path or each.verb == "create"]
        made = [each.verb for each in own if not each.path.endswith("/resize")]
        assert made == ["create", "get", "delete"], "three requests are enough: create, log, delete"
        assert len(own) - len(made) <= MAX_NUDGES
    assert world.scheduler.breaches == []


async def test_a_stop_request_drains_the_agent(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        name = await world.begin()
        app.stop("SIGTERM")
        await world.scheduler.until("the agent reports DRAINING", lambda: world.reports(wire.Health.DRAINING))
        assert (await world.get("/readyz"))[1] == "draining\n"
        assert (await world.get("/livez"))[0] == 200
        assert not world.task.done()
        await world.end(name)
        assert (await world.outcome()).result == wire.SUCCEEDED
        assert await world.left() == 0
    assert world.api.pods == {}


async def test_a_second_stop_request_cancels_the_sessions(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        await world.begin()
        app.stop("SIGTERM")
        app.stop("SIGTERM")
        outcome = await world.outcome()
        assert (outcome.result, outcome.message) == (wire.CANCELLED, "the agent was stopped")
        assert await world.left() == 0
    assert world.api.pods == {}


async def test_the_drain_timeout_cancels_the_sessions(world: World) -> None:
    async with world.agent(agent={"drain_timeout": 0.05}) as app:
        await world.ready()
        await world.begin()
        app.stop("SIGTERM")
        assert (await world.outcome()).result == wire.CANCELLED
        assert await world.left() == 0
    assert world.api.pods == {}


async def test_the_scheduler_can_drain_the_agent(world: World) -> None:
    async with world.agent():
        await world.ready()
        world.scheduler.peer.send(drain=wire.Drain(message="an update"))
        assert await world.left(2.0) == 0


async def test_a_cancel_over_the_stream(world: World) -> None:
    async with world.agent():
        await world.ready()
        await world.begin()
        world.scheduler.peer.send(cancel=translate.cancel_message(("build", 1), Cancel(message="not wanted")))
        outcome = await world.outcome()
        assert (outcome.result, outcome.message) == (wire.CANCELLED, "not wanted")
        await world.api.until("every pod is deleted", lambda: not world.api.pods)


async def test_the_agent_is_not_ready_before_it_is_registered(world: World) -> None:
    world.scheduler.answers_registration = False
    async with world.agent() as app:
        await world.scheduler.connected()
        await app.watch.synced.wait()
        assert await world.get("/readyz") == (503, "not registered with the scheduler\n")
        assert (await world.get("/livez"))[0] == 200
        app.stop("SIGTERM")
        assert await world.left(2.0) == 0


async def test_the_agent_leaves_while_the_scheduler_is_away(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        await world.scheduler.stop()
        app.stop("SIGTERM")
        assert await world.left(2.0) == 0


async def test_the_agent_is_degraded_while_the_cluster_is_away(world: World) -> None:
    async with world.agent() as app:
        await world.ready()
        # A late answer of the API server would end the state "unreachable" that this test wants. So the test first
        # waits until the agent has received the answers to these requests.
        for verb, resource in (("watch", "pods"), ("get", "version")):
            labels = {"verb": verb, "resource": resource, "code": "2xx"}
            while not app.metrics.registry.get_sample_value(REQUESTS, labels):  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0)
        world.api.answer("get", "version", HANG)
        app.client.reachable = False
        await world.scheduler.until(
            "the agent reports DEGRADED",
            lambda: any(each.status == wire.Health.DEGRADED for each in world.scheduler.peer.health),
        )
        assert await world.get("/readyz") == (503, "the cluster does not answer\n")
        world.scheduler.peer.send(action=translate.action_message(ACTION))
        await world.scheduler.until("an event is stored", lambda: bool(world.events()))
        assert world.events()[0].rejected.why == wire.Rejected.CLUSTER_UNAVAILABLE
        await world.api.until(
            "the version is requested a second time", lambda: len(world.api.requests_for("get", "version")) == 2
        )
        await world.api.release()
        await world.scheduler.until("the agent reports READY", lambda: world.reports(wire.Health.READY))


async def test_a_refused_version_has_its_own_exit_code(world: World) -> None:
    world.scheduler.refusal = wire.Refused(message="too old", why=wire.Refused.PROTOCOL_VERSION)
    async with world.agent():
        assert await world.left() == REFUSED


async def test_a_port_in_use_is_reported_as_such(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with world.agent(http={"host": "127.0.0.1", "port": taken.getsockname()[1]}):
            with pytest.raises(OSError, match="Address already in use"):
                await world.left()
            world.task = asyncio.create_task(asyncio.sleep(0, 0))


async def test_orphans_of_the_agent_itself_are_swept(world: World) -> None:
    async with world.agent():
        await world.ready()
        await world.begin()
        agent_id = world.app.pods.agent_id
        pod = next(iter(world.api.pods.values()))
        remains = json.loads(json.dumps(pod))
        remains["metadata"] |= {"name": "remains", "uid": "uid-remains"}
        assert remains["metadata"]["labels"]["sealci.dev/agent"] == agent_id
        await world.api.put(remains, "ADDED")
        await world.app.sweep.run_once()
        assert "remains" in world.api.pods, "the watch has not reported it yet"
        watched = world.app.watch.watch("remains")
        while watched.pod is None:
            await watched.wait_for_change(watched.version)
        await world.app.sweep.run_once()
        assert list(world.api.pods) == [pod["metadata"]["name"]]


async def test_every_object_names_the_owner_that_the_agent_finds_first(world: World) -> None:
    body = json.dumps({"metadata": {"name": "anchor", "uid": "uid-of-the-anchor"}})
    world.api.answer("get", "configmaps", 403, "forbidden")
    world.api.answer("get", "configmaps", 200, body=body)
    async with world.agent(agent={"anchor": "anchor"}) as app:
        await world.ready()
        name = await world.begin()
        (owner,) = world.api.pods[name]["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "ConfigMap", "name": "anchor", "uid": "uid-of-the-anchor"}
        assert app.leases.body()["metadata"]["ownerReferences"] == [owner]
        assert [each.verb for each in world.api.requests[:2]] == ["get", "get"]
        await world.end(name)
        await world.outcome()


async def test_an_agent_without_its_owner_runs_nothing_and_can_be_stopped(world: World) -> None:
    async with world.agent(agent={"anchor": "anchor"}) as app:
        await world.api.until(
            "the ConfigMap is requested a second time", lambda: len(world.api.requests_for("get", "configmaps")) > 1
        )
        assert (await world.get("/livez"))[0] == 200
        assert (await world.get("/readyz"))[0] == 503
        assert world.scheduler.peers == []
        app.stop("SIGTERM")
        assert await world.left() == 0


async def test_a_cluster_that_denies_access_ends_the_drain(world: World) -> None:
    async with world.agent(agent={"drain_timeout": 600}, cluster={"delete_timeout": 600}) as app:
        await world.ready()
        name = await world.begin()
        world.api.answer("delete", "pods", 401, "Unauthorized", times=1000)
        app.stop("SIGTERM")
        await world.scheduler.until("the agent reports DRAINING", lambda: world.reports(wire.Health.DRAINING))
        app.leases.access_denied.set()
        assert await world.left() == 0
        assert name in world.api.pods, "the cluster deletes the pods with their owner"
