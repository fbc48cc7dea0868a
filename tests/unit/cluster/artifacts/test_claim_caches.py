"""Caches on a volume: what only the helper and the folder decide. `test_caches` has what is as in an object store."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import cast

import pytest

from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.caches import UNUSABLE, CacheRequest
from agent.cluster.artifacts.claim_caches import ClaimConversation
from agent.cluster.in_pod.files import cache_claim
from agent.cluster.in_pod.files.cache_claim import Claim
from agent.domain.actions import Cache, CacheScope
from agent.domain.events import CacheKind
from agent.objects.cache_entries import Place
from tests.unit.cluster.artifacts.cache_pods import HIT, MISS, SAVED, ClaimPods
from tests.unit.cluster.artifacts.local_exec import LocalExec

SCOPE = "cache/v1/scope"
ENTRY = f"{SCOPE}/key/k/version"
DAY = 86400


@pytest.fixture
def pods(tmp_path: Path) -> ClaimPods:
    return ClaimPods(tmp_path)


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    (tmp_path / "volume").mkdir()
    return Claim(str(tmp_path / "volume"))


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writers_of_a_key_wins(claim: Claim, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    texts = [f"{number}" * 1000 for number in range(20)]
    won: list[str] = []
    barrier = threading.Barrier(len(texts))

    def write(text: str) -> None:
        barrier.wait()
        if claim.add(SCOPE, ENTRY, text):
            won.append(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert claim.read(ENTRY) in won
    assert not links or len(won) == 1
    assert not claim.add(SCOPE, ENTRY, "late")
    assert os.listdir(f"{claim.path}/{SCOPE}/tmp") == []


def test_an_entry_is_stored_although_prune_deletes_its_folder_meanwhile(
    claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, removed = os.link, [f"{claim.path}/{SCOPE}/key/k"]

    def remove_first(*names: str, **options: int) -> None:
        if removed:
            os.rmdir(removed.pop())
        link(*names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", remove_first)
    assert claim.add(SCOPE, ENTRY, "text")
    assert (claim.read(ENTRY), len(removed)) == ("text", 0)


def test_the_newest_of_a_prefix_is_found_among_a_limited_number(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim.newest(f"{SCOPE}/key", "pip-", "v") == ""
    for number, key in enumerate(("pip-b", "pip-c", "pip-a", "npm-a")):
        claim.add(SCOPE, f"{SCOPE}/key/{key}/v", key)
        os.utime(f"{claim.path}/{SCOPE}/key/{key}/v", (number, number))
    claim.add(SCOPE, f"{SCOPE}/key/pip-z/other", "z")
    assert claim.newest(f"{SCOPE}/key", "pip-", "v") == "pip-a"
    # A use changes the time of the key's folder only, so the newest entry is the one that was stored last.
    os.utime(f"{claim.path}/{SCOPE}/key/pip-b", (0, 0))
    claim.mark_used(f"{SCOPE}/key/pip-b/v")
    assert claim.newest(f"{SCOPE}/key", "pip-", "v") == "pip-a"
    monkeypatch.setattr(cache_claim, "MAX_LISTED", 0)
    assert claim.newest(f"{SCOPE}/key", "pip-", "v") == ""


async def test_a_use_is_marked_once_a_day(pods: ClaimPods) -> None:
    await pods.fill("one")
    folder = (pods.claim / pods.entries[0]).parent
    for age, marked in ((DAY // 2, False), (2 * DAY, True)):
        at = int(time.time()) - age
        os.utime(folder, (at, at))
        pods.new()
        assert [each.kind for each in await pods.run("restore")] == [HIT]
        assert (folder.stat().st_mtime != at) is marked


async def test_links_on_the_volume_are_not_followed(pods: ClaimPods, tmp_path: Path) -> None:
    await pods.fill("one")
    entry = pods.claim / pods.entries[0]
    text = entry.read_bytes()
    entry.unlink()
    (tmp_path / "outside").write_bytes(text)
    entry.symlink_to(tmp_path / "outside")
    pods.new()
    (result,) = await pods.run("restore")
    assert (result.kind, "the volume of caches" in result.message) == (MISS, True)
    blobs = pods.claim / pods.blobs[0].rpartition("/")[0]
    blobs.rename(tmp_path / "blobs")
    blobs.symlink_to(tmp_path / "blobs")
    pods.cached("two")
    (result,) = await pods.run("save")
    assert (result.kind, "the volume of caches" in result.message) == (CacheKind.FAILED, True)
    assert len(list((tmp_path / "blobs").iterdir())) == 1


async def test_a_volume_that_does_not_work_opens_the_breaker(pods: ClaimPods) -> None:
    pods.claim.rmdir()  # the pod does not mount the claim
    for _ in range(3):
        (result,) = await pods.run("restore")
        assert (result.kind, result.message) == (MISS, "the volume of caches: No such device")
    assert pods.cache.breaker.is_open


async def test_a_full_volume_fails_the_save_alone(pods: ClaimPods, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = (Cache("a", ("a",)), Cache("b", ("b",)))
    await pods.run("restore", *caches)
    (pods.workspace / "a").write_bytes(os.urandom(100_000))
    (pods.workspace / "b").write_text("b")
    # Linux limits the size of the files that the program writes.
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))"
    argv = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
    init = pods.exec_class.__init__

    def limited(self: object, command: list[str]) -> None:
        init(self, [command[0], "-c", argv, *command])  # type: ignore[arg-type]

    monkeypatch.setattr(pods.exec_class, "__init__", limited)
    first, second = await pods.run("save", *caches)
    assert (first.kind, first.message) == (CacheKind.FAILED, "the volume of caches: File too large")
    assert second.kind is SAVED
    assert list(pods.claim.rglob("tmp/*")) == [], "no part of an archive stays"


@pytest.mark.parametrize("packed", [{"sha256": "x", "size": 1}, {"sha256": "0" * 64, "size": 11}, {}])
def test_a_hash_that_the_agent_cannot_sign_is_an_error(pods: ClaimPods, packed: dict[str, object]) -> None:
    request = CacheRequest((), CacheScope(), "", 1, 10, writes=True)
    conversation = ClaimConversation(cast(ExecStream, LocalExec([])), pods.layout, request)
    with pytest.raises(UNUSABLE):
        conversation.packed(Place("main", "k", "v"), packed)


async def test_the_memory_of_the_helper_does_not_grow_with_the_cache(pods: ClaimPods) -> None:
    # A cache of 2 GiB took 24 MiB to save and 25 MiB to restore, measured in the same way.
    pods.max_bytes, pods.exec_class, used = 1 << 30, MeasuredExec, []
    for size in (1, 48 << 20):
        cache = Cache(f"size-{size}", ("file",))
        pods.new()
        await pods.run("restore", cache)
        (pods.workspace / "file").write_bytes(os.urandom(size))
        assert [each.kind for each in await pods.run("save", cache)] == [SAVED]
        saved = most_memory(pods)
        pods.new()
        assert [each.kind for each in await pods.run("restore", cache)] == [HIT]
        used.append((saved, most_memory(pods)))
    (saved_one, restored_one), (saved_many, restored_many) = used
    assert saved_many - saved_one < 16 << 10
    assert restored_many - restored_one < 16 << 10


def most_memory(pods: ClaimPods) -> int:
    assert isinstance(pods.exec, MeasuredExec)
    return pods.exec.most


class MeasuredExec(LocalExec):
    """Keeps the largest memory of the program in KiB, as the kernel has seen it before the last message."""

    most = 0

    async def send(self, data: bytes) -> None:
        status = Path(f"/proc/{self.process.pid}/status").read_text()  # noqa: ASYNC240 - no disk
        self.most = int(status.partition("VmHWM:")[2].split()[0])
        await super().send(data)
