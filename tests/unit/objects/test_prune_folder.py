"""`cache prune --folder`: what is deleted from the folder of a cache on a volume, and what stays."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from agent.cli.main import cli
from agent.cluster.in_pod.files import cache_claim
from agent.objects import prune_folder as module
from agent.objects.cache_entries import TOP
from agent.objects.errors import StoreError
from agent.objects.prune_folder import prune_folder

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86400


def write(path: Path, data: bytes, days: float) -> Path:
    """Write a file that is some days old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    at = time.time() - days * DAY
    os.utime(path, (at, at))
    os.utime(path.parent, (at, at))
    return path


def archive(root: Path, digit: str, days: float, scope: str = "a") -> Path:
    return write(root / TOP / scope / "blob" / (digit * 64), bytes(10), days)


def entry(root: Path, key: str, digit: str, days: float, scope: str = "a") -> Path:
    return write(root / TOP / scope / "key" / key / "v", json.dumps({"sha256": digit * 64}).encode(), days)


def test_old_entries_go_and_then_archives_without_entry(tmp_path: Path) -> None:
    for number in range(4):
        archive(tmp_path, str(number), 9)
        entry(tmp_path, f"k{number}", str(number), 2 * number + 0.5)
    unnamed = [archive(tmp_path, "e", 2), archive(tmp_path, "f", 0.5)]
    broken = write(tmp_path / TOP / "a/key/broken/v", b"{", 0.1)
    dangling = entry(tmp_path, "dangling", "d", 0.1)
    left = tmp_path / TOP / "a" / cache_claim.LEFT_FOLDER
    killed = [write(left / "old", b"x", 2), write(left / "new", b"x", 0.1)]
    other = write(tmp_path / "other/file", b"x", 100)
    before = sorted(tmp_path.rglob("*"))
    done = prune_folder(tmp_path, older_than=4 * DAY, max_bytes=15, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    counts = (5, 4, 40, 1, 20)
    assert (done.entries, done.archives, done.bytes, done.kept_entries, done.kept_bytes) == counts
    command = ["cache", "prune", "--folder", str(tmp_path), "--older-than", "4d", "--max-bytes", "15"]
    printed = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert printed.output == "deleted 5 entries and 4 archives (40 B)\n1 entries and 20 B stay\n"
    assert [path.exists() for path in (*unnamed, broken, dangling, *killed, other)] == [
        False,
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    assert sorted(path.name for path in (tmp_path / TOP / "a/key").iterdir()) == ["k0"]
    assert prune_folder(tmp_path, dry_run=False).archives == 0


def test_the_last_use_counts(tmp_path: Path) -> None:
    archive(tmp_path, "1", 9)
    used = entry(tmp_path, "k", "1", 9)
    os.utime(used.parent)
    assert prune_folder(tmp_path, older_than=DAY, dry_run=False).entries == 0


def test_an_archive_that_was_stored_again_meanwhile_stays(tmp_path: Path) -> None:
    path = archive(tmp_path, "1", 9)
    os.utime(path)
    module.delete([], [str(path)], [])
    assert path.exists()


def test_archives_of_a_scope_that_was_not_read_whole_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path, "1", 9)
    for number in range(5):
        entry(tmp_path, f"k{number}", "1", 1)
    monkeypatch.setattr(module, "MAX_FILES", 5)
    done = prune_folder(tmp_path, older_than=DAY / 2, dry_run=False)
    assert (done.archives, done.cut) == (0, True)
    assert path.exists()
    monkeypatch.undo()
    assert prune_folder(tmp_path, older_than=DAY / 2, dry_run=False).archives == 1


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / TOP).parent.mkdir()
    (tmp_path / TOP).write_text("")
    with pytest.raises(StoreError, match="--folder: "):
        prune_folder(tmp_path, dry_run=False)
