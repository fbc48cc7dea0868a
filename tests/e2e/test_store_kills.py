"""The agent or the pod is killed at each step of an upload to a real object store, and of a fetch of inputs from it.

The programs of container `helper` run as processes of this machine (see `store_flow`). A program whose agent was killed
continues, as in a pod.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.artifacts.objects import collect_objects, objects_command
from agent.domain.actions import ArtifactRules, Key
from agent.domain.artifacts import StoredObject
from agent.domain.errors import ClusterError
from agent.domain.observations import Collected
from agent.domain.session_state import SessionState
from agent.protocol.wire import agent_pb2 as wire
from agent.settings import Settings
from tests.e2e.object_store import Store, object_store
from tests.e2e.store_flow import Flow, PodFolder, StoreBackend, StoreEnvironment, open_flow, proxied, upload
from tests.fakes.agent import FakeAgent
from tests.fakes.store_proxy import Hold, no_fault
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.domain.artifacts import FilePart, InputFile
    from tests.fakes.store_proxy import StoreProxy

# The smallest part of an upload that the store takes, in place of 64 MiB.
PART = 5 << 20
SMALL_PARTS = {"TRIES": 2, "PART_BYTES": PART}
BIG = {"big": bytes(range(256)) * (PART // 256) + b"end", "small": b"content"}
# Large enough for an object of its own.
TWO = {"first": b"1" * 400_000, "second": b"2" * 400_000}
LIMITS = ArchiveLimits(files=1000, file_bytes=1 << 30, total_bytes=1 << 30, seconds=60)
UPLOAD_STEPS: dict[str, Callable[[str, str], bool]] = {
    "an upload in parts begins": lambda method, path: method == "POST" and "uploads=" in path,
    "the first part is sent": lambda method, path: method == "PUT" and "partNumber=1" in path,
    "the second part is sent": lambda method, path: method == "PUT" and "partNumber=2" in path,
    "the parts are joined": lambda method, path: method == "POST" and "uploadId=" in path,
    "the parts were joined": lambda method, path: method == "POST" and "uploadId=" in path,
}
FETCH_STEPS = ("a file is asked", "half of a file is read", "one file is whole", "the commands may begin")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with object_store(tmp_path_factory.mktemp("store"), "127.0.0.1") as store:
        yield store


class Case:
    """One kill: a flow of its own, whose requests to the store go through a proxy."""

    def __init__(self, flow: Flow, proxy: StoreProxy, stack: AsyncExitStack) -> None:
        self.flow = flow
        self.proxy = proxy
        self.stack = stack

    async def adopt(self, key: Key) -> Key:
        """Let another agent adopt the session of the agent, which was killed. Return the key with the new claim."""
        adopted, agent = Key(key.action_id, key.attempt, key.claim + 1), self.flow.agent
        await agent.leave()
        sessions = [SessionState(adopted, adopted=True)]
        other = FakeAgent(agent.address, pod="adopting", sessions=sessions, features=agent.features)
        self.flow.use(await self.stack.enter_async_context(other))
        await other.take("resume")
        return adopted


OpenCase = Callable[[str], Awaitable[Case]]


@pytest.fixture
async def open_case(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenCase]:
    """Yield a function that opens a case, given the side that signs."""
    async with AsyncExitStack() as stack:

        async def open_one(issuer: str) -> Case:
            proxy, settings = await stack.enter_async_context(proxied(store))
            flow = await stack.enter_async_context(open_flow(tmp_path, settings, issuer, monkeypatch))
            return Case(flow, proxy, stack)

        yield open_one


async def uploads_left(flow: Flow, key: Key) -> bool:
    """Return whether the store has an upload in parts of this action that is not complete."""
    assert flow.objects is not None
    _, body = await flow.objects.request("GET", query={"uploads": ""})
    return hashlib.sha256(key.action_id.encode()).hexdigest().encode() in body


# ---- an upload


async def collect(pod: PodFolder, grants: Any) -> list[FilePart]:
    """Put the files of a pod into the store. Return the parts if the collection is complete."""
    argv = objects_command(ArtifactRules(("*",)), LIMITS, workspace="/workspace")
    found = [item async for item in collect_objects(cast(Any, pod.open_exec(argv)), grants, LIMITS)]
    assert isinstance(found.pop(), Collected)
    return cast("list[FilePart]", found)


def grants_of(flow: Flow, key: Key) -> Any:
    assert flow.issuer is not None
    return flow.issuer.uploads(key)


@pytest.mark.parametrize(
    ("killed", "issuer", "step"),
    [
        # When the parts are joined, the program in the pod has done its work.
        *(("pod", "agent", step) for step in list(UPLOAD_STEPS)[:3]),
        *(("agent", "agent", step) for step in UPLOAD_STEPS),
        ("agent", "scheduler", "the second part is sent"),
        ("pod", "scheduler", "the second part is sent"),
    ],
)
async def test_a_kill_at_a_step_of_an_upload(open_case: OpenCase, killed: str, issuer: str, step: str) -> None:
    case = await open_case(issuer)
    flow = case.flow
    _, action = await flow.next_action()
    pod = flow.new_pod()
    pod.constants = SMALL_PARTS
    pod.write(BIG)
    grants, hold = grants_of(flow, action.key), Hold(UPLOAD_STEPS[step])
    if step == "the parts were joined":
        case.proxy.after = hold
    else:
        case.proxy.rule = hold
    collecting = asyncio.create_task(collect(pod, grants), name="collect")
    await hold.until_reached()
    if killed == "pod":
        pod.execs[0].process.kill()
        hold.open.set()
        # No file counts, because the collection has no end.
        with pytest.raises(ClusterError):
            await collecting
        assert not await uploads_left(flow, action.key), "the agent drops what it has begun"
        return
    await kill_agent(collecting, grants)
    key = await case.adopt(action.key)
    case.proxy.rule = case.proxy.after = no_fault
    again = await collect(pod, grants_of(flow, key))
    names = [part.uri for part in again if isinstance(part, StoredObject)]
    assert names
    assert all(f"/{key.attempt}/{key.claim}/" in name for name in names), "each claim has a folder of its own"
    await upload(flow.agent, key, again)
    # The program of the killed agent ends late. It changes no object of the new claim.
    hold.open.set()
    await pod.execs[0].process.wait()
    await flow.agent.live(wire.Action(action_id=key.action_id, attempt=key.attempt, claim=key.claim))
    got, rig = await flow.run(lambda _: None)
    assert rig.pod.contents == BIG, got.log


async def kill_agent(task: asyncio.Task[Any], grants: Any) -> None:
    """End an agent's work as SIGKILL does. Nothing is cleaned up."""

    async def no_abort() -> None:
        """Do nothing. A killed agent sends no request."""

    grants.abort = no_abort
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# ---- a fetch of inputs


