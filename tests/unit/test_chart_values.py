"""The chart's values hold every setting of the agent, with its default, and nothing else; what is made is current."""

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
    """Return nested settings by their keys with dots."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def test_what_is_committed_is_what_make_chart_writes() -> None:
    for path, text in generated.files().items():
        assert path.read_text("utf-8") == text, f"{path.name} is not current: make chart"


def test_the_values_hold_every_setting_that_the_chart_does_not_set_itself() -> None:
    model = set(flat(Settings().model_dump(mode="json")))
    assert model >= generated.SET_BY_CHART
    held = set(flat({section: VALUES[section] for section in SECTIONS}))
    assert held == model - generated.SET_BY_CHART


def test_every_section_reaches_the_agents_file() -> None:
    text = (generated.CHART / "templates" / "_settings.tpl").read_text("utf-8")
    (listed,) = re.findall(r"range \$section := list (.*?) -}}", text)
    assert tuple(json.loads(f"[{','.join(listed.split())}]")) == SECTIONS


def test_the_agent_reads_the_values_as_its_own_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    values = {section: VALUES[section] for section in SECTIONS}
    for key in generated.EMPTY_MEANS:
        section, name = key.split(".")
        assert values[section].pop(name) == ""
    file.write_text(yaml.safe_dump(values))
    assert load(file, {}, {}).model_dump() == Settings().model_dump()


def closed_objects(schema: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every section of the schema."""
    if schema.get("properties"):
        yield key, schema
    for name, below in schema.get("properties", {}).items():
        yield from closed_objects(below, f"{key}.{name}")


def test_every_section_refuses_keys_that_it_does_not_name() -> None:
    sections = dict(closed_objects(SCHEMA))
    assert {".agent", ".scheduler.tls", ".image", ".networkPolicy.actions", ""} <= set(sections)
    for key, schema in sections.items():
        assert schema["additionalProperties"] is False, key


def test_the_schema_knows_every_value_and_no_other() -> None:
    keys = {f"{key}.{name}" for key, schema in closed_objects(SCHEMA) for name in schema["properties"]}
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    known = {f".{value.key}" for value in generated.chart_values(generated.upper_half())}
    known |= {f".{value.key}" for value in generated.settings_values(Settings)}
    assert leaves - {".global"} == known


@pytest.mark.parametrize("text", ["30", "1.5", "90s", "10m", "1h30m", "1d12h", "0s"])
def test_durations_of_the_schema_are_durations_of_the_agent(text: str) -> None:
    assert re.search(generated.DURATION, text)
    assert load(None, {"agent": {"drain_timeout": text}}, {}).agent.drain_timeout >= 0


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1w", "1 h"])
def test_what_is_no_duration_is_refused_by_the_schema(text: str) -> None:
    assert not re.search(generated.DURATION, text)


@pytest.mark.parametrize(
    ("text", "fits"), [("64Mi", True), ("1.5Gi", True), ("10", True), ("64MB", False), ("", False)]
)
def test_sizes_of_the_schema(text: str, fits: bool) -> None:
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
