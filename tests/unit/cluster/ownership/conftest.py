"""A fixture for the tests of ownership: a fake API server that several agents share."""

from __future__ import annotations

import pytest

from tests.fakes.shared_api import SharedApi


@pytest.fixture
def api() -> SharedApi:
    return SharedApi()
