"""One case of the matrix of API faults: one request, one fault, one action, with the whole agent in this process.

An ApiCase lives for one action. The agent is `agent.app.serve.serve` with all its parts. It uses a scripted API server
with a simulated node, and a scheduler that records every breach of the protocol. The checks use what the scheduler and
the API server received, the metrics, and the agent's log.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from structlog.testing import capture_logs
from tenacity import wait_random_exponential

from agent.cluster.api.client import Client
from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.cluster.ownership.adoption import AdoptionTimings
from agent.cluster.pod.labels import pod_name
from agent.domain.actions import Action, ArtifactRules, Key, When
from agent.domain.json import Object
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.telemetry.metrics import Metrics
from tests.fakes.faults import Faults
from tests.fakes.waiting import LONG
from tests.faults.node import Cluster, Points, waiting
from tests.flow.test_app import TIMINGS, World

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.app.agent import App
    from agent.settings import Settings

LINES = [f"line {number}\n".encode() for number in range(1, 9)]
SCRIPT: list[bytes | str] = ["s:1", *LINES, "f:1:0", "l:0:0"]
FILES = {"built": bytes(range(256)) * 8}
SECRET = "s3cret-value"
POD = pod_name("default", "build", 1)
FORMER = "pod-a.0"


@dataclass(frozen=True)
class Verb:
    """One kind of request of the agent: its verb, the end of its path, and its resource in the metrics.

    `scene` names the situation in which an agent sends the request. It is empty if an agent sends the request for any
    action.
    """

    verb: str
    part: str
    resource: str
    scene: str = ""

    @property
    def metrics_verb(self) -> str:
        """Return the verb by which the agent's metrics count the request."""
        return "create" if self.resource == "pods/exec" else self.verb


QUICK = wait_random_exponential(multiplier=0.01, max=0.1)

VERBS = {
    "create pod": Verb("create", "/pods", "pods"),
    "get pod": Verb("get", f"/pods/{POD}", "pods", "a lost answer"),
    "delete pod": Verb("delete", f"/pods/{POD}", "pods"),
    "patch pod": Verb("patch", f"/pods/{POD}", "pods", "an orphan"),
    "list pods": Verb("list", "/pods", "pods"),
    "watch pods": Verb("watch", "/pods", "pods"),
    "log": Verb("get", f"/pods/{POD}/log", "pods/log"),
    "exec": Verb("get", f"/pods/{POD}/exec", "pods/exec", "files"),
    "create secret": Verb("create", "/secrets", "secrets"),
    "delete secret": Verb("delete", "/secrets/", "secrets", "a lost answer to a Secret"),
    "create lease": Verb("create", "/leases", "leases", "adoption"),
    "patch lease": Verb("patch", "/leases/", "leases", "adoption"),
    "list leases": Verb("list", "/leases", "leases", "adoption"),
    "watch leases": Verb("watch", "/leases", "leases", "adoption"),
    "list events": Verb("list", "/events", "events", "a bad image"),
    "version": Verb("get", "/version", "version"),
}


class Node(Cluster):
    """A scripted cluster with one node. If `pulls` is false, the node rejects the names of all images."""

    pulls = True

    async def run_pod(self, name: str) -> None:
        """Run a pod to its end. If `pulls` is false, report instead that the name of the pod's image is invalid."""
        if self.pulls:
            await super().run_pod(name)
            return
        wrong = waiting("action")
        wrong["state"]["waiting"] = {"reason": "InvalidImageName", "message": "alpine::x"}
        uid = self.pods[name]["metadata"]["uid"]
        self.events.append({"involvedObject": {"uid": uid}, "type": "Warning", "reason": "InspectFailed"})
        await self.change_status(name, containerStatuses=[wrong])


