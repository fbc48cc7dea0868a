"""The JSON schema of pipeline files, for editors. `docs/pipeline.schema.json` holds its text.

The schema has the keys and patterns that `agent.pipeline.parser` accepts. Only this parser decides whether a file is
valid, because a schema cannot express the policy and cannot detect that needs form a circle. All functions are pure.
"""

from __future__ import annotations

import json
from typing import Any

from agent.domain.actions import (
    MAX_CACHE_CHARACTERS,
    MAX_CACHE_ITEMS,
    MAX_CACHES,
    MAX_GLOB_CHARACTERS,
    MAX_GLOBS,
    OnExit,
    ServiceLog,
    When,
)
from agent.domain.artifacts import MAX_INPUTS
from agent.domain.quantities import DURATION, QUANTITY
from agent.pipeline.action_keys import ARTIFACT_KEYS, CLASS, REPO_KEYS, RESOURCE_KEYS, SHELL_KEYS, VARIABLE
from agent.pipeline.cache_keys import CACHE_KEYS, SAVES
from agent.pipeline.inputs import INPUT_KEYS
from agent.pipeline.parser import ACTION_KEYS, DEFAULT_KEYS, KEYS_OF_SEVERAL, MAX_ACTIONS, NAME, PIPELINE_KEYS
from agent.pipeline.service_keys import FOLDER, HEALTH_KEYS, HOST_NAME, SERVICE_KEYS, SERVICE_NAME
from agent.pipeline.structure.conditions import MAX_RETRIES, RETRY_KEYS, RETRY_REASONS, Condition

Schema = dict[str, Any]

# An editor reads `1.10` as a number and `yes` as a boolean. The agent reads the text of the file.
SCALAR = ["string", "number", "boolean"]
TEXT: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": ["boolean", "string"], "enum": [True, False, "yes", "no", "on", "off"]}

DESCRIPTIONS = {
    "name": "Name of the pipeline. Default: the file's name without its ending.",
    "defaults": "Keys of all actions. The keys of an action win; env and resources are merged.",
    "actions": "A mapping from names to actions.",
    "configuration": "Where the commands run.",
    "container": "The image. Its ENTRYPOINT and CMD are not run. The image needs /bin/sh.",
    "commands": "The commands, in one /bin/sh. The first command that fails ends the action.",
    "env": "Variables of the commands.",
    "secrets": "Names of secrets. Their values come from --secrets-file or from the environment.",
    "repo": "The repository to clone into the workspace.",
    "url": "https://HOST/PATH, ssh://USER@HOST/PATH or USER@HOST:PATH",
    "ref": "A branch, a tag or a commit. Default: the server's HEAD.",
    "depth": "Number of commits to fetch. 0 is all, the default.",
    "submodules": "Fetch submodules too, and theirs. Default: false.",
    "lfs": "Fetch the files of Git LFS. Default: false.",
    "credentials": "Name of a Secret in the namespace of actions.",
    "resources": "Resources of the commands, as Kubernetes quantities.",
    "cpu": 'CPU, as in "500m" or 2.',
    "memory": 'Memory, as in "1Gi".',
    "ephemeral_storage": 'Space for the workspace and the log, as in "5Gi".',
    "class": "Class of environments, one of those that the agents offer (setting environment.classes).",
    "timeout": "Time for the commands, as in 90, 90s, 10m, 1h30m.",
    "artifacts": "Which files are kept, or none.",
    "paths": "Globs of the files to keep, relative to the workspace.",
    "exclude": "Globs of files and folders to leave out.",
    "when": "After which end of the commands files are kept. Default: success.",
    "shell": "Options of the shell.",
    "pipefail": "Whether a failure inside a pipe fails the command.",
    "services": "Programs that run beside the commands, by their host names. The commands start when all are ready.",
    "ports": "TCP ports at 127.0.0.1. The service is ready when all of them accept.",
    "health": "A command in the service that succeeds when the service is ready.",
    "command": "A program and its arguments. No shell is involved.",
    "args": "Arguments of the image's own program.",
    "aliases": "Further host names of the service.",
    "scratch": "Writable folders, empty at the start.",
    "privileged": "All rights of root on the node. The policy must allow the image.",
    "on_exit": "When the end of the service fails the action. Default: crash-fails.",
    "log": "When the log of the service is shown. Default: on-failure.",
    "cache": "Paths of the workspace that are kept for later actions.",
    "key": "Name of the entry, with {hash:GLOB}, {image}, {arch} or {os}. An entry is never written twice.",
    "fallbacks": "Keys that are tried if there is no entry with the key.",
    "prefix": "Start of a key. If no key has an entry, the newest entry whose key starts so is used.",
    "save": "After which end of the commands the paths are saved. Default: success.",
    "needs": "Actions that must end before this action starts.",
    "inputs": "Artifacts of other actions that are copied into the workspace before the first command.",
    "from": "The action whose artifacts are copied, one of the needs.",
    "to": "A folder of the workspace. Default: the files keep their paths.",
    "optional": "Start the action even if no artifact matches. Default: false.",
    "retry": "Further attempts after a failure. A number alone counts for reasons of the infrastructure only.",
    "times": "Number of further attempts.",
    "reasons": "Reasons of a failure after which another attempt follows. Default: those of the infrastructure.",
    "matrix": "Variables with lists of values. There is one action for each combination.",
}


