"""Read the keys of one action of a pipeline file: image, commands, variables, repository, resources, artifacts.

The functions keep no state. Each takes the value of one key and returns it in the types of `agent.domain`. Each raises
`PipelineFileError` with the line and the key of a value that is not allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agent.domain.actions import MAX_GLOB_CHARACTERS, MAX_GLOBS, ArtifactRules, Repository, Resources, When
from agent.domain.quantities import quantity, seconds
from agent.domain.references.image_reference import checked_image
from agent.pipeline.yaml_document import BOOLEANS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.pipeline.yaml_document import Value

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CLASS = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
NOT_A_VARIABLE = "{!r} is not a variable name: letters, digits and '_', not beginning with a digit"
REPO_KEYS = ("url", "ref", "depth", "submodules", "lfs", "credentials")
RESOURCE_KEYS = ("cpu", "memory", "ephemeral_storage")
ARTIFACT_KEYS = ("paths", "exclude", "when")
SHELL_KEYS = ("pipefail",)


def read_image(value: Value) -> str:
    """Return an image reference. Whether the image exists is not checked here."""
    image = value.non_empty("an image such as debian:stable")
    try:
        return checked_image(image)
    except ValueError as error:
        value.refuse(f"must be an image such as debian:stable, not {image!r}: {error}")


def read_commands(value: Value) -> tuple[str, ...]:
    """Return the commands. An unquoted `true` is the command `true`, not a boolean."""
    commands = []
    for item in value.items("a list of commands"):
        if item.is_mapping:
            item.refuse("must be a command, not a mapping: quote a command that contains ': '")
        commands.append(item.non_empty("a command"))
    if not commands:
        value.refuse("must have at least one command")
    return tuple(commands)


def read_env(value: Value, others: Mapping[str, str]) -> dict[str, str]:
    """Return the variables. Each value is the text of the file: `1.10` stays "1.10".

    `others` are the variables of the matrix, which no name may repeat.
    """
    env = {}
    for name, item in value.mapping("a mapping from variables to texts").items():
        with item.document.collect():
            if not VARIABLE.fullmatch(name):
                item.refuse_key(NOT_A_VARIABLE.format(name))
            if name in others:
                item.refuse_key(f"{name} is also set in `matrix`")
        env[name] = item.attempt(lambda each: each.text('a text (quote an empty one: "")'), "")
    return env


def read_secret_names(value: Value, env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of secrets. Secrets become variables, so a name must not be in `env` too."""
    names: list[str] = []
    for item in value.items("a list of names"):
        name = item.text("a name")
        check_variable(name, item)
        if name in env:
            item.refuse(f"{name} is also set in `env`")
        if name in names:
            item.refuse(f"{name} is listed twice")
        names.append(name)
    return tuple(names)


def check_variable(name: str, value: Value) -> None:
    """Refuse a name that a shell does not accept as a variable."""
    if not VARIABLE.fullmatch(name):
        value.refuse(NOT_A_VARIABLE.format(name))


def read_repository(value: Value) -> Repository:
    keys = value.mapping("{url: URL}", REPO_KEYS)
    if "url" not in keys:
        value.refuse_missing("`url` is missing")
    depth = keys["depth"].text("a number of commits") if "depth" in keys else "0"
    if not re.fullmatch(r"[0-9]{1,9}", depth):
        keys["depth"].refuse(f"must be a number of commits, 0 for all, not {depth!r}")
    return Repository(
        url=keys["url"].non_empty("a URL"),
        ref=keys["ref"].non_empty("a branch, tag or commit") if "ref" in keys else "",
        depth=int(depth),
        submodules=read_submodules(keys["submodules"]) if "submodules" in keys else False,
        lfs=keys["lfs"].boolean() if "lfs" in keys else False,
        credentials=keys["credentials"].non_empty("the name of a Secret") if "credentials" in keys else "",
    )


def read_submodules(value: Value) -> bool:
    """Return whether submodules are fetched. The words `recursive` and `true` mean the same."""
    word = value.text("true, false or recursive").lower()
    if word != "recursive" and word not in BOOLEANS:
        value.refuse(f"must be true, false or recursive, not {value.kind}")
    return BOOLEANS.get(word, True)


def read_resources(value: Value) -> Resources:
    keys = value.mapping(f"a mapping with {', '.join(RESOURCE_KEYS)}", RESOURCE_KEYS)
    return Resources(**{name: checked_text(item, quantity) for name, item in keys.items()})


def read_class(value: Value) -> str:
    """Return the name of a class of environments. Whether an agent has the class is not checked here."""
    name = value.text("the name of a class")
    if not CLASS.fullmatch(name):
        value.refuse(f"must be the name of a class: 1 to 40 lower-case letters, digits and '-', not {name!r}")
    return name


def read_timeout(value: Value) -> float:
    """Return the timeout of the commands in seconds."""
    length = seconds(checked_text(value, seconds))
    if length <= 0:
        value.refuse("must be longer than 0")
    return length


def checked_text(value: Value, reader: Callable[[str], object]) -> str:
    """Return the text of a value. `reader` raises ValueError for a text that is not allowed."""
    text = value.non_empty("a value")
    try:
        reader(text)
    except ValueError as error:
        value.refuse(str(error))
    return text


def read_artifacts(value: Value) -> ArtifactRules:
    """Return the rules for artifacts. The value `none` means that no file is copied."""
    if value.is_scalar:
        if value.text() != "none":
            value.refuse(f"must be `none` or a mapping with {', '.join(ARTIFACT_KEYS)}, not {value.kind}")
        return ArtifactRules(when=When.NEVER)
    keys = value.mapping(f"`none` or a mapping with {', '.join(ARTIFACT_KEYS)}", ARTIFACT_KEYS)
    when = keys["when"].choice(each.value for each in When) if "when" in keys else When.SUCCESS.value
    return ArtifactRules(
        paths=read_globs(keys["paths"]) if "paths" in keys else (),
        exclude=read_globs(keys["exclude"]) if "exclude" in keys else (),
        when=When(when),
    )


def read_globs(value: Value) -> tuple[str, ...]:
    globs: list[str] = []
    for item in value.items("a list of globs"):
        glob = item.non_empty("a glob")
        if len(globs) == MAX_GLOBS:
            item.refuse(f"is one glob too many; at most {MAX_GLOBS} are allowed")
        if len(glob) > MAX_GLOB_CHARACTERS:
            item.refuse(f"must have at most {MAX_GLOB_CHARACTERS} characters, not {len(glob)}")
        if glob.startswith("/") or ".." in glob.split("/"):
            item.refuse(f"must be within the workspace: relative and without '..', not {glob!r}")
        globs.append(glob)
    return tuple(globs)


def read_pipefail(value: Value) -> bool | None:
    """Return whether the shell runs the commands with pipefail. None means that the agent's setting decides."""
    keys = value.mapping(f"a mapping with {', '.join(SHELL_KEYS)}", SHELL_KEYS)
    return keys["pipefail"].boolean() if "pipefail" in keys else None
