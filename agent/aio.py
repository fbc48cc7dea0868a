"""Small pieces of asyncio that several packages need: cancel a task and wait for its end, wait for the first of several.

Nothing here keeps state.
"""

from __future__ import annotations
