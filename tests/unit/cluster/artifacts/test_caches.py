"""Caches between a pod and the cache: the agent's side with the real program, a scripted store, and a real folder."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Cache, When
from agent.domain.errors import ClusterError
from agent.domain.events import CacheKind, CacheResult
from agent.objects.cache_entries import Place, version_of
from tests.fakes.object_store import fake_store
from tests.unit.cluster.artifacts.cache_pods import (
    CACHE,
    FALLBACK,
    HIT,
    MISS,
    PULL_REQUEST,
    SAVED,
    ClaimPods,
    Pods,
    StorePods,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StorePods]:
    with fake_store() as fake:
        yield StorePods(tmp_path, fake)


@pytest.fixture(params=["store", "claim"])
def pods(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pods]:
    """Yield pods with a cache in an object store, and pods with a cache on a volume."""
    if request.param == "claim":
        yield ClaimPods(tmp_path)
        return
    with fake_store() as fake:
        yield StorePods(tmp_path, fake)


async def test_a_miss_is_saved_and_the_next_pod_hits(pods: Pods) -> None:
    (missed,) = await pods.run("restore")
    assert (missed.kind, missed.message) == (MISS, "")
    assert missed.key.startswith("pip-")
    assert len(missed.key) == len("pip-") + 32
    pods.cached("wheel")
    (saved,) = await pods.run("save")
    assert (saved.kind, saved.key) == (SAVED, missed.key)
    assert saved.bytes > 0
    pods.new()
    (hit,) = await pods.run("restore")
    assert hit == CacheResult(saved.key, HIT, saved.key, saved.bytes)
    assert pods.cached() == "wheel"
    before = pods.files
    assert await pods.run("save") == [], "a key is never written twice"
    assert pods.files == before


async def test_the_agent_sees_how_much_of_an_archive_was_moved(stored: StorePods) -> None:
    await stored.run("restore")
    stored.cached("wheel")
    (saved,) = await stored.run("save")
    assert stored.moved[0] == (saved.key, 0, saved.bytes)
    stored.moved.clear()
    stored.new()
    await stored.run("restore")
    assert stored.moved == [(saved.key, saved.bytes, saved.bytes)]


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
    data = bytearray(pods.files[path])
    data[-9] ^= 1
    pods.write(path, bytes(data))
    pods.new()
    (result,) = await pods.run("restore", scope=PULL_REQUEST)
    assert (result.kind, result.message) == (MISS, "the archive has another sha256 than its entry")
    assert pods.cached() is None
    assert len(pods.files) == 2, "a pull request cannot delete what main has written"
    await pods.fill("mended")
    pods.new()
    assert [each.kind for each in await pods.run("restore")] == [HIT]
    assert pods.cached() == "mended"


async def test_an_entry_of_a_bucket_writer_is_refused(pods: Pods) -> None:
    await pods.fill("good")
    (name,) = pods.entries
    pods.write(name, pods.files[name].replace(b'"size"', b'"sise"'))
    pods.new()
    (result,) = await pods.run("restore")
    assert result.kind is MISS
    assert "wrong signature" in result.message
    assert pods.cached() is None
    assert pods.entries == [], "the key can be saved again"


async def test_the_archive_is_gone(pods: Pods) -> None:
    await pods.fill("good")
    pods.write(pods.blobs[0], None)
    pods.new()
    (result,) = await pods.run("restore")
    assert (result.kind, "no longer in the" in result.message) == (MISS, True)
    assert pods.entries == [], "the key can be saved again"


async def test_another_action_saves_first(pods: Pods) -> None:
    (missed,) = await pods.run("restore")
    pods.cached("mine")
    await pods.fill("theirs")
    pods.workspace, pods.log = pods.folder / "w1", pods.folder / "log1"
    (result,) = await pods.run("save")
    assert (result.kind, result.key) == (CacheKind.EXISTS, missed.key)


async def test_the_end_of_the_commands_decides_whether_a_cache_is_saved(stored: StorePods) -> None:
    caches = tuple(
        Cache(each.value, (f"{each.value}.txt",), save=each) for each in (When.SUCCESS, When.ALWAYS, When.NEVER)
    )
    await stored.run("restore", *caches)
    for each in caches:
        (stored.workspace / each.paths[0]).write_text("x")
    assert [each.key for each in await stored.run("save", *caches, ok=False)] == ["always"]
    assert [(each.key, each.kind) for each in await stored.run("save", *caches)] == [
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
async def test_a_store_that_fails_is_a_miss_and_opens_the_breaker(stored: StorePods, status: int) -> None:
    stored.objects.faults.extend([status] * 6)
    for _ in range(3):
        (result,) = await stored.run("restore")
        assert (result.kind, result.message) == (MISS, f"HTTP {status}")
    assert stored.store.breaker.is_open


async def test_an_upload_that_fails_leaves_nothing_to_be_found(stored: StorePods) -> None:
    await stored.run("restore")
    stored.cached("x")
    stored.fake.faults.append(404)
    (result,) = await stored.run("save")
    assert (result.kind, "HTTP 404" in result.message) == (CacheKind.FAILED, True)
    stored.objects.faults.append(503)
    (result,) = await stored.run("save")
    assert (result.kind, result.message) == (CacheKind.FAILED, "HTTP 503")
    assert stored.entries == []


async def test_a_read_only_agent_deletes_nothing(pods: Pods) -> None:
    await pods.fill("good")
    pods.write(pods.blobs[0], bytes(len(pods.files[pods.blobs[0]])))
    pods.new()
    pods.writes = False
    (result,) = await pods.run("restore")
    assert result.kind is MISS
    assert len(pods.files) == 2


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_an_exec_that_breaks_is_an_error_and_can_be_repeated(stored: StorePods, cut: int) -> None:
    await stored.fill("good")
    stored.new()
    stored.cut_after = cut
    with pytest.raises(ClusterError):
        await stored.run("restore")
    stored.cut_after = None
    (result,) = await stored.run("restore")
    assert (result.kind, stored.cached()) == (HIT, "good")


async def test_nothing_is_restored_after_the_commands_have_begun(stored: StorePods) -> None:
    await stored.fill("good")
    stored.new()
    (stored.log / "inputs.done").write_text("")
    assert await stored.run("restore") == []
    assert stored.cached() is None


async def test_a_pod_without_a_note_saves_nothing(stored: StorePods) -> None:
    stored.cached("x")
    assert await stored.run("save") == []


async def test_an_archive_over_the_limit_is_not_read(stored: StorePods) -> None:
    await stored.fill(os.urandom(5000).hex())
    stored.new()
    stored.max_bytes = 100
    (result,) = await stored.run("restore")
    assert (result.kind, "more than caches.max_size" in result.message) == (MISS, True)
    place = Place("main", result.key, version_of(CACHE.paths))
    assert stored.entries == [stored.cache.entry_name(place)]


async def test_a_store_that_is_too_slow_ends_the_work_at_the_limit(stored: StorePods) -> None:
    await stored.run("restore")
    stored.cached("x")
    stored.seconds = 1
    stored.fake.faults.append("stall")
    with pytest.raises(ClusterError, match="not copied within 1 s"):
        await stored.run("save")
    assert stored.cache.breaker.failures == 1
    assert stored.entries == []
