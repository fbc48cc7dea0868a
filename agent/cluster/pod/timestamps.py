"""Read the timestamps of Kubernetes objects."""

from __future__ import annotations

from datetime import datetime


def parse_timestamp(text: str | None) -> datetime | None:
    """Read a timestamp of the API."""
    return datetime.fromisoformat(text) if text else None
