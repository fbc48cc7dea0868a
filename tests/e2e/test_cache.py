"""Caches over a real object store: who finds what, and that no broken or forged entry reaches a workspace."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Cache, Repository
from agent.domain.errors import ClusterError
from agent.domain.events import CacheKind
from agent.objects.cache_entries import Archive, Place
from agent.objects.store import ObjectStore
from agent.pipeline.cache_keys import cache_scope
from agent.settings import ObjectSettings
from deploy.demo import source
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, DEBIAN, Lab, open_lab
from tests.e2e.object_store import Store, object_store
from tests.e2e.test_objects import LOOK
from tests.unit.cluster.artifacts.cache_pods import RealStorePods

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.submission import Report

CACHE = {"key": "deps-{hash:*.lock}", "paths": ["deps"], "prefix": "deps-"}
MAKE = (
    "test ! -e deps && mkdir -p deps/sub && echo {0} > deps/sub/from && ln -s sub/from deps/link && chmod 750 deps/sub"
)
# The files of a cache belong to the user of the commands, and have their modes.
USE = "cat deps/link; stat -c '%a' deps/sub; test -O deps/sub/from && echo mine; ls -a"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with object_store(tmp_path) as store:
        yield store


@pytest.fixture
def cached_lab(namespace: str, store: Store, tmp_path: Path) -> Iterator[Lab]:
    options = store.cache_options(tmp_path)
    with open_lab(namespace, tmp_path, policy={"repository_schemes": ["git"]}, **options) as lab:
        lab.secret_values += [store.secret, store.sign_key]
        lab.agent()
        yield lab


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a repository with the branches main and pr, whose lock files differ."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.lock").write_text("1\n")
    source.git(work, "init", "--quiet", "--initial-branch=main", ".")
    source.git(work, "add", "--all")
    source.git(work, "commit", "--quiet", "--message", "first")
    source.git(work, "checkout", "--quiet", "-b", "pr")
    (work / "a.lock").write_text("2\n")
    source.git(work, "commit", "--quiet", "--all", "--message", "second")
    source.git(work, "checkout", "--quiet", "main")
    source.git(tmp_path, "clone", "--quiet", "--bare", str(work), str(tmp_path / "r.git"))
    with source.serve_git(tmp_path, kube.provider("address")) as url:
        yield f"{url}/r.git"


def caches(report: Report) -> list[tuple[str, str]]:
    """Return the first word of the key and the result of each event about a cache, in order."""
    return [(each["key"].partition("-")[0], each["result"]) for each in report.events if each["event"] == "cache"]


def test_a_cache_is_found_by_scope_and_never_trusted(cached_lab: Lab, store: Store, url: str) -> None:
    main, pull_request = {"repo": {"url": url}}, {"repo": {"url": url, "ref": "refs/heads/pr"}}
    only = {"key": "only-pr", "paths": ["only"]}
    tool = {"key": "tool", "paths": ["busybox-tool"]}
    look = LOOK.replace("PORT", str(store.port))
    reports = cached_lab.run(
        {
            "first": {
                "image": BUSYBOX,
                **main,
                "cache": [CACHE, tool],
                "commands": [MAKE.format("main"), "cp /bin/busybox busybox-tool"],
            },
            "pr": {
                "image": BUSYBOX,
                **pull_request,
                "needs": ["first"],
                "cache": [CACHE, only],
                "commands": [USE, "echo pr > deps/sub/from", "mkdir only"],
            },
            "again": {
                "image": DEBIAN,
                **main,
                "needs": ["pr"],
                "cache": [CACHE, only],
                "commands": [look, USE, "test ! -e only", "echo artifact > made; echo cached > deps/more"],
            },
        }
    )
    first, pr, again = reports["first"], reports["pr"], reports["again"]
    assert caches(first) == [("deps", "miss"), ("tool", "miss"), ("deps", "saved"), ("tool", "saved")], first
    assert caches(pr) == [("deps", "fallback"), ("only", "miss"), ("deps", "saved"), ("only", "saved")], pr
    # The cache of a path that does not exist is not saved.
    expected = [("deps", "hit"), ("only", "miss"), ("only", "skipped")]
    assert caches(again) == expected, "main finds nothing that the pull request wrote"
    assert {each.outcome for each in reports.values()} == {("succeeded", None, 0)}, again
    for report in (pr, again):
        assert [line for line in ("main", "750", "mine") if line not in report.text.split()] == [], report
        assert ".sealci-cache" not in report.text
    assert "clean" in again.text
    artifacts = {event["path"] for event in again.events if event["event"] == "artifact"}
    assert artifacts == {"made"}, "a cache is no artifact"
    secrets = kube.kubectl("get", "secrets", "-n", cached_lab.namespace, "-o", "json")
    seen = json.dumps(cached_lab.observer.states) + secrets
    for word in (store.secret, store.sign_key, f":{store.port}", "X-Amz"):
        assert word not in seen

    # A program with the credentials of the bucket copies the entry of the pull request to the place of main's.
    entry(store, url, "deps-").write_bytes(entry(store, url, "deps-", "refs/heads/pr").read_bytes())
    # A byte of an archive is flipped.
    of_tool = entry(store, url, "tool")
    broken = of_tool.parents[2] / "blob" / json.loads(of_tool.read_text())["sha256"]
    data = bytearray(broken.read_bytes())
    data[-9] ^= 1
    broken.write_bytes(data)
    use = {"image": BUSYBOX, **main, "cache": [{"key": CACHE["key"], "paths": CACHE["paths"]}, tool]}
    reports = cached_lab.run(
        {
            "refused": {
                **use,
                "commands": [MAKE.format("main"), "test ! -e busybox-tool", "cp /bin/busybox busybox-tool"],
            },
            "mended": {**use, "needs": ["refused"], "commands": [USE, "./busybox-tool true"]},
        }
    )
    refused = reports["refused"]
    assert caches(refused) == [("deps", "miss"), ("tool", "miss"), ("deps", "saved"), ("tool", "saved")], refused
    assert "wrong signature" in refused.text
    assert "another sha256" in refused.text
    assert caches(reports["mended"]) == [("deps", "hit"), ("tool", "hit")], reports["mended"]

    look_after(cached_lab, store)
    store.stop()
    use["cache"] = [{**CACHE, "save": "never"}]
    dead = cached_lab.run({"dead": {**use, "commands": [MAKE.format("main")], "artifacts": "none"}})["dead"]
    assert dead.outcome == ("succeeded", None, 0), dead
    assert caches(dead) == [("deps", "miss")], dead


async def test_a_save_that_is_killed_at_any_step_leaves_nothing_half(store: Store, tmp_path: Path) -> None:
    real = ObjectStore(ObjectSettings.model_validate(store.settings))
    pods = RealStorePods(tmp_path, real, lambda: store.objects)
    # The messages of the agent ask to pack, allow the upload, and end the exec.
    for message in (1, 2, 3):
        await pods.run("restore")
        pods.cached("kept")
        pods.cut_after = message
        with pytest.raises(ClusterError):
            await pods.run("save")
        pods.cut_after = None
        assert len(pods.entries) == (message == 3)
        pods.new()

    # The pod is killed while the store takes the archive.
    other = Cache("other", ("file",))
    await pods.run("restore", other)
    (pods.workspace / "file").write_bytes(os.urandom(4 << 20))
    pods.max_bytes = 8 << 20
    store.pause()
    try:
        saving = asyncio.create_task(pods.run("save", other))
        await wait_until(lambda: bool(list(pods.workspace.glob(".sealci-cache-*/archive"))))
        pods.exec.process.kill()
        with pytest.raises(ClusterError):
            await saving
    finally:
        store.resume()
    assert len(pods.entries) == 1
    pods.new()
    assert [each.kind for each in await pods.run("restore", other)] == [CacheKind.MISS]
    pods.new()
    assert [each.kind for each in await pods.run("restore")] == [CacheKind.HIT]
    assert pods.cached() == "kept"

    # One of many agents that save a key at the same time wins.
    place, archives = Place("main", "many", "v"), [Archive("main", f"{number:064x}", 1) for number in range(20)]
    won = await asyncio.gather(*(pods.store.add(place, each) for each in archives))
    assert won.count(True) == 1
    assert await pods.store.find(place) == archives[won.index(True)]


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - another process makes the condition true
            await asyncio.sleep(0.005)


def look_after(lab: Lab, store: Store) -> None:
    """Check the cache by the doctor, and delete all entries but not their archives, which are not a day old."""

    def command(*words: str) -> str:
        config = ("--config", str(lab.folder / "agent-0.yaml"))
        done = subprocess.run(
            [*COMMAND, *words, *config], env=kube.environment(), capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    assert "an entry was stored, found, listed and deleted" in command("doctor", "--only", "objects")
    entries = sum("/key/" in name for name in store.objects)
    assert f"deleted {entries} entries and 0 archives" in command("cache", "prune", "--older-than", "0s")
    assert [name for name in store.objects if "/key/" in name] == []


def entry(store: Store, url: str, key: str, ref: str = "") -> Path:
    """Return the file of the entry that actions on a branch have stored, by the begin of its key."""
    scope = hashlib.sha256(cache_scope(Repository(url, ref), "").write.encode()).hexdigest()
    (found,) = [path for name, path in store.objects.items() if f"/{scope}/key/{key}" in name]
    return found
