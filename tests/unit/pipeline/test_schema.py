"""The JSON schema of pipeline files.

The schema accepts the files that the parser accepts. It refuses a file for mistakes that an editor can find with a
schema.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import pytest
import yaml

from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.parser import load, parse
from agent.pipeline.schema import schema
from tests.unit.pages import ROOT
from tests.unit.pipeline.test_parser import FULL

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
TYPES: dict[str, Any] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}
HEAD = "configuration: {container: i}\ncommands: [x]\n"


def valid(value: Any, rules: dict[str, Any]) -> bool:
    """Return whether a value obeys a JSON schema. It knows only the keywords that the schema of pipeline files uses."""
    return all(RULES[word](value, wanted, rules) for word, wanted in rules.items() if word not in ("title", "$schema"))


def typed(value: Any, names: Any) -> bool:
    names = [names] if isinstance(names, str) else names
    return any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)


def additional(value: Any, wanted: Any, rules: dict[str, Any]) -> bool:
    others = [each for name, each in value.items() if name not in rules.get("properties", {})]
    return not others if wanted is False else all(valid(each, wanted) for each in others)


def branch(value: Any, wanted: Any, rules: dict[str, Any]) -> bool:
    return valid(value, rules["then"] if valid(value, wanted) else rules["else"])


RULES: dict[str, Any] = {
    "type": lambda value, wanted, _: typed(value, wanted),
    "description": lambda *_: True,
    "definitions": lambda *_: True,
    "then": lambda *_: True,
    "else": lambda *_: True,
    "if": branch,
    "$ref": lambda value, wanted, _: valid(value, schema()["definitions"][wanted.rpartition("/")[2]]),
    "anyOf": lambda value, wanted, _: any(valid(value, each) for each in wanted),
    "const": lambda value, wanted, _: value == wanted,
    "enum": lambda value, wanted, _: value in wanted,
    "required": lambda value, wanted, _: all(name in value for name in wanted),
    "properties": lambda value, wanted, _: (
        isinstance(value, dict) and all(valid(value[name], each) for name, each in wanted.items() if name in value)
    ),
    "additionalProperties": lambda value, wanted, rules: isinstance(value, dict) and additional(value, wanted, rules),
    "propertyNames": lambda value, wanted, _: isinstance(value, dict) and all(valid(name, wanted) for name in value),
    "items": lambda value, wanted, _: isinstance(value, list) and all(valid(each, wanted) for each in value),
    "pattern": lambda value, wanted, _: not isinstance(value, str) or re.search(wanted, value) is not None,
    "minimum": lambda value, wanted, _: value >= wanted,
    "minLength": lambda value, wanted, _: not isinstance(value, str) or len(value) >= wanted,
    "maxLength": lambda value, wanted, _: not isinstance(value, str) or len(value) <= wanted,
    "minItems": lambda value, wanted, _: len(value) >= wanted,
    "maxItems": lambda value, wanted, _: len(value) <= wanted,
    "minProperties": lambda value, wanted, _: len(value) >= wanted,
    "maxProperties": lambda value, wanted, _: len(value) <= wanted,
    "uniqueItems": lambda value, wanted, _: len(set(value)) == len(value) or not wanted,
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_reader_and_the_schema_accept_each_example(path: Any) -> None:
    assert load(path).actions
    assert valid(yaml.safe_load(path.read_text("utf-8")), schema())


def test_there_are_ten_examples_and_the_schema_accepts_every_key() -> None:
    assert len(EXAMPLES) >= 10
    assert valid(yaml.safe_load(dedent(FULL)), schema())


WRONG = [
    "- a",
    "name: x",
    "actions: {}",
    "actions: {a: {commands: [x]}}",
    "actions: {../a: {configuration: {container: i}, commands: [x]}}",
    HEAD + "needs: [a]",
    HEAD + "image: i",
    HEAD.replace("[x]", "x"),
    HEAD.replace("[x]", "[]"),
    HEAD.replace("container", "containers"),
    HEAD + "env: {1X: y}",
    HEAD + "env: {X: [1]}",
    HEAD + "secrets: [A, A]",
    HEAD + "repo: {ref: main}",
    HEAD + "repo: {url: u, depth: -1}",
    HEAD + "resources: {memory: 1GB}",
    HEAD + "timeout: soon",
    HEAD + "artifacts: all",
    HEAD + "artifacts: {when: sometimes}",
    HEAD + "shell: {pipefail: maybe}",
]


@pytest.mark.parametrize("text", WRONG)
def test_the_reader_and_the_schema_refuse_the_same_files(text: str) -> None:
    with pytest.raises(PipelineFileError):
        parse(text, "p")
    assert not valid(yaml.safe_load(text), schema())
