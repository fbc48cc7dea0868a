"""The values that travel through the agent: what was asked, what happened, where a log stands.

All are frozen and know neither gRPC nor Kubernetes. An `Action` lives from its arrival to the end of its session; an
event from the moment it happens until the scheduler has acknowledged it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class When(Enum):
    """After which ending of the commands files are collected."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Repository:
    """What is cloned into the workspace before the first command. `depth` 0 is the whole history."""

    url: str
    ref: str = ""
    depth: int = 0
    submodules: bool = False
    credentials: str = ""


@dataclass(frozen=True, slots=True)
class Resources:
    """Kubernetes quantities; empty means the policy's default."""

    cpu: str = ""
    memory: str = ""
    ephemeral_storage: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactRules:
    """Which files to copy out. No `paths`: what the commands created or changed in the workspace."""

    paths: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    when: When = When.SUCCESS

    @property
    def declared(self) -> bool:
        """Whether the user named the files, so that one which cannot be had fails the action."""
        return bool(self.paths)


@dataclass(frozen=True, slots=True)
class Key:
    """One attempt of one action, and which owner of it speaks."""

    action_id: str
    attempt: int = 1
    claim: int = 1

    @property
    def attempt_key(self) -> tuple[str, int]:
        """What stays the same over adoptions."""
        return (self.action_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Action:
    """What was asked. `timeout` is seconds for the commands, None for the policy's default.

    `pipefail`: whether a failure inside a pipe fails the command, None for the agent's setting.
    """

    key: Key
    image: str
    commands: tuple[str, ...]
    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    repository: Repository | None = None
    resources: Resources = Resources()
    timeout: float | None = None
    artifacts: ArtifactRules = ArtifactRules()
    traceparent: str = ""
    pipefail: bool | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to end a session; `grace` is seconds between TERM and KILL, None for the policy's."""

    grace: float | None = None
    message: str = ""


# ---- events


# ---- files


# ---- between agent and scheduler
