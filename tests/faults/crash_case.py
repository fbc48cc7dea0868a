"""One case of the crash matrix: an agent is killed at one step of an action, and another agent continues.

A CrashCase lives for one action. The local scheduler runs in this process, so that a test can delay its steps. The
agents are real processes and the cluster is scripted. The checks read the stored outcome, log and files, and the pods
and Secrets that are left. The checks use no report of an agent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
from typing import TYPE_CHECKING

from agent.cluster.pod.labels import AGENT, WARM
from agent.domain.errors import Stage
from agent.domain.events import CommandFinished, Finished, StageChanged
from agent.domain.json import Object
from agent.domain.session_state import Readiness
from agent.local_scheduler.action_state import ActionStatus
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import event_codec, parser
from agent.pipeline.events import ActionEnded
from tests.fakes.waiting import LONG
from tests.faults.node import Cluster, Points

if TYPE_CHECKING:
    from pathlib import Path

    from agent.domain.actions import Key
    from agent.domain.events import Event
    from agent.domain.session_state import Health
    from agent.local_scheduler.agent_stream import AgentStream
    from agent.local_scheduler.records import ActionRecord
    from agent.local_scheduler.server import Scheduler
    from tests.faults.agent_processes import AgentProcesses, Child

RUN = "pipeline1"
SECRETS = {"TOKEN": "s3cret-value"}
TEXT = """name: p
actions:
  a:
    configuration: {container: alpine}
    commands: [one, two]
    secrets: [TOKEN]
    repo: {url: "https://example.org/r.git"}
