"""Caches between a pod and the object store: the agent's side with the real program and a scripted store."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.caches import CacheRequest, conversation_results
from agent.cluster.packaging import LOG_FOLDER
from agent.domain.actions import Cache, CacheScope, When
from agent.domain.errors import ClusterError
from agent.domain.events import CacheKind, CacheResult
from agent.objects.cache import CacheStore, Place, version_of
from agent.objects.store import ObjectStore
from tests.fakes.cache_objects import CacheObjects
from tests.fakes.object_store import FakeStore, fake_store
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAIN = CacheScope("main", ("main",))
PULL_REQUEST = CacheScope("pr", ("pr", "main"))
CACHE = Cache("pip-{hash:*.txt}", (".cache/pip",), ("pip-old",), "pip-")
HIT, FALLBACK, MISS, SAVED = CacheKind.HIT, CacheKind.FALLBACK, CacheKind.MISS, CacheKind.SAVED


class Pods:
    """Pods of one action after another, each with a workspace of its own, and one store for all."""

    def __init__(self, folder: Path, fake: FakeStore) -> None:
        self.folder, self.fake, self.number = folder, fake, 0
        (folder / "key").write_text("k" * 40)
        self.objects = CacheObjects(fake)
        self.store = CacheStore(cast(ObjectStore, self.objects), folder / "key")
        self.max_bytes = 1 << 20
        self.writes = True
        self.cut_after: int | None = None
        self.moved: list[tuple[str, int, int]] = []
        self.new()

    def show(self, key: str, done: int, size: int) -> None:
        self.moved.append((key, done, size))

    def new(self, **files: str) -> None:
        """Begin the next pod. `files` is what the clone makes."""
        self.number += 1
        self.workspace = self.folder / f"w{self.number}"
        self.log = self.folder / f"log{self.number}"
        self.workspace.mkdir()
        self.log.mkdir()
        (self.log / "user").write_text("")
        (self.workspace / "req.txt").write_text("six")
        for name, text in files.items():
            (self.workspace / name.replace("_", ".")).write_text(text)

    def cached(self, text: str | None = None) -> str | None:
        """Return the content of the cached file. With `text`, write it first, as the commands do."""
        path = self.workspace / ".cache/pip/wheel"
        if text is not None:
            path.parent.mkdir(parents=True)
            path.write_text(text)
        return path.read_text() if path.exists() else None

    async def run(self, word: str, *caches: Cache, scope: CacheScope = MAIN, ok: bool = True) -> list[CacheResult]:
        request = CacheRequest(caches or (CACHE,), scope, "debian", 30, self.max_bytes, self.writes, self.show)
        command = request.command(word, str(self.workspace))
        argv = [sys.executable, *(str(self.log) if each == LOG_FOLDER else each for each in command[1:])]
        stream = LocalExec(argv)
        stream.cut_after = self.cut_after
        succeeded = None if word == "restore" else ok
        exec_stream = cast(ExecStream, stream)
        results = [
            replace(each, seconds=0.0)
            async for each in conversation_results(exec_stream, self.store, request, "", succeeded=succeeded)
        ]
        assert [name for name in os.listdir(self.workspace) if name.startswith(".sealci")] == []
        return results

    async def fill(self, text: str, scope: CacheScope = MAIN, **files: str) -> None:
        """Run a pod that misses, and saves `text`."""
        self.new(**files)
        assert {each.kind for each in await self.run("restore", scope=scope)} <= {MISS, FALLBACK}
        if self.cached() is None:
            self.cached(text)
        assert [each.kind for each in await self.run("save", scope=scope)] == [SAVED]

    @property
    def blobs(self) -> list[str]:
        return [path for path in self.fake.objects if "/blob/" in path]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with fake_store() as fake:
        yield Pods(tmp_path, fake)


async def test_a_miss_is_saved_and_the_next_pod_hits(pods: Pods) -> None:
    (missed,) = await pods.run("restore")
    assert (missed.kind, missed.message) == (MISS, "")
    assert missed.key.startswith("pip-")
    assert len(missed.key) == len("pip-") + 32
    pods.cached("wheel")
    (saved,) = await pods.run("save")
    assert (saved.kind, saved.key) == (SAVED, missed.key)
    assert saved.bytes > 0
    assert pods.moved[0] == (saved.key, 0, saved.bytes)
    pods.moved.clear()
    pods.new()
    (hit,) = await pods.run("restore")
    assert hit == CacheResult(saved.key, HIT, saved.key, saved.bytes)
    assert pods.moved == [(saved.key, saved.bytes, saved.bytes)]
    assert pods.cached() == "wheel"
    asked = len(pods.objects.requests)
    assert await pods.run("save") == [], "a key is never written twice"
    assert len(pods.objects.requests) == asked


async def test_other_files_other_keys_and_other_paths_find_other_entries(pods: Pods) -> None:
    await pods.fill("one")
    pods.new(req_txt="seven")
    (result,) = await pods.run("restore")
    assert (result.kind, pods.cached()) == (FALLBACK, "one"), "the prefix finds the newest"
    assert result.used_key != result.key
    for cache in (replace(CACHE, prefix=""), replace(CACHE, paths=(".cache",))):
        pods.new(req_txt="seven")
        assert [each.kind for each in await pods.run("restore", cache)] == [MISS]
    exact = Cache("none", (".cache/pip",), (result.used_key,))
    pods.new()
    assert [(each.kind, each.used_key) for each in await pods.run("restore", exact)] == [(FALLBACK, result.used_key)]


async def test_a_pull_request_reads_main_and_writes_for_itself(pods: Pods) -> None:
    await pods.fill("of main")
    await pods.fill("of the pull request", PULL_REQUEST, req_txt="seven")
    pods.new(req_txt="seven")
    (result,) = await pods.run("restore")
    assert (result.kind, pods.cached()) == (FALLBACK, "of main"), "main never sees what the pull request wrote"
    pods.new(req_txt="seven")
    (result,) = await pods.run("restore", scope=PULL_REQUEST)
    assert (result.kind, pods.cached()) == (HIT, "of main"), "saved from what the fallback had restored"


async def test_a_flipped_byte_is_a_miss_and_the_entry_goes(pods: Pods) -> None:
    await pods.fill("good")
    (path,) = pods.blobs
    data = bytearray(pods.fake.objects[path])
    data[-9] ^= 1
    pods.fake.objects[path] = bytes(data)
    pods.new()
    (result,) = await pods.run("restore", scope=PULL_REQUEST)
    assert (result.kind, result.message) == (MISS, "the archive has another sha256 than its entry")
    assert pods.cached() is None
    assert len(pods.fake.objects) == 2, "a pull request cannot delete what main has written"
    await pods.fill("mended")
    pods.new()
    assert [each.kind for each in await pods.run("restore")] == [HIT]
    assert pods.cached() == "mended"


async def test_an_entry_of_a_bucket_writer_is_refused(pods: Pods) -> None:
    await pods.fill("good")
    (name,) = [name for name in pods.objects.objects if "/key/" in name]
    pods.objects.write(name, pods.objects.objects[name].replace(b'"size"', b'"sise"'))
    pods.new()
    (result,) = await pods.run("restore")
    assert result.kind is MISS
    assert "wrong signature" in result.message
    assert pods.cached() is None
    assert name not in pods.objects.objects, "the key can be saved again"


async def test_the_archive_is_gone(pods: Pods) -> None:
    await pods.fill("good")
    del pods.fake.objects[pods.blobs[0]]
    pods.new()
    (result,) = await pods.run("restore")
    assert (result.kind, "no longer in the object store" in result.message) == (MISS, True)


async def test_another_action_saves_first(pods: Pods) -> None:
    (missed,) = await pods.run("restore")
    pods.cached("mine")
    await pods.fill("theirs")
    pods.workspace, pods.log = pods.folder / "w1", pods.folder / "log1"
    (result,) = await pods.run("save")
    assert (result.kind, result.key) == (CacheKind.EXISTS, missed.key)


async def test_the_end_of_the_commands_decides_whether_a_cache_is_saved(pods: Pods) -> None:
    caches = tuple(
        Cache(each.value, (f"{each.value}.txt",), save=each) for each in (When.SUCCESS, When.ALWAYS, When.NEVER)
    )
    await pods.run("restore", *caches)
    for each in caches:
        (pods.workspace / each.paths[0]).write_text("x")
    assert [each.key for each in await pods.run("save", *caches, ok=False)] == ["always"]
    assert [(each.key, each.kind) for each in await pods.run("save", *caches)] == [
        ("success", SAVED),
        ("always", CacheKind.EXISTS),
    ]


async def test_faults_of_one_cache_do_not_touch_the_others(pods: Pods) -> None:
    caches = (
        Cache("a-{hash:none}", ("a",)),
        Cache("b-{image}-{arch}-{os}", ("b",)),
        Cache("c" + "{image}" * 100, ("c",)),
        Cache("d", ("d",)),
        Cache("e", ("e",)),
    )
    found = await pods.run("restore", *caches)
    skipped = CacheKind.SKIPPED
    assert [each.kind for each in found] == [skipped, MISS, skipped, MISS, MISS]
    assert found[1].key == f"b-debian-{os.uname().machine}-linux"
    assert found[0].message == "no file of the workspace matches none"
    assert "at most 200" in found[2].message
    (pods.workspace / "b").write_text(os.urandom(1 << 19).hex())
    (pods.workspace / "d").symlink_to("/etc")
    pods.max_bytes = 1 << 18
    (pods.workspace / "e").write_text("e")
    results = {each.key[0]: each for each in await pods.run("save", *caches)}
    assert {key: each.kind for key, each in results.items()} == {
        "b": CacheKind.FAILED,
        "d": CacheKind.FAILED,
        "e": SAVED,
    }
    assert results["b"].message == f"the archive has more than {1 << 18} bytes"


async def test_a_path_that_does_not_exist_is_not_saved(pods: Pods) -> None:
    await pods.run("restore")
    assert [(each.kind, each.message) for each in await pods.run("save")] == [
        (CacheKind.SKIPPED, "there is no .cache/pip")
    ]


@pytest.mark.parametrize("status", [403, 503])
async def test_a_store_that_fails_is_a_miss_and_opens_the_breaker(pods: Pods, status: int) -> None:
    pods.objects.faults.extend([status] * 6)
    for _ in range(3):
        (result,) = await pods.run("restore")
        assert (result.kind, result.message) == (MISS, f"HTTP {status}")
    assert pods.store.breaker.is_open


async def test_an_upload_that_fails_leaves_nothing_to_be_found(pods: Pods) -> None:
    await pods.run("restore")
    pods.cached("x")
    pods.fake.faults.append(404)
    (result,) = await pods.run("save")
    assert (result.kind, "HTTP 404" in result.message) == (CacheKind.FAILED, True)
    pods.objects.faults.append(503)
    (result,) = await pods.run("save")
    assert (result.kind, result.message) == (CacheKind.FAILED, "HTTP 503")
    assert [name for name in pods.objects.objects if "/key/" in name] == []


async def test_a_read_only_agent_deletes_nothing(pods: Pods) -> None:
    await pods.fill("good")
    pods.fake.objects[pods.blobs[0]] = bytes(len(pods.fake.objects[pods.blobs[0]]))
    pods.new()
    pods.writes = False
    (result,) = await pods.run("restore")
    assert result.kind is MISS
    assert len(pods.fake.objects) == 2


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_an_exec_that_breaks_is_an_error_and_can_be_repeated(pods: Pods, cut: int) -> None:
    await pods.fill("good")
    pods.new()
    pods.cut_after = cut
    with pytest.raises(ClusterError):
        await pods.run("restore")
    pods.cut_after = None
    (result,) = await pods.run("restore")
    assert (result.kind, pods.cached()) == (HIT, "good")


async def test_nothing_is_restored_after_the_commands_have_begun(pods: Pods) -> None:
    await pods.fill("good")
    pods.new()
    (pods.log / "inputs.done").write_text("")
    assert await pods.run("restore") == []
    assert pods.cached() is None


async def test_a_pod_without_a_note_saves_nothing(pods: Pods) -> None:
    pods.cached("x")
    assert await pods.run("save") == []


async def test_an_archive_over_the_limit_is_not_read(pods: Pods) -> None:
    await pods.fill(os.urandom(5000).hex())
    pods.new()
    pods.max_bytes = 100
    (result,) = await pods.run("restore")
    assert (result.kind, "more than caches.max_size" in result.message) == (MISS, True)
    assert await pods.store.find(Place("main", result.key, version_of(CACHE.paths))) is not None