async def fetch(environment: StoreEnvironment) -> None:
    """Copy the inputs of an action into its pod."""

    async def items() -> AsyncIterator[InputFile]:
        for file in environment.action.inputs[0].files:
            yield file

    await environment.receive_inputs(items(), 30.0)


async def half(method: str, _path: str) -> str | None:
    return "half" if method == "GET" else None


@pytest.mark.parametrize(
    ("killed", "issuer", "step"),
    [
        *(("pod", "agent", step) for step in FETCH_STEPS[:-1]),
        *(("agent", "agent", step) for step in FETCH_STEPS),
        ("agent", "scheduler", FETCH_STEPS[1]),
    ],
)
async def test_a_kill_at_a_step_of_a_fetch(open_case: OpenCase, killed: str, issuer: str, step: str) -> None:
    case = await open_case(issuer)
    flow, proxy = case.flow, case.proxy
    await flow.run(lambda pod: pod.write(TWO))
    _, action = await flow.next_action()
    backend = StoreBackend(flow, Settings(), lambda _: None)
    first = StoreEnvironment(backend, action, flow)
    hold = Hold(lambda method, path: method == "GET" and (step != "one file is whole" or "second" in path))
    if step != "the commands may begin":
        proxy.rule = half if step == "half of a file is read" else hold
    fetching = asyncio.create_task(fetch(first), name="fetch")
    match step:
        case "a file is asked":
            await hold.until_reached()
        case "half of a file is read":
            await poll_until("a request for a file", lambda: any("GET" in each for each in proxy.requests))
        case "one file is whole":
            await poll_until("the first file", lambda: "first" in first.pod.contents)
            await hold.until_reached()
        case _:
            await fetching
    (program,) = first.pod.execs
    if killed == "pod":
        program.process.kill()
        with pytest.raises(ClusterError):
            await fetching
        assert first.pod.words == b"", "no command begins without all files"
        whole = {name: data for name, data in first.pod.contents.items() if ".sealci-inputs" not in name}
        assert whole.items() <= TWO.items()
        second = StoreEnvironment(backend, action, flow)
    else:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        adopted = replace(action, key=await case.adopt(action.key))
        second = StoreEnvironment(backend, adopted, flow, first.pod)
    proxy.rule = no_fault
    await fetch(second)
    hold.open.set()
    proxy.released.set()
    killed_by_signal = await program.process.wait() == -signal.SIGKILL
    assert killed_by_signal is (step != "the commands may begin"), "a new program ends an older one"
    assert second.pod.contents == TWO
    assert second.pod.words == b"run\n", "the commands begin once"
