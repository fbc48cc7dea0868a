"""The key `inputs` of an action in a pipeline file: read it, and select the files that it names.

An `InputRule` lives as long as its `Pipeline`. The functions are pure. The scheduler calls `select` with the files that
the other action has stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.actions import When
from agent.domain.artifacts import MAX_INPUTS
from agent.domain.paths import safe_components
from agent.glob import Glob
from agent.pipeline.action_keys import read_globs
from agent.pipeline.yaml_document import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agent.pipeline.parser import PipelineAction
    from agent.pipeline.yaml_document import Value

INPUT_KEYS = ("from", "paths", "to", "optional")
MAX_FOLDER_CHARACTERS = 500
WILDCARDS = "*?["


@dataclass(frozen=True, slots=True)
class InputRule:
    """Which artifacts of the action `source` are copied into the workspace, and where to.

    Without `paths`, all artifacts are copied. `to` None: the files keep their paths. Otherwise `to` is a folder of the
    workspace, "" for its top, and the part of a glob before its first wildcard is cut off: with the glob `dist/*.whl`
    and `to` "wheels", `dist/a.whl` becomes `wheels/a.whl`.
    """

    source: str
    paths: tuple[str, ...] = ()
    to: str | None = None
    optional: bool = False


def read_inputs(value: Value) -> tuple[InputRule, ...]:
    """Return the rules of a list. Whether the actions exist is checked elsewhere."""
    items = value.items(f"a list of mappings with {', '.join(INPUT_KEYS)}")
    if len(items) > MAX_INPUTS:
        value.refuse(f"has {len(items)} inputs; at most {MAX_INPUTS} are allowed")
    return tuple(read_input(item) for item in items)


def read_input(value: Value) -> InputRule:
    keys = value.mapping(f"a mapping with {', '.join(INPUT_KEYS)}", INPUT_KEYS)
    if "from" not in keys:
        value.refuse_missing("`from` is missing: the action whose artifacts are copied")
    return InputRule(
        source=keys["from"].non_empty("the name of an action"),
        paths=read_globs(keys["paths"]) if "paths" in keys else (),
        to=read_folder(keys["to"]) if "to" in keys else None,
        optional=keys["optional"].boolean() if "optional" in keys else False,
    )


def read_folder(value: Value) -> str:
    """Return a folder of the workspace, "" for the workspace itself."""
    text = value.non_empty("a folder in the workspace")
    folder = text.removesuffix("/")
    if len(folder) > MAX_FOLDER_CHARACTERS:
        value.refuse(f"must have at most {MAX_FOLDER_CHARACTERS} characters, not {len(folder)}")
    if folder == ".":
        return ""
    try:
        safe_components(folder.encode())
    except ValueError:
        value.refuse(f"must be a folder within the workspace: relative and without '..', not {text!r}")
    return folder


def check_inputs(value: Value, rules: Sequence[InputRule], groups: Mapping[str, Sequence[PipelineAction]]) -> None:
    """Note each input from no single action, or from an action that keeps no files after a success.

    `groups` holds the actions of each name that `from` may have. The name of an action with a matrix has all variants.
    """
    for item, rule in zip(value.items("a list"), rules, strict=True):
        with item.document.collect():
            name, where = rule.source, item.mapping("a mapping")["from"]
            if name not in groups:
                there = ", ".join(groups)
                where.refuse(f"there is no action {name!r}{suggestion(name, list(groups))}; there are: {there}")
            variants = [each.name for each in groups[name]]
            if len(variants) > 1:
                where.refuse(f"{name} has {len(variants)} variants, name one of them: {', '.join(variants)}")
            if any(each.artifacts.when in (When.NEVER, When.FAILURE) for each in groups[name]):
                where.refuse(f"{name} keeps no files when it succeeds: change its `artifacts`")


def fixed_folders(glob: str) -> int:
    """Return the number of leading folders of a glob that hold no wildcard."""
    parts = [part for part in glob.split("/") if part not in ("", ".")]
    folders = parts if glob.endswith("/") else parts[:-1]
    fixed = next((number for number, part in enumerate(folders) if any(sign in part for sign in WILDCARDS)), None)
    return len(folders) if fixed is None else fixed


def select(rule: InputRule, paths: Iterable[bytes]) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    """Return the selected paths, each with its path below the folder of the input, and the globs without a match."""
    globs = rule.paths or ("**",)
    matchers = [(Glob(glob), 0 if rule.to is None else fixed_folders(glob)) for glob in globs]
    found: dict[tuple[bytes, bytes], None] = {}
    matched = set()
    for path in sorted(paths):
        names = path.decode("utf-8", "surrogateescape").split("/")
        for number, (matcher, cut) in enumerate(matchers):
            if matcher.matches(names):
                matched.add(number)
                found[path, b"/".join(path.split(b"/")[cut:])] = None
    return list(found), [glob for number, glob in enumerate(globs) if number not in matched]
