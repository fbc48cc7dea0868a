"""Read pipeline files, which a user writes, into the `Pipeline` that the local scheduler runs.

    name: build
    actions:
      test:
        configuration: {container: debian:stable}
        commands: [make test]

A file is read completely before any action starts, and unknown keys are refused. A `Pipeline` lives from its submission
to its end. The scheduler stores the text of the file and reads the text again after a restart.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from agent.domain.actions import Action, ArtifactRules, Repository, Resources
from agent.pipeline.action_keys import (
    read_artifacts,
    read_commands,
    read_env,
    read_image,
    read_pipefail,
    read_repository,
    read_resources,
    read_secret_names,
    read_timeout,
)
from agent.pipeline.yaml_document import MAX_SIZE, PipelineFileError, Value, read_document, suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from agent.domain.actions import Key

# Pattern of an action's name. The name is also the name of the action's folder and log file.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
PIPELINE_KEYS = ("name", "actions")
ACTION_KEYS = (
    "configuration",
    "commands",
    "env",
    "secrets",
    "repo",
    "resources",
    "timeout",
    "artifacts",
    "shell",
    "needs",
)
# Maximum number of actions in one file.
MAX_ACTIONS = 1000


@dataclass(frozen=True, slots=True)
class PipelineAction:
    """One action of a pipeline file. `secrets` holds names. `timeout` is in seconds, None: the policy's default.

    `needs` holds the names of the actions that must succeed before this action starts.
    """

    name: str
    image: str
    commands: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    repository: Repository | None = None
    resources: Resources = field(default_factory=Resources)
    timeout: float | None = None
    artifacts: ArtifactRules = field(default_factory=ArtifactRules)
    pipefail: bool | None = None
    needs: tuple[str, ...] = ()

    def action(self, key: Key, secrets: Mapping[str, str]) -> Action:
        """Return the action that is sent to an agent. `secrets` may hold more values than this action names."""
        return Action(
            key=key,
            image=self.image,
            commands=self.commands,
            name=self.name,
            env=self.env,
            secrets={name: secrets[name] for name in self.secrets},
            repository=self.repository,
            resources=self.resources,
            timeout=self.timeout,
            artifacts=self.artifacts,
            pipefail=self.pipefail,
        )


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file: its actions in the order of the file. `source` is the file's name, `text` its contents."""

    name: str
    actions: tuple[PipelineAction, ...]
    source: str
    text: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of all secrets, each once."""
        return tuple(dict.fromkeys(name for action in self.actions for name in action.secrets))


def load(path: Path) -> Pipeline:
    """Read a pipeline file.

    Raises:
        PipelineFileError: the file cannot be read or is not a valid pipeline.
    """
    # A file name may hold bytes that are not UTF-8, and messages of gRPC and reports cannot hold such bytes.
    source = os.fsencode(path).decode("utf-8", "replace")
    try:
        with path.open("rb") as file:
            # The read is bounded, because a device such as /dev/zero has no end.
            data = file.read(4 * MAX_SIZE + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PipelineFileError(f"{source}:{line}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise PipelineFileError(f"{source}: cannot be read: {error.strerror}") from error
    return parse(text, source)


def parse(text: str, source: str) -> Pipeline:
    """Read the text of a pipeline file. `source` is the name of the file in messages.

    Raises:
        PipelineFileError: the text is not a valid pipeline. The message names the line, the key and what is allowed.
    """
    root = read_document(text, source)
    if root.is_mapping and "configuration" in root.mapping("a mapping"):
        action_name = "action"
        keys = root.mapping("a mapping", ("name", *(key for key in ACTION_KEYS if key != "needs")))
        if "name" in keys:
            action_name = read_action_name(keys.pop("name"))
        return Pipeline(action_name, (read_action(action_name, root, keys),), source, text)
    keys = root.mapping("a mapping with `name` and `actions`", PIPELINE_KEYS)
    name = keys["name"].non_empty("a name") if "name" in keys else PurePosixPath(source).stem
    if "actions" not in keys:
        root.refuse("`actions` is missing: a mapping from names to actions")
    entries = keys["actions"].mapping("a mapping from names to actions")
    if not entries:
        keys["actions"].refuse("must name at least one action")
    if len(entries) > MAX_ACTIONS:
        keys["actions"].refuse(f"has {len(entries)} actions; at most {MAX_ACTIONS} are allowed")
    actions = []
    for action_name, value in entries.items():
        check_name(action_name, value)
        actions.append(read_action(action_name, value, value.mapping("an action, a mapping", ACTION_KEYS)))
    check_needs(entries, actions)
    return Pipeline(name, tuple(actions), source, text)


def read_action_name(value: Value) -> str:
    name = value.text("a name")
    check_name(name, value)
    return name


def check_name(name: str, value: Value) -> None:
    """Refuse a name that is no safe file name. Logs and artifacts are stored under the name."""
    if not NAME.fullmatch(name) or ".." in name:
        value.refuse(
            "is not an action name: 1 to 64 letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter or digit, no '..'"
        )
    if ".log" in name:
        value.refuse("is not an action name: '.log' is reserved for log files")


def read_action(name: str, value: Value, keys: Mapping[str, Value]) -> PipelineAction:
    if "configuration" not in keys:
        value.refuse("`configuration` is missing: {container: IMAGE}")
    if "commands" not in keys:
        value.refuse("`commands` is missing: a list of commands")
    configuration = keys["configuration"].mapping("{container: IMAGE}", ("container",))
    if "container" not in configuration:
        keys["configuration"].refuse("`container` is missing: the image to run in")
    env = read_env(keys["env"]) if "env" in keys else {}
    return PipelineAction(
        name=name,
        image=read_image(configuration["container"]),
        commands=read_commands(keys["commands"]),
        env=env,
        secrets=read_secret_names(keys["secrets"], env) if "secrets" in keys else (),
        repository=read_repository(keys["repo"]) if "repo" in keys else None,
        resources=read_resources(keys["resources"]) if "resources" in keys else Resources(),
        timeout=read_timeout(keys["timeout"]) if "timeout" in keys else None,
        artifacts=read_artifacts(keys["artifacts"]) if "artifacts" in keys else ArtifactRules(),
        pipefail=read_pipefail(keys["shell"]) if "shell" in keys else None,
        needs=tuple(
            item.non_empty("the name of an action") for item in keys["needs"].items("a list of names of actions")
        )
        if "needs" in keys
        else (),
    )


def check_needs(values: Mapping[str, Value], actions: Sequence[PipelineAction]) -> None:
    """Refuse needs that name no action, that repeat a name, or that form a circle."""
    names = [action.name for action in actions]
    for action in actions:
        where = values[action.name].mapping("an action").get("needs")
        for item, name in zip(where.items("a list") if where else (), action.needs, strict=True):
            if name not in names:
                item.refuse(f"there is no action {name!r}{suggestion(name, names)}; there are: {', '.join(names)}")
            if action.needs.count(name) > 1:
                item.refuse(f"{name} is listed twice")
    if circle := find_circle(actions):
        where = values[circle[0]].mapping("an action")["needs"]
        where.refuse(f"the needs form a circle: {' -> '.join(circle)}")


def find_circle(actions: Sequence[PipelineAction]) -> list[str]:
    """Return a circle of needs: each action needs the next, and the first name is also the last.

    The circle is empty if there is none. It starts with the action that comes first in the file.
    """
    try:
        TopologicalSorter({action.name: action.needs for action in actions}).prepare()
    except CycleError as error:
        # graphlib lists the circle in the opposite order: each need comes before the action that needs it.
        *ring, _ = reversed(error.args[1])
        names = [action.name for action in actions]
        start = min(range(len(ring)), key=lambda index: names.index(ring[index]))
        return [*ring[start:], *ring[: start + 1]]
    return []
