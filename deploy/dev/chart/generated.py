"""Generate values.schema.json, the README and the lower half of values.yaml of the Helm chart.

Nothing here writes a file. People write the upper half of values.yaml. There, a key with a comment `# -- ...` is a
value of the chart, and the value's default gives its type. A mapping without such a comment is a section. The schema
refuses keys that a section does not name. In the lower half, the agent's settings keep their names, types and bounds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from agent.domain import quantities
from agent.settings import Settings, checked_quantity, size

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]

CHART = Path(__file__).resolve().parents[3] / "charts" / "sealci-agent"
# The line of values.yaml between its hand-written upper half and its generated lower half.
LINE = "# ---- the agent's own settings: written by `make chart` from agent/settings ----\n"
DRAFT = "http://json-schema.org/draft-07/schema#"
DURATION = r"^(\d+(\.\d+)?[dhms]?)+$"
QUANTITY = f"^({quantities.QUANTITY.pattern})?$"
# Pattern of the quantities that Kubernetes accepts. The agent accepts only some of them.
KUBERNETES_QUANTITY = r"^[0-9]+(\.[0-9]*)?(m|u|n|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]+)?$"
SIZE = r"^\d+(\.\d+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

# The agent's settings that the user of the chart cannot set. The chart's templates set them from the release, mounted
# Secrets or the pod.
SET_BY_CHART = frozenset(
    {
        "agent.id",
        "agent.anchor",
        "cluster.context",
        "cluster.kubeconfig",
        "scheduler.token_file",
        "scheduler.tls.ca_file",
        "scheduler.tls.cert_file",
        "scheduler.tls.key_file",
        "scheduler.classic.open",
        # One value of the chart, `proxy`, sets the proxy of the agents and of the pods of actions.
        "environment.proxy.http",
        "environment.proxy.https",
        "environment.proxy.no_proxy",
    }
)
# Settings for which the chart has a better default than the agent. If the value is empty, the chart uses the default
# that is described here.
EMPTY_MEANS = {
    "agent.pool": "namespace and name of the release",
    "cluster.namespace": "the namespace of the release with `-actions` after it",
    "environment.image": "the image of the agent",
    "scheduler.address": "the demo scheduler, if `demoScheduler.enabled` is set",
}
SWITCH = {"type": ["boolean", "string"], "enum": [True, False, "auto"]}
STRINGS = {"items": {"type": "string"}}
OBJECTS = {"items": {"type": "object"}}
AT_LEAST_ONE = {"minimum": 1}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"], "pattern": KUBERNETES_QUANTITY},
}
RESOURCES = {"patternProperties": {"^(requests|limits)$": QUANTITIES}}
# As `agent.settings.outside.ProxyUrl`.
PROXY = {"pattern": r"^(https?://[^\s/@]+/?)?$"}
PERCENT = {"minimum": 1, "maximum": 100}
# Additions to the JSON schema of single values of the chart. The type of a value's default does not imply them.
NARROWED: dict[str, Schema] = {
    "actions.createNamespace": SWITCH,
    "actions.limits": OBJECTS,
    "autoscaling.maxReplicas": AT_LEAST_ONE,
    "autoscaling.minReplicas": AT_LEAST_ONE,
    "autoscaling.targetPercent": PERCENT,
    "cachePrune.resources": RESOURCES,
    "dashboard.enabled": SWITCH,
    "demoScheduler.from": OBJECTS,
    "demoScheduler.port": {"minimum": 1, "maximum": 65535},
    "demoScheduler.resources": RESOURCES,
    "demoScheduler.resumeGrace": {"pattern": DURATION},
    "dnsPolicy": {"enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]},
    "extraContainers": OBJECTS,
    "extraEnv": OBJECTS,
    "extraEnvFrom": OBJECTS,
    "extraVolumeMounts": OBJECTS,
    "extraVolumes": OBJECTS,
    "hostAliases": OBJECTS,
    "http.port": {"minimum": 1},
    "scheduler.classic.port": {"minimum": 1},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.repository": {"minLength": 1},
    "imagePullSecrets": OBJECTS,
    "initContainers": OBJECTS,
    "keda.maxReplicas": AT_LEAST_ONE,
    "keda.minReplicas": {"minimum": 0},
    "keda.pollingInterval": AT_LEAST_ONE,
    "keda.targetPercent": PERCENT,
    "networkPolicy.actions.dns": STRINGS,
    "networkPolicy.actions.except": STRINGS,
    "networkPolicy.actions.exceptIPv6": STRINGS,
    "networkPolicy.actions.extraEgress": OBJECTS,
    "networkPolicy.agent.apiPorts": {"items": {"type": "integer", "minimum": 1, "maximum": 65535}},
    "networkPolicy.agent.extraEgress": OBJECTS,
    "networkPolicy.agent.metricsFrom": OBJECTS,
    "networkPolicy.agent.schedulerFrom": OBJECTS,
    "placeholders.priority": {"minimum": -10, "maximum": -1},
    "placeholders.replicas": {"minimum": 0},
    "placeholders.resources": RESOURCES,
    "placeholders.tolerations": OBJECTS,
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "podMonitor.enabled": SWITCH,
    "podMonitor.metricRelabelings": OBJECTS,
    "podMonitor.relabelings": OBJECTS,
    "prepull.images": STRINGS,
    "prepull.resources": RESOURCES,
    "prometheusRule.enabled": SWITCH,
    "proxy.http": PROXY,
    "proxy.https": PROXY,
    "rbac.extraRules": OBJECTS,
    "revisionHistoryLimit": {"minimum": 0},
    "replicaCount": {"type": ["integer", "null"], "minimum": 0},
    "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1},
    "resources": RESOURCES,
    "tolerations": OBJECTS,
    "topologySpreadConstraints": OBJECTS,
}


@dataclass(frozen=True)
class Value:
    """One value of the Helm chart. `key` is its path in values.yaml, joined by dots. `schema` is its JSON schema."""

    key: str
    comment: str
    default: Any
    schema: Schema


def files() -> dict[Path, str]:
    """Return the text of every generated file of the chart, by the path of the file."""
    values, top = CHART / "values.yaml", upper_half()
    everything = [*chart_values(top), *settings_values(Settings)]
    readme = (Path(__file__).parent / "README.md.in").read_text("utf-8")
    return {
        values: top + LINE + settings_text(Settings),
        CHART / "values.schema.json": json.dumps(schema(everything), indent=2) + "\n",
        CHART / "README.md": readme.replace("{values}", table(everything)),
    }


# ---- the upper half of values.yaml


def upper_half() -> str:
    """Return the upper half of values.yaml, which people write by hand. It is the text above `LINE`."""
    return (CHART / "values.yaml").read_text("utf-8").partition(LINE)[0]


def chart_values(text: str) -> list[Value]:
    """Return the values in the upper half of values.yaml, in their order. `text` is the text of this half."""
    node = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise TypeError("values.yaml is not a mapping")
    return list(section_values(node, text.splitlines(), ""))


def section_values(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Value]:
    """Yield the values in a section of values.yaml and its subsections. Raise ValueError if a value has no comment."""
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        comment = lines[name.start_mark.line - 1].strip()
        if comment.startswith("# -- "):
            default = yaml.SafeLoader("").construct_object(value, deep=True)
            yield Value(key, comment.removeprefix("# -- "), default, type_schema(default) | NARROWED.get(key, {}))
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from section_values(value, lines, f"{key}.")
        else:
            raise ValueError(f"values.yaml: {key} has no comment `# -- ...`")


def type_schema(default: Any) -> Schema:
    """Return a JSON schema with the type of a value. The type is that of the value's default."""
    kinds = {bool: "boolean", int: "integer", str: "string", dict: "object", list: "array", type(None): "null"}
    return {"type": kinds[type(default)]}


