"""The notice of a successful clone, which the agent reads from the status of container `repository`."""

from __future__ import annotations

import pytest

from agent.cluster.pod.fields import clone_notice
from agent.domain.json import Object


@pytest.mark.parametrize(
    ("name", "state", "notice"),
    [
        ("repository", {"terminated": {"exitCode": 0, "message": "pointers"}}, "pointers"),
        ("repository", {"terminated": {"exitCode": 0}}, ""),
        ("repository", {"terminated": {"exitCode": 1, "message": "no such ref"}}, ""),
        ("repository", {"running": {}}, ""),
        ("of-the-template", {"terminated": {"exitCode": 0, "message": "done"}}, ""),
    ],
)
def test_only_a_clone_that_succeeded_has_a_notice(name: str, state: Object, notice: str) -> None:
    assert clone_notice({"initContainerStatuses": [{"name": name, "state": state}]}) == notice
    assert not clone_notice({})
