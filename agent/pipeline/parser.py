"""Pipeline files: what a person writes, read into values that the scheduler for one machine runs.

    name: build
    actions:
      test:
        configuration: {container: debian:stable}
        commands: [make test]

A file is read strictly and as a whole before anything starts. A `Pipeline` lives from its submission to its end; the
server keeps its text and reads it again after a restart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from agent.domain.actions import Action, ArtifactRules, Repository, Resources, When
from agent.domain.quantities import quantity, seconds
from agent.pipeline.yaml_document import FileWrong, Value, compose, guess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from agent.domain.actions import Key

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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
REPO_KEYS = ("url", "ref", "depth", "submodules", "credentials")
RESOURCE_KEYS = ("cpu", "memory", "ephemeral_storage")
ARTIFACT_KEYS = ("paths", "exclude", "when")
SHELL_KEYS = ("pipefail",)
MAX_ACTIONS = 1000


@dataclass(frozen=True, slots=True)
class PipelineAction:
    """One action of a file. `secrets` are names, `timeout` is seconds or None for the policy's default."""

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
        """Return what an agent is asked to run; `secrets` may hold more than this action names."""
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
    """A whole file: its actions in its own order, and the text it was read from."""

    name: str
    actions: tuple[PipelineAction, ...]
    source: str
    text: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """All names of secrets, each once."""
        return tuple(dict.fromkeys(name for action in self.actions for name in action.secrets))


