"""Sessions whose pods are folders of this machine, with a real object store behind a proxy and a real scheduler.

The sessions, the transfers, the programs of container `helper`, the store and the gRPC calls are real. Only the
Kubernetes API is replaced: an exec starts a process of this machine. A `Flow` runs the actions of one pipeline, each in
a folder of its own.
"""

from __future__ import annotations

import asyncio
import binascii
import os
import re
import secrets
import sys
import zlib
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tenacity import wait_none

from agent.cluster import packaging
from agent.cluster.environment import transfers
from agent.cluster.environment.transfers import FileTransfers
from agent.cluster.pod import manifest
from agent.domain.artifacts import FileEnd, FileStart
from agent.domain.outcome import Result
from agent.execution.registry import SessionRegistry
from agent.execution.timings import SessionTimings
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.objects.grants import StoreIssuer
from agent.objects.store import ObjectStore
from agent.pipeline import parser
from agent.protocol import translate
from agent.scheduler.stream.fetch import fetch_call, parts_of, receive_chunk
from agent.scheduler.stream.grants import SchedulerIssuer
from agent.settings import ObjectSettings
from tests.fakes.agent import FakeAgent
from tests.fakes.cluster import FakeBackend, FakeEnvironment, Script
from tests.fakes.sink import RecordingEventSink, RecordingSessionSink
from tests.fakes.store_proxy import StoreProxy
from tests.flow.test_grants import Direct
from tests.flow.test_run_action import Rig
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
    from pathlib import Path

    import pytest

    from agent.domain.actions import Action, Key
    from agent.domain.artifacts import FilePart
    from agent.objects.grants import Issuer
    from agent.protocol.wire import agent_pb2 as wire
    from agent.scheduler.stream.connection import Connection
    from tests.e2e.object_store import Store

DEADLINE = 50.0
PIPELINE = """
actions:
  build: {configuration: {container: i}, commands: [x]}
  test: {configuration: {container: i}, commands: [x], inputs: [{from: build}]}
"""
# Constants of the programs of container `helper` that tests change: five tries with growing pauses take seconds.
QUICK = {"TRIES": 2}


class PodExec(LocalExec):
    """An exec in a pod that is a folder. As with a kubelet, the process continues when its agent goes away."""

    frame = 1 << 16

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


