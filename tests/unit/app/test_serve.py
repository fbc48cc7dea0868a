"""The resource limits (setrlimit) that `sealci-agent serve` sets for its own process."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from agent.app.serve import raise_file_limit

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def low_limit() -> Iterator[int]:
    """Lower this process's soft limit of open files for the test. Yield the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_of_open_files_is_the_hard_limit(low_limit: int) -> None:
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low_limit, low_limit)
