"""Test that the chart's values are exactly the agent's settings, and that generated files are current."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent.settings import Settings, load
from deploy.dev.chart import generated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTIONS = tuple(Settings.model_fields)
VALUES = yaml.safe_load((generated.CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((generated.CHART / "values.schema.json").read_text("utf-8"))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping, whose keys are paths with dots."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def test_committed_files_equal_the_output_of_make_chart() -> None:
    for path, text in generated.files().items():
        assert path.read_text("utf-8") == text, f"{path.name} is not current, run make chart"


def test_every_setting_is_a_value_or_set_by_the_chart() -> None:
    model = set(flat(Settings().model_dump(mode="json")))
    assert model >= generated.SET_BY_CHART
    keys = set(flat({section: VALUES[section] for section in SECTIONS}))
    assert keys == model - generated.SET_BY_CHART


def test_the_template_copies_every_section_to_the_settings_file() -> None:
    text = (generated.CHART / "templates" / "_settings.tpl").read_text("utf-8")
    (listed,) = re.findall(r"range \$section := list (.*?) -}}", text)
    assert tuple(json.loads(f"[{','.join(listed.split())}]")) == SECTIONS


def test_the_default_values_give_the_agent_its_default_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    values = {section: VALUES[section] for section in SECTIONS}
    for key in generated.EMPTY_MEANS:
        section, name = key.split(".")
        assert values[section].pop(name) == ""
    file.write_text(yaml.safe_dump(values))
    assert load(file, {}, {}).model_dump() == Settings().model_dump()


def closed_objects(schema: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the schema of every object in a JSON schema that lists its keys.

    `key` is the path of `schema` itself, empty for the root.
    """
    if schema.get("properties"):
        yield key, schema
    for name, below in schema.get("properties", {}).items():
        yield from closed_objects(below, f"{key}.{name}")


def test_every_section_refuses_unknown_keys() -> None:
    sections = dict(closed_objects(SCHEMA))
    assert {".agent", ".scheduler.tls", ".image", ".networkPolicy.actions", ""} <= set(sections)
    for key, schema in sections.items():
        assert schema["additionalProperties"] is False, key


def test_the_schema_has_exactly_the_values() -> None:
    keys = {f"{key}.{name}" for key, schema in closed_objects(SCHEMA) for name in schema["properties"]}
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    values = {f".{value.key}" for value in generated.chart_values(generated.upper_half())}
    values |= {f".{value.key}" for value in generated.settings_values(Settings)}
    assert leaves - {".global"} == values


@pytest.mark.parametrize("text", ["30", "1.5", "90s", "10m", "1h30m", "1d12h", "0s"])
def test_a_duration_that_the_schema_accepts_is_accepted_by_the_agent(text: str) -> None:
    assert re.search(generated.DURATION, text)
    assert load(None, {"agent": {"drain_timeout": text}}, {}).agent.drain_timeout >= 0


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1w", "1 h"])
def test_the_schema_refuses_text_that_is_no_duration(text: str) -> None:
    assert not re.search(generated.DURATION, text)


@pytest.mark.parametrize(
    ("text", "fits"), [("64Mi", True), ("1.5Gi", True), ("10", True), ("64MB", False), ("", False)]
)
def test_the_schema_accepts_only_sizes(text: str, fits: bool) -> None:
    assert bool(re.search(generated.SIZE, text)) is fits


@pytest.mark.parametrize(
    ("value", "text"), [(600.0, "10m"), (90.0, "90s"), (86400.0, "1d"), (0.0, "0s"), (0.5, "0.5s"), (5400.0, "90m")]
)
def test_durations_are_written_for_people(value: float, text: str) -> None:
    assert generated.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(1 << 20, "1Mi"), (3 << 30, "3Gi"), (1000, 1000), (0, 0)])
def test_sizes_are_written_for_people(value: int, text: object) -> None:
    assert generated.quantity(value) == text


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match="replicaCount has no comment"):
        list(generated.chart_values("\nreplicaCount: 1\n"))