class ApiCase(World):
    """An agent with its scheduler and its API server, for one action and one fault of one request."""

    api: Node
    deadline = 50.0
    timings = replace(
        TIMINGS, session=replace(TIMINGS.session, upload_backoff=QUICK), adoption=AdoptionTimings(poll_seconds=0.05)
    )

    def __init__(self, folder: Path, verb: str) -> None:
        super().__init__(folder)
        self.verb = VERBS[verb]
        self.api = Node(Points(), folder, SCRIPT, FILES)
        self.api.pulls = self.verb.scene != "a bad image"
        self.faults = Faults(self.api, self.felt)
        self.log_lines: list[Any] = []
        self.loop_errors: list[Object] = []
        rules = ArtifactRules() if self.verb.scene == "files" else ArtifactRules(when=When.NEVER)
        self.action = Action(Key("build"), "alpine", ("make",), secrets={"TOKEN": SECRET}, artifacts=rules)
        self.more: dict[str, Object] = {
            "cluster": {"request_timeout": 0.5, "sweep_interval": 0.1, "retry_for": 20.0, "delete_timeout": 20.0},
            "logs": {"probe_after": 0.2},
            "policy": {"pending_timeout": 30.0},
            "artifacts": {"timeout": 20.0},
            "agent": {"id": "pod-a", "adoption": self.verb.scene in ("adoption", "an orphan")},
        }

    def trust(self, own: ssl.SSLContext, other: ssl.SSLContext, authority: Path) -> None:
        """Serve the API over TLS with the certificate in `own`, which `authority` has signed.

        The agent trusts only `authority`. The fault `TLS` uses the certificate in `other`.
        """
        self.api.tls, self.faults.other = own, other
        self.authority = authority

    def settings(self, **more: Any) -> Settings:
        """Return the agent's settings.

        Their Lease intervals are shorter than the checks of the settings would allow.
        """
        settings = super().settings(**more)
        if self.api.tls:
            config = json.loads((self.folder / "config").read_text())
            config["clusters"][0]["cluster"]["certificate-authority"] = str(self.authority)
            (self.folder / "config").write_text(json.dumps(config))
        cluster = settings.cluster.model_copy(update={"lease_renew": 0.15, "lease_duration": 1.0})
        return settings.model_copy(update={"cluster": cluster})

    @asynccontextmanager
    async def living(self) -> AsyncIterator[App]:
        """Run the agent while the block runs.

        Record the agent's log lines, and each call of the event loop's exception handler.
        """
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.loop_errors.append(context))
        with capture_logs() as self.log_lines:
            async with self.agent(**self.more) as app:
                try:
                    yield app
                finally:
                    await self.faults.close()
                    await self.api.close()

    # ---- the action

    async def begin_action(self, app: App) -> None:
        """Start the action on this agent.

        If the request of this case needs a situation (`scene`), create the situation.
        """
        if self.verb.scene == "an orphan":
            client = await Client.connect(app.settings.cluster, Metrics())
            watch = PodWatch(client, "ci", "default", client.metrics)
            pods = PodBackend(app.settings, client, watch, FORMER, ClusterFacts())
            await pods.environment(self.action).create()
            await client.close()
            await self.ready()
            return
        if self.verb.scene == "a lost answer":
            self.api.answer("create", "/pods", 504, "the answer is lost", applied=True)
        if self.verb.scene == "a lost answer to a Secret":
            # The agent gets status 504, repeats the request, and finds the Secret that its first request has created.
            self.api.answer("create", "/secrets", 504, "the answer is lost", applied=True)
        await self.hand_over()

    async def hand_over(self) -> None:
        """Send the action to the agent, and send it again after each rejection.

        The agent rejects actions while the API server is unreachable.
        """
        rejected = True
        while rejected:
            self.scheduler.stored.pop(self.action.key.attempt_key, None)
            await self.ready()
            self.scheduler.peer.send(action=translate.action_message(self.action))
            await self.scheduler.until("an event is stored", lambda: bool(self.events()), LONG)
            rejected = self.events()[0].HasField("rejected")

    async def end_action(self, app: App) -> wire.Outcome:
        """Wait until the action's pod and Secret are gone. Return the action's outcome."""
        outcome = await self.outcome()
        await self.api.until(
            "every pod and Secret is deleted", lambda: not self.api.pods and not self.api.secrets, LONG
        )
        await app.sessions.idle()
        return outcome

    # ---- checks

    def check(self, app: App, outcome: wire.Outcome) -> None:
        """Check the rules for every case: one outcome, nothing left in the cluster, no secret and no traceback."""
        finished = [event for event in self.events() if event.HasField("finished")]
        assert len(finished) == 1
        assert self.scheduler.breaches == []
        assert (self.api.pods, self.api.secrets, app.pods.registry.owned_names) == ({}, {}, ())
        if outcome.result == wire.SUCCEEDED:
            assert self.log == b"".join(LINES), "success without the whole log"
            assert outcome.exit_code == 0
        text = json.dumps(self.log_lines, default=repr)
        assert SECRET not in text
        assert "exc_info" not in text
        assert "Traceback" not in text
        assert [each for each in self.loop_errors if "SSL" not in str(each)] == []

    @property
    def log(self) -> bytes:
        """Return the part of the stored log that the commands of the action have written."""
        return b"".join(
            event.log.data
            for event in self.events()
            if event.HasField("log") and event.log.source == wire.LogChunk.COMMANDS
        )

    @property
    def words(self) -> str:
        """Return all text that a user sees: details of stages, the log, and the message of the outcome."""
        words = [event.stage.detail for event in self.events() if event.HasField("stage")]
        words += [event.log.data.decode() for event in self.events() if event.HasField("log")]
        words += [event.finished.message for event in self.events() if event.HasField("finished")]
        return "\n".join(words)

    def tries(self) -> list[float]:
        """Return the times, on the event loop's clock, at which the API server received the request of this case."""
        return [
            each.at
            for each in self.api.requests_for(self.verb.verb)
            if each.path.endswith(self.verb.part) or (self.verb.part.endswith("/") and self.verb.part in each.path)
        ]

    def felt(self) -> bool:
        """Return whether the agent's metrics count any request that got no answer."""
        app = getattr(self, "app", None)
        text = app.metrics.text().decode() if app else ""
        return any('code="error"' in line and not line.endswith(" 0.0") for line in text.splitlines())

    async def until_counted(self, app: App, code: str) -> None:
        """Wait until the agent's metrics count as many answers to this case's request as the fault has made.

        The wait is necessary because the last answer can still be on its way to the agent. `code` is the class of the
        answers' status, such as `5xx`.
        """
        async with asyncio.timeout(30):
            while self.count_of(app, code) < self.faults.hits:  # noqa: ASYNC110 - a metric has no event
                await asyncio.sleep(0.01)

    def count_of(self, app: App, code: str) -> float:
        """Return the number of answers to this case's request, by the agent's metrics.

        Only answers whose status is of the class `code`, such as `5xx`, count.
        """
        labels = {"verb": self.verb.metrics_verb, "resource": self.verb.resource, "code": code}
        return app.metrics.registry.get_sample_value("sealci_agent_k8s_requests_total", labels) or 0.0
