"""Read the timestamps of Kubernetes objects. Pure."""

from __future__ import annotations

from datetime import datetime


def parse_timestamp(text: str | None) -> datetime | None:
    """Parse an RFC 3339 timestamp of the API; None for an absent field."""
    return datetime.fromisoformat(text) if text else None
