"""A pod or an agent is killed at a step of a save or of a restore. No later pod finds or gets anything half."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from agent.domain.errors import ClusterError
from agent.domain.events import CacheKind
from tests.fakes.object_store import fake_store
from tests.unit.cluster.artifacts.cache_pods import HIT, MISS, SAVED, ClaimPods, Pods, StorePods
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

EXISTS = CacheKind.EXISTS
# Bytes of the large file. It is sparse, and its archive is small.
LARGE = 64 << 20


class AgentKilledError(Exception):
    """The agent is gone."""


class AbandonedExec(LocalExec):
    """The exec of an agent that is killed before it sends message number `last + 1`. The program runs on."""

    last = 1000
    killed = False

    async def send(self, data: bytes) -> None:
        if self.sent == self.last:
            self.killed = True
            raise AgentKilledError
        await super().send(data)

    async def __aexit__(self, *_: object) -> None:
        if not self.killed:
            await super().__aexit__()


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[StorePods]:
    with fake_store() as fake:
        found = StorePods(tmp_path, fake)
        yield found
        await end_program(found.exec)


@pytest.fixture(params=["store", "claim"])
async def pods(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pods]:
    """Yield pods with a cache in an object store, and pods with a cache on a volume."""
    with fake_store() as fake:
        found: Pods = ClaimPods(tmp_path) if request.param == "claim" else StorePods(tmp_path, fake)
        found.max_bytes = 8 << 20
        yield found
        await end_program(found.exec)


async def end_program(stream: LocalExec) -> None:
    """Wait for the program of an agent that was killed."""
    with suppress(ProcessLookupError):
        stream.process.kill()
    await stream.process.wait()


def assert_whole(pods: Pods) -> None:
    """Check that each entry names an archive with its content."""
    files = pods.files
    for name in pods.entries:
        digest = json.loads(files[name])["sha256"]
        assert hashlib.sha256(files[f"{name.partition('/key/')[0]}/blob/{digest}"]).hexdigest() == digest


async def assert_next_pods_work(pods: Pods, text: str) -> None:
    """Check that the next pod gets the saved file or nothing, and that a later one gets it."""
    pods.new()
    (result,) = await pods.run("restore")
    if result.kind is MISS:
        assert (result.message, pods.cached()) == ("", None)
        pods.cached(text)
        assert [each.kind for each in await pods.run("save")] == [SAVED]
        pods.new()
        (result,) = await pods.run("restore")
    assert (result.kind, result.message, pods.cached()) == (HIT, "", text)


@pytest.mark.parametrize("message", [1, 2, 3])
async def test_a_pod_that_is_killed_between_two_steps_of_a_save(pods: Pods, message: int) -> None:
    # The messages ask to pack, allow the upload or store the entry, and end the exec.
    await pods.run("restore")
    pods.cached("one")
    pods.cut_after = message
    with pytest.raises(ClusterError):
        await pods.run("save")
    pods.cut_after = None
    assert len(pods.entries) == (message == 3)
    assert_whole(pods)
    await assert_next_pods_work(pods, "one")


@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_the_next_agent_saves_after_an_agent_was_killed_between_two_steps(pods: Pods, messages: int) -> None:
    await pods.run("restore")
    pods.cached("one")
    pods.exec_class = type("Killed", (AbandonedExec,), {"last": messages})
    with pytest.raises(AgentKilledError):
        await pods.run("save")
    abandoned = pods.exec
    assert_whole(pods)
    pods.exec_class = LocalExec
    assert [each.kind for each in await pods.run("save")] == [EXISTS if messages == 2 else SAVED]
    await end_program(abandoned)
    await assert_next_pods_work(pods, "one")


async def test_an_agent_that_is_killed_between_archive_and_entry(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(*_: object) -> None:
        raise AgentKilledError

    await pods.run("restore")
    pods.cached("one")
    pods.exec_class = type("Killed", (AbandonedExec,), {"killed": True})
    monkeypatch.setattr(type(pods.cache), "signed_entry", killed)
    with pytest.raises(AgentKilledError):
        await pods.run("save")
    assert (len(pods.blobs), pods.entries) == (1, [])
    abandoned = pods.exec
    monkeypatch.undo()
    pods.exec_class = LocalExec
    assert [each.kind for each in await pods.run("save")] == [SAVED]
    await end_program(abandoned)
    await assert_next_pods_work(pods, "one")


@pytest.mark.parametrize("messages", [1, 2])
async def test_the_next_agent_restores_after_an_agent_was_killed_between_two_steps(pods: Pods, messages: int) -> None:
    # With an object store, the path is restored before the second message, and the next agent leaves it alone.
    await pods.fill("one")
    pods.new()
    pods.exec_class = type("Killed", (AbandonedExec,), {"last": messages})
    with pytest.raises(AgentKilledError):
        await pods.run("restore")
    abandoned = pods.exec
    pods.exec_class = LocalExec
    (result,) = await pods.run("restore")
    assert (result.kind, pods.cached()) == (HIT, "one")
    await end_program(abandoned)


# ---- in the middle of a step


async def kill(pods: Pods, word: str, ready: Callable[[], bool], victim: str) -> None:
    """Run `word` until `ready`, or its end, and kill the pod or the agent then."""
    pods.exec_class = AbandonedExec
    task = asyncio.create_task(pods.run(word))
    while not task.done() and not ready():  # noqa: ASYNC110 - another process makes the condition true
        await asyncio.sleep(0.002)
    assert isinstance(pods.exec, AbandonedExec)
    if victim == "pod":
        with suppress(ProcessLookupError):
            pods.exec.process.kill()
    else:
        pods.exec.killed = True
        task.cancel()
    with suppress(ClusterError, asyncio.CancelledError):
        await task
    abandoned, pods.exec_class = pods.exec, LocalExec
    if victim == "pod":
        pods.new()
        return
    if word == "save":
        assert [each.kind for each in await pods.run("save")] in ([SAVED], [EXISTS])
    await end_program(abandoned)


def make_large(pods: Pods) -> None:
    pods.cached("")
    with (pods.workspace / ".cache/pip/wheel").open("r+b") as file:
        file.truncate(LARGE)


def packs(pods: Pods) -> bool:
    return bool([*pods.claim.rglob("tmp/*"), *pods.workspace.glob(".sealci-cache-*/archive")])


def unpacks(pods: Pods) -> bool:
    return bool([*pods.workspace.glob(".sealci-cache-*/files/.cache")])


def is_requested(stored: StorePods, method: str) -> bool:
    return any(each.startswith(method) for each in stored.fake.requests)


@pytest.mark.parametrize("victim", ["pod", "agent"])
async def test_a_kill_while_the_pod_packs(pods: Pods, victim: str) -> None:
    await pods.run("restore")
    make_large(pods)
    await kill(pods, "save", lambda: packs(pods), victim)
    assert_whole(pods)
    if not pods.entries:
        await assert_next_pods_work(pods, "one")


@pytest.mark.parametrize("victim", ["pod", "agent"])
async def test_a_kill_while_the_pod_uploads(stored: StorePods, victim: str) -> None:
    await stored.run("restore")
    stored.cached("one")
    stored.fake.faults.append("stall")
    await kill(stored, "save", lambda: is_requested(stored, "PUT"), victim)
    assert len(stored.entries) == (victim == "agent")
    await assert_next_pods_work(stored, "one")


@pytest.mark.parametrize("victim", ["pod", "agent"])
async def test_a_kill_while_the_pod_downloads(stored: StorePods, victim: str) -> None:
    await stored.fill("one")
    stored.new()
    stored.fake.faults.append("stall")
    await kill(stored, "restore", lambda: is_requested(stored, "GET"), victim)
    assert stored.cached() is None
    await assert_next_pods_work(stored, "one")


@pytest.mark.parametrize("victim", ["pod", "agent"])
async def test_a_kill_while_the_pod_unpacks(pods: Pods, victim: str) -> None:
    await pods.run("restore")
    make_large(pods)
    assert [each.kind for each in await pods.run("save")] == [SAVED]
    pods.new()
    await kill(pods, "restore", lambda: unpacks(pods), victim)
    path = pods.workspace / ".cache/pip/wheel"
    assert not path.exists() or path.stat().st_size == LARGE, "the path gets its name when it is whole"
    (result,) = await pods.run("restore")
    assert result.kind is HIT
    assert path.stat().st_size == LARGE