class PodFolder:
    """A pod as a folder: the volumes of container `helper`, and the processes of its execs.

    `constants` replaces constants of the helper's programs.
    """

    def __init__(self, root: Path, constants: Mapping[str, object] = QUICK) -> None:
        self.root = root
        self.constants = constants
        for name in ("workspace", "order", "log"):
            (root / name).mkdir(parents=True)
        (root / "order" / "setup").touch()
        (root / "log" / "user").write_text(f"{os.geteuid()} {os.getegid()}\n")
        (root / "snapshot").write_bytes(b"")
        os.mkfifo(root / "order" / "go")
        self.go = os.open(root / "order" / "go", os.O_RDWR | os.O_NONBLOCK)
        self.execs: list[PodExec] = []

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def words(self) -> bytes:
        """Return the words that have arrived in the FIFO `go` since the last look."""
        with suppress(BlockingIOError):
            return os.read(self.go, 100)
        return b""

    @property
    def files(self) -> dict[bytes, tuple[int, bytes]]:
        """Return the mode and the content of each file of the workspace, by its path."""
        top, found = os.fsencode(self.workspace), {}
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = (os.fstat(file.fileno()).st_mode & 0o777, file.read())
        return found

    @property
    def contents(self) -> dict[str, bytes]:
        """Return the content of each file of the workspace, by its path."""
        return {os.fsdecode(path): content for path, (_, content) in self.files.items()}

    def write(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            (self.workspace / name).write_bytes(content)

    def open_exec(self, argv: list[str]) -> PodExec:
        """Return an exec of a command in container `helper`."""
        places = {
            "/workspace": str(self.workspace),
            packaging.SNAPSHOT: str(self.root / "snapshot"),
            packaging.LOG_FOLDER: str(self.root / "log"),
            manifest.GO: str(self.root / "order" / "go"),
        }
        number = argv.index("-c") + 1
        words = [sys.executable, *argv[1:number], changed(argv[number], self.constants)]
        self.execs.append(PodExec([*words, *(places.get(word, word) for word in argv[number + 1 :])]))
        return self.execs[-1]

    async def close(self) -> None:
        """End all processes."""
        for each in self.execs:
            if hasattr(each, "process"):
                with suppress(ProcessLookupError):
                    each.process.kill()
                await each.process.wait()
        os.close(self.go)


def changed(program: str, constants: Mapping[str, object]) -> str:
    """Return a packed program with other constants. A constant that the program lacks is ignored."""
    packed = re.search(r"a2b_base64\('([^']*)'\)", program)
    assert packed is not None
    text = zlib.decompress(binascii.a2b_base64(packed[1])).decode()
    for name, value in constants.items():
        text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
    return text


class StoreEnvironment(FileTransfers, FakeEnvironment):
    """An environment whose files are in a `PodFolder`, and go through the agent's own transfers.

    The commands are the function `act`, which gets the folder of the workspace.
    """

    backend: StoreBackend

    def __init__(self, backend: StoreBackend, action: Action, flow: Flow, pod: PodFolder | None = None) -> None:
        FakeEnvironment.__init__(self, backend, action, Script())
        self.pod = pod or flow.new_pod()
        self.client = cast(Any, self.pod)
        self.context = cast(
            Any,
            SimpleNamespace(settings=backend.settings, issuer=flow.issuer, copies=asyncio.Semaphore(4), cache=None),
        )
        self.plan = cast(Any, SimpleNamespace(action=action, wants_snapshot=True, namespace="ci", name="pod"))
        self.pod_state = cast(Any, SimpleNamespace(pod={}))

    async def run_commands(self) -> None:
        """Run the commands. Those of an action with inputs wait for the inputs."""
        if self.action.inputs:
            assert self.pod.words == b"run\n"
        self.backend.act(self.pod)
        await super().run_commands()


class StoreBackend(FakeBackend):
    """Makes the environments of one session registry."""

    def __init__(self, flow: Flow, settings: Any, act: Callable[[PodFolder], None]) -> None:
        super().__init__()
        self.flow = flow
        self.settings = settings
        self.act = act

    def environment(self, action: Action) -> StoreEnvironment:
        environment = StoreEnvironment(self, action, self.flow)
        self.environments[action.key.action_id] = environment
        return environment


class SchedulerSink(RecordingEventSink):
    """Records the events of sessions, and moves their files in the gRPC calls of a real scheduler."""

    def __init__(self, agent: FakeAgent) -> None:
        super().__init__()
        self.agent = agent

    def open(self, key: Key, *, adopted: bool = False) -> SchedulerSessionSink:
        outlet = SchedulerSessionSink(self, key, adopted=adopted)
        self.outlets[key.attempt_key] = outlet
        return outlet


class SchedulerSessionSink(RecordingSessionSink):
    """Records the events of one session, and moves its files."""

    sink: SchedulerSink

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        await super().upload(parts)
        await upload(self.sink.agent, self.key, self.uploads[-1])

    async def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        agent = self.sink.agent
        call = fetch_call(agent.stub, self.key, agent.agent_id, number)
        async for part in parts_of(lambda: receive_chunk(call)):
            yield part


async def upload(agent: FakeAgent, key: Key, parts: list[FilePart]) -> None:
    """Send the parts of an upload, and the part that ends it, to the scheduler."""
    starts = [part for part in parts if isinstance(part, FileStart)]
    end = translate.UploadEnd(sum(isinstance(part, FileEnd) for part in parts), sum(part.size for part in starts))
    await agent.upload(key, [translate.part_message(part) for part in (*parts, end)])


class FlowRig(Rig):
    """The session registry of one action of a flow."""

    def __init__(self, flow: Flow, act: Callable[[PodFolder], None], **settings: Any) -> None:
        super().__init__(**settings)
        self.backend: StoreBackend = StoreBackend(flow, self.settings, act)
        self.sink = SchedulerSink(flow.agent)
        self.copies = flow.copies

    async def run(self, action: Action) -> RecordingSessionSink:
        """Run an action to its end. Return its events."""
        timings = SessionTimings(
            kill_margin=0.05, lost_log_margin_stopping=0.01, upload_attempts=self.copies, upload_backoff=wait_none()
        )
        async with asyncio.TaskGroup() as tasks:
            self.sessions = SessionRegistry(
                self.settings, self.backend, self.sink, self.metrics, tasks, timings=timings
            )
            self.sessions.action(action)
            async with asyncio.timeout(DEADLINE):
                await self.sessions.idle()
        self.clean()
        return self.sink[action.key.action_id]

    @property
    def pod(self) -> PodFolder:
        (environment,) = self.backend.environments.values()
        assert isinstance(environment, StoreEnvironment)
        return environment.pod


class Flow:
    """The actions of one pipeline. `objects` is the store as the side that signs sees it, None without one."""

    def __init__(self, folder: Path, agent: FakeAgent, objects: ObjectStore | None) -> None:
        self.folder = folder
        self.objects = objects
        self.pods: list[PodFolder] = []
        self.constants: Mapping[str, object] = QUICK
        # Number of tries to copy files of an action.
        self.copies = 1
        self.use(agent)

    def use(self, agent: FakeAgent) -> None:
        """Let another agent run the next actions."""
        self.agent = agent
        self.issuer: Issuer | None = None
        if self.objects is not None and self.objects.settings.issuer == "agent":
            self.issuer = StoreIssuer(self.objects, "pool")
        elif self.objects is not None:
            self.issuer = SchedulerIssuer(ObjectSettings(issuer="scheduler"), agent.agent_id)
            self.issuer.connection = cast("Connection", Direct(agent))

    def new_pod(self) -> PodFolder:
        self.pods.append(PodFolder(self.folder / f"pod-{len(self.pods)}", self.constants))
        return self.pods[-1]

    async def next_action(self) -> tuple[wire.Action, Action]:
        """Return the next action, as the scheduler sends it and as the agent reads it."""
        message = await self.agent.action()
        return message, translate.action(message)

    async def run(self, act: Callable[[PodFolder], None], **settings: Any) -> tuple[RecordingSessionSink, FlowRig]:
        """Run the next action in a session. If it succeeds, the scheduler continues with the action that needs it."""
        message, action = await self.next_action()
        rig = FlowRig(self, act, **settings)
        sent = await rig.run(action)
        if sent.outcome.result is Result.SUCCEEDED:
            await self.agent.live(message)
        return sent, rig


def of_issuer(settings: Mapping[str, Any], issuer: str) -> ObjectSettings:
    return ObjectSettings.model_validate({**settings, "issuer": issuer})


@asynccontextmanager
async def open_flow(
    folder: Path, settings: Mapping[str, Any], issuer: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Flow]:
    """Yield a flow with a scheduler of its own. `settings` is the section `objects` of the side that signs."""
    monkeypatch.setattr(transfers, "ExecStream", lambda client, _container, argv, **_options: client.open_exec(argv))
    objects = None if issuer == "none" else ObjectStore(of_issuer(settings, issuer))
    async with (
        open_scheduler("127.0.0.1:0", folder / "scheduler", Access(), SchedulerOptions(objects=objects)) as scheduler,
        FakeAgent(scheduler.address, features=("inputs", "objects")) as agent,
    ):
        await scheduler.dispatcher.submit(secrets.token_hex(8), parser.parse(PIPELINE, "p.yaml"), {})
        flow = Flow(folder, agent, objects)
        try:
            yield flow
        finally:
            for pod in flow.pods:
                await pod.close()


@asynccontextmanager
async def proxied(store: Store) -> AsyncIterator[tuple[StoreProxy, dict[str, Any]]]:
    """Yield a proxy in front of a store, and the section `objects` that uses the proxy."""
    async with StoreProxy(str(store.settings["endpoint"])) as proxy:
        yield proxy, store.settings | {"endpoint": proxy.url}
