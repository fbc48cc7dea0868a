"""A fixture for the tests of the log follower: a fake API server that serves the log of one pod."""

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
