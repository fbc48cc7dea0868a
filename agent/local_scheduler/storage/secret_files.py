"""The secret values of pipelines that have not ended, in one file per pipeline.

The values are not in the database, because SQLite may keep deleted values in free pages of its file.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class SecretFiles:
    """The folder of the secret files. Only the user of the scheduler process can read the folder. All methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, pipeline: str) -> Path:
        return self.folder / f"{pipeline}.json"

    def read(self, pipeline: str) -> dict[str, str]:
        """Return the secret values of a pipeline by name, an empty dict when it has no file."""
        try:
            return dict(json.loads(self.path(pipeline).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def write(self, pipeline: str, secrets: Mapping[str, str]) -> None:
        """Store the secret values of a pipeline. Return after they are on the disk."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path(pipeline), flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(dict(secrets), file)
            file.flush()
            os.fsync(file.fileno())

    def delete(self, pipeline: str) -> None:
        """Delete the file of a pipeline, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.path(pipeline).unlink()
