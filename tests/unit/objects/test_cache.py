"""Entries of the cache: where they are, who can make one, and what is deleted."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from unittest.mock import AsyncMock

import pytest
from aiohttp import StreamReader

from agent.objects import cache as module
from agent.objects import prune as pruning
from agent.objects.cache import CacheStore
from agent.objects.cache_entries import Archive, EntryRefused, Place, version_of
from agent.objects.errors import StoreError, read_answer
from agent.objects.prune import UNNAMED_SECONDS, prune
from agent.objects.store import ObjectStore
from tests.fakes.cache_objects import CacheObjects
from tests.fakes.object_store import FakeStore

if TYPE_CHECKING:
    from pathlib import Path

VERSION = version_of((".cache",))
MAIN = Place("main", "pip-1/2", VERSION)
DAY = 1795737600.0 + 86400  # 2026-11-28, the day after all objects of the fake were stored


@pytest.fixture
def objects() -> CacheObjects:
    return CacheObjects(FakeStore())


@pytest.fixture
def cache(objects: CacheObjects, tmp_path: Path) -> CacheStore:
    (tmp_path / "key").write_text("k" * 32)
    return CacheStore(cast(ObjectStore, objects), tmp_path / "key")


def archive(digit: str, scope: str = "main", size: int = 10) -> Archive:
    return Archive(scope, digit * 64, size)


async def test_an_entry_is_found_at_its_place_only(cache: CacheStore, objects: CacheObjects) -> None:
    assert await cache.find(MAIN) is None
    assert await cache.add(MAIN, archive("a"))
    assert await cache.find(MAIN) == archive("a")
    for other in (Place("pr", "pip-1/2", VERSION), Place("main", "pip-1", VERSION), Place("main", "pip-1/2", "other")):
        assert await cache.find(other) is None
    (name,) = objects.objects
    assert name.endswith(f"/key/pip-1%2F2/{VERSION}"), "a key is one component of a name"
    assert all(len(part) <= 200 for part in name.split("/"))


async def test_the_first_writer_of_a_key_wins(cache: CacheStore) -> None:
    assert await cache.add(MAIN, archive("a"))
    assert not await cache.add(MAIN, archive("b"))
    assert await cache.find(MAIN) == archive("a")


async def test_a_store_without_conditional_requests_keeps_the_last(cache: CacheStore, objects: CacheObjects) -> None:
    objects.conditional = False
    assert await cache.add(MAIN, archive("a"))
    assert await cache.add(MAIN, archive("b"))
    assert await cache.find(MAIN) == archive("b")


async def test_an_entry_without_the_key_of_the_agents_is_refused(
    cache: CacheStore, objects: CacheObjects, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("o" * 32)
    writer = CacheStore(cast(ObjectStore, objects), tmp_path / "other")
    await writer.add(MAIN, archive("e"))
    with pytest.raises(EntryRefused):
        await cache.find(MAIN)
    name = cache.entry_name(MAIN)
    for text in ("", "[]", "{}", '{"signature": 1}', '{"signature": "x", "sha256": 5}', "[" * 5000):
        objects.write(name, text.encode())
        with pytest.raises(EntryRefused):
            await cache.find(MAIN)


async def test_an_entry_cannot_be_changed_or_copied(cache: CacheStore, objects: CacheObjects) -> None:
    own = Place("pr", MAIN.key, VERSION)
    await cache.add(own, archive("e", "pr"))
    stored = objects.objects[cache.entry_name(own)]
    objects.write(cache.entry_name(MAIN), stored)
    with pytest.raises(EntryRefused):
        await cache.find(MAIN)
    entry = json.loads(stored)
    objects.write(cache.entry_name(own), json.dumps(entry | {"size": 11}).encode())
    with pytest.raises(EntryRefused):
        await cache.find(own)


async def test_the_newest_entry_of_a_prefix_is_found(cache: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    for number, key in enumerate(("pip-b", "pip-c", "pip-a", "npm-a")):
        await cache.add(Place("main", key, VERSION), archive(str(number)))
    await cache.add(Place("main", "pip-z", "other"), archive("9"))
    await cache.add(Place("pr", "pip-y", VERSION), archive("8"))
    assert await cache.find_newest("main", "pip-", VERSION) == ("pip-a", archive("2"))
    assert await cache.find_newest("main", "gem-", VERSION) is None


async def test_an_answer_is_read_whole_and_no_further() -> None:
    # A store may send the body in pieces. A single read returns the first piece only.
    parts = [b"one", b"two", b"three", b""]
    content = SimpleNamespace(read=AsyncMock(side_effect=lambda size: parts.pop(0)[:size]))
    assert await read_answer(cast(StreamReader, content), 8) == b"onetwoth"
    assert await read_answer(cast(StreamReader, content), 8) == b""


@pytest.mark.parametrize("text", [None, "short"])
async def test_a_key_that_cannot_be_used_is_an_error(cache: CacheStore, text: str | None) -> None:
    cache.sign_key_file.unlink()
    if text:
        cache.sign_key_file.write_text(text)
    with pytest.raises(StoreError, match="sign_key_file"):
        await cache.find(MAIN)


async def test_a_store_that_fails_is_left_alone_for_a_while(cache: CacheStore, objects: CacheObjects) -> None:
    objects.faults.extend([500, 403, 404, 500, 500])
    for _ in range(2):
        with pytest.raises(StoreError):
            await cache.find(MAIN)
    assert await cache.find(MAIN) is None, "an answer that there is no entry is a good answer"
    for _ in range(2):
        with pytest.raises(StoreError):
            await cache.find(MAIN)
    assert not cache.breaker.is_open
    objects.faults.append(503)
    with pytest.raises(StoreError):
        await cache.find(MAIN)
    assert cache.breaker.is_open


async def test_prune_deletes_old_entries_and_archives_without_entry(cache: CacheStore, objects: CacheObjects) -> None:
    for number in range(4):
        found = archive(str(number), size=10)
        objects.write(cache.archive_name(found), bytes(10))
        await cache.add(Place("main", f"k{number}", VERSION), found)
    objects.write(cache.archive_name(archive("e")), bytes(7))
    objects.write(cache.entry_name(Place("main", "forged", VERSION)), b"{}")
    objects.write("sealci/pool/artifact", b"x")
    before = dict(objects.objects)
    seen = await prune(cache, DAY, max_bytes=25, dry_run=True)
    assert objects.objects == before
    assert (seen.entries, seen.archives, seen.bytes, seen.kept_entries) == (3, 0, 0, 2), (
        "archives are a day old at most"
    )
    done = await prune(cache, DAY + UNNAMED_SECONDS, max_bytes=25, dry_run=False)
    assert (done.entries, done.archives, done.bytes, done.kept_entries, done.kept_bytes) == (3, 3, 27, 2, 20)
    left = objects.objects
    assert await cache.find(Place("main", "k3", VERSION)) == archive("3")
    assert await cache.find(Place("main", "k0", VERSION)) is None
    assert "sealci/pool/artifact" in left
    done = await prune(cache, DAY + 3 * UNNAMED_SECONDS, older_than=UNNAMED_SECONDS, dry_run=False)
    assert (done.entries, done.archives, done.kept_entries) == (2, 2, 0)
    assert list(objects.objects) == ["sealci/pool/artifact"]


@pytest.mark.parametrize("unordered", [False, True])
async def test_prune_keeps_archives_whose_entries_it_may_not_have_seen(
    cache: CacheStore, objects: CacheObjects, monkeypatch: pytest.MonkeyPatch, *, unordered: bool
) -> None:
    # Names come in the order of the alphabet, so the archives of a scope come before its entries.
    first, last = sorted(("main", "pr"), key=cache.folder)
    for scope in (first, last):
        for digit in "ef":
            objects.write(cache.archive_name(archive(digit, scope)), bytes(10))
        await cache.add(Place(scope, "k", VERSION), archive("e", scope))
    objects.unordered = unordered
    monkeypatch.setattr(module, "PAGE", 1)
    monkeypatch.setattr(pruning, "MAX_PAGES", 5)
    done = await prune(cache, DAY + UNNAMED_SECONDS, dry_run=False)
    assert (done.archives, done.cut) == (0 if unordered else 1, True)
    assert await cache.find(Place(last, "k", VERSION)) == archive("e", last)
    left = {
        name.rpartition("/blob/")[2][0] for name in objects.objects if name.startswith(f"{cache.folder(last)}/blob/")
    }
    assert left == {"e", "f"}, "the list ended before the entries of the last scope"
    monkeypatch.setattr(pruning, "MAX_PAGES", 6)
    objects.unordered = False
    done = await prune(cache, DAY + UNNAMED_SECONDS, dry_run=False)
    assert (done.archives, done.cut) == (2 if unordered else 1, False)