# ---- the agent's settings


def settings_values(model: type[BaseModel], prefix: str = "") -> Iterator[Value]:
    """Yield the agent's settings that are values of the chart, in the order in which `model` declares them."""
    schemas = inline_references(model.model_json_schema())["properties"]
    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in SET_BY_CHART:
            continue
        section = section_of(model, name)
        if section is not None:
            yield from settings_values(section, f"{key}.")
            continue
        yield setting_value(key, name, info, schemas[name])


def setting_value(key: str, name: str, info: FieldInfo, field_schema: Schema) -> Value:
    """Return the chart's value for one setting of the agent.

    `field_schema` is the JSON schema that pydantic makes of the setting's field.
    """
    # Leave out `ge` (a minimum), because it does not fit a duration or a size that is written as a text. Durations and
    # sizes get a pattern below. The few settings with a narrower range get that range from the table NARROWED.
    schema = {word: field_schema[word] for word in field_schema if word not in ("title", "default", "ge")}
    reader = next((getattr(each, "func", None) for each in info.metadata if hasattr(each, "func")), None)
    default = json.loads(json.dumps(info.get_default(call_default_factory=True), default=str))
    comment = schema.pop("description", "")
    if reader is quantities.seconds:
        schema |= {"type": ["number", "string"], "pattern": DURATION}
        default = duration(default)
    elif reader is size:
        schema |= {"type": ["integer", "string"], "pattern": SIZE}
        default = quantity(default)
    elif reader is checked_quantity:
        schema |= {"pattern": QUANTITY}
    elif (model := model_of_mapping(info)) is not None:
        (names,) = schema["patternProperties"]
        schema |= {"patternProperties": {names: section_schema(model)}, "additionalProperties": False}
    if key in EMPTY_MEANS:
        default, comment = "", f"{comment} If empty, {EMPTY_MEANS[key]}."
        schema = {"anyOf": [{"const": ""}, schema]} if schema.keys() - {"type", "minLength"} else {"type": "string"}
    if isinstance(default, float) and default == int(default):
        default = int(default)
    return Value(key, comment or f"the agent's {name}", default, schema | NARROWED.get(key, {}))


