"""An action as a scheduler sends it, and the key that names its attempt.

The values are immutable and use neither gRPC nor Kubernetes. An `Action` lives from its arrival in the agent to the
end of its session.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.artifacts import Input


class When(Enum):
    """After which results of the commands the agent copies artifacts. The values are the words of the pipeline file."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Repository:
    """The Git repository that container `repository` clones into the workspace before the first command.

    `ref` is a branch, tag or commit, "" for the default branch. `depth` is the number of commits, 0 for all.
    `credentials` is the name of a Kubernetes Secret, "" for none. `lfs`: whether the files of Git LFS are fetched too.
    """

    url: str
    ref: str = ""
    depth: int = 0
    submodules: bool = False
    credentials: str = ""
    lfs: bool = False


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of container `action` as Kubernetes quantities. "" means the policy's default."""

    cpu: str = ""
    memory: str = ""
    ephemeral_storage: str = ""


# Maximum number of globs in each of the lists `ArtifactRules.paths` and `ArtifactRules.exclude`. The URL of an exec
# request contains all globs, so their total size must be limited. `MAX_GLOB_CHARACTERS` limits each glob.
MAX_GLOBS = 100
MAX_GLOB_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class ArtifactRules:
    """Which files of the workspace are artifacts. `paths` and `exclude` are globs relative to the workspace.

    Without `paths`, the artifacts are the files that the commands created or changed.
    """

    paths: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    when: When = When.SUCCESS

    @property
    def declared(self) -> bool:
        """Whether the user named the artifacts. A declared file that cannot be copied fails the action."""
        return bool(self.paths)


class OnExit(Enum):
    """What the end of a service means while the commands run. The values are the words of the pipeline file."""

    CRASH_FAILS = "crash-fails"
    ANY_FAILS = "any-fails"
    IGNORE = "ignore"


class ServiceLog(Enum):
    """When the agent sends the log of a service. The values are the words of the pipeline file."""

    ON_FAILURE = "on-failure"
    LIVE = "live"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class HealthCommand:
    """A command in the container of a service that succeeds when the service is ready.

    `timeout` is the number of seconds until the service must be ready, None for the setting.
    """

    command: tuple[str, ...]
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A program that runs beside the commands in the same pod. The commands reach it by its name and its aliases.

    `command` and `args` are empty if those of the image run. `secrets` names secrets of the action. The service is
    ready when all `ports` accept and `health` has succeeded. `scratch` holds paths of writable folders.
    """

    name: str
    image: str
    aliases: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    health: HealthCommand | None = None
    resources: Resources = Resources()
    scratch: tuple[str, ...] = ()
    privileged: bool = False
    on_exit: OnExit = OnExit.CRASH_FAILS
    log: ServiceLog = ServiceLog.ON_FAILURE

    @property
    def needs_release(self) -> bool:
        """Whether only the agent can know that the service is ready, because the pod's helper cannot find out."""
        return self.health is not None or not self.ports


# Maximum number of caches of an action, of paths and of fallback keys of a cache, and of characters of each of them.
MAX_CACHES = 5
MAX_CACHE_ITEMS = 20
MAX_CACHE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Cache:
    """Paths of the workspace that are kept for later actions under a key. A key is never written twice.

    `key` and `fallback_keys` may have placeholders (see `references.cache_key`). `prefix` is the start of the keys that
    are tried last, "" for none. The paths are stored after the results `save`: SUCCESS, ALWAYS or NEVER.
    """

    key: str
    paths: tuple[str, ...]
    fallback_keys: tuple[str, ...] = ()
    prefix: str = ""
    save: When = When.SUCCESS

    @property
    def templates(self) -> tuple[str, ...]:
        """The key, the fallback keys and the prefix, in the order in which they are tried."""
        return (self.key, *self.fallback_keys, self.prefix)

    def saves(self, *, succeeded: bool) -> bool:
        """Whether the paths are stored after commands with this result."""
        return self.save is When.ALWAYS or (succeeded and self.save is When.SUCCESS)


@dataclass(frozen=True, slots=True)
class CacheScope:
    """Names that the scheduler gives, which decide what caches may read and write. Empty `write`: nothing is stored."""

    write: str = ""
    read: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """One attempt of an action, and its owner. Attempts and claims count from 1.

    The first agent that runs the attempt has claim 1. Each adoption by another agent raises the claim by 1 and does not
    change the number of the attempt.
    """

    action_id: str
    attempt: int = 1
    claim: int = 1

    @property
    def attempt_key(self) -> tuple[str, int]:
        """The action id and the attempt number. An adoption changes neither of them."""
        return (self.action_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Action:
    """What a scheduler asks an agent to run.

    `timeout` is the limit of the commands in seconds, None for the default in the agent's policy. `secrets` holds
    values, so `repr` leaves it out. `traceparent` is the W3C trace context of the scheduler, "" for none.
    `pipefail`: whether a failure inside a pipe fails the command, None for the agent's setting.
    `environment_class` names a class of environments, "" for none.
    `inputs`: the agent copies these files of other actions into the workspace before the first command. `caches` are
    restored before that. They are not used if `cache_scope` is None.
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
    services: tuple[Service, ...] = ()
    environment_class: str = ""
    inputs: tuple[Input, ...] = ()
    caches: tuple[Cache, ...] = ()
    cache_scope: CacheScope | None = None

    @property
    def awaits_files(self) -> bool:
        """Whether the agent copies files into the workspace and then starts the commands."""
        return bool(self.inputs or self.caches)

    @property
    def collected(self) -> ArtifactRules:
        """The rules for artifacts. Without declared paths, the files of caches are no artifacts."""
        if self.artifacts.declared:
            return self.artifacts
        cached = tuple(path for each in self.caches for path in each.paths)
        return replace(self.artifacts, exclude=(*self.artifacts.exclude, *cached))


@dataclass(frozen=True, slots=True)
class Cancel:
    """A scheduler's stop request for a session.

    `grace` is the number of seconds between TERM and KILL, None for the policy's default.
    """

    grace: float | None = None
    message: str = ""
