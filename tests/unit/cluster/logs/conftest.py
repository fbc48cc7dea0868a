"""The scripted API server as a fixture of the follower's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.cluster.logs.log_server import LogServer, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def api() -> AsyncIterator[LogServer]:
    async with serving() as served:
        yield served