def model_of_mapping(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a setting that maps names to sections, or None if the setting is something else."""
    arguments = get_args(info.annotation)
    kind = arguments[-1] if arguments else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def section_schema(model: type[BaseModel]) -> Schema:
    """Return the JSON schema of a section whose place in the values has a name of the user."""
    properties = {each.key: {"description": each.comment, **each.schema} for each in settings_values(model)}
    return empty_section() | {"properties": properties}


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of the section `name`, or None if `name` is a single setting."""
    kind = model.model_fields[name].annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def inline_references(schema: Schema) -> Schema:
    """Replace each `$ref` in a JSON schema by its definition, because older versions of helm resolve no references."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, list):
            return [resolve(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolve(definitions[part["$ref"].rpartition("/")[2]])
        return {name: resolve(each) for name, each in part.items()}

    result: Schema = resolve(schema)
    return result


def duration(value: float) -> Any:
    """Return a number of seconds as people write it, like 10m."""
    if value != int(value) or value == 0:
        return f"{value:g}s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if value % length == 0:
            return f"{int(value) // length}{unit}"
    return f"{int(value)}s"


def quantity(value: int) -> Any:
    """Return a number of bytes as people write it, like 64Mi."""
    for unit in ("Gi", "Mi", "Ki"):
        length = int(quantities.SUFFIXES[unit])
        if value and value % length == 0:
            return f"{value // length}{unit}"
    return value


def settings_text(model: type[BaseModel]) -> str:
    """Return the lower half of values.yaml."""
    lines: list[str] = []
    open_section: list[str] = []
    for value in settings_values(model):
        *sections, last = value.key.split(".")
        common = [a for a, b in zip(open_section, sections, strict=False) if a == b]
        for depth in range(len(common), len(sections)):
            indent = "  " * depth
            comment = summary(model, sections[: depth + 1])
            lines += [*([""] if not depth else []), f"{indent}# {comment}", f"{indent}{sections[depth]}:"]
        open_section = sections
        indent = "  " * len(sections)
        lines += [f"{indent}# -- {value.comment}", f"{indent}{last}: {json.dumps(value.default, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


def summary(model: type[BaseModel], path: list[str]) -> str:
    """Return the first line of the docstring of a section's model. `path` leads from `model` to the section."""
    for name in path:
        model = section_of(model, name) or model
    return (model.__doc__ or "").strip().splitlines()[0]


# ---- the schema and the table of all values


def schema(values: list[Value]) -> Schema:
    """Return the JSON schema of the chart's values. Every section refuses keys that it does not name."""
    top: Schema = {"$schema": DRAFT, "title": "Values of sealci-agent", **empty_section()}
    top["properties"]["global"] = {"type": "object"}
    for value in values:
        *sections, last = value.key.split(".")
        place = top
        for section in sections:
            place = place["properties"].setdefault(section, empty_section())
        place["properties"][last] = {"description": value.comment, **value.schema}
    return top


def empty_section() -> Schema:
    """Return the JSON schema of a section without properties. The caller adds the properties."""
    return {"type": "object", "additionalProperties": False, "properties": {}}


def table(values: list[Value]) -> str:
    """Return a Markdown table of the chart's values for the README, in the style of helm-docs."""
    rows = ["| Key | Type | Default | Description |", "|-----|------|---------|-------------|"]
    for value in values:
        kind = value.schema.get("type") or ("string" if isinstance(value.default, str) else "switch")
        kind = " or ".join(kind) if isinstance(kind, list) else kind
        default = json.dumps(value.default, ensure_ascii=False).replace("|", "\\|")
        rows.append(f"| {value.key} | {kind} | `{default}` | {value.comment} |".replace("|  |", "| |"))
    return "\n".join(rows)
