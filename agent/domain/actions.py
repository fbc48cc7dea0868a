"""The values that travel through the agent: what was asked, what happened, where a log stands.

All are frozen and know neither gRPC nor Kubernetes. An `Action` lives from its arrival to the end of its session; an
event from the moment it happens until the scheduler has acknowledged it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import Reason, Rejection, Stage

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
    """What was asked. `timeout` is seconds for the commands, None for the policy's default."""

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


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to end a session; `grace` is seconds between TERM and KILL, None for the policy's."""

    grace: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A byte position in an environment's log, from which it can be read again exactly.

    The anchor is the start of a line: its timestamp (as the API wrote it) and its ordinal among the lines of that
    timestamp, from 1. `offset` counts payload bytes from there (timestamps stripped, newlines included) that are done,
    and may reach over later lines. `total` is the payload done since the start of the log, `command` the command
    that runs there, 0 between two. An empty timestamp is the start of the log.
    """

    timestamp: str = ""
    count: int = 0
    offset: int = 0
    total: int = 0
    command: int = 0

    def encode(self) -> bytes:
        """Return the cursor as it travels on the wire, at most 100 bytes of ASCII."""
        return f"1|{self.timestamp}|{self.count}|{self.offset}|{self.total}|{self.command}".encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Cursor:
        """Read what `encode` wrote; empty is the start of the log.

        Raises:
            ValueError: it is no cursor of this version.
        """
        if not data:
            return cls()
        try:
            version, timestamp, *numbers = data.decode("ascii").split("|")
            count, offset, total, command = (int(number) for number in numbers)
        except ValueError as error:
            raise ValueError(f"not a log cursor: {data[:100]!r}") from error
        if version != "1" or min(count, offset, total, command) < 0:
            raise ValueError(f"not a log cursor: {data[:100]!r}")
        return cls(timestamp, count, offset, total, command)


class Result(Enum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one end of an attempt. `command` is the last that was started, 0 when none was."""

    result: Result
    stage: Stage
    reason: Reason | None = None
    exit_code: int | None = None
    command: int = 0
    message: str = ""


# ---- events


class Source(Enum):
    """Who wrote a piece of log."""

    COMMANDS = "commands"
    SETUP = "setup"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The action has a slot and a session here. `environment` names the pod, for people."""

    environment: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The action is not run here; the only event of its attempt."""

    why: Rejection
    message: str


@dataclass(frozen=True, slots=True)
class StageChanged:
    """A stage began, or made progress that a person wants to see."""

    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CommandStarted:
    """Command `index`, from 1, is being run."""

    index: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """Command `index` ended after `seconds`."""

    index: int
    exit_code: int
    seconds: float
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Up to 64 KiB of log, secrets masked; `cursor` is None for what does not come from the environment's log."""

    data: bytes
    cursor: Cursor | None = None
    source: Source = Source.COMMANDS


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that was not sent. `path` is relative to the workspace, as on the disk."""

    path: bytes
    why: str


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """What was uploaded; `left_out` names at most 100, `left_out_files` counts all."""

    files: int = 0
    bytes: int = 0
    left_out: tuple[LeftOut, ...] = ()
    left_out_files: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt ended; always the last event."""

    outcome: Outcome


Event = Accepted | Rejected | StageChanged | CommandStarted | CommandFinished | LogChunk | ArtifactSummary | Finished


# ---- files


@dataclass(frozen=True, slots=True)
class FileStart:
    """A file follows. `path` is relative, without "..", as on the disk."""

    path: bytes
    mode: int
    size: int


@dataclass(frozen=True, slots=True)
class FileData:
    """The next bytes of the file that was started."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FileEnd:
    """The file is whole; `sha256` is of the bytes that were read, equal to what the environment computed."""

    sha256: bytes


FilePart = FileStart | FileData | FileEnd


# ---- between agent and scheduler


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session that the agent names to the scheduler, which answers with `Resume` or a discard.

    `last_seq` is the highest number given so far; `adopted` says that nothing is known and all of `Resume` is needed.
    """

    key: Key
    last_seq: int = 0
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """Where the scheduler wants a named session to go on.

    Everything up to `seq` is stored; `cursor` is that of the last stored event that had one, `stage` None when no stage
    is stored, `command` the last command whose start is stored (0: none). `cancel` is a request still to be obeyed.
    `secrets` come only for adopted sessions: the agent cannot read Secrets.
    """

    key: Key
    seq: int = 0
    cursor: Cursor = Cursor()
    stage: Stage | None = None
    command: int = 0
    cancel: Cancel | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Readiness(Enum):
    """Whether the scheduler may send actions."""

    READY = "ready"
    DRAINING = "draining"
    DEGRADED = "degraded"


@dataclass(frozen=True, slots=True)
class Health:
    """How the agent is. `running` counts slots in use, environments being cleaned included; `message`: why degraded."""

    status: Readiness
    slots: int
    running: int = 0
    cluster_reachable: bool = True
    message: str = ""
    remains: int = 0
