"""Generate `docs/settings.md` from the models of `agent/settings`.

The page has one table for each section. Types, bounds, defaults and descriptions come from the models, so the page
needs no upkeep.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel

from agent.domain.quantities import seconds
from agent.settings import NAME_PATTERN, PREFIX, Settings, checked_quantity, size
from deploy.dev.chart.generated import duration, quantity, section_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

HEAD = """# Settings

This page is generated from [`agent/settings`](../agent/settings) by `make docs`.

The agent reads its settings once, at the start. A later source overrides an earlier one:

1. the defaults in the tables below
2. a YAML file, named by `--config FILE` or by the variable `SEALCI_CONFIG`
3. environment variables, as in `SEALCI_AGENT__SLOTS=20`
4. flags, as in `--set agent.slots=20`

```yaml
# settings.yaml
scheduler:
  address: scheduler.example.org:443
  token_file: /etc/sealci/token
agent:
  slots: 20
```

- The agent refuses an unknown key and a wrong value. The error message names the key and the environment variable.
- `sealci-agent config` prints the settings in force.
- A setting never holds a secret. Settings whose name ends in `_file` are paths of files that hold certificates, keys or
  tokens.
- With the Helm chart, settings are values of the same name. The chart's [README](../charts/sealci-agent/README.md)
  lists the values. The chart itself sets `agent.id`, `agent.anchor` and the paths of mounted Secrets.

## Types

| type | how to write a value |
|---|---|
| duration | a number of seconds, or text such as `90s`, `10m`, `1h30m` |
| size | a number of bytes, or text such as `64Mi` |
| quantity | a Kubernetes quantity such as `500m` or `1Gi`. Empty text means none |
| name | lower-case letters, digits and `-`, at most 53 characters |
| list, map | YAML in the file and after `--set`, JSON in an environment variable |
| path | a path of a file or folder. A default of `null` means that the setting is unset |
"""
COLUMNS = "| setting | environment variable | type | default | description |\n|---|---|---|---|---|"
TYPES = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}


def text() -> str:
    """Return the text of `docs/settings.md`."""
    parts = [HEAD]
    for name in Settings.model_fields:
        section = section_of(Settings, name)
        if section is None:
            raise TypeError(f"{name} is not a section")
        parts += tables(section, name)
    return "\n".join(parts)


def tables(section: type[BaseModel], key: str) -> Iterator[str]:
    """Yield the heading and the table of a section, then the headings and tables of its subsections."""
    level = "##" + "#" * key.count(".")
    rows = [row(f"{key}.{name}", info) for name, info in section.model_fields.items() if not section_of(section, name)]
    yield "\n".join([f"{level} `{key}`", "", summary(section), "", COLUMNS, *rows, ""])
    for name in section.model_fields:
        if (below := section_of(section, name)) is not None:
            yield from tables(below, f"{key}.{name}")


def summary(section: type[BaseModel]) -> str:
    """Return the first line of the docstring of a section's model, which describes the section on the page."""
    return (section.__doc__ or "").strip().splitlines()[0]


def row(key: str, info: FieldInfo) -> str:
    """Return the table row of one setting. `key` is the name of the setting with its sections, such as `agent.pool`."""
    variable = PREFIX + key.replace(".", "__").upper()
    description = (info.description or "").replace("|", "\\|")
    return f"| `{key}` | `{variable}` | {allowed(info)} | `{default(info)}` | {description} |"


def allowed(info: FieldInfo) -> str:
    """Return the type of a setting and its bounds, as text for the page."""
    return f"{kind(info)}{bounds(info)}"


def kind(info: FieldInfo) -> str:
    """Return the type of a setting without its bounds, as one of the types that the page explains in its head."""
    functions = {getattr(each, "func", None) for each in info.metadata}
    if seconds in functions:
        return "duration"
    if size in functions:
        return "size"
    if checked_quantity in functions:
        return "quantity"
    if any(getattr(each, "pattern", None) == NAME_PATTERN for each in info.metadata):
        return "name"
    return of_annotation(info.annotation)


def of_annotation(annotation: Any) -> str:
    """Return the type of a setting as the page names it, from the Python type of the setting."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        item = of_annotation(arguments[0])
        return f"list of {item}{'s' if item in ('number', 'map') else ''}"
    if origin is dict:
        return "map"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "map"
    return TYPES.get(annotation, "path")


def bounds(info: FieldInfo) -> str:
    """Return the bounds of a number as text for people. Return "" if the only bound is a minimum of 0."""
    lower: list[Any] = [each.ge for each in info.metadata if isinstance(each, Ge)]
    above = any(isinstance(each, Gt) for each in info.metadata)
    upper = next((each.le for each in info.metadata if isinstance(each, Le)), None)
    least: float = max(lower, default=0)
    if upper is not None:
        return f", {least} to {upper}"
    if above:
        return ", above 0"
    if not least:
        return ""
    return f", at least {written(info, least)}"


def default(info: FieldInfo) -> str:
    """Return the default of a setting as JSON. A text that is not empty is written without quotes."""
    found = info.get_default(call_default_factory=True)
    return json.dumps(written(info, found), default=str).strip('"') or '""'


def written(info: FieldInfo, value: Any) -> Any:
    """Return the default of a setting in the form in which a person would write it in a configuration file."""
    if kind(info) == "duration":
        return duration(value)
    if kind(info) == "size":
        return quantity(value)
    if isinstance(value, float) and value == int(value):
        return int(value)
    return value
