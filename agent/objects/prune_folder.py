"""Delete old entries of a cache on a volume, by its folder. `sealci-agent cache prune --folder` calls this.

This needs no key: entries are only read to learn which archives they name, and nothing is used. The helper of each pod
writes the folder (`agent.cluster.in_pod.files.cache_claim`). The time of a key's folder is when the key was last used.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING

from agent.objects.cache_entries import SHA256, TOP
from agent.objects.errors import StoreError
from agent.objects.prune import UNNAMED_SECONDS, Contents, KnownArchive, KnownEntry, choose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.objects.prune import Pruned

# Maximum number of files that are looked at.
MAX_FILES = 2_000_000
# Folder of a scope for files that are being written.
LEFT_FOLDER = "tmp"
# Maximum number of bytes of an entry.
ENTRY_BYTES = 4096


def prune_folder(root: Path, *, older_than: float | None = None, max_bytes: int | None = None, dry_run: bool) -> Pruned:
    """Delete what `prune.choose` chooses, and what helpers that were killed have left.

    Raises:
        StoreError: the folder cannot be read, or a file cannot be deleted.
    """
    reader = FolderReader(time.time())
    try:
        reader.read(os.path.join(root, TOP))
        chosen = choose(reader.contents, older_than, max_bytes)
        if not dry_run:
            delete(chosen.entries, chosen.archives, reader.left_files)
    except OSError as error:
        raise StoreError(f"--folder: {error.filename}: {error.strerror}") from error
    return chosen.counts


class FolderReader:
    """Reads the folders of all scopes. `left_files` are temporary files of helpers that were killed."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.contents = Contents()
        self.left_files: list[str] = []
        self.left = MAX_FILES

    def read(self, top: str) -> None:
        for scope in self.listed(top):
            if scope.is_dir(follow_symlinks=False):
                self.read_scope(scope.path)

    def read_scope(self, folder: str) -> None:
        """Read the archives before the entries, so that each archive of an entry that is read is known."""
        for each in self.files(f"{folder}/blob"):
            self.contents.archives.append(KnownArchive(each.path, self.age(each), each.stat().st_size))
        for key in self.listed(f"{folder}/key"):
            if key.is_dir(follow_symlinks=False):
                self.read_key(folder, key)
        self.left_files += [
            each.path for each in self.files(f"{folder}/{LEFT_FOLDER}") if self.age(each) > UNNAMED_SECONDS
        ]
        if self.left <= 0:
            self.contents.cut = True
            self.contents.uncertain.add(folder)

    def read_key(self, folder: str, key: os.DirEntry[str]) -> None:
        for each in self.files(key.path):
            archive, age = named_archive(each.path), min(self.age(key), self.age(each))
            path = f"{folder}/blob/{archive}"
            size = os.stat(path).st_size if archive and os.path.isfile(path) else 0
            self.contents.entries.append(KnownEntry(each.path, age, path if size else "", size))

    def files(self, folder: str) -> Iterator[os.DirEntry[str]]:
        return (each for each in self.listed(folder) if each.is_file(follow_symlinks=False))

    def listed(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Yield what is in a folder, as long as the limit of files allows."""
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for each in found:
                self.left -= 1
                if self.left <= 0:
                    return
                yield each

    def age(self, each: os.DirEntry[str]) -> float:
        """Return the seconds since a file was written, or since a key was used."""
        return self.now - each.stat(follow_symlinks=False).st_mtime


def named_archive(path: str) -> str:
    """Return the SHA-256 that an entry names, "" if the entry cannot be used."""
    try:
        with open(path, "rb") as file:
            digest = str(json.loads(file.read(ENTRY_BYTES))["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return digest if SHA256.fullmatch(digest) else ""


def delete(entries: list[str], archives: list[str], left_files: list[str]) -> None:
    for path in (*entries, *left_files):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    for folder in {os.path.dirname(path) for path in entries}:
        # The folder has entries of other paths, or a helper has just stored one.
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    for path in archives:
        # A helper may have stored the same archive again meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path, follow_symlinks=False).st_mtime > UNNAMED_SECONDS:
                os.unlink(path)