def whole(pattern: str) -> str:
    """Return a pattern that matches whole texts only. JSON schema searches for a pattern anywhere in a text."""
    return f"^(?:{pattern})$"


def mapping(keys: tuple[str, ...], values: dict[str, Schema], *, required: tuple[str, ...] = ()) -> Schema:
    """Return the schema of a mapping with exactly these keys. `values` holds the schema of each key."""
    if set(keys) != set(values):
        raise ValueError(f"the schema describes {sorted(values)}, and the reader knows {sorted(keys)}")
    properties = {key: {"description": DESCRIPTIONS[key], **values[key]} for key in keys}
    found: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return found | ({"required": list(required)} if required else {})


def texts(item: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": item, **limits}


def action_values() -> dict[str, Schema]:
    """Return the schema of each key of an action."""
    quantity: Schema = {"type": ["string", "number"], "pattern": whole(QUANTITY.pattern)}
    globs = texts(TEXT | {"maxLength": MAX_GLOB_CHARACTERS}, maxItems=MAX_GLOBS)
    variables: Schema = {
        "type": "object",
        "propertyNames": {"pattern": whole(VARIABLE.pattern)},
        "additionalProperties": {"type": SCALAR},
    }
    repository = {
        "url": TEXT,
        "ref": {"type": ["string", "number"]},
        "depth": {"type": "integer", "minimum": 0},
        "submodules": {"type": ["boolean", "string"], "enum": [*BOOLEAN["enum"], "recursive"]},
        "lfs": BOOLEAN,
        "credentials": TEXT,
    }
    files: dict[str, Schema] = {
        "from": {"type": ["string", "number"]},
        "paths": globs | {"description": "Globs of the artifacts to copy. Default: all."},
        "to": TEXT,
        "optional": BOOLEAN,
    }
    key = TEXT | {"maxLength": MAX_CACHE_CHARACTERS}
    cache: dict[str, Schema] = {
        "key": key,
        "paths": texts(TEXT, minItems=1, maxItems=MAX_CACHE_ITEMS)
        | {"description": "Files and folders of the workspace, without wildcards."},
        "fallbacks": texts(key, maxItems=MAX_CACHE_ITEMS),
        "prefix": key,
        "save": {"enum": [each.value for each in SAVES]},
    }
    rules = {"paths": globs, "exclude": globs, "when": {"enum": [each.value for each in When]}}
    environment = {"env": variables, "secrets": texts({"type": "string", "pattern": whole(VARIABLE.pattern)})}
    environment["secrets"] |= {"uniqueItems": True}
    duration: Schema = {
        "type": ["string", "number"],
        "pattern": whole(rf"\d+(\.\d+)?|{DURATION.pattern}"),
        "minLength": 1,
    }
    resources = mapping(RESOURCE_KEYS, dict.fromkeys(RESOURCE_KEYS, quantity))
    times: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES}
    reasons = texts({"enum": [each.value for each in RETRY_REASONS]})
    return {
        "configuration": mapping(("container",), {"container": TEXT}, required=("container",)),
        "commands": texts({"type": SCALAR}, minItems=1),
        **environment,
        "repo": mapping(REPO_KEYS, repository, required=("url",)),
        "resources": resources,
        "class": {"type": ["string", "number"], "pattern": whole(CLASS.pattern)},
        "timeout": duration,
        "artifacts": {"anyOf": [{"const": "none"}, mapping(ARTIFACT_KEYS, rules)]},
        "shell": mapping(SHELL_KEYS, {"pipefail": BOOLEAN}),
        "services": {
            "type": "object",
            "propertyNames": {"pattern": whole(SERVICE_NAME.pattern)},
            "additionalProperties": service_schema(environment, resources, duration),
        },
        "retry": {
            "anyOf": [times, mapping(RETRY_KEYS, {"times": times, "reasons": reasons}, required=("times",))],
        },
        "when": {"enum": [each.value for each in Condition]},
        "needs": texts({"type": ["string", "number"]}) | {"uniqueItems": True},
        "matrix": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": whole(VARIABLE.pattern)},
            "additionalProperties": texts({"type": SCALAR}, minItems=1) | {"uniqueItems": True},
        },
        "cache": texts(mapping(CACHE_KEYS, cache, required=("key", "paths")), maxItems=MAX_CACHES),
        "inputs": texts(mapping(INPUT_KEYS, files, required=("from",)), maxItems=MAX_INPUTS),
    }


