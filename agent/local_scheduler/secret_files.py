"""Files with the secret values of pipelines that have not ended, so that no page of the database holds a value."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class SecretFiles:
    """Files with the secrets of pipelines that have not ended, for the owner of the folder only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, pipeline: str) -> Path:
        """Where the values of a pipeline are."""
        return self.folder / f"{pipeline}.json"

    def read(self, pipeline: str) -> dict[str, str]:
        """Return the values of a pipeline, none when it has no file."""
        try:
            return dict(json.loads(self.path(pipeline).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def write(self, pipeline: str, secrets: Mapping[str, str]) -> None:
        """Keep the values of a pipeline."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.path(pipeline), flags, 0o600), "w", encoding="utf-8") as file:
            json.dump(dict(secrets), file)
            file.flush()
            os.fsync(file.fileno())

    def drop(self, pipeline: str) -> None:
        """Remove the values of a pipeline."""
        with contextlib.suppress(FileNotFoundError):
            self.path(pipeline).unlink()
