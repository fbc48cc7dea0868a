"""The pod annotation with which an agent stores its session for an adopting agent: write, read, refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.cluster.pod import labels, session_annotation
from agent.domain.actions import Action, ArtifactRules, Key, When

ACTION = Action(
    key=Key("any id / of any kind", 2, 1),
    image="debian",
    commands=("one", "two"),
    name="build",
    secrets={"TOKEN": "value-of-the-secret"},
    artifacts=ArtifactRules(("dist/**",), ("*.tmp",), When.ALWAYS),
)


def pod(text: str, claim: str = "3") -> dict[str, Any]:
    return {"metadata": {"name": "p", "annotations": {labels.SESSION: text}, "labels": {labels.CLAIM: claim}}}


def test_an_adopting_agent_reads_what_the_first_agent_wrote() -> None:
    text = session_annotation.write(ACTION, "nonce1234", 90.0, 77)
    assert "value-of-the-secret" not in text
    action, nonce = session_annotation.read(pod(text))
    assert nonce == "nonce1234"
    assert session_annotation.log_key_of(pod(text)) == 77
    assert action.key == Key("any id / of any kind", 2, 3)
    assert (len(action.commands), action.timeout, action.name) == (2, 90.0, "build")
    assert set(action.secrets) == {"TOKEN"}
    assert action.artifacts == ACTION.artifacts


def test_the_annotation_of_an_older_release_is_read() -> None:
    """An older release, on the other hand, cannot read an annotation of this release, and does not adopt the pod."""
    session = json.loads(session_annotation.write(ACTION, "nonce1234", 90.0, 77))
    del session["log_key"]
    session["commands"] = session.pop("command_count")
    older = pod(json.dumps(session))
    action, nonce = session_annotation.read(older)
    assert (nonce, len(action.commands), session_annotation.log_key_of(older)) == ("nonce1234", 2, 0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"action_id": "a"}', "null"])
def test_an_unreadable_annotation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no readable session annotation"):
        session_annotation.read(pod(text))


def test_a_pod_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no readable session annotation"):
        session_annotation.read({"metadata": {"name": "p"}})