def service_schema(environment: dict[str, Schema], resources: Schema, duration: Schema) -> Schema:
    """Return the schema of a service."""
    words = texts({"type": SCALAR}, minItems=1)
    health = {"command": words, "timeout": duration | {"description": "Time until the service must be ready."}}
    values = {
        "container": TEXT
        | {"description": "The image. Its ENTRYPOINT and CMD run, unless `command` and `args` replace them."},
        "ports": texts({"type": "integer", "minimum": 1, "maximum": 65535}) | {"uniqueItems": True},
        "health": mapping(HEALTH_KEYS, health, required=("command",)),
        "env": environment["env"] | {"description": "Variables of the service."},
        "secrets": environment["secrets"]
        | {"description": "Names from the secrets of the action that the service gets as variables."},
        "aliases": texts({"type": "string", "pattern": whole(HOST_NAME.pattern)}),
        "command": words,
        "args": words,
        "resources": resources | {"description": "Resources of the service, as Kubernetes quantities."},
        "scratch": texts({"type": "string", "pattern": whole(FOLDER.pattern)}) | {"uniqueItems": True},
        "privileged": BOOLEAN,
        "on_exit": {"enum": [each.value for each in OnExit]},
        "log": {"enum": [each.value for each in ServiceLog]},
    }
    return mapping(SERVICE_KEYS, values, required=("container",))


def schema() -> Schema:
    """Return the schema. A file with `configuration` at its top is a single action."""
    values = action_values()
    required = ("configuration", "commands")
    name: Schema = {"type": ["string", "number", "boolean"]}
    single = {key: value for key, value in values.items() if key not in KEYS_OF_SEVERAL} | {"name": name}
    defaults = mapping(DEFAULT_KEYS, {key: values[key] for key in DEFAULT_KEYS})
    actions: Schema = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": MAX_ACTIONS,
        "propertyNames": {"pattern": whole(NAME.pattern)},
        "additionalProperties": {"$ref": "#/definitions/action"},
    }
    pipeline = {"name": name, "defaults": defaults, "actions": actions}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "SealCI pipeline",
        "type": "object",
        "if": {"required": ["configuration"]},
        "then": mapping(tuple(single), single, required=required),
        "else": mapping(PIPELINE_KEYS, pipeline, required=("actions",)),
        # The image may be that of `defaults`.
        "definitions": {"action": mapping(ACTION_KEYS, values, required=("commands",))},
    }


def text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(schema(), indent=2) + "\n"