"""
# An action with a repository gets no warm pod.
REPOSITORY = """    repo: {url: "https://example.org/r.git"}
"""
LINES = [f"line {number} of the log\n".encode() for number in range(1, 41)]
SCRIPT: list[bytes | str] = ["s:1", *LINES[:25], "f:1:0", "s:2", *LINES[25:], "f:2:0", "l:0:0"]
FILES = {"built": random.Random(7).randbytes(600_000), "small": b"small\n"}
NOTICE = b"the former agent was lost before the first command; the pod is re-created\n"
# Steps at which the agent has claimed a warm pod, and the commands have not begun.
NOT_BEGUN = ("pod claimed", "order stored", "go arrived")
# Steps at which the agent is killed before a pod exists. Then no other agent can adopt the session.
BEFORE_ANY_POD = ("received", "accepted")


class CrashCase:
    """One case. The first agent is killed at the step `step` of the action.

    `column` names the agent that continues: the "same" replica after a restart, an "other" replica, or a replica that
    starts "later". If `warm` is true, the agents keep warm pods, and the action begins in one.
    """

    def __init__(self, folder: Path, processes: AgentProcesses, step: str, column: str, *, warm: bool = False) -> None:
        self.warm = warm
        self.folder = folder
        self.processes = processes
        self.step = step
        self.column = column
        # At the step "received", the agent must die before the scheduler has received its event Accepted. The simulated
        # API holds the agent's first request at the point "accepted", so that the agent creates no pod.
        self.points = Points("accepted" if step == "received" else step)
        self.cluster = Cluster(self.points, folder, SCRIPT, FILES)
        self.accepts = step != "received"
        self.given_up = asyncio.Event()
        self.health_noticed = asyncio.Event()
        self.agents: list[Child] = []

    async def run(self) -> int:
        """Run the case, including its checks. Return the number of the attempt in which the action succeeded."""
        # The scheduler waits only 0.3 s for an adoption if no agent can adopt, because no pod exists or because no
        # agent runs for a while.
        short = self.step in BEFORE_ANY_POD or self.column == "later"
        options = SchedulerOptions(resume_grace=0.3 if short else 30.0)
        async with self.cluster.serving(), open_scheduler("127.0.0.1:0", self.folder, Access(), options) as scheduler:
            try:
                await self.kill_and_replace(scheduler)
                return await self.check(scheduler)
            finally:
                self.points.open.set()
                for agent in self.agents:
                    await agent.end(signal.SIGKILL)
                await self.cluster.close()

    async def kill_and_replace(self, scheduler: Scheduler) -> None:
        """Kill the agent when the action has reached the step `step`, and let another agent continue.

        In the column `other` of the matrix, the other agent starts before the kill.
        """
        self.listen(scheduler)
        first = await self.agent(scheduler, "replica-a")
        text = TEXT.replace(REPOSITORY, "") if self.warm else TEXT
        await scheduler.dispatcher.submit(RUN, parser.parse(text, "p.yaml"), SECRETS)
        await self.points.reached.wait()
        if self.column == "other":
            await self.agent(scheduler, "replica-b")
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        self.accepts = True
        self.points.open.set()
        if self.column == "same":
            await self.agent(scheduler, "replica-a")
        elif self.column == "later":
            if scheduler.registry.get(RUN).records["a"].state.status is not ActionStatus.ENDED:
                await self.given_up.wait()
            await self.cluster.expire()
            await self.agent(scheduler, "replica-c")

    def listen(self, scheduler: Scheduler) -> None:
        """Wrap methods of the scheduler, so that the test sees each of their calls.

        The wrappers notify the test of health reports and lost attempts. They can also hold the action at a step.
        """
        dispatcher = scheduler.dispatcher
        receive, health, give_up = dispatcher.receive, dispatcher.update_health, dispatcher.on_grace_expired

        async def delayed_receive(stream: AgentStream, key: Key, seq: int, event: Event | None) -> None:
            if not await self.hold(stream, event):
                await receive(stream, key, seq, event)
            if self.step == "outcome not acknowledged" and isinstance(event, Finished):
                await self.points.at(self.step)

        def noticed_health(stream: AgentStream, report: Health) -> None:
            health(stream, report)
            self.health_noticed.set()

        def noticed_give_up(record: ActionRecord) -> None:
            give_up(record)
            self.given_up.set()

        dispatcher.receive = delayed_receive  # type: ignore[method-assign]
        dispatcher.update_health = noticed_health  # type: ignore[method-assign,assignment]
        dispatcher.on_grace_expired = noticed_give_up  # type: ignore[method-assign]

    async def hold(self, stream: AgentStream, event: Event | None) -> bool:
        """If `event` belongs to the step at which the agent is killed, wait until the test has killed the agent.

        Return whether the method has waited.
        """
        if not self.accepts:
            await self.points.open.wait()
            return True
        if isinstance(event, StageChanged) and event.stage is Stage.ARTIFACTS:
            return await self.points.at("log drained")
        if isinstance(event, CommandFinished) and event.index == 1:
            return await self.points.at("command 1 ended")
        if isinstance(event, Finished):
            if self.step == "outcome not acknowledged" and not self.points.open.is_set():
                stream.ack = lambda key, seq: None  # type: ignore[method-assign]
            return await self.points.at("outcome sent")
        return False

    async def agent(self, scheduler: Scheduler, pod: str, address: str = "") -> Child:
        """Start an agent in the pod `pod`, and wait until the agent is ready.

        The agent connects to `address`, by default the scheduler's address.
        """
        number = len(self.agents)
        config = self.folder / f"agent-{number}.json"
        config.write_text(json.dumps(self.settings(address or scheduler.address, pod)))
        streams = scheduler.dispatcher.agents.streams
        before = {stream.agent_id for stream in streams.values()}
        child = await self.processes.start(self.folder / f"agent-{number}.log", "serve", "--config", str(config))
        self.agents.append(child)
        while not any(
            stream.health is not None
            and stream.health.status is Readiness.READY
            and bool(stream.health.warm) is self.warm
            for stream in streams.values()
            if stream.pod == pod and stream.agent_id not in before
        ):
            assert child.code is None, child.log
            self.health_noticed.clear()
            await self.health_noticed.wait()
        return child

    def settings(self, address: str, pod: str) -> Object:
        kubeconfig = self.folder / "kubeconfig"
        cluster = [{"name": "k", "cluster": {"server": self.cluster.host}}]
        contexts = [{"name": "c", "context": {"cluster": "k", "user": "u"}}]
        rest = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": cluster}
        kubeconfig.write_text(json.dumps(rest | {"contexts": contexts, "users": [{"name": "u", "user": {}}]}))
        return {
            "scheduler": {
                "address": address,
                "tls": {"enabled": False},
                "reconnect_max": "0.2s",
                "keepalive": "2s",
                "register_timeout": "2s",
            },
            "agent": {"id": pod, "slots": 4, "drain_timeout": "5s"},
            "cluster": {
                "namespace": "ci",
                "kubeconfig": str(kubeconfig),
                "lease_duration": "2s",
                "lease_renew": "0.5s",
                "sweep_interval": "0.5s",
            },
            "http": {"host": "127.0.0.1", "port": 0},
            "warm": {"pools": [{"image": "alpine"}] if self.warm else []},
            "logging": {"format": "json"},
        }

    async def check(self, scheduler: Scheduler) -> int:
        """Check that the stored outcome, log and files are as the action's script has written them.

        Also check that nothing is left in the cluster. Return the number of the attempt.
        """
        assert await outcomes(scheduler) == ["succeeded"]
        alive = {stream.agent_id for stream in scheduler.dispatcher.agents.streams.values()}
        await self.cluster.until(
            "every pod and Secret is deleted", lambda: not self.left(alive) and not self.cluster.secrets, LONG
        )
        last = self.agents[-1]
        assert await last.end(signal.SIGTERM) == 0, last.log
        await self.cluster.until("every warm pod is deleted", lambda: not self.cluster.pods, LONG)
        stored = (self.folder / RUN / "a.log").read_bytes()
        # If no command had run, the adopting agent begins the action in another pod, and the log contains this notice.
        if self.warm and self.column != "later" and self.step in NOT_BEGUN:
            assert stored.startswith(NOTICE), f"the log is {stored!r}"
            stored = stored.removeprefix(NOTICE)
        assert stored == b"".join(LINES), f"the log is {stored!r}"
        files = {path.name: path.read_bytes() for path in (self.folder / RUN / "a").iterdir()}
        assert sums(files) == sums(FILES)
        left = [lease["spec"]["holderIdentity"] for lease in self.cluster.leases.values()]
        # A killed agent cannot delete its Lease, so only the Lease of the killed replica-a may be left.
        assert [holder for holder in left if not holder.startswith("replica-a.")] == []
        for agent in self.agents:
            assert "Traceback" not in agent.log, agent.log
            assert [name for name, value in SECRETS.items() if value in agent.log] == []
        attempt = scheduler.registry.get(RUN).records["a"].state.attempt
        assert len(self.cluster.runs_of_commands) <= attempt, "the commands ran twice in one attempt"
        if self.column != "later" and self.step not in BEFORE_ANY_POD:
            assert attempt == 1, "the action was begun again although its pod was there"
        return attempt

    def left(self, alive: set[str]) -> list[str]:
        """Return the names of all pods but the warm pods of living agents."""
        labels = {name: pod["metadata"]["labels"] for name, pod in self.cluster.pods.items()}
        return [name for name, each in labels.items() if not (WARM in each and each[AGENT] in alive)]


async def outcomes(scheduler: Scheduler, run: str = RUN) -> list[str]:
    """Wait for the end of the pipeline `run`. Return every outcome that its action has."""
    found = []
    async for message in scheduler.registry.watch(run):
        event = event_codec.decode(message)
        if event is not None and isinstance(event.body, ActionEnded):
            found.append(event.body.outcome.result.value)
    return found


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
