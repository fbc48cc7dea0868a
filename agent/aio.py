"""Pieces of asyncio that several packages need.

Nothing here keeps state.
"""

from __future__ import annotations
