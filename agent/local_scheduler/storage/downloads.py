"""Open the stored log and artifacts of an action for reading. No symbolic link is followed. All functions block."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.local_scheduler.storage.log_files import READ, path_of
from agent.local_scheduler.storage.uploads import FOLDER, checked_path

if TYPE_CHECKING:
    from pathlib import Path


def open_stored(folder: Path, action: str, path: bytes) -> int:
    """Return a descriptor of an artifact in a pipeline's folder, or of the action's log if `path` is empty.

    Raises:
        UploadRefused: the path leaves the folder of the action.
        OSError: the file cannot be opened.
    """
    if not path:
        return os.open(path_of(folder, action), READ)
    *folders, name = checked_path(path)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in (os.fsencode(action), *folders):
            inner = os.open(part, FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
        return os.open(name, READ, dir_fd=handle)
    finally:
        os.close(handle)
