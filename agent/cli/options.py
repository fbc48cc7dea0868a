"""Options that several commands share, and the reading of what was given with them.

Lives as long as the command line is read; every error is the caller's usage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from agent.domain.errors import SettingsError
from agent.domain.quantities import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.pipeline.parser import Pipeline


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options with which every setting can be given."""
    command = click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="a setting, as in --set agent.slots=20"
    )(command)
    return click.option(
        "--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings (SEALCI_CONFIG)"
    )(command)


def flags(assignments: tuple[str, ...], **more: dict[str, Any]) -> dict[str, Any]:
    """Turn `a.b=value` into nested settings; values are read as YAML. Settings in `more` come first."""
    result: dict[str, Any] = {section: dict(values) for section, values in more.items()}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment}: KEY=VALUE is wanted")
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise click.UsageError(f"--set {assignment}: {section} is no section")
        place[last] = yaml.safe_load(value) if value else ""
    return result


def duration(option: str, text: str) -> float:
    """Read a duration given as an option."""
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error


def read_pipeline(
    file: Path, secrets_file: Path | None, change: Callable[[Pipeline], Pipeline] = lambda asked: asked
) -> tuple[Pipeline, dict[str, str]]:
    """Read a pipeline file, change it, and find the values of the secrets that it names then."""
    from agent.pipeline.overrides import OptionError
    from agent.pipeline.parser import load as load_pipeline
    from agent.pipeline.secret_values import SecretsError, find_secrets
    from agent.pipeline.yaml_document import PipelineFileError

    try:
        pipeline = change(load_pipeline(file))
        return pipeline, find_secrets(pipeline.secrets, os.environ, secrets_file)
    except (PipelineFileError, SecretsError, OptionError, OSError) as error:
        raise SettingsError(str(error)) from error
