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
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from agent.domain.actions import Action, ArtifactRules, Cache, Repository, Resources, Service
from agent.domain.session_state import Feature
from agent.pipeline.action_keys import (
    read_artifacts,
    read_class,
    read_commands,
    read_env,
    read_image,
    read_pipefail,
    read_repository,
    read_resources,
    read_secret_names,
    read_timeout,
)
from agent.pipeline.cache_keys import read_caches
from agent.pipeline.file_errors import PipelineFileError, Problem
from agent.pipeline.inputs import InputRule, read_inputs
from agent.pipeline.service_keys import read_services
from agent.pipeline.structure.conditions import Condition, Retry, read_condition, read_retry
from agent.pipeline.structure.variants import read_matrix, resolve_needs, substituted, variant_name
from agent.pipeline.structure.yaml_merge import combined, merge_keys
from agent.pipeline.yaml_document import MAX_SIZE, Value, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent.domain.actions import CacheScope, Key
    from agent.domain.artifacts import Input

Result = TypeVar("Result")

# Pattern of an action's name. The name is also the name of the action's folder and log file.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
PIPELINE_KEYS = ("name", "defaults", "actions")
ACTION_KEYS = (
    "configuration",
    "commands",
    "env",
    "secrets",
    "repo",
    "resources",
    "class",
    "timeout",
    "artifacts",
    "shell",
    "services",
    "retry",
    "cache",
    "needs",
    "inputs",
    "when",
    "matrix",
)
# Keys that a file with a single action does not have.
KEYS_OF_SEVERAL = ("needs", "inputs", "when", "matrix")
# Keys that a file sets for all its actions.
DEFAULT_KEYS = tuple(key for key in ACTION_KEYS if key not in ("commands", *KEYS_OF_SEVERAL))
# Keys that an action adds to those of the file's defaults. Any other key replaces the default.
MERGED_KEYS = ("env", "resources")
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
# Maximum number of actions in one file.
MAX_ACTIONS = 1000


