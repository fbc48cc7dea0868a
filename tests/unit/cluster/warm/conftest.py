"""A fixture of the tests of warm pods: a scripted API server that checks resource versions."""

from __future__ import annotations

import pytest

from tests.fakes.shared_api import SharedApi


@pytest.fixture
def api() -> SharedApi:
    return SharedApi()
