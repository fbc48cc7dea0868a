"""The address of one container: what an exec or a log request is made for.

A `ContainerRef` is a value without a lifetime of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContainerRef:
    """Identifies one container, by its namespace, its Pod and its name."""

    namespace: str
    pod: str
    container: str
