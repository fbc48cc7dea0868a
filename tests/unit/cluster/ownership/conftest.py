"""A scripted API server that several agents share, for the tests of ownership."""

from __future__ import annotations

import pytest

from tests.fakes.shared_api import SharedApi


@pytest.fixture
def api() -> SharedApi:
    return SharedApi()