@dataclass(frozen=True, slots=True)
class PipelineAction:
    """One action of a pipeline file. `secrets` holds names. `timeout` is in seconds, None: the policy's default.

    `needs` holds the names of the actions that must end before this action starts, with outcomes that fit `when`. The
    actions of `inputs` are in `needs`. `entry` is the action's name in the file, which differs from `name` if the
    action has a matrix.
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
    services: tuple[Service, ...] = ()
    environment_class: str = ""
    caches: tuple[Cache, ...] = ()
    needs: tuple[str, ...] = ()
    inputs: tuple[InputRule, ...] = ()
    when: Condition = Condition.SUCCESS
    retry: Retry = field(default_factory=Retry)
    entry: str = ""

    @property
    def features(self) -> frozenset[Feature]:
        """The features of the contract that an agent needs to run this action."""
        needed = {Feature.SERVICES: self.services, Feature.INPUTS: self.inputs}
        return frozenset(feature for feature, asked in needed.items() if asked)

    @property
    def is_special(self) -> bool:
        """Whether not every agent can run this action, because it needs features or a class of environments."""
        return bool(self.features or self.environment_class)

    def action(
        self,
        key: Key,
        secrets: Mapping[str, str],
        inputs: tuple[Input, ...] = (),
        cache_scope: CacheScope | None = None,
    ) -> Action:
        """Return the action that is sent to an agent. `secrets` may hold more values than this action names.

        `inputs` are the files that the rules of this action select. Without a `cache_scope`, the caches are left out.
        """
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
            services=self.services,
            environment_class=self.environment_class,
            inputs=inputs,
            caches=self.caches if cache_scope is not None else (),
            cache_scope=cache_scope if self.caches else None,
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
        raise PipelineFileError(Problem(f"{source}:{line}: is not UTF-8 (byte {error.start})")) from error
    except OSError as error:
        raise PipelineFileError(Problem(f"{source}: cannot be read: {error.strerror}")) from error
    return parse(text, source)


def parse(text: str, source: str) -> Pipeline:
    """Read the text of a pipeline file. `source` is the name of the file in messages.

    Raises:
        PipelineFileError: the text is not a valid pipeline. The messages name the line, the key and what is allowed.
    """
    root = read_document(text, source)
    merge_keys(root)
    nothing: tuple[str, tuple[PipelineAction, ...]] = ("", ())
    name, actions = root.attempt(read_actions, nothing)
    if root.document.problems:
        raise root.document.error()
    return Pipeline(name, actions, source, text)


def read_actions(root: Value) -> tuple[str, tuple[PipelineAction, ...]]:
    """Return the name and the actions of a pipeline. Problems are added to the `Document` of `root`."""
    if root.is_mapping and "configuration" in root.mapping("a mapping"):
        action_name = "action"
        keys = root.mapping("a mapping", ("name", *(key for key in ACTION_KEYS if key not in KEYS_OF_SEVERAL)))
        if "name" in keys:
            action_name = keys.pop("name").attempt(read_action_name, action_name)
        return action_name, (read_action(action_name, root, keys),)
    keys = root.mapping("a mapping with `name` and `actions`", PIPELINE_KEYS)
    name = PurePosixPath(root.document.source).stem
    name = optional(keys, "name", lambda value: value.non_empty("a name"), name)
    if "actions" not in keys:
        root.refuse_missing("`actions` is missing: a mapping from names to actions")
    entries = keys["actions"].mapping("a mapping from names to actions")
    if not entries:
        keys["actions"].refuse("must name at least one action")
    if len(entries) > MAX_ACTIONS:
        keys["actions"].refuse(f"has {len(entries)} actions; at most {MAX_ACTIONS} are allowed")
    nothing: dict[str, Value] = {}
    defaults = optional(keys, "defaults", lambda value: value.mapping("a mapping", DEFAULT_KEYS), nothing)
    variants: dict[str, list[PipelineAction]] = {}
    names: set[str] = set()
    for action_name, value in entries.items():
        with root.document.collect():
            check_name(action_name, value)
        with root.document.collect():
            own = value.mapping("an action, a mapping", ACTION_KEYS)
            group = read_variants(action_name, value, with_defaults(own, defaults))
            for each in group:
                if each.name in names or (each.name != action_name and each.name in entries):
                    value.refuse_key(f"a variant has the name of another action: {each.name!r}")
            variants[action_name] = group
            names |= {each.name for each in group}
        if len(names) > MAX_ACTIONS:
            keys["actions"].refuse(f"has too many actions with those of matrices; at most {MAX_ACTIONS} are allowed")
    return name, resolve_needs(entries, variants)


def with_defaults(own: Mapping[str, Value], defaults: Mapping[str, Value]) -> dict[str, Value]:
    """Return the keys of an action with the defaults of the file."""
    found = {**defaults, **own}
    for name in MERGED_KEYS:
        if name in own and name in defaults:
            found[name] = combined(own[name], defaults[name])
    return found


def read_variants(name: str, value: Value, keys: Mapping[str, Value]) -> list[PipelineAction]:
    """Return the action, or one action for each combination of its matrix."""
    nothing: list[dict[str, str]] = [{}]
    actions: list[PipelineAction] = []
    for variables in optional(keys, "matrix", read_matrix, nothing):
        action_name = variant_name(name, variables) if variables else name
        if variables and not NAME.fullmatch(action_name):
            keys["matrix"].refuse(f"{action_name!r} is not an action name, because it is too long")
        if action_name in (each.name for each in actions):
            keys["matrix"].refuse(f"two combinations have the same name {action_name!r}")
        actions.append(read_action(action_name, value, substituted(keys, variables), variables))
    return actions


def read_action_name(value: Value) -> str:
    name = value.text("a name")
    check_name(name, Value(value.node, value.document, value.path, value.node))
    return name


def check_name(name: str, value: Value) -> None:
    """Refuse an action's name that is no safe file name, because logs and artifacts are stored under this name.

    `value.key` is the YAML node of the name.
    """
    if not NAME.fullmatch(name) or ".." in name:
        value.refuse_key(
            "is not an action name: 1 to 64 letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter or digit, no '..'"
        )
    if ".log" in name:
        value.refuse_key("is not an action name: '.log' is reserved for log files")


def optional(keys: Mapping[str, Value], name: str, reader: Callable[[Value], Result], default: Result) -> Result:
    """Return what `reader` makes of a key, or `default` if the key is missing or refused."""
    return keys[name].attempt(reader, default) if name in keys else default


def read_action(
    name: str, value: Value, keys: Mapping[str, Value], variables: Mapping[str, str] = NO_VARIABLES
) -> PipelineAction:
    """Return an action. For each key with a wrong value, a problem is added and the default is used.

    `variables` are those of the matrix. They become variables of the commands.
    """
    for required, what in (("configuration", "{container: IMAGE}"), ("commands", "a list of commands")):
        with value.document.collect():
            if required not in keys:
                value.refuse_missing(f"`{required}` is missing: {what}")
    value.document.count_repeated(sum(each.size for each in keys.values()))
    has_needs = "needs" in keys or "inputs" in keys
    no_env: dict[str, str] = {}
    env = optional(keys, "env", lambda own: read_env(own, variables), no_env) | dict(variables)
    none: tuple[str, ...] = ()
    secrets = optional(keys, "secrets", lambda names: read_secret_names(names, env), none)
    return PipelineAction(
        name=name,
        image=optional(keys, "configuration", read_configuration, ""),
        commands=optional(keys, "commands", read_commands, ()),
        env=env,
        secrets=secrets,
        repository=optional(keys, "repo", read_repository, None),
        resources=optional(keys, "resources", read_resources, Resources()),
        timeout=optional(keys, "timeout", read_timeout, None),
        artifacts=optional(keys, "artifacts", read_artifacts, ArtifactRules()),
        pipefail=optional(keys, "shell", read_pipefail, None),
        services=optional(keys, "services", lambda each: read_services(each, secrets), ()),
        environment_class=optional(keys, "class", read_class, ""),
        caches=optional(keys, "cache", read_caches, ()),
        needs=optional(keys, "needs", read_needs, ()),
        inputs=optional(keys, "inputs", read_inputs, ()),
        when=optional(keys, "when", lambda condition: read_condition(condition, has_needs), Condition.SUCCESS),
        retry=optional(keys, "retry", read_retry, Retry()),
    )


def read_configuration(value: Value) -> str:
    """Return the image of an action."""
    configuration = value.mapping("{container: IMAGE}", ("container",))
    if "container" not in configuration:
        value.refuse_missing("`container` is missing: the image to run in")
    return read_image(configuration["container"])


def read_needs(value: Value) -> tuple[str, ...]:
    return tuple(item.non_empty("the name of an action") for item in value.items("a list of names of actions"))