def load(path: Path) -> Pipeline:
    """Read a pipeline file.

    Raises:
        FileWrong: it cannot be read, or is wrong; the message says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileWrong(f"{path}: is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise FileWrong(f"{path}: cannot be read: {error.strerror}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Pipeline:
    """Read the text of a pipeline file; `source` is its name in messages.

    Raises:
        FileWrong: names the line, the key and what is allowed.
    """
    root = compose(text, source)
    if root.is_mapping and "configuration" in root.mapping("a mapping"):
        action_name = "action"
        keys = root.mapping("a mapping", ("name", *(key for key in ACTION_KEYS if key != "needs")))
        if "name" in keys:
            action_name = checked_name(keys.pop("name"))
        return Pipeline(action_name, (read_action(action_name, root, keys),), source, text)
    keys = root.mapping("a mapping with `name` and `actions`", PIPELINE_KEYS)
    name = keys["name"].filled("a name") if "name" in keys else PurePosixPath(source).stem
    if "actions" not in keys:
        root.wrong("`actions` is missing: a mapping from names to actions")
    entries = keys["actions"].mapping("a mapping from names to actions")
    if not entries:
        keys["actions"].wrong("must name at least one action")
    if len(entries) > MAX_ACTIONS:
        keys["actions"].wrong(f"has {len(entries)} actions; at most {MAX_ACTIONS} are allowed")
    actions = []
    for action_name, value in entries.items():
        check_name(action_name, value)
        actions.append(read_action(action_name, value, value.mapping("an action, a mapping", ACTION_KEYS)))
    check_needs(entries, actions)
    return Pipeline(name, tuple(actions), source, text)


def checked_name(value: Value) -> str:
    """Read the name of an action."""
    name = value.text("a name")
    check_name(name, value)
    return name


def check_name(name: str, value: Value) -> None:
    """Refuse a name that is no safe file name: logs and files are stored under it."""
    if not NAME.fullmatch(name) or ".." in name:
        value.wrong(
            "is not a name of an action: 1 to 64 letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter or digit, no '..'"
        )
    if ".log" in name:
        value.wrong("is not a name of an action: '.log' is kept for the logs beside it")


def read_action(name: str, value: Value, keys: Mapping[str, Value]) -> PipelineAction:
    """Read the keys of one action."""
    if "configuration" not in keys:
        value.wrong("`configuration` is missing: {container: IMAGE}")
    if "commands" not in keys:
        value.wrong("`commands` is missing: a list of commands")
    configuration = keys["configuration"].mapping("{container: IMAGE}", ("container",))
    if "container" not in configuration:
        keys["configuration"].wrong("`container` is missing: the image to run in")
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
        needs=tuple(item.filled("the name of an action") for item in keys["needs"].items("a list of names of actions"))
        if "needs" in keys
        else (),
    )


def read_image(value: Value) -> str:
    """Read an image reference; whether it exists is found out by the cluster."""
    image = value.filled("an image such as debian:stable")
    if any(character.isspace() for character in image):
        value.wrong(f"must be an image such as debian:stable, not {image!r}")
    return image


def read_commands(value: Value) -> tuple[str, ...]:
    """Read the commands; a bare `true` is the command, not a truth."""
    commands = []
    for item in value.items("a list of commands"):
        if item.is_mapping:
            item.wrong("must be a command, not a mapping: quote a command that contains ': '")
        commands.append(item.filled("a command"))
    if not commands:
        value.wrong("must have at least one command")
    return tuple(commands)


def read_env(value: Value) -> dict[str, str]:
    """Read variables; values are taken as they are written."""
    env = {}
    for name, item in value.mapping("a mapping from variables to texts").items():
        check_variable(name, item)
        env[name] = item.text('a text (quote an empty one: "")')
    return env


def read_secret_names(value: Value, env: Mapping[str, str]) -> tuple[str, ...]:
    """Read names of secrets; they become variables, so none may be one already."""
    names: list[str] = []
    for item in value.items("a list of names"):
        name = item.text("a name")
        check_variable(name, item)
        if name in env:
            item.wrong(f"{name} stands in `env` too")
        if name in names:
            item.wrong(f"{name} stands twice")
        names.append(name)
    return tuple(names)


def check_variable(name: str, value: Value) -> None:
    """Refuse what no shell takes for a variable."""
    if not VARIABLE.fullmatch(name):
        value.wrong(f"{name!r} is not a variable: letters, digits and '_', not beginning with a digit")


def read_repository(value: Value) -> Repository:
    """Read what is cloned."""
    keys = value.mapping("{url: URL}", REPO_KEYS)
    if "url" not in keys:
        value.wrong("`url` is missing")
    depth = keys["depth"].text("a number of commits") if "depth" in keys else "0"
    if not re.fullmatch(r"[0-9]{1,9}", depth):
        keys["depth"].wrong(f"must be a number of commits, 0 for all, not {depth!r}")
    return Repository(
        url=keys["url"].filled("a URL"),
        ref=keys["ref"].filled("a branch, tag or commit") if "ref" in keys else "",
        depth=int(depth),
        submodules=keys["submodules"].truth() if "submodules" in keys else False,
        credentials=keys["credentials"].filled("the name of a Secret") if "credentials" in keys else "",
    )


def read_resources(value: Value) -> Resources:
    """Read quantities."""
    keys = value.mapping(f"a mapping with {', '.join(RESOURCE_KEYS)}", RESOURCE_KEYS)
    return Resources(**{name: measured(item, quantity) for name, item in keys.items()})


def read_timeout(value: Value) -> float:
    """Read a duration in seconds."""
    length = seconds(measured(value, seconds))
    if length <= 0:
        value.wrong("must be longer than 0")
    return length


def measured(value: Value, reader: Callable[[str], object]) -> str:
    """Return the text of a value that the reader takes."""
    text = value.filled("a value")
    try:
        reader(text)
    except ValueError as error:
        value.wrong(str(error))
    return text


def read_artifacts(value: Value) -> ArtifactRules:
    """Read which files are wanted; `none` for no files."""
    if value.is_scalar:
        if value.text() != "none":
            value.wrong(f"must be `none` or a mapping with {', '.join(ARTIFACT_KEYS)}, not {value.kind}")
        return ArtifactRules(when=When.NEVER)
    keys = value.mapping(f"`none` or a mapping with {', '.join(ARTIFACT_KEYS)}", ARTIFACT_KEYS)
    when = keys["when"].choice(each.value for each in When) if "when" in keys else When.SUCCESS.value
    return ArtifactRules(
        paths=read_globs(keys["paths"]) if "paths" in keys else (),
        exclude=read_globs(keys["exclude"]) if "exclude" in keys else (),
        when=When(when),
    )


def read_globs(value: Value) -> tuple[str, ...]:
    """Read globs within the workspace."""
    globs = []
    for item in value.items("a list of globs"):
        glob = item.filled("a glob")
        if glob.startswith("/") or ".." in glob.split("/"):
            item.wrong(f"must be within the workspace: relative and without '..', not {glob!r}")
        globs.append(glob)
    return tuple(globs)


def read_pipefail(value: Value) -> bool | None:
    """Read the options of the shell; None leaves pipefail to the agent's setting."""
    keys = value.mapping(f"a mapping with {', '.join(SHELL_KEYS)}", SHELL_KEYS)
    return keys["pipefail"].truth() if "pipefail" in keys else None


def check_needs(values: Mapping[str, Value], actions: Sequence[PipelineAction]) -> None:
    """Refuse needs that name nothing, themselves, or each other in a circle."""
    needs = {action.name: action.needs for action in actions}
    for action in actions:
        where = values[action.name].mapping("an action").get("needs")
        for item, name in zip(where.items("a list") if where else (), action.needs, strict=True):
            if name not in needs:
                item.wrong(f"there is no action {name!r}{guess(name, needs)}; there are: {', '.join(needs)}")
            if action.needs.count(name) > 1:
                item.wrong(f"{name} stands twice")
        circle = find_circle(action.name, needs)
        if where and circle:
            where.wrong(f"need each other in a circle: {' -> '.join(circle)}")


def find_circle(start: str, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a way from an action back to itself, empty when there is none."""
    came_from: dict[str, str] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for need in needs.get(name, ()):
            if need == start:
                way = [start]
                while name != start:
                    way.append(name)
                    name = came_from[name]
                return [start, *reversed(way[1:]), start]
            if need not in came_from:
                came_from[need] = name
                waiting.append(need)
    return []
